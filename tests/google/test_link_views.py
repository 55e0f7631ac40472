"""Google / Gmail on the pages: registrations, the link flow as a browser sees it, the aliases."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa
from werkzeug.test import TestResponse

from tests.factories import a_connection, a_site, a_user, an_app, an_installation
from tests.pages import Browser, Page
from tests.rig.sandbox import SandboxThread
from webapp import create_app
from webapp.connections.models import Connection
from webapp.delivery.models import Lane
from webapp.incidents.kinds import Kind
from webapp.incidents.signs import signs
from webapp.installation import Installation
from webapp.microsoft import service
from webapp.microsoft.dates import idle_days
from webapp.microsoft.models import Grant, GrantState, LinkFlow, Mailbox, OAuthApp
from webapp.sites.models import Site

INFO = "info@workshop.example"
SHOP = "shop@workshop.example"
KIM = "kim@gmail.example"
GENERAL = "/sites/workshop/settings/general"
APPS = "/settings/google-registrations"


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
    named = {name.removeprefix("POSTROOM_").lower(): v for name, v in sandbox.environment.items()}
    made = an_installation(f"sqlite:///{tmp_path / 'postroom.db'}", tmp_path, **named)
    yield made
    made.close()


@dataclass
class World:
    """A site with a connection to link at Google, and an admin's browser."""

    installation: Installation
    sandbox: SandboxThread
    client: Browser
    site: Site
    connection: Connection
    registration: OAuthApp
    led_to: str = ""

    def address(self, view: str, connection: Connection | None = None) -> str:
        uid = (connection or self.connection).uid
        return f"/sites/{self.site.slug}/connections/{uid}/{view}"

    def go(self, connection: Connection | None = None) -> str:
        """Press the button; the address at Google that the page leads to."""
        page = self.client.get(self.address("link", connection))
        assert page.h1 == "Taking you to Google"
        return page.links()["Continue to Google"]

    def back(self, account: str = INFO, decision: str = "accept", **which: Connection) -> str:
        """Sign in there; path and query to which Google sends the browser."""
        location = self.sandbox.sign_in(self.go(**which), account, decision=decision)
        assert location.startswith(f"{self.client.url}/oauth/google/callback?")
        return location.removeprefix(self.client.url)

    def arrive(self, path: str) -> str:
        """Come back from Google; the one notice that this leaves."""
        return self.after(self.client.fetch(path))

    def after(self, response: TestResponse) -> str:
        assert response.status_code == 303
        self.led_to = response.headers["Location"]
        (said,) = self.client.get("/account").notices
        return said

    def link(self, account: str = INFO, **which: Connection) -> str:
        return self.arrive(self.back(account, **which))

    def linked(self) -> Mailbox | None:
        with self.installation.db.read() as session:
            return service.mailbox_of(session, session.get_one(Connection, self.connection.id))

    def stored(self) -> Connection:
        with self.installation.db.read() as session:
            return session.get_one(Connection, self.connection.id)

    def lane(self) -> Lane:
        with self.installation.db.read() as session:
            return session.get_one(Lane, self.stored().lane_id)

    def another(self) -> Connection:
        """One more connection of the site, by the same registration."""
        with self.installation.db.write() as session:
            site = session.get_one(Site, self.site.id)
            made = a_connection(session, site, mailer="gmail", primary=False, from_email="")
            made.settings = {"gmail": {"one_click": True, "shared_app": ""}}
            return made

    def general(self) -> Page:
        return self.client.get(GENERAL)

    def is_good(self, refresh_token_of: str) -> bool:
        """Whether the sandbox still knows a refresh token of this account."""
        google = self.sandbox.world.google
        account = google.find(refresh_token_of)
        return any(given.sub == account.oid for given in google.refresh.values())


@pytest.fixture
def world(installation: Installation, sandbox: SandboxThread) -> World:
    app = create_app(installation)
    app.testing = True
    with installation.db.write() as session:
        site = a_site(session, name="Workshop", slug="workshop")
        user = a_user(session, is_admin=True)
        connection = a_connection(session, site, mailer="gmail", from_email="")
        connection.settings = {"gmail": {"one_click": True, "shared_app": ""}}
        connection.lane_id = None
        registration = an_app(
            session,
            installation.keyring,
            provider="google",
            cloud="google",
            tenant="google",
            name="Ours",
            client_id=sandbox.google["client_id"],
            secret=sandbox.google["client_secret"],
        )
    client = Browser(app)
    client.sign_in(user)
    return World(
        installation=installation,
        sandbox=sandbox,
        client=client,
        site=site,
        connection=connection,
        registration=registration,
    )


def query(address: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


# ---- the way there and back ----


def test_the_address_at_google_asks_for_what_is_needed_and_no_more(world: World) -> None:
    page = world.client.get(world.address("link"))
    listed = [item.text for item in page.one("main").all("li")]
    assert [item.split()[0] for item in listed] == ["gmail.send", "gmail.settings.basic"]
    asked = query(page.links()["Continue to Google"])
    assert asked["scope"].split() == [
        "openid",
        "email",
        "profile",
        "https://www.googleapis.com/auth/gmail.send",
        "https://www.googleapis.com/auth/gmail.settings.basic",
    ]
    assert asked["redirect_uri"] == f"{world.client.url}/oauth/google/callback"
    assert (asked["access_type"], asked["prompt"]) == ("offline", "consent")
    assert asked["code_challenge_method"] == "S256"
    assert asked["code_challenge"]
    assert asked["nonce"]
    assert asked["state"]
    assert "login_hint" not in asked


def test_one_click_setup_links_a_mailbox_with_its_aliases(world: World) -> None:
    said = world.link()
    assert said == f"{INFO} is linked. It is the From Email now."
    assert world.led_to == f"{GENERAL}#authorization-shared-gmail"
    box = world.linked()
    assert box is not None
    assert (box.provider, box.cloud, box.tenant_id) == ("google", "google", "google")
    assert (box.object_id, box.addresses) == ("113456789012345678901", [INFO, SHOP])
    lane = world.lane()
    assert lane.key == "google:google:google:113456789012345678901"
    assert (lane.concurrency, lane.per_minute, lane.per_day) == (2, 60, 2_000)
    page = world.general()
    row = page.one(id="authorization-shared-gmail")
    assert "Connected as Workshop" in row.text
    assert f"{INFO}, {SHOP}" in row.text
    assert page.all("button", value=f"from-alias:{SHOP}")
    assert query(world.go())["login_hint"] == INFO


def test_a_personal_account_begins_with_five_hundred_mails_a_day(world: World) -> None:
    world.link(KIM)
    assert world.lane().per_day == 500


def test_another_address_of_the_account_becomes_the_from_at_a_press(world: World) -> None:
    world.link()
    form = {
        "from_email": INFO,
        "force_from_email": "y",
        "mailer": "gmail",
        "gmail-one_click": "y",
        "then": f"from-alias:{SHOP}",
    }
    world.client.post(GENERAL, form)
    assert world.stored().from_email == SHOP
    said = " ".join(
        world.client.post(GENERAL, form | {"then": "", "from_email": "a@b.example"}).notices
    )
    assert f"Google would silently replace a@b.example by {INFO}" in said
    page = world.general()
    assert "Google would silently replace a@b.example" in page.one("main").text
    form["then"] = "from-alias:evil@b.example"
    world.client.post(GENERAL, form | {"from_email": INFO})
    assert world.stored().from_email == INFO


def test_removing_the_last_link_withdraws_it_at_google(world: World) -> None:
    world.link()
    page = world.client.get(world.address("unlink"))
    assert "withdrawn at Google too" in page.one("main").text
    said = world.after(world.client.send(world.address("unlink"), {"sure": "yes"}))
    assert said == f"The link with {INFO} is removed. It is withdrawn at Google too."
    assert world.linked() is None
    assert not world.is_good(INFO)
    with world.installation.db.read() as session:
        grant = session.scalars(sa.select(Grant)).one()
    assert (grant.state, grant.cache) == (GrantState.REMOVED, None)


def test_a_link_that_another_connection_uses_stays_at_google(world: World) -> None:
    world.link()
    other = world.another()
    world.link(connection=other)
    said = world.after(world.client.send(world.address("unlink"), {"sure": "yes"}))
    assert said == f"The link with {INFO} is removed."
    assert world.is_good(INFO)


# ---- where nothing comes of it ----


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        ("cancel", "Google’s question was answered with no."),
        ("admin", "Your organization does not let this app use Gmail."),
    ],
)
def test_a_refusal_on_googles_page_is_told(world: World, decision: str, words: str) -> None:
    said = world.arrive(world.back(decision=decision))
    assert said.startswith(words)
    assert world.linked() is None
    assert world.stored().from_email == ""


def test_without_permission_to_send_nothing_is_stored(world: World) -> None:
    path = world.back()
    world.sandbox.fault("reduced_consent", times=1)
    said = world.arrive(path)
    assert said.startswith("Permission to send is missing. Not granted: gmail.send.")
    with world.installation.db.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Grant)) == 0
        assert session.scalar(sa.select(sa.func.count()).select_from(Mailbox)) == 0


def test_a_wrong_secret_is_noted_at_the_registration(world: World) -> None:
    path = world.back()
    world.sandbox.fault("wrong_secret", times=1)
    assert world.arrive(path).startswith("Google does not accept the registration.")
    with world.installation.db.read() as session:
        app = session.get_one(OAuthApp, world.registration.id)
    assert app.problem_code == "invalid_client"
    shown = world.client.get(f"{APPS}/{app.uid}")
    assert "Google does not accept the registration." in " ".join(shown.notices)
    secret = world.sandbox.google["client_secret"]
    form = {"name": "Ours", "client_id": app.client_id, "client_secret": secret}
    world.client.post(f"{APPS}/{app.uid}", form)
    assert world.link().startswith(f"{INFO} is linked.")


def test_a_state_is_good_once_and_at_its_own_provider(world: World) -> None:
    assert "not started here" in world.arrive("/oauth/google/callback?code=x&state=forged")
    path = world.back()
    elsewhere = path.replace("/google/", "/microsoft/")
    assert "not started here" in world.arrive(elsewhere)
    assert "not started here" in world.arrive(path)
    with world.installation.db.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(LinkFlow)) == 0
    assert world.linked() is None


# ---- registrations ----


def test_a_registration_is_added_shown_and_removed(world: World) -> None:
    page = world.client.get(f"{APPS}/new")
    assert page.one(id="redirect-uri")["value"] == f"{world.client.url}/oauth/google/callback"
    assert "Publish app" in page.one("main").text
    wrong = {"name": "", "client_id": "3f1c2d84-9a07-4e51-8a3b-6d2f0c9b71e5"}
    said = world.client.post(f"{APPS}/new", wrong, status=422).one("main").text
    assert "it ends in .apps.googleusercontent.com" in said
    client_id = "123456789012-abc0123456789abcdef0123456789ab.apps.googleusercontent.com"
    form = {"name": "Second", "client_id": client_id, "client_secret": "GOCSPX-another"}
    listed = world.client.post(f"{APPS}/new", form)
    rows = [row.text.partition(" ")[0] for row in listed.all("th", scope="row")]
    assert rows == ["Ours", "Second"]
    assert "GOCSPX" not in listed.one("main").text
    assert "Second" not in world.client.get("/settings/microsoft-apps").one("main").text
    with world.installation.db.read() as session:
        app = session.scalars(sa.select(OAuthApp).where(OAuthApp.name == "Second")).one()
        assert (app.provider, app.cloud, app.tenant) == ("google", "google", "google")
    assert world.client.fetch(f"/settings/microsoft-apps/{app.uid}").status_code == 404
    gone = world.client.post(f"{APPS}/{app.uid}/remove", {"sure": "yes"})
    assert "Second is removed." in " ".join(gone.notices)


def test_a_connection_brings_a_client_of_its_own_beside_its_other_one(world: World) -> None:
    with world.installation.db.write() as session:
        an_app(
            session,
            world.installation.keyring,
            connection=session.get_one(Connection, world.connection.id),
        )
    form = {
        "from_email": "",
        "mailer": "gmail",
        "gmail-app-client_id": "no id",
        "gmail-app-client_secret": "x",
        "then": "authorize",
    }
    page = world.client.post(GENERAL, form, status=422)
    assert "Enter the Client ID as the Google Cloud console shows it" in page.one("main").text
    about = world.sandbox.google
    form["gmail-app-client_id"] = about["client_id"]
    form["gmail-app-client_secret"] = about["client_secret"]
    response = world.client.send(GENERAL, form)
    assert response.status_code == 303
    assert response.headers["Location"].partition("?")[0] == world.address("link")
    assert world.link().startswith(f"{INFO} is linked.")
    assert world.led_to.endswith("#authorization-own-gmail")
    with world.installation.db.read() as session:
        own = service.own_apps(session, world.stored())
    assert [app.provider for app in own] == ["microsoft", "google"]
    assert "Connected as Workshop" in world.general().one(id="authorization-own-gmail").text


# ---- trouble ----


def test_a_link_that_google_ended_is_explained_where_it_is_made_again(world: World) -> None:
    world.link()
    with world.installation.db.write() as session:
        grant = session.scalars(sa.select(Grant)).one()
        grant.state, grant.state_since = GrantState.NEEDS_REAUTHORISATION, grant.renewed_at
        grant.code, grant.words = "invalid_grant", "Token has been expired or revoked."
        service.note_refusal(
            session,
            grant.id,
            kind="needs-reauthorisation",
            code=grant.code,
            words=grant.words,
            now=world.installation.db.now(),
        )
    page = world.general()
    row = page.one(id="authorization-shared-gmail")
    assert "Google has ended the link" in row.text
    assert "Publish app" in row.text
    assert "Microsoft" not in row.text
    assert page.all(id="authorization-gmail")
    board = world.client.get(f"/sites/{world.site.slug}/log")
    assert f"{GENERAL}#authorization-gmail" in board.one("main").links_to()
    with world.installation.db.read() as session:
        now, settings = world.installation.db.now(), world.installation.settings
        (sign,) = [one for one in signs(session, now, settings) if one.kind is Kind.LINK]
    assert (sign.details["provider"], sign.details["mailer"]) == ("Google", "gmail")


def test_google_keeps_a_link_that_nobody_renews_for_six_months(world: World) -> None:
    now = world.installation.db.now()
    days = [idle_days(now, now, provider) for provider in ("microsoft", "google")]
    assert days == [90, 180]
