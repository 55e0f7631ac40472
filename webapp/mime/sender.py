"""Which From address and name a mail leaves with: what the site asked for against the settings."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from webapp.mime.headers import address_key


class FromReason(StrEnum):
    """Why a mail leaves with the From Email it has."""

    KEPT = "kept"
    FORCED = "forced"
    PLACEHOLDER = "placeholder"
    NOTHING_SET = "nothing-set"


@dataclass(frozen=True, kw_only=True)
class FromBlock:
    """The From settings of the connection of this attempt."""

    email: str
    force_email: bool
    name: str
    force_name: bool
    return_path: bool


@dataclass(frozen=True, kw_only=True)
class Placeholders:
    """Senders that a program uses when it was told none: `*` stands for anything, case is ignored.

    `emails` come expanded (`wordpress@example.com`, `www-data@*`).
    """

    emails: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FromDecision:
    """The From to send with. `replaced`: it is not what was asked; `forced`: Force From Email did.

    `reason` is about the address; the name follows its own half of the table.
    """

    email: str
    name: str
    replaced: bool
    forced: bool
    reason: FromReason


def resolve_from(
    asked_email: str, asked_name: str, block: FromBlock, placeholders: Placeholders
) -> FromDecision:
    """The From that wins.

    Forced and set: the setting. Else what was asked, unless it is missing or a placeholder: then
    the setting, or, when that is empty, what was asked. For the name, Force From Name takes the
    setting even when it is empty, and a placeholder name always gives way to the setting.
    """
    email, reason = _resolve_email(asked_email.strip(), block, placeholders)
    name = _resolve_name(asked_name.strip(), block, placeholders)
    return FromDecision(
        email=email,
        name=name,
        replaced=email != asked_email.strip() or name != asked_name.strip(),
        forced=reason is FromReason.FORCED,
        reason=reason,
    )


def _resolve_email(
    asked: str, block: FromBlock, placeholders: Placeholders
) -> tuple[str, FromReason]:
    setting = block.email.strip()
    if block.force_email and setting:
        return setting, FromReason.FORCED
    if asked and not _is_placeholder_email(asked, placeholders.emails):
        return asked, FromReason.KEPT
    if setting:
        return setting, FromReason.PLACEHOLDER
    return asked, FromReason.NOTHING_SET


def _resolve_name(asked: str, block: FromBlock, placeholders: Placeholders) -> str:
    known = {name.strip().casefold() for name in placeholders.names}
    if not block.force_name and asked and asked.casefold() not in known:
        return asked
    return block.name.strip()


def _is_placeholder_email(email: str, patterns: Sequence[str]) -> bool:
    key = address_key(email)
    # A bare login ("www-data") is what the local mail program would have completed.
    key = key if "@" in key else key + "@"
    return any(_glob(address_key(pattern)).fullmatch(key) for pattern in patterns)


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(piece) for piece in pattern.split("*")), re.DOTALL)
