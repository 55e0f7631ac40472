"""Parts of the link flow that need no sign-in: addresses, scopes, claims, the flows as rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa
from flask import Flask
from flask_login import login_user

from tests.factories import a_connection, a_grant, a_link, a_mailbox, a_site, a_user, an_app
from tests.factories import an_installation as made_installation
from webapp import create_app
from webapp.accounts.models import User
from webapp.connections.models import Connection
from webapp.installation import Installation
from webapp.microsoft import link as flows
from webapp.microsoft.clouds import CLOUDS, PERSONAL_TENANT
from webapp.microsoft.link import Opened
from webapp.microsoft.models import Consent, LinkFlow, OAuthApp
from webapp.microsoft.refusals import NotLinked, clean, told
from webapp.outward import TIME_LIMIT, USER_AGENT
from webapp.sites.models import Site
from webapp.web import Person

GLOBAL = {cloud.slug: cloud for cloud in CLOUDS}["global"]
SIGN_IN = flows.SIGN_INS["microsoft"]
CHINA = {cloud.slug: cloud for cloud in CLOUDS}["china"]
TENANT = "3f2a7c1e-5b84-4d0e-9c63-1a2b3c4d5e6f"


@dataclass
class Place:
    """A connection with a registration, within a request of somebody who may."""

    installation: Installation
    app: Flask
    site: Site
    user: User
    connection: Connection
    registration: OAuthApp

    def opened(self) -> Opened:
        with self.installation.db.read() as session:
            connection = session.get_one(Connection, self.connection.id)
            return flows.open_link(session, self.site, connection)


@pytest.fixture
def place(db_url: str, tmp_path: Path) -> Iterator[Place]:
    installation = made_installation(db_url, tmp_path)
    app = create_app(installation)
    with installation.db.write() as session:
        site, user = a_site(session), a_user(session, is_admin=True)
        connection = a_connection(session, site, mailer="outlook", from_email="")
        connection.settings = {"outlook": {"one_click": True, "shared_app": ""}}
        registration = an_app(session, installation.keyring)
    with app.test_request_context():
        login_user(Person(user=user, session=None, secret="x"))  # type: ignore[arg-type]
        yield Place(
            installation=installation,
            app=app,
            site=site,
            user=user,
            connection=connection,
            registration=registration,
        )
    installation.close()


# ---- addresses and scopes ----


def test_the_way_back_is_the_public_address_and_never_the_host_header(tmp_path: Path) -> None:
    installation = made_installation(
        f"sqlite:///{tmp_path / 'postroom.db'}", tmp_path, public_url="https://post.example/mail/"
    )
    app = create_app(installation)
    with app.test_request_context(base_url="https://evil.example"):
        found = SIGN_IN.redirect_uri(installation.settings)
    assert found == "https://post.example/mail/oauth/microsoft/callback"
    installation.close()


def test_each_cloud_is_asked_for_its_own_scopes() -> None:
    assert SIGN_IN.scopes(GLOBAL)[1] == "https://graph.microsoft.com/Mail.Send"
    assert SIGN_IN.scopes(CHINA)[1] == "https://microsoftgraph.chinacloudapi.cn/Mail.Send"


@pytest.mark.parametrize(
    ("scope", "granted"),
    [
        ("openid profile Mail.Send User.Read", ["Mail.Send", "User.Read"]),
        ("https://graph.microsoft.com/mail.send email", ["Mail.Send"]),
        ("https://graph.microsoft.us/Mail.Send", ["https://graph.microsoft.us/Mail.Send"]),
        ("User.Read User.Read Mail.Read", ["User.Read", "Mail.Read"]),
        ("", []),
    ],
)
def test_what_was_granted_is_read_with_and_without_the_cloud(
    scope: str, granted: list[str]
) -> None:
    assert SIGN_IN.granted(GLOBAL, scope) == granted


# ---- the ID token ----


def test_the_issuer_is_that_of_the_tenant_who_signed_in(place: Place) -> None:
    validate = SIGN_IN.claims(place.opened())["iss"]["validate"]
    claims = {"tid": TENANT}
    assert validate(claims, f"https://login.microsoftonline.com/{TENANT}/v2.0")  # type: ignore[operator]
    for issuer in (
        "https://login.microsoftonline.com/{tenantid}/v2.0",
        f"https://login.microsoftonline.us/{TENANT}/v2.0",
        f"https://login.microsoftonline.com/{PERSONAL_TENANT}/v2.0",
        "",
    ):
        assert not validate(claims, issuer)  # type: ignore[operator]


def test_a_registration_of_one_tenant_takes_accounts_of_that_one(place: Place) -> None:
    with place.installation.db.write() as session:
        session.get_one(OAuthApp, place.registration.id).tenant = TENANT
    validate = SIGN_IN.claims(place.opened())["tid"]["validate"]
    assert validate({}, TENANT.upper())  # type: ignore[operator]
    assert not validate({}, PERSONAL_TENANT)  # type: ignore[operator]


def test_claims_options_are_made_anew_for_each_answer(place: Place) -> None:
    opened = place.opened()
    first = SIGN_IN.claims(opened)
    del first["iss"]["validate"]
    assert "validate" in SIGN_IN.claims(opened)["iss"]


# ---- the client ----


def test_the_client_has_our_limits_certificates_and_name(place: Place) -> None:
    client = flows._client(place.opened(), flows._Memory())
    with client._get_oauth_client() as session:
        assert session.time_limit == TIME_LIMIT
        assert session.trust_env is False
        assert session.verify == str(place.installation.settings.instance / "trusted.pem")
        assert session.headers["User-Agent"] == USER_AGENT
        assert session.client_id == place.registration.client_id
        assert session.token_endpoint_auth_method == "client_secret_post"


def test_a_call_to_the_sign_in_service_never_waits_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def send(self: object, request: object, **options: object) -> requests.Response:
        seen.append(options["timeout"])
        raise requests.ConnectTimeout

    monkeypatch.setattr(requests.Session, "send", send)
    with pytest.raises(NotLinked) as caught:
        flows.begin(place.opened())
    assert seen == [TIME_LIMIT]
    assert "no answer came in time" in caught.value.notice.text


# ---- flows as rows ----


def keep(place: Place, state: str = "a-state", **data: object) -> LinkFlow:
    with place.installation.db.write() as session:
        return flows._keep(
            session,
            flows.FlowKind.LINK,
            place.opened(),
            state,
            {"memory": {}, "identity": [], **data},
            lasts=flows.FLOW_LASTS,
        )


def test_a_flow_is_taken_once(place: Place) -> None:
    keep(place, memory={"_state_microsoft_a-state": "verifier"})
    found = flows.take("a-state")
    assert found is not None
    assert found.memory == {"_state_microsoft_a-state": "verifier"}
    assert found.user_id == place.user.id
    assert flows.take("a-state") is None


def test_neither_state_nor_verifier_is_readable_in_the_table(place: Place) -> None:
    kept = keep(place, memory={"x": "the-verifier"})
    row = f"{kept.digest} {kept.data}"
    assert "a-state" not in row
    assert "the-verifier" not in row


def test_a_flow_moved_to_another_state_opens_nothing(place: Place) -> None:
    kept = keep(place)
    with place.installation.db.write() as session:
        session.get_one(LinkFlow, kept.id).digest = flows.digest("mine")
    assert flows.take("mine") is None


def test_a_request_is_asked_answered_and_shown(place: Place) -> None:
    with place.installation.db.write() as session:
        flows.ask_admin(session, place.opened())
    with place.installation.db.read() as session:
        asked = flows.consent_request(
            session, place.installation.keyring, place.connection, place.registration
        )
    assert asked is not None
    state = asked.url.rpartition("state=")[2]
    assert flows.admin_came_back("another", {"admin_consent": "True"}) is None
    landing = flows.admin_came_back(state, {"admin_consent": "True", "tenant": "x"})
    assert landing is not None
    assert landing.outcome is Consent.GIVEN
    assert flows.take(state) is None


def test_a_refusal_with_odd_words_is_stored(place: Place) -> None:
    with place.installation.db.write() as session:
        flows.ask_admin(session, place.opened())
    with place.installation.db.read() as session:
        asked = flows.consent_request(
            session, place.installation.keyring, place.connection, place.registration
        )
    assert asked is not None
    answer = {"error": "e" * 500, "error_description": "no\x00pe\n" + "y" * 9000}
    landing = flows.admin_came_back(asked.url.rpartition("state=")[2], answer)
    assert landing is not None
    assert landing.words.startswith("no pe yyy")
    assert len(landing.code) == 40


def test_a_deleted_connection_takes_its_flows_along(place: Place) -> None:
    keep(place)
    with place.installation.db.write() as session:
        session.execute(sa.update(Site).values(primary_connection_id=None))
        session.execute(sa.delete(Connection))
    assert flows.take("a-state") is None


def test_the_hint_is_the_sign_in_name_of_the_linked_account(place: Place) -> None:
    assert place.opened().hint == ""
    with place.installation.db.write() as session:
        app = session.get_one(OAuthApp, place.registration.id)
        mailbox = a_mailbox(
            session, address="ann@contoso.example", sign_in_name="ann.lee@x.example"
        )
        connection = session.get_one(Connection, place.connection.id)
        a_link(session, connection, a_grant(session, place.installation.keyring, app, mailbox))
    assert place.opened().hint == "ann.lee@x.example"


# ---- what went wrong, in words ----


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.exceptions.SSLError(), "its certificate is not trusted here"),
        (requests.exceptions.ProxyError(), "the proxy lets nothing through"),
        (requests.exceptions.ReadTimeout(), "no answer came in time"),
        (requests.exceptions.ConnectionError(), "no connection"),
        (requests.exceptions.JSONDecodeError("x", "", 0), "Check the cloud"),
        (KeyError("id_token"), "Check the cloud"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_fault_on_the_way_has_its_words(place: Place, error: Exception, words: str) -> None:
    with pytest.raises(NotLinked) as caught, told("login.example", {}):
        raise error
    assert words in caught.value.notice.text


@pytest.mark.parametrize("body", [b"<html>busy</html>", b"[]", b""])
def test_an_error_page_is_told_by_its_status(place: Place, body: bytes) -> None:
    response = requests.Response()
    response.status_code, response._content = 503, body
    with pytest.raises(NotLinked) as caught, told("login.example", {}):
        response.raise_for_status()
    assert caught.value.notice.strong == "login.example answers with an error."
    assert "503" in caught.value.notice.text


def test_words_are_made_fit_to_be_shown() -> None:
    assert clean("a\x00b\r\n\u202ec   d", 100) == "a b c d"
    assert clean("x" * 50, 10) == "x" * 10
