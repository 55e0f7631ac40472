"""Header block of a mail as bytes: split, look up, change, decode, and read address lists.

The email package is not used here: it raises on some hostile headers (`Message-ID: <[a@b]>`), and
this runs for every mail. A line ends with CRLF, LF or a bare CR, whatever mix a mail has; several
CR before one LF are one line end (seen from programs that convert twice).
"""

import binascii
import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

MAX_FIELDS = 10_000
"""Header fields read from one mail; what follows counts as body."""

MAX_DECODED_BYTES = 256_000
"""Bytes of one header value that are decoded or searched for addresses."""

MAX_ADDRESSES = 5_000
"""Addresses read from one header value."""

ENCODED_WORD_LIMIT = 75
FOLD_AT = 76

_EOL = rb"(?:\r*+\n|\r)"
# RFC 5322 2.2; blanks before the colon are the obsolete form and still common.
_FIELD = re.compile(
    rb"([!-9;-~]+)[ \t]*:[^\r\n]*(?:" + _EOL + rb"[ \t][^\r\n]*)*+(?:" + _EOL + rb"|\Z)"
)
_MBOX_LINE = re.compile(rb">?From [^\r\n]*(?:" + _EOL + rb"|\Z)")
_BLANK_LINE = re.compile(_EOL)
_BREAKS = re.compile(rb"[\r\n\x00]++(?![ \t])")
_FOLD = re.compile(rb"[\r\n\x00]+")

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_NOT_IN_EMAIL = re.compile("[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]+")

# Some programs write a bare question mark or blanks inside a word. The count is bounded so that
# a header full of openings stays linear.
_ENCODED_WORD = re.compile(r"=\?([^?\s]+)\?([bBqQ])\?([^?]*+(?:\?(?!=)[^?]*+){0,20})\?=")
_BETWEEN_WORDS = re.compile(r"\s*\Z")

# Names seen in mail for which Python knows another name, or a superset that reads more.
_CHARSETS = {
    "gb2312": "gb18030",
    "gb_2312-80": "gb18030",
    "gbk": "gb18030",
    "x-gbk": "gb18030",
    "cp936": "gb18030",
    "ks_c_5601-1987": "cp949",
    "euc-kr": "cp949",
    "shift_jis": "cp932",
    "x-sjis": "cp932",
    "iso-8859-8-i": "iso-8859-8",
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "us-ascii": "utf-8",
    "ascii": "utf-8",
    "utf8mb4": "utf-8",
    "unicode-1-1-utf-7": "utf-7",
}
# Codecs of Python that are no charset of a mail, some of them slow on long input.
_NOT_CHARSETS = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"}
_CHARSET_NAME = re.compile(r"[a-z0-9][a-z0-9_.:+-]{0,39}\Z")


class Address(NamedTuple):
    """A mailbox as a header names it; either part may be empty, both are plain decoded text."""

    name: str
    email: str


class Field(NamedTuple):
    """One header field: its name in lower case, and all its bytes with folding and line end.

    A line `From sender date` as mbox files have it is kept at the top, with an empty name.
    """

    name: bytes
    raw: bytes

    @property
    def value(self) -> bytes:
        """The bytes after the colon, folding included, without the final line end."""
        return self.raw.partition(b":")[2].rstrip(b"\r\n")


class Headers:
    """The fields of a header block in order; unchanged fields serialise to the bytes they were."""

    __slots__ = ("fields",)

    def __init__(self, fields: Iterable[Field] = ()) -> None:
        self.fields: list[Field] = list(fields)

    def get(self, name: bytes) -> bytes | None:
        """The value of the first field of that name, folding included; None when there is none."""
        name = name.lower()
        for field in self.fields:
            if field.name == name:
                return field.value
        return None

    def get_all(self, name: bytes) -> list[bytes]:
        """The values of all fields of that name, in order."""
        name = name.lower()
        return [field.value for field in self.fields if field.name == name]

    def has(self, name: bytes) -> bool:
        """Whether there is a field of that name with anything in it."""
        return any(value.strip() for value in self.get_all(name))

    def remove(self, *names: bytes) -> int:
        """Drop all fields of these names; how many went."""
        lowered = {name.lower() for name in names}
        before = len(self.fields)
        self.fields = [field for field in self.fields if field.name not in lowered]
        return before - len(self.fields)

    def prepend(self, name: bytes, value: bytes) -> None:
        """Add a field at the top."""
        self.fields.insert(0, new_field(name, value))

    def append(self, name: bytes, value: bytes) -> None:
        """Add a field at the end."""
        self.fields.append(new_field(name, value))

    def replace(self, name: bytes, value: bytes) -> None:
        """Put this value in place of the first field of that name and drop the others."""
        field = new_field(name, value)
        at = next((i for i, old in enumerate(self.fields) if old.name == field.name), None)
        self.remove(name)
        if at is None:
            at = len(self.fields)
        self.fields.insert(at, field)

    def serialise(self) -> bytes:
        """The bytes of the block, without the blank line that ends it."""
        return b"".join([field.raw for field in self.fields])


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A mail cut in two: `headers`, then `separator` (the blank line or nothing), then the body."""

    headers: Headers
    separator: bytes
    body_at: int


def split(raw: bytes, start: int = 0, end: int | None = None) -> Split:
    """Find the header block and where the body begins, for the whole mail or for one part of it.

    The block ends at the first blank line, or at the first line that is no header field.
    """
    fields: list[Field] = []
    at = start
    stop = len(raw) if end is None else end
    mbox = _MBOX_LINE.match(raw, at, stop)
    if mbox:
        fields.append(Field(b"", mbox[0]))
        at = mbox.end()
    match = _FIELD.match
    while found := match(raw, at, stop):
        if len(fields) >= MAX_FIELDS:
            break
        fields.append(Field(found[1].lower(), found[0]))
        at = found.end()
    blank = _BLANK_LINE.match(raw, at, stop)
    separator = blank[0] if blank else b""
    return Split(headers=Headers(fields), separator=separator, body_at=at + len(separator))


def parse(raw: bytes) -> tuple[Headers, bytes, bytes]:
    """The header block, the separator and the body; joined again they are the same bytes."""
    found = split(raw)
    return found.headers, found.separator, raw[found.body_at :]


def serialise(headers: Headers, separator: bytes, body: bytes) -> bytes:
    """The bytes of a mail from what `parse` gave, or from changed headers."""
    return b"".join((headers.serialise(), separator, body))


def new_field(name: bytes, value: bytes) -> Field:
    """A field of ours, ended by CRLF; a value can never start another field.

    Line breaks stay only where they fold. Raises ValueError for a name that is no field name.
    """
    if not re.fullmatch(rb"[!-9;-~]+", name):
        raise ValueError("not a header field name")
    safe = _FOLD.sub(b"\r\n", _BREAKS.sub(b" ", value)).strip(b" \t\r\n")
    return Field(name.lower(), name + b": " + safe + b"\r\n")


# Decoding


def bytes_to_text(value: bytes) -> str:
    """UTF-8 where it is UTF-8, else Latin-1: what raw 8-bit text in a header most likely is."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def charset_to_text(value: bytes, charset: str) -> str:
    """Text in a named charset; unknown names and wrong bytes give the best that can be read."""
    codec = _codec(charset)
    if codec is None:
        return bytes_to_text(value)
    try:
        text = codec.decode(value, "replace")[0]
    except (ValueError, LookupError, OverflowError, AssertionError):
        # Some codecs raise in spite of "replace" (utf-7, utf-16 with an odd tail).
        return bytes_to_text(value)
    return text if isinstance(text, str) else bytes_to_text(value)


def _codec(charset: str) -> codecs.CodecInfo | None:
    name = charset.strip().strip("\"'").partition("*")[0].lower()
    if not _CHARSET_NAME.match(name):
        return None
    try:
        codec = codecs.lookup(_CHARSETS.get(name, name))
    except (LookupError, ValueError, UnicodeError):
        return None
    # The flag is private, and the only way to tell a charset from "hex" or "zip"; without it the
    # codec is taken for a charset, and what it answers is checked.
    if (
        not getattr(codec, "_is_text_encoding", True)
        or codec.name.replace("_", "-") in _NOT_CHARSETS
    ):
        return None
    return codec


def decode(value: bytes, limit: int | None = None) -> str:
    """A header value as one line of text: unfolded, RFC 2047 decoded, no control characters."""
    text = bytes_to_text(_FOLD.sub(b"", value[:MAX_DECODED_BYTES]))
    if "=?" in text:
        text = decode_words(text)
    text = clean(text).strip()
    return text if limit is None else text[:limit]


def clean(text: str) -> str:
    """The text without NUL and lone surrogates, other control characters as one blank."""
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\x00", "")
    return _CONTROLS.sub(_blank_for_controls, text)


def _blank_for_controls(found: re.Match[str]) -> str:
    return "" if all("\ud800" <= c <= "\udfff" for c in found[0]) else " "


def decode_words(text: str) -> str:
    """Decode the RFC 2047 words in a text; what is no proper word stays as it is written.

    Neighbours of one charset are joined before decoding: programs cut characters in half.
    """
    out: list[str] = []
    pending: list[bytes] = []
    charset = ""
    at = 0
    for found in _ENCODED_WORD.finditer(text):
        between = text[at : found.start()]
        name = found[1].partition("*")[0].lower()
        adjacent = bool(pending) and _BETWEEN_WORDS.match(between) is not None
        if pending and not (adjacent and name == charset):
            out.append(charset_to_text(b"".join(pending), charset))
            pending = []
        if not adjacent:
            out.append(between)
        charset = name
        pending.append(_word_bytes(found[2], found[3]))
        at = found.end()
    if pending:
        out.append(charset_to_text(b"".join(pending), charset))
    out.append(text[at:])
    return "".join(out)


def _word_bytes(encoding: str, text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    if encoding in "qQ":
        return binascii.a2b_qp(data, header=True)
    return base64_bytes(data)


_BASE64_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64 = bytes(c for c in range(256) if c not in _BASE64_ALPHABET)


def base64_bytes(data: bytes) -> bytes:
    """Decode base64 with whatever else is between its letters, and with a tail cut off.

    It ends at the padding: what programs append behind it (footers) is not base64.
    """
    letters = data.partition(b"=")[0].translate(None, _NOT_BASE64)
    whole = len(letters) - (1 if len(letters) % 4 == 1 else 0)
    return binascii.a2b_base64(letters[:whole] + b"=" * (-whole % 4))


# Addresses

_SIMPLE_ADDRESS = re.compile(
    r"""(?:([^"(),:;<>@\[\]\\]*+)<([^\s"(),:;<>@\[\]\\]++@[^\s"(),:;<>@\[\]\\]++)>"""
    r"""|([^\s"(),:;<>@\[\]\\]++@[^\s"(),:;<>@\[\]\\]++))\Z"""
)
_SPECIALS = frozenset('"(<[=')
_TOKEN = re.compile(r"""["(<\[,;:]|=(?=\?)|\s+|[^"(<\[,;:=\s]+|=""")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_COMMENT_STEP = re.compile(r"[()]|\\.", re.DOTALL)
_ANGLE = re.compile(r'<((?:[^<>"]|"(?:[^"\\]|\\.)*+")*+)>', re.DOTALL)
_OPEN_ANGLE = re.compile(r"<([^<>,;]*+)")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ROUTE = re.compile(r"@[^:]*:")


def parse_addresses(value: bytes | str) -> list[Address]:
    """The mailboxes of an address list, groups opened; garbage gives what can be made of it.

    A piece without an address keeps its words: one word as `email` ("root"), several as `name`.
    """
    if isinstance(value, bytes):
        value = bytes_to_text(_FOLD.sub(b"", value[:MAX_DECODED_BYTES]))
    text = value[:MAX_DECODED_BYTES].strip()
    simple = _SIMPLE_ADDRESS.match(text) if "=?" not in text else None
    if simple:
        name, angled, bare = simple.groups()
        return [Address(_plain(name or ""), clean_email(angled or bare))]
    found: list[Address] = []
    for address in _AddressReader(text).read():
        found.append(address)
        if len(found) >= MAX_ADDRESSES:
            break
    return found


def clean_email(email: str) -> str:
    """The address without blanks and control characters; blanks stay in a quoted local part."""
    if email.isascii() and email.isprintable() and " " not in email:
        return email
    local, at, domain = email.rpartition("@")
    if at and _QUOTED_LOCAL.match(local.strip()):
        return _CONTROLS.sub("", local.strip()) + at + _NOT_IN_EMAIL.sub("", domain)
    return _NOT_IN_EMAIL.sub("", email)


def address_key(email: str) -> str:
    """What two spellings of one address have in common; local parts are compared without case."""
    if email.isascii():
        return email.strip().lower()
    return unicodedata.normalize("NFC", email.strip()).casefold()


def _plain(text: str) -> str:
    return _BLANKS.sub(" ", clean(text)).strip()


class _AddressReader:
    """Reads one address list from left to right; each character is looked at a few times at most.

    An opening quote, bracket or comment that is never closed is text, and is not searched again.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.unclosed: set[str] = set()
        self.open_angles = 0
        self.forget()

    def forget(self) -> None:
        # A piece is (kind, text): "quoted" and "word" (decoded) never hold an address, "text" may.
        self.pieces: list[tuple[str, str]] = []
        self.comments: list[str] = []
        self.angle: str | None = None

    def read(self) -> Iterator[Address]:
        text = self.text
        while self.at < len(text):
            found = _TOKEN.match(text, self.at)
            if found is None:  # cannot happen: the alternatives cover every character
                break
            mark = found[0]
            if mark in {",", ";"}:
                yield from self.finish()
                self.at += 1
            elif mark == ":":
                self.colon()
            elif mark not in _SPECIALS or not self.special(mark):
                self.pieces.append(("text", mark))
                self.at = found.end()
        yield from self.finish()

    def colon(self) -> None:
        self.at += 1
        if self.angle is None and not any(k == "text" and "@" in t for k, t in self.pieces):
            self.forget()  # the name of a group, or "mailto:"
        else:
            self.pieces.append(("text", ":"))

    def special(self, mark: str) -> bool:
        """Take a quoted string, comment, bracketed address, literal or word; False: it is none."""
        if mark in self.unclosed:
            return False
        took = {
            '"': self.quoted,
            "(": self.comment,
            "<": self.bracketed,
            "[": self.literal,
            "=": self.word,
        }[mark]()
        if not took and mark != "=":
            self.unclosed.add(mark)
        return took

    def quoted(self) -> bool:
        found = _QUOTED.match(self.text, self.at)
        if found is None:
            return False
        self.pieces.append(("quoted", found[1]))
        self.at = found.end()
        return True

    def comment(self) -> bool:
        depth = 0
        for step in _COMMENT_STEP.finditer(self.text, self.at):
            depth += {"(": 1, ")": -1}.get(step[0], 0)
            if depth == 0:
                self.comments.append(self.text[self.at + 1 : step.end() - 1])
                self.pieces.append(("text", " "))
                self.at = step.end()
                return True
        return False

    def bracketed(self) -> bool:
        found = _ANGLE.match(self.text, self.at) if self.open_angles < 50 else None
        if found is None:
            self.open_angles += 1
            found = _OPEN_ANGLE.match(self.text, self.at)
        if found is None:
            return False
        if self.angle is None or "@" not in self.angle:
            self.angle = found[1]
        self.at = found.end()
        return True

    def literal(self) -> bool:
        end = self.text.find("]", self.at)
        if end < 0:
            return False
        self.pieces.append(("text", self.text[self.at : end + 1]))
        self.at = end + 1
        return True

    def word(self) -> bool:
        found = _ENCODED_WORD.match(self.text, self.at)
        if found is None:
            return False
        # Kept as written: neighbouring words are decoded together.
        self.pieces.append(("word", found[0]))
        self.at = found.end()
        return True

    def finish(self) -> Iterator[Address]:
        name, email = self.in_brackets() if self.angle is not None else self.without_brackets()
        if not name and self.comments:
            name = _phrase([("text", _ESCAPED.sub(r"\1", self.comments[-1]))])
        self.forget()
        email = clean_email(email)
        if name or email:
            yield Address(name, email)

    def in_brackets(self) -> tuple[str, str]:
        inner = (self.angle or "").strip()
        if inner.startswith("@"):
            inner = _ROUTE.sub("", inner, count=1)
        return _phrase(self.pieces), inner

    def without_brackets(self) -> tuple[str, str]:
        """`a@b`, `"a b"@c`, `Some Words a@b`, `root`, or only words."""
        words: list[list[tuple[str, str]]] = [[]]
        for kind, text in self.pieces:
            if kind == "text" and text.isspace():
                words.append([])
            else:
                words[-1].append((kind, text))
        words = _join_around_at([word for word in words if word])
        chosen = next((w for w in words if any(k == "text" and "@" in t for k, t in w)), None)
        if chosen is None and len(words) == 1 and all(k == "text" for k, _ in words[0]):
            chosen = words[0]
        rest = [piece for word in words if word is not chosen for piece in [*word, ("text", " ")]]
        email = "".join(f'"{t}"' if k == "quoted" else t for k, t in chosen or []).strip("<>")
        return _phrase(rest), email


def _join_around_at(words: list[list[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
    """Join the words of `a @ b` into one."""
    joined: list[list[tuple[str, str]]] = []
    for word in words:
        before = joined[-1] if joined else None
        opens = word[0][0] == "text" and word[0][1].startswith("@")
        waits = before is not None and before[-1][0] == "text" and before[-1][1].endswith("@")
        if before is not None and (opens or waits):
            before.extend(word)
        else:
            joined.append(word)
    return joined


def _phrase(pieces: list[tuple[str, str]]) -> str:
    """The display name these pieces spell; quoted strings are decoded too, as everyone does."""
    text = "".join(_ESCAPED.sub(r"\1", t) if k == "quoted" else t for k, t in pieces)
    return _plain(decode_words(text) if "=?" in text else text)


# Writing

_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*\Z")
_DOT_ATOM = re.compile(r"[^\s\"(),:;<>@\[\]\\.]+(?:\.[^\s\"(),:;<>@\[\]\\.]+)*\Z")
_QUOTED_LOCAL = re.compile(r'"(?:[^"\\]|\\.)*"\Z')


def render_address(address: Address) -> bytes:
    """The address as header bytes, folded where its name is long; it can never end the field.

    Names that are not plain ASCII become RFC 2047 words. An address that is not ASCII stays UTF-8
    (RFC 6532): there is no other spelling for it.
    """
    email = render_email(address.email)
    name = _plain(address.name)
    if not name:
        return email
    if name.isascii() and "=?" not in name and len(name) <= FOLD_AT - 12:
        quoted = name if _ATOMS.match(name) else '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
        rendered = quoted.encode("ascii")
    else:
        rendered = encode_words(name, first=FOLD_AT - 14)
    if not email:
        return rendered
    last = len(rendered) - (rendered.rfind(b"\n") + 1)
    # The line that the angle bracket lands on must not become too long either.
    glue = b" " if last + len(email) + 3 <= FOLD_AT else b"\r\n "
    return rendered + glue + b"<" + email + b">"


def render_email(email: str) -> bytes:
    """The bare address as header bytes; a local part that needs quotes gets them."""
    email = email.replace("\x00", "")
    local, at, domain = clean_email(email).rpartition("@")
    if not at:
        local, domain = domain, ""
    if local and not _QUOTED_LOCAL.match(local) and not _DOT_ATOM.match(local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    domain = re.sub(r"[\"(),;<>\\]", "", domain)
    return (local + at + domain).encode("utf-8", "replace")


def render_addresses(addresses: Iterable[Address]) -> bytes:
    """An address list as header bytes, one address on a line after the first."""
    return b",\r\n ".join([render_address(address) for address in addresses])


def encode_words(text: str, first: int = ENCODED_WORD_LIMIT) -> bytes:
    """The text as RFC 2047 words in UTF-8 base64, folded; `first` is the room on the first line."""
    words: list[bytes] = []
    chunk = bytearray()
    room = _word_room(min(first, ENCODED_WORD_LIMIT))
    for character in text:
        encoded = character.encode("utf-8", "replace")
        if chunk and len(chunk) + len(encoded) > room:
            words.append(_word(chunk))
            chunk = bytearray()
            room = _word_room(ENCODED_WORD_LIMIT)
        chunk += encoded
    words.append(_word(chunk))
    return b"\r\n ".join(words)


def _word_room(length: int) -> int:
    return max((length - len("=?utf-8?b??=")) // 4 * 3, 4)


def _word(data: bytes | bytearray) -> bytes:
    return b"=?utf-8?b?" + binascii.b2a_base64(data, newline=False) + b"?="
