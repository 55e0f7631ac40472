"""Settings > Misc, and the end of a site."""

import json
from typing import Any

import pytest
import sqlalchemy as sa

from tests.factories import (
    a_connection,
    a_credential,
    a_membership,
    a_message,
    a_site,
    a_user,
)
from tests.pages import Browser
from webapp.accounts.models import Dismissal, Role
from webapp.audit import AuditEvent
from webapp.connections.models import Connection
from webapp.delivery.models import Message, State
from webapp.ingress.login import authenticate
from webapp.installation import Installation
from webapp.maillog.retention import Retention
from webapp.policy.forms import MISC
from webapp.sites.models import CredentialKind, Mode, Site
from webapp.sites.service import find_site, ids_beside_deleted
from webapp.sites.settings import as_text

PATH = "/sites/shop/settings/misc"


def signed_in(client: Browser, installation: Installation, role: Role = Role.OWNER) -> Site:
    with installation.db.write() as session:
        site, user = a_site(session, name="Shop", slug="shop"), a_user(session)
        a_connection(session, site)
        a_membership(session, user, site, role)
    client.sign_in(user)
    return site


def site_now(installation: Installation) -> Site:
    with installation.db.read() as session:
        return session.scalars(sa.select(Site).order_by(Site.id)).first()  # type: ignore[return-value]


def form(installation: Installation, **changes: Any) -> dict[str, Any]:
    """What the page would send, with changes."""
    site = site_now(installation)
    return {name: as_text(getattr(site, name)) for name in MISC} | changes


def test_every_setting_is_saved_and_written_down(
    client: Browser, installation: Installation
) -> None:
    signed_in(client, installation)
    page = client.get(PATH)
    assert page.value("retry_hours") == "72"
    assert page.value("time_zone") == "UTC"
    changes = {
        "name": "New Shop",
        "time_zone": "Europe/Berlin",
        "retry_hours": "24",
        "patience_minutes": "5",
        "after_unclear": "never-twice",
        "per_minute": "30",
        "placeholder_emails": "a@b.example\r\n*@c.example",
        "placeholder_names": "WordPress",
    }
    page = client.post(PATH, form(installation, **changes))
    assert page.notices[-1] == "Settings saved."
    site = site_now(installation)
    assert (site.name, site.time_zone, site.retry_hours, site.per_minute) == (
        "New Shop",
        "Europe/Berlin",
        24,
        30,
    )
    assert site.placeholder_emails == ["a@b.example", "*@c.example"]
    with installation.db.read() as session:
        [event] = session.scalars(sa.select(AuditEvent))
        assert event.changes["per_minute"] == [None, 30]
        assert "url" not in event.changes


@pytest.mark.parametrize(
    ("mode", "told", "state"),
    [
        (Mode.HOLD, "1 waiting mail is held.", State.HELD),
        (Mode.REDIRECT_TO, "1 waiting mail now goes to the other address.", State.QUEUED),
        (Mode.DO_NOT_SEND, "1 waiting mail will not be sent.", State.BLOCKED),
    ],
)
def test_a_mode_counts_for_waiting_mail_and_stands_on_every_page(
    client: Browser, installation: Installation, mode: Mode, told: str, state: State
) -> None:
    site = signed_in(client, installation)
    with installation.db.write() as session:
        here = session.get_one(Site, site.id)
        mail = a_message(session, here, state=State.QUEUED)
    page = client.post(PATH, form(installation, mode=mode, redirect_to="test@agentur.example"))
    assert f"Settings saved. {told}" in page.notices
    with installation.db.read() as session:
        assert session.get_one(Message, mail.id).state == state
    for path in (PATH, "/sites/shop/log", "/sites/shop/settings/email-log"):
        page = client.get(path)
        assert any("By choice" in text for text in page.notices), path
        assert ("Change the mode" in page.links()) == (path != PATH)


def test_mistakes_are_said_together_and_nothing_typed_is_lost(
    client: Browser, installation: Installation
) -> None:
    signed_in(client, installation)
    given = form(installation, mode="redirect-to", per_day="0", name="", time_zone="Mars/Base")
    page = client.post(PATH, given, status=422)
    assert sorted(page.errors) == ["name", "per_day", "redirect_to", "time_zone"]
    assert "use the mode Do not send" in page.errors["per_day"]
    assert page.value("per_day") == "0"
    assert site_now(installation).mode == Mode.LIVE


def test_each_person_hides_delivery_errors_for_themselves(
    client: Browser, installation: Installation
) -> None:
    signed_in(client, installation)
    for sent, rows in (({"hide_errors": "y"}, 1), ({"hide_errors": "y"}, 1), ({}, 0)):
        page = client.post(PATH, form(installation, **sent))
        assert ("checked" in page.one(name="hide_errors").attributes) == bool(rows)
        with installation.db.read() as session:
            assert len(session.scalars(sa.select(Dismissal)).all()) == rows


# ---- the end ----


def test_an_operator_is_offered_no_end(client: Browser, installation: Installation) -> None:
    signed_in(client, installation, Role.OPERATOR)
    assert f"{PATH}/delete" not in client.get(PATH).links_to()
    client.get(f"{PATH}/delete", status=403)


def test_a_site_is_deleted_once_its_name_is_typed(
    client: Browser, installation: Installation
) -> None:
    site = signed_in(client, installation)
    db = installation.db
    with db.write() as session:
        here = session.get_one(Site, site.id)
        mail = a_message(session, here, state=State.QUEUED)
        login, secret = a_credential(session, here)
        key, key_secret = a_credential(session, here, CredentialKind.API)
    assert f"{PATH}/export" in client.get(f"{PATH}/delete").links_to()
    page = client.post(f"{PATH}/delete", {"sure_name": "shop"}, status=422)
    assert list(page.errors) == ["sure_name"]
    assert authenticate(db, login.username, secret, "127.0.0.1") is not None

    page = client.post(f"{PATH}/delete", {"sure_name": "Shop"})
    assert any("Shop is deleted." in text for text in page.notices)
    assert any("1 waiting mail will not be sent." in text for text in page.notices)
    assert authenticate(db, login.username, secret, "127.0.0.1") is None
    assert authenticate(db, key.username, key_secret, "127.0.0.1", CredentialKind.API) is None
    client.get(PATH, status=404)
    assert "Shop" not in client.get("/").one("main").text
    with db.read() as session:
        assert find_site(session, "shop") is None
        assert ids_beside_deleted(session) == []
        assert session.get_one(Message, mail.id).state == State.BLOCKED
        assert session.scalars(sa.select(Connection.deleted_at)).one() is not None
        actions = list(session.scalars(sa.select(AuditEvent.action)))
    assert actions[-1] == "site deleted"
    assert actions.count("credential revoked") == 2

    Retention(db).work()
    Retention(db).work()
    with db.read() as session:
        assert session.scalars(sa.select(Message)).all() == []
        assert ids_beside_deleted(session) is None
    with db.write() as session:
        assert a_site(session, name="Shop", slug="shop").id != site.id


def test_the_log_of_all_sites_leaves_out_what_is_being_deleted(
    client: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        admin = a_user(session, is_admin=True)
        gone, there = a_site(session, deleted_at=installation.db.now()), a_site(session)
        a_message(session, gone, subject="Gone", state=State.SENT)
        a_message(session, there, subject="There", state=State.SENT)
        a_message(session, gone, subject="Gone", state=State.HELD)
        a_message(session, there, subject="There", state=State.HELD)
    client.sign_in(admin)
    for path in ("/log", "/queue?status=held"):
        text = client.get(path).one("main").text
        assert "There" in text
        assert "Gone" not in text


def test_the_export_holds_settings_and_log_and_no_secret(
    client: Browser, installation: Installation
) -> None:
    site = signed_in(client, installation)
    with installation.db.write() as session:
        here, other = session.get_one(Site, site.id), a_site(session)
        a_credential(session, here)
        own = a_connection(
            session, here, keyring=installation.keyring, secrets={"password": "Geheim-77"}
        )
        mail = a_message(session, here, state=State.SENT, connection=own, subject="订单")
        a_message(session, other, subject="Foreign")
    answer = client.fetch(f"{PATH}/export")
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="shop-')
    lines = [json.loads(line) for line in answer.text.splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds == ["site", "connection", "connection", "credential", "member", "mail"]
    assert lines[0]["name"] == "Shop"
    assert (lines[-1]["id"], lines[-1]["subject"]) == (mail.queue_id, "订单")
    assert lines[-1]["recipients"][0]["state"] == "sent"
    for hidden in ("Geheim-77", "digest", "Vielen Dank", "Foreign"):
        assert hidden not in answer.text
