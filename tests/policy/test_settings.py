"""What can be set of a site: the words that are taken, and what is said to all others."""

from typing import Any

import pytest

from webapp.fields import FieldErrors
from webapp.sites.models import Mode, Site
from webapp.sites.settings import CHECKS, USE_DO_NOT_SEND, checked


def a_site(**values: Any) -> Site:
    return Site(**({"mode": Mode.LIVE, "redirect_to": ""} | values))


def refused(site: Site | None = None, **texts: str) -> dict[str, str]:
    with pytest.raises(FieldErrors) as caught:
        checked(site or a_site(), texts)
    return caught.value.errors


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("per_minute", "", None),
        ("per_hour", "none", None),
        ("per_day", " 500 ", 500),
        ("log_days", "forever", None),
        ("log_days", "180", 180),
        ("body_days", "0", 0),
        ("patience_minutes", "0", 0),
        ("retry_hours", "72", 72),
        ("time_zone", "Asia/Shanghai", "Asia/Shanghai"),
        ("redirect_to", " test@agentur.example ", "test@agentur.example"),
        ("admin_email", "", ""),
        ("placeholder_emails", "WordPress@A.example, www-data@*\nx@y", None),
        ("placeholder_names", " WordPress \n\nMy Site\nWordPress", ["WordPress", "My Site"]),
    ],
)
def test_what_is_typed_becomes_what_is_stored(name: str, text: str, value: object) -> None:
    if name == "placeholder_emails":
        value = ["wordpress@a.example", "www-data@*", "x@y"]
    assert checked(a_site(), {name: text}) == {name: value}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("per_minute", "many"),
        ("per_minute", "-1"),
        ("per_day", "99999999999"),
        ("log_days", "0"),
        ("log_days", "1.5"),
        ("body_days", "?"),
        ("details_days", "0"),
        ("retry_hours", ""),
        ("retry_hours", "0"),
        ("retry_hours", "721"),
        ("patience_minutes", ""),
        ("time_zone", "Berlin"),
        ("mode", "off"),
        ("after_unclear", ""),
        ("redirect_to", "nobody"),
        ("placeholder_emails", "wordpress"),
        ("placeholder_emails", "a@b <c@d>"),
        ("placeholder_emails", " ".join(f"a{n}@b.example" for n in range(51))),
        ("placeholder_names", "a\x07b"),
        ("name", " "),
    ],
)
def test_what_cannot_be_used_is_said_at_its_field(name: str, text: str) -> None:
    assert list(refused(**{name: text})) == [name]


@pytest.mark.parametrize("text", ["0", "00", " 0 "])
def test_a_limit_of_zero_leads_to_the_mode(text: str) -> None:
    assert refused(per_hour=text) == {"per_hour": USE_DO_NOT_SEND}


def test_a_redirect_needs_to_know_where_to() -> None:
    assert list(refused(mode="redirect-to")) == ["redirect_to"]
    assert list(refused(mode="redirect-to", redirect_to="x")) == ["redirect_to"]
    stored = a_site(mode=Mode.REDIRECT_TO, redirect_to="a@b.example")
    assert list(refused(stored, redirect_to="")) == ["redirect_to"]
    assert checked(stored, {"mode": "redirect-to"}) == {"mode": Mode.REDIRECT_TO}


def test_all_mistakes_are_said_at_once() -> None:
    assert sorted(refused(name="", per_day="0", log_days="x")) == ["log_days", "name", "per_day"]


def test_every_setting_is_a_column() -> None:
    assert set(CHECKS) <= set(Site.__table__.columns.keys())
