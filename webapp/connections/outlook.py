"""365 / Outlook on the page of a connection: both ways to link, and the question to an admin."""

from collections.abc import Mapping
from dataclasses import dataclass

from flask import g
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
from webapp.connections.forms import OUTLOOK, ConnectionForm, Links
from webapp.connections.models import Connection
from webapp.explain.model import WHO_LABELS
from webapp.fields import N_, FieldErrors
from webapp.microsoft import apps
from webapp.microsoft import link as flows
from webapp.microsoft import service as microsoft
from webapp.microsoft.clouds import Segment, clouds, is_personal
from webapp.microsoft.forms import AppForm, app_form
from webapp.microsoft.link import ConsentRequest
from webapp.microsoft.models import Consent, Mailbox
from webapp.microsoft.standing import LinkState, Standing, is_secure
from webapp.microsoft.tokens import Proof
from webapp.providers import MICROSOFT, PROVIDERS
from webapp.web import db, installation, now

OWN_APP = f"{OUTLOOK}-app"
"""In front of the names of the fields of a connection's own registration."""

PERSONAL_FROM = N_(
    "A personal account sends as its own addresses only. Use one of them, or link a Microsoft 365 "
    "account that has this domain."
)
ASKABLE = frozenset(
    {
        LinkState.READY,
        LinkState.WAITING_FOR_ADMIN,
        LinkState.ADMIN_AGREED,
        LinkState.NEEDS_REAUTHORISATION,
    }
)
"""Where an administrator's consent may be what is missing."""

NO_ID = N_("Enter the Application ID: Microsoft asks for it at the sign-in.")
NO_SECRET = N_("Enter the Application Password: Microsoft asks for it at the sign-in.")


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One of the two ways to link, with the class by which the switch shows it."""

    css: str
    standing: Standing
    can_ask: bool = False
    request: ConsentRequest | None = None
    """The question to an administrator that is out, or answered."""
    message: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the question still counts: an administrator has not answered, and nobody has
        linked a mailbox since it was asked."""
        if self.request is None or self.request.outcome != Consent.WAITING:
            return False
        link = self.standing.link
        return (
            self.standing.state != LinkState.LINKED
            or link is None
            or self.request.asked_at > link.linked_at
        )


class OutlookAccounts(Accounts):
    """Mailboxes at Microsoft."""

    provider = PROVIDERS[MICROSOFT]

    def app_form(self, links: Links) -> AppForm:
        return app_form(links.own.app, clouds(installation().settings), prefix=OWN_APP)

    def proof(self, form: ConnectionForm) -> Proof | None:
        return apps.proof_of(form.accounts[OUTLOOK].links.own.app, form.app_values())

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
        stored = form.accounts[OUTLOOK].links.own.app
        try:
            with apps.refusing(proof):
                app = self.store_app(session, before, saved, form)
        except FieldErrors as error:
            return error.errors
        if stored is not None:
            apps.succeed(session, app, stored, proof)
        return lacking(app, NO_ID, NO_SECRET) if signs_in else {}

    def told(self, session: Session, connection: Connection, proof: Proof | None) -> str:
        own = microsoft.own_app(session, connection)
        return apps.about_proof(session, own, proof) if own is not None else ""

    def never_sends(self, connection: Connection, mailbox: Mailbox) -> str:
        """No right lets a personal account use another address."""
        foreign = is_foreign(connection.from_email, mailbox)
        return PERSONAL_FROM if is_personal(mailbox.tenant_id) and foreign else ""

    def needs_right(self, connection: Connection, mailbox: Mailbox) -> str:
        if not is_foreign(connection.from_email, mailbox):
            return ""
        return str(
            _(
                "%(account)s sends as %(from_email)s only with an alias or the right Send As at "
                "Microsoft.",
                account=mailbox.address,
                from_email=connection.from_email,
            )
        )

    def context(self, form: ConnectionForm) -> Mapping[str, object]:
        settings, today = installation().settings, now().date()
        account = form.accounts[OUTLOOK]
        own, app = account.links.own, account.app
        secure = is_secure(settings)
        return {
            "modes": modes(form, secure=secure),
            "secure": secure,
            "public_url": settings.url,
            "app_secret": apps.stored_secret(own.app, app, today),
            "app_successor": apps.stored_successor(own.app, app, today),
            "latest_day": apps.latest_day(today),
            "guide": apps.guide_of(settings, app.cloud.data or "", app.client_id.data or ""),
            "explained": explained,
            "known_of": known_of,
            "who_labels": WHO_LABELS,
            "admins": admins() if needs_admin(account) else [],
            "permissions": flows.MICROSOFT_SIGN_IN.permissions,
        }


def modes(form: ConnectionForm, *, secure: bool) -> list[Mode]:
    """Both ways to link; only the one in use where there is no switch."""
    account = form.accounts[OUTLOOK]
    if not secure:
        return [Mode(css="", standing=account.standing)]
    ways = (("shared-app", account.links.shared), ("own-app", account.links.own))
    with db().read() as session:
        return [mode(session, form.connection, css, standing) for css, standing in ways]


def mode(session: Session, connection: Connection | None, css: str, standing: Standing) -> Mode:
    """One way to link, with the question to an administrator that is out about it."""
    app = standing.app
    if connection is None or app is None or app.tenant == Segment.CONSUMERS:
        return Mode(css=css, standing=standing)
    request = flows.consent_request(session, installation().keyring, connection, app)
    account = standing.mailbox.address if standing.mailbox else ""
    return Mode(
        css=css,
        standing=standing,
        can_ask=standing.state in ASKABLE and not standing.personal,
        request=request,
        message=flows.admin_message(request, app, account, g.site) if request else "",
    )
