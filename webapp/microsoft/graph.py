"""Microsoft Graph: the calls we make, on one connection kept open, and what each answer means.

Success of a send is 202 and nothing else. Whether a failure may hide a success hangs on one fact:
did the last byte of the mail go out? Before that nothing was sent, whatever went wrong; after it
nobody knows, unless the answer says so.

Facts: https://learn.microsoft.com/en-us/graph/outlook-send-mime-message and .../graph/errors
(August 2026).
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import NoReturn
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
from webapp.microsoft.codes import is_known, kind_of_graph_error
from webapp.outward import Outward

TIME_LIMIT = (10.0, 120.0)
"""Seconds to connect, and to wait for the next byte of an answer."""
# A connection that the remote closed while it was idle would fail with the mail already written,
# and nobody could tell that from a lost answer. So idle ones are given up before Microsoft does.
IDLE_SECONDS = 20.0

LARGEST_BODY = 64 * 1024
MAX_WORDS = 300
MAX_LOGGED = 2_000
LONGEST_WAIT = timedelta(days=1)

_PIECE = 96 * 1024  # of three bytes each, so that the pieces of base64 join without padding
_ME = "/me?$select=id,displayName,mail,userPrincipalName,proxyAddresses"
_INDENT = " " * 14  # as wide as the time of day in a log
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,79}")
_FIT = re.compile(r"[\x21-\x7e]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_CLAIMS = re.compile(r'\bclaims\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s",]+))', re.I)
_RAW_CLAIMS = re.compile(r'\bclaims\s*=\s*"?(?=\{)', re.I)

_ERRORS: Mapping[FailureKind, type[DeliveryError]] = {
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
class Me:
    """Who a token speaks for. `mail` may be empty, and `addresses` is for personal accounts."""

    id: str
    name: str
    mail: str
    sign_in_name: str
    addresses: tuple[str, ...]
    """In lower case, the primary one first."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A success. The two ids are what Microsoft's support asks for."""

    status: int
    request_id: str
    client_request_id: str
    log: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Reply:
    """Any answer as it came; `body` is cut at LARGEST_BODY."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    client_request_id: str


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What a Graph error says; without a Graph body all is empty."""

    code: str = ""
    message: str = ""
    is_graph: bool = False


class _Mail:
    """A mail as base64, encoded while it goes out; knows how far it came."""

    def __init__(self, mime: bytes) -> None:
        self._mime = mime
        self.size = len(mime)
        self.length = (len(mime) + 2) // 3 * 4
        self.begun = self.whole = False

    def __iter__(self) -> Iterator[bytes]:
        self.begun = True
        last = max(0, (self.size - 1) // _PIECE * _PIECE)
        for start in range(0, last, _PIECE):
            yield binascii.b2a_base64(self._mime[start : start + _PIECE], newline=False)
        self.whole = True
        yield binascii.b2a_base64(self._mime[last:], newline=False)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Graph:
    """The interface at one root (`https://graph.microsoft.com/v1.0`); for one thread at a time.

    Every method raises DeliveryError with the exchange in its `log`, and nothing else for what
    Microsoft or the network does. Tokens are strings and appear nowhere but in the request.
    """

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

    def me(self, token: str) -> Me:
        """The account that the token speaks for."""
        log: list[str] = []
        reply = self._exchange("GET", _ME, token, None, log)
        if reply.status != 200:
            raise self._error(reply, token, log, sending=False)
        return _read_me(reply, log)

    def send_mime(self, token: str, mime: bytes) -> Answer:
        """Send a mail from the token's mailbox; the recipients are those in its headers."""
        log: list[str] = []
        reply = self._exchange("POST", "/me/sendMail", token, _Mail(mime), log)
        if reply.status != 202:
            raise self._error(reply, token, log, sending=True)
        return Answer(
            status=reply.status,
            request_id=reply.request_id,
            client_request_id=reply.client_request_id,
            log=tuple(log),
        )

    def ask(self, token: str, path: str) -> Mapping[str, object]:
        """The JSON object at a path below the root; `path` is ready for the wire."""
        log: list[str] = []
        reply = self._exchange("GET", path, token, None, log)
        if reply.status != 200:
            raise self._error(reply, token, log, sending=False)
        return _json(reply.body)

    def close(self) -> None:
        """Let go of the connection; it comes back with the next call."""
        self._session.close()
        self._pool = None

    # --- one call ----------------------------------------------------------------------------

    def _exchange(
        self, method: str, path: str, token: str, mail: _Mail | None, log: list[str]
    ) -> _Reply:
        """Below `requests`: it costs as much CPU as all the rest, keeps cookies and redirects."""
        if not _FIT.fullmatch(token):
            self._raise_unfit(log)
        client_request_id = str(uuid.uuid4())
        headers = {
            **self._headers,
            "Authorization": f"Bearer {token}",
            "client-request-id": client_request_id,
        }
        size = ""
        if mail is not None:
            headers["Content-Type"] = "text/plain"
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
        reply = _Reply(
            status=response.status,
            reason=_one_line(response.reason or ""),
            headers=response.headers,
            body=body,
            request_id=_one_line(response.headers.get("request-id", ""))[:100],
            client_request_id=client_request_id,
        )
        log.append(f"{self._time()} {reply.status} in {(self._used_at - began) * 1000:.0f} ms")
        if reply.request_id:
            log.append(f"{_INDENT}request-id        {reply.request_id}")
        log.append(f"{_INDENT}client-request-id {client_request_id}")
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
        self._target = adapter.request_url(root, proxies)
        self._pool = pool
        return pool

    def _time(self) -> str:
        return f"{self._now().isoformat(timespec='milliseconds')[11:23]}Z"

    # --- what went wrong ---------------------------------------------------------------------

    def _raise_lost(
        self, error: Exception, mail: _Mail | None, client_request_id: str, log: list[str]
    ) -> NoReturn:
        """No answer came."""
        if mail is not None and mail.whole:
            kind: type[DeliveryError] = UncertainError
            cause, words = Cause.LOST_ANSWER, self._no_answer(error)
        else:
            kind = TransientError
            begun = mail is not None and mail.begun
            cause, words = self._broken_off(error) if begun else self._no_way(error)
        words = _one_line(f"{words} ({self._host})")[:MAX_WORDS]
        log.append(f"{self._time()} {words}")
        log.append(f"{_INDENT}client-request-id {client_request_id}")
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

    def _error(self, reply: _Reply, token: str, log: list[str], *, sending: bool) -> DeliveryError:
        """The error for an answer that is not the success we wait for."""
        said = _read_error(reply.body)
        raised = self._typed(reply, said, token, sending=sending)
        if reply.body:
            text = scrub(reply.body.decode("utf-8", "replace"), [token])
            log.append(_INDENT + _one_line(text)[:MAX_LOGGED])
        raised.log = tuple(log)
        return raised

    def _typed(self, reply: _Reply, said: _Said, token: str, *, sending: bool) -> DeliveryError:
        words = _words(reply, said, token)
        code = f"{reply.status} {said.code}".rstrip()
        claims = _claims(reply.headers.get("WWW-Authenticate", ""))
        if reply.status == 401 or (claims and 400 <= reply.status < 500):
            refused = TokenRefused(words, code=code, cause_code=Cause.AUTH)
            refused.claims = claims
            return refused
        kind, cause = kind_of_graph_error(reply.status, said.code, said.is_graph)
        if kind is FailureKind.UNCERTAIN and not sending:
            kind, cause = FailureKind.TRANSIENT, Cause.UNKNOWN
        wait = _retry_after(reply.headers.get("Retry-After", ""), self._now())
        return _ERRORS[kind](words, code=code, retry_after=wait, cause_code=cause)


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


def _read_error(body: bytes) -> _Said:
    """`{"error": {"code", "message", "innerError": {"code", ...}}}`; anything else is not Graph."""
    found = _json(body).get("error")
    if not isinstance(found, dict) or not isinstance(found.get("code"), str):
        return _Said()
    codes = [code for code in _codes(found) if _CODE.fullmatch(code)]
    known = [code for code in codes if is_known(code)]
    message = found.get("message")
    return _Said(
        code=next(iter([*reversed(known), *codes]), ""),
        message=message if isinstance(message, str) else "",
        is_graph=True,
    )


def _codes(error: dict[str, object]) -> Iterator[str]:
    """From the outermost to the innermost."""
    level: object = error
    while isinstance(level, dict):
        code = level.get("code")
        if isinstance(code, str):
            yield code
        level = level.get("innerError", level.get("innererror"))


def _json(body: bytes) -> dict[str, object]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _words(reply: _Reply, said: _Said, token: str) -> str:
    """Microsoft's own; of a page, or of nothing, the status line and what can be read."""
    status = f"{reply.status} {reply.reason}".rstrip()
    if said.message.strip():
        words = said.message
    elif said.is_graph:
        words = status
    else:
        text = _plain(reply.body)
        words = f"{status}: {text}" if text and text != status else status
    return _one_line(scrub(words, [token]))[:MAX_WORDS]


def _plain(body: bytes) -> str:
    """The text of a page, without its tags."""
    text = body[:4_000].decode("utf-8", "replace")
    return _one_line(html.unescape(_TAG.sub(" ", _SCRIPT.sub(" ", text))))


def _one_line(text: str) -> str:
    """Fit to be stored and shown: no line ends, no controls, no half characters."""
    line = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    return line.encode("utf-8", "replace").decode()


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


def _claims(header: str) -> str:
    """The JSON of a claims challenge in `WWW-Authenticate`, which may come in base64."""
    for text in _challenges(header[:16_000]):
        found = _claims_of(text)
        if found:
            return found
    return ""


def _challenges(header: str) -> Iterator[str]:
    for found in _RAW_CLAIMS.finditer(header):
        yield header[found.end() :]
    for found in _CLAIMS.finditer(header):
        yield found["bare"] or re.sub(r"\\(.)", r"\1", found["quoted"] or "")


def _claims_of(text: str) -> str:
    """The JSON object at the beginning of a text, as it is or in base64; empty if there is none."""
    if not text.startswith("{"):
        try:
            padded = text + "=" * (-len(text) % 4)
            text = base64.b64decode(padded.replace("-", "+").replace("_", "/")).decode().strip()
        except ValueError:
            return ""
    try:
        found, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return ""
    return text[:end] if isinstance(found, dict) else ""


def _read_me(reply: _Reply, log: list[str]) -> Me:
    found = _json(reply.body)

    def text(name: str) -> str:
        value = found.get(name)
        return _one_line(value) if isinstance(value, str) else ""

    if not text("id"):
        raised = TransientError(
            "the answer does not say who the account is", code="200", cause_code=Cause.PROTOCOL
        )
        raised.log = tuple(log)
        raise raised
    return Me(
        id=text("id"),
        name=text("displayName"),
        mail=text("mail"),
        sign_in_name=text("userPrincipalName"),
        addresses=_addresses(found.get("proxyAddresses")),
    )


def _addresses(proxies: object) -> tuple[str, ...]:
    """Of `SMTP:` (the primary one) and `smtp:` entries; there are others, such as `X500:`."""
    texts = [each for each in proxies if isinstance(each, str)] if isinstance(proxies, list) else []
    mail = [each for each in texts if each[:5].lower() == "smtp:"]
    mail.sort(key=lambda each: not each.startswith("SMTP:"))
    return tuple(dict.fromkeys(_one_line(each[5:]).lower() for each in mail))


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
