"""What saved rules, connections and modes do to mail that waits, on both databases."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from tests.routing.rules import a_rule, another_connection, change_site, changed, set_chain
from tests.routing.test_accept import hand_in
from tests.routing.test_conditions import one
from tests.world import World, a_mail
from webapp.connections.models import Connection
from webapp.delivery import modes, orphans, replan
from webapp.delivery.decide import Result
from webapp.delivery.models import Message, Recipient, Source, State
from webapp.delivery.replan import Replanned
from webapp.ingress.accept import Pinned
from webapp.mailers.errors import TransientError, UncertainError
from webapp.routing.models import Rule
from webapp.sites.models import AfterUnclear, Mode, Site

ORDERS = one("subject", "contains", "order")
LATER = Result(error=TransientError("451 later", code="451"))
LOST = Result(error=UncertainError("lost"))


@pytest.fixture
def site(world: World) -> int:
    made = world.a_site()
    world.a_connection(made)
    return made


def set_message(world: World, queue_id: str, **values: object) -> None:
    with world.db.write() as session:
        session.execute(sa.update(Message).where(Message.queue_id == queue_id).values(**values))


def set_mode(world: World, site: int, mode: Mode, redirect_to: str = "") -> int:
    change_site(world, site, mode=mode, redirect_to=redirect_to)
    with world.db.write() as session:
        return replan.mode_changed(session, session.get_one(Site, site), world.now)


def release(world: World, *queue_ids: str) -> int:
    keys = [world.message(queue_id).id for queue_id in queue_ids]
    with world.db.write_connection() as connection:
        return len(replan.release(connection, keys, world.now))


def remove(world: World, connection: int) -> Replanned:
    """As the page does."""
    with world.db.write() as session:
        gone = session.get_one(Connection, connection)
        gone.deleted_at = world.now
        session.execute(
            sa.update(Site)
            .where(Site.primary_connection_id == connection)
            .values(primary_connection_id=None)
        )
        replanned = replan.connection_deleted(session, gone, world.now)
        gone.lane_id = None
        return replanned


def is_behind(world: World, site: int) -> bool:
    with world.db.read() as session:
        return session.get_one(Site, site).routing_changed_at is not None


# ---- rules ----


def test_waiting_mail_follows_a_new_rule_and_comes_back_without_it(world: World, site: int) -> None:
    order, other = world.accept(site), world.accept(site, raw=a_mail("Newsletter"))
    first = world.message(order).connection_id
    second = another_connection(world, site, "Bulk")
    uid = a_rule(world, site, ORDERS, connection=second)
    assert changed(world, site) == Replanned(moved=1, left=0, by=(("Bulk", 1),))
    row = world.message(order)
    assert (row.connection_id, row.planned_id) == (second, second)
    assert (row.lane_id, row.why["rule"]) == (world.lane_of(second), uid)
    assert world.message(other).connection_id == first
    assert world.message(other).routed_version == row.routed_version
    with world.db.write() as session:
        session.execute(sa.delete(Rule))
    assert changed(world, site).moved == 1
    assert world.message(order).why == {"code": "primary"}
    assert world.gaps() == 0


def test_what_was_put_off_by_the_old_connection_is_due_at_once(world: World, site: int) -> None:
    queue_id = world.accept(site)
    world.finish(world.claim(world.message(queue_id).lane_id or 0)[0], LATER)
    second = another_connection(world, site)
    a_rule(world, site, ORDERS, connection=second)
    assert changed(world, site).moved == 1
    assert world.message(queue_id).due_at == world.now


def test_what_no_rule_may_move_stays(world: World, site: int) -> None:
    lane = world.lane_of(world.message(world.accept(site)).connection_id or 0)
    second, third = another_connection(world, site), another_connection(world, site)
    world.finish(world.claim(lane)[0], LOST)
    pinned = Pinned(connection_id=second, lane_id=world.lane_of(second))
    for source in (Source.TEST, Source.API):
        hand_in(world, site, source=source, pinned=pinned)
    a_rule(world, site, ORDERS, connection=third)
    assert changed(world, site) == Replanned()
    assert not replan.catch_up(world.db)


def test_a_mail_that_may_have_reached_somebody_is_not_moved(world: World, site: int) -> None:
    queue_id = world.accept(site, "a@x.example", "b@x.example")
    (claim,) = world.claim(world.message(queue_id).lane_id or 0)
    later = TransientError("450 later", code="450")
    world.finish(claim, Result(error=UncertainError("lost"), refused={0: later}))
    assert world.message(queue_id).state == State.DEFERRED
    a_rule(world, site, ORDERS, connection=another_connection(world, site))
    assert changed(world, site) == Replanned()


def test_the_worker_plans_the_rest_and_forgets_the_change_later(
    world: World, site: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replan, "AT_ONCE_READ", 1)
    monkeypatch.setattr(replan, "BATCH", 2)
    clock = world.now
    monkeypatch.setattr(world.db, "now", lambda: clock)
    mails = [world.accept(site) for _ in range(6)]
    second = another_connection(world, site)
    a_rule(world, site, ORDERS, connection=second)
    assert changed(world, site) == Replanned(moved=1, left=5, by=(("Other SMTP", 1),))
    assert replan.catch_up(world.db, seconds=0)
    assert sum(world.message(one).connection_id == second for one in mails) == 3
    assert not replan.catch_up(world.db, seconds=60)
    assert {world.message(one).connection_id for one in mails} == {second}
    assert is_behind(world, site)
    clock = world.later(minutes=2)
    assert not replan.catch_up(world.db)
    assert not is_behind(world, site)


def test_a_change_is_not_forgotten_while_a_mail_planned_before_it_is_being_sent(
    world: World, site: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.db, "now", lambda: world.now)
    queue_id = world.accept(site)
    (claim,) = world.claim(world.message(queue_id).lane_id or 0)
    second = another_connection(world, site)
    a_rule(world, site, ORDERS, connection=second)
    assert changed(world, site).moved == 0
    world.later(minutes=2)
    replan.catch_up(world.db)
    assert is_behind(world, site)
    world.finish(claim, LATER)
    replan.catch_up(world.db)
    assert world.message(queue_id).connection_id == second
    assert not is_behind(world, site)


def test_a_mail_planned_by_older_rules_after_the_change_is_found(world: World, site: int) -> None:
    """Its acceptor had read the rules before, and committed after."""
    second = another_connection(world, site)
    a_rule(world, site, ORDERS, connection=second)
    changed(world, site)
    late = world.accept(site)
    primary = world.accept(site, raw=a_mail("Newsletter"))
    set_message(world, late, connection_id=world.message(primary).connection_id, routed_version=1)
    assert not replan.catch_up(world.db)
    assert world.message(late).connection_id == second


def test_a_mail_stays_with_the_backup_that_stands_in_while_its_plan_is_the_same(
    world: World, site: int
) -> None:
    queue_id = world.accept(site)
    first = world.message(queue_id).connection_id
    backup = another_connection(world, site)
    set_chain(world, site, backup)
    detour = {"refused": [], "passed": [first], "why": "transient"}
    set_message(world, queue_id, connection_id=backup, lane_id=world.lane_of(backup), detour=detour)
    assert changed(world, site) == Replanned()
    assert world.message(queue_id).detour == detour
    set_chain(world, site)
    assert changed(world, site).moved == 1
    row = world.message(queue_id)
    assert (row.connection_id, row.detour) == (first, None)


def test_a_connection_that_refused_a_mail_for_good_does_not_get_it_again(
    world: World, site: int
) -> None:
    queue_id = world.accept(site)
    first = world.message(queue_id).connection_id
    backup, third = another_connection(world, site), another_connection(world, site)
    set_chain(world, site, backup, third)
    detour = {"refused": [first], "passed": [], "why": "permanent"}
    set_message(world, queue_id, connection_id=backup, lane_id=world.lane_of(backup), detour=detour)
    set_chain(world, site, third)
    assert changed(world, site).moved == 1
    row = world.message(queue_id)
    assert (row.connection_id, row.planned_id) == (third, first)
    assert row.detour is not None
    assert row.detour["refused"] == [first]


def test_a_rule_counts_as_soon_as_its_connection_can_send(world: World, site: int) -> None:
    second = another_connection(world, site)
    lane = world.lane_of(second)
    with world.db.write() as session:
        session.get_one(Connection, second).lane_id = None
    a_rule(world, site, ORDERS, connection=second)
    queue_id = world.accept(site)
    assert world.message(queue_id).why == {"code": "primary"}
    with world.db.write() as session:
        key = session.execute(sa.text("SELECT key FROM lane WHERE id = :id"), {"id": lane})
        replan.connection_saved(
            session,
            session.get_one(Connection, second),
            lane_key=key.scalar_one(),
            limits=None,
            now=world.now,
        )
    assert not replan.catch_up(world.db)
    assert world.message(queue_id).connection_id == second
    with world.db.write() as session:
        replan.connection_unlinked(session, session.get_one(Connection, second))
    replan.catch_up(world.db)
    assert world.message(queue_id).why == {"code": "primary"}


def test_while_nobody_is_planned_a_backup_carries_on(world: World, site: int) -> None:
    queue_id = world.accept(site)
    first = world.message(queue_id).connection_id or 0
    backup = another_connection(world, site)
    set_chain(world, site, backup)
    detour = {"refused": [], "passed": [], "why": "unlinked"}
    with world.db.write() as session:
        replan.connection_unlinked(session, session.get_one(Connection, first))
    assert changed(world, site) == Replanned()
    row = world.message(queue_id)
    assert (row.connection_id, row.planned_id, row.lane_id) == (first, first, None)
    lane = world.lane_of(backup)
    set_message(world, queue_id, connection_id=backup, lane_id=lane, detour=detour)
    assert changed(world, site) == Replanned()
    row = world.message(queue_id)
    assert (row.connection_id, row.planned_id, row.lane_id) == (backup, first, lane)
    assert row.detour == detour
    set_chain(world, site)
    changed(world, site)
    row = world.message(queue_id)
    assert (row.connection_id, row.lane_id, row.detour) == (first, None, None)


# ---- a connection is deleted ----


def test_mail_of_a_deleted_connection_leaves_by_another(world: World, site: int) -> None:
    second = another_connection(world, site)
    a_rule(world, site, ORDERS, connection=second)
    routed = world.accept(site)
    pinned = Pinned(connection_id=second, lane_id=world.lane_of(second))
    asked = hand_in(world, site, source=Source.API, pinned=pinned).queue_id
    test = hand_in(world, site, source=Source.TEST, pinned=pinned).queue_id
    assert remove(world, second) == Replanned(moved=2, left=0, by=(("Other SMTP", 2),))
    for queue_id in (routed, asked):
        row = world.message(queue_id)
        assert (row.why, row.state) == ({"code": "primary"}, State.QUEUED)
        assert row.lane_id == world.lane_of(row.connection_id or 0)
    row = world.message(test)
    assert (row.state, row.due_at) == (State.FAILED, None)
    assert "has been removed" in row.last_words
    assert set(world.recipients(test).values()) == {State.FAILED}
    assert world.gaps() == 0


def test_mail_of_the_only_connection_waits_for_the_next(world: World, site: int) -> None:
    queue_id = world.accept(site)
    remove(world, world.message(queue_id).connection_id or 0)
    row = world.message(queue_id)
    assert (row.connection_id, row.lane_id, row.why["code"]) == (None, None, "no-connection")
    new = world.a_connection(site)
    assert changed(world, site).moved == 1
    assert world.message(queue_id).connection_id == new


@pytest.mark.parametrize("choice", list(AfterUnclear))
def test_unclear_mail_of_a_deleted_connection_goes_as_its_site_wishes(
    world: World, site: int, choice: AfterUnclear
) -> None:
    change_site(world, site, after_unclear=choice)
    second = another_connection(world, site)
    a_rule(world, site, ORDERS, connection=second)
    queue_id = world.accept(site)
    world.finish(world.claim(world.lane_of(second))[0], LOST)
    if choice is AfterUnclear.NEVER_TWICE:  # as if the remote could still be asked
        set_message(world, queue_id, due_at=world.now, finished_at=None)
        with world.db.write() as session:
            session.execute(sa.text("DELETE FROM tally WHERE outcome = 'uncertain'"))
            session.execute(sa.update(Recipient).values(is_due=True))
    remove(world, second)
    row = world.message(queue_id)
    assert row.state == State.UNCERTAIN
    if choice is AfterUnclear.NEVER_TWICE:
        assert (row.due_at, row.finished_at) == (None, world.now)
    else:
        world.later(hours=1)
        (again,) = world.claim(row.lane_id or 0)
        assert (again.is_look, again.connection_id) == (False, row.connection_id)
        assert row.connection_id != second
    assert world.gaps() == 0


def test_what_was_on_the_network_when_its_connection_went_is_found(world: World, site: int) -> None:
    second = another_connection(world, site)
    pinned = Pinned(connection_id=second, lane_id=world.lane_of(second))
    queue_id = hand_in(world, site, source=Source.API, pinned=pinned).queue_id
    (claim,) = world.claim(world.lane_of(second))
    assert remove(world, second) == Replanned()
    world.finish(claim, LATER)
    with world.db.write_connection() as connection:
        found = orphans.find_orphans(connection)
        assert orphans.adopt(connection, site, found[site], world.now).total() == 1
        assert orphans.find_orphans(connection) == {}
    assert world.message(queue_id).why == {"code": "primary"}


# ---- modes, and held mail ----


def test_do_not_send_blocks_what_waits_but_tests(world: World, site: int) -> None:
    queue_id = world.accept(site)
    row = world.message(queue_id)
    pinned = Pinned(connection_id=row.connection_id or 0, lane_id=row.lane_id)
    test = hand_in(world, site, source=Source.TEST, pinned=pinned).queue_id
    assert set_mode(world, site, Mode.DO_NOT_SEND) == 1
    assert world.message(queue_id).state == State.BLOCKED
    assert world.message(test).state == State.QUEUED
    with world.db.write_connection() as connection:
        assert modes.sites_to_stop(connection) == []
    assert world.gaps() == 0


def test_hold_keeps_what_waits_until_it_is_released(world: World, site: int) -> None:
    tried = world.accept(site)
    lane = world.message(tried).lane_id or 0
    world.finish(world.claim(lane)[0], LATER)
    fresh = world.accept(site)
    assert set_mode(world, site, Mode.HOLD) == 2
    assert world.claim(lane, 5) == []
    assert (world.message(tried).state, world.message(tried).due_at) == (State.HELD, None)
    assert set(world.recipients(tried).values()) == {State.HELD}
    assert set_mode(world, site, Mode.LIVE) == 0
    assert world.message(tried).state == State.HELD
    assert world.gaps() == 0
    world.later(hours=100)
    assert release(world, fresh, tried) == 2
    row = world.message(tried)
    assert (row.state, row.due_at) == (State.DEFERRED, world.now)
    assert world.message(fresh).state == State.QUEUED
    assert row.expires_at == world.now + timedelta(hours=72)
    assert row.why["held"] == {"code": "mode-hold"}
    assert (row.why["code"], row.why["released"]) == ("primary", world.now.isoformat())
    for claim in world.claim(lane, 2):
        world.finish(claim)
    assert world.message(tried).state == State.SENT
    assert release(world, tried) == 0
    assert world.gaps() == 0


def test_released_mail_is_planned_anew_and_not_held_again(world: World, site: int) -> None:
    set_mode(world, site, Mode.HOLD)
    queue_id = world.accept(site)
    pinned = Pinned(connection_id=world.message(queue_id).connection_id or 0, lane_id=None)
    asked = hand_in(world, site, source=Source.API, pinned=pinned).queue_id
    second = another_connection(world, site)
    a_rule(world, site, ORDERS, connection=second)
    changed(world, site)
    assert release(world, queue_id, asked) == 2
    assert world.message(queue_id).connection_id == second
    assert world.message(asked).why["code"] == "asked"
    assert world.message(asked).connection_id == pinned.connection_id
    with world.db.write_connection() as connection:
        assert modes.sites_to_stop(connection) == []
    assert set_mode(world, site, Mode.HOLD) == 0
    with world.db.write() as session:
        session.execute(sa.delete(Rule))
    assert changed(world, site).moved == 1
    why = world.message(queue_id).why
    assert (why["code"], why["released"]) == ("primary", world.now.isoformat())
    assert set_mode(world, site, Mode.HOLD) == 0
    assert world.gaps() == 0


@pytest.mark.parametrize(("mode", "to"), [(Mode.DO_NOT_SEND, ""), (Mode.REDIRECT_TO, "")])
def test_where_nothing_may_leave_nothing_is_released(
    world: World, site: int, mode: Mode, to: str
) -> None:
    set_mode(world, site, Mode.HOLD)
    queue_id = world.accept(site)
    set_mode(world, site, mode, to)
    assert release(world, queue_id) == 0
    assert world.message(queue_id).state == State.HELD


def test_redirect_gives_what_waits_one_recipient(world: World, site: int) -> None:
    queue_id = world.accept(site, "a@x.example", "b@x.example", "c@x.example")
    (claim,) = world.claim(world.message(queue_id).lane_id or 0)
    refused = {1: TransientError("450", code="450"), 2: TransientError("450", code="450")}
    world.finish(claim, Result(code="250", refused=refused))
    held = world.accept(site, "d@x.example")
    set_message(world, held, state=State.HELD, due_at=None)
    assert set_mode(world, site, Mode.REDIRECT_TO, "me@staging.example") == 1
    assert world.recipients(queue_id) == {
        "a@x.example": State.SENT,
        "me@staging.example": State.DEFERRED,
    }
    row = world.message(queue_id)
    assert row.received["redirected_from"] == ["b@x.example", "c@x.example"]
    assert (row.recipient_count, row.to_line) == (2, "a@x.example, me@staging.example")
    assert release(world, held) == 1
    assert list(world.recipients(held)) == ["me@staging.example"]
    assert set_mode(world, site, Mode.REDIRECT_TO, "you@staging.example") == 2
    assert list(world.recipients(held)) == ["you@staging.example"]
    assert world.message(held).received["redirected_from"] == ["d@x.example"]
    with world.db.write_connection() as connection:
        assert modes.sites_to_stop(connection) == []
    assert world.gaps() == 0


def test_redirected_mail_that_may_have_arrived_is_left_as_it_is(world: World, site: int) -> None:
    queue_id = world.accept(site)
    world.finish(world.claim(world.message(queue_id).lane_id or 0)[0], LOST)
    set_mode(world, site, Mode.REDIRECT_TO, "me@staging.example")
    row = world.message(queue_id)
    assert (row.state, row.due_at) == (State.UNCERTAIN, None)
    assert list(world.recipients(queue_id)) == ["kunde@example.org"]
    assert world.gaps() == 0


@pytest.mark.parametrize("mode", [Mode.DO_NOT_SEND, Mode.HOLD, Mode.REDIRECT_TO])
def test_what_was_being_sent_when_the_mode_changed_is_found(
    world: World, site: int, mode: Mode
) -> None:
    world.accept(site)
    (claim,) = world.claim(world.message(claim_of(world)).lane_id or 0)
    set_mode(world, site, mode, "me@staging.example")
    world.finish(claim, LATER)
    with world.db.write_connection() as connection:
        assert modes.sites_to_stop(connection) == [site]
        assert modes.apply_mode(connection, site, world.now) == 1
        assert modes.sites_to_stop(connection) == []
    assert world.gaps() == 0


def claim_of(world: World) -> str:
    """The queue id of the only mail."""
    with world.db.read() as session:
        return session.scalars(sa.select(Message.queue_id)).one()
