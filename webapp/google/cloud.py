"""Where Google answers: sign-in, tokens, Gmail. One place for the whole world.

Facts: https://developers.google.com/identity/openid-connect/openid-connect and
.../workspace/gmail/api/reference/rest (November 2026).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from webapp.config import Settings
from webapp.fields import N_
from webapp.microsoft.clouds import Cloud, clouds

PROVIDER = "google"
TENANT = "google"
"""Google knows no tenants; an account is told by its `sub` alone."""
SCOPES_AT = "https://www.googleapis.com/auth/"

SEND = "gmail.send"
ALIASES = "gmail.settings.basic"
"""Lets us read the addresses that the account may send as; without it only its own is known."""
NEEDED: Sequence[str] = (SEND, ALIASES)


CLIENTS_PAGE = "https://console.cloud.google.com/auth/clients"
"""Where registrations are kept; it opens in the project that was used last."""


@dataclass(frozen=True, kw_only=True)
class GoogleCloud(Cloud):
    """Google's endpoints, in the shape that links and tokens ask for; it knows no tenants."""

    provider: str = PROVIDER

    @property
    def api(self) -> str:
        return self.graph

    def authority(self, tenant: str) -> str:
        return self.login

    def metadata_url(self, tenant: str) -> str:
        return f"{self.login}/.well-known/openid-configuration"

    def issuer(self, tenant_id: str) -> str:
        return self.login

    def scope(self, permission: str) -> str:
        return f"{SCOPES_AT}{permission}"


def google(settings: Settings) -> GoogleCloud:
    """Google, or what stands in for it in this installation."""
    return GoogleCloud(
        slug=PROVIDER,
        label=N_("Google"),
        login=settings.google_authority or "https://accounts.google.com",
        graph=settings.google_gmail or "https://gmail.googleapis.com",
        portal="https://console.cloud.google.com",
        personal=True,
        uploads=False,
    )


def every_cloud(settings: Settings) -> dict[str, Cloud]:
    """Every cloud of every provider, by its slug."""
    return {**clouds(settings), PROVIDER: google(settings)}


def clouds_of(settings: Settings, provider: str) -> dict[str, Cloud]:
    """The clouds of one provider, by their slugs."""
    known = every_cloud(settings)
    return {slug: cloud for slug, cloud in known.items() if cloud.provider == provider}
