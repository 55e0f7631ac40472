"""Bad weather, one storm after another, on both databases: Microsoft throttles, answers 504 to what
it sent, drops connections, is slow, revokes the link in the middle; the database is restarted, a
mail is poison, the host dies. Every mail that was answered is accounted for."""

import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.faults.rig import Clients, GraphSink, House, wait_for
from tests.rig.linking import link
from tests.rig.postgres import PostgresServer, find_postgres
from webapp import config
from webapp.delivery.models import Content, Lane, Message, State
from webapp.installation import Installation, open_installation
from webapp.microsoft.models import Grant

MAILS = 120 if os.environ.get("TEST_FULL") == "1" else 12
"""In each storm."""
TOKENS_LAST = 3
IS_OPEN = sa.or_(Message.due_at.is_not(None), Message.state == State.SENDING)


@dataclass
class Weather:
    """A house that sends through the sandbox, and what became of all mail so far."""

    house: House
    sink: GraphSink
    clients: Clients
    slug: str
    server: PostgresServer | None
    handed_in: int = field(default=0)

    def storm(self, begin: Callable[[], object] = lambda: None) -> None:
        """Hand mail in while something happens."""
        first, self.handed_in = self.handed_in, self.handed_in + MAILS
        handing_in = self.clients.run(range(first, self.handed_in), threads=4)
        wait_for(lambda: len(self.clients.offered) > first + MAILS // 3, "a third of the mails")
        begin()
        handing_in.join()

    def calm(self) -> None:
        """No more faults; whatever waits for a time is due now, and everything ends."""
        self.sink.sandbox.clear()
        with self.installation() as installation:
            wait_for(lambda: is_over(installation), "the end of the queue", seconds=120)

    def installation(self) -> "closing[Installation]":
        return closing(open_installation(config.load(self.house.environment)))

    def kill_host(self) -> None:
        """A power cut. What it may have left to wait for, the lease of a renewal, is over."""
        self.house.kill_host()
        with self.installation() as installation, installation.db.write() as session:
            session.execute(sa.update(Grant).values(lease_owner="", lease_until=None))
        self.house.start()

    def link_again(self) -> None:
        with self.installation() as installation:
            link(installation, self.sink.sandbox, self.slug)

    def account(self) -> None:
        """By ids: nothing answered is missing, nothing came twice without its mark."""
        arrived = self.sink.arrived
        messages = {mail["message_id"]: mail for mail in self.house.made("message", "list")}
        twice = {name for name, count in arrived.items() if count > 1}
        marked = {name for name, mail in messages.items() if mail["maybe_twice"]}
        assert self.clients.answered - arrived.keys() == set()
        assert twice - marked == set()
        assert max(arrived.values(), default=0) <= 2
        assert b"BAD  ledger" not in self.house.command("doctor")


def is_over(installation: Installation) -> bool:
    with installation.db.write() as session:
        now = installation.db.now()
        session.execute(sa.update(Message).where(Message.due_at > now).values(due_at=now))
        session.execute(sa.update(Lane).where(Lane.blocked_until > now).values(blocked_until=now))
        return not session.scalar(sa.select(Message.id).where(IS_OPEN).limit(1))


@pytest.fixture(params=["sqlite", "postgresql"])
def weather(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Weather]:
    with ExitStack() as stack:
        server, url = None, f"sqlite:///{tmp_path / 'postroom.db'}"
        if request.param == "postgresql":
            home = find_postgres()
            if home is None:
                request.getfixturevalue("pg_url")  # says what is missing
            assert home is not None
            server = PostgresServer(home)
            stack.callback(server.stop)
            url = stack.enter_context(server.empty_database())
        sink = GraphSink(lasts=TOKENS_LAST)
        stack.callback(sink.close)
        house = House(tmp_path / "instance", url, environment_more=sink.environment)
        house.command("migrate")
        slug = house.made("site", "create", "Shop")["slug"]
        login = house.made("credential", "create", slug, "--kind", "smtp")
        sink.connect(house, slug)
        house.start()
        clients = Clients(house.smtp, login["username"], login["password"])
        yield Weather(house, sink, clients, slug, server)
        assert house.stop() == 0


def test_every_answered_mail_is_accounted_for_in_any_weather(weather: Weather) -> None:
    sandbox = weather.sink.sandbox
    storms: dict[str, Callable[[], object]] = {
        "429 storm": lambda: sandbox.fault("throttled", times=4, retry_after=1),
        "504 but sent": lambda: sandbox.fault("sent_504", times=4),
        "dropped before": lambda: sandbox.fault("dropped_before", times=4),
        "dropped after": lambda: sandbox.fault("dropped_after", times=4),
        "slow": lambda: sandbox.fault("slow", times=8, milliseconds=1500),
        "revoked in the middle": lambda: sandbox.revoke("orders@contoso.example"),
        "database restarted": lambda: weather.server and weather.server.restart(),
        "host killed": weather.kill_host,
    }
    for name, begin in storms.items():
        weather.storm(begin)
        if name == "revoked in the middle":
            wait_for(lambda: is_stopped_by_one_more(weather), "the refused renewal")
            weather.storm()
            weather.link_again()
        weather.calm()
        weather.account()


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
