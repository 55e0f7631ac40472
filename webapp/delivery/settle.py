"""What a look says about a mail whose answer was lost: it went out, or not, or nobody can know.

A look is no attempt: nothing is sent, and the history keeps the attempt as unclear as it was. What
the looks found is noted in that attempt's details.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.delivery.decide import (
    CANNOT_KNOW,
    FOUND,
    LOOK_AFTER,
    LOOKS,
    NOT_FOUND,
    SETTLE_AFTER,
    SETTLED,
    Finished,
    Step,
    derive,
    is_unreachable,
    may_go_again,
    told_of,
)
from webapp.delivery.detours import go_on
from webapp.delivery.lanes import sane_wait
from webapp.delivery.models import Attempt, Message, Recipient, State
from webapp.delivery.tally import add_tally


def settle(
    connection: Connection, looked: Sequence[Finished], closed: Mapping[int, datetime]
) -> None:
    """Write down what these looks found; `closed` says until when nobody knocks, by lane."""
    for item in looked:
        if not _still_waits(connection, item):
            continue
        error, found = item.result.error, item.result.found
        if error is not None and item.finished_at < item.claim.expires_at:
            _look_later(connection, item, closed)
        elif found:
            _went_out(connection, item)
        elif found is False and item.claim.looks + 1 < LOOKS:
            _look_again(connection, item)
        else:
            _give_up(connection, item)


def _still_waits(connection: Connection, item: Finished) -> bool:
    """Whether nobody has decided about this mail since the look began."""
    claim = item.claim
    query = sa.select(Message.id).where(
        Message.id == claim.message_id,
        Message.state == State.UNCERTAIN,
        Message.due_at.is_not(None),
        Message.attempts == claim.number,
        Message.looks == claim.looks,
    )
    return connection.scalar(query.with_for_update()) is not None


def _look_later(connection: Connection, item: Finished, closed: Mapping[int, datetime]) -> None:
    """Nobody could be asked: that is no look."""
    error = item.result.error
    wait = max(SETTLE_AFTER, sane_wait(error.retry_after if error else None))
    until = closed.get(item.claim.lane_id) if is_unreachable(error) else None
    _change(connection, item, due_at=until or item.finished_at + wait)


def _look_again(connection: Connection, item: Finished) -> None:
    looks = item.claim.looks + 1
    pause = LOOK_AFTER[looks] - LOOK_AFTER[looks - 1]
    _change(connection, item, looks=looks, due_at=item.finished_at + pause)
    _note(connection, item, NOT_FOUND, looks)


def _went_out(connection: Connection, item: Finished) -> None:
    _end_recipients(connection, item, state=State.SENT, code="", words="")
    _note(connection, item, FOUND, item.claim.looks + 1)
    _derive(connection, item, last_code="", last_words="")


def _give_up(connection: Connection, item: Finished) -> None:
    """It is not there, or nobody can know: now the site's choice counts."""
    claim, result = item.claim, item.result
    asked = result.found is False
    looks = claim.looks + asked
    _note(connection, item, NOT_FOUND if asked else CANNOT_KNOW, looks)
    if may_go_again(claim.unclear, claim.after_unclear):
        _change(connection, item, looks=LOOKS, due_at=item.finished_at)
        return
    _end_recipients(connection, item)
    _derive(connection, item)


def _end_recipients(connection: Connection, item: Finished, **values: Any) -> None:
    """Those of the unclear attempt; others may be due that it did not name."""
    connection.execute(
        sa.update(Recipient)
        .where(
            Recipient.message_id == item.claim.message_id,
            Recipient.attempt == item.claim.number,
            Recipient.state == State.UNCERTAIN,
        )
        .values(is_due=False, **values)
    )


def _derive(connection: Connection, item: Finished, **values: Any) -> None:
    """The message as its recipients have it now; it goes on with those that are still due."""
    rows = connection.execute(
        sa.select(Recipient.state, Recipient.is_due).where(
            Recipient.message_id == item.claim.message_id
        )
    ).all()
    goes_on = any(row.is_due for row in rows)
    if goes_on:
        _change(connection, item, state=State.DEFERRED, looks=LOOKS, due_at=item.finished_at)
        return
    if go_on(connection, item.claim.message_id, item.finished_at):
        return
    steps = [Step(state=State(row.state), is_due=False) for row in rows]
    state, _ = derive(steps, {})
    _change(
        connection,
        item,
        state=state,
        looks=item.claim.looks + (item.result.found is not None),
        due_at=None,
        finished_at=item.finished_at,
        **values,
    )
    key = (item.claim.site_id, item.claim.connection_id, state.value)
    add_tally(connection, Counter({key: 1}), item.finished_at)


def _change(connection: Connection, item: Finished, **values: Any) -> None:
    connection.execute(
        sa.update(Message).where(Message.id == item.claim.message_id).values(**values)
    )


def _note(connection: Connection, item: Finished, what: str, looks: int) -> None:
    claim = item.claim
    where = (Attempt.message_id == claim.message_id, Attempt.number == claim.number)
    details = connection.scalar(sa.select(Attempt.details).where(*where)) or {}
    told = told_of(claim, what, item.finished_at, looks)
    connection.execute(
        sa.update(Attempt).where(*where).values(details=dict(details) | {SETTLED: told})
    )
