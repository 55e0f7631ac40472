"""How a link stands with a registration."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from tests.factories import (
    a_connection,
    a_grant,
    a_link,
    a_mailbox,
    a_message,
    a_site,
    a_time,
    a_user,
    an_app,
    an_installation,
)
from webapp.connections.models import Connection, Health
from webapp.delivery.models import State
from webapp.installation import Installation
from webapp.microsoft.clouds import PERSONAL_TENANT
from webapp.microsoft.models import Consent, FlowKind, GrantState, LinkFlow, OAuthApp
from webapp.microsoft.standing import LinkState, Standing, is_secure, link_standing
from webapp.sites.models import Site


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = an_installation(f"sqlite:///{tmp_path / 'postroom.db'}", tmp_path)
    yield made
    made.close()


@dataclass
class Desk:
    """A site with a connection that uses One-Click Setup, and a shared registration."""

    installation: Installation
    session: Session
    site: Site
    connection: Connection
    app: OAuthApp

    def standing(self, app: OAuthApp | None = None, *, one_click: bool = True) -> Standing:
        return link_standing(
            self.session,
            self.installation.settings,
            self.connection,
            app or self.app,
            one_click=one_click,
            now=a_time(),
        )

    def link(self, **values: Any) -> None:
        """Link it, with these values of the grant."""
        tenant = {"tenant_id": values.pop("tenant_id")} if "tenant_id" in values else {}
        mailbox = a_mailbox(self.session, **tenant)
        grant = a_grant(self.session, self.installation.keyring, self.app, mailbox, **values)
        a_link(self.session, self.connection, grant)

    def ask(self, outcome: Consent, *, lasts: timedelta = timedelta(days=30)) -> None:
        """A question to an administrator, and what became of it."""
        number = len(str(outcome)) + self.connection.id
        flow = LinkFlow(
            digest=f"{outcome}{number}{lasts}",
            kind=FlowKind.CONSENT,
            connection_id=self.connection.id,
            app_id=self.app.id,
            user_id=a_user(self.session).id,
            outcome=outcome,
            created_at=a_time(),
            expires_at=a_time() + lasts,
        )
        self.session.add(flow)
        self.session.flush()


@pytest.fixture
def desk(installation: Installation) -> Iterator[Desk]:
    with installation.db.write() as session:
        site = a_site(session)
        connection = a_connection(session, site, mailer="outlook", settings={"one_click": True})
        app = an_app(session, installation.keyring)
        yield Desk(installation, session, site, connection, app)


def test_saved_and_never_linked_is_ready(desk: Desk) -> None:
    found = desk.standing()
    assert (found.state, found.is_linked, found.mailbox) == (LinkState.READY, False, None)


def test_without_a_registration_there_is_nothing_to_sign_in_with(desk: Desk) -> None:
    for one_click, state in ((True, LinkState.NO_APP), (False, LinkState.UNSAVED)):
        found = link_standing(
            desk.session,
            desk.installation.settings,
            desk.connection,
            None,
            one_click=one_click,
            now=a_time(),
        )
        assert found.state is state


def test_what_is_not_stored_yet_is_unsaved(desk: Desk) -> None:
    own = an_app(desk.session, desk.installation.keyring, connection=desk.connection)
    assert desk.standing(own, one_click=False).state is LinkState.UNSAVED
    desk.connection.settings = {"outlook": {"one_click": False}}
    assert desk.standing(own, one_click=False).state is LinkState.READY
    assert desk.standing().state is LinkState.UNSAVED
    desk.connection.mailer = "smtp"
    assert desk.standing(own, one_click=False).state is LinkState.UNSAVED


def test_another_shared_registration_than_the_stored_one_is_unsaved(desk: Desk) -> None:
    other = an_app(desk.session, desk.installation.keyring)
    desk.connection.settings = {"outlook": {"one_click": True, "shared_app": desk.app.uid}}
    assert desk.standing().state is LinkState.READY
    assert desk.standing(other).state is LinkState.UNSAVED


@pytest.mark.parametrize(
    ("values", "lacks"),
    [
        ({"secret": ""}, ("client_secret",)),
        ({"client_id": ""}, ("client_id",)),
        ({"client_id": "", "secret": ""}, ("client_id", "client_secret")),
    ],
)
def test_what_a_registration_lacks_is_named(
    desk: Desk, values: dict[str, str], lacks: tuple[str, ...]
) -> None:
    desk.connection.settings = {"outlook": {"one_click": False}}
    own = an_app(desk.session, desk.installation.keyring, connection=desk.connection, **values)
    found = desk.standing(own, one_click=False)
    assert (found.state, found.lacks) == (LinkState.INCOMPLETE, lacks)


def test_a_linked_one_knows_its_account_and_permissions(desk: Desk) -> None:
    desk.link(scopes=["openid", "offline_access", "User.Read", "mail.send"])
    found = desk.standing()
    assert found.state is LinkState.LINKED
    assert found.granted == ("User.Read", "mail.send")
    assert found.missing == ()
    assert found.mailbox is not None
    assert found.knows(found.mailbox.address.upper())
    assert not found.knows("other@contoso.example")
    assert not found.personal
    assert found.link is not None
    assert found.link.linked_by == "mara@agentur.example"


def test_a_permission_that_is_needed_and_was_not_granted_is_missing(desk: Desk) -> None:
    desk.link(scopes=["User.Read"])
    assert desk.standing().missing == ("Mail.Send",)


def test_a_personal_account_is_known_by_its_tenant(desk: Desk) -> None:
    desk.link(tenant_id=PERSONAL_TENANT)
    assert desk.standing().personal


def test_a_removed_grant_is_no_link(desk: Desk) -> None:
    desk.link(state=GrantState.REMOVED)
    found = desk.standing()
    assert (found.state, found.is_linked) == (LinkState.READY, False)


def test_both_links_are_kept_when_the_switch_is_flipped(desk: Desk) -> None:
    desk.link()
    desk.connection.settings = {"outlook": {"one_click": False}}
    found = desk.standing()
    assert (found.state, found.is_linked) == (LinkState.UNSAVED, True)


def test_a_refused_grant_says_since_when_why_and_how_many_wait(desk: Desk) -> None:
    since = a_time() - timedelta(hours=3)
    desk.link(
        state=GrantState.NEEDS_REAUTHORISATION,
        state_since=since,
        code="AADSTS50173",
        words="The provided grant has expired.",
    )
    for state in (State.QUEUED, State.DEFERRED, State.SENT):
        a_message(desk.session, desk.site, state=state, connection=desk.connection)
    found = desk.standing()
    assert found.state is LinkState.NEEDS_REAUTHORISATION
    assert (found.code, found.words) == ("AADSTS50173", "The provided grant has expired.")
    assert (found.since, found.waiting, found.in_trouble) == (since, 2, True)


@pytest.mark.parametrize("health", [Health.NEEDS_REAUTHORISATION, Health.MISCONFIGURED])
def test_what_a_mail_met_counts_for_the_link_it_went_by(desk: Desk, health: Health) -> None:
    desk.link()
    desk.connection.health, desk.connection.health_since = health, a_time()
    desk.connection.last_code, desk.connection.last_words = "401", "refused"
    found = desk.standing()
    assert (found.state, found.words) == (LinkState(health.value), "refused")
    desk.connection.grant_id = None
    assert desk.standing().state is LinkState.LINKED


def test_a_refused_registration_is_misconfigured_whatever_the_grant_says(desk: Desk) -> None:
    desk.link(state=GrantState.NEEDS_REAUTHORISATION)
    since = a_time() - timedelta(days=1)
    desk.app.problem_code, desk.app.problem_since = "AADSTS7000222", since
    found = desk.standing()
    assert (found.state, found.code) == (LinkState.MISCONFIGURED, "AADSTS7000222")
    assert found.since == since


def test_a_question_to_an_administrator_is_followed(desk: Desk) -> None:
    desk.ask(Consent.WAITING, lasts=timedelta(days=-1))
    assert desk.standing().state is LinkState.READY
    desk.ask(Consent.WAITING)
    assert desk.standing().state is LinkState.WAITING_FOR_ADMIN
    desk.ask(Consent.GIVEN)
    assert desk.standing().state is LinkState.ADMIN_AGREED
    desk.ask(Consent.REFUSED)
    assert desk.standing().state is LinkState.READY


def test_days_are_counted_to_the_end_of_the_secret(desk: Desk) -> None:
    assert desk.standing().days_left is None
    desk.app.secret_expires_on = (a_time() + timedelta(days=12)).date()
    assert desk.standing().days_left == 12


@pytest.mark.parametrize(
    ("public_url", "secure"),
    [
        ("https://post.agentur.example", True),
        ("http://localhost:8025", True),
        ("http://post.agentur.example", False),
        ("http://192.168.1.5:8025", False),
    ],
)
def test_microsoft_sends_people_back_by_https_or_to_localhost(
    tmp_path: Path, public_url: str, secure: bool
) -> None:
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    made = an_installation(url, tmp_path, public_url=public_url)
    with made.db.write() as session:
        app = an_app(session, made.keyring)
        found = link_standing(session, made.settings, None, app, one_click=True, now=a_time())
    assert is_secure(made.settings) is secure
    assert (found.state is LinkState.INSECURE) is not secure
    made.close()


@pytest.mark.parametrize(
    ("cloud", "host"),
    [
        ("global", "spf.protection.outlook.com"),
        ("usgov", "spf.protection.office365.us"),
        ("china", "spf.protection.partner.outlook.cn"),
    ],
)
def test_each_cloud_has_its_own_spf_record(desk: Desk, cloud: str, host: str) -> None:
    desk.link()
    found = desk.standing()
    assert found.mailbox is not None
    found.mailbox.cloud = cloud
    assert found.spf == host
