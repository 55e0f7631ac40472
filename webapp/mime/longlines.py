"""Bring a mail with lines over 998 octets (RFC 5321 4.5.3.1.6) into a form that may travel.

Only what is too long is touched: header lines are folded, and leaf parts with a long line get
another transfer encoding. What cannot be taken apart (broken boundary) and what is signed
(multipart/signed) stays as it is: a line cut somewhere would be damage nobody sees.
"""

import binascii
import re

from webapp.mime.headers import (
    FOLD_AT,
    MAX_DECODED_BYTES,
    Field,
    Headers,
    decode,
    encode_words,
    split,
)
from webapp.mime.structure import (
    MAX_DEPTH,
    boundary_of,
    media_type,
    part_spans,
    transfer_encoding,
)

MAX_LINE = 998

_NESTED_MAIL = {"message/rfc822", "message/global"}
# Changing these would change what they say, or no encoding is allowed in them (RFC 2046 5.2).
_UNTOUCHED = {"multipart/signed", "message/partial", "message/external-body"}
# Fields whose blanks and separators mean something: an address list is no text to encode.
_STRUCTURED = frozenset(
    b"from sender reply-to to cc bcc resent-from resent-sender resent-to resent-cc "
    b"x-original-to x-original-cc references in-reply-to message-id content-type "
    b"content-disposition dkim-signature arc-seal arc-message-signature "
    b"arc-authentication-results authentication-results received return-path "
    b"list-unsubscribe list-id autocrypt mime-version content-transfer-encoding date".split()
)
_WORD = re.compile(rb"[ \t]*[^ \t]+")
_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/=\s]*\Z")
_AFTER_SEPARATOR = re.compile(rb"(?<=[,;>])(?=[^ \t\r\n])")


def has_long_line(raw: bytes, start: int = 0, end: int | None = None) -> bool:
    """Whether a line in these CRLF-ended bytes is over 998 octets; looks at a few bytes of each."""
    stop = len(raw) if end is None else end
    at = start
    while stop - at > MAX_LINE:
        line_end = raw.rfind(b"\n", at, at + MAX_LINE + 2)
        if line_end < 0 or line_end >= stop:
            return True
        at = line_end + 1
    return False


def fold_long_fields(headers: Headers) -> None:
    """Fold the header fields that have a line over 998 octets."""
    for i, field in enumerate(headers.fields):
        if len(field.raw) > MAX_LINE and has_long_line(field.raw):
            headers.fields[i] = Field(field.name, _folded(field))


def shorten_body(headers: Headers, body: bytes) -> bytes:
    """The body without overlong lines where that can be had; `headers` are told what changed."""
    if not has_long_line(body):
        return body
    shortened = _shorten(headers, body, "", 0)
    if shortened is None:
        return body
    return shortened


def _shorten(headers: Headers, body: bytes, within: str, depth: int) -> bytes | None:
    """The body made short; None when it stays as it is."""
    kind = media_type(headers, within)
    if depth > MAX_DEPTH or kind in _UNTOUCHED:
        return None
    if kind.startswith("multipart/"):
        return _shorten_parts(headers, body, kind, depth)
    if kind in _NESTED_MAIL:
        return _shorten_entity(body, "", depth + 1)
    return _shorten_leaf(headers, body, kind)


def _shorten_parts(headers: Headers, body: bytes, kind: str, depth: int) -> bytes | None:
    boundary = boundary_of(headers.get(b"content-type") or b"")
    spans = part_spans(body, boundary, 0, len(body))
    if spans is None:
        return None
    out: list[bytes] = []
    at = 0
    for start, end in spans:
        part = body[start:end]
        changed = _shorten_entity(part, kind, depth + 1) if has_long_line(part) else None
        out += [body[at:start], part if changed is None else changed]
        at = end
    out.append(body[at:])
    return b"".join(out)


def _shorten_entity(entity: bytes, within: str, depth: int) -> bytes | None:
    found = split(entity)
    headers, body = found.headers, entity[found.body_at :]
    fold_long_fields(headers)
    if has_long_line(body):
        shortened = _shorten(headers, body, within, depth)
        body = body if shortened is None else shortened
    separator = found.separator or (b"\r\n" if headers.fields and body else b"")
    return headers.serialise() + separator + body


def _shorten_leaf(headers: Headers, body: bytes, kind: str) -> bytes | None:
    encoding = transfer_encoding(headers)
    if encoding == "base64":
        return _wrap_base64(body)
    if encoding == "quoted-printable":
        return _wrap_quoted_printable(body)
    if encoding not in {"", "7bit", "8bit", "binary"} or kind.startswith("message/"):
        return None
    if kind.startswith("text/"):
        headers.replace(b"Content-Transfer-Encoding", b"quoted-printable")
        encoded = binascii.b2a_qp(body, istext=True)
        return encoded.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    headers.replace(b"Content-Transfer-Encoding", b"base64")
    return _base64_lines(binascii.b2a_base64(body, newline=False))


def _base64_lines(letters: bytes) -> bytes:
    return b"\r\n".join([letters[i : i + 76] for i in range(0, len(letters), 76)]) + b"\r\n"


def _wrap_base64(body: bytes) -> bytes | None:
    """Line ends mean nothing in base64; anything else in there is left alone."""
    if not _BASE64_LINE.match(body):
        return None
    return _base64_lines(body.translate(None, b" \t\r\n"))


def _wrap_quoted_printable(body: bytes) -> bytes:
    """Soft line breaks in the long lines only, never inside `=XX`."""
    return b"\r\n".join(
        [_soft_wrapped(line) if len(line) > MAX_LINE else line for line in body.split(b"\r\n")]
    )


def _soft_wrapped(line: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while len(line) - at > 76:
        end = at + 75
        if line[end - 1] == 0x3D:
            end -= 1
        elif line[end - 2] == 0x3D:
            end -= 2
        pieces.append(line[at:end])
        at = end
    pieces.append(line[at:])
    return b"=\r\n".join(pieces)


def _folded(field: Field) -> bytes:
    name, colon, rest = field.raw.partition(b":")
    value = rest.rstrip(b"\r\n")
    if field.name in _STRUCTURED:
        # A blank after a separator changes nothing there and gives a place to fold.
        value = _AFTER_SEPARATOR.sub(b" ", value)
    lines = [_fold_line(line) for line in (name + colon + value).split(b"\r\n")]
    # A line of blanks alone would come out empty, and end the header.
    folded = b"\r\n".join([line for line in lines if line.strip()]) + b"\r\n"
    if has_long_line(folded) and len(name) < FOLD_AT - 15 and len(rest) <= MAX_DECODED_BYTES:
        words = encode_words(decode(rest), first=FOLD_AT - len(name) - 2)
        return name + b": " + words + b"\r\n"
    return folded


def _fold_line(line: bytes) -> bytes:
    """Fold before blanks that are there: unfolded, the line is what it was."""
    if len(line) <= MAX_LINE:
        return line
    lines: list[bytes] = []
    current = b""
    for word in _WORD.findall(line.rstrip()):
        fits = len(current) + len(word) <= FOLD_AT
        # The first word stays with the name: a line of blanks alone would end the header.
        if fits or word[:1] not in (b" ", b"\t") or not current.strip() or current.endswith(b":"):
            current += word
        else:
            lines.append(current)
            current = word
    return b"\r\n".join([*lines, current])
