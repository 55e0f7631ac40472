"""kill -9 of each process in turn while mail is handed in: nothing that was answered is lost, and
nothing arrives twice without being marked."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rig import USUAL_DELAY, Clients, GraphSink, House, Remote, Sink, wait_for

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
    assert house.stop() == 0
    print(
        f"{len(clients.offered)} offered, {len(clients.answered)} answered, "
        f"{len(arrived)} arrived, {len(twice)} twice, {len(marked)} marked"
    )


def still_open(house: House) -> bool:
    return any(message["state"] in OPEN for message in house.made("message", "list"))
