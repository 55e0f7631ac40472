"""Settings declared once, asked for, stored as JSON and read back."""

from dataclasses import dataclass, field
from enum import Enum

import pytest

from webapp.fields import (
    FieldErrors,
    ask,
    from_json,
    from_texts,
    questions,
    secrets_of,
    settings_of,
    to_json,
)


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


def no_fish(text: str) -> None:
    if "fish" in text:
        raise ValueError("Take out the fish.")


@dataclass(frozen=True, kw_only=True)
class Parcel:
    street: str = field(metadata=ask("Street", "Where it goes", check=no_fish))
    size: Size = field(
        default=Size.SMALL, metadata=ask("Size", choices=((Size.SMALL, "S"), (Size.LARGE, "L")))
    )
    floor: int = field(default=0, metadata=ask("Floor"))
    stamped: bool = field(default=False, metadata=ask("Stamped"))
    region: str = field(
        default="eu", metadata=ask("Region", choices=(("eu", "Europe"), ("us", "America")))
    )
    limit: int | None = field(default=None, metadata=ask("Limit", placeholder="none"))
    code: str = field(default="", repr=False, metadata=ask("Door code", secret=True))
    weight: float = 1.0

    def problems(self) -> dict[str, str]:
        return {"floor": "Large parcels stay on the ground."} if self._too_high() else {}

    def _too_high(self) -> bool:
        return self.size is Size.LARGE and self.floor > 0


def refusals(settings: dict[str, object], secrets: dict[str, object] | None = None) -> set[str]:
    with pytest.raises(FieldErrors) as caught:
        from_json(Parcel, settings, secrets)
    assert all(caught.value.errors.values())
    return set(caught.value.errors)


def test_questions_say_what_is_asked_in_order():
    asked = {each.name: each for each in questions(Parcel)}
    assert list(asked) == ["street", "size", "floor", "stamped", "region", "limit", "code"]
    assert asked["street"].required
    assert asked["street"].question.help == "Where it goes"
    assert asked["size"].type is Size
    assert asked["size"].default is Size.SMALL
    assert asked["size"].question.choices == (("s", "S"), ("l", "L"))
    assert asked["limit"].type is int
    assert asked["limit"].optional
    assert asked["code"].question.secret


def test_settings_and_secrets_are_two_halves():
    parcel = Parcel(street="High Street", size=Size.LARGE, limit=3, code=" 4711 ")
    assert settings_of(parcel) == {
        "street": "High Street",
        "size": "l",
        "floor": 0,
        "stamped": False,
        "region": "eu",
        "limit": 3,
    }
    assert secrets_of(parcel) == {"code": " 4711 "} == to_json(parcel, secrets=True)
    assert from_json(Parcel, settings_of(parcel), secrets_of(parcel)) == parcel


def test_defaults_fill_in_and_unknown_keys_are_ignored():
    assert from_json(Parcel, {"street": " Low Street ", "colour": "red"}) == Parcel(
        street="Low Street"
    )


def test_a_secret_keeps_its_spaces_and_only_comes_from_the_secrets():
    assert from_json(Parcel, {"street": "x", "code": "no"}, {"code": " yes "}).code == " yes "
    assert from_json(Parcel, {"street": "x", "code": "no"}).code == ""


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({}, {"street"}),
        ({"street": "  "}, {"street"}),
        ({"street": None}, {"street"}),
        ({"street": 7}, {"street"}),
        ({"street": "a\0b"}, {"street"}),
        ({"street": "fish market"}, {"street"}),
        ({"street": "x", "size": "xl"}, {"size"}),
        ({"street": "x", "size": None}, {"size"}),
        ({"street": "x", "floor": "2"}, {"floor"}),
        ({"street": "x", "floor": True}, {"floor"}),
        ({"street": "x", "floor": 2.0}, {"floor"}),
        ({"street": "x", "stamped": 1}, {"stamped"}),
        ({"street": "x", "region": "asia"}, {"region"}),
        ({"street": "x", "limit": "3"}, {"limit"}),
        ({"street": "x", "size": "l", "floor": 2}, {"floor"}),
        ({"floor": "two", "stamped": "yes"}, {"street", "floor", "stamped"}),
    ],
)
def test_every_field_that_cannot_be_used_is_named(settings, wrong):
    assert refusals(settings) == wrong


def test_a_check_says_its_own_sentence():
    with pytest.raises(FieldErrors, match=r"street: Take out the fish\."):
        from_json(Parcel, {"street": "fish"})


def test_an_empty_optional_value_is_none():
    assert from_json(Parcel, {"street": "x", "limit": None}).limit is None


def test_texts_of_a_command_line_become_typed():
    texts = {"street": "x", "floor": "2", "stamped": "on", "size": "s", "code": "123"}
    settings, secrets = from_texts(Parcel, texts)
    assert settings == {"street": "x", "floor": 2, "stamped": True, "size": "s"}
    assert secrets == {"code": "123"}


def test_texts_that_fit_no_type_are_refused_by_the_usual_sentence():
    settings, _ = from_texts(Parcel, {"street": "x", "floor": "two", "stamped": "perhaps"})
    assert refusals(settings) == {"floor", "stamped"}


def test_texts_for_no_setting_are_refused():
    with pytest.raises(FieldErrors, match="colour"):
        from_texts(Parcel, {"colour": "red"})


def test_a_type_that_no_form_can_ask_for_is_a_mistake():
    @dataclass(frozen=True, kw_only=True)
    class Odd:
        weights: dict = field(default_factory=dict, metadata=ask("Weights"))

    with pytest.raises(TypeError, match=r"Odd\.weights"):
        questions(Odd)


def test_an_enum_without_labels_is_a_mistake():
    @dataclass(frozen=True, kw_only=True)
    class Odd:
        size: Size = field(default=Size.SMALL, metadata=ask("Size"))

    with pytest.raises(TypeError, match="choices"):
        questions(Odd)
