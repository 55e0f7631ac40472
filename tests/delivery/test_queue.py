"""The ledger's moves, on both databases."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.world import World, a_world
from webapp.connections.models import Connection
from webapp.delivery import finish, orphans, queue, replan, tally, upkeep
from webapp.delivery.decide import Finished, Result
from webapp.delivery.models import Lane, Message, Outcome, State, Tally, is_in
from webapp.delivery.queue import LaneLost
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    Misconfigured,
    NeedsReauthorisation,
    PermanentError,
    TransientError,
    UncertainError,
)
from webapp.sites.models import AfterUnclear, Mode, Site


def a_busy_site(world: World, **values: object) -> tuple[int, int]:
    site = world.a_site(**values)
    return site, world.lane_of(world.a_connection(site))


def test_a_mail_is_accepted_claimed_and_sent(world: World) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site)
    assert world.message(queue_id).state == State.QUEUED
    (claim,) = world.claim(lane)
    assert world.message(queue_id).state == State.SENDING
    assert world.attempts(queue_id)[0].outcome == Outcome.STARTED
    world.later(seconds=1)
    world.finish(claim, Result(code="250", words="queued as 77", remote_id="77"))
    message = world.message(queue_id)
    assert (message.state, message.due_at, message.finished_at) == (State.SENT, None, world.now)
    assert world.recipients(queue_id) == {"kunde@example.org": State.SENT}
    (attempt,) = world.attempts(queue_id)
    assert (attempt.outcome, attempt.remote_id, attempt.words) == ("sent", "77", "queued as 77")
    assert world.gaps() == 0


def test_a_mail_is_claimed_only_once(world: World) -> None:
    site, lane = a_busy_site(world)
    world.accept_many(site, [("a@example.org",)] * 3)
    first = world.claim(lane, 2)
    second = world.claim(lane, 2)
    assert len({claim.message_id for claim in first + second}) == 3
    assert world.claim(lane, 2) == []


def test_two_threads_never_get_the_same_mail(world: World) -> None:
    site, lane = a_busy_site(world)
    world.accept_many(site, [("a@example.org",)] * 60)
    got: list[int] = []

    def work() -> None:
        while claims := world.claim(lane, 4):
            got.extend(claim.message_id for claim in claims)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 60


def test_a_deferred_mail_waits_longer_each_time_and_fails_after_three_days(world: World) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site)
    waits = []
    while world.message(queue_id).state in {State.QUEUED, State.DEFERRED}:
        (claim,) = world.claim(lane)
        world.finish(claim, Result(error=TransientError("busy", code="451 4.3.0")))
        due = world.message(queue_id).due_at
        if due is not None:
            waits.append((due - world.now).total_seconds() / 60)
            world.now = due
    message = world.message(queue_id)
    assert message.state == State.FAILED
    assert (message.last_code, message.last_words) == ("451 4.3.0", "busy")
    nominal = [1, 2, 5, 10, 20, 40, 60]
    assert [round(waits[i] / nominal[i]) for i in range(7)] == [1] * 7
    assert timedelta(hours=70) < message.finished_at - message.accepted_at <= timedelta(hours=72)
    assert world.gaps() == 0


def test_a_permanent_failure_is_final_and_counted(world: World) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site)
    world.finish(world.claim(lane)[0], Result(error=PermanentError("no", code="550 5.1.1")))
    assert world.message(queue_id).state == State.FAILED
    assert world.claim(lane) == []
    assert world.gaps() == 0


def test_a_lost_answer_is_sent_again_once_and_marked(world: World) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site)
    lost = Result(error=UncertainError("connection lost"))
    world.finish(world.claim(lane)[0], lost)
    message = world.message(queue_id)
    assert (message.state, message.maybe_twice) == (State.UNCERTAIN, False)
    assert message.due_at is not None
    world.now = message.due_at
    world.finish(world.claim(lane)[0], lost)
    message = world.message(queue_id)
    assert (message.state, message.due_at) == (State.UNCERTAIN, None)
    assert message.maybe_twice
    assert world.gaps() == 0


def test_a_lost_answer_is_left_alone_where_nothing_may_arrive_twice(world: World) -> None:
    site, lane = a_busy_site(world, after_unclear=AfterUnclear.NEVER_TWICE)
    queue_id = world.accept(site)
    world.finish(world.claim(lane)[0], Result(error=UncertainError("connection lost")))
    message = world.message(queue_id)
    assert (message.state, message.due_at, message.maybe_twice) == (State.UNCERTAIN, None, False)
    assert world.gaps() == 0


def test_what_a_dead_owner_left_is_unclear_and_goes_out_once_more(world: World) -> None:
    site, lane = a_busy_site(world)
    sending, waiting = world.accept(site), world.accept(site)
    world.claim(lane)
    world.later(seconds=5)
    world.take_over()
    message = world.message(sending)
    assert (message.state, message.due_at) == (State.UNCERTAIN, world.now)
    assert world.attempts(sending)[0].outcome == Outcome.UNCERTAIN
    assert world.message(waiting).state == State.QUEUED
    for claim in world.claim(lane, 5):
        world.finish(claim)
    assert world.message(sending).state == world.message(waiting).state == State.SENT
    assert [world.message(q).maybe_twice for q in (sending, waiting)] == [True, False]
    assert world.gaps() == 0


def test_a_worker_that_was_taken_over_cannot_finish(world: World) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site)
    (claim,) = world.claim(lane)
    old = world.token
    world.take_over()
    world.token = old
    with pytest.raises(LaneLost):
        world.finish(claim)
    assert world.message(queue_id).state == State.UNCERTAIN


@pytest.mark.parametrize("error", [NeedsReauthorisation("535 no"), Misconfigured("wrong secret")])
def test_a_refused_login_keeps_the_mail_due(world: World, error: DeliveryError) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site)
    world.finish(world.claim(lane)[0], Result(error=error))
    message = world.message(queue_id)
    assert (message.state, message.due_at, message.failures) == (State.DEFERRED, world.now, 0)


def test_being_asked_to_slow_down_counts_as_no_failure(world: World) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site)
    slow = TransientError("slow", cause_code=Cause.RATE, retry_after=timedelta(seconds=30))
    world.finish(world.claim(lane)[0], Result(error=slow))
    message = world.message(queue_id)
    assert message.failures == 0
    assert message.due_at == world.now + timedelta(seconds=30)


def test_a_retry_goes_to_the_unfinished_recipients_only(world: World) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site, "a@example.org", "b@example.org", "c@example.org")
    (claim,) = world.claim(lane)
    refused: dict[int, DeliveryError] = {
        1: TransientError("later", code="450"),
        2: PermanentError("never", code="550"),
    }
    world.finish(claim, Result(refused=refused, code="250", words="ok"))
    assert world.message(queue_id).state == State.DEFERRED
    assert list(world.recipients(queue_id).values()) == ["sent", "deferred", "failed"]
    assert world.attempts(queue_id)[0].outcome == Outcome.PARTLY
    world.now = world.message(queue_id).due_at or world.now
    (again,) = world.claim(lane)
    assert again.recipients == ((1, "b@example.org"),)
    assert dict(again.others) == {"sent": 1, "failed": 1}
    world.finish(again)
    assert world.message(queue_id).state == State.FAILED
    assert world.message(queue_id).last_code == "550"
    assert list(world.recipients(queue_id).values()) == ["sent", "sent", "failed"]
    assert world.gaps() == 0


def test_an_unclear_recipient_that_is_not_due_is_never_tried_again(world: World) -> None:
    site, lane = a_busy_site(world, after_unclear=AfterUnclear.NEVER_TWICE)
    queue_id = world.accept(site, "a@example.org", "b@example.org")
    (claim,) = world.claim(lane)
    lost = UncertainError("lost")
    world.finish(claim, Result(error=lost, refused={1: TransientError("later")}))
    assert world.message(queue_id).state == State.DEFERRED
    world.now = world.message(queue_id).due_at or world.now
    (again,) = world.claim(lane)
    assert again.recipients == ((1, "b@example.org"),)
    world.finish(again)
    assert world.message(queue_id).state == State.UNCERTAIN
    assert world.gaps() == 0


def test_sites_of_one_lane_take_turns(world: World) -> None:
    sites = [world.a_site() for _ in range(3)]
    lane = world.lane_of(world.a_connection(*sites))
    for site, count in zip(sites, (20, 2, 2), strict=True):
        world.accept_many(site, [("a@example.org",)] * count)
    first = [claim.site_id for claim in world.claim(lane, 6)]
    assert sorted(first) == sorted(sites * 2)


def test_free_slots_go_to_whoever_has_mail(world: World) -> None:
    sites = [world.a_site() for _ in range(3)]
    lane = world.lane_of(world.a_connection(*sites))
    world.accept_many(sites[1], [("a@example.org",)] * 5)
    world.accept(sites[2])
    assert len(world.claim(lane, 6)) == 6


def test_the_next_turn_begins_after_the_site_served_last(world: World) -> None:
    sites = [world.a_site() for _ in range(3)]
    lane = world.lane_of(world.a_connection(*sites))
    for site in sites:
        world.accept_many(site, [("a@example.org",)] * 3)
    assert [claim.site_id for claim in world.claim(lane, 1, after_site=sites[0])] == [sites[1]]
    assert [claim.site_id for claim in world.claim(lane, 1, after_site=sites[2])] == [sites[0]]


def test_only_lanes_with_due_mail_that_are_not_blocked_are_found(world: World) -> None:
    site, lane = a_busy_site(world)
    other, blocked = a_busy_site(world)
    a_busy_site(world)
    world.accept(site)
    world.accept(other)
    with world.db.write_connection() as connection:
        connection.execute(
            sa.text("UPDATE lane SET is_blocked = true WHERE id = :id"), {"id": blocked}
        )
        assert queue.due_lanes(connection, world.now) == [lane]


def test_mail_of_a_site_that_must_not_send_is_blocked_and_counted(world: World) -> None:
    site, lane = a_busy_site(world, mode=Mode.DO_NOT_SEND)
    queue_id = world.accept(site)
    assert world.message(queue_id).state == State.BLOCKED
    assert world.claim(lane) == []
    assert world.gaps() == 0


def adopted(world: World) -> int:
    """Find mail whose connection is gone, and let it go another way; how many moved."""
    with world.db.write_connection() as connection:
        found = orphans.find_orphans(connection)
        moved = [orphans.adopt(connection, site, ids, world.now) for site, ids in found.items()]
    return sum(each.total() for each in moved)


def test_mail_without_a_connection_waits_until_there_is_one(world: World) -> None:
    site = world.a_site()
    queue_id = world.accept(site)
    assert world.message(queue_id).lane_id is None
    connection_id = world.a_connection(site)
    assert adopted(world) == 1
    assert world.message(queue_id).lane_id == world.lane_of(connection_id)
    assert adopted(world) == 0


def test_mail_that_missed_a_change_of_lane_is_put_in_place(world: World) -> None:
    """The worker dies, or an accept commits, while a page moves the connection."""
    site, old_lane = a_busy_site(world)
    lost, late = world.accept(site), world.accept(site)
    world.claim(old_lane)
    with world.db.write() as session:
        lane = Lane(key="smtp:new@host:25", windows={})
        session.add(lane)
        session.flush()
        session.execute(sa.update(Connection).values(lane_id=lane.id))
        new_lane = lane.id
    world.take_over()
    assert world.message(lost).lane_id == new_lane
    assert world.message(late).lane_id == old_lane
    with world.db.write_connection() as connection:
        assert upkeep.put_in_place(connection, upkeep.find_misplaced(connection)) == 1
        assert upkeep.find_misplaced(connection) == []
    assert world.message(late).lane_id == new_lane


def test_mail_of_a_former_primary_connection_follows_the_site(world: World) -> None:
    site, lane = a_busy_site(world)
    in_flight, unclear = world.accept(site), world.accept(site)
    first, second = world.claim(lane, 2)
    new = world.a_connection(site)
    with world.db.write() as session:
        assert replan.routing_changed(session, session.get_one(Site, site), world.now).moved == 0
    world.finish(first, Result(error=NeedsReauthorisation("535 no")))
    world.finish(second, Result(error=UncertainError("lost")))
    assert not replan.catch_up(world.db)
    assert world.message(in_flight).connection_id == new
    assert world.message(unclear).connection_id != new


def test_a_connection_that_is_gone_holds_nobody_up(world: World) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site)
    with world.db.write_connection() as connection:
        connection.execute(sa.update(Site).values(primary_connection_id=None))
        connection.execute(sa.delete(Connection))
    assert world.claim(lane, 5) == []
    new = world.a_connection(site)
    assert adopted(world) == 1
    assert world.message(queue_id).connection_id == new


def test_a_recipient_that_may_have_it_already_marks_the_mail(world: World) -> None:
    """One recipient was deferred, and the answer for the other was lost: both go again."""
    site, lane = a_busy_site(world)
    queue_id = world.accept(site, "a@example.org", "b@example.org")
    lost = UncertainError("lost")
    world.finish(world.claim(lane)[0], Result(error=lost, refused={0: TransientError("450")}))
    assert world.message(queue_id).state == State.DEFERRED
    world.later(minutes=5)
    (again,) = world.claim(lane)
    assert len(again.recipients) == 2
    assert world.message(queue_id).maybe_twice


def test_mail_that_stood_for_days_still_gets_its_tries(world: World) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site)
    world.later(days=5)
    world.finish(world.claim(lane)[0], Result(error=TransientError("busy")))
    assert world.message(queue_id).state == State.DEFERRED


def test_sites_whose_mail_is_not_due_hold_nobody_up(world: World) -> None:
    sites = [world.a_site() for _ in range(30)]
    lane = world.lane_of(world.a_connection(*sites))
    for site in sites[:-1]:
        world.accept(site)
        world.finish(world.claim(lane)[0], Result(error=TransientError("busy")))
    queue_id = world.accept(sites[-1])
    (claim,) = world.claim(lane, 1)
    assert claim.queue_id == queue_id


def test_a_claim_takes_nothing_that_was_moved_to_another_lane(world: World) -> None:
    site, lane = a_busy_site(world)
    _, other = a_busy_site(world)
    world.accept(site)
    with world.db.write_connection() as connection:
        found, _ = queue.due_ids(connection, lane, 5, 0, world.now)
        connection.execute(sa.update(Message).values(lane_id=other))
        assert queue.claim(connection, lane, found, {}, world.now) == []


def test_counts_are_the_same_after_folding(world: World) -> None:
    site, _ = a_busy_site(world)
    for _ in range(5):
        world.accept(site)
    with world.db.write_connection() as connection:
        assert tally.fold_tally(connection) == 4
        assert tally.fold_tally(connection) == 0
    with world.db.read() as session:
        rows = session.execute(sa.select(Tally.outcome, Tally.__table__.c.count)).all()
    assert rows == [("accepted", 5)]
    assert world.gaps() == 0


def test_a_claim_that_never_began_goes_back_as_it_was(world: World) -> None:
    site, lane = a_busy_site(world)
    queue_id = world.accept(site)
    world.claim(lane)
    with world.db.write_connection() as connection:
        assert upkeep.reconcile(connection, [], world.now) == 1
    message = world.message(queue_id)
    assert (message.state, message.attempts, message.due_at) == (State.QUEUED, 0, world.now)
    assert world.attempts(queue_id) == []
    assert world.claim(lane)[0].number == 1


def test_a_result_that_is_written_down_already_is_not_written_twice(world: World) -> None:
    site, lane = a_busy_site(world)
    world.accept(site)
    (claim,) = world.claim(lane)
    done = Finished(claim=claim, result=Result(), finished_at=world.now)
    with world.db.write_connection() as connection:
        assert finish.still_open(connection, [done]) == [done]
        finish.finish(connection, [done], {})
        assert finish.still_open(connection, [done]) == []
    assert world.gaps() == 0


@pytest.mark.parametrize("statement", [queue._DUE_LANES, queue._DUE_MESSAGES, queue._DUE_SITES])
def test_the_cost_of_a_claim_follows_the_lanes(tmp_path: Path, statement: sa.TextClause) -> None:
    """SQLite's plan; PostgreSQL plans by statistics, and an empty table tells it nothing."""
    world = a_world(f"sqlite:///{tmp_path / 'plan.db'}")
    values = {"lane": 1, "site": 1, "count": 5, "after": 0, "now": "2026-11-23"}
    plan = explain(world, statement.text, values)
    assert any("ix_message_due" in line for line in plan), plan
    assert not any(line.startswith("SCAN message") for line in plan), plan


@pytest.mark.parametrize("count", [1, 7, 48])
def test_mail_that_is_named_is_claimed_by_its_key(tmp_path: Path, count: int) -> None:
    """However much else waits on its lane."""
    world = a_world(f"sqlite:///{tmp_path / 'plan.db'}")
    site, lane = a_busy_site(world)
    world.accept_many(site, [("a@example.org",)] * 50)
    asked: list[tuple[str, tuple[object, ...]]] = []

    @sa.event.listens_for(world.db.writer, "before_cursor_execute")
    def listen(connection: object, cursor: object, statement: str, values: Any, *_: object) -> None:
        if "message.id IN" in statement and "lane_id" in statement:
            asked.append((statement, values))

    assert len(world.claim(lane, count)) == count
    assert asked
    for statement, values in asked:
        with world.db.reader.connect() as connection:
            found = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
        plan = [row.detail for row in found]
        assert any("message USING INTEGER PRIMARY KEY" in line for line in plan), plan
        assert not any("ix_message_due" in line for line in plan), plan
    world.db.close()


def test_open_mail_is_found_without_reading_what_was_sent(tmp_path: Path) -> None:
    world = a_world(f"sqlite:///{tmp_path / 'plan.db'}")
    query = sa.select(Message.id).where(is_in(State.SENDING))
    (line,) = explain(world, str(query.compile(world.db.reader)), {})
    assert "USING COVERING INDEX ix_message_state (state=?)" in line


def explain(world: World, statement: str, values: dict[str, object]) -> list[str]:
    wanted = {name: value for name, value in values.items() if f":{name}" in statement}
    with world.db.reader.connect() as connection:
        rows = connection.execute(sa.text(f"EXPLAIN QUERY PLAN {statement}"), wanted).all()
    world.db.close()
    return [row.detail for row in rows]


# ---- more recipients than one mail may name ----


def test_many_recipients_go_out_in_several_mails(world: World) -> None:
    site = world.a_site()
    connection = world.a_connection(site)
    lane, most = world.lane_of(connection), {connection: 2}
    everybody = [f"r{number}@example.org" for number in range(5)]
    queue_id = world.accept(site, *everybody)
    named = []
    for left in (3, 1, 0):
        (claim,) = world.claim(lane, most=most)
        assert claim.later == left
        named.append([address for _, address in claim.recipients])
        world.finish(claim)
        assert world.message(queue_id).state == (State.DEFERRED if left else State.SENT)
    assert named == [everybody[:2], everybody[2:4], everybody[4:]]
    assert set(world.recipients(queue_id).values()) == {State.SENT}
    assert not world.message(queue_id).maybe_twice
    assert world.gaps() == 0


def test_what_is_refused_for_some_does_not_keep_the_others_waiting(world: World) -> None:
    site = world.a_site()
    connection = world.a_connection(site)
    lane, most = world.lane_of(connection), {connection: 1}
    queue_id = world.accept(site, "a@example.org", "b@example.org")
    world.finish(world.claim(lane, most=most)[0], Result(error=PermanentError("no")))
    assert world.message(queue_id).due_at == world.now
    world.finish(world.claim(lane, most=most)[0])
    assert world.recipients(queue_id) == {
        "a@example.org": State.FAILED,
        "b@example.org": State.SENT,
    }
    assert world.message(queue_id).state == State.FAILED


def test_a_delay_for_some_is_not_cut_short_by_the_others(world: World) -> None:
    site = world.a_site()
    connection = world.a_connection(site)
    lane, most = world.lane_of(connection), {connection: 1}
    queue_id = world.accept(site, "a@example.org", "b@example.org")
    world.finish(world.claim(lane, most=most)[0], Result(error=TransientError("later")))
    assert world.claim(lane, most=most) == []
    due_at = world.message(queue_id).due_at
    assert due_at is not None
    assert due_at > world.now


@pytest.mark.parametrize("after_unclear", list(AfterUnclear))
def test_a_death_makes_only_those_unclear_that_were_tried(
    world: World, after_unclear: AfterUnclear
) -> None:
    site = world.a_site(after_unclear=after_unclear)
    connection = world.a_connection(site)
    lane, most = world.lane_of(connection), {connection: 1}
    queue_id = world.accept(site, "a@example.org", "b@example.org")
    world.claim(lane, most=most)
    world.take_over()
    assert world.recipients(queue_id) == {
        "a@example.org": State.UNCERTAIN,
        "b@example.org": State.QUEUED,
    }
    twice = after_unclear == AfterUnclear.RATHER_TWICE
    (claim,) = world.claim(lane)
    expected = ["a@example.org", "b@example.org"] if twice else ["b@example.org"]
    assert [address for _, address in claim.recipients] == expected
    world.finish(claim)
    assert world.message(queue_id).maybe_twice == twice
    assert world.message(queue_id).state == (State.SENT if twice else State.UNCERTAIN)
    assert world.gaps() == 0


def test_a_death_leaves_no_mail_on_the_lane_of_a_link_that_was_removed(world: World) -> None:
    site = world.a_site()
    connection = world.a_connection(site)
    lane = world.lane_of(connection)
    queue_id = world.accept(site)
    world.claim(lane)
    with world.db.write() as session:
        replan.connection_unlinked(session, session.get_one(Connection, connection))
    world.take_over()
    message = world.message(queue_id)
    assert (message.lane_id, message.connection_id) == (None, connection)
    assert message.due_at is not None
