"""The log as the ledger gives it, on both databases."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tests.maillog.conftest import Ledger
from webapp.delivery import content
from webapp.delivery.content import stored_mail
from webapp.delivery.decide import Result
from webapp.delivery.models import Content, Outcome, State
from webapp.mailers.errors import PermanentError
from webapp.maillog import service
from webapp.maillog.service import View

# --- pages -------------------------------------------------------------------------------------


def walk(ledger: Ledger, **wanted: Any) -> list[list[str]]:
    """Every page from the first to the last."""
    pages: list[list[str]] = []
    before: int | None = None
    while True:
        page = ledger.page(before_id=before, **wanted)
        pages.append([row.subject for row in page.rows])
        if page.older is None:
            return pages
        before = page.older


def test_the_newest_mail_comes_first(ledger: Ledger) -> None:
    site = ledger.a_site()
    for number in range(3):
        ledger.add(site, f"Mail {number}")
    page = ledger.page()
    assert [row.subject for row in page.rows] == ["Mail 2", "Mail 1", "Mail 0"]
    assert (page.newer, page.older) == (None, None)


def test_older_leads_through_everything_once(ledger: Ledger) -> None:
    site = ledger.a_site()
    for number in range(7):
        ledger.add(site, f"Mail {number}")
    assert walk(ledger, limit=3) == [
        ["Mail 6", "Mail 5", "Mail 4"],
        ["Mail 3", "Mail 2", "Mail 1"],
        ["Mail 0"],
    ]


def test_a_full_last_page_offers_no_older_one(ledger: Ledger) -> None:
    site = ledger.a_site()
    for number in range(6):
        ledger.add(site, f"Mail {number}")
    assert [len(page) for page in walk(ledger, limit=3)] == [3, 3]


def test_newer_leads_back_the_same_way(ledger: Ledger) -> None:
    site = ledger.a_site()
    for number in range(9):
        ledger.add(site, f"Mail {number}")
    first = ledger.page(limit=3)
    second = ledger.page(limit=3, before_id=first.older)
    third = ledger.page(limit=3, before_id=second.older)
    back = ledger.page(limit=3, after_id=third.newer)
    assert back == second
    assert ledger.page(limit=3, after_id=back.newer) == first


def test_newer_near_the_top_gives_a_full_first_page(ledger: Ledger) -> None:
    site = ledger.a_site()
    for number in range(5):
        ledger.add(site, f"Mail {number}")
    page = ledger.page(limit=3, before_id=ledger.page(limit=1).older)
    assert ledger.page(limit=3, after_id=page.newer) == ledger.page(limit=3)


def test_mail_that_came_meanwhile_does_not_move_an_older_page(ledger: Ledger) -> None:
    site = ledger.a_site()
    for number in range(5):
        ledger.add(site, f"Mail {number}")
    older = ledger.page(limit=2).older
    before = ledger.subjects(limit=2, before_id=older)
    ledger.add(site, "New")
    assert ledger.subjects(limit=2, before_id=older) == before


def test_a_page_beyond_the_end_still_leads_back(ledger: Ledger) -> None:
    key = ledger.add(ledger.a_site(), "Only one")
    page = ledger.page(before_id=key)
    assert page.rows == ()
    assert page.newer is not None
    assert [row.subject for row in ledger.page(after_id=page.newer).rows] == ["Only one"]


# --- filters -----------------------------------------------------------------------------------


def test_a_site_sees_its_own_mail_only(ledger: Ledger) -> None:
    ours, theirs = ledger.a_site(), ledger.a_site()
    ledger.add(ours, "Ours")
    ledger.add(theirs, "Theirs")
    assert ledger.subjects(site_ids=[ours]) == ["Ours"]
    assert ledger.subjects(site_ids=[]) == []


def test_the_mail_of_several_sites_is_merged_by_time(ledger: Ledger) -> None:
    sites = [ledger.a_site() for _ in range(3)]
    for number in range(9):
        ledger.add(sites[number % 3], f"Mail {number}")
    wanted = {"site_ids": [sites[0], sites[2]], "limit": 2}
    assert walk(ledger, **wanted) == [
        ["Mail 8", "Mail 6"],
        ["Mail 5", "Mail 3"],
        ["Mail 2", "Mail 0"],
    ]


@pytest.mark.parametrize(
    ("view", "found"),
    [
        (View.ALL, list(State)[::-1]),
        (View.SENT, [State.SENT]),
        (View.WAITING, [State.DEFERRED, State.SENDING, State.QUEUED]),
        (View.FAILED, [State.FAILED]),
        (View.UNCLEAR, [State.UNCERTAIN]),
        (View.HELD, [State.HELD]),
        (View.NOT_SENT, [State.BLOCKED, State.CANCELLED]),
    ],
)
@pytest.mark.parametrize("of", ["all", "one", "two"])
def test_a_view_shows_its_states(ledger: Ledger, view: View, found: list[State], of: str) -> None:
    site, other = ledger.a_site(), ledger.a_site()
    for state in State:
        ledger.add(site, state.value, state=state)
    sites = {"all": None, "one": [site], "two": [site, other]}[of]
    assert ledger.subjects(view=view, site_ids=sites) == [state.value for state in found]


def test_the_time_limits_the_page(ledger: Ledger) -> None:
    site = ledger.a_site()
    start = ledger.now
    for day in range(5):
        ledger.at(start + timedelta(days=day)).add(site, f"Day {day}")
    since, until = start + timedelta(days=1), start + timedelta(days=3)
    assert ledger.subjects(since=since, until=until) == ["Day 2", "Day 1"]
    assert ledger.subjects(since=start + timedelta(days=9)) == []
    assert ledger.subjects(until=start) == []


def test_every_view_walks_an_index(ledger: Ledger) -> None:
    if not ledger.db.is_sqlite:
        pytest.skip("PostgreSQL reads a small table as a whole, whatever the index")
    sites = [ledger.a_site() for _ in range(3)]
    ledger.add(sites[0], "Mail")
    with plans(ledger) as steps:
        for view in set(View) - {View.ALL}:
            for chosen in (None, sites[:1], sites[:2]):
                ledger.page(view=view, site_ids=chosen, before_id=9)
        with ledger.db.read() as session:
            service.counts(session, sites[:1])
    walked = [step for step in steps if "message" in step.split()]
    assert any("ix_message_state" in step for step in walked)
    assert [step for step in walked if "SCAN" in step or "rowid>" in step] == []


@contextmanager
def plans(ledger: Ledger) -> Iterator[list[str]]:
    """How SQLite goes about each query of the block."""
    steps: list[str] = []

    def explain(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            raw = conn.connection.driver_connection
            steps.extend(r[3] for r in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters))

    event.listen(ledger.db.reader, "before_cursor_execute", explain)
    yield steps
    event.remove(ledger.db.reader, "before_cursor_execute", explain)


# --- search ------------------------------------------------------------------------------------


@pytest.fixture(params=["newest first", "by the index", "step by step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way a search may go; all of them must find the same."""
    way: str = request.param
    if way != "newest first":
        monkeypatch.setattr(service, "LOOK_THROUGH", dict.fromkeys(service.LOOK_THROUGH, 1))
    if way == "step by step":
        monkeypatch.setattr(service, "LOOK_FURTHER", 2)
        monkeypatch.setattr(service, "MANY_HITS", -1)
    return way


def search(ledger: Ledger, text: str, **wanted: Any) -> list[str]:
    """All that is found, however often one has to ask for more."""
    return [subject for page in walk(ledger, search=text, **wanted) for subject in page]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("rechnung", ["Rechnung 1123", "Rechnung 1122"]),
        ("RECHNUNG 1123", ["Rechnung 1123"]),
        ("1123 rechn", ["Rechnung 1123"]),
        ("订单", ["您的订单 20430 已发货"]),
        ("发货", ["您的订单 20430 已发货"]),
        ("单", ["您的订单 20430 已发货"]),
        ("anna@mail.example", ["Your order is confirmed"]),
        ("anna@ma", ["Your order is confirmed"]),
        ("second@post.example", ["Your order is confirmed"]),
        ("lindenhof order", ["Your order is confirmed"]),
        ("gutschien", []),
        ("mail anna", ["Your order is confirmed"]),
        ("!!!", []),
        ("o'order\" OR *", []),
    ],
)
def test_a_search_finds_words_of_subject_and_addresses(
    ledger: Ledger, way: str, typed: str, found: list[str]
) -> None:
    site = ledger.a_site()
    ledger.add(site, "Rechnung 1122")
    ledger.add(site, "您的订单 20430 已发货")
    ledger.add(site, "Your order is confirmed", "anna@mail.example", "second@post.example")
    ledger.add(site, "Rechnung 1123")
    assert search(ledger, typed) == found


@pytest.mark.parametrize("limit", [1, 50])
@pytest.mark.parametrize("view", [View.ALL, View.FAILED, View.SENT])
@pytest.mark.parametrize("of", ["all", "one", "two"])
def test_a_search_keeps_to_the_filters(
    ledger: Ledger, way: str, view: View, of: str, limit: int
) -> None:
    sites = [ledger.a_site() for _ in range(3)]
    expected = []
    for number in range(18):
        site = sites[number % 3]
        state = State.FAILED if number % 2 else State.SENT
        subject = f"Order {number}" if number % 5 else f"Other {number}"
        ledger.add(site, subject, state=state)
        chosen = {"all": sites, "one": sites[:1], "two": sites[:2]}[of]
        if number % 5 and site in chosen and (view is View.ALL or view.value == state.value):
            expected.append(subject)
    sites_wanted = {"all": None, "one": sites[:1], "two": sites[:2]}[of]
    found = search(ledger, "order", site_ids=sites_wanted, view=view, limit=limit)
    assert found == expected[::-1]


def test_newer_works_in_a_search(ledger: Ledger, way: str) -> None:
    if way == "step by step":
        pytest.skip("pages have the length that was looked through")
    site = ledger.a_site()
    for number in range(12):
        ledger.add(site, f"Order {number}" if number % 2 else f"Other {number}")
    first = ledger.page(search="order", limit=2)
    second = ledger.page(search="order", limit=2, before_id=first.older)
    third = ledger.page(search="order", limit=2, before_id=second.older)
    assert third.older is None
    assert ledger.page(search="order", limit=2, after_id=third.newer) == second
    assert ledger.page(search="order", limit=2, after_id=second.newer).rows == first.rows


def test_a_search_that_stops_says_how_far_it_looked(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LOOK_THROUGH", dict.fromkeys(service.LOOK_THROUGH, 1))
    monkeypatch.setattr(service, "LOOK_FURTHER", 2)
    monkeypatch.setattr(service, "MANY_HITS", -1)
    site = ledger.a_site()
    ledger.add(site, "Order, failed", state=State.FAILED)
    start = ledger.now
    for minute in range(1, 210):
        ledger.at(start + timedelta(minutes=minute)).add(site, "Order")
        if minute % 3 == 0:
            ledger.add(site, "Other", state=State.FAILED)
    page = ledger.page(search="order", view=View.FAILED)
    assert page.rows == ()
    assert page.older is not None
    assert page.reached is not None
    assert start < page.reached < ledger.now


def test_the_number_of_a_site_in_the_index_is_no_word(ledger: Ledger, way: str) -> None:
    site = ledger.a_site()
    for _ in range(3):
        ledger.add(site, "Hello")
    assert search(ledger, f"s{site}") == []


# --- counts ------------------------------------------------------------------------------------


def test_counts_stop_at_their_cap(ledger: Ledger) -> None:
    site, other = ledger.a_site(), ledger.a_site()
    for state in (State.SENT, State.SENT, State.SENT, State.FAILED, State.DEFERRED, State.QUEUED):
        ledger.add(site, "Mail", state=state)
    ledger.add(other, "Mail", state=State.FAILED)
    with ledger.db.read() as session:
        assert service.counts(session, [site]) == {
            View.ALL: 6,
            View.SENT: 3,
            View.WAITING: 2,
            View.FAILED: 1,
            View.UNCLEAR: 0,
            View.HELD: 0,
            View.NOT_SENT: 0,
        }
        assert service.counts(session, None)[View.FAILED] == 2
        assert service.counts(session, [site, other], cap=2)[View.SENT] == 3
        assert set(service.counts(session, []).values()) == {0}


# --- one message -------------------------------------------------------------------------------


def test_a_message_of_another_site_is_not_given(ledger: Ledger) -> None:
    ours, theirs = ledger.a_site(), ledger.a_site()
    queue_id = ledger.accept(theirs)
    with ledger.db.read() as session:
        assert service.get_message(session, queue_id, [ours], ledger.now) is None
        assert service.get_message(session, "NOSUCHID", None, ledger.now) is None
        assert service.get_message(session, queue_id, [theirs], ledger.now) is not None


def test_a_message_comes_with_recipients_and_attempts(ledger: Ledger) -> None:
    site = ledger.a_site()
    lane = ledger.lane_of(ledger.a_connection(site))
    queue_id = ledger.accept(site, "good@mail.example", "bad@mail.example")
    (claim,) = ledger.claim(lane)
    refused = {1: PermanentError("No such user", code="550 5.1.1")}
    ledger.finish(claim, Result(code="250", words="ok", refused=refused))
    with ledger.db.read() as session:
        found = service.get_message(session, queue_id, [site], ledger.now)
    assert found is not None
    assert found.row.state is State.FAILED
    assert found.row.is_partly_sent
    assert [(r.address, r.state, r.code) for r in found.recipients] == [
        ("good@mail.example", State.SENT, "250"),
        ("bad@mail.example", State.FAILED, "550 5.1.1"),
    ]
    (attempt,) = found.attempts
    assert attempt.outcome is Outcome.PARTLY
    assert found.has_content


def test_neighbours_are_of_the_same_site(ledger: Ledger) -> None:
    site, other = ledger.a_site(), ledger.a_site()
    first = ledger.accept(site)
    ledger.accept(other)
    second = ledger.accept(site)
    with ledger.db.read() as session:
        one = service.get_message(session, first, [site], ledger.now)
        two = service.get_message(session, second, [site], ledger.now)
    assert one is not None
    assert two is not None
    assert (one.newer, one.older) == (second, None)
    assert (two.newer, two.older) == (None, first)


def test_an_id_is_found_as_a_person_types_it(ledger: Ledger) -> None:
    site, other = ledger.a_site(), ledger.a_site()
    queue_id = ledger.accept(site)
    typed = f" {queue_id[:4].lower()}-{queue_id[4:]} "
    with ledger.db.read() as session:
        found = service.find_by_id(session, typed, [site])
        assert found is not None
        assert found.queue_id == queue_id
        assert service.find_by_id(session, typed, [other]) is None


def test_content_is_given_back_as_it_came(ledger: Ledger) -> None:
    key = ledger.add(ledger.a_site(), "Hello")
    with ledger.db.read() as session:
        raw = stored_mail(session, key)
    assert raw is not None
    assert b"Subject: Hello\r\n" in raw


def test_content_that_is_gone_or_damaged_is_none(ledger: Ledger) -> None:
    site = ledger.a_site()
    gone, damaged = ledger.add(site, "Gone"), ledger.add(site, "Damaged")
    with ledger.db.write() as session:
        session.execute(sa.delete(Content).where(Content.message_id == gone))
        change = sa.update(Content).where(Content.message_id == damaged)
        session.execute(change.values(raw=b"not zlib"))
    with ledger.db.read() as session:
        assert stored_mail(session, gone) is None
        assert stored_mail(session, damaged) is None


def test_content_is_unpacked_to_a_bound(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_BYTES", 1000)
    key = ledger.add(ledger.a_site(), "Bomb")
    with ledger.db.write() as session:
        change = sa.update(Content).where(Content.message_id == key)
        session.execute(change.values(raw=zlib.compress(b"x" * 100_000)))
    with ledger.db.read() as session:
        raw = stored_mail(session, key)
    assert raw is not None
    assert len(raw) == 1000


def test_every_message_comes_once_however_many_there_are(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "EXPORT_CHUNK", 2)
    site = ledger.a_site()
    for number in range(5):
        ledger.add(site, f"Mail {number}")
    with ledger.db.read() as session:
        found = service.every_message(session, site_ids=None, states=(), now=ledger.now)
        assert [row.subject for row in found] == [f"Mail {n}" for n in (4, 3, 2, 1, 0)]
        few = service.every_message(session, site_ids=None, states=(), now=ledger.now, limit=3)
        assert len(list(few)) == 3
