"""The verbs on connections: save one, open its mailer, make it the site's primary one.

A stored secret belongs to the place it was meant for. Whoever may edit a connection must not be
able to have its password sent elsewhere, or in the clear, without knowing it: so a save that
changes where the login goes must bring the secret along, or is refused at that field.
"""

import ipaddress
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp import audit, ids
from webapp.connections.models import Connection, Health
from webapp.crypto import Keyring
from webapp.fields import N_, FieldErrors, from_json, questions, settings_of
from webapp.mailers import registry
from webapp.mailers.base import Mailer
from webapp.sites.models import Site
from webapp.sites.service import check_email, check_line

NICKNAME_LENGTH = 100
FROM_NAME_LENGTH = 200
LARGEST_LIMIT = 1_000_000

WHERE_SECRETS_GO = ("host", "username")
"""Settings that say to whom a secret is shown; a mailer that has none of them has no such risk."""

STOPPED = (Health.NEEDS_REAUTHORISATION, Health.MISCONFIGURED)
"""Saving is how a person says that the cause is gone, even where nothing here had to change."""

CHOOSE_A_MAILER = N_("Choose a mailer.")
NOT_LINKED = N_("This connection is not linked to a mailbox yet.")
TYPE_IT_AGAIN = N_(
    "Enter the password again: host, user name or encryption changed, and a stored password is "
    "only used where it was meant for."
)

Resolver = Callable[..., Iterable[tuple[Any, ...]]]


class NotReady(Exception):
    """The connection cannot send as it is set; the text is a sentence, marked for translation."""


class ForeignConnection(LookupError):
    """The connection belongs to another site."""


class PrivateHost(ValueError):
    """The host is in a private network, which only instance admins may use."""


@dataclass(frozen=True, kw_only=True)
class FormValues:
    """What somebody entered for a connection, before it is checked.

    `settings` and `secrets` are those of the chosen mailer. A blank secret keeps the stored one; a
    name in `remove_secrets` clears it.
    """

    nickname: str = ""
    from_email: str = ""
    force_from_email: bool = True
    from_name: str = ""
    force_from_name: bool = False
    return_path: bool = True
    mailer: str
    settings: Mapping[str, object]
    secrets: Mapping[str, str] = field(default_factory=dict)
    remove_secrets: Collection[str] = ()


# ---- reading ----


def find_connection(session: Session, site: Site, uid: str) -> Connection | None:
    """A connection of this site, or a shared one; never the installation's own."""
    return session.scalar(sa.select(Connection).where(Connection.uid == uid, choosable(site)))


def any_connection(session: Session, uid: str) -> Connection | None:
    """A connection of any site, or a shared one; never the installation's own."""
    return session.scalar(
        sa.select(Connection).where(
            Connection.uid == uid,
            Connection.is_system.is_(False),
            Connection.deleted_at.is_(None),
        )
    )


def choosable(site: Site) -> sa.ColumnElement[bool]:
    """Connections that a site may send by: its own, and those that every site may choose."""
    return sa.and_(
        sa.or_(Connection.site_id == site.id, Connection.site_id.is_(None)),
        Connection.is_system.is_(False),
        Connection.deleted_at.is_(None),
    )


def connections_of(session: Session, site: Site) -> list[Connection]:
    """The connections of a site, the oldest first; not those that every site may choose."""
    query = sa.select(Connection).where(
        Connection.site_id == site.id, Connection.deleted_at.is_(None)
    )
    return list(session.scalars(query.order_by(Connection.id)))


def choosable_connections(session: Session, site: Site) -> list[Connection]:
    """The same and those that every site may choose, which come last."""
    query = sa.select(Connection).where(choosable(site))
    return list(session.scalars(query.order_by(Connection.site_id.is_(None), Connection.id)))


def alert_connection(session: Session) -> Connection | None:
    """The installation's own, by which alerts leave."""
    query = sa.select(Connection).where(Connection.is_system, Connection.deleted_at.is_(None))
    return session.scalar(query.order_by(Connection.id).limit(1))


def primary_connection(session: Session, site: Site) -> Connection | None:
    """The connection a site sends with, if it has one."""
    if site.primary_connection_id is None:
        return None
    found = session.get(Connection, site.primary_connection_id)
    return found if found is not None and found.deleted_at is None else None


def sites_sending_by(session: Session, connection: Connection) -> list[Site]:
    """The sites whose primary connection it is: several may have chosen a shared one."""
    query = sa.select(Site).where(
        Site.primary_connection_id == connection.id, Site.deleted_at.is_(None)
    )
    return list(session.scalars(query.order_by(Site.id)))


def load_mailer(connection: Connection, keyring: Keyring) -> Mailer:
    """The mailer with its settings and secrets; raises NotReady, or SealError for a foreign key."""
    kind = registry().get(connection.mailer)
    if kind is None:
        raise NotReady(N_("No mailer is chosen for this connection."))
    settings = connection.settings.get(connection.mailer, {})
    secrets = stored_secrets(connection, keyring).get(connection.mailer, {})
    try:
        mailer = from_json(kind, settings, secrets)
    except FieldErrors as error:
        raise NotReady(N_("The settings of this connection are not complete.")) from error
    if not kind.needs_link:
        return mailer
    if connection.grant_id is None:
        raise NotReady(NOT_LINKED)
    return replace(mailer, grant_id=connection.grant_id)  # type: ignore[call-arg]


def is_complete(connection: Connection) -> bool:
    """Whether it could send as it is set, as far as can be told without opening the secrets."""
    kind = registry().get(connection.mailer)
    if kind is None or (kind.needs_link and connection.grant_id is None):
        return False
    known = connection.secrets_set.get(connection.mailer, {})
    try:
        from_json(
            kind, connection.settings.get(connection.mailer, {}), dict.fromkeys(known, "known")
        )
    except FieldErrors:
        return False
    return True


def stored_secrets(connection: Connection, keyring: Keyring) -> dict[str, dict[str, str]]:
    """Per mailer slug and field; raises SealError."""
    if connection.secrets is None:
        return {}
    found = keyring.unseal("connection", subject(connection.uid), connection.secrets)
    assert isinstance(found, dict)
    return found


def subject(uid: str) -> str:
    """What a connection's sealed secrets are bound to."""
    return f"connection:{uid}"


# ---- saving ----


def save_connection(
    session: Session,
    keyring: Keyring,
    site: Site | None,
    connection: Connection | None,
    values: FormValues,
    *,
    shares: bool = False,
    actor: str,
    now: datetime,
) -> Connection:
    """Check and store what was entered; a new connection when `connection` is None.

    Without a site it is the installation's own; with `shares` it may be one that every site may
    choose. Settings and secrets of other mailers stay stored. Raises FieldErrors by the names of
    the From block and of the mailer's settings, and ForeignConnection.
    """
    if connection is not None and not _may_save(site, connection, shares=shares):
        raise ForeignConnection(connection.uid)
    secrets = stored_secrets(connection, keyring) if connection else {}
    block, block_errors = _checked_block(values)
    settings, kept, errors = _checked_mailer(connection, values, secrets.get(values.mailer, {}))
    if block_errors or errors:
        raise FieldErrors({**block_errors, **errors})

    is_new = connection is None
    if connection is None:
        connection = _new_connection(site, now)
        session.add(connection)
    before = {} if is_new else _shown(connection)
    secrets_before = secrets.get(values.mailer, {})
    for name, value in block.items():
        setattr(connection, name, value)
    connection.mailer = values.mailer
    connection.settings = {**connection.settings, values.mailer: settings}
    secrets = {**secrets, values.mailer: kept}
    _seal(connection, keyring, secrets)
    _note_secrets(connection, values.mailer, secrets_before, kept, values, actor, now)
    changes: dict[str, Any] = {**audit.difference(before, _shown(connection))}
    changes |= _secret_changes(values, secrets_before, kept)
    if not is_new:
        connection.version += 1
    connection.updated_at = now
    about_mailer = any(name == "mailer" or name.startswith(f"{values.mailer}.") for name in changes)
    if about_mailer or connection.health in STOPPED:
        forget_health(connection)
    session.flush()
    if changes:
        _record(session, connection, is_new, changes, actor, now)
    return connection


def set_primary(
    session: Session, site: Site, connection: Connection, *, actor: str, now: datetime
) -> bool:
    """Make it the connection the site sends with; returns whether it was another one before."""
    if not may_choose(site, connection):
        raise ForeignConnection(connection.uid)
    if site.primary_connection_id == connection.id:
        return False
    before = site.primary_connection_id
    old = session.get(Connection, before) if before is not None else None
    site.primary_connection_id = connection.id
    session.flush()
    audit.record(
        session,
        at=now,
        actor=actor,
        action="primary connection changed",
        object_kind="site",
        object_id=site.id,
        site_id=site.id,
        changes={"primary_connection": [old.uid if old else None, connection.uid]},
    )
    return True


def forget_health(connection: Connection) -> None:
    """What was learnt with other settings says nothing about these."""
    connection.health = Health.UNKNOWN
    connection.health_since = None
    connection.last_code = ""
    connection.last_words = ""


def may_choose(site: Site, connection: Connection) -> bool:
    """Whether a site may send by it: its own, or one that every site may choose."""
    mine_or_shared = connection.site_id in {site.id, None} and not connection.is_system
    return mine_or_shared and connection.deleted_at is None


def is_shared(connection: Connection) -> bool:
    """Whether every site may choose it."""
    return connection.site_id is None and not connection.is_system


def _may_save(site: Site | None, connection: Connection, *, shares: bool) -> bool:
    if site is None:
        return connection.is_system
    return may_choose(site, connection) and (shares or not is_shared(connection))


def _new_connection(site: Site | None, now: datetime) -> Connection:
    return Connection(
        uid=ids.short_id(),
        site_id=site.id if site else None,
        is_system=site is None,
        settings={},
        secrets_set={},
        version=1,
        health=Health.UNKNOWN,
        created_at=now,
        updated_at=now,
    )


def _checked_block(values: FormValues) -> tuple[dict[str, Any], dict[str, str]]:
    """The From block as it is stored, and sentences by field."""
    block: dict[str, Any] = {
        "nickname": values.nickname,
        "from_email": values.from_email.strip(),
        "force_from_email": values.force_from_email,
        "from_name": values.from_name,
        "force_from_name": values.force_from_name,
        "return_path": values.return_path,
    }
    errors: dict[str, str] = {}
    if block["from_email"]:
        _check(block, errors, "from_email", check_email)
    _check(block, errors, "from_name", lambda text: check_line(text, FROM_NAME_LENGTH))
    _check(block, errors, "nickname", lambda text: check_line(text, NICKNAME_LENGTH))
    return block, errors


def _check(
    block: dict[str, Any], errors: dict[str, str], name: str, check: Callable[[str], str]
) -> None:
    try:
        block[name] = check(block[name])
    except ValueError as error:
        errors[name] = str(error)


def _checked_mailer(
    connection: Connection | None, values: FormValues, stored: Mapping[str, str]
) -> tuple[dict[str, object], dict[str, str], dict[str, str]]:
    """The chosen mailer's plain settings and secrets as they are stored, and sentences by field."""
    kind = registry().get(values.mailer)
    if kind is None:
        return {}, {}, {"mailer": CHOOSE_A_MAILER}
    names = {asked.name for asked in questions(kind) if asked.question.secret}
    fresh = {name: text for name, text in values.secrets.items() if name in names and text}
    kept = {name: text for name, text in stored.items() if name not in values.remove_secrets}
    secrets = {**kept, **fresh}
    try:
        mailer = from_json(kind, values.settings, secrets)
    except FieldErrors as error:
        return {}, {}, dict(error.errors)
    settings = settings_of(mailer)
    before = (connection.settings if connection else {}).get(values.mailer, {})
    if before and _goes_elsewhere(before, settings):
        lost = [name for name in kept if name not in fresh]
        if lost and settings.get("authentication", True):
            return {}, {}, dict.fromkeys(lost, TYPE_IT_AGAIN)
        secrets = fresh
    return settings, secrets, {}


def _goes_elsewhere(before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    """Whether a stored secret would be shown to somebody else, or less well covered."""
    moved = any(before.get(name) != after.get(name) for name in WHERE_SECRETS_GO)
    return moved or _cover(after) < _cover(before)


def _cover(settings: Mapping[str, object]) -> int:
    """How well a login is covered: 2 always encrypted, 1 where the server offers it, 0 never."""
    if settings.get("encryption", "tls") != "none":
        return 2
    return 1 if settings.get("auto_tls") else 0


def _seal(connection: Connection, keyring: Keyring, secrets: dict[str, dict[str, str]]) -> None:
    secrets = {slug: values for slug, values in secrets.items() if values}
    connection.secrets = (
        keyring.seal("connection", subject(connection.uid), secrets) if secrets else None
    )


def _note_secrets(
    connection: Connection,
    slug: str,
    before: Mapping[str, str],
    after: Mapping[str, str],
    values: FormValues,
    actor: str,
    now: datetime,
) -> None:
    """Remember when each secret was stored and by whom; forget those that are gone."""
    noted = dict(connection.secrets_set.get(slug, {}))
    for name in before:
        if name not in after:
            noted.pop(name, None)
    for name in after:
        if values.secrets.get(name):
            noted[name] = {"at": now.isoformat(), "by": actor}
    known = {other: stored for other, stored in connection.secrets_set.items() if other != slug}
    connection.secrets_set = {**known, slug: noted} if noted else known


def _shown(connection: Connection) -> dict[str, Any]:
    """All that is no secret, flat, for the audit."""
    shown: dict[str, Any] = {
        "nickname": connection.nickname,
        "mailer": connection.mailer,
        "from_email": connection.from_email,
        "force_from_email": connection.force_from_email,
        "from_name": connection.from_name,
        "force_from_name": connection.force_from_name,
        "return_path": connection.return_path,
    }
    for slug, settings in connection.settings.items():
        shown |= {f"{slug}.{name}": value for name, value in settings.items()}
    return shown


def _secret_changes(
    values: FormValues, before: Mapping[str, str], after: Mapping[str, str]
) -> dict[str, str]:
    names = sorted(before.keys() | after.keys())
    return {
        f"{values.mailer}.{name}": "changed" if name in after else "removed"
        for name in names
        if values.secrets.get(name) or name not in after
    }


def _record(
    session: Session,
    connection: Connection,
    is_new: bool,
    changes: dict[str, Any],
    actor: str,
    now: datetime,
) -> None:
    audit.record(
        session,
        at=now,
        actor=actor,
        action="connection created" if is_new else "connection changed",
        object_kind="connection",
        object_id=connection.uid,
        site_id=connection.site_id,
        changes=changes,
    )


# ---- limits ----


def check_limit(text: str) -> int | None:
    """A limit as it is stored, None for none; raises ValueError with the sentence to show."""
    text = text.strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise ValueError(N_("Enter a whole number, or nothing for no limit."))
    if int(text) == 0:
        raise ValueError(
            N_("0 would stop all mail. Leave it empty for no limit; to stop mail, use Do Not Send.")
        )
    if int(text) > LARGEST_LIMIT:
        raise ValueError(N_("Enter at most 1,000,000, or nothing for no limit."))
    return int(text)


# ---- hosts in private networks ----


def check_host(host: str, resolver: Resolver | None = None) -> None:
    """Raise PrivateHost when the name leads into a private network, or to this machine.

    Asks the network, so call it before a unit of work. A name that cannot be looked up is no error
    here: it fails at the first mail, with the reason.
    """
    try:
        found = [str(answer[4][0]) for answer in (resolver or socket.getaddrinfo)(host, None)]
    except (OSError, UnicodeError):
        return
    if any(_is_private(address) for address in found):
        raise PrivateHost(
            N_(
                "This host is in a private network. Only an administrator of this installation "
                "may use it."
            )
        )


def _is_private(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return not address.is_global or address.is_multicast
