"""365 / Outlook on the page of a connection: both ways to link, and the question to an admin."""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from flask import g, request, url_for
from flask_babel import gettext as _
from sqlalchemy.orm import Session

from webapp import ids, web
from webapp.accounts.models import User
from webapp.accounts.rights import Right
from webapp.connections.accounts import Accounts, is_foreign
from webapp.connections.forms import OUTLOOK, Account, ConnectionForm, Links
from webapp.connections.models import Connection
from webapp.explain.match import explain
from webapp.explain.model import WHO_LABELS, Explanation, values_for
from webapp.explain.parts import fitted
from webapp.fields import N_, FieldErrors
from webapp.microsoft import apps
from webapp.microsoft import link as flows
from webapp.microsoft import service as microsoft
from webapp.microsoft.clouds import Segment, clouds, is_personal
from webapp.microsoft.forms import AppForm, app_form
from webapp.microsoft.link import ConsentRequest
from webapp.microsoft.models import Consent, Link, Mailbox, OAuthApp
from webapp.microsoft.standing import LinkState, Standing, is_secure, link_standing
from webapp.microsoft.tokens import Proof
from webapp.sites.models import Site
from webapp.web import actor, db, installation, now

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

    slug = OUTLOOK

    def links(self, session: Session, connection: Connection | None) -> Links:
        settings, at = installation().settings, now()
        offered = microsoft.shared_apps(session)
        shared = shared_app_shown(session, connection, offered)
        own = microsoft.own_app(session, connection)
        found = {
            True: link_standing(session, settings, connection, shared, one_click=True, now=at),
            False: link_standing(session, settings, connection, own, one_click=False, now=at),
        }
        used = mailbox = None
        if connection is not None and connection.mailer == OUTLOOK:
            used = found[bool(connection.settings.get(OUTLOOK, {}).get("one_click", True))]
            mailbox = microsoft.mailbox_of(session, connection)
        return Links(
            shared=found[True],
            own=found[False],
            apps=tuple(offered),
            used=used,
            mailbox=mailbox,
        )

    def app_form(self, links: Links) -> AppForm:
        return app_form(links.own.app, clouds(installation().settings), prefix=OWN_APP)

    def unknown_app(self, form: ConnectionForm) -> dict[str, str]:
        account = form.accounts[OUTLOOK]
        chosen = account.settings.shared_app.data
        if not account.one_click or not chosen:
            return {}
        known = {app.uid for app in account.links.apps}
        return {} if chosen in known else {"shared_app": N_("Choose one of the values offered.")}

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
                app = microsoft.save_app(
                    session,
                    installation().keyring,
                    microsoft.own_app(session, before),
                    form.app_values(),
                    clouds=clouds(installation().settings),
                    connection=saved or before or scratch(session, form.site),
                    actor=actor(),
                    now=now(),
                )
        except FieldErrors as error:
            return error.errors
        if stored is not None:
            apps.succeed(session, app, stored, proof)
        if not signs_in:
            return {}
        needed = {
            "client_id": (bool(app.client_id), NO_ID),
            "client_secret": (bool(app.secret), NO_SECRET),
        }
        return {name: sentence for name, (there, sentence) in needed.items() if not there}

    def use(self, session: Session, connection: Connection) -> int:
        return microsoft.use_app(session, connection, now())

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

    def may_sign_in(self, account: Account) -> bool:
        has_app = not account.one_click or microsoft.is_complete(account.links.shared.app)
        return has_app and is_secure(installation().settings)

    def sign_in_address(self, site: Site, connection: Connection, back: str) -> str:
        return url_for(
            "microsoft.link", slug=site.slug, connection_uid=connection.uid, next=back or None
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


def shared_app_shown(
    session: Session, connection: Connection | None, offered: list[OAuthApp]
) -> OAuthApp | None:
    """The shared registration that the page is about: the one just chosen, the stored one, the
    one that it is linked by, or the first."""
    by_uid = {app.uid: app for app in offered}
    chosen = by_uid.get(request.form.get(f"{OUTLOOK}-shared_app", ""))
    stored = microsoft.shared_app_of(session, connection)
    if chosen or stored or connection is None:
        return chosen or stored or next(iter(offered), None)
    linked = set(session.scalars(sa.select(Link.app_id).where(Link.connection_id == connection.id)))
    return next((app for app in offered if app.id in linked), next(iter(offered), None))


def scratch(session: Session, site: Site) -> Connection:
    """A connection that lasts as long as this unit of work, which is thrown away."""
    at = now()
    made = Connection(uid=ids.short_id(), site_id=site.id, created_at=at, updated_at=at)
    session.add(made)
    session.flush()
    return made


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


def needs_admin(account: Account) -> bool:
    """Whether the page has to name those who keep the shared registrations."""
    shared = account.links.shared
    return not web.may(Right.SYSTEM) and (shared.app is None or shared.in_trouble)


def admins() -> list[str]:
    """Who may change the installation, by name."""
    with db().read() as session:
        found = session.scalars(sa.select(User).where(User.is_admin).order_by(User.id))
        return [user.name or user.email for user in found]


def explained(standing: Standing) -> Explanation:
    """Why the link stands still, who can put it right, and how."""
    found = explain(mailer=OUTLOOK, code=standing.code, words=standing.words)
    keeper = apps.keeper_of(standing.app) if standing.app else None
    return fitted(found, keeper=keeper, personal=standing.personal)


def known_of(standing: Standing) -> Mapping[str, object]:
    """What an explanation may say about a link."""
    known = {
        "account": standing.mailbox.address if standing.mailbox else "",
        "app_name": standing.app.name if standing.app else "",
        "client_id": standing.app.client_id if standing.app else "",
    }
    return values_for(known, _)
