"""`postroom` with a clock that can be set: `python -m tests.faults.clock serve`

The clock is off by as many seconds as the file says that TEST_CLOCK names.
"""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from webapp import db

FILE = "TEST_CLOCK"


class Clock:
    """Set from outside, looked at by every process of an installation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._real = time.time

    def set(self, *, ahead: float) -> None:
        """From now on it is this many seconds later than it is."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(str(ahead))
        fresh.replace(self.path)

    def time(self) -> float:
        """Seconds since 1970."""
        return self._real() + float(self.path.read_text())

    def now(self) -> datetime:
        """The same, as the ledger takes it."""
        return datetime.fromtimestamp(self.time(), UTC)


def main() -> None:
    """Put the clock in place before anything has looked at one."""
    clock = Clock(Path(os.environ[FILE]))
    time.time = clock.time
    db.utcnow = clock.now
    from webapp import cli

    cli.main()


if __name__ == "__main__":
    main()
