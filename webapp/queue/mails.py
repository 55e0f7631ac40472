"""Mail that waits, is held or has failed, a page at a time; and what is done to many at once.

A selection is worked off a hundred mails a commit, and no longer than a page may take; whoever
asked goes on from there.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.db import Database
from webapp.delivery import actions
from webapp.delivery.models import Message, State, is_in
from webapp.maillog import service
from webapp.maillog.service import LogRow
from webapp.queue.lanes import Scope

PAGE = 50
CAP = 10_000
BATCH = 100
LAST = 2**62
SECONDS = 2.0
"""How long one request works off a selection."""


class Shown(StrEnum):
    """The views of the list, by the word that stands in the address."""

    WAITING = "waiting"
    RETRYING = "retrying"
    HELD = "held"
    FAILED = "failed"


STATES = {
    Shown.WAITING: State.QUEUED,
    Shown.RETRYING: State.DEFERRED,
    Shown.HELD: State.HELD,
    Shown.FAILED: State.FAILED,
}


class Do(StrEnum):
    """What can be done to a mail."""

    RELEASE = "release"
    RETRY = "retry"
    CANCEL = "cancel"


OFFERED = {
    Shown.WAITING: (Do.CANCEL,),
    Shown.RETRYING: (Do.RETRY, Do.CANCEL),
    Shown.HELD: (Do.RELEASE, Do.CANCEL),
    Shown.FAILED: (Do.RETRY,),
}

_ACTIONS: dict[Do, actions.Action] = {
    Do.RELEASE: actions.release,
    Do.RETRY: actions.retry,
    Do.CANCEL: actions.cancel,
}


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which mail is meant."""

    scope: Scope
    """Already narrowed to one site, where only that is asked for."""
    shown: Shown
    lane_id: int | None = None

    def where(self) -> sa.ColumnElement[bool]:
        """As a condition."""
        lane = sa.true() if self.lane_id is None else Message.lane_id == self.lane_id
        return sa.and_(is_in(STATES[self.shown]), self.scope.mail(), lane)


@dataclass(frozen=True, kw_only=True)
class Mails:
    """A page of mails, newest first, and the keys by which the ones beside it are found."""

    rows: tuple[LogRow, ...]
    newer: int | None
    older: int | None


def page(
    session: Session, wanted: Filter, now: datetime, *, before: int | None, after: int | None
) -> Mails:
    """The mails before a key, or after one; the newest where none is given."""
    query = sa.select(Message.id).where(wanted.where()).limit(PAGE + 1)
    if after is not None:
        found = session.scalars(query.where(Message.id > after).order_by(Message.id)).all()
        if len(found) > PAGE:
            above = sorted(found[:PAGE], reverse=True)
            return _mails(session, above, now, newer=above[0], older=above[-1])
        before = None  # fewer than a page are newer: it is the first
    newest = query.order_by(Message.id.desc())
    if before is not None:
        newest = newest.where(Message.id < before)
    found = session.scalars(newest).all()
    keys = found[:PAGE]
    newer = None if before is None else (keys[0] if keys else before - 1)
    return _mails(session, keys, now, newer=newer, older=keys[-1] if len(found) > PAGE else None)


def _mails(
    session: Session, keys: Sequence[int], now: datetime, *, newer: int | None, older: int | None
) -> Mails:
    return Mails(rows=tuple(service.rows(session, keys, now)), newer=newer, older=older)


def count(session: Session, wanted: Filter, *, after: int = 0, upto: int = LAST) -> int:
    """How many there are, of mails after one and up to another; `CAP + 1` at most."""
    some = sa.select(Message.id).where(wanted.where(), Message.id > after, Message.id <= upto)
    limited = some.limit(CAP + 1).subquery()
    return session.scalar(sa.select(sa.func.count()).select_from(limited)) or 0


def newest(session: Session) -> int:
    """The key of the newest mail: a selection of all does not grow while it is worked off."""
    return session.scalar(sa.select(sa.func.max(Message.id))) or 0


def named(session: Session, scope: Scope, queue_ids: Sequence[str]) -> list[int]:
    """The keys of these mails, as far as they are in scope."""
    query = sa.select(Message.id).where(Message.queue_id.in_(queue_ids), scope.mail())
    return list(session.scalars(query.order_by(Message.id)))


# ---- many at once ----


@dataclass(frozen=True, kw_only=True)
class Done:
    """How far a selection was worked off."""

    done: int
    seen: int
    after: int
    """The key of the last mail that was looked at."""
    is_over: bool


def do_named(db: Database, what: Do, ids: Sequence[int]) -> Done:
    """Do it to these mails; what is in no state for it any more is left as it is."""
    done = 0
    for start in range(0, len(ids), BATCH):
        with db.write_connection() as connection:
            some = ids[start : start + BATCH]
            done += actions.on_each(connection, _ACTIONS[what], some, db.now())
    return Done(done=done, seen=len(ids), after=max(ids, default=0), is_over=True)


def do_all(
    db: Database,
    what: Do,
    wanted: Filter,
    *,
    after: int,
    upto: int,
    clock: Callable[[], float] = time.monotonic,
) -> Done:
    """Do it to all that match, from the mail after `after` on, for a moment."""
    until = clock() + SECONDS
    done = seen = 0
    while True:
        with db.read() as session:
            ids = session.scalars(
                sa.select(Message.id)
                .where(wanted.where(), Message.id > after, Message.id <= upto)
                .order_by(Message.id)
                .limit(BATCH)
            ).all()
        if ids:
            done += do_named(db, what, ids).done
            seen, after = seen + len(ids), ids[-1]
        is_over = len(ids) < BATCH
        if is_over or clock() > until:
            return Done(done=done, seen=seen, after=after, is_over=is_over)
