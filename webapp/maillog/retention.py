"""What is deleted of mail that is over, and when: by site, oldest first, in small batches.

Mail that is not over is never touched. Three things end apart from each other: the log entry with
all that belongs to it, the mail itself, and the conversation that an attempt had with the remote.
Message keys run as time does, so that old mail of a site is found from the low end of an index;
how far it was looked through is remembered, and what had to be passed over is looked at again.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from webapp.db import Clock, Database
from webapp.delivery.models import OPEN_STATES, Attempt, Content, Message, Recipient, State
from webapp.delivery.tally import add_tally
from webapp.maillog import emptying, space
from webapp.maillog.service import first_id_from
from webapp.rounds import Rounds
from webapp.sites.models import Site

log = structlog.get_logger(__name__)

INTERVAL = timedelta(seconds=10)
LOOK_AGAIN = timedelta(minutes=10)
"""How often a site is looked at where all that is due was done; its times are counted in days."""
PER_ROW = timedelta(milliseconds=1)
"""The pause, for each row looked at, before mail that was passed over is looked at again."""

SLICE = 500
"""Rows that one reading looks at."""
SLICES = 20
"""Readings for a site and a kind, before the next site has its turn."""

FIRST_BATCH = 10
MOST_IN_BATCH = 200
AIM_SECONDS = 0.01
"""How long a batch should keep the right to write; the size follows what the last one took."""
REST = 2.0
"""Times as long as a batch took, nothing is deleted after it: others write, too."""

COUNTED = 10_000
"""How far it is counted what a shorter time would delete."""
SLOWEST_END = timedelta(days=7)
"""Mail ends at most so long after it came, but for what was held, and what has longer retries."""


Drop = Callable[[Connection, Sequence[int]], object]


class Kept(StrEnum):
    """The parts of a mail that end apart, in the order in which they are deleted."""

    BODY = "body"
    DETAILS = "details"
    LOG = "log"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How long a site keeps what; None is for ever, or as long as the log."""

    site_id: int
    log_days: int | None
    body_days: int | None
    details_days: int | None
    is_deleted: bool = False

    def days(self, kept: Kept) -> int | None:
        """After how many days this part goes."""
        return {
            Kept.LOG: self.log_days,
            Kept.BODY: self.body_days,
            Kept.DETAILS: self.details_days,
        }[kept]


def policies(connection: Connection) -> list[Policy]:
    """Those of every site, deleted ones too: their mail goes whatever its age."""
    rows = connection.execute(
        sa.select(
            Site.id, Site.log_days, Site.body_days, Site.details_days, Site.deleted_at
        ).order_by(Site.id)
    )
    return [
        Policy(
            site_id=row.id,
            log_days=row.log_days,
            body_days=row.body_days,
            details_days=row.details_days,
            is_deleted=row.deleted_at is not None,
        )
        for row in rows
    ]


# ---- what may go ----


def is_over() -> sa.ColumnElement[bool]:
    """Mail to which nothing happens any more, unless a person says so."""
    return sa.and_(
        Message.state.not_in(OPEN_STATES),
        sa.or_(Message.state != State.UNCERTAIN, Message.due_at.is_(None)),
    )


def _ended_at() -> sa.ColumnElement[datetime]:
    return sa.func.coalesce(Message.finished_at, Message.accepted_at)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What one reading found, in the order of the keys."""

    keys: tuple[int, ...]
    """Mail that was over before the time asked for."""
    at: int
    """How far it was looked."""
    left: int | None
    """The lowest key of what is not over yet, or not for long enough."""
    rows: int
    is_last: bool
    """Whatever follows is too young."""


def look(connection: Connection, site_id: int, before: datetime, after: int) -> Slice:
    """The next mails of a site behind a key that were accepted, and over, before a moment."""
    rows = connection.execute(
        sa.select(
            Message.id,
            Message.accepted_at,
            _ended_at().label("ended_at"),
            is_over().label("over"),
        )
        .where(Message.site_id == site_id, Message.id > after)
        .order_by(Message.id)
        .limit(SLICE)
    ).all()
    keys: list[int] = []
    at, left, seen = after, None, 0
    for row in rows:
        if row.accepted_at >= before:
            break
        at, seen = row.id, seen + 1
        if row.over and row.ended_at < before:
            keys.append(row.id)
        elif left is None:
            left = row.id
    return Slice(
        keys=tuple(keys), at=at, left=left, rows=seen, is_last=seen < len(rows) or len(rows) < SLICE
    )


def with_content(connection: Connection, keys: Sequence[int]) -> list[int]:
    """Those of these mails that are kept themselves."""
    query = sa.select(Content.message_id).where(Content.message_id.in_(keys))
    return list(connection.scalars(query.order_by(Content.message_id)))


_HAS_LOG = Attempt.details["log"].as_string().is_not(None)


def with_details(connection: Connection, keys: Sequence[int]) -> list[int]:
    """Those of these mails of which a conversation is kept."""
    query = sa.select(Attempt.message_id).where(Attempt.message_id.in_(keys), _HAS_LOG).distinct()
    return list(connection.scalars(query.order_by(Attempt.message_id)))


FIND: dict[Kept, Callable[[Connection, Sequence[int]], list[int]]] = {
    Kept.BODY: with_content,
    Kept.DETAILS: with_details,
    Kept.LOG: lambda _connection, keys: list(keys),
}


def more_to_go(session: Session, was: Policy, would: Policy, now: datetime) -> dict[Kept, int]:
    """How many mails lose what by a change of policy, at once; `COUNTED + 1` means more."""
    return {
        kept: _gone_by(session, was, would, kept, now)
        for kept in Kept
        if _is_shorter(would.days(kept), was.days(kept))
    }


def _is_shorter(days: int | None, than: int | None) -> bool:
    return days is not None and (than is None or days < than)


def _gone_by(session: Session, was: Policy, would: Policy, kept: Kept, now: datetime) -> int:
    days, before = would.days(kept), was.days(kept)
    assert days is not None
    until = now - timedelta(days=days)
    query = (
        sa.select(sa.literal(1).label("one"))
        .select_from(Message)
        .where(
            Message.site_id == would.site_id,
            Message.id < first_id_from(session, until),
            is_over(),
            _ended_at() < until,
        )
    )
    if before is not None:
        since = now - timedelta(days=before)
        query = query.where(
            Message.id >= first_id_from(session, since - SLOWEST_END), _ended_at() >= since
        )
    if kept is Kept.BODY:
        query = query.where(sa.exists().where(Content.message_id == Message.id))
    if kept is Kept.DETAILS:
        query = query.where(sa.exists().where(Attempt.message_id == Message.id, _HAS_LOG))
    counted = query.limit(COUNTED + 1).subquery()
    return session.scalar(sa.select(sa.func.count()).select_from(counted)) or 0


# ---- how it goes ----


def drop_bodies(connection: Connection, keys: Sequence[int]) -> int:
    """Delete the mails themselves; the log entries stay."""
    over = sa.select(Message.id).where(Message.id.in_(keys), is_over())
    return connection.execute(sa.delete(Content).where(Content.message_id.in_(over))).rowcount


def strip_details(connection: Connection, keys: Sequence[int]) -> int:
    """Delete the conversations of these mails' attempts, and leave what came of them."""
    over = sa.select(Message.id).where(Message.id.in_(keys), is_over())
    details: sa.ColumnElement[Any]
    if connection.dialect.name == "sqlite":
        details = sa.func.json_remove(Attempt.details, "$.log", type_=sa.Text)
    else:
        details = sa.text("CAST(CAST(details AS jsonb) - 'log' AS json)")  # type: ignore[assignment]
    return connection.execute(
        sa.update(Attempt)
        .where(Attempt.message_id.in_(over), _HAS_LOG)
        .values(details=details)
        .execution_options(synchronize_session=False)
    ).rowcount


def drop_mails(connection: Connection, keys: Sequence[int]) -> list[int]:
    """Delete mails with all that belongs to them, and from the search; returns which were over."""
    gone = list(
        connection.execute(
            sa.delete(Message).where(Message.id.in_(keys), is_over()).returning(Message.id)
        ).scalars()
    )
    if gone and connection.dialect.name == "sqlite":  # elsewhere they go with their message
        connection.execute(_UNSEARCH, {"keys": gone})
    return gone


_UNSEARCH = sa.text("DELETE FROM message_search WHERE rowid IN :keys").bindparams(
    sa.bindparam("keys", expanding=True)
)


def cancel(connection: Connection, keys: Sequence[int], now: datetime) -> int:
    """End what waits of these mails of a deleted site; not what is being sent at this moment."""
    rows = connection.execute(
        sa.update(Message)
        .where(Message.id.in_(keys), sa.not_(is_over()), Message.state != State.SENDING)
        .values(state=State.CANCELLED, due_at=None, finished_at=now)
        .returning(Message.id, Message.site_id, Message.connection_id)
    ).all()
    if not rows:
        return 0
    connection.execute(
        sa.update(Recipient)
        .where(Recipient.message_id.in_([row.id for row in rows]), Recipient.is_due.is_(sa.true()))
        .values(state=State.CANCELLED, is_due=False)
    )
    ended = Counter((row.site_id, row.connection_id, State.CANCELLED.value) for row in rows)
    add_tally(connection, ended, now)
    return len(rows)


def next_size(size: int, seconds: float) -> int:
    """How many go into the next batch, after one of `size` that took so long."""
    if seconds <= 0:
        return min(MOST_IN_BATCH, size * 2)
    return max(1, min(MOST_IN_BATCH, size * 2, int(size * AIM_SECONDS / seconds)))


# ---- when ----


@dataclass(kw_only=True)
class Walk:
    """How far the mail of a site was looked through, for one part of it."""

    at: int = 0
    left: int | None = None
    rows: int = 0
    """Looked at since it began at `left`."""
    again_at: datetime | None = None

    def note(self, found: Slice) -> None:
        """It went on so far."""
        self.at = found.at
        self.rows += found.rows
        if self.left is None:
            self.left = found.left

    def end(self, now: datetime, pause: timedelta) -> None:
        """Everything old was looked at: rest, then go on, or back to what was passed over."""
        self.again_at = now + max(pause, self.rows * PER_ROW)
        if self.left is not None:
            self.at = self.left - 1
        self.left, self.rows = None, 0

    def rests(self, now: datetime) -> bool:
        """Whether it is too early to look again."""
        return self.again_at is not None and now < self.again_at


@dataclass(kw_only=True)
class Progress:
    """What the worker remembers of a site."""

    policy: Policy
    walks: dict[Kept, Walk] = field(default_factory=lambda: {kept: Walk() for kept in Kept})


class Retention(Rounds):
    """Deletes what its time has come for, and counts what is kept. For the owner of the lanes."""

    name = "retention"

    def __init__(
        self, db: Database, *, clock: Clock | None = None, interval: timedelta = INTERVAL
    ) -> None:
        super().__init__(interval)
        self._db = db
        self._clock = clock or db.now
        self._sites: dict[int, Progress] = {}
        self._size = FIRST_BATCH
        self._highest = 0
        """Key of a mail, as the last batch left it."""
        self._drop: dict[Kept, Drop] = {
            Kept.BODY: drop_bodies,
            Kept.DETAILS: strip_details,
            Kept.LOG: self._drop_mails,
        }
        self._scale = space.Scale(db, self._clock, self._pause)

    def work(self) -> None:
        """A bounded part of what is due, of every site; then what is kept of some is counted."""
        with self._db.reader.connect() as connection:
            found = policies(connection)
        for policy in found:
            if self._stop.is_set():
                return
            if policy.is_deleted:
                self._remove(policy.site_id)
            else:
                self._keep(policy)
        self._sites = {p.site_id: self._sites[p.site_id] for p in found if p.site_id in self._sites}
        self._scale.work([policy.site_id for policy in found if not policy.is_deleted])

    # -- a site that stays

    def _keep(self, policy: Policy) -> None:
        known = self._sites.setdefault(policy.site_id, Progress(policy=policy))
        if known.policy != policy:
            known.policy = policy
            for walk in known.walks.values():
                walk.again_at = None  # a shorter time counts at once
        for kept in Kept:
            days = policy.days(kept)
            if days is not None:
                self._go_on(policy.site_id, kept, days, known.walks[kept])

    def _go_on(self, site_id: int, kept: Kept, days: int, walk: Walk) -> None:
        for _ in range(SLICES):
            now = self._clock()
            if walk.rests(now) or self._stop.is_set():
                return
            with self._db.reader.connect() as connection:
                found = look(connection, site_id, now - timedelta(days=days), walk.at)
                keys = FIND[kept](connection, found.keys) if found.keys else []
            if not self._in_batches(keys, self._drop[kept]):
                return
            walk.note(found)
            if kept is Kept.LOG and keys:
                self._step_back()
            if found.is_last:
                walk.end(now, INTERVAL if days == 0 else LOOK_AGAIN)
                return

    def _drop_mails(self, connection: Connection, keys: Sequence[int]) -> None:
        drop_mails(connection, keys)
        # SQLite gives the highest keys again once they are free: nobody may have looked past them.
        self._highest = connection.scalar(sa.select(sa.func.max(Message.id))) or 0

    def _step_back(self) -> None:
        for known in self._sites.values():
            for walk in known.walks.values():
                walk.at = min(walk.at, self._highest)

    # -- a site that goes

    def _remove(self, site_id: int) -> None:
        """Delete a part of the mail of a deleted site; without mail, what else there was of it."""
        after = 0
        for _ in range(SLICES):
            with self._db.reader.connect() as connection:
                keys = list(
                    connection.scalars(
                        sa.select(Message.id)
                        .where(Message.site_id == site_id, Message.id > after)
                        .order_by(Message.id)
                        .limit(SLICE)
                    )
                )
            if not keys or not self._in_batches(keys, self._end_and_drop):
                break
            after = keys[-1]
            self._step_back()
        if after == 0 and not self._stop.is_set():
            with self._db.reader.connect() as connection:
                left = emptying.is_left(connection, site_id)
            if left:
                with self._db.write_connection() as connection:
                    emptying.empty(connection, site_id)
                log.info("a site is gone", site=site_id)

    def _end_and_drop(self, connection: Connection, keys: Sequence[int]) -> None:
        cancel(connection, keys, self._clock())
        self._drop_mails(connection, keys)

    # -- both

    def _in_batches(self, keys: Sequence[int], drop: Drop) -> bool:
        """Each batch is a short transaction of its own; False when told to stop in between."""
        done = 0
        while done < len(keys):
            batch = keys[done : done + self._size]
            with self._db.write_connection() as connection:
                began = time.perf_counter()  # waiting for the right to write does not count
                drop(connection, batch)
            took = time.perf_counter() - began
            done += len(batch)
            self._size = next_size(len(batch), took) if len(batch) == self._size else self._size
            if self._pause(took * REST):
                return False
        return True

    def _pause(self, seconds: float) -> bool:
        """Let others have their turn; True when told to stop."""
        return self._stop.wait(seconds)
