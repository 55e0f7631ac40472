"""The link flow as a browser sees it, against the stand-in for Microsoft."""

import logging
import select
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Flask
from werkzeug.test import TestResponse

from tests.factories import (
    a_connection,
    a_membership,
    a_message,
    a_site,
    a_user,
    an_app,
    an_installation,
)
from tests.pages import Browser, Page
from tests.rig.ports import free_port
from tests.rig.sandbox import SandboxThread
from webapp import create_app
from webapp.accounts.models import Membership, Role, User, UserSession
from webapp.audit import AuditEvent
from webapp.connections.models import Connection, Health
from webapp.delivery.models import Lane, Message
from webapp.delivery.wake import Listener
from webapp.installation import Installation
from webapp.microsoft import link as flows
from webapp.microsoft.clouds import clouds
from webapp.microsoft.link import ConsentRequest
from webapp.microsoft.models import Consent, Grant, GrantState, Link, LinkFlow, Mailbox, OAuthApp
from webapp.microsoft.tokens import Tokens
from webapp.oauth_session import OAuthSession
from webapp.outward import Outward
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
    led_to: str = ""
    """Where the last redirect led."""

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
        """Come back from Microsoft; a page that shows what was told."""
        response = self.client.fetch(path)
        return self.after(response) if response.status_code == 303 else Page(response)

    def post(self, view: str, **data: str) -> Page:
        """Press a button here; a page that shows what was told."""
        return self.after(self.client.send(self.address(view), data))

    def after(self, response: TestResponse) -> Page:
        assert response.status_code == 303
        self.led_to = response.headers["Location"]
        shown = self.client.fetch("/account")
        while shown.status_code == 303:
            shown = self.client.fetch(shown.headers["Location"])
        return Page(shown)

    def link(self, account: str = ORDERS) -> Page:
        return self.arrive(self.back(account))

    def notice(self, path: str) -> str:
        """The one notice that coming back by this path leaves."""
        return told(self.arrive(path))

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


def told(page: Page) -> str:
    """The one notice that tells what the last request did."""
    (found,) = page.notices
    return found


def query(address: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


def a_source(installation: Installation, sandbox: SandboxThread) -> Tokens:
    return Tokens(
        installation.db,
        lambda: installation.keyring,
        clouds(installation.settings),
        lambda: Outward(ca_file=sandbox.ca),
    )


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
    assert world.led_to == f"/sites/{world.site.slug}/settings/general#authorization-shared-app"
    assert world.linked() == ORDERS
    assert told(page) == f"{ORDERS} is linked. It is the From Email now."
    assert world.stored().from_email == ORDERS


def test_people_come_back_to_the_settings_with_one_notice(world: World) -> None:
    response = world.client.fetch(world.back())
    page = world.client.get(response.headers["Location"].partition("#")[0])
    assert page.all(id="authorization-shared-app")
    assert len([text for text in page.notices if "is linked." in text]) == 1


def test_waiting_mail_leaves_once_a_mailbox_is_linked(world: World) -> None:
    with world.installation.db.write() as session:
        mail = a_message(session, world.site, connection=world.connection)
    page = world.link()
    assert told(page).endswith("1 waiting mail now leaves.")
    with world.installation.db.read() as session:
        found = session.get_one(Message, mail.id)
        assert found.lane_id == session.get_one(Connection, world.connection.id).lane_id
        assert found.lane_id is not None


def test_a_registration_of_ones_own_links_a_mailbox_too(world: World) -> None:
    own = world.sandbox.single_tenant
    with world.installation.db.write() as session:
        connection = session.get_one(Connection, world.connection.id)
        connection.settings = {"outlook": {"one_click": False, "shared_app": ""}}
        an_app(
            session,
            world.installation.keyring,
            connection=connection,
            cloud="custom",
            tenant=own["tenant"],
            client_id=own["client_id"],
            secret=own["client_secret"],
        )
    assert urlsplit(world.go()).path.startswith(f"/{own['tenant']}/")
    world.link(ANN)
    assert world.linked() == ANN


def test_a_personal_account_is_linked(world: World) -> None:
    world.link(SAM)
    assert world.linked() == SAM


def test_who_is_linked_is_told_by_the_id_token_and_by_graph(world: World) -> None:
    world.link(ANN)
    with world.installation.db.read() as session:
        mailbox = session.scalars(sa.select(Mailbox)).one()
        grant = session.scalars(sa.select(Grant)).one()
        link = session.scalars(sa.select(Link)).one()
    assert mailbox.object_id == "b1f0a9d2-3c4e-4f56-8a7b-0c1d2e3f4a52"
    assert mailbox.tenant_id == "3f2a7c1e-5b84-4d0e-9c63-1a2b3c4d5e6f"
    assert mailbox.sign_in_name == "ann.lee@mail.contoso.example"
    assert mailbox.addresses == [ANN, "ann.lee@mail.contoso.example"]
    assert sorted(grant.scopes) == ["Mail.Send", "User.Read"]
    assert link.linked_by == world.user.email


def test_what_is_stored_sends_mail_and_is_sealed(world: World) -> None:
    world.link()
    with world.installation.db.read() as session:
        grant = session.scalars(sa.select(Grant)).one()
    assert grant.cache is not None
    cache = world.installation.keyring.unseal("grant", f"grant:{grant.id}", grant.cache)
    assert "RefreshToken" in str(cache)
    assert "refresh_token" not in grant.cache
    assert a_source(world.installation, world.sandbox).token(grant.id).api.endswith("/graph/v1.0")


def test_a_from_email_chosen_by_hand_stays_and_the_account_is_offered(world: World) -> None:
    world.set(world.connection, from_email="shop@elsewhere.example")
    page = world.link()
    assert world.stored().from_email == "shop@elsewhere.example"
    assert "From Email is shop@elsewhere.example. Microsoft refuses" in told(page)
    offer = page.links()[f"Set From Email to {ORDERS}"]
    asked = world.client.get(offer)
    assert asked.h1 == f"Set From Email to {ORDERS}?"
    world.client.send(offer)
    assert world.stored().from_email == ORDERS


def test_an_alias_as_from_email_needs_no_word(world: World) -> None:
    world.set(world.connection, from_email="Sales@contoso.example")
    assert told(world.link()) == f"{ORDERS} is linked."


def test_linking_again_asks_for_the_same_account(world: World) -> None:
    world.link(ANN)
    asked = query(world.go())
    assert asked["login_hint"] == "ann.lee@mail.contoso.example"
    assert "prompt" not in asked


def test_linking_again_replaces_the_tokens_and_ends_a_refusal(world: World) -> None:
    world.link()
    with world.installation.db.write() as session:
        grant = session.scalars(sa.select(Grant)).one()
        grant.state, old = GrantState.NEEDS_REAUTHORISATION, grant.cache
    world.link()
    with world.installation.db.read() as session:
        grant = session.scalars(sa.select(Grant)).one()
    assert grant.state == GrantState.LINKED
    assert grant.cache != old


def test_the_worker_is_woken_by_a_link(world: World) -> None:
    listener = Listener(world.installation.settings.instance)
    try:
        world.link()
        assert select.select([listener.socket], [], [], 5)[0]
    finally:
        listener.close()


# ---- where a link cannot be begun ----


def refused(world: World) -> str:
    """Press the button; the notice that says why it leads nowhere."""
    said = world.notice(world.address("link"))
    assert world.led_to.endswith("/settings/general#authorization-shared-app")
    return said


def test_http_on_a_foreign_host_is_refused_with_the_setting_to_change(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(world.installation.settings), "url", "http://post.agentur.example")
    world.client.url = "http://post.agentur.example"
    world.client.sign_in(world.user)
    said = refused(world)
    assert "POSTROOM_PUBLIC_URL" in said
    assert "http://post.agentur.example" in said


def test_without_a_registration_nobody_is_sent_away(world: World) -> None:
    with world.installation.db.write() as session:
        session.execute(sa.delete(OAuthApp))
    assert "Settings > Microsoft apps" in refused(world)


def test_without_a_secret_nobody_is_sent_away(world: World) -> None:
    world.set(world.registration, secret=None)
    assert refused(world).startswith("The app registration is not complete.")


def test_a_secret_of_another_key_is_asked_for_again(world: World) -> None:
    world.set(world.registration, secret="gAAAA-not-ours")
    assert "Enter it again" in refused(world)


def test_another_mailer_is_not_linked(world: World) -> None:
    world.set(world.connection, mailer="smtp")
    assert "Choose 365 / Outlook as the mailer" in refused(world)


def test_a_sign_in_host_that_cannot_be_reached_is_named(world: World) -> None:
    settings = world.installation.settings.model_copy(
        update={"microsoft_authority": f"https://127.0.0.1:{free_port()}"}
    )
    world.app.extensions["postroom"].installation = replace(world.installation, settings=settings)
    said = refused(world)
    assert said.startswith(f"{urlsplit(settings.microsoft_authority).netloc} cannot be reached.")
    assert "no connection" in said
    assert world.flows() == 0


def test_a_certificate_that_is_not_trusted_is_named(world: World) -> None:
    settings = world.installation.settings.model_copy(update={"ca_bundle": None})
    world.app.extensions["postroom"].installation = replace(world.installation, settings=settings)
    assert "its certificate is not trusted here" in refused(world)


def test_a_tenant_that_microsoft_does_not_know_is_told_in_its_words(world: World) -> None:
    world.set(world.registration, tenant="nobody.example")
    said = refused(world)
    assert "AADSTS90002" in said
    assert "Tenant 'nobody.example' not found." in said


def test_a_shared_connection_is_linked_by_instance_admins_alone(world: World) -> None:
    world.set(world.connection, site_id=None)
    world.client.get(world.address("link"), status=403)


def test_a_connection_that_was_deleted_meanwhile_is_not_linked(world: World) -> None:
    path = world.back()
    world.set(world.connection, deleted_at=world.connection.created_at)
    assert "it was deleted" in world.notice(path)
    assert world.linked() == ""


def test_an_admin_links_a_shared_connection_and_comes_back_to_the_page_of_the_site(
    world: World,
) -> None:
    world.set(world.connection, site_id=None)
    with world.installation.db.write() as session:
        admin = a_user(session, is_admin=True)
    world.client.sign_in(admin)
    world.arrive(world.back())
    page = f"/sites/{world.site.slug}/settings/connections/{world.connection.uid}"
    assert world.led_to == f"{page}#authorization-shared-app"
    assert world.linked() == ORDERS


# ---- where it is not finished ----


def test_a_forged_state_does_nothing(world: World) -> None:
    world.go()
    said = world.notice("/oauth/microsoft/callback?code=abc&state=forged")
    assert said.startswith("This sign-in was not started here")
    assert world.linked() == ""
    assert world.flows() == 1


def test_coming_back_with_nothing_at_all_is_told(world: World) -> None:
    assert "not started here" in world.notice("/oauth/microsoft/callback")


def test_an_error_with_an_unknown_state_is_not_believed(world: World) -> None:
    said = world.notice(
        "/oauth/microsoft/callback?error=access_denied&error_description=Call+me&state=x"
    )
    assert "Call me" not in said
    assert "not started here" in said


def test_a_state_works_once(world: World) -> None:
    path = world.back()
    world.arrive(path)
    assert world.flows() == 0
    before = world.sandbox.token_calls()
    assert "not started here" in world.notice(path)
    assert world.sandbox.token_calls() == before


def test_a_state_is_used_up_by_an_error_too(world: World) -> None:
    path = world.back(decision="cancel")
    assert "AADSTS65004" in world.notice(path)
    assert "not started here" in world.notice(path)


def test_an_old_state_is_refused(world: World) -> None:
    path = world.back()
    with world.installation.db.write() as session:
        for flow in session.scalars(sa.select(LinkFlow)):
            flow.expires_at = world.installation.db.now() - timedelta(seconds=1)
    assert "not started here" in world.notice(path)
    assert world.linked() == ""


def test_another_browser_of_the_same_person_is_refused(world: World) -> None:
    path = world.back()
    world.client.sign_out()
    world.client.sign_in(world.user)
    assert "not started here" in world.notice(path)
    assert world.linked() == ""


def test_another_browser_is_told_no_error_of_microsofts(world: World) -> None:
    path = world.back(decision="cancel")
    world.client.sign_out()
    world.client.sign_in(world.user)
    said = world.notice(path)
    assert "AADSTS65004" not in said
    assert "not started here" in said


def test_another_person_cannot_finish_it(world: World) -> None:
    path = world.back()
    with world.installation.db.write() as session:
        other = a_user(session, is_admin=True)
    world.client.sign_out()
    world.client.sign_in(other)
    assert "Somebody else began this link." in world.notice(path)
    assert world.linked() == ""


def test_whoever_is_signed_out_meanwhile_signs_in_first(world: World) -> None:
    path = world.back()
    with world.installation.db.write() as session:
        session.execute(sa.delete(UserSession))
    page = world.arrive(path)
    assert page.h1 == "Sign in"
    assert "You are not signed in here any more." in told(page)
    assert world.linked() == ""


@pytest.mark.parametrize("role", [None, Role.VIEWER])
def test_rights_lost_in_between_count(world: World, role: Role | None) -> None:
    path = world.back()
    with world.installation.db.write() as session:
        session.execute(sa.delete(Membership))
        if role:
            a_membership(session, world.user, world.site, role)
    before = world.sandbox.token_calls()
    assert "You may not edit the settings of this connection any more" in world.notice(path)
    assert world.linked() == ""
    assert world.sandbox.token_calls() == before


def test_rights_lost_while_microsoft_is_asked_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.back()

    def lose(*_: object) -> str:
        with world.installation.db.write() as session:
            session.execute(sa.delete(Membership))
        return "{}"

    monkeypatch.setattr(flows, "_hand_over", lose)
    response = world.client.fetch(path)
    assert response.status_code == 303
    assert world.linked() == ""


def test_a_deleted_site_is_gone(world: World) -> None:
    path = world.back()
    with world.installation.db.write() as session:
        session.execute(sa.update(Site).values(primary_connection_id=None))
        session.execute(sa.delete(Connection))
    assert "not started here" in world.notice(path)


def test_a_denial_is_explained_with_microsofts_own_words(world: World) -> None:
    page = world.arrive(world.back(decision="cancel"))
    assert "access_denied: AADSTS65004: User declined to consent" in told(page)
    assert "Trace ID:" in told(page)
    assert world.linked() == ""
    assert world.stored().from_email == ""


def test_microsofts_words_cannot_write_html(world: World) -> None:
    state = query(world.go())["state"]
    path = f"/oauth/microsoft/callback?error=access_denied&state={state}&error_description="
    page = world.arrive(path + "%3Cb%3Ebold%3C/b%3E%00%0a")
    assert "&lt;b&gt;bold&lt;/b&gt;" in page.response.text


def test_a_missing_approval_offers_to_ask_the_admin(world: World) -> None:
    page = world.arrive(world.back(decision="admin"))
    assert "AADSTS90094" in told(page)
    offer = page.links()["Ask your admin for approval"]
    assert offer == world.address("ask-admin")
    asked = world.client.get(offer)
    assert asked.h1 == "Ask your admin for approval"


def test_a_code_that_is_missing_is_told(world: World) -> None:
    state = query(world.go())["state"]
    said = world.notice(f"/oauth/microsoft/callback?state={state}")
    assert said.startswith("Microsoft’s answer was incomplete")


def test_a_code_that_is_not_microsofts_is_told_in_its_words(world: World) -> None:
    state = query(world.go())["state"]
    said = world.notice(f"/oauth/microsoft/callback?code=1.nonsense&state={state}")
    assert "invalid_grant" in said
    assert "AADSTS" in said
    assert world.linked() == ""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong_secret", "AADSTS7000215"),
        ("expired_secret", "AADSTS7000222"),
        ("wrong_cloud", "Confidential Client is not supported in Cross Cloud request."),
        ("token_unavailable", "AADSTS90033"),
        ("token_throttled", "AADSTS90055"),
    ],
)
def test_a_refused_exchange_is_told_in_microsofts_words(
    world: World, fault: str, words: str
) -> None:
    path = world.back()
    world.sandbox.fault(fault, times=1)
    assert words in world.notice(path)
    assert world.linked() == ""
    with world.installation.db.read() as session:
        app = session.get_one(OAuthApp, world.registration.id)
    is_marked = "secret" in fault
    assert (app.problem_since is not None, app.problem_code == words) == (is_marked, is_marked)


def test_a_refused_secret_marks_the_registration_until_it_is_replaced(world: World) -> None:
    path = world.back()
    world.sandbox.fault("wrong_secret", times=1)
    world.arrive(path)
    page = world.client.get(f"/sites/{world.site.slug}/settings/general")
    assert "Microsoft refuses the app registration" in page.one("main").text
    path = world.back()
    world.sandbox.fault("expired_secret", times=1)
    world.set(world.registration, problem_since=None, problem_code="")
    begun, link = flows._redeem, world.installation.keyring.seal
    newer = link("oauth-app", f"oauth_app:{world.registration.uid}", "another~secret")

    def redeem(*given: object) -> object:
        world.set(world.registration, secret=newer)
        return begun(*given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows, "_redeem", redeem)
        world.arrive(path)
    with world.installation.db.read() as session:
        assert session.get_one(OAuthApp, world.registration.id).problem_since is None


def test_a_wrong_cloud_is_explained(world: World) -> None:
    path = world.back()
    world.sandbox.fault("wrong_cloud", times=1)
    assert "Choose the Microsoft cloud in which the mailbox lives" in world.notice(path)


def test_a_refusal_at_the_hand_over_is_told(world: World) -> None:
    path = world.back()
    world.sandbox.fault("consent_withdrawn", times=1)
    said = world.notice(path)
    assert "AADSTS65001" in said
    assert world.linked() == ""


def test_a_permission_that_was_left_out_is_named(world: World) -> None:
    path = world.back()
    world.sandbox.fault("reduced_consent", times=1)
    said = world.notice(path)
    assert said.startswith("Not all permissions were granted")
    assert "Not granted: Mail.Send." in said
    assert world.linked() == ""


def test_an_account_without_a_mailbox_is_refused(world: World) -> None:
    said = world.notice(world.back("nomailbox@contoso.example"))
    assert said.startswith("This account has no mailbox.")
    assert "nomailbox@contoso.example" in said
    assert world.linked() == ""


def test_graph_out_of_order_is_told(world: World) -> None:
    path = world.back()
    world.sandbox.fault("server_error", times=1)
    assert "500" in world.notice(path)
    assert world.linked() == ""


def test_another_account_is_refused_until_the_link_is_removed(world: World) -> None:
    world.link()
    said = world.notice(world.back(ANN))
    assert f"It is linked with {ORDERS}, and you signed in as {ANN}." in said
    assert "remove that link first" in said
    assert world.linked() == ORDERS
    world.post("unlink", sure="yes")
    world.link(ANN)
    assert world.linked() == ANN


@pytest.mark.parametrize("changed", ["client_id", "tenant", "cloud"])
def test_a_registration_changed_in_between_is_told(world: World, changed: str) -> None:
    path = world.back()
    other = {
        "client_id": "00000000-0000-4000-8000-000000000001",
        "tenant": "organizations",
        "cloud": "global",
    }
    world.set(world.registration, **{changed: other[changed]})
    before = world.sandbox.token_calls()
    assert world.notice(path).startswith("The app registration was changed meanwhile.")
    assert world.sandbox.token_calls() == before


def test_another_registration_in_use_is_told(world: World) -> None:
    path = world.back()
    with world.installation.db.write() as session:
        same = {"cloud": "custom", "client_id": world.sandbox.client_id}
        other = an_app(session, world.installation.keyring, **same)
        connection = session.get_one(Connection, world.connection.id)
        connection.settings = {"outlook": {"one_click": True, "shared_app": other.uid}}
    assert "changed meanwhile" in world.notice(path)


def test_a_registration_changed_while_microsoft_is_asked_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.back()

    def change(*_: object) -> str:
        world.set(world.registration, tenant="organizations")
        return "{}"

    monkeypatch.setattr(flows, "_hand_over", change)
    assert "changed meanwhile" in world.notice(path)
    assert world.linked() == ""


# ---- an ID token that proves nothing ----


def forge(world: World, monkeypatch: pytest.MonkeyPatch, **claims: object) -> None:
    """Let the stand-in sign ID tokens with these claims; None leaves one out."""
    tokens = world.sandbox.world.tokens
    sign = tokens.sign

    def forged(found: dict[str, object]) -> str:
        if found.get("ver") == "2.0":
            found = {name: value for name, value in (found | claims).items() if value is not None}
        return sign(found)

    monkeypatch.setattr(tokens, "sign", forged)


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"iss": "https://login.evil.example/3f2a7c1e-5b84-4d0e-9c63-1a2b3c4d5e6f/v2.0"},
        {"tid": "00000000-0000-4000-8000-000000000001"},
        {"tid": None},
        {"oid": None},
        {"aud": "00000000-0000-4000-8000-000000000001"},
        {"exp": 1},
    ],
    ids=lambda claims: " ".join(f"{name} {value}" for name, value in claims.items())[:30],
)
def test_an_id_token_that_is_not_for_us_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, claims: dict[str, object]
) -> None:
    for _ in range(2):  # twice, as a check may be used up by the first
        path = world.back()
        with monkeypatch.context() as patch:
            forge(world, patch, **claims)
            assert world.notice(path).startswith("The security check failed.")
        assert world.linked() == ""


def test_an_id_token_signed_by_somebody_else_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.back()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    tokens = world.sandbox.world.tokens
    known = tokens.public_keys()
    monkeypatch.setattr(tokens, "public_keys", lambda: known)
    monkeypatch.setattr(type(tokens), "key_id", known["keys"][0]["kid"])
    monkeypatch.setattr(tokens, "_key", key)
    assert world.notice(path).startswith("The security check failed.")
    assert world.linked() == ""


@pytest.mark.parametrize("lacking", ["id_token", "access_token", "refresh_token", "scope"])
def test_an_answer_without_a_part_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    path = world.back()
    told = {
        "id_token": "cannot be read",
        "access_token": "cannot be read",
        "refresh_token": "offline_access",
        "scope": "Mail.Send",
    }
    fetch = OAuthSession.fetch_token

    def fetch_less(self: object, *args: object, **kwargs: object) -> dict[str, object]:
        found = fetch(self, *args, **kwargs)
        return {name: value for name, value in found.items() if name != lacking}

    monkeypatch.setattr(OAuthSession, "fetch_token", fetch_less)
    assert told[lacking] in world.notice(path)
    assert world.linked() == ""


# ---- what is said to whom ----


def test_nothing_of_a_sign_in_is_logged(
    world: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    location = world.sandbox.sign_in(world.go(), ORDERS)
    world.arrive(world.path(location))
    logged = caplog.text + "".join(capfd.readouterr())
    given = query(location)
    assert given["code"] not in logged
    assert given["state"] not in logged


def test_the_way_back_tells_nobody_and_is_kept_by_nobody(world: World) -> None:
    for path in (world.address("link"), world.back(), "/oauth/microsoft/callback?state=x"):
        response = world.client.fetch(path)
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Cache-Control"] == "no-store"


def test_many_links_begun_and_given_up_leave_the_cookie_small(world: World) -> None:
    for _ in range(12):
        last = world.go()
    with world.client.raw.session_transaction(base_url=world.client.url) as cookie:
        assert len([name for name in cookie if name.startswith("_state_")]) == 5
    world.arrive(world.path(world.sandbox.sign_in(last, ORDERS)))
    assert world.linked() == ORDERS


def test_no_state_stays_in_the_cookie(world: World) -> None:
    world.link()
    with world.client.raw.session_transaction(base_url=world.client.url) as cookie:
        assert [name for name in cookie if name.startswith("_state_")] == []


def test_flows_that_nobody_came_back_from_are_cleared_away(world: World) -> None:
    world.go()
    with world.installation.db.write() as session:
        for flow in session.scalars(sa.select(LinkFlow)):
            flow.expires_at = world.installation.db.now() - timedelta(seconds=1)
    world.go()
    assert world.flows() == 1


# ---- taking a link away ----


def test_removing_a_link_is_asked_first_and_says_what_waits(world: World) -> None:
    world.link()
    with world.installation.db.write() as session:
        a_message(session, world.site, connection=session.get_one(Connection, world.connection.id))
    page = world.client.get(world.address("unlink"))
    assert page.h1 == f"Remove the link with {ORDERS}?"
    assert world.linked() == ORDERS
    page = world.post("unlink", sure="yes")
    assert told(page) == f"The link with {ORDERS} is removed."
    assert world.linked() == ""
    with world.installation.db.read() as session:
        grant = session.scalars(sa.select(Grant)).one()
    assert grant.cache is None


def come_back(world: World, begun: Page) -> str:
    """Sign in where this page leads; the address that the callback sends on to."""
    address = begun.links()["Continue to Microsoft"]
    answer = world.client.fetch(world.path(world.sandbox.sign_in(address, ORDERS)))
    return str(answer.headers["Location"])


def test_a_link_begun_on_another_page_leads_back_there_once(world: World) -> None:
    page = f"/sites/{world.site.slug}/tools/test"
    begun = world.client.get(f"{world.address('link')}?next={page}")
    assert begun.links()["Back"] == page
    assert come_back(world, begun) == page
    again = come_back(world, world.client.get(world.address("link")))
    assert again.endswith("#authorization-shared-app")


def test_a_link_never_leads_to_another_host(world: World) -> None:
    begun = world.client.get(f"{world.address('link')}?next=//evil.example/x")
    assert "evil" not in begun.links()["Back"]
    assert "evil" not in come_back(world, begun)


def test_a_refused_registration_is_named_with_who_keeps_it(world: World) -> None:
    world.sandbox.fault("wrong_secret")
    page = world.link()
    assert page.one("code", class_="words").text.startswith("invalid_client: AADSTS7000215")
    assert "has to put it right: the app registration is theirs." in told(page)
    assert "Open the registration" not in page.links()
    with world.installation.db.write() as session:
        session.get_one(User, world.user.id).is_admin = True
    page = world.link()
    assert "You can put it right: the app registration is kept under Microsoft apps." in told(page)
    assert page.links()["Open the registration"].endswith(world.registration.uid)


def test_a_question_to_the_admin_is_shown_where_a_mailbox_is_linked(world: World) -> None:
    world.link()
    world.post("ask-admin")
    page = world.client.get(f"/sites/{world.site.slug}/settings/general")
    assert page.one(id="consent-shared-app")["value"].startswith("https://")
    world.link()
    page = world.client.get(f"/sites/{world.site.slug}/settings/general")
    assert page.all(id="consent-shared-app") == []


def test_removing_no_link_is_told(world: World) -> None:
    page = world.arrive(world.address("unlink"))
    assert told(page) == "This connection is not linked with a mailbox."


# ---- sending as the account ----


def test_one_click_sends_as_the_account_and_is_written_down(world: World) -> None:
    world.set(world.connection, from_email="shop@elsewhere.example")
    world.link()
    before = world.stored().version
    response = world.client.send(world.address("send-as-account"), {"next": "/sites/x/log"})
    assert response.headers["Location"] == "/sites/x/log"
    assert world.stored().from_email == ORDERS
    assert world.stored().version == before + 1
    with world.installation.db.read() as session:
        event = session.scalars(sa.select(AuditEvent).order_by(AuditEvent.id.desc())).first()
    assert event is not None
    assert event.changes == {"from_email": ["shop@elsewhere.example", ORDERS]}
    assert event.actor == world.user.email


def test_sending_as_the_account_leads_to_our_own_pages_only(world: World) -> None:
    world.link()
    for target in ("https://evil.example/", "//evil.example/"):
        response = world.client.send(world.address("send-as-account"), {"next": target})
        assert response.headers["Location"].endswith("/settings/general#authorization-shared-app")


def test_mail_that_stood_still_leaves_after_it(world: World) -> None:
    world.set(world.connection, from_email="shop@elsewhere.example")
    world.link()
    with world.installation.db.write() as session:
        connection = session.get_one(Connection, world.connection.id)
        a_message(session, world.site, connection=connection)
        connection.health = Health.MISCONFIGURED
        lane = session.get_one(Lane, connection.lane_id)
        lane.is_blocked, lane.blocked_kind = True, "misconfigured"
    page = world.post("send-as-account")
    assert told(page) == f"From Email is {ORDERS} now. 1 waiting mail now leaves."
    assert world.stored().health == Health.UNKNOWN


def test_without_a_link_there_is_no_account_to_send_as(world: World) -> None:
    world.client.send(world.address("send-as-account"))
    assert world.stored().from_email == ""


# ---- asking an administrator ----


def request_of(world: World) -> ConsentRequest | None:
    with world.app.test_request_context(), world.installation.db.read() as session:
        connection = session.get_one(Connection, world.connection.id)
        app = session.get_one(OAuthApp, world.registration.id)
        return flows.consent_request(session, world.installation.keyring, connection, app)


def ask_admin(world: World) -> ConsentRequest:
    world.post("ask-admin")
    found = request_of(world)
    assert found is not None
    return found


def approve(world: World, url: str, **form: str) -> str:
    """Decide as an administrator of Contoso; path and query to which Microsoft sends them back."""
    address = url.replace(world.sandbox.authority, world.sandbox.inbox)
    given = {"decision": "accept", "tenant": "3f2a7c1e-5b84-4d0e-9c63-1a2b3c4d5e6f", **form}
    response = requests.post(address, data=given, allow_redirects=False, timeout=30)
    assert response.status_code == 302
    return world.path(response.headers["Location"])


def test_the_question_names_permissions_and_a_tenant_of_work_accounts(world: World) -> None:
    assert request_of(world) is None
    asked = ask_admin(world)
    parts = urlsplit(asked.url)
    assert parts.path == "/organizations/v2.0/adminconsent"
    given = query(asked.url)
    assert given["client_id"] == world.sandbox.client_id
    assert given["scope"].split() == [
        f"{world.sandbox.graph}/User.Read",
        f"{world.sandbox.graph}/Mail.Send",
    ]
    assert given["redirect_uri"] == f"{world.client.url}/oauth/microsoft/callback"
    assert asked.outcome is Consent.WAITING
    assert asked.asked_by == world.user.email


def test_one_tenant_is_asked_by_its_own_name(world: World) -> None:
    world.set(world.registration, tenant="contoso.example")
    assert urlsplit(ask_admin(world).url).path == "/contoso.example/v2.0/adminconsent"


def test_asking_again_keeps_the_link_that_is_out(world: World) -> None:
    first = ask_admin(world)
    with world.installation.db.write() as session:
        session.scalars(sa.select(LinkFlow)).one().expires_at = (
            world.installation.db.now() + timedelta(minutes=1)
        )
    assert ask_admin(world).url == first.url
    with world.installation.db.read() as session:
        left = session.scalars(sa.select(LinkFlow)).one().expires_at - world.installation.db.now()
    assert left > timedelta(days=29)


def test_an_administrator_without_an_account_here_approves(world: World) -> None:
    path = approve(world, ask_admin(world).url)
    page = Browser(world.app).get(path)
    assert page.one("h2").text == "Thank you, the app is approved"
    assert world.registration.name in page.text
    assert world.user.email in page.text
    assert world.site.name not in page.text
    found = request_of(world)
    assert found is not None
    assert found.outcome is Consent.GIVEN
    assert (found.code, found.words) == ("", "")


def test_a_reload_shows_what_was_decided(world: World) -> None:
    path = approve(world, ask_admin(world).url)
    stranger = Browser(world.app)
    stranger.get(path)
    assert stranger.get(path).one("h2").text == "Thank you, the app is approved"
    state = query(path)["state"]
    again = stranger.get(f"/oauth/microsoft/callback?error=access_denied&state={state}")
    assert again.one("h2").text == "Thank you, the app is approved"


def test_an_administrator_refuses_and_thinks_again(world: World) -> None:
    asked = ask_admin(world)
    page = Browser(world.app).get(approve(world, asked.url, decision="cancel"))
    assert page.one("h2").text == "The app was not approved"
    assert "AADSTS65004" in page.one(class_="words").text
    found = request_of(world)
    assert found is not None
    assert (found.outcome, found.code) == (Consent.REFUSED, "AADSTS65004")
    assert "User declined to consent" in found.words
    page = Browser(world.app).get(approve(world, asked.url))
    assert page.one("h2").text == "Thank you, the app is approved"


def test_a_refused_question_is_asked_by_a_new_link(world: World) -> None:
    asked = ask_admin(world)
    Browser(world.app).get(approve(world, asked.url, decision="cancel"))
    again = ask_admin(world)
    assert again.url != asked.url
    assert again.outcome is Consent.WAITING


def test_an_administrator_who_comes_back_with_nothing_decides_nothing(world: World) -> None:
    state = query(ask_admin(world).url)["state"]
    page = Browser(world.app).get(f"/oauth/microsoft/callback?state={state}")
    assert page.one("h2").text == "Nothing has been decided yet"
    found = request_of(world)
    assert found is not None
    assert found.outcome is Consent.WAITING


def test_after_the_approval_the_person_links_normally(world: World) -> None:
    world.sandbox.fault("admin_needed")
    assert "AADSTS90094" in world.notice(world.back())
    Browser(world.app).get(approve(world, ask_admin(world).url))
    world.link()
    assert world.linked() == ORDERS


def test_a_question_taken_back_leads_to_a_page_that_says_so(world: World) -> None:
    asked = ask_admin(world)
    page = world.post("ask-admin/forget")
    assert told(page) == "The link for your admin is taken back."
    assert request_of(world) is None
    page = Browser(world.app).get(approve(world, asked.url))
    assert page.one("h2").text == "This question is not open any more"


def test_an_old_question_is_closed(world: World) -> None:
    asked = ask_admin(world)
    with world.installation.db.write() as session:
        session.scalars(sa.select(LinkFlow)).one().expires_at = world.installation.db.now()
    assert request_of(world) is None
    page = Browser(world.app).get(approve(world, asked.url))
    assert page.one("h2").text == "This question is not open any more"


def test_the_state_of_a_question_links_nothing(world: World) -> None:
    state = query(ask_admin(world).url)["state"]
    page = world.client.get(f"/oauth/microsoft/callback?code=abc&state={state}")
    assert page.one("h2").text == "Nothing has been decided yet"
    assert world.linked() == ""


def test_the_state_of_a_link_answers_no_question(world: World) -> None:
    ask_admin(world)
    state = query(world.go())["state"]
    Browser(world.app).get(f"/oauth/microsoft/callback?admin_consent=True&state={state}")
    found = request_of(world)
    assert found is not None
    assert found.outcome is Consent.WAITING


def test_personal_accounts_have_no_administrator(world: World) -> None:
    world.set(world.registration, tenant="consumers")
    page = world.post("ask-admin")
    assert told(page).startswith("Personal accounts have no administrator.")
    assert request_of(world) is None


def test_the_text_for_the_administrator_says_who_what_and_where(world: World) -> None:
    asked = ask_admin(world)
    with world.app.test_request_context():
        text = flows.admin_message(asked, world.registration, ORDERS, world.site)
    for part in (asked.url, ORDERS, "Galerie Nord", "Mail.Send", "No password is shared"):
        assert part in text
    assert world.registration.client_id in text
    assert world.user.email in text
