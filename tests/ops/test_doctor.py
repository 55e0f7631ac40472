"""The doctor: each trouble has a line that says what to do, and a sound installation has none."""

import json
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import (
    a_connection,
    a_grant,
    a_link,
    a_mailbox,
    a_message,
    a_site,
    an_app,
    an_installation,
)
from tests.faults.rig import House
from tests.rig.ports import free_port
from webapp.connections.models import Connection
from webapp.crypto import Keyring, new_key, parse_key
from webapp.db import utcnow
from webapp.delivery import beats
from webapp.delivery.models import Lane, State, Tally
from webapp.installation import Installation
from webapp.microsoft.models import GrantState
from webapp.ops import doctor
from webapp.ops.checks import check_ledger
from webapp.ops.doctor import Finding, Verdict, examine


@pytest.fixture
def installation(db_url: str, tmp_path: Path) -> Iterator[Installation]:
    """One in which all is well: a worker at work, both ports open, a linked site."""
    http, smtp = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    ports = [listening.getsockname()[1] for listening in (http, smtp)]
    made = an_installation(
        db_url,
        tmp_path,
        http_listen=f"127.0.0.1:{ports[0]}",
        submission_listen=f"127.0.0.1:{ports[1]}",
        disk_reserve_bytes=0,
    )
    for path in made.settings.instance, tmp_path / "postroom.db":
        if path.exists():
            path.chmod(0o700)
    with made.db.write_connection() as connection:
        beats.beat(connection, "deliver:x:1", "deliver", made.db.now(), {"owner": True})
    with made.db.write() as session:
        site = a_site(session, name="Shop")
        connection = a_connection(session, site)
        a_message(session, site, connection=connection, state=State.SENT)
    yield made
    made.close()
    http.close()
    smtp.close()


def bad(installation: Installation, *, full: bool = False) -> dict[str, Finding]:
    found = list(examine(installation, full=full))
    assert all(f.remedy for f in found if f.verdict is Verdict.BAD)
    return {f.name: f for f in found if f.verdict is Verdict.BAD}


def test_a_sound_installation_has_nothing_bad(installation: Installation) -> None:
    assert bad(installation, full=True) == {}


def test_a_full_disk(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.Disk, "free", lambda self: 0)
    assert "452" in bad(installation)["disk"].remedy


def test_files_that_others_may_read(installation: Installation) -> None:
    (installation.settings.instance / "secret.key").chmod(0o644)
    assert "chmod go-rwx" in bad(installation)["folder"].remedy


def test_a_secret_of_another_key_in_any_sealed_column(installation: Installation) -> None:
    foreign = Keyring([parse_key(new_key())])
    with installation.db.write() as session:
        app = an_app(session, foreign)
        session.execute(
            sa.update(Connection).values(secrets=foreign.seal("connection", "connection:x", {}))
        )
        a_grant(session, foreign, app, a_mailbox(session))
    words = [f.words for f in examine(installation) if f.verdict is Verdict.BAD and f.name == "key"]
    tables = ("connection.secrets", "oauth_app.secret", "grant.cache")
    assert [table for table in tables if any(table in word for word in words)] == list(tables)


def test_a_worker_that_is_gone(installation: Installation) -> None:
    with installation.db.write_connection() as connection:
        beats.forget(connection, "deliver:x:1")
    assert "postroom serve" in bad(installation)["worker"].remedy


def test_a_port_on_which_nothing_listens(db_url: str, tmp_path: Path) -> None:
    installation = an_installation(
        db_url, tmp_path, submission_listen=f"127.0.0.1:{free_port()}", http_listen="127.0.0.1:9"
    )
    found = {f.name: f.verdict for f in examine(installation)}
    wanted = Verdict.BAD if installation.db.is_sqlite else Verdict.UNKNOWN
    assert (found["dashboard"], found["submission"]) == (wanted, wanted)
    installation.close()


def test_a_clock_that_is_wrong() -> None:
    assert doctor._compared("x", utcnow() + timedelta(minutes=4)).verdict is Verdict.GOOD
    assert doctor._compared("x", utcnow() - timedelta(minutes=6)).verdict is Verdict.BAD


def test_a_sign_in_host_that_does_not_answer_is_no_fault_of_ours(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installation.db.write() as session:
        an_app(session, installation.keyring)
    monkeypatch.setattr(doctor, "_date_at", lambda address, ca_file: None)
    verdicts = [f.verdict for f in examine(installation) if f.name == "clock"]
    assert verdicts[-1] is Verdict.UNKNOWN
    monkeypatch.setattr(doctor, "_date_at", lambda address, ca_file: utcnow() - timedelta(hours=1))
    assert "login.microsoftonline.com differ" in bad(installation)["clock"].words


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        ("http://post.example.org", Verdict.BAD),
        ("https://no-such-host.invalid", Verdict.BAD),
        ("https://localhost", Verdict.GOOD),
        ("http://localhost:8025", Verdict.GOOD),
    ],
)
def test_the_address_people_open(tmp_path: Path, url: str, verdict: Verdict) -> None:
    installation = an_installation(f"sqlite:///{tmp_path / 'p.db'}", tmp_path, public_url=url)
    (found,) = doctor._public_url(installation)
    assert found.verdict is verdict
    installation.close()


def test_a_ledger_that_does_not_add_up(installation: Installation) -> None:
    assert check_ledger(installation.db).holds
    with installation.db.write() as session:
        session.execute(sa.update(Tally).where(Tally.outcome == "accepted").values({"count": 3}))
    assert "a difference of 2" in bad(installation)["ledger"].words
    (gap,) = check_ledger(installation.db).gaps
    assert (gap.name, gap.account.gap) == ("Shop", 2)


def test_sites_and_mail_without_a_connection(installation: Installation) -> None:
    with installation.db.write() as session:
        a_message(session, a_site(session, name="Bare"), state=State.QUEUED)
    words = [f.words for f in examine(installation) if f.name == "routes"]
    assert words[0].startswith("Bare (")
    assert words[1] == "1 mails wait without a connection"


def test_a_stopped_connection(installation: Installation) -> None:
    with installation.db.write() as session:
        session.execute(sa.update(Lane).values(is_blocked=True, blocked_kind="misconfigured"))
    assert "is stopped (misconfigured)" in bad(installation)["connection"].words


def test_links_and_secrets(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_date_at", lambda address, ca_file: None)
    today = installation.db.now().date()
    with installation.db.write() as session:
        app = an_app(session, installation.keyring, secret_expires_on=today + timedelta(days=90))
        grant = a_grant(session, installation.keyring, app, a_mailbox(session))
        a_link(session, a_connection(session, a_site(session)), grant)
    assert bad(installation) == {}
    with installation.db.write() as session:
        app, grant = session.merge(app), session.merge(grant)
        app.secret_expires_on = today + timedelta(days=6)
        grant.renewed_at = installation.db.now() - timedelta(days=61)
    found = bad(installation)
    assert "ends in 6 days" in found["registration"].words
    assert "renewed 61 days ago" in found["link"].words
    with installation.db.write() as session:
        app, grant = session.merge(app), session.merge(grant)
        app.problem_code, grant.state = "AADSTS7000222", GrantState.NEEDS_REAUTHORISATION
    found = bad(installation)
    assert "AADSTS7000222" in found["registration"].words
    assert "must be linked again" in found["link"].words


def test_a_broken_database_file_is_found_with_full(tmp_path: Path) -> None:
    installation = an_installation(f"sqlite:///{tmp_path / 'p.db'}", tmp_path)
    with installation.db.write() as session:
        for _ in range(60):
            a_message(session, a_site(session), state=State.SENT)
    installation.close()
    with closing(sqlite3.connect(tmp_path / "p.db")) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'ix_message_site'"
        (page,) = connection.execute(query).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with (tmp_path / "p.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(size))
    again = an_installation(f"sqlite:///{tmp_path / 'p.db'}", tmp_path)
    (_, found) = doctor._database(again, full=True)
    assert (found.name, found.verdict) == ("database file", Verdict.BAD)
    again.close()


def test_json_is_for_programs(tmp_path: Path) -> None:
    house = House(tmp_path / "instance", "")
    house.command("migrate")
    assert house.refused("doctor", "--json", "--full")[0] == 1
    found = {entry["name"]: entry for entry in json.loads(house.last_output)}
    assert found["worker"]["verdict"] == "bad"
    assert found["database file"]["verdict"] == "good"
    assert found["key"]["words"].endswith(f"fingerprint {fingerprint(house)}")


def fingerprint(house: House) -> str:
    key = (house.instance / "secret.key").read_text().split()
    return Keyring([parse_key(line) for line in key]).fingerprint()
