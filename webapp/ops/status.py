"""How the installation stands: whether it is ready, and the numbers behind `/metrics`."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp import schema
from webapp.db import Database
from webapp.delivery.models import OPEN_STATES, Heartbeat, Lane, Message, State, Tally

ALIVE_WITHIN = timedelta(minutes=1)
DELIVER = "deliver"
"""The `part` of a heartbeat that a delivery worker writes."""


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether mail that is handed in now is kept and goes out."""

    database: bool
    revision: bool
    delivery: bool

    @property
    def ready(self) -> bool:
        """All of it."""
        return self.database and self.revision and self.delivery


@lru_cache(maxsize=1)
def _our_revision() -> str:
    return schema.head()


def readiness(db: Database) -> Readiness:
    """Ask the database; an answer that does not come is one too."""
    try:
        fits = schema.current(db) == _our_revision()
    except sa.exc.DBAPIError:
        return Readiness(database=False, revision=False, delivery=False)
    if not fits:
        return Readiness(database=True, revision=False, delivery=False)
    with db.read() as session:
        return Readiness(database=True, revision=True, delivery=delivers(session, db.now()))


def delivers(session: Session, now: datetime) -> bool:
    """Whether the delivery worker at work was seen within a minute; one that stands by is none."""
    rows = session.execute(
        sa.select(Heartbeat.details).where(
            Heartbeat.part == DELIVER, Heartbeat.beat_at >= now - ALIVE_WITHIN
        )
    )
    return any(row.details.get("owner") for row in rows)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One number, named as Prometheus wants it."""

    name: str
    help: str
    is_counter: bool
    labels: dict[str, str]
    value: float


def samples(session: Session, now: datetime) -> Iterator[Sample]:
    """Everything that is measured, read from the database; its cost follows the open mail."""
    for state in (*OPEN_STATES, State.UNCERTAIN):
        yield Sample(
            name="postroom_messages_open",
            help="Mails that are not over yet, by state",
            is_counter=False,
            labels={"state": state.value},
            value=_count_open(session, state),
        )
    yield Sample(
        name="postroom_oldest_waiting_seconds",
        help="Age of the oldest mail that waits to be sent",
        is_counter=False,
        labels={},
        value=_oldest_waiting(session, now),
    )
    totals = sa.select(Tally.outcome, sa.func.sum(Tally.count)).group_by(Tally.outcome)
    for outcome, count in session.execute(totals.order_by(Tally.outcome)):
        yield Sample(
            name="postroom_messages",
            help="Mails accepted, and mails that are over, by outcome",
            is_counter=True,
            labels={"outcome": outcome},
            value=count,
        )
    for beat in session.scalars(sa.select(Heartbeat).order_by(Heartbeat.name)):
        yield Sample(
            name="postroom_heartbeat_age_seconds",
            help="Seconds since a process said that it runs",
            is_counter=False,
            labels={"part": beat.part, "name": beat.name},
            value=(now - beat.beat_at).total_seconds(),
        )
    blocked = sa.select(sa.func.count()).select_from(Lane).where(Lane.is_blocked)
    yield Sample(
        name="postroom_lanes_blocked",
        help="Mailboxes, logins and keys that take no mail at present",
        is_counter=False,
        labels={},
        value=session.scalar(blocked) or 0,
    )


def _count_open(session: Session, state: State) -> int:
    query = sa.select(sa.func.count()).select_from(Message).where(*_in_state(state))
    if state is State.UNCERTAIN:
        query = query.where(Message.due_at.is_not(None))
    return session.scalar(query) or 0


def _oldest_waiting(session: Session, now: datetime) -> float:
    oldest: datetime | None = None
    for state in (State.QUEUED, State.DEFERRED):
        query = sa.select(Message.accepted_at).where(*_in_state(state))
        found = session.scalar(query.order_by(Message.id).limit(1))
        if found is not None and (oldest is None or found < oldest):
            oldest = found
    return (now - oldest).total_seconds() if oldest else 0.0


def _in_state(state: State) -> tuple[sa.ColumnElement[bool], ...]:
    """The condition as literals, and the one of the partial index with it, or SQLite scans."""
    literal: sa.ColumnClause[str] = sa.literal_column(f"'{state.value}'")
    sent: sa.ColumnClause[str] = sa.literal_column("'sent'")
    return Message.state == literal, Message.state != sent
