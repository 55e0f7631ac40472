"""One HTTP exchange with a service that takes mail, on a connection kept open.

Whether a failure may hide a success hangs on one fact: did the last byte of the mail go out? Before
that nothing was sent, whatever went wrong; after it nobody knows, unless the answer says so.
"""

from __future__ import annotations

import binascii
import html
import json
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import ClassVar, NoReturn
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as AnyTimeout
from urllib3.response import BaseHTTPResponse
from urllib3.util import Timeout

from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    FailureKind,
    Misconfigured,
    NeedsReauthorisation,
    PermanentError,
    TransientError,
    UncertainError,
    scrub,
)
from webapp.outward import Outward

TIME_LIMIT = (10.0, 120.0)
"""Seconds to connect, and to wait for the next byte of an answer."""
# A connection that the remote closed while it was idle would fail with the mail already written,
# and nobody could tell that from a lost answer. So idle ones are given up before the remote does.
IDLE_SECONDS = 20.0

LARGEST_BODY = 64 * 1024
MAX_WORDS = 300
MAX_LOGGED = 2_000
LONGEST_WAIT = timedelta(days=1)

_PIECE = 96 * 1024  # of three bytes each, so that the pieces of base64 join without padding
INDENT = " " * 14
"""As wide as the time of day in a log."""
_FIT = re.compile(r"[\x21-\x7e]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")

ERRORS: Mapping[FailureKind, type[DeliveryError]] = {
    error.kind: error
    for error in (
        TransientError,
        UncertainError,
        PermanentError,
        NeedsReauthorisation,
        Misconfigured,
    )
}


class TokenRefused(NeedsReauthorisation):
    """The access token is not accepted; a newer one may be, so one more try is worth it."""

    claims = ""
    """What the next token must satisfy, as JSON (a claims challenge); usually empty."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A success. The two ids are what the service's support asks for, where it has such."""

    status: int
    request_id: str
    client_request_id: str
    log: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Any answer as it came; `body` is cut at LARGEST_BODY."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    client_request_id: str


class Body(ABC):
    """A mail on its way out; knows how far it came."""

    media_type: ClassVar[str]

    def __init__(self, mime: bytes) -> None:
        self.mime = mime
        self.size = len(mime)
        self.begun = self.whole = False

    @property
    @abstractmethod
    def length(self) -> int:
        """Bytes on the wire."""

    @abstractmethod
    def __iter__(self) -> Iterator[bytes]:
        """The pieces, `whole` being set before the last one is given out."""


class Base64Body(Body):
    """The mail as base64, encoded while it goes out."""

    media_type = "text/plain"

    @property
    def length(self) -> int:
        return (self.size + 2) // 3 * 4

    def __iter__(self) -> Iterator[bytes]:
        self.begun = True
        last = max(0, (self.size - 1) // _PIECE * _PIECE)
        for start in range(0, last, _PIECE):
            yield binascii.b2a_base64(self.mime[start : start + _PIECE], newline=False)
        self.whole = True
        yield binascii.b2a_base64(self.mime[last:], newline=False)


class PlainBody(Body):
    """The mail as it is."""

    media_type = "message/rfc822"

    @property
    def length(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        self.begun = True
        last = max(0, (self.size - 1) // _PIECE * _PIECE)
        for start in range(0, last, _PIECE):
            yield self.mime[start : start + _PIECE]
        self.whole = True
        yield self.mime[last:]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class HttpWire:
    """The interface at one root (`https://graph.microsoft.com/v1.0`); for one thread at a time.

    Raises DeliveryError with the exchange in its `log`, and nothing else for what the remote or the
    network does. Tokens are strings and appear nowhere but in the request.
    """

    request_id_header: ClassVar[str] = ""
    """In an answer: how the service names the request."""
    client_id_header: ClassVar[str] = ""
    """In a request: how we name it, where the service wants to know."""

    def __init__(
        self,
        api: str,
        *,
        ca_file: str | None = None,
        time_limit: tuple[float, float] = TIME_LIMIT,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.api = api
        self._host = urlsplit(api).netloc
        self._session = Outward(ca_file=ca_file, time_limit=time_limit)
        self._time_limit = time_limit
        self._timeout = Timeout(connect=time_limit[0], read=time_limit[1])
        self._clock = clock
        self._now = now
        self._pool: HTTPConnectionPool | None = None
        self._target = ""
        self._used_at = 0.0
        self._headers = {
            "User-Agent": str(self._session.headers["User-Agent"]),
            "Accept": "application/json",
        }

    def close(self) -> None:
        """Let go of the connection; it comes back with the next call."""
        self._session.close()
        self._pool = None

    # --- one call ----------------------------------------------------------------------------

    def exchange(
        self, method: str, path: str, token: str, mail: Body | None, log: list[str]
    ) -> Reply:
        """Ask, and give back whatever comes; every line of it goes into `log`.

        Below `requests`: it costs as much CPU as all the rest, keeps cookies and redirects.
        """
        if not _FIT.fullmatch(token):
            self._raise_unfit(log)
        client_request_id = str(uuid.uuid4())
        headers = {**self._headers, "Authorization": f"Bearer {token}"}
        if self.client_id_header:
            headers[self.client_id_header] = client_request_id
        size = ""
        if mail is not None:
            headers["Content-Type"] = mail.media_type
            headers["Content-Length"] = str(mail.length)
            size = f"  (MIME, {mail.size / 1024:.1f} KB)"
        log.append(f"{self._time()} {method} {self.api}{path}{size}")
        began = self._clock()
        try:
            pool = self._connected(began)
            response = pool.urlopen(
                method,
                self._target + path,
                body=mail,
                headers=headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=self._timeout,
                preload_content=False,
            )
        except (HTTPError, HTTPException, requests.RequestException, OSError) as error:
            self._raise_lost(error, mail, client_request_id, log)
        body = _read(response)
        self._used_at = self._clock()
        if mail is not None and not mail.whole:
            self.close()  # answered before the mail was out, so the rest of it is still owed
        reply = Reply(
            status=response.status,
            reason=one_line(response.reason or ""),
            headers=response.headers,
            body=body,
            request_id=one_line(response.headers.get(self.request_id_header or "-", ""))[:100],
            client_request_id=client_request_id,
        )
        log.append(f"{self._time()} {reply.status} in {(self._used_at - began) * 1000:.0f} ms")
        if reply.request_id:
            log.append(f"{INDENT}{self.request_id_header:<17} {reply.request_id}")
        self._note_id(client_request_id, log)
        return reply

    def _connected(self, now: float) -> HTTPConnectionPool:
        """Where to send; urllib3 itself looks whether the remote has hung up."""
        if self._pool is not None and now - self._used_at <= IDLE_SECONDS:
            return self._pool
        self.close()
        root = requests.Request("GET", self.api).prepare()
        settings = self._session.merge_environment_settings(self.api, {}, False, None, None)
        verify, proxies = settings["verify"], settings["proxies"]
        adapter = self._session.get_adapter(self.api)
        assert isinstance(adapter, HTTPAdapter)
        pool = adapter.get_connection_with_tls_context(root, verify, proxies=proxies)
        assert isinstance(pool, HTTPConnectionPool)
        adapter.cert_verify(pool, self.api, verify, None)  # type: ignore[no-untyped-call]
        # The path alone, but the whole address where a proxy for plain http asks for it.
        self._target = adapter.request_url(root, proxies).rstrip("/")  # a bare root is one
        self._pool = pool
        return pool

    def _time(self) -> str:
        return f"{self._now().isoformat(timespec='milliseconds')[11:23]}Z"

    # --- what went wrong ---------------------------------------------------------------------

    def _raise_lost(
        self, error: Exception, mail: Body | None, client_request_id: str, log: list[str]
    ) -> NoReturn:
        """No answer came."""
        if mail is not None and mail.whole:
            kind: type[DeliveryError] = UncertainError
            cause, words = Cause.LOST_ANSWER, self._no_answer(error)
        else:
            kind = TransientError
            begun = mail is not None and mail.begun
            cause, words = self._broken_off(error) if begun else self._no_way(error)
        words = one_line(f"{words} ({self._host})")[:MAX_WORDS]
        log.append(f"{self._time()} {words}")
        self._note_id(client_request_id, log)
        raised = kind(words, cause_code=cause)
        raised.unreached = (mail is None or not mail.begun) and cause is not Cause.LOST
        raised.log = tuple(log)
        raise raised from error

    def _raise_unfit(self, log: list[str]) -> NoReturn:
        """Nothing went out; Python's own error would have the whole header in it."""
        words = "the access token holds signs that no header can carry"
        log.append(f"{self._time()} {words}")
        raised = TransientError(words, cause_code=Cause.PROTOCOL)
        raised.log = tuple(log)
        raise raised

    def _no_answer(self, error: Exception) -> str:
        if isinstance(error, AnyTimeout):
            return f"no answer within {self._time_limit[1]:g} s"
        return f"connection lost before the answer came, {_reason(error)}"

    def _broken_off(self, error: Exception) -> tuple[Cause, str]:
        if isinstance(error, AnyTimeout):
            return Cause.TIMEOUT, "the mail did not go out in time"
        return Cause.LOST, f"connection lost while the mail went out, {_reason(error)}"

    def _no_way(self, error: Exception) -> tuple[Cause, str]:
        if isinstance(error, NameResolutionError):
            return Cause.DNS, _reason(error)
        if isinstance(error, ProxyError):
            return Cause.CONNECT, f"proxy: {_reason(error)}"
        if isinstance(error, NewConnectionError):
            return Cause.CONNECT, _reason(error)
        if isinstance(error, ConnectTimeoutError):
            return Cause.TIMEOUT, f"no connection within {self._time_limit[0]:g} s"
        if isinstance(error, SSLError):
            return Cause.TLS, f"TLS: {_reason(error)}"
        if isinstance(error, AnyTimeout):
            return Cause.TIMEOUT, "no answer in time"
        return Cause.LOST, f"connection lost, {_reason(error)}"

    def _note_id(self, client_request_id: str, log: list[str]) -> None:
        if self.client_id_header:
            log.append(f"{INDENT}{self.client_id_header:<17} {client_request_id}")

    def error_log(self, reply: Reply, token: str, log: list[str]) -> None:
        """Add what an answer that is no success says to the log, without the token."""
        if reply.body:
            text = scrub(reply.body.decode("utf-8", "replace"), [token])
            log.append(INDENT + one_line(text)[:MAX_LOGGED])

    def now(self) -> datetime:
        """The time by which answers are read."""
        return self._now()

    def wait_of(self, reply: Reply) -> timedelta | None:
        """What the answer says of when to come back; at most a day."""
        return _retry_after(reply.headers.get("Retry-After", ""), self._now())


# --- reading answers: whatever comes, nothing here raises --------------------------------------


def _read(response: BaseHTTPResponse) -> bytes:
    """The body, as far as it is wanted. The status has been read, so a lost rest is no failure."""
    try:
        body = response.read(LARGEST_BODY)
        if len(body) == LARGEST_BODY:
            response.close()  # there may be more, and it would stand in the way of the next answer
    except (HTTPError, HTTPException, OSError):
        response.close()
        return b""
    return body


def plain_text(body: bytes) -> str:
    """The text of a page, without its tags."""
    text = body[:4_000].decode("utf-8", "replace")
    return one_line(html.unescape(_TAG.sub(" ", _SCRIPT.sub(" ", text))))


def one_line(text: str) -> str:
    """Fit to be stored and shown: no line ends, no controls, no half characters."""
    line = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    return line.encode("utf-8", "replace").decode()


def json_of(body: bytes) -> dict[str, object]:
    """The JSON object of an answer; empty when it is anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _retry_after(value: str, now: datetime) -> timedelta | None:
    """Seconds or an HTTP date (RFC 9110, 10.2.3); None if it says nothing, at most a day."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        seconds = float(value[:10])
    else:
        try:
            when = parsedate_to_datetime(value)
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
            seconds = (when - now).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return timedelta(seconds=min(max(seconds, 0.0), LONGEST_WAIT.total_seconds()))


def _reason(error: BaseException) -> str:
    """The system's own words, from the bottom of what the layers wrapped around them."""
    while True:
        inner = next((each for each in error.args if isinstance(each, BaseException)), None)
        inner = inner or error.__cause__
        if inner is None:
            break
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return getattr(error, "verify_message", "") or error.strerror
    return str(error) or type(error).__name__
