"""The three parts as functions that open what they need, and run until they are told to stop."""

import asyncio
import resource
import signal
import sys
import threading
from contextlib import suppress

import sqlalchemy as sa
import structlog
import uvloop

from webapp import trust
from webapp.config import ConfigError
from webapp.db import Database
from webapp.delivery import beats
from webapp.delivery.wake import Waker
from webapp.delivery.worker import Worker
from webapp.disk import Disk
from webapp.google.cloud import every_cloud
from webapp.incidents.tell import Teller
from webapp.incidents.watch import Watch
from webapp.ingress.accept import Acceptor
from webapp.ingress.smtp import SubmissionServer
from webapp.installation import Installation, load_keys, open_installation
from webapp.mailers.base import Surroundings
from webapp.microsoft.keepalive import KeepAlive
from webapp.microsoft.tokens import Tokens
from webapp.outward import Outward
from webapp.serve import on_stop

log = structlog.get_logger(__name__)

BEAT_SECONDS = 20.0
SWITCH_SECONDS = 0.001
"""How long one thread may keep the interpreter: the default makes an answer wait 5 ms."""


def deliver() -> None:
    """The delivery worker."""
    sys.setswitchinterval(SWITCH_SECONDS)
    installation = open_installation()
    settings = installation.settings
    ca_file = str(trust.bundle(settings))
    tokens = Tokens(
        installation.db,
        lambda: load_keys(settings, may_create=False),
        every_cloud(settings),
        lambda: Outward(ca_file=ca_file),
    )
    surroundings = Surroundings(hostname=settings.hostname, ca_file=ca_file, tokens=tokens)
    worker = Worker(installation, surroundings)
    on_stop(worker.stop)
    beside = (
        KeepAlive(installation.db, tokens),
        Watch(installation),
        Teller(installation, lambda: load_keys(settings, may_create=False), surroundings),
    )
    for thread in beside:
        thread.start()
    try:
        worker.run()
    finally:
        for thread in beside:
            thread.stop()


def submission() -> None:
    """The SMTP listener."""
    sys.setswitchinterval(SWITCH_SECONDS)
    installation = open_installation()
    refuse_open_door(installation)
    raise_file_limit()
    # STARTTLS swaps the protocol under a running connection, which only asyncio's own loop bears.
    factory = asyncio.new_event_loop if installation.settings.tls_cert else uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_submission(installation))


async def _submission(installation: Installation) -> None:
    waker = Waker(installation.settings.instance)
    acceptor = Acceptor(installation.db, waker, Disk.of(installation.settings))
    server = SubmissionServer(installation.settings, installation.db, acceptor)
    await server.start()
    log.info("submission listens", address=str(installation.settings.submission_listen))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    alive = Beats(installation.db, "submission")
    try:
        await stop.wait()
    finally:
        await server.stop()
        acceptor.close()
        alive.stop()


def refuse_open_door(installation: Installation) -> None:
    """A login must not travel in clear over a network; raises ConfigError."""
    settings = installation.settings
    if settings.submission_listen.is_loopback or settings.tls_cert or settings.allow_plain_auth:
        return
    raise ConfigError(
        f"Submission would listen on {settings.submission_listen} without a certificate, so that "
        "logins travel in clear. Set POSTROOM_TLS_CERT and POSTROOM_TLS_KEY, listen on 127.0.0.1, "
        "or, if something in front does TLS, set POSTROOM_ALLOW_PLAIN_AUTH=1."
    )


def raise_file_limit() -> None:
    """As many open files as the system lets us have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 65536)), hard))


class Beats:
    """Says every 20 s that a part is alive."""

    def __init__(self, db: Database, part: str) -> None:
        self._db = db
        self._part = part
        self._name = beats.name_of(part)
        self._over = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Say no more, and take the last word back."""
        self._over.set()
        with suppress(sa.exc.SQLAlchemyError), self._db.write_connection() as connection:
            beats.forget(connection, self._name)

    def _run(self) -> None:
        while True:
            with suppress(sa.exc.SQLAlchemyError), self._db.write_connection() as connection:
                beats.beat(connection, self._name, self._part, self._db.now(), {})
            if self._over.wait(BEAT_SECONDS):
                return


def web() -> None:
    """The dashboard."""
    from webapp.web_server import run_web

    run_web(open_installation())
