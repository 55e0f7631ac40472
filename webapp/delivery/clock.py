"""A clock that was ahead and is put right: what waits for a time must not wait for it twice.

Times are stored as the clock of the ledger told them. When it is put back by hours, a mail that was
due in a minute would be due in hours, and a lane that paused for seconds would stand as long.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from webapp.db import Database
from webapp.delivery.models import Lane, Message, Setting, State, is_in

log = structlog.get_logger(__name__)

SEEN = "clock"
KEEP_SECONDS = 10.0
SETBACK = timedelta(seconds=5)
"""What a clock may go back without anybody minding: so long, at most, something waits for it."""
LATECOMERS = 60.0
"""Seconds after which every process tells the time anew; see `Database.now`."""


class ClockWatch:
    """The clock of a worker, which sees when it was put back. How late it was is also kept in the
    database, so that the next worker sees it, too."""

    def __init__(self, db: Database, ticks: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._ticks = ticks
        self._latest: datetime | None = None
        self._keep_at = 0.0
        self._latecomers_until = 0.0

    def now(self) -> datetime:
        """The ledger's time."""
        now = self._db.now()
        self._latest = max(self._latest or now, now)
        return now

    def round(self) -> None:
        """Pull back what waits, if the clock was put back; the database is asked now and then."""
        now = self.now()
        latest = self._latest or now
        if latest - now <= SETBACK and self._ticks() < self._keep_at:
            return
        with self._db.write_connection() as connection:
            back = max(_keep(connection, now), latest) - now
            if back > SETBACK:
                pull_back(connection, back, now)
            if self._ticks() < self._latecomers_until:
                fetch_latecomers(connection, now)
        if back > SETBACK:
            self._latecomers_until = self._ticks() + LATECOMERS
            log.warning("the clock was put back", seconds=round(back.total_seconds()))
        self._latest = now
        self._keep_at = self._ticks() + KEEP_SECONDS


def _keep(connection: Connection, now: datetime) -> datetime:
    """Keep that it is now; returns what was kept before."""
    kept = connection.scalar(sa.select(Setting.value).where(Setting.name == SEEN))
    value = {"at": now.isoformat()}
    if kept is None:
        connection.execute(sa.insert(Setting).values(name=SEEN, value=value))
        return now
    connection.execute(sa.update(Setting).where(Setting.name == SEEN).values(value=value))
    return datetime.fromisoformat(kept["at"])


def pull_back(connection: Connection, back: timedelta, now: datetime) -> None:
    """Wait as long for everything as if the clock had not been ahead.

    What was set before it went ahead comes sooner than it was to come: it was due meanwhile, or
    would have been.
    """
    columns = (Lane.id, Lane.blocked_until, Lane.blocked_since)
    ahead = sa.or_(Lane.blocked_until > now, Lane.blocked_since > now)
    for lane in connection.execute(sa.select(*columns).where(ahead).order_by(Lane.id)).all():
        connection.execute(
            sa.update(Lane)
            .where(Lane.id == lane.id, Lane.blocked_until.is_not_distinct_from(lane.blocked_until))
            .values(
                blocked_until=_pulled(lane.blocked_until, back, now),
                blocked_since=_pulled(lane.blocked_since, back, now),
            )
        )
    due = sa.select(Message.id, Message.due_at, Message.started_at).where(
        Message.due_at.is_not(None), sa.or_(Message.due_at > now, Message.started_at > now)
    )
    waiting = [
        {
            "key": row.id,
            "was_due": row.due_at,
            "to_due": _pulled(row.due_at, back, now),
            "to_started": _pulled(row.started_at, back, now),
        }
        for row in connection.execute(due.order_by(Message.id))
    ]
    if waiting:
        connection.execute(_PULL, waiting)


def _pulled(moment: datetime | None, back: timedelta, now: datetime) -> datetime | None:
    return moment if moment is None or moment <= now else moment - back


_PULL = (
    sa.update(Message)
    .where(
        Message.id == sa.bindparam("key"),
        Message.due_at == sa.bindparam("was_due", type_=Message.due_at.type),  # or it has moved on
    )
    .values(
        due_at=sa.bindparam("to_due", type_=Message.due_at.type),
        started_at=sa.bindparam("to_started", type_=Message.due_at.type),
    )
)


def fetch_latecomers(connection: Connection, now: datetime) -> None:
    """Mail that was stored meanwhile by a process that still told the old time: nobody tried it
    yet, so it is due at once."""
    connection.execute(
        sa.update(Message)
        .where(is_in(State.QUEUED), Message.attempts == 0, Message.due_at > now)
        .values(due_at=now)
    )
