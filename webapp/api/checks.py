"""Checks of single values that come in by the API. Each raises ValueError with the sentence to
show, which never repeats the value."""

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Any

LONGEST_EMAIL = 320

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NOT_IN_EMAIL = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029<>()\[\]\\,;:\"]")
_NAMED = re.compile(r"\s*(.*?)\s*<([^<>]*)>\s*", re.DOTALL)
_FIELD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,75}")
_TYPE = re.compile(
    r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*"
    r"(\s*;\s*[a-z0-9-]+=([a-z0-9!#$&^_.+-]+|\"[^\"\\\x00-\x1f\x7f-\uffff]*\"))*",
    re.IGNORECASE,
)
_CURSOR = re.compile(r"[0-9]{1,18}")

OWN_FIELDS = frozenset(
    {
        "from",
        "to",
        "cc",
        "bcc",
        "resent-bcc",
        "reply-to",
        "subject",
        "mime-version",
        "received",
        "return-path",
        "dkim-signature",
    }
)
"""Header fields that have a field of the API, or that only a mail system writes."""


def check_line(text: str) -> str:
    """One line: nothing that could begin another header field."""
    if _CONTROL.search(text):
        raise ValueError("Line breaks and control characters are not allowed here.")
    return text


def check_email(text: str) -> str:
    """An address that can stand in an envelope."""
    local, at, domain = text.rpartition("@")
    if not at or not local or not domain or "@" in local or _NOT_IN_EMAIL.search(text):
        raise ValueError("This is not an email address such as name@example.org.")
    if domain.startswith((".", "-")) or ".." in text or local.startswith("."):
        raise ValueError("This is not an email address such as name@example.org.")
    return text


def to_mailbox(given: Any) -> Any:
    """`name@example.org` and `Name <name@example.org>` as what they stand for."""
    if not isinstance(given, str):
        return given
    named = _NAMED.fullmatch(given)
    if named is None:
        return {"email": given.strip(" ")}
    name = named[1]
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return {"email": named[2].strip(" "), "name": name}


def to_list(given: Any) -> Any:
    """One thing is a list of one."""
    return tuple(given) if isinstance(given, list) else (given,)


def check_field_name(name: str) -> str:
    """The name of a header field that a program may set."""
    if not _FIELD_NAME.fullmatch(name):
        raise ValueError("This is not the name of a header field.")
    lowered = name.lower()
    if lowered in OWN_FIELDS or lowered.startswith("content-"):
        raise ValueError("This header field is written here: use the field of the API instead.")
    return name


def check_value(text: str) -> str:
    """What a header field holds."""
    return check_line(text)


def check_file_name(name: str) -> str:
    """A name, and no path."""
    check_line(name)
    if "/" in name or "\\" in name:
        raise ValueError("This must be a name without folders.")
    return name


def check_content_type(text: str) -> str:
    """A media type of one part."""
    if not text:
        return text
    if not _TYPE.fullmatch(text):
        raise ValueError("This is not a media type such as application/pdf.")
    if text.lower().startswith(("multipart/", "message/")):
        raise ValueError("Files of this type cannot be attached: use application/octet-stream.")
    return text


def from_base64(given: Any) -> bytes:
    """What base64 stands for; line breaks in it are allowed."""
    if not isinstance(given, str):
        raise ValueError("This must be text in base64.")
    try:
        plain = given.encode("ascii")
        if b"\n" in plain or b"\r" in plain:
            plain = plain.translate(None, b"\r\n")
        return base64.b64decode(plain, validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("This is not base64.") from error


def to_moment(given: Any) -> Any:
    """A time as an address has it: a plus that nobody escaped is a blank there."""
    return given.strip().replace(" ", "+") if isinstance(given, str) and "T" in given else given


def check_moment(moment: datetime) -> datetime:
    """A time that is one in UTC, too."""
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("This time is out of range.") from error


def from_cursor(given: Any) -> int | None:
    """The key that a page of the list goes on from."""
    if given is None:
        return None
    if not isinstance(given, str) or not _CURSOR.fullmatch(given):
        raise ValueError("This is not a value of `next`.")
    return int(given)
