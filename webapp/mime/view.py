"""What the message page shows of a mail: headers, text, HTML, attachments, the source."""

import codecs
import mimetypes
import re
from base64 import b64encode
from dataclasses import dataclass

from webapp.mime.headers import (
    bytes_to_text,
    charset_to_text,
    clean,
    decode,
    split,
)
from webapp.mime.preview import INLINE_IMAGES, sanitise_html
from webapp.mime.structure import (
    MAX_PARTS,
    Part,
    decode_body,
    leaves,
    parameters,
    transfer_encoding,
)

__all__ = [
    "Attachment",
    "MailView",
    "attachment_bytes",
    "inline_images",
    "raw_text",
    "read_mail",
    "sanitise_html",
    "text_bodies",
]

MAX_TEXT = 1_000_000
"""Characters shown of the text and of the HTML."""

MAX_HEADERS_TEXT = 200_000
MAX_ATTACHMENTS = 200
MAX_INLINE_BYTES = 10_000_000
"""Bytes of all images put into one preview; the images after that are left out."""

# Bidirectional marks and overrides make "exe.txt" of "txt.exe".
_NOT_IN_FILENAME = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_SEPARATORS = re.compile(r'[/\\:*?"<>|]')
_CONTROL_PICTURES = {c: chr(0x2400 + c) for c in range(32) if c not in (9, 10)}
_CONTROL_PICTURES |= {127: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A part that is not read as text. `index` is what `attachment_bytes` takes.

    `size_bytes` is the size once decoded, `disposition` "attachment", "inline" or empty,
    `content_id` without its angle brackets.
    """

    index: int
    filename: str
    content_type: str
    size_bytes: int
    content_id: str
    disposition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MailView:
    """A mail to look at. `html` is as the mail has it: pass it through `sanitise_html`.

    `truncated`: text, HTML, headers or the list of attachments were too long to show whole.
    """

    headers_text: str
    text: str | None
    html: str | None
    attachments: tuple[Attachment, ...]
    truncated: bool


def read_mail(raw: bytes) -> MailView:
    """Show any bytes as well as possible; a mail without parts that can be read shows as text."""
    texts: list[str] = []
    htmls: list[str] = []
    attachments: list[Attachment] = []
    count = 0
    for part in leaves(raw):
        count += 1
        if _is_text(part):
            (htmls if part.kind == "text/html" else texts).append(_text_of(part, raw))
        else:
            attachments.append(_attachment(part, raw, len(attachments)))
    headers_text = _headers_text(raw)
    text, html = "\n".join(texts), "\n".join(htmls)
    return MailView(
        headers_text=headers_text[:MAX_HEADERS_TEXT],
        text=text[:MAX_TEXT] if texts else None,
        html=html[:MAX_TEXT] if htmls else None,
        attachments=tuple(attachments[:MAX_ATTACHMENTS]),
        truncated=len(headers_text) > MAX_HEADERS_TEXT
        or max(len(text), len(html)) > MAX_TEXT
        or len(attachments) > MAX_ATTACHMENTS
        or count >= MAX_PARTS,
    )


def attachment_bytes(raw: bytes, index: int) -> bytes:
    """The decoded content of one attachment. Raises ValueError when there is no such one."""
    for i, part in enumerate(_attached(raw)):
        if i == index:
            return _content(part, raw)
    raise ValueError("no such attachment")


def inline_images(raw: bytes) -> dict[str, str]:
    """Content-ID to `data:` address, for the images that a browser may show from a mail."""
    found: dict[str, str] = {}
    room = MAX_INLINE_BYTES
    for part in _attached(raw):
        content_id = _content_id(part)
        if part.kind not in INLINE_IMAGES or not content_id or content_id in found:
            continue
        if part.end - part.start > 2 * room:
            continue
        content = _content(part, raw)
        if len(content) <= room:
            room -= len(content)
            found[content_id] = f"data:{part.kind};base64,{b64encode(content).decode('ascii')}"
    return found


def raw_text(raw: bytes, limit: int) -> str:
    """The source of the first `limit` bytes as text; control characters show as their pictures."""
    piece = raw[:limit]
    try:
        # A character that the limit cuts in half is dropped.
        text = codecs.getincrementaldecoder("utf-8")().decode(piece, final=limit >= len(raw))
    except UnicodeDecodeError:
        text = piece.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROL_PICTURES)


def text_bodies(raw: bytes, limit: int) -> list[str]:
    """The text and the HTML that a mail reads as, in its order, `limit` characters at most."""
    found: list[str] = []
    room = limit
    for part in leaves(raw):
        if room <= 0:
            break
        if _is_text(part):
            text = _text_of(part, raw, room)[:room]
            found.append(text)
            room -= len(text)
    return found


def _attached(raw: bytes) -> list[Part]:
    return [part for part in leaves(raw) if not _is_text(part)]


def _is_text(part: Part) -> bool:
    """Whether a part is read in place: text or HTML that is not offered as a file."""
    if part.kind not in {"text/plain", "text/html"}:
        return False
    disposition, named = _disposition(part)
    return disposition != "attachment" and not (named and disposition)


def _disposition(part: Part) -> tuple[str, str]:
    value, told = parameters(part.headers.get(b"content-disposition") or b"")
    disposition = value if value in {"attachment", "inline", ""} else "attachment"
    return disposition, told.get("filename", "")


def _content(part: Part, raw: bytes) -> bytes:
    return decode_body(part.body(raw), transfer_encoding(part.headers))


def _text_of(part: Part, raw: bytes, limit: int = MAX_TEXT) -> str:
    """The text of a part, with one character more than the limit when it is longer."""
    # Four bytes a character, base64 or quoted-printable on top: enough for any text shown.
    body = part.body(raw, limit * 12)
    content = decode_body(body, transfer_encoding(part.headers))
    told = parameters(part.headers.get(b"content-type") or b"")[1]
    text = charset_to_text(content, told.get("charset", ""))
    text = text[: limit + 1].replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join([clean(line) for line in text.replace("\t", "    ").split("\n")])


def _headers_text(raw: bytes) -> str:
    lines: list[str] = []
    length = 0
    for field in split(raw).headers.fields:
        name = field.raw.partition(b":")[0].decode("ascii", "replace").strip()
        line = f"{name}: {decode(field.value)}" if field.name else bytes_to_text(field.raw).strip()
        lines.append(clean(line))
        length += len(line)
        if length > MAX_HEADERS_TEXT:
            break
    return "\n".join(lines)


def _attachment(part: Part, raw: bytes, index: int) -> Attachment:
    return Attachment(
        index=index,
        filename=_filename(part, raw, index),
        content_type=part.kind,
        size_bytes=_size(part, raw),
        content_id=_content_id(part),
        disposition=_disposition(part)[0],
    )


def _size(part: Part, raw: bytes) -> int:
    """The decoded size; for base64 counted, because decoding 50 MB to show a number is slow."""
    if transfer_encoding(part.headers) != "base64":
        return len(_content(part, raw))
    start, end = part.start, part.end
    padding = raw.find(b"=", start, end)
    end = end if padding < 0 else padding
    blanks = sum(raw.count(blank, start, end) for blank in (b"\r", b"\n", b" "))
    return (end - start - blanks) * 3 // 4


def _content_id(part: Part) -> str:
    return decode(part.headers.get(b"content-id") or b"", 998).strip("<> ")


def _filename(part: Part, raw: bytes, index: int) -> str:
    told = _disposition(part)[1]
    if not told:
        told = parameters(part.headers.get(b"content-type") or b"")[1].get("name", "")
    if not told and part.kind == "message/rfc822":
        told = decode(split(raw, part.start, part.end).headers.get(b"subject") or b"", 100)
        told = f"{told}.eml" if told else ""
    return safe_filename(told) or f"part-{index + 1}{_extension(part.kind)}"


def _extension(kind: str) -> str:
    return mimetypes.guess_extension(kind) or ".bin"


def safe_filename(name: str) -> str:
    """A name without folders, control characters and what file systems refuse; may be empty."""
    name = _NOT_IN_FILENAME.sub("", clean(name))
    name = _SEPARATORS.sub("_", name).strip(" .")
    if len(name) > 150:
        stem, dot, extension = name.rpartition(".")
        keep = dot + extension if 0 < len(extension) <= 10 and stem else ""
        name = name[: 150 - len(keep)] + keep
    return name
