"""Microsoft Graph: the calls we make, on one connection kept open, and what each answer means.

Success of a send is 202 and nothing else. Whether a failure may hide a success hangs on one fact:
did the last byte of the mail go out? Before that nothing was sent, whatever went wrong; after it
nobody knows, unless the answer says so.

Facts: https://learn.microsoft.com/en-us/graph/outlook-send-mime-message and .../graph/errors
(August 2026).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from webapp.mailers.errors import Cause, DeliveryError, FailureKind, TransientError, scrub
from webapp.mailers.http_wire import (
    ERRORS,
    MAX_WORDS,
    Answer,
    Base64Body,
    HttpWire,
    Reply,
    TokenRefused,
    json_of,
    one_line,
    plain_text,
)
from webapp.microsoft.codes import is_known, kind_of_graph_error

_ME = "/me?$select=id,displayName,mail,userPrincipalName,proxyAddresses"
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,79}")
_CLAIMS = re.compile(r'\bclaims\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s",]+))', re.I)
_RAW_CLAIMS = re.compile(r'\bclaims\s*=\s*"?(?=\{)', re.I)


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
class _Said:
    """What a Graph error says; without a Graph body all is empty."""

    code: str = ""
    message: str = ""
    is_graph: bool = False


class Graph(HttpWire):
    """The interface at one root (`https://graph.microsoft.com/v1.0`); for one thread at a time.

    Every method raises DeliveryError with the exchange in its `log`, and nothing else for what
    Microsoft or the network does. Tokens are strings and appear nowhere but in the request.
    """

    request_id_header = "request-id"
    client_id_header = "client-request-id"

    def me(self, token: str) -> Me:
        """The account that the token speaks for."""
        log: list[str] = []
        reply = self.exchange("GET", _ME, token, None, log)
        if reply.status != 200:
            raise self._error(reply, token, log, sending=False)
        return _read_me(reply, log)

    def send_mime(self, token: str, mime: bytes) -> Answer:
        """Send a mail from the token's mailbox; the recipients are those in its headers."""
        log: list[str] = []
        reply = self.exchange("POST", "/me/sendMail", token, Base64Body(mime), log)
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
        reply = self.exchange("GET", path, token, None, log)
        if reply.status != 200:
            raise self._error(reply, token, log, sending=False)
        return json_of(reply.body)

    # --- what went wrong ---------------------------------------------------------------------

    def _error(self, reply: Reply, token: str, log: list[str], *, sending: bool) -> DeliveryError:
        """The error for an answer that is not the success we wait for."""
        said = _read_error(reply.body)
        raised = self._typed(reply, said, token, sending=sending)
        self.error_log(reply, token, log)
        raised.log = tuple(log)
        return raised

    def _typed(self, reply: Reply, said: _Said, token: str, *, sending: bool) -> DeliveryError:
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
        return ERRORS[kind](words, code=code, retry_after=self.wait_of(reply), cause_code=cause)


# --- reading answers: whatever comes, nothing here raises --------------------------------------


def _read_error(body: bytes) -> _Said:
    """`{"error": {"code", "message", "innerError": {"code", ...}}}`; anything else is not Graph."""
    found = json_of(body).get("error")
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


def _words(reply: Reply, said: _Said, token: str) -> str:
    """Microsoft's own; of a page, or of nothing, the status line and what can be read."""
    status = f"{reply.status} {reply.reason}".rstrip()
    if said.message.strip():
        words = said.message
    elif said.is_graph:
        words = status
    else:
        text = plain_text(reply.body)
        words = f"{status}: {text}" if text and text != status else status
    return one_line(scrub(words, [token]))[:MAX_WORDS]


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


def _read_me(reply: Reply, log: list[str]) -> Me:
    found = json_of(reply.body)

    def text(name: str) -> str:
        value = found.get(name)
        return one_line(value) if isinstance(value, str) else ""

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
    return tuple(dict.fromkeys(one_line(each[5:]).lower() for each in mail))
