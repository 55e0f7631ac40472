"""Each fault shows where it should, for whom it should, as often as it should."""

import base64
import json

import pytest
import requests

from tests.sandbox.conftest import Client, arguments, number_of
from webapp.microsoft.sent_items import path_of
from webapp.sandbox.faults import Fault, Kind

MIME = (
    b"From: Shop <orders@contoso.example>\r\nTo: bob@example.org\r\n"
    b"Subject: Order 17\r\nMessage-ID: <17@contoso.example>\r\n\r\nThank you.\r\n"
)


def send(client: Client, token: str, mime: bytes = MIME) -> requests.Response:
    return client.graph(
        "POST", "/me/sendMail", token, base64.b64encode(mime), Content_Type="text/plain"
    )


@pytest.mark.parametrize(
    ("kind", "status", "error", "number"),
    [
        ("wrong_secret", 401, "invalid_client", 7000215),
        ("expired_secret", 401, "invalid_client", 7000222),
        ("wrong_cloud", 400, "invalid_request", 900382),
        ("revoked_grant", 400, "invalid_grant", 50173),
        ("mfa_required", 400, "interaction_required", 50076),
        ("consent_withdrawn", 400, "invalid_grant", 65001),
        ("account_disabled", 400, "invalid_grant", 50057),
        ("token_throttled", 429, "temporarily_unavailable", 90055),
        ("token_unavailable", 503, "temporarily_unavailable", 90033),
    ],
)
def test_a_refresh_fails(client: Client, kind: str, status: int, error: str, number: int) -> None:
    tokens = client.link()
    client.sandbox.fault(kind, times=1)
    answer = client.refresh(tokens)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert number_of(answer) == number
    assert answer.json()["error_description"].startswith(f"AADSTS{number}: ")
    assert client.refresh(tokens).ok


@pytest.mark.parametrize("kind", ["token_throttled", "token_unavailable"])
def test_the_token_endpoint_says_how_long_to_wait(client: Client, kind: str) -> None:
    tokens = client.link()
    client.sandbox.fault(kind, retry_after=90)
    assert client.refresh(tokens).headers["Retry-After"] == "90"


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("denied", "access_denied", "AADSTS65004"),
        ("admin_needed", "access_denied", "AADSTS90094"),
        ("account_disabled", "access_denied", "AADSTS50057"),
    ],
)
def test_a_sign_in_comes_back_with_an_error(
    client: Client, kind: str, error: str, words: str
) -> None:
    client.sandbox.fault(kind)
    back = arguments(client.sandbox.sign_in(client.sandbox.authorize_url(), "ann@contoso.example"))
    assert (back["error"], back["state"]) == (error, "abc")
    assert back["error_description"].startswith(words)
    assert "code" not in back


def test_less_is_granted_than_was_asked_for(client: Client) -> None:
    client.sandbox.fault("reduced_consent")
    tokens = client.link()
    assert "Mail.Send" not in tokens["scope"]
    answer = send(client, tokens["access_token"])
    assert (answer.status_code, code_of(answer)) == (403, "ErrorAccessDenied")


def code_of(answer: requests.Response) -> str:
    return str(answer.json()["error"]["code"])


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("throttled", 429, "ApplicationThrottled"),
        ("unavailable", 503, "ErrorServerBusy"),
        ("server_error", 500, "ErrorInternalServerError"),
        ("send_as_denied", 403, "ErrorSendAsDenied"),
        ("access_denied", 403, "ErrorAccessDenied"),
        ("quota_exceeded", 429, "ErrorSubmissionQuotaExceeded"),
        ("size_exceeded", 400, "ErrorMessageSizeExceeded"),
        ("invalid_token", 401, "InvalidAuthenticationToken"),
    ],
)
def test_a_mail_is_refused(client: Client, kind: str, status: int, code: str) -> None:
    token = client.link()["access_token"]
    client.sandbox.fault(kind, times=1)
    answer = send(client, token)
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert client.sandbox.counts() == {}
    assert send(client, token).status_code == 202


@pytest.mark.parametrize("kind", ["throttled", "unavailable"])
@pytest.mark.parametrize("value", ["7", "Wed, 25 Nov 2026 12:00:00 GMT"])
def test_graph_says_how_long_to_wait(client: Client, kind: str, value: str) -> None:
    token = client.link()["access_token"]
    client.sandbox.fault(kind, retry_after=value)
    assert send(client, token).headers["Retry-After"] == value


def test_a_gateway_gives_up_on_a_mail_that_is_sent(client: Client) -> None:
    token = client.link()["access_token"]
    client.sandbox.fault("sent_504")
    answer = send(client, token)
    assert (answer.status_code, answer.headers["Content-Type"]) == (504, "text/html")
    assert client.sandbox.counts() == {"<17@contoso.example>": 1}


@pytest.mark.parametrize(
    ("kind", "arrived"),
    [("dropped_before", {}), ("dropped_after", {"<17@contoso.example>": 1})],
)
def test_the_connection_ends_without_an_answer(
    client: Client, kind: str, arrived: dict[str, int]
) -> None:
    token = client.link()["access_token"]
    client.sandbox.fault(kind)
    with pytest.raises(requests.ConnectionError):
        send(client, token)
    assert client.sandbox.counts() == arrived
    assert client.sandbox.calls()["graph"] == [
        {"path": "/me/sendMail", "status": "dropped", "times": 1}
    ]


def test_a_200_sends_nothing(client: Client) -> None:
    token = client.link()["access_token"]
    client.sandbox.fault("not_sent_200")
    assert send(client, token).status_code == 200
    assert client.sandbox.counts() == {}


def test_an_answer_takes_its_time(client: Client) -> None:
    token = client.link()["access_token"]
    client.sandbox.fault("slow", milliseconds=60_000)
    with pytest.raises(requests.ReadTimeout):
        client.http.post(
            f"{client.sandbox.graph}/v1.0/me/sendMail",
            headers={"Authorization": f"Bearer {token}", "Content-Type": "text/plain"},
            data=base64.b64encode(MIME),
            timeout=0.2,
        )
    assert client.sandbox.counts() == {"<17@contoso.example>": 1}


def test_a_slow_answer_comes_in_the_end(client: Client) -> None:
    tokens = client.link()
    client.sandbox.fault("slow", milliseconds=5)
    client.sandbox.fault("token_slow", milliseconds=5)
    assert send(client, tokens["access_token"]).status_code == 202
    assert client.refresh(tokens).ok


def test_a_mail_may_be_missing_in_sent_items_for_a_while(client: Client) -> None:
    root = client.sandbox.graph
    tokens = client.link(scope=f"openid offline_access {root}/Mail.Send {root}/Mail.ReadWrite")
    token = tokens["access_token"]
    assert send(client, token).status_code == 202

    def shown() -> int:
        answer = client.graph("GET", path_of("<17@contoso.example>"), token)
        assert answer.status_code == 200
        return len(answer.json()["value"])

    assert shown() == 1
    client.sandbox.fault("sent_items_empty_for", milliseconds=600_000)
    assert shown() == 0
    client.sandbox.fault("sent_items_empty_for", milliseconds=1)
    assert shown() == 1
    client.sandbox.fault("sent_items_empty_for", times=1)
    assert [shown(), shown()] == [0, 1]


def test_a_fault_of_one_account_leaves_the_others_alone(client: Client) -> None:
    orders, ann = client.link(), client.link("ann@contoso.example")
    client.sandbox.fault("server_error", account="ANN@contoso.example")
    client.sandbox.fault("mfa_required", account="ann@contoso.example")
    assert send(client, orders["access_token"]).status_code == 202
    assert send(client, ann["access_token"]).status_code == 500
    assert client.refresh(orders).ok
    assert number_of(client.refresh(ann)) == 50076


def test_a_fault_of_one_application_leaves_the_others_alone(client: Client) -> None:
    tokens = client.link()
    client.sandbox.fault("wrong_secret", client_id=client.sandbox.single_tenant["client_id"])
    assert client.refresh(tokens).ok
    client.sandbox.fault("wrong_secret", client_id=client.sandbox.client_id)
    assert number_of(client.refresh(tokens)) == 7000215


def test_faults_end_when_they_are_cleared(client: Client) -> None:
    token = client.link()["access_token"]
    client.sandbox.fault("server_error")
    client.sandbox.clear()
    assert send(client, token).status_code == 202


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "weather"}, "kind is one of"),
        ({"kind": "slow", "times": "often"}, "whole numbers"),
        ({"kind": "slow", "seconds": 3}, "no seconds"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fault.read(given)


def test_no_line_break_gets_into_a_header() -> None:
    assert Fault.read({"kind": "throttled", "retry_after": "1\r\nx: y"}).retry_after == ""


def test_every_fault_has_a_test() -> None:
    with open(__file__, encoding="utf-8") as file:
        source = file.read()
    assert [kind for kind in Kind if f'"{kind}"' not in source] == []


def test_control_takes_json_only(client: Client) -> None:
    url = f"{client.sandbox.inbox}/control/faults"
    answer = requests.post(
        url, data=json.dumps({"kind": "slow"}), headers={"Content-Type": "text/plain"}, timeout=30
    )
    assert answer.status_code == 400


def test_a_name_that_was_made_to_point_here_is_refused(client: Client) -> None:
    answer = requests.get(
        f"{client.sandbox.inbox}/control/mails", headers={"Host": "evil.example"}, timeout=30
    )
    assert answer.status_code == 421
