"""The database: engines, units of work, column types. SQLite and PostgreSQL alike.

SQLite has one writer at a time, whoever it is. Its own busy handler polls with growing pauses, and
a busy process starves the others; so every writer first queues at a file lock, which the kernel
hands on without polling (see docs/adr/0003-one-writer-at-a-time.md).
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Dialect, Engine, make_url
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeDecorator

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

Clock = Callable[[], datetime]

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A 64-bit key; on SQLite it must be spelled INTEGER to be the rowid."""

ASK_EVERY = 30.0
ASK_SKEW = 1.0
"""Seconds between questions for the database's time; and how far this machine's clock may be off
what it was at the last one."""


def utcnow() -> datetime:
    """This machine's time, aware UTC."""
    return datetime.now(UTC)


class UTCDateTime(TypeDecorator[datetime]):
    """Aware UTC in and out, on both databases; a naive datetime is refused."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Normalise to UTC; SQLite stores it without an offset."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime reached the database")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the offset back."""
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


class SealedText(TypeDecorator[str]):
    """A token made by `Keyring.seal`. Every column of this type is found by key rotation."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, purpose: str = "") -> None:
        super().__init__()
        self.purpose = purpose


class Base(DeclarativeBase):
    """Parent of every table."""

    metadata = sa.MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UTCDateTime,
        dict[str, Any]: sa.JSON,
        list[str]: sa.JSON,
        list[Any]: sa.JSON,
    }


class WriteLock:
    """One SQLite writer at a time, over threads and processes, in the order they came.

    Two file locks: a writer takes `turn` while it waits for `write`, and lets go of it as soon as
    it has that; so whoever just wrote cannot overtake the one already waiting.
    """

    def __init__(self, path: Path) -> None:
        self._threads = threading.Lock()
        self._turn = os.open(f"{path}-turn", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._write = os.open(f"{path}-lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for the turn, and keep it for the block."""
        with self._threads:
            fcntl.flock(self._turn, fcntl.LOCK_EX)
            try:
                fcntl.flock(self._write, fcntl.LOCK_EX)
            finally:
                fcntl.flock(self._turn, fcntl.LOCK_UN)
            try:
                yield
            finally:
                fcntl.flock(self._write, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the file descriptors back."""
        for descriptor in (self._turn, self._write):
            with suppress(OSError):
                os.close(descriptor)


PLAIN = (str, int, bytes, bool, float, type(None))


class Driver:
    """A unit of work at the driver's own speed: statements with `?` for values, rows as they come.

    For the paths that every mail takes. Column defaults of the models do not apply.
    """

    def __init__(self, connection: Any, *, is_sqlite: bool) -> None:
        self._cursor = connection.cursor()
        self.is_sqlite = is_sqlite

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What a statement returns."""
        self._cursor.execute(self._spelled(statement), values)
        found: list[tuple[Any, ...]] = self._cursor.fetchall()
        return found

    def many(self, statement: str, values: Sequence[tuple[Any, ...]]) -> None:
        """One statement, with many rows of values."""
        self._cursor.executemany(self._spelled(statement), values)

    def insert(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of the same columns; every column without a default in the database is in them."""
        names = tuple(rows[0])
        marks = ", ".join("?" * len(names))
        statement = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608
        self.many(statement, [self.plain(row.values()) for row in rows])

    def _spelled(self, statement: str) -> str:
        return statement if self.is_sqlite else statement.replace("?", "%s")

    def plain(self, values: Iterable[Any]) -> tuple[Any, ...]:
        """Values as the driver takes them, and as the column types above store them."""
        return tuple(
            value if type(value) in PLAIN else _plain(value, self.is_sqlite) for value in values
        )


def _plain(value: Any, sqlite: bool) -> Any:
    if isinstance(value, datetime):
        return _stamp(value) if sqlite else value
    if isinstance(value, Enum):
        return value.value
    return json.dumps(value)


@lru_cache(maxsize=256)
def _stamp(value: datetime) -> str:
    """As SQLAlchemy stores it; the mails of one commit share theirs."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"


class Database:
    """Engines for reading and for writing, and the clock that belongs to the database."""

    def __init__(self, url: str | URL, *, pool_size: int = 12) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._lock: WriteLock | None = None
        if self.is_sqlite:
            if not self.url.database or self.url.database == ":memory:":
                raise ValueError("SQLite must be a file: several processes share it")
            self._lock = WriteLock(Path(self.url.database))
            self.writer = _sqlite_engine(self.url, reading=False, pool_size=1)
            self.reader = _sqlite_engine(self.url, reading=True, pool_size=pool_size)
        else:
            self.writer = _postgresql_engine(self.url, pool_size)
            self.reader = self.writer.execution_options(postgresql_readonly=True)
        self._told = (utcnow(), time.monotonic())
        """The database's time when it last said so, and when that was."""
        self._ask_at = 0.0
        self._skew = 0.0

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A unit of work that may change things: commits at the end, or rolls back on an error."""
        with self.hold(), Session(self.writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write_connection(self) -> Iterator[Connection]:
        """The same without the ORM."""
        with self.hold(), self.writer.begin() as connection:
            yield connection

    @contextmanager
    def write_driver(self) -> Iterator[Driver]:
        """The same without SQLAlchemy. Raises its errors all the same."""
        with self.hold():
            pool = self.writer.raw_connection()
            try:
                driver = Driver(pool, is_sqlite=self.is_sqlite)
                if self.is_sqlite:
                    driver.rows("BEGIN IMMEDIATE")
                yield driver
                pool.commit()
            except self.writer.dialect.loaded_dbapi.Error as error:
                self._give_up(pool, error)
                raise sa.exc.DBAPIError.instance(
                    None, None, error, self.writer.dialect.loaded_dbapi.Error
                ) from error
            except BaseException:
                pool.rollback()
                raise
            finally:
                pool.close()

    def _give_up(self, pool: Any, error: Exception) -> None:
        """Roll back, and let go of a connection that cannot even do that."""
        try:
            pool.rollback()
        except self.writer.dialect.loaded_dbapi.Error:
            pool.invalidate(error)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A unit of work that only reads; the database refuses anything else."""
        with Session(self.reader, expire_on_commit=False) as session:
            yield session

    def look_up(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        """The first row of a plain SELECT with `?` for values, at the driver's own speed.

        For the few look-ups that every mail needs; types come as the driver gives them. Raises
        OperationalError.
        """
        pool = self.reader.raw_connection()
        try:
            cursor = pool.cursor()
            cursor.execute(statement if self.is_sqlite else statement.replace("?", "%s"), values)
            row: tuple[Any, ...] | None = cursor.fetchone()
            cursor.close()
        except self.reader.dialect.loaded_dbapi.Error as error:
            pool.invalidate(error)
            raise sa.exc.OperationalError(statement, None, error) from error
        finally:
            pool.close()
        return row

    @contextmanager
    def hold(self) -> Iterator[None]:
        """The right to write; immediate on PostgreSQL, a turn in the queue on SQLite."""
        if self._lock is None:
            yield
            return
        with self._lock.hold():
            yield

    def now(self) -> datetime:
        """The clock of the ledger: this machine's on SQLite, the database's on PostgreSQL.

        Never fails: while the database is away, it goes on from what that told last, whatever is
        done to this machine's clock.
        """
        if self.is_sqlite:
            return utcnow()
        ticks = time.monotonic()
        skew = time.time() - ticks  # changes when the clock is set, and when the machine has slept
        if ticks >= self._ask_at or abs(skew - self._skew) > ASK_SKEW:
            self._ask_at, self._skew = ticks + ASK_EVERY, skew
            with suppress(sa.exc.SQLAlchemyError), self.reader.connect() as connection:
                theirs = connection.scalar(sa.text("SELECT clock_timestamp()"))
                self._told = theirs, time.monotonic()
        told, at = self._told
        return told + timedelta(seconds=time.monotonic() - at)

    def close(self) -> None:
        """Close every connection."""
        self.reader.dispose()
        self.writer.dispose()
        if self._lock is not None:
            self._lock.close()


def _sqlite_engine(url: URL, *, reading: bool, pool_size: int) -> Engine:
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0 if not reading else 20,
        connect_args={"check_same_thread": False, "timeout": 30, "cached_statements": 512},
        poolclass=sa.pool.QueuePool,
        pool_reset_on_return=None,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        if not reading:
            cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA wal_autocheckpoint = 4000")
            cursor.execute("PRAGMA journal_size_limit = 67108864")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA cache_size = -16000")
        cursor.execute("PRAGMA temp_store = MEMORY")
        cursor.execute("PRAGMA mmap_size = 268435456")
        if reading:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _postgresql_engine(url: URL, pool_size: int) -> Engine:
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=20,
        pool_pre_ping=True,
        pool_recycle=1800,
        hide_parameters=True,
        # A network that swallows packets must not hold a part for the kernel's two hours.
        connect_args={
            "connect_timeout": 5,
            "keepalives_idle": 20,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        # A server or a role may have it off; then a crash loses mail that was answered 250.
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = on")
            cursor.execute("SET timezone = 'UTC'")
        connection.commit()

    return engine
