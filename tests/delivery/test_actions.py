"""What may be done to one mail, whatever state it is in, and what the worker does meanwhile."""

import random
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.routing.rules import change_site
from tests.world import World, a_world
from webapp.delivery import actions, modes
from webapp.delivery.actions import NotPossible, Refusal
from webapp.delivery.decide import Result
from webapp.delivery.models import Content, Message, Recipient, Source, State
from webapp.ingress.accept import prepare, store
from webapp.mailers.errors import Cause, PermanentError, TransientError, UncertainError
from webapp.mime.facts import facts_of
from webapp.sites.models import Mode

Action = Callable[..., None]


@pytest.fixture
def world(db_url: str) -> Iterator[World]:
    made = a_world(db_url)
    yield made
    made.db.close()


@pytest.fixture
def lane(world: World) -> int:
    return world.lane_of(world.a_connection(world.a_site()))


def act(world: World, action: Action, queue_id: str) -> Refusal | None:
    """Do it in a unit of work of its own; why not, or None."""
    key = world.message(queue_id).id
    try:
        with world.db.write_connection() as connection:
            action(connection, key, world.now)
    except NotPossible as error:
        return error.refusal
    return None


def site_of(world: World) -> int:
    return 1


PUT_OFF = Result(error=TransientError("later", code="451", cause_code=Cause.CONNECT))
UNCLEAR = Result(error=UncertainError("lost", code="", cause_code=Cause.CONNECT))
REFUSED = Result(error=PermanentError("no", code="550", cause_code=Cause.RECIPIENT_REFUSED))


def tried(world: World, lane: int, queue_id: str, result: Result | None = None) -> None:
    (claim,) = world.claim(lane)
    assert claim.queue_id == queue_id
    world.finish(claim, result)


# ---- cancel ----


def test_a_waiting_mail_is_cancelled_and_never_sent(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world), "a@x.example", "b@x.example")
    assert act(world, actions.cancel, queue_id) is None
    row = world.message(queue_id)
    assert (row.state, row.due_at, row.finished_at) == (State.CANCELLED, None, world.now)
    assert set(world.recipients(queue_id).values()) == {State.CANCELLED}
    assert world.claim(lane) == []
    assert act(world, actions.cancel, queue_id) is Refusal.OVER
    assert world.gaps() == 0


def test_a_held_mail_can_be_cancelled(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world))
    with world.db.write_connection() as connection:
        connection.execute(sa.update(Message).values(state=State.HELD, due_at=None))
    assert act(world, actions.cancel, queue_id) is None
    assert world.gaps() == 0


def test_what_was_sent_to_some_stays_sent_for_them(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world), "a@x.example", "b@x.example")
    later = TransientError("later", code="450", cause_code=Cause.RECIPIENT_REFUSED)
    tried(world, lane, queue_id, Result(code="250", refused={1: later}))
    assert act(world, actions.cancel, queue_id) is None
    assert world.recipients(queue_id) == {
        "a@x.example": State.SENT,
        "b@x.example": State.CANCELLED,
    }
    assert world.gaps() == 0


def test_a_mail_that_is_being_sent_is_not_cancelled(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world))
    (claim,) = world.claim(lane)
    assert act(world, actions.cancel, queue_id) is Refusal.SENDING
    assert act(world, actions.retry, queue_id) is Refusal.SENDING
    world.finish(claim)
    assert act(world, actions.cancel, queue_id) is Refusal.OVER
    assert act(world, actions.retry, queue_id) is Refusal.OVER
    assert world.gaps() == 0


# ---- try now ----


def test_a_mail_that_was_put_off_is_tried_now(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world))
    tried(world, lane, queue_id, PUT_OFF)
    assert world.claim(lane) == []
    assert act(world, actions.retry, queue_id) is None
    tried(world, lane, queue_id)
    assert world.message(queue_id).state == State.SENT
    assert world.gaps() == 0


def test_a_mail_whose_turn_will_come_is_left_alone(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world))
    assert act(world, actions.retry, queue_id) is Refusal.NOT_PUT_OFF


def test_a_held_mail_is_released_once(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world))
    assert act(world, actions.release, queue_id) is Refusal.NOT_HELD
    change_site(world, site_of(world), mode=Mode.HOLD)
    held = [world.accept(site_of(world)) for _ in range(3)]
    assert act(world, actions.release, held[0]) is None
    assert act(world, actions.release, held[0]) is Refusal.NOT_HELD
    keys = [world.message(each).id for each in held]
    with world.db.write_connection() as connection:
        assert actions.on_each(connection, actions.release, keys, world.now) == 2
    assert len(world.claim(lane, 9)) == 4
    change_site(world, site_of(world), mode=Mode.DO_NOT_SEND)
    set_held = world.message(held[0]).id
    with world.db.write_connection() as connection:
        connection.execute(
            sa.update(Message).where(Message.id == set_held).values(state=State.HELD)
        )
    assert act(world, actions.release, held[0]) is Refusal.SILENT


def test_a_mail_tried_again_is_neither_held_nor_sent_to_whom_it_was_meant_for(
    world: World, lane: int
) -> None:
    first = world.accept(site_of(world))
    give_up(world, lane, first)
    second = world.accept(site_of(world))
    give_up(world, lane, second)
    change_site(world, site_of(world), mode=Mode.HOLD)
    assert act(world, actions.retry, first) is None
    with world.db.read() as session:
        assert modes.sites_to_stop(session.connection()) == []
    change_site(world, site_of(world), mode=Mode.REDIRECT_TO, redirect_to="me@x.example")
    assert act(world, actions.retry, second) is None
    assert list(world.recipients(second)) == ["me@x.example"]
    assert world.gaps() == 0


def give_up(world: World, lane: int, queue_id: str, result: Result = PUT_OFF) -> None:
    for _ in range(200):
        if world.message(queue_id).state == State.FAILED:
            return
        tried(world, lane, queue_id, result)
        world.later(hours=2)
    raise AssertionError("it never gave up")


def test_a_mail_that_was_given_up_is_tried_again_for_as_long(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world))
    give_up(world, lane, queue_id)
    assert act(world, actions.retry, queue_id) is None
    row = world.message(queue_id)
    assert (row.state, row.due_at, row.finished_at) == (State.DEFERRED, world.now, None)
    assert row.expires_at == world.now + timedelta(hours=72)
    assert world.gaps() == 0
    tried(world, lane, queue_id)
    assert world.message(queue_id).state == State.SENT
    assert world.gaps() == 0


def test_a_final_no_is_final(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world))
    tried(world, lane, queue_id, REFUSED)
    assert act(world, actions.retry, queue_id) is Refusal.OVER
    assert world.gaps() == 0


def test_only_those_are_tried_again_who_were_put_off(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world), "a@x.example", "b@x.example", "c@x.example")
    no = PermanentError("no", code="550", cause_code=Cause.RECIPIENT_REFUSED)
    later = TransientError("later", code="451", cause_code=Cause.RECIPIENT_REFUSED)
    tried(world, lane, queue_id, Result(code="250", refused={1: no, 2: later}))
    world.later(hours=2)
    give_up(world, lane, queue_id)
    assert act(world, actions.retry, queue_id) is None
    assert world.recipients(queue_id) == {
        "a@x.example": State.SENT,
        "b@x.example": State.FAILED,
        "c@x.example": State.DEFERRED,
    }
    (claim,) = world.claim(lane)
    assert [address for _, address in claim.recipients] == ["c@x.example"]


def test_an_unclear_mail_is_sent_again_and_says_so(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world))
    for _ in range(2):
        tried(world, lane, queue_id, UNCLEAR)
        world.later(hours=1)
    row = world.message(queue_id)
    assert (row.state, row.due_at) == (State.UNCERTAIN, None)
    with world.db.write_connection() as connection:
        connection.execute(sa.update(Message).values(maybe_twice=False))
    assert act(world, actions.retry, queue_id) is None
    tried(world, lane, queue_id)
    row = world.message(queue_id)
    assert (row.state, row.maybe_twice) == (State.SENT, True)
    assert world.gaps() == 0


def test_two_who_reopen_a_mail_reopen_it_once(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world))
    give_up(world, lane, queue_id)
    assert act(world, actions.retry, queue_id) is None
    act(world, actions.retry, queue_id)
    assert world.gaps() == 0


# ---- once more ----


def test_a_resend_is_a_mail_of_its_own(world: World, lane: int) -> None:
    first = world.accept(site_of(world), "a@x.example", "b@x.example")
    waiting = world.accept(site_of(world))
    tried(world, lane, first)
    for to, expected in ((), ("a@x.example", "b@x.example")), (("c@x.example",), ("c@x.example",)):
        with world.db.read() as session:
            row = session.scalars(sa.select(Message).where(Message.queue_id == first)).one()
            made = actions.resent(session, row, to=to, credential_id=None, received={})
        assert (made.source, tuple(made.recipients)) == (Source.RESEND, expected)
        assert (facts_of(made.raw).message_id, facts_of(made.raw).subject) == ("", "Order 20431")
        with world.db.write_driver() as driver:
            (again,) = store(driver, [prepare(made)], world.now)
        (claim,) = world.claim(lane)
        assert claim.queue_id == again.queue_id  # before what has waited longer
        world.finish(claim)
    assert world.message(waiting).state == State.QUEUED
    assert world.gaps() == 0


def test_without_its_content_a_mail_is_not_resent(world: World, lane: int) -> None:
    queue_id = world.accept(site_of(world))
    with world.db.write_connection() as connection:
        connection.execute(sa.delete(Content))
    with world.db.read() as session:
        row = session.scalars(sa.select(Message).where(Message.queue_id == queue_id)).one()
        with pytest.raises(NotPossible) as caught:
            actions.resent(session, row, credential_id=None, received={})
    assert caught.value.refusal is Refusal.NO_CONTENT


# ---- both at the same moment ----


def test_the_worker_and_a_person_never_both_win(world: World, lane: int) -> None:
    ids = [world.accept(site_of(world)) for _ in range(40)]
    keys = [world.message(queue_id).id for queue_id in ids]
    random.Random(7).shuffle(keys)
    cancelled: list[int] = []

    def cancel_all() -> None:
        for key in keys:
            try:
                with world.db.write_connection() as connection:
                    actions.cancel(connection, key, world.now)
                cancelled.append(key)
            except NotPossible:
                pass

    person = threading.Thread(target=cancel_all)
    person.start()
    claimed = []
    for _ in range(40):
        claimed += world.claim(lane)
    person.join()
    for claim in claimed:
        world.finish(claim)
    sent = {claim.message_id for claim in claimed}
    assert not sent & set(cancelled)
    assert sent | set(cancelled) == set(keys)
    assert world.gaps() == 0


STEPS = st.lists(
    st.sampled_from(["cancel", "retry", "sent", "put off", "refused", "unclear", "partly", "wait"]),
    max_size=12,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_ledger_balances_whatever_is_done(world: World, steps: list[str]) -> None:
    site = world.a_site()
    lane = world.lane_of(world.a_connection(site))
    queue_id = world.accept(site, "a@x.example", "b@x.example")
    later = TransientError("later", code="450", cause_code=Cause.RECIPIENT_REFUSED)
    results = {
        "sent": Result(code="250"),
        "put off": PUT_OFF,
        "refused": REFUSED,
        "unclear": UNCLEAR,
        "partly": Result(code="250", refused={1: later}),
    }
    for step in steps:
        if step == "wait":
            world.later(hours=20)
        elif step in results:
            for claim in world.claim(lane):
                refused = {
                    k: v for k, v in results[step].refused.items() if k in dict(claim.recipients)
                }
                world.finish(
                    claim,
                    Result(code=results[step].code, error=results[step].error, refused=refused),
                )
        else:
            act(world, getattr(actions, step), queue_id)
        row = world.message(queue_id)
        with world.db.read() as session:
            due = session.scalar(
                sa.select(sa.func.count()).where(
                    Recipient.message_id == row.id, Recipient.is_due.is_(sa.true())
                )
            )
        assert bool(due) == (row.due_at is not None)
        assert (row.finished_at is None) == (row.due_at is not None)
        assert world.gaps() == 0
