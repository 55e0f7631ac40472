"""The form of a registration, for the installation's shared ones and for a connection's own.

Fields keep what was typed; `microsoft.service.save_app` alone says what is wrong with it.
"""

from collections.abc import Mapping

from flask import request
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from wtforms import PasswordField

from webapp.fields import FieldErrors
from webapp.forms import Choice, Form, Text, refuse
from webapp.microsoft.clouds import Cloud, Segment
from webapp.microsoft.models import OAuthApp
from webapp.microsoft.service import AppValues

ONE_TENANT = "tenant"

ACCOUNT_TYPES = (
    (Segment.COMMON.value, _l("Any organization, and personal accounts")),
    (Segment.ORGANIZATIONS.value, _l("Any organization")),
    (Segment.CONSUMERS.value, _l("Personal accounts only")),
    (ONE_TENANT, _l("One organization only")),
)
"""As the registration says under Supported account types."""


class AnyAppForm(Form):
    """A registration at some provider."""

    name = Text(_l("Name"), description=_l("How people here call it."), limit=400)
    client_id = Text(_l("Client ID"), limit=400)
    client_secret = PasswordField(_l("Client Secret"))

    def values(self) -> AppValues:
        """What was entered."""
        raise NotImplementedError

    def show(self, error: FieldErrors) -> None:
        """Put what the service found at the fields."""
        for name, sentence in error.errors.items():
            refuse(self, name if name in self else "client_id", _(sentence))


class AppForm(AnyAppForm):
    """A registration at Microsoft."""

    name = Text(_l("Name"), description=_l("How people here call it."), limit=400)
    cloud = Choice(
        _l("Microsoft cloud"),
        (),
        description=_l(
            "Where the mailboxes live. A registration counts in the cloud it was made in only."
        ),
    )
    account_type = Choice(
        _l("Account type"),
        list(ACCOUNT_TYPES),
        description=_l("What you chose under “Supported account types” in the registration."),
    )
    tenant = Text(
        _l("Directory (tenant) ID"),
        description=_l(
            "On the Overview page of the registration. Needed only for “One organization only”."
        ),
        limit=400,
    )
    client_id = Text(
        _l("Application ID"),
        description=_l("“Application (client) ID” on the Overview page of your app registration."),
        limit=400,
    )
    client_secret = PasswordField(
        _l("Application Password"),
        description=_l(
            "The column “Value” of a client secret, not the Secret ID. Microsoft shows it once, "
            "right after you make it."
        ),
    )
    secret_expires_on = Text(
        _l("Expires on"),
        description=_l("As the registration shows it beside the secret: the days left stand here."),
        limit=40,
    )
    next_secret = PasswordField(
        _l("Next Application Password"),
        description=_l(
            "The column “Value” of a new client secret. It is proved by a call to Microsoft when "
            "you save; the one in use stays until then, and nobody has to sign in again."
        ),
    )
    next_expires_on = Text(
        _l("The next one expires on"),
        description=_l("As the registration shows it beside the new secret."),
        limit=40,
    )

    def values(self) -> AppValues:
        return app_values(self)

    def show(self, error: FieldErrors) -> None:
        show_errors(self, error)


def app_form(app: OAuthApp | None, clouds: Mapping[str, Cloud], *, prefix: str = "") -> AppForm:
    """The form with what is stored, or with what was sent."""
    form = AppForm(prefix=prefix, data=_stored(app, clouds))
    form.cloud.choices = [(slug, _(cloud.label)) for slug, cloud in clouds.items()]
    return form


def _stored(app: OAuthApp | None, clouds: Mapping[str, Cloud]) -> dict[str, str]:
    if app is None:
        return {"cloud": next(iter(clouds)), "account_type": Segment.COMMON.value}
    one = app.tenant not in set(Segment)
    return {
        "name": app.name,
        "cloud": app.cloud,
        "account_type": ONE_TENANT if one else app.tenant,
        "tenant": app.tenant if one else "",
        "client_id": app.client_id,
        "secret_expires_on": app.secret_expires_on.isoformat() if app.secret_expires_on else "",
    }


def app_values(form: AppForm) -> AppValues:
    """What was entered."""
    one = form.account_type.data == ONE_TENANT
    removed = request.form.getlist("remove")
    return AppValues(
        name=form.name.data or "",
        cloud=form.cloud.data or "",
        tenant=(form.tenant.data or "") if one else (form.account_type.data or ""),
        client_id=form.client_id.data or "",
        secret=form.client_secret.data or "",
        secret_expires_on=form.secret_expires_on.data or "",
        remove_secret=form.client_secret.name in removed,
        next_secret=form.next_secret.data or "",
        next_expires_on=form.next_expires_on.data or "",
        remove_next=form.next_secret.name in removed,
    )


def show_errors(form: AppForm, error: FieldErrors) -> None:
    """Put what the service found at the fields."""
    for name, sentence in error.errors.items():
        # Without “One organization only” the tenant is what the account type says.
        typed = name != "tenant" or form.account_type.data == ONE_TENANT
        refuse(form, name if typed else "account_type", _(sentence))
