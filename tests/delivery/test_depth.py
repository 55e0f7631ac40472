"""What a page says of a lane: how much waits, until when, and what stops it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.factories import a_connection, a_membership, a_message, a_site, a_user
from tests.factories import a_lane as made_lane
from tests.pages import Browser
from tests.world import NOW, World, a_world
from webapp.accounts.models import Role
from webapp.delivery import depth
from webapp.delivery.depth import Depth, depths
from webapp.delivery.lanes import RECIPIENTS, UNREACHABLE, Limits, Pace
from webapp.delivery.models import Lane, Message, Outcome, State, Tally
from webapp.installation import Installation

MINUTE = timedelta(minutes=1)


def seen(world: World, *lanes: int) -> list[Depth]:
    with world.db.read() as session:
        found = depths(session, lanes, world.now)
    return [found[lane] for lane in lanes]


def a_lane(world: World, **limits: int | None) -> tuple[int, int]:
    """A site and the lane of its connection."""
    site = world.a_site()
    return site, world.lane_of(world.a_connection(site, **limits))


def change(world: World, lane: int, **values: Any) -> None:
    with world.db.write() as session:
        session.execute(sa.update(Lane).where(Lane.id == lane).values(**values))


def test_an_empty_lane_has_no_depth(world: World) -> None:
    _, lane = a_lane(world)
    assert seen(world, lane) == [Depth()]
    with world.db.read() as session:
        assert depths(session, [], world.now) == {}


def test_the_depth_counts_the_mail_of_all_sites_that_waits(world: World) -> None:
    first, second = world.a_site(), world.a_site()
    lane = world.lane_of(world.a_connection(first, lane="smtp:a"))
    world.a_connection(second, lane="smtp:a")
    _, other = a_lane(world)
    for site in (first, first, second):
        world.accept(site)
    world.claim(lane)
    assert [found.waiting for found in seen(world, lane, other)] == [2, 0]
    assert world.gaps() == 0


def test_the_count_ends_where_nobody_needs_it_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth, "MOST", 1)
    site, lane = a_lane(world, per_minute=5)
    world.accept(site)
    world.accept(site)
    (found,) = seen(world, lane)
    assert (found.waiting, found.is_more, found.drained_at) == (1, True, None)


def test_the_time_to_drain_follows_the_limit(world: World) -> None:
    site, lane = a_lane(world, per_minute=2)
    for _ in range(5):
        world.accept(site)
    (found,) = seen(world, lane)
    # Two at once, two a window and a part of it later, and one after another.
    assert found.drained_at == world.now + 2 * timedelta(seconds=61)


def test_what_the_window_holds_already_comes_first(world: World) -> None:
    site, lane = a_lane(world, per_minute=2)
    pace = Pace(Limits(per_minute=2), {})
    pace.take(world.now, 2, 2)
    change(world, lane, windows=pace.stored())
    world.accept(site)
    assert seen(world, lane)[0].drained_at == world.now + timedelta(seconds=61)


def test_mail_that_may_leave_at_once_is_drained_now(world: World) -> None:
    site, lane = a_lane(world, per_minute=30)
    world.accept(site)
    assert seen(world, lane)[0].drained_at == world.now


def test_a_retry_is_not_drained_before_it_is_due(world: World) -> None:
    site, lane = a_lane(world, per_minute=30)
    world.accept(site)
    with world.db.write() as session:
        session.execute(sa.update(Message).values(due_at=world.now + 20 * MINUTE))
    assert seen(world, lane)[0].drained_at == world.now + 20 * MINUTE


def test_a_lane_without_limits_is_as_fast_as_it_lately_was(world: World) -> None:
    site, lane = a_lane(world)
    world.later(minutes=30)
    world.accept(site)
    assert seen(world, lane)[0].drained_at is None
    with world.db.write() as session:
        connection = session.scalar(sa.select(Message.connection_id))
        session.add(
            Tally(
                site_id=site,
                connection_id=connection,
                outcome="sent",
                hour=NOW,
                count=180,
            )
        )
    assert seen(world, lane)[0].drained_at == world.now + timedelta(seconds=10)


def test_recipients_are_shown_against_the_limit_of_a_day(world: World) -> None:
    site, lane = a_lane(world, recipients_per_day=10)
    pace = Pace(Limits(recipients_per_day=10), {})
    pace.take(world.now, 1, 8)
    change(world, lane, windows=pace.stored())
    world.accept(site, "a@example.org", "b@example.org", "c@example.org")
    (found,) = seen(world, lane)
    assert (found.recipients_today, found.recipients_limit) == (8, 10)
    assert found.drained_at == pace.windows[RECIPIENTS].next_room(world.now, 3)
    assert found.drained_at > world.now + timedelta(hours=23)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Outcome.TRANSIENT.value, "asked to slow down"),
        (UNREACHABLE, "cannot be reached"),
        ("", "stopped"),
    ],
)
def test_a_pause_is_shown_with_its_end_and_its_reason(world: World, kind: str, why: str) -> None:
    site, lane = a_lane(world, per_minute=30)
    world.accept(site)
    until = world.now + 4 * MINUTE
    change(
        world, lane, is_blocked=True, blocked_until=until, blocked_since=world.now,
        blocked_kind=kind, blocked_words="later",
    )  # fmt: skip
    (found,) = seen(world, lane)
    assert (found.blocked_until, found.blocked_why, found.blocked_words) == (until, why, "later")
    assert found.drained_at == until
    assert found.is_unreachable is (kind == UNREACHABLE)
    world.later(minutes=5)
    assert seen(world, lane)[0].blocked_why == ""


def test_nobody_can_say_when_a_refused_login_is_over(world: World) -> None:
    site, lane = a_lane(world, per_minute=30)
    world.accept(site)
    change(world, lane, is_blocked=True, blocked_kind=Outcome.NEEDS_REAUTHORISATION.value)
    (found,) = seen(world, lane)
    assert (found.blocked_until, found.drained_at) == (None, None)
    assert found.blocked_why == "the login is refused"


@pytest.mark.parametrize("statement", [depth._WAITING, depth._RECIPIENTS])
def test_the_count_uses_the_index_of_due_mail(tmp_path: Path, statement: sa.TextClause) -> None:
    world = a_world(f"sqlite:///{tmp_path / 'plan.db'}")
    text = statement.text.replace(":lanes", "(1, 2)").replace(":lane", "1").replace(":most", "9")
    with world.db.reader.connect() as connection:
        plan = [row.detail for row in connection.execute(sa.text(f"EXPLAIN QUERY PLAN {text}"))]
    world.db.close()
    about = [line for line in plan if "message" in line]
    assert about
    assert all("ix_message_due" in line for line in about), plan


# ---- on the connection's page ----


def page_of(client: Browser, installation: Installation, mails: int = 0, **values: Any) -> str:
    with installation.db.write() as session:
        site = a_site(session, slug="nord")
        lane = made_lane(session, **values)
        connection = a_connection(session, site, lane=lane)
        user = a_user(session)
        a_membership(session, user, site, Role.OPERATOR)
        for _ in range(mails):
            a_message(
                session, site, state=State.QUEUED, due_at=installation.db.now(),
                lane_id=lane.id, connection_id=connection.id,
            )  # fmt: skip
    client.sign_in(user)
    return client.get("/sites/nord/settings/general").text


def test_the_page_shows_what_waits_and_until_when(
    client: Browser, installation: Installation
) -> None:
    text = page_of(client, installation, 3, per_minute=1, recipients_per_day=10_000)
    assert "3 mails wait here." in text
    assert "The last of it can leave" in text
    assert "0 of 10,000 recipients in the last 24 hours." in text


def test_the_page_of_an_idle_connection_says_that_nothing_waits(
    client: Browser, installation: Installation
) -> None:
    assert "No mail waits here." in page_of(client, installation)


@pytest.mark.parametrize(
    ("kind", "minutes", "said"),
    [
        (UNREACHABLE, 4, "next try"),
        (UNREACHABLE, -4, "One mail is finding out whether it is back."),
        (Outcome.TRANSIENT.value, 4, "asked to slow down."),
        (Outcome.MISCONFIGURED.value, None, "the set-up is refused."),
    ],
)
def test_the_page_says_what_stops_it(
    client: Browser, installation: Installation, kind: str, minutes: int | None, said: str
) -> None:
    now = installation.db.now()
    text = page_of(
        client,
        installation,
        is_blocked=True,
        trips=2 if kind == UNREACHABLE else 0,
        blocked_kind=kind,
        blocked_words="Connection refused",
        blocked_since=now - timedelta(hours=1),
        blocked_until=None if minutes is None else now + timedelta(minutes=minutes),
    )
    assert said in text
    assert "Connection refused" in text
