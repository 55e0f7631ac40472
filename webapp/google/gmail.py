"""The Gmail API: the calls we make, and what each answer means.

A mail goes up as it is (`message/rfc822`); Gmail takes the recipients from its headers. Success is
200 with the id of the message and nothing else.

Facts: https://developers.google.com/workspace/gmail/api/reference/rest/v1/users.messages/send and
.../gmail/api/guides/handle-errors (November 2026).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from webapp.mailers.errors import Cause, DeliveryError, FailureKind, scrub
from webapp.mailers.http_wire import (
    ERRORS,
    LONGEST_WAIT,
    MAX_WORDS,
    Answer,
    HttpWire,
    PlainBody,
    Reply,
    TokenRefused,
    json_of,
    one_line,
    plain_text,
)

LARGEST = 35 * 1024 * 1024
"""Bytes of MIME in one call (36,700,160)."""
SEND_PATH = "/upload/gmail/v1/users/me/messages/send?uploadType=media"
ALIASES_PATH = "/gmail/v1/users/me/settings/sendAs"

_RETRY_AFTER = re.compile(r"Retry after (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)Z", re.IGNORECASE)
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")


class Reason(StrEnum):
    """What Gmail calls the reason of a refusal, in the order of what must happen next."""

    RATE = "rateLimitExceeded"
    USER_RATE = "userRateLimitExceeded"
    DAILY = "dailyLimitExceeded"
    QUOTA = "quotaExceeded"
    EXHAUSTED = "RESOURCE_EXHAUSTED"
    NOT_ENABLED = "accessNotConfigured"
    DISABLED = "SERVICE_DISABLED"
    PERMISSIONS = "insufficientPermissions"
    SCOPE = "ACCESS_TOKEN_SCOPE_INSUFFICIENT"
    DOMAIN_POLICY = "domainPolicy"
    PRECONDITION = "failedPrecondition"
    FORBIDDEN = "forbidden"


_SLOW = {Reason.RATE, Reason.USER_RATE, Reason.DAILY, Reason.QUOTA, Reason.EXHAUSTED}
_PROJECT = {Reason.NOT_ENABLED, Reason.DISABLED}
"""The project of the registration does not use the Gmail API."""
_ACCOUNT = {
    Reason.PERMISSIONS,
    Reason.SCOPE,
    Reason.DOMAIN_POLICY,
    Reason.FORBIDDEN,
    Reason.PRECONDITION,
}
"""The account, or its organization, lets nothing through."""
_UNKNOWN_END = {500, 502, 504}
"""Somebody behind Gmail's door did not answer; the mail may have gone on."""


@dataclass(frozen=True, kw_only=True)
class Alias:
    """An address that the account may send as."""

    address: str
    name: str
    is_primary: bool
    is_verified: bool


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What an error of Google's says; without such a body all is empty."""

    reason: str = ""
    status: str = ""
    message: str = ""
    is_google: bool = False

    @property
    def code(self) -> str:
        """The most telling name."""
        return self.reason or self.status


class Gmail(HttpWire):
    """The API at one root (`https://gmail.googleapis.com`); for one thread at a time.

    Every method raises DeliveryError with the exchange in its `log`.
    """

    request_id_header = "x-guploader-uploadid"

    def send_mime(self, token: str, mime: bytes) -> Answer:
        """Send a mail from the token's mailbox; the recipients are those in its headers."""
        log: list[str] = []
        reply = self.exchange("POST", SEND_PATH, token, PlainBody(mime), log)
        sent = json_of(reply.body).get("id") if reply.status == 200 else None
        if not isinstance(sent, str) or not sent:
            raise self._error(reply, token, log, sending=True)
        return Answer(
            status=reply.status,
            request_id=one_line(sent)[:100],
            client_request_id=reply.client_request_id,
            log=tuple(log),
        )

    def aliases(self, token: str) -> tuple[Alias, ...]:
        """The addresses that the account may send as, its own among them."""
        log: list[str] = []
        reply = self.exchange("GET", ALIASES_PATH, token, None, log)
        if reply.status != 200:
            raise self._error(reply, token, log, sending=False)
        listed = json_of(reply.body).get("sendAs")
        entries = listed if isinstance(listed, list) else []
        return tuple(_alias(entry) for entry in entries if isinstance(entry, dict))

    def _error(self, reply: Reply, token: str, log: list[str], *, sending: bool) -> DeliveryError:
        said = _read_error(reply.body)
        words = _words(reply, said, token)
        code = f"{reply.status} {said.code}".rstrip()
        raised: DeliveryError
        if reply.status == 401:
            raised = TokenRefused(words, code=code, cause_code=Cause.AUTH)
        else:
            kind, cause = kind_of(reply.status, said.code, words)
            if kind is FailureKind.UNCERTAIN and not sending:
                kind, cause = FailureKind.TRANSIENT, Cause.UNKNOWN
            wait = self.wait_of(reply) or wait_in(said.message, self.now())
            raised = ERRORS[kind](words, code=code, retry_after=wait, cause_code=cause)
        self.error_log(reply, token, log)
        raised.log = tuple(log)
        return raised


def kind_of(status: int, reason: str, words: str) -> tuple[FailureKind, Cause]:
    """What an answer that is no success means for a mail whose last byte went out."""
    if status == 429 or reason in _SLOW:
        return FailureKind.TRANSIENT, Cause.RATE
    if status == 200 or status in _UNKNOWN_END:
        return FailureKind.UNCERTAIN, Cause.LOST_ANSWER
    if reason in _PROJECT:
        return FailureKind.MISCONFIGURED, Cause.UNKNOWN
    if status == 403 or reason in _ACCOUNT:
        return FailureKind.NEEDS_REAUTHORISATION, Cause.AUTH
    if status == 413:
        return FailureKind.PERMANENT, Cause.TOO_LARGE
    if status == 400:
        about_recipient = "recipient" in words.casefold() or "to header" in words.casefold()
        cause = Cause.RECIPIENT_REFUSED if about_recipient else Cause.CONTENT_REFUSED
        return FailureKind.PERMANENT, cause
    return FailureKind.TRANSIENT, Cause.UNKNOWN


def wait_in(message: str, now: datetime) -> timedelta | None:
    """Gmail says in a sentence when to come back; None if it does not, at most a day."""
    found = _RETRY_AFTER.search(message)
    if found is None:
        return None
    try:
        until = datetime.fromisoformat(found[1][:19]).replace(tzinfo=UTC)
    except ValueError:
        return None
    return min(max(until - now, timedelta()), LONGEST_WAIT)


def _read_error(body: bytes) -> _Said:
    """`{"error": {"message", "status", "errors": [{"reason"}], "details": [{"reason"}]}}`."""
    found = json_of(body).get("error")
    if not isinstance(found, dict):
        return _Said()
    reasons = [*_reasons(found.get("details")), *_reasons(found.get("errors"))]
    known = {reason.value for reason in Reason}
    return _Said(
        reason=next((one for one in reasons if one in known), next(iter(reasons), "")),
        status=_name(found.get("status")),
        message=found["message"] if isinstance(found.get("message"), str) else "",
        is_google=True,
    )


def _reasons(listed: object) -> list[str]:
    entries = listed if isinstance(listed, list) else []
    names = [_name(entry.get("reason")) for entry in entries if isinstance(entry, Mapping)]
    return [name for name in names if name]


def _name(value: object) -> str:
    return value if isinstance(value, str) and _REASON.fullmatch(value) else ""


def _words(reply: Reply, said: _Said, token: str) -> str:
    """Google's own; of a page, or of nothing, the status line and what can be read."""
    status = f"{reply.status} {reply.reason}".rstrip()
    words = said.message
    if not words.strip():
        text = "" if said.is_google else plain_text(reply.body)
        words = f"{status}: {text}" if text and text != status else status
    return one_line(scrub(words, [token]))[:MAX_WORDS]


def _alias(entry: Mapping[str, object]) -> Alias:
    def text(name: str) -> str:
        value = entry.get(name)
        return one_line(value) if isinstance(value, str) else ""

    primary = entry.get("isPrimary") is True
    return Alias(
        address=text("sendAsEmail").lower(),
        name=text("displayName"),
        is_primary=primary,
        is_verified=primary or text("verificationStatus") == "accepted",
    )
