"""Hands in mail by SMTP as fast as it is taken: the load for `accept.py`, in a process of its own.

A state machine over epoll that sends bytes made beforehand, one command at a time, as smtp-source
does; it can log in, which smtp-source cannot. Whether it was the bottleneck is told by its share of
a processor.
"""

import base64
import multiprocessing
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

Step = tuple[bytes, bytes]
"""What the answer must begin with, and what is sent then."""


@dataclass(frozen=True, kw_only=True)
class Login:
    """By which a site hands in mail."""

    username: str
    password: str


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to do."""

    address: tuple[str, int]
    mail: bytes
    sessions: int
    seconds: float
    is_reused: bool
    """Many mails on one connection; otherwise a connection for each."""
    login: Login | None = None


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of it."""

    mails: int
    seconds: float
    cpu_seconds: float
    latencies: Sequence[float] = field(repr=False)
    """From the end of DATA to the answer, in seconds."""

    @property
    def rate(self) -> float:
        """Answered mails a second."""
        return self.mails / self.seconds

    @property
    def cpu_share(self) -> float:
        """How much of one processor the load itself took."""
        return self.cpu_seconds / self.seconds


def run(load: Load) -> Done:
    """Do it in a fresh process; raises RuntimeError when the server refused something."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(load, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    finally:
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    done: Done = answer
    return done


def _child(load: Load, answer: Connection) -> None:
    try:
        answer.send(_Machine(load).run())
    except (OSError, AssertionError) as error:
        answer.send(f"the load stopped: {error!r}")


class _Machine:
    """All sessions of a run."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._places: dict[int, int] = {}
        self._began: dict[int, float] = {}
        self._latencies: list[float] = []
        self._until = 0.0
        self._head, self._each, self._tail = _script(load)
        self._steps = self._head + self._each + self._tail
        self._answered = len(self._head) + len(self._each)

    def run(self) -> Done:
        cpu, begin = time.process_time(), time.monotonic()
        self._until = begin + self._load.seconds
        for _ in range(self._load.sessions):
            self._connect()
        last = begin
        while self._sockets:
            events = self._epoll.poll(30)
            assert events, "no answer for 30 s"
            for descriptor, _ in events:
                self._read(descriptor)
            last = time.monotonic()
        return Done(
            mails=len(self._latencies),
            seconds=last - begin,
            cpu_seconds=time.process_time() - cpu,
            latencies=self._latencies,
        )

    def _connect(self) -> None:
        client = socket.create_connection(self._load.address)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        descriptor = client.fileno()
        self._sockets[descriptor] = client
        self._places[descriptor] = 0
        self._epoll.register(descriptor, select.EPOLLIN)

    def _read(self, descriptor: int) -> None:
        client = self._sockets[descriptor]
        data = client.recv(65536)
        assert data, f"the server hung up at step {self._places[descriptor]}"
        last = data[data.rfind(b"\n", 0, -1) + 1 :]
        if not data.endswith(b"\n") or last[3:4] == b"-":
            return  # the rest of the answer is still to come
        place = self._places[descriptor]
        if place == len(self._steps):  # after QUIT
            self._close(descriptor)
            return
        expected, reply = self._steps[place]
        assert last.startswith(expected), f"{expected!r} was expected, and {data!r} came"
        if place == self._answered:
            now = time.monotonic()
            self._latencies.append(now - self._began[descriptor])
            if self._load.is_reused and now < self._until:
                place = len(self._head)
                reply = self._steps[place][1]
        if place == self._answered - 1:
            self._began[descriptor] = time.monotonic()
        self._places[descriptor] = place + 1
        client.sendall(reply)

    def _close(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        self._sockets.pop(descriptor).close()
        if not self._load.is_reused and time.monotonic() < self._until:
            self._connect()


def _script(load: Load) -> tuple[list[Step], list[Step], list[Step]]:
    """Before the first mail, each mail, after the last one."""
    head: list[Step] = [(b"220", b"EHLO client.example\r\n")]
    if load.login is not None:
        given = f"\0{load.login.username}\0{load.login.password}".encode()
        head.append((b"250", b"AUTH PLAIN " + base64.b64encode(given) + b"\r\n"))
    each: list[Step] = [
        (b"2", b"MAIL FROM:<shop@shop.example>\r\n"),
        (b"250", b"RCPT TO:<kunde@mail.example>\r\n"),
        (b"250", b"DATA\r\n"),
        (b"354", load.mail + b".\r\n"),
    ]
    return head, each, [(b"250", b"QUIT\r\n")]
