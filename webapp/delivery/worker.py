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
from webapp.delivery import beats
from webapp.delivery import queue as ledger
from webapp.delivery.drain import Drain
from webapp.delivery.ownership import Ownership, ownership
from webapp.delivery.queue import Finished, LaneLost
from webapp.delivery.sender import Job, Sender
from webapp.delivery.wake import Listener
from webapp.installation import Installation
from webapp.mailers.base import Surroundings

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
BEAT_SECONDS = 10.0
CHORES_SECONDS = 10.0
SWEEP_SECONDS = 3600.0
STOP_SECONDS = 30.0
"""How long a stop waits for what is on the network."""


@dataclass
class Wake:
    """A nudge in the queue of events."""


class Worker:
    """Stands by until it is the owner, then delivers until it is told to stop."""

    def __init__(self, installation: Installation, surroundings: Surroundings) -> None:
        self.installation = installation
        self.name = beats.name_of("deliver")
        self._surroundings = surroundings
        self._stop = threading.Event()
        self._events: queue.SimpleQueue[Finished | Wake] = queue.SimpleQueue()
        self._beat_at = 0.0
        self._check_at = 0.0
        self._chores_at = 0.0
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
                self._beat(owner=False)
                if owner.acquire():
                    self._deliver(owner)
                    owner.release()
                else:
                    self._stop.wait(POLL_SECONDS)
        finally:
            owner.release()
            self._forget_beat()

    def _deliver(self, owner: Ownership) -> None:
        db = self.installation.db
        settings = self.installation.settings
        with db.write_connection() as connection:
            token = ledger.take_over(connection, db.now())
        log.info("delivery begins", token=token)
        listener = Listener(settings.instance)
        threading.Thread(target=self._listen, args=(listener,), daemon=True).start()
        pool = ThreadPoolExecutor(settings.delivery_threads, thread_name_prefix="send")
        sender = Sender(db, self._surroundings, settings.hostname)

        def send(job: Job) -> None:
            result = sender.attempt(job)
            self._events.put(Finished(claim=job.claim, result=result, finished_at=db.now()))

        def start(job: Job) -> None:
            pool.submit(send, job)

        drain = Drain(
            db,
            self.installation.keyring,
            token=token,
            threads=settings.delivery_threads,
            start=start,
        )
        try:
            self._loop(drain, sender, owner)
        except LaneLost:
            log.warning("another worker has taken over")
        finally:
            listener.close()
            pool.shutdown(wait=False, cancel_futures=True)
            sender.conversations.close_idle(older_than=0)

    def _listen(self, listener: Listener) -> None:
        while True:
            try:
                listener.wait()
            except OSError:
                return
            self._events.put(Wake())

    def _loop(self, drain: Drain, sender: Sender, owner: Ownership) -> None:
        look_at = 0.0
        while not self._stop.is_set():
            finished, woken = self._collect(POLL_SECONDS)
            look = woken or time.monotonic() >= look_at
            if look:
                look_at = time.monotonic() + POLL_SECONDS
            self._step(drain, finished, look=look)
            if time.monotonic() >= self._check_at:
                self._check_at = time.monotonic() + POLL_SECONDS
                if not owner.alive():
                    raise LaneLost("the right to deliver was lost")
                self._now_and_then(sender)
        self._finish_up(drain)

    def _step(self, drain: Drain, finished: list[Finished], *, look: bool) -> None:
        """One step, again and again while the database is away: a result must not be lost."""
        pause = 0.1
        while True:
            try:
                drain.step(finished, look=look, claiming=not self._stop.is_set())
            except sa.exc.DBAPIError as error:
                log.warning("the database is away", error=str(error.orig))
                time.sleep(pause)
                pause = min(5.0, pause * 2)
            else:
                return

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

    def _now_and_then(self, sender: Sender) -> None:
        try:
            self._beat(owner=True)
            if time.monotonic() >= self._chores_at:
                self._chores_at = time.monotonic() + CHORES_SECONDS
                self._chores(sender)
        except sa.exc.DBAPIError as error:
            log.warning("the database is away", error=str(error.orig))

    # -- chores

    def _beat(self, *, owner: bool) -> None:
        if time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + BEAT_SECONDS
        db = self.installation.db
        with db.write_connection() as connection:
            beats.beat(connection, self.name, "deliver", db.now(), {"owner": owner})

    def _forget_beat(self) -> None:
        with suppress(sa.exc.DBAPIError), self.installation.db.write_connection() as connection:
            beats.forget(connection, self.name)

    def _chores(self, sender: Sender) -> None:
        sender.conversations.close_idle()
        db = self.installation.db
        for _ in range(20):
            with db.write_connection() as connection:
                if not ledger.fold_tally(connection):
                    break
        with db.write_connection() as connection:
            ledger.find_stranded(connection)
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            with db.write() as session:
                accounts.forget_what_is_over(session, db.now())
