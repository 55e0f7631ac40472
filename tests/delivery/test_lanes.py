"""Pace: never more than the limit in any stretch of a window's length."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from webapp.delivery.lanes import Limits, Pace, Window, own_back_off

START = datetime(2026, 11, 23, 14, 0, 0, 250_000, tzinfo=UTC)


@given(
    limit=st.integers(1, 12),
    waits=st.lists(st.floats(0.01, 25.0), min_size=1, max_size=60),
    wanted=st.integers(1, 5),
)
def test_no_stretch_of_a_minute_has_more_than_the_limit(
    limit: int, waits: list[float], wanted: int
) -> None:
    window = Window(limit, timedelta(minutes=1), 60)
    now, taken = START, []
    for wait in waits:
        now += timedelta(seconds=wait)
        count = min(wanted, window.room(now))
        if count:
            window.take(now, count)
            taken.append((now, count))
    for begin, _ in taken:
        inside = sum(count for at, count in taken if begin <= at < begin + timedelta(minutes=1))
        assert inside <= limit


def test_room_comes_back_when_the_window_has_passed() -> None:
    window = Window(3, timedelta(minutes=1), 60)
    window.take(START, 3)
    assert window.room(START + timedelta(seconds=59)) == 0
    assert window.room(START + timedelta(seconds=61)) == 3


def test_next_room_is_the_first_moment_with_room() -> None:
    window = Window(2, timedelta(minutes=1), 60)
    window.take(START, 1)
    window.take(START + timedelta(seconds=20), 1)
    at = window.next_room(START + timedelta(seconds=21))
    assert window.room(at - timedelta(milliseconds=1)) == 0
    assert window.room(at) == 1


def test_next_room_is_now_when_there_is_room() -> None:
    window = Window(2, timedelta(minutes=1), 60)
    window.take(START, 1)
    assert window.next_room(START) == START


def test_a_pace_survives_being_stored() -> None:
    limits = Limits(per_minute=5, per_day=100)
    pace = Pace(limits, {})
    pace.take(START, 5, 5)
    again = Pace(limits, pace.stored())
    assert again.room(START) == 0
    assert again.next_room(START) == pace.next_room(START)


def test_a_lane_without_limits_has_endless_room() -> None:
    assert Pace(Limits(), {}).room(START) is None


def test_what_a_failed_commit_took_can_be_given_back() -> None:
    pace = Pace(Limits(per_minute=5), {})
    pace.take(START, 4, 4)
    pace.take(START, -4, -4)
    assert pace.room(START) == 5


def test_recipients_are_counted_beside_mails() -> None:
    pace = Pace(Limits(per_minute=30, recipients_per_day=10), {})
    assert pace.counts_recipients
    assert pace.fit(START, [4, 4, 4]) == 2
    pace.take(START, 2, 8)
    assert pace.room(START) == 28
    assert pace.fit(START, [2, 1]) == 1
    assert pace.fit(START, [3]) == 0
    soon = START + timedelta(hours=1)
    pace.take(soon, 1, 2)
    again = pace.next_room(soon, 8)
    assert timedelta(hours=24) <= again - START <= timedelta(hours=24, minutes=15)
    assert pace.fit(again, [8]) == 1
    assert pace.next_room(soon, 9) > again


def test_a_mail_larger_than_the_day_waits_for_an_empty_one() -> None:
    pace = Pace(Limits(recipients_per_day=10), {})
    assert pace.fit(START, [25, 1]) == 1
    pace.take(START, 1, 1)
    assert pace.fit(START, [25]) == 0
    assert pace.fit(pace.next_room(START, 25), [25]) == 1


def test_without_a_limit_any_number_of_recipients_fits() -> None:
    pace = Pace(Limits(per_minute=30), {})
    assert not pace.counts_recipients
    assert pace.fit(START, [1000, 1000]) == 2


def test_our_own_back_off_grows_and_ends_at_a_quarter_of_an_hour() -> None:
    pauses = [own_back_off(times) for times in range(12)]
    assert pauses == sorted(pauses)
    assert pauses[0] == timedelta(seconds=5)
    assert pauses[-1] == timedelta(minutes=15)
