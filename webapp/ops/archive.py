"""The form of a backup: a .tar.gz with the rows of every table as JSON lines, the same for both
databases, and a manifest at its end.

    tables/message/000001.jsonl     one JSON list a row, values in the order of `columns`
    secret.key                      only when asked for
    manifest.json                   last: a backup that was cut off has none

Times are ISO 8601 in UTC, bytes base 64, JSON columns JSON; everything else as it is.
"""

import base64
import gzip
import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

from webapp.db import UTCDateTime

FORMAT = 1
MANIFEST = "manifest.json"
KEY = "secret.key"
LONGEST_MANIFEST = 16 * 1024 * 1024
PIECE = 1024 * 1024

LEFT_OUT = frozenset({"heartbeat", "link_flow", "session", "throttle"})
"""What belongs to a running process or to somebody's browser: people sign in again."""


class BackupError(Exception):
    """A backup cannot be made, or cannot be used; the text says why and what to do."""

    code = 78
    """With which the command ends (sysexits)."""


class Damaged(BackupError):
    """The file is no whole backup."""

    code = 65


class Kind(StrEnum):
    """How the values of a column are written."""

    PLAIN = "plain"
    TIME = "time"
    DATE = "date"
    BYTES = "bytes"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """One table of a backup."""

    columns: tuple[tuple[str, Kind], ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class MemberFacts:
    """One file in it."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup says about itself."""

    made_at: datetime
    version: str
    """Of the program that made it."""
    revision: str
    database: str
    key_check: str
    """Sealed by the installation's key: whoever can open it has that key."""
    key_fingerprint: str
    with_key: bool
    waiting: int
    """Mails that were not over, and not held."""
    accepted: int
    tables: dict[str, TableFacts]
    members: dict[str, MemberFacts]

    def as_json(self) -> bytes:
        """To be written."""
        given = {"format": FORMAT, **asdict(self), "made_at": self.made_at.isoformat()}
        return json.dumps(given, indent=1).encode()

    @classmethod
    def read(cls, raw: bytes) -> "Manifest":
        """From the file; raises Damaged, or BackupError for a format of the future."""
        try:
            given = json.loads(raw)
            if given.pop("format") != FORMAT:
                raise BackupError("A newer Postroom made this backup. Restore it with that one.")
            tables = {
                name: TableFacts(
                    columns=tuple((column, Kind(kind)) for column, kind in table["columns"]),
                    rows=int(table["rows"]),
                )
                for name, table in given.pop("tables").items()
            }
            members = {name: MemberFacts(**facts) for name, facts in given.pop("members").items()}
            made_at = datetime.fromisoformat(given.pop("made_at"))
            return cls(made_at=made_at, tables=tables, members=members, **given)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged("The manifest of this backup cannot be read.") from error


def kind_of(column: sa.Column[Any]) -> Kind:
    """How the values of one of our columns are written."""
    match column.type:
        case UTCDateTime():
            return Kind.TIME
        case sa.Date():
            return Kind.DATE
        case sa.LargeBinary():
            return Kind.BYTES
        case sa.JSON():
            return Kind.JSON
    return Kind.PLAIN


def _as_text(value: datetime | date) -> str:
    return value.isoformat()


def _as_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _same(value: Any) -> Any:
    return value


WRITERS: dict[Kind, Callable[[Any], Any]] = {
    Kind.PLAIN: _same,
    Kind.TIME: _as_text,
    Kind.DATE: _as_text,
    Kind.BYTES: _as_base64,
    Kind.JSON: _same,
}
READERS: dict[Kind, Callable[[Any], Any]] = {
    Kind.PLAIN: _same,
    Kind.TIME: datetime.fromisoformat,
    Kind.DATE: _same,
    Kind.BYTES: base64.b64decode,
    Kind.JSON: json.dumps,
}
"""To what the drivers of both databases take."""


def member_of(table: str, number: int) -> str:
    """The name of the nth file with rows of a table."""
    return f"tables/{table}/{number:06}.jsonl"


def table_of(member: str) -> str | None:
    """The table whose rows a file holds."""
    parts = member.split("/")
    return parts[1] if len(parts) == 3 and parts[0] == "tables" else None


@contextmanager
def _whole_file() -> Iterator[None]:
    """Raises Damaged when what is read in the block is no archive, or ends too soon."""
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Damaged("This file is no backup, or was cut off or changed.") from error


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The files of a backup in order, one after the other; raises Damaged, or OSError."""
    with _whole_file(), tarfile.open(path, "r|gz") as file:
        for info in file:
            content = file.extractfile(info)
            if not info.isreg() or content is None:
                raise Damaged(f"{info.name[:80]} does not belong into a backup.")
            yield info.name, content


def verify(path: Path) -> Manifest:
    """Read all of a backup and compare it with its manifest; raises BackupError, or OSError."""
    with _whole_file():
        found, manifest = _look_through(path)
    for name in sorted(found.keys() | manifest.members.keys()):
        if found.get(name) != manifest.members.get(name):
            raise Damaged(f"{name[:80]} is not what was written into the backup.")
    return manifest


def _look_through(path: Path) -> tuple[dict[str, MemberFacts], Manifest]:
    found: dict[str, MemberFacts] = {}
    manifest: Manifest | None = None
    for name, content in members(path):
        if manifest is not None:
            raise Damaged("Something follows the manifest of this backup.")
        if name == MANIFEST:
            manifest = Manifest.read(content.read(LONGEST_MANIFEST))
        elif name in found:
            raise Damaged(f"{name[:80]} is in the backup twice.")
        else:
            found[name] = _facts_of(content)
    if manifest is None:
        raise Damaged("The backup has no manifest: it was cut off while it was made or copied.")
    return found, manifest


def _facts_of(content: IO[bytes]) -> MemberFacts:
    digest, size = hashlib.sha256(), 0
    while piece := content.read(PIECE):
        digest.update(piece)
        size += len(piece)
    return MemberFacts(sha256=digest.hexdigest(), size=size)
