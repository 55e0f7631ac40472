"""The form of a registration at Google, for shared ones and for a connection's own."""

from flask import request
from flask_babel import lazy_gettext as _l
from wtforms import PasswordField

from webapp.forms import Text
from webapp.google.cloud import PROVIDER, TENANT
from webapp.microsoft.forms import AnyAppForm
from webapp.microsoft.models import OAuthApp
from webapp.microsoft.service import AppValues


class GoogleAppForm(AnyAppForm):
    """A client at Google: an id and a secret."""

    name = Text(_l("Name"), description=_l("How people here call it."), limit=400)
    client_id = Text(
        _l("Client ID"),
        description=_l("As the Google Cloud console shows it under Clients."),
        limit=400,
    )
    client_secret = PasswordField(
        _l("Client Secret"),
        description=_l("It begins with GOCSPX. Google shows it once, right after it is made."),
    )

    def values(self) -> AppValues:
        return AppValues(
            name=self.name.data or "",
            cloud=PROVIDER,
            tenant=TENANT,
            client_id=self.client_id.data or "",
            secret=self.client_secret.data or "",
            remove_secret=self.client_secret.name in request.form.getlist("remove"),
        )


def google_app_form(app: OAuthApp | None, *, prefix: str = "") -> GoogleAppForm:
    """The form with what is stored, or with what was sent."""
    stored = {"name": app.name, "client_id": app.client_id} if app else {}
    return GoogleAppForm(prefix=prefix, data=stored)
