"""Pace: how much a lane may take now. Pure; the worker keeps one `Pace` per lane it owns.

A window never lets through more than its limit in any stretch of its length, wherever that
stretch begins: it counts in small parts and looks back one part further than the length.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a remote allows; None is unlimited."""

    concurrency: int | None = None
    per_minute: int | None = None
    per_hour: int | None = None
    per_day: int | None = None
    recipients_per_day: int | None = None


@dataclass
class Window:
    """At most `limit` in any `span`."""

    limit: int
    span: timedelta
    parts: int
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def part(self) -> float:
        """Seconds per part."""
        return self.span.total_seconds() / self.parts

    def room(self, now: datetime) -> int:
        """How many may be taken now."""
        self._forget(now)
        return max(0, self.limit - sum(self.counts.values()))

    def take(self, now: datetime, count: int) -> None:
        """Count what was taken."""
        index = self._index(now)
        self.counts[index] = self.counts.get(index, 0) + count

    def next_room(self, now: datetime, count: int = 1) -> datetime:
        """The first moment with room for so many, or for all there can be; `now` when there is."""
        excess = self.room(now) - min(count, self.limit)
        for index in sorted(self.counts):
            if excess >= 0:
                break
            excess += self.counts[index]
            now = _at((index + 1) * self.part + self.span.total_seconds())
        return now

    def _index(self, now: datetime) -> int:
        return math.floor(now.timestamp() / self.part)

    def _forget(self, now: datetime) -> None:
        oldest = math.floor((now.timestamp() - self.span.total_seconds()) / self.part)
        newest = self._index(now)
        # What lies ahead was counted by a clock that has been put back since.
        for index in [index for index in self.counts if index < oldest or index > newest]:
            del self.counts[index]


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


RECIPIENTS = "recipients"
UNREACHABLE = "unreachable"
"""Why a lane is blocked while its breaker is open: nobody answers there."""
SPANS = {
    "minute": (timedelta(minutes=1), 60),
    "hour": (timedelta(hours=1), 60),
    "day": (timedelta(days=1), 96),
    RECIPIENTS: (timedelta(days=1), 96),
}


class Pace:
    """All windows of one lane. One of them counts recipients, the others count mails."""

    def __init__(self, limits: Limits, stored: Mapping[str, Mapping[str, int]]) -> None:
        self.limits = limits
        self.windows: dict[str, Window] = {}
        named = {
            "minute": limits.per_minute,
            "hour": limits.per_hour,
            "day": limits.per_day,
            RECIPIENTS: limits.recipients_per_day,
        }
        for name, limit in named.items():
            if limit is None:
                continue
            span, parts = SPANS[name]
            counts = {int(index): count for index, count in stored.get(name, {}).items()}
            self.windows[name] = Window(limit, span, parts, counts)

    @property
    def counts_recipients(self) -> bool:
        """Whether `fit` has something to say."""
        return RECIPIENTS in self.windows

    def room(self, now: datetime) -> int | None:
        """How many mails may start now; None is unlimited."""
        return min((window.room(now) for window in self._of_mails()), default=None)

    def fit(self, now: datetime, recipients: Sequence[int]) -> int:
        """How many of these mails may start, in their order; each is given by its recipients.

        A mail with more of them than the limit starts once nothing else counts any more.
        """
        window = self.windows.get(RECIPIENTS)
        if window is None:
            return len(recipients)
        room = window.room(now)
        if recipients and recipients[0] > room == window.limit:
            return 1
        fitting = 0
        for count in recipients:
            room -= count
            if room < 0:
                break
            fitting += 1
        return fitting

    def take(self, now: datetime, mails: int, recipients: int) -> None:
        """Count what starts now."""
        for name, window in self.windows.items():
            window.take(now, recipients if name == RECIPIENTS else mails)

    def next_room(self, now: datetime, recipients: int = 1) -> datetime:
        """When the next mail may start, if it has so many recipients."""
        return max(
            (
                window.next_room(now, recipients if name == RECIPIENTS else 1)
                for name, window in self.windows.items()
            ),
            default=now,
        )

    def _of_mails(self) -> Iterator[Window]:
        return (window for name, window in self.windows.items() if name != RECIPIENTS)

    def stored(self) -> dict[str, dict[str, int]]:
        """The counts as they stand in `lane.windows`."""
        return {
            name: {str(index): count for index, count in window.counts.items()}
            for name, window in self.windows.items()
        }


TRIPS_AFTER = 3
"""So many attempts in a row that reached nobody open the breaker of a lane."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=30), timedelta(minutes=10)
PAUSE_JITTER = 0.1
LONGEST_WAIT = timedelta(days=1)
"""What a remote may ask for; a year is a mistake, or a way to be rid of us."""


def breaker_pause(trips: int, chance: float) -> timedelta:
    """How long nobody knocks after so many times in vain (from 1); `chance` in [0, 1) spreads it,
    so that lanes of one host do not all come back in the same second."""
    doubled: timedelta = FIRST_PAUSE * 2 ** min(trips - 1, 10)
    pause = min(doubled, LONGEST_PAUSE)
    return pause * (1 - PAUSE_JITTER + 2 * PAUSE_JITTER * chance)


def sane_wait(asked: timedelta | None) -> timedelta:
    """A remote's wish to be left alone: never less than nothing, never more than a day."""
    return min(max(asked or timedelta(), timedelta()), LONGEST_WAIT)


def own_back_off(times_in_a_row: int) -> timedelta:
    """How long a lane waits at least when a remote asked to slow down, whatever it asked for."""
    return timedelta(seconds=min(900, 5 * 2 ** min(times_in_a_row, 10)))
