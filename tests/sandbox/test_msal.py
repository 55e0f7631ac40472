"""Tokens by MSAL, as the delivery worker gets them."""

from collections.abc import Iterator
from typing import Any

import msal
import pytest
import requests

from tests.rig.sandbox import SandboxThread
from tests.sandbox.conftest import Client
from webapp.sandbox.directory import CONTOSO


class Msal:
    """One mailbox's application object, with its cache."""

    def __init__(self, sandbox: SandboxThread, http: requests.Session) -> None:
        self.scopes = [f"{sandbox.graph}/Mail.Send"]
        self._sandbox = sandbox
        self._http = http
        self.open()

    def open(self, segment: str = "common") -> msal.ConfidentialClientApplication:
        """A new object without any memory of failures; the token cache stays."""
        if not hasattr(self, "cache"):
            self.cache = msal.SerializableTokenCache()
        self.application = msal.ConfidentialClientApplication(
            self._sandbox.client_id,
            client_credential=self._sandbox.client_secret,
            authority=f"{self._sandbox.authority}/{segment}",
            instance_discovery=False,
            http_client=self._http,
            token_cache=self.cache,
        )
        return self.application

    def silent(self, *, force: bool = False) -> dict[str, Any]:
        (account,) = self.application.get_accounts()
        return dict(
            self.application.acquire_token_silent_with_error(
                self.scopes, account=account, force_refresh=force
            )
        )


@pytest.fixture
def mailbox(sandbox: SandboxThread) -> Iterator[Msal]:
    with sandbox.session() as http:
        yield Msal(sandbox, http)


def hand_over(mailbox: Msal, client: Client) -> dict[str, Any]:
    token = client.link()["refresh_token"]
    return dict(mailbox.application.acquire_token_by_refresh_token(token, mailbox.scopes))


def test_a_refresh_token_is_handed_over(mailbox: Msal, client: Client) -> None:
    taken = hand_over(mailbox, client)
    assert taken["access_token"]
    (account,) = mailbox.application.get_accounts()
    assert account["home_account_id"].endswith(f".{CONTOSO}")
    assert account["username"] == "orders@contoso.example"


def test_a_token_is_used_until_it_ends(mailbox: Msal, client: Client) -> None:
    hand_over(mailbox, client)
    assert mailbox.silent()["token_source"] == "cache"
    assert client.sandbox.token_calls("refresh_token") == 1


def test_a_refresh_gives_a_new_token_and_the_old_one_stays_good(
    mailbox: Msal, client: Client
) -> None:
    first = client.link()
    mailbox.application.acquire_token_by_refresh_token(first["refresh_token"], mailbox.scopes)
    assert mailbox.silent(force=True)["token_source"] == "identity_provider"
    (kept,) = mailbox.cache.search(msal.TokenCache.CredentialType.REFRESH_TOKEN)
    assert kept["secret"] != first["refresh_token"]
    assert client.refresh(first).ok


def test_a_revoked_grant_is_refused_until_the_account_is_linked_again(
    mailbox: Msal, client: Client
) -> None:
    hand_over(mailbox, client)
    client.sandbox.revoke("orders@contoso.example")
    refused = mailbox.silent(force=True)
    assert (refused["error"], refused["error_codes"]) == ("invalid_grant", [50173])
    hand_over(mailbox, client)
    mailbox.open()
    assert mailbox.silent(force=True)["access_token"]


def test_an_application_gets_a_token_of_its_own(mailbox: Msal, client: Client) -> None:
    application = mailbox.open(CONTOSO)
    taken = application.acquire_token_for_client([f"{client.sandbox.graph}/.default"])
    assert taken["access_token"]
    assert client.sandbox.token_calls("client_credentials") == 1


def test_an_application_without_a_tenant_gets_none(mailbox: Msal, client: Client) -> None:
    answer = client.token(grant_type="client_credentials", scope=f"{client.sandbox.graph}/.default")
    assert answer.json()["error_codes"] == [9001023]


def test_a_busy_token_endpoint_raises_in_msal(mailbox: Msal, client: Client) -> None:
    hand_over(mailbox, client)
    client.sandbox.fault("token_unavailable", retry_after=5)
    with pytest.raises(msal.exceptions.MsalServiceError):
        mailbox.silent(force=True)
