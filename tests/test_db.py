"""Engines: one writer at a time on SQLite, in turn; readers cannot write; times are aware."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import give_tables
from webapp.db import Database, UTCDateTime, WriteLock
from webapp.delivery.models import Heartbeat, Setting


class Part(StrEnum):
    DELIVER = "deliver"


BUSY = """
import mmap, sys, time
from pathlib import Path
from webapp.db import WriteLock
lock, count = WriteLock(Path(sys.argv[1])), 0
with open(sys.argv[2], "r+b") as file:
    shared = mmap.mmap(file.fileno(), 8)
print("begins", flush=True)
while True:
    with lock.hold():
        count += 1
        shared[:] = count.to_bytes(8)
        time.sleep(0.002)
"""

HOLD = """
import sys, time
from pathlib import Path
from webapp.db import WriteLock
with WriteLock(Path(sys.argv[1])).hold():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def db(db_url: str) -> Iterator[Database]:
    give_tables(db_url)
    made = Database(db_url)
    yield made
    made.close()


def test_a_unit_of_work_commits_or_leaves_nothing(db: Database) -> None:
    with db.write() as session:
        session.add(Setting(name="kept", value={}))
    with pytest.raises(sa.exc.IntegrityError), db.write() as session:
        session.add_all([Setting(name="gone", value={}), Setting(name="kept", value={})])
    with db.read() as session:
        assert list(session.scalars(sa.select(Setting.name))) == ["kept"]


def test_a_reader_cannot_write(db: Database) -> None:
    with db.read() as session, pytest.raises(sa.exc.DBAPIError):
        session.execute(sa.insert(Setting).values(name="x", value={}))


def test_times_come_back_aware_and_naive_ones_are_refused(db: Database) -> None:
    at = datetime(2026, 11, 23, 14, 0, 0, 123456, tzinfo=UTC)
    with db.write() as session:
        session.add(Heartbeat(name="x", part="deliver", beat_at=at, details={}))
    with db.read() as session:
        assert session.scalar(sa.select(Heartbeat.beat_at)) == at
    with pytest.raises(sa.exc.StatementError), db.read() as session:
        session.scalar(sa.select(sa.literal(datetime(2026, 1, 1), UTCDateTime())))  # noqa: DTZ001


def test_rows_inserted_at_the_drivers_speed_read_like_any_other(db: Database) -> None:
    at = datetime(2026, 11, 23, 14, 0, 0, 123456, tzinfo=UTC)
    row = {"name": "x'\"", "part": Part.DELIVER, "beat_at": at, "details": {"ü": [1, None]}}
    with db.write_driver() as driver:
        driver.insert("heartbeat", [row, row | {"name": "y", "beat_at": at}])
        assert driver.rows("SELECT count(*) FROM heartbeat WHERE name = ?", "y") == [(1,)]
    with db.read() as session:
        found = session.scalars(sa.select(Heartbeat).order_by(Heartbeat.name)).first()
    assert found is not None
    assert (found.name, found.part, found.beat_at) == ("x'\"", "deliver", at)
    assert found.details == {"ü": [1, None]}


def test_a_unit_of_work_at_the_drivers_speed_is_all_or_nothing(db: Database) -> None:
    row = {"name": "x", "part": "deliver", "beat_at": datetime.now(UTC), "details": {}}

    def twice() -> None:
        with db.write_driver() as driver:
            driver.insert("heartbeat", [row])
            driver.insert("heartbeat", [row])

    def with_a_mistake_of_ours() -> None:
        with db.write_driver() as driver:
            driver.insert("heartbeat", [row])
            raise ValueError("ours")

    with pytest.raises(sa.exc.IntegrityError):
        twice()
    with pytest.raises(ValueError, match="ours"):
        with_a_mistake_of_ours()
    with db.write_driver() as driver:
        driver.insert("heartbeat", [row])
    with db.read() as session:
        assert len(session.scalars(sa.select(Heartbeat)).all()) == 1


def test_every_connection_is_durable(db: Database) -> None:
    with db.write_connection() as connection:
        if db.is_sqlite:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
            assert connection.exec_driver_sql("PRAGMA auto_vacuum").scalar() == 2
        else:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def test_the_clock_is_aware(db: Database) -> None:
    assert abs((db.now() - datetime.now(UTC)).total_seconds()) < 5


def test_threads_write_one_after_another(db: Database) -> None:
    with db.write() as session:
        session.add(Setting(name="count", value={"n": 0}))

    def work() -> None:
        for _ in range(20):
            with db.write() as session:
                row = session.scalars(sa.select(Setting).with_for_update()).one()
                row.value = {"n": row.value["n"] + 1}

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        assert session.scalars(sa.select(Setting.value)).one() == {"n": 80}


def test_whoever_just_wrote_lets_the_waiting_one_go_first(tmp_path: Path) -> None:
    """A process that writes without a pause, and one that wants to write now and then."""
    counter = tmp_path / "counter"
    counter.write_bytes(bytes(8))
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path / "db"), str(counter)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    lock = WriteLock(tmp_path / "db")
    waited = []
    for _ in range(30):
        before = int.from_bytes(counter.read_bytes())
        with lock.hold():
            waited.append(int.from_bytes(counter.read_bytes()) - before)
    child.kill()
    child.communicate()
    lock.close()
    assert max(waited) <= 2, waited


def test_a_process_that_dies_lets_go_of_the_lock(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "db")],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    lock = WriteLock(tmp_path / "db")
    got = threading.Event()

    def take() -> None:
        with lock.hold():
            got.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not got.wait(0.2)
    child.kill()
    child.communicate()
    assert got.wait(5)
    thread.join()
    lock.close()
