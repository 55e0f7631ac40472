"""Draining lanes: record what the sending threads finished, claim what they do next.

Both happen in one commit, on the worker's one writing thread. What is on the network is known
here by `claims`; it changes only after a commit, so that a commit that failed leaves it right.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection as DbConnection
from sqlalchemy.orm import Session

from webapp.config import ConfigError
from webapp.connections.models import Connection
from webapp.connections.service import NotReady, load_mailer
from webapp.crypto import Keyring, SealError
from webapp.db import Database
from webapp.delivery import queue
from webapp.delivery.backups import NO_WAYS, Chain, Ways, wants_way
from webapp.delivery.decide import Claimed, Finished
from webapp.delivery.detours import chains_of, ways_for
from webapp.delivery.finish import finish, still_open
from webapp.delivery.lanes import Limits, Pace
from webapp.delivery.models import Lane, Message
from webapp.delivery.outcomes import Outcomes
from webapp.delivery.sender import Job, Opened
from webapp.delivery.settle import settle
from webapp.delivery.upkeep import reconcile
from webapp.mailers.base import Mailer
from webapp.mime.outgoing import FromBlock, Placeholders
from webapp.sites.models import Site, SitePace

log = structlog.get_logger(__name__)

LOOK_AGAIN = 1.0
UNLIMITED_SLOTS = 16
"""What a lane without a limit may have in flight: it must not take every thread."""


@dataclass
class LaneState:
    """A lane as its owner sees it."""

    id: int
    pace: Pace
    is_paused: bool = False
    is_blocked: bool = False
    blocked_until: datetime | None = None
    trips: int = 0
    last_site: int = 0
    not_before: datetime | None = None

    def stands(self, now: datetime) -> bool:
        """Whether nothing may be claimed from it now."""
        if self.is_paused:
            return True
        if self.is_blocked and (self.blocked_until is None or self.blocked_until > now):
            return True
        return self.not_before is not None and self.not_before > now


@dataclass
class Taken:
    """What one step claimed, until its commit is through."""

    claims: list[Claimed] = field(default_factory=list)
    paces: list[tuple[Pace, int, int]] = field(default_factory=list)
    """Of a lane or a site: mails, recipients."""


@dataclass(frozen=True, kw_only=True)
class SiteNow:
    """What an attempt of a site's mail needs to know of it."""

    placeholders: Placeholders
    chain: Chain


_LANES_NOW = sa.select(Connection.id, Connection.lane_id).where(
    Connection.id.in_(sa.bindparam("keys", expanding=True))
)

_WHOSE = (
    sa.select(Message.site_id, Message.connection_id, Connection.version)
    .outerjoin(Connection, Connection.id == Message.connection_id)
    .where(Message.id.in_(sa.bindparam("ids", expanding=True)))
    .distinct()
)


_LIMITED_SITES = sa.select(Site.id, Site.per_minute, Site.per_hour, Site.per_day).where(
    sa.or_(Site.per_minute.is_not(None), Site.per_hour.is_not(None), Site.per_day.is_not(None))
)


class Drain:
    """The lanes of this installation while this worker owns them."""

    def __init__(
        self,
        db: Database,
        load_keys: Callable[[], Keyring],
        *,
        token: int,
        threads: int,
        start: Callable[[Job], None],
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._db = db
        self._clock = clock or db.now
        self._load_keys = load_keys
        self._keyring = load_keys()
        self._token = token
        self._threads = threads
        self._start = start
        self.claims: dict[int, Claimed] = {}
        """What is on the network, by message."""
        self._busy: Counter[int] = Counter()
        self._lanes: dict[int, LaneState] = {}
        self._due: list[int] = []
        self._turn = 0
        self._refresh_at = 0.0
        self._opened: dict[int, Opened] = {}
        self._sites: dict[int, SiteNow] = {}
        self._paces: dict[int, Pace] = {}
        """Of the sites that have limits of their own."""
        self._outcomes = Outcomes()
        self._unsure = False
        self._stepped_at: datetime | None = None

    def step(self, finished: Sequence[Finished], *, look: bool, claiming: bool = True) -> int:
        """Record what ended, claim what fits, start it; returns how many were started.

        `look` finds lanes anew that have become due. Raises LaneLost when another worker took
        over, and SQLAlchemy's errors when the database is away: then call it again with the same
        `finished`.
        """
        now = self._tell_time()
        taken = Taken()
        mine = [not_ahead(item, now) for item in finished if self._is_mine(item)]
        self._outcomes.begin()
        try:
            with self._db.write_connection() as connection:
                if self._unsure:
                    self._make_sure(connection, now)
                queue.fence(connection, {item.claim.lane_id for item in mine}, self._token)
                moved = self._record(connection, still_open(connection, mine), now)
                if claiming:
                    self._claim(connection, taken, mine, now, look=look or bool(moved))
            jobs = [self._job(claim) for claim in taken.claims]
        except sa.exc.SQLAlchemyError:
            for pace, mails, recipients in taken.paces:
                pace.take(now, -mails, -recipients)
            self._unsure = True
            self._refresh_at = 0.0
            self._outcomes.undo()
            raise
        self._unsure = False
        for item in mine:
            del self.claims[item.claim.message_id]
            self._busy[item.claim.lane_id] -= 1
        for job in jobs:
            self.claims[job.claim.message_id] = job.claim
            self._busy[job.claim.lane_id] += 1
        for job in jobs:
            self._start(job)
        self._tell_health(now)
        return len(jobs)

    def _tell_time(self) -> datetime:
        """Now. When the clock was put back, no lane waits for room until a time of the old one."""
        now = self._clock()
        if self._stepped_at is not None and now < self._stepped_at:
            for lane in self._lanes.values():
                lane.not_before = None
        self._stepped_at = now
        return now

    def _is_mine(self, item: Finished) -> bool:
        """Whether this is a claim of ours that is still open."""
        return self.claims.get(item.claim.message_id) is item.claim

    def _make_sure(self, connection: DbConnection, now: datetime) -> None:
        """The last commit may or may not have happened: what it claimed was never started."""
        returned = reconcile(connection, self.claims, now)
        if returned:
            log.warning("claims went back to the queue", count=returned)

    def _tell_health(self, now: datetime) -> None:
        """Not in the ledger's transaction; when it fails, a later attempt tells the same."""
        if not self._outcomes.has_news:
            return
        try:
            with self._db.write_connection() as connection:
                self._outcomes.write_health(connection, now)
        except sa.exc.SQLAlchemyError as error:
            self._outcomes.forget()
            log.warning("the health of a connection could not be noted", error=type(error).__name__)

    def _record(self, connection: DbConnection, finished: Sequence[Finished], now: datetime) -> int:
        """Write down what ended; returns how many mails go on by another connection."""
        if not finished:
            return 0
        keys = {item.claim.connection_id for item in finished}
        lanes: dict[int, int | None] = {
            row.id: row.lane_id for row in connection.execute(_LANES_NOW, {"keys": sorted(keys)})
        }
        sent = [item for item in finished if not item.claim.is_look]
        looked = [item for item in finished if item.claim.is_look]
        # A look that asked nobody says nothing about the remote.
        telling = [item for item in looked if item.result.error or item.result.found is not None]
        blocks = self._outcomes.note(connection, [*sent, *telling], now)
        closed = {
            lane_id: max(block.until, now)
            for lane_id, block in blocks.items()
            if block.trips and block.until is not None
        }
        moved = finish(connection, sent, lanes, closed, self._ways(connection, sent))
        settle(connection, looked, closed)
        for lane_id, block in blocks.items():
            lane = self._lanes.get(lane_id)
            if lane is not None:
                lane.is_blocked, lane.blocked_until = block.is_blocked, block.until
                lane.trips = block.trips
        return moved

    def _ways(self, connection: DbConnection, finished: Sequence[Finished]) -> Ways:
        """What is known of backups, where these attempts may need one."""
        claims = [item.claim for item in finished if wants_way(item)]
        if not claims:
            return NO_WAYS
        self._load_sites(connection, {claim.site_id for claim in claims})
        chains = {
            claim.site_id: self._sites[claim.site_id].chain
            for claim in claims
            if claim.site_id in self._sites
        }
        if not any(chain.backups for chain in chains.values()):
            return NO_WAYS
        keys = [key for claim in claims for key in (claim.planned_id, claim.connection_id)]
        return ways_for(connection, chains, keys)

    # -- claiming

    def _claim(
        self,
        connection: DbConnection,
        taken: Taken,
        finished: Sequence[Finished],
        now: datetime,
        *,
        look: bool,
    ) -> None:
        ended = Counter(item.claim.lane_id for item in finished)
        if look or not self._due:
            self._due = queue.due_lanes(connection, now)
        free = self._threads - len(self.claims) + sum(ended.values())
        if not self._due or free <= 0:
            return
        self._refresh(connection)
        under_way = self.claims.keys() - {item.claim.message_id for item in finished}
        order = self._in_turn()
        for lane_id in order:
            lane = self._lanes.get(lane_id)
            if free <= 0:
                break
            if lane is None or lane.stands(now):
                continue
            busy = self._busy[lane_id] - ended[lane_id]
            slots = self._slots(lane, busy + free) - busy
            if lane.trips:
                slots = 0 if self._is_probing(lane, finished) else min(slots, 1)
            free -= self._claim_from(connection, taken, lane, min(slots, free), now, under_way)
        self._turn = order[0]

    def _in_turn(self) -> list[int]:
        """Round robin: start after the lane that began the last round."""
        later = [lane for lane in self._due if lane > self._turn]
        return later + [lane for lane in self._due if lane <= self._turn]

    def _is_probing(self, lane: LaneState, finished: Sequence[Finished]) -> bool:
        """Whether a mail is out to see if the remote is back; nothing else leaves meanwhile."""
        over = {item.claim.message_id for item in finished}
        return any(
            claim.is_probe and claim.lane_id == lane.id and claim.message_id not in over
            for claim in self.claims.values()
        )

    def _slots(self, lane: LaneState, within_reach: int) -> int:
        """What a lane may have in flight. A third of the threads that nobody else uses is the most:
        servers that hang must leave some for those that do not."""
        limit = lane.pace.limits.concurrency or UNLIMITED_SLOTS
        return min(limit, max(1, within_reach // 3))

    def _claim_from(
        self,
        connection: DbConnection,
        taken: Taken,
        lane: LaneState,
        slots: int,
        now: datetime,
        under_way: Set[int],
    ) -> int:
        """Claim up to `slots` mails of one lane; returns how many it were."""
        room = lane.pace.room(now)
        if room == 0:
            lane.not_before = lane.pace.next_room(now)
        count = slots if room is None else min(slots, room)
        if count <= 0:
            return 0
        found, lane.last_site = queue.due_ids(
            connection, lane.id, count, lane.last_site, now, partial(self._room, now)
        )
        if not found:
            self._due.remove(lane.id)
            return 0
        # A look keeps its mail due, for later; whoever makes it due at once must not get two looks.
        found = [key for key in found if key not in under_way]
        if not found:
            return 0
        self._open(connection, found)
        most = self._most_recipients()
        if lane.pace.counts_recipients:
            due = queue.recipients_due(connection, found, most)
            found = found[: lane.pace.fit(now, due)]
            if not found:
                lane.not_before = lane.pace.next_room(now, due[0])
                return 0
        queue.fence(connection, [lane.id], self._token)
        names = {key: opened.name for key, opened in self._opened.items()}
        claims = queue.claim(
            connection,
            lane.id,
            found,
            names,
            now,
            most,
            is_probe=bool(lane.trips),
            settling=self._settling(),
        )
        taken.claims.extend(claims)
        self._count_for_sites(connection, taken, claims, now)
        mails = sum(not claim.is_look for claim in claims)
        if lane.pace.windows and mails:
            recipients = sum(len(claim.recipients) for claim in claims)
            lane.pace.take(now, mails, recipients)
            taken.paces.append((lane.pace, mails, recipients))
            connection.execute(
                sa.update(Lane).where(Lane.id == lane.id).values(windows=lane.pace.stored())
            )
        return len(claims)

    def _room(self, now: datetime, site_id: int) -> int | None:
        pace = self._paces.get(site_id)
        return None if pace is None else pace.room(now)

    def _count_for_sites(
        self, connection: DbConnection, taken: Taken, claims: Sequence[Claimed], now: datetime
    ) -> None:
        """An attempt counts for its site's own limits, whichever lane it leaves by; a test does
        not."""
        counts = Counter(
            claim.site_id
            for claim in claims
            if claim.site_id in self._paces and not (claim.is_look or claim.is_test)
        )
        for site_id, mails in counts.items():
            pace = self._paces[site_id]
            pace.take(now, mails, 0)
            taken.paces.append((pace, mails, 0))
            keep = sa.update(SitePace).where(SitePace.site_id == site_id)
            if not connection.execute(keep.values(windows=pace.stored())).rowcount:
                first = sa.insert(SitePace).values(site_id=site_id, windows=pace.stored())
                connection.execute(first)

    def _most_recipients(self) -> dict[int, int]:
        """By connection, where a mailer has such a limit."""
        return {
            key: opened.mailer.max_recipients
            for key, opened in self._opened.items()
            if opened.mailer is not None and opened.mailer.max_recipients is not None
        }

    def _settling(self) -> set[int]:
        """Connections whose remote may know what became of an unclear mail."""
        return {
            key
            for key, opened in self._opened.items()
            if opened.mailer is not None and opened.mailer.settles
        }

    def _refresh(self, connection: DbConnection) -> None:
        """Limits, blocks and settings are changed on pages; look at them once a second."""
        known = all(lane_id in self._lanes for lane_id in self._due)
        if known and time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + LOOK_AGAIN
        self._opened.clear()
        self._sites.clear()
        self._outcomes.forget()
        self._refresh_paces(connection)
        for row in connection.execute(sa.select(Lane).where(Lane.id.in_(self._due))).mappings():
            self._refresh_lane(row)

    def _refresh_paces(self, connection: DbConnection) -> None:
        """Limits of sites; what was counted is read only where it is not known."""
        rows = connection.execute(_LIMITED_SITES).all()
        limits = {
            row.id: Limits(per_minute=row.per_minute, per_hour=row.per_hour, per_day=row.per_day)
            for row in rows
        }
        known = {key: pace for key, pace in self._paces.items() if pace.limits == limits.get(key)}
        new = sorted(limits.keys() - known.keys())
        windows: dict[int, Any] = {}
        if new:
            counted = sa.select(SitePace.site_id, SitePace.windows)
            found = connection.execute(counted.where(SitePace.site_id.in_(new)))
            windows = {row.site_id: row.windows for row in found}
        self._paces = known | {key: Pace(limits[key], windows.get(key, {})) for key in new}

    def _refresh_lane(self, row: Any) -> None:
        limits = Limits(
            concurrency=row["concurrency"],
            per_minute=row["per_minute"],
            per_hour=row["per_hour"],
            per_day=row["per_day"],
            recipients_per_day=row["recipients_per_day"],
        )
        lane = self._lanes.get(row["id"])
        if lane is None:
            lane = self._lanes[row["id"]] = LaneState(row["id"], Pace(limits, row["windows"]))
        elif lane.pace.limits != limits:
            lane.pace = Pace(limits, row["windows"])
            lane.not_before = None
        lane.is_paused = row["is_paused"]
        lane.is_blocked = row["is_blocked"]
        lane.blocked_until = row["blocked_until"]
        lane.trips = row["trips"]

    # -- what an attempt needs

    def _open(self, connection: DbConnection, ids: Sequence[int]) -> None:
        """Connections and sites of these messages, opened once and kept for a second."""
        rows = connection.execute(_WHOSE, {"ids": ids}).all()
        keys = {row.connection_id for row in rows if row.connection_id and not self._knows(row)}
        self._load_sites(connection, {row.site_id for row in rows})
        if keys:
            with Session(bind=connection) as session:
                query = sa.select(Connection).where(Connection.id.in_(keys))
                for found_one in session.scalars(query):
                    self._opened[found_one.id] = self._open_one(found_one)

    def _load_sites(self, connection: DbConnection, site_ids: Set[int]) -> None:
        wanted = site_ids - self._sites.keys()
        if not wanted:
            return
        chains = chains_of(connection, wanted)
        found = connection.execute(
            sa.select(Site.id, Site.placeholder_emails, Site.placeholder_names).where(
                Site.id.in_(wanted)
            )
        )
        for row in found:
            self._sites[row.id] = SiteNow(
                placeholders=Placeholders(
                    emails=tuple(row.placeholder_emails), names=tuple(row.placeholder_names)
                ),
                chain=chains.get(row.id, Chain()),
            )

    def _knows(self, row: Any) -> bool:
        """Whether the settings at hand are those that count: a save counts at the next claim."""
        known = self._opened.get(row.connection_id)
        return known is not None and known.version == row.version

    def _open_one(self, connection: Connection) -> Opened:
        problem = ""
        mailer = None
        try:
            mailer = self._load(connection)
        except (NotReady, SealError, ConfigError) as error:
            problem = str(error)
        label = mailer.label if mailer is not None else connection.mailer
        return Opened(
            connection_id=connection.id,
            version=connection.version,
            name=connection.nickname or str(label),
            mailer=mailer,
            problem=problem,
            block=FromBlock(
                email=connection.from_email,
                force_email=connection.force_from_email,
                name=connection.from_name,
                force_name=connection.force_from_name,
                return_path=connection.return_path,
            ),
        )

    def _load(self, connection: Connection) -> Mailer:
        try:
            return load_mailer(connection, self._keyring)
        except SealError:  # the keys may have been rotated since we started
            self._keyring = self._load_keys()
            return load_mailer(connection, self._keyring)

    def _job(self, claim: Claimed) -> Job:
        site = self._sites.get(claim.site_id)
        return Job(
            claim=claim,
            opened=self._opened.get(claim.connection_id, GONE),
            placeholders=site.placeholders if site is not None else NO_PLACEHOLDERS,
        )


def not_ahead(item: Finished, now: datetime) -> Finished:
    """The same; what ended by a clock that has been put back since ended now."""
    return item if item.finished_at <= now else replace(item, finished_at=now)


NO_PLACEHOLDERS = Placeholders(emails=(), names=())
GONE = Opened(
    connection_id=0,
    version=0,
    name="",
    mailer=None,
    problem="The connection this mail was meant for is gone.",
    block=FromBlock(email="", force_email=False, name="", force_name=False, return_path=False),
)
