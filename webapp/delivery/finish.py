"""Writing down what came of attempts, and what happens to each recipient next."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.delivery.backups import NO_WAYS, Turn, Ways, onward
from webapp.delivery.decide import (
    CANNOT_KNOW,
    LOOKS,
    SETTLED,
    Finished,
    Step,
    derive,
    is_throttling,
    is_unreachable,
    next_step,
    told_of,
)
from webapp.delivery.models import Attempt, Message, Outcome, Recipient, State
from webapp.delivery.tally import add_tally
from webapp.mailers.errors import DeliveryError, FailureKind, UncertainError

WORDS_SHOWN = 500
ONWARD = "onward"
"""In the details of an attempt: the connection that the mail went on to."""

_FINISH_MESSAGE = (
    sa.update(Message)
    .where(Message.id == sa.bindparam("key"), Message.state == State.SENDING)
    .values(
        state=sa.bindparam("to_state"),
        due_at=sa.bindparam("to_due_at"),
        lane_id=sa.bindparam("to_lane"),
        connection_id=sa.func.coalesce(
            sa.bindparam("to_connection", type_=Message.connection_id.type), Message.connection_id
        ),
        detour=sa.bindparam("to_detour", type_=Message.detour.type),
        finished_at=sa.bindparam("to_finished_at"),
        failures=sa.bindparam("to_failures"),
        unclear=sa.bindparam("to_unclear"),
        looks=sa.bindparam("to_looks"),
        last_code=sa.func.coalesce(sa.bindparam("to_code", type_=sa.Text), Message.last_code),
        last_words=sa.func.coalesce(sa.bindparam("to_words", type_=sa.Text), Message.last_words),
        sent_from=sa.bindparam("to_sent_from"),
    )
)

_FINISH_RECIPIENT = (
    sa.update(Recipient)
    .where(
        Recipient.message_id == sa.bindparam("key"),
        Recipient.position == sa.bindparam("key_position"),
    )
    .values(
        state=sa.bindparam("to_state"),
        is_due=sa.bindparam("to_is_due"),
        code=sa.bindparam("to_code"),
        words=sa.bindparam("to_words"),
        attempt=sa.bindparam("to_attempt"),
    )
)

_REVIVE = (
    sa.update(Recipient)
    .where(
        Recipient.message_id == sa.bindparam("key"),
        Recipient.position == sa.bindparam("key_position"),
    )
    .values(state=State.DEFERRED, is_due=True)
)

_FINISH_ATTEMPT = (
    sa.update(Attempt)
    .where(
        Attempt.message_id == sa.bindparam("key"),
        Attempt.number == sa.bindparam("key_number"),
    )
    .values(
        outcome=sa.bindparam("to_outcome"),
        cause=sa.bindparam("to_cause"),
        code=sa.bindparam("to_code"),
        words=sa.bindparam("to_words"),
        remote_id=sa.bindparam("to_remote_id"),
        details=sa.bindparam("to_details"),
        finished_at=sa.bindparam("to_finished_at"),
    )
)


def still_open(connection: Connection, finished: Sequence[Finished]) -> list[Finished]:
    """Those of the finished attempts that are not written down yet. Looks find that out later."""
    keys = [item.claim.message_id for item in finished if not item.claim.is_look]
    sending = dict(
        connection.execute(
            sa.select(Message.id, Message.attempts).where(
                Message.id.in_(keys), Message.state == State.SENDING
            )
        ).all()
    )
    return [
        item
        for item in finished
        if item.claim.is_look or sending.get(item.claim.message_id) == item.claim.number
    ]


NOTHING_CLOSED: Mapping[int, datetime] = {}


@dataclass(frozen=True, kw_only=True)
class Ending:
    """An attempt that is over, and what follows from it."""

    item: Finished
    steps: Mapping[int, Step]
    turn: Turn | None
    """Where the mail goes now; None where it stays at its connection."""
    is_closed: bool
    """Whether nobody knocks at its lane for a while."""


def finish(
    connection: Connection,
    finished: Sequence[Finished],
    lanes: Mapping[int, int | None],
    closed: Mapping[int, datetime] = NOTHING_CLOSED,
    ways: Ways = NO_WAYS,
) -> int:
    """Write down what came of these attempts; returns how many mails go on by another connection.

    `lanes` is each connection's lane by now, `closed` says until when nobody knocks, by lane, where
    a breaker is open, and `ways` what is known of backups.
    """
    messages, recipients, revived, attempts = [], [], [], []
    counts: Counter[tuple[int, int | None, str]] = Counter()
    moved = 0
    for item in finished:
        ending = _ending(item, closed.get(item.claim.lane_id), ways)
        message = _message_values(ending, lanes)
        messages.append(message)
        recipients.extend(_recipient_values(ending))
        revived.extend(_revived(ending))
        attempts.append(_attempt_values(ending, message["to_due_at"]))
        moved += ending.turn is not None and ending.turn.is_moved
        if message["to_due_at"] is None:
            counts[item.claim.site_id, item.claim.connection_id, message["to_state"].value] += 1
    if not messages:
        return 0
    connection.execute(_FINISH_MESSAGE, messages)
    connection.execute(_FINISH_RECIPIENT, recipients)
    if revived:
        connection.execute(_REVIVE, revived)
    connection.execute(_FINISH_ATTEMPT, attempts)
    add_tally(connection, counts, max(item.finished_at for item in finished))
    return moved


def _ending(item: Finished, closed_until: datetime | None, ways: Ways) -> Ending:
    steps = _steps(item, closed_until)
    turn = onward(item, steps, ways)
    return Ending(
        item=item,
        steps=steps if turn is None else turn.steps,
        turn=turn,
        is_closed=closed_until is not None,
    )


def _steps(item: Finished, closed_until: datetime | None) -> dict[int, Step]:
    chance = random.random()  # noqa: S311  (spreads retries; nothing is guessed from it)
    return {
        position: next_step(
            item.result.error_of(position),
            item.claim,
            item.finished_at,
            chance=chance,
            closed_until=closed_until,
            can_settle=item.result.can_settle,
        )
        for position, _ in item.claim.recipients
    }


def _message_values(ending: Ending, lanes: Mapping[int, int | None]) -> dict[str, Any]:
    item, turn = ending.item, ending.turn
    claim, result = item.claim, item.result
    # What else is due comes after the remote was asked: one answer settles one attempt.
    goes_on = (claim.later and not result.can_settle) or (turn is not None and turn.revived)
    later = item.finished_at if goes_on else None
    state, due_at = derive(ending.steps.values(), claim.others, later=later)
    errors = [error for error in (result.error, *result.refused.values()) if error is not None]
    errors.sort(key=lambda error: error.kind is not FailureKind.PERMANENT)
    outside = ending.is_closed and is_unreachable(result.error)
    counted = any(
        error.kind is FailureKind.TRANSIENT and not is_throttling(error) for error in errors
    )
    unclear = any(isinstance(error, UncertainError) for error in errors)
    code, words = (errors[0].code, errors[0].words) if errors else (result.code, result.words)
    failures = max(claim.failures, 1) if outside else claim.failures + counted
    target = turn if turn is not None and turn.is_moved else None
    return {
        "key": claim.message_id,
        "to_state": state,
        "to_due_at": due_at,
        "to_lane": target.lane_id if target else lanes.get(claim.connection_id, claim.lane_id),
        "to_connection": target.connection_id if target else None,
        "to_detour": turn.detour if turn else claim.detour,
        "to_finished_at": None if due_at else item.finished_at,
        "to_failures": 0 if turn and turn.begins_anew else failures,
        "to_unclear": claim.unclear + unclear,
        "to_looks": 0 if result.can_settle or not unclear else LOOKS,
        # A last attempt that went well does not explain why others of its recipients failed.
        "to_code": None if state is State.FAILED and not errors else code[:40],
        "to_words": None if state is State.FAILED and not errors else words[:WORDS_SHOWN],
        "to_sent_from": result.sent_from[:320],
    }


def _recipient_values(ending: Ending) -> list[dict[str, Any]]:
    item = ending.item
    rows = []
    for position, step in ending.steps.items():
        error = item.result.error_of(position)
        rows.append(
            {
                "key": item.claim.message_id,
                "key_position": position,
                "to_state": step.state,
                "to_is_due": step.is_due,
                "to_code": (error.code if error else item.result.code)[:40],
                "to_words": error.words if error else item.result.words,
                "to_attempt": item.claim.number,
            }
        )
    return rows


def _revived(ending: Ending) -> list[dict[str, int]]:
    positions = ending.turn.revived if ending.turn else ()
    key = ending.item.claim.message_id
    return [{"key": key, "key_position": position} for position in positions]


def _attempt_values(ending: Ending, due_at: datetime | None) -> dict[str, Any]:
    item, steps, turn = ending.item, ending.steps, ending.turn
    result = item.result
    error = result.error
    refused = next(iter(result.refused.values()), None)
    if error is not None:
        outcome = _outcome(error)
    elif refused is None:
        outcome = Outcome.SENT
    elif len(result.refused) < len(steps):
        outcome = Outcome.PARTLY
    else:
        outcome = _outcome(refused)
    shown = error or (refused if outcome not in {Outcome.SENT, Outcome.PARTLY} else None)
    details = dict(result.details) | {"recipients": len(steps)}
    if due_at is not None:
        details["next_at"] = due_at.isoformat()
    if turn is not None and turn.is_moved:
        details[ONWARD] = turn.connection_id
    if result.refused:
        details["refused"] = len(result.refused)
    if outcome is Outcome.UNCERTAIN and not result.can_settle:
        details[SETTLED] = told_of(item.claim, CANNOT_KNOW, item.finished_at, 0)
    return {
        "key": item.claim.message_id,
        "key_number": item.claim.number,
        "to_outcome": outcome,
        "to_cause": shown.cause_code if shown else "",
        "to_code": (shown.code if shown else result.code)[:40],
        "to_words": shown.words if shown else result.words,
        "to_remote_id": result.remote_id[:300],
        "to_details": details,
        "to_finished_at": item.finished_at,
    }


def _outcome(error: DeliveryError) -> Outcome:
    return Outcome(error.kind.value.replace("_", "-"))
