"""The board: how each site stands, what comes first, and how often the database is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.factories import (
    a_connection,
    a_grant,
    a_lane,
    a_link,
    a_mailbox,
    a_message,
    a_site,
    an_app,
)
from webapp.connections.models import Connection, Health
from webapp.crypto import KEY_BYTES, Keyring
from webapp.db import Database
from webapp.delivery.lanes import UNREACHABLE
from webapp.delivery.models import Heartbeat, Message, Setting, State, Tally
from webapp.sites.board import (
    LEDGER_CHECKED,
    Board,
    Hour,
    Part,
    Row,
    Why,
    bars,
    board,
    depths_of,
    is_quiet,
    last_check,
    last_day,
    standing,
)
from webapp.sites.models import Mode, Site
from webapp.words import SiteState

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def session(db: Database) -> Iterator[Session]:
    with db.write() as opened:
        yield opened


def row(session: Session, site: Site) -> Row:
    return standing(session, site.id, NOW)


def connected(session: Session, **values: object) -> tuple[Site, Connection]:
    site = a_site(session, created_at=NOW - 90 * DAY)
    connection = a_connection(session, site, **values)  # type: ignore[arg-type]
    return site, connection


def mails(session: Session, site: Site, count: int, at: datetime) -> None:
    """One sent mail, counted as many."""
    a_message(session, site, state=State.SENT, at=at)
    session.add(
        Tally(
            site_id=site.id,
            connection_id=None,
            outcome="accepted",
            hour=at.replace(minute=0),
            count=count - 1,
        )
    )
    session.flush()


def test_a_site_that_sends_works(session: Session) -> None:
    site, _ = connected(session, health=Health.WORKING)
    a_message(session, site, state=State.SENT, at=NOW - HOUR)
    found = row(session, site)
    assert (found.state, found.part, found.mark) == (SiteState.WORKING, Part.FINE, "")
    assert found.traffic.last_sent_at == NOW - HOUR


def test_a_site_without_a_connection_says_so(session: Session) -> None:
    site = a_site(session)
    found = row(session, site)
    assert (found.state, found.part) == (SiteState.NO_CONNECTION, Part.SOON)


def test_a_site_whose_mail_waits_for_a_connection_needs_somebody(session: Session) -> None:
    site = a_site(session)
    a_message(session, site, state=State.QUEUED, at=NOW - HOUR)
    found = row(session, site)
    assert (found.state, found.part, found.mark) == (SiteState.NO_CONNECTION, Part.ACT, "bad")


def test_a_new_site_with_a_connection_has_no_mail_yet(session: Session) -> None:
    site, _ = connected(session)
    assert row(session, site).state is SiteState.NO_MAIL


@pytest.mark.parametrize(
    ("health", "why"),
    [
        (Health.FAILING, Why.FAILING),
        (Health.NEEDS_REAUTHORISATION, Why.LOGIN_REFUSED),
        (Health.MISCONFIGURED, Why.MISCONFIGURED),
    ],
)
def test_a_connection_that_fails_makes_its_site_fail(
    session: Session, health: Health, why: Why
) -> None:
    site, _ = connected(
        session,
        health=health,
        health_since=NOW - HOUR,
        last_code="535 5.7.8",
        last_words="no such login",
    )
    found = row(session, site)
    assert (found.state, found.part, found.why) == (SiteState.FAILING, Part.ACT, why)
    assert (found.place, found.code, found.words) == (
        "mail.hoster.example",
        "535 5.7.8",
        "no such login",
    )
    assert found.since == NOW - HOUR


def test_a_lane_that_another_site_got_blocked_counts_too(session: Session) -> None:
    lane = a_lane(
        session,
        is_blocked=True,
        blocked_kind="needs-reauthorisation",
        blocked_since=NOW - HOUR,
        blocked_words="535 no",
    )
    site, _ = connected(session, lane=lane, health=Health.WORKING)
    found = row(session, site)
    assert (found.state, found.why, found.words) == (
        SiteState.FAILING,
        Why.LOGIN_REFUSED,
        "535 no",
    )


@pytest.mark.parametrize(
    ("until", "why"), [(NOW + HOUR, Why.SLOWED_DOWN), (NOW - HOUR, Why.NOTHING)]
)
def test_a_lane_that_was_asked_to_wait_is_slowed_down_until_then(
    session: Session, until: datetime, why: Why
) -> None:
    lane = a_lane(session, is_blocked=True, blocked_kind="transient", blocked_until=until)
    site, _ = connected(session, lane=lane)
    a_message(session, site, state=State.SENT, at=NOW - HOUR)
    found = row(session, site)
    assert (found.state, found.why) == (SiteState.WORKING, why)
    assert found.status.word == ("Slowed down" if why else "Working")


@pytest.mark.parametrize(
    ("until", "next_look"), [(NOW + HOUR, NOW + HOUR), (NOW - HOUR, None)], ids=["pause", "look"]
)
@pytest.mark.parametrize("health", [Health.FAILING, Health.WORKING])
def test_a_lane_where_nobody_answers_says_so_and_when_it_is_looked_at_next(
    session: Session, until: datetime, next_look: datetime | None, health: Health
) -> None:
    lane = a_lane(
        session,
        is_blocked=True,
        blocked_kind=UNREACHABLE,
        blocked_until=until,
        blocked_since=NOW - 2 * HOUR,
        blocked_words="connection refused",
    )
    site, _ = connected(session, lane=lane, health=health, health_since=NOW)
    found = row(session, site)
    assert (found.state, found.part, found.why) == (SiteState.FAILING, Part.ACT, Why.UNREACHABLE)
    assert (found.since, found.next_look) == (NOW - 2 * HOUR, next_look)
    assert (found.words, found.status.word) == ("connection refused", "Failing")


@pytest.mark.parametrize(
    ("mode", "state"),
    [
        (Mode.DO_NOT_SEND, SiteState.NOT_SENT),
        (Mode.HOLD, SiteState.ON_HOLD),
        (Mode.REDIRECT_TO, SiteState.REDIRECTED),
    ],
)
def test_a_choice_is_shown_before_any_trouble(
    session: Session, mode: Mode, state: SiteState
) -> None:
    site, _ = connected(session, health=Health.FAILING)
    site.mode = mode
    session.flush()
    found = row(session, site)
    assert (found.state, found.why) == (state, Why.BY_CHOICE)


def test_a_site_that_fell_silent_is_quiet(session: Session) -> None:
    site, _ = connected(session)
    mails(session, site, 14 * 14, NOW - 9 * DAY)
    found = row(session, site)
    assert (found.state, found.part) == (SiteState.QUIET, Part.SOON)
    assert found.usual_per_day == 14
    assert found.since == NOW - 9 * DAY


def test_a_site_with_little_mail_is_not_quiet(session: Session) -> None:
    site, _ = connected(session)
    mails(session, site, 13, NOW - 9 * DAY)
    assert row(session, site).state is SiteState.WORKING


def test_what_came_long_before_the_last_mail_does_not_count_as_usual(session: Session) -> None:
    site, _ = connected(session)
    mails(session, site, 1000, NOW - 60 * DAY)
    a_message(session, site, state=State.SENT, at=NOW - 9 * DAY)
    assert row(session, site).state is SiteState.WORKING


@pytest.mark.parametrize(
    ("days", "per_day", "quiet"),
    [(2.9, 100, False), (3.1, 100, True), (4.9, 1, False), (5.1, 1, True), (99, 0.9, False)],
)
def test_how_long_a_silence_is_quiet(days: float, per_day: float, quiet: bool) -> None:
    assert is_quiet(timedelta(days=days), per_day) is quiet


def test_waiting_mail_is_counted_with_its_oldest(session: Session) -> None:
    site, _ = connected(session)
    for age, state in enumerate(
        [State.SENT, State.QUEUED, State.DEFERRED, State.SENDING, State.HELD, State.FAILED]
    ):
        a_message(session, site, state=state, at=NOW - age * HOUR)
    a_message(session, site, state=State.UNCERTAIN, at=NOW - 5 * DAY)
    found = row(session, site).traffic
    # In the order of their keys, as they come in: the first to wait is the oldest.
    assert (found.waiting, found.oldest_waiting_at) == (4, NOW - HOUR)


def test_an_unclear_mail_waits_only_while_it_is_due(session: Session) -> None:
    site, _ = connected(session)
    mail = a_message(session, site, state=State.UNCERTAIN, at=NOW - HOUR)
    assert row(session, site).traffic.waiting == 0
    mail.due_at = NOW
    session.flush()
    assert row(session, site).traffic.waiting == 1


def test_the_last_24_hours_are_counted_by_hour(session: Session) -> None:
    site, _ = connected(session)
    a_message(session, site, state=State.SENT, at=NOW)
    a_message(session, site, state=State.FAILED, at=NOW - HOUR)
    a_message(session, site, state=State.SENT, at=NOW - 23 * HOUR)
    a_message(session, site, state=State.FAILED, at=NOW - 24 * HOUR)
    found = last_day(session, [site.id], NOW)[site.id]
    assert (found.accepted, found.sent, found.failed) == (3, 2, 1)
    assert found.hours[23] == Hour(accepted=1, sent=1)
    assert found.hours[22] == Hour(accepted=1, failed=1)
    assert found.hours[0] == Hour(accepted=1, sent=1)
    counts = board(session, [site.id], NOW).counts
    assert (counts.accepted, counts.sent, counts.failed) == (3, 2, 1)


def test_a_site_that_had_no_mail_has_a_day_without_any(session: Session) -> None:
    site, _ = connected(session)
    found = last_day(session, [site.id], NOW)[site.id]
    assert (found.accepted, found.hours) == (0, (Hour(),) * 24)


def test_the_worst_comes_first(session: Session) -> None:
    fine, _ = connected(session)
    fine.name = "a works"
    late, _ = connected(session, health=Health.FAILING)
    late.name = "b fails"
    failing, _ = connected(session, health=Health.FAILING)
    failing.name = "z fails, and its mail waits longest"
    a_message(session, failing, state=State.DEFERRED, at=NOW - 5 * HOUR)
    a_message(session, late, state=State.DEFERRED, at=NOW - HOUR)
    stuck = a_site(session, name="mail waits for a connection")
    a_message(session, stuck, state=State.QUEUED, at=NOW - 9 * HOUR)
    new = a_site(session, name="new")
    off = a_site(session, name="off", mode=Mode.DO_NOT_SEND)
    session.flush()
    ids = [site.id for site in (fine, off, new, late, stuck, failing)]
    found = board(session, ids, NOW)
    assert [row.site.name for row in found.rows] == [
        "z fails, and its mail waits longest",
        "b fails",
        "mail waits for a connection",
        "new",
        "off",
        "a works",
    ]
    assert [len(found.part(part)) for part in Part] == [3, 2, 1]
    assert (found.waiting, found.oldest_waiting_at) == (3, NOW - 9 * HOUR)


def test_only_the_sites_asked_for_are_on_the_board(session: Session) -> None:
    mine, _ = connected(session)
    theirs, _ = connected(session)
    a_message(session, theirs, state=State.QUEUED, at=NOW)
    found = board(session, [mine.id], NOW)
    assert [row.site.id for row in found.rows] == [mine.id]
    assert (found.counts.accepted, found.waiting) == (0, 0)


def test_a_board_without_sites_is_empty(session: Session) -> None:
    found = board(session, [], NOW)
    assert found.rows == ()
    assert found.oldest_waiting_at is None


def test_the_board_says_when_no_worker_was_seen(session: Session) -> None:
    assert not board(session, [], NOW).worker_seen
    session.add(Heartbeat(name="deliver:1", part="deliver", beat_at=NOW, details={"owner": True}))
    session.flush()
    assert board(session, [], NOW).worker_seen


@contextmanager
def counted(session: Session) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(conn: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    engine = session.get_bind()
    sa.event.listen(engine, "before_cursor_execute", note)
    yield statements
    sa.event.remove(engine, "before_cursor_execute", note)


def test_the_database_is_asked_as_often_for_many_sites_as_for_one(session: Session) -> None:
    def some(count: int) -> Board:
        ids = []
        for _ in range(count):
            site, _connection = connected(session)
            mails(session, site, 14 * 14, NOW - 9 * DAY)
            a_message(session, site, state=State.QUEUED, at=NOW - 9 * DAY)
            ids.append(site.id)
        session.flush()
        with counted(session) as statements:
            found = board(session, ids, NOW)
        assert len(found.rows) == count
        asked.append(len(statements))
        return found

    asked: list[int] = []
    some(1)
    some(30)
    assert asked[0] == asked[1] <= 8


def test_the_waiting_mail_is_found_by_an_index(db: Database) -> None:
    if not db.is_sqlite:
        pytest.skip("the plan is SQLite's")
    with db.read() as session, counted(session) as statements:
        board(session, [1, 2], NOW)
        about = [text for text in statements if "FROM message" in text]
        for text in about:
            plan = session.connection().exec_driver_sql(
                f"EXPLAIN QUERY PLAN {text}", tuple([1] * text.count("?"))
            )
            steps = [step.detail for step in plan if "message" in step.detail.lower()]
            assert steps
            assert not [step for step in steps if step.startswith("SCAN message")]


# ---- links and secrets ----

KEYRING = Keyring([b"k" * KEY_BYTES])


def linked(session: Session, *, app: dict[str, Any], grant: dict[str, Any]) -> Site:
    """A working site that sends by a link."""
    site, connection = connected(session, health=Health.WORKING)
    registration = an_app(session, KEYRING, **app)
    values = {"renewed_at": NOW} | grant
    a_link(
        session,
        connection,
        a_grant(session, KEYRING, registration, a_mailbox(session), **values),
    )
    a_message(session, site, state=State.SENT, at=NOW - HOUR)
    return site


def test_a_site_with_a_password_uses_neither_link_nor_secret(session: Session) -> None:
    site, _ = connected(session)
    assert row(session, site).ends is None


@pytest.mark.parametrize(
    ("app", "grant", "link", "secret"),
    [
        ({}, {}, (90, "good"), (None, "good")),
        (
            {"secret_expires_on": (NOW + 12 * DAY).date()},
            {"renewed_at": NOW - 85 * DAY},
            (5, "bad"),
            (12, "warn"),
        ),
        (
            {"secret_expires_on": (NOW - DAY).date()},
            {"state": "needs-reauthorisation"},
            (None, "bad"),
            (-1, "bad"),
        ),
        ({"secret": "", "secret_expires_on": NOW.date()}, {}, (90, "good"), (None, "good")),
    ],
)
def test_the_days_of_a_link_and_of_its_secret_are_counted(
    session: Session,
    app: dict[str, Any],
    grant: dict[str, Any],
    link: tuple[int | None, str],
    secret: tuple[int | None, str],
) -> None:
    ends = row(session, linked(session, app=app, grant=grant)).ends
    assert ends is not None
    assert (ends.link_days, ends.link_tone) == link
    assert (ends.secret_days, ends.secret_tone) == secret


def test_a_secret_that_runs_out_is_worth_an_eye_although_the_site_works(session: Session) -> None:
    later = linked(session, app={"secret_expires_on": (NOW + 31 * DAY).date()}, grant={})
    soon = linked(session, app={"secret_expires_on": (NOW + 30 * DAY).date()}, grant={})
    followed = linked(
        session,
        app={"secret_expires_on": (NOW + 3 * DAY).date(), "next_secret": "sealed"},
        grant={},
    )
    assert [(r.part, r.mark) for r in (row(session, later), row(session, followed))] == [
        (Part.FINE, "")
    ] * 2
    found = row(session, soon)
    assert (found.state, found.part, found.mark) == (SiteState.WORKING, Part.SOON, "warn")
    assert not found.in_trouble


def test_a_refused_link_needs_a_sign_in_and_a_refused_login_is_failing(session: Session) -> None:
    site = linked(session, app={}, grant={"state": "needs-reauthorisation"})
    connection = session.get_one(Connection, site.primary_connection_id)
    connection.health = Health.NEEDS_REAUTHORISATION
    by_password, _ = connected(session, health=Health.NEEDS_REAUTHORISATION)
    session.flush()
    words = [row(session, one).status.word for one in (site, by_password)]
    assert words == ["Needs re-authorization", "Failing"]


def test_how_deep_a_slowed_lane_is_can_be_told(session: Session) -> None:
    lane = a_lane(session, is_blocked=True, blocked_kind="transient", blocked_until=NOW + HOUR)
    site, connection = connected(session, lane=lane)
    a_message(session, site, connection=connection, state=State.QUEUED, at=NOW - HOUR)
    other, _ = connected(session)
    rows = board(session, [site.id, other.id], NOW).rows
    depths = depths_of(session, rows, NOW)
    assert {key: depth.waiting for key, depth in depths.items()} == {lane.id: 1}


@pytest.mark.parametrize("gaps", [0, 2, [], ["a", "b"]])
def test_the_last_check_of_the_ledger_is_read(session: Session, gaps: object) -> None:
    assert last_check(session) is None
    value = {"at": NOW.isoformat(), "accepted": 9, "ended": 7, "open": 2, "gaps": gaps}
    session.add(Setting(name=LEDGER_CHECKED, value=value))
    session.flush()
    found = last_check(session)
    assert found is not None
    assert (found.at, found.accepted, found.ended, found.open) == (NOW, 9, 7, 2)
    assert found.gaps == (2 if gaps else 0)


def test_a_bar_is_as_high_as_its_hour_and_red_where_mail_failed() -> None:
    hours = [Hour(), Hour(accepted=1), Hour(accepted=100), Hour(accepted=50, failed=1)]
    found = bars(hours)
    assert found.ok == "M6.5 22v-2M10.5 22v-20"
    assert found.no == "M14.5 22v-10"
    assert bars([Hour()]).ok == ""


def test_deleted_content_does_not_matter(session: Session) -> None:
    site, _ = connected(session)
    mail = a_message(session, site, state=State.SENT, at=NOW - HOUR)
    session.execute(sa.delete(Message).where(Message.id == mail.id))
    assert row(session, site).traffic.last_sent_at is None
