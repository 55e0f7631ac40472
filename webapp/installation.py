"""What every command opens first: settings, database, keys, and the refusals to start.

The key is proved against a sealed value in the database before anything else is done, so that a
wrong key is a sentence at start and not a thousand failed mails later.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from webapp import config, schema
from webapp.config import ConfigError, Settings
from webapp.crypto import Keyring, SealError, new_key, parse_key
from webapp.db import Base, Database, SealedText
from webapp.delivery.models import Setting

KEY_CHECK = "key_check"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """An open installation; `close()` when done."""

    settings: Settings
    db: Database
    keyring: Keyring

    def close(self) -> None:
        """Close the database."""
        self.db.close()


def key_file(settings: Settings) -> Path:
    """Where the keys stand unless the environment names another place."""
    return settings.secret_keys_file or settings.instance / "secret.key"


def prepare_folder(settings: Settings) -> None:
    """Make `instance/` if need be, and keep others out of it."""
    settings.instance.mkdir(parents=True, exist_ok=True)
    try:
        settings.instance.chmod(0o700)
    except PermissionError as error:
        raise ConfigError(f"{settings.instance} must belong to the user that runs this") from error
    if not os.access(settings.instance, os.W_OK):
        raise ConfigError(f"{settings.instance} cannot be written to")


def open_database(settings: Settings) -> Database:
    """Connect, and refuse what would lose mail; raises ConfigError."""
    prepare_folder(settings)
    db = Database(settings.database)
    if db.is_sqlite:
        path = Path(str(db.url.database))
        path.touch(mode=0o600, exist_ok=True)
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        return db
    try:
        with db.reader.connect() as connection:
            commit = connection.scalar(sa.text("SHOW synchronous_commit"))
    except sa.exc.OperationalError as error:
        where = db.url.render_as_string(hide_password=True)
        raise ConfigError(f"PostgreSQL at {where} does not answer: {error.orig}") from error
    if commit not in {"on", "remote_apply", "remote_write"}:
        raise ConfigError("PostgreSQL must run with synchronous_commit = on")
    return db


def load_keys(settings: Settings, *, may_create: bool) -> Keyring:
    """The keys from the environment or the key file; raises ConfigError.

    A missing key file is made only when `may_create`, that is, with an empty database.
    """
    if settings.secret_keys:
        texts = [key.get_secret_value() for key in settings.secret_keys]
        origin = "POSTROOM_SECRET_KEYS"
    else:
        path = key_file(settings)
        if not path.exists():
            if not may_create:
                raise ConfigError(
                    f"The key file {path} is missing, and the database holds secrets sealed by it. "
                    "Put the file back from its backup, or set POSTROOM_SECRET_KEYS."
                )
            write_keys(path, [new_key()])
        texts = [line for line in path.read_text().splitlines() if line.strip()]
        origin = str(path)
    try:
        return Keyring([parse_key(text) for text in texts])
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from error


def write_keys(path: Path, keys: list[str]) -> None:
    """Replace the key file at once, readable by its owner only."""
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write("\n".join(keys) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def open_installation(settings: Settings | None = None, *, migrate: bool = False) -> Installation:
    """Open everything. Raises ConfigError or SchemaError with a sentence that says what to do."""
    settings = settings or config.load()
    db = open_database(settings)
    try:
        keyring = load_keys(settings, may_create=schema.is_empty(db))
        if migrate:
            schema.migrate(db)
        schema.check(db)
        prove_key(db, keyring)
    except BaseException:
        db.close()
        raise
    return Installation(settings=settings, db=db, keyring=keyring)


def prove_key(db: Database, keyring: Keyring) -> None:
    """Open the sealed check value, or store one in a new database; raises ConfigError."""
    with db.read() as session:
        stored = session.get(Setting, KEY_CHECK)
    if stored is None:
        with db.write() as session:
            if session.get(Setting, KEY_CHECK) is None:
                token = keyring.seal("check", KEY_CHECK, "postroom")
                session.add(Setting(name=KEY_CHECK, value={"token": token}))
        return
    try:
        keyring.unseal("check", KEY_CHECK, stored.value["token"])
    except SealError as error:
        raise ConfigError(
            "The secret key does not fit this database: what it sealed cannot be opened. Put the "
            "right key into the key file or POSTROOM_SECRET_KEYS; several may stand there, the "
            "newest first."
        ) from error


def sealed_columns() -> list[sa.Column[str]]:
    """Every column that holds sealed values, in all tables."""
    return [
        column
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, SealedText)
    ]


def reseal(db: Database, keyring: Keyring) -> int:
    """Seal every stored secret anew with the newest key; returns how many. Raises SealError."""
    count = 0
    with db.write() as session:
        for column in sealed_columns():
            assert isinstance(column.type, SealedText)
            keys = list(column.table.primary_key.columns)
            rows = session.execute(sa.select(column, *keys).where(column.is_not(None))).all()
            for token, *values in rows:
                fresh = keyring.rotate(column.type.purpose, token)
                where = [key == value for key, value in zip(keys, values, strict=True)]
                where.append(column == token)  # a secret saved meanwhile has the newer word
                session.execute(sa.update(column.table).where(*where).values({column.name: fresh}))
                count += 1
        check = session.get(Setting, KEY_CHECK)
        if check is not None:
            check.value = {"token": keyring.rotate("check", check.value["token"])}
    return count
