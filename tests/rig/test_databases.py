"""The databases of the tests are fresh, real, and gone afterwards."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import give_tables
from tests.rig.postgres import PostgresServer
from webapp import schema
from webapp.db import Database


def test_a_database_is_new_for_each_test(db_url: str) -> None:
    engine = sa.create_engine(db_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE letter (words TEXT)"))
        connection.execute(sa.text("INSERT INTO letter VALUES ('寄件')"))
        assert connection.scalar(sa.text("SELECT words FROM letter")) == "寄件"
    engine.dispose()


def test_it_is_new_for_the_next_test_too(db_url: str) -> None:
    engine = sa.create_engine(db_url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_postgresql_says_that_commits_are_synchronous_and_text_is_utf8(pg_url: str) -> None:
    engine = sa.create_engine(pg_url)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW synchronous_commit")) == "on"
        assert connection.scalar(sa.text("SHOW server_encoding")) == "UTF8"
    engine.dispose()


def test_a_database_is_given_back_while_somebody_is_still_connected(
    postgres: PostgresServer,
) -> None:
    with postgres.empty_database() as url:
        engine = sa.create_engine(url)
        forgotten = engine.connect()
    forgotten.invalidate()
    forgotten.close()
    engine.dispose()


@pytest.mark.parametrize(
    "left_behind",
    [
        "INSERT INTO setting (name, value) VALUES ('words', '1')",
        "ALTER TABLE setting ADD COLUMN colour TEXT",
        "DROP TABLE setting CASCADE",
        "ALTER TABLE setting DISABLE TRIGGER ALL",
        "UPDATE alembic_version SET version_num = '0001'",
        "CREATE TABLE letter (words TEXT)",
        "CREATE INDEX letters ON setting (name, name)",
        "SELECT nextval('site_id_seq')",
    ],
)
def test_one_with_tables_is_as_new_for_the_next_test(
    postgres: PostgresServer, left_behind: str
) -> None:
    asked = (
        "SELECT count(*) FROM setting",
        "SELECT count(*) FROM pg_attribute WHERE attname = 'colour'",
        "SELECT count(*) FROM pg_trigger WHERE tgenabled = 'D'",
        "SELECT count(*) FROM pg_class WHERE relname IN ('letter', 'letters')",
        "SELECT count(*) FROM pg_sequences WHERE last_value IS NOT NULL",
        f"SELECT count(*) FROM alembic_version WHERE version_num <> '{schema.head()}'",
    )
    for statement in (left_behind, "SELECT 1"):
        with postgres.empty_database() as url:
            assert give_tables(url)
            engine = sa.create_engine(url)
            with engine.begin() as connection:
                assert [connection.scalar(sa.text(line)) for line in asked] == [0] * len(asked)
                connection.execute(sa.text(statement))
            engine.dispose()


def test_one_that_somebody_migrated_is_not_for_the_next_test(postgres: PostgresServer) -> None:
    for _ in range(2):
        with postgres.empty_database() as url, closing(Database(url)) as db:
            assert schema.is_empty(db)
            schema.migrate(db)


def test_whoever_stays_connected_reaches_nothing_that_is_used_again(
    postgres: PostgresServer,
) -> None:
    with postgres.empty_database() as url:
        give_tables(url)
        engine = sa.create_engine(url)
        engine.connect().close()
    with postgres.empty_database() as next_url:
        give_tables(next_url)
        for _ in range(2):
            with pytest.raises(sa.exc.OperationalError):
                engine.connect().execute(sa.text("INSERT INTO setting VALUES ('a', '1')"))
    engine.dispose()


def test_the_server_ends_with_a_process_that_is_killed(postgres: PostgresServer) -> None:
    script = textwrap.dedent(
        """
        import os, signal
        from tests.rig.postgres import PostgresServer, find_postgres
        server = PostgresServer(find_postgres())
        print(server._folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    folder = Path(done.stdout.strip())
    assert folder.name.startswith("pr-pg-")
    wait_until(lambda: not folder.exists())


def wait_until(reached: Callable[[], bool], *, at_most_seconds: float = 30) -> None:
    end = time.monotonic() + at_most_seconds
    while not reached():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)
