"""The reserve of disk: new mail is refused in time, and what was taken still goes out."""

import base64
import os
import random
import smtplib
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import a_user
from tests.faults.rig import House, Sink, wait_for
from tests.ingress.test_accept import a_submission
from tests.ingress.test_smtp import Listener, add_credential
from tests.pages import Browser
from tests.rig.absence import absent
from tests.rig.ports import free_port
from tests.world import World, a_mail, a_world
from webapp.config import load
from webapp.delivery.models import Message, State
from webapp.delivery.wake import Waker
from webapp.disk import Disk, data_folders, free_bytes
from webapp.ingress.accept import Accepted, Acceptor, NotAccepted
from webapp.installation import Installation

MB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode:
        absent("no small file system", remedy="only root may mount one", required=False)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def full_world(small_disk: Path) -> Iterator[World]:
    """A ledger on the small disk."""
    made = a_world(f"sqlite:///{small_disk / 'postroom.db'}")
    yield made
    made.db.close()


Begin = Callable[[World, Disk | None], Acceptor]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    waker = Waker(tmp_path)
    made: list[Acceptor] = []

    def start(world: World, disk: Disk | None) -> Acceptor:
        made.append(Acceptor(world.db, waker, disk))
        return made[-1]

    yield start
    for acceptor in made:
        acceptor.close()
    waker.close()


def a_file(size: int) -> bytes:
    """A mail that no compression makes smaller."""
    return a_mail() + random.Random(size).randbytes(size)


def answer(waiting: "Future[Accepted]") -> str:
    try:
        return waiting.result(30).queue_id
    except NotAccepted as refusal:
        return refusal.reply


def stored(world: World) -> set[str]:
    with world.db.read() as session:
        return set(session.scalars(sa.select(Message.queue_id)))


def is_sound(world: World) -> bool:
    path = world.db.url.database
    assert path
    with sqlite3.connect(path) as connection:
        (words,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    return bool(words == "ok")


def test_it_looks_once_a_second_and_counts_what_is_taken_meanwhile() -> None:
    looks, now = [], [0.0]

    def free(folder: Path) -> int:
        looks.append(folder)
        return 1000

    disk = Disk([Path("/data")], 400, free=free, clock=lambda: now[0])
    assert disk.has_room(600)
    assert not disk.has_room(601)
    disk.take(250)
    assert disk.has_room(100)
    assert not disk.has_room(101)
    assert len(looks) == 1
    now[0] = 1.0
    assert disk.has_room(600)
    assert len(looks) == 2


def test_the_fullest_of_the_file_systems_counts() -> None:
    free = {Path("/a"): 1000, Path("/b"): 300}
    disk = Disk(list(free), 200, free=free.__getitem__)
    assert disk.has_room(100)
    assert not disk.has_room(101)


def test_a_disk_that_cannot_be_looked_at_refuses_nothing(tmp_path: Path) -> None:
    assert Disk([tmp_path / "gone"], 1).has_room(10)


def test_the_folder_of_an_sqlite_file_elsewhere_is_looked_at_too(tmp_path: Path) -> None:
    environ = {"POSTROOM_INSTANCE": str(tmp_path / "i")}
    assert data_folders(load(environ)) == (tmp_path / "i",)
    elsewhere = environ | {"POSTROOM_DATABASE_URL": f"sqlite:///{tmp_path}/d/p.db"}
    assert data_folders(load(elsewhere)) == (tmp_path / "i", tmp_path / "d")
    postgres = environ | {"POSTROOM_DATABASE_URL": "postgresql://db.example/p"}
    assert data_folders(load(postgres)) == (tmp_path / "i",)


def test_a_mail_for_which_only_the_reserve_is_left_is_refused(db_url: str, begin: Begin) -> None:
    world = a_world(db_url)
    site = world.a_site()
    acceptor = begin(world, Disk([Path("/")], 5000, free=lambda folder: 8000))
    assert answer(acceptor.submit(a_submission(site, a_file(2000)))) in stored(world)
    refused = answer(acceptor.submit(a_submission(site, a_file(2000))))
    assert refused.startswith("452 4.3.1 ")
    assert (len(stored(world)), world.gaps()) == (1, 0)
    world.db.close()


def test_smtp_is_told_at_mail_and_at_the_end_of_data(
    db_url: str, tmp_path: Path, begin: Begin
) -> None:
    world = a_world(db_url)
    add_credential(world, world.a_site())
    acceptor = begin(world, Disk([tmp_path], 0, free=lambda folder: 8000))
    settings = load(
        {
            "POSTROOM_INSTANCE": str(tmp_path),
            "POSTROOM_SUBMISSION_LISTEN": f"127.0.0.1:{free_port()}",
        }
    )
    listener = Listener(world, acceptor, settings)
    with listener.talk() as talk:
        talk.sign_in()
        assert talk.say(b"MAIL FROM:<a@b.example> SIZE=8001").startswith("452 4.3.1 ")
        talk.ready_for_data()
        assert talk.say(a_mail(body="x" * 9000) + b".").startswith("452 4.3.1 ")
        talk.ready_for_data()
        assert talk.say(a_mail(body="x" * 7500) + b".").startswith("250 2.0.0 ")
        acceptor._disk = Disk([tmp_path], 9000, free=lambda folder: 8000)
        assert talk.say(b"MAIL FROM:<a@b.example>").startswith("452 4.3.1 ")
    listener.stop()
    assert len(stored(world)) == 1
    world.db.close()


def test_what_was_taken_is_delivered_out_of_the_reserve(
    full_world: World, small_disk: Path, begin: Begin
) -> None:
    site = full_world.a_site()
    lane = full_world.lane_of(full_world.a_connection(site))
    acceptor = begin(full_world, Disk([small_disk], 20 * MB))
    answers = [answer(acceptor.submit(a_submission(site, a_file(200_000)))) for _ in range(90)]
    accepted = {said for said in answers if not said.startswith("452 ")}
    assert 0 < len(accepted) < 90
    assert stored(full_world) == accepted
    full_world.now = full_world.db.now()
    while claims := full_world.claim(lane, 10):
        for claim in claims:
            full_world.finish(claim)
    assert {full_world.message(queue_id).state for queue_id in accepted} == {State.SENT}
    assert full_world.gaps() == 0
    assert free_bytes(small_disk) > MB
    assert is_sound(full_world)


def test_a_disk_that_is_full_in_the_middle_of_a_commit_breaks_nothing(
    full_world: World, small_disk: Path, begin: Begin
) -> None:
    site = full_world.a_site()
    lane = full_world.lane_of(full_world.a_connection(site))
    ballast = small_disk / "ballast"
    # More than half: what lies in the write-ahead log must fit into the database besides.
    ballast.write_bytes(bytes(18 * MB))
    acceptor = begin(full_world, None)
    waiting = [acceptor.submit(a_submission(site, a_file(300_000))) for _ in range(90)]
    answers = [answer(item) for item in waiting]
    accepted = {said for said in answers if not said[:3].isdigit()}
    refused = [said for said in answers if said[:3].isdigit()]
    assert accepted
    assert refused
    assert {said[:9] for said in refused} == {"452 4.3.1"}
    ballast.unlink()  # on a disk without a byte even a first look may not be possible
    assert stored(full_world) == accepted
    assert full_world.gaps() == 0
    full_world.now = full_world.db.now()
    claims = full_world.claim(lane, 1)
    full_world.finish(claims[0])
    assert full_world.gaps() == 0
    assert is_sound(full_world)


def test_a_whole_installation_delivers_on_while_its_disk_is_nearly_full(small_disk: Path) -> None:
    house = House(small_disk / "instance", "")
    house.environment_more = {"POSTROOM_DISK_RESERVE_BYTES": str(22 * MB)}
    house.command("migrate")
    slug = house.made("site", "create", "Shop")["slug"]
    login = house.made("credential", "create", slug, "--kind", "smtp")
    sink = Sink()
    sink.delay = 0.01
    sink.connect(house, slug)
    house.start()
    answers = []
    with smtplib.SMTP("127.0.0.1", house.smtp, timeout=60) as client:
        client.login(login["username"], login["password"])
        for _ in range(60):
            try:
                client.sendmail("shop@example.com", ["a@example.org"], as_text(a_file(150_000)))
                answers.append(250)
            except smtplib.SMTPResponseException as refused:
                answers.append(refused.smtp_code)
                client.rset()
    assert set(answers) == {250, 452}
    big = as_text(a_file(4 * MB))
    assert house.refused("sendmail", "a@example.org", stdin=big)[0] == 75
    wait_for(lambda: sink.arrived.total() == answers.count(250), "every mail that was taken")
    wait_for(
        lambda: {m["state"] for m in house.made("message", "list")} == {"sent"}, "their record"
    )
    assert b"ok   ledger" in house._run(["doctor"], b"").stdout
    assert house.stop() == 0
    sink.close()


def as_text(raw: bytes) -> bytes:
    """In lines, as SMTP wants it, and not shorter for it."""
    head, _, body = raw.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + base64.encodebytes(body).replace(b"\n", b"\r\n")


def test_pages_change_nothing_when_only_the_last_reserve_is_left(
    client: Browser, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installation.db.write() as session:
        a_user(session)
    client.get("/signin")
    monkeypatch.setattr(Disk, "has_room", lambda self, size=0: False)
    client.get("/signin")
    page = client.post("/signin", {"email": "a@b.example", "password": "x"}, status=507)
    assert page.h1 == "The disk is full"
