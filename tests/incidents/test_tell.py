"""What is sent to whom, by what way, and again when it did not arrive."""

import email
import threading
from collections.abc import Iterator
from datetime import timedelta
from email.policy import default
from typing import Any

import pytest
import sqlalchemy as sa

from tests.factories import a_connection, a_lane, a_site, a_user
from tests.incidents.conftest import KEY, Desk
from tests.incidents.hooks import Hook, is_genuine
from tests.mailers.fakes import FakeSmtp
from webapp.connections.models import Connection, Health
from webapp.delivery.models import Message
from webapp.i18n import CHINESE
from webapp.incidents import channel, reach, service
from webapp.incidents.kinds import Kind
from webapp.incidents.models import AlertTarget, Channel, Notification, Occasion, Told
from webapp.incidents.tell import Result, record
from webapp.mailers.errors import NeedsReauthorisation, TransientError
from webapp.sites.models import Site

MARA = "mara@agentur.example"


@pytest.fixture
def server() -> Iterator[FakeSmtp]:
    with FakeSmtp() as made:
        yield made


def mails(server: FakeSmtp) -> list[Any]:
    return [email.message_from_bytes(mail.content, policy=default) for mail in server.mails]


def by_mail(desk: Desk, **values: Any) -> AlertTarget:
    return desk.target(MARA, channel=Channel.EMAIL, **values)


def last(desk: Desk) -> tuple[str, str]:
    """How the last attempt to the only target went, and why."""
    with desk.db.read() as session:
        target = session.scalars(sa.select(AlertTarget)).one()
        return target.last_told, target.last_words


def test_a_mail_leaves_by_the_alert_connection_and_enters_no_ledger(
    desk: Desk, server: FakeSmtp
) -> None:
    site = desk.site(name="Galerie Nord")
    grant = desk.linked(site)
    desk.alert_connection(server.port)
    by_mail(desk)
    desk.refuse(grant)
    desk.round()
    desk.link_again(grant)
    desk.round()
    opened, closed = mails(server)
    assert server.mails[0].rcpts == [MARA]
    assert opened["From"] == "Postroom <alerts@agentur.example>"
    assert opened["To"] == MARA
    assert opened["Auto-Submitted"] == "auto-generated"
    assert opened["Subject"].startswith("[Galerie Nord] orders")
    assert "needs re-authorization" in opened["Subject"]
    assert "may send again" in closed["Subject"]
    text = opened.get_content()
    assert "AADSTS50173 The provided grant has expired." in text
    assert "1. " in text
    assert f"/settings/system/{desk.incidents()[0].uid}" in text
    with desk.db.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Message)) == 0
        connection = session.scalars(sa.select(Connection).where(Connection.is_system)).one()
    assert connection.health == Health.WORKING


def test_a_mail_is_in_the_language_of_whoever_added_the_target(
    desk: Desk, server: FakeSmtp
) -> None:
    with desk.db.write() as session:
        a_user(session, email=MARA, language=CHINESE)
    desk.alert_connection(server.port)
    by_mail(desk, created_by=MARA)
    desk.refuse(desk.linked(desk.site()))
    desk.round()
    (mail,) = mails(server)
    assert any("\u4e00" <= sign <= "\u9fff" for sign in mail.get_content())


def test_without_an_alert_connection_only_webhooks_are_told(desk: Desk, hook: Hook) -> None:
    grant = desk.linked(desk.site())
    by_mail(desk)
    desk.target(hook.url)
    desk.refuse(grant)
    desk.round()
    assert len(hook.calls) == 1
    assert desk.told() == [(Occasion.OPENED, Told.DROPPED), (Occasion.OPENED, Told.SENT)]
    desk.link_again(grant)
    desk.round()
    assert len(hook.calls) == 2
    assert (Occasion.CLOSED, Told.DROPPED) not in desk.told()


def test_an_alert_connection_that_is_what_broke_is_not_used(
    desk: Desk, hook: Hook, server: FakeSmtp
) -> None:
    """A site may send by the very server and login that the alerts leave by."""
    desk.alert_connection(server.port)
    target = by_mail(desk)
    desk.target(hook.url)
    with desk.db.write() as session:
        lane = a_lane(session, f"smtp:@127.0.0.1:{server.port}", is_blocked=True)
        a_connection(session, a_site(session), lane=lane)
    desk.round()
    assert desk.open() == [Kind.STOPPED]
    assert (server.mails, len(hook.calls)) == ([], 1)
    with desk.db.read() as session:
        row = session.get_one(AlertTarget, target.id)
        assert (row.last_told, row.last_words) == (Told.DROPPED, channel.IS_BROKEN)


def test_an_alert_connection_that_fails_is_told_by_webhook_alone(
    desk: Desk, hook: Hook, server: FakeSmtp
) -> None:
    desk.alert_connection(server.port)
    by_mail(desk)
    desk.target(hook.url)
    desk.refuse(desk.linked(desk.site()))
    server.then("MAIL", "451 4.3.0 not now", "451 4.3.0 not now")
    desk.round()
    desk.round()
    assert desk.open() == [Kind.LINK, Kind.ALERTS]
    assert [call.facts["kind"] for call in hook.calls] == ["link-refused", "alerts-failing"]
    server.always.clear()
    desk.later(minutes=2)
    desk.round()
    desk.later(minutes=6)
    desk.round()
    assert len(mails(server)) == 1  # it leaves late, and says what it is about
    desk.round()
    assert desk.open() == [Kind.LINK]


def test_a_webhook_that_fails_is_tried_after_1_5_15_and_60_minutes(desk: Desk, hook: Hook) -> None:
    desk.target(hook.url)
    desk.refuse(desk.linked(desk.site()))
    hook.answers = [500] * 9
    desk.round()
    for minutes in (1, 5, 15, 60):
        before = len(hook.calls)
        desk.later(minutes=minutes - 0.5)
        desk.round()
        assert len(hook.calls) == before
        desk.later(minutes=0.6)
        desk.round()
        assert len(hook.calls) == before + 1
    assert desk.told() == [(Occasion.OPENED, Told.FAILED)]
    assert last(desk) == (Told.FAILED, "status 500")
    desk.later(hours=9)
    desk.round()
    assert len(hook.calls) == 5


def test_the_end_is_told_after_the_beginning(desk: Desk, hook: Hook) -> None:
    desk.target(hook.url)
    grant = desk.linked(desk.site())
    desk.refuse(grant)
    hook.answers = [503]
    desk.round()
    desk.link_again(grant)
    desk.round()
    assert [call.facts["occasion"] for call in hook.calls] == ["opened"]
    desk.later(minutes=2)
    desk.round()
    desk.round()
    assert [call.facts["occasion"] for call in hook.calls] == ["opened", "opened", "closed"]


def test_nobody_hears_of_the_end_of_what_never_reached_them(desk: Desk, hook: Hook) -> None:
    desk.target(hook.url)
    grant = desk.linked(desk.site())
    desk.refuse(grant)
    hook.answers = [500] * 5
    desk.round()
    desk.link_again(grant)
    desk.watch.round()
    for _ in range(6):
        desk.later(hours=1)
        desk.teller.round()
    assert len(hook.calls) == 5
    assert desk.told() == [(Occasion.OPENED, Told.FAILED), (Occasion.CLOSED, Told.DROPPED)]


def test_what_another_process_has_in_hand_is_not_sent_twice(desk: Desk, hook: Hook) -> None:
    """Both saw it due; the first has claimed it, then has sent it, then has died with it."""
    desk.target(hook.url)
    desk.refuse(desk.linked(desk.site()))
    desk.watch.round()
    other = desk.a_teller()
    (due,) = other._due()
    with desk.db.write() as session:
        assert desk.teller._claim(session, due) is not None
    assert not other._tell(due)
    assert hook.calls == []
    desk.later(minutes=4)
    assert desk.teller.round() == 1
    assert not other._tell(due)
    desk.later(minutes=4)
    assert not other._tell(due)
    assert len(hook.calls) == 1


def test_a_target_that_is_removed_while_it_is_told_is_forgotten(desk: Desk, hook: Hook) -> None:
    target = desk.target(hook.url)
    desk.refuse(desk.linked(desk.site()))
    desk.watch.round()
    (due,) = desk.teller._due()
    with desk.db.write() as session:
        session.delete(session.get_one(AlertTarget, target.id))
    with desk.db.write() as session:
        record(session, due, Result(told=Told.SENT), desk.now)
    assert desk.teller.round() == 0
    assert hook.calls == []


def test_a_webhook_of_a_site_never_reaches_the_inside(desk: Desk, hook: Hook) -> None:
    site = desk.site()
    desk.target(f"https://127.0.0.1:{hook.port}/", site=site)
    desk.refuse(desk.linked(site))
    desk.round()
    assert hook.calls == []
    assert last(desk) == (Told.FAILED, "private-address")


def test_a_target_hears_of_its_own_site_only(desk: Desk, server: FakeSmtp) -> None:
    one, two = desk.site(name="Galerie Nord"), desk.site(name="Lindenhof")
    grant = desk.linked(one)
    with desk.db.write() as session:
        row = session.get_one(Site, two.id)
        a_connection(session, row, mailer="outlook", grant_id=grant.id)
    desk.alert_connection(server.port)
    by_mail(desk, site=one)
    desk.refuse(grant)
    desk.round()
    (mail,) = mails(server)
    assert "Lindenhof" not in mail.get_content()
    assert f"/sites/{one.slug}/incidents/" in mail.get_content()


def test_an_address_that_stands_twice_hears_once(desk: Desk, server: FakeSmtp) -> None:
    site = desk.site()
    desk.alert_connection(server.port)
    by_mail(desk)
    by_mail(desk, site=site)
    desk.refuse(desk.linked(site))
    desk.round()
    assert len(server.mails) == 1


def test_a_target_that_is_switched_off_hears_nothing(desk: Desk, hook: Hook) -> None:
    target = desk.target(hook.url)
    grant = desk.linked(desk.site())
    desk.refuse(grant)
    desk.round()
    desk.change(AlertTarget, target.id, is_on=False)
    desk.link_again(grant)
    desk.round()
    assert len(hook.calls) == 1
    assert desk.told()[-1] == (Occasion.CLOSED, Told.DROPPED)


def test_a_sample_is_signed_and_tried_once(desk: Desk, hook: Hook) -> None:
    target = desk.target(hook.url)
    hook.answers = [500]
    for _ in range(2):
        with desk.db.write() as session:
            service.test_target(session, session.get_one(AlertTarget, target.id), desk.now)
        desk.teller.round()
    desk.later(hours=2)
    desk.teller.round()
    assert len(hook.calls) == 2
    assert all(is_genuine(call, KEY) for call in hook.calls)
    assert hook.calls[1].facts["kind"] == "test"
    assert desk.told() == [(Occasion.TEST, Told.FAILED), (Occasion.TEST, Told.SENT)]


def test_samples_are_counted_for_a_minute_and_for_each_site_alone(desk: Desk) -> None:
    site = desk.site()
    targets = [desk.target("https://a.example/"), desk.target("https://a.example/", site=site)]
    with desk.db.write() as session:
        for target in targets:
            service.test_target(session, session.get_one(AlertTarget, target.id), desk.now)
    for count in (1, 0):
        with desk.db.read() as session:
            for key in (None, site.id):
                assert service.tests_lately(session, key, desk.now) == count
        desk.later(minutes=1)


def test_how_the_alert_connection_does_is_kept_since_when_and_for_these_settings(
    desk: Desk,
) -> None:
    connection = desk.alert_connection(25)
    error = TransientError("not now", code="451")
    for _ in range(2):
        with desk.db.write() as session:
            channel.note(session, connection, error, desk.now)
        desk.later(minutes=5)

    def stored() -> Connection:
        with desk.db.read() as session:
            return session.get_one(Connection, connection.id)

    found = stored()
    assert (found.health, found.last_code, found.last_words) == (Health.FAILING, "451", "not now")
    assert found.health_since is not None
    assert desk.now - found.health_since >= timedelta(minutes=10)
    desk.change(Connection, connection.id, version=2, health=Health.UNKNOWN)  # as a save does
    with desk.db.write() as session:
        channel.note(session, connection, error, desk.now)
    assert stored().health == Health.UNKNOWN
    refused = NeedsReauthorisation("535 no", code="535")
    with desk.db.write() as session:
        channel.note(session, stored(), refused, desk.now)
    assert stored().health == Health.NEEDS_REAUTHORISATION


def test_one_recipient_that_is_refused_says_nothing_against_the_connection(
    desk: Desk, server: FakeSmtp
) -> None:
    desk.alert_connection(server.port)
    by_mail(desk)
    server.then(f"RCPT {MARA}", "550 5.1.1 who?")
    desk.refuse(desk.linked(desk.site()))
    desk.round()
    assert last(desk)[0] == Told.FAILED
    assert "who?" in last(desk)[1]
    desk.round()
    assert desk.open() == [Kind.LINK]
    assert desk.told() == [(Occasion.OPENED, Told.FAILED)]


def test_a_bug_in_one_alert_does_not_keep_the_others(
    desk: Desk, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.target("https://hook.example/")
    desk.target(hook.url)
    real = reach.post

    def post(url: str, *given: Any) -> int:
        if url.startswith("https"):
            raise ZeroDivisionError
        return real(url, *given)

    monkeypatch.setattr(reach, "post", post)
    desk.refuse(desk.linked(desk.site()))
    desk.round()
    assert len(hook.calls) == 1
    with desk.db.read() as session:
        rows = session.scalars(sa.select(Notification).order_by(Notification.id)).all()
    assert [row.told for row in rows] == [Told.DUE, Told.SENT]
    assert rows[0].words == "Postroom: ZeroDivisionError"


def test_the_thread_tells_by_itself_and_stops(desk: Desk, hook: Hook) -> None:
    desk.target(hook.url)
    desk.refuse(desk.linked(desk.site()))
    desk.watch.round()
    done = threading.Event()
    hook.calls = Signalling(done)
    desk.teller.start()
    assert done.wait(20)
    desk.teller.stop()
    desk.teller.stop()


class Signalling(list[Any]):
    """Says when something came."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self._event = event

    def append(self, item: Any) -> None:
        super().append(item)
        self._event.set()
