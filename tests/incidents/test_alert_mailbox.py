"""Alerts that leave by a mailbox linked at Microsoft: linked, refused, linked again, removed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import (
    a_connection,
    a_grant,
    a_link,
    a_mailbox,
    a_membership,
    a_user,
    an_app,
    an_installation,
)
from tests.incidents.conftest import Desk, a_target
from tests.incidents.hooks import Hook
from tests.pages import Browser, Page
from tests.rig.sandbox import SandboxThread
from webapp import create_app
from webapp.accounts.models import Role, User
from webapp.connections import service as connections
from webapp.connections.models import Connection, Health
from webapp.delivery.models import Lane
from webapp.incidents import channel
from webapp.incidents.kinds import Kind
from webapp.incidents.models import AlertTarget, Channel, Notification, Occasion, Told
from webapp.incidents.tell import Teller
from webapp.installation import load_keys
from webapp.mailers.base import Surroundings
from webapp.microsoft import service
from webapp.microsoft.clouds import clouds
from webapp.microsoft.models import Grant, GrantState, Mailbox, OAuthApp
from webapp.microsoft.tokens import Tokens
from webapp.outward import Outward
from webapp.sites.models import Site
from webapp.testmail.service import choices

ANN, ORDERS = "ann@contoso.example", "orders@contoso.example"
MARA = "mara@agentur.example"
SYSTEM = "/settings/system"


class MailboxDesk(Desk):
    """A desk whose teller may ask Microsoft's stand-in."""

    sandbox: SandboxThread

    def a_teller(self) -> Teller:  # type: ignore[override]
        settings = self.installation.settings
        self.tokens = Tokens(
            self.db,
            lambda: load_keys(settings, may_create=False),
            clouds(settings),
            lambda: Outward(ca_file=self.sandbox.ca),
        )
        surroundings = Surroundings(
            hostname="postroom.example", ca_file=self.sandbox.ca, tokens=self.tokens
        )
        return Teller(self.installation, lambda: self.installation.keyring, surroundings)


@dataclass
class Office:
    """An instance admin at a browser, and everything that watches and tells."""

    desk: MailboxDesk
    sandbox: SandboxThread
    client: Browser
    user: User
    app: OAuthApp

    def form(self, **values: str) -> dict[str, str]:
        given = {"alert-from_email": "", "alert-mailer": "outlook"}
        return given | {"outlook-shared_app": self.app.uid} | values

    def begin(self) -> str:
        """Press Sign in with Microsoft; the address there."""
        answer = self.client.send(f"{SYSTEM}/connection", self.form(then="authorize"))
        assert answer.headers["Location"] == f"{SYSTEM}/connection/link"
        page = self.client.get(answer.headers["Location"])
        address: str = page.links()["Continue to Microsoft"]
        return address

    def link(self, account: str = ANN) -> Page:
        location = self.sandbox.sign_in(self.begin(), account)
        answer = self.client.fetch(location.removeprefix(self.client.url))
        assert answer.headers["Location"] == f"{SYSTEM}#connection"
        return self.client.get(SYSTEM)

    def connection(self) -> Connection | None:
        with self.desk.db.read() as session:
            return connections.alert_connection(session)

    def grant(self) -> Grant:
        with self.desk.db.read() as session:
            return session.scalars(sa.select(Grant).order_by(Grant.id)).first() or Grant()

    def told_by_mail(self) -> tuple[str, str]:
        with self.desk.db.read() as session:
            query = sa.select(AlertTarget).where(AlertTarget.channel == Channel.EMAIL)
            target = session.scalars(query).one()
            return target.last_told, target.last_words


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setattr("webapp.microsoft.tokens.LOOK_EVERY", 0.0)  # a refusal counts at once
    with SandboxThread() as sandbox:
        named = {name.removeprefix("POSTROOM_"): v for name, v in sandbox.environment.items()}
        url = f"sqlite:///{tmp_path / 'postroom.db'}"
        installation = an_installation(url, tmp_path, **named)
        MailboxDesk.sandbox = sandbox
        desk = MailboxDesk(installation)
        app = create_app(installation)
        app.testing = True
        with installation.db.write() as session:
            user = a_user(session, email=MARA, is_admin=True)
            registration = an_app(
                session,
                installation.keyring,
                cloud="custom",
                client_id=sandbox.client_id,
                secret=sandbox.client_secret,
            )
            a_target(session, installation, MARA, channel=Channel.EMAIL)
        client = Browser(app)
        client.sign_in(user)
        yield Office(desk, sandbox, client, user, registration)
        installation.close()


def test_alerts_leave_by_a_linked_mailbox_until_it_is_refused_and_again_once_it_is_linked(
    office: Office, hook: Hook
) -> None:
    desk, sandbox, client = office.desk, office.sandbox, office.client
    page = office.link()
    assert any(f"{ANN} is linked. It is the From Email now." in text for text in page.notices)
    main = page.one("main").text
    assert f"<{ANN}>" in main
    assert "90 days left" in main
    assert page.value("alert-from_email") == ANN
    connection = office.connection()
    assert connection is not None
    assert (connection.is_system, connection.site_id) == (True, None)

    # No site can choose it, and nobody but an instance admin can come near it.
    site = desk.site(name="Galerie Nord", slug="galerie-nord")
    refused = desk.linked(site)
    with desk.db.write() as session:
        row = session.get_one(Site, site.id)
        assert connections.find_connection(session, row, connection.uid) is None
        assert connection.uid not in {c.connection.uid for c in choices(session, row)}
        operator = a_user(session)
        a_membership(session, operator, row, Role.OPERATOR)
    address = f"/sites/{site.slug}/connections/{connection.uid}/link"
    client.get(address, status=404)

    # A sample, and a site's trouble.
    with desk.db.read() as session:
        target = session.scalars(sa.select(AlertTarget)).one()
    client.post(f"{SYSTEM}/targets/{target.uid}/sample")
    desk.refuse(refused)
    for _ in range(2):
        desk.round()
    sent = sandbox.mails()
    assert [mail["recipients"] for mail in sent] == [[MARA], [MARA]]
    assert {mail["account"] for mail in sent} == {ANN}
    assert sum("needs re-authorization" in mail["subject"] for mail in sent) == 1
    stored = office.connection()
    assert stored is not None
    assert stored.health == Health.WORKING

    # Its own link is refused: the webhook goes alone, and the pages say so.
    desk.target(hook.url)
    sandbox.revoke(ANN)
    with pytest.raises(Exception, match="AADSTS"):
        desk.tokens.renew(office.grant().id)
    for _ in range(2):
        desk.round()
    assert desk.open() == [Kind.LINK, Kind.ALERTS]
    assert [call.facts["kind"] for call in hook.calls] == ["alerts-failing"]
    assert len(sandbox.mails()) == 2
    assert office.told_by_mail() == (Told.DROPPED, channel.IS_BROKEN)
    page = client.get(SYSTEM)
    assert any("Only webhooks are told" in text for text in page.notices)
    assert "Needs re-authorization" in page.one("main").text
    assert "The alert connection is what broke." in page.one("main").text
    with desk.db.write() as session:
        a_target(session, desk.installation, MARA, channel=Channel.EMAIL, site=site)
    client.sign_in(operator)
    page = client.get(f"/sites/{site.slug}/settings/alerts")
    assert any("Email addresses are told nothing" in text for text in page.notices)
    client.get(f"{SYSTEM}/connection/link", status=403)
    client.sign_in(office.user)

    # A site's end that falls into this time is not lost: it leaves once the mailbox is linked.
    desk.link_again(refused)
    desk.round()
    assert len(sandbox.mails()) == 2
    page = office.link()
    assert not any("Only webhooks" in text for text in page.notices)
    desk.later(minutes=2)
    desk.round()
    assert "may send again" in sandbox.mails()[0]["subject"]
    desk.later(minutes=11)
    for _ in range(2):
        desk.round()
    assert desk.open() == []
    assert [call.facts["occasion"] for call in hook.calls if "alerts" in call.facts["kind"]] == [
        "opened",
        "closed",
    ]
    assert len(sandbox.mails()) == 3


def test_a_mailbox_is_unlinked_and_removed_with_its_tokens(office: Office) -> None:
    office.link()
    client, desk = office.client, office.desk
    page = client.get(f"{SYSTEM}/connection/unlink")
    assert page.h1 == f"Remove the link with {ANN}?"
    assert office.grant().state == GrantState.LINKED
    client.send(f"{SYSTEM}/connection/unlink", {"sure": "yes"})
    assert (office.grant().state, office.grant().cache) == (GrantState.REMOVED, None)
    page = client.get(SYSTEM)
    assert "Saved, and not linked to a mailbox yet." in page.one("main").text
    assert any("does not work" in text for text in page.notices)
    with desk.db.read() as session:
        target = session.scalars(sa.select(AlertTarget)).one()
    client.post(f"{SYSTEM}/targets/{target.uid}/sample")
    desk.round()
    assert office.told_by_mail() == (Told.DROPPED, channel.NOT_LINKED)

    # A mail server takes its place and back: the link is found again, and asked for nothing.
    office.link()
    smtp = {"alert-from_email": "alerts@agentur.example", "alert-mailer": "smtp"}
    smtp |= {"smtp-host": "mail.agentur.example", "smtp-port": "587", "smtp-encryption": "tls"}
    client.post(f"{SYSTEM}/connection", smtp)
    found = office.connection()
    assert found is not None
    assert (found.mailer, found.grant_id, found.lane_id) == ("smtp", None, None)
    client.post(f"{SYSTEM}/connection", office.form())
    found = office.connection()
    assert found is not None
    assert found.grant_id == office.grant().id

    client.send(f"{SYSTEM}/connection/remove", {"sure": "yes"})
    assert office.connection() is None
    assert (office.grant().state, office.grant().cache) == (GrantState.REMOVED, None)
    client.fetch(f"{SYSTEM}/connection/link")
    assert any("no alert connection" in text for text in client.get(SYSTEM).notices)


def test_a_registration_that_is_not_offered_is_refused(office: Office) -> None:
    own = {"outlook-shared_app": "another"}
    page = office.client.post(f"{SYSTEM}/connection", office.form(**own), status=422)
    assert page.errors.keys() == {"outlook-shared_app"}
    wrong = {"alert-mailer": "gmail"}
    page = office.client.post(f"{SYSTEM}/connection", office.form(**wrong), status=422)
    assert page.errors.keys() == {"alert-mailer"}
    assert office.connection() is None


def test_who_is_no_admin_any_more_links_nothing(office: Office) -> None:
    location = office.sandbox.sign_in(office.begin(), ANN)
    office.desk.change(User, office.user.id, is_admin=False)
    office.client.fetch(location.removeprefix(office.client.url))
    found = office.connection()
    assert found is not None
    assert found.grant_id is None


# ---- what it means for incidents ----


def by_mailbox(desk: Desk, grant: Grant, **values: object) -> Connection:
    """The alert connection, linked by this grant."""
    with desk.db.write() as session:
        mailbox = session.get_one(Mailbox, grant.mailbox_id)
        found = a_connection(
            session,
            None,
            mailer="outlook",
            is_system=True,
            lane=session.get_one(Lane, mailbox.lane_id),
            from_email=mailbox.address,
        )
        a_link(session, found, session.get_one(Grant, grant.id))
        for name, value in values.items():
            setattr(found, name, value)
        return found


def refused_by_microsoft(desk: Desk, grant: Grant, kind: str) -> None:
    with desk.db.write() as session:
        if kind == "needs-reauthorisation":
            row = session.get_one(Grant, grant.id)
            row.state, row.code, row.state_since = kind, "AADSTS50173", desk.now
        service.note_refusal(
            session, grant.id, kind=kind, code="AADSTS50173", words="no", now=desk.now
        )


@pytest.mark.parametrize(
    ("kind", "told"),
    [("needs-reauthorisation", Kind.LINK), ("misconfigured", Kind.REGISTRATION)],
)
def test_a_link_that_a_site_and_the_alerts_share_is_one_incident(
    desk: Desk, hook: Hook, kind: str, told: Kind
) -> None:
    grant = desk.linked(desk.site())
    alerts = by_mailbox(desk, grant)
    desk.target(MARA, channel=Channel.EMAIL)
    desk.target(hook.url)
    refused_by_microsoft(desk, grant, kind)
    for _ in range(2):
        desk.round()
    assert desk.open() == [told]
    assert len(hook.calls) == 1
    with desk.db.read() as session:
        rows = session.scalars(sa.select(Notification).order_by(Notification.id)).all()
    assert [(row.told, row.words) for row in rows] == [
        (Told.DROPPED, channel.IS_BROKEN),
        (Told.SENT, "204"),
    ]
    desk.change(Connection, alerts.id, health=Health.FAILING)  # for a reason of its own
    desk.watch.round()
    assert set(desk.open()) == {told, Kind.ALERTS}


def test_a_registration_that_the_alerts_alone_use_is_one_incident(desk: Desk) -> None:
    with desk.db.write() as session:
        keyring = desk.installation.keyring
        grant = a_grant(session, keyring, an_app(session, keyring), a_mailbox(session))
    by_mailbox(desk, grant)
    refused_by_microsoft(desk, grant, "misconfigured")
    desk.watch.round()
    assert desk.open() == [Kind.REGISTRATION]


def test_a_link_of_the_alerts_alone_that_is_refused_or_idle_concerns_the_installation(
    desk: Desk,
) -> None:
    with desk.db.write() as session:
        keyring = desk.installation.keyring
        mailbox = a_mailbox(session)
        grant = a_grant(session, keyring, an_app(session, keyring), mailbox, renewed_at=desk.now)
    by_mailbox(desk, grant)
    desk.later(days=61)
    desk.watch.round()
    assert desk.open() == [Kind.IDLE]
    assert desk.incidents()[0].details["sites"] == []
    refused_by_microsoft(desk, grant, "needs-reauthorisation")
    desk.watch.round()
    assert desk.open() == [Kind.ALERTS]


def test_a_mailbox_that_cannot_be_reached_carries_no_alert_about_that(desk: Desk) -> None:
    """The lane is the mailbox's, by whichever registration it is linked."""
    site = desk.site()
    mine = desk.linked(site)
    with desk.db.write() as session:
        keyring, mailbox = desk.installation.keyring, session.get_one(Mailbox, mine.mailbox_id)
        other = a_grant(session, keyring, an_app(session, keyring), mailbox)
    by_mailbox(desk, other)
    desk.target(MARA, channel=Channel.EMAIL)
    with desk.db.write() as session:
        connection = session.scalars(
            sa.select(Connection).where(Connection.site_id == site.id)
        ).one()
        connection.health, connection.health_since = Health.FAILING, desk.now
    desk.later(minutes=16)
    desk.round()
    assert desk.open() == [Kind.UNREACHABLE]
    assert desk.told() == [(Occasion.OPENED, Told.DROPPED)]
