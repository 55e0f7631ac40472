"""What a connection is used for, and how it does: for the list, and before one is taken away."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.connections.models import Backup, Connection, Health
from webapp.connections.service import (
    choosable_connections,
    is_complete,
    is_shared,
    primary_connection,
)
from webapp.delivery.models import Lane, Message, State, Tally, is_in
from webapp.mailers import registry
from webapp.maillog.service import connection_name
from webapp.microsoft.models import Grant, GrantState
from webapp.routing.models import Rule, RuleKind
from webapp.sites.models import Site

DAY = timedelta(hours=24)
LATELY = timedelta(days=90)
"""So far back the list looks for when a connection was used."""
NEWEST = 200
"""So many of a site's last mails, sent and failed, tell the exact time; before them, the hour."""


class Readiness(StrEnum):
    """Whether mail can leave by a connection, the first that is true."""

    INCOMPLETE = "incomplete"
    NOT_AUTHORISED = "not-authorised"
    NEEDS_REAUTHORISATION = "needs-reauthorisation"
    FAILING = "failing"
    PAUSED = "paused"
    READY = "ready"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A connection that a site may send by, and what the site has of it."""

    connection: Connection
    name: str
    readiness: Readiness
    since: datetime | None = None
    """When the trouble began."""
    words: str = ""
    """What the remote said."""
    is_primary: bool
    is_shared: bool
    backup: int | None = None
    """Its place in the chain of backups, from 1."""
    rules: tuple[str, ...] = ()
    """The names of the routes that lead to it; a name may be empty."""
    sent: int = 0
    failed: int = 0
    last_used_at: datetime | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it may be chosen: it has all it needs, however it does just now."""
        return self.readiness not in {Readiness.INCOMPLETE, Readiness.NOT_AUTHORISED}


# ---- the list ----


def listed(session: Session, site: Site, now: datetime) -> list[Listed]:
    """What a site may send by: the primary one first, then its own, then what is shared."""
    connections = choosable_connections(session, site)
    chain = {key: place for place, key in enumerate(chain_ids(session, site), start=1)}
    rules = _rules(session, site)
    counts = _counts(session, site, now)
    used = _last_used(session, site, now)
    lanes = _lanes(session, connections)
    grants = _grants(session, connections)
    rows = []
    for one in connections:
        readiness, since = _readiness(one, lanes.get(one.lane_id or 0), grants)
        row = Listed(
            connection=one,
            name=connection_name(one.nickname, one.mailer),
            readiness=readiness,
            since=since,
            words=one.last_words if since is not None else "",
            is_primary=one.id == site.primary_connection_id,
            is_shared=is_shared(one),
            backup=chain.get(one.id),
            rules=tuple(rules[one.id]),
            sent=counts[one.id, State.SENT.value],
            failed=counts[one.id, State.FAILED.value],
            last_used_at=used.get(one.id),
        )
        rows.append(row)
    return sorted(rows, key=lambda row: not row.is_primary)


def chain_ids(session: Session, site: Site) -> list[int]:
    """The connections that stand in for others, in their order."""
    query = (
        sa.select(Backup.connection_id)
        .join(Connection, Connection.id == Backup.connection_id)
        .where(Backup.site_id == site.id, Connection.deleted_at.is_(None))
        .order_by(Backup.position)
    )
    return list(session.scalars(query))


def _rules(session: Session, site: Site) -> Mapping[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    query = sa.select(Rule).where(Rule.site_id == site.id, Rule.kind == RuleKind.ROUTE)
    for rule in session.scalars(query.order_by(Rule.position)):
        if rule.connection_id is not None:
            found[rule.connection_id].append(rule.name)
    return found


def _counts(session: Session, site: Site, now: datetime) -> Mapping[tuple[int, str], int]:
    """Mails that ended within a day, by connection and outcome."""
    query = (
        sa.select(Tally.connection_id, Tally.outcome, sa.func.sum(Tally.count))
        .where(
            Tally.site_id == site.id,
            Tally.hour > now - DAY,
            Tally.outcome.in_((State.SENT, State.FAILED)),
        )
        .group_by(Tally.connection_id, Tally.outcome)
    )
    counts: dict[tuple[int, str], int] = defaultdict(int)
    for key, outcome, count in session.execute(query):
        counts[key or 0, outcome] = int(count)
    return counts


def _last_used(session: Session, site: Site, now: datetime) -> dict[int, datetime]:
    """When a mail last ended by each connection: to the hour, and exactly where that is lately."""
    by_hour = (
        sa.select(Tally.connection_id, sa.func.max(Tally.hour, type_=Tally.hour.type))
        .where(
            Tally.site_id == site.id,
            Tally.hour > now - LATELY,
            Tally.outcome.in_((State.SENT, State.FAILED)),
            Tally.connection_id.is_not(None),
        )
        .group_by(Tally.connection_id)
    )
    found = {row[0]: row[1] for row in session.execute(by_hour) if row[0] is not None}
    exact: dict[int, datetime] = {}
    for state in (State.SENT, State.FAILED):
        newest = (
            sa.select(Message.connection_id, Message.finished_at)
            .where(Message.site_id == site.id, Message.state == state)
            .order_by(Message.id.desc())
            .limit(NEWEST)
        )
        for key, at in session.execute(newest):
            if key is not None and at is not None:
                exact[key] = max(at, exact.get(key, at))
    return found | exact


def _lanes(session: Session, connections: Sequence[Connection]) -> Mapping[int, Lane]:
    keys = {one.lane_id for one in connections if one.lane_id is not None}
    found = session.scalars(sa.select(Lane).where(Lane.id.in_(keys)))
    return {lane.id: lane for lane in found}


def _grants(session: Session, connections: Sequence[Connection]) -> Mapping[int, Grant]:
    keys = {one.grant_id for one in connections if one.grant_id is not None}
    found = session.scalars(sa.select(Grant).where(Grant.id.in_(keys)))
    return {grant.id: grant for grant in found}


def _readiness(
    connection: Connection, lane: Lane | None, grants: Mapping[int, Grant]
) -> tuple[Readiness, datetime | None]:
    """How it does, and since when something is wrong."""
    kind = registry().get(connection.mailer)
    if kind is not None and kind.needs_link and connection.grant_id is None:
        return Readiness.NOT_AUTHORISED, None
    if lane is None or not is_complete(connection):
        return Readiness.INCOMPLETE, None
    grant = grants.get(connection.grant_id or 0)
    if grant is not None and grant.state == GrantState.NEEDS_REAUTHORISATION:
        return Readiness.NEEDS_REAUTHORISATION, grant.state_since
    if connection.health == Health.NEEDS_REAUTHORISATION:
        return Readiness.NEEDS_REAUTHORISATION, connection.health_since
    if connection.health in {Health.FAILING, Health.MISCONFIGURED}:
        return Readiness.FAILING, connection.health_since
    if lane.is_blocked and lane.blocked_until is None:
        return Readiness.FAILING, lane.blocked_since
    return (Readiness.PAUSED if lane.is_paused else Readiness.READY), None


# ---- who would miss it ----


@dataclass(frozen=True, kw_only=True)
class Uses:
    """What is led by a connection, over all sites."""

    primary_of: tuple[Site, ...]
    backup_of: tuple[Site, ...]
    rules: tuple[tuple[Site, Rule], ...]
    waiting: int
    """Mails that stand with it, and are not over."""

    def elsewhere(self, site_id: int) -> list[Site]:
        """Other sites that chose it, by name."""
        found = [*self.primary_of, *self.backup_of, *(site for site, _rule in self.rules)]
        others = {site.id: site for site in found if site.id != site_id}
        return sorted(others.values(), key=lambda site: site.name.casefold())


def uses_of(session: Session, connection: Connection) -> Uses:
    """Everything that has chosen a connection, and the mail that waits for it."""
    here = sa.select(Site).where(Site.deleted_at.is_(None)).order_by(Site.id)
    chosen = here.where(Site.primary_connection_id == connection.id)
    backups = here.join(Backup, Backup.site_id == Site.id)
    rules = (
        sa.select(Site, Rule)
        .join(Rule, Rule.site_id == Site.id)
        .where(Rule.connection_id == connection.id, Site.deleted_at.is_(None))
        .order_by(Site.id, Rule.position)
    )
    return Uses(
        primary_of=tuple(session.scalars(chosen)),
        backup_of=tuple(session.scalars(backups.where(Backup.connection_id == connection.id))),
        rules=tuple((row[0], row[1]) for row in session.execute(rules)),
        waiting=waiting_with(session, connection),
    )


def waiting_with(session: Session, connection: Connection, *, except_site: int = 0) -> int:
    """Mails that stand with a connection and are not over."""
    mine = sa.and_(Message.connection_id == connection.id, Message.site_id != except_site)
    due = sa.select(sa.func.count()).where(
        Message.lane_id.is_not_distinct_from(connection.lane_id), Message.due_at.is_not(None), mine
    )
    held = sa.select(sa.func.count()).where(is_in(State.HELD), Message.due_at.is_(None), mine)
    return (session.scalar(due) or 0) + (session.scalar(held) or 0)


def may_be_primary(session: Session, site: Site, connection: Connection) -> bool:
    """Whether it has all that it needs to send for the site."""
    return (
        primary_connection(session, site) is not connection
        and connection.lane_id is not None
        and is_complete(connection)
    )
