"""Saving a connection: what is stored, what is refused, and where a password may go."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from webapp.audit import AuditEvent
from webapp.connections import service
from webapp.connections.models import Connection, Health
from webapp.connections.service import FormValues, NotReady, PrivateHost
from webapp.crypto import Keyring, SealError, new_key, parse_key
from webapp.db import Database
from webapp.fields import FieldErrors
from webapp.mailers.smtp import Encryption, Smtp
from webapp.sites.models import Site
from webapp.sites.service import create_site

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LATER = datetime(2026, 11, 24, 13, 0, tzinfo=UTC)
SETTINGS = {
    "host": "smtp.example.org",
    "port": 587,
    "encryption": "tls",
    "auto_tls": True,
    "authentication": True,
    "username": "shop",
}
VALUES = FormValues(
    from_email="orders@lindenhof.example",
    from_name="Lindenhof",
    mailer="smtp",
    settings=SETTINGS,
    secrets={"password": "correct horse"},
)
KEPT = replace(VALUES, secrets={"password": ""})


@pytest.fixture
def keyring() -> Keyring:
    return Keyring([parse_key(new_key())])


@pytest.fixture
def site(db: Database) -> Site:
    with db.write() as session:
        return create_site(session, name="Lindenhof Shop", actor="x", now=NOW)


def settings(**changed: object) -> dict[str, object]:
    return {**SETTINGS, **changed}


def save(
    db: Database,
    keyring: Keyring,
    site: Site,
    values: FormValues = VALUES,
    connection: Connection | None = None,
    now: datetime = NOW,
) -> Connection:
    with db.write() as session:
        mine = session.get_one(Connection, connection.id) if connection else None
        return service.save_connection(
            session, keyring, site, mine, values, actor="mara@example.org", now=now
        )


def refused(*arguments: Any) -> dict[str, str]:
    with pytest.raises(FieldErrors) as caught:
        save(*arguments)
    return caught.value.errors


def password(connection: Connection, keyring: Keyring) -> str | None:
    return service.stored_secrets(connection, keyring).get("smtp", {}).get("password")


def events(db: Database) -> list[AuditEvent]:
    with db.read() as session:
        query = sa.select(AuditEvent).where(AuditEvent.object_kind == "connection")
        return list(session.scalars(query.order_by(AuditEvent.id)))


def test_a_saved_connection_opens_as_the_mailer_it_was_entered_as(
    db: Database, keyring: Keyring, site: Site
) -> None:
    saved = save(db, keyring, site)
    mailer = service.load_mailer(saved, keyring)
    assert mailer == Smtp(
        host="smtp.example.org",
        port=587,
        encryption=Encryption.TLS,
        auto_tls=True,
        authentication=True,
        username="shop",
        password="correct horse",
    )
    assert service.is_complete(saved)
    assert saved.version == 1
    assert saved.site_id == site.id


def test_a_password_is_stored_sealed_and_bound_to_its_row(
    db: Database, keyring: Keyring, site: Site
) -> None:
    one, other = save(db, keyring, site), save(db, keyring, site)
    assert one.secrets is not None
    assert "correct" not in json.dumps(one.settings) + one.secrets
    one.secrets = other.secrets
    with pytest.raises(SealError):
        service.load_mailer(one, keyring)


def test_a_blank_password_keeps_the_stored_one(db: Database, keyring: Keyring, site: Site) -> None:
    saved = save(db, keyring, site)
    again = save(db, keyring, site, replace(KEPT, from_name="Shop"), saved, LATER)
    assert password(again, keyring) == "correct horse"
    noted = again.secrets_set["smtp"]["password"]
    assert noted == {"at": NOW.isoformat(), "by": "mara@example.org"}


def test_a_new_password_replaces_the_old_one_and_says_when(
    db: Database, keyring: Keyring, site: Site
) -> None:
    saved = save(db, keyring, site)
    again = save(db, keyring, site, replace(VALUES, secrets={"password": "new"}), saved, LATER)
    assert password(again, keyring) == "new"
    assert again.secrets_set["smtp"]["password"]["at"] == LATER.isoformat()


def test_a_password_is_removed_on_request(db: Database, keyring: Keyring, site: Site) -> None:
    saved = save(db, keyring, site)
    again = save(db, keyring, site, replace(KEPT, remove_secrets=("password",)), saved)
    assert password(again, keyring) is None
    assert again.secrets is None
    assert again.secrets_set == {}


@pytest.mark.parametrize(
    "changed",
    [
        {"host": "smtp.evil.example"},
        {"username": "somebody"},
        {"encryption": "none"},
        {"encryption": "none", "auto_tls": False},
    ],
)
def test_a_stored_password_does_not_go_where_it_was_not_meant_for(
    db: Database, keyring: Keyring, site: Site, changed: dict[str, object]
) -> None:
    saved = save(db, keyring, site)
    errors = refused(db, keyring, site, replace(KEPT, settings=settings(**changed)), saved)
    assert list(errors) == ["password"]
    with_it = replace(VALUES, settings=settings(**changed))
    assert password(save(db, keyring, site, with_it, saved), keyring) == "correct horse"


def test_taking_auto_tls_away_counts_as_less_cover(
    db: Database, keyring: Keyring, site: Site
) -> None:
    plain = replace(VALUES, settings=settings(encryption="none", auto_tls=True))
    saved = save(db, keyring, site, plain)
    bare = replace(KEPT, settings=settings(encryption="none", auto_tls=False))
    assert list(refused(db, keyring, site, bare, saved)) == ["password"]


@pytest.mark.parametrize("changed", [{"encryption": "ssl", "port": 465}, {"port": 2525}])
def test_a_change_that_leads_to_the_same_place_keeps_the_password(
    db: Database, keyring: Keyring, site: Site, changed: dict[str, object]
) -> None:
    saved = save(db, keyring, site)
    again = save(db, keyring, site, replace(KEPT, settings=settings(**changed)), saved)
    assert password(again, keyring) == "correct horse"


def test_a_new_host_without_login_drops_the_password(
    db: Database, keyring: Keyring, site: Site
) -> None:
    saved = save(db, keyring, site)
    open_relay = settings(host="relay.example.org", authentication=False)
    moved = save(db, keyring, site, replace(KEPT, settings=open_relay), saved)
    assert password(moved, keyring) is None
    back = replace(KEPT, settings=SETTINGS)
    assert password(save(db, keyring, site, back, saved), keyring) is None


def test_settings_and_secrets_of_another_mailer_stay(
    db: Database, keyring: Keyring, site: Site
) -> None:
    saved = save(db, keyring, site)
    with db.write() as session:
        row = session.get_one(Connection, saved.id)
        row.settings = {**row.settings, "other": {"key_name": "x"}}
        row.secrets = keyring.seal(
            "connection",
            service.subject(row.uid),
            {"smtp": {"password": "correct horse"}, "other": {"key": "k"}},
        )
        row.secrets_set = {**row.secrets_set, "other": {"key": {"at": "then", "by": "me"}}}
    again = save(db, keyring, site, replace(VALUES, secrets={"password": "new"}), saved)
    assert again.settings["other"] == {"key_name": "x"}
    assert service.stored_secrets(again, keyring) == {
        "smtp": {"password": "new"},
        "other": {"key": "k"},
    }
    assert again.secrets_set["other"]["key"]["by"] == "me"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("from_email", replace(VALUES, from_email="orders")),
        ("from_email", replace(VALUES, from_email="orders@lindenhof.example, x@y.example")),
        ("from_name", replace(VALUES, from_name="Shop\r\nBcc: all@example.org")),
        ("from_name", replace(VALUES, from_name="x" * 201)),
        ("nickname", replace(VALUES, nickname="x" * 101)),
        ("host", replace(VALUES, settings=settings(host=""))),
        ("host", replace(VALUES, settings=settings(host="https://smtp.example.org"))),
        ("host", replace(VALUES, settings=settings(host="smtp example"))),
        ("port", replace(VALUES, settings=settings(port=0))),
        ("port", replace(VALUES, settings=settings(port=70000))),
        ("port", replace(VALUES, settings=settings(port="many"))),
        ("encryption", replace(VALUES, settings=settings(encryption="rot13"))),
        ("username", replace(VALUES, settings=settings(username=""))),
        ("mailer", replace(VALUES, mailer="pigeon")),
        ("mailer", replace(VALUES, mailer="")),
    ],
)
def test_what_cannot_be_used_is_said_at_its_field_and_nothing_is_stored(
    db: Database, keyring: Keyring, site: Site, field: str, values: FormValues
) -> None:
    errors = refused(db, keyring, site, values)
    assert list(errors) == [field]
    assert "correct horse" not in errors[field]
    with db.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Connection)) == 0


def test_mistakes_in_both_halves_are_said_at_once(
    db: Database, keyring: Keyring, site: Site
) -> None:
    wrong = replace(VALUES, from_email="x", settings=settings(host="", port=0))
    assert sorted(refused(db, keyring, site, wrong)) == ["from_email", "host", "port"]


def test_an_empty_from_email_is_fine(db: Database, keyring: Keyring, site: Site) -> None:
    assert save(db, keyring, site, replace(VALUES, from_email=" ")).from_email == ""


def test_every_save_raises_the_version(db: Database, keyring: Keyring, site: Site) -> None:
    saved = save(db, keyring, site)
    again = save(db, keyring, site, KEPT, saved, LATER)
    assert again.version == 2
    assert again.updated_at == LATER
    assert again.created_at == NOW


@pytest.mark.parametrize(
    ("health", "values", "after"),
    [
        (Health.FAILING, replace(KEPT, settings=settings(port=2525)), Health.UNKNOWN),
        (Health.WORKING, VALUES, Health.UNKNOWN),
        (Health.WORKING, replace(KEPT, from_name="Shop"), Health.WORKING),
        (Health.FAILING, KEPT, Health.FAILING),
        (Health.NEEDS_REAUTHORISATION, KEPT, Health.UNKNOWN),
        (Health.MISCONFIGURED, KEPT, Health.UNKNOWN),
    ],
)
def test_what_was_learnt_with_other_settings_is_forgotten(
    db: Database, keyring: Keyring, site: Site, health: Health, values: FormValues, after: Health
) -> None:
    saved = save(db, keyring, site)
    with db.write() as session:
        row = session.get_one(Connection, saved.id)
        row.health, row.health_since, row.last_words = health, NOW, "said"
    again = save(db, keyring, site, values, saved)
    assert again.health == after
    assert (again.last_words == "") == (after == Health.UNKNOWN)


def test_the_audit_says_what_changed_and_of_secrets_only_that(
    db: Database, keyring: Keyring, site: Site
) -> None:
    saved = save(db, keyring, site)
    save(
        db,
        keyring,
        site,
        replace(VALUES, settings=settings(port=2525), secrets={"password": "new secret"}),
        saved,
    )
    save(db, keyring, site, replace(KEPT, remove_secrets=("password",)), saved)
    created, changed, removed = events(db)
    assert created.action == "connection created"
    assert created.changes["smtp.password"] == "changed"
    assert changed.changes == {"smtp.port": [587, 2525], "smtp.password": "changed"}
    assert removed.changes == {"smtp.port": [2525, 587], "smtp.password": "removed"}
    everything = json.dumps([event.changes for event in events(db)])
    assert "new secret" not in everything
    assert "correct horse" not in everything


def test_a_shared_connection_is_saved_only_by_who_shares(
    db: Database, keyring: Keyring, site: Site
) -> None:
    saved = save(db, keyring, site)
    with db.write() as session:
        shared = session.get_one(Connection, saved.id)
        shared.site_id = None
        with pytest.raises(service.ForeignConnection):
            service.save_connection(session, keyring, site, shared, KEPT, actor="x", now=NOW)
        service.save_connection(
            session, keyring, site, shared, KEPT, shares=True, actor="x", now=NOW
        )
        assert service.set_primary(session, site, shared, actor="x", now=NOW)
        assert shared.site_id is None


def test_a_connection_of_another_site_cannot_be_saved_or_chosen(
    db: Database, keyring: Keyring, site: Site
) -> None:
    saved = save(db, keyring, site)
    with db.write() as session:
        other = create_site(session, name="Other", actor="x", now=NOW)
    with pytest.raises(service.ForeignConnection):
        save(db, keyring, other, KEPT, saved)
    with db.write() as session, pytest.raises(service.ForeignConnection):
        service.set_primary(session, other, saved, actor="x", now=NOW)
    with db.read() as session:
        assert service.find_connection(session, other, saved.uid) is None
        assert service.find_connection(session, site, saved.uid) is not None


def test_the_primary_connection_is_set_once(db: Database, keyring: Keyring, site: Site) -> None:
    saved = save(db, keyring, site)
    with db.write() as session:
        mine = session.get_one(Site, site.id)
        assert service.primary_connection(session, mine) is None
        assert service.set_primary(session, mine, saved, actor="x", now=NOW)
        assert not service.set_primary(session, mine, saved, actor="x", now=NOW)
        found = service.primary_connection(session, mine)
        assert found is not None
        assert found.uid == saved.uid


@pytest.mark.parametrize(
    "wrong",
    [
        {"mailer": ""},
        {"mailer": "pigeon"},
        {"settings": {}},
        {"settings": {"smtp": {"host": "smtp.example.org", "port": 0}}},
    ],
)
def test_an_unfinished_connection_says_so_instead_of_opening(
    db: Database, keyring: Keyring, site: Site, wrong: dict[str, Any]
) -> None:
    saved = save(db, keyring, site)
    for name, value in wrong.items():
        setattr(saved, name, value)
    assert not service.is_complete(saved)
    with pytest.raises(NotReady):
        service.load_mailer(saved, keyring)


def found_at(*addresses: str) -> service.Resolver:
    return lambda host, port: [(0, 0, 0, "", (address, 0)) for address in addresses]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
    ],
)
def test_a_name_that_leads_into_a_private_network_is_refused(address: str) -> None:
    with pytest.raises(PrivateHost):
        service.check_host("smtp.example.org", found_at("8.8.8.8", address))


def test_a_public_host_is_fine() -> None:
    service.check_host("smtp.example.org", found_at("8.8.8.8", "2606:4700::1111"))


def test_a_name_that_cannot_be_looked_up_is_no_error_yet() -> None:
    def nobody(host: str, port: None) -> list[tuple[Any, ...]]:
        raise OSError("no such name")

    service.check_host("smtp.example.org", nobody)
