"""What is deleted when, and what stays; on both databases."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.maillog.conftest import Ledger
from webapp.audit import AuditEvent
from webapp.delivery.decide import Result
from webapp.delivery.models import Attempt, Content, Message, Recipient, State, Tally
from webapp.maillog import retention
from webapp.maillog.retention import Kept, Policy, Retention
from webapp.sites.models import Site, SiteSpace

FOR_EVER = ("log_days", "body_days", "details_days")


def a_site(ledger: Ledger, **values: Any) -> int:
    """A site that keeps everything for ever, but for what is given."""
    return ledger.a_site(**{name: sa.null() for name in FOR_EVER} | values)


def over(ledger: Ledger, **ago: float) -> dict[str, Any]:
    """The columns of a mail that ended so long ago."""
    return {"finished_at": ledger.now - timedelta(**ago)}


def a_past(ledger: Ledger, site: int, *days: float, **values: Any) -> list[int]:
    """A mail for each of these ages, the oldest first, each over within the minute."""
    present = ledger.now
    keys = []
    for age in sorted(days, reverse=True):
        ledger.now = present - timedelta(days=age)
        ended = {"finished_at": ledger.now + timedelta(minutes=1)}
        keys.append(ledger.add(site, f"{age:g} days", **(ended | values)))
    ledger.now = present
    return keys


def a_worker(ledger: Ledger) -> Retention:
    return Retention(ledger.db, clock=lambda: ledger.now)


def bodies(ledger: Ledger) -> list[str]:
    with ledger.db.read() as session:
        query = sa.select(Message.subject).join(Content, Content.message_id == Message.id)
        return list(session.scalars(query.order_by(Message.id)))


def rows_of(ledger: Ledger, table: Any) -> int:
    with ledger.db.read() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def change(ledger: Ledger, site: int, **values: Any) -> None:
    with ledger.db.write() as session:
        session.execute(sa.update(Site).where(Site.id == site).values(**values))


# ---- what goes ----


def test_the_mail_goes_first_and_its_entry_later(ledger: Ledger) -> None:
    site = a_site(ledger, log_days=180, body_days=30)
    a_past(ledger, site, 200, 100, 10)
    a_worker(ledger).work()
    assert ledger.subjects() == ["10 days", "100 days"]
    assert bodies(ledger) == ["10 days"]
    assert ledger.subjects(search="200") == []
    assert ledger.subjects(search="100") == ["100 days"]
    assert rows_of(ledger, Recipient) == 2
    assert rows_of(ledger, sa.table("message_search")) == 2


def test_for_ever_is_for_ever_and_a_site_decides_for_itself(ledger: Ledger) -> None:
    kept, short = a_site(ledger), a_site(ledger, log_days=1)
    a_past(ledger, kept, 4000)
    a_past(ledger, short, 4000, 0.5)
    a_worker(ledger).work()
    assert ledger.subjects() == ["0.5 days", "4000 days"]
    assert len(bodies(ledger)) == 2


@pytest.mark.parametrize(
    ("state", "values"),
    [
        (State.HELD, {}),
        (State.QUEUED, {}),
        (State.DEFERRED, {}),
        (State.SENDING, {}),
        (State.UNCERTAIN, {"due": True}),
    ],
)
def test_mail_that_is_not_over_is_never_touched(
    ledger: Ledger, state: State, values: dict[str, bool]
) -> None:
    site = a_site(ledger, log_days=1, body_days=0, details_days=1)
    waits = {"due_at": ledger.now} if values else {}
    a_past(ledger, site, 400, state=state, finished_at=None, **waits)
    a_worker(ledger).work()
    assert bodies(ledger) == ["400 days"]


def test_an_answer_that_stays_lost_is_over(ledger: Ledger) -> None:
    site = a_site(ledger, log_days=1)
    a_past(ledger, site, 3, state=State.UNCERTAIN)
    a_worker(ledger).work()
    assert ledger.subjects() == []


def test_the_end_counts_and_not_the_beginning(ledger: Ledger) -> None:
    site = a_site(ledger, log_days=10)
    a_past(ledger, site, 12, **over(ledger, days=9))
    worker = a_worker(ledger)
    worker.work()
    assert ledger.subjects() == ["12 days"]
    ledger.later(days=1, minutes=1)
    worker.work()
    assert ledger.subjects() == []


def test_the_conversation_goes_and_what_came_of_it_stays(ledger: Ledger) -> None:
    site = a_site(ledger, details_days=30)
    connection = ledger.a_connection(site)
    present, ledger.now = ledger.now, ledger.now - timedelta(days=31)
    queue_id = ledger.accept(site)
    [claim] = ledger.claim(ledger.lane_of(connection))
    ledger.finish(claim, Result(code="250", words="ok", details={"log": ["> EHLO", "< 250"]}))
    assert ledger.attempts(queue_id)[0].details["log"]
    before = ledger.attempts(queue_id)[0]
    ledger.now = present
    a_worker(ledger).work()
    after = ledger.attempts(queue_id)[0]
    assert after.details == {name: it for name, it in before.details.items() if name != "log"}
    assert (after.code, after.words) == ("250", "ok")


def test_no_mail_kept_means_gone_once_over_even_what_was_passed_over(ledger: Ledger) -> None:
    site = a_site(ledger, body_days=0)
    waiting = ledger.add(site, "Waits", state=State.QUEUED)
    ledger.add(site, "Sent", **over(ledger))
    ledger.later(seconds=30)
    worker = a_worker(ledger)
    worker.work()
    assert bodies(ledger) == ["Waits"]
    with ledger.db.write() as session:
        gone = {"state": State.SENT, "due_at": None, "finished_at": ledger.now}
        session.execute(sa.update(Message).where(Message.id == waiting).values(**gone))
    ledger.later(seconds=30)
    worker.work()
    assert bodies(ledger) == []
    assert ledger.subjects() == ["Sent", "Waits"]


def test_a_shorter_time_counts_at_once(ledger: Ledger) -> None:
    site = a_site(ledger, log_days=180)
    a_past(ledger, site, 40)
    worker = a_worker(ledger)
    worker.work()
    change(ledger, site, log_days=30)
    worker.work()
    assert ledger.subjects() == []


def test_keys_that_are_given_again_are_looked_at_again(ledger: Ledger) -> None:
    """SQLite begins at the lowest key when a table is empty."""
    site = a_site(ledger, log_days=1, body_days=0)
    a_past(ledger, site, 5, 4, 3)
    worker = a_worker(ledger)
    worker.work()
    ledger.add(site, "New", **over(ledger))
    ledger.later(minutes=20)
    worker.work()
    assert ledger.subjects() == ["New"]
    assert bodies(ledger) == []


# ---- how it goes ----


class Interrupted(Retention):
    """Somebody hands a mail in whenever it rests."""

    def __init__(self, ledger: Ledger, site: int) -> None:
        super().__init__(ledger.db, clock=lambda: ledger.now)
        self.accepted: list[str] = []
        self._hand_in = lambda: ledger.accept(site)

    def _pause(self, seconds: float) -> bool:
        assert seconds > 0
        self.accepted.append(self._hand_in())
        return False


def test_mail_is_accepted_between_two_batches(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right to write is free again after each: an accept that had to wait would hang here."""
    monkeypatch.setattr(retention, "MOST_IN_BATCH", 10)
    site, other = a_site(ledger, log_days=1), a_site(ledger)
    a_past(ledger, site, *[2.0] * 25)
    worker = Interrupted(ledger, other)
    worker.work()
    assert len(worker.accepted) >= 3
    assert len(ledger.subjects()) == len(worker.accepted)


def test_a_batch_is_as_large_as_fits_into_its_time() -> None:
    assert retention.next_size(10, 0.001) == 20
    assert retention.next_size(10, retention.AIM_SECONDS) == 10
    assert retention.next_size(100, 0.1) == 10
    assert retention.next_size(1, 5.0) == 1
    assert retention.next_size(200, 0.0001) == retention.MOST_IN_BATCH


def test_old_mail_is_found_without_reading_the_log(ledger: Ledger) -> None:
    site = a_site(ledger)
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _u: Any, statement: str, values: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, values))

    with ledger.db.reader.connect() as connection:
        sa.event.listen(ledger.db.reader, "before_cursor_execute", note)
        try:
            retention.look(connection, site, ledger.now, 0)
        finally:
            sa.event.remove(ledger.db.reader, "before_cursor_execute", note)
        if not ledger.db.is_sqlite:
            return
        [(statement, values)] = asked
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    assert [row.detail for row in plan] == [
        "SEARCH message USING INDEX ix_message_site (site_id=? AND id>?)"
    ]


def test_many_mails_go_in_several_slices(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 3)
    monkeypatch.setattr(retention, "SLICES", 2)
    site = a_site(ledger, log_days=1)
    a_past(ledger, site, *range(2, 10), state=State.FAILED)
    held = a_past(ledger, site, 1.5, state=State.HELD, finished_at=None)
    worker = a_worker(ledger)
    worker.work()
    assert len(ledger.subjects()) == 3
    worker.work()
    assert [row.id for row in ledger.page().rows] == held


# ---- before it goes ----


def told(ledger: Ledger, was: Policy, would: Policy) -> dict[Kept, int]:
    with ledger.db.read() as session:
        return retention.more_to_go(session, was, would, ledger.now)


def test_it_is_known_beforehand_how_many_would_go(ledger: Ledger) -> None:
    site, other = a_site(ledger), ledger.a_site()
    a_past(ledger, site, 400, 100, 50, 10)
    a_past(ledger, other, 50)
    a_past(ledger, site, 45, state=State.HELD, finished_at=None)
    was = Policy(site_id=site, log_days=None, body_days=90, details_days=30)
    would = Policy(site_id=site, log_days=180, body_days=40, details_days=60)
    assert told(ledger, was, would) == {Kept.LOG: 1, Kept.BODY: 1}
    assert told(ledger, would, was) == {Kept.DETAILS: 0}


# ---- a site that goes ----


def delete(ledger: Ledger, site: int) -> None:
    change(ledger, site, deleted_at=ledger.now)


def test_a_deleted_site_loses_its_mail_and_then_its_name(ledger: Ledger) -> None:
    site, other = a_site(ledger, slug="shop"), a_site(ledger)
    ledger.a_connection(site)
    a_past(ledger, site, 3, 2)
    ledger.add(site, "Held", state=State.HELD)
    queue_id = ledger.accept(site)
    a_past(ledger, other, 1)
    delete(ledger, site)
    worker, before = a_worker(ledger), ledger.gaps()  # what is put into a state is counted nowhere
    steps = _each_step(worker, ledger)
    assert steps
    assert set(steps) == {before}, "nothing of an open mail is missed after any batch"
    assert ledger.subjects() == ["1 days"]
    worker.work()
    with ledger.db.read() as session:
        gone = session.get_one(Site, site)
        assert (gone.slug, gone.name, gone.url, gone.admin_email) == (f"-{site}", "", "", "")
        assert session.scalar(sa.select(sa.func.count(Tally.id)).where(Tally.site_id == site)) == 0
        assert session.scalar(sa.select(Message.id).where(Message.queue_id == queue_id)) is None
    events = rows_of(ledger, AuditEvent)
    worker.work()
    assert rows_of(ledger, AuditEvent) == events


def _each_step(worker: Retention, ledger: Ledger) -> Sequence[int]:
    """The gaps in the books after each batch of one round."""
    gaps: list[int] = []

    def pause(_seconds: float) -> bool:
        gaps.append(ledger.gaps())
        return False

    worker._pause = pause  # type: ignore[method-assign]
    worker.work()
    return gaps


def test_what_is_being_sent_ends_first(ledger: Ledger) -> None:
    site = a_site(ledger)
    connection = ledger.a_connection(site)
    queue_id = ledger.accept(site)
    [claim] = ledger.claim(ledger.lane_of(connection))
    delete(ledger, site)
    worker = a_worker(ledger)
    worker.work()
    assert ledger.message(queue_id).state == State.SENDING
    ledger.finish(claim)
    assert ledger.gaps() == 0
    worker.work()
    worker.work()
    assert rows_of(ledger, Message) == 0
    with ledger.db.read() as session:
        assert session.get_one(Site, site).slug == f"-{site}"


# ---- what it takes ----


def space_of(session: Session, site: int) -> SiteSpace:
    return session.get_one(SiteSpace, site)


def test_the_space_is_counted_once_an_hour(ledger: Ledger) -> None:
    site = a_site(ledger)
    a_past(ledger, site, 2, 1)
    worker = a_worker(ledger)
    worker.work()
    with ledger.db.read() as session:
        first = space_of(session, site)
        stored = session.scalar(sa.select(sa.func.sum(sa.func.length(Content.raw))))
    assert (first.mails, first.bodies, first.body_bytes) == (2, 2, stored)
    assert first.log_bytes > 2 * 700
    assert first.counted_at == ledger.now
    ledger.add(site, "New")
    for minutes, mails in ((59, 2), (2, 3)):
        ledger.later(minutes=minutes)
        worker.work()
        with ledger.db.read() as session:
            assert space_of(session, site).mails == mails
    ledger.later(minutes=10)
    again = a_worker(ledger)
    again.work()
    with ledger.db.read() as session:
        assert space_of(session, site).counted_at == ledger.now - timedelta(minutes=10)
        assert rows_of(ledger, Attempt) == 0
