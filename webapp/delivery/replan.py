"""What a saved connection or site does to mail that already waits.

The edges call these right after the service, in the same unit of work, and say how many mails
they touched.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter

import sqlalchemy as sa
from sqlalchemy.engine import Connection as DbConnection
from sqlalchemy.orm import Session

from webapp.connections.models import Connection
from webapp.db import Database, utcnow
from webapp.delivery.lanes import Limits
from webapp.delivery.models import Lane, Message, Recipient, State, is_in, may_move
from webapp.delivery.modes import apply_mode, redirect
from webapp.delivery.orphans import adopt
from webapp.delivery.planning import (
    MOVING,
    Ground,
    decide,
    ground_of,
    is_stale,
    names_of,
    waiting,
    write,
)
from webapp.routing.models import Rule
from webapp.sites.models import Mode, Site

AT_ONCE = 500
"""Mails that a page plans anew while somebody waits for it."""
AT_ONCE_READ = 50
"""The same, where the mails themselves have to be read for it."""
BATCH = 200
"""Mails that the worker plans anew by one commit."""
CATCH_UP_SECONDS = 0.3
"""How long delivery waits for that, at most."""
LATECOMERS = timedelta(minutes=1)
"""Mail that was being accepted while the rules changed is there after this."""


@dataclass(frozen=True, kw_only=True)
class Replanned:
    """What became of waiting mail that was planned anew."""

    moved: int = 0
    """Mails that now leave by another connection."""
    left: int = 0
    """Mails that the worker will plan anew in a moment."""
    by: tuple[tuple[str, int], ...] = ()
    """By which connections the moved ones leave, by name, and how many."""


def connection_saved(
    session: Session,
    connection: Connection,
    *,
    lane_key: str,
    limits: Limits | None,
    now: datetime,
    unblocks: bool = True,
) -> int:
    """Give a saved connection its lane, unblock it, and move the mail that waits for it.

    `limits` None leaves the lane's limits as they are; without `unblocks` what stops it stays.
    Returns how many waiting mails it touched.
    """
    lane = session.scalar(
        sa.select(Lane).where(Lane.key == lane_key).with_for_update(key_share=True)
    )
    if lane is None:
        lane = Lane(key=lane_key, windows={})
        session.add(lane)
    if limits is not None:
        lane.concurrency = limits.concurrency
        lane.per_minute = limits.per_minute
        lane.per_hour = limits.per_hour
        lane.per_day = limits.per_day
        lane.recipients_per_day = limits.recipients_per_day
    if unblocks:
        unblock(lane)
    session.flush()
    before = connection.lane_id
    connection.lane_id = lane.id
    session.flush()
    if before != lane.id:
        session.execute(
            sa.update(Message)
            .where(
                Message.lane_id == before if before is not None else Message.lane_id.is_(None),
                Message.connection_id == connection.id,
                Message.due_at.is_not(None),
            )
            .values(lane_id=lane.id)
        )
    if before is None:
        _rules_changed(session, connection, now)
    _due_now(session, lane.id, connection.id, now)
    return waiting_on(session, connection.id, lane.id)


def connection_unlinked(session: Session, connection: Connection) -> int:
    """Take a connection off its lane; its mail waits until it has one again. Returns how many."""
    before = connection.lane_id
    connection.lane_id = None
    session.flush()
    if before is None:
        return 0
    _rules_changed(session, connection, utcnow())
    touched = session.execute(
        sa.update(Message)
        .where(
            Message.lane_id == before,
            Message.connection_id == connection.id,
            Message.due_at.is_not(None),
        )
        .values(lane_id=None)
        .execution_options(synchronize_session=False)
    )
    return int(touched.rowcount)  # type: ignore[attr-defined]


def _rules_changed(session: Session, connection: Connection, now: datetime) -> None:
    """Rules that name it begin to count, or cease to; the worker plans waiting mail anew."""
    named = sa.select(Rule.site_id).where(Rule.connection_id == connection.id)
    _raise_version(session, Site.id.in_(named), now)


def unblock(lane: Lane) -> None:
    """Let a lane run again: what stopped it was put right, or a person says so."""
    lane.is_blocked = False
    lane.blocked_until = None
    lane.blocked_since = None
    lane.blocked_kind = ""
    lane.blocked_words = ""
    lane.throttled = 0
    lane.trips = 0


def _due_now(session: Session, lane_id: int, connection_id: int, now: datetime) -> None:
    """What was put off because of the old settings is tried at once with the new ones."""
    session.execute(
        sa.update(Message)
        .where(
            Message.lane_id == lane_id,
            Message.connection_id == connection_id,
            Message.due_at > now,
            Message.state == State.DEFERRED,
        )
        .values(due_at=now)
    )


def waiting_on(session: Session, connection_id: int, lane_id: int) -> int:
    """How many mails wait for a connection."""
    return (
        session.scalar(
            sa.select(sa.func.count()).where(
                Message.lane_id == lane_id,
                Message.connection_id == connection_id,
                Message.due_at.is_not(None),
            )
        )
        or 0
    )


# ---- rules, primary connection, backups ----


def routing_changed(session: Session, site: Site, now: datetime) -> Replanned:
    """After rules, the primary connection or backups were saved: plan waiting mail anew.

    Some of it at once, the rest by the worker in a moment. What asked for a connection, tests, and
    mail that is unclear stay where they are; controls count for new mail only.
    """
    session.flush()
    _raise_version(session, Site.id == site.id, now)
    session.refresh(site, ["routing_version", "routing_changed_at"])
    connection = session.connection()
    ground = ground_of(connection, site.id)
    if ground is None:
        return Replanned()
    moved: Counter[int | None] = Counter()
    room = AT_ONCE_READ if ground.site.rules.routes else AT_ONCE
    for state in MOVING:
        where = is_stale(site.id, site.routing_version), Message.state == state
        mails = waiting(connection, *where, most=room, lock=True)
        moves = decide(connection, ground, mails)
        moved += write(connection, moves, site.routing_version, now)
        room -= len(mails)
    return _told(connection, moved, left=_stale_count(connection, ground))


def _raise_version(session: Session, which: sa.ColumnElement[bool], now: datetime) -> None:
    session.execute(
        sa.update(Site)
        .where(which)
        .values(routing_version=Site.routing_version + 1, routing_changed_at=now)
        .execution_options(synchronize_session="fetch")
    )


def _stale_count(connection: DbConnection, ground: Ground) -> int:
    stale = is_stale(ground.site.site_id, ground.site.version)
    return connection.scalar(sa.select(sa.func.count()).select_from(Message).where(stale)) or 0


def _told(connection: DbConnection, moved: Counter[int | None], left: int) -> Replanned:
    names = names_of(connection, moved)
    by: Counter[str] = Counter()
    for key, count in moved.items():
        if count and key in names:
            by[names[key]] += count
    return Replanned(moved=moved.total(), left=left, by=tuple(by.most_common()))


def connection_deleted(session: Session, connection: Connection, now: datetime) -> Replanned:
    """After a connection was marked as deleted: its waiting mail finds another way.

    Mail that asked for it goes as the rules say; a test of it fails.
    """
    session.flush()
    db = session.connection()
    _raise_version(session, Site.id.in_(_sites_with(connection.id)), now)
    its = (Message.connection_id == connection.id, Message.due_at.is_not(None))
    by_site: dict[int, list[int]] = {}
    first = sa.select(Message.id, Message.site_id).where(*its).order_by(Message.id).limit(AT_ONCE)
    for row in db.execute(first):
        by_site.setdefault(row.site_id, []).append(row.id)
    moved: Counter[int | None] = Counter()
    for site_id, ids in sorted(by_site.items()):
        moved += adopt(db, site_id, ids, now)
    left = db.scalar(sa.select(sa.func.count()).select_from(Message).where(*its)) or 0
    return _told(db, moved, left)


def _sites_with(connection_id: int) -> sa.Select[tuple[int]]:
    """Sites whose mail may be planned by this connection."""
    planned = sa.or_(Message.connection_id == connection_id, Message.planned_id == connection_id)
    going = sa.or_(Message.due_at.is_not(None), is_in(State.SENDING))
    return (
        sa.union(
            sa.select(Rule.site_id).where(Rule.connection_id == connection_id),
            sa.select(Message.site_id).where(planned, going),
        )
        .subquery()
        .select()
    )


# ---- what the worker does later ----


def catch_up(db: Database, *, seconds: float = CATCH_UP_SECONDS) -> bool:
    """Plan anew what older rules have planned, for a moment; whether something is left to do."""
    until = time.monotonic() + seconds
    with db.reader.connect() as connection:
        changed = connection.execute(
            sa.select(Site.id, Site.routing_changed_at)
            .where(Site.routing_changed_at.is_not(None))
            .order_by(Site.routing_changed_at)
        ).all()
    for row in changed:
        if not _catch_up_with(db, row.id, until):
            return True
        _settle(db, row.id, row.routing_changed_at)
    return False


def _catch_up_with(db: Database, site_id: int, until: float) -> bool:
    """Whether a whole round over the waiting mail of a site was made in time."""
    for state in MOVING:
        after = 0
        while True:
            # Reading mails takes longer than writing down where they go, and needs no lock.
            with db.reader.connect() as connection:
                ground = ground_of(connection, site_id)
                if ground is None:
                    return True
                where = is_stale(site_id, ground.site.version), Message.state == state
                mails = waiting(connection, *where, Message.id > after, most=BATCH)
                moves = decide(connection, ground, mails)
            if not mails:
                break
            with db.write_connection() as connection:
                write(connection, moves, ground.site.version, db.now())
            after = mails[-1].id
            if time.monotonic() > until:
                return False
    return True


def _settle(db: Database, site_id: int, changed_at: datetime) -> None:
    """Forget the change, once nothing can still come that was planned before it."""
    now = db.now()
    if now - changed_at < LATECOMERS:
        return
    old = Message.routed_version < Site.routing_version
    waits = sa.and_(Message.due_at.is_not(None), may_move())
    left = sa.select(Message.id).where(
        Message.site_id == Site.id, old, sa.or_(waits, is_in(State.SENDING))
    )
    with db.write_connection() as connection:
        connection.execute(
            sa.update(Site)
            .where(
                Site.id == site_id, Site.routing_changed_at == changed_at, sa.not_(sa.exists(left))
            )
            .values(routing_changed_at=None)
        )


# ---- modes ----


def mode_changed(session: Session, site: Site, now: datetime) -> int:
    """Let a saved mode, or another address to redirect to, count for mail that waits; returns how
    many mails it touched. Nothing is released by this."""
    session.flush()
    return apply_mode(session.connection(), site.id, now)


# ---- held mail ----


def release(connection: DbConnection, ids: Sequence[int], now: datetime) -> list[int]:
    """Let held mail leave, planned as if it came now; returns which of these it was.

    Mail of a site that sends nothing stays held. Give few at a time, some hundreds at most.
    """
    known = connection.execute(
        sa.select(Message.id, Message.site_id, Site.retry_hours, Site.mode, Site.redirect_to)
        .join(Site, Site.id == Message.site_id)
        .where(Message.id.in_(ids), Message.state == State.HELD)
        .order_by(Message.site_id, Message.id)
    ).all()
    released: list[int] = []
    for site_id, rows in groupby(known, key=attrgetter("site_id")):
        theirs = list(rows)
        site = theirs[0]
        nowhere = site.mode == Mode.REDIRECT_TO and not site.redirect_to
        if site.mode == Mode.DO_NOT_SEND or nowhere:
            continue
        lasts = timedelta(hours=site.retry_hours)
        released += _release(connection, site_id, [row.id for row in theirs], lasts, now)
        if site.mode == Mode.REDIRECT_TO:
            redirect(connection, site_id, site.redirect_to, now)
    return released


def _release(
    connection: DbConnection, site_id: int, ids: Sequence[int], lasts: timedelta, now: datetime
) -> list[int]:
    ground = ground_of(connection, site_id)
    if ground is None:
        return []
    held = (Message.id.in_(ids), Message.state == State.HELD)
    mails = waiting(connection, *held, most=len(ids), lock=True)
    released = []
    for move in decide(connection, ground, mails, keep_asked=True):
        why = {**move.place.why, "held": dict(move.mail.why), "released": now.isoformat()}
        done = connection.execute(
            sa.update(Message)
            .where(Message.id == move.mail.id, Message.state == State.HELD)
            .values(
                {
                    **vars(move.place),
                    "why": why,
                    "state": sa.case(
                        (Message.attempts > 0, sa.literal(State.DEFERRED.value)),
                        else_=sa.literal(State.QUEUED.value),
                    ),
                    "due_at": now,
                    "failures": 0,
                    "expires_at": now + lasts,
                    "routed_version": move.version,
                }
            )
        )
        if done.rowcount:
            released.append(move.mail.id)
    connection.execute(
        sa.update(Recipient)
        .where(Recipient.message_id.in_(released), Recipient.state == State.HELD)
        .values(
            state=sa.case(
                (Recipient.attempt.is_not(None), sa.literal(State.DEFERRED.value)),
                else_=sa.literal(State.QUEUED.value),
            )
        )
    )
    return released


# ---- counts ----


def site_waiting(session: Session, site_id: int) -> int:
    """How many of a site's mails are not over yet."""
    states = (State.QUEUED, State.SENDING, State.DEFERRED, State.HELD)
    counts = [
        sa.select(sa.func.count())
        .where(Message.site_id == site_id, Message.state == state)
        .scalar_subquery()
        for state in states
    ]
    return int(session.scalar(sa.select(sum(counts[1:], counts[0]))) or 0)
