"""The page that shows the API, and the keys on the page Connect."""

import re

import pytest
import sqlalchemy as sa

from tests.factories import a_membership, a_site, a_user
from tests.pages import Browser
from webapp.accounts.models import Role
from webapp.installation import Installation
from webapp.problems import KINDS
from webapp.sites.models import Credential


def an_operator(client: Browser, installation: Installation) -> str:
    with installation.db.write() as session:
        site, user = a_site(session), a_user(session)
        a_membership(session, user, site, Role.OPERATOR)
    client.sign_in(user)
    return site.slug


def test_the_page_shows_every_operation_and_problem(
    client: Browser, installation: Installation
) -> None:
    an_operator(client, installation)
    page = client.get("/api")
    assert page.h1 == "HTTP API"
    for path in ("POST /api/v1/messages", "POST /api/v1/messages/{queue_id}/resend"):
        assert page.all("code", class_="mono")
        assert path in page.text
    for kind in KINDS:
        assert page.one(id=kind)
    assert "/api" in page.links_to()  # the footer leads here
    for link in page.links_to():
        if link.startswith("#shape-"):
            assert page.one(id=link[1:])


def test_the_page_speaks_chinese(client: Browser, installation: Installation) -> None:
    an_operator(client, installation)
    page = client.get("/api", headers={"Accept-Language": "zh-CN"})
    assert page.one("html")["lang"] == "zh-Hans"
    assert "RFC 9457" in page.text


@pytest.mark.parametrize(
    ("chosen", "scopes"),
    [("send", ["send"]), ("send read manage", ["send", "read", "manage"]), ("read", ["read"])],
)
def test_a_key_is_shown_once(
    client: Browser, installation: Installation, chosen: str, scopes: list[str]
) -> None:
    slug = an_operator(client, installation)
    form = {"key-label": "shop", "key-senders": "shop@a.example", "key-scopes": chosen}
    page = client.post(f"/sites/{slug}/keys", form)
    key = page.one(id="in-key")["value"]
    assert re.fullmatch(r"pk_[0-9a-z]{10}\.[0-9a-z]{32}", key)
    for recipe in ("curl", "python", "php", "node"):
        text = page.one(id=f"recipe-api-{recipe}").text
        assert key in text
        assert "/api/v1/messages" in text
        assert "shop@a.example" in text
    assert f"sendmail -t -i --site {slug}" in page.one(id="recipe-api-mail").text
    again = client.get(f"/sites/{slug}/credentials")
    assert key not in again.text
    assert key.partition(".")[0] in again.text
    with installation.db.read() as session:
        stored = session.scalars(sa.select(Credential)).one()
    assert (stored.scopes, stored.senders) == (scopes, ["shop@a.example"])


def test_a_wrong_key_form_says_what_is_wrong(client: Browser, installation: Installation) -> None:
    slug = an_operator(client, installation)
    form = {"key-senders": "nobody", "key-scopes": "send"}
    page = client.post(f"/sites/{slug}/keys", form, status=422)
    assert "key-senders" in page.errors
    form = {"key-scopes": "everything"}
    page = client.post(f"/sites/{slug}/keys", form, status=422)
    assert "key-scopes" in page.errors
