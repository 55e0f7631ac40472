"""Conditions on a mail: all of a group and any of the groups. Pure, nothing of the database here.

Values are compared trimmed and without regard to case. Where a property has several values (three
To addresses), an affirmative operator is met by any one of them, a negative one only by all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from webapp.fields import N_
from webapp.mime.facts import addresses, from_address
from webapp.mime.headers import Headers, address_key, decode, split
from webapp.mime.view import text_bodies

MAX_GROUPS = 20
MAX_CONDITIONS = 20
"""In a group."""
MAX_VALUE = 998
MESSAGE_CHARACTERS = 200_000
"""How much of a mail's text is looked at; so a huge one costs no more than a long one."""
HEADER_CHARACTERS = 4_000
SHOWN = 200
"""Characters of a value that a match tells."""

INITIATOR = b"x-postroom-initiator"
_OWN_PROPERTY = {b"", b"subject", b"from", b"to", b"cc", b"bcc", b"resent-bcc", b"reply-to"}


class Property(StrEnum):
    """What of a mail is looked at, as it was handed in: before any From was forced."""

    SUBJECT = "subject"
    MESSAGE = "message"
    FROM_EMAIL = "from-email"
    FROM_NAME = "from-name"
    TO = "to"
    CC = "cc"
    BCC = "bcc"
    REPLY_TO = "reply-to"
    HEADER_NAME = "header-name"
    HEADER_VALUE = "header-value"
    INITIATOR = "initiator"


class Operator(StrEnum):
    """How a value is compared."""

    CONTAINS = "contains"
    DOES_NOT_CONTAIN = "does-not-contain"
    IS = "is"
    IS_NOT = "is-not"
    STARTS_WITH = "starts-with"
    ENDS_WITH = "ends-with"


WHOLE_VALUE = (Operator.IS, Operator.IS_NOT)
"""All that an initiator can be compared by."""

_COMPARISONS: Mapping[Operator, Callable[[str, str], bool]] = {
    Operator.CONTAINS: lambda value, sought: sought in value,
    Operator.IS: lambda value, sought: value == sought,
    Operator.STARTS_WITH: str.startswith,
    Operator.ENDS_WITH: str.endswith,
}
_OPPOSITES = {
    Operator.DOES_NOT_CONTAIN: Operator.CONTAINS,
    Operator.IS_NOT: Operator.IS,
}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One comparison."""

    property: Property
    operator: Operator
    value: str


Group = tuple[Condition, ...]
Groups = tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class MailFacts:
    """What conditions can look at. Addresses are bare; `bcc` has whoever no header names."""

    subject: str
    message: str
    from_email: str
    from_name: str
    to: tuple[str, ...]
    cc: tuple[str, ...]
    bcc: tuple[str, ...]
    reply_to: tuple[str, ...]
    headers: tuple[tuple[str, str], ...]
    """Name and value of every field that has no property of its own."""
    initiator: str

    def values(self, of: Property) -> tuple[str, ...]:
        """The values of a property, as the mail has them."""
        match of:
            case Property.SUBJECT:
                return (self.subject,)
            case Property.MESSAGE:
                return (self.message,)
            case Property.FROM_EMAIL:
                return (self.from_email,)
            case Property.FROM_NAME:
                return (self.from_name,)
            case Property.TO:
                return self.to
            case Property.CC:
                return self.cc
            case Property.BCC:
                return self.bcc
            case Property.REPLY_TO:
                return self.reply_to
            case Property.HEADER_NAME:
                return tuple(name for name, _value in self.headers)
            case Property.HEADER_VALUE:
                return tuple(value for _name, value in self.headers)
            case Property.INITIATOR:
                return (self.initiator,)


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which group a mail met, and for each of its conditions the value that met it.

    A negative condition is met by all values: of these the first is told, or nothing.
    """

    group: int
    values: tuple[str, ...]


def facts_for_rules(raw: bytes, recipients: Sequence[str], initiator: str) -> MailFacts:
    """Read a mail as it was submitted; `recipients` are the envelope's, `initiator` the fallback.

    What is missing or cannot be read is empty; any bytes will do.
    """
    headers = split(raw).headers
    sender = from_address(headers.get_all(b"from"))
    to, cc = _emails(headers, b"to"), _emails(headers, b"cc")
    named = {address_key(email) for email in (*to, *cc)}
    hidden = {address_key(email): email for email in _emails(headers, b"bcc", b"resent-bcc")}
    for email in recipients:
        if (key := address_key(email)) not in named:
            hidden.setdefault(key, email)
    return MailFacts(
        subject=decode(headers.get(b"subject") or b"", MAX_VALUE),
        message="\n".join(text_bodies(raw, MESSAGE_CHARACTERS)),
        from_email=sender.email,
        from_name=sender.name,
        to=to,
        cc=cc,
        bcc=tuple(hidden.values()),
        reply_to=_emails(headers, b"reply-to"),
        headers=tuple(
            (field.name.decode("latin-1"), decode(field.value, HEADER_CHARACTERS))
            for field in headers.fields
            if field.name not in _OWN_PROPERTY
        ),
        initiator=decode(headers.get(INITIATOR) or b"", MAX_VALUE).strip() or initiator,
    )


def _emails(headers: Headers, *names: bytes) -> tuple[str, ...]:
    values = [value for name in names for value in headers.get_all(name)]
    return tuple(address.email for address in addresses(values))


def meets(groups: Groups, facts: MailFacts) -> Match | None:
    """The first group that the mail meets."""
    for number, group in enumerate(groups):
        values = _group_values(group, facts)
        if values is not None:
            return Match(group=number, values=values)
    return None


def _group_values(group: Group, facts: MailFacts) -> tuple[str, ...] | None:
    """The values that meet the conditions of a group; None when one is not met, or it has none."""
    found: list[str] = []
    for condition in group:
        value = _met_by(condition, facts.values(condition.property))
        if value is None:
            return None
        found.append(value)
    return tuple(found) if found else None


def _met_by(condition: Condition, values: Sequence[str]) -> str | None:
    """The value that meets a condition; None when it is not met."""
    sought = _plain(condition.value)
    affirmative = _OPPOSITES.get(condition.operator, condition.operator)
    compare = _COMPARISONS[affirmative]
    hit = next((value for value in values if compare(_plain(value), sought)), None)
    if affirmative is condition.operator:
        return None if hit is None else _shown(hit, sought)
    return (values[0][:SHOWN] if values else "") if hit is None else None


def _plain(text: str) -> str:
    return text.strip().casefold()


def _shown(value: str, sought: str) -> str:
    """The value, or of a long one the piece around what was sought."""
    if len(value) <= SHOWN:
        return value
    at = max(0, value.casefold().find(sought) - SHOWN // 4)
    return value[at : at + SHOWN]


def read_groups(stored: object) -> Groups:
    """Conditions as they were stored; those without a value do not count.

    A group with something in it that is not known here is left out whole: a condition less would
    make it catch more mail than was meant.
    """
    groups = stored if isinstance(stored, list) else []
    read = (_read_group(group) for group in groups if isinstance(group, list))
    return tuple(group for group in read if group)


def _read_group(stored: Sequence[object]) -> Group:
    found = []
    for entry in stored:
        told = _strings(entry)
        if not told["value"].strip():
            continue
        try:
            condition = Condition(
                property=Property(told["property"]),
                operator=Operator(told["operator"]),
                value=told["value"],
            )
        except ValueError:
            return ()
        found.append(condition)
    return tuple(found)


def stored_groups(groups: Groups) -> list[list[dict[str, str]]]:
    """Conditions as they are stored."""
    return [
        [
            {"property": each.property, "operator": each.operator, "value": each.value.strip()}
            for each in group
        ]
        for group in groups
    ]


def check_groups(groups: Sequence[Sequence[object]]) -> dict[str, str]:
    """What is wrong with typed conditions, in sentences by field name: `g0-c0-value` and so on.

    A condition may be given as a `Condition` or as it is stored; groups and conditions count
    from 0.
    """
    found: dict[str, str] = {}
    for g, group in enumerate(groups):
        for c, entry in enumerate(group):
            wrong = _wrong_with(_strings(entry))
            found |= {f"g{g}-c{c}-{name}": sentence for name, sentence in wrong.items()}
        if len(group) > MAX_CONDITIONS:
            found[f"g{g}-c{MAX_CONDITIONS}-value"] = N_("A group has at most 20 conditions.")
    if len(groups) > MAX_GROUPS:
        found[f"g{MAX_GROUPS}-c0-value"] = N_("A rule has at most 20 groups.")
    return found


def _wrong_with(told: Mapping[str, str]) -> dict[str, str]:
    found = {}
    if told["property"] not in set(Property):
        found["property"] = N_("Choose what to look at.")
    if told["operator"] not in set(Operator):
        found["operator"] = N_("Choose how to compare.")
    elif told["property"] == Property.INITIATOR and told["operator"] not in WHOLE_VALUE:
        found["operator"] = N_("The initiator can only be compared as a whole.")
    if not told["value"].strip():
        found["value"] = N_("Enter the text to compare with.")
    elif len(told["value"].strip()) > MAX_VALUE:
        found["value"] = N_("This is too long: at most 998 characters.")
    return found


def _strings(entry: object) -> dict[str, str]:
    """Property, operator and value of whatever was stored or typed; what is no text is empty."""
    if isinstance(entry, Condition):
        return {"property": entry.property, "operator": entry.operator, "value": entry.value}
    told = entry if isinstance(entry, Mapping) else {}
    values = {name: told.get(name) for name in ("property", "operator", "value")}
    return {name: value if isinstance(value, str) else "" for name, value in values.items()}
