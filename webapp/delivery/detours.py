"""Waiting mail goes on by a backup while its connection is closed, and back once that works again.

An attempt that fails sends its own mail on (`delivery.finish`); what waits without having been
tried is moved here, by the worker, some at a time.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.connections.models import Backup
from webapp.connections.models import Connection as MailConnection
from webapp.db import Database
from webapp.delivery.backups import Chain, Detour, LaneNow, Standing, Ways, choose, has_chain
from webapp.delivery.models import Lane, Message, Recipient, Source, State, may_move
from webapp.sites.models import Site

BATCH = 200
ROUND_SECONDS = 0.2
"""How long one round may keep the worker from its lanes."""
LOOK_ANYWAY = 30.0
"""Seconds after which mail that stands in is looked at even where no lane seems to have opened."""
IN_VAIN = 10.0
"""Seconds until much mail that could not be moved is looked at again, if nothing has changed."""
PROBES = 50
"""Mails that are looked at to find one that may be a probe."""


# ---- what is known ----


def chains_of(connection: Connection, site_ids: Iterable[int]) -> dict[int, Chain]:
    """The backups and the patience of these sites; what was removed is left out."""
    wanted = sorted(set(site_ids))
    if not wanted:
        return {}
    rows = connection.execute(
        sa.select(Backup.site_id, Backup.connection_id)
        .join(MailConnection, MailConnection.id == Backup.connection_id)
        .where(Backup.site_id.in_(wanted), MailConnection.deleted_at.is_(None))
        .order_by(Backup.site_id, Backup.position)
    )
    backups: dict[int, list[int]] = {}
    for row in rows:
        backups.setdefault(row.site_id, []).append(row.connection_id)
    waits = connection.execute(sa.select(Site.id, Site.patience_minutes).where(Site.id.in_(wanted)))
    return {
        row.id: Chain(
            backups=tuple(backups.get(row.id, ())),
            patience=timedelta(minutes=row.patience_minutes),
        )
        for row in waits
    }


_LANE_COLUMNS = (
    Lane.is_paused,
    Lane.is_blocked,
    Lane.blocked_until,
    Lane.blocked_since,
    Lane.blocked_kind,
    Lane.trips,
)


def lanes_of(connection: Connection, connection_ids: Iterable[int]) -> dict[int, LaneNow]:
    """How the lanes of these connections stand; those that were removed are missing."""
    wanted = sorted(set(connection_ids))
    if not wanted:
        return {}
    rows = connection.execute(
        sa.select(MailConnection.id, MailConnection.lane_id, *_LANE_COLUMNS)
        .outerjoin(Lane, Lane.id == MailConnection.lane_id)
        .where(MailConnection.id.in_(wanted), MailConnection.deleted_at.is_(None))
    )
    return {row.id: _lane_now(row, row.lane_id) for row in rows}


def _lane_now(row: Any, lane_id: int | None) -> LaneNow:
    if lane_id is None:
        return LaneNow()
    return LaneNow(
        lane_id=lane_id,
        is_paused=row.is_paused,
        is_blocked=row.is_blocked,
        blocked_until=row.blocked_until,
        blocked_since=row.blocked_since,
        blocked_kind=row.blocked_kind,
        trips=row.trips,
    )


def ways_for(
    connection: Connection, chains: Mapping[int, Chain], connection_ids: Iterable[int | None]
) -> Ways:
    """All that is to be known to send mail on that stands at these connections."""
    keys = {key for key in connection_ids if key is not None}
    backups = {key for chain in chains.values() for key in chain.backups}
    return Ways(chains=chains, lanes=lanes_of(connection, keys | backups))


# ---- one mail whose unclear attempt has been settled ----


def go_on(connection: Connection, message_id: int, now: datetime) -> bool:
    """Send a mail on for those that were refused while it was unclear for others, now that this is
    settled; whether there was anybody, and a connection to go on by."""
    row = connection.execute(
        sa.select(
            Message.site_id,
            Message.source,
            Message.connection_id,
            Message.planned_id,
            Message.routed_version,
            Message.detour,
        ).where(Message.id == message_id)
    ).one()
    met = Detour.read(row.detour)
    if not met.later or not has_chain(row.source, row.routed_version):
        return False
    chain = chains_of(connection, [row.site_id])[row.site_id]
    ways = ways_for(connection, {row.site_id: chain}, [row.planned_id, row.connection_id])
    candidates = chain.candidates(row.planned_id)
    target = choose(
        candidates,
        row.connection_id,
        refused=met.refused,
        passed=met.passed,
        standings=ways.standings(candidates, chain, now),
    )
    if target is None:
        return False
    left = replace(met, later=())
    connection.execute(
        sa.update(Recipient)
        .where(Recipient.message_id == message_id, Recipient.position.in_(met.later))
        .values(state=State.DEFERRED, is_due=True)
    )
    connection.execute(
        sa.update(Message)
        .where(Message.id == message_id)
        .values(
            state=State.DEFERRED,
            due_at=now,
            finished_at=None,
            failures=0,
            connection_id=target,
            lane_id=ways.lanes[target].lane_id,
            detour=left.stored(is_elsewhere=target != row.planned_id),
        )
    )
    return True


# ---- mail that waits ----


@dataclass(frozen=True, kw_only=True)
class _Move:
    """Mails that leave one connection for another."""

    source: int | None
    target: int
    lane_id: int | None
    detour: Mapping[str, Any] | None
    ids: tuple[int, ...] = ()


_COLUMNS = (
    Message.id,
    Message.site_id,
    Message.due_at,
    Message.connection_id,
    Message.lane_id,
    Message.planned_id,
    Message.detour,
)
_MAY_GO = sa.and_(
    Message.due_at.is_not(None),
    may_move(),
    Message.source.not_in((Source.TEST, Source.RESEND)),
)

_SITES = """
    WITH RECURSIVE walk (site_id) AS (
        SELECT (SELECT min(site_id) FROM message WHERE {lane} AND due_at IS NOT NULL)
        UNION ALL
        SELECT (SELECT min(site_id) FROM message
                WHERE {lane} AND due_at IS NOT NULL AND site_id > walk.site_id)
        FROM walk WHERE walk.site_id IS NOT NULL
    )
    SELECT walk.site_id FROM walk JOIN (SELECT DISTINCT site_id FROM backup) AS chained
    ON chained.site_id = walk.site_id
"""
_SITES_OF_LANE = sa.text(_SITES.format(lane="lane_id = :lane"))
_SITES_OF_NO_LANE = sa.text(_SITES.format(lane="lane_id IS NULL"))


class Detours:
    """Moves waiting mail; remembers which lanes were shut when it last looked."""

    def __init__(self, db: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._shut: frozenset[int] = frozenset()
        self._looked_at = -LOOK_ANYWAY
        self._until = 0.0
        self._place: int | None = None
        """The last mail that was looked at of all that stand in; None when nobody looks."""
        self._in_vain: dict[tuple[int | None, int], float] = {}
        """Lanes and sites with much mail none of which could be moved: not each time anew."""

    def round(self, seconds: float = ROUND_SECONDS) -> int:
        """Move what must be moved, for a moment; returns how many mails that were."""
        self._until = self._clock() + seconds
        now = self._db.now()
        with self._db.reader.connect() as connection:
            if connection.scalar(sa.select(Backup.site_id).limit(1)) is None:
                return 0
            lanes = _blocked_lanes(connection)
        shut = frozenset(lane.lane_id or 0 for lane in lanes if lane.is_shut(now))
        has_opened = bool(self._shut - shut)
        if shut != self._shut:
            self._in_vain.clear()
        self._shut = shut
        moved = sum(self._leave(lane, now) for lane in (LaneNow(), *lanes))
        if has_opened or self._clock() - self._looked_at >= LOOK_ANYWAY:
            self._looked_at = self._clock()
            self._place = 0
        if self._place is not None:
            moved += self._move([Message.detour.is_not(None)], now, by_key=True)[0]
        moved += sum(self._probe(lane, now) for lane in lanes if lane.is_looking(now))
        return moved

    # -- away from a closed lane, and back to one that is open again

    def _leave(self, lane: LaneNow, now: datetime) -> int:
        if lane.is_paused or not lane.is_shut(now):
            return 0
        sites = _SITES_OF_LANE if lane.lane_id is not None else _SITES_OF_NO_LANE
        with self._db.reader.connect() as connection:
            values = {} if lane.lane_id is None else {"lane": lane.lane_id}
            chains = chains_of(connection, connection.execute(sites, values).scalars().all())
        moved = 0
        skip = 1 if lane.is_looking(now) else 0  # that one finds out if somebody answers again
        for site_id, chain in chains.items():
            closed = lane.standing(chain.patience, now) in {Standing.CLOSED, Standing.NONE}
            waits = self._in_vain.get((lane.lane_id, site_id), 0.0) > self._clock()
            if not closed or waits:
                continue
            here = Message.lane_id == lane.lane_id if lane.lane_id else Message.lane_id.is_(None)
            done, seen = self._move([here, Message.site_id == site_id], now, skip=skip)
            moved, skip = moved + done, 0 if seen else skip
            if seen >= BATCH and not done:
                self._in_vain[lane.lane_id, site_id] = self._clock() + IN_VAIN
        return moved

    def _move(
        self,
        where: Sequence[sa.ColumnElement[bool]],
        now: datetime,
        *,
        skip: int = 0,
        by_key: bool = False,
    ) -> tuple[int, int]:
        """Look at waiting mail in its order, some at a time; how many were moved, and were seen."""
        moved = seen = 0
        query = sa.select(*_COLUMNS).where(*where, _MAY_GO).limit(BATCH)
        query = query.order_by(Message.id) if by_key else query.order_by(Message.due_at, Message.id)
        after: sa.ColumnElement[bool] = Message.id > self._place if by_key else sa.true()
        while True:
            with self._db.reader.connect() as connection:
                rows = connection.execute(query.where(after)).all()
                moves = _moves(connection, rows[skip:], now)
            seen += len(rows)
            if moves:
                with self._db.write_connection() as connection:
                    moved += sum(_write(connection, move, now) for move in moves)
            is_over = len(rows) < BATCH
            if by_key:
                self._place = None if is_over else rows[-1].id
            if is_over or self._clock() > self._until:
                return moved, seen
            skip, last = 0, rows[-1]
            after = Message.id > last.id
            if not by_key:
                later = Message.due_at > last.due_at
                after = sa.or_(later, sa.and_(Message.due_at == last.due_at, after))

    # -- finding out

    def _probe(self, lane: LaneNow, now: datetime) -> int:
        """Give one mail that stands in back to a lane whose pause is over, if none waits there: or
        nobody would find out that it works again."""
        if lane.is_paused:
            return 0
        with self._db.reader.connect() as connection:
            waits = sa.select(Message.id).where(
                Message.lane_id == lane.lane_id, Message.due_at.is_not(None)
            )
            if connection.scalar(waits.limit(1)) is not None:
                return 0
            owned = connection.scalars(
                sa.select(MailConnection.id).where(
                    MailConnection.lane_id == lane.lane_id, MailConnection.deleted_at.is_(None)
                )
            ).all()
            rows = connection.execute(
                sa.select(*_COLUMNS)
                .where(Message.detour.is_not(None), _MAY_GO, Message.planned_id.in_(owned))
                .order_by(Message.id)
                .limit(PROBES)
            ).all()
        for row in rows:
            met = Detour.read(row.detour)
            if row.planned_id not in met.refused | met.passed:
                move = _Move(
                    source=row.connection_id,
                    target=row.planned_id,
                    lane_id=lane.lane_id,
                    detour=met.stored(is_elsewhere=False),
                    ids=(row.id,),
                )
                with self._db.write_connection() as connection:
                    return _write(connection, move, now)
        return 0


def _blocked_lanes(connection: Connection) -> list[LaneNow]:
    rows = connection.execute(sa.select(Lane.id, *_LANE_COLUMNS).where(Lane.is_blocked))
    return sorted((_lane_now(row, row.id) for row in rows), key=lambda lane: lane.lane_id or 0)


def _moves(connection: Connection, rows: Sequence[Any], now: datetime) -> list[_Move]:
    """Where these mails go that do not stay where they are. Only reads."""
    chains = chains_of(connection, [row.site_id for row in rows])
    keys = [key for row in rows for key in (row.planned_id, row.connection_id)]
    ways = ways_for(connection, chains, keys)
    groups: dict[str, tuple[_Move, list[int]]] = {}
    for row in rows:
        move = _move_of(row, chains[row.site_id], ways, now)
        if move is not None:
            group = groups.setdefault(json.dumps(vars(move)), (move, []))
            group[1].append(row.id)
    return [replace(move, ids=tuple(ids)) for move, ids in groups.values()]


def _move_of(row: Any, chain: Chain, ways: Ways, now: datetime) -> _Move | None:
    candidates = chain.candidates(row.planned_id)
    met = Detour.read(row.detour)
    target = choose(
        candidates,
        row.connection_id,
        refused=met.refused,
        passed=met.passed,
        standings=ways.standings(candidates, chain, now),
    )
    if target is None or target == row.connection_id:
        return None
    here = ways.lanes.get(row.connection_id, LaneNow())
    met = replace(met, why=here.reason().value if here.is_shut(now) else met.why)
    return _Move(
        source=row.connection_id,
        target=target,
        lane_id=ways.lanes[target].lane_id,
        detour=met.stored(is_elsewhere=target != row.planned_id),
    )


def _write(connection: Connection, move: _Move, now: datetime) -> int:
    """What was put off by the old connection is due at once with the new one."""
    written = connection.execute(
        sa.update(Message)
        .where(
            Message.id.in_(move.ids),
            _MAY_GO,
            Message.connection_id.is_not_distinct_from(move.source),
        )
        .values(
            connection_id=move.target,
            lane_id=move.lane_id,
            detour=move.detour,
            due_at=sa.case((Message.due_at > now, now), else_=Message.due_at),
        )
    )
    return written.rowcount
