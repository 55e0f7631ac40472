"""A remote that nobody can reach: the lane pauses, one mail at a time looks, and none is lost."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa

from tests.delivery.test_worker import Post
from tests.factories import an_installation
from tests.mailers.fakes import FakeSmtp, Move
from tests.world import World
from webapp.connections.models import Connection
from webapp.crypto import Keyring, new_key, parse_key
from webapp.delivery import decide, lanes, replan
from webapp.delivery.decide import Claimed, Finished, Result, is_unreachable
from webapp.delivery.drain import Drain
from webapp.delivery.lanes import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    UNREACHABLE,
    Limits,
    breaker_pause,
    own_back_off,
    sane_wait,
)
from webapp.delivery.models import Lane, Message, State
from webapp.mailers.errors import (
    Cause,
    Misconfigured,
    PermanentError,
    TransientError,
    UncertainError,
)
from webapp.microsoft import token_endpoint

NOBODY = TransientError("Connection refused (mail.example:25)", cause_code=Cause.CONNECT)
LATER = TransientError("450 4.2.0 greylisted", code="450 4.2.0", cause_code=Cause.RECIPIENT_REFUSED)
SLOWER = TransientError("slow down", code="429", cause_code=Cause.RATE)
OURS = TransientError("Postroom: KeyError")


class Bench:
    """A drain without a network: what would be sent lies in `out` until the test ends it."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, *, threads: int = 48) -> None:
        self.world = world
        self.threads = threads
        self.out: list[Claimed] = []
        monkeypatch.setattr(world.db, "now", lambda: world.now)
        self.drain = self.take_over()

    def take_over(self) -> Drain:
        """A worker begins, as after a kill."""
        self.out.clear()
        self.drain = Drain(
            self.world.db,
            lambda: Keyring([parse_key(new_key())]),
            token=self.world.take_over(),
            threads=self.threads,
            start=lambda job: self.out.append(job.claim),
        )
        return self.drain

    def go(self) -> list[Claimed]:
        """Claim what may go now; everything that is out."""
        self.drain._refresh_at = 0.0
        self.drain.step([], look=True)
        return self.out

    def end(self, result: Result, *claims: Claimed) -> list[Claimed]:
        """These attempts end so, together; what is out then."""
        done = [
            Finished(claim=claim, result=result, finished_at=self.world.now)
            for claim in claims or tuple(self.out)
        ]
        self.out = [claim for claim in self.out if claim not in [item.claim for item in done]]
        self.drain.step(done, look=True)
        return self.out

    def fail(self, error: Exception, *claims: Claimed) -> list[Claimed]:
        return self.end(Result(error=error, version=1), *claims)  # type: ignore[arg-type]

    def succeed(self, *claims: Claimed) -> list[Claimed]:
        return self.end(Result(code="250", words="ok", version=1), *claims)

    def lane(self, lane_id: int) -> Lane:
        with self.world.db.read() as session:
            found = session.get(Lane, lane_id)
            assert found is not None
            return found

    def messages(self) -> list[Message]:
        with self.world.db.read() as session:
            return list(session.scalars(sa.select(Message).order_by(Message.id)))

    def shut(self, lane_id: int) -> None:
        """Let as many attempts fail as it takes, and see the lane pause."""
        self.go()
        self.fail(NOBODY)
        assert self.lane(lane_id).trips == 1

    def after_the_pause(self, lane_id: int) -> list[Claimed]:
        until = self.lane(lane_id).blocked_until
        assert until is not None
        self.world.now = max(self.world.now, until) + timedelta(seconds=1)
        return self.go()


@pytest.fixture
def bench(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(world, monkeypatch)
    yield made
    assert world.gaps() == 0


def a_lane(bench: Bench, mails: int, **limits: int | None) -> tuple[int, int]:
    """A site with mail, and its lane."""
    site = bench.world.a_site()
    lane = bench.world.lane_of(bench.world.a_connection(site, **limits))
    for _ in range(mails):
        bench.world.accept(site)
    return site, lane


# ---- it opens ----


def test_three_attempts_in_a_row_that_reach_nobody_pause_the_lane(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 5)
    assert len(bench.go()) == 5
    began = bench.world.now
    assert bench.fail(NOBODY) == []
    lane = bench.lane(lane_id)
    assert (lane.is_blocked, lane.trips, lane.blocked_kind) == (True, 1, UNREACHABLE)
    assert lane.blocked_words == "Connection refused (mail.example:25)"
    assert lane.blocked_since == began
    assert lane.blocked_until is not None
    assert FIRST_PAUSE * 0.9 <= lane.blocked_until - began <= FIRST_PAUSE * 1.1


def test_two_in_a_row_are_ordinary_failures(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 2)
    bench.go()
    bench.fail(NOBODY)
    assert bench.lane(lane_id).trips == 0
    assert [mail.failures for mail in bench.messages()] == [1, 1]
    bench.world.later(minutes=2)
    assert not bench.go()[0].is_probe


@pytest.mark.parametrize(
    "between", [None, LATER, UncertainError("lost", cause_code=Cause.LOST_ANSWER)]
)
def test_an_answer_in_between_begins_the_count_anew(
    bench: Bench, between: TransientError | None
) -> None:
    _, lane_id = a_lane(bench, 5)
    first, second, third, fourth, fifth = list(bench.go())
    bench.fail(NOBODY, first, second)
    bench.end(Result(error=between, version=1), third)
    bench.fail(NOBODY, fourth, fifth)
    assert bench.lane(lane_id).trips == 0


def test_a_bug_of_ours_says_nothing_of_the_remote(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 4)
    first, second, third, fourth = list(bench.go())
    bench.fail(NOBODY, first, second)
    bench.fail(OURS, third)
    assert bench.lane(lane_id).trips == 0
    bench.fail(NOBODY, fourth)
    assert bench.lane(lane_id).trips == 1


def test_what_failed_with_older_settings_does_not_count(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 3)
    bench.go()
    with bench.world.db.write() as session:
        session.execute(sa.update(Connection).values(version=2))
    bench.fail(NOBODY)
    assert bench.lane(lane_id).trips == 0


def test_a_commit_that_failed_is_not_counted_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lane_id = a_lane(bench, 2)
    first, second = list(bench.go())
    bench.fail(NOBODY, first)

    def away(*_: object) -> None:
        raise sa.exc.OperationalError("commit", {}, Exception("away"))

    with monkeypatch.context() as patch:
        patch.setattr("webapp.delivery.drain.finish", away)
        with pytest.raises(sa.exc.OperationalError):
            bench.fail(NOBODY, second)
    bench.fail(NOBODY, second)
    assert bench.lane(lane_id).trips == 0
    assert [mail.state for mail in bench.messages()] == [State.DEFERRED] * 2


# ---- what the mail meets ----


def test_mail_that_met_the_closed_door_waits_for_the_look_and_keeps_its_retries(
    bench: Bench,
) -> None:
    _, lane_id = a_lane(bench, 4)
    first, *others = list(bench.go())
    bench.fail(NOBODY, *others)
    bench.fail(NOBODY, first)  # it was under way when the others came back
    until = bench.lane(lane_id).blocked_until
    assert {(mail.state, mail.failures, mail.due_at) for mail in bench.messages()} == {
        (State.DEFERRED, 1, until)
    }
    bench.world.accept(1)
    assert bench.go() == []


def test_exactly_one_mail_goes_to_look(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 6)
    bench.shut(lane_id)
    (probe,) = bench.after_the_pause(lane_id)
    assert probe.is_probe
    bench.world.later(minutes=9)
    bench.world.accept(1)
    assert bench.go() == [probe]


def test_one_mail_at_a_time_goes_even_where_another_lane_is_done(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 6)
    bench.shut(lane_id)
    a_lane(bench, 1)
    other, probe = sorted(bench.after_the_pause(lane_id), key=lambda claim: claim.is_probe)
    assert bench.succeed(other) == [probe]


def test_a_probe_that_gets_through_lets_everything_flow(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 6)
    bench.shut(lane_id)
    (probe,) = bench.after_the_pause(lane_id)
    flowing = bench.succeed(probe)
    assert len(flowing) == 5
    assert not any(claim.is_probe for claim in flowing)
    lane = bench.lane(lane_id)
    assert (lane.is_blocked, lane.trips, lane.blocked_kind, lane.blocked_since) == (
        False, 0, "", None,
    )  # fmt: skip
    bench.succeed()
    assert {mail.state for mail in bench.messages()} == {State.SENT}


def test_what_flows_then_keeps_to_the_pace(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 9, per_minute=8, concurrency=3)
    bench.shut(lane_id)
    (probe,) = bench.after_the_pause(lane_id)
    assert len(bench.succeed(probe)) == 3
    assert len(bench.succeed()) == 1  # three failed, the probe and three more: eight a minute


def test_each_probe_in_vain_doubles_the_pause(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 3)
    since = bench.world.now
    bench.shut(lane_id)
    for trips in range(2, 8):
        (probe,) = bench.after_the_pause(lane_id)
        began = bench.world.now
        bench.fail(NOBODY, probe)
        lane = bench.lane(lane_id)
        assert (lane.trips, lane.blocked_since) == (trips, since)
        usual = min(FIRST_PAUSE * 2 ** (trips - 1), LONGEST_PAUSE)
        assert lane.blocked_until is not None
        assert usual * 0.9 <= lane.blocked_until - began <= usual * 1.1
    assert {mail.failures for mail in bench.messages()} == {1}


def test_another_mail_looks_each_time(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 3)
    bench.shut(lane_id)
    looked = []
    for _ in range(6):
        (probe,) = bench.after_the_pause(lane_id)
        looked.append(probe.message_id)
        bench.fail(NOBODY, probe)
    assert sorted(looked) == sorted([mail.id for mail in bench.messages()] * 2)


@pytest.mark.parametrize("said", [LATER, PermanentError("550 no such user", code="550")])
def test_a_probe_that_is_answered_closes_the_breaker_whatever_is_said(
    bench: Bench, said: TransientError
) -> None:
    _, lane_id = a_lane(bench, 4)
    bench.shut(lane_id)
    (probe,) = bench.after_the_pause(lane_id)
    assert len(bench.fail(said, probe)) == 3
    assert bench.lane(lane_id).trips == 0


def test_a_probe_that_is_asked_to_slow_down_does_so(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 4)
    bench.shut(lane_id)
    (probe,) = bench.after_the_pause(lane_id)
    assert bench.fail(SLOWER, probe) == []
    lane = bench.lane(lane_id)
    assert (lane.trips, lane.throttled, lane.blocked_kind) == (0, 1, "transient")


def test_a_probe_that_finds_the_set_up_broken_waits_for_a_person(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 4)
    bench.shut(lane_id)
    (probe,) = bench.after_the_pause(lane_id)
    assert bench.fail(Misconfigured("no such registration"), probe) == []
    lane = bench.lane(lane_id)
    assert (lane.trips, lane.blocked_until, lane.blocked_kind) == (0, None, "misconfigured")


def test_a_probe_that_never_left_is_followed_by_another(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 4)
    bench.shut(lane_id)
    (probe,) = bench.after_the_pause(lane_id)
    (another,) = bench.fail(OURS, probe)
    assert another.is_probe
    assert another.message_id != probe.message_id


def test_saved_settings_open_the_lane(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 4)
    bench.shut(lane_id)
    with bench.world.db.write() as session:
        lane = session.get(Lane, lane_id)
        connection = session.scalars(sa.select(Connection)).one()
        assert lane is not None
        replan.connection_saved(
            session, connection, lane_key=lane.key, limits=None, now=bench.world.now
        )
    assert len(bench.go()) == 4
    assert not bench.out[0].is_probe


# ---- nobody else suffers, and nothing is lost ----


def test_two_sites_on_the_lane_look_in_turn(bench: Bench) -> None:
    first, second = bench.world.a_site(), bench.world.a_site()
    lane_id = bench.world.lane_of(bench.world.a_connection(first, lane="smtp:shared"))
    bench.world.a_connection(second, lane="smtp:shared")
    for site in (first, first, first, first, second, second):
        bench.world.accept(site)
    bench.shut(lane_id)
    looked = []
    for _ in range(4):
        (probe,) = bench.after_the_pause(lane_id)
        looked.append(probe.site_id)
        bench.fail(NOBODY, probe)
    assert looked in ([first, second] * 2, [second, first] * 2)
    (probe,) = bench.after_the_pause(lane_id)
    assert {claim.site_id for claim in bench.succeed(probe)} == {first, second}


def test_other_lanes_go_on(bench: Bench) -> None:
    _, shut = a_lane(bench, 4)
    bench.shut(shut)
    _, other = a_lane(bench, 4)
    assert {claim.lane_id for claim in bench.go()} == {other}
    assert bench.succeed() == []
    assert bench.lane(other).trips == 0
    assert bench.lane(shut).trips == 1


def test_a_worker_that_is_killed_with_the_probe_out_looks_again_with_one(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 4)
    bench.shut(lane_id)
    (killed,) = bench.after_the_pause(lane_id)
    bench.take_over()
    (probe,) = bench.go()
    assert probe.is_probe
    states = {mail.id: mail.state for mail in bench.messages()}
    if probe.message_id != killed.message_id:
        assert states[killed.message_id] == State.UNCERTAIN
    while bench.succeed():
        pass
    assert {mail.state for mail in bench.messages()} == {State.SENT}


def test_a_mail_whose_time_is_over_still_gets_its_tries(bench: Bench) -> None:
    _, lane_id = a_lane(bench, 3)
    bench.shut(lane_id)
    bench.world.later(hours=73)  # the machine slept: nobody looked
    tried = 1
    while True:
        (probe,) = bench.after_the_pause(lane_id)
        bench.fail(NOBODY, probe)
        tried += 1
        if State.FAILED in [mail.state for mail in bench.messages()]:
            break
    failed = next(mail for mail in bench.messages() if mail.state == State.FAILED)
    assert failed.attempts == len(decide.RETRY_MINUTES) + 1
    assert tried > 2 * len(decide.RETRY_MINUTES)  # three mails took turns


def test_being_asked_to_wait_is_no_try(bench: Bench) -> None:
    a_lane(bench, 1)
    for _ in range(10):
        bench.go()
        bench.fail(SLOWER)
        bench.world.later(minutes=16)
    bench.world.later(hours=73)
    for _ in range(3):
        bench.go()
        bench.fail(NOBODY)
        bench.world.later(minutes=3)
    assert bench.messages()[0].state == State.DEFERRED


# ---- the figures ----


def test_the_pause_doubles_up_to_ten_minutes() -> None:
    seconds = [breaker_pause(trips, 0.5).total_seconds() for trips in range(1, 9)]
    assert seconds == [30, 60, 120, 240, 480, 600, 600, 600]
    assert breaker_pause(1, 0.0) < breaker_pause(1, 0.999) <= FIRST_PAUSE * 1.1
    assert breaker_pause(10_000, 0.5) == LONGEST_PAUSE


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (None, timedelta()),
        (timedelta(days=-3), timedelta()),
        (timedelta(minutes=7), timedelta(minutes=7)),
        (timedelta(days=365), timedelta(days=1)),
        (timedelta.max, timedelta(days=1)),
    ],
)
def test_a_wish_to_wait_is_kept_within_reason(asked: timedelta | None, given: timedelta) -> None:
    assert sane_wait(asked) == given


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        (timedelta(days=365), timedelta(days=1), timedelta(days=1)),
        (timedelta(days=-365), own_back_off(1), own_back_off(1)),
        (timedelta(), own_back_off(1), own_back_off(1)),
        (timedelta(minutes=10), timedelta(minutes=10), timedelta(minutes=10)),
    ],
)
def test_a_remote_cannot_ask_for_a_year_nor_for_no_rest_at_all(
    bench: Bench, asked: timedelta, least: timedelta, most: timedelta
) -> None:
    _, lane_id = a_lane(bench, 1)
    bench.go()
    bench.fail(TransientError("slow", code="429", cause_code=Cause.RATE, retry_after=asked))
    until = bench.lane(lane_id).blocked_until
    assert until is not None
    assert least <= until - bench.world.now <= most
    due = bench.messages()[0].due_at
    assert due is not None
    assert bench.world.now <= due <= until


@pytest.mark.parametrize(
    ("error", "is_about_the_lane"),
    [
        (TransientError("x", cause_code=Cause.DNS), True),
        (TransientError("x", cause_code=Cause.TLS), True),
        (TransientError("x", cause_code=Cause.TIMEOUT), False),
        (TransientError("x", cause_code=Cause.LOST), False),
        (Misconfigured("x", cause_code=Cause.TLS), False),
        (UncertainError("x", cause_code=Cause.LOST_ANSWER), False),
        (None, False),
    ],
)
def test_only_what_nobody_took_up_is_about_the_lane(
    error: TransientError | None, is_about_the_lane: bool
) -> None:
    assert is_unreachable(error) is is_about_the_lane


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("9" * 5000, 3600), ("-5", None), ("soon", None), ("", None)],
)
def test_a_token_endpoint_cannot_ask_for_ever_either(header: str, seconds: int | None) -> None:
    answer = requests.Response()
    answer.headers["Retry-After"] = header
    wanted = None if seconds is None else timedelta(seconds=seconds)
    assert token_endpoint.retry_after(answer) == wanted


# ---- with a worker and a server ----


@pytest.fixture
def post(db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Post]:
    monkeypatch.setattr(lanes, "FIRST_PAUSE", timedelta(seconds=0.5))
    monkeypatch.setattr(lanes, "LONGEST_PAUSE", timedelta(seconds=1))
    monkeypatch.setattr(decide, "RETRY_MINUTES", (0.01,) * 6)
    made = Post(an_installation(db_url, tmp_path))
    yield made
    made.close()


def at_the_same_place(server: FakeSmtp) -> FakeSmtp:
    """Another server, where one was before."""
    again = FakeSmtp()
    again._listener.close()
    again.port = server.port
    again._listener = socket.create_server(("127.0.0.1", server.port))
    return again


def test_a_server_that_was_down_gets_everything_when_it_is_back(post: Post) -> None:
    down = FakeSmtp()
    down._listener.close()
    post.connect(down, limits=Limits(concurrency=2))
    first = post.site
    post.hand_in(6)
    post.site = post.world.a_site()
    other = post.server()
    post.connect(other)
    post.work()
    post.site = first
    post.wait_for(lambda: post.lane().trips >= 2)
    post.hand_in(2)
    assert post.lane().blocked_kind == UNREACHABLE
    assert State.FAILED not in post.states()
    back = at_the_same_place(down)
    post.servers.append(back.__enter__())
    post.wait_for(lambda: post.states() == [State.SENT] * 8)
    assert len(back.mails) == 8
    post.wait_for(lambda: not post.lane().is_blocked)
    assert post.lane().trips == 0
    assert post.world.gaps() == 0


def test_a_server_that_hangs_before_it_greets_counts_as_not_reached(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = replace(post.surroundings(), timeout=timedelta(seconds=0.3))
    monkeypatch.setattr(post, "surroundings", lambda: hasty)
    server = post.server(always={"GREETING": Move.HANG})
    post.connect(server)
    post.hand_in(4)
    post.work()
    post.wait_for(lambda: post.lane().trips >= 1)
    assert "no answer" in post.lane().blocked_words
    del server.always["GREETING"]
    post.wait_for(lambda: post.states() == [State.SENT] * 4)
    assert post.world.gaps() == 0
