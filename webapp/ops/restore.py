"""`postroom restore`: a backup into an empty installation, on either database.

The file is read twice: once to compare every checksum, and only then to load it. On SQLite the new
database takes its place when all is in it; on PostgreSQL all of it is one transaction.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp import schema
from webapp.config import Settings
from webapp.crypto import Keyring, SealError, parse_key
from webapp.db import Base, Database, Driver
from webapp.delivery import upkeep
from webapp.delivery.models import Message, Recipient
from webapp.ingress.accept import make_searchable, search_words
from webapp.installation import (
    KEY_CHECK,
    key_file,
    load_keys,
    open_database,
    prepare_folder,
    prove_key,
    write_keys,
)
from webapp.ops import archive
from webapp.ops.archive import KEY, READERS, BackupError, Damaged, Manifest, TableFacts
from webapp.ops.checks import Ledger, check_ledger
from webapp.ops.hold import hold_waiting

LEAST_ROWS = ("site", "user", "message", "setting")
"""A database in which these are empty holds nothing that a restore could spoil."""
BATCH_ROWS = 500
BATCH_BYTES = 8 * 1024 * 1024
MAILS_AT_A_TIME = 200


class NotEmpty(BackupError):
    """Something is there already."""

    code = 73


class WrongKey(BackupError):
    """The key at hand did not seal what is in the backup."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a restore brought about."""

    manifest: Manifest
    revision: str
    held: int
    waiting: int
    ledger: Ledger
    key_written: Path | None


def restore(settings: Settings, source: Path, manifest: Manifest, *, hold: bool) -> Restored:
    """Load a backup that was verified. With `hold`, nothing in it goes out by itself.

    Raises BackupError, OSError or SQLAlchemyError, and then leaves the installation empty.
    """
    if manifest.revision not in schema.known():
        raise BackupError(
            f"This backup is at revision {manifest.revision}, which this program does not know: a "
            "newer Postroom made it. Restore it with that version."
        )
    prepare_folder(settings)
    refuse_if_used(settings)
    keyring, key_text = find_key(settings, source, manifest)
    with _loaded(settings, source, manifest) as db:
        prove_key(db, keyring)
        with db.write_connection() as connection:
            now = db.now()
            upkeep.take_over(connection, now)
            held = hold_waiting(connection) if hold else 0
        make_all_searchable(db)
        ledger = check_ledger(db)
    written = None
    if key_text:
        written = key_file(settings)
        write_keys(written, key_text.split())
    return Restored(
        manifest=manifest,
        revision=schema.head(),
        held=held,
        waiting=0 if hold else manifest.waiting,
        ledger=ledger,
        key_written=written,
    )


def refuse_if_used(settings: Settings) -> None:
    """Raises NotEmpty when the database holds anything; ConfigError when it does not answer."""
    url = sa.make_url(settings.database)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return
    db = open_database(settings)
    try:
        with db.reader.connect() as connection:
            tables = set(sa.inspect(connection).get_table_names())
            used = [
                name
                for name in LEAST_ROWS
                if name in tables
                and connection.scalar(sa.select(sa.literal(1)).select_from(sa.table(name)).limit(1))
            ]
    finally:
        db.close()
    if used:
        where = url.render_as_string(hide_password=True)
        raise NotEmpty(
            f"The database {where} is in use. A backup is restored into an empty installation "
            "only: name another folder in POSTROOM_INSTANCE, or another database in "
            "POSTROOM_DATABASE_URL."
        )


# ---- the key ----


def find_key(settings: Settings, source: Path, manifest: Manifest) -> tuple[Keyring, str]:
    """The keyring that opens the backup, and the text of the key file to write, if any.

    The key at hand comes first; one in the backup serves where there is none. Raises WrongKey.
    """
    path = key_file(settings)
    if settings.secret_keys or path.exists():
        keyring = load_keys(settings, may_create=False)
        if not _opens(keyring, manifest):
            raise WrongKey(_foreign(settings, keyring, manifest))
        return keyring, ""
    if manifest.with_key:
        text = _key_in(source)
        keyring = Keyring([parse_key(line) for line in text.split()])
        if _opens(keyring, manifest):
            return keyring, text
    raise WrongKey(
        "The key is not in this backup, and its secrets cannot be opened without it. Put the key "
        f"file of the installation that was backed up at {path}, or set POSTROOM_SECRET_KEYS, and "
        f"restore again. The key that is needed has the fingerprint {manifest.key_fingerprint}."
    )


def _opens(keyring: Keyring, manifest: Manifest) -> bool:
    try:
        keyring.unseal("check", KEY_CHECK, manifest.key_check)
    except SealError:
        return False
    return True


def _foreign(settings: Settings, keyring: Keyring, manifest: Manifest) -> str:
    place = "POSTROOM_SECRET_KEYS" if settings.secret_keys else str(key_file(settings))
    return (
        f"The key in {place} (fingerprint {keyring.fingerprint()}) did not seal this backup. Put "
        "the key file of the installation that was backed up there instead (fingerprint "
        f"{manifest.key_fingerprint})"
        + (
            ", or take the wrong one away: the backup holds the right one."
            if manifest.with_key
            else "."
        )
    )


def _key_in(source: Path) -> str:
    for name, content in archive.members(source):
        if name == KEY:
            return content.read(64 * 1024).decode("ascii", "replace")
    return ""


# ---- loading ----


@contextmanager
def _loaded(settings: Settings, source: Path, manifest: Manifest) -> Iterator[Database]:
    """A database with every row of the backup, brought up to date; it is the installation's once
    the block has ended well, and gone when it has not."""
    if sa.make_url(settings.database).get_backend_name() == "sqlite":
        into = _into_sqlite(Path(str(sa.make_url(settings.database).database)), source, manifest)
    else:
        into = _into_postgresql(settings, source, manifest)
    with into as db:
        schema.migrate(db)
        yield db


@contextmanager
def _into_sqlite(place: Path, source: Path, manifest: Manifest) -> Iterator[Database]:
    """A file beside the real one takes its place in the end."""
    fresh = place.with_name(f"{place.name}.restoring")
    _remove(fresh)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    db = Database(f"sqlite:///{fresh}")
    try:
        schema.build(db, manifest.revision)
        _load_sqlite(db, source, manifest)
        yield db
        _settle(db)
        _remove(place)
        fresh.replace(place)
    finally:
        db.close()
        _remove(fresh)


def _load_sqlite(db: Database, source: Path, manifest: Manifest) -> None:
    """Many small commits, none of which waits for the disk: this file is not the database yet."""
    _pragma(db, "foreign_keys = OFF", "synchronous = OFF")
    for batch in _batches(source, manifest, _columns_of(db)):
        with db.write_driver() as driver:
            batch.insert(driver)
    with db.reader.connect() as connection:
        if connection.exec_driver_sql("PRAGMA foreign_key_check").first():
            raise Damaged("Rows in it belong to rows that are not in it.")
    _pragma(db, "foreign_keys = ON", "synchronous = FULL")


def _pragma(db: Database, *settings: str) -> None:
    """For the one connection that writes, outside of a transaction."""
    pool = db.writer.raw_connection()
    try:
        for setting in settings:
            pool.cursor().execute(f"PRAGMA {setting}")
    finally:
        pool.close()


def _settle(db: Database) -> None:
    """Everything into the one file, and that file onto the disk."""
    _pragma(db, "wal_checkpoint(TRUNCATE)")
    db.close()
    with Path(str(db.url.database)).open("rb+") as file:
        os.fsync(file.fileno())


def _remove(database: Path) -> None:
    for ending in ("", "-wal", "-shm", "-lock", "-turn"):
        database.with_name(database.name + ending).unlink(missing_ok=True)


@contextmanager
def _into_postgresql(settings: Settings, source: Path, manifest: Manifest) -> Iterator[Database]:
    """One transaction for all rows; when something fails, the tables go again."""
    db = open_database(settings)
    try:
        _drop_everything(db)
        schema.build(db, manifest.revision)
        columns = _columns_of(db)
        with db.write_driver() as driver:
            references = driver.rows(_REFERENCES)
            for table, name, _ in references:
                driver.many(f"ALTER TABLE {table} DROP CONSTRAINT {name}", [()])
            for batch in _batches(source, manifest, columns):
                batch.insert(driver)
            for table, name, definition in references:
                driver.many(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}", [()])
            for table, column in driver.rows(_COUNTED):
                _count_on(driver, table, column)
        yield db
    except BaseException:
        _drop_everything(db)
        raise
    finally:
        db.close()


# Rows refer to one another in circles, so the references are put back when all rows are there;
# that checks them too.
_REFERENCES = (
    "SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) "
    "FROM pg_constraint WHERE contype = 'f' AND connamespace = current_schema()::regnamespace"
)
_COUNTED = (
    "SELECT quote_ident(table_name), quote_ident(column_name) FROM information_schema.columns "
    "WHERE table_schema = current_schema() AND starts_with(column_default, 'nextval(')"
)


def _count_on(driver: Driver, table: str, column: str) -> None:
    """The next key is the one after the last."""
    driver.rows(
        f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), "  # noqa: S608
        f"coalesce(max({column}), 1), max({column}) IS NOT NULL) FROM {table}"
    )


def _drop_everything(db: Database) -> None:
    """Only of a database that held nothing."""
    ours = [*Base.metadata.tables, "message_search", "alembic_version"]
    quote = db.writer.dialect.identifier_preparer.quote_identifier
    with db.write_connection() as connection:
        for name in ours:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {quote(name)} CASCADE")


def _columns_of(db: Database) -> dict[str, set[str]]:
    """The tables of a database that was just built."""
    with db.reader.connect() as connection:
        inspector = sa.inspect(connection)
        return {
            table: {column["name"] for column in inspector.get_columns(table)}
            for table in inspector.get_table_names()
        }


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Some rows of one table."""

    table: str
    columns: tuple[str, ...]
    rows: list[list[Any]]

    def insert(self, driver: Driver) -> None:
        """Write them. Names were compared with those of the database."""
        names = ", ".join(f'"{name}"' for name in self.columns)
        marks = ", ".join("?" * len(self.columns))
        driver.many(
            f'INSERT INTO "{self.table}" ({names}) VALUES ({marks})',  # noqa: S608
            [driver.plain(_storable(row, driver)) for row in self.rows],
        )


def _storable(row: list[Any], driver: Driver) -> list[Any]:
    """PostgreSQL's texts cannot hold the character zero."""
    if driver.is_sqlite:
        return row
    return [value.replace("\0", "") if type(value) is str else value for value in row]


def _batches(source: Path, manifest: Manifest, columns: Mapping[str, set[str]]) -> Iterator[_Batch]:
    """All rows, some at a time. Raises Damaged when they are not what the manifest says."""
    loaded: Counter[str] = Counter()
    for name, content in archive.members(source):
        table = archive.table_of(name)
        if table is None:
            continue
        facts = manifest.tables.get(table)
        if facts is None or {column for column, _ in facts.columns} - columns.get(table, set()):
            raise Damaged(f"The table {table[:60]} is not one of its revision.")
        for rows in _rows(content, facts):
            loaded[table] += len(rows)
            yield _Batch(
                table=table, columns=tuple(column for column, _ in facts.columns), rows=rows
            )
    for table, facts in manifest.tables.items():
        if loaded[table] != facts.rows:
            raise Damaged(f"Of the table {table[:60]}, rows are missing.")


def _rows(content: IO[bytes], facts: TableFacts) -> Iterator[list[list[Any]]]:
    readers = [READERS[kind] for _, kind in facts.columns]
    rows: list[list[Any]] = []
    size = 0
    for line in content:
        try:
            values = json.loads(line)
            rows.append(
                [
                    None if value is None else read(value)
                    for read, value in zip(readers, values, strict=True)
                ]
            )
        except (ValueError, TypeError) as error:
            raise Damaged("A row in it cannot be read.") from error
        size += len(line)
        if len(rows) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def make_all_searchable(db: Database) -> None:
    """Build the search index of a log that has none."""
    last = 0
    while True:
        with db.read() as session:
            mails = session.execute(
                sa.select(
                    Message.id,
                    Message.site_id,
                    Message.subject,
                    Message.from_email,
                    Message.from_name,
                )
                .where(Message.id > last)
                .order_by(Message.id)
                .limit(MAILS_AT_A_TIME)
            ).all()
            if not mails:
                return
            addresses = _addresses(session, mails[0].id, mails[-1].id)
        last = mails[-1].id
        found = [
            (
                mail.id,
                mail.site_id,
                search_words(mail.subject, mail.from_email, mail.from_name, addresses[mail.id]),
            )
            for mail in mails
        ]
        with db.write_driver() as driver:
            make_searchable(driver, found)


def _addresses(session: Session, first: int, last: int) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    rows = session.execute(
        sa.select(Recipient.message_id, Recipient.address)
        .where(Recipient.message_id.between(first, last))
        .order_by(Recipient.message_id, Recipient.position)
    )
    for message_id, address in rows:
        found[message_id].append(address)
    return found
