"""What the ledger, the rules and the log need to know about a mail, read from its bytes once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from webapp.mime.headers import Address, Headers, decode, parse_addresses, split
from webapp.mime.structure import boundary_of

MAX_TEXT = 998
"""Characters kept of a subject, name, address or Message-ID: one line of RFC 5322."""

MAX_HOPS = 20
"""Received lines a mail may carry; more of them means that it goes round in a circle."""

MAX_PARTS_LOOKED_AT = 200
PART_HEADER_BYTES = 2_000

_MULTIPART = re.compile(rb"\s*multipart/([a-z0-9.+-]+)", re.IGNORECASE)
_ATTACHED = re.compile(rb"^content-disposition[ \t]*:\s*attachment", re.IGNORECASE | re.MULTILINE)
_NAMED = re.compile(rb"[;\s](?:file)?name\*?(?:0\*?)?\s*=", re.IGNORECASE)
_END_OF_HEADER = re.compile(rb"\n\r?\n|\r\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The mail as submitted. All text is free of NUL; addresses without an address are left out."""

    subject: str
    from_email: str
    from_name: str
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]
    reply_to: tuple[Address, ...]
    message_id: str
    date_header: bool
    has_attachments: bool
    received_count: int


def facts_of(raw: bytes) -> Facts:
    """Read the facts from any bytes; what is missing or unreadable is empty."""
    found = split(raw)
    values: dict[bytes, list[bytes]] = {}
    for field in found.headers.fields:
        values.setdefault(field.name, []).append(field.value)
    sender = from_address(values.get(b"from", ()))
    return Facts(
        subject=_first(values, b"subject"),
        from_email=sender.email[:MAX_TEXT],
        from_name=sender.name[:MAX_TEXT],
        to=addresses(values.get(b"to", ())),
        cc=addresses(values.get(b"cc", ())),
        bcc=addresses([*values.get(b"bcc", ()), *values.get(b"resent-bcc", ())]),
        reply_to=addresses(values.get(b"reply-to", ())),
        message_id=_first(values, b"message-id"),
        date_header=any(value.strip() for value in values.get(b"date", ())),
        has_attachments=has_attachments(raw, found.headers, found.body_at),
        received_count=len(values.get(b"received", ())),
    )


def from_address(values: Sequence[bytes]) -> Address:
    """The first mailbox of the first From field that has one; both parts empty when none has."""
    for value in values:
        for address in parse_addresses(value):
            return address
    return Address("", "")


def addresses(values: Sequence[bytes]) -> tuple[Address, ...]:
    """The mailboxes of all these fields that have an address."""
    return tuple(
        Address(address.name[:MAX_TEXT], address.email[:MAX_TEXT])
        for value in values
        for address in parse_addresses(value)
        if address.email
    )


def too_many_hops(facts: Facts) -> bool:
    """Whether the mail has been relayed so often that it must be going round in a circle."""
    return facts.received_count > MAX_HOPS


def has_attachments(raw: bytes, headers: Headers, body_at: int) -> bool:
    """Whether the log shows a paper clip: a guess from the outermost structure, without parsing it.

    True when the mail itself, or a part directly inside its outermost multipart, is marked
    `Content-Disposition: attachment`; in multipart/mixed a part with a file name counts as well.
    Attachments further in are not seen, nor those whose part header is longer than 2,000 bytes.
    """
    if any(v.strip().lower().startswith(b"attachment") for v in _dispositions(headers)):
        return True
    content_type = headers.get(b"content-type") or b""
    kind = _MULTIPART.match(content_type)
    boundary = boundary_of(content_type)
    if not kind or not boundary:
        return False
    mixed = kind[1].lower() == b"mixed"
    delimiter = b"--" + boundary
    at = raw.find(delimiter, body_at)
    for _ in range(MAX_PARTS_LOOKED_AT):
        if at < 0:
            break
        start = at + len(delimiter)
        header = raw[start : start + PART_HEADER_BYTES]
        end = _END_OF_HEADER.search(header)
        header = header[: end.start() if end else None]
        if _ATTACHED.search(header) or (mixed and _NAMED.search(header)):
            return True
        at = raw.find(delimiter, start)
    return False


def _dispositions(headers: Headers) -> list[bytes]:
    return headers.get_all(b"content-disposition")


def _first(values: dict[bytes, list[bytes]], name: bytes) -> str:
    return decode(values[name][0], MAX_TEXT) if name in values else ""
