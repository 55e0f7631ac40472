"""The delivery worker: stands by, takes over, drains the lanes, does the chores.

It wakes when an attempt ends, when mail arrives, and every second.
"""

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from webapp.accounts import service as accounts
from webapp.api.service import drop_old_keys
from webapp.delivery import beats
from webapp.delivery.clock import ClockWatch
from webapp.delivery.decide import Finished, Result
from webapp.delivery.detours import Detours
from webapp.delivery.drain import Drain
from webapp.delivery.modes import apply_mode, sites_to_stop
from webapp.delivery.orphans import adopt, find_orphans
from webapp.delivery.ownership import Ownership, ownership
from webapp.delivery.queue import LaneLost
from webapp.delivery.replan import catch_up
from webapp.delivery.sender import Job, Sender
from webapp.delivery.tally import fold_tally
from webapp.delivery.upkeep import (
    current_token,
    find_misplaced,
    put_in_place,
    take_over,
)
from webapp.delivery.wake import Listener
from webapp.installation import Installation, load_keys
from webapp.mailers.base import Surroundings
from webapp.mailers.errors import UncertainError
from webapp.maillog.retention import Retention

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
BEAT_SECONDS = 10.0
CHORES_SECONDS = 10.0
CATCH_UP_SECONDS = 3.0
"""How long mail may stand where older rules had put it, until somebody looks."""
SWEEP_SECONDS = 3600.0
STOP_SECONDS = 30.0
"""How long a stop waits for what is on the network."""


@dataclass
class Wake:
    """A nudge in the queue of events."""


Events = queue.SimpleQueue[Finished | Wake]


class Worker:
    """Stands by until it is the owner, then delivers until it is told to stop."""

    def __init__(self, installation: Installation, surroundings: Surroundings) -> None:
        self.installation = installation
        self.name = beats.name_of("deliver")
        self._surroundings = surroundings
        self._detours = Detours(installation.db)
        self._clock = ClockWatch(installation.db)
        self._stop = threading.Event()
        self._events: Events = queue.SimpleQueue()
        self._beat_at = 0.0
        self._check_at = 0.0
        self._chores_at = 0.0
        self._catch_up_at = 0.0
        self._sweep_at = 0.0

    def stop(self) -> None:
        """Finish what is on the network, claim nothing more, return from `run`."""
        self._stop.set()
        self._events.put(Wake())

    def run(self) -> None:
        """Work until `stop`; returns after the mails in flight have ended (at most 30 s)."""
        owner = ownership(self.installation.db, self.installation.settings.instance)
        try:
            while not self._stop.is_set():
                try:
                    self._beat(owner=False)
                    if owner.acquire():
                        self._deliver(owner)
                except sa.exc.SQLAlchemyError as error:
                    log.warning(
                        "the database is away", error=type(error).__name__, words=str(error)[:300]
                    )
                owner.release()
                self._stop.wait(POLL_SECONDS)
        finally:
            owner.release()
            self._forget_beat()

    def _deliver(self, owner: Ownership) -> None:
        db = self.installation.db
        settings = self.installation.settings
        with db.write_connection() as connection:
            token = take_over(connection, db.now())
        log.info("delivery begins", token=token)
        self._beat_at = self._check_at = 0.0  # say so at once
        # What attempts of an earlier ownership still report was settled by taking over.
        events: Events = queue.SimpleQueue()
        self._events = events
        listener = Listener(settings.instance)
        threading.Thread(target=listen, args=(listener, events), daemon=True).start()
        pool = ThreadPoolExecutor(settings.delivery_threads, thread_name_prefix="send")
        sender = Sender(db, self._surroundings, settings.hostname)

        def send(job: Job) -> None:
            result = sender.attempt(job)
            events.put(Finished(claim=job.claim, result=result, finished_at=db.now()))

        def start(job: Job) -> None:
            pool.submit(send, job)

        drain = Drain(
            db,
            lambda: load_keys(settings, may_create=False),
            token=token,
            threads=settings.delivery_threads,
            start=start,
            clock=self._clock.now,
        )
        retention = Retention(db)
        retention.start()
        try:
            self._loop(drain, sender, owner, token)
        except LaneLost:
            log.warning("another worker has taken over")
        finally:
            retention.stop()
            listener.close()
            pool.shutdown(wait=False, cancel_futures=True)
            sender.conversations.close_idle(older_than=0)

    def _loop(self, drain: Drain, sender: Sender, owner: Ownership, token: int) -> None:
        look_at = 0.0
        while not self._stop.is_set():
            finished, woken = self._collect(POLL_SECONDS)
            if time.monotonic() >= self._check_at:
                self._check_at = time.monotonic() + POLL_SECONDS
                self._still_owner(owner, token)
                self._now_and_then(sender)
            look = woken or time.monotonic() >= look_at
            if look:
                look_at = time.monotonic() + POLL_SECONDS
            self._step(drain, finished, look=look)
        self._finish_up(drain)

    def _still_owner(self, owner: Ownership, token: int) -> None:
        """Raise LaneLost when another worker took over.

        A lost database connection takes the advisory lock along. When it can be had again and
        nobody raised the token meanwhile, what is on the network is still ours.
        """
        while not owner.alive() and not self._stop.is_set():
            owner.release()
            try:
                if owner.acquire():
                    if current_token(self.installation.db) == token:
                        log.warning("the right to deliver was lost and is back")
                        return
                    raise LaneLost("another worker has taken over")
            except sa.exc.SQLAlchemyError as error:
                log.warning(
                    "the database is away", error=type(error).__name__, words=str(error)[:300]
                )
            else:
                raise LaneLost("another worker has the right to deliver")
            self._stop.wait(POLL_SECONDS)

    def _step(self, drain: Drain, finished: list[Finished], *, look: bool) -> None:
        """One step, again and again while the database is away: a result must not be lost."""
        pause = 0.1
        stopping_since = None
        while True:
            try:
                drain.step(finished, look=look, claiming=not self._stop.is_set())
            except sa.exc.SQLAlchemyError as error:
                log.warning("a step failed", error=type(error).__name__)
                if not is_away(error):
                    self._one_by_one(drain, finished)
                    return
            else:
                return
            if self._stop.is_set():
                stopping_since = stopping_since or time.monotonic()
                if time.monotonic() - stopping_since > STOP_SECONDS:
                    log.error("stopping without a database: results are lost", count=len(finished))
                    return
            time.sleep(pause)
            pause = min(5.0, pause * 2)

    def _one_by_one(self, drain: Drain, finished: list[Finished]) -> None:
        """Something in these results cannot be written down: find it, and write less of it."""
        for item in finished:
            for result in (item.result, Result(error=UncertainError("Postroom: not recorded"))):
                attempt = Finished(claim=item.claim, result=result, finished_at=item.finished_at)
                try:
                    drain.step([attempt], look=False, claiming=False)
                except sa.exc.SQLAlchemyError:
                    log.exception("a result could not be recorded", queue_id=item.claim.queue_id)
                else:
                    break

    def _collect(self, timeout: float) -> tuple[list[Finished], bool]:
        """Wait for the first event, then take all there are."""
        finished: list[Finished] = []
        woken = False
        try:
            event = self._events.get(timeout=timeout)
            while True:
                if isinstance(event, Finished):
                    finished.append(event)
                else:
                    woken = True
                event = self._events.get_nowait()
        except queue.Empty:
            return finished, woken

    def _finish_up(self, drain: Drain) -> None:
        """After `stop`: wait for what is on the network, and write it down."""
        until = time.monotonic() + STOP_SECONDS
        while drain.claims and time.monotonic() < until:
            finished, _ = self._collect(0.2)
            if finished:
                self._step(drain, finished, look=False)

    # -- chores

    def _now_and_then(self, sender: Sender) -> None:
        try:
            self._beat(owner=True)
            self._clock.round()
            if time.monotonic() >= self._chores_at:
                self._chores_at = time.monotonic() + CHORES_SECONDS
                self._chores(sender)
            if time.monotonic() >= self._catch_up_at:
                is_behind = catch_up(self.installation.db)
                self._catch_up_at = time.monotonic() + (0.0 if is_behind else CATCH_UP_SECONDS)
            self._detours.round()
        except sa.exc.SQLAlchemyError as error:
            log.warning("the chores have to wait", error=type(error).__name__)

    def _beat(self, *, owner: bool) -> None:
        if time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + BEAT_SECONDS
        db = self.installation.db
        with db.write_connection() as connection:
            beats.beat(connection, self.name, "deliver", db.now(), {"owner": owner})

    def _forget_beat(self) -> None:
        with (
            suppress(sa.exc.SQLAlchemyError),
            self.installation.db.write_connection() as connection,
        ):
            beats.forget(connection, self.name)

    def _chores(self, sender: Sender) -> None:
        sender.conversations.close_idle()
        db = self.installation.db
        for _ in range(20):
            with db.write_connection() as connection:
                if not fold_tally(connection):
                    break
        self._put_right()
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            with db.write() as session:
                accounts.forget_what_is_over(session, db.now())
            self._drop_old_keys()

    def _drop_old_keys(self) -> None:
        """Answers of the API that are a day old, some at a time."""
        db = self.installation.db
        for _ in range(100):
            with db.write_connection() as connection:
                if not drop_old_keys(connection, db.now()):
                    return

    def _put_right(self) -> None:
        """What slipped between a page's save and a mail's journey."""
        db = self.installation.db
        with db.reader.connect() as connection:
            misplaced = find_misplaced(connection)
            stopped = sites_to_stop(connection)
            orphans = find_orphans(connection)
        if misplaced:
            with db.write_connection() as connection:
                count = put_in_place(connection, misplaced)
            log.info("mail was put in place", count=count)
        for site_id in stopped:
            with db.write_connection() as connection:
                apply_mode(connection, site_id, db.now())
        for site_id, ids in orphans.items():
            with db.write_connection() as connection:
                adopt(connection, site_id, ids, db.now())


def listen(listener: Listener, events: Events) -> None:
    """Turn datagrams into events until the listener is closed."""
    while True:
        try:
            listener.wait()
        except OSError:
            return
        events.put(Wake())


def is_away(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether trying again later may help: the database, not what was asked of it."""
    if isinstance(error, sa.exc.OperationalError | sa.exc.TimeoutError):
        return True
    return isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
