"""Put waiting mail on hold, and let it go again: after a restore, a person decides."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.delivery.models import Message, Recipient, State
from webapp.sites.models import Site

_WAITING = (State.QUEUED, State.DEFERRED)


def hold_waiting(connection: Connection) -> int:
    """Hold every mail that waits to be sent; returns how many. Nothing may be in `sending`."""
    held = connection.execute(
        sa.update(Message)
        .where(Message.due_at.is_not(None))
        .values(state=State.HELD, due_at=None)
        .returning(Message.id)
    ).scalars()
    keys = list(held)
    for start in range(0, len(keys), 500):
        connection.execute(
            sa.update(Recipient)
            .where(
                Recipient.message_id.in_(keys[start : start + 500]),
                Recipient.is_due.is_(sa.true()),
                Recipient.state.in_(_WAITING),
            )
            .values(state=State.HELD)
        )
    return len(keys)


def release(connection: Connection, keys: Sequence[int], now: datetime) -> int:
    """Let held mails go, those of these keys; returns how many there were.

    They get the whole of their site's time again: what was held must not have expired by it.
    """
    hours = dict(connection.execute(sa.select(Site.id, Site.retry_hours)).all())
    released = 0
    for key in keys:
        row = connection.execute(
            sa.select(Message.site_id, Message.attempts).where(
                Message.id == key, Message.state == State.HELD
            )
        ).first()
        if row is None:
            continue
        fresh = State.QUEUED if row.attempts == 0 else State.DEFERRED
        waiting = connection.execute(
            sa.update(Recipient)
            .where(Recipient.message_id == key, Recipient.state == State.HELD)
            .values(state=fresh)
        ).rowcount
        connection.execute(
            sa.update(Message)
            .where(Message.id == key)
            .values(
                state=fresh if waiting else State.UNCERTAIN,
                due_at=now,
                expires_at=now + timedelta(hours=hours[row.site_id]),
            )
        )
        released += 1
    return released
