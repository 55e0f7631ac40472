"""What stands above every page of a site: each thing once, the worst first."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.factories import (
    a_connection,
    a_lane,
    a_membership,
    a_message,
    a_site,
    a_user,
    give_tables,
)
from tests.pages import Browser
from webapp.accounts.models import Dismissal, Role, User
from webapp.connections.models import Backup, Connection, Health
from webapp.db import Database
from webapp.delivery.models import Attempt, Lane, Outcome, State
from webapp.installation import Installation
from webapp.sites.banners import Banner, Kind, banners, ends_passwords
from webapp.sites.board import standing
from webapp.sites.models import Mode, Site

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    give_tables(url)
    database = Database(url)
    with database.write() as opened:
        yield opened
    database.close()


def shown(session: Session, site: Site, user: User | None = None) -> dict[Kind, Banner]:
    session.flush()
    found = banners(session, standing(session, site.id, NOW), user.id if user else 0)
    assert len({banner.kind for banner in found}) == len(found)
    assert [banner.kind for banner in found] == [
        kind for kind in Kind if kind in {banner.kind for banner in found}
    ]
    return {banner.kind: banner for banner in found}


def a_working(
    session: Session, settings: dict[str, object] | None = None, **values: object
) -> tuple[Site, Connection]:
    site = a_site(session)
    complete = {"authentication": False} | (settings or {})
    return site, a_connection(session, site, settings=complete, **values)  # type: ignore[arg-type]


def a_backup(session: Session, site: Site, **values: object) -> Connection:
    made = a_connection(session, site, primary=False, nickname="Spare", **values)  # type: ignore[arg-type]
    session.add(Backup(site_id=site.id, position=1, connection_id=made.id))
    session.flush()
    return made


def lane_of(session: Session, connection: Connection) -> Lane:
    assert connection.lane_id is not None
    return session.get_one(Lane, connection.lane_id)


def block(session: Session, connection: Connection) -> None:
    lane = lane_of(session, connection)
    lane.is_blocked, lane.blocked_since = True, NOW - HOUR
    lane.blocked_kind = Health.NEEDS_REAUTHORISATION.value


def test_a_site_that_works_says_nothing(session: Session) -> None:
    site, connection = a_working(session)
    a_message(session, site, state=State.SENT, connection=connection, at=NOW)
    assert shown(session, site) == {}


def test_a_site_without_a_connection_is_not_finished(session: Session) -> None:
    assert list(shown(session, a_site(session))) == [Kind.SETUP]


def test_a_primary_connection_that_lacks_something_is_not_finished(session: Session) -> None:
    site, _connection = a_working(session, settings={"host": ""})
    assert list(shown(session, site)) == [Kind.SETUP]


@pytest.mark.parametrize("mode", [Mode.HOLD, Mode.REDIRECT_TO, Mode.DO_NOT_SEND])
def test_a_mode_hides_neither_a_refused_login_nor_an_unfinished_setup(
    session: Session, mode: Mode
) -> None:
    site, connection = a_working(session)
    site.mode = mode
    assert list(shown(session, site)) == [Kind.MODE]
    block(session, connection)
    assert list(shown(session, site)) == [Kind.TROUBLE, Kind.MODE]
    assert list(shown(session, a_site(session, mode=mode))) == [Kind.MODE, Kind.SETUP]


def test_the_last_mail_that_failed_is_told_until_one_gets_through(session: Session) -> None:
    site, connection = a_working(session, nickname="Hoster", health=Health.FAILING)
    a_message(session, site, state=State.SENT, connection=connection, at=NOW - 3 * HOUR)
    mail = a_message(
        session,
        site,
        state=State.FAILED,
        connection=connection,
        at=NOW - 2 * HOUR,
        last_code="550 5.1.1",
        last_words="550 5.1.1 No such user",
    )
    found = shown(session, site)
    assert list(found) == [Kind.LAST_FAILED]  # and not that the connection is failing besides
    failed = found[Kind.LAST_FAILED].failed
    assert failed is not None
    assert (failed.queue_id, failed.connection) == (mail.queue_id, "Hoster")
    assert failed.words == "550 5.1.1 No such user"
    connection.health = Health.WORKING
    a_message(session, site, state=State.SENT, connection=connection, at=NOW - HOUR)
    assert shown(session, site) == {}


def test_an_older_mail_that_leaves_later_counts_as_the_next_success(session: Session) -> None:
    site, connection = a_working(session)
    early = NOW - 5 * HOUR
    a_message(session, site, state=State.SENT, connection=connection, at=early, finished_at=NOW)
    a_message(session, site, state=State.FAILED, connection=connection, at=NOW - HOUR)
    assert shown(session, site) == {}


def test_whoever_hides_errors_is_spared_them_and_nobody_else(session: Session) -> None:
    site, connection = a_working(session, health=Health.FAILING)
    mara, other = a_user(session), a_user(session)
    a_message(session, site, state=State.FAILED, connection=connection, at=NOW)
    session.add(Dismissal(user_id=mara.id, notice=f"errors:{site.slug}", at=NOW))
    assert shown(session, site, mara) == {}
    assert list(shown(session, site, other)) == [Kind.LAST_FAILED]


def test_a_refused_login_says_more_than_the_mail_that_failed_by_it(session: Session) -> None:
    site, connection = a_working(session)
    block(session, connection)
    a_message(session, site, state=State.FAILED, connection=connection, at=NOW)
    assert list(shown(session, site)) == [Kind.TROUBLE]


def test_a_backup_carries_what_a_closed_lane_does_not(session: Session) -> None:
    site, connection = a_working(session)
    block(session, connection)
    assert Kind.CARRIED not in shown(session, site)
    spare = a_backup(session, site)
    carried = shown(session, site)[Kind.CARRIED].row.carried
    assert carried is not None
    assert (carried.by, carried.since) == ("Spare", NOW - HOUR)
    block(session, spare)
    assert Kind.CARRIED not in shown(session, site)
    lane_of(session, spare).is_blocked = False
    site.mode = Mode.HOLD
    assert Kind.CARRIED not in shown(session, site)


def test_a_connection_that_fails_is_stood_in_for_once_a_mail_left_by_the_backup(
    session: Session,
) -> None:
    site, connection = a_working(session, health=Health.FAILING, health_since=NOW - HOUR)
    spare = a_backup(session, site)
    assert Kind.CARRIED not in shown(session, site)
    a_message(session, site, state=State.SENT, connection=spare, planned_id=connection.id, at=NOW)
    carried = shown(session, site)[Kind.CARRIED].row.carried
    assert carried is not None
    assert (carried.by, carried.since) == ("Spare", NOW - HOUR)


@pytest.mark.parametrize(
    ("host", "ends"),
    [
        ("smtp.office365.com", True),
        ("SMTP-Mail.Outlook.com.", True),
        ("smtp.live.com", True),
        ("hotmail.com", True),
        ("smtp.office.com", True),
        ("outlook.com.example", False),
        ("notoutlook.com", False),
        ("mail.hoster.example", False),
        ("", False),
    ],
)
def test_microsoft_is_known_by_the_last_two_labels(host: str, ends: bool) -> None:
    assert ends_passwords(host) is ends


def test_every_connection_that_a_site_sends_by_is_warned_of(session: Session) -> None:
    microsoft = {"host": "smtp.office365.com"}
    site, _primary = a_working(session, nickname="First", settings=microsoft)
    a_connection(session, site, primary=False, nickname="Second", settings=microsoft)
    a_connection(session, site, primary=False, nickname="Elsewhere")
    shared = a_connection(session, None, primary=False, nickname="Shared", settings=microsoft)
    a_connection(session, None, primary=False, nickname="Not used", settings=microsoft)
    session.add(Backup(site_id=site.id, position=1, connection_id=shared.id))
    named = shown(session, site)[Kind.BASIC_AUTH].connections
    assert [one.name for one in named] == ["First", "Second", "Shared"]


def test_a_page_asks_the_database_little_for_its_banners(session: Session) -> None:
    site, connection = a_working(session, settings={"host": "smtp.office365.com"})
    a_message(session, site, state=State.FAILED, connection=connection, at=NOW)
    row = standing(session, site.id, NOW)
    asked: list[str] = []
    engine = session.get_bind()

    def note(conn: object, cursor: object, statement: str, *rest: object) -> None:
        asked.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    banners(session, row, 0)
    sa.event.remove(engine, "before_cursor_execute", note)
    assert len(asked) == 4
    for text in asked:
        if "FROM message" in text:
            plan = session.connection().exec_driver_sql(
                f"EXPLAIN QUERY PLAN {text}", tuple([1] * text.count("?"))
            )
            assert not [step.detail for step in plan if step.detail.startswith("SCAN message")]


# ---- as pages show them ----


def test_the_banners_stand_on_the_pages_and_a_warning_is_put_away_for_one_person(
    client: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        site, user, other = a_site(session, slug="nord"), a_user(session), a_user(session)
        for one in (user, other):
            a_membership(session, one, site, Role.OPERATOR)
        primary = a_connection(
            session,
            site,
            nickname="Office",
            settings={"host": "smtp.office365.com"},
            lane=a_lane(session, is_blocked=True, blocked_since=NOW, blocked_kind="misconfigured"),
        )
        spare = a_backup(session, site)
        mail = a_message(
            session,
            site,
            state=State.SENT,
            connection=spare,
            planned_id=primary.id,
            detour={"refused": [], "passed": [], "why": "misconfigured"},
            attempts=2,
        )
        for number, by in enumerate((primary, spare), start=1):
            session.add(
                Attempt(
                    message_id=mail.id,
                    number=number,
                    connection_id=by.id,
                    connection_name=by.nickname,
                    outcome=Outcome.SENT if by is spare else Outcome.PERMANENT,
                    started_at=NOW,
                )
            )
        queue_id, uid = mail.queue_id, primary.uid
    client.sign_in(user)
    page = client.get("/sites/nord/log")
    told = page.notices
    assert [text for text in told if "A backup carries the traffic since" in text]
    assert [text for text in told if "sign-in at Microsoft is ending" in text and "Office" in text]
    assert "A backup carries the traffic since" in client.get("/").one("table").text
    story = client.get(f"/sites/nord/log/{queue_id}").one("ol", class_="time").text
    assert "Spare (backup)" in story
    assert "Office (backup)" not in story
    after = client.post("/sites/nord/put-away", {"connection": uid, "next": "/sites/nord/log"})
    assert not [text for text in after.notices if "sign-in at Microsoft is ending" in text]
    client.post("/sites/nord/put-away", {"connection": uid})
    client.sign_in(other)
    told = client.get("/sites/nord/log").notices
    assert [text for text in told if "sign-in at Microsoft is ending" in text]


def test_the_last_failure_leads_to_the_mail_and_to_a_test(
    client: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        site, user = a_site(session, slug="nord"), a_user(session)
        a_membership(session, user, site, Role.OPERATOR)
        connection = a_connection(session, site)
        mail = a_message(
            session, site, state=State.FAILED, connection=connection, last_words="550 Not here"
        )
        path = f"/sites/nord/log/{mail.queue_id}"
    client.sign_in(user)
    page = client.get("/sites/nord/credentials")
    assert [text for text in page.notices if "unsuccessful" in text and "550 Not here" in text]
    assert path in page.links_to()
    assert not [text for text in client.get(path).notices if "unsuccessful" in text]
