"""Backup and restore: consistent while running, whole or not at all, and from either database into
either."""

import gzip
import io
import itertools
import json
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import (
    a_connection,
    a_credential,
    a_grant,
    a_link,
    a_mailbox,
    a_message,
    a_site,
    a_user,
    an_app,
    an_installation,
)
from tests.faults.rig import Clients, House, Sink, wait_for
from webapp import config, schema
from webapp.crypto import new_key
from webapp.db import Base, Database
from webapp.delivery.models import Content, Message, Recipient, State
from webapp.delivery.tally import accounts
from webapp.installation import Installation, open_installation
from webapp.maillog import service as maillog
from webapp.microsoft.models import OAuthApp
from webapp.microsoft.service import secret_of
from webapp.ops import archive, hold, restore
from webapp.ops.archive import BackupError, Damaged, Manifest, verify
from webapp.ops.backup import back_up
from webapp.ops.restore import NotEmpty, Restored, WrongKey
from webapp.sites.models import Site


@pytest.fixture
def installation(db_url: str, tmp_path: Path) -> Iterator[Installation]:
    """One with something in every kind of column."""
    made = an_installation(db_url, tmp_path)
    with made.db.write() as session:
        site = a_site(session, name="松石书店", slug="books")
        a_user(session, is_admin=True)
        a_credential(session, site)
        connection = a_connection(session, site)
        app = an_app(session, made.keyring, secret="abc~the-secret-that-was-stored-0123456789")
        a_link(session, connection, a_grant(session, made.keyring, app, a_mailbox(session)))
        site.primary_connection_id = connection.id
        session.flush()
        for state in (State.SENT, State.QUEUED, State.DEFERRED, State.FAILED):
            a_message(session, site, connection=connection, state=state, subject=f"订单号 {state}")
    yield made
    made.close()


Elsewhere = Callable[..., config.Settings]


@pytest.fixture(params=["sqlite", "postgresql"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Elsewhere]:
    """Settings of another, empty installation, with the key or without."""
    folder = tmp_path / "elsewhere"
    environ = {"POSTROOM_INSTANCE": str(folder)}

    def settings(key_of: Installation | None = None, **more: str) -> config.Settings:
        if key_of is not None:
            folder.mkdir(exist_ok=True)
            key = (key_of.settings.instance / "secret.key").read_text()
            (folder / "secret.key").write_text(key)
        return config.load(environ | more)

    if request.param == "sqlite":
        yield settings
        return
    with request.getfixturevalue("postgres").empty_database() as url:
        environ["POSTROOM_DATABASE_URL"] = url
        yield settings


def restored(settings: config.Settings, file: Path, *, hold: bool = False) -> Restored:
    return restore.restore(settings, file, verify(file), hold=hold)


def rows(installation: Installation, table: sa.Table) -> list[tuple[object, ...]]:
    with installation.db.reader.connect() as connection:
        query = sa.select(table).order_by(*table.primary_key.columns)
        return [tuple(row) for row in connection.execute(query)]


def test_everything_comes_back_on_either_database(
    installation: Installation, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    file = tmp_path / "b.tar.gz"
    before = {
        table.name: rows(installation, table)
        for table in Base.metadata.sorted_tables
        if table.name not in archive.LEFT_OUT
    }
    made = back_up(installation, file, with_key=False)
    assert made == verify(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (made.waiting, made.accepted, made.with_key) == (2, 4, False)
    settings = elsewhere(key_of=installation)
    found = restored(settings, file)
    assert (found.waiting, found.held) == (2, 0)
    assert found.ledger.holds
    with closing(open_installation(settings)) as other:
        for name, wanted in before.items():
            if name != "setting" and name != "lane":
                assert rows(other, Base.metadata.tables[name]) == wanted, name
        with other.db.read() as session:
            app = session.scalars(sa.select(OAuthApp)).one()
            assert secret_of(app, other.keyring) == "abc~the-secret-that-was-stored-0123456789"
            site = session.scalars(sa.select(Site)).one()
            page = maillog.list_messages(
                session, site_ids=[site.id], search="订单", now=other.db.now()
            )
            assert len(page.rows) == 4
        with other.db.write() as session:  # keys go on after the last
            a_message(session, session.get_one(Site, site.id), state=State.SENT)
            a_user(session, email="new@agentur.example")
    assert not list(settings.instance.glob("*restoring*"))


def test_held_mail_waits_until_somebody_releases_it(
    installation: Installation, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    file = tmp_path / "b.tar.gz"
    back_up(installation, file, with_key=False)
    settings = elsewhere(key_of=installation)
    assert restored(settings, file, hold=True).held == 2
    with closing(open_installation(settings)) as other:
        with other.db.read() as session:
            held = session.scalars(sa.select(Message).where(Message.state == State.HELD)).all()
            assert [mail.due_at for mail in held] == [None, None]
        assert gaps(other) == 0
        with other.db.write_connection() as connection:
            assert hold.release(connection, [mail.id for mail in held], other.db.now()) == 2
        with other.db.read() as session:
            states = session.scalars(
                sa.select(Message.state).where(Message.due_at.is_not(None)).order_by(Message.id)
            ).all()
            assert states[0] == State.QUEUED
            assert not session.scalar(sa.select(Recipient).where(Recipient.state == State.HELD))
        assert gaps(other) == 0


def gaps(installation: Installation) -> int:
    with installation.db.reader.connect() as connection:
        return sum(abs(account.gap) for account in accounts(connection))


def test_what_was_being_sent_becomes_unclear(
    installation: Installation, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    with installation.db.write() as session:
        mail = session.scalars(sa.select(Message).where(Message.state == State.QUEUED)).one()
        mail.state, mail.due_at, mail.attempts = State.SENDING, None, 1
        key = mail.id
    file = tmp_path / "b.tar.gz"
    back_up(installation, file, with_key=False)
    settings = elsewhere(key_of=installation)
    restored(settings, file)
    with closing(open_installation(settings)) as other, other.db.read() as session:
        assert session.get_one(Message, key).state == State.UNCERTAIN


def test_the_key_is_in_it_only_when_asked_for(
    installation: Installation, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    without, with_key = tmp_path / "without.tar.gz", tmp_path / "with.tar.gz"
    back_up(installation, without, with_key=False)
    back_up(installation, with_key, with_key=True)
    key = (installation.settings.instance / "secret.key").read_text().strip()
    assert key.encode() not in gzip.decompress(without.read_bytes())
    assert key.encode() in gzip.decompress(with_key.read_bytes())
    settings = elsewhere()
    with pytest.raises(WrongKey, match=r"Put the key file .*secret\.key.*fingerprint"):
        restored(settings, without)
    found = restored(settings, with_key)
    assert found.key_written == settings.instance / "secret.key"
    assert stat.S_IMODE(found.key_written.stat().st_mode) == 0o600
    open_installation(settings).close()


def test_a_foreign_key_is_refused_and_nothing_is_loaded(
    installation: Installation, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    file = tmp_path / "b.tar.gz"
    back_up(installation, file, with_key=True)
    settings = elsewhere(POSTROOM_SECRET_KEYS=new_key())
    with pytest.raises(WrongKey, match="did not seal this backup"):
        restored(settings, file)
    restored(elsewhere(key_of=installation), file)


def test_a_used_installation_is_left_alone(
    installation: Installation, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    file = tmp_path / "b.tar.gz"
    back_up(installation, file, with_key=False)
    settings = elsewhere(key_of=installation)
    open_installation(settings, migrate=True).close()
    with pytest.raises(NotEmpty, match="POSTROOM_INSTANCE"):
        restored(settings, file)


def test_a_newer_backup_is_refused(
    installation: Installation, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    file = tmp_path / "b.tar.gz"
    back_up(installation, file, with_key=False)
    rewrite(file, lambda given: given | {"revision": "9999"})
    with pytest.raises(BackupError, match="newer Postroom"):
        restored(elsewhere(key_of=installation), file)
    rewrite(file, lambda given: given | {"format": 2})
    with pytest.raises(BackupError, match="newer Postroom"):
        verify(file)


def rewrite(file: Path, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    """Another manifest, around the same rows."""
    held = [(name, content.read()) for name, content in archive.members(file)]
    write(file, [
        (name, json.dumps(change(json.loads(raw))).encode() if name == archive.MANIFEST else raw)
        for name, raw in held
    ])  # fmt: skip


def write(file: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w:gz") as made:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            made.addfile(info, io.BytesIO(raw))


def test_an_older_backup_is_brought_up_to_date(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Made by the first release: its columns, not today's."""
    file = tmp_path / "b.tar.gz"
    with closing(an_installation(f"sqlite:///{tmp_path / 'p.db'}", tmp_path)) as installation:
        with installation.db.write() as session:
            a_message(session, a_site(session, slug="old"), state=State.SENT)
        back_up(installation, file, with_key=True)
    kept = {"site", "message", "content", "recipient", "tally", "setting"}
    first = columns_of_the_first_release(tmp_path)
    members, tables = [], {}
    manifest = verify(file)
    for name, content in archive.members(file):
        table = archive.table_of(name)
        if table in kept:
            members.append((name, only(content.read(), manifest, table, first[table])))
        elif name == archive.KEY:
            members.append((name, content.read()))
    for table in kept:
        facts = manifest.tables[table]
        columns = [column for column in facts.columns if column[0] in first[table]]
        tables[table] = {"columns": columns, "rows": facts.rows}
    given = json.loads(manifest.as_json())
    given |= {"revision": "0001", "tables": tables}
    write(file, [*members, (archive.MANIFEST, b"")])
    given["members"] = {
        name: {"sha256": facts.sha256, "size": facts.size}
        for name, content in archive.members(file)
        if name != archive.MANIFEST
        for facts in [archive._facts_of(content)]
    }
    write(file, [*members, (archive.MANIFEST, json.dumps(given).encode())])
    settings = elsewhere()
    assert restored(settings, file).revision == schema.head()
    with closing(open_installation(settings)) as other, other.db.read() as session:
        assert session.scalars(sa.select(Site.slug)).all() == ["old"]


def columns_of_the_first_release(folder: Path) -> dict[str, set[str]]:
    with closing(Database(f"sqlite:///{folder / 'first.db'}")) as db:
        schema.build(db, "0001")
        with db.reader.connect() as connection:
            found = sa.inspect(connection)
            return {
                table: {str(column["name"]) for column in found.get_columns(table)}
                for table in found.get_table_names()
            }


def only(raw: bytes, manifest: Manifest, table: str, columns: set[str]) -> bytes:
    names = [name for name, _ in manifest.tables[table].columns]
    kept = [index for index, name in enumerate(names) if name in columns]
    lines = [json.loads(line) for line in raw.splitlines()]
    return b"".join(json.dumps([line[i] for i in kept]).encode() + b"\n" for line in lines)


@pytest.mark.parametrize("how", ["cut off", "changed", "a row less", "no archive", "no manifest"])
def test_a_damaged_backup_is_refused_before_anything_is_loaded(how: str, tmp_path: Path) -> None:
    file = tmp_path / "b.tar.gz"
    with closing(an_installation(f"sqlite:///{tmp_path / 'p.db'}", tmp_path)) as installation:
        with installation.db.write() as session:
            for _ in range(3):
                a_message(session, a_site(session), state=State.SENT)
        back_up(installation, file, with_key=False)
    raw = file.read_bytes()
    held = [(name, content.read()) for name, content in archive.members(file)]
    if how == "cut off":
        file.write_bytes(raw[: len(raw) * 2 // 3])
    elif how == "changed":
        write(file, [(n, r.replace(b"2", b"3", 1) if "/message/" in n else r) for n, r in held])
    elif how == "no archive":
        file.write_bytes(b"SQLite format 3\0" * 100)
    elif how == "no manifest":
        write(file, held[:-1])
    else:
        write(file, [(n, r[: r.index(b"\n") + 1] if "/message/" in n else r) for n, r in held])
    with pytest.raises(Damaged):
        verify(file)


def test_a_backup_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "b.tar.gz"
    file.write_text("the one of yesterday")
    with closing(an_installation(f"sqlite:///{tmp_path / 'p.db'}", tmp_path)) as installation:
        monkeypatch.setattr("webapp.ops.backup.free_bytes", lambda folder: 1024)
        with pytest.raises(BackupError, match="nearly full"):
            back_up(installation, file, with_key=False)
    assert file.read_text() == "the one of yesterday"
    assert not list(tmp_path.glob("*.part"))


def test_big_mails_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Rows are closed into files as they come: none is longer than a few mails."""
    file = tmp_path / "b.tar.gz"
    with closing(an_installation(f"sqlite:///{tmp_path / 'p.db'}", tmp_path)) as installation:
        with installation.db.write() as session:
            site = a_site(session)
            for _ in range(6):
                mail = a_message(session, site, state=State.SENT)
                session.get_one(Content, mail.id).raw = bytes(10 * 1024 * 1024)
        manifest = back_up(installation, file, with_key=False)
    sizes = [facts.size for name, facts in manifest.members.items() if "/content/" in name]
    assert len(sizes) == 6
    assert max(sizes) < 15 * 1024 * 1024


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    made.delay = 0.01
    yield made
    made.close()


def test_a_backup_of_a_running_installation_runs_elsewhere(
    db_url: str, tmp_path: Path, sink: Sink
) -> None:
    house = House(tmp_path / "one", db_url)
    file = tmp_path / "b.tar.gz"
    house.command("migrate")
    slug = house.made("site", "create", "Shop")["slug"]
    login = house.made("credential", "create", slug, "--kind", "smtp")
    sink.connect(house, slug)
    house.start()
    clients = Clients(house.smtp, login["username"], login["password"])
    is_backed_up = threading.Event()
    handing_in = clients.run(
        itertools.takewhile(lambda _: not is_backed_up.is_set(), itertools.count()), threads=6
    )
    wait_for(lambda: len(clients.answered) > 40, "some mails")
    during = 0
    with closing(open_installation(config.load(house.environment))) as installation:
        while not during:  # a backup may be quicker than the next mail
            file.unlink(missing_ok=True)
            before = len(clients.answered)
            back_up(installation, file, with_key=True)
            during = len(clients.answered) - before
    is_backed_up.set()
    handing_in.join()
    wait_for(lambda: len(sink.arrived) == len(clients.answered), "all mails")
    assert house.stop() == 0

    other = House(tmp_path / "two", "")
    code, words = other.refused("restore", str(file)) if verify(file).waiting else (64, "--hold")
    assert code == 64
    assert "--hold" in words
    other.command("restore", str(file), "--deliver")
    other.start()
    more = Clients(other.smtp, login["username"], login["password"])
    more.run([1_000_000], threads=1).join()
    assert len(more.answered) == 1
    open_states = ("queued", "sending", "deferred", "uncertain")

    def still_open() -> list[object]:
        return other.made("message", "list", *(f"--state={state}" for state in open_states))

    wait_for(lambda: not [m for m in still_open() if m["state"] != "uncertain"], "the queue")
    other.command("doctor")
    mails = other.made("message", "list")
    assert 40 < len(mails) <= len(clients.answered) + 1
    assert {mail["message_id"] for mail in mails} <= clients.offered | more.offered
    assert other.stop() == 0


def test_the_commands_refuse_with_the_code_programs_know(tmp_path: Path) -> None:
    house = House(tmp_path / "one", "")
    house.command("migrate")
    file = tmp_path / "b.tar.gz"
    assert house.made("backup", str(file))["with_key"] is False
    assert house.refused("restore", str(file))[0] == 73
    other = House(tmp_path / "two", "")
    assert other.refused("restore", str(tmp_path / "none"))[0] == 66
    assert other.refused("restore", str(file))[0] == 78
    file.write_bytes(file.read_bytes()[:200])
    assert other.refused("restore", str(file))[0] == 65
    assert other.refused("backup", str(tmp_path / "no" / "folder"))[0] == 78


def test_held_mail_is_released_from_the_terminal(tmp_path: Path) -> None:
    house = House(tmp_path / "one", "")
    house.command("migrate")
    for name in ("Shop", "Blog"):
        house.made("site", "create", name)
        house.command("sendmail", "--site", name.lower(), "a@example.org", stdin=b"Subject: x\n\nx")
    file = tmp_path / "b.tar.gz"
    house.commands_start_processes = True
    house.command("backup", str(file), "--with-key")
    other = House(tmp_path / "two", "", commands_start_processes=True)
    assert other.made("restore", str(file), "--hold")["held"] == 2
    mails = other.made("message", "list", "--state", "held")
    assert len(mails) == 2
    assert other.refused("message", "release")[0] == 64
    assert other.command("message", "release", mails[0]["id"]) == b"1 mails are on their way.\n"
    assert other.command("message", "release", "--all", "--site", "shop").startswith(b"1 ")
    other.commands_start_processes = False
    assert {mail["state"] for mail in other.made("message", "list")} == {"queued"}
