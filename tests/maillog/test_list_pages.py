"""The log in the browser: what the list shows, and how one finds something in it."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.factories import (
    a_connection,
    a_lane,
    a_membership,
    a_message,
    a_site,
    a_time,
    a_user,
)
from tests.pages import Browser, Page
from webapp.accounts.models import Role, User
from webapp.delivery.models import Message, Recipient, State
from webapp.installation import Installation
from webapp.maillog import service
from webapp.sites.models import Mode, Site


def with_role(client: Browser, installation: Installation, role: Role = Role.VIEWER) -> Site:
    with installation.db.write() as session:
        site, user = a_site(session, name="Galerie Nord", slug="galerie-nord"), a_user(session)
        a_membership(session, user, site, role)
    client.sign_in(user)
    return site


def an_admin(client: Browser, installation: Installation) -> User:
    with installation.db.write() as session:
        user = a_user(session, is_admin=True)
    client.sign_in(user)
    return user


def searchable(session: Session, mail: Message) -> None:
    """Put a mail's subject into the search index, as accepting does."""
    session.execute(
        sa.text("INSERT INTO message_search (rowid, site, words) VALUES (:id, :site, :words)"),
        {"id": mail.id, "site": f"s{mail.site_id}", "words": mail.subject.lower()},
    )


def subjects(page: Page) -> list[str]:
    return [link.text for link in page.all("a", class_="name")]


def row_of(page: Page, subject: str) -> str:
    (row,) = [row for row in page.all("tr") if subject in row.text]
    return row.text


# ---- the list ----


def test_the_log_of_a_site_shows_its_mail_newest_first(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        other = a_site(session)
        a_message(session, other, subject="Of another site")
        a_message(session, site, subject="Older", state=State.SENT)
        a_message(session, site, subject="Newer", state=State.SENT)
    page = client.get("/sites/galerie-nord/log")
    assert page.h1 == "Email Log"
    assert page.title == "Email Log, Galerie Nord · Postroom"
    assert subjects(page) == ["Newer", "Older"]


def test_the_log_of_all_sites_names_the_site_of_each_mail(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        a_message(session, site, subject="Ours")
        a_message(session, a_site(session, name="Strange"), subject="Theirs")
    page = client.get("/log")
    assert subjects(page) == ["Ours"]
    assert "Galerie Nord" in row_of(page, "Ours")
    assert "Strange" not in page.text


def test_an_admin_sees_every_site(client: Browser, installation: Installation) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        for name in ("One", "Two"):
            a_message(session, a_site(session, name=name), subject=f"Mail of {name}")
    assert subjects(client.get("/log")) == ["Mail of Two", "Mail of One"]


def test_one_site_can_be_chosen_on_the_page_of_all(
    client: Browser, installation: Installation
) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        for slug in ("one", "two"):
            a_message(session, a_site(session, slug=slug, name=slug), subject=f"Mail of {slug}")
    page = client.get("/log?site=two")
    assert subjects(page) == ["Mail of two"]
    assert page.value("site") == "two"
    assert page.links_to().count("/log") >= 1


def test_a_site_that_is_not_ones_own_cannot_be_chosen(
    client: Browser, installation: Installation
) -> None:
    with_role(client, installation)
    with installation.db.write() as session:
        a_site(session, slug="strange")
    client.get("/log?site=strange", status=404)
    client.get("/sites/strange/log", status=404)


def test_views_are_counted_and_keep_the_other_filters(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        a_message(session, site, subject="Good", state=State.SENT)
        a_message(session, site, subject="Bad", state=State.FAILED)
        a_message(session, site, subject="Open", state=State.DEFERRED)
    page = client.get("/sites/galerie-nord/log?status=failed")
    assert subjects(page) == ["Bad"]
    links = {node.text: node["href"] for node in page.one("ul", class_="views").all("a")}
    assert list(links) == [
        *("All 3", "Sent 1", "Waiting 1", "Failed 1", "Unclear 0", "Held 0", "Not sent 0"),
    ]
    assert links["Waiting 1"] == "/sites/galerie-nord/log?status=waiting"
    (current,) = page.one("ul", class_="views").all("a", aria_current="true")
    assert current.text == "Failed 1"


def test_counts_end_at_a_thousand(
    client: Browser, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.counts, "__defaults__", (2,))
    monkeypatch.setattr(service, "COUNT_CAP", 2)
    site = with_role(client, installation)
    with installation.db.write() as session:
        for _ in range(4):
            a_message(session, site, state=State.SENT)
    page = client.get("/sites/galerie-nord/log")
    assert "Sent 2+" in page.one("ul", class_="views").text


def test_pages_lead_to_older_mail_and_back(client: Browser, installation: Installation) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        for number in range(service.PAGE + 3):
            a_message(session, site, subject=f"Mail {number}", state=State.SENT)
    first = client.get("/sites/galerie-nord/log?status=sent")
    assert len(subjects(first)) == service.PAGE
    assert "Newer" not in first.links()
    second = client.get(first.links()["Older"])
    assert subjects(second) == ["Mail 2", "Mail 1", "Mail 0"]
    assert "Older" not in second.links()
    (view,) = second.one("ul", class_="views").all("a", aria_current="true")
    assert view.text.startswith("Sent")
    assert subjects(client.get(second.links()["Newer"])) == subjects(first)


@pytest.mark.parametrize(
    "query",
    ["status=nonsense", "before=x", "before=-1", "after=" + "9" * 40, "since=ever", "q=%00%FF"],
)
def test_an_address_that_means_nothing_shows_the_log(
    client: Browser, installation: Installation, query: str
) -> None:
    with_role(client, installation)
    assert client.get(f"/sites/galerie-nord/log?{query}").h1 == "Email Log"


# ---- what a row says ----


def test_a_failed_mail_shows_what_the_remote_said(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation)
    words = {"last_code": "550 5.1.1", "last_words": "550 5.1.1 No such user <b>"}
    with installation.db.write() as session:
        a_message(session, site, subject="Bad", state=State.FAILED, attempts=1, **words)
    page = client.get("/sites/galerie-nord/log")
    assert page.one("table").one("code", class_="words").text == "550 5.1.1 No such user <b>"
    assert page.one("tr", class_="mark").is_a("tr", {"class_": "bad"})


def test_a_mail_that_reached_some_is_partly_sent(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        mail = a_message(session, site, state=State.FAILED, to=("a@x.example", "b@x.example"))
        first = sa.select(Recipient).where(Recipient.message_id == mail.id, Recipient.position == 0)
        session.scalars(first).one().state = State.SENT
    page = client.get("/sites/galerie-nord/log")
    row = page.all("tr")[1].text
    assert row.startswith("Partly sent")
    assert "and 1 more" in row


def test_a_mail_that_may_have_arrived_twice_says_so(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        mail = a_message(session, site, subject="Hello", state=State.SENT, maybe_twice=True)
    page = client.get("/sites/galerie-nord/log")
    assert "It may have arrived twice." in row_of(page, "Hello")
    page = client.get(f"/sites/galerie-nord/log/{mail.queue_id}")
    assert "This mail may have arrived twice." in " ".join(page.notices)


def test_a_waiting_mail_says_what_it_waits_for(client: Browser, installation: Installation) -> None:
    site = with_role(client, installation)
    now = a_time()
    with installation.db.write() as session:
        stopped = a_lane(
            session,
            is_blocked=True,
            blocked_since=now,
            blocked_kind="needs-reauthorisation",
            blocked_words="535 5.7.8 Bad login",
        )
        slow = a_lane(session, is_blocked=True, blocked_until=now + timedelta(hours=1))
        lanes = {"Stopped": stopped, "Slow": slow, "Later": a_lane(session)}
        for subject, lane in lanes.items():
            connection = a_connection(session, site, lane=lane)
            a_message(session, site, subject=subject, connection=connection)
        a_message(
            session,
            site,
            subject="Tried",
            state=State.DEFERRED,
            connection=connection,
            attempts=2,
            due_at=now + timedelta(minutes=9),
        )
        a_message(session, site, subject="None")
    page = client.get("/sites/galerie-nord/log")
    assert "the login is refused since" in row_of(page, "Stopped")
    assert "535 5.7.8 Bad login" in row_of(page, "Stopped")
    assert "asked to slow down. It goes on at" in row_of(page, "Slow")
    assert "Tried 2 times, next at" in row_of(page, "Tried")
    assert "Waits until the site has a connection." in row_of(page, "None")
    assert "Waits" not in row_of(page, "Later")


def test_a_mail_that_is_kept_by_choice_says_so(client: Browser, installation: Installation) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        a_message(session, site, subject="Kept", state=State.BLOCKED, why={"code": "do-not-send"})
        session.merge(site).mode = Mode.DO_NOT_SEND
    assert "Kept in the log, but not sent" in row_of(client.get("/sites/galerie-nord/log"), "Kept")


# ---- search ----


def test_a_search_stands_in_the_address_and_in_the_field(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        for subject in ("Rechnung 1", "Order 2"):
            searchable(session, a_message(session, site, subject=subject, state=State.SENT))
    page = client.get("/sites/galerie-nord/log?q=rechnung&status=sent")
    assert subjects(page) == ["Rechnung 1"]
    assert page.value("q") == "rechnung"
    assert page.value("status") == "sent"
    assert page.one("li", class_="chip").text == "words: rechnung"
    (without,) = page.one("li", class_="chip").links_to()
    assert without == "/sites/galerie-nord/log?status=sent"


def test_nothing_found_says_what_was_searched_and_how_to_widen_it(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        a_message(session, site)
    page = client.get("/sites/galerie-nord/log?q=gutschien&since=7d&status=failed")
    assert page.one("section", class_="empty").text == (
        "No mail matches these filters "
        "Searched subject and addresses of the last 7 days for “gutschien”. "
        "Search all views Search all time Clear all filters"
    )
    ways = page.links()
    assert ways["Search all time"] == "/sites/galerie-nord/log?q=gutschien&status=failed"
    assert ways["Clear all filters"] == "/sites/galerie-nord/log"


def test_a_search_that_stopped_early_goes_on_by_a_link(
    client: Browser, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LOOK_THROUGH", {"sqlite": 1})
    monkeypatch.setattr(service, "LOOK_FURTHER", 1)
    site = with_role(client, installation)
    with installation.db.write() as session:
        searchable(session, a_message(session, site, subject="order one", state=State.FAILED))
        for _ in range(service.PAGE * 4 + 10):
            searchable(session, a_message(session, site, subject="order", state=State.SENT))
        a_message(session, site, subject="other", state=State.FAILED)
    page = client.get("/sites/galerie-nord/log?q=order&status=failed")
    assert "back to" in page.one("section", class_="empty").text
    while "Search further back" in page.links():
        page = client.get(page.links()["Search further back"])
    assert subjects(page) == ["order one"]


def test_an_id_typed_into_the_search_leads_to_its_mail(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        mail = a_message(session, site)
        strange = a_message(session, a_site(session))
    typed = f"{mail.queue_id[:4].lower()}-{mail.queue_id[4:]}"
    for path in ("/log", "/sites/galerie-nord/log"):
        found = client.fetch(f"{path}?q={typed}")
        assert found.headers["Location"] == f"/sites/galerie-nord/log/{mail.queue_id}"
        assert client.get(f"{path}?q={strange.queue_id}").h1 == "Email Log"


# ---- nothing yet ----


def test_an_empty_log_teaches_how_to_hand_in_mail(
    client: Browser, installation: Installation
) -> None:
    with_role(client, installation, Role.OPERATOR)
    page = client.get("/sites/galerie-nord/log")
    empty = page.one("section", class_="empty")
    assert empty.text.startswith("No mail yet Hand a mail in by SMTP at 127.0.0.1:2525")
    assert empty.links_to() == ["/sites/galerie-nord/credentials"]


def test_whoever_has_no_site_is_told_so(client: Browser, installation: Installation) -> None:
    with installation.db.write() as session:
        user = a_user(session)
        a_message(session, a_site(session), subject="Strange")
    client.sign_in(user)
    page = client.get("/log")
    assert "No site yet" in page.text
    assert "Strange" not in page.text


def test_the_log_speaks_chinese(client: Browser, installation: Installation) -> None:
    site = with_role(client, installation)
    with installation.db.write() as session:
        a_message(session, site, subject="订单 20430 已发货", state=State.SENT)
    page = client.get("/sites/galerie-nord/log", headers={"Accept-Language": "zh-CN"})
    assert page.one("html").get("lang") == "zh-Hans"
    assert subjects(page) == ["订单 20430 已发货"]
