"""What can be set of a site, and how: as text, so that the pages and the command line refuse the
same things in the same words.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any
from zoneinfo import available_timezones

from sqlalchemy.orm import Session

from webapp import audit
from webapp.fields import N_, FieldErrors
from webapp.sites.models import AfterUnclear, Mode, Site
from webapp.sites.service import (
    NAME_LENGTH,
    check_admin_email,
    check_email,
    check_line,
    check_name,
    check_url,
    placeholder_emails,
)

FOR_EVER = "forever"
NO_LIMIT = "none"
MOST_DAYS = 36_500
MOST_MAILS = 10_000_000
MOST_HOURS = 720
MOST_MINUTES = 10_080
MOST_PLACEHOLDERS = 50

USE_DO_NOT_SEND = N_("0 would stop all mail: use the mode Do not send instead.")
WHOLE_NUMBER = N_("Enter a whole number, or leave it empty for no limit.")
WHERE_TO = N_("Enter the address that gets the mail.")

Check = Callable[[str], object]

_PATTERN = re.compile(r"[^\s@\"'<>()\[\]\\]+@[^\s@\"'<>()\[\]\\]+")


def _one_of(kind: type[StrEnum]) -> Check:
    def check(text: str) -> object:
        if text not in set(kind):
            raise ValueError(N_("Choose one of the values offered."))
        return kind(text)

    return check


def check_number(text: str, low: int, high: int, sentence: str) -> int:
    """A whole number of this range; raises ValueError with the sentence to show."""
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
        raise ValueError(sentence)
    return int(text)


def check_limit(text: str) -> int | None:
    """How many mails may leave in a stretch of time; empty or `none` is no limit."""
    if text.strip().lower() in {"", NO_LIMIT}:
        return None
    if text.strip().strip("0") == "":
        raise ValueError(USE_DO_NOT_SEND)
    return check_number(text, 1, MOST_MAILS, WHOLE_NUMBER)


def _days(low: int) -> Check:
    def check(text: str) -> object:
        if text.strip().lower() in {"", FOR_EVER}:
            return None
        sentence = N_("Enter a whole number of days, from 1 to 36,500.")
        return check_number(text, low, MOST_DAYS, sentence)

    return check


@cache
def time_zones() -> tuple[str, ...]:
    """Names of time zones, those by place before the few others; UTC is the first."""
    names = available_timezones()
    places = sorted(name for name in names if "/" in name and not name.startswith(("Etc", "Sys")))
    return ("UTC", *places)


def check_time_zone(text: str) -> str:
    """A time zone by its name; raises ValueError with the sentence to show."""
    if text.strip() not in time_zones():
        raise ValueError(N_("Choose a time zone, such as Europe/Berlin."))
    return text.strip()


def check_senders(text: str) -> list[str]:
    """Patterns of addresses, with spaces, commas or line breaks between them."""
    patterns = [part for part in re.split(r"[\s,;]+", text) if part]
    if len(patterns) > MOST_PLACEHOLDERS:
        raise ValueError(N_("These are too many: enter at most 50."))
    if any(len(part) > 320 or not _PATTERN.fullmatch(part) for part in patterns):
        raise ValueError(N_("Write each as name@example.org; * stands for anything."))
    return list(dict.fromkeys(part.lower() for part in patterns))


def check_names(text: str) -> list[str]:
    """Names, one a line."""
    names = [check_line(line, NAME_LENGTH) for line in text.splitlines() if line.strip()]
    if len(names) > MOST_PLACEHOLDERS:
        raise ValueError(N_("These are too many: enter at most 50."))
    return list(dict.fromkeys(names))


def _redirect_to(text: str) -> str:
    return check_email(text) if text.strip() else ""


_HOURS = N_("Enter a whole number of hours, from 1 to 720.")
_MINUTES = N_("Enter a whole number of minutes, from 0 to 10,080.")

CHECKS: Mapping[str, Check] = {
    "name": check_name,
    "url": check_url,
    "admin_email": check_admin_email,
    "time_zone": check_time_zone,
    "mode": _one_of(Mode),
    "redirect_to": _redirect_to,
    "retry_hours": lambda text: check_number(text, 1, MOST_HOURS, _HOURS),
    "patience_minutes": lambda text: check_number(text, 0, MOST_MINUTES, _MINUTES),
    "after_unclear": _one_of(AfterUnclear),
    "per_minute": check_limit,
    "per_hour": check_limit,
    "per_day": check_limit,
    "placeholder_emails": check_senders,
    "placeholder_names": check_names,
    "log_days": _days(1),
    "body_days": _days(0),
    "details_days": _days(1),
}
"""Every setting, and what makes of its text what is stored; raises ValueError with a sentence."""

OF_THE_MODE = frozenset({"mode", "redirect_to"})
"""Whoever changes one of these tells the ledger: see `delivery.replan.mode_changed`."""


def set_site(
    session: Session, site: Site, *, actor: str, now: datetime, **given: str | None
) -> dict[str, list[Any]]:
    """Change what is given, by the names of `CHECKS`, and leave the rest; returns what changed.

    Raises FieldErrors for what cannot be used. The slug stays: addresses contain it.
    """
    values = checked(site, {name: text for name, text in given.items() if text is not None})
    before = shown(site)
    made_up = site.placeholder_emails == placeholder_emails(site.url)
    if made_up and "url" in values and "placeholder_emails" not in values:
        values["placeholder_emails"] = placeholder_emails(str(values["url"]))
    for name, value in values.items():
        setattr(site, name, value)
    changes = audit.difference(before, shown(site))
    if not changes:
        return {}
    session.flush()
    audit.record(
        session,
        at=now,
        actor=actor,
        action="site changed",
        object_kind="site",
        object_id=site.id,
        site_id=site.id,
        changes=changes,
    )
    return changes


def checked(site: Site, texts: Mapping[str, str]) -> dict[str, object]:
    """The values of these texts; raises FieldErrors with a sentence for each that is none."""
    values: dict[str, object] = {}
    errors: dict[str, str] = {}
    for name, text in texts.items():
        try:
            values[name] = CHECKS[name](text)
        except ValueError as error:
            errors[name] = str(error)
    mode = values.get("mode", site.mode)
    address = values.get("redirect_to", site.redirect_to)
    if mode == Mode.REDIRECT_TO and not address and "redirect_to" not in errors:
        errors["redirect_to"] = WHERE_TO
    if errors:
        raise FieldErrors(errors)
    return values


def shown(site: Site) -> dict[str, Any]:
    """The settings as the audit log and programs see them."""
    return {name: _plain(getattr(site, name)) for name in CHECKS}


def _plain(value: object) -> object:
    if isinstance(value, str):
        return str(value)
    return list(value) if isinstance(value, list) else value


def as_text(value: object, empty: str = "") -> str:
    """A stored value as a form shows it; `empty` stands for none."""
    if value is None:
        return empty
    return "\n".join(value) if isinstance(value, list) else str(value)
