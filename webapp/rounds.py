"""Work that is done again and again beside everything else, on a thread of its own."""

import threading
from abc import ABC, abstractmethod
from datetime import timedelta
from typing import ClassVar

import sqlalchemy as sa
import structlog

log = structlog.get_logger(__name__)

STOP_SECONDS = 5.0
"""How long a stop waits for a round that is on the network; what it does is claimed, or leased."""


class Rounds(ABC):
    """Does `work` at once and then every `interval`, until `stop`; no error ends it."""

    name: ClassVar[str]

    def __init__(self, interval: timedelta) -> None:
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin with a round at once."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more; may be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
            self._thread = None

    @abstractmethod
    def work(self) -> None:
        """One round; what it raises is logged, and the next one comes all the same."""

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.work()
            except sa.exc.SQLAlchemyError as error:
                log.warning(
                    "a round waits for the database", name=self.name, error=type(error).__name__
                )
            except Exception:  # without rounds links run out and nobody is told: try the next one
                log.exception("a round ended in a bug", name=self.name)
            self._stop.wait(self._interval.total_seconds())
