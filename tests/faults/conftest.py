"""The installation that the weather tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.weather import NoPostgres, Weather, weather_on


@pytest.fixture(params=["sqlite", "postgresql"])
def weather(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Weather]:
    """Runs a test once on each database."""
    try:
        with weather_on(request.param, tmp_path) as made:
            yield made
    except NoPostgres:
        request.getfixturevalue("pg_url")  # says what is missing
        raise
