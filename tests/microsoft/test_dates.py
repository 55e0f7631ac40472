"""Days that are left on secrets and links: counted, listed on the calendar, told on pages."""

from collections.abc import Iterator
from contextlib import closing
from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.factories import (
    a_connection,
    a_grant,
    a_link,
    a_mailbox,
    a_membership,
    a_site,
    a_time,
    a_user,
    an_app,
    give_tables,
)
from tests.pages import Browser, Page
from webapp.accounts.models import Role
from webapp.crypto import KEY_BYTES, Keyring
from webapp.db import Database
from webapp.installation import Installation
from webapp.microsoft import dates
from webapp.microsoft.dates import Kind, Nearness
from webapp.microsoft.models import GrantState, OAuthApp
from webapp.sites.models import Site

NOW = a_time()
DAY = timedelta(days=1)
KEYRING = Keyring([b"k" * KEY_BYTES])
CALENDAR = "/settings/calendar"


@pytest.fixture
def session(db_url: str) -> Iterator[Session]:
    give_tables(db_url)
    with closing(Database(db_url)) as db, db.write() as opened:
        yield opened


def in_days(days: int) -> date:
    return NOW.date() + days * DAY


def a_registration(session: Session, days: int | None = None, **values: Any) -> OAuthApp:
    return an_app(
        session,
        KEYRING,
        secret_expires_on=None if days is None else in_days(days),
        **values,
    )


def a_user_of(session: Session, app: OAuthApp, name: str, **grant: Any) -> Site:
    """A site that sends by a registration; `grant` says how its link stands."""
    site = a_site(session, name=name)
    connection = a_connection(session, site)
    values = {"renewed_at": NOW} | grant
    mailbox = a_mailbox(session, address=f"{name.split()[0].lower()}@contoso.example")
    a_link(session, connection, a_grant(session, KEYRING, app, mailbox, **values))
    return site


@pytest.mark.parametrize(
    ("days", "near"),
    [
        (61, Nearness.FAR),
        (60, Nearness.NOTED),
        (31, Nearness.NOTED),
        (30, Nearness.SOON),
        (8, Nearness.SOON),
        (7, Nearness.URGENT),
        (0, Nearness.URGENT),
        (-1, Nearness.URGENT),
    ],
)
def test_an_end_is_said_louder_the_nearer_it_is(days: int, near: Nearness) -> None:
    assert dates.nearness(days) is near


@pytest.mark.parametrize(
    ("since", "left"),
    [(timedelta(), 90), (DAY, 89), (89 * DAY, 1), (90 * DAY, 0), (400 * DAY, 0), (-DAY, 90)],
)
def test_a_link_lives_for_90_days_after_its_renewal(since: timedelta, left: int) -> None:
    assert dates.idle_days(NOW - since, NOW) == left


def test_what_ends_within_90_days_is_listed_the_nearest_first(session: Session) -> None:
    soon = a_registration(session, 12, name="Agency")
    a_user_of(session, soon, "Lindenhof Shop")
    a_user_of(session, soon, "Galerie Nord")
    a_user_of(session, a_registration(session, 91), "Far Away")
    over = a_registration(session, -3, name="Over")
    idle = a_user_of(session, a_registration(session), "Idle One", renewed_at=NOW - 60 * DAY)
    a_user_of(session, a_registration(session), "Busy One", renewed_at=NOW - DAY)
    ended = {"state": GrantState.NEEDS_REAUTHORISATION, "renewed_at": NOW - 80 * DAY}
    a_user_of(session, a_registration(session), "Ended One", **ended)
    found = dates.endings(session, None, NOW)
    assert [(one.kind, one.days) for one in found] == [
        (Kind.SECRET, -3),
        (Kind.SECRET, 12),
        (Kind.LINK, 30),
    ]
    assert (found[0].app_uid, found[0].sites) == (over.uid, ())
    assert [site.name for site in found[1].sites] == ["Galerie Nord", "Lindenhof Shop"]
    assert (found[2].address, found[2].sites) == ("idle@contoso.example", (idle,))
    assert found[2].day == in_days(30)


def test_everybody_sees_what_concerns_their_own_sites(session: Session) -> None:
    shared = a_registration(session, 12)
    mine = a_user_of(session, shared, "Mine")
    a_user_of(session, shared, "Not Mine", renewed_at=NOW - 60 * DAY)
    a_registration(session, 5)
    (found,) = dates.endings(session, [mine.id], NOW)
    assert (found.app_uid, found.sites) == (shared.uid, (mine,))
    assert dates.endings(session, [], NOW) == []


def test_the_link_by_which_alerts_leave_is_listed_for_who_sees_everything(session: Session) -> None:
    app = a_registration(session, 12)
    alerts = a_connection(session, None, is_system=True)
    values = {"renewed_at": NOW - 60 * DAY}
    a_link(session, alerts, a_grant(session, KEYRING, app, a_mailbox(session), **values))
    site = a_user_of(session, app, "Galerie Nord")
    secret, link = dates.endings(session, None, NOW)
    assert (secret.sites, secret.alerts) == ((site,), True)
    assert (link.kind, link.days, link.sites, link.alerts) == (Kind.LINK, 30, (), True)
    (secret,) = dates.endings(session, [site.id], NOW)
    assert (secret.sites, secret.alerts) == ((site,), False)


def test_a_registration_that_a_site_has_left_is_not_its_concern(session: Session) -> None:
    app = a_registration(session, 12)
    site = a_user_of(session, app, "Moved")
    session.execute(sa.text("UPDATE connection SET grant_id = NULL"))
    assert dates.endings(session, [site.id], NOW) == []


def test_the_database_is_asked_as_often_for_many_as_for_one(session: Session) -> None:
    statements: list[str] = []

    def note(conn: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    asked = []
    for count in (1, 20):
        app = a_registration(session, 12)
        for number in range(count):
            a_user_of(session, app, f"Site {count} {number}", renewed_at=NOW - 60 * DAY)
        session.flush()
        session.expire_all()
        statements.clear()
        engine = session.get_bind()
        sa.event.listen(engine, "before_cursor_execute", note)
        for one in dates.endings(session, None, NOW):
            assert one.app_name
        sa.event.remove(engine, "before_cursor_execute", note)
        asked.append(len(statements))
    assert asked[0] == asked[1] == 3


# ---- the calendar ----


@pytest.fixture
def admin(client: Browser, installation: Installation) -> Browser:
    with installation.db.write() as session:
        user = a_user(session, is_admin=True)
    client.sign_in(user)
    return client


def rows(page: Page) -> list[str]:
    return [row.text for row in page.one("table").one("tbody").all("tr")]


def test_an_empty_calendar_says_what_it_is_for(admin: Browser) -> None:
    page = admin.get(CALENDAR)
    assert page.h1 == "Calendar"
    assert "Nothing ends within 90 days" in page.one("main").text
    assert "60, 30, 7 days and 1 day before" in page.one("main").text
    assert admin.get("/").links()["Calendar"] == CALENDAR


def test_the_calendar_leads_an_admin_to_the_second_secret(
    admin: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        app = a_registration(session, 12, name="Agency")
        a_user_of(session, app, "Lindenhof Shop")
        a_registration(session, 40, name="Waiting", next_secret="sealed")
        blank = a_registration(session, name="No Date")
    page = admin.get(CALENDAR)
    first, second = rows(page)
    assert "12 days left Application Password of Agency" in first
    assert first.endswith("Lindenhof Shop")
    assert "Its successor is stored, and waits to be proved." in second
    assert second.endswith("none")
    assert page.links()["Paste its successor"] == (
        f"/settings/microsoft-apps/{app.uid}#next_secret"
    )
    assert "1 registration has no date." in page.notices[0]
    assert page.links()["No Date"].startswith(f"/settings/microsoft-apps/{blank.uid}")


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_others_see_their_sites_and_reach_what_they_may_change(
    client: Browser, installation: Installation, role: Role
) -> None:
    with installation.db.write() as session:
        user = a_user(session)
        shared = a_registration(session, 12, name="Agency")
        a_membership(session, user, a_user_of(session, shared, "Mine"), role)
        a_user_of(session, shared, "Not Mine")
        a_registration(session, 5, name="Unused")
        site = a_user_of(session, a_registration(session), "Idle One", renewed_at=NOW - 80 * DAY)
        a_membership(session, user, site, role)
        a_registration(session, name="No Date")
    client.sign_in(user)
    page = client.get(CALENDAR)
    first, second = rows(page)
    assert "Link to idle@contoso.example" in first
    assert second.endswith("Mine")
    links = page.links()
    assert "Paste its successor" not in links
    assert ("Re-authorize" in links) is (role is Role.OPERATOR)
    assert "Unused" not in page.response.text
    assert "No Date" not in page.response.text


# ---- on every page of a site ----


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (31, ""),
        (30, "The application password expires in 30 days, on "),
        (1, "The application password expires in 1 day, on "),
        (0, "The application password expires today."),
        (-2, "The application password expired on "),
    ],
)
def test_a_secret_that_runs_out_is_told_on_every_page_of_its_sites(
    admin: Browser, installation: Installation, days: int, said: str
) -> None:
    with installation.db.write() as session:
        app = a_registration(session, days)
        site = a_user_of(session, app, "Lindenhof Shop")
    for path in (f"/sites/{site.slug}/log", f"/sites/{site.slug}/settings/general"):
        page = admin.get(path)
        told = [notice for notice in page.notices if "application password" in notice]
        assert len(told) == bool(said)
        if said:
            assert told[0].startswith(said)
            assert page.links()["Paste its successor"].endswith(f"{app.uid}#next_secret")


def test_whoever_keeps_no_registration_is_told_who_does(
    client: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        user = a_user(session)
        site = a_user_of(session, a_registration(session, 3), "Lindenhof Shop")
        a_membership(session, user, site, Role.OPERATOR)
    client.sign_in(user)
    page = client.get(f"/sites/{site.slug}/log")
    assert "Whoever keeps the registration pastes its successor" in page.notices[0]
    assert "Paste its successor" not in page.links()


def test_a_successor_that_waits_silences_the_reminder(
    admin: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        site = a_user_of(session, a_registration(session, 3, next_secret="sealed"), "Shop")
    assert admin.get(f"/sites/{site.slug}/log").notices == []
