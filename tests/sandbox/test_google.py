"""The stand-in for Google: it answers as the description says, and as Google is known to."""

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import requests

from tests.rig.gmail_contract import check_answer, check_call, check_upload, method
from tests.rig.sandbox import SandboxThread
from webapp.google.cloud import NEEDED, SCOPES_AT, GoogleCloud
from webapp.google.gmail import ALIASES_PATH, SEND_PATH, Gmail
from webapp.google.renewal import GoogleRenewer
from webapp.mailers.errors import DeliveryError, FailureKind
from webapp.mailers.http_wire import PlainBody, TokenRefused
from webapp.microsoft.renewal import AppFacts, Verdict
from webapp.outward import Outward

MIME = (
    b"From: shop@workshop.example\r\nTo: a@example.org\r\nBcc: b@example.org\r\n"
    b"Message-ID: <1@workshop.example>\r\nSubject: Hello\r\n\r\nHello\r\n"
)
BACK = "https://postroom.example/oauth/google/callback"
VERIFIER = "a-verifier-of-at-least-forty-three-characters-in-length"
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=")


class Google:
    """A browser and a program at the stand-in."""

    def __init__(self, sandbox: SandboxThread) -> None:
        self.sandbox = sandbox
        self.http = sandbox.session()
        self.about = sandbox.google

    @property
    def app(self) -> AppFacts:
        cloud = GoogleCloud(
            slug="google",
            label="Google",
            login=self.about["authority"],
            graph=self.about["gmail"],
        )
        return AppFacts(
            client_id=self.about["client_id"],
            secret=self.about["client_secret"],
            cloud=cloud,
            tenant="",
        )

    @property
    def renewer(self) -> GoogleRenewer:
        return GoogleRenewer(lambda: Outward(ca_file=self.sandbox.ca))

    def gmail(self) -> Gmail:
        return Gmail(self.about["gmail"], ca_file=self.sandbox.ca)

    def sign_in(
        self, account: str = "info@workshop.example", decision: str = "accept", **more: str
    ) -> dict[str, str]:
        """What comes back in the address after a person decided."""
        asked = {
            "client_id": self.about["client_id"],
            "redirect_uri": BACK,
            "response_type": "code",
            "scope": " ".join(["openid email profile", *(SCOPES_AT + name for name in NEEDED)]),
            "state": "s-1",
            "access_type": "offline",
            "prompt": "consent",
            "code_challenge": CHALLENGE.decode(),
            "code_challenge_method": "S256",
            "nonce": "n-1",
        } | more
        answer = self.http.post(
            f"{self.sandbox.inbox}/google/o/oauth2/v2/auth?{urlencode(asked)}",
            data={"account": account, "decision": decision},
            allow_redirects=False,
            timeout=30,
        )
        assert answer.status_code == 302, answer.text
        target = urlsplit(answer.headers["Location"])
        assert answer.headers["Location"].startswith(BACK)
        return {name: values[0] for name, values in parse_qs(target.query).items()}

    def ask(self, **form: str) -> requests.Response:
        given = {
            "client_id": self.about["client_id"],
            "client_secret": self.about["client_secret"],
        }
        return self.http.post(f"{self.about['authority']}/token", data=given | form, timeout=30)

    def exchange(self, code: str, /, **changed: str) -> requests.Response:
        given = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": BACK,
            "code_verifier": VERIFIER,
        }
        return self.ask(**(given | changed))

    def linked(self, account: str = "info@workshop.example") -> dict[str, Any]:
        found: dict[str, Any] = self.exchange(self.sign_in(account)["code"]).json()
        return found


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxThread]:
    with SandboxThread() as running:
        yield running


@pytest.fixture
def google(sandbox: SandboxThread) -> Google:
    sandbox.reset()
    return Google(sandbox)


def claims_of(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


def failure(google: Google, token: str) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        google.gmail().send_mime(token, MIME)
    return caught.value


def test_what_we_send_and_what_it_answers_stand_in_the_description(google: Google) -> None:
    body = PlainBody(MIME)
    check_upload("users.messages.send", "POST", SEND_PATH, body.media_type, body.length)
    check_call("users.settings.sendAs.list", "GET", ALIASES_PATH)
    for name, needed in zip(
        NEEDED, ("users.messages.send", "users.settings.sendAs.list"), strict=True
    ):
        assert SCOPES_AT + name in method(needed)["scopes"]
    header = {"Authorization": f"Bearer {google.linked()['access_token']}"}
    sent = google.http.post(
        google.about["gmail"] + SEND_PATH,
        data=MIME,
        headers=header | {"Content-Type": "message/rfc822"},
        timeout=30,
    )
    check_answer("users.messages.send", sent.json())
    listed = google.http.get(google.about["gmail"] + ALIASES_PATH, headers=header, timeout=30)
    check_answer("users.settings.sendAs.list", listed.json())


def test_from_sign_in_to_a_mail_in_the_inbox(google: Google, sandbox: SandboxThread) -> None:
    came_back = google.sign_in()
    assert came_back["state"] == "s-1"
    token = google.exchange(came_back["code"]).json()
    claims = claims_of(token["id_token"])
    assert claims["iss"] == google.about["authority"]
    assert (claims["aud"], claims["nonce"]) == (google.about["client_id"], "n-1")
    assert (claims["email"], claims["hd"]) == ("info@workshop.example", "workshop.example")
    sent = google.gmail().send_mime(token["access_token"], MIME)
    assert sent.request_id
    (mail,) = sandbox.mails()
    assert mail["recipients"] == ["a@example.org", "b@example.org"]
    assert mail["account"] == "info@workshop.example"
    addresses = {alias.address for alias in google.gmail().aliases(token["access_token"])}
    assert addresses == {"info@workshop.example", "shop@workshop.example"}


def test_a_from_that_is_not_allowed_is_silently_replaced(
    google: Google, sandbox: SandboxThread
) -> None:
    foreign = MIME.replace(b"shop@workshop.example", b"boss@elsewhere.example")
    google.gmail().send_mime(google.linked()["access_token"], foreign)
    assert sandbox.mails()[0]["from"] == "Workshop <info@workshop.example>"


def test_a_renewal_brings_no_new_refresh_token(google: Google) -> None:
    stored = google.renewer.hand_over(google.app, google.linked()["refresh_token"], NEEDED)
    renewed = google.renewer.renew(google.app, stored, NEEDED, "")
    assert json.loads(renewed.cache)["refresh_token"] == json.loads(stored)["refresh_token"]
    assert set(renewed.scopes) == set(NEEDED)
    google.gmail().send_mime(renewed.at_hand.value, MIME)


def test_a_refresh_token_lives_through_a_restart(tmp_path: Any) -> None:
    with SandboxThread(tmp_path) as sandbox:
        google = Google(sandbox)
        stored = google.renewer.hand_over(google.app, google.linked()["refresh_token"], NEEDED)
        sandbox.restart()
        assert google.renewer.renew(google.app, stored, NEEDED, "").scopes


def test_only_the_first_consent_brings_a_refresh_token(google: Google) -> None:
    first = google.exchange(google.sign_in("kim@gmail.example", prompt="select_account")["code"])
    again = google.exchange(google.sign_in("kim@gmail.example", prompt="select_account")["code"])
    assert ("refresh_token" in first.json(), "refresh_token" in again.json()) == (True, False)
    assert "hd" not in claims_of(first.json()["id_token"])


def test_a_revoked_grant_ends_at_once(google: Google) -> None:
    token = google.linked()
    stored = google.renewer.hand_over(google.app, token["refresh_token"], NEEDED)
    url = f"{google.about['authority']}/revoke"
    ended = google.http.post(url, data={"token": token["refresh_token"]}, timeout=30)
    assert ended.status_code == 200
    assert isinstance(failure(google, token["access_token"]), TokenRefused)
    with pytest.raises(DeliveryError) as caught:
        google.renewer.renew(google.app, stored, NEEDED, "")
    assert (caught.value.kind, caught.value.code) == (
        FailureKind.NEEDS_REAUTHORISATION,
        "invalid_grant",
    )
    assert google.http.post(url, data={"token": "none"}, timeout=30).status_code == 400


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"client_secret": "wrong"}, "invalid_client"),
        ({"client_id": "other"}, "invalid_client"),
        (
            {"redirect_uri": "https://elsewhere.example/oauth/google/callback"},
            "redirect_uri_mismatch",
        ),
        ({"code_verifier": "another"}, "invalid_grant"),
        ({"code": "4/none"}, "invalid_grant"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
    ],
)
def test_a_code_is_good_for_whom_it_was_given(
    google: Google, changed: dict[str, str], error: str
) -> None:
    code = google.sign_in()["code"]
    assert google.exchange(code, **changed).json()["error"] == error


def test_a_code_is_good_once(google: Google) -> None:
    code = google.sign_in()["code"]
    assert google.exchange(code).ok
    assert google.exchange(code).json()["error"] == "invalid_grant"


def test_a_person_may_say_no(google: Google) -> None:
    assert google.sign_in(decision="cancel")["error"] == "access_denied"
    assert google.sign_in(decision="admin")["error"] == "admin_policy_enforced"


@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": "other"},
        {"redirect_uri": "https://postroom.example/elsewhere"},
        {"redirect_uri": "http://postroom.example/oauth/google/callback"},
        {"response_type": "token"},
    ],
)
def test_what_does_not_fit_is_shown_and_not_sent_back(
    google: Google, changed: dict[str, str]
) -> None:
    asked = {
        "client_id": google.about["client_id"],
        "redirect_uri": BACK,
        "response_type": "code",
        "scope": "openid",
    } | changed
    url = f"{google.sandbox.inbox}/google/o/oauth2/v2/auth?{urlencode(asked)}"
    answer = google.http.get(url, allow_redirects=False, timeout=30)
    assert answer.status_code == 400
    assert "neither Microsoft nor Google" in answer.text


def test_a_secret_is_proved(google: Google) -> None:
    assert google.renewer.prove(google.app, "").verdict is Verdict.RIGHT
    google.sandbox.fault("wrong_secret")
    assert google.renewer.prove(google.app, "").verdict is Verdict.WRONG


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("throttled", FailureKind.TRANSIENT),
        ("quota_exceeded", FailureKind.TRANSIENT),
        ("unavailable", FailureKind.TRANSIENT),
        ("access_denied", FailureKind.NEEDS_REAUTHORISATION),
        ("invalid_token", FailureKind.NEEDS_REAUTHORISATION),
        ("server_error", FailureKind.UNCERTAIN),
        ("sent_504", FailureKind.UNCERTAIN),
        ("not_sent_200", FailureKind.UNCERTAIN),
        ("dropped_after", FailureKind.UNCERTAIN),
    ],
)
def test_faults_are_shown_as_google_does(google: Google, fault: str, kind: FailureKind) -> None:
    token = google.linked()["access_token"]
    google.sandbox.fault(fault, times=1)
    assert failure(google, token).kind is kind
    google.gmail().send_mime(token, MIME)
