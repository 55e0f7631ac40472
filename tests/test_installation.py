"""Opening an installation: keys, folders, and the refusals that say what to do."""

import stat
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import a_grant, a_mailbox, a_site, a_user, an_app, an_installation
from webapp import ids
from webapp.config import ConfigError, load
from webapp.connections.models import Connection
from webapp.crypto import Keyring, new_key, parse_key
from webapp.db import Base, SealedText
from webapp.incidents.models import AlertTarget, Channel
from webapp.installation import key_file, load_keys, open_installation, reseal, sealed_columns
from webapp.microsoft.models import FlowKind, LinkFlow
from webapp.microsoft.service import app_subject, grant_subject


def environ(db_url: str, tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        "POSTROOM_INSTANCE": str(tmp_path / "instance"),
        "POSTROOM_DATABASE_URL": db_url,
        **more,
    }


def test_the_first_start_makes_a_key_that_only_we_can_read(db_url: str, tmp_path: Path) -> None:
    settings = load(environ(db_url, tmp_path))
    open_installation(settings, migrate=True).close()
    path = key_file(settings)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.instance.stat().st_mode) == 0o700
    open_installation(settings).close()


def test_a_missing_key_is_never_replaced_once_there_is_data(db_url: str, tmp_path: Path) -> None:
    settings = load(environ(db_url, tmp_path))
    open_installation(settings, migrate=True).close()
    key_file(settings).unlink()
    with pytest.raises(ConfigError, match="is missing"):
        open_installation(settings)
    assert not key_file(settings).exists()


def test_a_wrong_key_is_refused_with_the_way_out(db_url: str, tmp_path: Path) -> None:
    open_installation(load(environ(db_url, tmp_path)), migrate=True).close()
    wrong = load(environ(db_url, tmp_path, POSTROOM_SECRET_KEYS=new_key()))
    with pytest.raises(ConfigError, match="does not fit this database"):
        open_installation(wrong)


def test_what_is_no_key_is_refused(db_url: str, tmp_path: Path) -> None:
    settings = load(environ(db_url, tmp_path, POSTROOM_SECRET_KEYS="geheim"))
    with pytest.raises(ConfigError, match="44 characters") as refusal:
        open_installation(settings, migrate=True)
    assert "geheim" not in str(refusal.value)


def test_rotation_reaches_every_sealed_column(db_url: str, tmp_path: Path) -> None:
    """One row with a secret in each sealed column; afterwards the new key alone opens them."""
    installation = an_installation(db_url, tmp_path)
    old = [line for line in key_file(installation.settings).read_text().split() if line]
    fresh = new_key()
    marked = {(column.table.name, column.name) for column in sealed_columns()}
    assert marked == {
        (table.name, column.name)
        for table in Base.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, SealedText)
    }
    assert marked == {
        ("connection", "secrets"),
        ("oauth_app", "secret"),
        ("oauth_app", "next_secret"),
        ("alert_target", "secret"),
        ("grant", "cache"),
        ("link_flow", "data"),
    }, "give the new column a row below"
    with installation.db.write() as session:
        site = a_site(session)
        uid = ids.short_id()
        session.add(
            Connection(
                uid=uid,
                site_id=site.id,
                secrets=installation.keyring.seal("connection", f"connection:{uid}", "geheim"),
                settings={},
                secrets_set={},
                created_at=installation.db.now(),
                updated_at=installation.db.now(),
            )
        )
        app = an_app(session, installation.keyring, secret="geheim")
        app.next_secret = app.secret
        session.add(
            AlertTarget(
                uid=ids.short_id(),
                channel=Channel.WEBHOOK,
                address="https://hooks.example/postroom",
                secret=installation.keyring.seal("alert-target", "target", "geheim"),
                created_at=installation.db.now(),
            )
        )
        grant = a_grant(session, installation.keyring, app, a_mailbox(session), cache="geheim")
        session.add(
            LinkFlow(
                digest="0" * 64,
                kind=FlowKind.LINK,
                connection_id=session.scalars(sa.select(Connection.id)).one(),
                app_id=app.id,
                user_id=a_user(session).id,
                data=installation.keyring.seal("link-flow", "flow", "geheim"),
                created_at=installation.db.now(),
                expires_at=installation.db.now(),
            )
        )
        subjects = {
            "connection.secrets": f"connection:{uid}",
            "oauth_app.secret": app_subject(app.uid),
            "oauth_app.next_secret": app_subject(app.uid),
            "alert_target.secret": "target",
            "grant.cache": grant_subject(grant.id),
            "link_flow.data": "flow",
        }
    both = Keyring([parse_key(key) for key in (fresh, *old)])
    assert reseal(installation.db, both) == len(marked)
    alone = Keyring([parse_key(fresh)])
    with installation.db.read() as session:
        for column in sealed_columns():
            token = session.scalar(sa.select(column))
            assert token is not None
            assert isinstance(column.type, SealedText)
            assert alone.unseal(column.type.purpose, subjects[str(column)], token) == "geheim"
    installation.close()
    settings = load(environ(db_url, tmp_path, POSTROOM_SECRET_KEYS=fresh))
    open_installation(settings).close()


def test_several_keys_may_stand_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "instance").mkdir()
    settings = load(environ("", tmp_path))
    key_file(settings).write_text(f"{new_key()}\n{new_key()}\n")
    assert len(load_keys(settings, may_create=False).derive_all("x")) == 2


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://someone:geheim@127.0.0.1:1/nothing"
    settings = load(environ(url, tmp_path))
    with pytest.raises(ConfigError, match="does not answer") as refusal:
        open_installation(settings)
    assert "geheim" not in str(refusal.value)
