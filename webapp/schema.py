"""The database's revision: bring it up to date, or refuse what does not fit.

Alembic is imported when something has to be migrated: every command looks at the revision, and few
have to wait for more.
"""

from functools import cache
from pathlib import Path

import sqlalchemy as sa

import webapp.accounts.models
import webapp.api.models
import webapp.audit
import webapp.connections.models
import webapp.delivery.models
import webapp.incidents.models
import webapp.microsoft.models
import webapp.routing.models
import webapp.sites.models  # noqa: F401  (every table is known once these are imported)
from webapp.db import Database

MIGRATIONS = Path(__file__).parent / "migrations"
_VERSION = sa.table("alembic_version", sa.column("version_num", sa.String))


class SchemaError(Exception):
    """The database is at a revision this program cannot work with; the text says what to do."""


def head() -> str:
    """The revision this program needs."""
    return max(known())


def current(db: Database) -> str | None:
    """The revision the database is at; None when it is empty."""
    with db.reader.connect() as connection:
        if not sa.inspect(connection).has_table(_VERSION.name):
            return None
        return connection.scalar(sa.select(_VERSION.c.version_num))


def is_empty(db: Database) -> bool:
    """Whether nothing of ours is in the database yet."""
    with db.reader.connect() as connection:
        return not sa.inspect(connection).has_table("setting")


def check(db: Database) -> None:
    """Raise SchemaError unless the revision is exactly ours."""
    found = current(db)
    if found is None:
        raise SchemaError("The database is empty. Run: postroom migrate")
    if found == head():
        return
    if found in known():
        raise SchemaError(
            f"The database is at revision {found}, older than this program.\nRun: postroom migrate"
        )
    raise SchemaError(
        f"The database is at revision {found}, which this program does not know: a "
        "newer Postroom wrote it. Install that version again."
    )


@cache
def known() -> frozenset[str]:
    """Every revision shipped with this program; the name of its file begins with it."""
    return frozenset(path.name[:4] for path in MIGRATIONS.glob("versions/[0-9]*.py"))


def migrate(db: Database) -> tuple[str | None, str]:
    """Bring the database to our revision; returns (before, after). Raises SchemaError if newer."""
    before = current(db)
    if before is not None and before not in known():
        check(db)
    target = head()
    if before == target:
        return before, target
    with db.hold():
        _upgrade(db)
    return before, target


def build(db: Database, revision: str) -> None:
    """Make the tables of an empty database as they were at a revision of `known()`."""
    with db.hold():
        _upgrade(db, revision)


def _upgrade(db: Database, revision: str = "head") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with db.writer.connect() as connection:
        if db.is_sqlite:
            # Batch mode recreates tables; with foreign keys on, that would delete their children.
            raw = connection.connection.dbapi_connection
            assert raw is not None
            raw.execute("PRAGMA foreign_keys = OFF")
        else:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7701)"))
        try:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            if db.is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise SchemaError("the upgrade would leave rows without their parents")
            connection.commit()
        finally:
            if db.is_sqlite:
                connection.rollback()
                connection.invalidate()  # the next one has foreign keys on again
