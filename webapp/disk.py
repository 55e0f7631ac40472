"""The room that is left where the data lies, and the part of it that new mail may not use.

What was accepted must still go out, and that it went out must still be written down; so new mail is
refused while there is room for that.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import sqlalchemy as sa

from webapp.config import Settings

LOOK_EVERY = 1.0
"""Seconds. What was taken since the last look counts as gone meanwhile."""
FULL = "452 4.3.1 The disk is nearly full here: try again later"


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write; raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def data_folders(settings: Settings) -> tuple[Path, ...]:
    """Where this installation writes on this machine: the instance folder, and that of an SQLite
    file elsewhere. The disk of a PostgreSQL server is that server's business."""
    url = sa.make_url(settings.database)
    if url.get_backend_name() != "sqlite" or not url.database:
        return (settings.instance,)
    return tuple(dict.fromkeys((settings.instance, Path(url.database).absolute().parent)))


class Disk:
    """Whether there is room for more mail; looks at most once a second. Safe to share."""

    def __init__(
        self,
        folders: Sequence[Path],
        reserve_bytes: int,
        *,
        free: Callable[[Path], int] = free_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders = tuple(folders)
        self._reserve = reserve_bytes
        self._free = free
        self._clock = clock
        self._room = 0
        self._looked = float("-inf")

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The disk of an installation, with the reserve that is set for it."""
        return cls(data_folders(settings), settings.disk_reserve_bytes)

    def room(self) -> int:
        """Bytes above the reserve; negative below it."""
        now = self._clock()
        if now - self._looked >= LOOK_EVERY:
            self._room = self.free() - self._reserve
            self._looked = now  # last: another thread believes the room as soon as this is set
        return self._room

    def free(self) -> int:
        """Bytes free right now, on the fullest of the file systems in use."""
        return min((self._free(folder) for folder in self._folders), default=0)

    def has_room(self, size: int = 0) -> bool:
        """Whether a mail of this size may be taken. What cannot be looked at is taken for fine: the
        write itself will tell."""
        try:
            return self.room() >= size
        except OSError:
            return True

    def take(self, size: int) -> None:
        """Count a mail that was accepted until the next look: the database writes it twice, into
        its log and into its place."""
        self._room -= 2 * size
