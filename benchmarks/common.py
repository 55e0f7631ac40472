"""An installation of their own for the benchmarks, with sites, logins, connections and mail.

Import this or `machine` first: they make the project importable from a script.
"""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from load import Login
from machine import Process, free_port

from tests.rig import postgres as postgres_rig
from webapp import config, ids
from webapp.accounts import service as accounts
from webapp.connections import service as connections
from webapp.connections.service import FormValues
from webapp.delivery import replan
from webapp.delivery.models import Source
from webapp.ingress.accept import Submission, prepare, store
from webapp.installation import Installation, open_installation
from webapp.sites import service as sites
from webapp.sites.models import CredentialKind, Site

ACTOR = "benchmark"
GROUP = 200
"""Mails stored in one transaction when a queue is filled."""


# ---- an installation ----


@dataclass(kw_only=True)
class Bench:
    """A fresh installation in a folder of its own, and the processes started for it."""

    folder: Path
    environ: dict[str, str]
    installation: Installation
    processes: "list[Process]" = field(default_factory=list)

    @property
    def now(self) -> datetime:
        """The ledger's clock."""
        return self.installation.db.now()

    @property
    def submission(self) -> tuple[str, int]:
        """Where mail is handed in."""
        listen = self.installation.settings.submission_listen
        return listen.host, listen.port

    @property
    def http(self) -> tuple[str, int]:
        """Where the pages are."""
        listen = self.installation.settings.http_listen
        return listen.host, listen.port

    def an_admin(self) -> Login:
        """An account that may do anything."""
        login = Login(username="admin@example.org", password="correct horse battery")
        with self.installation.db.write() as session:
            accounts.create_user(
                session,
                email=login.username,
                name="Admin",
                password=login.password,
                is_admin=True,
                language=None,
                now=self.now,
            )
        return login

    def start(self, part: str) -> "Process":
        """Run `postroom PART` as a process of its own, the way people do."""
        process = Process(
            [sys.executable, "-m", "webapp.cli", part],
            environ=self.environ,
            log=self.folder / f"{part}.log",
        )
        self.processes.append(process)
        return process

    def a_site(self, name: str = "Shop", *, sink: int | None = None) -> tuple[int, Login]:
        """A site with a login; `sink` is the port its primary connection delivers to."""
        with self.installation.db.write() as session:
            site = sites.create_site(
                session, name=name, url="https://shop.example", actor=ACTOR, now=self.now
            )
            made = sites.create_credential(
                session, site, kind=CredentialKind.SMTP, actor=ACTOR, now=self.now
            )
            login = Login(username=made.credential.username, password=made.secret)
            site_id = site.id
        if sink is not None:
            self._connect(site_id, sink)
        return site_id, login

    def _connect(self, site_id: int, port: int) -> None:
        """Save the primary connection as the page does; SMTP connections have no limits."""
        keyring, now = self.installation.keyring, self.now
        with self.installation.db.write() as session:
            site = session.get(Site, site_id)
            assert site is not None
            values = FormValues(
                mailer="smtp",
                settings={
                    "host": "127.0.0.1",
                    "port": port,
                    "encryption": "none",
                    "auto_tls": False,
                    "authentication": False,
                    "username": "",
                },
                from_email="",
                force_from_email=False,
            )
            connection = connections.save_connection(
                session, keyring, site, None, values, actor=ACTOR, now=now
            )
            connections.set_primary(session, site, connection, actor=ACTOR, now=now)
            lane_key = connections.load_mailer(connection, keyring).lane_key()
            replan.connection_saved(session, connection, lane_key=lane_key, limits=None, now=now)

    def fill(self, site_id: int, count: int, mail: bytes) -> None:
        """Put mails into the queue, as the listener would, in large groups."""
        prepared = prepare(
            Submission(
                site_id=site_id,
                credential_id=None,
                source=Source.SMTP,
                mail_from="shop@shop.example",
                recipients=("kunde@mail.example",),
                raw=mail,
                received={},
            )
        )
        for begin in range(0, count, GROUP):
            size = min(GROUP, count - begin)
            with self.installation.db.write_driver() as driver:
                group = [replace(prepared, queue_id=ids.queue_id(self.now)) for _ in range(size)]
                store(driver, group, self.now)

    def close(self) -> None:
        """Stop what was started."""
        for process in self.processes:
            process.stop()
        self.installation.close()


@contextlib.contextmanager
def a_bench(database_url: str = "", **settings: object) -> Iterator[Bench]:
    """A fresh installation on free ports; SQLite unless another database is named."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped then, too
    with tempfile.TemporaryDirectory(prefix="postroom-bench-") as name:
        given = {f"POSTROOM_{key.upper()}": str(value) for key, value in settings.items()}
        ours = {
            "POSTROOM_INSTANCE": str(Path(name) / "instance"),
            "POSTROOM_DATABASE_URL": database_url,
            "POSTROOM_HTTP_LISTEN": f"127.0.0.1:{free_port()}",
            "POSTROOM_SUBMISSION_LISTEN": f"127.0.0.1:{free_port()}",
            **given,
        }
        others = {key: text for key, text in os.environ.items() if not key.startswith("POSTROOM_")}
        installation = open_installation(config.load(ours), migrate=True)
        bench = Bench(folder=Path(name), environ=others | ours, installation=installation)
        try:
            yield bench
        finally:
            bench.close()


@contextlib.contextmanager
def a_postgres() -> Iterator[str | None]:
    """The URL of an empty database on a throw-away server that syncs to disk; None without one."""
    home = postgres_rig.find_postgres()
    if home is None:
        yield None
        return
    careless = postgres_rig._DURABILITY
    postgres_rig._DURABILITY = ("-c synchronous_commit=on", "-c fsync=on", "-c full_page_writes=on")
    try:
        server = postgres_rig.PostgresServer(home)
    finally:
        postgres_rig._DURABILITY = careless
    try:
        with server.empty_database() as url:
            yield url
    finally:
        server.stop()


# ---- mails ----


def a_mail(size: int) -> bytes:
    """A plain mail of about `size` bytes, lines ended by CRLF, as a shop sends it."""
    head = (
        "Date: Mon, 23 Nov 2026 15:00:00 +0100\r\n"
        "To: kunde@mail.example\r\n"
        "From: Shop <shop@shop.example>\r\n"
        "Subject: Your order #20431 is confirmed\r\n"
        "Message-ID: <bench-20431@shop.example>\r\n"
        "X-Mailer: PHPMailer 6.9.1 (https://github.com/PHPMailer/PHPMailer)\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=UTF-8\r\n"
        "\r\n"
    )
    lines = [head]
    length, number = len(head), 0
    while length < size:
        number += 1
        line = (
            f"Position {number}: linen apron, natural, size {number % 7}, EUR {number * 3}.90\r\n"
        )
        lines.append(line)
        length += len(line)
    return "".join(lines).encode()
