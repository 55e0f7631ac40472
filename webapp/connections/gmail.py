"""Google / Gmail on the page of a connection: both ways to link, and the addresses to send as."""

from collections.abc import Mapping
from dataclasses import dataclass

from flask_babel import gettext as _
from sqlalchemy.orm import Session

from webapp.connections.accounts import (
    Accounts,
    admins,
    explained,
    is_foreign,
    known_of,
    lacking,
    needs_admin,
)
from webapp.connections.forms import ConnectionForm, Links
from webapp.connections.models import Connection
from webapp.explain.model import WHO_LABELS
from webapp.fields import N_, FieldErrors
from webapp.google.forms import GoogleAppForm, google_app_form
from webapp.microsoft.apps import stored_secret
from webapp.microsoft.link import SIGN_INS
from webapp.microsoft.models import Mailbox
from webapp.microsoft.standing import Standing, is_secure
from webapp.microsoft.tokens import Proof
from webapp.providers import GOOGLE, PROVIDERS
from webapp.web import installation, now

SIGN_IN = SIGN_INS[GOOGLE]
OFFERED = 5
"""So many addresses are offered to send as."""

NO_ID = N_("Enter the Client ID: Google asks for it at the sign-in.")
NO_SECRET = N_("Enter the Client Secret: Google asks for it at the sign-in.")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One of the two ways to link, with the class by which the switch shows it."""

    css: str
    standing: Standing

    def others(self, address: str) -> list[str]:
        """Addresses that the account may send as, without this one and its own."""
        box = self.standing.mailbox
        if box is None:
            return []
        shown = {address.casefold(), box.address.casefold()}
        return [one for one in box.addresses if one.casefold() not in shown][:OFFERED]


class GoogleAccounts(Accounts):
    """Mailboxes at Google."""

    provider = PROVIDERS[GOOGLE]

    def app_form(self, links: Links) -> GoogleAppForm:
        return google_app_form(links.own.app, prefix=f"{self.slug}-app")

    def proof(self, form: ConnectionForm) -> Proof | None:
        """Google's secrets have no end, so there is no second one."""
        return None

    def save_app(
        self,
        session: Session,
        before: Connection | None,
        saved: Connection | None,
        form: ConnectionForm,
        proof: Proof | None,
        *,
        signs_in: bool,
    ) -> Mapping[str, str]:
        try:
            app = self.store_app(session, before, saved, form)
        except FieldErrors as error:
            return error.errors
        return lacking(app, NO_ID, NO_SECRET) if signs_in else {}

    def told(self, session: Session, connection: Connection, proof: Proof | None) -> str:
        return ""

    def never_sends(self, connection: Connection, mailbox: Mailbox) -> str:
        """Gmail refuses no From: it puts its own in the place of one that it does not know."""
        return ""

    def needs_right(self, connection: Connection, mailbox: Mailbox) -> str:
        if not is_foreign(connection.from_email, mailbox):
            return ""
        return str(
            _(
                "Google would silently replace %(from_email)s by %(account)s: it is not among the "
                "addresses that this account may send as.",
                account=mailbox.address,
                from_email=connection.from_email,
            )
        )

    def context(self, form: ConnectionForm) -> Mapping[str, object]:
        settings = installation().settings
        account = form.accounts[self.slug]
        secure = is_secure(settings)
        ways = [
            Way(css="shared-gmail", standing=account.links.shared),
            Way(css="own-gmail", standing=account.links.own),
        ]
        return {
            "ways": ways if secure else [Way(css="", standing=account.standing)],
            "secure": secure,
            "public_url": settings.url,
            "app_secret": stored_secret(account.links.own.app, account.app, now().date()),
            "redirect_uri": SIGN_IN.redirect_uri(settings),
            "explained": explained,
            "known_of": known_of,
            "who_labels": WHO_LABELS,
            "admins": admins() if needs_admin(account) else [],
            "permissions": SIGN_IN.permissions,
        }
