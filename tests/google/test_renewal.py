"""Renewing at Google: a token, or which of the kinds of failure it is."""

import json
from collections.abc import Iterator

import pytest

from tests.rig.answers import DROP, Answers, answer
from webapp.google.cloud import GoogleCloud
from webapp.google.renewal import GoogleRenewer, Stored, permissions_in, read_stored
from webapp.mailers.errors import DeliveryError, FailureKind
from webapp.microsoft.renewal import AppFacts, Verdict
from webapp.outward import Outward

SECRET = "GOCSPX-this-is-secret"
REFRESH = "1//0g-this-is-the-refresh-token"
SCOPES = ("gmail.send", "gmail.settings.basic")
STORED = Stored(refresh_token=REFRESH, access_token="old", came_at=1.0, expires_at=2.0).text()
GRANTED = (
    "https://www.googleapis.com/auth/gmail.send openid "
    "https://www.googleapis.com/auth/userinfo.email"
)


class Desk:
    """A token endpoint with planned answers, and a renewer that asks it."""

    def __init__(self, server: Answers) -> None:
        self.server = server
        self.root = server.url.removesuffix("/v1.0")
        cloud = GoogleCloud(slug="google", label="Google", login=self.root, graph=self.root)
        self.app = AppFacts(client_id="1-a.apps", secret=SECRET, cloud=cloud, tenant="")
        self.renewer = GoogleRenewer(Outward)
        self.server.plan(answer(200, json.dumps({"token_endpoint": f"{self.root}/token"}).encode()))

    def plan(self, status: int, **body: object) -> None:
        self.server.plan(answer(status, json.dumps(body).encode()))

    def failure(self, *planned: bytes) -> DeliveryError:
        self.server.plan(*planned)
        with pytest.raises(DeliveryError) as caught:
            self.renewer.renew(self.app, STORED, SCOPES, "")
        assert SECRET not in caught.value.words
        assert REFRESH not in caught.value.words
        return caught.value


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Answers() as server:
        yield Desk(server)


def error(status: int, name: str, words: str = "") -> bytes:
    return answer(status, json.dumps({"error": name, "error_description": words}).encode())


def test_a_renewal_brings_a_token_and_keeps_the_refresh_token(desk: Desk) -> None:
    desk.plan(200, access_token="tok-new", expires_in=3599, scope=GRANTED, token_type="Bearer")
    renewed = desk.renewer.renew(desk.app, STORED, SCOPES, "")
    asked = desk.server.asked[1]
    assert asked.path == "/token"
    assert asked.body.decode().split("&")[0] == "grant_type=refresh_token"
    assert f"client_secret={SECRET}".encode() in asked.body
    assert renewed.scopes == ("gmail.send",)
    stored = read_stored(renewed.cache)
    assert stored is not None
    assert (stored.refresh_token, stored.access_token) == (REFRESH, "tok-new")
    found = desk.renewer.at_hand("1-a.apps", renewed.cache)
    assert found == renewed.at_hand
    assert found is not None
    assert found.expires_at - found.came_at == 3599
    assert "tok-new" not in repr(renewed)
    assert REFRESH not in repr(stored)


def test_a_new_refresh_token_replaces_the_old_one(desk: Desk) -> None:
    desk.plan(200, access_token="new", scope=GRANTED, refresh_token="1//newer", token_type="Bearer")
    stored = read_stored(desk.renewer.renew(desk.app, STORED, SCOPES, "").cache)
    assert stored is not None
    assert stored.refresh_token == "1//newer"


def test_metadata_is_asked_for_once(desk: Desk) -> None:
    for _ in range(2):
        desk.plan(200, access_token="new", scope=GRANTED, token_type="Bearer")
        desk.renewer.renew(desk.app, STORED, SCOPES, "")
    assert [asked.method for asked in desk.server.asked] == ["GET", "POST", "POST"]


@pytest.mark.parametrize(
    ("planned", "kind", "code"),
    [
        (
            error(400, "invalid_grant", "Token has been expired or revoked."),
            FailureKind.NEEDS_REAUTHORISATION,
            "invalid_grant",
        ),
        (
            error(400, "admin_policy_enforced"),
            FailureKind.NEEDS_REAUTHORISATION,
            "admin_policy_enforced",
        ),
        (
            error(401, "invalid_client", f"The secret {SECRET} is wrong"),
            FailureKind.MISCONFIGURED,
            "invalid_client",
        ),
        (error(401, "deleted_client"), FailureKind.MISCONFIGURED, "deleted_client"),
        (error(429, "rate_limit"), FailureKind.TRANSIENT, "rate_limit"),
        (error(503, ""), FailureKind.TRANSIENT, "HTTP 503"),
        (answer(200, b"<html>a proxy</html>"), FailureKind.TRANSIENT, "HTTP 200"),
        (answer(200, b"{}"), FailureKind.TRANSIENT, "HTTP 200"),
        (
            answer(302, b"", Location="https://a.example/"),
            FailureKind.TRANSIENT,
            "HTTP 302",
        ),
        (DROP, FailureKind.TRANSIENT, ""),
    ],
)
def test_each_refusal_says_what_must_happen_next(
    desk: Desk, planned: bytes, kind: FailureKind, code: str
) -> None:
    failed = desk.failure(planned)
    assert (failed.kind, failed.code) == (kind, code)
    assert len(desk.server.asked) == 2  # nobody is asked elsewhere


def test_a_link_that_may_no_longer_send_is_refused(desk: Desk) -> None:
    desk.plan(200, access_token="new", scope=GRANTED.split()[0] + ".not", token_type="Bearer")
    assert desk.failure().kind is FailureKind.NEEDS_REAUTHORISATION


def test_metadata_of_somebody_else_is_no_refusal() -> None:
    with Answers() as server:
        desk = Desk(server)
        server._planned.clear()
        failed = desk.failure(answer(200, b"<html>a proxy</html>"))
    assert failed.kind is FailureKind.TRANSIENT
    assert len(server.asked) == 1


@pytest.mark.parametrize("stored", ["", "{}", "[]", "null", '{"refresh_token": ""}', '{"a": 1}'])
def test_what_is_not_ours_asks_for_a_new_link(desk: Desk, stored: str) -> None:
    with pytest.raises(DeliveryError) as caught:
        desk.renewer.renew(desk.app, stored, SCOPES, "")
    assert caught.value.kind is FailureKind.NEEDS_REAUTHORISATION
    assert desk.renewer.at_hand("1-a.apps", stored) is None
    assert desk.server.asked == []


def test_a_secret_is_proved_by_a_token_of_nobody(desk: Desk) -> None:
    desk.server.plan(error(400, "invalid_grant", "Bad Request"))
    assert desk.renewer.prove(desk.app, "").verdict is Verdict.RIGHT
    desk.server.plan(error(401, "invalid_client", "Unauthorized"))
    proof = desk.renewer.prove(desk.app, STORED)
    assert (proof.verdict, proof.code) == (Verdict.WRONG, "invalid_client")
    desk.server.plan(answer(503, b""))
    assert desk.renewer.prove(desk.app, STORED).verdict is Verdict.UNKNOWN


def test_the_permissions_of_the_sign_in_are_left_out() -> None:
    assert permissions_in(GRANTED) == ("gmail.send",)
    assert permissions_in("") == ()
