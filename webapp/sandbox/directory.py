"""Who exists at the stand-in for Microsoft: tenants, accounts, registered applications."""

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

PERSONAL_TENANT = "9188040d-6c67-4c5b-b112-36a304b66dad"
"""The tenant of all personal accounts; the same at Microsoft."""
PERSONAL_DOMAIN = "outlook.example"
CONTOSO = "3f2a7c1e-5b84-4d0e-9c63-1a2b3c4d5e6f"
FABRIKAM = "8d1b0f52-7a36-4c9e-b2f1-6e5d4c3b2a19"

CALLBACK = "/oauth/microsoft/callback"


@dataclass(frozen=True, kw_only=True)
class Account:
    """One account; `mail` is None where there is no mailbox."""

    oid: str
    tenant: str
    name: str
    upn: str
    mail: str | None
    proxies: tuple[str, ...] = ()

    @property
    def is_personal(self) -> bool:
        """Outlook.com and its like."""
        return self.tenant == PERSONAL_TENANT

    @cached_property
    def addresses(self) -> frozenset[str]:
        """What it may write into From, in lower case."""
        known = [self.upn, self.mail or "", *(proxy.partition(":")[2] for proxy in self.proxies)]
        return frozenset(address.lower() for address in known if address)

    @property
    def graph_id(self) -> str:
        """Its id at Graph: for personal accounts not the `oid` of their tokens."""
        return self.oid.replace("-", "")[-16:] if self.is_personal else self.oid


@dataclass(frozen=True, kw_only=True)
class Application:
    """One registration. `tenant` empty: accounts of any tenant may use it."""

    client_id: str
    secret: str
    name: str
    tenant: str = ""
    personal: bool = False
    next_secret: str = ""
    """A second secret beside the first, as a registration may have; it never expires here."""

    def takes(self, redirect_uri: str) -> bool:
        """Whether this is one of its redirect addresses."""
        parts = urlsplit(redirect_uri)
        if parts.path != CALLBACK or parts.query or parts.fragment:
            return False
        return parts.scheme == "https" or (parts.scheme, parts.hostname) == ("http", "localhost")


SHARED_APPLICATION = Application(
    client_id="5e1c9f0a-2d7b-4a86-9f13-0c4e7b2d9a41",
    secret="Not.A.Real~Secret_Sandbox-Shared~0000001",  # noqa: S106 (opens nothing)
    name="Postroom (shared)",
    personal=True,
)
CONTOSO_APPLICATION = Application(
    client_id="a94d6b37-1f08-4e5c-8b62-d5c3f7e90a1b",
    secret="Not.A.Real~Secret_Sandbox-Single~0000002",  # noqa: S106 (opens nothing)
    name="Contoso Mail",
    tenant=CONTOSO,
)
APPLICATIONS = (SHARED_APPLICATION, CONTOSO_APPLICATION)

ACCOUNTS = (
    Account(
        oid="b1f0a9d2-3c4e-4f56-8a7b-0c1d2e3f4a51",
        tenant=CONTOSO,
        name="Contoso Orders",
        upn="orders@contoso.example",
        mail="orders@contoso.example",
        proxies=(
            "SMTP:orders@contoso.example",
            "smtp:sales@contoso.example",
            "smtp:orders@mail.contoso.example",
        ),
    ),
    Account(
        oid="b1f0a9d2-3c4e-4f56-8a7b-0c1d2e3f4a52",
        tenant=CONTOSO,
        name="Ann Lee",
        upn="ann.lee@mail.contoso.example",
        mail="ann@contoso.example",
        proxies=("SMTP:ann@contoso.example", "smtp:ann.lee@mail.contoso.example"),
    ),
    Account(
        oid="b1f0a9d2-3c4e-4f56-8a7b-0c1d2e3f4a53",
        tenant=CONTOSO,
        name="No Mailbox",
        upn="nomailbox@contoso.example",
        mail=None,
    ),
    Account(
        oid="c7e2d4f8-9a1b-4c3d-b5e6-7f8091a2b3c4",
        tenant=FABRIKAM,
        name="Fabrikam",
        upn="noreply@fabrikam.example",
        mail="noreply@fabrikam.example",
        proxies=("SMTP:noreply@fabrikam.example",),
    ),
    Account(
        oid="00000000-0000-0000-5a4d-9c0b7e31f2d6",
        tenant=PERSONAL_TENANT,
        name="Sam",
        upn=f"sam@{PERSONAL_DOMAIN}",
        mail=f"sam@{PERSONAL_DOMAIN}",
    ),
)

_DOMAINS = {
    "contoso.example": CONTOSO,
    "mail.contoso.example": CONTOSO,
    "fabrikam.example": FABRIKAM,
}
_ADDRESS = re.compile(r"[^@\s]+@([a-z0-9-]+(?:\.[a-z0-9-]+)+)", re.IGNORECASE)


class Directory:
    """Accounts and applications: those built in, and those that were added."""

    def __init__(
        self, accounts: tuple[Account, ...] = (), applications: tuple[Application, ...] = ()
    ) -> None:
        self.accounts = {account.oid: account for account in (*ACCOUNTS, *accounts)}
        self.applications = {app.client_id: app for app in (*APPLICATIONS, *applications)}
        self._domains = dict(_DOMAINS)
        for account in accounts:
            self._learn_domain(account)

    def added(self) -> tuple[list[Account], list[Application]]:
        """What was not built in."""
        return (
            [account for account in self.accounts.values() if account not in ACCOUNTS],
            [app for app in self.applications.values() if app not in APPLICATIONS],
        )

    def find(self, text: str) -> Account | None:
        """An account by object id or by any of its addresses."""
        if text in self.accounts:
            return self.accounts[text]
        wanted = text.strip().lower()
        return next(self._with(wanted), None) if wanted else None

    def _with(self, wanted: str) -> Iterator[Account]:
        for account in self.accounts.values():
            if wanted in account.addresses or wanted == account.graph_id:
                yield account

    def add_account(self, address: str, name: str = "") -> Account:
        """Let somebody exist who signs in; raises ValueError when it is no address."""
        if known := self.find(address):
            return known
        match = _ADDRESS.fullmatch(address.strip())
        if match is None:
            raise ValueError(f"{address!r} is not an address")
        address, domain = address.strip(), match[1].lower()
        personal = domain == PERSONAL_DOMAIN
        tenant = self._domains.get(domain) or str(uuid.uuid5(uuid.NAMESPACE_DNS, domain))
        number = uuid.uuid5(uuid.NAMESPACE_URL, f"mailto:{address.lower()}")
        account = Account(
            oid=f"00000000-0000-0000-{str(number)[-17:]}" if personal else str(number),
            tenant=PERSONAL_TENANT if personal else tenant,
            name=name or address.partition("@")[0],
            upn=address,
            mail=address,
            proxies=() if personal else (f"SMTP:{address}",),
        )
        self.accounts[account.oid] = account
        self._learn_domain(account)
        return account

    def _learn_domain(self, account: Account) -> None:
        if not account.is_personal:
            self._domains.setdefault(account.upn.partition("@")[2].lower(), account.tenant)

    def add_application(self, application: Application) -> None:
        """Register one, or replace it."""
        self.applications[application.client_id] = application

    def tenant_of(self, segment: str) -> str | None:
        """The tenant id of the first part of a path: an id or a domain; None for no such tenant."""
        wanted = segment.lower()
        if wanted == "consumers":
            return PERSONAL_TENANT
        known = {account.tenant for account in self.accounts.values()}
        return wanted if wanted in known else self._domains.get(wanted)

    def exists(self, segment: str) -> bool:
        """Whether the first part of a path names a tenant or one of the joint ones."""
        return segment in {"common", "organizations"} or self.tenant_of(segment) is not None

    def tenants(self) -> dict[str, str]:
        """Work tenants by id, each with one of its domains."""
        found: dict[str, str] = {}
        for domain, tenant in self._domains.items():
            found.setdefault(tenant, domain)
        return found
