"""Linked accounts without a database: tokens that a test deals out."""

from dataclasses import dataclass, field

from tests.rig.sandbox import SandboxThread
from webapp.mailers.base import AccessToken
from webapp.mailers.errors import DeliveryError
from webapp.sandbox.tokens import SEND

MAILBOX = "orders@contoso.example"


@dataclass(kw_only=True)
class Linked:
    """A token source: the first of `tokens`, and after each refusal the next one.

    `asked` holds what it was asked: grant, refused token, claims. `broken` is raised instead of
    giving out a newer token.
    """

    api: str = ""
    tokens: list[str]
    asked: list[tuple[int, str, str]] = field(default_factory=list)
    broken: DeliveryError | None = None

    def token(self, grant_id: int, *, refused: str = "", claims: str = "") -> AccessToken:
        self.asked.append((grant_id, refused, claims))
        position = self.tokens.index(refused) + 1 if refused else 0
        if refused and self.broken:
            raise self.broken
        return AccessToken(value=self.tokens[position], api=self.api)


def sandbox_token(
    sandbox: SandboxThread, account: str = MAILBOX, permissions: frozenset[str] = frozenset({SEND})
) -> str:
    """A token as the sandbox gives it for this account."""
    found = sandbox.world.directory.find(account)
    assert found
    return sandbox.world.tokens.new_access_token(
        oid=found.oid, tenant=found.tenant, client_id=sandbox.client_id, permissions=permissions
    )
