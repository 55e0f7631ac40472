"""kill -9 while a backup carries: what the primary connection refuses, and all there is while it is
down, arrives once by the backup, or twice and is marked."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.faults.rig import USUAL_DELAY, Clients, House, Sink, wait_for
from tests.faults.test_kill import OPEN
from webapp import config
from webapp.connections.models import Backup, Connection
from webapp.installation import open_installation
from webapp.sites.models import Site

MAILS = 600 if os.environ.get("TEST_FULL") == "1" else 60


class Picky(Sink):
    """Refuses every third mail, and can be taken down and put up again."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content
        raw = content if isinstance(content, bytes) else (content or "").encode()
        number = int(raw.partition(b"Subject: Mail ")[2].split()[0])
        if number % 3 == 0:
            return "550 5.7.1 not this one"
        return await super().handle_DATA(server, session, envelope)

    def down(self) -> None:
        self._controller.stop()

    def close(self) -> None:
        self._controller.stop(no_assert=True)

    def up(self) -> None:
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self._controller.start()


@pytest.fixture
def sinks() -> Iterator[tuple[Picky, Sink]]:
    primary, backup = Picky(), Sink()
    yield primary, backup
    backup.close()
    primary.close()


@pytest.fixture
def house(db_url: str, tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "instance", db_url)
    made.command("migrate")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


def chain(house: House, primary: Picky, backup: Sink) -> str:
    """A site with both, that waits for nothing."""
    slug: str = house.made("site", "create", "Shop")["slug"]
    backup.connect(house, slug)
    primary.connect(house, slug)
    with (
        closing(open_installation(config.load(house.environment))) as opened,
        opened.db.write() as session,
    ):
        site = session.scalars(sa.select(Site)).one()
        site.patience_minutes = 0
        others = sa.select(Connection).where(Connection.id != site.primary_connection_id)
        second = session.scalars(others).one()
        session.add(Backup(site_id=site.id, position=1, connection_id=second.id))
    return slug


def test_a_backup_loses_nothing_whoever_is_killed(house: House, sinks: tuple[Picky, Sink]) -> None:
    primary, backup = sinks
    slug = chain(house, primary, backup)
    login = house.made("credential", "create", slug, "--kind", "smtp")
    house.start()
    clients = Clients(house.smtp, login["username"], login["password"])
    third = MAILS // 3

    # It refuses some; the worker is killed while mails of both are under way.
    primary.delay = backup.delay = 0.5
    handing_in = clients.run(range(third), threads=6)
    wait_for(lambda: primary.in_hand and backup.in_hand, "mails under way at both")
    house.kill("deliver")
    handing_in.join()
    primary.delay = USUAL_DELAY
    wait_for(lambda: settled(house), "the end of the first third")

    # It is down, and all mail leaves by the backup; everything is killed meanwhile.
    primary.down()
    standing = backup.in_hand
    handing_in = clients.run(range(third, 2 * third), threads=6)
    wait_for(lambda: backup.in_hand > standing + 1, "mails under way at the backup")
    house.kill_host()
    house.start()
    handing_in.join()
    backup.delay = USUAL_DELAY
    wait_for(lambda: settled(house), "the end of the second third")

    # It is back.
    primary.up()
    clients.run(range(2 * third, MAILS), threads=6).join()
    wait_for(lambda: settled(house), "the end of the queue")

    messages = {message["message_id"]: message for message in house.made("message", "list")}
    arrived = primary.arrived + backup.arrived
    twice = {name for name, count in arrived.items() if count > 1}
    marked = {name for name, message in messages.items() if message["maybe_twice"]}
    assert clients.answered - arrived.keys() == set()
    assert twice - marked == set()
    assert twice, "nothing was killed between a mail and its answer: this run proves little"
    assert max(arrived.values()) <= 2
    assert backup.arrived.total() >= third
    assert {message["state"] for message in messages.values()} == {"sent"}
    assert messages.keys() - clients.offered == set()
    assert b"BAD  ledger" not in house.command("doctor")
    assert house.stop() == 0
    print(len(clients.offered), len(clients.answered), primary.arrived.total(), len(twice))


def settled(house: House) -> bool:
    """Whether nothing is on its way any more; what may have arrived is sent once more before."""
    states = {message["state"] for message in house.made("message", "list")}
    return not states & {*OPEN, "uncertain"}
