"""The alert connection on System: by a mail server, or by a mailbox that is linked at Microsoft."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy.orm import Session
from wtforms import Field

from webapp import audit
from webapp.connections import service as connections
from webapp.connections.accounts import explained, known_of
from webapp.connections.forms import OUTLOOK, form_class, texts_of
from webapp.connections.models import Connection, Health
from webapp.connections.service import CHOOSE_A_MAILER, FormValues
from webapp.delivery import replan
from webapp.explain.model import WHO_LABELS
from webapp.fields import N_, FieldErrors, from_texts, questions
from webapp.forms import Choice, Form, Radios, Text, choices, refuse
from webapp.incidents import channel
from webapp.mailers.outlook import OutlookMailer
from webapp.mailers.smtp import Smtp
from webapp.microsoft import apps, dates, service
from webapp.microsoft import link as flows
from webapp.microsoft.apps import Expiry
from webapp.microsoft.models import OAuthApp
from webapp.microsoft.standing import Standing, is_secure, link_standing
from webapp.web import actor, db, installation, now
from webapp.words import Status, Tone

NICKNAME = "Alerts"
WAYS = (OutlookMailer, Smtp)

NO_SENDER = N_("Enter the address that alerts are from.")
NO_APP = N_("Choose one of the values offered.")

HEALTH: Mapping[str, Status] = {
    Health.UNKNOWN: Status(icon="queued", tone=Tone.INFO, word=N_("Not tried yet")),
    Health.WORKING: Status(icon="delivered", tone=Tone.GOOD, word=N_("Working")),
}
FAILING = Status(icon="failed", tone=Tone.BAD, word=N_("Failing"))


class SenderForm(Form):
    """What alerts are from, and how they leave."""

    from_email = Text(
        _l("From Email"), description=_l("The address alerts are sent from."), limit=400
    )
    mailer = Radios(
        _l("Mailer"),
        [(kind.slug, _l(kind.label)) for kind in WAYS],
        description=_l("Each mailer keeps what you typed: trying another one loses nothing."),
    )


class RegistrationForm(Form):
    """By which registration the mailbox is linked."""

    shared_app = Choice(_l("App registration"), ())


@dataclass(frozen=True, kw_only=True)
class AlertForm:
    """All forms of the part, of which only the chosen mailer's is read."""

    block: SenderForm
    smtp: Form
    outlook: RegistrationForm

    @property
    def slug(self) -> str:
        """The chosen mailer."""
        return str(self.block.mailer.data or "")

    def fields(self) -> Iterator[Field]:
        """Every field that counts, in the order of the page."""
        yield from self.block
        yield from self.outlook if self.slug == OUTLOOK else self.smtp

    def values(self) -> FormValues:
        """What was entered; raises FieldErrors."""
        sender = (self.block.from_email.data or "").strip()
        settings: Mapping[str, object]
        secrets: Mapping[str, object] = {}
        if self.slug == OUTLOOK:
            settings = {"one_click": True, "shared_app": self.outlook.shared_app.data or ""}
        elif self.slug != Smtp.slug:
            raise FieldErrors({"mailer": CHOOSE_A_MAILER})
        elif not sender:
            raise FieldErrors({"from_email": NO_SENDER})
        else:
            settings, secrets = from_texts(Smtp, texts_of(Smtp, self.smtp))
        return FormValues(
            nickname=NICKNAME,
            mailer=self.slug,
            from_email=sender,
            settings=settings,
            secrets={name: str(value) for name, value in secrets.items()},
        )

    def show(self, error: FieldErrors) -> None:
        """Put what the services found at the fields."""
        chosen = self.outlook if self.slug == OUTLOOK else self.smtp
        for name, sentence in error.errors.items():
            form = chosen if name in chosen else self.block
            refuse(form, name if name in form else "mailer", _(sentence))


@dataclass(frozen=True, kw_only=True)
class Sender:
    """How the alert connection stands."""

    connection: Connection | None
    works: bool
    """Whether alerts leave as mail, as far as is known now."""
    status: Status | None
    has_secret: bool
    standing: Standing
    """Of the link by the registration that is chosen."""
    expiry: Expiry | None
    """Of that registration's secret."""
    idle_days: int | None
    """Until Microsoft ends a link that nobody renews."""
    apps: tuple[OAuthApp, ...]
    also_sites: tuple[str, ...]
    """Sites that send by the very mailbox."""


def stored_form(*, sent: bool) -> AlertForm:
    """The form with what is stored or, where it was `sent`, with that."""
    with db().read() as session:
        connection = connections.alert_connection(session)
        offered = service.shared_apps(session)
        app = service.shared_app_of(session, connection)
    given: dict[str, object] = {} if sent else {"formdata": None}
    block = {
        "from_email": connection.from_email if connection else "",
        "mailer": connection.mailer if connection else Smtp.slug,
    }
    form = AlertForm(
        block=SenderForm(prefix="alert", data=block, **given),
        smtp=form_class(Smtp)(prefix="smtp", data=_smtp_data(connection), **given),
        outlook=RegistrationForm(
            prefix=OUTLOOK, data={"shared_app": app.uid if app else ""}, **given
        ),
    )
    form.outlook.shared_app.choices = choices(
        (one.uid, one.name or one.client_id) for one in offered
    )
    return form


def _smtp_data(connection: Connection | None) -> dict[str, object]:
    """What the form of a mail server shows; never a secret."""
    stored = connection.settings.get(Smtp.slug, {}) if connection else {}
    data: dict[str, object] = {}
    for asked in questions(Smtp):
        value = stored.get(asked.name, asked.default)
        if not asked.question.secret and value is not None:
            data[asked.name] = value if asked.type is bool else str(getattr(value, "value", value))
    return data


def sender(session: Session) -> Sender:
    """How the alert connection stands now."""
    settings, at = installation().settings, now()
    connection = connections.alert_connection(session)
    app = service.shared_app_of(session, connection)
    standing = link_standing(session, settings, connection, app, one_click=True, now=at)
    grant = standing.grant
    return Sender(
        connection=connection,
        works=channel.works(connection),
        status=HEALTH.get(connection.health, FAILING) if connection else None,
        has_secret=bool(connection and connection.secrets_set.get(Smtp.slug)),
        standing=standing,
        expiry=apps.expiry(app, at.date()),
        idle_days=dates.idle_days(grant.renewed_at, at) if grant else None,
        apps=tuple(service.shared_apps(session)),
        also_sites=tuple(channel.sites_by(session, connection) if connection else ()),
    )


def context() -> dict[str, object]:
    """What the part's template needs besides."""
    settings = installation().settings
    return {
        "secure": is_secure(settings),
        "public_url": settings.url,
        "explained": explained,
        "known_of": known_of,
        "who_labels": WHO_LABELS,
        "permissions": flows.MICROSOFT_SIGN_IN.permissions,
    }


def save(form: AlertForm) -> Connection:
    """Store how alerts leave as mail; raises FieldErrors."""
    values = form.values()
    with db().write() as session:
        if form.slug == OUTLOOK:
            app = service.find_shared_app(session, str(values.settings["shared_app"]))
            if app is None:
                raise FieldErrors({"shared_app": NO_APP})
            service.hold_app(session, app.id)  # before the connection, as everybody does
        connection = connections.save_connection(
            session,
            installation().keyring,
            None,
            connections.alert_connection(session),
            values,
            actor=actor(),
            now=now(),
        )
        if form.slug == OUTLOOK:
            service.use_app(session, connection, now())
        else:
            connection.grant_id = None  # the link is kept, and is found again when it is needed
            replan.connection_unlinked(session, connection)
        return connection


def remove() -> None:
    """Forget the alert connection, its password and its links."""
    with db().write() as session:
        found = connections.alert_connection(session)
        if found is None:
            return
        service.forget_links(session, found, now())
        audit.record(
            session,
            at=now(),
            actor=actor(),
            action="connection removed",
            object_kind="connection",
            object_id=found.uid,
        )
        session.delete(found)
