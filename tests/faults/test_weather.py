"""Bad weather, one storm after another, on both databases: Microsoft throttles, answers 504 to what
it sent, drops connections, is slow, revokes the link in the middle; the database is restarted, a
mail is poison, the host dies. Every mail that was answered is accounted for."""

import time
import zlib
from collections.abc import Callable

import sqlalchemy as sa

from tests.faults.rig import wait_for
from tests.faults.weather import Weather
from webapp.delivery.models import Content, Lane, Message, State
from webapp.installation import Installation


def test_every_answered_mail_is_accounted_for_in_any_weather(weather: Weather) -> None:
    sandbox = weather.sink.sandbox
    storms: dict[str, Callable[[], object]] = {
        "429 storm": lambda: sandbox.fault("throttled", times=4, retry_after=1),
        "504 but sent": lambda: sandbox.fault("sent_504", times=4),
        "dropped before": lambda: sandbox.fault("dropped_before", times=4),
        "dropped after": lambda: sandbox.fault("dropped_after", times=4),
        "slow": lambda: sandbox.fault("slow", times=8, milliseconds=1500),
        "revoked in the middle": lambda: sandbox.revoke("orders@contoso.example"),
        "database restarted": lambda: restart_database(weather),
        "host killed": weather.kill_host,
    }
    for name, begin in storms.items():
        weather.storm(begin)
        if name == "revoked in the middle":
            wait_for(lambda: is_stopped_by_one_more(weather), "the refused renewal")
            weather.storm()
            weather.link_again()
        weather.calm()
        weather.account(name)


def restart_database(weather: Weather) -> None:
    if weather.server is not None:
        weather.server.restart()


def is_stopped_by_one_more(weather: Weather) -> bool:
    """The token at hand is good for a moment yet: a mail a second, until one needs a new token."""
    if is_stopped(weather):
        return True
    weather.clients.run([weather.handed_in], threads=1).join()
    weather.handed_in += 1
    time.sleep(1)
    return False


def is_stopped(weather: Weather) -> bool:
    with weather.installation() as installation, installation.db.read() as session:
        lane = session.scalars(sa.select(Lane)).one()
        return lane.is_blocked and lane.blocked_until is None


def test_one_poison_mail_holds_nobody_up(weather: Weather) -> None:
    pause(weather, True)
    weather.storm()
    poison_one(weather)
    pause(weather, False)
    with weather.installation() as installation:
        wait_for(lambda: len(unsent(installation)) == 1, "the others")
        (left,) = unsent(installation)
    assert left.state in {State.DEFERRED, State.SENDING}
    assert "error" in left.last_words
    assert b"BAD  ledger" not in weather.house.command("doctor")


def pause(weather: Weather, paused: bool) -> None:
    with weather.installation() as installation, installation.db.write() as session:
        session.execute(sa.update(Lane).values(is_paused=paused))


def unsent(installation: Installation) -> list[Message]:
    with installation.db.read() as session:
        return list(session.scalars(sa.select(Message).where(Message.state != State.SENT)))


def poison_one(weather: Weather) -> None:
    """The text of one mail that waits cannot be read any more."""
    with weather.installation() as installation, installation.db.write() as session:
        waiting = sa.select(Message.id).where(Message.state == State.QUEUED).order_by(Message.id)
        key = session.scalars(waiting.limit(1)).one()
        session.execute(
            sa.update(Content)
            .where(Content.message_id == key)
            .values(raw=zlib.compress(b"x")[:-3] + b"\0\0\0")
        )
