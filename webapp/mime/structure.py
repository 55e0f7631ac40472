"""The parts of a MIME mail as spans of its bytes, found without recursion and without copying."""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from webapp.mime.headers import (
    Headers,
    Split,
    base64_bytes,
    bytes_to_text,
    charset_to_text,
    clean,
    decode_words,
    split,
)

MAX_DEPTH = 50
"""Levels of multiparts that are opened; deeper ones are one part, as if they were text."""

MAX_PARTS = 1_000
"""Parts looked at in one mail."""

MAX_VALUE_BYTES = 16_000

_BOUNDARY = re.compile(
    rb"""[;\s]boundary\s*=\s*(?:"([^"\r\n]{1,200})"|([^\s;"]{1,200}))""", re.IGNORECASE
)
_AFTER_BOUNDARY = re.compile(rb"(--)?[ \t]*+(?:\r*+\n|\r|\Z)")
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}\Z")
_PARAMETER = re.compile(r""";\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^;]*+))""", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_NUMBERED = re.compile(r"([^*]+)(?:\*(\d{1,3}))?(\*)?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A leaf: its headers, its media type (lower case, text/plain when in doubt), and its body.

    `within` is the media type of the multipart around it, empty for a mail of one part.
    """

    headers: Headers
    kind: str
    within: str
    start: int
    end: int

    def body(self, raw: bytes, limit: int | None = None) -> bytes:
        """The bytes as transferred, at most `limit` of them."""
        return raw[self.start : self.end if limit is None else min(self.end, self.start + limit)]


def leaves(raw: bytes) -> Iterator[Part]:
    """The leaves of a mail in order, message/rfc822 being one; a broken multipart is one as well.

    At most `MAX_PARTS`. A stack instead of recursion: ten thousand levels are just one deep leaf.
    """
    stack: list[tuple[Split, int, str, int]] = [(split(raw), len(raw), "", 0)]
    seen = 0
    while stack and seen < MAX_PARTS:
        found, end, within, depth = stack.pop()
        seen += 1
        kind = media_type(found.headers, within)
        spans = None
        if kind.startswith("multipart/") and depth < MAX_DEPTH:
            boundary = boundary_of(found.headers.get(b"content-type") or b"")
            spans = part_spans(raw, boundary, found.body_at, end)
        if spans:
            stack.extend((split(raw, a, b), b, kind, depth + 1) for a, b in reversed(spans))
            continue
        if kind.startswith("multipart/"):
            kind = "text/plain"
        yield Part(headers=found.headers, kind=kind, within=within, start=found.body_at, end=end)


def boundary_of(content_type: bytes) -> bytes:
    """The boundary that a Content-Type names; empty when it names none."""
    found = _BOUNDARY.search(content_type[:MAX_VALUE_BYTES])
    return (found[1] or found[2]).rstrip() if found else b""


def part_spans(raw: bytes, boundary: bytes, start: int, end: int) -> list[tuple[int, int]] | None:
    """Where the parts of a multipart body begin and end; None when no delimiter line is found.

    The line end before a delimiter belongs to the delimiter (RFC 2046 5.1.1). A missing last
    delimiter is forgiven: the last part goes on to the end.
    """
    if not boundary:
        return None
    spans: list[tuple[int, int]] = []
    opened: int | None = None
    for at, after, closes in _delimiters(raw, b"--" + boundary, start, end):
        if opened is not None:
            spans.append((opened, max(opened, _before_line_end(raw, opened, at))))
        opened = None if closes else after
        if closes or len(spans) >= MAX_PARTS:
            break
    else:
        if opened is not None:
            spans.append((opened, end))
    return spans or None


def _delimiters(
    raw: bytes, delimiter: bytes, start: int, end: int
) -> Iterator[tuple[int, int, bool]]:
    at = raw.find(delimiter, start, end)
    while at >= 0:
        after = at + len(delimiter)
        if at == start or raw[at - 1] in b"\r\n":
            line = _AFTER_BOUNDARY.match(raw, after, end)
            if line:
                yield at, line.end(), line[1] is not None
        at = raw.find(delimiter, after, end)


def _before_line_end(raw: bytes, start: int, at: int) -> int:
    if at > start and raw[at - 1] == 0x0A:
        at -= 1
        return at - 1 if at > start and raw[at - 1] == 0x0D else at
    return at - 1 if at > start and raw[at - 1] == 0x0D else at


def media_type(headers: Headers, within: str = "") -> str:
    """The media type in lower case; untold it is text/plain, in a digest message/rfc822."""
    value = headers.get(b"content-type")
    told = parameters(value)[0] if value is not None else ""
    if _MEDIA_TYPE.match(told):
        return told
    return "message/rfc822" if within == "multipart/digest" else "text/plain"


def parameters(value: bytes) -> tuple[str, dict[str, str]]:
    """A value such as Content-Type's: its first word in lower case, and its parameters decoded.

    Understands RFC 2231 (`filename*0*=`) and what programs do instead (RFC 2047 in quotes).
    """
    text = bytes_to_text(value[:MAX_VALUE_BYTES].translate(None, b"\r\n\x00"))
    found: dict[str, str] = {}
    numbered: dict[str, list[tuple[int, bool, str]]] = {}
    for parameter in _PARAMETER.finditer(text):
        name = _NUMBERED.match(parameter[1].lower())
        quoted, bare = parameter[2], parameter[3]
        content = _ESCAPED.sub(r"\1", quoted) if quoted is not None else bare.strip()
        if name is None:
            continue
        if name[2] is None and name[3] is None:
            found.setdefault(name[1], decode_words(content) if "=?" in content else content)
        else:
            piece = (int(name[2] or 0), name[3] is not None, content)
            numbered.setdefault(name[1], []).append(piece)
    for key, pieces in numbered.items():
        found[key] = _join(sorted(pieces, key=lambda piece: piece[0]))
    return text.partition(";")[0].strip().lower(), {k: clean(v) for k, v in found.items()}


def _join(pieces: list[tuple[int, bool, str]]) -> str:
    charset = ""
    joined: list[bytes] = []
    for i, (_, extended, text) in enumerate(pieces):
        if extended and i == 0 and text.count("'") >= 2:
            charset, _language, text = text.split("'", 2)
        data = text.encode("utf-8", "replace")
        joined.append(unquote_to_bytes(data) if extended else data)
    return charset_to_text(b"".join(joined), charset)


def transfer_encoding(headers: Headers) -> str:
    """The Content-Transfer-Encoding in lower case; empty when there is none."""
    value = headers.get(b"content-transfer-encoding") or b""
    return bytes_to_text(value[:100]).partition(";")[0].strip().strip('"').lower()


def decode_body(body: bytes, encoding: str) -> bytes:
    """Undo the transfer encoding; an unknown one leaves the bytes as they are."""
    if encoding == "base64":
        return base64_bytes(body)
    if encoding == "quoted-printable":
        return binascii.a2b_qp(body)
    return body
