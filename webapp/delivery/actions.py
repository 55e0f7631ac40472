"""What may be done to one mail: cancel it, try it now, release it, send it once more.

Each runs in the caller's transaction and says by its statement which state it expects: whatever
the delivery worker claims at the same moment, one of the two comes too late, and does nothing.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from webapp.connections.models import Connection as MailConnection
from webapp.delivery import replan
from webapp.delivery.content import stored_mail
from webapp.delivery.decide import LOOKS
from webapp.delivery.models import (
    Attempt,
    Message,
    Outcome,
    Recipient,
    Source,
    State,
)
from webapp.delivery.modes import apply_mode
from webapp.delivery.tally import add_tally
from webapp.ingress.accept import Once, Submission
from webapp.mime.headers import parse, serialise
from webapp.sites.models import Mode, Site


class Refusal(StrEnum):
    """Why nothing was done."""

    SENDING = "sending"
    """It is being sent at this moment."""
    OVER = "over"
    NOT_PUT_OFF = "not-put-off"
    """It is not waiting for a later time, or nothing about it can be tried again."""
    NO_CONTENT = "no-content"
    """The mail itself is no longer kept."""
    SILENT = "silent"
    """Its site is set to send nothing."""
    NOT_HELD = "not-held"


class NotPossible(Exception):
    """The mail is in no state for this."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


# ---- cancel ----


_WAITS = sa.or_(
    sa.and_(Message.state.in_((State.QUEUED, State.DEFERRED)), Message.due_at.is_not(None)),
    Message.state == State.HELD,
)


def cancel(connection: Connection, message_id: int, now: datetime) -> None:
    """Take a waiting mail back for everybody it has not gone to yet; raises NotPossible.

    Whoever may have got it already, because an answer was lost, stays unclear.
    """
    row = connection.execute(
        sa.update(Message)
        .where(Message.id == message_id, _WAITS)
        .values(state=State.CANCELLED, due_at=None, finished_at=now)
        .returning(Message.site_id, Message.connection_id)
    ).first()
    if row is None:
        raise NotPossible(_why_not(connection, message_id))
    due = (Recipient.message_id == message_id, Recipient.is_due.is_(sa.true()))
    unclear = Recipient.state == State.UNCERTAIN
    connection.execute(
        sa.update(Recipient).where(*due, sa.not_(unclear)).values(state=State.CANCELLED)
    )
    connection.execute(sa.update(Recipient).where(*due).values(is_due=False))
    add_tally(connection, {(row.site_id, row.connection_id, State.CANCELLED.value): 1}, now)


def _why_not(connection: Connection, message_id: int) -> Refusal:
    row = connection.execute(
        sa.select(Message.state, Message.due_at).where(Message.id == message_id)
    ).one()
    if row.state == State.SENDING:
        return Refusal.SENDING
    return Refusal.NOT_PUT_OFF if row.due_at is not None else Refusal.OVER


# ---- try now, let go ----


def retry(connection: Connection, message_id: int, now: datetime) -> None:
    """Try a mail at once: one that was put off, or one that was given up but may still succeed.

    It may go out a second time to those of whom nobody knows whether they have it. Raises
    NotPossible.
    """
    hurried = connection.execute(
        sa.update(Message)
        .where(
            Message.id == message_id,
            Message.state == State.DEFERRED,
            Message.due_at.is_not(None),
        )
        .values(due_at=sa.case((Message.due_at > now, now), else_=Message.due_at))
    )
    if not hurried.rowcount:
        _reopen(connection, message_id, now)


def release(connection: Connection, message_id: int, now: datetime) -> None:
    """Let a held mail leave, planned as if it came now; raises NotPossible."""
    if replan.release(connection, [message_id], now):
        return
    query = sa.select(Message.state).where(Message.id == message_id)
    held = connection.scalar(query) == State.HELD
    raise NotPossible(Refusal.SILENT if held else Refusal.NOT_HELD)


Action = Callable[[Connection, int, datetime], None]


def on_each(connection: Connection, action: Action, ids: Sequence[int], now: datetime) -> int:
    """Cancel, retry or release several mails; returns with how many it was possible.

    A transaction holds up everybody else: give a hundred at a time, and commit after each.
    """
    done = 0
    for message_id in ids:
        try:
            action(connection, message_id, now)
        except NotPossible:
            continue
        done += 1
    return done


def _reopen(connection: Connection, message_id: int, now: datetime) -> None:
    row = connection.execute(_OVER, {"key": message_id}).first()
    if row is None:
        raise NotPossible(_why_not(connection, message_id))
    if row.mode == Mode.DO_NOT_SEND:
        raise NotPossible(Refusal.SILENT)
    again = _to_be_tried(connection, row)
    if not again:
        raise NotPossible(Refusal.OVER)
    only_unclear = all(state == State.UNCERTAIN for state in again.values())
    reopened = connection.execute(
        sa.update(Message)
        .where(Message.id == message_id, Message.state == row.state, Message.due_at.is_(None))
        .values(
            state=State.UNCERTAIN if only_unclear else State.DEFERRED,
            due_at=now,
            finished_at=None,
            failures=0,
            looks=LOOKS,  # a person has decided: nobody is asked any more
            lane_id=row.lane_by_now,
            expires_at=now + timedelta(hours=row.retry_hours),
            # Whoever wants it to go out now wants it in mode hold, too.
            why={**row.why, "released": now.isoformat()},
        )
    )
    if not reopened.rowcount:  # somebody else was quicker
        raise NotPossible(_why_not(connection, message_id))
    connection.execute(
        sa.update(Recipient)
        .where(Recipient.message_id == message_id, Recipient.position.in_(again))
        .values(
            is_due=True,
            state=sa.case(
                (Recipient.state == State.UNCERTAIN, Recipient.state),
                else_=sa.literal(State.DEFERRED.value),
            ),
        )
    )
    if row.mode == Mode.REDIRECT_TO:  # before it can leave for whom it was meant for
        apply_mode(connection, row.site_id, now)
    # It is not over after all: where it was counted as over, it no longer is.
    key = (row.site_id, row.connection_id, str(row.state))
    add_tally(connection, {key: -1}, row.finished_at or now)


_OVER = (
    sa.select(
        Message.id,
        Message.site_id,
        Message.connection_id,
        Message.state,
        Message.attempts,
        Message.finished_at,
        Message.why,
        Site.retry_hours,
        Site.mode,
        MailConnection.lane_id.label("lane_by_now"),
    )
    .join(Site, Site.id == Message.site_id)
    .outerjoin(MailConnection, MailConnection.id == Message.connection_id)
    .where(
        Message.id == sa.bindparam("key"),
        Message.state.in_((State.FAILED, State.UNCERTAIN)),
        Message.due_at.is_(None),
    )
)


def _to_be_tried(connection: Connection, row: Any) -> dict[int, State]:
    """The recipients, by position, of whom the last word was not a final no."""
    last = connection.execute(
        sa.select(Attempt.outcome, Attempt.code).where(
            Attempt.message_id == row.id, Attempt.number == row.attempts
        )
    ).first()
    rows = connection.execute(
        sa.select(Recipient.position, Recipient.state, Recipient.code, Recipient.attempt)
        .where(Recipient.message_id == row.id)
        .where(Recipient.state.in_((State.FAILED, State.UNCERTAIN)))
    )
    return {
        one.position: State(one.state)
        for one in rows
        if one.state == State.UNCERTAIN
        or (last is not None and one.attempt == row.attempts and _was_put_off(one, last))
    }


def _was_put_off(recipient: Any, last: Any) -> bool:
    """Whether what a recipient met would have been tried again, had there been more time.

    With the attempt's own code it shared the attempt's outcome; with another one it was answered
    alone, which only SMTP does: 4yz is not final there (RFC 5321, 4.2.1).
    """
    if recipient.code == last.code:
        return bool(last.outcome == Outcome.TRANSIENT)
    return bool(recipient.code.startswith("4"))


# ---- send once more ----


def resent(
    session: Session,
    message: Message,
    *,
    to: Sequence[str] = (),
    credential_id: int | None,
    received: dict[str, Any],
    once: Once | None = None,
) -> Submission:
    """The same mail as a new one, to the same recipients or to others; raises NotPossible.

    It gets a Message-ID and a date of its own: mailboxes drop what they believe to have already.
    """
    raw = stored_mail(session, message.id)
    if raw is None:
        raise NotPossible(Refusal.NO_CONTENT)
    return Submission(
        site_id=message.site_id,
        credential_id=credential_id,
        source=Source.RESEND,
        mail_from=message.mail_from,
        recipients=tuple(to) or _everybody(session, message.id),
        raw=_as_new(raw),
        received={**received, "of": message.queue_id},
        once=once,
    )


def _everybody(session: Session, message_id: int) -> tuple[str, ...]:
    query = sa.select(Recipient.address).where(Recipient.message_id == message_id)
    return tuple(session.scalars(query.order_by(Recipient.position)))


def _as_new(raw: bytes) -> bytes:
    headers, separator, body = parse(raw)
    headers.remove(b"message-id", b"date")
    return serialise(headers, separator, body)
