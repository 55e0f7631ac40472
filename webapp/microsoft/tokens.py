"""Access tokens of linked mailboxes: at hand for every mail, renewed once for all who ask.

A token is kept in memory, so that a mail costs a look into a dictionary. It is renewed by one
thread of one process (a lock per grant, and a lease on its row), with no transaction open while
the network is asked. What comes back counts only while the row's version is still the one it began
with: so a late renewal undoes neither a Remove nor a new link.

Who talks to the token endpoint, and how, is a matter of the provider: see `renewal`.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import requests
import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from webapp.config import ConfigError
from webapp.crypto import Keyring, SealError
from webapp.db import Database
from webapp.delivery.models import Outcome
from webapp.fields import N_
from webapp.google.renewal import GoogleRenewer
from webapp.mailers.base import AccessToken
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    Misconfigured,
    NeedsReauthorisation,
    TransientError,
)
from webapp.microsoft import service
from webapp.microsoft.clouds import Cloud
from webapp.microsoft.models import Grant, GrantState, OAuthApp
from webapp.microsoft.renewal import (
    NO_SECRET,
    AppFacts,
    AtHand,
    MsalRenewer,
    Proof,
    Renewer,
    Verdict,
)

__all__ = ["NO_CLOUD", "NO_SECRET", "UNLINKED", "AppFacts", "Proof", "Tokens", "Verdict"]

log = structlog.get_logger(__name__)

MARGIN_SECONDS = 300.0
"""A token is renewed so long before it ends, or at half its life where it lives for minutes."""
LOOK_EVERY = 1.0
"""Seconds between looks at whether the grant of a token in memory is still the same."""
REMEMBER_SECONDS = 5.0
"""How long a failure answers for all who ask."""
LEASE = timedelta(seconds=60)
LONGEST_WAIT = 90.0
"""Seconds that somebody else's renewal is waited for: a lease, and then some."""
POLL = (0.05, 0.5)
"""The first pause between looks at somebody else's renewal, and the longest."""

UNLINKED = N_("The link to this mailbox was removed.")
NO_CLOUD = N_("The cloud of the app registration is not known to this installation.")
UNREADABLE = N_("The stored link cannot be opened with the keys of this installation.")
DATABASE_AWAY = N_("The database did not answer.")
STILL_RENEWED = N_("Another process is renewing this link and has not finished.")


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A token at hand; times are seconds since 1970."""

    given: AccessToken
    version: int
    """Of the grant, when the token was stored there."""
    good_until: float
    """From then on it is renewed, but still used if that fails."""
    expires_at: float


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A grant and its registration, as stored."""

    id: int
    version: int
    state: str
    cache: str | None
    scopes: Sequence[str]
    code: str
    words: str
    lease_until: datetime | None
    uid: str
    cloud: str
    tenant: str
    client_id: str
    secret: str | None
    has_problem: bool
    """Whether the registration is marked as refused."""

    @property
    def tried_with(self) -> tuple[object, ...]:
        """A failure says nothing once any of this has changed."""
        return (self.version, self.cloud, self.tenant, self.client_id, self.secret)


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """What a renewal met; it answers for others who ask soon after."""

    error: DeliveryError
    tried_with: tuple[object, ...]
    until: float


class _Slot:
    """What this process knows of one grant. The lock is held by whoever renews."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: _Held | None = None
        self.look_at = 0.0
        self.failure: _Failure | None = None


class _Outdated(Exception):
    """Something was saved meanwhile; what was to be noted is history."""


class Tokens:
    """Gives out access tokens; for all threads of a process, beside other processes.

    `load_keys` gives the keys of today, so that a rotation is noticed; `session` makes an HTTP
    session, which is closed after use.
    """

    def __init__(
        self,
        db: Database,
        load_keys: Callable[[], Keyring],
        clouds: Mapping[str, Cloud],
        session: Callable[[], requests.Session],
    ) -> None:
        self._db = db
        self._load_keys = load_keys
        self.clouds = clouds
        self._slots: dict[int, _Slot] = {}
        self._renewers: Mapping[str, Renewer] = {
            "microsoft": MsalRenewer(session),
            "google": GoogleRenewer(session),
        }

    # ---- what others ask for ----

    def token(self, grant_id: int, *, refused: str = "", claims: str = "") -> AccessToken:
        """A token that is still good for a while; raises DeliveryError.

        `refused` is a token that the remote answered 401 to: then one that is newer, by one forced
        renewal however many ask for it. `claims` is the challenge that came with the refusal.
        """
        slot = self._slot(grant_id)
        held, now = slot.held, time.time()
        if held is not None and held.given.value == refused:
            held = None
        if held is not None and not self._is_current(slot, grant_id, held):
            held = None
        if held is not None and now < held.good_until:
            return held.given
        spare = held if held is not None and now < held.expires_at else None
        try:
            return self._wait_for(slot, grant_id, spare, refused=refused, claims=claims).given
        except sa.exc.SQLAlchemyError as error:
            log.warning("the database is away", error=type(error).__name__)
            raise TransientError(DATABASE_AWAY) from error

    def permissions(self, grant_id: int) -> Sequence[str]:
        """What the account has granted, without the cloud in front; nothing when it is unknown."""
        try:
            with self._db.read() as session:
                return session.scalar(sa.select(Grant.scopes).where(Grant.id == grant_id)) or ()
        except sa.exc.SQLAlchemyError as error:
            log.warning("the database is away", error=type(error).__name__)
            return ()

    def renew(self, grant_id: int) -> None:
        """Renew a grant although its token may still be good; raises DeliveryError.

        When another process is at it, its renewal counts.
        """
        slot = self._slot(grant_id)
        try:
            with slot.lock:
                held = self._stored(self._read(grant_id))
                refused = held.given.value if held else ""
                slot.held = self._obtain(slot, grant_id, refused=refused, claims="")
        except sa.exc.SQLAlchemyError as error:
            log.warning("the database is away", error=type(error).__name__)
            raise TransientError(DATABASE_AWAY) from error

    def hand_over(self, app: AppFacts, refresh_token: str, scopes: Sequence[str]) -> str:
        """Take over a refresh token that a sign-in brought; returns the text to store as `cache`.

        `scopes` are without the cloud in front. Raises DeliveryError. Needs no database.
        """
        return self._renewer(app.cloud).hand_over(app, refresh_token, scopes)

    def prove(self, app: AppFacts, cache: str = "") -> Proof:
        """Whether the token endpoint takes this secret; changes nothing, and needs no database.

        `cache` is that of a link by the same registration, where there is one.
        """
        return self._renewer(app.cloud).prove(app, cache)

    def _renewer(self, cloud: Cloud) -> Renewer:
        return self._renewers[cloud.provider]

    # ---- in memory ----

    def _slot(self, grant_id: int) -> _Slot:
        found = self._slots.get(grant_id)
        return self._slots.setdefault(grant_id, _Slot()) if found is None else found

    def _is_current(self, slot: _Slot, grant_id: int, held: _Held) -> bool:
        """Whether the grant is still the one the token is of, as far as is known to the second."""
        now = time.monotonic()
        if now < slot.look_at:
            return True
        slot.look_at = now + LOOK_EVERY
        try:
            row = self._db.look_up('SELECT version, state FROM "grant" WHERE id = ?', grant_id)
        except sa.exc.SQLAlchemyError:
            return True  # nothing can be removed while the database is away
        if row == (held.version, GrantState.LINKED.value):
            return True
        if slot.held is held:
            slot.held = None
        return False

    def _wait_for(
        self, slot: _Slot, grant_id: int, spare: _Held | None, *, refused: str, claims: str
    ) -> _Held:
        """The slow way: whoever has the lock looks into the database, the others use what it found.

        With a spare nobody waits for another thread.
        """
        seen = slot.held
        if not slot.lock.acquire(blocking=spare is None):
            assert spare is not None
            return spare
        try:
            held = slot.held
            is_news = held is not None and held is not seen and held.given.value != refused
            if held is None or not is_news or time.time() >= held.expires_at:
                held = slot.held = self._obtain(slot, grant_id, refused=refused, claims=claims)
            return held
        finally:
            slot.lock.release()

    # ---- one renewal, over all processes ----

    def _obtain(self, slot: _Slot, grant_id: int, *, refused: str, claims: str) -> _Held:
        """The stored token if it is good, else a new one. The slot's lock is held."""
        pause, latest = POLL[0], time.monotonic() + LONGEST_WAIT
        mine: _Failure | None = None
        while True:
            row = self._read(grant_id)
            held = self._stored(row)
            if held is not None and (held.given.value == refused or time.time() >= held.expires_at):
                held = None
            if held is not None and time.time() < held.good_until:
                return held
            failure = slot.failure
            if (
                failure is not None
                and failure.tried_with == row.tried_with
                and (failure is mine or time.monotonic() < failure.until)
            ):
                if held is not None:
                    return _for_a_moment(held)
                raise _once_more(failure.error)
            if self._is_leased(row):
                if held is not None:
                    return _for_a_moment(held)
                if time.monotonic() > latest:
                    raise TransientError(STILL_RENEWED)
                time.sleep(pause)
                pause = min(POLL[1], pause * 2)
                continue
            renewed = self._renew(slot, grant_id, row, claims=claims, has_spare=held is not None)
            if renewed is not None:
                return renewed
            mine = slot.failure if slot.failure is not failure else mine

    def _renew(
        self, slot: _Slot, grant_id: int, row: _Row, *, claims: str, has_spare: bool
    ) -> _Held | None:
        """Ask the token endpoint; None: look again at what is stored, or at what failed."""
        me = f"{os.getpid()}-{secrets.token_hex(12)}"
        if not self._lease(grant_id, row.version, me):
            return None
        try:
            cache, renewed, scopes = self._refresh(grant_id, row, claims)
            sealed = self.keys().seal("grant", service.grant_subject(grant_id), cache)
        except NeedsReauthorisation as error:
            self._note_refused(grant_id, row, me, error)
            return None
        except DeliveryError as error:
            log.warning("a link was not renewed", grant=grant_id, code=error.code)
            slot.failure = _Failure(
                error=error,
                tried_with=row.tried_with,
                until=time.monotonic() + REMEMBER_SECONDS,
            )
            if isinstance(error, Misconfigured) and not has_spare:
                self._note_misconfigured(grant_id, row, error)
            self._give_back(grant_id, me)
            return None
        try:
            saved = self._save(grant_id, row, me, sealed, scopes)
        except sa.exc.SQLAlchemyError as error:
            # The refresh token that is stored stays good, and this mail can go.
            log.warning("a renewal was not stored", grant=grant_id, error=type(error).__name__)
            return renewed
        slot.failure = None
        if saved and row.has_problem:
            self._note_works_again(grant_id)
        return replace(renewed, version=row.version + 1) if saved else None

    def _refresh(self, grant_id: int, row: _Row, claims: str) -> tuple[str, _Held, Sequence[str]]:
        """The network: a new token, the text of the cache that it came into, and what it allows."""
        app = self._facts(row)
        cache = self._unsealed("grant", service.grant_subject(grant_id), row.cache)
        renewed = self._renewer(app.cloud).renew(app, cache, row.scopes, claims)
        log.info("a link was renewed", grant=grant_id)
        return renewed.cache, _held(renewed.at_hand, app.cloud, row), renewed.scopes

    # ---- the database ----

    def _read(self, grant_id: int) -> _Row:
        """The grant as it is now; raises NeedsReauthorisation when there is no link to use."""
        with self._db.reader.connect() as connection:
            found = connection.execute(_GRANT, {"key": grant_id}).one_or_none()
        if found is None or found.state == GrantState.REMOVED:
            raise NeedsReauthorisation(UNLINKED, cause_code=Cause.AUTH)
        if found.state == GrantState.NEEDS_REAUTHORISATION:
            raise NeedsReauthorisation(found.words, code=found.code, cause_code=Cause.AUTH)
        return _Row(**found._mapping)

    def _stored(self, row: _Row) -> _Held | None:
        """The newest token in the database; raises TransientError when it cannot be opened."""
        cloud = self.clouds.get(row.cloud)
        if cloud is None or row.cache is None:
            return None
        cache = self._unsealed("grant", service.grant_subject(row.id), row.cache)
        found = self._renewer(cloud).at_hand(row.client_id, cache)
        return None if found is None else _held(found, cloud, row)

    def _facts(self, row: _Row) -> AppFacts:
        """Raises Misconfigured when the registration is not complete."""
        cloud = self.clouds.get(row.cloud)
        if cloud is None:
            raise Misconfigured(NO_CLOUD)
        if row.secret is None:
            raise Misconfigured(NO_SECRET)
        secret = self._unsealed("oauth-app", service.app_subject(row.uid), row.secret)
        return AppFacts(client_id=row.client_id, secret=secret, cloud=cloud, tenant=row.tenant)

    def keys(self) -> Keyring:
        """Those of today; raises TransientError."""
        try:
            return self._load_keys()
        except ConfigError as error:
            raise TransientError(UNREADABLE) from error

    def _unsealed(self, purpose: str, subject: str, token: str | None) -> str:
        """Opened with the keys of today, which may be others than a minute ago."""
        if token is None:
            return "{}"
        try:
            return str(self.keys().unseal(purpose, subject, token))
        except SealError as error:
            raise TransientError(UNREADABLE) from error

    def _is_leased(self, row: _Row) -> bool:
        now = self._db.now()
        return row.lease_until is not None and now <= row.lease_until <= now + 2 * LEASE

    def _lease(self, grant_id: int, version: int, me: str) -> bool:
        """Become the one who renews this grant."""
        now = self._db.now()
        # One that lasts for so long was taken by a clock that has been put back since.
        over = sa.or_(Grant.lease_until < now, Grant.lease_until > now + 2 * LEASE)
        free = sa.or_(Grant.lease_until.is_(None), over)
        return self._change(
            sa.update(Grant)
            .where(Grant.id == grant_id, Grant.version == version, free)
            .values(lease_owner=me, lease_until=now + LEASE)
        )

    def _save(self, grant_id: int, row: _Row, me: str, sealed: str, scopes: Sequence[str]) -> bool:
        """Store what a renewal brought, unless it is history."""
        now = self._db.now()
        return self._change(
            _leased_by(grant_id, me)
            .where(Grant.version == row.version)
            .values(
                cache=sealed,
                scopes=list(scopes),
                version=row.version + 1,
                renewed_at=now,
                renew_at=service.next_renewal(now),
                lease_owner="",
                lease_until=None,
            )
        )

    def _give_back(self, grant_id: int, me: str) -> None:
        self._change(_leased_by(grant_id, me).values(lease_owner="", lease_until=None))

    def _change(self, statement: sa.Update) -> bool:
        """Whether it changed its one row."""
        with self._db.write_connection() as connection:
            return connection.execute(statement).rowcount == 1

    def _note_refused(self, grant_id: int, row: _Row, me: str, error: DeliveryError) -> None:
        """Nothing goes by this grant until somebody signs in again."""
        now = self._db.now()
        with self._db.write() as session:
            service.hold_app_of(session, grant_id)
            noted = session.execute(
                _leased_by(grant_id, me)
                .where(Grant.version == row.version)
                .values(
                    state=GrantState.NEEDS_REAUTHORISATION,
                    state_since=now,
                    code=error.code[:40],
                    words=error.words,
                    version=row.version + 1,
                    lease_owner="",
                    lease_until=None,
                )
                .returning(Grant.id)
            ).first()
            if noted is None:
                return
            _note(session, grant_id, Outcome.NEEDS_REAUTHORISATION, error, now)
        log.warning("a link is refused", grant=grant_id, code=error.code)

    def _note_misconfigured(self, grant_id: int, row: _Row, error: DeliveryError) -> None:
        """Nothing goes by this registration until somebody changes it; unless somebody just did."""
        try:
            with self._db.write() as session:
                # In the order in which a page takes these rows that saves a registration.
                _note(session, grant_id, Outcome.MISCONFIGURED, error, self._db.now())
                current = session.execute(
                    sa.select(Grant.version, OAuthApp.secret)
                    .join(OAuthApp, OAuthApp.id == Grant.app_id)
                    .where(Grant.id == grant_id)
                    .with_for_update(of=OAuthApp)
                ).one()
                if tuple(current) != (row.version, row.secret):
                    raise _Outdated
        except _Outdated:
            log.info("a refusal is history", grant=grant_id)

    def _note_works_again(self, grant_id: int) -> None:
        try:
            with self._db.write() as session:
                service.note_works_again(session, grant_id, self._db.now())
        except sa.exc.SQLAlchemyError as error:  # the token is good all the same
            log.warning("a registration stays marked", error=type(error).__name__)


_GRANT = (
    sa.select(
        Grant.id,
        Grant.version,
        Grant.state,
        Grant.cache,
        Grant.scopes,
        Grant.code,
        Grant.words,
        Grant.lease_until,
        OAuthApp.uid,
        OAuthApp.cloud,
        OAuthApp.tenant,
        OAuthApp.client_id,
        OAuthApp.secret,
        OAuthApp.problem_since.is_not(None).label("has_problem"),
    )
    .join(OAuthApp, OAuthApp.id == Grant.app_id)
    .where(Grant.id == sa.bindparam("key"))
)


def _leased_by(grant_id: int, me: str) -> sa.Update:
    return sa.update(Grant).where(Grant.id == grant_id, Grant.lease_owner == me)


def _note(
    session: Session, grant_id: int, kind: Outcome, error: DeliveryError, now: datetime
) -> None:
    service.note_refusal(session, grant_id, kind=kind, code=error.code, words=error.words, now=now)


def _held(found: AtHand, cloud: Cloud, row: _Row) -> _Held:
    lives = found.expires_at - found.came_at
    return _Held(
        given=AccessToken(value=found.value, api=cloud.api),
        version=row.version,
        good_until=found.expires_at - min(MARGIN_SECONDS, lives / 2),
        expires_at=found.expires_at,
    )


def _for_a_moment(held: _Held) -> _Held:
    """A token that should be renewed, but cannot be now."""
    return replace(held, good_until=min(held.expires_at, time.time() + REMEMBER_SECONDS))


def _once_more(error: DeliveryError) -> DeliveryError:
    """The same error for somebody else; one that is raised twice would gather tracebacks."""
    again = type(error)(
        error.words,
        code=error.code,
        retry_after=error.retry_after,
        cause_code=error.cause_code,
    )
    again.unreached = error.unreached
    return again
