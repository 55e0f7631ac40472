"""The databases of the tests are fresh, real, and gone afterwards."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from tests.rig.postgres import PostgresServer


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


def test_a_database_is_dropped_while_somebody_is_still_connected(
    postgres: PostgresServer,
) -> None:
    with postgres.empty_database() as url:
        engine = sa.create_engine(url)
        forgotten = engine.connect()
    forgotten.invalidate()
    forgotten.close()
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
