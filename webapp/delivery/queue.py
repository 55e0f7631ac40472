"""The ledger's moves: take over, claim, finish. Each runs in the caller's transaction.

States are written as literals in the claims, and `due_at` is named, because a partial index is
used only where the statement itself says what the index is about.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.connections.models import Connection as MailConnection
from webapp.delivery.models import (
    Attempt,
    Lane,
    Message,
    Outcome,
    Recipient,
    Setting,
    State,
    Tally,
)
from webapp.mailers.errors import Cause, DeliveryError, FailureKind, UncertainError
from webapp.sites.models import AfterUnclear, Site

RETRY_MINUTES = (1, 2, 5, 10, 20, 40)
LATER_RETRIES = timedelta(hours=1)
JITTER = 0.1
SETTLE_AFTER = timedelta(minutes=1)
OWNERSHIP = "delivery_token"
WORDS_SHOWN = 500
ACCEPTED = "accepted"
_COUNT = Tally.__table__.c.count  # a row has a method of that name
_SENT: sa.ColumnElement[str] = sa.literal_column("'sent'")


class LaneLost(Exception):
    """Another worker has taken over; nothing of this transaction may stay."""


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A message that is ours to try, with the recipients that are still to be tried."""

    message_id: int
    queue_id: str
    site_id: int
    lane_id: int
    connection_id: int
    number: int
    """Of this attempt, from 1."""
    mail_from: str
    recipients: tuple[tuple[int, str], ...]
    """(position, address)."""
    others: Mapping[str, int]
    """How many of the message's other recipients are in which state."""
    received: Mapping[str, Any]
    accepted_at: datetime
    expires_at: datetime
    failures: int
    unclear: int
    after_unclear: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one attempt, as the sending thread saw it."""

    error: DeliveryError | None = None
    """What every recipient met that is not in `refused`."""
    refused: Mapping[int, DeliveryError] = field(default_factory=dict)
    """By position: recipients that were refused one by one."""
    version: int = 0
    """Of the connection's settings that were used."""
    remote_id: str = ""
    code: str = ""
    words: str = ""
    sent_from: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def error_of(self, position: int) -> DeliveryError | None:
        """What one recipient met; None when the remote took responsibility for it."""
        return self.refused.get(position) or self.error


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A claim with its result."""

    claim: Claimed
    result: Result
    finished_at: datetime


@dataclass(frozen=True, kw_only=True)
class Step:
    """What happens to a recipient next."""

    state: State
    is_due: bool
    due_at: datetime | None = None


def retry_delay(failures: int, chance: float) -> timedelta:
    """The wait after the given number of failures (from 1); `chance` in [0, 1) spreads it."""
    index = failures - 1
    delay = timedelta(minutes=RETRY_MINUTES[index]) if index < len(RETRY_MINUTES) else LATER_RETRIES
    return delay * (1 - JITTER + 2 * JITTER * chance)


def next_step(error: DeliveryError | None, claim: Claimed, now: datetime, *, chance: float) -> Step:
    """Decide, for one recipient, what follows from an attempt. Pure."""
    if error is None:
        return Step(state=State.SENT, is_due=False)
    match error.kind:
        case FailureKind.PERMANENT:
            return Step(state=State.FAILED, is_due=False)
        case FailureKind.UNCERTAIN:
            again = claim.unclear == 0 and claim.after_unclear == AfterUnclear.RATHER_TWICE
            due_at = now + SETTLE_AFTER if again else None
            return Step(state=State.UNCERTAIN, is_due=again, due_at=due_at)
        case FailureKind.NEEDS_REAUTHORISATION | FailureKind.MISCONFIGURED:
            # The lane is blocked until somebody acts; the mail stays due and goes out first then.
            return Step(state=State.DEFERRED, is_due=True, due_at=now)
        case FailureKind.TRANSIENT:
            return _retry(error, claim, now, chance)


def _retry(error: DeliveryError, claim: Claimed, now: datetime, chance: float) -> Step:
    delay = retry_delay(claim.failures + 1, chance)
    if is_throttling(error):
        delay = timedelta()
    if error.retry_after is not None:
        delay = max(delay, error.retry_after)
    if now + delay >= claim.expires_at:
        return Step(state=State.FAILED, is_due=False)
    return Step(state=State.DEFERRED, is_due=True, due_at=now + delay)


def is_throttling(error: DeliveryError) -> bool:
    """Whether the remote asked to slow down: that blocks the lane and counts as no failure."""
    return error.kind is FailureKind.TRANSIENT and error.cause_code is Cause.RATE


def blocks_lane(error: DeliveryError) -> bool:
    """Whether nothing else can leave by this lane until somebody acts."""
    return error.kind in {FailureKind.NEEDS_REAUTHORISATION, FailureKind.MISCONFIGURED}


def is_in(state: State) -> sa.ColumnElement[bool]:
    """Messages in one unfinished state, written so that SQLite, too, uses the partial index."""
    literal: sa.ColumnElement[str] = sa.literal_column(f"'{state.value}'")
    return sa.and_(Message.state == literal, Message.state != _SENT)


# --- taking over -------------------------------------------------------------------------------


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
        )
        .join(Site, Site.id == Message.site_id)
        .where(is_in(State.SENDING))
    ).all()
    for row in left:
        _settle_lost(connection, row, now)
    return token


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
    again = row.unclear == 0 and row.after_unclear == AfterUnclear.RATHER_TWICE
    connection.execute(
        sa.update(Recipient)
        .where(Recipient.message_id == row.id, Recipient.is_due.is_(sa.true()))
        .values(state=State.UNCERTAIN, is_due=again, attempt=row.attempts)
    )
    connection.execute(
        sa.update(Attempt)
        .where(Attempt.message_id == row.id, Attempt.outcome == Outcome.STARTED)
        .values(outcome=Outcome.UNCERTAIN, cause="owner-lost", finished_at=now)
    )
    connection.execute(
        sa.update(Message)
        .where(Message.id == row.id)
        .values(
            state=State.UNCERTAIN,
            unclear=row.unclear + 1,
            due_at=now if again else None,
            finished_at=None if again else now,
            last_code="",
            last_words="",
        )
    )
    if not again:
        key = (row.site_id, row.connection_id, State.UNCERTAIN.value)
        add_tally(connection, Counter({key: 1}), now)


# --- claiming ----------------------------------------------------------------------------------

_DUE_LANES = sa.text(
    "SELECT lane.id FROM lane WHERE (NOT lane.is_blocked OR lane.blocked_until <= :now) AND EXISTS "
    "(SELECT 1 FROM message WHERE message.lane_id = lane.id AND message.due_at <= :now) "
    "ORDER BY lane.id"
).bindparams(sa.bindparam("now", type_=Message.due_at.type))

_DUE_SITES = sa.text(
    """
    WITH RECURSIVE walk (site_id) AS (
        SELECT (SELECT min(site_id) FROM message
                WHERE lane_id = :lane AND due_at IS NOT NULL AND site_id > :after)
        UNION ALL
        SELECT (SELECT min(site_id) FROM message
                WHERE lane_id = :lane AND due_at IS NOT NULL AND site_id > walk.site_id)
        FROM walk WHERE walk.site_id IS NOT NULL
    )
    SELECT site_id FROM walk WHERE site_id IS NOT NULL LIMIT :count
    """
)

_DUE_MESSAGES = sa.text(
    "SELECT id FROM message WHERE lane_id = :lane AND site_id = :site AND due_at <= :now "
    "ORDER BY due_at, id LIMIT :count"
).bindparams(sa.bindparam("now", type_=Message.due_at.type))

_CLAIM = (
    sa.update(Message)
    .where(Message.id.in_(sa.bindparam("ids", expanding=True)), Message.due_at.is_not(None))
    .values(
        state=State.SENDING,
        due_at=None,
        attempts=Message.attempts + 1,
        started_at=sa.func.coalesce(
            Message.started_at, sa.bindparam("now", type_=Message.due_at.type)
        ),
        maybe_twice=sa.or_(Message.maybe_twice, Message.state == State.UNCERTAIN),
    )
    .returning(Message.id)
)

_START_ATTEMPT = sa.insert(Attempt)

_CLAIMED = (
    sa.select(
        Message.id,
        Message.queue_id,
        Message.site_id,
        Message.lane_id,
        Message.connection_id,
        Message.attempts,
        Message.mail_from,
        Message.received,
        Message.accepted_at,
        Message.expires_at,
        Message.failures,
        Message.unclear,
        Site.after_unclear,
    )
    .join(Site, Site.id == Message.site_id)
    .where(Message.id.in_(sa.bindparam("ids", expanding=True)))
)

_RECIPIENTS = (
    sa.select(
        Recipient.message_id,
        Recipient.position,
        Recipient.address,
        Recipient.state,
        Recipient.is_due,
    )
    .where(Recipient.message_id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(Recipient.message_id, Recipient.position)
)


def due_lanes(connection: Connection, now: datetime) -> list[int]:
    """Lanes with something to do now; the cost follows the lanes, not the mail that waits."""
    return list(connection.execute(_DUE_LANES, {"now": now}).scalars())


def due_ids(
    connection: Connection, lane_id: int, count: int, after_site: int, now: datetime
) -> tuple[list[int], int]:
    """Up to `count` due messages of a lane, round robin over its sites from `after_site` on.

    Returns their keys and the site that was served last.
    """
    sites = _sites_from(connection, lane_id, after_site, count)
    found: list[int] = []
    last = after_site
    share = max(1, count // len(sites)) if sites else 0
    hungry = []
    for site in sites:
        wanted = min(share, count - len(found))
        if wanted <= 0:
            break
        ids = _ids_of(connection, lane_id, site, wanted, now)
        found.extend(ids)
        last = site
        if len(ids) == share:
            hungry.append(site)
    for site in hungry:
        if len(found) >= count:
            break
        more = _ids_of(connection, lane_id, site, share + count - len(found), now)
        found.extend(id_ for id_ in more if id_ not in found)
    return found[:count], last


def _sites_from(connection: Connection, lane_id: int, after: int, count: int) -> list[int]:
    values = {"lane": lane_id, "after": after, "count": count}
    sites = list(connection.execute(_DUE_SITES, values).scalars())
    if len(sites) < count and after > 0:
        again = connection.execute(_DUE_SITES, values | {"after": 0}).scalars()
        sites.extend(site for site in again if site not in sites)
    return sites[:count]


def _ids_of(
    connection: Connection, lane_id: int, site_id: int, count: int, now: datetime
) -> list[int]:
    values = {"lane": lane_id, "site": site_id, "count": count, "now": now}
    return list(connection.execute(_DUE_MESSAGES, values).scalars())


def claim(
    connection: Connection, ids: Sequence[int], names: Mapping[int, str], now: datetime
) -> list[Claimed]:
    """Make these messages ours and note the attempts as started. `names` is by connection key."""
    if not ids:
        return []
    ours = set(connection.execute(_CLAIM, {"ids": ids, "now": now}).scalars())
    ids = [id_ for id_ in ids if id_ in ours]  # somebody may have cancelled one meanwhile
    if not ids:
        return []
    tried: dict[int, list[tuple[int, str]]] = {}
    others: dict[int, Counter[str]] = {}
    for row in connection.execute(_RECIPIENTS, {"ids": ids}):
        if row.is_due:
            tried.setdefault(row.message_id, []).append((row.position, row.address))
        else:
            others.setdefault(row.message_id, Counter())[row.state] += 1
    claims = [
        Claimed(
            message_id=row.id,
            queue_id=row.queue_id,
            site_id=row.site_id,
            lane_id=row.lane_id,
            connection_id=row.connection_id,
            number=row.attempts,
            mail_from=row.mail_from,
            recipients=tuple(tried.get(row.id, ())),
            others=others.get(row.id, {}),
            received=row.received,
            accepted_at=row.accepted_at,
            expires_at=row.expires_at,
            failures=row.failures,
            unclear=row.unclear,
            after_unclear=row.after_unclear,
        )
        for row in connection.execute(_CLAIMED, {"ids": ids})
    ]
    connection.execute(
        _START_ATTEMPT,
        [
            {
                "message_id": claim.message_id,
                "number": claim.number,
                "connection_id": claim.connection_id,
                "connection_name": names.get(claim.connection_id, "")[:160],
                "outcome": Outcome.STARTED,
                "cause": "",
                "code": "",
                "words": "",
                "remote_id": "",
                "details": {},
                "started_at": now,
            }
            for claim in claims
        ],
    )
    order = {message_id: index for index, message_id in enumerate(ids)}
    return sorted(claims, key=lambda claim: order[claim.message_id])


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


def still_open(connection: Connection, finished: Sequence[Finished]) -> list[Finished]:
    """Those of the finished attempts that are not written down yet."""
    keys = [item.claim.message_id for item in finished]
    sending = dict(
        connection.execute(
            sa.select(Message.id, Message.attempts).where(
                Message.id.in_(keys), Message.state == State.SENDING
            )
        ).all()
    )
    return [item for item in finished if sending.get(item.claim.message_id) == item.claim.number]


def find_stranded(connection: Connection) -> int:
    """Give mail without a lane the one its site has by now; returns how many mails that were.

    A mail accepted while its site's first connection was being saved can miss both.
    """
    stranded = connection.execute(
        sa.select(Message.site_id)
        .where(Message.lane_id.is_(None), Message.due_at.is_not(None))
        .distinct()
    ).scalars()
    sites = list(stranded)
    if not sites:
        return 0
    found = connection.execute(
        sa.select(Site.id, MailConnection.id.label("connection_id"), MailConnection.lane_id)
        .join(MailConnection, MailConnection.id == Site.primary_connection_id)
        .where(Site.id.in_(sites), MailConnection.lane_id.is_not(None))
    ).all()
    touched = 0
    for row in found:
        moved = connection.execute(
            sa.update(Message)
            .where(
                Message.site_id == row.id,
                Message.lane_id.is_(None),
                Message.due_at.is_not(None),
            )
            .values(connection_id=row.connection_id, lane_id=row.lane_id, why={"code": "primary"})
        )
        touched += moved.rowcount
    return touched


# --- finishing ---------------------------------------------------------------------------------

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


_OWNERS = (
    sa.select(Lane.id, Lane.owner_token)
    .where(Lane.id.in_(sa.bindparam("lanes", expanding=True)))
    .order_by(Lane.id)
    .with_for_update(read=True)
)


def fence(connection: Connection, lane_ids: Iterable[int], token: int) -> None:
    """Raise LaneLost unless every one of these lanes is still ours; keeps them until commit."""
    wanted = sorted(set(lane_ids))
    if not wanted:
        return
    rows = connection.execute(_OWNERS, {"lanes": wanted}).all()
    if any(row.owner_token > token for row in rows):
        raise LaneLost("another worker has taken over")
    strangers = [row.id for row in rows if row.owner_token < token]
    if strangers:  # made since we took over
        connection.execute(sa.update(Lane).where(Lane.id.in_(strangers)).values(owner_token=token))


def finish(
    connection: Connection, finished: Sequence[Finished], lanes: Mapping[int, int | None]
) -> None:
    """Write down what came of these attempts. `lanes` is each connection's lane by now."""
    messages, recipients, attempts = [], [], []
    counts: Counter[tuple[int, int | None, str]] = Counter()
    for item in finished:
        steps = _steps(item)
        message = _message_values(item, steps, lanes)
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


def _steps(item: Finished) -> dict[int, Step]:
    chance = random.random()  # noqa: S311  (spreads retries; nothing is guessed from it)
    return {
        position: next_step(
            item.result.error_of(position),
            item.claim,
            item.finished_at,
            chance=chance,
        )
        for position, _ in item.claim.recipients
    }


def derive(steps: Iterable[Step], others: Mapping[str, int]) -> tuple[State, datetime | None]:
    """A message's state and due time from its recipients'."""
    steps = list(steps)
    due = [step for step in steps if step.is_due]
    if due:
        when = [step.due_at for step in due if step.due_at is not None]
        only_unclear = all(step.state is State.UNCERTAIN for step in due)
        return (State.UNCERTAIN if only_unclear else State.DEFERRED), min(when)
    states = {step.state.value for step in steps} | set(others)
    for state in (State.UNCERTAIN, State.FAILED):
        if state in states:
            return state, None
    return State.SENT, None


def _message_values(
    item: Finished, steps: Mapping[int, Step], lanes: Mapping[int, int | None]
) -> dict[str, Any]:
    claim, result = item.claim, item.result
    state, due_at = derive(steps.values(), claim.others)
    errors = [error for error in (result.error, *result.refused.values()) if error is not None]
    errors.sort(key=lambda error: error.kind is not FailureKind.PERMANENT)
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
        "to_failures": claim.failures + counted,
        "to_unclear": claim.unclear + unclear,
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


_COUNT_UP = sa.insert(Tally)


# --- counting ----------------------------------------------------------------------------------


def add_tally(
    connection: Connection, counts: Mapping[tuple[int, int | None, str], int], now: datetime
) -> None:
    """Append what happened; `fold_tally` adds it up later."""
    if not counts:
        return
    hour = now.replace(minute=0, second=0, microsecond=0)
    connection.execute(
        _COUNT_UP,
        [
            {
                "site_id": site_id,
                "connection_id": connection_id,
                "outcome": outcome,
                "hour": hour,
                "count": count,
            }
            for (site_id, connection_id, outcome), count in counts.items()
        ],
    )


def fold_tally(connection: Connection, batch: int = 2000) -> int:
    """Add up the newest deltas into one row a group; returns how many rows are gone."""
    newest = connection.execute(
        sa.select(Tally.id).order_by(Tally.id.desc()).limit(batch)
    ).scalars()
    gone = connection.execute(
        sa.delete(Tally)
        .where(Tally.id.in_(list(newest)))
        .returning(
            Tally.site_id, Tally.connection_id, Tally.outcome, Tally.hour, _COUNT.label("amount")
        )
    ).all()
    sums: Counter[tuple[int, int | None, str, datetime]] = Counter()
    for row in gone:
        sums[row.site_id, row.connection_id, row.outcome, row.hour] += row.amount
    if sums:
        connection.execute(
            sa.insert(Tally),
            [
                {
                    "site_id": site_id,
                    "connection_id": connection_id,
                    "outcome": outcome,
                    "hour": hour,
                    "count": count,
                }
                for (site_id, connection_id, outcome, hour), count in sums.items()
            ],
        )
    return len(gone) - len(sums)


@dataclass(frozen=True, kw_only=True)
class Account:
    """One site's ledger: what came in against what became of it."""

    site_id: int
    accepted: int
    ended: int
    open: int

    @property
    def gap(self) -> int:
        """Zero, or something was lost or counted twice."""
        return self.accepted - self.ended - self.open


def accounts(connection: Connection) -> list[Account]:
    """The law of the ledger, site by site, in one reading of the database."""
    tallied = connection.execute(
        sa.select(
            Tally.site_id,
            sa.func.sum(sa.case((Tally.outcome == ACCEPTED, _COUNT), else_=0)),
            sa.func.sum(sa.case((Tally.outcome != ACCEPTED, _COUNT), else_=0)),
        ).group_by(Tally.site_id)
    ).all()
    still_open: Counter[int] = Counter()
    for state in (State.HELD, State.QUEUED, State.SENDING, State.DEFERRED, State.UNCERTAIN):
        counted = sa.select(Message.site_id, sa.func.count()).where(is_in(state))
        if state is State.UNCERTAIN:
            counted = counted.where(Message.due_at.is_not(None))
        for site_id, amount in connection.execute(counted.group_by(Message.site_id)):
            still_open[site_id] += amount
    found = {site_id: (int(came or 0), int(gone or 0)) for site_id, came, gone in tallied}
    return [
        Account(
            site_id=site_id,
            accepted=found.get(site_id, (0, 0))[0],
            ended=found.get(site_id, (0, 0))[1],
            open=still_open[site_id],
        )
        for site_id in sorted(found.keys() | still_open.keys())
    ]
