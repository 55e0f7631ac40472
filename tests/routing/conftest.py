"""A ledger on each database, and rules to put into it."""

from collections.abc import Iterator

import pytest

from tests.world import World, a_world


@pytest.fixture
def world(db_url: str) -> Iterator[World]:
    """Runs a test once on SQLite and once on PostgreSQL."""
    made = a_world(db_url)
    yield made
    made.db.close()
