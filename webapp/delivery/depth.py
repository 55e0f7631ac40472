"""How much waits on a lane, and until when: for pages, never for a decision.

The cost follows the lanes that are asked for: what waits is counted by the index of due mail, and
no further than `MOST`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.connections.models import Connection
from webapp.delivery.lanes import RECIPIENTS, UNREACHABLE, Limits, Pace
from webapp.delivery.models import Lane, Message, Outcome, State, Tally
from webapp.delivery.tally import ACCEPTED
from webapp.fields import N_
from webapp.sites.models import Site

MOST = 10_000
SAMPLE = 500
"""Waiting mails whose recipients are counted, where a limit is about recipients."""
LOOK_BACK = timedelta(minutes=20)
"""A lane without limits is as fast as it lately was, and a younger hour tells too little."""

WHY = {
    Outcome.TRANSIENT.value: N_("asked to slow down"),
    UNREACHABLE: N_("cannot be reached"),
    Outcome.NEEDS_REAUTHORISATION.value: N_("the login is refused"),
    Outcome.MISCONFIGURED.value: N_("the set-up is refused"),
}

_COUNT = Tally.__table__.c.count  # a row has a method of that name

_WAITING = sa.text(
    "SELECT lane.id AS id, "
    "(SELECT count(*) FROM (SELECT 1 FROM message WHERE message.lane_id = lane.id "
    "AND message.due_at IS NOT NULL LIMIT :most) AS part) AS waiting, "
    "(SELECT max(message.due_at) FROM message WHERE message.lane_id = lane.id "
    "AND message.due_at IS NOT NULL) AS last_due "
    "FROM lane WHERE lane.id IN :lanes"
).bindparams(sa.bindparam("lanes", expanding=True))

_RECIPIENTS = sa.text(
    "SELECT avg(recipient_count) FROM (SELECT recipient_count FROM message "
    "WHERE lane_id = :lane AND due_at IS NOT NULL LIMIT :most) AS part"
)


@dataclass(frozen=True, kw_only=True)
class Depth:
    """One lane as a page shows it."""

    waiting: int = 0
    """Mails of all sites that share it, retries among them; at most `MOST`."""
    is_more: bool = False
    """Whether there are more of them than `waiting` says."""
    drained_at: datetime | None = None
    """When the last of them can have left. None: nothing waits, or nobody can say."""
    recipients_today: int | None = None
    """Of the last 24 hours; counted only where there is a limit."""
    recipients_limit: int | None = None
    blocked_until: datetime | None = None
    """Empty while `blocked_why` is not: until somebody acts."""
    blocked_since: datetime | None = None
    blocked_why: str = ""
    """English and marked, to be translated: who or what stops it. Empty while it is open."""
    blocked_words: str = ""
    """What the remote itself said."""
    is_unreachable: bool = False
    """Whether it is stopped because nobody answers there."""
    is_put_off: bool = False
    """Whether some of it waits for a later time."""
    is_paused: bool = False
    """Whether a person lets nothing leave by it, apart from all else."""
    is_looking: bool = False
    """Whether its pause is over, and one mail finds out if somebody does."""


def depths(session: Session, lane_ids: Iterable[int], now: datetime) -> Mapping[int, Depth]:
    """How deep these lanes are, by key. Reads only, with as many statements for many as for one
    (and one for each lane that has a limit on recipients)."""
    wanted = sorted(set(lane_ids))
    if not wanted:
        return {}
    counted = session.execute(
        _WAITING.columns(id=sa.BigInteger, waiting=sa.Integer, last_due=Message.due_at.type),
        {"lanes": wanted, "most": MOST + 1},
    )
    waiting = {row.id: (int(row.waiting), row.last_due) for row in counted}
    lanes = session.execute(sa.select(Lane.__table__).where(Lane.id.in_(wanted))).all()
    unlimited = [row.id for row in lanes if waiting[row.id][0] and not _pace(row).windows]
    speeds = _speeds(session, unlimited, now)
    return {
        row.id: _depth(session, row, *waiting[row.id], speeds.get(row.id), now) for row in lanes
    }


def drained_at(pace: Pace, mails: int, recipients: int, start: datetime) -> datetime:
    """When the last of so many mails may start, if the first may from `start` on. Pure."""
    at = start
    for name, window in pace.windows.items():
        count = recipients if name == RECIPIENTS else mails
        if count <= 0 or window.limit <= 0:
            continue
        rounds, rest = divmod(count - 1, window.limit)
        turn = window.span + timedelta(seconds=window.part)
        at = max(at, window.next_room(start, rest + 1) + rounds * turn)
    return at


def _depth(
    session: Session,
    lane: Any,
    waiting: int,
    last_due: datetime | None,
    per_second: float | None,
    now: datetime,
) -> Depth:
    pace = _pace(lane)
    window = pace.windows.get(RECIPIENTS)
    is_over = lane.blocked_until is not None and lane.blocked_until <= now
    # While the breaker is open, one mail at a time finds out whether the pause was long enough.
    is_open = not lane.is_blocked or (is_over and not lane.trips)
    until = None if is_open else lane.blocked_until
    if until is not None:
        until = max(until, now)
    drained = None
    if waiting and not lane.is_paused and (is_open or until is not None):
        drained = _drained(session, lane.id, pace, waiting, per_second, until or now)
        if drained is not None and last_due is not None:
            drained = max(drained, last_due)
    return Depth(
        waiting=min(waiting, MOST),
        is_more=waiting > MOST,
        drained_at=drained,
        recipients_today=None if window is None else window.limit - window.room(now),
        recipients_limit=lane.recipients_per_day,
        blocked_until=until,
        blocked_since=None if is_open else lane.blocked_since,
        blocked_why="" if is_open else WHY.get(lane.blocked_kind, N_("stopped")),
        blocked_words="" if is_open else lane.blocked_words,
        is_unreachable=not is_open and lane.blocked_kind == UNREACHABLE,
        is_put_off=last_due is not None and last_due > now,
        is_paused=lane.is_paused,
        is_looking=is_over and not is_open,
    )


def _drained(
    session: Session,
    lane_id: int,
    pace: Pace,
    waiting: int,
    per_second: float | None,
    start: datetime,
) -> datetime | None:
    if waiting > MOST:
        return None
    if not pace.windows:
        return start + timedelta(seconds=waiting / per_second) if per_second else None
    recipients = waiting
    if pace.counts_recipients:
        average = session.execute(_RECIPIENTS, {"lane": lane_id, "most": SAMPLE}).scalar()
        recipients = round(waiting * float(average or 1))
    return drained_at(pace, waiting, recipients, start)


def _pace(lane: Any) -> Pace:
    limits = Limits(
        per_minute=lane.per_minute,
        per_hour=lane.per_hour,
        per_day=lane.per_day,
        recipients_per_day=lane.recipients_per_day,
    )
    return Pace(limits, lane.windows)


def _speeds(session: Session, lane_ids: list[int], now: datetime) -> dict[int, float]:
    """Mails a second that ended lately, for lanes that have no limit to reckon with."""
    if not lane_ids:
        return {}
    since = (now - LOOK_BACK).replace(minute=0, second=0, microsecond=0)
    ended = session.execute(
        sa.select(Connection.lane_id, sa.func.sum(_COUNT))
        .join(Connection, Connection.id == Tally.connection_id)
        .where(
            Tally.site_id.in_(sa.select(Site.id)),  # the index begins with it
            Tally.hour >= since,
            Tally.outcome.notin_((ACCEPTED, State.CANCELLED.value, State.BLOCKED.value)),
            Connection.lane_id.in_(lane_ids),
        )
        .group_by(Connection.lane_id)
    ).all()
    seconds = max((now - since).total_seconds(), 1.0)
    return {row[0]: int(row[1]) / seconds for row in ended if row[1]}
