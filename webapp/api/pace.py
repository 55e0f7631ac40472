"""How many requests a key may make: a bucket that fills evenly, for each key.

The buckets live in the memory of the web process, of which an installation on one machine has one;
with several, each has its own.
"""

import math
import threading
from dataclasses import dataclass

MINUTE = 60.0
MOST = 20_000


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What is left after a request."""

    is_granted: bool
    limit: int
    remaining: int
    reset: int
    """Seconds until the bucket is full again."""
    wait: int
    """Seconds until the next request is granted; zero when one is left."""


class Pace:
    """Counts requests; safe to share between threads."""

    def __init__(self, per_minute: int) -> None:
        self._limit = per_minute
        self._lock = threading.Lock()
        self._buckets: dict[int, tuple[float, float]] = {}
        """What was left, and when, by credential."""

    def take(self, credential_id: int, now: float) -> Allowance:
        """One request at this time of a steady clock, in seconds."""
        rate = self._limit / MINUTE
        with self._lock:
            left, since = self._buckets.get(credential_id, (float(self._limit), now))
            left = min(float(self._limit), left + max(0.0, now - since) * rate)
            is_granted = left >= 1
            left -= is_granted
            if len(self._buckets) >= MOST:
                self._buckets.clear()
            self._buckets[credential_id] = (left, now)
        return Allowance(
            is_granted=is_granted,
            limit=self._limit,
            remaining=int(left),
            reset=math.ceil((self._limit - left) / rate),
            wait=0 if left >= 1 else math.ceil((1 - left) / rate),
        )
