"""kill -9 of each process in turn while mail is handed in: nothing that was answered is lost, and
nothing arrives twice without being marked. Meanwhile rules change, and a backup carries part of it.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.faults.rig import USUAL_DELAY, Clients, GraphSink, House, Remote, Sink, wait_for
from tests.rig.ports import free_port
from webapp import config, ids
from webapp.connections.models import Backup, Connection
from webapp.delivery import replan
from webapp.delivery.models import Attempt
from webapp.installation import Installation, open_installation
from webapp.routing.conditions import Condition, Operator, Property, stored_groups
from webapp.routing.models import Rule, RuleKind
from webapp.sites.models import Site

MAILS = 1000 if os.environ.get("TEST_FULL") == "1" else 150
PARTS = ("deliver", "submission", "web", "serve")
OPEN = {"queued", "sending", "deferred", "held"}


@pytest.fixture(params=[Sink, GraphSink], ids=["smtp", "graph"])
def sink(request: pytest.FixtureRequest) -> Iterator[Remote]:
    made: Remote = request.param()
    yield made
    made.close()


@pytest.fixture
def house(db_url: str, tmp_path: Path, sink: Remote) -> Iterator[House]:
    made = House(tmp_path / "instance", db_url, environment_more=sink.environment)
    made.command("migrate")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


def test_what_was_answered_arrives_whatever_is_killed(house: House, sink: Remote) -> None:
    slug = house.made("site", "create", "Shop")["slug"]
    login = house.made("credential", "create", slug, "--kind", "smtp")
    sink.connect(house, slug)
    with closing(open_installation(config.load(house.environment))) as installation:
        add_detour(house, installation, slug)
        carry_through(house, sink, slug, login, installation)


def carry_through(
    house: House, sink: Remote, slug: str, login: dict[str, str], installation: Installation
) -> None:
    """Hand in, kill, change the rules; then count."""
    house.start()
    clients = Clients(house.smtp, login["username"], login["password"])
    share = MAILS // (len(PARTS) + 1)
    for turn, part in enumerate((*PARTS, "")):
        handing_in = clients.run(range(turn * share, (turn + 1) * share), threads=6)
        wait_for(lambda: len(clients.offered) > turn * share + share // 3, "a third of the mails")  # noqa: B023
        if part == "deliver":
            sink.delay = 0.7  # long enough to be seen
            wait_for(lambda: sink.in_hand > 2, "mails that arrived and are not answered")
        if part:
            house.kill(part)
        sink.delay = USUAL_DELAY
        route(installation, slug, ending=str(turn))
        handing_in.join()
    wait_for(lambda: not still_open(house), "the end of the queue")

    messages = {message["message_id"]: message for message in house.made("message", "list")}
    arrived = sink.arrived
    twice = {name for name, count in arrived.items() if count > 1}
    marked = {name for name, message in messages.items() if message["maybe_twice"]}
    assert clients.answered - arrived.keys() == set()
    assert twice - marked == set()
    assert twice, "nothing was killed between a mail and its answer: this run proves little"
    assert max(arrived.values()) <= 2
    assert messages.keys() - clients.offered == set()
    assert b"BAD  ledger" not in house.command("doctor")
    assert tried_in_vain(installation) > 0
    assert house.stop() == 0
    database = "SQLite" if installation.db.is_sqlite else "PostgreSQL"
    print(
        f"{database}, {type(sink).__name__}: "
        f"{len(clients.offered)} offered, {len(clients.answered)} answered, "
        f"{len(arrived)} arrived, {len(twice)} twice, {len(marked)} marked"
    )


def add_detour(house: House, installation: Installation, slug: str) -> None:
    """A connection to where nobody listens, that a rule chooses; the primary one stands in."""
    house.made(
        "connection", "create", slug, "--mailer", "smtp", "--name", "Closed",
        "--set", "host=127.0.0.1", "--set", f"port={free_port()}", "--set", "encryption=none",
        "--from-email", "shop@example.com",
    )  # fmt: skip
    now = installation.db.now()
    with installation.db.write() as session:
        site = session.scalars(sa.select(Site).where(Site.slug == slug)).one()
        closed = session.scalars(sa.select(Connection).where(Connection.nickname == "Closed")).one()
        site.routing_enabled, site.patience_minutes = True, 0
        assert site.primary_connection_id is not None
        session.add(Backup(site_id=site.id, position=1, connection_id=site.primary_connection_id))
        session.add(
            Rule(
                uid=ids.short_id(),
                site_id=site.id,
                kind=RuleKind.ROUTE,
                position=1,
                connection_id=closed.id,
                groups=[],
                created_at=now,
                updated_at=now,
            )
        )
    route(installation, slug, ending="9")


def route(installation: Installation, slug: str, *, ending: str) -> None:
    """Let the rule catch mails whose number ends so, and plan anew what waits."""
    condition = Condition(property=Property.SUBJECT, operator=Operator.ENDS_WITH, value=ending)
    with installation.db.write() as session:
        site = session.scalars(sa.select(Site).where(Site.slug == slug)).one()
        rule = session.scalars(sa.select(Rule).where(Rule.site_id == site.id)).one()
        rule.groups = stored_groups(((condition,),))
        replan.routing_changed(session, site, installation.db.now())


def tried_in_vain(installation: Installation) -> int:
    """How many mails went to the closed connection before their backup carried them."""
    with installation.db.read() as session:
        query = sa.select(sa.func.count(sa.distinct(Attempt.message_id)))
        return session.scalar(query.where(Attempt.connection_name == "Closed")) or 0


def still_open(house: House) -> bool:
    return any(message["state"] in OPEN for message in house.made("message", "list"))
