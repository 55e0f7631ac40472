"""What a site's mode does to mail that already waits: block it, hold it, send it elsewhere.

Tests pass every mode. What is being sent at this moment is out of our hands; where it is put off,
the worker finds it.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.delivery.models import Message, Recipient, Source, State
from webapp.delivery.tally import add_tally
from webapp.routing.service import Why, redirected
from webapp.sites.models import Mode, Site

BATCH = 500
SHOWN_RECIPIENTS = 3

_MAY_LEAVE = (State.QUEUED, State.DEFERRED)
_IS_OURS = sa.and_(Message.due_at.is_not(None), Message.source != Source.TEST)
_TO_BE_HELD = sa.and_(
    _IS_OURS,
    Message.state.in_(_MAY_LEAVE),
    Message.why["released"].as_string().is_(None),
)
_NOT_REDIRECTED = sa.and_(_IS_OURS, Message.received["redirected"].as_string().is_(None))


def apply_mode(connection: Connection, site_id: int, now: datetime) -> int:
    """Let the mode of a site count for its waiting mail; returns how many mails it touched.

    Nothing is released by this: held mail waits for a person, whatever the mode is.
    """
    site = connection.execute(
        sa.select(Site.mode, Site.redirect_to).where(Site.id == site_id)
    ).one()
    if site.mode == Mode.DO_NOT_SEND:
        return block(connection, site_id, now)
    if site.mode == Mode.REDIRECT_TO and site.redirect_to:
        return redirect(connection, site_id, site.redirect_to, now)
    if site.mode in {Mode.HOLD, Mode.REDIRECT_TO}:
        return hold(connection, site_id)
    return 0


def sites_to_stop(connection: Connection) -> list[int]:
    """Sites with mail that waits to leave although their mode says otherwise."""

    def has(where: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
        return sa.exists(sa.select(Message.id).where(Message.site_id == Site.id, where))

    nowhere = Site.redirect_to == ""
    holds = sa.or_(Site.mode == Mode.HOLD, sa.and_(Site.mode == Mode.REDIRECT_TO, nowhere))
    redirects = sa.and_(Site.mode == Mode.REDIRECT_TO, sa.not_(nowhere))
    found = connection.execute(
        sa.select(Site.id).where(
            Site.mode != Mode.LIVE,
            sa.or_(
                sa.and_(Site.mode == Mode.DO_NOT_SEND, has(_IS_OURS)),
                sa.and_(holds, has(_TO_BE_HELD)),
                sa.and_(redirects, has(_NOT_REDIRECTED)),
            ),
        )
    )
    return list(found.scalars())


def block(connection: Connection, site_id: int, now: datetime) -> int:
    """End what waits, unsent."""
    ids = connection.scalars(
        sa.update(Message)
        .where(Message.site_id == site_id, _IS_OURS)
        .values(
            state=State.BLOCKED,
            due_at=None,
            finished_at=now,
            why={"code": Why.DO_NOT_SEND.value},
        )
        .returning(Message.id)
    ).all()
    for some in _some(ids):
        connection.execute(
            sa.update(Recipient)
            .where(Recipient.message_id.in_(some), Recipient.is_due.is_(sa.true()))
            .values(state=State.BLOCKED, is_due=False)
        )
    if ids:
        add_tally(connection, {(site_id, None, State.BLOCKED.value): len(ids)}, now)
    return len(ids)


def hold(connection: Connection, site_id: int) -> int:
    """Keep what waits for a person, except what a person has released."""
    ids = connection.scalars(
        sa.update(Message)
        .where(Message.site_id == site_id, _TO_BE_HELD)
        .values(state=State.HELD, due_at=None, why={"code": Why.HOLD.value})
        .returning(Message.id)
    ).all()
    for some in _some(ids):
        connection.execute(
            sa.update(Recipient)
            .where(
                Recipient.message_id.in_(some),
                Recipient.is_due.is_(sa.true()),
                Recipient.state != State.UNCERTAIN,
            )
            .values(state=State.HELD)
        )
    return len(ids)


def redirect(connection: Connection, site_id: int, address: str, now: datetime) -> int:
    """Let what waits go to this address alone. What may have arrived already is left as it is."""
    touched, after = 0, 0
    while True:
        rows = connection.execute(
            sa.select(Message.id, Message.state, Message.connection_id, Message.received)
            .where(Message.site_id == site_id, _IS_OURS, Message.id > after)
            .order_by(Message.id)
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        ).all()
        if not rows:
            return touched
        after = rows[-1].id
        touched += _redirect_some(connection, site_id, address, rows, now)


def _redirect_some(
    connection: Connection, site_id: int, address: str, rows: Sequence[Any], now: datetime
) -> int:
    recipients: dict[int, list[Any]] = {}
    for recipient in connection.execute(
        sa.select(Recipient)
        .with_only_columns(
            Recipient.message_id,
            Recipient.position,
            Recipient.address,
            Recipient.state,
            Recipient.is_due,
        )
        .where(Recipient.message_id.in_([row.id for row in rows]))
        .order_by(Recipient.message_id, Recipient.position)
    ):
        recipients.setdefault(recipient.message_id, []).append(recipient)
    leave_unclear(connection, [row.id for row in rows if row.state != State.UNCERTAIN])
    end_unclear(connection, site_id, [row for row in rows if row.state == State.UNCERTAIN], now)
    touched = 0
    for row in rows:
        theirs = recipients.get(row.id, [])
        due = [one for one in theirs if one.is_due and one.state != State.UNCERTAIN]
        known = "redirected" in row.received and all(one.address == address for one in due)
        if row.state in _MAY_LEAVE and due and not known:
            others = [one.address for one in theirs if one not in due]
            _redirect_one(connection, address, row, due, others)
            touched += 1
    return touched


def _redirect_one(
    connection: Connection, address: str, row: Any, due: Sequence[Any], others: Sequence[str]
) -> None:
    positions = [one.position for one in due]
    of_it = Recipient.message_id == row.id
    connection.execute(sa.delete(Recipient).where(of_it, Recipient.position.in_(positions[1:])))
    connection.execute(
        sa.update(Recipient)
        .where(of_it, Recipient.position == positions[0])
        .values(address=address)
    )
    meant: Mapping[str, Any] = redirected([one.address for one in due])
    left = [*others, address]
    connection.execute(
        sa.update(Message)
        .where(Message.id == row.id)
        .values(
            # Whom it was meant for at first counts, however often the address changes.
            received={**meant, **row.received},
            recipient_count=len(left),
            to_line=", ".join(left[:SHOWN_RECIPIENTS]),
        )
    )


def leave_unclear(connection: Connection, ids: Sequence[int]) -> None:
    """Of mail that goes on: not to those who may have it already."""
    for some in _some(ids):
        connection.execute(
            sa.update(Recipient)
            .where(
                Recipient.message_id.in_(some),
                Recipient.is_due.is_(sa.true()),
                Recipient.state == State.UNCERTAIN,
            )
            .values(is_due=False)
        )


def end_unclear(connection: Connection, site_id: int, rows: Sequence[Any], now: datetime) -> None:
    """Mail that may have arrived, and is not sent again; rows have its key and connection."""
    leave_unclear(connection, [row.id for row in rows])
    for row in rows:
        connection.execute(
            sa.update(Message).where(Message.id == row.id).values(due_at=None, finished_at=now)
        )
        add_tally(connection, {(site_id, row.connection_id, State.UNCERTAIN.value): 1}, now)


def _some(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH]
