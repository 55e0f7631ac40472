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
from webapp.forms import Choice, Form, Radios, Text, choices, refuse
from webapp.mailers import registry
from webapp.mailers.base import Mailer
from webapp.mailers.outlook import OutlookMailer
from webapp.microsoft.forms import AnyAppForm
from webapp.microsoft.models import Mailbox, OAuthApp
from webapp.microsoft.service import AppValues
from webapp.microsoft.standing import Standing
from webapp.sites.models import Site

OUTLOOK = OutlookMailer.slug
SHARED_APP = "shared_app"
"""A setting whose values are rows, so that each request has its own."""

LIMITS = ("concurrency", "per_minute", "per_hour", "per_day", "recipients_per_day")
DOTS = "••••••••••••"


def kinds() -> dict[str, type[Mailer]]:
    """The mailers in the order of the page: the one that most people come for is first."""
    found = registry()
    return {slug: found[slug] for slug in sorted(found, key=lambda slug: slug != OUTLOOK)}


class FromForm(Form):
    """Name and From block, and which mailer it is."""

    nickname = Text(
        _l("Connection Nickname"),
        description=_l("By this name it is chosen for backups, routes and tests."),
        limit=400,
    )
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
        [(slug, _l(kind.label)) for slug, kind in kinds().items()],
        description=_l("Each mailer keeps what you typed: trying another one loses nothing."),
    )


class LimitsForm(Form):
    """How fast mail may leave; empty is unlimited."""

    concurrency = Text(_l("Mails at a time"))
    per_minute = Text(_l("Mails a minute"))
    per_hour = Text(_l("Mails an hour"))
    per_day = Text(_l("Mails a day"))
    recipients_per_day = Text(_l("Recipients a day"))


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
    if asked.name == SHARED_APP:
        return Choice(label, (), description=description)
    if question.choices:
        kind = Radios if len(question.choices) <= 4 else Choice
        choices = [(value, _l(text)) for value, text in question.choices]
        return kind(label, choices, description=description)
    if question.secret:
        return PasswordField(label, description=description)
    # Numbers are text too: a number field of a browser throws away what is none.
    return Text(label, description=description, limit=1000)


def texts_of(kind: type[Mailer], form: Form) -> dict[str, str]:
    """What was entered for a mailer, as `fields.from_texts` reads it."""
    texts = {}
    for asked in questions(kind):
        data = form[asked.name].data
        if asked.type is bool:
            texts[asked.name] = "true" if data else "false"
        elif data is not None:
            texts[asked.name] = str(data)
    return texts


@dataclass(frozen=True, kw_only=True)
class Secret:
    """How a secret stands on the page: locked while stored, open to type a new one."""

    stored_at: datetime | None
    stored_by: str
    locked: bool
    removed: bool
    retype: bool
    """Something was typed that the page does not give back."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """How the connection stands with each registration it may use at a provider."""

    shared: Standing
    own: Standing
    apps: tuple[OAuthApp, ...]
    """The shared registrations, to choose from."""
    used: Standing | None
    """That of the two by which mail leaves, as it is stored; None for another mailer."""
    mailbox: Mailbox | None
    """Of the link in use."""


@dataclass(kw_only=True)
class Account:
    """What the page knows and asks of a mailer whose account is linked."""

    links: Links
    app: AnyAppForm
    """The registration that the connection brings along, where it does."""
    settings: Form

    @property
    def one_click(self) -> bool:
        """Whether One-Click Setup is on, as the page has it now."""
        return bool(self.settings.one_click.data)

    @property
    def standing(self) -> Standing:
        """That of the registration which the page has chosen now."""
        return self.links.shared if self.one_click else self.links.own


@dataclass(kw_only=True)
class ConnectionForm:
    """All forms of the page, of which only the chosen mailer's is read."""

    site: Site
    block: FromForm
    mailers: dict[str, Form]
    limits: dict[str, LimitsForm]
    accounts: dict[str, Account]
    """By the slugs of the mailers that are linked."""
    connection: Connection | None
    asks_nickname: bool
    """The primary connection of a site does well without a name; any other one needs it."""
    stored: Mapping[str, object]
    """The From block as it is stored."""

    @property
    def slug(self) -> str:
        """The chosen mailer."""
        return str(self.block.mailer.data or "")

    @property
    def account(self) -> Account | None:
        """Of the chosen mailer; None where nothing is linked."""
        return self.accounts.get(self.slug)

    @property
    def brings_app(self) -> bool:
        """Whether the registration's own fields count."""
        return self.account is not None and not self.account.one_click

    @property
    def has_limits(self) -> bool:
        """Whether the chosen mailer's limits can be set now: a mailbox has them, not the link."""
        linked = self.account is None or self.account.links.mailbox is not None
        return self.slug in self.limits and linked

    def fields(self) -> Iterator[Field]:
        """Every field that counts, in the order of the page."""
        yield from (field for field in self.block if self._is_asked(field))
        yield from self.mailers.get(self.slug, ())
        if self.account is not None and self.brings_app:
            yield from self.account.app
        if self.has_limits:
            yield from self.limits[self.slug]

    def _is_asked(self, field: Field) -> bool:
        return self.asks_nickname or field.name != "nickname"

    def values(self) -> FormValues:
        """What was entered; raises FieldErrors for a mailer that does not exist."""
        kind = registry().get(self.slug)
        if kind is None:
            raise FieldErrors({"mailer": CHOOSE_A_MAILER})
        settings, secrets = from_texts(kind, texts_of(kind, self.mailers[kind.slug]))
        removed = request.form.getlist("remove")
        return FormValues(
            from_email=self.block.from_email.data or "",
            force_from_email=self.block.force_from_email.data,
            # What this mailer cannot do is not on the page; another one finds it as it was.
            from_name=str(self._kept("from_name", kind.names_sender) or ""),
            force_from_name=bool(self._kept("force_from_name", kind.names_sender)),
            return_path=bool(self._kept("return_path", kind.supports_return_path)),
            nickname=str(self._kept("nickname", self.asks_nickname) or ""),
            mailer=self.slug,
            settings=settings,
            secrets={name: str(value) for name, value in secrets.items()},
            remove_secrets=[name for name in secrets if f"{self.slug}-{name}" in removed],
        )

    def _kept(self, name: str, is_asked: bool) -> object:
        return self.block[name].data if is_asked else self.stored[name]

    def app_values(self) -> AppValues:
        """What was entered for the registration that the connection brings along."""
        assert self.account is not None
        return self.account.app.values()

    def limit_values(self) -> dict[str, int | None]:
        """The limits of the chosen mailer; raises FieldErrors by their names."""
        values: dict[str, int | None] = {}
        errors = {}
        for name in LIMITS if self.has_limits else ():
            try:
                values[name] = check_limit(self.limits[self.slug][name].data or "")
            except ValueError as error:
                errors[name] = str(error)
        if errors:
            raise FieldErrors(errors)
        return values

    def show(self, error: FieldErrors) -> None:
        """Put what the services found at the fields."""
        forms = [self.block, self.mailers.get(self.slug), self.limits.get(self.slug)]
        for name, sentence in error.errors.items():
            form = next((form for form in forms if form is not None and name in form), self.block)
            refuse(form, name if name in form else "mailer", _(sentence))

    def show_app(self, error: FieldErrors) -> None:
        """Put what is wrong with the registration at its fields."""
        if self.account is not None:
            self.account.app.show(error)

    def secret(self, slug: str, name: str) -> Secret:
        """How to show one secret of a mailer."""
        noted = self.connection.secrets_set if self.connection else {}
        stored = noted.get(slug, {}).get(name)
        field = self.mailers[slug][name]
        pressed = request.form.get("then", "").removeprefix("remove:")
        removed = field.name in {*request.form.getlist("remove"), pressed}
        return Secret(
            stored_at=datetime.fromisoformat(stored["at"]) if stored else None,
            stored_by=stored["by"] if stored else "",
            locked=bool(stored) and not removed and not field.errors,
            removed=bool(stored) and removed,
            retype=bool(field.data),
        )


def connection_form(
    site: Site,
    connection: Connection | None,
    limits: Mapping[str, Mapping[str, int | None]],
    accounts: Mapping[str, tuple[Links, AnyAppForm]],
    *,
    asks_nickname: bool = False,
) -> ConnectionForm:
    """The form with what is stored, or with what was sent; `limits` and `accounts` are by the
    mailers' slugs."""
    found = kinds()
    stored = _block_data(site, connection, next(iter(found)))
    mailers = {
        slug: form_class(kind)(prefix=slug, data=_mailer_data(kind, connection))
        for slug, kind in found.items()
    }
    for slug, (links, _app) in accounts.items():
        _offer_apps(mailers[slug], links)
    return ConnectionForm(
        site=site,
        block=FromForm(data=stored),
        mailers=mailers,
        limits={
            slug: LimitsForm(prefix=f"{slug}-limits", data=_limit_data(limits.get(slug, {})))
            for slug in found
        },
        accounts={
            slug: Account(links=links, app=app, settings=mailers[slug])
            for slug, (links, app) in accounts.items()
        },
        connection=connection,
        asks_nickname=asks_nickname,
        stored=stored,
    )


def _offer_apps(form: Form, links: Links) -> None:
    """The shared registrations, to choose from."""
    field = form[SHARED_APP]
    field.choices = choices([(app.uid, app.name or app.client_id) for app in links.apps])
    if not field.raw_data:  # there is a menu only where there are several
        field.data = links.shared.app.uid if links.shared.app else ""


def _limit_data(limits: Mapping[str, int | None]) -> dict[str, str]:
    return {name: "" if limits.get(name) is None else str(limits[name]) for name in LIMITS}


def _block_data(site: Site, connection: Connection | None, first: str) -> dict[str, object]:
    if connection is None:
        return {
            "nickname": "",
            "from_email": site.admin_email,
            "force_from_email": True,
            "from_name": site.name,
            "force_from_name": False,
            "return_path": True,
            "mailer": first,
        }
    return {
        "nickname": connection.nickname,
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
