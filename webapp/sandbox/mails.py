"""Mail that arrived: read as far as Graph reads it, and kept for the inbox."""

import re
from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from typing import Any

KEPT = 5_000
"""Mails in the inbox; older ones are dropped, and stay counted."""

_WANTED = re.compile(
    rb"^(from|to|cc|bcc|subject|message-id)[ \t]*:([^\r\n]*(?:\r?\n[ \t][^\r\n]*)*)",
    re.IGNORECASE | re.MULTILINE,
)
_BCC = re.compile(rb"(?:\r?\n|\A)bcc[ \t]*:[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*", re.IGNORECASE)
_HEADER = re.compile(rb"^[!-9;-~]+[ \t]*:", re.MULTILINE)
_BLANK = re.compile(rb"\r?\n\r?\n")


class NotMail(Exception):
    """What was sent has no headers."""


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A mail as Graph delivers it: to everybody in To, Cc and Bcc, without the Bcc header."""

    sender: str
    """The address in From in lower case; empty when there is none."""
    from_text: str
    subject: str
    message_id: str
    recipients: tuple[str, ...]
    raw: bytes


@dataclass(frozen=True, kw_only=True)
class Mail:
    """A mail in the inbox."""

    number: int
    account: str
    client_id: str
    at: datetime
    parsed: Parsed

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "number": self.number,
            "message_id": self.parsed.message_id,
            "account": self.account,
            "client_id": self.client_id,
            "recipients": list(self.parsed.recipients),
            "subject": self.parsed.subject,
            "from": self.parsed.from_text,
            "at": self.at.isoformat(),
        }


def parse(raw: bytes) -> Parsed:
    """Read the header down to the blank line; raises NotMail."""
    if not _HEADER.match(raw):
        raise NotMail
    blank = _BLANK.search(raw)
    head = raw[: blank.start()] if blank else raw
    found: dict[bytes, list[str]] = {}
    for name, value in _WANTED.findall(head):
        text = value.replace(b"\r", b"").replace(b"\n", b"").strip().decode("utf-8", "replace")
        found.setdefault(name.lower(), []).append(text)
    if b"bcc" in found:
        raw = _BCC.sub(b"", head) + raw[len(head) :]
    lines = found.get(b"to", []) + found.get(b"cc", []) + found.get(b"bcc", [])
    recipients = dict.fromkeys(address for _, address in getaddresses(lines) if "@" in address)
    senders = [address for _, address in getaddresses(found.get(b"from", [])) if address]
    return Parsed(
        sender=senders[0].lower() if senders else "",
        from_text=_readable(found.get(b"from", [""])[0]),
        subject=_readable(found.get(b"subject", [""])[0]),
        message_id=found.get(b"message-id", [""])[0],
        recipients=tuple(recipients),
        raw=raw,
    )


def _readable(text: str) -> str:
    if "=?" not in text:
        return text
    try:
        return str(make_header(decode_header(text)))
    except (ValueError, LookupError):  # an unknown charset, or no encoded word after all
        return text


class BadMessage(Exception):
    """The JSON form of a mail is not as Graph wants it."""


def from_json(message: Any) -> bytes:
    """The MIME source of Graph's JSON form of a mail; raises BadMessage with a sentence."""
    if not isinstance(message, dict):
        raise BadMessage("The message is not an object.")
    mail = EmailMessage()
    try:
        _fill(mail, message)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadMessage("The message does not have the form of a message.") from error
    return mail.as_bytes()


def _fill(mail: EmailMessage, message: dict[str, Any]) -> None:
    mail["Subject"] = str(message.get("subject") or "")
    if sender := message.get("from"):
        mail["From"] = sender["emailAddress"]["address"]
    for header, name in (("To", "toRecipients"), ("Cc", "ccRecipients"), ("Bcc", "bccRecipients")):
        if listed := [entry["emailAddress"]["address"] for entry in message.get(name) or ()]:
            mail[header] = ", ".join(listed)
    for header in message.get("internetMessageHeaders") or ():
        if not header["name"].lower().startswith("x-"):
            raise ValueError(header["name"])
        mail[header["name"]] = header["value"]
    if message_id := message.get("internetMessageId"):
        mail["Message-ID"] = message_id
    body = message.get("body") or {}
    kind = "html" if str(body.get("contentType", "text")).lower() == "html" else "plain"
    mail.set_content(str(body.get("content") or ""), subtype=kind)


class Inbox:
    """All that arrived, whoever sent it. `discard`: mails are counted only."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.discard = False
        self._mails: deque[Mail] = deque(maxlen=KEPT)
        self._number = 0

    def take(self, parsed: Parsed, *, account: str, client_id: str, at: datetime) -> None:
        """A mail was sent."""
        self.counts[parsed.message_id] += 1
        if self.discard:
            return
        self._number += 1
        self._mails.append(
            Mail(number=self._number, account=account, client_id=client_id, at=at, parsed=parsed)
        )

    def all(self) -> list[Mail]:
        """Newest first."""
        return list(reversed(self._mails))

    def find(self, number: int) -> Mail | None:
        """One mail, while it is kept."""
        return next((mail for mail in self._mails if mail.number == number), None)

    def clear(self) -> None:
        """Forget all mails and counts."""
        self.counts.clear()
        self._mails.clear()
