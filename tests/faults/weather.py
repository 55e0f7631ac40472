"""An installation in bad weather: what was handed in, what arrived, and what must add up."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from tests.faults.rig import Clients, GraphSink, House, wait_for
from tests.rig.linking import link
from tests.rig.postgres import PostgresServer, find_postgres
from webapp import config
from webapp.delivery.models import Lane, Message, State
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
    told: dict[str, set[str]] = field(default_factory=dict)

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

    def account(self, name: str) -> None:
        """By ids: nothing answered is missing, nothing came twice without its mark."""
        arrived, clients = self.sink.arrived, self.clients
        messages = {mail["message_id"]: mail for mail in self.house.made("message", "list")}
        twice = {name for name, count in arrived.items() if count > 1}
        marked = {name for name, mail in messages.items() if mail["maybe_twice"]}
        assert clients.answered - arrived.keys() == set()
        assert twice - marked == set()
        assert max(arrived.values(), default=0) <= 2
        assert b"BAD  ledger" not in self.house.command("doctor")
        figures = {
            "offered": clients.offered,
            "answered": clients.answered,
            "arrived": set(arrived),
            "twice": twice,
            "marked": marked,
        }
        said = (f"{len(now - self.told.get(what, set()))} {what}" for what, now in figures.items())
        database = "SQLite" if self.server is None else "PostgreSQL"
        print(f"{database}, {name}: {', '.join(said)}")
        self.told = {what: set(names) for what, names in figures.items()}


def is_over(installation: Installation) -> bool:
    with installation.db.write() as session:
        now = installation.db.now()
        session.execute(sa.update(Message).where(Message.due_at > now).values(due_at=now))
        session.execute(sa.update(Lane).where(Lane.blocked_until > now).values(blocked_until=now))
        return not session.scalar(sa.select(Message.id).where(IS_OPEN).limit(1))


class NoPostgres(Exception):
    """There is no server to start on this machine."""


@contextmanager
def weather_on(database: str, folder: Path, module: str = "webapp.cli") -> Iterator[Weather]:
    """A house with one linked site, started by a module; raises NoPostgres."""
    with ExitStack() as stack:
        server, url = None, f"sqlite:///{folder / 'postroom.db'}"
        if database == "postgresql":
            home = find_postgres()
            if home is None:
                raise NoPostgres
            server = PostgresServer(home)
            stack.callback(server.stop)
            url = stack.enter_context(server.empty_database())
        sink = GraphSink(lasts=TOKENS_LAST)
        stack.callback(sink.close)
        house = House(
            folder / "instance", url, module=module, environment_more=dict(sink.environment)
        )
        house.command("migrate")
        slug = house.made("site", "create", "Shop")["slug"]
        login = house.made("credential", "create", slug, "--kind", "smtp")
        sink.connect(house, slug)
        house.start()
        clients = Clients(house.smtp, login["username"], login["password"])
        yield Weather(house, sink, clients, slug, server)
        assert house.stop() == 0
