"""The page of one mail: its story, and what is in it for those who may read that."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.factories import a_connection, a_mail, a_membership, a_message, a_site, a_time, a_user
from tests.pages import Browser, Page
from webapp import ids
from webapp.accounts.models import Role
from webapp.delivery.models import Attempt, Content, Message, Outcome, Recipient, Source, State
from webapp.installation import Installation
from webapp.sites.models import Site

HTML = (
    "<h1>Rechnung</h1><script>alert(1)</script><img src='https://spy.example/p.png'>"
    "<base href='https://evil.example/'><link rel=stylesheet href='https://evil.example/x.css'>"
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>"
    "<form action='https://evil.example/'><input name=q></form>"
    "<img src='cid:logo@x'>"
)
CONTROL = {"code": "control", "action": "hold", "name": "No <b>spam"}
PNG = b"\x89PNG\r\n\x1a\n"


class World:
    """A site, a person with a role there, and the mails of the test."""

    def __init__(self, client: Browser, installation: Installation, role: Role) -> None:
        self.client, self.installation = client, installation
        with installation.db.write() as session:
            self.site: Site = a_site(session, name="Galerie Nord", slug="galerie-nord")
            user = a_user(session)
            a_membership(session, user, self.site, role)
        client.sign_in(user)

    def add(self, tries: Sequence[dict[str, Any]] = (), **values: Any) -> str:
        """A mail; its address."""
        with self.installation.db.write() as session:
            mail = a_message(session, self.site, **values)
            for number, given in enumerate(tries, start=1):
                session.add(an_attempt(mail, number, **given))
        return f"/sites/galerie-nord/log/{mail.queue_id}"

    def open(self, path: str, **options: Any) -> Page:
        return self.client.get(path, **options)


def an_attempt(mail: Message, number: int, **values: Any) -> Attempt:
    started = mail.accepted_at + timedelta(minutes=number)
    defaults: dict[str, Any] = {
        "connection_name": "Relay",
        "outcome": Outcome.SENT,
        "started_at": started,
        "finished_at": started + timedelta(seconds=1.5),
    }
    return Attempt(message_id=mail.id, number=number, **(defaults | values))


@pytest.fixture
def world(client: Browser, installation: Installation) -> World:
    """Seen by an operator, who may read mail."""
    return World(client, installation, Role.OPERATOR)


def titles(page: Page) -> list[str]:
    return [step.one("h3").text for step in page.one("ol", class_="time").all("li")]


def story(page: Page) -> str:
    return page.one("ol", class_="time").text


# ---- the story ----


def test_the_story_of_a_test_says_what_it_is_and_by_whom(world: World) -> None:
    with world.installation.db.write() as session:
        connection = a_connection(session, world.site, nickname="Relay", primary=False)
    path = world.add(
        source=Source.TEST,
        received={"by": "Mara", "with": "HTTP"},
        why={"code": "test"},
        connection=connection,
    )
    told = story(world.open(path))
    assert "Accepted as a test, by Mara" in told
    assert "Routed to Relay A test of this connection: no routing, no backup." in told


@pytest.mark.parametrize(("role", "is_shown"), [(Role.OPERATOR, True), (Role.SUPPORT, False)])
def test_what_was_said_is_shown_to_whoever_may_read_the_mail(
    client: Browser, installation: Installation, role: Role, is_shown: bool
) -> None:
    world = World(client, installation, role)
    log = {"log": ["C: MAIL FROM:<shop@site.example>", "S: 250 ok"]}
    path = world.add([{"details": log}], state=State.SENT)
    told = story(world.open(path))
    assert ("C: MAIL FROM:<shop@site.example> S: 250 ok" in told) is is_shown


def test_the_story_tells_how_a_mail_came_in_and_left(world: World) -> None:
    with world.installation.db.write() as session:
        connection = a_connection(session, world.site, nickname="Relay")
    at = a_time() - timedelta(hours=1)
    path = world.add(
        [
            {
                "outcome": Outcome.TRANSIENT,
                "code": "451 4.7.1",
                "words": "451 4.7.1 Greylisted",
                "details": {"next_at": (at + timedelta(minutes=3)).isoformat()},
            },
            {"code": "250", "words": "250 2.0.0 Ok: queued as 4Xy", "remote_id": "4Xy"},
        ],
        state=State.SENT,
        subject="Rechnung 7",
        at=at,
        connection=connection,
        finished_at=at + timedelta(minutes=2),
        received={"login": "wp", "address": "203.0.113.24", "tls": "TLSv1.3"},
        why={"code": "primary"},
    )
    page = world.open(path)
    assert page.h1 == "Rechnung 7"
    assert page.one("h2", id="story").text == "Sent after 2 min, by Relay"
    assert titles(page) == [
        "Accepted by SMTP, login wp, from 203.0.113.24, TLS 1.3",
        "Routed to Relay",
        "Attempt 1: put off after 1.5 s, Relay",
        "Attempt 2: sent after 1.5 s, Relay",
    ]
    assert "250 2.0.0 queued as" in story(page)
    assert "451 4.7.1 Greylisted" in story(page)
    assert story(page).count("4Xy") == 1


@pytest.mark.parametrize(
    ("given", "title", "text"),
    [
        ({"outcome": Outcome.STARTED, "finished_at": None}, "under way Relay", ""),
        ({"outcome": Outcome.TRANSIENT, "cause": "rate"}, "asked to wait", "asked to slow down"),
        ({"outcome": Outcome.TRANSIENT, "cause": "dns"}, "put off", "was not found"),
        ({"outcome": Outcome.UNCERTAIN, "cause": "owner-lost"}, "the answer was lost", "process"),
        ({"outcome": Outcome.PERMANENT, "cause": "sender-refused"}, "refused", "the sender"),
        ({"outcome": Outcome.NEEDS_REAUTHORISATION, "cause": "auth"}, "the login was", "new one"),
        ({"outcome": Outcome.MISCONFIGURED, "cause": "tls"}, "not set up right", "encrypted"),
        ({"outcome": Outcome.MISCONFIGURED, "cause": "auth"}, "not set up", "takes no sign-in"),
        (
            {"outcome": Outcome.PARTLY, "details": {"refused": 1, "recipients": 3}},
            "sent to some",
            "1 of 3 recipients",
        ),
        ({"outcome": Outcome.TRANSIENT, "cause": "new-word", "words": "odd"}, "put off", "odd"),
    ],
)
def test_an_attempt_is_told_by_its_outcome(
    world: World, given: dict[str, Any], title: str, text: str
) -> None:
    page = world.open(world.add([given], state=State.DEFERRED))
    (told,) = [each for each in titles(page) if each.startswith("Attempt 1:")]
    assert title in told
    assert text in story(page)


@pytest.mark.parametrize(
    ("values", "title", "text"),
    [
        ({"state": State.QUEUED}, "Next", "Waits until the site has a connection."),
        ({"state": State.BLOCKED}, "Not sent", "Kept in the log, but not sent."),
        (
            {"state": State.BLOCKED, "why": {"code": "do-not-send"}},
            "Not sent",
            "the site’s mode is Do not send",
        ),
        (
            {"state": State.BLOCKED, "why": CONTROL | {"action": "block"}},
            "Not sent",
            "By the control “No <b>spam”.",
        ),
        ({"state": State.CANCELLED}, "Cancelled", ""),
        ({"state": State.UNCERTAIN}, "Left as it is", "it is not sent again"),
    ],
)
def test_the_story_ends_with_what_comes_next(
    world: World, values: dict[str, Any], title: str, text: str
) -> None:
    page = world.open(world.add(**values))
    assert titles(page)[-1] == title
    assert text in story(page)


@pytest.mark.parametrize(
    ("values", "title", "text"),
    [
        ({"why": {"code": "rule", "name": "Orders"}}, "Routed to Relay", "By the rule “Orders”."),
        ({"why": {"code": "rule", "name": ""}}, "Routed to Relay", "By a rule of this site."),
        ({"why": {"code": "asked"}}, "Routed to Relay", "asked for this connection"),
        ({"why": CONTROL, "state": State.HELD}, "Held", "By the control “No <b>spam”."),
        ({"why": {"code": "mode-hold"}, "state": State.HELD}, "Held", "mode was Hold"),
        (
            {"why": {"code": "primary", "held": CONTROL, "released": "2026-11-23T15:00:00+00:00"}},
            "Released",
            "By the control “No <b>spam”.",
        ),
        (
            {"received": {"redirected_from": ["a@x.example", "b@x.example"], "redirected": 9}},
            "Redirected: the site’s mode is Redirect to",
            "It was meant for: a@x.example, b@x.example and 7 more",
        ),
    ],
)
def test_the_story_says_what_was_decided_when_it_came_in(
    world: World, values: dict[str, Any], title: str, text: str
) -> None:
    with world.installation.db.write() as session:
        relay = a_connection(session, world.site, nickname="Relay")
    page = world.open(world.add([{}], **({"state": State.SENT, "connection": relay} | values)))
    assert title in titles(page)
    assert text in story(page)


def test_a_mail_that_ran_out_of_time_was_given_up(world: World) -> None:
    page = world.open(world.add([{"outcome": Outcome.TRANSIENT}], state=State.FAILED, attempts=1))
    assert page.one("h2", id="story").text == "Failed after one attempt"
    assert titles(page)[-1] == "Given up"


def test_facts_say_why_it_left_with_another_sender(world: World) -> None:
    details = {"from_why": "forced", "reply_to_added": "shop@site.example"}
    path = world.add(
        [{"details": details}],
        state=State.SENT,
        sent_from="post@nord.example",
        message_id="<1@site.example>",
        mail_from="",
    )
    facts = world.open(path).one("dl", class_="facts").text
    assert "From, asked shop@site.example" in facts
    assert "From, sent post@nord.example forced by Relay" in facts
    assert "Reply-To shop@site.example added, so that answers arrive" in facts
    assert "Envelope sender empty, as in a bounce" in facts
    assert "<1@site.example>" in facts


def test_several_recipients_stand_in_a_table_with_their_answers(world: World) -> None:
    to = tuple(f"r{number}@mail.example" for number in range(5))
    path = world.add(state=State.FAILED, to=to)
    with world.installation.db.write() as session:
        first = session.scalars(sa.select(Recipient).where(Recipient.position == 0)).one()
        first.state, first.words = State.SENT, "250 ok"
        second = session.scalars(sa.select(Recipient).where(Recipient.position == 1)).one()
        second.code, second.words = "550 5.1.1", "550 5.1.1 No such user"
    page = world.open(path)
    assert page.one("h2", id="story").text == "Sent to 1 of 5 recipients"
    rows = [row.text.replace(" ", "") for row in page.one("table").all("tr")]
    assert rows[1:3] == ["r0@mail.exampleSent", "r1@mail.example5505.1.1NosuchuserFailed"]
    assert "and 2 more" in page.one("dl", class_="facts").text


def test_of_many_recipients_those_without_the_mail_come_first_and_the_rest_is_folded(
    world: World,
) -> None:
    path = world.add(state=State.SENT, to=tuple(f"r{number}@mail.example" for number in range(50)))
    with world.installation.db.write() as session:
        last = session.scalars(sa.select(Recipient).where(Recipient.position == 49)).one()
        last.state = State.FAILED
    page = world.open(path)
    first, rest = page.all("table")
    assert [len(table.all("tr")) for table in (first, rest)] == [21, 31]
    assert first.all("tr")[1].text == "r49@ mail. example Failed"
    assert page.one("details", class_="in").one("summary").text == "30 more recipients"


def test_a_subject_without_end_is_cut_above_and_whole_among_the_facts(world: World) -> None:
    long = "Rechnung " * 80
    path = world.add(subject=long.strip())
    page = world.open(path)
    assert page.h1.endswith("…")
    assert len(page.h1) <= 205
    assert f"Subject {long.strip()}" in page.one("dl", class_="facts").text
    row = world.open("/sites/galerie-nord/log").one("a", class_="name").text
    assert row == page.h1
    short = world.open(world.add(subject="Rechnung"))
    assert "Subject" not in short.one("dl", class_="facts").text


def test_newer_and_older_lead_through_the_site(world: World) -> None:
    older, here, newer = (world.add(state=State.SENT) for _ in range(3))
    page = world.open(here)
    assert page.one("a", rel="prev")["href"] == newer
    assert page.one("a", rel="next")["href"] == older
    assert not world.open(newer).all("a", rel="prev")


def test_an_id_as_people_write_it_leads_to_the_page(world: World) -> None:
    path = world.add()
    base, _, queue_id = path.rpartition("/")
    typed = ids.pretty(queue_id).lower()
    found = world.client.fetch(f"{base}/{typed}?part=raw")
    assert found.headers["Location"] == f"{path}?part=raw"


def test_an_id_that_is_not_of_this_site_is_nowhere(world: World) -> None:
    with world.installation.db.write() as session:
        strange = a_message(session, a_site(session))
    for path in ("", "/html", "/raw", "/attachments/0"):
        for queue_id in (strange.queue_id, "0000000000000000"):
            world.open(f"/sites/galerie-nord/log/{queue_id}{path}", status=404)


# ---- what is in it ----


def test_the_html_is_shown_in_a_frame_that_can_do_nothing(world: World) -> None:
    page = world.open(path := world.add(raw=a_mail(html=HTML)))
    frame = page.one("iframe")
    assert frame["sandbox"] == ""
    assert frame["src"] == f"{path}/html"
    assert "1 remote image blocked." in page.text
    preview = world.client.fetch(frame["src"])
    policy = preview.headers["Content-Security-Policy"]
    assert policy == (
        "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
    )
    assert preview.headers["X-Content-Type-Options"] == "nosniff"
    assert "Rechnung" in preview.text
    body = preview.text.partition("<body>")[2]
    for gone in ("script", "spy.example", "evil.example", "<base", "<link", "<meta", "<form"):
        assert gone not in body


def test_remote_images_are_shown_once_when_asked_for(world: World) -> None:
    page = world.open(world.add(raw=a_mail(html=HTML)))
    page = world.open(f"{page.response.request.path}{page.links()['Show them once']}")
    preview = world.client.fetch(page.one("iframe")["src"])
    assert "img-src data: https: http:;" in preview.headers["Content-Security-Policy"]
    assert "https://spy.example/p.png" in preview.text
    assert "evil.example" not in preview.text


def test_images_of_the_mail_itself_are_shown_inline(world: World) -> None:
    raw = (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/related; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/html\r\n\r\n<img src=cid:logo@x>\r\n"
        b"--b\r\nContent-Type: image/png\r\nContent-ID: <logo@x>\r\n\r\n" + PNG + b"\r\n--b--\r\n"
    )
    preview = world.client.fetch(f"{world.add(raw=raw)}/html")
    assert 'src="data:image/png;base64,' in preview.text


def test_each_part_has_its_tab(world: World) -> None:
    raw = a_mail(html="<p>Bunt</p>", text="Schlicht", files={"Rechnung.pdf": b"%PDF-1.7"})
    path = world.add(raw=raw)
    tabs = world.open(path).one("nav", class_="parts").all("a")
    links = {node.text: node["href"] for node in tabs}
    assert list(links) == ["HTML", "Text", "Headers", "Raw", "Attachments 1"]
    shown = {name: world.open(f"{path}{link}") for name, link in links.items()}
    assert "Schlicht" in shown["Text"].one("pre").text
    assert "Subject: Rechnung 2026-1123" in shown["Headers"].one("pre").text
    assert "Content-Type: multipart/mixed" in shown["Raw"].one("pre").text
    file = shown["Attachments 1"].links()["Rechnung.pdf"]
    got = world.client.fetch(file)
    assert got.data == b"%PDF-1.7"
    assert got.headers["Content-Disposition"] == "attachment; filename=Rechnung.pdf"
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert got.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert got.headers["X-Content-Type-Options"] == "nosniff"


def test_an_attachment_that_is_not_there_is_a_404(world: World) -> None:
    world.open(f"{world.add()}/attachments/7", status=404)


def test_an_html_attachment_is_never_shown_as_a_page(world: World) -> None:
    raw = (
        b"Content-Type: text/html\r\nContent-Disposition: attachment; filename=a.html\r\n\r\n"
        b"<script>alert(1)</script>"
    )
    got = world.client.fetch(f"{world.add(raw=raw)}/attachments/0")
    assert got.headers["Content-Disposition"].startswith("attachment")
    assert got.mimetype == "application/octet-stream"


def test_the_mail_is_downloaded_as_it_came(world: World) -> None:
    raw = a_mail()
    page = world.open(world.add(raw=raw))
    got = world.client.fetch(page.links()["Download as .eml"])
    assert got.data == raw
    assert got.mimetype == "text/plain"
    assert got.headers["Content-Disposition"].endswith(".eml")


@pytest.mark.parametrize("role", [Role.VIEWER, Role.SUPPORT])
def test_whoever_may_not_read_mail_sees_its_story_only(
    client: Browser, installation: Installation, role: Role
) -> None:
    world = World(client, installation, role)
    path = world.add(raw=a_mail(text="Geheim"), state=State.SENT)
    for part in ("", "?part=raw", "?part=headers", "?part=text"):
        page = world.open(f"{path}{part}")
        assert "Operators and owners of this site may read" in page.text
        assert "Geheim" not in page.response.text
        assert "Download as .eml" not in page.links()
    for what in ("html", "raw", "attachments/0"):
        world.open(f"{path}/{what}", status=403)


def test_what_is_no_longer_kept_is_said(world: World) -> None:
    path = world.add(state=State.SENT)
    with world.installation.db.write() as session:
        session.execute(sa.delete(Content))
    assert "What was in this mail is no longer kept." in world.open(path).text
    for what in ("html", "raw", "attachments/0"):
        world.open(f"{path}/{what}", status=404)


HOSTILE = {
    "nothing": b"",
    "no headers": b"Just a line\r\n",
    "NUL bytes": b"Subject: a\x00b\r\n\r\nx\x00y\x1b[31m",
    "unknown charset": b"Content-Type: text/html; charset=klingon\r\n\r\n<p>\xff\xfe</p>",
    "broken boundary": b"Content-Type: multipart/mixed; boundary=\r\n\r\n--\r\n\r\nx",
    "unclosed boundary": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx",
    "odd Message-ID": b"Message-ID: <[a@b]>\r\nSubject: =?utf-8?b?!!?=\r\n\r\nx",
    "10,000 nested parts": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
        for n in range(10_000)
    ),
    "10,000 parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    + b"--b\r\n\r\nx\r\n" * 10_000,
    "deep HTML": b"Content-Type: text/html\r\n\r\n" + b"<div>" * 20_000,
    "bad base64": b"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n=%&",
    "names": b"Content-Type: a/b; name*0*=x''%ZZ\r\nContent-Disposition: attachment; "
    b'filename="../\r\n \xe2\x80\xae.exe"\r\n\r\nx',
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_hostile_mail_is_shown_as_well_as_possible(world: World, raw: bytes) -> None:
    path = world.add(raw=raw or b" ", subject="", sender="")
    page = world.open(path)
    assert page.h1 == "(no subject)"
    for link in page.one("nav", class_="parts").links_to():
        tab = world.open(f"{path}{link}")
        for file in [each for each in tab.links_to() if "/attachments/" in each]:
            assert world.client.fetch(file).status_code == 200
    assert world.client.fetch(f"{path}/html").status_code == 200
    assert world.client.fetch(f"{path}/raw").data == (raw or b" ")


def test_damaged_content_is_said_and_not_a_crash(world: World) -> None:
    path = world.add()
    with world.installation.db.write() as session:
        session.execute(sa.update(Content).values(raw=b"not zlib"))
    assert "no longer kept" in world.open(path).text
