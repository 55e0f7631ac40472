"""What the outcome of an attempt says about its lane and its connection.

A refused login or a broken set-up blocks the lane until somebody acts; a request to slow down
blocks it for a while, and so does a remote that nobody can reach: then one mail at a time finds out
whether it is back. A success lifts that. Written only where something changes.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection as DbConnection

from webapp.connections.models import Connection, Health
from webapp.delivery.decide import (
    Finished,
    Result,
    blocks_lane,
    is_throttling,
    is_unreachable,
    says_nothing,
)
from webapp.delivery.lanes import (
    TRIPS_AFTER,
    UNREACHABLE,
    breaker_pause,
    own_back_off,
    sane_wait,
)
from webapp.delivery.models import Lane, Outcome
from webapp.mailers.errors import Cause, DeliveryError

ABOUT_ONE_MAIL = {
    Cause.CONTENT_REFUSED,
    Cause.TOO_LARGE,
    Cause.RECIPIENT_REFUSED,
    Cause.TOO_MANY_RECIPIENTS,
    Cause.UNSUPPORTED,
}
"""Failures that say nothing about the connection."""

LIFTABLE = ("", Outcome.TRANSIENT.value, UNREACHABLE)
"""Blocks that time or a success may end; the others wait for a person."""

OPEN_DOOR = {
    "is_blocked": False,
    "throttled": 0,
    "trips": 0,
    "blocked_until": None,
    "blocked_since": None,
    "blocked_kind": "",
    "blocked_words": "",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A lane's new standing; `until` None while blocked means until somebody acts."""

    is_blocked: bool
    until: datetime | None = None
    trips: int = 0


class Outcomes:
    """Remembers what is written down already."""

    def __init__(self) -> None:
        self._health: dict[int, tuple[str, str]] = {}
        self._unwritten: list[tuple[int, int, Health, str, str]] = []
        self._missed: Counter[int] = Counter()
        """By lane: attempts in a row that reached nobody."""
        self._missed_before: Counter[int] = Counter()

    def forget(self) -> None:
        """Pages may have changed it since."""
        self._health.clear()
        self._unwritten.clear()

    def begin(self) -> None:
        """What is noted from here on may have to be undone."""
        self._missed_before = self._missed.copy()

    def undo(self) -> None:
        """What was noted since `begin` did not last, and comes again."""
        self._missed = self._missed_before
        self.forget()

    def note(
        self, connection: DbConnection, finished: Sequence[Finished], now: datetime
    ) -> dict[int, Block]:
        """Write down what these attempts say; returns the lanes whose standing changed."""
        blocks: dict[int, Block] = {}
        for item in finished:
            error = telling(item.result)
            block = self._lane(connection, item, error, now)
            if block is not None:
                blocks[item.claim.lane_id] = block
            self._connection(item, error)
        return blocks

    @property
    def has_news(self) -> bool:
        """Whether `write_health` has something to do."""
        return bool(self._unwritten)

    def write_health(self, connection: DbConnection, now: datetime) -> None:
        """What connections look like now, in a transaction of its own.

        A page that saves a connection locks that row before its lane; the ledger's transaction
        holds lanes, and must not ask for connections then.
        """
        # By key, as pages lock them: two in different orders would wait for each other.
        in_order = sorted(self._unwritten, key=lambda news: news[0])
        for key, version, health, code, words in in_order:
            connection.execute(
                sa.update(Connection)
                .where(Connection.id == key, Connection.version == version)
                .values(
                    health=health,
                    health_since=sa.case(
                        (Connection.health == health, Connection.health_since),
                        else_=sa.bindparam("since", now),
                    ),
                    last_code=code[:40],
                    last_words=words,
                )
            )
        self._unwritten.clear()

    def _lane(
        self, connection: DbConnection, item: Finished, error: DeliveryError | None, now: datetime
    ) -> Block | None:
        if is_unreachable(error):
            assert error is not None
            return self._miss(connection, item, error, now)
        if not says_nothing(error):
            self._missed.pop(item.claim.lane_id, None)
        if error is None:
            return self._lift(connection, item, now)
        if is_throttling(error):
            return self._slow_down(connection, item, error, now)
        if blocks_lane(error):
            return self._stop(connection, item, error, now)
        if item.claim.is_probe and not says_nothing(error):
            return self._close(connection, item)
        return None

    def _miss(
        self, connection: DbConnection, item: Finished, error: DeliveryError, now: datetime
    ) -> Block | None:
        """Nobody was reached: after some of these in a row the lane pauses, longer each time."""
        claim = item.claim
        lane = connection.execute(
            sa.select(Lane.trips, Lane.blocked_until, Lane.blocked_kind).where(
                Lane.id == claim.lane_id
            )
        ).one()
        if lane.blocked_kind not in LIFTABLE:
            return None
        is_open = lane.trips > 0 and lane.blocked_until is not None
        if is_open and not claim.is_probe:  # it began before the others came back in vain
            return Block(is_blocked=True, until=lane.blocked_until, trips=lane.trips)
        if not self._is_of_now(connection, item):
            return None
        self._missed[claim.lane_id] += 1
        if not is_open and self._missed[claim.lane_id] < TRIPS_AFTER:
            return None
        del self._missed[claim.lane_id]
        trips = lane.trips + 1
        # Spreads the looks of many lanes; nothing is guessed from it.
        until = now + breaker_pause(trips, random.random())  # noqa: S311
        connection.execute(
            sa.update(Lane)
            .where(Lane.id == claim.lane_id)
            .values(
                is_blocked=True,
                throttled=0,
                trips=trips,
                blocked_until=until,
                blocked_since=sa.case(
                    (Lane.blocked_kind == UNREACHABLE, Lane.blocked_since),
                    else_=sa.bindparam("since", now),
                ),
                blocked_kind=UNREACHABLE,
                blocked_words=error.words,
            )
        )
        return Block(is_blocked=True, until=until, trips=trips)

    def _close(self, connection: DbConnection, item: Finished) -> Block | None:
        """Somebody answered the probe, whatever they said: the breaker has done its work."""
        closed = connection.execute(
            sa.update(Lane)
            .where(Lane.id == item.claim.lane_id, Lane.blocked_kind == UNREACHABLE)
            .values(**OPEN_DOOR)
        )
        return Block(is_blocked=False) if closed.rowcount else None

    def _is_of_now(self, connection: DbConnection, item: Finished) -> bool:
        """Whether the settings are still those that this attempt was made with."""
        current = sa.select(Connection.version).where(Connection.id == item.claim.connection_id)
        return connection.scalar(current) == item.result.version

    def _stop(
        self, connection: DbConnection, item: Finished, error: DeliveryError, now: datetime
    ) -> Block | None:
        """Unless the settings were saved since this attempt began: then the refusal is history."""
        if not self._is_of_now(connection, item):
            return None
        connection.execute(
            sa.update(Lane)
            .where(Lane.id == item.claim.lane_id)
            .values(
                is_blocked=True,
                trips=0,
                blocked_until=None,
                blocked_since=sa.case(
                    (Lane.is_blocked, Lane.blocked_since), else_=sa.bindparam("since", now)
                ),
                blocked_kind=error.kind.value.replace("_", "-"),
                blocked_words=error.words,
            )
        )
        return Block(is_blocked=True)

    def _slow_down(
        self, connection: DbConnection, item: Finished, error: DeliveryError, now: datetime
    ) -> Block | None:
        lane = connection.execute(
            sa.select(Lane.throttled, Lane.blocked_until, Lane.blocked_kind).where(
                Lane.id == item.claim.lane_id
            )
        ).one()
        if lane.blocked_kind not in LIFTABLE:
            return None
        already = (
            lane.blocked_until is not None
            and lane.blocked_until > now
            and lane.blocked_kind != UNREACHABLE
        )
        # Answers to mails that were under way together are one request to slow down.
        times = lane.throttled if already else lane.throttled + 1
        pause = max(sane_wait(error.retry_after), own_back_off(times))
        until = max(now + pause, lane.blocked_until or now)
        connection.execute(
            sa.update(Lane)
            .where(Lane.id == item.claim.lane_id)
            .values(
                is_blocked=True,
                throttled=times,
                trips=0,
                blocked_until=until,
                blocked_since=sa.func.coalesce(Lane.blocked_since, sa.bindparam("since", now)),
                blocked_kind=Outcome.TRANSIENT.value,
                blocked_words=error.words,
            )
        )
        return Block(is_blocked=True, until=until)

    def _lift(self, connection: DbConnection, item: Finished, now: datetime) -> Block | None:
        """A mail got through. One that began before the remote asked to wait lifts nothing."""
        if item.claim.is_probe:
            return self._close(connection, item)
        if self._health.get(item.claim.connection_id, ("",))[0] == Health.WORKING:
            return None
        lifted = connection.execute(
            sa.update(Lane)
            .where(
                Lane.id == item.claim.lane_id,
                Lane.blocked_kind.in_(LIFTABLE),
                Lane.blocked_kind != UNREACHABLE,  # that one a probe ends
                sa.or_(Lane.is_blocked, Lane.throttled > 0),
                sa.or_(Lane.blocked_until.is_(None), Lane.blocked_until <= now),
            )
            .values(**OPEN_DOOR)
        )
        return Block(is_blocked=False) if lifted.rowcount else None

    def _connection(self, item: Finished, error: DeliveryError | None) -> None:
        key = item.claim.connection_id
        if error is None:
            health, words, code = Health.WORKING, "", ""
        elif blocks_lane(error):
            health, words, code = (
                Health(error.kind.value.replace("_", "-")),
                error.words,
                error.code,
            )
        elif error.cause_code in ABOUT_ONE_MAIL:
            return
        elif is_throttling(error):
            self._health.pop(key, None)
            return
        else:
            health, words, code = Health.FAILING, error.words, error.code
        if self._health.get(key) == (health, words):
            return
        self._health[key] = (health, words)
        self._unwritten.append((key, item.result.version, health, code, words))


def telling(result: Result) -> DeliveryError | None:
    """The error that says most: the attempt's own, or one that is about the whole login."""
    if result.error is not None:
        return result.error
    for error in result.refused.values():
        if blocks_lane(error) or is_throttling(error):
            return error
    return None
