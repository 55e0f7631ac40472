"""Backups, site limits and paused lanes in the ledger, on both databases."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.delivery.test_breaker import LATER, NOBODY, SLOWER, Bench
from tests.world import World
from webapp.connections.models import Connection
from webapp.delivery.decide import Claimed, Finished, Result
from webapp.delivery.detours import BATCH, Detours
from webapp.delivery.lanes import UNREACHABLE
from webapp.delivery.models import Attempt, Lane, Message, Source, State
from webapp.mailers.errors import (
    Cause,
    NeedsReauthorisation,
    PermanentError,
    TransientError,
    UncertainError,
)
from webapp.sites.models import AfterUnclear, Site, SitePace

NO = Result(error=PermanentError("no", code="550"), version=1)
WAIT = Result(error=LATER, version=1)
SENT = Result(code="250", words="ok", version=1)
REFUSED = Result(error=NeedsReauthorisation("535 no", code="535"), version=1)
LOST = UncertainError("lost")
LOOKS_LATER = Result(error=LOST, refused={1: NO.error}, version=1, can_settle=True)  # type: ignore[dict-item]


class Chained(Bench):
    """A site with a primary connection and two backups, each on a lane of its own."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, **site: Any) -> None:
        super().__init__(world, monkeypatch)
        self.site = world.a_site(**site)
        self.keys = [world.a_connection(self.site), world.a_connection(), world.a_connection()]
        self.lanes = [world.lane_of(key) for key in self.keys]
        with world.db.write() as session:
            session.get_one(Site, self.site).primary_connection_id = self.keys[0]
        world.a_chain(self.site, *self.keys[1:])
        self.detours = Detours(world.db, clock=lambda: world.now.timestamp())

    def where(self, queue_id: str) -> int:
        """0 at the primary connection, 1 and 2 at the backups."""
        message = self.world.message(queue_id)
        at = self.keys.index(message.connection_id or 0)
        assert message.lane_id == self.lanes[at]
        return at

    def sends(self, *results: Result) -> list[int]:
        """Who was tried, while attempts end so, one after the other."""
        tried = []
        for result in results:
            (claim,) = self.go()
            tried.append(self.keys.index(claim.connection_id))
            self.rest(result, claim)
        return tried

    def rest(self, result: Result, *claims: Claimed) -> None:
        """These attempts end so, and nothing is claimed after them."""
        done = [
            Finished(claim=claim, result=result, finished_at=self.world.now) for claim in claims
        ]
        self.out = [claim for claim in self.out if claim not in claims]
        self.drain.step(done, look=False, claiming=False)

    def block(self, at: int, **values: Any) -> None:
        now = self.world.now
        self.world.set_lane(self.lanes[at], **{"is_blocked": True, "blocked_since": now, **values})

    def open(self, at: int) -> None:
        self.world.set_lane(
            self.lanes[at], is_blocked=False, blocked_until=None, blocked_since=None,
            blocked_kind="", trips=0,
        )  # fmt: skip

    def unreachable(self, at: int, *, minutes: float, pause: float = 5) -> None:
        now = self.world.now
        self.block(
            at, blocked_kind=UNREACHABLE, trips=3,
            blocked_since=now - timedelta(minutes=minutes),
            blocked_until=now + timedelta(minutes=pause),
        )  # fmt: skip


@pytest.fixture
def bench(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chained]:
    made = Chained(world, monkeypatch)
    yield made
    assert world.gaps() == 0


# ---- after an attempt ----


def test_a_refused_mail_goes_down_the_chain_at_once_and_fails_only_at_its_end(
    bench: Chained,
) -> None:
    queue_id = bench.world.accept(bench.site)
    (claim,) = bench.go()
    bench.rest(NO, claim)
    message = bench.world.message(queue_id)
    assert (message.state, message.due_at, message.failures) == ("deferred", bench.world.now, 0)
    assert message.detour == {"refused": [bench.keys[0]], "passed": [], "why": "refused"}
    assert message.planned_id == bench.keys[0]
    assert bench.world.recipients(queue_id) == {"kunde@example.org": "deferred"}
    assert bench.world.attempts(queue_id)[0].details["onward"] == bench.keys[1]
    assert bench.sends(NO, NO) == [1, 2]
    message = bench.world.message(queue_id)
    assert (message.state, message.last_words) == (State.FAILED, "no")
    assert message.detour["refused"] == sorted(bench.keys)
    outcomes = [(one.connection_id, one.outcome) for one in bench.world.attempts(queue_id)]
    assert outcomes == [(key, "permanent") for key in bench.keys]


def test_a_mail_that_is_put_off_goes_to_the_backup_when_it_would_wait_too_long(
    bench: Chained,
) -> None:
    queue_id = bench.world.accept(bench.site)
    tried = 0
    while bench.where(queue_id) == 0:
        assert bench.sends(WAIT) == [0]
        tried += 1
        bench.world.now = max(bench.world.now, bench.world.message(queue_id).due_at)
    assert tried == 4  # after 0, 1, 3 and 8 minutes: the next try would be after 18
    assert bench.world.message(queue_id).detour["passed"] == [bench.keys[0]]
    bench.world.later(minutes=5)
    assert bench.sends(WAIT, WAIT) == [1, 2]
    message = bench.world.message(queue_id)
    assert message.due_at > bench.world.now  # nobody else is left: it waits where it is
    bench.world.now = message.due_at
    assert bench.sends(SENT) == [2]


def test_others_of_its_recipients_have_it_and_are_left_alone(bench: Chained) -> None:
    queue_id = bench.world.accept(bench.site, "a@x.example", "b@x.example", "c@x.example")
    (claim,) = bench.go()
    bench.end(Result(refused={1: NO.error, 2: LATER}, version=1), claim)  # type: ignore[dict-item]
    (claim,) = bench.go()
    assert [address for _, address in claim.recipients] == ["b@x.example", "c@x.example"]
    bench.end(Result(refused={1: LATER}, version=1), claim)
    assert bench.where(queue_id) == 1
    bench.world.later(minutes=20)
    assert bench.sends(NO, NO) == [1, 2]
    assert list(bench.world.recipients(queue_id).values()) == ["sent", "failed", "sent"]


def test_at_the_end_of_the_chain_those_that_were_only_put_off_still_wait(bench: Chained) -> None:
    bench.world.a_chain(bench.site, bench.keys[1])
    queue_id = bench.world.accept(bench.site, "a@x.example", "b@x.example")
    bench.sends(NO, Result(refused={0: NO.error, 1: LATER}, version=1))  # type: ignore[dict-item]
    assert list(bench.world.recipients(queue_id).values()) == ["failed", "deferred"]
    bench.world.later(minutes=2)
    assert bench.sends(SENT) == [1]
    assert bench.world.message(queue_id).state == State.FAILED  # for one of the two


def test_a_refused_login_sends_its_mail_on_and_back_once_it_works(bench: Chained) -> None:
    first, second = bench.world.accept(bench.site), bench.world.accept(bench.site)
    claims = list(bench.go())
    bench.end(REFUSED, *claims)
    assert {claim.connection_id for claim in bench.go()} == {bench.keys[1]}
    bench.end(WAIT, *bench.out)
    assert (bench.where(first), bench.where(second)) == (1, 1)
    assert bench.world.message(first).detour["why"] == "needs-reauthorisation"
    bench.detours.round()
    bench.open(0)
    bench.world.later(seconds=1)
    assert bench.detours.round() == 2
    assert bench.world.message(first).detour is None
    assert bench.world.message(first).due_at <= bench.world.now
    bench.end(SENT, *bench.go())
    assert bench.where(first) == bench.where(second) == 0


@pytest.mark.parametrize("source", [Source.TEST, Source.RESEND, "asked"])
def test_tests_and_what_asked_for_its_connection_use_no_backup(bench: Chained, source: str) -> None:
    queue_id = bench.world.accept(bench.site)
    values = {"routed_version": None} if source == "asked" else {"source": source}
    with bench.world.db.write() as session:
        session.execute(sa.update(Message).values(values))
    bench.block(0)
    assert bench.detours.round() == 0
    bench.open(0)
    bench.sends(NO)
    message = bench.world.message(queue_id)
    assert (message.state, message.detour) == (State.FAILED, None)


# ---- what nobody knows ----


def the_unclear_one(bench: Chained) -> str:
    """A mail that may have arrived at one recipient, and was refused for the other."""
    queue_id = bench.world.accept(bench.site, "a@x.example", "b@x.example")
    (claim,) = bench.go()
    bench.end(Result(error=LOST, refused={1: NO.error}, version=1), claim)  # type: ignore[dict-item]
    assert bench.where(queue_id) == 0
    assert list(bench.world.recipients(queue_id).values()) == ["uncertain", "failed"]
    return queue_id


def goes_on_to(bench: Chained) -> list[str]:
    (claim,) = bench.go()
    assert claim.connection_id == bench.keys[1]
    return [address for _, address in claim.recipients]


def test_who_was_refused_beside_an_unclear_one_goes_on_after_it(bench: Chained) -> None:
    queue_id = the_unclear_one(bench)
    bench.block(0)
    bench.detours.round()
    assert bench.where(queue_id) == 0  # what may have arrived stays
    bench.open(0)
    bench.world.later(minutes=2)
    (claim,) = bench.go()
    assert [address for _, address in claim.recipients] == ["a@x.example"]
    bench.end(SENT, claim)
    assert goes_on_to(bench) == ["b@x.example"]
    bench.end(SENT, *bench.out)
    assert set(bench.world.recipients(queue_id).values()) == {"sent"}
    assert "later" not in bench.world.message(queue_id).detour


def test_the_same_where_the_remote_is_asked(
    bench: Chained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.drain, "_settling", lambda: set(bench.keys))
    queue_id = bench.world.accept(bench.site, "a@x.example", "b@x.example")
    bench.end(LOOKS_LATER, *bench.go())
    bench.world.later(minutes=2)
    (look,) = bench.go()
    assert look.is_look
    bench.end(Result(found=True, version=1), look)
    assert goes_on_to(bench) == ["b@x.example"]
    bench.end(NO, *bench.out)
    bench.end(NO, *bench.go())
    assert list(bench.world.recipients(queue_id).values()) == ["sent", "failed"]


def test_the_same_where_the_worker_is_killed(bench: Chained) -> None:
    with bench.world.db.write() as session:
        session.execute(sa.update(Site).values(after_unclear=AfterUnclear.RATHER_TWICE))
    queue_id = the_unclear_one(bench)
    bench.world.later(minutes=2)
    bench.go()
    bench.take_over()
    assert goes_on_to(bench) == ["b@x.example"]
    bench.end(SENT, *bench.out)
    message = bench.world.message(queue_id)
    assert (message.state, message.maybe_twice) == (State.UNCERTAIN, True)


def test_it_goes_on_at_once_where_nothing_may_arrive_twice(bench: Chained) -> None:
    with bench.world.db.write() as session:
        session.execute(sa.update(Site).values(after_unclear=AfterUnclear.NEVER_TWICE))
    queue_id = bench.world.accept(bench.site, "a@x.example", "b@x.example")
    bench.end(Result(error=LOST, refused={1: NO.error}, version=1), *bench.go())  # type: ignore[dict-item]
    assert goes_on_to(bench) == ["b@x.example"]
    bench.end(SENT, *bench.out)
    assert list(bench.world.recipients(queue_id).values()) == ["uncertain", "sent"]


# ---- mail that waits ----


def test_waiting_mail_leaves_a_closed_lane_in_its_order(
    bench: Chained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.delivery.detours.BATCH", 3)
    mails = [bench.world.accept(bench.site) for _ in range(8)]
    bench.unreachable(0, minutes=4)
    assert bench.detours.round() == 0  # not for long enough yet
    bench.unreachable(0, minutes=6)
    assert bench.detours.round() == 8
    assert {bench.where(mail) for mail in mails} == {1}
    assert [claim.queue_id for claim in bench.go()] == mails
    assert bench.world.message(mails[0]).detour["why"] == "unreachable"


def test_a_second_backup_follows_and_what_nobody_takes_waits_for_the_first(
    bench: Chained,
) -> None:
    mail = bench.world.accept(bench.site)
    bench.block(0)
    bench.block(1)
    bench.detours.round()
    assert bench.where(mail) == 2
    bench.block(2)
    bench.detours.round()
    assert bench.where(mail) == 0
    bench.open(1)
    bench.detours.round()
    assert bench.where(mail) == 1


def test_a_connection_that_was_unlinked_is_stood_in_for(bench: Chained) -> None:
    mail = bench.world.accept(bench.site)
    with bench.world.db.write() as session:
        session.execute(
            sa.update(Connection).where(Connection.id == bench.keys[0]).values(lane_id=None)
        )
        session.execute(sa.update(Message).values(lane_id=None))
    assert bench.detours.round() == 1
    assert bench.where(mail) == 1
    assert bench.world.message(mail).detour["why"] == "unlinked"


def test_one_mail_finds_out_whether_the_primary_connection_answers_again(bench: Chained) -> None:
    mails = [bench.world.accept(bench.site) for _ in range(3)]
    bench.unreachable(0, minutes=20)
    bench.detours.round()
    bench.world.set_lane(bench.lanes[1], per_minute=1, windows={})
    assert [claim.queue_id for claim in bench.go()] == mails[:1]
    bench.world.later(minutes=6)  # the pause is over, and nothing waits there
    assert bench.detours.round() == 1
    assert bench.detours.round() == 0
    probe = next(claim for claim in bench.go() if claim.is_probe)
    assert probe.connection_id == bench.keys[0]
    newer = [bench.world.accept(bench.site) for _ in range(3)]
    assert bench.detours.round() == 2  # one stays, should the next look be needed
    bench.end(Result(error=NOBODY, version=1), probe)
    assert bench.where(probe.queue_id) == 1
    assert bench.world.message(probe.queue_id).detour["passed"] == []
    bench.detours.round()
    assert {bench.where(mail) for mail in newer} == {1}
    bench.world.later(minutes=12)
    bench.detours.round()
    probe = next(claim for claim in bench.go() if claim.is_probe)
    bench.end(SENT, probe)
    bench.world.later(seconds=1)
    bench.detours.round()
    waiting = [one for one in (*mails, *newer) if bench.world.message(one).state == "queued"]
    assert {bench.where(mail) for mail in waiting} == {0}


def test_a_pause_holds_mail_where_it_is(bench: Chained) -> None:
    mail = bench.world.accept(bench.site)
    bench.block(0)
    bench.world.set_lane(bench.lanes[0], is_paused=True)
    assert bench.detours.round() == 0
    bench.open(0)
    assert bench.go() == []
    with bench.world.db.read() as session:
        assert session.get_one(Lane, bench.lanes[0]).is_paused
    bench.world.set_lane(bench.lanes[0], is_paused=False)
    assert [claim.queue_id for claim in bench.go()] == [mail]
    bench.world.set_lane(bench.lanes[0], is_paused=True)  # what is under way ends as it ends
    bench.rest(NO, *bench.out)
    bench.world.set_lane(bench.lanes[1], is_paused=True)
    assert bench.go() == []
    assert bench.where(mail) == 1


def test_much_mail_that_nobody_takes_is_not_looked_at_all_the_time(bench: Chained) -> None:
    bench.world.accept_many(bench.site, [("a@x.example",)] * BATCH)
    for at in range(3):
        bench.block(at)
    looked = Counter[str]()
    real = bench.detours._move
    bench.detours._move = lambda *a, **k: looked.update("x") or real(*a, **k)  # type: ignore[method-assign,func-returns-value]
    for _ in range(5):
        bench.detours.round()
        bench.world.later(seconds=1)
    assert looked.total() == 2  # once what waits, once what stands in


# ---- a site's own limits ----


def limited(bench: Chained, **limits: int) -> None:
    with bench.world.db.write() as session:
        session.execute(sa.update(Site).where(Site.id == bench.site).values(**limits))


def test_a_site_sends_no_more_than_it_may_over_all_its_connections(bench: Chained) -> None:
    limited(bench, per_minute=3)
    for key in (bench.keys[0], bench.keys[1]):
        with bench.world.db.write() as session:
            session.get_one(Site, bench.site).primary_connection_id = key
        bench.world.accept_many(bench.site, [("a@x.example",)] * 3)
    other = bench.world.a_site()
    with bench.world.db.write() as session:
        session.get_one(Site, other).primary_connection_id = bench.keys[0]
    bench.world.accept_many(other, [("a@x.example",)] * 4)
    claims = bench.go()
    assert Counter(claim.site_id for claim in claims) == {bench.site: 3, other: 4}
    bench.end(WAIT, *[claim for claim in claims if claim.site_id == bench.site])
    assert Counter(claim.site_id for claim in bench.out) == {other: 4}
    bench.end(SENT, *bench.out)
    bench.take_over()  # it is kept, whoever counts on
    assert bench.go() == []
    assert bench.world.gaps() == 0
    bench.world.later(seconds=62)
    bench.take_over()
    assert len(bench.go()) == 3


def test_a_test_leaves_although_its_site_has_sent_enough(bench: Chained) -> None:
    limited(bench, per_hour=1)
    mails = [bench.world.accept(bench.site) for _ in range(4)]
    with bench.world.db.write() as session:
        session.execute(
            sa.update(Message)
            .where(Message.queue_id == mails[3])
            .values(source=Source.TEST, due_at=bench.world.now - timedelta(days=30))
        )
    assert [claim.queue_id for claim in bench.go()] == [mails[3]]
    assert [claim.queue_id for claim in bench.go()] == [mails[3], mails[0]]
    bench.end(SENT, *bench.out)
    with bench.world.db.read() as session:
        windows = session.scalars(sa.select(SitePace.windows)).one()
    assert sum(windows["hour"].values()) == 1
    with bench.world.db.write() as session:
        session.execute(
            sa.update(Message)
            .where(Message.queue_id == mails[2])
            .values(source=Source.TEST, due_at=bench.world.now - timedelta(days=30))
        )
    assert [claim.queue_id for claim in bench.go()] == [mails[2]]
    limited(bench, per_hour=5)
    assert {claim.queue_id for claim in bench.go()} == {mails[1], mails[2]}


def test_a_commit_that_failed_is_not_counted(
    bench: Chained, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(bench, per_minute=2)
    bench.world.accept_many(bench.site, [("a@x.example",)] * 3)
    with monkeypatch.context() as patch:
        patch.setattr(bench.drain, "_job", lambda claim: fail(claim))
        with pytest.raises(sa.exc.OperationalError):
            bench.go()
    bench.drain._unsure = False
    with bench.world.db.write() as session:
        session.execute(sa.delete(Attempt))
        session.execute(sa.update(Message).values(state=State.QUEUED, due_at=bench.world.now))
        session.execute(sa.delete(SitePace))
    assert len(bench.go()) == 2


def fail(_claim: Claimed) -> None:
    raise sa.exc.OperationalError("the disk is full", None, OSError())


def test_asked_to_slow_down_for_long_it_goes_elsewhere_at_once(bench: Chained) -> None:
    queue_id = bench.world.accept(bench.site)
    bench.sends(Result(error=SLOWER, version=1))
    assert bench.where(queue_id) == 0
    bench.world.later(minutes=2)
    long = TransientError(
        "slow down", code="429", cause_code=Cause.RATE, retry_after=timedelta(hours=1)
    )
    bench.sends(Result(error=long, version=1))
    assert bench.where(queue_id) == 1
    assert bench.world.message(queue_id).detour["passed"] == []
