"""Graph: what it takes, what it delivers, and that its answers are those of its description."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from openapi_core.exceptions import OpenAPIError

from tests.rig import graph_contract
from tests.sandbox.conftest import Client
from tests.sandbox.test_faults import MIME, code_of, send
from webapp.sandbox.directory import CONTOSO, FABRIKAM

JSON = {
    "message": {
        "subject": "Order 18",
        "body": {"contentType": "html", "content": "<p>Thank you</p>"},
        "toRecipients": [{"emailAddress": {"address": "bob@example.org"}}],
        "bccRecipients": [{"emailAddress": {"address": "eve@example.org"}}],
        "internetMessageHeaders": [{"name": "x-order", "value": "18"}],
    },
    "saveToSentItems": False,
}


@pytest.fixture
def token(client: Client) -> str:
    return str(client.link()["access_token"])


def post(client: Client, token: str, body: bytes, kind: str = "text/plain") -> requests.Response:
    return client.graph("POST", "/me/sendMail", token, body, Content_Type=kind)


def application_token(client: Client, segment: str = CONTOSO) -> str:
    answer = client.token(
        segment, grant_type="client_credentials", scope=f"{client.sandbox.graph}/.default"
    )
    return str(answer.json()["access_token"])


# ---- who ----


def test_me_shows_what_was_selected(client: Client, token: str) -> None:
    answer = client.graph("GET", "/me?$select=mail,proxyAddresses,userPrincipalName", token)
    found = answer.json()
    assert found["mail"] == "orders@contoso.example"
    assert "smtp:sales@contoso.example" in found["proxyAddresses"]
    assert "displayName" not in found


def test_a_personal_account_has_no_proxy_addresses_and_another_id(client: Client) -> None:
    token = client.link("sam@outlook.example")["access_token"]
    found = client.graph("GET", "/me?$select=id,proxyAddresses", token).json()
    assert found["proxyAddresses"] == []
    assert found["id"] == "5a4d9c0b7e31f2d6"


def test_an_account_without_a_mailbox_cannot_send(client: Client) -> None:
    token = client.link("nomailbox@contoso.example")["access_token"]
    assert client.graph("GET", "/me", token).json()["mail"] is None
    answer = send(client, token)
    assert (answer.status_code, code_of(answer)) == (404, "MailboxNotEnabledForRESTAPI")


@pytest.mark.parametrize("given", ["", "nonsense", "a.b.c"])
def test_a_token_that_is_none_is_refused(client: Client, given: str) -> None:
    answer = client.graph("GET", "/me", given)
    assert (answer.status_code, code_of(answer)) == (401, "InvalidAuthenticationToken")


def test_an_id_token_is_no_access_token(client: Client) -> None:
    assert client.graph("GET", "/me", client.link()["id_token"]).status_code == 401


def test_an_access_token_ends(client: Client, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.graph("GET", "/me", token).ok
    tokens = client.sandbox.world.tokens
    now = tokens._clock()
    monkeypatch.setattr(tokens, "_clock", lambda: now + 3601)
    assert client.graph("GET", "/me", token).status_code == 401


# ---- what is delivered ----


def test_a_mail_goes_to_to_cc_and_bcc_and_bcc_is_not_shown(client: Client, token: str) -> None:
    mime = MIME.replace(
        b"Subject:",
        b"Cc: Ann <ann@example.org>,\r\n cat@example.org\r\nBcc: eve@example.org\r\nSubject:",
    )
    answer = client.graph(
        "POST",
        "/me/sendMail",
        token,
        base64.encodebytes(mime),
        Content_Type="text/plain",
        client_request_id="0f0e0d0c-0000-4000-8000-000000000001",
    )
    assert (answer.status_code, answer.content) == (202, b"")
    assert answer.headers["client-request-id"] == "0f0e0d0c-0000-4000-8000-000000000001"
    assert answer.headers["request-id"]
    (mail,) = client.sandbox.mails()
    assert mail["recipients"] == [
        *("bob@example.org", "ann@example.org"),
        *("cat@example.org", "eve@example.org"),
    ]
    assert mail["message_id"] == "<17@contoso.example>"
    assert (mail["account"], mail["subject"]) == ("orders@contoso.example", "Order 17")
    raw = client.sandbox.raw(mail["number"])
    assert "eve" not in raw
    assert raw == mime.replace(b"Bcc: eve@example.org\r\n", b"").decode()


def test_the_json_form_is_delivered(client: Client, token: str) -> None:
    assert post(client, token, json.dumps(JSON).encode(), "application/json").status_code == 202
    (mail,) = client.sandbox.mails()
    assert mail["recipients"] == ["bob@example.org", "eve@example.org"]
    assert "x-order: 18" in client.sandbox.raw(mail["number"])


@pytest.mark.parametrize("sender", ["sales@contoso.example", "Orders@Contoso.Example"])
def test_an_alias_may_stand_in_from(client: Client, token: str, sender: str) -> None:
    mime = MIME.replace(b"orders@contoso.example>\r\nTo", f"{sender}>\r\nTo".encode())
    assert send(client, token, mime).status_code == 202


def test_a_foreign_from_is_refused(client: Client, token: str) -> None:
    answer = send(client, token, MIME.replace(b"orders@contoso", b"ann@contoso", 1))
    assert (answer.status_code, code_of(answer)) == (403, "ErrorSendAsDenied")
    inner = answer.json()["error"]["innerError"]
    assert set(inner) == {"date", "request-id", "client-request-id"}
    assert inner["request-id"] == answer.headers["request-id"]


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"%%%", "text/plain", "ErrorMimeContentInvalidBase64String"),
        (base64.b64encode(b"no header at all"), "text/plain", "ErrorMimeContentInvalid"),
        (base64.b64encode(b"Subject: x\r\n\r\n"), "text/plain", "ErrorInvalidRecipients"),
        (b"{", "application/json", "BadRequest"),
        (b'{"message": {"toRecipients": 3}}', "application/json", "RequestBodyRead"),
        (b"<x/>", "text/xml", "BadRequest"),
    ],
)
def test_what_is_no_mail_is_refused(
    client: Client, token: str, body: bytes, kind: str, code: str
) -> None:
    answer = post(client, token, body, kind)
    assert (answer.status_code, code_of(answer)) == (400, code)


def test_more_than_four_megabytes_are_refused(client: Client, token: str) -> None:
    answer = send(client, token, MIME + b"x" * (3 * 1024 * 1024 + 4096))
    assert answer.status_code == 413


# ---- for the application itself ----


def test_an_application_sends_from_any_mailbox_of_its_tenant(client: Client) -> None:
    token = application_token(client)
    body = base64.b64encode(MIME)
    path = "/users/orders@contoso.example/sendMail"
    assert client.graph("POST", path, token, body, Content_Type="text/plain").status_code == 202
    assert client.graph("GET", "/me", token).status_code == 400
    foreign = application_token(client, FABRIKAM)
    answer = client.graph("POST", path, foreign, body, Content_Type="text/plain")
    assert answer.status_code == 404


def test_a_person_sends_from_no_other_mailbox(client: Client) -> None:
    token = client.link("ann@contoso.example")["access_token"]
    path = "/users/orders@contoso.example/sendMail"
    answer = client.graph("POST", path, token, base64.b64encode(MIME), Content_Type="text/plain")
    assert (answer.status_code, code_of(answer)) == (403, "ErrorAccessDenied")


def test_mails_are_counted_and_not_kept_when_told_so(client: Client, token: str) -> None:
    client.sandbox.discard()
    send(client, token)
    send(client, token)
    assert client.sandbox.counts() == {"<17@contoso.example>": 2}
    assert client.sandbox.mails() == []


# ---- the description ----


def every_answer(client: Client) -> Iterator[requests.Response]:
    """One answer of each kind, but the two that are no answers of Graph."""
    orders, sam = client.link(), client.link("sam@outlook.example")
    token: str = orders["access_token"]
    yield client.graph("GET", "/me", token)
    yield client.graph("GET", "/me?$select=id,displayName,mail,userPrincipalName,proxyAddresses",
                       sam["access_token"])  # fmt: skip
    yield client.graph("GET", "/me?$select=shoeSize", token)
    yield client.graph("GET", "/me", "")
    yield send(client, token)
    yield post(client, token, json.dumps(JSON).encode(), "application/json")
    yield send(client, token, MIME.replace(b"orders@contoso", b"ann@contoso", 1))
    yield send(client, token, MIME + b"x" * (3 * 1024 * 1024 + 4096))
    yield post(client, token, b"%%%")
    yield send(client, client.link("nomailbox@contoso.example")["access_token"])
    path = "/users/orders@contoso.example/sendMail"
    for sender in (application_token(client), application_token(client, FABRIKAM)):
        yield client.graph("POST", path, sender, base64.b64encode(MIME), Content_Type="text/plain")
    for kind in (
        *("throttled", "unavailable", "server_error", "send_as_denied", "access_denied"),
        *("quota_exceeded", "size_exceeded", "invalid_token"),
    ):
        client.sandbox.fault(kind, times=1, retry_after=7)
        yield send(client, token)


def test_every_answer_is_as_graph_describes_it(client: Client) -> None:
    graph_contract.description()
    seen = set()
    for answer in every_answer(client):
        graph_contract.check_response(answer)
        seen.add(answer.status_code)
    assert seen == {200, 202, 400, 401, 403, 404, 413, 429, 500, 503}


@pytest.mark.parametrize("kind", ["sent_504", "not_sent_200"])
def test_what_no_description_allows_is_found(client: Client, token: str, kind: str) -> None:
    graph_contract.description()
    client.sandbox.fault(kind)
    with pytest.raises(OpenAPIError):
        graph_contract.check_response(send(client, token))


def requested(**given: Any) -> requests.PreparedRequest:
    headers = {"Authorization": "Bearer x", "Content-Type": "application/json"}
    url = "https://localhost:9443/graph/v1.0/me/sendMail"
    return requests.Request(
        "POST", url, headers={**headers, **given.pop("headers", {})}, **given
    ).prepare()


def test_good_requests_pass_the_description() -> None:
    graph_contract.check_prepared(requested(data=json.dumps(JSON)))
    graph_contract.check_prepared(
        requested(data=base64.b64encode(MIME), headers={"Content-Type": "text/plain"})
    )
    url = "https://localhost:9443/graph/v1.0/me?$select=id,mail"
    graph_contract.check_prepared(
        requests.Request("GET", url, headers={"Authorization": "Bearer x"}).prepare()
    )


@pytest.mark.parametrize(
    "wrong",
    [
        requested(data=b"%%%", headers={"Content-Type": "text/plain"}),
        requested(data=json.dumps({"subject": "at the top"})),
        requested(data=json.dumps(JSON), headers={"Content-Type": "text/xml"}),
        requested(data=json.dumps(JSON), headers={"Authorization": ""}),
        requests.Request(
            "GET",
            "https://localhost:9443/graph/v1.0/me?$select=shoeSize",
            headers={"Authorization": "Bearer x"},
        ).prepare(),
    ],
    ids=["base64", "top level", "content type", "no token", "select"],
)
def test_bad_requests_do_not(wrong: requests.PreparedRequest) -> None:
    graph_contract.description()
    with pytest.raises(OpenAPIError):
        graph_contract.check_prepared(wrong)
