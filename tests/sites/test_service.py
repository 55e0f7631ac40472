"""Sites and credentials: what they are called, what is refused, what is written down."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from webapp.audit import AuditEvent
from webapp.db import Database
from webapp.fields import FieldErrors
from webapp.sites import service, settings
from webapp.sites.models import Credential, CredentialKind, Mode, Site

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def make(db: Database, name: str = "Lindenhof Shop", **given: Any) -> Site:
    with db.write() as session:
        return service.create_site(session, name=name, actor="mara@example.org", now=NOW, **given)


def make_credential(db: Database, site: Site, **given: Any) -> service.NewCredential:
    given = {"kind": CredentialKind.SMTP, "actor": "mara@example.org", "now": NOW, **given}
    with db.write() as session:
        return service.create_credential(session, site, **given)


def events(db: Database) -> list[AuditEvent]:
    with db.read() as session:
        return list(session.scalars(sa.select(AuditEvent).order_by(AuditEvent.id)))


def refused(db: Database, **given: Any) -> dict[str, str]:
    with pytest.raises(FieldErrors) as caught:
        make(db, **given)
    return caught.value.errors


@pytest.mark.parametrize(
    ("name", "url", "slug"),
    [
        ("Lindenhof Shop", "", "lindenhof-shop"),
        ("  Bäckerei & Öhm  ", "", "baeckerei-oehm"),
        ("Crème Brûlée", "", "creme-brulee"),
        ("松石书店", "https://www.pinestone.example/cn", "pinestone-example"),
        ("松石书店 Pinestone", "", "pinestone"),
        ("2024", "https://shop.example", "shop-example"),
        ("New", "", "new-2"),
        ("A" * 200, "", "a" * 55),
    ],
)
def test_the_slug_is_made_of_the_name_or_else_of_the_address(
    db: Database, name: str, url: str, slug: str
) -> None:
    assert make(db, name, url=url).slug == slug


def test_a_site_with_neither_letters_nor_an_address_gets_a_short_slug(db: Database) -> None:
    assert make(db, "松石书店").slug.startswith("site-")


def test_a_second_site_of_the_same_name_gets_a_number(db: Database) -> None:
    assert [make(db, "Shop").slug for _ in range(3)] == ["shop", "shop-2", "shop-3"]


def test_a_new_site_knows_the_senders_that_programs_make_up(db: Database) -> None:
    site = make(db, url="https://www.lindenhof.example:8443/shop")
    assert site.placeholder_emails == ["wordpress@lindenhof.example", "www-data@*"]
    assert site.placeholder_names == ["WordPress"]
    assert make(db).placeholder_emails == ["wordpress@*", "www-data@*"]


def test_a_new_site_sends_and_has_no_connection(db: Database) -> None:
    site = make(db, admin_email=" mara@Lindenhof.example ")
    assert site.mode == Mode.LIVE
    assert site.primary_connection_id is None
    assert site.admin_email == "mara@lindenhof.example"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "   "),
        ("name", "x" * 201),
        ("name", "a\0b"),
        ("url", "lindenhof.example"),
        ("url", "ftp://lindenhof.example"),
        ("url", "https://"),
        ("url", "https://linden hof.example"),
        ("url", "https://lindenhof.example:port"),
        ("url", "https://lindenhof.example:99999"),
        ("url", "https://[::1"),
        ("url", "https://me:secret@lindenhof.example"),
        ("url", "javascript:alert(1)"),
        ("url", "https://" + "x" * 500),
        ("admin_email", "mara"),
        ("admin_email", "mara@localhost"),
        ("admin_email", "mara@lindenhof.example\nBcc: all@example.org"),
    ],
)
def test_what_cannot_be_a_site_is_said_at_its_field(db: Database, field: str, value: str) -> None:
    errors = refused(db, **{"name": "Shop", field: value})
    assert list(errors) == [field]
    assert "secret" not in errors[field]


def test_all_mistakes_are_said_at_once(db: Database) -> None:
    assert sorted(refused(db, name="", url="x", admin_email="y")) == ["admin_email", "name", "url"]


def test_an_address_may_be_an_ip_or_have_letters_of_any_language(db: Database) -> None:
    for url in ("http://[::1]:8080/", "http://192.0.2.7", "https://松石.example/", ""):
        assert make(db, url=url).url == url


def test_a_change_is_written_down_with_before_and_after(db: Database) -> None:
    site = make(db, url="https://a.example")
    with db.write() as session:
        site = session.get_one(Site, site.id)
        assert settings.set_site(
            session, site, url="https://b.example", mode="do-not-send", actor="x@y.example", now=NOW
        )
    created, changed = events(db)
    assert (created.action, created.actor, created.site_id) == (
        "site created",
        "mara@example.org",
        site.id,
    )
    assert changed.changes["url"] == ["https://a.example", "https://b.example"]
    assert changed.changes["mode"] == ["live", "do-not-send"]
    assert "name" not in changed.changes


def test_a_new_address_moves_the_made_up_sender_unless_a_person_chose_it(db: Database) -> None:
    site = make(db, url="https://a.example")
    with db.write() as session:
        site = session.get_one(Site, site.id)
        settings.set_site(session, site, url="https://b.example", actor="x", now=NOW)
        assert site.placeholder_emails[0] == "wordpress@b.example"
        site.placeholder_emails = ["shop@b.example"]
        settings.set_site(session, site, url="https://c.example", actor="x", now=NOW)
        assert site.placeholder_emails == ["shop@b.example"]


def test_a_change_that_changes_nothing_is_not_written_down(db: Database) -> None:
    site = make(db)
    with db.write() as session:
        site = session.get_one(Site, site.id)
        assert not settings.set_site(session, site, mode="live", actor="x", now=NOW)
    assert len(events(db)) == 1


@pytest.mark.parametrize("mode", ["off", "", "Live"])
def test_a_mode_that_is_not_offered_is_refused(db: Database, mode: str) -> None:
    site = make(db)
    with db.write() as session, pytest.raises(FieldErrors) as caught:
        settings.set_site(session, site, mode=mode, actor="x", now=NOW)
    assert list(caught.value.errors) == ["mode"]


def test_a_login_is_named_after_its_site_and_its_secret_is_kept_as_a_digest(db: Database) -> None:
    made = make_credential(db, make(db), label=" web server ")
    assert made.credential.username.startswith("lindenhof-shop-")
    assert len(made.credential.username) == len("lindenhof-shop-") + 4
    assert made.credential.label == "web server"
    assert len(made.secret) == 32
    assert made.secret.isascii()
    with db.read() as session:
        stored = session.get_one(Credential, made.credential.id)
        assert stored.digest == hashlib.sha256(made.secret.encode()).hexdigest()
    assert made.secret not in json.dumps([event.changes for event in events(db)])


def test_an_api_key_is_its_public_id_and_its_secret(db: Database) -> None:
    made = make_credential(db, make(db), kind=CredentialKind.API)
    assert made.credential.username.startswith("pk_")
    assert made.key == f"{made.credential.username}.{made.secret}"
    assert made.credential.scopes == ["send"]


def test_allowed_senders_and_networks_are_kept_in_their_usual_form(db: Database) -> None:
    made = make_credential(
        db,
        make(db),
        senders=["*@Example.org", " Shop@Example.org", "", "shop@example.org"],
        networks=["203.0.113.7/24", "2001:db8::1"],
    )
    assert made.credential.senders == ["*@example.org", "shop@example.org"]
    assert made.credential.networks == ["203.0.113.0/24", "2001:db8::1/128"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("senders", "example.org"),
        ("senders", "*"),
        ("senders", "@example.org"),
        ("senders", "*@*"),
        ("senders", "s?op@example.org"),
        ("senders", "*@exa mple.org"),
        ("networks", "203.0.113.0/33"),
        ("networks", "my-host"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(db: Database, field: str, value: str) -> None:
    site = make(db)
    with pytest.raises(FieldErrors) as caught:
        make_credential(db, site, **{field: [value]})
    assert list(caught.value.errors) == [field]


def test_a_revoked_login_is_listed_no_more_and_stays_revoked_since_then(db: Database) -> None:
    site = make(db)
    made = make_credential(db, site)
    later = NOW.replace(hour=13)
    with db.write() as session:
        credential = service.find_credential(session, site.id, made.credential.id)
        assert credential is not None
        service.revoke_credential(session, site, credential, actor="x", now=NOW)
        service.revoke_credential(session, site, credential, actor="x", now=later)
    with db.read() as session:
        assert service.credentials_of(session, site.id, kind=CredentialKind.SMTP) == []
        assert session.get_one(Credential, made.credential.id).revoked_at == NOW
    assert [event.action for event in events(db)][1:] == [
        "credential created",
        "credential revoked",
    ]


def test_a_login_of_another_site_is_not_found(db: Database) -> None:
    mine, theirs = make(db, "Mine"), make(db, "Theirs")
    made = make_credential(db, theirs)
    with db.read() as session:
        assert service.find_credential(session, mine.id, made.credential.id) is None
        assert service.find_credential(session, theirs.id, made.credential.id) is not None
