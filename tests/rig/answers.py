"""A server on loopback that gives the answers it was told to give, byte by byte.

The stand-in for Microsoft behaves; this one does what no server should: it hangs up in the middle,
says nothing, sends what is not HTTP.
"""

import contextlib
import socket
import ssl
import struct
import threading
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

REASONS = {200: "OK", 202: "Accepted", 429: "Too Many Requests", 504: "Gateway Time-out"}


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """An answer on the wire; `Retry_After="5"` is a header."""
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Something')}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


DROP = b"drop"
"""Takes the whole request and hangs up."""
DROP_EARLY = b"drop early"
"""Hangs up when the headers are there and the body is not."""
SILENCE = b"silence"
"""Takes the whole request and never says anything."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as it came in; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answers:
    """Gives the planned answers in turn, then 202. `context` None: without TLS.

    After an answer that does not begin like HTTP it hangs up.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.connections = 0
        self._planned: deque[bytes] = deque()
        self._context = context
        self._over = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """The root of an interface here."""
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}/v1.0"

    def plan(self, *answers: bytes) -> None:
        """What to answer next."""
        self._planned.extend(answers)

    def hang_up(self) -> None:
        """Close the connections that are open, as servers do with idle ones."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        self._thread.join(5)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                plain, _address = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(30)
        connection = plain
        # A client that turns away, in the handshake or later, is what many tests are about.
        with contextlib.suppress(OSError, ValueError):
            if self._context:
                connection = self._context.wrap_socket(plain, server_side=True)
            self._open.append(connection)
            with connection.makefile("rb") as stream:
                while self._answer_one(connection, stream):
                    pass
        connection.close()

    def _answer_one(self, connection: socket.socket, stream: BinaryIO) -> bool:
        words = stream.readline().decode().split()
        if len(words) != 3:
            return False
        headers = {}
        while line := stream.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        planned = self._planned.popleft() if self._planned else answer(202)
        if planned == DROP_EARLY:
            # Without lingering, closing sends a reset even though there is something unread.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        body = stream.read(int(headers.get("content-length", "0")))
        self.asked.append(Asked(method=words[0], path=words[1], headers=headers, body=body))
        if planned == DROP:
            return False
        if planned == SILENCE:
            self._over.wait()
            return False
        connection.sendall(planned)
        return planned.startswith(b"HTTP/1.1 ")
