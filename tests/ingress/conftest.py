"""A ledger on each database, and what accepts mail into it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import World, a_world
from webapp.delivery.wake import Waker
from webapp.ingress.accept import Acceptor


@pytest.fixture
def world(db_url: str) -> Iterator[World]:
    """Runs a test once on SQLite and once on PostgreSQL."""
    made = a_world(db_url)
    yield made
    made.db.close()


@pytest.fixture
def acceptor(world: World, tmp_path: Path) -> Iterator[Acceptor]:
    """Stores in grouped commits, on a thread of its own."""
    waker = Waker(tmp_path)
    made = Acceptor(world.db, waker)
    yield made
    made.close()
    waker.close()
