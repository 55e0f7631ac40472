"""Lanes as the page of the queue shows them, and what a person may do to one.

Whoever may manage the queue of some sites sees the lanes of these sites, and of what waits there
only their mail. A lane belongs to all sites that send by it: only whoever may manage every one of
them stops it or starts it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection as DbConnection
from sqlalchemy.orm import Session

from webapp.connections.models import Backup, Connection
from webapp.delivery.depth import MOST, Depth, depths
from webapp.delivery.lanes import Limits
from webapp.delivery.models import Lane, Message, State, is_in
from webapp.delivery.replan import unblock
from webapp.mailers import registry
from webapp.microsoft.models import Grant, Mailbox
from webapp.routing.models import Rule
from webapp.sites.models import Site

AT_ONCE = 500
"""Mails that one commit makes due."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Whose queue is looked at: the sites by key, or all of them."""

    site_ids: tuple[int, ...] | None

    def covers(self, sites: Iterable[int]) -> bool:
        """Whether it holds every one of these."""
        return self.site_ids is None or set(sites) <= set(self.site_ids)

    def mail(self) -> sa.ColumnElement[bool]:
        """The mail that it is about."""
        return sa.true() if self.site_ids is None else Message.site_id.in_(self.site_ids)


@dataclass(frozen=True, kw_only=True)
class LaneRow:
    """One lane."""

    id: int
    name: str
    """A connection's nickname, else where it leads: a mailbox, or a host."""
    via: str
    """The mailer, or mailers; and where it leads, if the name does not tell."""
    sites: tuple[str, ...]
    """Names of those in scope that send by it."""
    depth: Depth
    waiting: int
    """Mails in scope, at most `MOST`."""
    is_more: bool
    in_flight: int
    oldest_at: datetime | None
    limits: Limits
    may_manage: bool
    """Whether every site that sends by it is in scope."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing stops it."""
        stopped = self.depth.is_paused or self.depth.blocked_why
        return not (stopped or self.waiting or self.in_flight)


@dataclass
class _Use:
    """Who sends by a lane."""

    connections: list[Any] = field(default_factory=list)
    sites: set[int] = field(default_factory=set)
    is_system: bool = False


def lane_rows(session: Session, scope: Scope, now: datetime) -> list[LaneRow]:
    """The lanes of a scope: those that stand first, then the deepest, then the rest by name."""
    uses = _uses(session)
    known = {
        lane_id
        for lane_id, use in uses.items()
        if scope.site_ids is None or use.sites & set(scope.site_ids)
    }
    flying = _in_flight(session, scope)
    wanted = sorted(known | _with_waiting(session, scope) | flying.keys())
    found = depths(session, wanted, now)
    own = {} if scope.site_ids is None else _own(session, scope, found)
    oldest = _oldest(session, scope, [key for key, depth in found.items() if depth.waiting])
    names = _site_names(session, scope)
    lanes = session.execute(sa.select(Lane.__table__).where(Lane.id.in_(wanted))).all()
    rows = [
        _row(lane, uses.get(lane.id, _Use()), found[lane.id], own, flying, oldest, names, scope)
        for lane in lanes
    ]
    return sorted(rows, key=_first)


def _first(row: LaneRow) -> tuple[bool, int, str]:
    stands = row.depth.is_paused or bool(row.depth.blocked_why)
    return not stands, -row.waiting, row.name.casefold()


def _row(
    lane: Any,
    use: _Use,
    depth: Depth,
    own: Mapping[int, int],
    flying: Mapping[int, int],
    oldest: Mapping[int, datetime],
    names: Mapping[int, str],
    scope: Scope,
) -> LaneRow:
    counted = own.get(lane.id, 0) if own or scope.site_ids is not None else depth.waiting
    shown = [one for one in use.connections if one.site_id is None or scope.covers([one.site_id])]
    kinds = registry()
    mailers = {one.mailer: str(kinds[one.mailer].label) for one in shown if one.mailer in kinds}
    place = _first_of(one.address or _host(one) or one.from_email for one in shown)
    nickname = _first_of(one.nickname for one in shown)
    via = [*sorted(mailers.values()), *([place] if nickname and place else [])]
    return LaneRow(
        id=lane.id,
        name=nickname or place,
        via=", ".join(via),
        sites=tuple(sorted(names[key] for key in use.sites if key in names)),
        depth=depth,
        waiting=min(counted, MOST),
        is_more=depth.is_more if scope.site_ids is None else counted > MOST,
        in_flight=flying.get(lane.id, 0),
        oldest_at=oldest.get(lane.id),
        limits=Limits(
            concurrency=lane.concurrency,
            per_minute=lane.per_minute,
            per_hour=lane.per_hour,
            per_day=lane.per_day,
            recipients_per_day=lane.recipients_per_day,
        ),
        may_manage=scope.site_ids is None or (scope.covers(use.sites) and not use.is_system),
    )


def _first_of(words: Iterable[str | None]) -> str:
    return next((word for word in words if word), "")


def _host(connection: Any) -> str:
    return str((connection.settings or {}).get(connection.mailer, {}).get("host") or "")


def _uses(session: Session, lane_ids: Collection[int] | None = None) -> dict[int, _Use]:
    """Who sends by these lanes (None: by any), as configured."""
    query = (
        sa.select(
            Connection.id,
            Connection.lane_id,
            Connection.site_id,
            Connection.nickname,
            Connection.mailer,
            Connection.settings,
            Connection.from_email,
            Connection.is_system,
            Mailbox.address,
        )
        .outerjoin(Grant, Grant.id == Connection.grant_id)
        .outerjoin(Mailbox, Mailbox.id == Grant.mailbox_id)
        .where(Connection.lane_id.is_not(None), Connection.deleted_at.is_(None))
        .order_by(Connection.id)
    )
    if lane_ids is not None:
        query = query.where(Connection.lane_id.in_(lane_ids))
    uses: dict[int, _Use] = defaultdict(_Use)
    by_connection: dict[int, _Use] = {}
    for row in session.execute(query):
        use = by_connection[row.id] = uses[row.lane_id]
        use.connections.append(row)
        use.is_system = use.is_system or row.is_system
        if row.site_id is not None:
            use.sites.add(row.site_id)
    for connection_id, site_id in _choosers(session, by_connection):
        by_connection[connection_id].sites.add(site_id)
    return {key: use for key, use in uses.items() if use.sites or not use.is_system}


def _choosers(session: Session, known: Collection[int]) -> list[tuple[int, int]]:
    """Sites by what they have chosen: a primary connection, backups, rules."""
    primary = sa.select(Site.primary_connection_id, Site.id).where(
        Site.primary_connection_id.is_not(None)
    )
    backups = sa.select(Backup.connection_id, Backup.site_id)
    rules = sa.select(Rule.connection_id, Rule.site_id).where(Rule.connection_id.is_not(None))
    chosen: list[tuple[Any, int]] = []
    for query in (primary, backups, rules):
        chosen += [(row[0], row[1]) for row in session.execute(query) if row[0] in known]
    return chosen


def _site_names(session: Session, scope: Scope) -> dict[int, str]:
    query = sa.select(Site.id, Site.name).where(Site.deleted_at.is_(None))
    if scope.site_ids is not None:
        query = query.where(Site.id.in_(scope.site_ids))
    return {row.id: row.name for row in session.execute(query)}


def _waits(lane: Any, scope: Scope) -> sa.ColumnElement[bool]:
    return sa.and_(Message.lane_id == lane, Message.due_at.is_not(None), scope.mail())


def _with_waiting(session: Session, scope: Scope) -> set[int]:
    waits = sa.select(Message.id).where(_waits(Lane.id, scope)).correlate(Lane)
    return set(session.scalars(sa.select(Lane.id).where(sa.exists(waits))))


def _in_flight(session: Session, scope: Scope) -> dict[int, int]:
    counted = session.execute(
        sa.select(Message.lane_id, sa.func.count())
        .where(is_in(State.SENDING), scope.mail())
        .group_by(Message.lane_id)
    )
    return {row[0]: row[1] for row in counted if row[0] is not None}


def _own(session: Session, scope: Scope, found: Mapping[int, Depth]) -> dict[int, int]:
    """How much of what waits on each lane is in scope."""
    counted = {}
    for key, depth in found.items():
        if depth.waiting:
            some = sa.select(Message.id).where(_waits(key, scope)).limit(MOST + 1).subquery()
            counted[key] = session.scalar(sa.select(sa.func.count()).select_from(some)) or 0
    return counted


def _oldest(session: Session, scope: Scope, lane_ids: Sequence[int]) -> dict[int, datetime]:
    """Since when the oldest mail of each lane is there, as far as `MOST` of them tell."""
    keys = {}
    for key in lane_ids:
        some = sa.select(Message.id).where(_waits(key, scope)).limit(MOST).subquery()
        keys[key] = session.scalar(sa.select(sa.func.min(some.c.id)))
    wanted = sa.select(Message.id, Message.accepted_at).where(
        Message.id.in_([key for key in keys.values() if key is not None])
    )
    times = {row.id: row.accepted_at for row in session.execute(wanted)}
    return {key: times[found] for key, found in keys.items() if found in times}


# ---- what a person does ----


def may_manage(session: Session, lane_id: int, scope: Scope) -> bool | None:
    """Whether a lane may be stopped and started by whoever manages these sites; None where it is
    none of theirs."""
    use = _uses(session, [lane_id]).get(lane_id, _Use())
    if scope.site_ids is None:
        return True if session.get(Lane, lane_id) is not None else None
    waiting = set(
        session.scalars(sa.select(Message.site_id).where(_waits(lane_id, ALL)).distinct())
    )
    sites = use.sites | waiting
    if not sites & set(scope.site_ids):
        return None
    return scope.covers(sites) and not use.is_system


ALL = Scope(site_ids=None)


def set_paused(session: Session, lane_id: int, *, is_paused: bool) -> bool:
    """Let nothing leave by a lane, or again; whether that changed anything."""
    changed = session.execute(
        sa.update(Lane)
        .where(Lane.id == lane_id, Lane.is_paused.is_(not is_paused))
        .values(is_paused=is_paused)
    )
    return bool(changed.rowcount)  # type: ignore[attr-defined]


def try_now(session: Session, lane_id: int, now: datetime) -> None:
    """Let a stopped lane try again: one mail where nobody could be reached, else all there is."""
    lane = session.scalars(
        sa.select(Lane).where(Lane.id == lane_id).with_for_update(key_share=True)
    ).one()
    if lane.is_blocked and lane.trips:
        lane.blocked_until = now
    elif lane.is_blocked:
        unblock(lane)


def hurry(connection: DbConnection, lane_id: int, now: datetime, most: int = AT_ONCE) -> int:
    """Make due what is put off on a lane, the first first; returns how many mails that were."""
    later = (
        sa.select(Message.id)
        .where(Message.lane_id == lane_id, Message.due_at > now, Message.state == State.DEFERRED)
        .order_by(Message.due_at)
        .limit(most)
    )
    ids = connection.scalars(later).all()
    done = connection.execute(
        sa.update(Message)
        .where(Message.id.in_(ids), Message.due_at > now, Message.state == State.DEFERRED)
        .values(due_at=now)
    )
    return done.rowcount
