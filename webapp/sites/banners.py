"""What every page of a site says at its top, in order, and never the same thing twice."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session, defer

from webapp.accounts.models import Dismissal
from webapp.connections.models import Backup, Connection
from webapp.connections.service import is_complete
from webapp.delivery.models import Message, State
from webapp.maillog.service import connection_name
from webapp.routing.models import Rule
from webapp.sites.board import Row, Why
from webapp.sites.models import Site

ENDING_PASSWORDS = frozenset(
    {"live.com", "hotmail.com", "outlook.com", "office.com", "office365.com"}
)
"""Where Microsoft ends the sign-in with a password, by the last two labels of a host."""
NEWEST = 20
"""So many of a site's last mails, sent and failed, tell which of them ended last."""


class Kind(StrEnum):
    """What a banner is about; they stand in this order."""

    TROUBLE = "trouble"
    MODE = "mode"
    LAST_FAILED = "last-failed"
    SETUP = "setup"
    CARRIED = "carried"
    SECRET = "secret"  # noqa: S105 - what the banner is about
    LINK = "link"
    BASIC_AUTH = "basic-auth"


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The mail of a site that ended last, and failed."""

    queue_id: str
    connection: str
    code: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Named:
    """A connection, as a banner names it."""

    uid: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a site beside how it stands, for one person."""

    is_incomplete: bool = False
    """Its primary connection lacks something that it needs."""
    failed: Failed | None = None
    hides_errors: bool = False
    by_password: tuple[Named, ...] = ()
    """Connections that sign in to Microsoft by a password, without those put away."""


@dataclass(frozen=True, kw_only=True)
class Banner:
    """One notice; `row` says how the site stands, without its mode where the mode is apart."""

    kind: Kind
    row: Row
    failed: Failed | None = None
    connections: tuple[Named, ...] = ()


# ---- which ones, and in what order ----


def banners_of(row: Row, facts: Facts) -> tuple[Banner, ...]:
    """The banners of a site. Pure."""
    live = row.beneath or row
    kinds = {
        Kind.TROUBLE: _is_trouble(row, live, facts),
        Kind.LAST_FAILED: facts.failed is not None and not facts.hides_errors and not _says(live),
        Kind.SETUP: live.why in _UNFINISHED or (facts.is_incomplete and not _says(live)),
        Kind.MODE: row.why is Why.BY_CHOICE,
        Kind.CARRIED: row.carried is not None,
        Kind.SECRET: live.ends is not None
        and live.ends.secret_soon
        and live.why is not Why.MISCONFIGURED,
        Kind.LINK: live.ends is not None
        and live.ends.link_soon
        and live.why is not Why.LOGIN_REFUSED,
        Kind.BASIC_AUTH: bool(facts.by_password),
    }
    return tuple(
        Banner(
            kind=kind,
            row=row if kind is Kind.MODE else live,
            failed=facts.failed if kind is Kind.LAST_FAILED else None,
            connections=facts.by_password if kind is Kind.BASIC_AUTH else (),
        )
        for kind in Kind
        if kinds[kind]
    )


_UNFINISHED = {Why.NO_CONNECTION, Why.NOT_LINKED}
_STOPPED = {Why.LOGIN_REFUSED, Why.MISCONFIGURED, Why.UNREACHABLE}
"""Troubles that say more than the mail which failed by them."""


def _says(live: Row) -> bool:
    return live.why in _STOPPED


def _is_trouble(row: Row, live: Row, facts: Facts) -> bool:
    if not live.in_trouble or live.why in _UNFINISHED:
        return False
    if live.why is Why.FAILING:
        return facts.failed is None
    # Whoever keeps mail back by choice need not hear that it is slow or rare.
    return row is live or live.why in _STOPPED


def ends_passwords(host: str) -> bool:
    """Whether a host is one of those at which Microsoft ends the sign-in with a password."""
    labels = host.strip().rstrip(".").casefold().split(".")
    return ".".join(labels[-2:]) in ENDING_PASSWORDS


# ---- what is known ----


def banners(session: Session, row: Row, user_id: int) -> tuple[Banner, ...]:
    """The banners of a site for one person: four queries by index beside how the site stands."""
    return banners_of(row, facts_of(session, row.site, user_id))


def facts_of(session: Session, site: Site, user_id: int) -> Facts:
    """What banners need to know, but for how the site stands."""
    used = _connections(session, site)
    weak = [one for one in used if _by_password(one)]
    failed = _last_failed(session, site)
    wanted = [errors_notice(site), *(basic_auth_notice(one.uid) for one in weak)]
    away = _put_away(session, user_id, wanted)
    primary = next((one for one in used if one.id == site.primary_connection_id), None)
    return Facts(
        is_incomplete=primary is not None and not is_complete(primary),
        failed=failed,
        hides_errors=errors_notice(site) in away,
        by_password=tuple(
            Named(uid=one.uid, name=connection_name(one.nickname, one.mailer))
            for one in weak
            if basic_auth_notice(one.uid) not in away
        ),
    )


def errors_notice(site: Site) -> str:
    """The key under which a person hides the last failure of a site."""
    return f"errors:{site.slug}"


def basic_auth_notice(uid: str) -> str:
    """The key under which a person puts the warning about a connection away."""
    return f"basic-auth:{uid}"


def _connections(session: Session, site: Site) -> Sequence[Connection]:
    """What the site owns, and what else it sends by."""
    backups = sa.select(Backup.connection_id).where(Backup.site_id == site.id)
    routes = sa.select(Rule.connection_id).where(
        Rule.site_id == site.id, Rule.connection_id.is_not(None)
    )
    used = sa.or_(
        Connection.site_id == site.id,
        Connection.id == site.primary_connection_id,
        Connection.id.in_(backups),
        Connection.id.in_(routes),
    )
    query = sa.select(Connection).options(defer(Connection.secrets)).order_by(Connection.id)
    return session.scalars(query.where(used, Connection.deleted_at.is_(None))).all()


def _by_password(connection: Connection) -> bool:
    if connection.mailer != "smtp":
        return False
    return ends_passwords(str(connection.settings.get("smtp", {}).get("host", "")))


def _last_failed(session: Session, site: Site) -> Failed | None:
    """The mail that ended last, if it failed: one probe of an index for each of both ends."""
    failed = _ended_last(session, site, State.FAILED)
    if failed is None:
        return None
    sent = _ended_last(session, site, State.SENT)
    if sent is not None and sent.finished_at >= failed.finished_at:
        return None
    return Failed(
        queue_id=failed.queue_id,
        connection=connection_name(failed.nickname, failed.mailer),
        code=failed.last_code,
        words=failed.last_words,
    )


def _ended_last(session: Session, site: Site, state: State) -> sa.Row[tuple[object, ...]] | None:
    newest = (
        sa.select(Message.id)
        .where(Message.site_id == site.id, Message.state == state)
        .order_by(Message.id.desc())
        .limit(NEWEST)
    )
    query = (
        sa.select(
            Message.queue_id,
            Message.finished_at,
            Message.last_code,
            Message.last_words,
            Connection.nickname,
            Connection.mailer,
        )
        .outerjoin(Connection, Connection.id == Message.connection_id)
        .where(Message.id.in_(newest), Message.finished_at.is_not(None))
        .order_by(Message.finished_at.desc(), Message.id.desc())
        .limit(1)
    )
    return session.execute(query).first()  # type: ignore[return-value]


def _put_away(session: Session, user_id: int, notices: Collection[str]) -> set[str]:
    query = sa.select(Dismissal.notice).where(
        Dismissal.user_id == user_id, Dismissal.notice.in_(notices)
    )
    return set(session.scalars(query))


# ---- putting one away ----


def put_away(
    session: Session, site: Site, user_id: int, uids: Collection[str], now: datetime
) -> None:
    """Warn this person no more of these connections; raises LookupError for one that the site
    does not send by."""
    warned = {one.uid for one in _connections(session, site) if _by_password(one)}
    for uid in dict.fromkeys(uids):
        if uid not in warned:
            raise LookupError(uid)
        key = (user_id, basic_auth_notice(uid))
        if session.get(Dismissal, key) is None:
            session.add(Dismissal(user_id=user_id, notice=key[1], at=now))
