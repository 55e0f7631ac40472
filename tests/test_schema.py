"""Migrations: the same schema as the models, on both databases; other revisions are refused."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from webapp import schema
from webapp.db import Base, Database, SealedText, UTCDateTime
from webapp.schema import SchemaError


@pytest.fixture
def db(db_url: str) -> Iterator[Database]:
    made = Database(db_url)
    yield made
    made.close()


def test_the_migrations_make_what_the_models_describe(db: Database) -> None:
    assert schema.migrate(db) == (None, schema.head())

    def ours(thing: object, name: str | None, kind: str, *_: object) -> bool:
        return not (kind == "table" and str(name).startswith("message_search"))

    with db.reader.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_object": ours, "compare_type": same_type}
        )
        assert compare_metadata(context, Base.metadata) == []


def same_type(
    context: object, inspected: object, described: object, is_: object, wanted: object
) -> bool | None:
    """Our decorated types are what they decorate; everything else as Alembic compares it."""
    if isinstance(wanted, UTCDateTime):
        return not isinstance(is_, sa.DateTime)
    if isinstance(wanted, SealedText):
        return not isinstance(is_, sa.Text)
    return None


def test_the_files_of_the_revisions_are_named_after_them() -> None:
    script = ScriptDirectory(str(schema.MIGRATIONS))
    assert schema.known() == {found.revision for found in script.walk_revisions()}
    assert schema.head() == script.get_current_head()


def test_migrating_twice_changes_nothing(db: Database) -> None:
    schema.migrate(db)
    assert schema.migrate(db) == (schema.head(), schema.head())
    schema.check(db)


def test_an_empty_database_is_not_used(db: Database) -> None:
    assert schema.is_empty(db)
    with pytest.raises(SchemaError, match="postroom migrate"):
        schema.check(db)


def test_a_newer_database_is_refused_by_everything(db: Database) -> None:
    schema.migrate(db)
    with db.write_connection() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="newer Postroom"):
        schema.check(db)
    with pytest.raises(SchemaError, match="newer Postroom"):
        schema.migrate(db)
