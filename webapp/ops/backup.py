"""`postroom backup`: everything the database holds at one moment, while Postroom runs.

One snapshot of the database is read from beginning to end, so that accepting and delivering go on.
Memory holds a few rows at a time. The file appears under its name only once it is whole.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp import __version__, schema
from webapp.db import Base, Database
from webapp.delivery.models import OPEN_STATES, Content, Message, Setting, State, is_in
from webapp.delivery.tally import accounts
from webapp.disk import free_bytes
from webapp.installation import KEY_CHECK, Installation, key_file
from webapp.ops.archive import (
    KEY,
    LEFT_OUT,
    MANIFEST,
    WRITERS,
    BackupError,
    Kind,
    Manifest,
    MemberFacts,
    TableFacts,
    kind_of,
    member_of,
)

MEMBER_BYTES = 8 * 1024 * 1024
"""A file in the backup is closed once it is this long; one row may make it longer."""
ROWS_AT_A_TIME = 500
MAILS_AT_A_TIME = 4
"""Of the table with the mails themselves, each of which may have 50 MB."""
LEAST_FREE = 100 * 1024 * 1024
"""Where the backup is written; below it, the machine has other worries."""


def back_up(installation: Installation, target: Path, *, with_key: bool) -> Manifest:
    """Write a backup to `target`, readable by its owner only; an older one there is replaced.

    Raises BackupError, OSError or SQLAlchemyError, and leaves no half file behind.
    """
    with _whole(target) as file, snapshot(installation.db) as connection:
        writing = _Writing(file, target.parent)
        tables = {
            table.name: writing.table(connection, table)
            for table in Base.metadata.sorted_tables
            if table.name not in LEFT_OUT
        }
        if with_key:
            writing.member(KEY, _key_text(installation).encode())
        manifest = Manifest(
            made_at=installation.db.now(),
            version=__version__,
            revision=schema.head(),
            database=installation.db.url.get_backend_name(),
            key_check=_key_check(connection),
            key_fingerprint=installation.keyring.fingerprint(),
            with_key=with_key,
            waiting=count_waiting(connection),
            accepted=sum(account.accepted for account in accounts(connection)),
            tables=tables,
            members=dict(writing.members),
        )
        writing.member(MANIFEST, manifest.as_json())
        writing.close()
    return manifest


@contextmanager
def snapshot(db: Database) -> Iterator[Connection]:
    """Everything as it is at one moment, for as long as the block reads."""
    with db.reader.connect() as connection:
        if not db.is_sqlite:
            connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        yield connection


def count_waiting(connection: Connection) -> int:
    """Mails that a delivery worker will take up by itself."""
    states = [is_in(state) for state in OPEN_STATES if state is not State.HELD]
    unclear = sa.and_(is_in(State.UNCERTAIN), Message.due_at.is_not(None))
    return sum(
        connection.scalar(sa.select(sa.func.count()).select_from(Message).where(condition)) or 0
        for condition in (*states, unclear)
    )


def _key_check(connection: Connection) -> str:
    stored = connection.scalar(sa.select(Setting.value).where(Setting.name == KEY_CHECK))
    return str(stored["token"]) if stored else ""


def _key_text(installation: Installation) -> str:
    settings = installation.settings
    if settings.secret_keys:
        return "\n".join(key.get_secret_value() for key in settings.secret_keys) + "\n"
    return key_file(settings).read_text()


@contextmanager
def _whole(target: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `target` at the end, or vanishes."""
    fresh = target.with_name(f"{target.name}.{os.getpid()}.part")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise


class NoRoom(BackupError):
    """The backup would fill the disk."""

    code = 75


class _Writing:
    """A backup under way."""

    def __init__(self, file: IO[bytes], folder: Path) -> None:
        self._folder = folder
        self._gzip = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, filename="")
        self._tar = tarfile.open(fileobj=self._gzip, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.members: dict[str, MemberFacts] = {}

    def member(self, name: str, content: bytes) -> None:
        """Add one file."""
        if free_bytes(self._folder) < LEAST_FREE + len(content):
            raise NoRoom(
                f"The disk of {self._folder} is nearly full. Choose another place for the backup."
            )
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o600
        self._tar.addfile(info, io.BytesIO(content))
        self.members[name] = MemberFacts(
            sha256=hashlib.sha256(content).hexdigest(), size=len(content)
        )

    def table(self, connection: Connection, table: sa.Table) -> TableFacts:
        """Add the rows of a table."""
        kinds = [kind_of(column) for column in table.columns]
        buffer, held, rows = io.BytesIO(), 0, 0
        for row in _rows(connection, table):
            buffer.write(_line(kinds, row))
            rows += 1
            if buffer.tell() >= MEMBER_BYTES:
                held += 1
                self.member(member_of(table.name, held), buffer.getvalue())
                buffer = io.BytesIO()
        if buffer.tell():
            self.member(member_of(table.name, held + 1), buffer.getvalue())
        columns = tuple(
            (column.name, kind) for column, kind in zip(table.columns, kinds, strict=True)
        )
        return TableFacts(columns=columns, rows=rows)

    def close(self) -> None:
        """Nothing more comes."""
        self._tar.close()
        self._gzip.close()


def _rows(connection: Connection, table: sa.Table) -> Iterator[sa.Row[Any]]:
    """The rows by key, as they come: never a whole table in memory."""
    at_a_time = MAILS_AT_A_TIME if table is Content.__table__ else ROWS_AT_A_TIME
    streaming = connection.execution_options(stream_results=True, yield_per=at_a_time)
    yield from streaming.execute(sa.select(table).order_by(*table.primary_key.columns))


def _line(kinds: list[Kind], row: sa.Row[Any]) -> bytes:
    values = [
        None if value is None else WRITERS[kind](value)
        for kind, value in zip(kinds, row, strict=True)
    ]
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"
