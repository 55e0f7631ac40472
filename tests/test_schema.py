"""Migrations: the same schema as the models, on both databases; other revisions are refused."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from webapp import schema
from webapp.db import Base, Database, SealedText, UTCDateTime
from webapp.microsoft.models import Grant, Link, Mailbox, OAuthApp
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


def test_mail_that_waits_at_an_upgrade_follows_the_rules_from_then_on(db: Database) -> None:
    schema.build(db, "0003")
    old = "2026-11-01 10:00:00.000000"
    with db.write_connection() as connection:
        connection.execute(sa.text(OLD_ROWS_SITE), {"at": old})
        connection.execute(sa.text(OLD_ROWS_CONNECTION), {"at": old})
        for key, source, code, due in (
            (1, "smtp", "primary", old),
            (2, "test", "test", old),
            (3, "api", "asked", old),
            (4, "smtp", "primary", None),
        ):
            connection.execute(
                sa.text(OLD_ROWS_MESSAGE),
                {
                    "key": key,
                    "source": source,
                    "why": f'{{"code": "{code}"}}',
                    "due": due,
                    "at": old,
                },
            )
    assert schema.migrate(db) == ("0003", schema.head())
    with db.reader.connect() as connection:
        found = connection.execute(
            sa.text("SELECT id, planned_id, routed_version FROM message ORDER BY id")
        ).all()
        kept = connection.execute(sa.text("SELECT log_days, body_days FROM site")).one()
    assert [tuple(row) for row in found] == [(1, 7, 0), (2, 7, None), (3, 7, None), (4, None, None)]
    assert tuple(kept) == (None, None)


def test_registrations_and_their_links_live_through_an_upgrade(db: Database) -> None:
    schema.build(db, "0003")
    old = "2026-11-01 10:00:00.000000"
    with db.write_connection() as connection:
        rows = (OLD_ROWS_SITE, OLD_ROWS_CONNECTION, OLD_ROWS_APP, OLD_ROWS_MAILBOX, OLD_ROWS_GRANT)
        for text in (*rows, OLD_ROWS_LINK):
            connection.execute(sa.text(text), {"at": old})
    schema.migrate(db)
    with db.reader.connect() as connection:
        found = connection.execute(
            sa.select(OAuthApp.provider, Mailbox.provider, OAuthApp.client_id, OAuthApp.uid)
            .join(Link, Link.app_id == OAuthApp.id)
            .join(Grant, Grant.id == Link.grant_id)
            .join(Mailbox, Mailbox.id == Grant.mailbox_id)
        ).one()
    assert tuple(found) == ("microsoft", "microsoft", "an-id", "a4")
    with db.write() as session:
        app = session.get_one(OAuthApp, 4)
        second = {"connection_id": 7, "cloud": "google", "tenant": "google", "created_at": db.now()}
        session.add(OAuthApp(uid="a5", provider="google", updated_at=db.now(), **second))
        session.flush()
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.add(OAuthApp(uid="a6", provider="google", updated_at=db.now(), **second))
        session.delete(app)
    with db.reader.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Link)) == 0


OLD_ROWS_SITE = """
INSERT INTO site (id, slug, name, url, admin_email, time_zone, mode, after_unclear, retry_hours,
    placeholder_emails, placeholder_names, created_at)
VALUES (1, 'shop', 'Shop', '', '', 'UTC', 'live', 'rather-twice', 72, '[]', '[]', :at)
"""
OLD_ROWS_CONNECTION = """
INSERT INTO connection (id, uid, site_id, nickname, mailer, settings, secrets_set, from_email,
    force_from_email, from_name, force_from_name, return_path, version, health, last_code,
    last_words, created_at, updated_at)
VALUES (7, 'c7', 1, '', 'smtp', '{}', '{}', '', true, '', false, true, 1, 'unknown', '', '',
    :at, :at)
"""
OLD_ROWS_MESSAGE = """
INSERT INTO message (id, queue_id, site_id, source, received, state, due_at, connection_id, why,
    subject, mail_from, from_email, from_name, sent_from, to_line, message_id, size_bytes,
    recipient_count, has_attachments, accepted_at, expires_at, attempts, failures, unclear,
    maybe_twice, last_code, last_words)
VALUES (:key, CAST(:key AS TEXT), 1, :source, '{}', 'queued', :due, 7, :why, '', '', '', '', '',
    '', '', 1, 1, false, :at, :at, 0, 0, 0, false, '', '')
"""
OLD_ROWS_APP = """
INSERT INTO oauth_app (id, uid, connection_id, name, cloud, tenant, client_id, secret_set_by,
    next_secret_set_by, problem_code, problem_words, created_at, updated_at)
VALUES (4, 'a4', 7, 'Ours', 'global', 'common', 'an-id', '', '', '', '', :at, :at)
"""
OLD_ROWS_MAILBOX = """
INSERT INTO mailbox (id, cloud, tenant_id, object_id, address, sign_in_name, name, addresses,
    created_at, updated_at)
VALUES (3, 'global', 't', 'o', 'a@b.example', '', '', '[]', :at, :at)
"""
OLD_ROWS_GRANT = """
INSERT INTO "grant" (id, app_id, mailbox_id, scopes, version, lease_owner, state, state_since, code,
    words, renewed_at, renew_at)
VALUES (2, 4, 3, '[]', 1, '', 'linked', :at, '', '', :at, :at)
"""
OLD_ROWS_LINK = """
INSERT INTO link (connection_id, app_id, grant_id, linked_at, linked_by) VALUES (7, 4, 2, :at, '')
"""
