"""What the editor of a connection asks of a mailer whose account is linked; one for each provider.

A mailer that is linked brings a subclass, and a template `connections/mailers/<slug>.html`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from sqlalchemy.orm import Session

from webapp.connections.forms import Account, ConnectionForm, Links
from webapp.connections.models import Connection
from webapp.microsoft.forms import AppForm
from webapp.microsoft.models import Mailbox
from webapp.microsoft.tokens import Proof
from webapp.sites.models import Site


class Accounts(ABC):
    """Links of one mailer, as the page of a connection shows and saves them."""

    slug: ClassVar[str]

    @abstractmethod
    def links(self, session: Session, connection: Connection | None) -> Links:
        """How the connection stands with a shared registration, and with its own."""

    @abstractmethod
    def app_form(self, links: Links) -> AppForm:
        """The form of the registration that the connection may bring along."""

    @abstractmethod
    def unknown_app(self, form: ConnectionForm) -> dict[str, str]:
        """What is wrong with the chosen shared registration, by field."""

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
    def use(self, session: Session, connection: Connection) -> int:
        """Use the link that belongs to the registration in use, if there is one; returns how many
        waiting mails that touched."""

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
    def may_sign_in(self, account: Account) -> bool:
        """Whether the provider can be asked, and sends people back; the page says why not."""

    @abstractmethod
    def sign_in_address(self, site: Site, connection: Connection, back: str) -> str:
        """The page that leads on to the provider, and in the end to `back`."""

    @abstractmethod
    def context(self, form: ConnectionForm) -> Mapping[str, object]:
        """What the mailer's template needs besides `account`."""


def is_foreign(address: str, mailbox: Mailbox) -> bool:
    """Whether it is an address that the account is not known to have."""
    known = {one.casefold() for one in mailbox.addresses}
    return bool(address) and address.casefold() not in known
