"""A sandbox for the tests of one module, and clients of it."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests

from tests.rig.sandbox import SandboxThread

CALLBACK = "http://localhost:8025/oauth/microsoft/callback"


@pytest.fixture(scope="module")
def running() -> Iterator[SandboxThread]:
    with SandboxThread() as made:
        yield made


@pytest.fixture
def sandbox(running: SandboxThread, monkeypatch: pytest.MonkeyPatch) -> SandboxThread:
    """As after a start."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # would win over the sandbox's own
        monkeypatch.delenv(name, raising=False)
    running.reset()
    return running


class Client:
    """Calls by hand, without any library for OAuth."""

    def __init__(self, sandbox: SandboxThread) -> None:
        self.sandbox = sandbox
        self.http = sandbox.session()

    def token(self, segment: str = "common", **form: str) -> requests.Response:
        """Ask the token endpoint, as the shared application unless told otherwise."""
        known = {"client_id": self.sandbox.client_id, "client_secret": self.sandbox.client_secret}
        given = {name: value for name, value in (known | form).items() if value}
        url = f"{self.sandbox.authority}/{segment}/oauth2/v2.0/token"
        return self.http.post(url, data=given, timeout=30)

    def link(self, account: str = "orders@contoso.example", **asked: str) -> dict[str, Any]:
        """The whole way to tokens."""
        back = self.sandbox.sign_in(self.sandbox.authorize_url(**asked), account)
        answer = self.token(
            grant_type="authorization_code", code=arguments(back)["code"], redirect_uri=CALLBACK
        )
        assert answer.ok, answer.text
        return dict(answer.json())

    def refresh(self, tokens: dict[str, Any], **form: str) -> requests.Response:
        return self.token(grant_type="refresh_token", refresh_token=tokens["refresh_token"], **form)

    def graph(
        self, method: str, path: str, token: str, body: bytes = b"", **headers: str
    ) -> requests.Response:
        url = f"{self.sandbox.graph}/v1.0{path}"
        given = {"Authorization": f"Bearer {token}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return self.http.request(method, url, data=body or None, headers=given, timeout=30)


@pytest.fixture
def client(sandbox: SandboxThread) -> Iterator[Client]:
    made = Client(sandbox)
    yield made
    made.http.close()


def arguments(url: str) -> dict[str, str]:
    """The query of an address."""
    return dict(parse_qsl(urlsplit(url).query))


def number_of(answer: requests.Response) -> int:
    """The AADSTS number of a refusal."""
    (number,) = answer.json()["error_codes"]
    return int(number)
