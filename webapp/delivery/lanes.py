"""Pace: how much a lane may take now. Pure; the worker keeps one `Pace` per lane it owns.

A window never lets through more than its limit in any stretch of its length, wherever that
stretch begins: it counts in small parts and looks back one part further than the length.
"""

import math
from collections.abc import Mapping
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

    def next_room(self, now: datetime) -> datetime:
        """The first moment with room for one; `now` when there is room already."""
        excess = self.limit - 1 - (self.limit - self.room(now))
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


SPANS = {
    "minute": (timedelta(minutes=1), 60),
    "hour": (timedelta(hours=1), 60),
    "day": (timedelta(days=1), 96),
}


class Pace:
    """All windows of one lane."""

    def __init__(self, limits: Limits, stored: Mapping[str, Mapping[str, int]]) -> None:
        self.limits = limits
        self.windows: dict[str, Window] = {}
        named = {
            "minute": limits.per_minute,
            "hour": limits.per_hour,
            "day": limits.per_day,
        }
        for name, limit in named.items():
            if limit is None:
                continue
            span, parts = SPANS[name]
            counts = {int(index): count for index, count in stored.get(name, {}).items()}
            self.windows[name] = Window(limit, span, parts, counts)

    def room(self, now: datetime) -> int | None:
        """How many mails may start now; None is unlimited."""
        return min((window.room(now) for window in self.windows.values()), default=None)

    def take(self, now: datetime, count: int) -> None:
        """Count mails that start now."""
        for window in self.windows.values():
            window.take(now, count)

    def next_room(self, now: datetime) -> datetime:
        """When the next mail may start."""
        return max((window.next_room(now) for window in self.windows.values()), default=now)

    def stored(self) -> dict[str, dict[str, int]]:
        """The counts as they stand in `lane.windows`."""
        return {
            name: {str(index): count for index, count in window.counts.items()}
            for name, window in self.windows.items()
        }


def own_back_off(times_in_a_row: int) -> timedelta:
    """How long a lane waits at least when a remote asked to slow down, whatever it asked for."""
    return timedelta(seconds=min(900, 5 * 2 ** min(times_in_a_row, 10)))
