"""Fixtures for every test. The machinery behind them is in `tests/rig/`.

Tests and fixtures import helpers by their full name (`from tests.rig.ports import free_port`): the
checkout is on the path (`pythonpath` in pyproject.toml), and folders with helpers are packages.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import certifi
import hypothesis
import pytest
import structlog

from tests.rig import ports
from tests.rig.absence import on_ci
from webapp import trust

pytest_plugins = ["tests.rig.browser", "tests.rig.postgres", "tests.pages"]

# Examples take as long as the machine is busy; on CI the same ones are tried every time.
hypothesis.settings.register_profile(
    "here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("here"), derandomize=True, database=None
)
hypothesis.settings.load_profile("ci" if on_ci() else "here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        names = getattr(item, "fixturenames", [])
        if "browser" in names:
            item.add_marker("browser")
        # Opened last and closed first: a server waits for whoever is connected, and what it cuts
        # off counts as an error of the page.
        names.sort(key=lambda name: name in {"open_page", "page"})


# Processes configure their log; in tests it stays as it comes, but for a traceback that looks into
# variables, which can run code of theirs.
structlog.configure(
    processors=[
        structlog.stdlib.add_log_level,
        structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]
)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Whoever runs the tests may have Postroom configured in the same shell."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("POSTROOM_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Everything is on loopback, and each connection reads again what is trusted: a hundred
    certificates of the world take longer than all else it does."""
    whole = Path(certifi.where()).read_text(encoding="utf-8")
    end = "-----END CERTIFICATE-----\n"
    one = tmp_path_factory.mktemp("trust") / "one.pem"
    one.write_text(whole[: whole.index(end)] + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certifi, "where", lambda: str(one))
        patch.setattr(trust, "environment_certificates", list)
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def db_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh empty database; a test that asks for it runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'postroom.db'}"
    url: str = request.getfixturevalue("pg_url")
    return url


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Call it for a port on 127.0.0.1 that nobody listens on, a new one each time."""
    return ports.free_port
