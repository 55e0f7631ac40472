"""Writing down what came of attempts, and what happens to each recipient next."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

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

_FINISH_MESSAGE = (
    sa.update(Message)
    .where(Message.id == sa.bindparam("key"), Message.state == State.SENDING)
    .values(
        state=sa.bindparam("to_state"),
        due_at=sa.bindparam("to_due_at"),
        lane_id=sa.bindparam("to_lane"),
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


def finish(
    connection: Connection,
    finished: Sequence[Finished],
    lanes: Mapping[int, int | None],
    closed: Mapping[int, datetime] = NOTHING_CLOSED,
) -> None:
    """Write down what came of these attempts. `lanes` is each connection's lane by now, and
    `closed` says until when nobody knocks, by lane, where a breaker is open."""
    messages, recipients, attempts = [], [], []
    counts: Counter[tuple[int, int | None, str]] = Counter()
    for item in finished:
        until = closed.get(item.claim.lane_id)
        steps = _steps(item, until)
        message = _message_values(item, steps, lanes, is_closed=until is not None)
        messages.append(message)
        recipients.extend(_recipient_values(item, steps))
        attempts.append(_attempt_values(item, steps, message["to_due_at"]))
        if message["to_due_at"] is None:
            counts[item.claim.site_id, item.claim.connection_id, message["to_state"].value] += 1
    if not messages:
        return
    connection.execute(_FINISH_MESSAGE, messages)
    connection.execute(_FINISH_RECIPIENT, recipients)
    connection.execute(_FINISH_ATTEMPT, attempts)
    add_tally(connection, counts, max(item.finished_at for item in finished))


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


def _message_values(
    item: Finished,
    steps: Mapping[int, Step],
    lanes: Mapping[int, int | None],
    *,
    is_closed: bool,
) -> dict[str, Any]:
    claim, result = item.claim, item.result
    # What else is due comes after the remote was asked: one answer settles one attempt.
    later = item.finished_at if claim.later and not result.can_settle else None
    state, due_at = derive(steps.values(), claim.others, later=later)
    errors = [error for error in (result.error, *result.refused.values()) if error is not None]
    errors.sort(key=lambda error: error.kind is not FailureKind.PERMANENT)
    outside = is_closed and is_unreachable(result.error)
    counted = any(
        error.kind is FailureKind.TRANSIENT and not is_throttling(error) for error in errors
    )
    unclear = any(isinstance(error, UncertainError) for error in errors)
    code, words = (errors[0].code, errors[0].words) if errors else (result.code, result.words)
    return {
        "key": claim.message_id,
        "to_state": state,
        "to_due_at": due_at,
        "to_lane": lanes.get(claim.connection_id, claim.lane_id),
        "to_finished_at": None if due_at else item.finished_at,
        "to_failures": max(claim.failures, 1) if outside else claim.failures + counted,
        "to_unclear": claim.unclear + unclear,
        "to_looks": 0 if result.can_settle or not unclear else LOOKS,
        # A last attempt that went well does not explain why others of its recipients failed.
        "to_code": None if state is State.FAILED and not errors else code[:40],
        "to_words": None if state is State.FAILED and not errors else words[:WORDS_SHOWN],
        "to_sent_from": result.sent_from[:320],
    }


def _recipient_values(item: Finished, steps: Mapping[int, Step]) -> list[dict[str, Any]]:
    rows = []
    for position, step in steps.items():
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


def _attempt_values(
    item: Finished, steps: Mapping[int, Step], due_at: datetime | None
) -> dict[str, Any]:
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
