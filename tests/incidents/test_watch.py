"""Each cause opens one incident, and closes it."""

import threading
import time
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.factories import a_connection, a_lane, a_message, a_site, an_app
from tests.incidents.conftest import KEY, Desk
from tests.incidents.hooks import Hook, is_genuine
from webapp.connections.models import Connection, Health
from webapp.delivery.lanes import UNREACHABLE
from webapp.delivery.models import Lane, Message, Source, State, Tally
from webapp.incidents import service, signs
from webapp.incidents.kinds import Kind
from webapp.incidents.models import Incident, Notification
from webapp.incidents.service import sites_of
from webapp.incidents.signs import Sign
from webapp.microsoft.models import Grant, GrantState, OAuthApp
from webapp.sites.models import Site


def test_a_refused_link_is_one_incident_told_once_each_way(desk: Desk, hook: Hook) -> None:
    site = desk.site(name="Galerie Nord", slug="galerie-nord")
    grant = desk.linked(site)
    desk.target(hook.url)
    desk.round()
    assert desk.incidents() == []
    desk.refuse(grant)
    for _ in range(3):
        desk.round()
    assert desk.open() == [Kind.LINK]
    (call,) = hook.calls
    assert is_genuine(call, KEY)
    assert not is_genuine(call, "another")
    facts = call.facts
    assert call.headers["X-Postroom-Incident"] == facts["id"] != ""
    assert (facts["kind"], facts["occasion"], facts["code"]) == (
        "link-refused",
        "opened",
        "AADSTS50173",
    )
    assert facts["sites"] == [
        {"slug": "galerie-nord", "name": "Galerie Nord", "url": "https://galerie-nord.example"}
    ]
    assert facts["link"].endswith(f"/settings/system/{facts['id']}")
    desk.link_again(grant)
    for _ in range(3):
        desk.round()
    assert desk.open() == []
    assert [call.facts["occasion"] for call in hook.calls] == ["opened", "closed"]
    assert hook.calls[1].facts["until"]


def test_two_watchers_at_once_make_one_incident(desk: Desk, hook: Hook) -> None:
    desk.target(hook.url)
    grants = [desk.linked(desk.site()) for _ in range(5)]
    for grant in grants:
        desk.refuse(grant)
    threads = [threading.Thread(target=desk.watch.round) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert desk.open() == [Kind.LINK] * 5
    tellers = [threading.Thread(target=desk.a_teller().round) for _ in range(3)]
    for thread in tellers:
        thread.start()
    for thread in tellers:
        thread.join()
    assert len(hook.calls) == 5


@pytest.mark.parametrize("name", ["round", "check_ledger"])
def test_nothing_is_wrong_with_an_empty_installation(desk: Desk, name: str) -> None:
    getattr(desk.watch, name)()
    assert desk.incidents() == []


# ---- whom a cause concerns ----


def test_every_site_that_sends_by_a_refused_link_is_named(desk: Desk, hook: Hook) -> None:
    one, two, other = desk.site(), desk.site(), desk.site()
    grant = desk.linked(one)
    with desk.db.write() as session:
        row = session.get_one(Site, two.id)
        a_connection(session, row, mailer="outlook", grant_id=grant.id)
    for site in (one, two, other):
        desk.target(hook.url + site.slug, site=site)
    # Of a site they may not lead into a private network; that they were tried is enough.
    desk.refuse(grant)
    desk.watch.round()
    (found,) = desk.incidents()
    with desk.db.read() as session:
        assert set(sites_of(session, found.id)) == {one.id, two.id}
        rows = session.scalars(sa.select(Notification.target_id)).all()
    assert len(rows) == 2


def test_a_site_that_comes_to_be_concerned_is_told_then(desk: Desk, hook: Hook) -> None:
    one, two = desk.site(), desk.site()
    grant = desk.linked(one)
    desk.target(hook.url)
    desk.target(hook.url + "two", site=two)
    desk.refuse(grant)
    desk.round()
    with desk.db.write() as session:
        row = session.get_one(Site, two.id)
        a_connection(session, row, mailer="outlook", grant_id=grant.id)
    desk.watch.round()
    (found,) = desk.incidents()
    assert found.details["sites"] == sorted([one.id, two.id])
    assert len(desk.told()) == 2


def test_a_link_that_nobody_uses_is_no_incident(desk: Desk) -> None:
    grant = desk.linked(desk.site())
    with desk.db.write() as session:
        for connection in session.scalars(sa.select(Connection)):
            connection.grant_id = None
    desk.refuse(grant)
    desk.watch.round()
    assert desk.incidents() == []


def test_what_waits_is_counted_by_site(desk: Desk) -> None:
    site = desk.site()
    grant = desk.linked(site)
    with desk.db.write() as session:
        connection = session.scalars(sa.select(Connection)).one()
        for _ in range(3):
            a_message(session, session.get_one(Site, site.id), connection=connection)
    desk.refuse(grant)
    desk.watch.round()
    (found,) = desk.incidents()
    assert found.details["waiting"] == {str(site.id): 3}
    with desk.db.write() as session:
        for mail in session.scalars(sa.select(Message).limit(2)):
            mail.due_at = None
    desk.watch.round()
    (found,) = desk.incidents()
    assert (found.details["waiting"], found.details["stopped"]) == ({str(site.id): 1}, 3)


def test_a_sign_that_cannot_be_noted_hides_no_other(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    grants = [desk.linked(desk.site()) for _ in range(2)]
    for grant in grants:
        desk.refuse(grant)
    note = service.open_incident

    def stumble(session: Session, sign: Sign, now: datetime) -> Incident | None:
        if sign.cause == f"grant:{min(grant.id for grant in grants)}":
            raise ZeroDivisionError("a bug")
        return note(session, sign, now)

    monkeypatch.setattr(service, "open_incident", stumble)
    desk.watch.round()
    assert [incident.cause for incident in desk.incidents()] == [
        f"grant:{max(grant.id for grant in grants)}"
    ]


# ---- the other causes ----


def test_a_refused_registration_is_one_incident_and_its_lanes_are_none(desk: Desk) -> None:
    grant = desk.linked(desk.site())
    desk.change(OAuthApp, grant.app_id, problem_since=desk.now, problem_code="AADSTS7000222")
    with desk.db.write() as session:
        for lane in session.scalars(sa.select(Lane)):
            lane.is_blocked, lane.blocked_kind = True, "misconfigured"
    desk.watch.round()
    assert desk.open() == [Kind.REGISTRATION]
    desk.change(OAuthApp, grant.app_id, problem_since=None, problem_code="")
    with desk.db.write() as session:
        for lane in session.scalars(sa.select(Lane)):
            lane.is_blocked = False
    desk.watch.round()
    assert desk.open() == []


def test_a_registration_of_a_sites_own_that_nothing_is_linked_by_is_no_incident(desk: Desk) -> None:
    _site, connection = a_connected_site(desk)
    with desk.db.write() as session:
        row = session.get_one(Connection, connection.id)
        an_app(session, desk.installation.keyring, connection=row, problem_since=desk.now)
        shared = an_app(session, desk.installation.keyring, problem_since=desk.now)
    desk.watch.round()
    assert [found.cause for found in desk.incidents()] == [f"app:{shared.id}"]


def test_a_link_that_was_removed_is_not_what_a_refused_registration_stops(desk: Desk) -> None:
    grant = desk.linked(desk.site())
    desk.change(Grant, grant.id, state=GrantState.REMOVED)
    desk.change(OAuthApp, grant.app_id, problem_since=desk.now, problem_code="AADSTS7000222")
    desk.watch.round()
    (found,) = desk.incidents()
    assert (found.details["grants"], found.details["sites"]) == ([], [])


def a_connected_site(desk: Desk, **values: Any) -> tuple[Site, Connection]:
    with desk.db.write() as session:
        site = a_site(session)
        return site, a_connection(session, site, **values)


def test_a_login_that_is_refused_stops_its_lane_until_it_is_saved(desk: Desk) -> None:
    _site, connection = a_connected_site(desk)
    stopped = {"is_blocked": True, "blocked_kind": "needs-reauthorisation", "blocked_words": "535"}
    desk.change(Lane, connection.lane_id, **stopped)
    desk.watch.round()
    assert desk.open() == [Kind.STOPPED]
    assert desk.incidents()[0].details["place"] == "mail.hoster.example"
    desk.change(Lane, connection.lane_id, is_blocked=False)
    desk.watch.round()
    assert desk.open() == []


def test_of_several_connections_the_one_that_was_refused_says_why(desk: Desk) -> None:
    """They share a login, and only one of them has tried it."""
    with desk.db.write() as session:
        lane = a_lane(session, is_blocked=True, blocked_words="535 no", blocked_kind="x")
        for code, words in (("", ""), ("535 5.7.8", "535 no"), ("", "older")):
            values = {"lane": lane, "last_code": code, "last_words": words}
            a_connection(session, a_site(session), **values)
    desk.watch.round()
    (found,) = desk.incidents()
    assert (found.code, len(found.details["sites"])) == ("535 5.7.8", 3)


def test_what_failed_and_is_now_refused_is_one_incident(desk: Desk) -> None:
    _site, connection = a_connected_site(desk, health=Health.FAILING)
    desk.change(Connection, connection.id, health_since=desk.now - timedelta(hours=1))
    desk.watch.round()
    assert desk.open() == [Kind.UNREACHABLE]
    desk.change(Lane, connection.lane_id or 0, is_blocked=True, blocked_kind="misconfigured")
    desk.watch.round()
    assert desk.open() == [Kind.STOPPED]


def test_an_alert_connection_that_fails_for_long_is_one_incident(desk: Desk) -> None:
    """It has a lane where a mailbox is linked, which sites may send by."""
    connection = desk.alert_connection(25, health=Health.FAILING)
    desk.change(Connection, connection.id, health_since=desk.now - timedelta(hours=1))
    desk.watch.round()
    assert desk.open() == [Kind.ALERTS]


def test_a_lane_that_was_asked_to_wait_is_no_incident(desk: Desk) -> None:
    _site, connection = a_connected_site(desk)
    until = desk.now + timedelta(hours=1)
    desk.change(Lane, connection.lane_id, is_blocked=True, blocked_until=until)
    desk.watch.round()
    assert desk.incidents() == []


def test_a_server_that_is_away_is_an_incident_after_a_quarter_of_an_hour(desk: Desk) -> None:
    _site, connection = a_connected_site(desk, health=Health.FAILING)
    desk.change(Connection, connection.id, health_since=desk.now)
    desk.watch.round()
    assert desk.incidents() == []
    desk.later(minutes=16)
    desk.watch.round()
    assert desk.open() == [Kind.UNREACHABLE]
    desk.change(Connection, connection.id, health=Health.WORKING)
    desk.watch.round()
    assert desk.open() == []


def a_pause(desk: Desk, connection: Connection, **ago: float) -> None:
    """The breaker of its lane is open: so long ago the last of three mails reached nobody."""
    desk.change(
        Lane,
        connection.lane_id or 0,
        is_blocked=True,
        blocked_kind=UNREACHABLE,
        blocked_until=desk.now + timedelta(minutes=1),
        blocked_since=desk.now - timedelta(**ago),
        blocked_words="connection refused",
        trips=4,
    )


def test_a_lane_where_nobody_has_long_answered_is_an_incident(desk: Desk) -> None:
    """Whatever the connection says: its settings may have been saved since, or it tried nothing."""
    _site, connection = a_connected_site(desk)
    a_pause(desk, connection, minutes=14)
    desk.watch.round()
    assert desk.incidents() == []
    a_pause(desk, connection, minutes=15)
    desk.watch.round()
    assert desk.open() == [Kind.UNREACHABLE]
    (found,) = desk.incidents()
    assert found.words == "connection refused"
    since = datetime.fromisoformat(found.details["since"])
    assert abs(desk.now - since - timedelta(minutes=15)) < timedelta(seconds=30)
    desk.change(Lane, connection.lane_id or 0, is_blocked=False, blocked_kind="")
    desk.watch.round()
    assert desk.open() == []


def test_a_failing_connection_and_its_open_breaker_are_one_incident(desk: Desk) -> None:
    site, connection = a_connected_site(desk, health=Health.FAILING, last_code="110")
    with desk.db.write() as session:
        other = a_site(session)
        lane = session.get_one(Lane, connection.lane_id)
        a_connection(session, other, lane=lane)
    desk.change(Connection, connection.id, health_since=desk.now - timedelta(minutes=20))
    a_pause(desk, connection, minutes=18)
    desk.watch.round()
    (found,) = desk.incidents()
    assert found.kind == Kind.UNREACHABLE
    assert (found.code, found.details["sites"]) == ("110", sorted([site.id, other.id]))
    since = datetime.fromisoformat(found.details["since"])
    assert desk.now - since > timedelta(minutes=19)


@pytest.mark.parametrize(
    ("code", "kinds"),
    [("110", [Kind.FAILED]), ("550 5.1.1", [Kind.FAILED, Kind.UNREACHABLE])],
    ids=["same", "another"],
)
def test_mail_that_was_given_up_for_that_very_reason_is_no_second_incident(
    desk: Desk, code: str, kinds: list[Kind]
) -> None:
    site, connection = a_connected_site(desk, health=Health.FAILING, last_code="110")
    long_ago = desk.now - timedelta(minutes=20)
    desk.change(Connection, connection.id, health_since=long_ago)
    a_failure(desk, site, connection, last_code=code)
    desk.watch.round()
    assert sorted(desk.open()) == sorted(kinds)


def a_failure(desk: Desk, site: Site, connection: Connection, **values: Any) -> None:
    given = {"state": State.FAILED, "last_code": "550 5.1.1", "last_words": "user unknown"}
    with desk.db.write() as session:
        row = session.get_one(Site, site.id)
        a_message(session, row, connection=connection, at=desk.now, **(given | values))


def test_five_hundred_failures_for_one_reason_are_one_incident(desk: Desk, hook: Hook) -> None:
    desk.target(hook.url)
    site, connection = a_connected_site(desk)
    for _ in range(5):
        a_failure(desk, site, connection)
    desk.round()
    for _ in range(4):
        a_failure(desk, site, connection)
        desk.round()
    a_failure(desk, site, connection, last_code="552 5.2.2")
    desk.round()
    assert desk.open() == [Kind.FAILED] * 2
    assert [found.details["count"] for found in desk.incidents()] == [9, 1]
    assert len(hook.calls) == 2


def test_how_many_failed_and_since_when_is_kept_while_it_lasts(desk: Desk) -> None:
    site, connection = a_connected_site(desk)
    for _ in range(2):
        a_failure(desk, site, connection)
    desk.watch.round()
    since = desk.incidents()[0].details["since"]
    desk.later(minutes=50)
    a_failure(desk, site, connection)
    desk.watch.round()
    desk.later(minutes=20)  # the first two are more than an hour ago
    a_failure(desk, site, connection, last_words="another host")
    desk.watch.round()
    (found,) = desk.incidents()
    assert (found.details["count"], found.details["since"]) == (3, since)


def test_failures_are_over_after_a_quiet_hour(desk: Desk) -> None:
    site, connection = a_connected_site(desk)
    a_failure(desk, site, connection)
    desk.watch.round()
    desk.later(minutes=59)
    desk.watch.round()
    assert desk.open() == [Kind.FAILED]
    desk.later(minutes=2)
    desk.watch.round()
    assert desk.open() == []


def test_failures_are_over_with_the_next_success(desk: Desk) -> None:
    site, connection = a_connected_site(desk)
    a_failure(desk, site, connection)
    desk.watch.round()
    a_failure(desk, site, connection, state=State.SENT)  # soon after: the next one may fail again
    desk.watch.round()
    assert desk.open() == [Kind.FAILED]
    a_failure(desk, site, connection)
    desk.later(minutes=11)
    desk.watch.round()
    assert desk.open() == [Kind.FAILED]
    a_failure(desk, site, connection, state=State.SENT)
    desk.watch.round()
    assert desk.open() == []


def test_a_success_before_or_of_another_site_or_by_another_way_ends_no_failures(desk: Desk) -> None:
    site, connection = a_connected_site(desk)
    other_site, other_way = a_connected_site(desk)
    before = desk.now - timedelta(minutes=1)
    a_failure(desk, site, connection)
    desk.later(minutes=11)
    a_failure(desk, site, connection, state=State.SENT, finished_at=before)
    a_failure(desk, other_site, connection, state=State.SENT)
    a_failure(desk, site, other_way, state=State.SENT)
    desk.watch.round()
    assert desk.open() == [Kind.FAILED]


def test_a_test_that_fails_is_no_incident(desk: Desk) -> None:
    site, connection = a_connected_site(desk)
    a_failure(desk, site, connection, source=Source.TEST)
    desk.watch.round()
    assert desk.incidents() == []


def test_a_mail_that_stays_unclear_is_an_incident(desk: Desk) -> None:
    site, connection = a_connected_site(desk)
    unclear = {"state": State.UNCERTAIN, "finished_at": desk.now}
    a_failure(desk, site, connection, due_at=desk.now, **unclear)
    desk.watch.round()
    assert desk.incidents() == []
    a_failure(desk, site, connection, **unclear)
    desk.watch.round()
    assert desk.open() == [Kind.UNCLEAR]


def test_books_that_do_not_add_up_are_an_incident_until_they_do(desk: Desk) -> None:
    site, connection = a_connected_site(desk)
    a_failure(desk, site, connection, state=State.SENT)
    desk.watch.check_ledger()
    assert desk.incidents() == []
    with desk.db.write() as session:
        lost = session.scalars(sa.select(Tally).where(Tally.outcome == "sent")).one()
        session.delete(lost)
    desk.watch.round()
    assert desk.incidents() == []
    desk.watch.check_ledger()
    desk.watch.round()
    assert desk.open() == [Kind.LEDGER]
    assert desk.incidents()[0].details["gap"] == 1
    with desk.db.write() as session:
        session.add(
            Tally(site_id=site.id, outcome="sent", hour=desk.now.replace(minute=0), count=1)
        )
    desk.watch.check_ledger()
    assert desk.open() == []


def test_the_books_are_looked_at_once_an_hour_whatever_the_clock_does(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[datetime] = []
    monkeypatch.setattr(desk.watch, "check_ledger", lambda: looks.append(desk.now))
    for minutes, count in ((0, 1), (59, 1), (2, 2), (-180, 3), (59, 3), (2, 4)):
        desk.later(minutes=minutes)
        desk.watch.work()
        assert len(looks) == count, minutes


def test_a_silent_site_is_an_incident_where_it_wishes_that(desk: Desk) -> None:
    site, connection = a_connected_site(desk)
    desk.change(Site, site.id, silent_hours=26)
    a_failure(desk, site, connection, state=State.SENT)
    desk.later(hours=25)
    for source in (Source.TEST, Source.RESEND):
        a_failure(desk, site, connection, state=State.SENT, source=source)
    desk.watch.round()
    assert desk.incidents() == []
    desk.later(hours=2)
    desk.watch.round()
    assert desk.open() == [Kind.SILENT]
    a_failure(desk, site, connection, state=State.SENT)
    desk.watch.round()
    assert desk.open() == []


def test_a_site_that_never_handed_in_mail_is_silent_since_it_was_made(desk: Desk) -> None:
    desk.site(silent_hours=26, created_at=desk.now - timedelta(hours=25))
    desk.watch.round()
    assert desk.incidents() == []
    desk.later(hours=2)
    desk.watch.round()
    assert desk.open() == [Kind.SILENT]


def test_a_full_disk_is_an_incident(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = desk.installation.settings.disk_reserve_bytes
    monkeypatch.setattr(signs, "free_bytes", lambda folder: reserve)
    desk.watch.round()
    assert desk.incidents() == []
    monkeypatch.setattr(signs, "free_bytes", lambda folder: 1024)
    desk.watch.round()
    assert desk.open() == [Kind.DISK]
    monkeypatch.undo()
    desk.watch.round()
    assert desk.open() == []


def test_a_secret_is_told_of_at_60_30_7_and_1_days_and_once_renewed(desk: Desk, hook: Hook) -> None:
    desk.target(hook.url)
    grant = desk.linked(desk.site(), renewed_at=desk.now + timedelta(days=61))
    desk.change(OAuthApp, grant.app_id, secret_expires_on=(desk.now + timedelta(days=61)).date())
    heard = []
    for _ in range(62):
        desk.round()
        desk.round()
        heard.append(len(hook.calls))
        desk.later(days=1)
    days = [61 - day for day in range(1, 62) if heard[day] > heard[day - 1]]
    assert days == [60, 30, 7, 1]
    assert {call.facts["occasion"] for call in hook.calls} == {"opened"}
    assert desk.open() == [Kind.SECRET]
    desk.change(OAuthApp, grant.app_id, secret_expires_on=(desk.now + timedelta(days=700)).date())
    desk.round()
    assert desk.open() == []
    assert [call.facts["occasion"] for call in hook.calls] == ["opened"] * 4 + ["closed"]


def test_a_secret_that_was_removed_expires_no_more(desk: Desk) -> None:
    with desk.db.write() as session:
        an_app(session, desk.installation.keyring, secret="", secret_expires_on=desk.now.date())
    desk.watch.round()
    assert desk.incidents() == []


def test_a_link_that_could_not_be_renewed_for_long_is_an_incident(desk: Desk) -> None:
    grant = desk.linked(desk.site())
    desk.later(days=59)
    desk.watch.round()
    assert desk.incidents() == []
    desk.later(days=2)
    desk.watch.round()
    assert desk.open() == [Kind.IDLE]
    desk.change(Grant, grant.id, renewed_at=desk.now)
    desk.watch.round()
    assert desk.open() == []


# ---- what comes and goes ----


def test_a_cause_that_comes_back_at_once_is_the_same_incident(desk: Desk, hook: Hook) -> None:
    desk.target(hook.url)
    _site, connection = a_connected_site(desk, health=Health.FAILING)
    long_ago = desk.now - timedelta(hours=1)
    desk.change(Connection, connection.id, health_since=long_ago)
    for health in (Health.FAILING, Health.WORKING) * 3:
        desk.change(Connection, connection.id, health=health)
        desk.round()
        desk.later(minutes=1)
    assert len(desk.incidents()) == 1
    assert [call.facts["occasion"] for call in hook.calls] == ["opened"]
    desk.later(minutes=10)
    desk.round()
    assert [call.facts["occasion"] for call in hook.calls] == ["opened", "closed"]


def test_a_cause_that_comes_back_after_its_end_was_told_is_a_new_one(
    desk: Desk, hook: Hook
) -> None:
    desk.target(hook.url)
    grant = desk.linked(desk.site())
    for _ in range(2):
        desk.refuse(grant)
        desk.round()
        desk.link_again(grant)
        desk.round()
    assert len(desk.incidents()) == 2
    assert [call.facts["occasion"] for call in hook.calls] == ["opened", "closed"] * 2


def test_a_cause_that_comes_back_long_after_is_a_new_one_though_nobody_was_told(desk: Desk) -> None:
    grant = desk.linked(desk.site())
    for _ in range(2):
        desk.refuse(grant)
        desk.watch.round()
        desk.link_again(grant)
        desk.watch.round()
        desk.later(minutes=11)
    assert len(desk.incidents()) == 2


def test_a_cause_that_comes_back_while_its_end_is_being_told_is_a_new_one(
    desk: Desk, hook: Hook
) -> None:
    desk.target(hook.url)
    grant = desk.linked(desk.site())
    desk.refuse(grant)
    desk.round()
    desk.link_again(grant)
    desk.watch.round()
    (due,) = desk.teller._due()
    with desk.db.write() as session:
        assert desk.teller._claim(session, due) is not None
    desk.refuse(grant)
    desk.watch.round()
    assert len(desk.incidents()) == 2


def test_the_thread_looks_by_itself_and_stops(desk: Desk) -> None:
    desk.refuse(desk.linked(desk.site()))
    desk.watch.start()
    until = time.monotonic() + 20
    while not desk.incidents():
        assert time.monotonic() < until
        time.sleep(0.02)
    desk.watch.stop()
    desk.watch.stop()
