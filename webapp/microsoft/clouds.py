"""Microsoft's clouds: where people sign in, where Graph is, who can link an account there.

A registration and its tokens are valid in one cloud only. The table is Microsoft's, as of August
2026; the operator may add one cloud of their own by two settings.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, urlsplit

from webapp.config import Settings
from webapp.fields import N_

GRAPH_VERSION = "v1.0"
PERSONAL_TENANT = "9188040d-6c67-4c5b-b112-36a304b66dad"
"""The tenant of all personal accounts."""

_GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


class Segment(StrEnum):
    """The path segments that stand for no single tenant: who may link an account."""

    COMMON = "common"
    ORGANIZATIONS = "organizations"
    CONSUMERS = "consumers"


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """One cloud. `login` and `graph` are roots without a slash at the end."""

    provider: str = "microsoft"
    slug: str
    label: str
    login: str
    graph: str
    portal: str = ""
    """Where registrations are made; empty where Microsoft names no address."""
    entra: str = ""
    """The admin center that holds them; empty where Microsoft names no address."""
    personal: bool = False
    uploads: bool = True

    @property
    def api(self) -> str:
        """The root of the calls we make."""
        return f"{self.graph}/{GRAPH_VERSION}"

    def authority(self, tenant: str) -> str:
        """The root of a tenant's sign-in endpoints."""
        return f"{self.login}/{quote(tenant, safe='')}"

    def metadata_url(self, tenant: str) -> str:
        """Where the endpoints of an authority are described (OpenID Connect Discovery)."""
        return f"{self.authority(tenant)}/v2.0/.well-known/openid-configuration"

    def issuer(self, tenant_id: str) -> str:
        """What the ID tokens of a tenant name as their issuer."""
        return f"{self.login}/{tenant_id}/v2.0"

    def scope(self, permission: str) -> str:
        """A permission with its cloud in front; bare ones mean global Graph."""
        return f"{self.graph}/{permission}"


GLOBAL = "global"
CUSTOM = "custom"

CLOUDS = (
    Cloud(
        slug=GLOBAL,
        label=N_("Global (also GCC)"),
        login="https://login.microsoftonline.com",
        graph="https://graph.microsoft.com",
        portal="https://portal.azure.com",
        entra="https://entra.microsoft.com",
        personal=True,
    ),
    Cloud(
        slug="usgov",
        label=N_("US Government, GCC High"),
        login="https://login.microsoftonline.us",
        graph="https://graph.microsoft.us",
        portal="https://portal.azure.us",
        entra="https://entra.microsoft.us",
        uploads=False,
    ),
    Cloud(
        slug="usdod",
        label=N_("US Government, DoD"),
        login="https://login.microsoftonline.us",
        graph="https://dod-graph.microsoft.us",
        portal="https://portal.azure.us",
        entra="https://entra.microsoft.us",
        uploads=False,
    ),
    Cloud(
        slug="china",
        label=N_("China (21Vianet)"),
        login="https://login.partner.microsoftonline.cn",
        graph="https://microsoftgraph.chinacloudapi.cn",
        portal="https://portal.azure.cn",
        entra="https://entra.microsoftonline.cn",
    ),
    Cloud(
        slug="bleu",
        label=N_("Bleu (France)"),
        login="https://login.sovcloud-identity.fr",
        graph="https://graph.svc.sovcloud.fr",
    ),
    Cloud(
        slug="delos",
        label=N_("Delos (Germany)"),
        login="https://login.sovcloud-identity.de",
        graph="https://graph.svc.sovcloud.de",
    ),
)
"""Those that can send mail. GovSG has none, and the old German cloud was closed in 2021."""


def clouds(settings: Settings) -> dict[str, Cloud]:
    """Every cloud of this installation by its slug, the operator's own one first."""
    found = {}
    if settings.microsoft_authority and settings.microsoft_graph:
        found[CUSTOM] = Cloud(
            slug=CUSTOM,
            label=N_("Custom (set by the operator)"),
            login=settings.microsoft_authority,
            graph=settings.microsoft_graph,
            personal=True,
        )
    return found | {cloud.slug: cloud for cloud in CLOUDS}


def is_guid(text: str) -> bool:
    """Whether it has the form of an id: that of an application, a tenant, or a secret's id."""
    return _GUID.fullmatch(text.strip()) is not None


def is_personal(tenant_id: str) -> bool:
    """Whether an account is a personal one (Outlook.com, Hotmail, Live)."""
    return tenant_id.lower() == PERSONAL_TENANT


def cloud_of_host(host: str, among: Iterable[Cloud] = CLOUDS) -> Cloud | None:
    """The cloud that a host of Microsoft's belongs to, by its sign-in or its Graph address."""
    host = host.lower().rstrip(".")
    return next(
        (
            cloud
            for cloud in among
            if host in {urlsplit(cloud.login).hostname, urlsplit(cloud.graph).hostname}
        ),
        None,
    )
