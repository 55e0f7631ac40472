"""What the editor of a connection asks of a mailer whose account is linked; one for each provider.

A mailer that is linked brings a subclass, and a template `connections/mailers/<slug>.html`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import sqlalchemy as sa
from flask import request, url_for
from flask_babel import gettext as _
from sqlalchemy.orm import Session

from webapp import ids, web
from webapp.accounts.models import User
from webapp.accounts.rights import Right
from webapp.connections.forms import Account, ConnectionForm, Links
from webapp.connections.models import Connection
from webapp.explain.match import explain
from webapp.explain.model import Explanation, values_for
from webapp.explain.parts import Keeper, fitted
from webapp.fields import N_
from webapp.google.cloud import clouds_of
from webapp.microsoft import service as microsoft
from webapp.microsoft.forms import AnyAppForm
from webapp.microsoft.models import Link, Mailbox, OAuthApp
from webapp.microsoft.standing import Standing, is_secure, link_standing
from webapp.microsoft.tokens import Proof
from webapp.providers import Provider
from webapp.sites.models import Site
from webapp.web import actor, db, installation, now


class Accounts(ABC):
    """Links of one mailer, as the page of a connection shows and saves them."""

    provider: ClassVar[Provider]

    @property
    def slug(self) -> str:
        """Of the mailer."""
        return self.provider.mailer

    def links(self, session: Session, connection: Connection | None) -> Links:
        """How the connection stands with a shared registration, and with its own."""
        offered = microsoft.shared_apps(session, self.provider.slug)
        shared = self._shared_app_shown(session, connection, offered)
        own = microsoft.own_app(session, connection, self.provider.slug)
        found = {
            one_click: link_standing(
                session,
                installation().settings,
                connection,
                app,
                one_click=one_click,
                now=now(),
                provider=self.provider.slug,
            )
            for one_click, app in ((True, shared), (False, own))
        }
        used = mailbox = None
        if connection is not None and connection.mailer == self.slug:
            used = found[microsoft.is_one_click(connection)]
            mailbox = microsoft.mailbox_of(session, connection)
        return Links(
            shared=found[True],
            own=found[False],
            apps=tuple(offered),
            used=used,
            mailbox=mailbox,
        )

    def _shared_app_shown(
        self, session: Session, connection: Connection | None, offered: list[OAuthApp]
    ) -> OAuthApp | None:
        """The shared registration that the page is about: the one just chosen, the stored one, the
        one that it is linked by, or the first."""
        by_uid = {app.uid: app for app in offered}
        chosen = by_uid.get(request.form.get(f"{self.slug}-shared_app", ""))
        stored = microsoft.shared_app_of(session, connection, self.provider.slug)
        if chosen or stored or connection is None:
            return chosen or stored or next(iter(offered), None)
        mine = sa.select(Link.app_id).where(Link.connection_id == connection.id)
        linked = set(session.scalars(mine))
        return next((app for app in offered if app.id in linked), next(iter(offered), None))

    def unknown_app(self, form: ConnectionForm) -> dict[str, str]:
        """What is wrong with the chosen shared registration, by field."""
        account = form.accounts[self.slug]
        chosen = account.settings.shared_app.data
        if not account.one_click or not chosen:
            return {}
        known = {app.uid for app in account.links.apps}
        return {} if chosen in known else {"shared_app": N_("Choose one of the values offered.")}

    def use(self, session: Session, connection: Connection) -> int:
        """Use the link that belongs to the registration in use, if there is one; returns how many
        waiting mails that touched."""
        return microsoft.use_app(session, connection, now())

    def may_sign_in(self, account: Account) -> bool:
        """Whether the provider can be asked, and sends people back; the page says why not."""
        has_app = not account.one_click or microsoft.is_complete(account.links.shared.app)
        return has_app and is_secure(installation().settings)

    def sign_in_address(self, site: Site, connection: Connection, back: str) -> str:
        """The page that leads on to the provider, and in the end to `back`."""
        return url_for(
            "microsoft.link", slug=site.slug, connection_uid=connection.uid, next=back or None
        )

    def store_app(
        self,
        session: Session,
        before: Connection | None,
        saved: Connection | None,
        form: ConnectionForm,
    ) -> OAuthApp:
        """Store the registration that the connection brings; raises FieldErrors."""
        return microsoft.save_app(
            session,
            installation().keyring,
            microsoft.own_app(session, before, self.provider.slug),
            form.app_values(),
            clouds=clouds_of(installation().settings, self.provider.slug),
            connection=saved or before or scratch(session, form.site),
            actor=actor(),
            now=now(),
        )

    @abstractmethod
    def app_form(self, links: Links) -> AnyAppForm:
        """The form of the registration that the connection may bring along."""

    @abstractmethod
    def proof(self, form: ConnectionForm) -> Proof | None:
        """Whether the provider takes a second secret; asks the network, before a unit of work."""

    @abstractmethod
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
        """Store the registration that the connection brings; returns what is wrong with it.

        It is checked even where the connection was refused (`saved` is None), so that all is said
        at once: the unit of work is thrown away then.
        """

    @abstractmethod
    def told(self, session: Session, connection: Connection, proof: Proof | None) -> str:
        """What became of a second secret, for the notice."""

    @abstractmethod
    def never_sends(self, connection: Connection, mailbox: Mailbox) -> str:
        """Why its From Email can never work with this account; marked, or empty."""

    @abstractmethod
    def needs_right(self, connection: Connection, mailbox: Mailbox) -> str:
        """What the provider has to be asked for before its From Email works; or empty."""

    @abstractmethod
    def context(self, form: ConnectionForm) -> Mapping[str, object]:
        """What the mailer's template needs besides `account`."""


def is_foreign(address: str, mailbox: Mailbox) -> bool:
    """Whether it is an address that the account is not known to have."""
    known = {one.casefold() for one in mailbox.addresses}
    return bool(address) and address.casefold() not in known


def lacking(app: OAuthApp, no_id: str, no_secret: str) -> dict[str, str]:
    """What a registration has not got that a sign-in asks for, in these words, by field."""
    needed = {
        "client_id": (bool(app.client_id), no_id),
        "client_secret": (bool(app.secret), no_secret),
    }
    return {name: sentence for name, (there, sentence) in needed.items() if not there}


def scratch(session: Session, site: Site) -> Connection:
    """A connection that lasts as long as this unit of work, which is thrown away."""
    at = now()
    made = Connection(uid=ids.short_id(), site_id=site.id, created_at=at, updated_at=at)
    session.add(made)
    session.flush()
    return made


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
    mailer = standing.provider.mailer
    found = explain(mailer=mailer, code=standing.code, words=standing.words)
    keeper = keeper_of(standing.app) if standing.app else None
    return fitted(found, keeper=keeper, personal=standing.personal)


def keeper_of(app: OAuthApp) -> Keeper:
    """Who keeps a registration, to whoever asks."""
    if app.connection_id is not None:
        return Keeper.CONNECTION
    return Keeper.READER if web.may(Right.SYSTEM) else Keeper.OPERATOR


def known_of(standing: Standing) -> Mapping[str, object]:
    """What an explanation may say about a link."""
    known = {
        "account": standing.mailbox.address if standing.mailbox else "",
        "app_name": standing.app.name if standing.app else "",
        "client_id": standing.app.client_id if standing.app else "",
    }
    return values_for(known, _)
