"""Taking the lanes over from whoever had them, and putting right what slipped through."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.connections.models import Connection as MailConnection
from webapp.db import Database
from webapp.delivery.decide import LOOKS, SETTLE_AFTER, may_go_again
from webapp.delivery.detours import go_on
from webapp.delivery.models import (
    Attempt,
    Lane,
    Message,
    Outcome,
    Recipient,
    Setting,
    State,
    is_in,
)
from webapp.delivery.queue import LAST_TRIED
from webapp.delivery.tally import add_tally
from webapp.mailers import registry
from webapp.microsoft.models import Grant
from webapp.microsoft.sent_items import may_look
from webapp.sites.models import Site

OWNERSHIP = "delivery_token"

_LANE_BY_NOW = (
    sa.select(MailConnection.lane_id)
    .where(MailConnection.id == Message.connection_id)
    .scalar_subquery()
)

_HAS_CONNECTION = sa.exists().where(MailConnection.id == Message.connection_id)


def take_over(connection: Connection, now: datetime) -> int:
    """Become the owner of every lane; settles what the last owner left in `sending`.

    Returns the new token. Whoever holds an older one can no longer finish anything.
    """
    token = _raise_token(connection)
    connection.execute(sa.update(Lane).values(owner_token=token))
    left = connection.execute(
        sa.select(
            Message.id,
            Message.site_id,
            Message.connection_id,
            Message.lane_id,
            Message.unclear,
            Message.attempts,
            Site.after_unclear,
            MailConnection.mailer,
            Grant.scopes,
        )
        .join(Site, Site.id == Message.site_id)
        .outerjoin(MailConnection, MailConnection.id == Message.connection_id)
        .outerjoin(Grant, Grant.id == MailConnection.grant_id)
        .where(is_in(State.SENDING))
    ).all()
    for row in left:
        _settle_lost(connection, row, now)
    return token


def current_token(db: Database) -> int:
    """The token of whoever took over last."""
    with db.read() as session:
        stored = session.get(Setting, OWNERSHIP)
    return int(stored.value["token"]) if stored else 0


def _raise_token(connection: Connection) -> int:
    stored = connection.execute(
        sa.select(Setting.value).where(Setting.name == OWNERSHIP).with_for_update()
    ).scalar()
    token = (stored or {}).get("token", 0) + 1
    if stored is None:
        connection.execute(sa.insert(Setting).values(name=OWNERSHIP, value={"token": token}))
    else:
        connection.execute(
            sa.update(Setting).where(Setting.name == OWNERSHIP).values(value={"token": token})
        )
    return int(token)


def _settle_lost(connection: Connection, row: Any, now: datetime) -> None:
    """An attempt was started, and nobody knows how it ended."""
    kind = registry().get(row.mailer or "")
    asks = kind is not None and kind.settles and may_look(row.scopes or ())
    again = asks or may_go_again(row.unclear + 1, row.after_unclear)
    tried = [Recipient.message_id == row.id, Recipient.is_due.is_(sa.true())]
    last = _last_tried(connection, row)
    if last is not None:
        tried.append(Recipient.position <= last)
    connection.execute(
        sa.update(Recipient)
        .where(*tried)
        .values(state=State.UNCERTAIN, is_due=again, attempt=row.attempts)
    )
    goes_on = again or last is not None
    connection.execute(
        sa.update(Attempt)
        .where(Attempt.message_id == row.id, Attempt.outcome == Outcome.STARTED)
        .values(outcome=Outcome.UNCERTAIN, cause="owner-lost", finished_at=now)
    )
    connection.execute(
        sa.update(Message)
        .where(Message.id == row.id)
        .values(
            state=State.UNCERTAIN if last is None or asks else State.DEFERRED,
            unclear=row.unclear + 1,
            looks=0 if asks else LOOKS,
            # None where its link was removed meanwhile: it waits for the next one.
            lane_id=sa.case((_HAS_CONNECTION, _LANE_BY_NOW), else_=Message.lane_id),
            due_at=now + (SETTLE_AFTER if asks else timedelta()) if goes_on else None,
            finished_at=None if goes_on else now,
            last_code="",
            last_words="",
        )
    )
    if not goes_on and not go_on(connection, row.id, now):
        key = (row.site_id, row.connection_id, State.UNCERTAIN.value)
        add_tally(connection, Counter({key: 1}), now)


def _last_tried(connection: Connection, row: Any) -> int | None:
    """The position up to which recipients were tried; None when it was all that are due."""
    details = connection.scalar(
        sa.select(Attempt.details).where(
            Attempt.message_id == row.id, Attempt.number == row.attempts
        )
    )
    return (details or {}).get(LAST_TRIED)


def reconcile(connection: Connection, in_flight: Iterable[int], now: datetime) -> int:
    """After a commit whose outcome is unknown: mail that is in `sending`, but that nobody sends.

    Its claim was committed and its attempt never began, so it goes back as it was. Returns how
    many mails that were.
    """
    sending = set(connection.execute(sa.select(Message.id).where(is_in(State.SENDING))).scalars())
    lost = sorted(sending - set(in_flight))
    if not lost:
        return 0
    connection.execute(
        sa.delete(Attempt).where(Attempt.message_id.in_(lost), Attempt.outcome == Outcome.STARTED)
    )
    connection.execute(
        sa.update(Message)
        .where(Message.id.in_(lost))
        .values(state=State.QUEUED, due_at=now, attempts=Message.attempts - 1)
    )
    return len(lost)


_MISPLACED = (
    sa.select(Message.id, Message.connection_id)
    .join(MailConnection, MailConnection.id == Message.connection_id)
    .where(
        Message.due_at.is_not(None),
        MailConnection.deleted_at.is_(None),
        Message.lane_id.is_distinct_from(MailConnection.lane_id),
    )
    .limit(sa.bindparam("most"))
)


def find_misplaced(connection: Connection, most: int = 500) -> list[tuple[int, int]]:
    """Waiting mail that stands on another lane than its connection; with that connection. Only
    reads.

    A page that saves a connection moves the mail it sees. What was being accepted or sent at that
    moment misses it, and would wait where nobody comes by.
    """
    rows = connection.execute(_MISPLACED, {"most": most})
    return [(row.id, row.connection_id) for row in rows]


def put_in_place(connection: Connection, found: Iterable[tuple[int, int]]) -> int:
    """Move what `find_misplaced` found; returns how many mails that were."""
    by_connection: dict[int, list[int]] = {}
    for message_id, connection_id in found:
        by_connection.setdefault(connection_id, []).append(message_id)
    touched = 0
    for connection_id, ids in by_connection.items():
        lane_id = connection.scalar(
            sa.select(MailConnection.lane_id).where(MailConnection.id == connection_id)
        )
        moved = connection.execute(
            sa.update(Message)
            .where(
                Message.id.in_(ids),
                Message.due_at.is_not(None),
                Message.connection_id == connection_id,
            )
            .values(lane_id=lane_id)
        )
        touched += moved.rowcount
    return touched
