"""The verbs on registrations and links: save a registration, attach a mailbox, take it away.

Nothing here asks the network. What a sign-in brought (`Account`) comes in, rows go out; waiting
mail moves along, and each verb says how many mails that were.
"""

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp import audit, ids
from webapp.connections.models import Connection, Health
from webapp.connections.service import forget_health, sites_sending_by
from webapp.crypto import Keyring
from webapp.delivery import replan
from webapp.delivery.models import Lane, Outcome, Setting
from webapp.fields import N_, FieldErrors
from webapp.google import cloud as google
from webapp.mailers import registry
from webapp.microsoft.clouds import Cloud, Segment, is_guid
from webapp.microsoft.models import Grant, GrantState, Link, Mailbox, OAuthApp
from webapp.providers import GOOGLE, MICROSOFT, PROVIDERS, provider_of
from webapp.sites.models import Site
from webapp.sites.service import check_line

NAME_LENGTH = 120
SECRET_LENGTH = 200
RENEW_EVERY = timedelta(hours=24)
RENEW_SPREAD = timedelta(hours=4)

STOPPED = frozenset({Outcome.NEEDS_REAUTHORISATION.value, Outcome.MISCONFIGURED.value})
"""What stops a lane until somebody acts."""

NEEDED = PROVIDERS[MICROSOFT].needed
"""Permissions at Microsoft without which nothing works."""
PERSONAL_PER_DAY = 500
"""Mails that Gmail lets a personal account send."""

_GOOGLE_ID = re.compile(r"[0-9]+(-[a-z0-9]+)?\.apps\.googleusercontent\.[a-z]+")
_DOMAIN = re.compile(r"(?=.{4,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}\Z")

SECRET_ID = N_(
    "This looks like the Secret ID. Copy the column “Value” instead: it is longer and mixes "
    "letters, digits and signs."
)
NO_GUID = N_(
    "Enter the Application (client) ID from the Overview page of the registration: 32 letters and "
    "digits in five groups."
)
NO_GOOGLE_ID = N_(
    "Enter the Client ID as the Google Cloud console shows it: it ends in "
    ".apps.googleusercontent.com."
)
ID_FOR_SECRET = N_("This is the Client ID. The Client Secret stands beside it in the console.")
NO_TENANT = N_("Enter the Directory (tenant) ID, or a domain of the organization.")
NO_CLOUD = N_("Choose one of the clouds in the list.")
PERSONAL_ELSEWHERE = N_("Personal accounts exist in the global cloud only.")
TOO_LONG = N_("This is longer than any secret of Microsoft’s. Copy the column “Value” alone.")
TOO_LONG_FOR_GOOGLE = N_(
    "This is longer than any secret of Google’s. Copy the Client Secret alone."
)
NO_DATE = N_("Enter a date as YYYY-MM-DD, or leave it empty.")
LONG_GONE = N_("This date is past. Make a new secret and enter its value and date.")
TOO_FAR = N_("Microsoft lets a secret live for 24 months at most.")
IN_USE = N_(
    "Linked connections use this registration. Make another one for another Application ID."
)
IN_USE_AT_GOOGLE = N_(
    "Linked connections use this registration. Make another one for another Client ID."
)
NO_NAME = N_("Give it a name by which people choose it.")


Row = TypeVar("Row", Mailbox, Lane)


class AnotherAccount(ValueError):
    """The connection is linked with another account; the text is that account's address."""


class StillUsed(ValueError):
    """The registration is used by connections."""


@dataclass(frozen=True, kw_only=True)
class AppValues:
    """What somebody entered for a registration, before it is checked. A blank secret keeps the
    stored one."""

    name: str = ""
    cloud: str
    tenant: str
    client_id: str
    secret: str = field(default="", repr=False)
    secret_expires_on: str = ""
    """YYYY-MM-DD, or empty."""
    remove_secret: bool = False
    next_secret: str = ""
    """The successor of the stored secret, which stays in use until this one is proved."""
    next_expires_on: str = ""
    """YYYY-MM-DD, or empty."""
    remove_next: bool = False


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What the provider said, and when."""

    at: datetime
    code: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who signed in, as the provider told: by the ID token, and by its interface."""

    tenant_id: str
    object_id: str
    address: str
    sign_in_name: str = ""
    name: str = ""
    addresses: tuple[str, ...] = ()
    personal: bool = False
    """Whether it belongs to no organization, as far as that changes what it may send."""


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What a finished link brought about."""

    grant: Grant
    mailbox: Mailbox
    waiting: int
    filled_from: bool
    """From Email was empty or the site's default, and is the account's address now."""


@dataclass(frozen=True, kw_only=True)
class LastLink:
    """The tokens of a link that nobody else uses: to be withdrawn where they come from."""

    provider: str
    cloud: str
    subject: str
    """What the cache is sealed for."""
    cache: str = field(repr=False)
    """Sealed."""


# ---- registrations ----


def shared_apps(session: Session, provider: str = MICROSOFT) -> list[OAuthApp]:
    """The registrations at a provider that serve One-Click Setup, the oldest first."""
    query = sa.select(OAuthApp).where(
        OAuthApp.connection_id.is_(None), OAuthApp.provider == provider
    )
    return list(session.scalars(query.order_by(OAuthApp.id)))


def find_shared_app(session: Session, uid: str, provider: str = MICROSOFT) -> OAuthApp | None:
    """A shared registration at a provider by the id people see."""
    return session.scalar(
        sa.select(OAuthApp).where(
            OAuthApp.uid == uid, OAuthApp.connection_id.is_(None), OAuthApp.provider == provider
        )
    )


def own_app(
    session: Session, connection: Connection | None, provider: str = MICROSOFT
) -> OAuthApp | None:
    """The registration at a provider that a connection brings along."""
    own = (app for app in own_apps(session, connection) if app.provider == provider)
    return next(own, None)


def own_apps(session: Session, connection: Connection | None) -> list[OAuthApp]:
    """Every registration that a connection brings along, in the order in which they are locked."""
    if connection is None:
        return []
    query = sa.select(OAuthApp).where(OAuthApp.connection_id == connection.id)
    return list(session.scalars(query.order_by(OAuthApp.id)))


def shared_app_of(
    session: Session, connection: Connection | None, provider: str = MICROSOFT
) -> OAuthApp | None:
    """The shared registration a connection uses with One-Click Setup: the chosen one, or the
    only one there is."""
    apps = shared_apps(session, provider)
    stored = (connection.settings if connection else {}).get(PROVIDERS[provider].mailer, {})
    chosen = next((app for app in apps if app.uid == stored.get("shared_app")), None)
    return chosen or (apps[0] if len(apps) == 1 else None)


def is_one_click(connection: Connection) -> bool:
    """Whether it uses a shared registration, by the settings of its mailer."""
    stored = connection.settings.get(provider_of(connection.mailer).mailer, {})
    return bool(stored.get("one_click", True))


def app_in_use(session: Session, connection: Connection) -> OAuthApp | None:
    """The registration that counts, by the connection's mailer and settings."""
    provider = provider_of(connection.mailer).slug
    if is_one_click(connection):
        return shared_app_of(session, connection, provider)
    return own_app(session, connection, provider)


def secret_of(app: OAuthApp, keyring: Keyring) -> str:
    """The client secret, empty when there is none; raises SealError."""
    return _opened(app, keyring, app.secret)


def next_secret_of(app: OAuthApp, keyring: Keyring) -> str:
    """Its successor, empty when there is none; raises SealError."""
    return _opened(app, keyring, app.next_secret)


def _opened(app: OAuthApp, keyring: Keyring, token: str | None) -> str:
    if token is None:
        return ""
    found = keyring.unseal("oauth-app", app_subject(app.uid), token)
    assert isinstance(found, str)
    return found


def app_subject(uid: str) -> str:
    """What a registration's sealed secret is bound to."""
    return f"oauth_app:{uid}"


def is_complete(app: OAuthApp | None) -> bool:
    """Whether people can be sent to sign in with it."""
    return app is not None and bool(app.client_id) and app.secret is not None


def succeeds(app: OAuthApp | None, values: AppValues, now: datetime) -> bool:
    """Whether these values bring a successor that can be proved: for the same registration, beside
    a secret in use, and nothing is wrong with it at first sight."""
    if app is None or app.secret is None or not values.next_secret.strip():
        return False
    entered = (values.cloud, values.tenant.strip().lower(), values.client_id.strip().lower())
    if entered != identity(app) or values.secret.strip() or values.remove_secret:
        return False
    try:
        _day(values.next_expires_on, now)
    except ValueError:
        return False
    return not _wrong_secret(values.next_secret.strip())


def identity(app: OAuthApp) -> tuple[str, str, str]:
    """What a secret and the links belong to: another one of these is another registration."""
    return app.cloud, app.tenant, app.client_id


def hold_app(session: Session, app_id: int) -> None:
    """Lock a registration until the end of the unit of work.

    Whoever changes it or what hangs on it (grants, then connections, then lanes) begins with this:
    on PostgreSQL two who took these rows in different orders would wait for each other.
    """
    session.execute(
        sa.select(OAuthApp.id).where(OAuthApp.id == app_id).with_for_update(key_share=True)
    )


def hold_app_of(session: Session, grant_id: int) -> None:
    """The same, by one of its grants."""
    session.execute(
        sa.select(OAuthApp.id)
        .join(Grant, Grant.app_id == OAuthApp.id)
        .where(Grant.id == grant_id)
        .with_for_update(key_share=True, of=OAuthApp)
    )


def save_app(
    session: Session,
    keyring: Keyring,
    app: OAuthApp | None,
    values: AppValues,
    *,
    clouds: Mapping[str, Cloud],
    connection: Connection | None = None,
    actor: str,
    now: datetime,
) -> OAuthApp:
    """Check and store a registration: a shared one, or the own one of `connection`.

    With another cloud, tenant or client id the stored secret is dropped, and so are the links: they
    belong to the registration. A saved secret lets mail that waited for it go. A successor is kept
    beside the secret in use until `use_successor`; where none is in use, it is used at once. Raises
    FieldErrors by the names of AppValues, with `client_secret` for the secret.
    """
    checked, expires_on, next_on = _checked(
        app, values, clouds, is_shared=connection is None, now=now
    )
    is_new = app is None
    if app is not None:
        hold_app(session, app.id)
    else:
        app = OAuthApp(
            uid=ids.short_id(),
            connection_id=connection.id if connection else None,
            provider=clouds[checked["cloud"]].provider,
            created_at=now,
            **checked,
        )
        session.add(app)
    before = {} if is_new else _shown(app)
    moved = not is_new and any(
        getattr(app, name) != checked[name] for name in ("cloud", "tenant", "client_id")
    )
    if moved and connection is None and users_of(session, app):
        in_use = IN_USE_AT_GOOGLE if app.provider == GOOGLE else IN_USE
        raise FieldErrors({"client_id": in_use})
    for name, value in checked.items():
        setattr(app, name, value)
    app.updated_at = now
    secret_word = _save_secret(app, keyring, values, moved=moved, actor=actor, now=now)
    app.secret_expires_on = expires_on if app.secret is not None else None
    next_word = _save_successor(app, keyring, values, next_on, moved=moved, actor=actor, now=now)
    if app.secret is None and app.next_secret is not None:
        _switch(app)
        secret_word, next_word = "changed", ""
    session.flush()
    if moved:
        _drop_links(session, app, now)
    if secret_word == "changed":  # noqa: S105  (a word for the audit)
        secret_stored(session, app, now)
    changes: dict[str, Any] = {**audit.difference(before, _shown(app))}
    if secret_word:
        changes["secret"] = secret_word
    if next_word:
        changes["next_secret"] = next_word
    if (secret_word or next_word) and (old := session.get(Setting, _refusal_name(app))):
        session.delete(old)
    if changes:
        audit.record(
            session,
            at=now,
            actor=actor,
            action="registration created" if is_new else "registration changed",
            object_kind="oauth_app",
            object_id=app.uid,
            site_id=connection.site_id if connection else None,
            changes=changes,
        )
    return app


def _checked(
    app: OAuthApp | None,
    values: AppValues,
    clouds: Mapping[str, Cloud],
    *,
    is_shared: bool,
    now: datetime,
) -> tuple[dict[str, str], date | None, date | None]:
    """What is stored as text, and the days on which the secret and its successor expire."""
    errors: dict[str, str] = {}
    name = values.name.strip()
    try:
        name = check_line(name, NAME_LENGTH)
    except ValueError as error:
        errors["name"] = str(error)
    if is_shared and not name:
        errors["name"] = NO_NAME
    cloud = clouds.get(values.cloud)
    if cloud is not None and cloud.provider == GOOGLE:
        return _checked_for_google(values, name, errors, is_shared=is_shared), None, None
    client_id, tenant = values.client_id.strip().lower(), values.tenant.strip().lower()
    if cloud is None:
        errors["cloud"] = NO_CLOUD
    if (client_id or is_shared) and not is_guid(client_id):
        errors["client_id"] = NO_GUID
    if sentence := _wrong_tenant(tenant, cloud, client_id):
        errors["tenant"] = sentence
    if sentence := _wrong_secret(values.secret.strip()):
        errors["client_secret"] = sentence
    expires_on = None
    try:
        expires_on = _day(values.secret_expires_on, now)
    except ValueError as error:
        # The date of the stored secret may be past; a new one needs a date of its own.
        stored = app.secret_expires_on.isoformat() if app and app.secret_expires_on else ""
        if values.secret_expires_on.strip() == stored and not values.secret.strip():
            expires_on = app.secret_expires_on if app else None
        else:
            errors["secret_expires_on"] = str(error)
    if sentence := _wrong_secret(values.next_secret.strip()):
        errors["next_secret"] = sentence
    next_on = None
    try:
        next_on = _day(values.next_expires_on, now)
    except ValueError as error:
        if values.next_secret.strip():
            errors["next_expires_on"] = str(error)
    if errors:
        raise FieldErrors(errors)
    stored_as = {"name": name, "cloud": values.cloud, "tenant": tenant, "client_id": client_id}
    return stored_as, expires_on, next_on


def _checked_for_google(
    values: AppValues, name: str, errors: dict[str, str], *, is_shared: bool
) -> dict[str, str]:
    """What is stored as text of a registration at Google, which has no tenant and no days."""
    client_id, secret = values.client_id.strip().lower(), values.secret.strip()
    if (client_id or is_shared) and not _GOOGLE_ID.fullmatch(client_id):
        errors["client_id"] = NO_GOOGLE_ID
    if _GOOGLE_ID.fullmatch(secret.lower()):
        errors["client_secret"] = ID_FOR_SECRET
    elif len(secret) > SECRET_LENGTH:
        errors["client_secret"] = TOO_LONG_FOR_GOOGLE
    if errors:
        raise FieldErrors(errors)
    return {"name": name, "cloud": values.cloud, "tenant": google.TENANT, "client_id": client_id}


def _wrong_tenant(tenant: str, cloud: Cloud | None, client_id: str) -> str:
    if tenant in set(Segment):
        personal = tenant in {Segment.COMMON, Segment.CONSUMERS}
        return PERSONAL_ELSEWHERE if personal and cloud is not None and not cloud.personal else ""
    if tenant and tenant == client_id:
        return N_("This is the Application ID. The Directory (tenant) ID stands below it.")
    return "" if is_guid(tenant) or _DOMAIN.match(tenant) else NO_TENANT


def _wrong_secret(secret: str) -> str:
    if is_guid(secret):
        return SECRET_ID
    if len(secret) > SECRET_LENGTH:
        return TOO_LONG
    return ""


def _day(text: str, now: datetime) -> date | None:
    """Raises ValueError with the sentence to show."""
    if not text.strip():
        return None
    try:
        day = date.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(NO_DATE) from error
    if day < now.date():
        raise ValueError(LONG_GONE)
    if day > now.date() + timedelta(days=732):
        raise ValueError(TOO_FAR)
    return day


def _save_secret(
    app: OAuthApp, keyring: Keyring, values: AppValues, *, moved: bool, actor: str, now: datetime
) -> str:
    """Returns the word for the audit: `changed`, `removed`, or none."""
    secret = values.secret.strip()
    if secret:
        app.secret = keyring.seal("oauth-app", app_subject(app.uid), secret)
        app.secret_set_at, app.secret_set_by = now, actor
        return "changed"
    if app.secret is not None and (values.remove_secret or moved):
        app.secret, app.secret_set_at, app.secret_set_by = None, None, ""
        return "removed"
    return ""


def _save_successor(
    app: OAuthApp,
    keyring: Keyring,
    values: AppValues,
    expires_on: date | None,
    *,
    moved: bool,
    actor: str,
    now: datetime,
) -> str:
    """Returns the word for the audit: `changed`, `removed`, or none."""
    secret = values.next_secret.strip()
    if secret:
        app.next_secret = keyring.seal("oauth-app", app_subject(app.uid), secret)
        app.next_secret_set_at, app.next_secret_set_by = now, actor
        app.next_secret_expires_on = expires_on
        return "changed"
    # A secret that was put into use by hand is the newer one.
    over = values.remove_next or moved or values.secret.strip() != ""
    if app.next_secret is None or not over:
        return ""
    _forget_successor(app)
    return "removed"


def _switch(app: OAuthApp) -> None:
    """The successor takes the place of the secret; the old one is gone."""
    app.secret = app.next_secret  # sealed for the same subject
    app.secret_set_at, app.secret_set_by = app.next_secret_set_at, app.next_secret_set_by
    app.secret_expires_on = app.next_secret_expires_on
    _forget_successor(app)


def _forget_successor(app: OAuthApp) -> None:
    app.next_secret, app.next_secret_set_at, app.next_secret_set_by = None, None, ""
    app.next_secret_expires_on = None


def use_successor(session: Session, app: OAuthApp, *, actor: str, now: datetime) -> None:
    """The successor has proved itself: it is the secret from now on, and the old one is dropped.

    Mail that waited for a good secret goes.
    """
    before = _shown(app)
    _switch(app)
    app.updated_at = now
    session.flush()
    secret_stored(session, app, now)
    changes = {**audit.difference(before, _shown(app)), "secret": "changed"}
    _note_change(session, app, changes, actor=actor, now=now)


def refuse_successor(
    session: Session, app: OAuthApp, *, code: str, words: str, actor: str, now: datetime
) -> None:
    """The provider does not take the successor: it is dropped, and the secret in use stays."""
    _forget_successor(app)
    app.updated_at = now
    value = {"at": now.isoformat(), "code": code[:40], "words": words}
    session.merge(Setting(name=_refusal_name(app), value=value))
    session.flush()
    _note_change(session, app, {"next_secret": "refused"}, actor=actor, now=now)


def refused_successor(session: Session, app: OAuthApp) -> Refusal | None:
    """What the provider said of the last successor, if it was refused after it was saved."""
    found = session.get(Setting, _refusal_name(app))
    if found is None:
        return None
    value = found.value
    return Refusal(at=datetime.fromisoformat(value["at"]), code=value["code"], words=value["words"])


def _refusal_name(app: OAuthApp) -> str:
    return f"next-secret-refused:{app.uid}"


def _note_change(
    session: Session, app: OAuthApp, changes: dict[str, Any], *, actor: str, now: datetime
) -> None:
    connection = session.get(Connection, app.connection_id) if app.connection_id else None
    audit.record(
        session,
        at=now,
        actor=actor,
        action="registration changed",
        object_kind="oauth_app",
        object_id=app.uid,
        site_id=connection.site_id if connection else None,
        changes=changes,
    )


def _shown(app: OAuthApp) -> dict[str, Any]:
    expires_on = app.secret_expires_on
    return {
        "name": app.name,
        "cloud": app.cloud,
        "tenant": app.tenant,
        "client_id": app.client_id,
        "secret_expires_on": expires_on.isoformat() if expires_on else "",
    }


def users_of(session: Session, app: OAuthApp) -> list[Connection]:
    """The connections that are linked by a registration."""
    query = (
        sa.select(Connection)
        .join(Link, Link.connection_id == Connection.id)
        .where(Link.app_id == app.id)
        .order_by(Connection.id)
    )
    return list(session.scalars(query))


def remove_app(session: Session, app: OAuthApp, *, actor: str, now: datetime) -> None:
    """Forget a shared registration that no connection is linked by; raises StillUsed."""
    hold_app(session, app.id)  # a link that is being made with it right now counts too
    if users_of(session, app):
        raise StillUsed(app.name)
    audit.record(
        session,
        at=now,
        actor=actor,
        action="registration removed",
        object_kind="oauth_app",
        object_id=app.uid,
        changes={"name": [app.name, None], "client_id": [app.client_id, None]},
    )
    session.delete(app)
    session.flush()


def secret_stored(session: Session, app: OAuthApp, now: datetime) -> None:
    """A new secret: what was refused because of the old one is tried again."""
    app.problem_code, app.problem_words, app.problem_since = "", "", None
    grants = session.scalars(
        sa.select(Grant).where(Grant.app_id == app.id, Grant.state == GrantState.LINKED)
    ).all()
    _try_again(session, grants, {Outcome.MISCONFIGURED.value}, now)


def _try_again(
    session: Session, grants: Collection[Grant], kinds: Collection[str], now: datetime
) -> None:
    """Let the lanes of these grants run, where they stand for one of these reasons."""
    for connection in _connections_by(session, [grant.id for grant in grants]):
        connection.version += 1  # what is on the network with the old ones is history
        forget_health(connection)
        connection.updated_at = now
    session.flush()
    _let_run(session, grants, kinds)


def _let_run(session: Session, grants: Collection[Grant], kinds: Collection[str]) -> None:
    """Unblock lanes that stand for one of these reasons; being asked to wait is none of them."""
    mailboxes = {grant.mailbox_id for grant in grants}
    lanes = session.scalars(
        sa.select(Lane)
        .join(Mailbox, Mailbox.lane_id == Lane.id)
        .where(Mailbox.id.in_(mailboxes), Lane.blocked_kind.in_(kinds))
        .order_by(Lane.id)
        .with_for_update(key_share=True)
    )
    for lane in lanes:
        replan.unblock(lane)


def _connections_by(session: Session, grant_ids: Collection[int]) -> Sequence[Connection]:
    query = sa.select(Connection).where(Connection.grant_id.in_(grant_ids)).order_by(Connection.id)
    return session.scalars(query).all()


# ---- links ----


def lane_key(mailbox: Mailbox) -> str:
    """The mailbox is what the provider limits, however many connections send by it."""
    return f"{mailbox.provider}:{mailbox.cloud}:{mailbox.tenant_id}:{mailbox.object_id}"


def mailbox_of(session: Session, connection: Connection) -> Mailbox | None:
    """The mailbox a connection is linked with, by the link in use."""
    if connection.grant_id is None:
        return None
    return session.scalar(
        sa.select(Mailbox)
        .join(Grant, Grant.mailbox_id == Mailbox.id)
        .where(Grant.id == connection.grant_id)
    )


def use_app(session: Session, connection: Connection, now: datetime) -> int:
    """After a save: use the link that belongs to the registration in use, if there is one.

    Returns how many waiting mails it touched.
    """
    app = app_in_use(session, connection)
    link = session.get(Link, (connection.id, app.id)) if app else None
    grant = session.get(Grant, link.grant_id) if link else None
    if grant is not None and grant.state == GrantState.REMOVED:
        grant = None
    connection.grant_id = grant.id if grant else None
    session.flush()
    mailbox = mailbox_of(session, connection)
    if mailbox is None or grant is None:
        return _off_its_lane(session, connection, now)
    _let_run(session, [grant], STOPPED)
    return _on_its_lane(session, connection, mailbox, now)


def check_account(
    session: Session, connection: Connection, app: OAuthApp, account: Account
) -> None:
    """Raise AnotherAccount when the connection is linked with somebody else by this app."""
    linked = session.scalar(
        sa.select(Mailbox)
        .join(Grant, Grant.mailbox_id == Mailbox.id)
        .join(Link, Link.grant_id == Grant.id)
        .where(Link.connection_id == connection.id, Link.app_id == app.id)
    )
    if linked is None:
        return
    if (linked.tenant_id, linked.object_id) != (account.tenant_id, account.object_id):
        raise AnotherAccount(linked.address)


def attach(
    session: Session,
    keyring: Keyring,
    site: Site | None,
    connection: Connection,
    app: OAuthApp,
    account: Account,
    *,
    cache: str,
    scopes: Sequence[str],
    actor: str,
    now: datetime,
) -> Attached:
    """Store a finished link, and let mail that waited for it go.

    `cache` is what the provider's renewer keeps, as a text; `scopes` are without the cloud in
    front. Without a site it is the installation's own connection. Raises AnotherAccount.
    """
    hold_app(session, app.id)
    check_account(session, connection, app, account)
    mailbox = _mailbox(session, app, account, now)
    grant = _grant(session, keyring, app, mailbox, cache, scopes, now)
    link = session.get(Link, (connection.id, app.id))
    if link is None:
        link = Link(connection_id=connection.id, app_id=app.id, grant_id=grant.id, linked_at=now)
        session.add(link)
    link.grant_id, link.linked_at, link.linked_by = grant.id, now, actor
    app.problem_code, app.problem_words, app.problem_since = "", "", None
    connection.grant_id = grant.id
    filled = _fill_from(session, site, connection, mailbox)
    session.flush()
    _try_again(session, [grant], STOPPED, now)
    waiting = _on_its_lane(session, connection, mailbox, now)
    audit.record(
        session,
        at=now,
        actor=actor,
        action="connection linked",
        object_kind="connection",
        object_id=connection.uid,
        site_id=site.id if site else None,
        changes={"account": [None, mailbox.address], "scopes": [None, " ".join(grant.scopes)]},
    )
    return Attached(grant=grant, mailbox=mailbox, waiting=waiting, filled_from=filled)


def last_link(session: Session, connection: Connection) -> LastLink | None:
    """The link in use, if no other connection uses the account by the same project at Google, or
    by the same registration elsewhere: who withdraws it there takes it from all of them."""
    if connection.grant_id is None:
        return None
    grant = session.get_one(Grant, connection.grant_id)
    app = session.get_one(OAuthApp, grant.app_id)
    project = app.client_id.partition("-")[0]
    others = session.scalars(
        sa.select(OAuthApp.client_id)
        .join(Grant, Grant.app_id == OAuthApp.id)
        .join(Link, Link.grant_id == Grant.id)
        .where(
            Grant.mailbox_id == grant.mailbox_id,
            sa.or_(Link.connection_id != connection.id, Link.grant_id != grant.id),
        )
    )
    if grant.cache is None or any(other.partition("-")[0] == project for other in others):
        return None
    return LastLink(
        provider=app.provider,
        cloud=app.cloud,
        subject=grant_subject(grant.id),
        cache=grant.cache,
    )


def detach(
    session: Session, site: Site | None, connection: Connection, *, actor: str, now: datetime
) -> int:
    """Remove the link in use. Tokens go once nobody uses them; other connections keep theirs.

    Returns how many mails wait for the connection to be linked again.
    """
    if connection.grant_id is not None:
        hold_app_of(session, connection.grant_id)
    link = _link_in_use(session, connection)
    mailbox = mailbox_of(session, connection)
    if link is not None:
        session.delete(link)
        session.flush()
        _let_go(session, link.grant_id, now)
    connection.grant_id = None
    connection.version += 1
    forget_health(connection)
    connection.updated_at = now
    session.flush()
    waiting = _off_its_lane(session, connection, now)
    audit.record(
        session,
        at=now,
        actor=actor,
        action="connection unlinked",
        object_kind="connection",
        object_id=connection.uid,
        site_id=site.id if site else None,
        changes={"account": [mailbox.address if mailbox else None, None]},
    )
    return waiting


def forget_links(session: Session, connection: Connection, now: datetime) -> None:
    """Take every link of a connection that is about to go; tokens that nobody else uses go too."""
    links = sa.select(Link.app_id, Link.grant_id).where(Link.connection_id == connection.id)
    rows = session.execute(links.order_by(Link.app_id)).all()
    for row in rows:
        hold_app(session, row.app_id)
    connection.grant_id = None
    session.execute(sa.delete(Link).where(Link.connection_id == connection.id))
    session.flush()
    for row in rows:
        _let_go(session, row.grant_id, now)


def _link_in_use(session: Session, connection: Connection) -> Link | None:
    """By the grant: which registration counts may have become unclear since, the grant has not."""
    return session.scalar(
        sa.select(Link).where(
            Link.connection_id == connection.id, Link.grant_id == connection.grant_id
        )
    )


def next_renewal(now: datetime) -> datetime:
    """When an idle grant is renewed: daily, and not all of them at once."""
    return now + RENEW_EVERY - RENEW_SPREAD * random.random()  # noqa: S311


def _mailbox(session: Session, app: OAuthApp, account: Account, now: datetime) -> Mailbox:
    mine = sa.select(Mailbox).where(
        Mailbox.cloud == app.cloud,
        Mailbox.tenant_id == account.tenant_id,
        Mailbox.object_id == account.object_id,
    )
    found = session.scalar(mine)
    if found is None:
        found = _made_or_found(
            session,
            Mailbox(
                provider=app.provider,
                cloud=app.cloud,
                tenant_id=account.tenant_id,
                object_id=account.object_id,
                address=account.address,
                created_at=now,
                updated_at=now,
            ),
            mine,
        )
    found.address, found.sign_in_name = account.address, account.sign_in_name
    found.name = account.name
    found.addresses = list(dict.fromkeys([account.address, *account.addresses]))
    found.updated_at = now
    if found.lane_id is None:
        mine_too = sa.select(Lane).where(Lane.key == lane_key(found))
        lane = session.scalar(mine_too)
        if lane is None:
            limits = usual_limits(app.provider, personal=account.personal)
            fresh = Lane(key=lane_key(found), windows={}, **limits)
            lane = _made_or_found(session, fresh, mine_too)
        found.lane_id = lane.id
    session.flush()
    return found


def usual_limits(provider: str, *, personal: bool) -> Mapping[str, int]:
    """The pace that a mailbox begins with."""
    mailer = registry().get(PROVIDERS[provider].mailer)
    limits = mailer.usual_limits if mailer else {}
    if provider == GOOGLE and personal:
        return {**limits, "per_day": PERSONAL_PER_DAY}
    return limits


def _made_or_found(session: Session, row: Row, query: sa.Select[Row]) -> Row:
    """Store it; or what another one has stored meanwhile: whoever links the same mailbox by another
    registration holds another lock."""
    try:
        with session.begin_nested():
            session.add(row)
    except sa.exc.IntegrityError:
        return session.scalars(query).one()
    return row


def _grant(
    session: Session,
    keyring: Keyring,
    app: OAuthApp,
    mailbox: Mailbox,
    cache: str,
    scopes: Sequence[str],
    now: datetime,
) -> Grant:
    found = session.scalar(
        sa.select(Grant)
        .where(Grant.app_id == app.id, Grant.mailbox_id == mailbox.id)
        .with_for_update()
    )
    if found is None:
        found = Grant(
            app_id=app.id, mailbox_id=mailbox.id, version=0, state_since=now, renewed_at=now
        )
        found.renew_at = next_renewal(now)
        session.add(found)
        session.flush()
    found.cache = keyring.seal("grant", grant_subject(found.id), cache)
    found.scopes = list(scopes)
    found.version += 1
    found.lease_owner, found.lease_until = "", None
    found.state, found.state_since = GrantState.LINKED, now
    found.code, found.words = "", ""
    found.renewed_at, found.renew_at = now, next_renewal(now)
    session.flush()
    return found


def grant_subject(grant_id: int) -> str:
    """What a grant's sealed cache is bound to."""
    return f"grant:{grant_id}"


def _fill_from(
    session: Session, site: Site | None, connection: Connection, mailbox: Mailbox
) -> bool:
    """Send as the account unless somebody chose another address by hand. The address of an account
    that was linked before is no such choice: the new one may not use it."""
    now = connection.from_email.casefold()
    if now in {address.casefold() for address in mailbox.addresses}:
        return False
    former = sa.select(Mailbox.id).where(sa.func.lower(Mailbox.address) == now)
    by_default = now in {"", site.admin_email.casefold() if site else ""}
    if not by_default and session.scalar(former.limit(1)) is None:
        return False
    connection.from_email = mailbox.address
    return True


def _on_its_lane(session: Session, connection: Connection, mailbox: Mailbox, now: datetime) -> int:
    had_lane = connection.lane_id is not None
    touched = replan.connection_saved(
        session, connection, lane_key=lane_key(mailbox), limits=None, now=now, unblocks=False
    )
    return touched if had_lane else touched + _moved_by_primary(session, connection, now)


def _off_its_lane(session: Session, connection: Connection, now: datetime) -> int:
    waiting = replan.connection_unlinked(session, connection)
    return waiting + _moved_by_primary(session, connection, now)


def _moved_by_primary(session: Session, connection: Connection, now: datetime) -> int:
    sites = sites_sending_by(session, connection)
    return sum(replan.routing_changed(session, site, now).moved for site in sites)


def _drop_links(session: Session, app: OAuthApp, now: datetime) -> None:
    """The registration has become another one: what was linked by it is not linked any more."""
    for connection in users_of(session, app):
        link = session.get_one(Link, (connection.id, app.id))
        session.delete(link)
        session.flush()
        _let_go(session, link.grant_id, now)
        if connection.grant_id == link.grant_id:
            connection.grant_id = None
            connection.version += 1
            forget_health(connection)
            replan.connection_unlinked(session, connection)


def _let_go(session: Session, grant_id: int, now: datetime) -> None:
    """Forget the tokens of a grant that no connection uses any more."""
    # The lock first: of two who let go at once the second must see that the first is gone.
    grant = session.get_one(Grant, grant_id, with_for_update=True)
    if session.scalar(sa.select(Link.connection_id).where(Link.grant_id == grant_id).limit(1)):
        return
    grant.cache = None
    grant.scopes = []
    grant.version += 1
    grant.lease_owner, grant.lease_until = "", None
    grant.state, grant.state_since = GrantState.REMOVED, now
    session.flush()


# ---- refusals ----


def note_refusal(
    session: Session,
    grant_id: int,
    *,
    kind: str,
    code: str,
    words: str,
    now: datetime,
) -> None:
    """The provider refused to renew a grant: stop its lane, and say so on its connections.

    `kind` is `needs-reauthorisation` (of the grant) or `misconfigured` (of the registration).
    """
    hold_app_of(session, grant_id)
    grant = session.get_one(Grant, grant_id)
    for connection in _connections_by(session, [grant_id]):
        if connection.health != kind:
            connection.health, connection.health_since = Health(kind), now
        connection.last_code, connection.last_words = code[:40], words
    session.flush()
    if kind == Outcome.MISCONFIGURED:
        app = session.get_one(OAuthApp, grant.app_id)
        app.problem_code, app.problem_words = code[:40], words
        app.problem_since = app.problem_since or now
    mailbox = session.get_one(Mailbox, grant.mailbox_id)
    lane = session.get(Lane, mailbox.lane_id, with_for_update=True) if mailbox.lane_id else None
    if lane is not None and not (lane.is_blocked and lane.blocked_until is None):
        lane.is_blocked, lane.blocked_until, lane.blocked_since = True, None, now
        lane.blocked_kind, lane.blocked_words = kind, words
    session.flush()


def note_works_again(session: Session, grant_id: int, now: datetime) -> None:
    """A renewal went through by a registration that was refused: whatever it was, it is over."""
    hold_app_of(session, grant_id)
    app = session.get_one(OAuthApp, session.get_one(Grant, grant_id).app_id)
    if app.problem_since is not None:
        secret_stored(session, app, now)
        session.flush()


def note_refused_app(
    session: Session, app: OAuthApp, *, code: str, words: str, now: datetime
) -> None:
    """The provider refused the registration itself when somebody linked a mailbox by it.

    No lane is stopped: tokens at hand are good for a while, and the next renewal finds out.
    """
    app.problem_code, app.problem_words = code[:40], words
    app.problem_since = app.problem_since or now
    session.flush()
