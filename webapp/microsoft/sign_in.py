"""How people sign in at a provider to link a mailbox: what differs, and Microsoft's way.

The protocol itself, which is the same everywhere, is in `link`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

from webapp.config import Settings
from webapp.connections.models import Connection
from webapp.mailers.errors import DeliveryError
from webapp.microsoft.clouds import Cloud, is_guid, is_personal
from webapp.microsoft.graph import Graph, Me
from webapp.microsoft.models import Mailbox, OAuthApp
from webapp.microsoft.refusals import failed, refused
from webapp.microsoft.service import Account
from webapp.microsoft.standing import SIGN_IN
from webapp.providers import MICROSOFT, PROVIDERS, Provider
from webapp.sites.models import Site
from webapp.trust import bundle
from webapp.web import installation

Claims = dict[str, dict[str, object]]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A connection with the registration that counts for it, as they are stored now."""

    site: Site | None
    """None: it is the installation's own connection."""
    connection: Connection
    app: OAuthApp
    cloud: Cloud
    sign_in: "SignIn"
    secret: str = field(repr=False)
    mailbox: Mailbox | None
    """The one it is linked with by this registration, if any."""

    @property
    def provider(self) -> Provider:
        """Whom people sign in at."""
        return self.sign_in.provider

    @property
    def hint(self) -> str:
        """Who signs in there, as far as it is known."""
        return (self.mailbox.sign_in_name or self.mailbox.address) if self.mailbox else ""

    @property
    def host(self) -> str:
        """Who is asked when people sign in."""
        return urlsplit(self.cloud.login).netloc

    @property
    def known(self) -> dict[str, object]:
        """Values for explanations."""
        return {
            "account": self.hint,
            "from_email": self.connection.from_email,
            "app_name": self.app.name,
            "client_id": self.app.client_id,
            "host": self.host,
        }

    @property
    def identity(self) -> list[str]:
        """What a code belongs to: another registration cannot redeem it."""
        return [self.app.cloud, self.app.tenant, self.app.client_id]


class SignIn(ABC):
    """One provider's way."""

    provider: ClassVar[Provider]
    callback: ClassVar[str]
    """The one path at which people are sent back, whatever they link."""
    identity: ClassVar[str]
    """The scopes of the sign-in itself."""
    permissions: ClassVar[Sequence[tuple[str, object]]]
    """What is asked for, and why."""

    def redirect_uri(self, settings: Settings) -> str:
        """Where people are sent back; never taken from a request."""
        return settings.url + self.callback

    def scopes(self, cloud: Cloud) -> list[str]:
        """The permissions we need, with the cloud in front."""
        return [cloud.scope(permission) for permission in self.provider.needed]

    @abstractmethod
    def granted(self, cloud: Cloud, scope: str) -> list[str]:
        """What a token answer grants, without the cloud in front and without the sign-in's."""

    @abstractmethod
    def asks(self, hint: str) -> dict[str, str]:
        """What the address at the provider says besides, for whoever is expected there."""

    @abstractmethod
    def claims(self, opened: Opened) -> Claims:
        """What an ID token must say. A new dict each time: Authlib takes `validate` out of it."""

    @abstractmethod
    def account(
        self, opened: Opened, token: Mapping[str, Any], permissions: Sequence[str]
    ) -> Account:
        """Who signed in; raises NotLinked."""

    @abstractmethod
    def what_is_missing(self, *, one_click: bool) -> str:
        """What to do where the registration is not complete."""

    @abstractmethod
    def lasting(self) -> str:
        """What to do where the provider gave no refresh token."""


class MicrosoftSignIn(SignIn):
    """Microsoft's identity platform, in every cloud."""

    provider = PROVIDERS[MICROSOFT]
    callback = "/oauth/microsoft/callback"
    identity = "openid profile email offline_access"
    permissions = (
        ("User.Read", _l("to read the name and the address of the account")),
        ("Mail.Send", _l("to send mail as this account")),
        (
            "offline_access",
            _l("to stay connected, so that nobody has to sign in again for each mail"),
        ),
    )

    def granted(self, cloud: Cloud, scope: str) -> list[str]:
        known = {permission.casefold(): permission for permission in self.provider.needed}
        prefix = f"{cloud.graph}/".casefold()
        found = []
        for text in scope.split():
            bare = text[len(prefix) :] if text.casefold().startswith(prefix) else text
            found.append(known.get(bare.casefold(), bare))
        return [permission for permission in dict.fromkeys(found) if permission not in SIGN_IN]

    def asks(self, hint: str) -> dict[str, str]:
        who = {"login_hint": hint} if hint else {"prompt": "select_account"}
        return {"response_mode": "query", **who}

    def claims(self, opened: Opened) -> Claims:
        tenant = opened.app.tenant

        def is_issuer(claims: Mapping[str, object], issuer: object) -> bool:
            return issuer == opened.cloud.issuer(str(claims.get("tid")))

        def is_tenant(claims: Mapping[str, object], tenant_id: object) -> bool:
            return not is_guid(tenant) or tenant == str(tenant_id).lower()

        return {
            "iss": {"essential": True, "validate": is_issuer},
            "aud": {"essential": True, "value": opened.app.client_id},
            "tid": {"essential": True, "validate": is_tenant},
            "oid": {"essential": True},
        }

    def account(
        self, opened: Opened, token: Mapping[str, Any], permissions: Sequence[str]
    ) -> Account:
        """By the ID token, with the addresses that Graph tells."""
        claims = token["userinfo"]
        graph = Graph(opened.cloud.api, ca_file=str(bundle(installation().settings)))
        try:
            me = graph.me(token["access_token"])
        except DeliveryError as error:
            raise failed(opened.known, error) from error
        finally:
            graph.close()
        tenant_id, object_id = str(claims["tid"]).lower(), str(claims["oid"]).lower()
        sign_in_name = str(claims.get("preferred_username") or me.sign_in_name)
        address = me.mail or (me.sign_in_name if is_personal(tenant_id) else "")
        if not address:
            raise refused(
                _("This account has no mailbox."),
                _(
                    "Microsoft knows no mail address of %(account)s, so nothing can be sent from "
                    "it. Sign in with an account that has a mailbox, or have an admin assign a "
                    "licence with Exchange Online to it.",
                    account=sign_in_name,
                ),
            )
        return Account(
            tenant_id=tenant_id,
            object_id=object_id,
            address=address,
            sign_in_name=sign_in_name,
            name=me.name or str(claims.get("name") or ""),
            addresses=_addresses(me, address),
            personal=is_personal(tenant_id),
        )

    def what_is_missing(self, *, one_click: bool) -> str:
        if one_click:
            text = _l(
                "One-Click Setup needs a registration under Settings > Microsoft apps, with its "
                "Application ID and Application Password. Whoever runs this Postroom makes it once."
            )
        else:
            text = _l(
                "Fill in Application ID and Application Password, and save. Then link the mailbox."
            )
        return str(text)

    def lasting(self) -> str:
        return str(
            _(
                "Not granted: %(permissions)s. Link again and accept all permissions.",
                permissions="offline_access",
            )
        )


def _addresses(me: Me, address: str) -> tuple[str, ...]:
    others = (other for other in me.addresses if other.casefold() != address.casefold())
    return (address, *others)
