"""Which connection carries a mail next, and that this always comes to an end."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.delivery import finish
from webapp.delivery.backups import (
    REASONS,
    Chain,
    Detour,
    LaneNow,
    Reason,
    Standing,
    Ways,
    choose,
    onward,
)
from webapp.delivery.decide import Claimed, Finished, Result, Step, derive, next_step
from webapp.delivery.models import State
from webapp.mailers.errors import (
    DeliveryError,
    Misconfigured,
    NeedsReauthorisation,
    PermanentError,
    TransientError,
    UncertainError,
)
from webapp.sites.models import AfterUnclear

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
TEN = timedelta(minutes=10)
A, B, C = 1, 2, 3
OPEN = {A: Standing.OPEN, B: Standing.OPEN, C: Standing.OPEN}


def chosen(
    current: int | None = A,
    *,
    refused: tuple[int, ...] = (),
    passed: tuple[int, ...] = (),
    **standings: str,
) -> int | None:
    named = {"a": A, "b": B, "c": C}
    given = {named[name]: Standing(value) for name, value in standings.items()}
    return choose((A, B, C), current, refused=refused, passed=passed, standings=OPEN | given)


def test_a_mail_stays_where_it_was_planned_while_that_is_open() -> None:
    assert chosen() == A
    assert chosen(B) == A  # and goes back there
    assert chosen(B, a="closed") == B


def test_the_chain_is_followed_in_its_order() -> None:
    assert chosen(a="closed") == B
    assert chosen(a="closed", b="closed") == C
    assert chosen(refused=(A,)) == B
    assert chosen(passed=(A,)) == B
    assert chosen(B, refused=(A,), passed=(B,)) == C


def test_who_only_put_a_mail_off_is_asked_again_once_nobody_else_is_left() -> None:
    assert chosen(C, passed=(A, B, C)) == C
    assert chosen(C, passed=(A, B, C), c="closed") == A
    assert chosen(C, refused=(C,), passed=(A, B)) == A
    assert chosen(C, refused=(C,), passed=(A, B), a="closed") == B


def test_a_mail_waits_for_the_first_that_has_not_refused_it() -> None:
    assert chosen(a="closed", b="closed", c="closed") == A
    assert chosen(refused=(A,), b="closed", c="closed") == B
    assert chosen(refused=(A,), b="none", c="closed") == C
    assert chosen(refused=(A, B, C)) is None


def test_a_pause_holds_what_is_there_and_gets_nothing_new() -> None:
    assert chosen(a="paused") == A
    assert chosen(B, a="paused") == B
    assert chosen(refused=(A,), b="paused") == C


def test_a_connection_that_is_gone_is_no_candidate() -> None:
    assert choose((A, B), A, refused=(), passed=(), standings={B: Standing.OPEN}) == B
    assert choose((A,), A, refused=(), passed=(), standings={}) is None


def a_lane(**values: object) -> LaneNow:
    return LaneNow(**{"lane_id": 7, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lane", "standing"),
    [
        (LaneNow(), "none"),
        (a_lane(), "open"),
        (a_lane(is_blocked=True, blocked_since=NOW), "closed"),
        (a_lane(is_blocked=True, is_paused=True), "paused"),
        # Asked to slow down: a little, for long, and that is over.
        (a_lane(is_blocked=True, blocked_since=NOW, blocked_until=NOW + TEN), "open"),
        (a_lane(is_blocked=True, blocked_since=NOW, blocked_until=NOW + 2 * TEN), "closed"),
        (a_lane(is_blocked=True, blocked_since=NOW - 2 * TEN, blocked_until=NOW), "open"),
        # Out of reach: not for long yet, and for long although somebody looks just now.
        (a_lane(is_blocked=True, trips=2, blocked_since=NOW - TEN, blocked_until=NOW), "open"),
        (
            a_lane(is_blocked=True, trips=2, blocked_since=NOW - 2 * TEN, blocked_until=NOW),
            "closed",
        ),
    ],
)
def test_a_lane_is_closed_when_waiting_there_takes_too_long(lane: LaneNow, standing: str) -> None:
    assert lane.standing(TEN, NOW) == standing


def test_every_reason_is_told() -> None:
    assert REASONS.keys() == set(Reason)
    assert a_lane(is_blocked=True, blocked_kind="unreachable").reason() is Reason.UNREACHABLE
    assert a_lane(is_blocked=True, blocked_kind="something").reason() is Reason.SLOW
    assert LaneNow().reason() is Reason.UNLINKED


@given(
    st.permutations([A, B, C, 4]),
    st.sampled_from([None, A, B, C, 4]),
    st.frozensets(st.sampled_from([A, B, C, 4])),
    st.frozensets(st.sampled_from([A, B, C, 4])),
    st.dictionaries(st.sampled_from([A, B, C, 4]), st.sampled_from(Standing)),
)
def test_the_same_facts_give_the_same_place(
    candidates: list[int],
    current: int | None,
    refused: frozenset[int],
    passed: frozenset[int],
    standings: dict[int, Standing],
) -> None:
    def ask(at: int | None) -> int | None:
        return choose(candidates, at, refused=refused, passed=passed, standings=standings)

    place = ask(current)
    assert place not in refused
    assert (place is None) == (not (standings.keys() - refused))
    assert place is None or ask(place) == place


# ---- whole journeys ----


def transient() -> DeliveryError:
    return TransientError("later", code="451")


ERRORS = {
    "sent": lambda: None,
    "no": lambda: PermanentError("no", code="550"),
    "later": transient,
    "lost": lambda: UncertainError("lost"),
    "login": lambda: NeedsReauthorisation("535"),
    "set-up": lambda: Misconfigured("app"),
}
outcomes = st.lists(st.sampled_from(sorted(ERRORS)), min_size=1, max_size=3)
journeys = st.lists(
    st.tuples(outcomes, st.sampled_from(["", "shut", "open", "pause"])), max_size=60
)


class Journey:
    """One mail with up to three recipients on its way, without a database."""

    def __init__(self, backups: list[int], after_unclear: AfterUnclear) -> None:
        self.chain = Chain(backups=tuple(backups))
        self.lanes = {key: a_lane(lane_id=key) for key in (A, B, C, 4)}
        self.after_unclear = after_unclear
        self.at = A
        self.now = NOW
        self.states = dict.fromkeys(range(3), State.QUEUED)
        self.due = {0, 1, 2}
        self.detour: dict[str, object] | None = None
        self.failures = self.tries = self.number = 0
        self.unclear = 0
        self.said_no: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
        self.may_have_it: dict[int, int] = {}
        self.hops: Counter[tuple[int, int]] = Counter()
        self.closings = 0

    def attempt(self, kinds: list[str]) -> None:
        self.number += 1
        tried = sorted(self.due)
        for position in tried:
            assert self.at not in self.said_no[position], "asked again after a final no"
            assert self.may_have_it.get(position, self.at) == self.at, "moved while unclear"
        claim = self._claim(tried)
        errors = {p: ERRORS[kinds[p % len(kinds)]]() for p in tried}
        result = Result(refused={p: error for p, error in errors.items() if error})
        self._block(errors.values())
        item = Finished(claim=claim, result=result, finished_at=self.now)
        steps = {p: next_step(errors[p], claim, self.now, chance=0.5) for p in tried}
        self._write(item, steps, errors)

    def _claim(self, tried: list[int]) -> Claimed:
        others = Counter(self.states[p].value for p in range(3) if p not in tried)
        return Claimed(
            message_id=1, queue_id="q", site_id=1, lane_id=self.at, connection_id=self.at,
            number=self.number, mail_from="", received={}, others=others,
            recipients=tuple((p, f"{p}@example.org") for p in tried),
            accepted_at=NOW, started_at=NOW, expires_at=NOW + timedelta(hours=72),
            failures=self.failures, unclear=self.unclear, after_unclear=self.after_unclear,
            tries=self.tries, has_chain=True, planned_id=A, detour=self.detour,
        )  # fmt: skip

    def _block(self, errors: object) -> None:
        if any(isinstance(e, NeedsReauthorisation | Misconfigured) for e in errors):  # type: ignore[attr-defined]
            self.lanes[self.at] = a_lane(lane_id=self.at, is_blocked=True, blocked_since=self.now)
            self.closings += 1

    def _write(
        self, item: Finished, steps: dict[int, Step], errors: dict[int, DeliveryError | None]
    ) -> None:
        turn = onward(item, steps, Ways(chains={1: self.chain}, lanes=self.lanes))
        for position, error in errors.items():
            if isinstance(error, PermanentError):
                self.said_no[position].add(self.at)
            self.may_have_it.pop(position, None)
            if isinstance(error, UncertainError):
                self.may_have_it[position] = self.at
        self.failures += any(isinstance(error, TransientError) for error in errors.values())
        self.unclear += any(isinstance(error, UncertainError) for error in errors.values())
        if turn is not None:
            steps = dict(turn.steps)
            self.detour = dict(turn.detour) if turn.detour else None
            if turn.connection_id != self.at:
                self.hops[self.at, turn.connection_id] += 1
                self.at = turn.connection_id
                self.failures = 0 if turn.begins_anew else self.failures
        for position, step in steps.items():
            self.states[position] = step.state
        self.due = {p for p, step in steps.items() if step.is_due}
        for position in turn.revived if turn else ():
            self.states[position] = State.DEFERRED
            self.due.add(position)
        later = self.now if turn and turn.revived else None
        _, due_at = derive(steps.values(), {}, later=later)
        assert (due_at is not None) == bool(self.due)
        if due_at is not None:
            self.now = max(self.now, due_at)

    def weather(self, change: str) -> None:
        if change == "shut":
            self.lanes[self.at] = a_lane(lane_id=self.at, is_blocked=True, blocked_since=self.now)
            self.closings += 1
        elif change == "pause":
            self.lanes[B] = a_lane(lane_id=B, is_paused=True)
        elif change == "flap":  # whoever has it closes, and all others are open again
            self.now += TEN + timedelta(minutes=1)
            self.weather("open")
            self.weather("shut")
        elif change == "open":
            self.lanes = {key: a_lane(lane_id=key) for key in self.lanes}


@given(
    st.permutations([B, C, 4]).flatmap(
        lambda keys: st.integers(0, 3).map(lambda count: keys[:count])
    ),
    journeys,
    st.sampled_from(AfterUnclear),
    st.sampled_from(sorted(ERRORS)),
    st.sampled_from(["open", "flap"]),
)
def test_every_mail_ends_and_nobody_is_asked_again_who_said_no(
    backups: list[int],
    steps: list[tuple[list[str], str]],
    after_unclear: AfterUnclear,
    forever: str,
    weather: str,
) -> None:
    mail = Journey(backups, after_unclear)
    for kinds, change in steps:
        if not mail.due:
            break
        mail.weather(change)
        mail.attempt(kinds)
    ends = {"login": "no", "set-up": "later"}.get(forever, forever)
    for _ in range(800):
        if not mail.due:
            break
        mail.weather(weather)
        mail.attempt([ends])
    assert not mail.due, "it goes on for ever"
    over = {State.SENT, State.FAILED, State.UNCERTAIN}
    assert set(mail.states.values()) <= over
    # Each connection is left once for each no and each wait, and else only when it closes.
    assert sum(mail.hops.values()) <= 2 * (len(backups) + 1) + mail.closings
    tried_all = {A, *backups}
    for position, state in mail.states.items():
        if state is State.FAILED and ends == "no" and not steps and position in mail.said_no:
            assert mail.said_no[position] == tried_all


def test_a_detour_is_stored_as_it_was_read() -> None:
    met = Detour(refused=frozenset({B}), passed=frozenset({A}), later=(2,), why="refused")
    assert Detour.read(met.stored(is_elsewhere=False)) == met
    assert Detour().stored(is_elsewhere=False) is None
    assert Detour().stored(is_elsewhere=True) == {"refused": [], "passed": [], "why": ""}
    assert finish.ONWARD
