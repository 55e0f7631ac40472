"""A clock that was ahead for hours and is put right: what waits does not wait for them again."""

from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.delivery.test_breaker import LATER, SLOWER, Bench
from tests.world import World
from webapp.delivery import beats
from webapp.delivery.clock import KEEP_SECONDS, LATECOMERS, ClockWatch
from webapp.delivery.decide import Finished, Result
from webapp.delivery.models import Heartbeat, Lane, Message, State

HOURS = timedelta(hours=6)
MINUTES = timedelta(minutes=2)


class Hall:
    """A ledger whose clock can be put anywhere, and one who watches it."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.passed = 0.0
        monkeypatch.setattr(world.db, "now", lambda: world.now)
        self.site = world.a_site()
        self.lane = world.lane_of(world.a_connection(self.site))
        self.watch = self.a_watch()

    def a_watch(self) -> ClockWatch:
        """As a worker that has just begun."""
        return ClockWatch(self.world.db, lambda: self.passed)

    def wait(self, seconds: float) -> None:
        """Let so much pass, whatever the clock says."""
        self.passed += seconds
        self.world.later(seconds=seconds)

    def put_back(self) -> None:
        """The clock is right again, and somebody notices."""
        self.watch.round()
        self.world.now -= HOURS
        self.watch.round()

    def a_mail(self, **values: Any) -> str:
        queue_id = self.world.accept(self.site)
        with self.world.db.write() as session:
            found = session.scalars(sa.select(Message).where(Message.queue_id == queue_id)).one()
            for name, value in values.items():
                setattr(found, name, value)
        return queue_id

    def due(self, queue_id: str) -> datetime | None:
        return self.world.message(queue_id).due_at


@pytest.fixture
def hall(world: World, monkeypatch: pytest.MonkeyPatch) -> Hall:
    return Hall(world, monkeypatch)


def test_what_was_put_off_waits_as_long_as_it_was_to(hall: Hall) -> None:
    world, right = hall.world, hall.world.now
    before = hall.a_mail(state=State.DEFERRED, attempts=1, due_at=right + MINUTES)
    past = hall.a_mail(due_at=right - MINUTES)
    world.now += HOURS
    fresh = hall.a_mail()
    put_off = {"attempts": 1, "due_at": world.now + MINUTES, "started_at": world.now}
    deferred = hall.a_mail(state=State.DEFERRED, **put_off)
    unclear = hall.a_mail(state=State.UNCERTAIN, **put_off)
    over = hall.a_mail(state=State.SENT, due_at=None, started_at=world.now)
    pause = {"is_blocked": True, "blocked_until": world.now + MINUTES, "blocked_since": world.now}
    world.set_lane(hall.lane, **pause)

    hall.put_back()
    assert world.now == right
    assert hall.due(past) == right - MINUTES
    assert (hall.due(before) or right) <= right
    assert hall.due(fresh) == right
    assert hall.due(deferred) == hall.due(unclear) == right + MINUTES
    assert world.message(deferred).started_at == right
    assert (hall.due(over), world.message(over).started_at) == (None, right + HOURS)
    with world.db.read() as session:
        lane = session.get_one(Lane, hall.lane)
    assert (lane.blocked_until, lane.blocked_since) == (right + MINUTES, right)


def test_the_next_worker_sees_it_too(hall: Hall) -> None:
    hall.world.now += HOURS
    hall.watch.round()
    queue_id = hall.a_mail()
    hall.watch = hall.a_watch()
    hall.world.now -= HOURS
    hall.watch.round()
    assert hall.due(queue_id) == hall.world.now


def test_what_another_process_stores_by_the_old_time_is_fetched(hall: Hall) -> None:
    hall.world.now += HOURS
    hall.put_back()

    def stored_late(**values: Any) -> str:
        return hall.a_mail(due_at=hall.world.now + HOURS, **values)

    fresh, tried = stored_late(), stored_late(attempts=1, state=State.DEFERRED)
    hall.wait(KEEP_SECONDS)
    hall.watch.round()
    assert hall.due(fresh) == hall.world.now
    assert (hall.due(tried) or hall.world.now) > hall.world.now + MINUTES
    hall.wait(LATECOMERS)
    hall.watch.round()
    last = stored_late()
    hall.wait(KEEP_SECONDS)
    hall.watch.round()
    assert hall.due(last) != hall.world.now


@pytest.mark.parametrize("step", [timedelta(seconds=-4), HOURS], ids=["a moment", "ahead"])
def test_other_steps_of_the_clock_move_nothing(hall: Hall, step: timedelta) -> None:
    hall.watch.round()
    due_at = hall.world.now + 10 * HOURS
    queue_id = hall.a_mail(due_at=due_at)
    hall.world.now += step
    hall.wait(KEEP_SECONDS)
    hall.watch.round()
    assert hall.due(queue_id) == due_at


def test_no_lane_waits_for_room_until_a_time_of_the_old_clock(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, site = Bench(world, monkeypatch), world.a_site()
    world.a_connection(site, per_minute=1)
    world.now += HOURS
    for _ in range(2):
        world.accept(site)
    bench.succeed(*bench.go())
    assert bench.go() == []
    world.now -= HOURS
    with world.db.write() as session:
        session.execute(sa.update(Message).values(due_at=sa.case((_WAITS, world.now))))
    assert len(bench.go()) == 1


_WAITS = Message.due_at.is_not(None)


@pytest.mark.parametrize("error", [LATER, SLOWER], ids=["put off", "slow down"])
def test_an_attempt_that_ended_by_the_old_clock_ended_now(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench, site = Bench(world, monkeypatch), world.a_site()
    world.a_connection(site)
    queue_id = world.accept(site)
    (claim,) = bench.go()
    result = Result(error=error, version=1)  # type: ignore[arg-type]
    done = Finished(claim=claim, result=result, finished_at=world.now + HOURS)
    bench.drain.step([done], look=True)
    assert world.message(queue_id).due_at < world.now + MINUTES  # type: ignore[operator]
    assert world.attempts(queue_id)[0].finished_at == world.now


def test_a_process_that_said_so_by_the_old_clock_may_be_dead(world: World) -> None:
    def say(name: str, at: datetime) -> None:
        with world.db.write_connection() as connection:
            beats.beat(connection, name, "deliver", at, {})

    say("dead", world.now + HOURS)
    say("alive", world.now + HOURS)
    say("alive", world.now)
    with world.db.read() as session:
        assert list(session.scalars(sa.select(Heartbeat.name))) == ["alive"]
