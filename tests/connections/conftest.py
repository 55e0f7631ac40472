"""A database with every table, on both kinds."""

from collections.abc import Iterator

import pytest

from webapp import schema
from webapp.db import Database


@pytest.fixture
def db(db_url: str) -> Iterator[Database]:
    database = Database(db_url)
    schema.migrate(database)
    yield database
    database.close()
