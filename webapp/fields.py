"""Settings as typed dataclasses: how each one is asked for, and the way to JSON and back.

A class of settings is a frozen keyword-only dataclass whose fields carry `ask(...)` as metadata.
The form, the storage, the command line and the tests all read the same declaration:

    @dataclass(frozen=True, kw_only=True)
    class Letterbox:
        street: str = field(metadata=ask(N_("Street")))
        code: str = field(default="", repr=False, metadata=ask(N_("Door code"), secret=True))

Types are `str`, `int`, `bool`, an `Enum` with string values, and each of them `| None` (None: left
empty). No default means required. What two fields must agree on is said by an optional method
`problems()`, which returns sentences by field name. Sentences are English and marked with `N_`;
whoever shows them translates them.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from functools import cache
from typing import (
    TYPE_CHECKING,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_KEY = "postroom.question"
_ON = {"true", "on", "yes", "1"}
_OFF = {"false", "off", "no", "0"}


def N_(message: str) -> str:
    """Mark a message for translation; it is translated where it is shown."""
    return message


@dataclass(frozen=True, kw_only=True)
class Question:
    """How a setting is asked for; `check` raises ValueError with the sentence to show."""

    label: str
    help: str = ""
    secret: bool = False
    choices: tuple[tuple[str, str], ...] = ()
    check: Callable[..., object] | None = None
    placeholder: str = ""
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class FieldQuestion:
    """One field of a settings class: `type` is str, int, bool or the Enum class."""

    name: str
    type: type
    optional: bool
    required: bool
    default: object
    question: Question


@runtime_checkable
class CrossChecked(Protocol):
    """A settings class whose fields must agree with each other."""

    def problems(self) -> Mapping[str, str]:
        """Sentences by field name; empty when all is well."""


class FieldErrors(ValueError):
    """Settings that cannot be used: one sentence per field, never the value itself."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {sentence}" for name, sentence in errors.items()))
        self.errors = dict(errors)


def ask(
    label: str,
    help: str = "",  # the word the page uses for it
    *,
    secret: bool = False,
    choices: Iterable[tuple[object, str]] = (),
    check: Callable[..., object] | None = None,
    placeholder: str = "",
    wide: bool = False,
) -> dict[str, Question]:
    """Field metadata: how this setting is asked for.

    `choices` are pairs of value (or Enum member) and label; `check` is called with a value that is
    not empty and raises ValueError with the sentence to show.
    """
    pairs = tuple((str(_plain(value)), text) for value, text in choices)
    question = Question(
        label=label,
        help=help,
        secret=secret,
        choices=pairs,
        check=check,
        placeholder=placeholder,
        wide=wide,
    )
    return {_KEY: question}


def questions(cls: type[DataclassInstance]) -> list[FieldQuestion]:
    """The settings of a class in order; fields without `ask` are not settings."""
    return list(_questions(cls))


def settings_of(obj: DataclassInstance) -> dict[str, object]:
    """The plain settings, ready for JSON."""
    return to_json(obj, secrets=False)


def secrets_of(obj: DataclassInstance) -> dict[str, object]:
    """The secret settings, ready for JSON; to be sealed before they are stored."""
    return to_json(obj, secrets=True)


def to_json(obj: DataclassInstance, *, secrets: bool) -> dict[str, object]:
    """One half of the settings: the secret ones or the plain ones."""
    return {
        asked.name: _plain(getattr(obj, asked.name))
        for asked in _questions(type(obj))
        if asked.question.secret is secrets
    }


def from_json(
    cls: type[T], settings: Mapping[str, object], secrets: Mapping[str, object] | None = None
) -> T:
    """The settings object; raises FieldErrors naming every field that cannot be used.

    Unknown keys are ignored: an older or newer version may have written them.
    """
    values: dict[str, object] = {}
    errors: dict[str, str] = {}
    for asked in _questions(cls):
        given = (secrets or {}) if asked.question.secret else settings
        try:
            values[asked.name] = _read(asked, given)
        except ValueError as problem:
            errors[asked.name] = str(problem)
    if errors:
        raise FieldErrors(errors)
    made = cls(**values)
    if problems := _problems(made):
        raise FieldErrors(problems)
    return made


def from_texts(
    cls: type[DataclassInstance], texts: Mapping[str, str]
) -> tuple[dict[str, object], dict[str, object]]:
    """Typed settings and secrets out of `name=text` pairs, as a command line gives them.

    Raises FieldErrors for a name that is no setting; a text that does not fit its type is kept as
    text, so that `from_json` refuses it with the usual sentence.
    """
    by_name = {asked.name: asked for asked in _questions(cls)}
    unknown = {
        name: N_("There is no setting of this name.") for name in texts if name not in by_name
    }
    if unknown:
        raise FieldErrors(unknown)
    settings: dict[str, object] = {}
    secrets: dict[str, object] = {}
    for name, text in texts.items():
        asked = by_name[name]
        (secrets if asked.question.secret else settings)[name] = _typed(asked.type, text)
    return settings, secrets


def _typed(wanted: type, text: str) -> object:
    word = text.strip().lower()
    if wanted is bool and word in _ON | _OFF:
        return word in _ON
    if wanted is int and word.isascii() and word.removeprefix("-").isdigit():
        return int(word)
    return text


def _problems(made: object) -> Mapping[str, str]:
    return made.problems() if isinstance(made, CrossChecked) else {}


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value


def _read(asked: FieldQuestion, given: Mapping[str, object]) -> object:
    """One checked value; raises ValueError with the sentence for the field."""
    if asked.name not in given:
        if asked.required:
            raise ValueError(N_("Enter a value."))
        return asked.default
    value = _convert(asked, given[asked.name])
    if value is None or value == "":
        if asked.required and not asked.optional:
            raise ValueError(N_("Enter a value."))
        return None if asked.optional else value
    if asked.question.check is not None:
        asked.question.check(value)
    return value


def _convert(asked: FieldQuestion, raw: object) -> object:
    """The value in its type; None only where None is a value of the field."""
    if raw is None:
        if asked.optional:
            return None
        raise ValueError(N_("Enter a value."))
    raw = _plain(raw)
    if asked.type is bool:
        if not isinstance(raw, bool):
            raise ValueError(N_("Choose on or off."))
        return raw
    if asked.type is int:
        # bool is a subclass of int, but "true" is no number to anybody who fills in a form.
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise ValueError(N_("Enter a whole number."))
    elif asked.type is str:
        raw = _text(asked, raw)
        if asked.optional and raw == "":
            return None
    if asked.question.choices and str(raw) not in dict(asked.question.choices):
        raise ValueError(N_("Choose one of the values offered."))
    return asked.type(raw)


def _text(asked: FieldQuestion, raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError(N_("Enter text."))
    if "\0" in raw:  # PostgreSQL stores no NUL, and no setting needs one
        raise ValueError(N_("Take out the invisible characters."))
    # Spaces around a name come from copying; in a password they may be meant.
    return raw if asked.question.secret else raw.strip()


@cache
def _questions(cls: type[DataclassInstance]) -> tuple[FieldQuestion, ...]:
    hints = get_type_hints(cls)
    return tuple(
        _field_question(cls, declared, hints[declared.name])
        for declared in fields(cls)
        if _KEY in declared.metadata
    )


def _field_question(cls: type, declared: Field[object], hint: object) -> FieldQuestion:
    kind, optional = _without_none(hint)
    question: Question = declared.metadata[_KEY]
    where = f"{cls.__name__}.{declared.name}"
    if not isinstance(kind, type) or not issubclass(kind, (str, int, bool, Enum)):
        raise TypeError(f"{where}: a setting is str, int, bool or an Enum, not {hint}")
    if issubclass(kind, Enum) and not question.choices:
        raise TypeError(f"{where}: name the choices and their labels")
    required = declared.default is MISSING and declared.default_factory is MISSING
    default: object = None
    if declared.default is not MISSING:
        default = declared.default
    elif declared.default_factory is not MISSING:
        default = declared.default_factory()
    return FieldQuestion(
        name=declared.name,
        type=kind,
        optional=optional,
        required=required,
        default=default,
        question=question,
    )


def _without_none(hint: object) -> tuple[object, bool]:
    if get_origin(hint) in (Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return hint, False
