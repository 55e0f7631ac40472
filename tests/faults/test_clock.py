"""The clock of a running installation goes ahead by hours, and is put back: nothing is lost,
nothing comes twice without its mark, and nothing waits for the hours to come once more."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.faults.clock import FILE, Clock
from tests.faults.rig import wait_for
from tests.faults.weather import NoPostgres, Weather, weather_on
from webapp.delivery.models import Lane, Message, State

SIX_HOURS = 6 * 3600.0
LONGEST = timedelta(minutes=2)
"""For what these faults make wait."""


@pytest.fixture(params=["sqlite", "postgresql"])
def jumpy(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Weather, Clock]]:
    clock = Clock(tmp_path / "clock")
    clock.set(ahead=0)
    monkeypatch.setenv(FILE, str(clock.path))
    try:
        with weather_on(request.param, tmp_path, "tests.faults.clock") as weather:
            yield weather, clock
    except NoPostgres:
        request.getfixturevalue("pg_url")  # says what is missing
        raise


def test_a_clock_that_was_ahead_holds_nobody_up(jumpy: tuple[Weather, Clock]) -> None:
    weather, clock = jumpy
    sandbox = weather.sink.sandbox

    def trouble() -> None:
        sandbox.fault("sent_504", times=2)
        sandbox.fault("throttled", times=1, retry_after=20)

    weather.storm(lambda: sandbox.fault("sent_504", times=2))
    clock.set(ahead=SIX_HOURS)
    weather.storm(trouble)
    wait_for(lambda: waits(weather), "mail that waits, and a lane")
    clock.set(ahead=0)
    weather.storm()
    wait_for(lambda: longest_wait(weather) < LONGEST, "times of now", seconds=20)
    weather.calm()
    weather.account("clock")


def waits(weather: Weather) -> bool:
    """Whether something waits that was put off while the clock was ahead."""
    with weather.installation() as installation, installation.db.read() as session:
        unclear = session.scalar(sa.select(Message.id).where(Message.state == State.UNCERTAIN))
        return bool(unclear and session.scalar(sa.select(Lane.id).where(Lane.is_blocked)))


def longest_wait(weather: Weather) -> timedelta:
    """How long the last of what waits for a time still has to wait for it."""
    with weather.installation() as installation, installation.db.read() as session:
        now = installation.db.now()
        times = [
            *session.scalars(sa.select(Message.due_at).where(Message.due_at.is_not(None))),
            *session.scalars(sa.select(Lane.blocked_until).where(Lane.blocked_until.is_not(None))),
        ]
        return max((time - now for time in times), default=timedelta())
