"""What leaves: the stored mail made ready for one attempt on one connection."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime

from webapp.mime.facts import from_address, too_many_hops
from webapp.mime.headers import (
    MAX_ADDRESSES,
    MAX_DECODED_BYTES,
    Address,
    Headers,
    address_key,
    parse_addresses,
    render_address,
    render_addresses,
    render_email,
    split,
)
from webapp.mime.longlines import fold_long_fields, shorten_body
from webapp.mime.sender import FromBlock, FromDecision, FromReason, Placeholders, resolve_from

__all__ = [
    "FromBlock",
    "FromDecision",
    "FromReason",
    "Outgoing",
    "Placeholders",
    "compose",
    "crlf",
    "resolve_from",
    "too_many_hops",
]

_LINE_ENDS = re.compile(rb"\r+\n?|\n")
_NOT_IN_RECEIVED = re.compile(r"[^\x20-\x7e]|;")
_NOT_IN_DOMAIN = re.compile(r"[^A-Za-z0-9.-]")
_ID = re.compile(r"<[^<>\s]+>")
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """One attempt's mail: bytes with CRLF line ends, its envelope, and what was decided for it.

    `reply_to_added` is the address rescued into Reply-To, empty when none was.
    """

    content: bytes
    mail_from: str
    recipients: tuple[str, ...]
    from_email: str
    from_name: str
    reply_to_added: str
    decision: FromDecision


def compose(
    raw: bytes,
    *,
    queue_id: str,
    hostname: str,
    received_from: str,
    received_with: str,
    received_at: datetime,
    mail_from: str,
    recipients: Sequence[str],
    block: FromBlock,
    placeholders: Placeholders,
    header_envelope: bool = False,
) -> Outgoing:
    """Make a stored mail ready to leave to exactly these recipients; any bytes will do.

    The same arguments give the same bytes, so a retry carries the same Message-ID. With
    `header_envelope` the headers name exactly the recipients (for services that read them there);
    otherwise To and Cc stay as they are and Bcc goes. Raises ValueError when `received_at` has no
    time zone.
    """
    if received_at.tzinfo is None:
        raise ValueError("received_at needs a time zone")
    raw = crlf(raw)
    found = split(raw)
    headers, body = found.headers, raw[found.body_at :]
    _end_every_field(headers)
    asked = from_address(headers.get_all(b"from"))
    decision = resolve_from(asked.email, asked.name, block, placeholders)
    rescued = _rescue_reply_to(headers, asked, decision)
    if decision.replaced and decision.email:
        headers.replace(b"From", render_address(Address(decision.name, decision.email)))
    headers.remove(b"bcc", b"resent-bcc")
    if header_envelope:
        _name_exactly(headers, recipients)
    _add_missing(headers, queue_id, hostname, received_at)
    received = _received(queue_id, hostname, received_from, received_with, received_at)
    headers.prepend(b"Received", received)
    fold_long_fields(headers)
    body = _shortened(headers, body)
    return Outgoing(
        content=b"".join((headers.serialise(), b"\r\n", body)),
        # A null sender says that nobody wants a bounce of this; it stays null (RFC 5321, 4.5.5).
        mail_from=(block.return_path and mail_from and decision.email) or mail_from,
        recipients=tuple(recipients),
        from_email=decision.email,
        from_name=decision.name,
        reply_to_added=rescued,
        decision=decision,
    )


def crlf(raw: bytes) -> bytes:
    """The same lines, each ended by CRLF; several CR before one LF are one line end."""
    pairs = raw.count(b"\r\n")
    if raw.count(b"\n") == pairs and raw.count(b"\r") == pairs:
        return raw
    if b"\r\r" not in raw:
        return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    return _LINE_ENDS.sub(_line_end, raw)


def _line_end(found: re.Match[bytes]) -> bytes:
    ends = found[0]
    return b"\r\n" if ends.endswith(b"\n") else b"\r\n" * len(ends)


def _end_every_field(headers: Headers) -> None:
    """Drop the mbox line, and end the last field of a mail that stops there."""
    fields = [field for field in headers.fields if field.name]
    if fields and not fields[-1].raw.endswith(b"\n"):
        fields[-1] = fields[-1]._replace(raw=fields[-1].raw + b"\r\n")
    headers.fields = fields


def _rescue_reply_to(headers: Headers, asked: Address, decision: FromDecision) -> str:
    """Let answers still reach the sender whose From was forced away; the address added, or ''."""
    if not decision.forced or not asked.email:
        return ""
    if address_key(asked.email) == address_key(decision.email):
        return ""
    if any(parse_addresses(value) for value in headers.get_all(b"reply-to")):
        return ""
    headers.replace(b"Reply-To", render_address(asked))
    return asked.email


def _name_exactly(headers: Headers, recipients: Sequence[str]) -> None:
    """Make To, Cc and Bcc name the recipients and nobody else."""
    wanted = {address_key(recipient) for recipient in recipients}
    named: set[str] = set()
    for name, aside in ((b"To", b"X-Original-To"), (b"Cc", b"X-Original-Cc")):
        values = headers.get_all(name)
        listed = [address for value in values for address in parse_addresses(value)]
        kept = [address for address in listed if address_key(address.email) in wanted]
        named.update(address_key(address.email) for address in kept)
        moved = [address for address in listed if address_key(address.email) not in wanted]
        # What is kept as written must have been read to its end.
        read = len(listed) < MAX_ADDRESSES and all(len(v) <= MAX_DECODED_BYTES for v in values)
        if not moved and len(values) <= 1 and read:
            continue
        if kept:
            headers.replace(name, render_addresses(kept))
        else:
            headers.remove(name)
        if moved:
            headers.append(aside, render_addresses(moved))
    hidden = {address_key(r): r for r in recipients if address_key(r) not in named}
    if hidden:
        headers.append(b"Bcc", b",\r\n ".join(render_email(r) for r in hidden.values()))


def _add_missing(headers: Headers, queue_id: str, hostname: str, at: datetime) -> None:
    if not headers.has(b"date"):
        headers.replace(b"Date", format_datetime(at).encode("ascii"))
    if not headers.has(b"message-id"):
        left = _NOT_IN_ID.sub("", queue_id) or "mail"
        headers.replace(b"Message-ID", f"<{left}@{_domain(hostname)}>".encode("ascii"))


def message_id_of(raw: bytes, *, queue_id: str, hostname: str) -> str:
    """The Message-ID with which this mail leaves, its own or the one that `compose` gives it."""
    headers = split(crlf(raw)).headers
    if not headers.has(b"message-id"):
        _add_missing(headers, queue_id, hostname, datetime.now(UTC))
    value = (headers.get(b"message-id") or b"").decode("utf-8", "replace")
    found = _ID.search(value)
    return found[0] if found else "".join(value.split())


def _domain(hostname: str) -> str:
    return _NOT_IN_DOMAIN.sub("", hostname).strip(".-") or "localhost"


def _received(
    queue_id: str, hostname: str, received_from: str, received_with: str, at: datetime
) -> bytes:
    """The trace field of RFC 5321 4.4, folded."""
    source = " ".join(_NOT_IN_RECEIVED.sub(" ", received_from).split())[:400]
    protocol = _NOT_IN_ID.sub("", received_with) or "SMTP"
    left = _NOT_IN_ID.sub("", queue_id) or "mail"
    by = f"by {_domain(hostname)} with {protocol} id {left};"
    lines = [f"from {source}", by] if source else [by]
    return "\r\n\t".join([*lines, format_datetime(at)]).encode("ascii")


def _shortened(headers: Headers, body: bytes) -> bytes:
    """The body without overlong lines; once a part is encoded, the mail must say it is MIME."""
    had_encoding = headers.has(b"content-transfer-encoding")
    shortened = shorten_body(headers, body)
    encoded = not had_encoding and headers.has(b"content-transfer-encoding")
    if encoded and not headers.has(b"mime-version"):
        headers.append(b"MIME-Version", b"1.0")
    return shortened
