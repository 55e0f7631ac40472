"""Tools > Email Test: the form, and the page that follows a test to its end."""

import email
import socket
import zlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.policy import default
from typing import Any

import pytest
import sqlalchemy as sa

from tests.factories import (
    a_connection,
    a_grant,
    a_link,
    a_mailbox,
    a_membership,
    a_message,
    a_site,
    a_time,
    a_user,
    an_app,
)
from tests.pages import Browser, Page
from webapp.accounts.models import Role
from webapp.connections.models import Connection
from webapp.delivery.models import (
    Attempt,
    Content,
    Heartbeat,
    Lane,
    Message,
    Outcome,
    Source,
    State,
)
from webapp.delivery.wake import Listener
from webapp.installation import Installation
from webapp.mailers.errors import Cause
from webapp.mime.facts import facts_of
from webapp.sites.models import Mode, Site

URL = "/sites/lindenhof/tools/test"
MARA = "mara@agentur.example"
SERVICE = "service@lindenhof.example"
ORDERS = "orders@lindenhof.example"
SEND_AS = {
    "outcome": Outcome.PERMANENT,
    "cause": Cause.SENDER_REFUSED,
    "code": "403 ErrorSendAsDenied",
    "words": "403 ErrorSendAsDenied: The user account which was used to submit this request does "
    "not have the right to send mail on behalf of the specified sending account.",
}
REVOKED = {
    "outcome": Outcome.NEEDS_REAUTHORISATION,
    "cause": Cause.AUTH,
    "code": "AADSTS50173",
    "words": "AADSTS50173: The provided grant has expired due to it being revoked.",
}


class World:
    """A site with a connection, and Mara, who has a role there."""

    def __init__(self, client: Browser, installation: Installation, role: Role) -> None:
        self.client, self.installation = client, installation
        with installation.db.write() as session:
            self.site: Site = a_site(session, name="Lindenhof Shop", slug="lindenhof")
            self.user = a_user(session, email=MARA, name="")
            a_membership(session, self.user, self.site, role)
        client.sign_in(self.user)

    def smtp(self, **values: Any) -> Connection:
        with self.installation.db.write() as session:
            site = session.merge(self.site, load=False)
            given = {"settings": {"authentication": False}, "from_email": SERVICE} | values
            return a_connection(session, site, **given)

    def outlook(self, *, from_email: str = SERVICE, **values: Any) -> Connection:
        keyring = self.installation.keyring
        with self.installation.db.write() as session:
            site = session.merge(self.site, load=False)
            made = a_connection(session, site, mailer="outlook", from_email=from_email)
            mailbox = a_mailbox(session, address=ORDERS, **values)
            a_link(session, made, a_grant(session, keyring, an_app(session, keyring), mailbox))
            return made

    def lane(self, connection: Connection, **values: Any) -> None:
        with self.installation.db.write() as session:
            change = sa.update(Lane).where(Lane.id == connection.lane_id)
            session.execute(change.values(**values))

    def worker(self, seen: timedelta = timedelta()) -> None:
        at = self.installation.db.now() - seen
        with self.installation.db.write() as session:
            beat = {"part": "deliver", "beat_at": at, "details": {"owner": True}}
            session.add(Heartbeat(name="deliver@here", **beat))

    def add(
        self,
        connection: Connection | None = None,
        tries: Sequence[dict[str, Any]] = (),
        **values: Any,
    ) -> str:
        """A test in some state; its address."""
        given = {"source": Source.TEST, "to": (MARA,), "sender": SERVICE} | values
        with self.installation.db.write() as session:
            site = session.merge(self.site, load=False)
            mail = a_message(session, site, connection=connection, **given)
            mail.attempts = len(tries)
            for number, one in enumerate(tries, start=1):
                session.add(an_attempt(mail, number, **one))
        return f"{URL}/{mail.queue_id}"

    def open(self, path: str = URL, **options: Any) -> Page:
        return self.client.get(path, **options)

    def send(self, *, status: int = 200, **fields: str) -> Page:
        return self.client.post(URL, {"to": MARA, "html": "y"} | fields, status=status)

    def stored(self) -> list[Message]:
        with self.installation.db.read() as session:
            return list(session.scalars(sa.select(Message).order_by(Message.id)))

    def raw(self) -> bytes:
        """The source of the last stored mail."""
        with self.installation.db.read() as session:
            query = sa.select(Content.raw).order_by(Content.message_id.desc()).limit(1)
            return zlib.decompress(session.scalars(query).one())

    def mail(self) -> EmailMessage:
        """The last stored mail, as a program reads it."""
        found = email.message_from_bytes(self.raw(), policy=default)
        assert isinstance(found, EmailMessage)
        return found


def an_attempt(mail: Message, number: int, **values: Any) -> Attempt:
    started = values.pop("started_at", mail.accepted_at + timedelta(seconds=1))
    given: dict[str, Any] = {
        "connection_name": "365 / Outlook",
        "started_at": started,
        "finished_at": started + timedelta(seconds=0.6),
    }
    return Attempt(message_id=mail.id, number=number, **(given | values))


@pytest.fixture
def world(client: Browser, installation: Installation) -> World:
    return World(client, installation, Role.OPERATOR)


def labels(page: Page) -> list[str]:
    return [node.text for node in page.all("button") + page.all("a", class_="btn")]


def paragraphs(page: Page) -> str:
    return page.one("main").text


# ---- the form ----


def test_a_test_goes_to_ones_own_address_unless_told_otherwise(world: World) -> None:
    world.smtp()
    page = world.open()
    assert page.value("to") == MARA
    assert "checked" in page.one(name="html").attributes
    assert page.all(name="via") == []
    assert page.links()["Tools"] == URL
    assert page.one("nav", class_="tabs").text == "Email Test"


def test_a_connection_is_chosen_where_there_are_several(world: World) -> None:
    backup = world.smtp(nickname="Host relay", primary=False)
    primary = world.smtp(nickname="Hosting mail")
    page = world.open()
    assert [node["value"] for node in page.all(name="via")] == [primary.uid, backup.uid]
    assert [node.text for node in page.all("label", class_="choice")] == [
        "Hosting mail primary",
        "Host relay",
    ]
    asked = world.open(f"{URL}?via={backup.uid}")
    (chosen,) = [one for one in asked.all(name="via") if "checked" in one.attributes]
    assert chosen["value"] == backup.uid


def test_without_a_connection_no_test_can_be_sent(world: World) -> None:
    page = world.open()
    assert "disabled" in page.one("button", class_="primary").attributes
    assert page.links()["Set up the connection"] == "/sites/lindenhof/settings/general"
    world.send(status=422)
    assert world.stored() == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mailer": "outlook"}, "This connection is not linked to a mailbox yet."),
        ({"settings": {}}, "The settings of this connection are not complete."),
        ({"mailer": ""}, "No mailer is chosen for this connection."),
        ({"from_email": ""}, "This connection has no From Email, and the site has no admin"),
    ],
)
def test_a_connection_that_cannot_send_is_said_to_be_why(
    world: World, change: dict[str, Any], sentence: str
) -> None:
    made = world.smtp()
    with world.installation.db.write() as session:
        session.execute(sa.update(Connection).where(Connection.id == made.id).values(**change))
        session.execute(sa.update(Site).values(admin_email=""))
    page = world.open()
    assert sentence in " ".join(page.notices)
    assert page.links()["Open the settings"] == "/sites/lindenhof/settings/general"
    world.send(status=422)


def test_support_may_send_a_test_and_is_not_sent_to_pages_it_may_not_open(
    client: Browser, installation: Installation
) -> None:
    world = World(client, installation, Role.SUPPORT)
    assert "/sites/lindenhof/settings/general" not in world.open().links_to()
    world.smtp()
    assert world.send().one(id="test").get("data-follow") == "1"


def test_a_viewer_may_not_send_a_test(client: Browser, installation: Installation) -> None:
    world = World(client, installation, Role.VIEWER)
    world.smtp()
    world.open(status=403)
    world.send(status=403)
    world.open(world.add(), status=403)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("", "Enter the address that the test is to reach."),
        ("mara", "Enter an email address"),
        ("mara@agentur.example, b@c.example", "Enter an email address"),
        ("mara@agentur.example\r\nBcc: victim@example.org", "Enter an email address"),
        ("x" * 330 + "@agentur.example", "Use at most 320 characters."),
    ],
)
def test_a_wrong_address_is_said_at_its_field_and_what_was_typed_stays(
    world: World, typed: str, sentence: str
) -> None:
    world.smtp()
    page = world.send(to=typed, status=422)
    assert sentence in page.errors["to"]
    assert page.value("to").split() == typed.split()
    assert world.stored() == []


def test_a_connection_of_another_site_cannot_be_tested_here(world: World) -> None:
    world.smtp()
    with world.installation.db.write() as session:
        foreign = a_connection(session, a_site(session)).uid
    page = world.send(via=foreign, status=422)
    assert page.errors["via"] == "Choose one of the values offered."
    assert world.stored() == []


# ---- the mail ----


def test_a_test_enters_the_ledger_for_its_connection_and_before_all_others(world: World) -> None:
    world.smtp(nickname="Hosting mail")
    backup = world.smtp(nickname="Host relay", primary=False)
    world.send(via=backup.uid)
    (stored,) = world.stored()
    assert (stored.source, stored.state) == ("test", "queued")
    assert (stored.connection_id, stored.lane_id) == (backup.id, backup.lane_id)
    assert stored.why == {"code": "test"}
    assert stored.due_at is not None
    assert stored.due_at < stored.accepted_at - timedelta(days=1)
    assert (stored.mail_from, stored.to_line) == (SERVICE, MARA)
    assert stored.received["by"] == MARA


def test_the_delivery_worker_is_woken(world: World) -> None:
    world.smtp()
    listener = Listener(world.installation.settings.instance)
    world.send()
    assert listener.socket.recv(16, socket.MSG_DONTWAIT) == b"1"
    listener.close()


def test_the_mail_says_what_it_proves_and_loads_nothing(world: World) -> None:
    world.smtp(nickname="Hosting <mail>", from_name="Lindenhof")
    world.send()
    mail = world.mail()
    assert mail["Subject"] == f"Postroom: test mail to {MARA}"
    assert mail["From"] == f"Lindenhof <{SERVICE}>"
    assert mail["To"] == MARA
    assert mail["Message-ID"].endswith("@lindenhof.example>")
    assert abs(mail["Date"].datetime - a_time()) < timedelta(minutes=5)
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert (
        "mail of Lindenhof Shop can leave by the connection Hosting <mail>" in plain.get_content()
    )
    assert f"Asked for by: {MARA}" in plain.get_content()
    assert "Hosting &lt;mail&gt;" in html.get_content()
    assert not {"http:", "src=", "url(", "<link"} & set(html.get_content().split())
    assert "src=" not in html.get_content()


def test_with_html_off_the_mail_is_plain_text(world: World) -> None:
    world.smtp()
    world.send()
    assert world.mail().get_content_type() == "multipart/alternative"
    world.client.post(URL, {"to": MARA})
    assert world.mail().get_content_type() == "text/plain"


def test_an_international_address_stays_one_address(world: World) -> None:
    world.smtp()
    world.send(to="o'neil+test@bücher.example")
    (to,) = facts_of(world.raw()).to
    assert to.email == "o'neil+test@bücher.example"
    assert world.stored()[0].to_line == "o'neil+test@bücher.example"


def test_the_mail_is_written_in_the_language_of_whoever_asks(world: World) -> None:
    world.smtp()
    with world.installation.db.write() as session:
        session.get_one(type(world.user), world.user.id).language = "zh_Hans"
    page = world.send()
    assert page.one("html")["lang"] == "zh-Hans"
    html = world.mail().get_body(("html",))
    assert html is not None
    assert '<html lang="zh-Hans">' in html.get_content()


def test_without_a_from_email_the_sites_admin_address_is_used(world: World) -> None:
    world.smtp(from_email="")
    world.send()
    assert world.mail()["From"] == "Lindenhof Shop <admin@lindenhof.example>"


def test_without_a_from_email_a_linked_mailbox_sends_as_itself(world: World) -> None:
    world.outlook(from_email="")
    world.send()
    assert world.mail()["From"] == f"Lindenhof Shop <{ORDERS}>"


def test_more_than_ten_tests_a_minute_are_refused(world: World) -> None:
    world.smtp()
    for _ in range(10):
        world.send()
    page = world.send(status=429)
    assert "This site had 10 tests within a minute" in " ".join(page.notices)
    assert page.value("to") == MARA
    assert len(world.stored()) == 10


def test_the_last_test_is_linked_below_the_form(world: World) -> None:
    world.smtp()
    assert "Last test" not in paragraphs(world.open())
    world.send()
    (stored,) = world.stored()
    assert world.open().links()["under way just now"] == f"{URL}/{stored.queue_id}"
    with world.installation.db.write() as session:
        finished = world.installation.db.now() - timedelta(minutes=3)
        values = {"state": State.FAILED, "finished_at": finished}
        session.execute(sa.update(Message).values(**values))
    assert "Last test: failed 3 minutes ago" in paragraphs(world.open())


# ---- what becomes of it ----


def test_a_mail_that_is_no_test_has_no_page_here(world: World) -> None:
    made = world.smtp()
    world.open(world.add(made, source=Source.SMTP), status=404)
    with world.installation.db.write() as session:
        foreign = a_message(session, a_site(session), source=Source.TEST).queue_id
    world.open(f"{URL}/{foreign}", status=404)
    world.open(f"{URL}/0000000000000000", status=404)


def test_a_test_under_way_is_followed_with_and_without_script(world: World) -> None:
    made = world.smtp()
    world.worker()
    page = world.open(world.add(made))
    assert page.notices == ["Handing over to mail.hoster.example…"]
    assert page.one(id="test")["data-follow"] == "1"
    refresh = page.one("meta", http_equiv="refresh")
    assert refresh["content"] == "3"
    assert refresh.parent is not None
    assert refresh.parent.tag == "noscript"
    steps = [node.text.split()[0] for node in page.one("ol", class_="steps").all("li")]
    assert steps == ["Stored", "Handing", "Answer"]
    sending = world.open(world.add(made, [{"outcome": Outcome.STARTED}], state=State.SENDING))
    assert sending.notices == ["Handing over to mail.hoster.example…"]
    assert sending.one(id="test")["data-state"] != page.one(id="test")["data-state"]


@pytest.mark.parametrize("seen", [None, timedelta(minutes=2)])
def test_without_a_delivery_worker_the_page_says_so(world: World, seen: timedelta | None) -> None:
    made = world.smtp()
    if seen is not None:
        world.worker(seen)
    page = world.open(world.add(made))
    assert "Nothing delivers mail at the moment" in page.notices[0]
    assert page.one(id="test")["data-follow"] == "1"


def test_a_lane_that_was_asked_to_slow_down_is_said_to_wait(world: World) -> None:
    made = world.smtp()
    world.worker()
    until = world.installation.db.now() + timedelta(minutes=4)
    world.lane(made, is_blocked=True, blocked_until=until, blocked_kind="throttled")
    page = world.open(world.add(made))
    assert "The remote asked to slow down. It goes on at" in page.one(id="test").text
    assert page.one(id="test")["data-follow"] == "10"


def test_a_lane_without_room_is_said_to_wait(world: World) -> None:
    made = world.smtp()
    world.worker()
    second = int(world.installation.db.now().timestamp())
    world.lane(made, per_minute=1, windows={"minute": {str(second): 1}})
    page = world.open(world.add(made))
    assert "Waits for room: 1 a minute on this connection. Next at" in page.one(id="test").text


def test_success_says_who_took_it_and_where_to_look(world: World) -> None:
    made = world.smtp()
    at = a_time()
    sent = {"state": State.SENT, "at": at, "finished_at": at + timedelta(seconds=0.8)}
    page = world.open(world.add(made, [{"outcome": Outcome.SENT}], sent_from=SERVICE, **sent))
    said = page.one(id="test").text
    assert "The test mail was accepted by mail.hoster.example" in said
    assert f"Handed over after 0.8 s, from {SERVICE}. Look into the inbox of {MARA}" in said
    assert "Will others trust it?" not in said
    assert page.one(id="test")["data-follow"] == "0"
    assert page.all("meta", http_equiv="refresh") == []
    assert page.links()["Send another test"] == f"{URL}?via={made.uid}"
    assert page.all(id="debug-log") == []


def test_success_at_microsoft_names_the_records_of_an_own_domain(world: World) -> None:
    made = world.outlook()
    path = world.add(made, [{"outcome": Outcome.SENT}], state=State.SENT, sent_from=SERVICE)
    said = world.open(path).one(id="test").text
    assert "The test mail is with Microsoft" in said
    assert "include:spf.protection.outlook.com" in said
    assert "selector1._domainkey and selector2._domainkey" in said


@pytest.mark.parametrize(
    ("tenant", "sender"),
    [
        ("9188040d-6c67-4c5b-b112-36a304b66dad", "lindenhof@outlook.example"),
        ("8d1f0000-0000-4000-8000-0000000000c2", "mail@lindenhof.onmicrosoft.com"),
    ],
)
def test_a_domain_of_microsofts_needs_no_records(world: World, tenant: str, sender: str) -> None:
    made = world.outlook(tenant_id=tenant)
    path = world.add(made, [{"outcome": Outcome.SENT}], state=State.SENT, sent_from=sender)
    assert "Will others trust it?" not in world.open(path).one(id="test").text


def test_a_refused_sender_is_explained_and_can_be_put_right_here(world: World) -> None:
    made = world.outlook()
    path = world.add(made, [SEND_AS], state=State.FAILED, sent_from=SERVICE)
    page = world.open(path)
    said = page.one(id="test")
    assert "The test mail was not sent 365 / Outlook refused it after 0.6 s, at" in said.text
    assert ORDERS in said.text
    assert "%(" not in said.text
    assert said.one("code", class_="words").text == SEND_AS["words"]
    assert len(said.one("ul", class_="who").all("li")) >= 3
    assert said.all("ol", class_="steps")
    (again,) = [form for form in said.all("form") if form["action"] == URL]
    assert {
        node["name"]: node["value"] for node in again.all("input") if node["name"] != "csrf_token"
    } == {
        "to": MARA,
        "via": made.uid,
        "html": "y",
    }
    assert "Copy a message for the admin" in labels(page)
    assert ORDERS in page.one(id="admin-message").text
    assert page.one(id="test")["data-follow"] == "0"


def test_a_site_without_a_connection_says_once_why_no_test_can_be_sent(world: World) -> None:
    page = world.open(URL)
    assert len(page.notices) == 1
    assert page.one("div", class_="save").text.endswith("This site has no connection yet.")


def test_what_was_done_already_has_no_button_and_testing_again_stands_out(world: World) -> None:
    made = world.outlook()
    path = world.add(made, [SEND_AS], state=State.FAILED, sent_from=SERVICE)
    (primary,) = world.open(path).one(id="test").all(class_="primary")
    assert primary.text == f"Set From Email to {ORDERS}"
    with world.installation.db.write() as session:
        session.execute(sa.update(Connection).values(from_email=ORDERS))
    (primary,) = world.open(path).one(id="test").all(class_="primary")
    assert primary.text == "Test again now"


def test_what_the_test_met_is_said_once(world: World) -> None:
    made = world.outlook()
    path = world.add(made, [SEND_AS], state=State.FAILED, sent_from=SERVICE)
    with world.installation.db.write() as session:
        session.execute(sa.update(Connection).values(health="failing", last_words=SEND_AS["words"]))
    assert len(world.open(path).notices) == 1


def test_nothing_stands_out_where_nothing_is_to_be_done(world: World) -> None:
    made = world.outlook()
    until = world.installation.db.now() + timedelta(minutes=4)
    throttled = {
        "outcome": Outcome.TRANSIENT,
        "code": "429 ApplicationThrottled",
        "words": "Application is over its MailboxConcurrency limit.",
    }
    page = world.open(world.add(made, [throttled], state=State.DEFERRED, due_at=until))
    assert page.one(id="test").all(class_="primary") == []
    assert "Test again now" not in labels(page)


def test_a_personal_account_has_no_admin_to_ask(world: World) -> None:
    denied = {"outcome": Outcome.PERMANENT, "code": "403 ErrorAccessDenied", "words": "Denied."}
    made = world.outlook(tenant_id="9188040d-6c67-4c5b-b112-36a304b66dad")
    said = world.open(world.add(made, [denied], state=State.FAILED)).one(id="test").text
    assert "Re-authorize" in said
    assert "admin" not in said


def test_a_connection_that_sites_share_is_not_changed_from_here(world: World) -> None:
    made = world.outlook()
    path = world.add(made, [SEND_AS], state=State.FAILED, sent_from=SERVICE)
    button = f"Set From Email to {ORDERS}"
    assert button in labels(world.open(path))
    with world.installation.db.write() as session:
        session.execute(sa.update(Connection).values(site_id=None))
    assert button not in labels(world.open(path))


def test_the_way_out_of_a_lost_link_stands_out(world: World) -> None:
    made = world.outlook()
    page = world.open(world.add(made, [REVOKED], state=State.FAILED))
    (primary,) = page.one(id="test").all(class_="primary")
    assert primary.text == "Re-authorize"
    link = f"/sites/lindenhof/connections/{made.uid}/link"
    assert primary["href"].startswith(f"{link}?next=/sites/lindenhof/tools/test/")


def test_the_debug_log_has_everything_but_secrets_and_the_mail(world: World) -> None:
    made = world.outlook()
    log = ["POST https://graph.microsoft.com/v1.0/me/sendMail", "403 in 617 ms"]
    one = SEND_AS | {"details": {"log": log}}
    page = world.open(world.add(made, [one], state=State.FAILED, sent_from=SERVICE))
    text = page.one(id="debug-log").text
    for piece in (
        "Postroom 0.1.0 Python 3.",
        "SQLite 3.",
        "lindenhof (live)",
        f"365 / Outlook, primary, id {made.uid}",
        f"{ORDERS} (work, tenant 8d1f…c2, global cloud)",
        "Granted User.Read Mail.Send",
        "Token renewed",
        f"From {SERVICE} To {MARA}",
        "permanent (sender-refused) after 0.600 s",
        *log,
    ):
        assert piece in text
    assert "Vielen Dank" not in text


def test_support_sees_neither_debug_log_nor_buttons_of_the_settings(
    client: Browser, installation: Installation
) -> None:
    world = World(client, installation, Role.SUPPORT)
    made = world.outlook()
    page = world.open(world.add(made, [SEND_AS], state=State.FAILED))
    assert page.all(id="debug-log") == []
    assert not [url for url in page.one("main").links_to() if "/settings/" in url]
    assert "Test again now" in labels(page)
    assert not any("Set From Email" in label for label in labels(page))


def test_a_transient_failure_says_when_it_is_tried_again(world: World) -> None:
    made = world.smtp()
    due_at = world.installation.db.now() + timedelta(minutes=1)
    one = {"outcome": Outcome.TRANSIENT, "cause": Cause.CONNECT, "words": "Connection refused"}
    page = world.open(world.add(made, [one], state=State.DEFERRED, due_at=due_at))
    said = page.one(id="test").text
    assert "The test mail did not get through yet" in said
    assert "Next try by itself at" in said
    assert "Connection refused" in said
    assert page.one(id="test")["data-follow"] == "10"


def test_a_stopped_lane_says_why_and_that_the_test_leaves_later(world: World) -> None:
    made = world.outlook()
    world.lane(
        made,
        is_blocked=True,
        blocked_since=a_time(),
        blocked_kind=Outcome.NEEDS_REAUTHORISATION,
        blocked_words=REVOKED["words"],
    )
    untried, tried = (
        world.open(world.add(made)),
        world.open(world.add(made, [REVOKED], state=State.DEFERRED)),
    )
    for page in (untried, tried):
        said = page.one(id="test").text
        assert "The test mail cannot leave" in said
        assert "leaves by itself once that is put right" in said
        assert str(REVOKED["words"]) in said
        assert page.one(id="test")["data-follow"] == "0"
    assert "Nothing leaves by this connection since" in untried.one(id="test").text
    assert untried.one(id="cause").text == tried.one(id="cause").text


def test_a_test_whose_connection_lost_its_link_says_so(world: World) -> None:
    page = world.open(world.add(None))
    assert "gone, or no longer linked" in page.one(id="test").text
    assert page.one(id="test")["data-follow"] == "0"


@pytest.mark.parametrize(("due_in", "follow"), [(None, "0"), (timedelta(minutes=1), "10")])
def test_an_unclear_answer_is_said_to_be_unclear(
    world: World, due_in: timedelta | None, follow: str
) -> None:
    made = world.smtp()
    due_at: datetime | None = world.installation.db.now() + due_in if due_in else None
    one = {"outcome": Outcome.UNCERTAIN, "cause": Cause.LOST_ANSWER, "words": "no answer"}
    page = world.open(world.add(made, [one], state=State.UNCERTAIN, due_at=due_at))
    assert "Whether the test mail arrived is not known" in page.one(id="test").text
    assert page.one(id="test")["data-follow"] == follow


def test_where_nothing_is_sent_a_test_leaves_all_the_same(world: World) -> None:
    world.smtp()
    with world.installation.db.write() as session:
        session.execute(sa.update(Site).values(mode=Mode.DO_NOT_SEND))
    assert "a test leaves all the same" in paragraphs(world.open())
    page = world.send()
    assert page.one(id="test")["data-follow"] == "1"
    with world.installation.db.read() as session:
        assert session.scalars(sa.select(Message.state)).one() == State.QUEUED


def test_a_failure_of_another_day_says_which(world: World) -> None:
    made = world.smtp()
    one = {"outcome": Outcome.PERMANENT, "code": "550 5.1.1", "words": "550 5.1.1 No such user"}
    at = a_time() - timedelta(days=2)
    page = world.open(world.add(made, [one], state=State.FAILED, at=at))
    assert f", at {at.day} " in page.one(id="test").text


def test_a_test_of_a_connection_that_is_gone_still_has_a_page(world: World) -> None:
    one = {"outcome": Outcome.PERMANENT, "code": "550", "words": "550 no"}
    page = world.open(world.add(None, [one], state=State.FAILED))
    assert page.one(id="debug-log").text
    assert f"{URL}" in page.links()["Send another test"]


def test_every_page_is_there_in_chinese(world: World) -> None:
    made = world.outlook()
    with world.installation.db.write() as session:
        session.get_one(type(world.user), world.user.id).language = "zh_Hans"
    assert world.open().one("html")["lang"] == "zh-Hans"
    for tries, state in ((SEND_AS, State.FAILED), ({"outcome": Outcome.SENT}, State.SENT)):
        page = world.open(world.add(made, [tries], state=state, sent_from=SERVICE))
        assert "%(" not in page.one("main").text
