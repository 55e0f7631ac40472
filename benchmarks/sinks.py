"""Servers that take mail and throw it away, each in a process of its own.

`a_sink` is what `deliver` sends to: a small protocol that costs little. `an_aiosmtpd` is the bare
library, which a hand-over to the product is compared with.
"""

import asyncio
import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvloop
from aiosmtpd.smtp import SMTP, AuthResult
from machine import cpu_of, free_port

MARK = b"X-Bench-Number: "
"""A header that says which mail of the run this is."""


@dataclass(frozen=True, kw_only=True)
class Sink:
    """A running sink."""

    port: int
    pid: int
    _count: Any
    _arrivals: Any

    @property
    def count(self) -> int:
        """Mails taken so far."""
        return int(self._count.value)

    @property
    def arrivals(self) -> list[float]:
        """When each numbered mail arrived first, by `time.monotonic`; 0.0 when it did not."""
        return list(self._arrivals)

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        return cpu_of(self.pid)


@contextlib.contextmanager
def a_sink(numbers: int = 0) -> Iterator[Sink]:
    """An SMTP server that discards, and notes when each of `numbers` marked mails came."""
    context = multiprocessing.get_context("fork")
    port = free_port()
    count = context.RawValue(ctypes.c_longlong, 0)
    arrivals = context.RawArray(ctypes.c_double, numbers)
    process = context.Process(target=_run_sink, args=(port, count, arrivals), daemon=True)
    process.start()
    try:
        _wait(port)
        assert process.pid is not None
        yield Sink(port=port, pid=process.pid, _count=count, _arrivals=arrivals)
    finally:
        process.terminate()
        process.join(10)


@contextlib.contextmanager
def an_aiosmtpd(*, quick: bool) -> Iterator[int]:
    """The port of a bare aiosmtpd that takes any login and discards; `quick` re-arms QUICKACK."""
    context = multiprocessing.get_context("fork")
    port = free_port()
    process = context.Process(target=_run_aiosmtpd, args=(port, quick), daemon=True)
    process.start()
    try:
        _wait(port)
        yield port
    finally:
        process.terminate()
        process.join(10)


def _wait(port: int) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


# ---- in the other process ----


def _run_sink(port: int, count: Any, arrivals: Any) -> None:
    class Discard(asyncio.Protocol):
        """Answers by the first letters of a line; after DATA it only looks for the dot."""

        def connection_made(self, transport: Any) -> None:
            self._transport = transport
            self._rest = b""
            self._in_data = False
            transport.write(b"220 sink.example ESMTP\r\n")

        def data_received(self, data: bytes) -> None:
            data = self._rest + data
            while data:
                if self._in_data:
                    mail, end, rest = data.partition(b"\r\n.\r\n")
                    if not end:
                        break
                    self._in_data = False
                    self._note(mail)
                    data = rest
                    self._transport.write(b"250 2.0.0 taken\r\n")
                    continue
                line, end, rest = data.partition(b"\r\n")
                if not end:
                    break
                data = rest
                self._answer(line[:4].upper())
            self._rest = data

        def _answer(self, verb: bytes) -> None:
            if verb == b"EHLO":
                self._transport.write(b"250-sink.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
            elif verb == b"DATA":
                self._in_data = True
                self._transport.write(b"354 go on\r\n")
            elif verb == b"QUIT":
                self._transport.write(b"221 bye\r\n")
                self._transport.close()
            else:
                self._transport.write(b"250 2.1.0 OK\r\n")

        def _note(self, mail: bytes) -> None:
            count.value += 1
            if len(arrivals):
                at = mail.find(MARK)
                if at >= 0:
                    number = int(mail[at + len(MARK) :].split(b"\r\n", 1)[0])
                    arrivals[number] = arrivals[number] or time.monotonic()

    _serve(port, Discard)


def _run_aiosmtpd(port: int, quick: bool) -> None:
    class Discards:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return "250 2.0.0 taken"

    class Bare(SMTP):
        def __init__(self) -> None:
            super().__init__(
                Discards(),
                authenticator=lambda *_: AuthResult(success=True),
                auth_require_tls=False,
                hostname="sink.example",
                loop=asyncio.get_running_loop(),
            )

    class Quick(Bare):
        def connection_made(self, transport: Any) -> None:
            self._socket = transport.get_extra_info("socket")
            self._quick()
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            self._quick()
            super().data_received(data)

        def _quick(self) -> None:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    _serve(port, Quick if quick else Bare)


def _serve(port: int, protocol: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.disable(logging.WARNING)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(
            protocol, "127.0.0.1", port, backlog=1024
        )
        async with server:
            await _until_orphaned()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def _until_orphaned() -> None:
    """Until whoever started this process is gone; usually it says so first, by SIGTERM."""
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(1)
