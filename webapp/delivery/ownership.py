"""Who may deliver: one worker at a time for an installation, any other stands by.

SQLite: a file lock in `instance/`, let go by the kernel when the process ends in whatever way.
PostgreSQL: an advisory lock on a connection of its own, let go when that connection ends.
"""

import fcntl
import os
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.db import Database

ADVISORY_KEY = 7702


class Ownership(Protocol):
    """The right to deliver."""

    def acquire(self) -> bool:
        """Try once; True when it is ours."""

    def alive(self) -> bool:
        """Whether it still is."""

    def release(self) -> None:
        """Let the next one have it."""


class FileOwnership:
    """A lock on a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Try once."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def alive(self) -> bool:
        """A file lock does not go away by itself."""
        return self._descriptor is not None

    def release(self) -> None:
        """Let go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class AdvisoryOwnership:
    """A session-level advisory lock."""

    def __init__(self, db: Database) -> None:
        self._engine = db.writer.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None

    def acquire(self) -> bool:
        """Try once."""
        connection = self._engine.connect()
        ours = connection.scalar(sa.text(f"SELECT pg_try_advisory_lock({ADVISORY_KEY})"))
        if not ours:
            connection.close()
            return False
        self._connection = connection
        return True

    def alive(self) -> bool:
        """Ask the server: a lost connection means that another worker may have begun."""
        if self._connection is None:
            return False
        try:
            self._connection.scalar(sa.text("SELECT 1"))
        except sa.exc.DBAPIError:
            return False
        return True

    def release(self) -> None:
        """Close the connection for good: a pooled one would keep the lock."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def ownership(db: Database, instance: Path) -> Ownership:
    """The kind that fits the database."""
    if db.is_sqlite:
        return FileOwnership(instance / "deliver.lock")
    return AdvisoryOwnership(db)
