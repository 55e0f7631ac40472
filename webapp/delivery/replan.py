"""What a saved connection or site does to mail that already waits.

The edges call these right after the service, in the same unit of work, and say how many mails
they touched.
"""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.connections.models import Connection
from webapp.delivery.lanes import Limits
from webapp.delivery.models import Lane, Message, Recipient, State, may_move
from webapp.delivery.tally import add_tally
from webapp.sites.models import Mode, Site


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
    _due_now(session, lane.id, connection.id, now)
    return waiting_on(session, connection.id, lane.id)


def connection_unlinked(session: Session, connection: Connection) -> int:
    """Take a connection off its lane; its mail waits until it has one again. Returns how many."""
    before = connection.lane_id
    connection.lane_id = None
    session.flush()
    if before is None:
        return 0
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


def primary_changed(session: Session, site: Site, now: datetime) -> int:
    """Give the site's waiting mail its (new) primary connection; returns how many it touched.

    Mail that is unclear stays with the connection it went out by.
    """
    connection = (
        session.get(Connection, site.primary_connection_id)
        if site.primary_connection_id is not None
        else None
    )
    lane_id = connection.lane_id if connection else None
    why = {"code": "primary"} if lane_id else {"code": "no-connection"}
    touched = session.execute(
        sa.update(Message)
        .where(
            Message.site_id == site.id,
            may_move(),
            Message.due_at.is_not(None),
            sa.or_(
                Message.connection_id.is_distinct_from(connection.id if connection else None),
                Message.lane_id.is_distinct_from(lane_id),
            ),
        )
        .values(
            connection_id=connection.id if connection and lane_id else None,
            lane_id=lane_id,
            why=why,
            due_at=sa.case((Message.due_at > now, now), else_=Message.due_at),
        )
        .execution_options(synchronize_session=False)
    )
    return int(touched.rowcount)  # type: ignore[attr-defined]


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


def mode_changed(session: Session, site: Site, now: datetime) -> int:
    """After a switch to do-not-send, block what still waits; returns how many mails that were.

    What is being sent at this moment is out of our hands, and ends as it ends.
    """

    if site.mode != Mode.DO_NOT_SEND:
        return 0
    rows = session.scalars(
        sa.update(Message)
        .where(Message.site_id == site.id, Message.due_at.is_not(None))
        .values(state=State.BLOCKED, due_at=None, finished_at=now, why={"code": "do-not-send"})
        .returning(Message.id)
        .execution_options(synchronize_session=False)
    ).all()
    for start in range(0, len(rows), 500):
        session.execute(
            sa.update(Recipient)
            .where(
                Recipient.message_id.in_(rows[start : start + 500]),
                Recipient.is_due.is_(sa.true()),
            )
            .values(state=State.BLOCKED, is_due=False)
            .execution_options(synchronize_session=False)
        )
    if rows:
        add_tally(session.connection(), {(site.id, None, State.BLOCKED.value): len(rows)}, now)
    return len(rows)
