"""A lost answer: the mailbox is asked whether the mail went out before it is sent once more."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa

from tests.delivery.test_breaker import NOBODY, SLOWER, Bench
from tests.factories import (
    a_connection,
    a_grant,
    a_lane,
    a_mailbox,
    an_app,
    an_installation,
)
from tests.maillog.test_message_pages import World as Log
from tests.maillog.test_message_pages import story, titles
from tests.microsoft.test_delivery import ORDERS, GraphPost
from tests.pages import Browser
from tests.rig import graph_contract, linking
from tests.rig.sandbox import SandboxThread
from tests.world import World, a_world
from webapp.accounts.models import Role
from webapp.connections.models import Connection
from webapp.crypto import Keyring, new_key, parse_key
from webapp.delivery import actions, decide, replan, settle, upkeep
from webapp.delivery.decide import LOOKS, Claimed, Result
from webapp.delivery.lanes import UNREACHABLE, Limits, Pace
from webapp.delivery.models import Message, Outcome, State
from webapp.installation import Installation
from webapp.mailers.errors import Cause, TransientError, UncertainError
from webapp.microsoft.graph import Graph
from webapp.microsoft.sent_items import is_there, may_look, path_of
from webapp.mime.outgoing import message_id_of
from webapp.sites.models import AfterUnclear, Mode, Site

LOST = UncertainError("504 Gateway Time-out", code="504", cause_code=Cause.LOST_ANSWER)
UNCLEAR = Result(error=LOST, version=1, can_settle=True, details={"message_id": "<a@b>"})
FOUND, NOT_FOUND = Result(found=True, version=1), Result(found=False, version=1)
CANNOT_KNOW = Result(found=None, version=1)


@pytest.fixture
def world(db_url: str) -> Iterator[World]:
    made = a_world(db_url)
    yield made
    made.db.close()


class Settling(Bench):
    """A drain whose connections can be asked what became of an unclear mail."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
        super().__init__(world, monkeypatch, **given)
        self.began = world.now
        self.site = world.a_site()
        self.connection = world.a_connection(self.site)
        self.lane_id = world.lane_of(self.connection)

    def take_over(self) -> Any:
        drain = super().take_over()
        drain._settling = lambda: {self.connection}  # type: ignore[method-assign]
        return drain

    def lose(self, *recipients: str) -> str:
        """A mail whose answer is lost."""
        queue_id = self.world.accept(self.site, *(recipients or ("kunde@example.org",)))
        (claim,) = self.go()
        self.end(UNCLEAR, claim)
        return queue_id

    def at(self, minutes: float) -> Claimed:
        """The one claim that is out so long after the beginning."""
        self.world.now = self.began + timedelta(minutes=minutes)
        (claim,) = self.go()
        return claim

    def grants(self, *permissions: str) -> None:
        """The connection sends by Microsoft, and may do this there."""
        keyring = Keyring([parse_key(new_key())])
        with self.world.db.write() as session:
            app, mailbox = an_app(session, keyring), a_mailbox(session)
            grant = a_grant(session, keyring, app, mailbox, scopes=list(permissions))
            connection = session.get_one(Connection, self.connection)
            connection.mailer, connection.grant_id = "outlook", grant.id

    def chooses(self, choice: AfterUnclear) -> None:
        with self.world.db.write() as session:
            session.get_one(Site, self.site).after_unclear = choice

    def settled(self, queue_id: str, number: int = 1) -> dict[str, Any]:
        told = self.world.attempts(queue_id)[number - 1].details["settled"]
        assert isinstance(told, dict)
        return told


@pytest.fixture
def bench(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settling]:
    made = Settling(world, monkeypatch)
    yield made
    assert world.gaps() == 0


# ---- the three looks ----


def test_a_mail_that_is_found_was_sent_and_never_goes_again(bench: Settling) -> None:
    queue_id = bench.lose()
    assert bench.world.message(queue_id).state == State.UNCERTAIN
    look = bench.at(1)
    assert (look.is_look, look.sought, look.recipients) == (True, "<a@b>", ())
    assert bench.world.message(queue_id).state == State.UNCERTAIN
    assert bench.world.gaps() == 0
    assert bench.end(FOUND, look) == []
    message = bench.world.message(queue_id)
    assert (message.state, message.due_at, message.attempts) == (State.SENT, None, 1)
    assert not message.maybe_twice
    assert set(bench.world.recipients(queue_id).values()) == {State.SENT}
    (attempt,) = bench.world.attempts(queue_id)
    assert attempt.outcome == Outcome.UNCERTAIN
    assert bench.settled(queue_id) == {
        "what": "found",
        "at": bench.world.now.isoformat(),
        "looks": 1,
        "choice": "rather-twice",
        "unclear": 1,
    }
    bench.world.later(hours=80)
    assert bench.go() == []


def test_it_is_looked_for_after_one_five_and_fifteen_minutes(bench: Settling) -> None:
    bench.lose()
    for before, minutes in ((0.9, 1), (4.9, 5), (14.9, 15)):
        bench.world.now = bench.began + timedelta(minutes=before)
        assert bench.go() == []
        assert bench.end(NOT_FOUND, bench.at(minutes)) == [] or minutes == 15


def test_what_is_not_there_after_the_third_look_goes_once_more_and_is_marked(
    bench: Settling,
) -> None:
    queue_id = bench.lose()
    for minutes in (1, 5, 15):
        again = bench.end(NOT_FOUND, bench.at(minutes))
    (claim,) = again
    assert (claim.is_look, claim.number) == (False, 2)
    assert bench.world.message(queue_id).maybe_twice
    bench.succeed(claim)
    assert bench.world.message(queue_id).state == State.SENT
    assert bench.settled(queue_id)["looks"] == LOOKS


def test_a_site_that_wants_nothing_twice_leaves_it_unclear(bench: Settling) -> None:
    bench.chooses(AfterUnclear.NEVER_TWICE)
    queue_id = bench.lose()
    assert bench.world.message(queue_id).due_at is not None
    for minutes in (1, 5, 15):
        again = bench.end(NOT_FOUND, bench.at(minutes))
    assert again == []
    message = bench.world.message(queue_id)
    assert (message.state, message.due_at, message.attempts) == (State.UNCERTAIN, None, 1)
    assert bench.settled(queue_id)["choice"] == "never-twice"
    bench.world.later(hours=80)
    assert bench.go() == []


def test_such_a_site_too_learns_that_it_was_found(bench: Settling) -> None:
    bench.chooses(AfterUnclear.NEVER_TWICE)
    queue_id = bench.lose()
    bench.end(FOUND, bench.at(1))
    assert bench.world.message(queue_id).state == State.SENT


def test_a_second_lost_answer_is_looked_for_again_and_then_left(bench: Settling) -> None:
    queue_id = bench.lose()
    for minutes in (1, 5, 15):
        again = bench.end(NOT_FOUND, bench.at(minutes))
    bench.end(UNCLEAR, *again)
    for minutes in (16, 20, 30):
        look = bench.at(minutes)
        assert look.is_look
        assert bench.end(NOT_FOUND, look) == []
    message = bench.world.message(queue_id)
    assert (message.state, message.due_at, message.attempts) == (State.UNCERTAIN, None, 2)


def test_where_nobody_can_know_the_choice_counts_at_once(bench: Settling) -> None:
    queue_id = bench.lose()
    (claim,) = bench.end(CANNOT_KNOW, bench.at(1))
    assert not claim.is_look
    assert bench.settled(queue_id)["what"] == "cannot-know"


def test_without_a_way_to_ask_it_is_as_it_was(bench: Settling) -> None:
    queue_id = bench.world.accept(bench.site)
    bench.go()
    bench.fail(LOST)
    claim = bench.at(1)
    assert (claim.is_look, claim.number) == (False, 2)
    bench.succeed(claim)
    assert bench.world.message(queue_id).maybe_twice
    assert bench.settled(queue_id)["what"] == "cannot-know"


# ---- what can go wrong with a look ----


@pytest.mark.parametrize(
    "error", [NOBODY, TransientError("busy", code="503"), TransientError("Postroom: KeyError")]
)
def test_a_look_that_asked_nobody_is_a_look_later_and_no_resend(
    bench: Settling, error: TransientError
) -> None:
    queue_id = bench.lose()
    now = bench.began
    for _ in range(20):
        now += timedelta(minutes=16)
        bench.world.now = now
        (look,) = bench.go()
        assert look.is_look
        assert bench.fail(error, look) == []
    message = bench.world.message(queue_id)
    assert (message.state, message.looks, message.attempts) == (State.UNCERTAIN, 0, 1)
    bench.world.later(minutes=16)
    bench.end(FOUND, *bench.go())
    assert bench.world.message(queue_id).state == State.SENT


def test_looks_in_vain_for_as_long_as_a_mail_is_tried_end_by_the_choice(bench: Settling) -> None:
    queue_id = bench.lose()
    bench.world.later(hours=73)
    (again,) = bench.fail(NOBODY, *bench.go())
    assert not again.is_look
    bench.succeed(again)
    assert bench.world.message(queue_id).state == State.SENT


def test_a_look_that_is_asked_to_slow_down_stops_the_lane(bench: Settling) -> None:
    bench.lose()
    bench.fail(SLOWER, bench.at(1))
    assert bench.lane(bench.lane_id).throttled == 1


def test_a_worker_that_is_killed_with_a_look_out_leaves_it_to_the_next(bench: Settling) -> None:
    queue_id = bench.lose()
    bench.at(1)
    bench.take_over()
    assert bench.go() == []
    bench.world.later(minutes=6)
    (look,) = bench.go()
    assert (look.is_look, look.looks) == (True, 0)
    bench.end(FOUND, look)
    message = bench.world.message(queue_id)
    assert (message.state, message.unclear) == (State.SENT, 1)


@pytest.mark.parametrize("choice", list(AfterUnclear))
def test_a_killed_attempt_is_looked_for_where_it_can_be(
    bench: Settling, choice: AfterUnclear
) -> None:
    bench.chooses(choice)
    queue_id = bench.world.accept(bench.site)
    bench.go()
    bench.grants("Mail.Send", "Mail.Read")
    bench.take_over()
    assert bench.go() == []
    look = bench.at(1)
    assert (look.is_look, look.sought) == (True, "")
    bench.end(FOUND, look)
    assert bench.world.message(queue_id).state == State.SENT


def test_a_mail_is_never_asked_about_twice_at_a_time(bench: Settling) -> None:
    bench.lose()
    look = bench.at(1)
    with bench.world.db.write() as session:
        session.execute(sa.update(Message).values(due_at=bench.world.now))
    assert bench.go() == [look]
    assert bench.end(FOUND, look) == []


def test_a_killed_attempt_goes_at_once_where_nobody_may_look(bench: Settling) -> None:
    queue_id = bench.world.accept(bench.site)
    bench.go()
    bench.grants("Mail.Send")
    bench.take_over()
    (claim,) = bench.go()
    assert (claim.is_look, claim.number) == (False, 2)
    bench.succeed(claim)
    assert bench.world.message(queue_id).maybe_twice


def test_a_page_that_decides_during_a_look_is_right(bench: Settling) -> None:
    queue_id = bench.lose()
    look = bench.at(1)
    with bench.world.db.write() as session:
        site = session.get_one(Site, bench.site)
        site.mode = Mode.DO_NOT_SEND
        replan.mode_changed(session, site, bench.world.now)
    bench.end(FOUND, look)
    assert bench.world.message(queue_id).state == State.BLOCKED


def test_a_person_who_sends_it_again_is_not_asked_to_wait(bench: Settling) -> None:
    bench.chooses(AfterUnclear.NEVER_TWICE)
    queue_id = bench.lose()
    bench.end(CANNOT_KNOW, bench.at(1))
    with bench.world.db.write_connection() as connection:
        actions.retry(connection, bench.world.message(queue_id).id, bench.world.now)
    (claim,) = bench.go()
    assert (claim.is_look, claim.number) == (False, 2)
    bench.succeed(claim)


def test_the_other_recipients_of_a_divided_mail_go_after_the_look(
    bench: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.drain, "_most_recipients", lambda: {bench.connection: 1})
    queue_id = bench.lose("a@example.org", "b@example.org")
    assert bench.go() == []
    (second,) = bench.end(FOUND, bench.at(1))
    assert [address for _, address in second.recipients] == ["b@example.org"]
    bench.succeed(second)
    assert set(bench.world.recipients(queue_id).values()) == {State.SENT}
    assert bench.world.message(queue_id).state == State.SENT


def test_a_look_does_not_count_as_a_mail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Settling(world, monkeypatch)
    with world.db.write() as session:
        session.execute(sa.text("UPDATE lane SET per_hour = 2"))
    bench.lose()
    bench.end(NOT_FOUND, bench.at(1))
    world.accept(bench.site)
    (mail,) = bench.go()
    assert not mail.is_look


# ---- the question ----


@pytest.mark.parametrize(
    ("granted", "may"),
    [
        (["User.Read", "Mail.Send"], False),
        (["Mail.Send", "Mail.ReadWrite"], True),
        (["mail.read"], True),
        (["Mail.ReadBasic"], True),
        (["Mail.ReadWrite.Shared"], False),
        ([], False),
    ],
)
def test_only_a_permission_to_read_lets_us_look(granted: list[str], may: bool) -> None:
    assert may_look(granted) is may


def test_the_message_id_is_quoted_for_odata_and_for_the_wire() -> None:
    path = path_of("<it's+a&b%@example.com>")
    query = parse_qs(urlsplit(path).query, strict_parsing=True)
    assert query["$filter"] == ["internetMessageId eq '<it''s+a&b%@example.com>'"]
    assert query["$top"] == ["2"]
    assert not set("<>' +\"") & set(path)


def test_the_message_id_is_the_one_that_left() -> None:
    own = b"Subject: x\r\nMessage-ID:\r\n <own@example.com>\r\n\r\nHello"
    assert message_id_of(own, queue_id="Q1", hostname="post.example") == "<own@example.com>"
    none = b"Subject: x\r\n\r\nHello"
    assert message_id_of(none, queue_id="Q1", hostname="post.example") == "<Q1@post.example>"


class Said(Graph):
    """Graph with an answer of our own."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def ask(self, token: str, path: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"value": []}, False),
        ({"value": [{"id": "1", "internetMessageId": "<a@b>"}]}, True),
        ({"value": [{"id": "1", "internetMessageId": "<other@b>"}]}, False),
        (TransientError("no", code="403 ErrorAccessDenied"), None),
        (TransientError("no", code="404 MailboxNotEnabledForRESTAPI"), None),
    ],
)
def test_what_the_answer_means(answer: object, found: bool | None) -> None:
    assert is_there(Said(answer), "token", "<a@b>") is found


@pytest.mark.parametrize("answer", [{}, {"value": "no"}, TransientError("busy", code="503")])
def test_an_answer_that_is_none_is_a_look_later(answer: object) -> None:
    with pytest.raises(TransientError):
        is_there(Said(answer), "token", "<a@b>")


# ---- with a worker and the sandbox ----


@pytest.fixture
def post(db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GraphPost]:
    soon = tuple(timedelta(seconds=seconds) for seconds in (0.2, 0.4, 0.6))
    monkeypatch.setattr(settle, "LOOK_AFTER", soon)
    for module in (decide, settle, upkeep):
        monkeypatch.setattr(module, "SETTLE_AFTER", soon[0])
    monkeypatch.setattr("webapp.delivery.worker.POLL_SECONDS", 0.2)
    with SandboxThread() as sandbox:
        named = {name.removeprefix("POSTROOM_"): v for name, v in sandbox.environment.items()}
        made = GraphPost(an_installation(db_url, tmp_path, **named), sandbox)
        yield made
        assert made.world.gaps() == 0
        made.close()


def permit(sandbox: SandboxThread, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Whoever links from here on grants more than sending."""
    permissions = (*linking.PERMISSIONS, *more)
    scopes = " ".join(f"{sandbox.graph}/{permission}" for permission in permissions)
    usual = sandbox.authorize_url

    def asking(segment: str = "common", **given: str) -> str:
        scope = f"openid profile email offline_access {scopes}"
        return usual(segment, **{"scope": scope, **given})

    monkeypatch.setattr(sandbox, "authorize_url", asking)
    monkeypatch.setattr(linking, "PERMISSIONS", permissions)


@pytest.mark.parametrize("fault", ["sent_504", "dropped_after"])
def test_a_mail_that_went_out_behind_a_lost_answer_is_found(
    post: GraphPost, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    permit(post.sandbox, monkeypatch, "Mail.ReadWrite")
    post.link()
    post.sandbox.fault(fault, times=1)
    post.work()
    post.hand_in()
    post.wait_for(lambda: post.states() == [State.SENT])
    (attempt,) = post.attempts()
    assert (attempt.outcome, attempt.details["settled"]["what"]) == (Outcome.UNCERTAIN, "found")
    assert list(post.sandbox.counts().values()) == [1]


def test_the_copy_may_take_its_time(post: GraphPost, monkeypatch: pytest.MonkeyPatch) -> None:
    permit(post.sandbox, monkeypatch, "Mail.ReadBasic")
    post.link()
    post.sandbox.fault("sent_504", times=1)
    post.sandbox.fault("sent_items_empty_for", times=2)
    post.work()
    post.hand_in()
    post.wait_for(lambda: post.states() == [State.SENT])
    (attempt,) = post.attempts()
    assert attempt.details["settled"]["looks"] == LOOKS
    assert list(post.sandbox.counts().values()) == [1]


def test_a_mail_that_is_nowhere_goes_once_more(
    post: GraphPost, monkeypatch: pytest.MonkeyPatch
) -> None:
    permit(post.sandbox, monkeypatch, "Mail.Read")
    post.link()
    post.sandbox.fault("sent_504", times=1)
    post.sandbox.fault("sent_items_empty_for")
    post.work()
    post.hand_in()
    post.wait_for(lambda: post.states() == [State.SENT])
    assert [attempt.outcome for attempt in post.attempts()] == [Outcome.UNCERTAIN, Outcome.SENT]
    assert post.world.message(post.queue_ids()[0]).maybe_twice


def test_without_the_permission_nobody_looks(post: GraphPost) -> None:
    post.link()
    post.sandbox.fault("sent_504", times=1)
    post.work()
    post.hand_in()
    post.wait_for(lambda: post.states() == [State.SENT])
    assert len(post.attempts()) == 2
    assert post.attempts()[0].details["settled"]["what"] == "cannot-know"
    assert not [call for call in post.sandbox.calls()["graph"] if "sentitems" in call["path"]]


def test_a_look_that_meets_bad_weather_is_made_later(
    post: GraphPost, monkeypatch: pytest.MonkeyPatch
) -> None:
    permit(post.sandbox, monkeypatch, "Mail.ReadWrite")
    post.link()
    post.sandbox.fault("sent_504", times=1)
    post.work()
    post.hand_in()
    post.wait_for(lambda: post.states() == [State.UNCERTAIN])
    post.sandbox.fault("server_error", times=2)
    post.wait_for(lambda: post.states() == [State.SENT])
    assert list(post.sandbox.counts().values()) == [1]


# ---- the stand-in ----


def test_sent_items_answer_as_their_description_says(
    post: GraphPost, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_contract.description()
    permit(post.sandbox, monkeypatch, "Mail.ReadWrite")
    post.link()
    post.work()
    post.hand_in()
    post.wait_for(lambda: post.states() == [State.SENT])
    message_id = post.sandbox.mails()[0]["message_id"]
    tokens = linking.sign_in(post.sandbox, ORDERS)
    with post.sandbox.session() as session:
        for wanted, many in ((path_of(message_id), 1), (path_of("<no@where>"), 0)):
            answer = session.get(
                f"{post.sandbox.graph}/v1.0{wanted}",
                headers={"Authorization": f"Bearer {tokens['access_token']}"},
                timeout=30,
            )
            assert answer.status_code == 200
            graph_contract.check_prepared(answer.request)
            graph_contract.check_response(answer)
            assert len(answer.json()["value"]) == many
        refused = session.get(
            f"{post.sandbox.graph}/v1.0/me/mailFolders/sentitems/messages?$filter=subject eq 'x'",
            headers={"Authorization": f"Bearer {tokens['access_token']}"},
            timeout=30,
        )
        assert refused.status_code == 400
        graph_contract.check_response(refused)


def test_the_stand_in_shows_nothing_without_the_permission(post: GraphPost) -> None:
    tokens = linking.sign_in(post.sandbox, ORDERS)
    with post.sandbox.session() as session:
        answer = session.get(
            f"{post.sandbox.graph}/v1.0{path_of('<a@b>')}",
            headers={"Authorization": f"Bearer {tokens['access_token']}"},
            timeout=30,
        )
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "ErrorAccessDenied"


# ---- told ----


@pytest.fixture
def log(client: Browser, installation: Installation) -> Log:
    return Log(client, installation, Role.OPERATOR)


@pytest.mark.parametrize(
    ("told", "title", "text"),
    [
        ({"what": "found", "looks": 2}, "Found in Sent Items", "is not sent again"),
        ({"what": "not-found", "looks": 2}, "Not in Sent Items yet", "Looked 2 times."),
        (
            {"what": "not-found", "looks": 3, "choice": "rather-twice", "unclear": 1},
            "Not in Sent Items",
            "rather have a mail twice than never: it is sent once more",
        ),
        (
            {"what": "not-found", "looks": 3, "choice": "never-twice", "unclear": 1},
            "Not in Sent Items",
            "This site wants no mail twice",
        ),
        (
            {"what": "cannot-know", "looks": 0, "choice": "rather-twice", "unclear": 2},
            "Nobody can look up whether it went out",
            "sent once more already",
        ),
        ({"what": 7, "at": 7, "looks": "x"}, "Nobody can look up", "left as it is"),
    ],
)
def test_the_page_of_a_mail_tells_what_became_of_a_lost_answer(
    log: Log, told: dict[str, Any], title: str, text: str
) -> None:
    details = {"settled": {"at": "2026-11-23T14:05:00+00:00"} | told}
    lost = {"outcome": Outcome.UNCERTAIN, "cause": "lost-answer", "details": details}
    page = log.open(log.add([lost], state=State.UNCERTAIN))
    assert [each for each in titles(page) if each.startswith(title)]
    assert text in story(page)


def test_the_page_of_a_mail_says_that_it_is_looked_for(
    log: Log, installation: Installation
) -> None:
    with installation.db.write() as session:
        site = session.scalars(sa.select(Site)).one()
        connection = a_connection(session, site, mailer="outlook")
    path = log.add(
        state=State.UNCERTAIN,
        due_at=installation.db.now() + timedelta(minutes=1),
        connection_id=connection.id,
        lane_id=connection.lane_id,
        unclear=1,
    )
    assert "Microsoft is asked whether it lies in Sent Items" in story(log.open(path))


def test_the_page_of_a_mail_says_that_its_server_cannot_be_reached(
    log: Log, installation: Installation
) -> None:
    now = installation.db.now()
    with installation.db.write() as session:
        site = session.scalars(sa.select(Site)).one()
        lane = a_lane(
            session,
            is_blocked=True,
            trips=2,
            blocked_kind=UNREACHABLE,
            blocked_since=now,
            blocked_until=now + timedelta(minutes=1),
        )
        connection = a_connection(session, site, lane=lane)
    path = log.add(state=State.DEFERRED, due_at=now, connection_id=connection.id, lane_id=lane.id)
    assert "The remote cannot be reached since" in story(log.open(path))
    assert "Next try at" in story(log.open(path))


def test_a_mail_that_waits_for_the_recipients_of_a_day_says_so(
    log: Log, installation: Installation
) -> None:
    now = installation.db.now()
    pace = Pace(Limits(recipients_per_day=10), {})
    pace.take(now, 1, 10)
    with installation.db.write() as session:
        site = session.scalars(sa.select(Site)).one()
        lane = a_lane(session, recipients_per_day=10, windows=pace.stored())
        connection = a_connection(session, site, lane=lane)
    path = log.add(state=State.QUEUED, due_at=now, connection_id=connection.id, lane_id=lane.id)
    assert "Waits for room: 10 recipients a day" in story(log.open(path))
