"""How people sign in at Google to link a mailbox, and how a link is withdrawn there.

Facts: https://developers.google.com/identity/protocols/oauth2/web-server (November 2026).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import requests
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

from webapp.google.cloud import ALIASES, SEND, TENANT
from webapp.google.gmail import Gmail
from webapp.google.renewal import permissions_in, read_stored
from webapp.mailers.errors import DeliveryError
from webapp.microsoft.clouds import Cloud
from webapp.microsoft.refusals import failed, refused
from webapp.microsoft.service import Account
from webapp.microsoft.sign_in import Claims, Opened, SignIn
from webapp.microsoft.token_endpoint import body_of
from webapp.outward import Outward
from webapp.providers import GOOGLE, PROVIDERS
from webapp.trust import bundle
from webapp.web import installation


class GoogleSignIn(SignIn):
    """Google's accounts, of organizations and of persons alike."""

    provider = PROVIDERS[GOOGLE]
    callback = "/oauth/google/callback"
    identity = "openid email profile"
    permissions = (
        (SEND, _l("to send mail as this account")),
        (ALIASES, _l("to read by which addresses the account may send")),
    )

    def granted(self, cloud: Cloud, scope: str) -> list[str]:
        return list(permissions_in(scope))

    def asks(self, hint: str) -> dict[str, str]:
        """Only with a consent does Google give a refresh token each time."""
        who = {"login_hint": hint} if hint else {}
        return {"access_type": "offline", "prompt": "consent", **who}

    def claims(self, opened: Opened) -> Claims:
        issuer = opened.cloud.issuer(TENANT)
        return {
            "iss": {"essential": True, "values": [issuer, issuer.removeprefix("https://")]},
            "aud": {"essential": True, "value": opened.app.client_id},
            "sub": {"essential": True},
            "email": {"essential": True},
        }

    def account(
        self, opened: Opened, token: Mapping[str, Any], permissions: Sequence[str]
    ) -> Account:
        """By the ID token, with the addresses that Gmail lets the account send as."""
        claims = token["userinfo"]
        address = str(claims["email"]).strip().lower()
        if "@" not in address:
            raise refused(
                _("This account has no mailbox."),
                _("Google told no mail address of it. Sign in with an account that has Gmail."),
            )
        return Account(
            tenant_id=TENANT,
            object_id=str(claims["sub"]),
            address=address,
            sign_in_name=address,
            name=str(claims.get("name") or ""),
            addresses=self._addresses(opened, token, permissions, address),
            personal=not claims.get("hd"),
        )

    def _addresses(
        self, opened: Opened, token: Mapping[str, Any], permissions: Sequence[str], address: str
    ) -> tuple[str, ...]:
        """The account's own, then those it may send as: only what somebody has confirmed."""
        if ALIASES not in permissions:
            return (address,)
        gmail = Gmail(opened.cloud.api, ca_file=str(bundle(installation().settings)))
        try:
            aliases = gmail.aliases(token["access_token"])
        except DeliveryError as error:
            raise failed(opened.known, error, self.provider) from error
        finally:
            gmail.close()
        verified = (alias.address for alias in aliases if alias.is_verified and alias.address)
        return tuple(dict.fromkeys([address, *verified]))

    def what_is_missing(self, *, one_click: bool) -> str:
        if one_click:
            text = _l(
                "One-Click Setup needs a registration under Settings > Google registrations, with "
                "its Client ID and Client Secret. Whoever runs this Postroom makes it once."
            )
        else:
            text = _l("Fill in Client ID and Client Secret, and save. Then link the mailbox.")
        return str(text)

    def lasting(self) -> str:
        return str(
            _(
                "Remove this app at myaccount.google.com under third-party connections, then link "
                "again and accept."
            )
        )


def revoke(cloud: Cloud, cache: str) -> bool:
    """Withdraw at Google what was granted; whether it is withdrawn. Asks the network."""
    stored = read_stored(cache)
    if stored is None:
        return False
    with Outward(ca_file=str(bundle(installation().settings))) as outward:
        try:
            about = outward.get(cloud.metadata_url(TENANT), allow_redirects=False)
            address = body_of(about).get("revocation_endpoint")
            if not isinstance(address, str):
                return False
            answer = outward.post(
                address, data={"token": stored.refresh_token}, allow_redirects=False
            )
        except requests.RequestException:
            return False
        # A token that Google does not know any more is withdrawn as well.
        return answer.status_code == 200 or body_of(answer).get("error") == "invalid_token"
