"""The form of a connection: its From block, the mailers with their settings, and the limits.

Fields keep what was typed as text, and the service alone says what is wrong with it: so the page,
the command line and the API refuse the same things in the same words.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from flask import request
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from wtforms import BooleanField, Field, PasswordField

from webapp.connections.models import Connection
from webapp.connections.service import CHOOSE_A_MAILER, FormValues, check_limit
from webapp.fields import FieldErrors, FieldQuestion, from_texts, questions
from webapp.forms import Choice, Form, Radios, Text, refuse
from webapp.mailers import registry
from webapp.mailers.base import Mailer
from webapp.sites.models import Site

LIMITS = ("concurrency", "per_minute", "per_hour", "per_day")
DOTS = "••••••••••••"


class FromForm(Form):
    """The From block, and which mailer it is."""

    from_email = Text(_l("From Email"), description=_l("The address mail is sent from."), limit=400)
    force_from_email = BooleanField(
        _l("Force From Email"),
        description=_l(
            "On: every mail uses the address above, whatever the site asks for. The address it "
            "asked for becomes Reply-To, so answers still arrive."
        ),
    )
    from_name = Text(_l("From Name"), description=_l("The name that readers see."), limit=400)
    force_from_name = BooleanField(
        _l("Force From Name"),
        description=_l("On: every mail uses the name above, whatever the site asks for."),
    )
    return_path = BooleanField(
        _l("Return Path"),
        description=_l(
            "On: bounces go to the From Email. Off: they go where the site says, which is often "
            "nowhere."
        ),
    )
    mailer = Radios(
        _l("Mailer"),
        [(slug, _l(kind.label)) for slug, kind in registry().items()],
        description=_l("Each mailer keeps what you typed: trying another one loses nothing."),
    )


class LimitsForm(Form):
    """How fast mail may leave; empty is unlimited."""

    concurrency = Text(_l("Mails at a time"))
    per_minute = Text(_l("Mails a minute"))
    per_hour = Text(_l("Mails an hour"))
    per_day = Text(_l("Mails a day"))


@cache
def form_class(kind: type[Mailer]) -> type[Form]:
    """The form of a mailer's settings, from what they ask for."""
    fields = {asked.name: _field(asked) for asked in questions(kind)}
    return type(f"{kind.__name__}Form", (Form,), fields)


def _field(asked: FieldQuestion) -> Field:
    question = asked.question
    label = _l(question.label)
    description = _l(question.help) if question.help else ""
    if asked.type is bool:
        return BooleanField(label, description=description)
    if question.choices:
        kind = Radios if len(question.choices) <= 4 else Choice
        choices = [(value, _l(text)) for value, text in question.choices]
        return kind(label, choices, description=description)
    if question.secret:
        return PasswordField(label, description=description)
    # Numbers are text too: a number field of a browser throws away what is none.
    return Text(label, description=description, limit=1000)


@dataclass(frozen=True, kw_only=True)
class Secret:
    """How a secret stands on the page: locked while stored, open to type a new one."""

    stored_at: datetime | None
    stored_by: str
    locked: bool
    removed: bool
    retype: bool
    """Something was typed that the page does not give back."""


@dataclass
class ConnectionForm:
    """All forms of the page, of which only the chosen mailer's is read."""

    block: FromForm
    mailers: dict[str, Form]
    limits: LimitsForm
    connection: Connection | None

    @property
    def slug(self) -> str:
        """The chosen mailer."""
        return str(self.block.mailer.data or "")

    def fields(self) -> Iterator[Field]:
        """Every field that counts, in the order of the page."""
        yield from self.block
        yield from self.mailers.get(self.slug, ())
        yield from self.limits

    def values(self) -> FormValues:
        """What was entered; raises FieldErrors for a mailer that does not exist."""
        kind = registry().get(self.slug)
        if kind is None:
            raise FieldErrors({"mailer": CHOOSE_A_MAILER})
        settings, secrets = from_texts(kind, self._texts(kind))
        removed = request.form.getlist("remove")
        return FormValues(
            from_email=self.block.from_email.data or "",
            force_from_email=self.block.force_from_email.data,
            from_name=self.block.from_name.data or "",
            force_from_name=self.block.force_from_name.data,
            return_path=self.block.return_path.data,
            nickname=self.connection.nickname if self.connection else "",
            mailer=self.slug,
            settings=settings,
            secrets={name: str(value) for name, value in secrets.items()},
            remove_secrets=[name for name in secrets if f"{self.slug}-{name}" in removed],
        )

    def _texts(self, kind: type[Mailer]) -> dict[str, str]:
        form = self.mailers[kind.slug]
        texts = {}
        for asked in questions(kind):
            data = form[asked.name].data
            if asked.type is bool:
                texts[asked.name] = "true" if data else "false"
            elif data is not None:
                texts[asked.name] = str(data)
        return texts

    def limit_values(self) -> dict[str, int | None]:
        """The limits; raises FieldErrors by their names."""
        values: dict[str, int | None] = {}
        errors = {}
        for name in LIMITS:
            try:
                values[name] = check_limit(self.limits[name].data or "")
            except ValueError as error:
                errors[name] = str(error)
        if errors:
            raise FieldErrors(errors)
        return values

    def show(self, error: FieldErrors) -> None:
        """Put what the service found at the fields."""
        for name, sentence in error.errors.items():
            forms = (self.block, self.mailers.get(self.slug), self.limits)
            form = next((form for form in forms if form is not None and name in form), self.block)
            refuse(form, name if name in form else "mailer", _(sentence))

    def secret(self, slug: str, name: str) -> Secret:
        """How to show one secret of a mailer."""
        noted = self.connection.secrets_set if self.connection else {}
        stored = noted.get(slug, {}).get(name)
        field = self.mailers[slug][name]
        pressed = {request.form.get("then", "").removeprefix("remove:")}
        removed = f"{slug}-{name}" in {*request.form.getlist("remove"), *pressed}
        return Secret(
            stored_at=datetime.fromisoformat(stored["at"]) if stored else None,
            stored_by=stored["by"] if stored else "",
            locked=bool(stored) and not removed and not field.errors,
            removed=bool(stored) and removed,
            retype=bool(field.data),
        )


def connection_form(
    site: Site, connection: Connection | None, limits: Mapping[str, int | None]
) -> ConnectionForm:
    """The form with what is stored, or with what was sent."""
    kinds = registry()
    block = FromForm(data=_block_data(site, connection, next(iter(kinds))))
    return ConnectionForm(
        block=block,
        mailers={
            slug: form_class(kind)(prefix=slug, data=_mailer_data(kind, connection))
            for slug, kind in kinds.items()
        },
        limits=LimitsForm(
            prefix="limits",
            data={name: "" if limits.get(name) is None else str(limits[name]) for name in LIMITS},
        ),
        connection=connection,
    )


def _block_data(site: Site, connection: Connection | None, first: str) -> dict[str, object]:
    if connection is None:
        return {
            "from_email": site.admin_email,
            "force_from_email": True,
            "from_name": site.name,
            "force_from_name": False,
            "return_path": True,
            "mailer": first,
        }
    return {
        "from_email": connection.from_email,
        "force_from_email": connection.force_from_email,
        "from_name": connection.from_name,
        "force_from_name": connection.force_from_name,
        "return_path": connection.return_path,
        "mailer": connection.mailer or first,
    }


def _mailer_data(kind: type[Mailer], connection: Connection | None) -> dict[str, object]:
    stored = connection.settings.get(kind.slug, {}) if connection else {}
    data = {}
    for asked in questions(kind):
        value = stored.get(asked.name, asked.default)
        if not asked.question.secret and value is not None:
            data[asked.name] = value if asked.type is bool else str(getattr(value, "value", value))
    return data
