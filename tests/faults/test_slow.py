"""Slow bodies: a program that hands a mail in byte by byte, one that stops in the middle, and a
server that hardly reads. Each holds up itself, and nobody else."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.delivery.test_worker import Post
from tests.factories import an_installation
from tests.faults.rig import wait_for
from tests.ingress.test_smtp import Listener, Talk, add_credential, kept
from tests.rig.ports import free_port
from tests.world import World, a_mail
from webapp.config import load
from webapp.delivery.models import State
from webapp.delivery.wake import Waker
from webapp.ingress import smtp
from webapp.ingress.accept import Acceptor

SLOW = 40 if os.environ.get("TEST_FULL") == "1" else 2
"""So many at once."""
MAIL = a_mail(body="One byte, and then another.\r\n" * 10)


@pytest.fixture
def world(db_url: str, tmp_path: Path) -> Iterator[World]:
    installation = an_installation(db_url, tmp_path)
    made = World(installation.db, now=installation.db.now())
    made.take_over()
    add_credential(made, made.a_site())
    yield made
    installation.close()


@pytest.fixture
def listener(world: World, tmp_path: Path) -> Iterator[Listener]:
    waker = Waker(tmp_path)
    acceptor = Acceptor(world.db, waker)
    environment = {
        "POSTROOM_INSTANCE": str(tmp_path),
        "POSTROOM_SUBMISSION_LISTEN": f"127.0.0.1:{free_port()}",
        "POSTROOM_MAX_SUBMISSION_CONNECTIONS": str(SLOW + 1),
    }
    made = Listener(world, acceptor, load(environment))
    yield made
    made.stop()
    acceptor.close()
    waker.close()


def drip(talk: Talk, raw: bytes) -> None:
    for place in range(len(raw)):
        talk.socket.sendall(raw[place : place + 1])


def test_a_mail_that_comes_byte_by_byte_is_taken_whole(world: World, listener: Listener) -> None:
    talks = [listener.talk().sign_in().ready_for_data() for _ in range(SLOW)]
    for talk in talks:
        talk.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        drip(talk, MAIL[:200])
    with listener.signed_in() as client:
        client.sendmail("a@b.example", ["c@d.example"], a_mail("quick"))
    assert len(kept(world)) == 1
    for talk in talks:
        drip(talk, MAIL[200:] + b".\r")
        assert len(kept(world)) <= SLOW  # its end has not come
        talk.socket.sendall(b"\n")
        assert talk.reply().startswith("250 ")
        talk.close()
    assert kept(world)[1:] == [MAIL] * SLOW
    wait_for(lambda: listener.server.office.data_bytes == 0, "the memory given back")


def test_who_stops_in_the_middle_is_told_so_and_forgotten(
    world: World, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = [listener.talk().sign_in().ready_for_data() for _ in range(SLOW)]
    for talk in talks:
        talk.socket.sendall(MAIL[:200])
    with listener.signed_in() as client:
        client.sendmail("a@b.example", ["c@d.example"], a_mail("quick"))
    listener.call(shorten(listener, monkeypatch))
    for talk in talks:
        assert talk.reply().startswith("421 4.4.2 ")
        assert talk.file.read() == b""
        talk.close()
    assert len(kept(world)) == 1
    wait_for(lambda: listener.server.office.data_bytes == 0, "the memory given back")
    assert listener.server.office.sessions == set()


async def shorten(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on whoever is silent for a moment is silent for too long."""
    monkeypatch.setattr(smtp, "COMMAND_TIMEOUT", 0.2)
    for session in list(listener.server.office.sessions):
        session._look_at_clock()


class Reluctant:
    """A mail server that takes a little of a mail, and the rest when it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = threading.Semaphore(0)
        self.taken = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def __exit__(self) -> None:
        self.go_on.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        serving = []
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                break
            serving.append(threading.Thread(target=self._serve, args=(sock,)))
            serving[-1].start()
        for thread in serving:
            thread.join()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as file:
            sock.sendall(b"220 slow\r\n")
            while line := file.readline():
                sock.sendall(b"354 go\r\n" if line.startswith(b"DATA") else b"250 ok\r\n")
                if line.startswith(b"DATA"):
                    self._read(sock)
                if line.startswith(b"QUIT"):
                    return

    def _read(self, sock: socket.socket) -> None:
        tail = b""
        self.begun.release()
        while not tail.endswith(b"\r\n.\r\n"):
            if not self.go_on.is_set():
                self.go_on.wait(0.01)
            size = 256 * 1024 if self.go_on.is_set() else 512
            tail = (tail + sock.recv(size))[-5:]
        self.taken += 1
        sock.sendall(b"250 taken\r\n")


@pytest.fixture
def post(db_url: str, tmp_path: Path) -> Iterator[Post]:
    made = Post(an_installation(db_url, tmp_path))
    yield made
    made.close()


def test_a_server_that_hardly_reads_holds_up_its_own_mail_only(post: Post) -> None:
    remote, server = Reluctant(), post.server()
    post.servers.append(remote)  # type: ignore[arg-type]
    post.connect(remote)  # type: ignore[arg-type]
    raw = a_mail() + b"A line that is read slowly.\r\n" * 30_000
    for _ in range(SLOW):
        post.world.accept(post.site, raw=raw)
    post.site = post.world.a_site()
    post.connect(server)
    post.work()
    for _ in range(min(SLOW, 10)):
        assert remote.begun.acquire(timeout=20)
    post.hand_in(3)
    post.wait_for(lambda: len(server.mails) == 3)
    assert remote.taken == 0
    remote.go_on.set()
    post.wait_for(lambda: post.states() == [State.SENT] * (SLOW + 3))
    assert remote.taken == SLOW
    assert post.world.gaps() == 0
