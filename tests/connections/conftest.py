"""A database with every table, on both kinds."""

from collections.abc import Iterator

import pytest

from tests.factories import give_tables
from webapp.db import Database


@pytest.fixture
def db(db_url: str) -> Iterator[Database]:
    give_tables(db_url)
    database = Database(db_url)
    yield database
    database.close()
