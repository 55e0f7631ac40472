"""Access tokens of linked mailboxes: at hand for every mail, renewed once for all who ask.

A token is kept in memory, so that a mail costs a look into a dictionary. It is renewed by one
thread of one process (a lock per grant, and a lease on its row), with no transaction open while
the network is asked. What comes back counts only while the row's version is still the one it began
with: so a late renewal undoes neither a Remove nor a new link.

MSAL talks to the token endpoint, but remembers nothing for us: its memory of answers is not made
for many threads, and would repeat a refusal up to a minute after a person has put it right.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msal
import requests
import sqlalchemy as sa
import structlog
from msal.exceptions import MsalServiceError
from sqlalchemy.orm import Session

from webapp.config import ConfigError
from webapp.crypto import Keyring, SealError
from webapp.db import Database
from webapp.delivery.models import Outcome
from webapp.fields import N_
from webapp.mailers.base import AccessToken
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    Misconfigured,
    NeedsReauthorisation,
    TransientError,
    scrub,
)
from webapp.microsoft import service
from webapp.microsoft.clouds import Cloud, Segment
from webapp.microsoft.models import Grant, GrantState, OAuthApp
from webapp.microsoft.token_endpoint import (
    MAX_WORDS,
    NOT_OAUTH,
    Wire,
    body_of,
    network_failure,
    refusal,
)

log = structlog.get_logger(__name__)
# It logs whole answers that are no JSON, and a proxy's error page may repeat what we sent.
logging.getLogger("msal").setLevel(logging.CRITICAL)

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

ABOUT_THE_TOKEN = frozenset({"invalid_grant", "AADSTS9002313"})
"""Codes that speak of what was handed in with the secret, when that was made up."""
RESERVED = frozenset({"openid", "profile", "email", "offline_access"})
"""MSAL asks for these by itself."""

UNLINKED = N_("The link to this mailbox was removed.")
NO_TOKENS = N_("The stored link holds no tokens. Link the mailbox again.")
NO_SECRET = N_("The app registration has no secret.")
NO_CLOUD = N_("The cloud of the app registration is not known to this installation.")
UNREADABLE = N_("The stored link cannot be opened with the keys of this installation.")
DATABASE_AWAY = N_("The database did not answer.")
STILL_RENEWED = N_("Another process is renewing this link and has not finished.")
NOT_SENDING = N_(
    "Microsoft renewed the link without Mail.Send: what the app may do was changed there."
)

SCOPES_CHANGED = "scopes-changed"
"""Our own code for a renewal that left the permission to send out."""
SEND = "Mail.Send"
NOBODY = "this-is-the-refresh-token-of-nobody"
"""For a call that is only to find out whether a secret is right."""


@dataclass(frozen=True, kw_only=True)
class AppFacts:
    """What identifies us at a token endpoint; `tenant` is the path segment of the authority."""

    client_id: str
    secret: str = field(repr=False)
    cloud: Cloud
    tenant: str


class Verdict(StrEnum):
    """What a token endpoint thinks of a secret."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    """It did not say, or nobody could be asked."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What became of the question whether a secret is right."""

    verdict: Verdict
    code: str = ""
    words: str = ""


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


_STUMBLES = (
    MsalServiceError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
"""How MSAL and Python's JSON fail over what is not an answer by the book."""


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
        self._session = session
        self._slots: dict[int, _Slot] = {}
        self._metadata: dict[str, tuple[float, requests.Response]] = {}

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
        if not app.secret:
            raise Misconfigured(NO_SECRET)
        cache = msal.SerializableTokenCache()
        wanted = _scopes(app.cloud, scopes)
        self._ask(
            app,
            cache,
            lambda client: client.acquire_token_by_refresh_token(refresh_token, wanted),
            hidden=(refresh_token,),
        )
        return str(cache.serialize())

    def prove(self, app: AppFacts, cache: str = "") -> Proof:
        """Whether the token endpoint takes this secret; changes nothing, and needs no database.

        `cache` is that of a link by the same registration: then the link is renewed, and what that
        brings is thrown away, because Microsoft leaves the refresh token at hand good. Without one,
        an organization's own registration asks for a token of its own, and any other shows a
        refresh token of nobody: the secret is looked at first, so only a right one gets as far as
        being told that the token is no good.
        """
        made = msal.SerializableTokenCache()
        known = msal.SerializableTokenCache()
        known.deserialize(cache or "{}")
        found = list(known.search(known.CredentialType.REFRESH_TOKEN))
        refresh_token = str(found[0]["secret"]) if found else NOBODY

        def ask(client: msal.ConfidentialClientApplication) -> Any:
            if not found and app.tenant not in set(Segment):
                return client.acquire_token_for_client([app.cloud.scope(".default")])
            return client.acquire_token_by_refresh_token(refresh_token, _scopes(app.cloud, [SEND]))

        try:
            self._ask(app, made, ask, hidden=(refresh_token,))
        except NeedsReauthorisation:
            return Proof(verdict=Verdict.RIGHT)  # it is the link that is no good
        except TransientError as error:
            return Proof(verdict=Verdict.UNKNOWN, code=error.code, words=error.words)
        except DeliveryError as error:
            if error.code in ABOUT_THE_TOKEN:
                return Proof(verdict=Verdict.RIGHT)
            return Proof(verdict=Verdict.WRONG, code=error.code, words=error.words)
        return Proof(verdict=Verdict.RIGHT)

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
        cache = msal.SerializableTokenCache()
        cache.deserialize(self._unsealed("grant", service.grant_subject(grant_id), row.cache))
        wanted = _scopes(app.cloud, row.scopes)

        def ask(client: msal.ConfidentialClientApplication) -> Any:
            accounts = client.get_accounts()
            return client.acquire_token_silent_with_error(
                wanted,
                accounts[0] if accounts else None,
                force_refresh=True,
                claims_challenge=claims or None,
            )

        answer = self._ask(app, cache, ask)
        named = str(answer.get("scope") or "")
        scopes = _granted(named, row.scopes)
        if named and SEND.casefold() not in {scope.casefold() for scope in scopes}:
            raise NeedsReauthorisation(NOT_SENDING, code=SCOPES_CHANGED, cause_code=Cause.AUTH)
        renewed = _newest(cache, app.cloud, row)
        if renewed is None:
            raise TransientError(NOT_OAUTH, cause_code=Cause.PROTOCOL)
        log.info("a link was renewed", grant=grant_id)
        return str(cache.serialize()), renewed, scopes

    def _ask(
        self,
        app: AppFacts,
        cache: msal.SerializableTokenCache,
        call: Callable[[msal.ConfidentialClientApplication], Any],
        hidden: Sequence[str] = (),
    ) -> Mapping[str, Any]:
        """One call by MSAL, which leaves what it brings in `cache`. Raises DeliveryError."""
        known = cache.search(cache.CredentialType.REFRESH_TOKEN)
        hidden = (app.secret, *hidden, *(str(entry["secret"]) for entry in known))
        session = self._session()
        wire = Wire(session, self._metadata)
        try:
            client = msal.ConfidentialClientApplication(
                app.client_id,
                client_credential=app.secret,
                authority=app.cloud.authority(app.tenant),
                instance_discovery=False,
                http_client=wire,
                token_cache=cache,
            )
            wire.remember()
            result = call(client)
        except requests.RequestException as error:
            raise network_failure(error, hidden) from error
        except _STUMBLES as error:
            if wire.last is None:
                raise Misconfigured(scrub(str(error), hidden)[:MAX_WORDS]) from error
            raise refusal(body_of(wire.last), wire.last, hidden) from error
        finally:
            session.close()
        if result is None and wire.last is None:  # there was nothing to ask with
            raise NeedsReauthorisation(NO_TOKENS, cause_code=Cause.AUTH)
        if result is None or "access_token" not in result:
            raise refusal(result or {}, wire.last, hidden)
        return dict(result)

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
        cache = msal.SerializableTokenCache()
        cache.deserialize(self._unsealed("grant", service.grant_subject(row.id), row.cache))
        return _newest(cache, cloud, row)

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
        return row.lease_until is not None and row.lease_until >= self._db.now()

    def _lease(self, grant_id: int, version: int, me: str) -> bool:
        """Become the one who renews this grant."""
        now = self._db.now()
        free = sa.or_(Grant.lease_until.is_(None), Grant.lease_until < now)
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


def _scopes(cloud: Cloud, scopes: Sequence[str]) -> list[str]:
    return [cloud.scope(scope) for scope in scopes if scope not in RESERVED]


def _granted(answered: str, before: Sequence[str]) -> Sequence[str]:
    """Permissions after a renewal, without the cloud in front; no answer means the same ones.

    What belongs to the sign-in itself is not always named again.
    """
    if not answered.strip():
        return before
    named = [scope.rpartition("/")[2] for scope in answered.split()]
    granted = {scope.casefold() for scope in named} | RESERVED
    kept = [scope for scope in before if scope.casefold() in granted]
    known = {scope.casefold() for scope in kept} | RESERVED
    return [*kept, *(scope for scope in named if scope.casefold() not in known)]


def _newest(cache: msal.SerializableTokenCache, cloud: Cloud, row: _Row) -> _Held | None:
    """The access token that came last into a cache; a cache is of one grant only."""
    kind = cache.CredentialType.ACCESS_TOKEN
    found = list(cache.search(kind, query={"client_id": row.client_id}))
    if not found:
        return None
    newest = max(found, key=lambda entry: int(entry["cached_at"]))
    came_at, expires_at = float(newest["cached_at"]), float(newest["expires_on"])
    return _Held(
        given=AccessToken(value=str(newest["secret"]), api=cloud.api),
        version=row.version,
        good_until=expires_at - min(MARGIN_SECONDS, (expires_at - came_at) / 2),
        expires_at=expires_at,
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
