"""Small words of the log, without a page."""

from datetime import datetime, timedelta

import pytest

from tests.factories import a_time
from webapp.delivery.models import Lane
from webapp.maillog.service import Reason, waiting_for
from webapp.maillog.story import said
from webapp.maillog.views import breakable


@pytest.mark.parametrize(
    ("code", "words", "remote_id", "shown"),
    [
        ("550 5.1.1", "550 5.1.1 No such user", "", "550 5.1.1 No such user"),
        ("550 5.1.1", "550-5.1.1 No such\n550 user", "", "550-5.1.1 No such\n550 user"),
        ("429", "Slow down", "", "429 Slow down"),
        ("", "Timed out", "", "Timed out"),
        ("250", "", "", "250"),
        ("250", "250 queued as 4X", "4X", "250 queued as 4X"),
        ("202", "Accepted", "abc", "202 Accepted\nabc"),
        ("", "", "", ""),
    ],
)
def test_the_code_of_the_remote_is_shown_once(
    code: str, words: str, remote_id: str, shown: str
) -> None:
    assert said(code, words, remote_id) == shown


def test_an_address_may_break_at_its_signs_and_keeps_every_character() -> None:
    assert breakable("a.b@c.example") == "a.<wbr>b@<wbr>c.<wbr>example"
    assert breakable("<x>@y") == "&lt;x&gt;@<wbr>y"
    long = "x" * 60 + "@y"
    assert str(breakable(long)).replace("<wbr>", "") == long
    assert max(map(len, str(breakable(long)).split("<wbr>"))) <= 25
    assert breakable("") == ""


def a_lane(**values: object) -> Lane:
    given = {"is_blocked": False, "windows": {}, "blocked_kind": "", "blocked_words": ""} | values
    return Lane(id=1, key="k", **given)


NOW = a_time()


@pytest.mark.parametrize(
    ("due_at", "lane", "reason", "until"),
    [
        (None, a_lane(), None, None),
        (NOW, None, Reason.NO_CONNECTION, None),
        (NOW, a_lane(), Reason.TURN, None),
        (NOW + timedelta(minutes=5), a_lane(), Reason.LATER, NOW + timedelta(minutes=5)),
        (NOW, a_lane(is_blocked=True), Reason.BLOCKED, None),
        (NOW, a_lane(is_blocked=True, blocked_until=NOW), Reason.TURN, None),
        (
            NOW + timedelta(minutes=9),
            a_lane(is_blocked=True, blocked_until=NOW + timedelta(minutes=2)),
            Reason.BLOCKED,
            NOW + timedelta(minutes=9),
        ),
    ],
)
def test_what_a_mail_waits_for(
    due_at: datetime | None, lane: Lane | None, reason: Reason | None, until: datetime | None
) -> None:
    found = waiting_for(due_at, lane, NOW)
    assert (found and found.reason) == reason
    assert (found and found.until) == until


def test_a_lane_without_room_is_what_a_due_mail_waits_for() -> None:
    second = int(NOW.timestamp())
    lane = a_lane(per_minute=2, windows={"minute": {str(second - 1): 2}})
    found = waiting_for(NOW, lane, NOW)
    assert found is not None
    assert found.reason is Reason.ROOM
    assert found.until is not None
    assert NOW < found.until <= NOW + timedelta(seconds=62)
