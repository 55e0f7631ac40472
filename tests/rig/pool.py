"""The databases of a PostgreSQL server of the tests: made once, emptied after each test.

A name is in the hands of one test and never comes again, so that a thread left behind finds nothing
to write to; databases go from one name to the next by renaming. What a test did to the schema is
not undone: such a database is dropped.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

_MODEL = "tables"
_MOST_ROWS = 3000
"""Deleted rows stay behind in the files; with more of them a new database is quicker."""

# By object ids, which a copy shares with its model: what is made anew counts as another.
_SHAPE = """
SELECT concat_ws(' ',
    (SELECT string_agg(concat_ws(',', oid, relname, relkind), ';' ORDER BY oid)
     FROM pg_class WHERE oid >= 16384 AND relnamespace <> 'pg_toast'::regnamespace),
    (SELECT string_agg(
        concat_ws(',', attrelid, attnum, attname, atttypid, attnotnull, atthasdef),
        ';' ORDER BY attrelid, attnum)
     FROM pg_attribute WHERE attrelid >= 16384 AND attnum > 0),
    (SELECT string_agg(oid::text, ';' ORDER BY oid) FROM pg_attrdef),
    (SELECT string_agg(oid::text, ';' ORDER BY oid) FROM pg_constraint WHERE oid >= 16384),
    (SELECT string_agg(concat(oid, tgenabled), ';' ORDER BY oid) FROM pg_trigger),
    (SELECT string_agg(oid::text, ';' ORDER BY oid) FROM pg_proc WHERE oid >= 16384),
    (SELECT string_agg(nspname, ';' ORDER BY oid) FROM pg_namespace
     WHERE oid >= 16384 AND nspname !~ '^pg_(toast_)?temp_'),
    (SELECT string_agg(oid::text, ';' ORDER BY oid) FROM pg_extension WHERE oid >= 16384),
    (SELECT string_agg(setconfig::text, ';') FROM pg_db_role_setting
     JOIN pg_database ON pg_database.oid = setdatabase WHERE datname = current_database())
)
"""
_TABLES = """
SELECT relname FROM pg_class
WHERE oid >= 16384 AND relkind = 'r' AND relnamespace = 'public'::regnamespace
AND relname <> 'alembic_version'
"""
_REVISION = "SELECT version_num FROM alembic_version"
# A number given out is given out, whoever rolls back: these begin anew.
_COUNT_ANEW = """
SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false)
FROM pg_sequences WHERE last_value IS NOT NULL
"""
_OTHERS = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"


class Pool:
    """Hands out databases of the server that answers in this folder."""

    def __init__(self, folder: Path) -> None:
        self._place = f"host={folder} user=postgres"
        self._admin: psycopg.Connection[tuple[object, ...]] | None = None
        self._numbers = itertools.count(1)
        self._empty: list[str] = []
        self._with_tables: list[str] = []
        self._deleted: dict[str, int] = {}
        """How many rows were deleted from those with tables so far, by their names."""
        self._shape_of_model = self._revision = ""

    def take(self) -> str:
        """The name of an empty database."""
        return self._empty.pop() if self._empty else self._create("template0")

    def give_tables(self, name: str, migrate: Callable[[str], None]) -> bool:
        """Put one with tables behind this name, if what is there is empty; whether it was."""
        with self._connect(name) as connection:
            if _found(connection, "SELECT to_regclass('setting')"):
                return False
        if not self._revision:
            self._make_model(migrate)
        other = self._with_tables.pop() if self._with_tables else self._create(_MODEL)
        self._empty.append(self._rename(name, self._new_name()))
        self._rename(other, name)
        return True

    def give_back(self, name: str) -> None:
        """End whatever is connected; keep the database for another test, or drop it."""
        self._run(f"SELECT pg_terminate_backend(pid) FROM ({_OTHERS}) AS others", name)
        kept = self._rename(name, self._new_name())
        if kept not in self._deleted and self._is_empty(kept):
            self._empty.append(kept)
        elif kept in self._deleted and self._clean(kept):
            self._with_tables.append(kept)
        else:
            self._deleted.pop(kept, None)
            self._run(f"DROP DATABASE {kept} WITH (FORCE)")

    def close(self) -> None:
        """Let go of the server; the next call finds it again."""
        if self._admin is not None:
            self._admin.close()
        self._admin = None

    def _is_empty(self, name: str) -> bool:
        with self._connect(name) as connection:
            return not _found(connection, _SHAPE).strip()

    def _clean(self, name: str) -> bool:
        """No rows, every sequence at its beginning; False where more than rows is another."""
        with self._connect(name) as connection:
            same = _found(connection, _SHAPE) == self._shape_of_model
            if not same or _found(connection, _REVISION) != self._revision:
                return False
            # Neither foreign keys nor triggers look at what goes.
            connection.execute("SET session_replication_role = replica")
            tables = [table for (table,) in connection.execute(_TABLES)]
            deletions = [connection.execute(f'DELETE FROM "{table}"'.encode()) for table in tables]
            connection.execute(_COUNT_ANEW)
        self._deleted[name] += sum(done.rowcount for done in deletions)
        return self._deleted[name] < _MOST_ROWS

    def _make_model(self, migrate: Callable[[str], None]) -> None:
        self._run(f"CREATE DATABASE {_MODEL} TEMPLATE template0")
        migrate(_MODEL)
        with self._connect(_MODEL) as connection:
            self._shape_of_model = _found(connection, _SHAPE)
            self._revision = _found(connection, _REVISION)
        self._wait_until_nobody_is_in(_MODEL)

    def _create(self, template: str) -> str:
        name = self._new_name()
        self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
        if template == _MODEL:
            self._deleted[name] = 0
        return name

    def _rename(self, name: str, new: str) -> str:
        self._wait_until_nobody_is_in(name)
        self._run(f"ALTER DATABASE {name} RENAME TO {new}")
        if name in self._deleted:
            self._deleted[new] = self._deleted.pop(name)
        return new

    def _wait_until_nobody_is_in(self, name: str) -> None:
        """The server looks for itself every 100 ms; a connection is gone after one or two."""
        until = time.monotonic() + 10
        while self._run(_OTHERS, name) and time.monotonic() < until:
            time.sleep(0.001)

    def _new_name(self) -> str:
        return f"test_{next(self._numbers)}"

    def _run(self, statement: str, *values: str) -> list[tuple[object, ...]]:
        if self._admin is None:
            self._admin = self._connect("postgres")
        done = self._admin.execute(statement.encode(), values or None)
        return done.fetchall() if done.description else []

    def _connect(self, name: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(f"{self._place} dbname={name}", autocommit=True)


def _found(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> str:
    row = connection.execute(statement.encode()).fetchone()
    return str(row[0] or "") if row else ""
