"""The link flow as a browser sees it, against the stand-in for Microsoft."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa
from flask import Flask

from tests.factories import (
    a_connection,
    a_membership,
    a_site,
    a_user,
    an_app,
    an_installation,
)
from tests.pages import Browser, Page
from tests.rig.sandbox import SandboxThread
from webapp import create_app
from webapp.accounts.models import Role, User
from webapp.connections.models import Connection
from webapp.installation import Installation
from webapp.microsoft.models import Grant, LinkFlow, Mailbox, OAuthApp
from webapp.sites.models import Site

ORDERS = "orders@contoso.example"
ANN = "ann@contoso.example"
SAM = "sam@outlook.example"


@pytest.fixture(scope="module")
def running() -> Iterator[SandboxThread]:
    with SandboxThread() as made:
        yield made


@pytest.fixture
def sandbox(running: SandboxThread) -> SandboxThread:
    running.reset()
    return running


@pytest.fixture
def installation(tmp_path: Path, sandbox: SandboxThread) -> Iterator[Installation]:
    made = an_installation(
        f"sqlite:///{tmp_path / 'postroom.db'}",
        tmp_path,
        microsoft_authority=sandbox.authority,
        microsoft_graph=sandbox.graph,
        ca_bundle=sandbox.ca,
    )
    yield made
    made.close()


@dataclass
class World:
    """A site with a connection to link, somebody who may, and their browser."""

    installation: Installation
    sandbox: SandboxThread
    app: Flask
    client: Browser
    site: Site
    user: User
    connection: Connection
    registration: OAuthApp

    def address(self, view: str) -> str:
        return f"/sites/{self.site.slug}/connections/{self.connection.uid}/{view}"

    def go(self) -> str:
        """Press the button; the address at Microsoft that the page leads to."""
        page = self.client.get(self.address("link"))
        refresh = page.one("meta", http_equiv="refresh")["content"]
        address = refresh.partition("url=")[2]
        assert page.links()["Continue to Microsoft"] == address
        return address

    def back(self, account: str = ORDERS, decision: str = "accept") -> str:
        """Sign in there; path and query to which Microsoft sends the browser."""
        return self.path(self.sandbox.sign_in(self.go(), account, decision=decision))

    def path(self, location: str) -> str:
        assert location.startswith(f"{self.client.url}/oauth/microsoft/callback?")
        return location.removeprefix(self.client.url)

    def arrive(self, path: str) -> Page:
        """Come back from Microsoft; the page that this ends on."""
        response = self.client.fetch(path)
        while response.status_code == 303:
            response = self.client.fetch(response.headers["Location"].partition("#")[0])
        assert response.status_code == 200
        return Page(response)

    def link(self, account: str = ORDERS) -> Page:
        return self.arrive(self.back(account))

    def notice(self, path: str) -> str:
        """The one notice that coming back by this path leaves."""
        (found,) = [text for text in self.arrive(path).notices if "Settings" not in text[:9]]
        return found

    def linked(self) -> str:
        """The address of the mailbox that the connection is linked with."""
        with self.installation.db.read() as session:
            connection = session.get_one(Connection, self.connection.id)
            if connection.grant_id is None:
                return ""
            grant = session.get_one(Grant, connection.grant_id)
            return session.get_one(Mailbox, grant.mailbox_id).address

    def stored(self) -> Connection:
        with self.installation.db.read() as session:
            return session.get_one(Connection, self.connection.id)

    def flows(self) -> int:
        with self.installation.db.read() as session:
            return session.scalar(sa.select(sa.func.count()).select_from(LinkFlow)) or 0

    def set(self, row: Connection | OAuthApp, **values: object) -> None:
        with self.installation.db.write() as session:
            found = session.get_one(type(row), row.id)
            for name, value in values.items():
                setattr(found, name, value)


@pytest.fixture
def world(installation: Installation, sandbox: SandboxThread) -> World:
    app = create_app(installation)
    app.testing = True
    with installation.db.write() as session:
        site, user = a_site(session, name="Galerie Nord"), a_user(session)
        a_membership(session, user, site, Role.OPERATOR)
        connection = a_connection(session, site, mailer="outlook", from_email="")
        connection.settings = {"outlook": {"one_click": True, "shared_app": ""}}
        connection.lane_id = None
        registration = an_app(
            session,
            installation.keyring,
            cloud="custom",
            client_id=sandbox.client_id,
            secret=sandbox.client_secret,
        )
    client = Browser(app)
    client.sign_in(user)
    return World(
        installation=installation,
        sandbox=sandbox,
        app=app,
        client=client,
        site=site,
        user=user,
        connection=connection,
        registration=registration,
    )


def query(address: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


# ---- the way there and back ----


def test_the_page_before_says_what_will_be_asked_for_and_why(world: World) -> None:
    page = world.client.get(world.address("link"))
    assert page.h1 == "Taking you to Microsoft"
    listed = [item.text for item in page.one("main").all("li")]
    assert listed[0] == "User.Read to read the name and the address of the account"
    assert listed[1] == "Mail.Send to send mail as this account"
    assert listed[2].startswith("offline_access to stay connected")


def test_the_address_at_microsoft_asks_for_what_is_needed_and_no_more(world: World) -> None:
    asked = query(world.go())
    assert asked["scope"].split() == [
        "openid",
        "profile",
        "email",
        "offline_access",
        f"{world.sandbox.graph}/User.Read",
        f"{world.sandbox.graph}/Mail.Send",
    ]
    assert asked["redirect_uri"] == f"{world.client.url}/oauth/microsoft/callback"
    assert asked["prompt"] == "select_account"
    assert "login_hint" not in asked
    assert asked["response_mode"] == "query"
    assert asked["response_type"] == "code"
    assert asked["code_challenge_method"] == "S256"
    assert asked["code_challenge"]
    assert asked["nonce"]
    assert asked["state"]


def test_one_click_setup_links_a_mailbox(world: World) -> None:
    page = world.link()
    assert world.linked() == ORDERS
    assert page.notices[0] == f"{ORDERS} is linked. It is the From Email now."
    assert world.stored().from_email == ORDERS
