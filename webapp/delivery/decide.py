"""What follows from an attempt. Pure: the facts and the time in, the next step out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from webapp.delivery.lanes import sane_wait
from webapp.delivery.models import State
from webapp.mailers.errors import Cause, DeliveryError, FailureKind
from webapp.sites.models import AfterUnclear

RETRY_MINUTES = (1, 2, 5, 10, 20, 40)
LATER_RETRIES = timedelta(hours=1)
JITTER = 0.1
LOOK_AFTER = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15))
"""When a remote that can tell is asked whether an unclear mail went out: so long after it went."""
LOOKS = len(LOOK_AFTER)
"""After so many nobody looks any more; `Message.looks` is set to it where nobody shall look."""
SETTLE_AFTER = LOOK_AFTER[0]
SETTLED = "settled"
"""In the details of an unclear attempt: what is known of it by now; see `told_of`."""
FOUND, NOT_FOUND, CANNOT_KNOW = "found", "not-found", "cannot-know"


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
    later: int = 0
    """How many more are due, and come in an attempt of their own: one mail cannot name them all."""
    received: Mapping[str, Any]
    accepted_at: datetime
    expires_at: datetime
    failures: int
    unclear: int
    after_unclear: str
    is_probe: bool = False
    """Whether it goes alone, to find out if the remote can be reached again."""
    tries: int = 0
    """Attempts so far that a remote or the network failed; counted only when its time is over."""
    is_look: bool = False
    """Nothing is sent: the remote is asked whether the last attempt went out after all."""
    looks: int = 0
    """How often it was asked before."""
    sought: str = ""
    """The Message-ID that is looked for; empty where the attempt did not live to note it."""
    started_at: datetime | None = None
    """When it was tried for the first time."""
    is_test: bool = False
    has_chain: bool = False
    """Whether a backup may carry it."""
    planned_id: int | None = None
    """The connection that routing chose."""
    detour: Mapping[str, Any] | None = None
    """What it met at other connections; see `delivery.backups`."""
    is_unclear_later: bool = False
    """Whether one of those that come later may have it already."""


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
    can_settle: bool = False
    """After an unclear end: whether the remote can be asked later what came of it."""
    found: bool | None = None
    """Of a look: whether the mail went out; None where nobody can know."""

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


def next_step(
    error: DeliveryError | None,
    claim: Claimed,
    now: datetime,
    *,
    chance: float,
    closed_until: datetime | None = None,
    can_settle: bool = False,
) -> Step:
    """Decide, for one recipient, what follows from an attempt. Pure.

    `closed_until` is when somebody knocks again, where the lane's breaker is open; `can_settle`
    says that the remote can be asked what came of an attempt that ended unclear.
    """
    if error is None:
        return Step(state=State.SENT, is_due=False)
    match error.kind:
        case FailureKind.PERMANENT:
            return Step(state=State.FAILED, is_due=False)
        case FailureKind.UNCERTAIN:
            again = can_settle or may_go_again(claim.unclear + 1, claim.after_unclear)
            due_at = now + SETTLE_AFTER if again else None
            return Step(state=State.UNCERTAIN, is_due=again, due_at=due_at)
        case FailureKind.NEEDS_REAUTHORISATION | FailureKind.MISCONFIGURED:
            # The lane is blocked until somebody acts; the mail stays due and goes out first then.
            return Step(state=State.DEFERRED, is_due=True, due_at=now)
        case FailureKind.TRANSIENT:
            if closed_until is not None and is_unreachable(error):
                return _wait_outside(claim, closed_until)
            return _retry(error, claim, now, chance)


def may_go_again(unclear: int, after_unclear: str) -> bool:
    """Whether a mail is sent once more after so many lost answers, where nobody can know better."""
    return unclear <= 1 and after_unclear == AfterUnclear.RATHER_TWICE


def told_of(claim: Claimed, what: str, at: datetime, looks: int) -> dict[str, Any]:
    """What the history of a mail tells of an unclear attempt, and of the site's choice."""
    return {
        "what": what,
        "at": at.isoformat(),
        "looks": looks,
        "choice": claim.after_unclear,
        "unclear": claim.unclear if claim.is_look else claim.unclear + 1,
    }


def _retry(error: DeliveryError, claim: Claimed, now: datetime, chance: float) -> Step:
    throttled = is_throttling(error)
    delay = timedelta() if throttled else retry_delay(claim.failures + 1, chance)
    delay = max(delay, sane_wait(error.retry_after))
    # A mail that stood behind a stopped lane for days has not been tried yet: it gets its tries.
    tried = claim.failures >= len(RETRY_MINUTES)
    if tried and not throttled and now + delay >= claim.expires_at:
        return Step(state=State.FAILED, is_due=False)
    return Step(state=State.DEFERRED, is_due=True, due_at=now + delay)


def _wait_outside(claim: Claimed, until: datetime) -> Step:
    """Nobody was there: the mail waits for the next look, and its own retries are not spent.

    Its time can be over meanwhile. It still gets as many tries as any other mail.
    """
    if claim.tries >= len(RETRY_MINUTES) and until >= claim.expires_at:
        return Step(state=State.FAILED, is_due=False)
    return Step(state=State.DEFERRED, is_due=True, due_at=until)


def is_unreachable(error: DeliveryError | None) -> bool:
    """Whether nobody took up the conversation: it says something of the lane, not of the mail."""
    if error is None or error.kind is not FailureKind.TRANSIENT:
        return False
    return error.unreached or error.cause_code in {Cause.DNS, Cause.CONNECT, Cause.TLS}


def says_nothing(error: DeliveryError | None) -> bool:
    """Whether the attempt ended before the remote was asked: by a setting, or a bug of ours."""
    if error is None or error.code:
        return False
    return error.cause_code in {Cause.UNKNOWN, Cause.TOO_LARGE}


def is_throttling(error: DeliveryError) -> bool:
    """Whether the remote asked to slow down: that blocks the lane and counts as no failure."""
    return error.kind is FailureKind.TRANSIENT and error.cause_code is Cause.RATE


def blocks_lane(error: DeliveryError) -> bool:
    """Whether nothing else can leave by this lane until somebody acts."""
    return error.kind in {FailureKind.NEEDS_REAUTHORISATION, FailureKind.MISCONFIGURED}


def derive(
    steps: Iterable[Step], others: Mapping[str, int], *, later: datetime | None = None
) -> tuple[State, datetime | None]:
    """A message's state and due time from its recipients'; `later` is when those come that were
    left for another attempt."""
    steps = list(steps)
    due = [step for step in steps if step.is_due]
    if due:
        when = [step.due_at for step in due if step.due_at is not None]
        only_unclear = all(step.state is State.UNCERTAIN for step in due)
        all_unclear = only_unclear and later is None
        return (State.UNCERTAIN if all_unclear else State.DEFERRED), min(when)
    if later is not None:
        return State.DEFERRED, later
    states = {step.state.value for step in steps} | set(others)
    for state in (State.UNCERTAIN, State.FAILED):
        if state in states:
            return state, None
    return State.SENT, None
