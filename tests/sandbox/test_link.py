"""Linking an account by Authlib's Flask client, as the dashboard does it."""

from typing import Any

import pytest
from authlib.integrations.base_client import OAuthError
from authlib.integrations.flask_client import FlaskOAuth2App, OAuth
from flask import Flask, session

from tests.rig.sandbox import SandboxThread
from tests.sandbox.conftest import CALLBACK, Client, arguments, number_of
from webapp.sandbox.directory import CONTOSO, FABRIKAM, PERSONAL_TENANT


@pytest.fixture
def app() -> Flask:
    made = Flask("linking")
    made.secret_key = "for one test"
    return made


def an_authlib_client(app: Flask, sandbox: SandboxThread, segment: str) -> FlaskOAuth2App:
    root = f"{sandbox.authority}/{segment}/v2.0"
    return OAuth(app).register(
        "microsoft",
        client_id=sandbox.client_id,
        client_secret=sandbox.client_secret,
        server_metadata_url=f"{root}/.well-known/openid-configuration",
        client_kwargs={
            "scope": f"openid profile email offline_access {sandbox.graph}/Mail.Send",
            "code_challenge_method": "S256",
            "token_endpoint_auth_method": "client_secret_post",
            "verify": sandbox.ca,
            "trust_env": False,
        },
    )


def claims_options(sandbox: SandboxThread) -> dict[str, Any]:
    def issuer_matches(claims: dict[str, Any], issuer: str) -> bool:
        return issuer == f"{sandbox.authority}/{claims['tid']}/v2.0"

    return {
        "iss": {"essential": True, "validate": issuer_matches},
        "aud": {"essential": True, "value": sandbox.client_id},
    }


def begin(app: Flask, authlib: FlaskOAuth2App) -> tuple[str, dict[str, Any]]:
    """The authorize address, and what the browser's session holds."""
    with app.test_request_context("/begin"):
        address = authlib.authorize_redirect(CALLBACK).headers["Location"]
        return address, dict(session)


def finish(
    app: Flask, authlib: FlaskOAuth2App, back: str, held: dict[str, Any], sandbox: SandboxThread
) -> dict[str, Any]:
    with app.test_request_context(back):
        session.update(held)
        return dict(authlib.authorize_access_token(claims_options=claims_options(sandbox)))


@pytest.mark.parametrize("segment", ["common", "organizations", CONTOSO, "contoso.example"])
def test_an_account_is_linked(app: Flask, sandbox: SandboxThread, segment: str) -> None:
    authlib = an_authlib_client(app, sandbox, segment)
    address, held = begin(app, authlib)
    assert address.startswith(f"{sandbox.inbox}/{segment}/oauth2/v2.0/authorize?")
    token = finish(app, authlib, sandbox.sign_in(address, "ann@contoso.example"), held, sandbox)
    who = token["userinfo"]
    assert (who["tid"], who["name"]) == (CONTOSO, "Ann Lee")
    assert (who["preferred_username"], who["email"]) == (
        "ann.lee@mail.contoso.example",
        "ann@contoso.example",
    )
    assert who["ver"] == "2.0"
    assert token["scope"] == f"openid profile email {sandbox.graph}/Mail.Send"
    assert token["refresh_token"]
    assert token["expires_in"] == 3600


def test_a_personal_account_is_linked(app: Flask, sandbox: SandboxThread) -> None:
    authlib = an_authlib_client(app, sandbox, "consumers")
    address, held = begin(app, authlib)
    token = finish(app, authlib, sandbox.sign_in(address, "sam@outlook.example"), held, sandbox)
    assert token["userinfo"]["tid"] == PERSONAL_TENANT


def test_another_verifier_is_refused(app: Flask, sandbox: SandboxThread) -> None:
    authlib = an_authlib_client(app, sandbox, "common")
    address, held = begin(app, authlib)
    back = sandbox.sign_in(address, "ann@contoso.example")
    for value in held.values():
        value["data"]["code_verifier"] = "x" * 48
    with pytest.raises(OAuthError) as caught:
        finish(app, authlib, back, held, sandbox)
    assert caught.value.error == "invalid_grant"
    assert "AADSTS501481" in caught.value.description


def test_a_code_works_once(client: Client) -> None:
    back = client.sandbox.sign_in(client.sandbox.authorize_url(), "ann@contoso.example")
    form = {
        "grant_type": "authorization_code",
        "code": arguments(back)["code"],
        "redirect_uri": CALLBACK,
    }
    assert client.token(**form).ok
    again = client.token(**form)
    assert (again.status_code, number_of(again)) == (400, 54005)


def test_a_code_works_for_ten_minutes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    back = client.sandbox.sign_in(client.sandbox.authorize_url(), "ann@contoso.example")
    tokens = client.sandbox.world.tokens
    now = tokens._clock()
    monkeypatch.setattr(tokens, "_clock", lambda: now + 601)
    late = client.token(
        grant_type="authorization_code", code=arguments(back)["code"], redirect_uri=CALLBACK
    )
    assert (late.json()["error"], number_of(late)) == ("invalid_grant", 70008)


def test_the_redirect_address_is_compared(client: Client) -> None:
    back = client.sandbox.sign_in(client.sandbox.authorize_url(), "ann@contoso.example")
    answer = client.token(
        grant_type="authorization_code",
        code=arguments(back)["code"],
        redirect_uri="http://localhost:9/oauth/microsoft/callback",
    )
    assert number_of(answer) == 50011


def test_without_offline_access_there_is_no_refresh_token(client: Client) -> None:
    tokens = client.link(scope=f"openid {client.sandbox.graph}/Mail.Send")
    assert "refresh_token" not in tokens
    assert "id_token" in tokens


def test_client_info_comes_when_asked_for(client: Client) -> None:
    tokens = client.link()
    assert "client_info" not in tokens
    assert "client_info" in client.refresh(tokens, client_info="1").json()


def test_basic_authentication_is_taken(client: Client) -> None:
    answer = client.http.post(
        f"{client.sandbox.authority}/{CONTOSO}/oauth2/v2.0/token",
        data={"grant_type": "client_credentials", "scope": f"{client.sandbox.graph}/.default"},
        auth=(client.sandbox.client_id, client.sandbox.client_secret),
        timeout=30,
    )
    assert answer.ok


@pytest.mark.parametrize(
    ("secret", "number"), [("", 7000218), ("f00dcafe-0000-4000-8000-000000000000", 7000215)]
)
def test_a_wrong_secret_is_refused(client: Client, secret: str, number: int) -> None:
    tokens = client.link()
    answer = client.refresh(tokens, client_secret=secret)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    assert number_of(answer) == number


def test_a_scope_of_another_cloud_is_refused(client: Client) -> None:
    answer = client.refresh(client.link(), scope="https://graph.microsoft.us/Mail.Send")
    assert (answer.json()["error"], number_of(answer)) == ("invalid_scope", 70011)


def test_a_scope_that_nobody_consented_to_is_refused(client: Client) -> None:
    answer = client.refresh(client.link(), scope=f"{client.sandbox.graph}/Mail.ReadWrite")
    assert (answer.json()["suberror"], number_of(answer)) == ("consent_required", 65001)


@pytest.mark.parametrize(
    ("segment", "issuer"),
    [
        ("common", "{tenantid}"),
        ("organizations", "{tenantid}"),
        ("consumers", PERSONAL_TENANT),
        (FABRIKAM, FABRIKAM),
        ("fabrikam.example", FABRIKAM),
    ],
)
def test_the_metadata_name_the_issuer_as_microsoft_does(
    client: Client, segment: str, issuer: str
) -> None:
    root = client.sandbox.authority
    url = f"{root}/{segment}/v2.0/.well-known/openid-configuration"
    found = client.http.get(url, timeout=30).json()
    assert found["issuer"] == f"{root}/{issuer}/v2.0"
    assert found["token_endpoint"] == f"{root}/{segment}/oauth2/v2.0/token"
    assert found["msgraph_host"] == client.sandbox.graph.removeprefix("https://")


def test_an_unknown_tenant_has_no_metadata(client: Client) -> None:
    url = f"{client.sandbox.authority}/nowhere.example/v2.0/.well-known/openid-configuration"
    answer = client.http.get(url, timeout=30)
    assert (answer.status_code, number_of(answer)) == (400, 90002)
