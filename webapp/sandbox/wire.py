"""HTTP/1.1 for both listeners, written by hand: fast, and able to misbehave when told to.

A handler is a plain function from `Request` to `Answer`. Everything runs on one event loop, so no
state of the sandbox needs a lock.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl, unquote

LARGEST_BODY = 64 * 1024 * 1024
LARGEST_HEAD = 64 * 1024

_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What came in; header names are in lower case, the path is as it was sent."""

    method: str
    path: str
    query: str = ""
    headers: dict[str, str]
    body: bytes = b""

    @cached_property
    def arguments(self) -> dict[str, str]:
        """The query, by name; of several values the last."""
        return dict(parse_qsl(self.query, keep_blank_values=True))

    @cached_property
    def form(self) -> dict[str, str]:
        """The body of a form, by name."""
        return dict(parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True))

    @cached_property
    def segments(self) -> tuple[str, ...]:
        """The parts of the path, decoded."""
        return tuple(unquote(part) for part in self.path.strip("/").split("/"))

    @property
    def media_type(self) -> str:
        """Content type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What goes out. `dropped`: the connection is cut instead; `delay`: seconds to wait before."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delay: float = 0.0
    dropped: bool = False

    def head(self, *, close: bool) -> bytes:
        """Status line and headers."""
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Unknown')}"]
        lines.extend(f"{name}: {value}" for name, value in self.headers)
        lines.append(f"Content-Length: {len(self.body)}")
        if close:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


Handler = Callable[[Request], Answer]


def as_json(value: Any, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An answer for programs."""
    return Answer(
        status=status,
        headers=(("Content-Type", "application/json"), *headers),
        body=json.dumps(value, ensure_ascii=False).encode(),
    )


def as_text(text: str, *, status: int = 200) -> Answer:
    """One sentence."""
    return Answer(
        status=status,
        headers=(("Content-Type", "text/plain; charset=utf-8"),),
        body=text.encode(),
    )


def redirect(location: str, *, status: int = 302) -> Answer:
    """Send the browser elsewhere."""
    return Answer(status=status, headers=(("Location", location), ("Cache-Control", "no-store")))


class Malformed(Exception):
    """A request that is not HTTP as we speak it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Connection(asyncio.Protocol):
    """One client; requests are answered one after the other, the connection stays open."""

    def __init__(self, handle: Handler, connected: "set[Connection]") -> None:
        self._handle = handle
        self._connected = connected
        self._buffer = bytearray()
        self._begun: tuple[Request, int] | None = None
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The event loop's."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass
        self._connected.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The event loop's."""
        self._connected.discard(self)

    def abort(self) -> None:
        """End it at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """The event loop's."""
        self._buffer += data
        self._work()

    def _work(self) -> None:
        while not self._waiting and not self._transport.is_closing():
            try:
                request = self._next()
            except Malformed as error:
                self._send(as_text(str(error), status=error.status), close=True)
                return
            if request is None:
                return
            self._answer(request)

    def _next(self) -> Request | None:
        """The next request that is there as a whole."""
        if self._begun is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > LARGEST_HEAD:
                    raise Malformed(431, "The headers are too long.")
                return None
            self._begun = _read_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            if self._begun[0].headers.get("expect", "").lower() == "100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head, length = self._begun
        if len(self._buffer) < length:
            return None
        self._begun = None
        if not length:
            return head
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return Request(
            method=head.method, path=head.path, query=head.query, headers=head.headers, body=body
        )

    def _answer(self, request: Request) -> None:
        answer = self._handle(request)
        close = request.headers.get("connection", "").lower() == "close"
        if request.method == "HEAD":
            answer = Answer(status=answer.status, headers=answer.headers)
        if answer.delay <= 0:
            self._send(answer, close=close)
            return
        self._waiting = True
        asyncio.get_running_loop().call_later(answer.delay, self._send_late, answer, close)

    def _send_late(self, answer: Answer, close: bool) -> None:
        self._waiting = False
        if not self._transport.is_closing():
            self._send(answer, close=close)
            self._work()

    def _send(self, answer: Answer, *, close: bool) -> None:
        if answer.dropped:
            self._transport.abort()
            return
        self._transport.write(answer.head(close=close) + answer.body)
        if close:
            self._transport.close()


def _read_head(head: bytes) -> tuple[Request, int]:
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or words[2] != "HTTP/1.1":
        raise Malformed(505, "The sandbox speaks HTTP/1.1 only.")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise Malformed(411, "Send a Content-Length.")
    length = headers.get("content-length", "0")
    if not length.isdigit():
        raise Malformed(400, "The Content-Length is not a number.")
    if int(length) > LARGEST_BODY:
        raise Malformed(413, "The body is too long.")
    path, _, query = words[1].partition("?")
    return Request(method=words[0], path=path, query=query, headers=headers), int(length)
