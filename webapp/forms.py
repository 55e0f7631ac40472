"""Forms: the base class, fields and checks with sentences of our own."""

from collections.abc import Callable, Iterable
from typing import Any

from email_validator import EmailNotValidError, validate_email
from flask_babel import gettext as _
from flask_wtf import FlaskForm
from wtforms import Field, SelectField, StringField, ValidationError
from wtforms.fields.choices import SelectChoice  # type: ignore[attr-defined]
from wtforms.validators import StopValidation
from wtforms.widgets import ListWidget, RadioInput

Check = Callable[[Any, Field], None]
Options = Iterable[tuple[str, Any]]


class Form(FlaskForm):  # type: ignore[misc]  # Flask-WTF has no types
    """Parent of every form. Its token is a field of the template, see macros/forms.html."""

    class Meta:
        csrf = False  # checked for every POST before any view runs


def refuse(form: Form, name: str, sentence: str) -> None:
    """Put a sentence at a field, for what only the service could find."""
    field = form[name]
    field.errors = [*field.errors, sentence]


def strip(value: str | None) -> str | None:
    """A filter: spaces around what was typed come from copying."""
    return value.strip() if isinstance(value, str) else value


def filled(message: str) -> Check:
    """The field must not be empty; the message says what to enter."""

    def check(form: Any, field: Field) -> None:
        if not field.data or (isinstance(field.data, str) and not field.data.strip()):
            field.errors = []
            raise StopValidation(str(message))

    return check


def at_most(length: int) -> Check:
    """No more than this many characters, and none that cannot be stored."""

    def check(form: Any, field: Field) -> None:
        text = field.data or ""
        if len(text) > length:
            raise ValidationError(_("Use at most %(n)s characters.", n=length))
        if "\0" in text:
            raise ValidationError(_("Take out the invisible characters."))

    return check


def an_email(form: Any, field: Field) -> None:
    """The field holds one email address, or nothing."""
    if not field.data:
        return
    try:
        validate_email(field.data, check_deliverability=False, test_environment=True)
    except EmailNotValidError as error:
        raise ValidationError(_("Enter an email address, such as name@example.org.")) from error


class Text(StringField):
    """One line of text; spaces around it are dropped."""

    def __init__(self, label: Any, validators: Any = (), **kwargs: Any) -> None:
        limit = kwargs.pop("limit", 200)
        kwargs.setdefault("filters", [strip])
        super().__init__(label, [*validators, at_most(limit)], **kwargs)


class Choice(SelectField):
    """One of a few values, as a menu. `options` are pairs of value and label."""

    def __init__(self, label: Any, options: Options, validators: Any = (), **kwargs: Any) -> None:
        super().__init__(label, [*validators], choices=choices(options), **kwargs)

    def pre_validate(self, form: Any) -> None:
        """Say it in our words when it is none of them."""
        if self.data not in {choice[0] for choice in self.iter_choices()}:
            raise ValidationError(_("Choose one of the values offered."))


class Radios(Choice):
    """One of a few values, as radio buttons."""

    widget = ListWidget(prefix_label=False)
    option_widget = RadioInput()


def choices(options: Options) -> list[Any]:
    """What a field takes as its `choices`, out of pairs of value and label."""
    return [SelectChoice(value, label) for value, label in options]
