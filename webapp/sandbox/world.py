"""Everything that one running sandbox knows, and the addresses under which it is found."""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from webapp.sandbox.directory import Account, Application, Directory
from webapp.sandbox.faults import Faults
from webapp.sandbox.folder import Folder
from webapp.sandbox.mails import Inbox
from webapp.sandbox.tokens import Clock, Tokens

if TYPE_CHECKING:
    from webapp.sandbox.google import Google


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where things are, without a slash at the end."""

    inbox: str
    authority: str

    @property
    def graph(self) -> str:
        """The root of Graph, and the prefix of its scopes."""
        return f"{self.authority}/graph"

    def issuer(self, tenant: str) -> str:
        """Who issues the tokens of a tenant."""
        return f"{self.authority}/{tenant}/v2.0"


@dataclass(kw_only=True)
class Calls:
    """How often each thing was asked for."""

    token: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """By grant type, client id and status."""
    graph: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By path and status; "dropped" where nothing was answered."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "token": [
                {"grant_type": grant, "client_id": client, "status": status, "times": times}
                for (grant, client, status), times in sorted(self.token.items())
            ],
            "graph": [
                {"path": path, "status": status, "times": times}
                for (path, status), times in sorted(self.graph.items())
            ],
        }


class World:
    """State. All of it is touched by one event loop only."""

    google: "Google"
    """Set by whoever builds the sandbox."""

    def __init__(
        self, folder: Folder, addresses: Addresses, *, clock: Clock = time.time, lasts: int = 3600
    ) -> None:
        memory = folder.read_memory()
        self.folder = folder
        self.addresses = addresses
        self.clock = clock
        self.directory = Directory(
            tuple(_account(found) for found in memory.get("accounts", ())),
            tuple(Application(**found) for found in memory.get("applications", ())),
        )
        self.tokens = Tokens(
            key=folder.signing_key(),
            audience=addresses.graph,
            issuer=addresses.issuer,
            clock=clock,
            lasts=lasts,
        )
        self.tokens.remember(memory)
        self.reset()

    def reset(self) -> None:
        """As after a start: no mails, faults, consents, counters. Links stay good."""
        self.faults = Faults()
        self.inbox = Inbox()
        self.calls = Calls()
        self.consents: dict[tuple[str, str], frozenset[str]] = {}
        """Scopes by application and account."""
        self.tenant_consents: set[tuple[str, str]] = set()
        """Application and tenant, by an administrator."""

    def save(self) -> None:
        """Write down what must survive a restart."""
        accounts, applications = self.directory.added()
        self.folder.write_memory(
            {
                **self.tokens.memory(),
                "accounts": [asdict(account) for account in accounts],
                "applications": [asdict(application) for application in applications],
            }
        )

    def now(self) -> datetime:
        """The time by the sandbox's clock."""
        return datetime.fromtimestamp(self.clock(), UTC)

    def revoke(self, account: Account) -> None:
        """End the sessions of an account."""
        self.tokens.revoke(account.oid)
        self.save()


def _account(found: dict[str, Any]) -> Account:
    return Account(**{**found, "proxies": tuple(found["proxies"])})
