"""The demo as a newcomer starts it: from an empty folder, with mail in every state."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa

from tests.faults.rig import ROOT, wait_for
from tests.rig.ports import free_port
from tests.test_serve import is_free
from webapp import config
from webapp.delivery.models import Lane, Message, State
from webapp.delivery.tally import accounts
from webapp.installation import open_installation

TOLD = re.compile(r"sign in as (\S+) with the password (\S+)")


@dataclass
class Demo:
    """`postroom demo` in a folder of its own."""

    folder: Path
    ports: list[int] = field(default_factory=lambda: [free_port() for _ in range(4)])
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.ports[0]}"

    def start(self) -> None:
        """Returns once the tour is told."""
        names = ("--http", "--submission", "--sandbox", "--sandbox-tls")
        options = [f"{name}=127.0.0.1:{port}" for name, port in zip(names, self.ports, strict=True)]
        environment = {
            "PATH": "/usr/bin:/bin",
            "POSTROOM_INSTANCE": str(self.folder),
            "POSTROOM_DATABASE_URL": "postgresql://nobody@nowhere.invalid/real",
        }
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "webapp.cli", "demo", *options],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for(lambda: TOLD.search(self.said()) or self.process.poll() is not None, "the tour")
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGTERM)


def test_a_newcomer_sees_mail_in_every_state(demo: Demo) -> None:
    demo.start()
    told = TOLD.search(demo.said())
    assert told
    page = requests.get(f"{demo.url}/signin", timeout=30).text
    assert "This is a demo." in page
    assert f'href="http://localhost:{demo.ports[2]}"' in page
    with requests.Session() as browser:
        page = browser.get(f"{demo.url}/signin", timeout=30).text
        token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
        assert token
        form = {"csrf_token": token[1], "email": told[1], "password": told[2]}
        board = browser.post(f"{demo.url}/signin", data=form, timeout=30).text
    assert "松石书店 Pinestone Books" in board
    assert "This is a demo." in board
    settings = config.load({"POSTROOM_INSTANCE": str(demo.folder / "demo")})
    with closing(open_installation(settings)) as found:
        with found.db.read() as session:
            states = set(session.scalars(sa.select(Message.state)))
            stopped = sa.select(Lane.id).where(Lane.blocked_kind == "needs-reauthorisation")
            waiting = session.scalars(
                sa.select(Message.id).where(
                    Message.lane_id.in_(stopped), Message.due_at.is_not(None)
                )
            ).all()
        with found.db.reader.connect() as connection:
            assert not [account for account in accounts(connection) if account.gap]
    assert states >= set(State) - {State.QUEUED, State.SENDING}
    assert len(waiting) == 2

    assert demo.end(signal.SIGINT) == 0
    assert all(is_free(port) for port in demo.ports)

    demo.start()
    assert "Preparing" not in demo.said()
    again = TOLD.search(demo.said())
    assert again
    assert again.groups() == told.groups()
    demo.end(signal.SIGKILL)
    wait_for(lambda: all(is_free(port) for port in demo.ports), "the ports")


def test_a_start_that_was_cut_short_is_begun_anew(demo: Demo) -> None:
    folder = demo.folder / "demo"
    folder.mkdir()
    (folder / "demo.json").write_text('{"email": "a@b.example", "password": "x", "ready": false}')
    (folder / "postroom.db").write_text("half a database")
    demo.start()
    assert "beginning anew" in demo.said()


def test_it_says_when_a_port_is_in_use(demo: Demo) -> None:
    with (
        socket.create_server(("127.0.0.1", demo.ports[1])),
        pytest.raises(AssertionError, match="is in use"),
    ):
        demo.start()
