"""Looking at messages and acting on them by HTTP."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.api.conftest import Desk, Program
from tests.api.test_send import count, faults, stored
from tests.factories import a_connection, a_message
from webapp.delivery import replan, upkeep
from webapp.delivery.models import Attempt, Content, Outcome, Source, State
from webapp.sites.models import Site


def site_in(session: Session, desk: Desk) -> Site:
    return session.get_one(Site, desk.site.id)


def ids(program: Program, query: str) -> list[str]:
    answer = program.get(f"/messages{query}")
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json["messages"]]


def test_messages_are_listed_a_page_at_a_time(desk: Desk, program: Program) -> None:
    sent = [program.send(subject=f"Mail {number}") for number in range(5)]
    desk.program(site=desk.other_site()).send()
    assert ids(program, "") == sent[::-1]
    found, query = [], "?limit=2"
    while True:
        page = program.get(f"/messages{query}").json
        found += [one["id"] for one in page["messages"]]
        if page["next"] is None:
            break
        query = f"?limit=2&after={page['next']}"
    assert found == sent[::-1]


def test_messages_are_found_by_state_time_and_words(desk: Desk, program: Program) -> None:
    now = desk.installation.db.now()
    with desk.installation.db.write() as session:
        site = site_in(session, desk)
        old = a_message(session, site, state=State.FAILED, at=now - timedelta(days=3)).queue_id
        new = a_message(session, site, state=State.SENT, subject="Gutschein").queue_id
    assert ids(program, "?state=failed") == [old]
    assert ids(program, "?state=sent") == [new]
    assert ids(program, "?state=held") == []
    day = (now - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S%z")  # with a bare plus
    assert ids(program, f"?since={day}") == [new]
    assert ids(program, f"?until={day}") == [old]
    assert ids(program, "?q=gutschein") == []  # made without the index of words


def test_words_are_searched(desk: Desk, program: Program) -> None:
    queue_id = program.send(subject="Ein Gutschein")
    program.send(subject="Sonstiges")
    assert ids(program, "?q=gutschein") == [queue_id]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("state=over", "state"),
        ("since=yesterday", "since"),
        ("since=2026-11-23T10:00:00", "since"),
        ("until=0001-01-01T00:00:00%2B14:00", "until"),
        ("since=9999-12-31T23:59:59-14:00", "since"),
        ("after=x", "after"),
        ("after=99999999999999999999", "after"),
        ("page=2", "page"),
    ],
)
def test_a_wrong_parameter_is_named(light_desk: Desk, query: str, name: str) -> None:
    answer = light_desk.program().get(f"/messages?{query}")
    assert [where for where, _ in faults(answer, 422, "invalid")] == [name]


def test_a_message_shows_recipients_and_tries_and_no_content(desk: Desk, program: Program) -> None:
    with desk.installation.db.write() as session:
        connection = session.merge(desk.connection)
        mail = a_message(
            session, site_in(session, desk), state=State.DEFERRED, connection=connection,
            to=("a@x.example", "b@x.example"), attempts=1, maybe_twice=True,
        )  # fmt: skip
        session.add(
            Attempt(
                message_id=mail.id, number=1, connection_id=connection.id, connection_name="Main",
                outcome=Outcome.TRANSIENT, code="451", words="later", started_at=mail.accepted_at,
            )
        )  # fmt: skip
    told = program.get(f"/messages/{mail.queue_id}").json
    assert (told["status"], told["maybe_twice"], told["source"]) == ("deferred", True, "smtp")
    assert [one["address"] for one in told["recipients"]] == ["a@x.example", "b@x.example"]
    assert [(one["code"], one["words"], one["outcome"]) for one in told["attempts"]] == [
        ("451", "later", "transient")
    ]
    assert "Vielen Dank" not in str(told)


def test_a_waiting_message_is_cancelled_and_then_over(desk: Desk, program: Program) -> None:
    queue_id = program.send()
    told = program.post(f"/messages/{queue_id}/cancel")
    assert (told.status_code, told.json["status"]) == (200, "cancelled")
    faults(program.post(f"/messages/{queue_id}/cancel"), 409, "state")
    faults(program.post(f"/messages/{queue_id}/retry"), 409, "state")


def test_what_was_put_off_is_tried_now(desk: Desk, program: Program) -> None:
    with desk.installation.db.write() as session:
        mail = a_message(session, site_in(session, desk), state=State.DEFERRED)
        mail.due_at = mail.accepted_at + timedelta(hours=5)
    told = program.post(f"/messages/{mail.queue_id}/retry")
    assert told.status_code == 200
    assert stored(desk, mail.queue_id)[0].due_at <= desk.installation.db.now()


def test_a_message_is_resent_to_everybody_or_to_others(desk: Desk, program: Program) -> None:
    first = program.send(to=["a@x.example", "b@x.example"])
    for body, expected in (
        (None, ["a@x.example", "b@x.example"]),
        ({}, ["a@x.example", "b@x.example"]),
        ({"to": "Jo <c@x.example>"}, ["c@x.example"]),
    ):
        answer = program.post(f"/messages/{first}/resend", body)
        assert answer.status_code == 202, answer.text
        row, to, mail = stored(desk, answer.json["id"])
        assert (row.source, to, row.received["of"]) == (Source.RESEND, expected, first)
        assert mail["Subject"] == "Ihre Bestellung"
    wrong = program.post(f"/messages/{first}/resend", {"to": ["x"]})
    assert [where for where, _ in faults(wrong, 422, "invalid")] == ["/to/0"]


def test_a_repeated_resend_is_one(desk: Desk, program: Program) -> None:
    first = program.send()
    name = {"Idempotency-Key": "again"}
    answers = [program.post(f"/messages/{first}/resend", headers=name).json for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert count(desk) == 2


def test_without_its_content_a_message_is_not_resent(desk: Desk, program: Program) -> None:
    queue_id = program.send()
    with desk.installation.db.write() as session:
        session.execute(sa.delete(Content))
    faults(program.post(f"/messages/{queue_id}/resend"), 409, "state")


def test_a_mail_keeps_the_connection_it_asked_for(desk: Desk, program: Program) -> None:
    with desk.installation.db.write() as session:
        site = site_in(session, desk)
        asked = a_connection(session, site, primary=False)
        new = a_connection(session, site, primary=False)
    queue_id, other = program.send(connection=asked.uid), program.send()
    with desk.installation.db.write() as session:
        site = site_in(session, desk)
        site.primary_connection_id = new.id
        session.flush()
        replan.routing_changed(session, site, desk.installation.db.now())
    with desk.installation.db.write_connection() as connection:
        assert upkeep.find_misplaced(connection) == []
    assert stored(desk, queue_id)[0].connection_id == asked.id
    assert stored(desk, other)[0].connection_id == new.id


def test_mails_of_many_threads_are_all_stored(desk: Desk, program: Program) -> None:
    """Mails of many threads share commits, and each gets its own answer."""
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda number: program.send(subject=f"M {number}"), range(40)))
    assert len(set(made)) == count(desk) == 40
