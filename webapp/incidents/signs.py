"""What is wrong now, read from the state of things: each sign is one cause. Nothing is written."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection as DbConnection
from sqlalchemy.orm import Session

from webapp.config import Settings
from webapp.connections.models import Backup, Connection, Health
from webapp.connections.service import STOPPED
from webapp.delivery.lanes import UNREACHABLE
from webapp.delivery.models import Attempt, Lane, Message, Source, State, is_in
from webapp.delivery.tally import accounts
from webapp.disk import data_folders, free_bytes
from webapp.incidents.kinds import Kind
from webapp.mailers import registry
from webapp.microsoft.dates import idle
from webapp.microsoft.models import Grant, GrantState, Mailbox, OAuthApp
from webapp.providers import PROVIDERS
from webapp.sites.models import Site

UNREACHABLE_AFTER = timedelta(minutes=15)
FAILURES_LAST = timedelta(hours=1)
SUCCESS_COUNTS_AFTER = timedelta(minutes=10)
"""A mail that went out says that failures are over, once so long none came: or each refused
address among many good ones would open and close an incident of its own."""
MOST_FAILURES = 2000
DAYS_AHEAD = (1, 7, 30, 60)
IDLE_AFTER = timedelta(days=60)

NOT_FROM_THE_SITE = (Source.TEST, Source.RESEND)


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One cause, as it stands now. Without sites it concerns the installation."""

    cause: str
    kind: Kind
    code: str = ""
    words: str = ""
    sites: frozenset[int] = frozenset()
    lanes: frozenset[int] = frozenset()
    """What stands still because of it."""
    since: datetime | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def signs(session: Session, now: datetime, settings: Settings) -> list[Sign]:
    """Everything but the books, which take longer."""
    links = [*_refused_links(session), *_refused_registrations(session)]
    told = frozenset(lane for sign in links for lane in sign.lanes)
    failures = [*_failures(session, now)]
    # Mail that was given up for the reason that a connection fails for: one cause.
    given_up = {(sign.details["connection"], sign.code) for sign in failures}
    found = [
        *links,
        *_stopped_lanes(session, told),
        *failures,
        *_unreachable(session, now, given_up),
        *_silent_sites(session, now),
        *_secrets(session, now),
        *_idle_links(session, now),
        *_alert_connection(session, links),
        *_disk(settings),
    ]
    return _with_waiting(session, _of_sites_there(session, found))


def _of_sites_there(session: Session, found: list[Sign]) -> list[Sign]:
    """Nobody has to know of what concerns deleted sites alone."""
    gone = frozenset(session.scalars(sa.select(Site.id).where(Site.deleted_at.is_not(None))))
    return [
        replace(sign, sites=sign.sites - gone)
        for sign in found
        if not sign.sites or sign.sites - gone
    ]


def ledger_signs(connection: DbConnection, *, is_sqlite: bool) -> list[Sign]:
    """Sites whose books do not add up; `connection` is one that nothing was read by yet."""
    if not is_sqlite:
        connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    found = [account for account in accounts(connection) if account.gap]
    names = dict(connection.execute(sa.select(Site.id, Site.name)).all()) if found else {}
    return [
        Sign(
            cause=f"ledger:{account.site_id}",
            kind=Kind.LEDGER,
            sites=frozenset({account.site_id} & names.keys()),
            details={
                "site": names.get(account.site_id, str(account.site_id)),
                "accepted": account.accepted,
                "ended": account.ended,
                "open": account.open,
                "gap": account.gap,
            },
        )
        for account in found
    ]


# ---- what stopped until somebody acts ----


def _refused_links(session: Session) -> Iterator[Sign]:
    query = (
        sa.select(Grant, Mailbox, OAuthApp.name)
        .join(Mailbox, Mailbox.id == Grant.mailbox_id)
        .join(OAuthApp, OAuthApp.id == Grant.app_id)
        .where(Grant.state == GrantState.NEEDS_REAUTHORISATION)
    )
    for grant, mailbox, app in session.execute(query):
        used = _used(session, Connection.grant_id == grant.id)
        if used:
            yield Sign(
                cause=f"grant:{grant.id}",
                kind=Kind.LINK,
                code=grant.code,
                words=grant.words,
                sites=_sites(session, used),
                lanes=frozenset(filter(None, [mailbox.lane_id])),
                since=grant.state_since,
                details={
                    "account": mailbox.address,
                    "app": app,
                    "app_name": app,
                    "provider": PROVIDERS[mailbox.provider].name,
                    "mailer": PROVIDERS[mailbox.provider].mailer,
                    "grants": [grant.id],
                },
            )


def _refused_registrations(session: Session) -> Iterator[Sign]:
    for app in session.scalars(sa.select(OAuthApp).where(OAuthApp.problem_since.is_not(None))):
        grants = session.execute(
            sa.select(Grant.id, Mailbox.lane_id)
            .join(Mailbox, Mailbox.id == Grant.mailbox_id)
            .where(Grant.app_id == app.id, Grant.state != GrantState.REMOVED)
        ).all()
        used = _used(session, Connection.grant_id.in_([row.id for row in grants]))
        if not used and app.connection_id is not None:
            continue
        yield Sign(
            cause=f"app:{app.id}",
            kind=Kind.REGISTRATION,
            code=app.problem_code,
            words=app.problem_words,
            sites=_sites(session, used),
            lanes=frozenset(row.lane_id for row in grants if row.lane_id is not None),
            since=app.problem_since,
            details={
                "app": app.name or app.client_id,
                "app_name": app.name,
                "client_id": app.client_id,
                "provider": PROVIDERS[app.provider].name,
                "mailer": PROVIDERS[app.provider].mailer,
                "grants": [row.id for row in grants],
            },
        )


def _stopped_lanes(session: Session, told: frozenset[int]) -> Iterator[Sign]:
    query = sa.select(Lane).where(Lane.is_blocked, Lane.blocked_until.is_(None))
    for lane in session.scalars(query.order_by(Lane.id)):
        used = _used(session, Connection.lane_id == lane.id) if lane.id not in told else []
        if used:
            shown = next((c for c in used if c.last_words == lane.blocked_words), used[0])
            yield Sign(
                cause=f"lane:{lane.id}",
                kind=Kind.STOPPED,
                code=shown.last_code,
                words=lane.blocked_words,
                sites=_sites(session, used),
                lanes=frozenset({lane.id}),
                since=lane.blocked_since,
                details=_place(shown) | {"lane": lane.key, "cause": lane.blocked_kind},
            )


# ---- what goes wrong by itself ----


def _unreachable(
    session: Session, now: datetime, told: Collection[tuple[int | None, str]]
) -> Iterator[Sign]:
    """One for each lane: a connection of it has long failed, or nobody has long answered there.
    `told` are connections of which that is told already, with the code."""
    since = now - UNREACHABLE_AFTER
    fails = sa.and_(Connection.health == Health.FAILING, Connection.health_since <= since)
    pauses = sa.and_(Lane.is_blocked, Lane.blocked_kind == UNREACHABLE, Lane.blocked_since <= since)
    stopped = sa.and_(Lane.is_blocked, Lane.blocked_until.is_(None))
    query = (
        sa.select(Connection, Lane)
        .join(Lane, Lane.id == Connection.lane_id)
        .where(sa.or_(fails, pauses), Connection.is_system.is_(False), sa.not_(stopped))
        .order_by(Connection.id)
    )
    by_lane: dict[int, list[tuple[Connection, Lane]]] = defaultdict(list)
    for connection, lane in session.execute(query):
        if (connection.id, connection.last_code) not in told:
            by_lane[lane.id].append((connection, lane))
    for lane_id, rows in by_lane.items():
        connections = [connection for connection, _lane in rows]
        lane = rows[0][1]
        # The one that met it tells the remote's code; another one of the lane may not have tried.
        first = next((c for c in connections if c.health == Health.FAILING), connections[0])
        is_paused = lane.blocked_kind == UNREACHABLE
        times = (first.health_since, lane.blocked_since if is_paused else None)
        yield Sign(
            cause=f"reach:{lane_id}",
            kind=Kind.UNREACHABLE,
            code=first.last_code,
            words=first.last_words or lane.blocked_words,
            sites=_sites(session, connections),
            lanes=frozenset({lane_id}),
            since=min((at for at in times if at is not None), default=None),
            details=_place(first) | {"lane": lane.key},
        )


@dataclass
class _Failures:
    """Mails of one site that ended alike: the newest of them, and how many."""

    newest: Any
    last_at: datetime
    count: int = 0


def _failures(session: Session, now: datetime) -> Iterator[Sign]:
    """Mail that was given up, and mail of which nobody knows; one sign for each code."""
    for kind, condition in (
        (Kind.FAILED, is_in(State.FAILED)),
        (Kind.UNCLEAR, sa.and_(is_in(State.UNCERTAIN), Message.due_at.is_(None))),
    ):
        for (site_id, connection_id, code), found in _groups(session, condition, now).items():
            if kind is Kind.FAILED and _sent_since(session, found, now):
                continue
            yield _failure(session, kind, site_id, connection_id, code, found)


def _groups(
    session: Session, condition: sa.ColumnElement[bool], now: datetime
) -> dict[tuple[int, int | None, str], _Failures]:
    newest = (
        sa.select(
            Message.id,
            Message.site_id,
            Message.connection_id,
            Message.last_code,
            Message.last_words,
            Message.finished_at,
        )
        .where(condition, Message.source != Source.TEST)
        .order_by(Message.id.desc())
        .limit(MOST_FAILURES)
        .subquery()
    )
    rows = session.execute(sa.select(newest).where(newest.c.finished_at > now - FAILURES_LAST))
    groups: dict[tuple[int, int | None, str], _Failures] = {}
    for row in rows:
        key = (row.site_id, row.connection_id, row.last_code)
        group = groups.setdefault(key, _Failures(newest=row, last_at=row.finished_at))
        group.count += 1
        group.last_at = max(group.last_at, row.finished_at)
    return groups


def _sent_since(session: Session, found: _Failures, now: datetime) -> bool:
    if found.last_at > now - SUCCESS_COUNTS_AFTER:
        return False
    later = sa.select(Message.id).where(
        Message.site_id == found.newest.site_id,
        Message.state == State.SENT,
        Message.connection_id == found.newest.connection_id,
        Message.id > found.newest.id,
        Message.finished_at > found.last_at,
    )
    return session.scalar(later.limit(1)) is not None


def _failure(
    session: Session,
    kind: Kind,
    site_id: int,
    connection_id: int | None,
    code: str,
    found: _Failures,
) -> Sign:
    connection = session.get(Connection, connection_id) if connection_id else None
    cause = session.scalar(
        sa.select(Attempt.cause)
        .where(Attempt.message_id == found.newest.id)
        .order_by(Attempt.number.desc())
        .limit(1)
    )
    name = "failed" if kind is Kind.FAILED else "unclear"
    return Sign(
        cause=f"{name}:{site_id}:{connection_id or 0}:{code}",
        kind=kind,
        code=code,
        words=found.newest.last_words,
        sites=frozenset({site_id}),
        since=found.last_at,
        details={
            **(_place(connection) if connection else {}),
            "site": session.get_one(Site, site_id).name,
            "connection": connection_id,
            "cause": cause or "",
            "count": found.count,
        },
    )


def _silent_sites(session: Session, now: datetime) -> Iterator[Sign]:
    watched = sa.select(Site).where(Site.silent_hours.is_not(None), Site.deleted_at.is_(None))
    for site in session.scalars(watched):
        last = session.scalar(
            sa.select(Message.accepted_at)
            .where(Message.site_id == site.id, Message.source.not_in(NOT_FROM_THE_SITE))
            .order_by(Message.id.desc())
            .limit(1)
        )
        since = last or site.created_at
        if now - since >= timedelta(hours=site.silent_hours or 0):
            yield Sign(
                cause=f"silent:{site.id}",
                kind=Kind.SILENT,
                sites=frozenset({site.id}),
                since=since,
                details={"site": site.name, "hours": site.silent_hours},
            )


def _disk(settings: Settings) -> Iterator[Sign]:
    free = min(free_bytes(folder) for folder in data_folders(settings))
    reserve = settings.disk_reserve_bytes
    if free < reserve:
        mega = 1024 * 1024
        details = {"free": free // mega, "reserve": reserve // mega}
        yield Sign(cause="disk", kind=Kind.DISK, details=details)


def _alert_connection(session: Session, links: Sequence[Sign]) -> Iterator[Sign]:
    """Whether alerts cannot leave as mail. A refused link that sites send by too, or a refused
    registration, is told already: that is one cause."""
    told = {grant for sign in links for grant in sign.details["grants"]}
    query = sa.select(Connection).where(
        Connection.is_system,
        Connection.deleted_at.is_(None),
        Connection.health.not_in([Health.UNKNOWN, Health.WORKING]),
    )
    for connection in session.scalars(query):
        if connection.grant_id in told and connection.health in STOPPED:
            continue
        yield Sign(
            cause=f"alerts:{connection.id}",
            kind=Kind.ALERTS,
            code=connection.last_code,
            words=connection.last_words,
            since=connection.health_since,
            details=_place(connection),
        )


# ---- dates that come ----


def _secrets(session: Session, now: datetime) -> Iterator[Sign]:
    """One for each registration: the last reminder that is due, with the one date it is about.

    A shared registration concerns the installation: no site could renew its secret.
    """
    query = sa.select(OAuthApp).where(
        OAuthApp.secret.is_not(None),
        OAuthApp.secret_expires_on <= now.date() + timedelta(days=DAYS_AHEAD[-1]),
    )
    for app in session.scalars(query):
        assert app.secret_expires_on is not None
        left = (app.secret_expires_on - now.date()).days
        reminder = next(days for days in DAYS_AHEAD if left <= days)
        own = (
            [] if app.connection_id is None else _used(session, Connection.id == app.connection_id)
        )
        yield Sign(
            cause=f"secret:{app.id}:{app.secret_expires_on:%Y%m%d}:{reminder}",
            kind=Kind.SECRET,
            sites=_sites(session, own),
            details={
                "app": app.name or app.client_id,
                "day": app.secret_expires_on.isoformat(),
                "reminder": reminder,
            },
        )


def _idle_links(session: Session, now: datetime) -> Iterator[Sign]:
    query = (
        sa.select(Grant, Mailbox)
        .join(Mailbox, Mailbox.id == Grant.mailbox_id)
        .where(Grant.state == GrantState.LINKED, Grant.renewed_at < now - IDLE_AFTER)
    )
    for grant, mailbox in session.execute(query):
        mine = Connection.grant_id == grant.id
        used = _used(session, mine)
        # That of the alert connection concerns the installation.
        if used or session.scalar(sa.select(Connection.id).where(mine).limit(1)):
            yield Sign(
                cause=f"idle:{grant.id}",
                kind=Kind.IDLE,
                sites=_sites(session, used),
                since=grant.renewed_at,
                details={
                    "account": mailbox.address,
                    "provider": PROVIDERS[mailbox.provider].name,
                    "idle": idle(mailbox.provider).days,
                },
            )


# ---- whom it concerns, and what waits ----


def _used(session: Session, condition: sa.ColumnElement[bool]) -> Sequence[Connection]:
    query = sa.select(Connection).where(condition, Connection.is_system.is_(False))
    return session.scalars(query.order_by(Connection.id)).all()


def _sites(session: Session, connections: Iterable[Connection]) -> frozenset[int]:
    """The sites of these connections; of a shared one, those that send with it or may have to."""
    found = set()
    for connection in connections:
        if connection.site_id is not None:
            found.add(connection.site_id)
        else:
            primary = sa.select(Site.id).where(Site.primary_connection_id == connection.id)
            backup = sa.select(Backup.site_id).where(Backup.connection_id == connection.id)
            found.update(session.scalars(sa.union(primary, backup)))
    return frozenset(found)


def _place(connection: Connection) -> dict[str, Any]:
    settings = connection.settings.get(connection.mailer, {})
    kind = registry().get(connection.mailer)
    label = (kind.service or kind.label) if kind else connection.mailer
    return {
        "place": str(settings.get("host") or connection.nickname or label),
        "host": str(settings.get("host") or ""),
        "port": settings.get("port"),
        "from_email": connection.from_email,
        "mailer": connection.mailer,
    }


def _with_waiting(session: Session, found: list[Sign]) -> list[Sign]:
    """Say of each sign how much mail it keeps, by site."""
    lanes = {lane for sign in found for lane in sign.lanes}
    if not lanes:
        return found
    query = (
        sa.select(Message.lane_id, Message.site_id, sa.func.count())
        .where(Message.lane_id.in_(lanes), Message.due_at.is_not(None))
        .group_by(Message.lane_id, Message.site_id)
    )
    rows = session.execute(query).all()
    backed = _backed(session)
    counted = []
    for sign in found:
        waiting: dict[str, int] = defaultdict(int)
        for lane_id, site_id, count in rows:
            if lane_id in sign.lanes:
                waiting[str(site_id)] += count
        carried = [site for site in sorted(sign.sites) if backed.get(site, set()) - sign.lanes]
        details = {**sign.details, "waiting": dict(waiting), "carried": carried}
        counted.append(replace(sign, details=details) if sign.lanes else sign)
    return counted


def _backed(session: Session) -> dict[int, set[int]]:
    """By site, the open lanes of its backups."""
    rows = session.execute(
        sa.select(Backup.site_id, Lane.id)
        .join(Connection, Connection.id == Backup.connection_id)
        .join(Lane, Lane.id == Connection.lane_id)
        .where(Connection.deleted_at.is_(None), sa.not_(Lane.is_blocked), sa.not_(Lane.is_paused))
    )
    found: dict[int, set[int]] = defaultdict(set)
    for site_id, lane_id in rows:
        found[site_id].add(lane_id)
    return found
