"""A whole installation as processes of its own, a server that remembers what arrived, and clients
that hand mail in and never repeat what was not answered."""

import json
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.rig.commands import Done, run_here
from tests.rig.linking import link
from tests.rig.ports import free_port
from tests.rig.sandbox import Sandbox
from webapp import config
from webapp.installation import open_installation

ROOT = Path(__file__).parents[2]
USUAL_DELAY = 0.1
STARTED = re.compile(r"part started\s+part=(\w+) pid=(\d+)")


class Remote(Protocol):
    """Where mail goes: it counts what arrived, and may take its time with the answers."""

    environment: dict[str, str]
    """What an installation needs to reach it."""
    delay: float
    """Seconds from a mail's arrival to the answer."""

    @property
    def arrived(self) -> Counter[str]:
        """How often each Message-ID arrived."""

    @property
    def in_hand(self) -> int:
        """Mails that arrived and are not answered yet."""

    def connect(self, house: "House", slug: str) -> None:
        """Give the site a primary connection to it."""

    def close(self) -> None:
        """Stop it."""


class Sink:
    """Takes every mail and counts it by Message-ID as soon as it has all come, but takes its time
    with the answer: whoever is killed meanwhile cannot know that it arrived."""

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self.arrived: Counter[str] = Counter()
        self.in_hand = 0
        self.delay = USUAL_DELAY
        self._controller = Controller(self, hostname="127.0.0.1", port=free_port())
        self._controller.start()

    @property
    def port(self) -> int:
        return self._controller.port

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        import asyncio

        content = envelope.content
        raw = content.encode() if isinstance(content, str) else content or b""
        found = re.search(rb"^Message-ID: (<[^>]+>)", raw, re.MULTILINE)
        self.arrived[found.group(1).decode() if found else ""] += 1
        self.in_hand += 1
        await asyncio.sleep(self.delay)
        self.in_hand -= 1
        return "250 2.0.0 taken"

    def connect(self, house: "House", slug: str) -> None:
        house.made(
            "connection", "create", slug, "--mailer", "smtp", "--name", "Sink", "--primary",
            "--set", "host=127.0.0.1", "--set", f"port={self.port}", "--set", "encryption=none",
            "--from-email", "shop@example.com",
        )  # fmt: skip

    def close(self) -> None:
        self._controller.stop()


class GraphSink:
    """The stand-in for Microsoft as a process, and a mailbox there that sends without limits."""

    def __init__(self, *, lasts: int = 3600) -> None:
        """Its access tokens are good for `lasts` seconds."""
        self.sandbox = Sandbox(lasts=lasts)
        self.environment = self.sandbox.environment
        self._delay = 0.0
        self._before = 0
        self.delay = USUAL_DELAY

    @property
    def delay(self) -> float:
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._delay = seconds
        self.sandbox.clear()
        self.sandbox.fault("slow", milliseconds=int(seconds * 1000))
        self._before = self.arrived.total()

    @property
    def arrived(self) -> Counter[str]:
        return Counter(self.sandbox.counts())

    @property
    def in_hand(self) -> int:
        """What arrived since the delay was set; with a long one, they are not answered yet."""
        return self.arrived.total() - self._before

    def connect(self, house: "House", slug: str) -> None:
        with closing(open_installation(config.load(house.environment))) as installation:
            link(installation, self.sandbox, slug)

    def close(self) -> None:
        self.sandbox.close()


@dataclass
class House:
    """`postroom serve` and what belongs to it."""

    instance: Path
    database_url: str
    http: int = field(default_factory=free_port)
    smtp: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    environment_more: dict[str, str] = field(default_factory=dict)
    last_output: str = ""
    module: str = "webapp.cli"
    """What starts it."""
    commands_start_processes: bool = False
    """Whether commands are run as people run them. That takes ten times as long: one test for each
    command does it, and whatever only needs something made does not."""

    def __post_init__(self) -> None:
        self.instance.mkdir(parents=True, exist_ok=True)
        self._log = self.instance.parent / f"{self.instance.name}.log"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("POSTROOM_")},
            "POSTROOM_INSTANCE": str(self.instance),
            "POSTROOM_DATABASE_URL": self.database_url,
            "POSTROOM_HTTP_LISTEN": f"127.0.0.1:{self.http}",
            "POSTROOM_SUBMISSION_LISTEN": f"127.0.0.1:{self.smtp}",
            **self.environment_more,
        }

    def command(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """One `postroom` command that works; its standard output."""
        done = self._run(arguments, stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def refused(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str]:
        """One `postroom` command that does not: its exit code, and what it said."""
        done = self._run(arguments, stdin)
        assert done.returncode != 0
        self.last_output = done.stdout.decode()
        return done.returncode, done.stderr.decode()

    def _run(self, arguments: Sequence[str], stdin: bytes) -> Done:
        if not self.commands_start_processes:
            return run_here(arguments, self.environment, stdin)
        done = subprocess.run(
            [sys.executable, "-m", "webapp.cli", *arguments],
            cwd=ROOT,
            env=self.environment,
            input=stdin,
            capture_output=True,
            check=False,
        )
        return Done(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)

    def made(self, *arguments: str, stdin: bytes = b"") -> Any:
        """The same, its JSON read."""
        return json.loads(self.command(*arguments, "--json", stdin=stdin))

    def start(self) -> None:
        """Start the supervisor; returns when mail can be handed in."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "serve"],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        wait_for(self._greets, "the listener")

    def _greets(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"it ended at once:\n{self.log()}"
        return greets(self.smtp)

    def pid_of(self, part: str) -> int:
        """The process that runs a part now, as the supervisor logged it."""
        if part == "serve":
            assert self.process is not None
            return self.process.pid
        found = [pid for name, pid in STARTED.findall(self._log.read_text()) if name == part]
        return int(found[-1])

    def kill_host(self) -> None:
        """kill -9 of everything at once, as a power cut does; `start()` is up to you."""
        assert self.process is not None
        everything = [self.pid_of(part) for part in ("serve", "web", "submission", "deliver")]
        for pid in everything:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everything), "the end")

    def kill(self, part: str) -> None:
        """kill -9, and start the supervisor again when it was the one."""
        os.kill(self.pid_of(part), signal.SIGKILL)
        if part == "serve":
            assert self.process is not None
            self.process.wait()
            self.start()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def log(self) -> str:
        return self._log.read_text()


def greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return connection.recv(100).startswith(b"220")
    except OSError:
        return False


def wait_for(what: Callable[[], object], name: str, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"{name}: not within {seconds:.0f} s"
        time.sleep(0.05)


@dataclass
class Clients:
    """Hand in numbered mails, each over a connection of its own, as PHP does."""

    port: int
    username: str
    password: str
    answered: set[str] = field(default_factory=set)
    offered: set[str] = field(default_factory=set)

    def run(self, wanted: Iterable[int], threads: int) -> threading.Thread:
        """Begin handing in mails of these numbers; join what is returned."""
        numbers = iter(wanted)
        lock = threading.Lock()

        def next_number() -> int | None:
            with lock:
                return next(numbers, None)

        def work() -> None:
            while (number := next_number()) is not None:
                self._hand_in(number)

        def all_of_them() -> None:
            workers = [threading.Thread(target=work) for _ in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        whole = threading.Thread(target=all_of_them)
        whole.start()
        return whole

    def _hand_in(self, number: int) -> None:
        client = self._connect()
        if client is None:
            return
        name = f"<{number}.{self.username}@example.com>"
        raw = (
            f"From: shop@example.com\r\nTo: a@example.org\r\nSubject: Mail {number}\r\n"
            f"Message-ID: {name}\r\nDate: Mon, 23 Nov 2026 15:00:00 +0100\r\n\r\nHello\r\n"
        )
        self.offered.add(name)
        try:
            with client:
                client.login(self.username, self.password)
                client.sendmail("shop@example.com", ["a@example.org"], raw)
        except (smtplib.SMTPException, OSError):
            return  # not answered: whoever sent it does not know, and does not try again
        self.answered.add(name)

    def _connect(self) -> smtplib.SMTP | None:
        """Wait for the door: nothing was offered yet, so trying again repeats nothing."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                return smtplib.SMTP("127.0.0.1", self.port, timeout=30)
            except (smtplib.SMTPException, OSError):
                time.sleep(0.05)
        return None
