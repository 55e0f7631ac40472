"""What an SMTP server's answer means for the mail: pure, from reply to typed error.

Codes are those of RFC 5321 (4.2.3), RFC 4954 for the login, RFC 3463 for the status after them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from enum import Enum, auto
from typing import NamedTuple

from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    Misconfigured,
    NeedsReauthorisation,
    PermanentError,
    TransientError,
    scrub,
)

MAX_WORDS = 2_000

_STATUS = re.compile(rb"[2-5]\d\d[ -]([245]\.\d{1,3}\.\d{1,3})\b")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_RATE = re.compile(rb"\brate\b|too many|throttl|concurren|limit exceeded", re.IGNORECASE)
_REMOTE_ID = re.compile(
    r"queued as <?([^\s<>,;()]+)"  # Postfix, and we ourselves
    r"|\b(?:internal)?id[= ]<?([^\s<>,;()\]]+)"  # Exim, Exchange
    r"|([^\s<>]+) message accepted for delivery"  # Sendmail
    r"|\bok:? <?(?!id=)([0-9a-z][^\s<>]{15,})",  # Amazon SES and others
    re.IGNORECASE,
)
_SIGN_IN_CODES = frozenset({530, 534, 535, 538})
# Microsoft: password sign-in switched off, retired, or not done.
_SIGN_IN_STATUSES = frozenset({"5.7.139", "5.7.30", "5.7.57"})
UNKNOWN_COMMAND = frozenset({500, 501, 502, 503, 504})


class Reply(NamedTuple):
    """What the server answered: the code of the last line, and all of it as it came."""

    code: int
    raw: bytes

    @property
    def status(self) -> str:
        """The enhanced status code of RFC 3463 ("5.7.1"), or nothing."""
        found = _STATUS.match(self.raw)
        return found[1].decode() if found else ""

    @property
    def label(self) -> str:
        """Both codes, as in "550 5.1.1"."""
        return f"{self.code} {self.status}".rstrip()


class Stage(Enum):
    """What was being said when the server refused."""

    GREETING = auto()
    HELLO = auto()
    STARTTLS = auto()
    AUTH = auto()
    SENDER = auto()
    RECIPIENT = auto()
    DATA = auto()
    BODY = auto()


_REFUSED = {
    Stage.SENDER: Cause.SENDER_REFUSED,
    Stage.RECIPIENT: Cause.RECIPIENT_REFUSED,
    Stage.DATA: Cause.CONTENT_REFUSED,
    Stage.BODY: Cause.CONTENT_REFUSED,
}

_Verdict = tuple[type[DeliveryError], Cause, timedelta | None]


def readable(raw: bytes, secrets: Iterable[str] = ()) -> str:
    """A server's bytes as text to store and show: at most 2,000 characters and no secret."""
    text = raw[: 8 * MAX_WORDS].decode("utf-8", "replace").replace("\r\n", "\n").strip()
    # Cover secrets before cutting: half of one would no longer be found.
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", scrub(text, secrets))[:MAX_WORDS]


def remote_id(words: str) -> str:
    """The server's own name for the mail, where its answer has one."""
    found = _REMOTE_ID.search(words)
    return next(filter(None, found.groups()), "") if found else ""


def cause_of_closing(reply: Reply) -> Cause:
    """Why a server says 421 and hangs up."""
    return Cause.RATE if _RATE.search(reply.raw) else Cause.LOST


def refusal(stage: Stage, reply: Reply, words: str) -> DeliveryError:
    """The error for a 4yz or 5yz reply at this stage."""
    kind, cause, retry_after = _judge(stage, reply)
    return kind(words, code=reply.label, retry_after=retry_after, cause_code=cause)


def _judge(stage: Stage, reply: Reply) -> _Verdict:
    code, status = reply.code, reply.status
    if code == 530 and b"STARTTLS" in reply.raw.upper():
        return Misconfigured, Cause.TLS, None
    if stage is Stage.AUTH:
        return _judge_sign_in(reply)
    if stage in (Stage.GREETING, Stage.HELLO):
        # Turned away at the door: that says nothing about this mail, so it must not end it.
        return TransientError, Cause.CONNECT, None
    if stage is Stage.STARTTLS:
        return (TransientError if code < 500 else Misconfigured), Cause.TLS, None
    if code in _SIGN_IN_CODES or status in _SIGN_IN_STATUSES:
        return NeedsReauthorisation, Cause.AUTH, None
    if code == 421:
        return TransientError, cause_of_closing(reply), None
    if stage is Stage.RECIPIENT and _too_many_recipients(reply):
        return TransientError, Cause.TOO_MANY_RECIPIENTS, timedelta(minutes=1)
    if code < 500:
        return TransientError, Cause.RATE if _RATE.search(reply.raw) else _REFUSED[stage], None
    if status in ("5.3.4", "5.2.3") or (code == 552 and not status):
        return PermanentError, Cause.TOO_LARGE, None
    return PermanentError, _REFUSED[stage], None


def _judge_sign_in(reply: Reply) -> _Verdict:
    if reply.code < 500 and reply.status != "4.7.12":  # RFC 4954: a new password is needed
        return TransientError, Cause.RATE if _RATE.search(reply.raw) else Cause.AUTH, None
    if reply.code == 538:
        return Misconfigured, Cause.TLS, None
    if reply.code in UNKNOWN_COMMAND and reply.status not in _SIGN_IN_STATUSES:
        return Misconfigured, Cause.AUTH, None
    return NeedsReauthorisation, Cause.AUTH, None


def _too_many_recipients(reply: Reply) -> bool:
    if reply.code == 452:
        return reply.status == "4.5.3" or b"too many" in reply.raw.lower()
    # RFC 5321, 4.5.3.1.10: an older standard had 552 for this, and it is still meant in passing.
    return reply.code == 552 and reply.status in ("", "5.5.3")
