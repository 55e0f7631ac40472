"""Settings > Additional Connections: the list, the pages, what is shared, what is taken away."""

from typing import Any

import pytest
import sqlalchemy as sa

from tests.connections.test_views import SENT, chosen
from tests.factories import (
    a_connection,
    a_grant,
    a_link,
    a_mailbox,
    a_membership,
    a_message,
    a_site,
    a_time,
    a_user,
    an_app,
)
from tests.pages import Browser, Node, Page
from webapp import ids
from webapp.accounts.models import Role
from webapp.audit import AuditEvent
from webapp.connections.models import Backup, Connection, Health
from webapp.connections.service import stored_secrets
from webapp.connections.uses import chain_ids
from webapp.delivery.models import Message, State
from webapp.installation import Installation
from webapp.microsoft.models import Grant, GrantState, Link, OAuthApp
from webapp.routing.models import Rule, RuleKind
from webapp.sites.models import Site

SETTINGS = "/sites/galerie-nord/settings"
LIST = f"{SETTINGS}/connections"
GENERAL = f"{SETTINGS}/general"
NEW = f"{LIST}/new"
NAMED: dict[str, object] = {**SENT, "nickname": "Host relay", "smtp-host": "8.8.8.8"}


@pytest.fixture
def site(client: Browser, installation: Installation) -> Site:
    """A site whose operator is signed in, with a primary connection."""
    with installation.db.write() as session:
        site = a_site(session, name="Galerie Nord", slug="galerie-nord")
        user = a_user(session, email="mara@agentur.example")
        a_membership(session, user, site, Role.OPERATOR)
        a_connection(session, site, nickname="Main", settings={"authentication": False})
    client.sign_in(user)
    return site


def as_admin(client: Browser, installation: Installation) -> None:
    with installation.db.write() as session:
        user = a_user(session, is_admin=True)
    client.sign_in(user)


def another(
    installation: Installation, site: Site | None, nickname: str = "Host relay", **values: Any
) -> Connection:
    """A further connection of a site, or a shared one."""
    with installation.db.write() as session:
        here = session.get_one(Site, site.id) if site else None
        settings = {"authentication": False, **values.pop("settings", {})}
        return a_connection(
            session, here, primary=False, nickname=nickname, settings=settings, **values
        )


def a_rule(installation: Installation, site: Site, connection: Connection) -> None:
    with installation.db.write() as session:
        session.add(
            Rule(
                uid=ids.short_id(),
                site_id=site.id,
                kind=RuleKind.ROUTE,
                position=1,
                name="Newsletter",
                connection_id=connection.id,
                groups=[],
                created_at=a_time(),
                updated_at=a_time(),
            )
        )


def a_backup(installation: Installation, site: Site, *connections: Connection) -> None:
    with installation.db.write() as session:
        session.add_all(
            Backup(site_id=site.id, position=place, connection_id=one.id)
            for place, one in enumerate(connections, start=1)
        )


def stored(installation: Installation, uid: str) -> Connection:
    with installation.db.read() as session:
        return session.scalars(sa.select(Connection).where(Connection.uid == uid)).one()


def named(installation: Installation, nickname: str) -> Connection:
    with installation.db.read() as session:
        query = sa.select(Connection).where(Connection.nickname == nickname)
        return session.scalars(query).one()


def chain(installation: Installation, site: Site) -> list[int]:
    with installation.db.read() as session:
        return chain_ids(session, session.get_one(Site, site.id))


def primary(installation: Installation, site: Site) -> int | None:
    with installation.db.read() as session:
        return session.get_one(Site, site.id).primary_connection_id


def audited(installation: Installation) -> list[str]:
    with installation.db.read() as session:
        return list(session.scalars(sa.select(AuditEvent.action).order_by(AuditEvent.id)))


def row(page: Page, name: str) -> Node:
    (found,) = [tr for tr in page.all("tr") if name in tr.text]
    return found


def page_of(connection: Connection) -> str:
    return f"{LIST}/{connection.uid}"


# ---- the list ----


def test_an_empty_list_teaches_what_it_is_for(client: Browser, site: Site) -> None:
    page = client.get(LIST)
    assert page.one("h2", id="empty-title").text == "No additional connection yet"
    assert page.one("a", class_="large")["href"] == NEW


def test_the_list_says_how_each_does_and_what_uses_it(
    client: Browser, installation: Installation, site: Site
) -> None:
    relay = another(installation, site)
    another(
        installation,
        site,
        "Old server",
        health=Health.FAILING,
        health_since=a_time(),
        last_words="421 busy",
    )
    another(installation, site, "Half done", settings={"host": ""})
    another(installation, None, "Agency relay")
    a_rule(installation, site, relay)
    a_backup(installation, site, relay)
    with installation.db.write() as session:
        mine, used = session.get_one(Site, site.id), session.get_one(Connection, relay.id)
        a_message(session, mine, state=State.SENT, connection=used)
        a_message(session, mine, state=State.FAILED, connection=used)
    page = client.get(LIST)
    assert [tr.one("th").text.split(" Other SMTP")[0] for tr in page.all("tr")[1:]] == [
        "Main",
        "Host relay",
        "Old server",
        "Half done",
        "Agency relay",
    ]
    assert "Primary" in row(page, "Main").text
    found = row(page, "Host relay").text
    for words in ("Ready", "Backup 1, 1 rule", "just now"):
        assert words in found
    assert [cell.text for cell in row(page, "Host relay").all("td", class_="num")][:2] == ["1", "1"]
    for words in ("Failing", "since", "421 busy"):
        assert words in row(page, "Old server").text
    assert "Not complete" in row(page, "Half done").text
    assert not row(page, "Half done").all("button")
    shared = row(page, "Agency relay")
    assert "shared with every site" in shared.text
    assert [a["href"] for a in shared.all("a")] == [
        f"/sites/galerie-nord/tools/test?via={named(installation, 'Agency relay').uid}"
    ]


def test_a_link_that_is_missing_or_refused_is_told(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        mine = session.get_one(Site, site.id)
        a_connection(session, mine, primary=False, nickname="Nobody", mailer="outlook")
        refused = a_connection(session, mine, primary=False, nickname="Gone", mailer="outlook")
        app, box = an_app(session, installation.keyring), a_mailbox(session)
        grant = a_grant(
            session, installation.keyring, app, box, state=GrantState.NEEDS_REAUTHORISATION
        )
        a_link(session, refused, grant)
    page = client.get(LIST)
    assert "Not authorized" in row(page, "Nobody").text
    assert "Needs re-authorization" in row(page, "Gone").text


def test_the_test_link_leads_to_a_test_by_that_connection(
    client: Browser, installation: Installation, site: Site
) -> None:
    shared = another(installation, None, "Agency relay")
    page = client.get(f"/sites/galerie-nord/tools/test?via={shared.uid}")
    assert chosen(page, "via") == shared.uid


# ---- one connection ----


def test_a_connection_is_added_with_a_name_and_is_not_the_primary_one(
    client: Browser, installation: Installation, site: Site
) -> None:
    before = primary(installation, site)
    page = client.post(NEW, {**NAMED, "nickname": " "}, status=422)
    assert page.errors["nickname"] == "Give it a name by which people choose it."
    assert page.value("smtp-host") == "8.8.8.8"
    response = client.send(NEW, NAMED)
    made = named(installation, "Host relay")
    assert (response.status_code, response.headers["Location"]) == (303, page_of(made))
    page = client.get(page_of(made))
    assert "Settings saved." in page.notices
    assert page.value("nickname") == "Host relay"
    assert made.lane_id is not None
    assert primary(installation, site) == before


def test_a_connection_is_edited_on_its_own_page_and_says_what_it_is(
    client: Browser, installation: Installation, site: Site
) -> None:
    relay = another(installation, site)
    a_backup(installation, site, relay)
    page = client.get(page_of(relay))
    assert any("This is a backup connection." in notice for notice in page.notices)
    response = client.send(page_of(relay), {**NAMED, "from_email": "news@galerie.example"})
    assert response.status_code == 303
    assert stored(installation, relay.uid).from_email == "news@galerie.example"
    main = named(installation, "Main")
    page = client.get(page_of(main))
    assert any("This is the primary connection." in notice for notice in page.notices)
    assert "connection changed" in audited(installation)


def test_the_link_of_a_connection_comes_back_to_its_own_page(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        mine = session.get_one(Site, site.id)
        made = a_connection(session, mine, primary=False, nickname="Shop", mailer="outlook")
        app, box = an_app(session, installation.keyring), a_mailbox(session)
        a_link(session, made, a_grant(session, installation.keyring, app, box))
    page = client.get(page_of(made))
    assert "Connected as" in page.one(id="authorization").text
    gone = f"/sites/galerie-nord/connections/{made.uid}/unlink"
    assert gone in page.links_to()
    back = f"{page_of(made)}#authorization-shared-app"
    assert back in client.get(gone).links_to()
    response = client.send(gone, {"sure": "yes"})
    assert response.headers["Location"] == back


def test_signing_in_from_its_own_page_saves_it_first(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        an_app(session, installation.keyring)
    sent = {
        "nickname": "Shop",
        "from_email": "",
        "mailer": "outlook",
        "outlook-one_click": "y",
        "then": "authorize",
    }
    response = client.send(NEW, sent)
    made = named(installation, "Shop")
    assert response.headers["Location"] == (
        f"/sites/galerie-nord/connections/{made.uid}/link?next={page_of(made)}"
    )


def test_a_copy_has_the_settings_and_neither_secrets_nor_links(
    client: Browser, installation: Installation, site: Site
) -> None:
    relay = another(
        installation,
        site,
        secrets={"password": "correct horse"},
        keyring=installation.keyring,
        settings={"username": "galerie"},
    )
    with installation.db.write() as session:
        own = an_app(
            session, installation.keyring, connection=session.get_one(Connection, relay.id)
        )
    client.send(f"{page_of(relay)}/duplicate", {})
    made = named(installation, "Host relay (copy)")
    assert made.settings == stored(installation, relay.uid).settings
    assert (made.secrets, made.secrets_set, made.grant_id, made.lane_id) == (None, {}, None, None)
    with installation.db.read() as session:
        query = sa.select(OAuthApp).where(OAuthApp.connection_id == made.id)
        copied = session.scalars(query).one()
    assert (copied.client_id, copied.secret) == (own.client_id, None)
    page = client.get(page_of(made))
    assert any("Passwords and links are not copied" in notice for notice in page.notices)
    assert "connection duplicated" in audited(installation)


def test_another_connection_is_made_the_primary_one_and_takes_the_waiting_mail(
    client: Browser, installation: Installation, site: Site
) -> None:
    relay = another(installation, site)
    half = another(installation, site, "Half done", settings={"host": ""})
    with installation.db.write() as session:
        main = session.get_one(Connection, named(installation, "Main").id)
        mail = a_message(session, session.get_one(Site, site.id), connection=main)
    chooser = client.get(GENERAL).one("select", id="connection")
    assert [option.text for option in chooser.all("option")] == ["Main", "Host relay"]
    client.send(f"{SETTINGS}/primary-connection", {"connection": half.uid})
    assert primary(installation, site) == main.id
    client.send(f"{SETTINGS}/primary-connection", {"connection": relay.uid})
    notice = client.get(GENERAL).notices[-1]
    assert notice == (
        "This site sends with Host relay now. 1 waiting mail now leaves by Host relay."
    )
    assert primary(installation, site) == relay.id
    with installation.db.read() as session:
        assert session.get_one(Message, mail.id).connection_id == relay.id
    assert "primary connection changed" in audited(installation)


# ---- gone ----


def test_the_question_says_what_uses_it_and_what_becomes_of_that(
    client: Browser, installation: Installation, site: Site
) -> None:
    relay = another(installation, site)
    address = f"{page_of(relay)}/delete"
    assert "Nothing uses it." in client.get(address).text
    a_rule(installation, site, relay)
    a_backup(installation, site, relay)
    with installation.db.write() as session:
        mine, used = session.get_one(Site, site.id), session.get_one(Connection, relay.id)
        a_message(session, mine, connection=used)
        a_message(session, mine, connection=used, state=State.HELD)
        mine.primary_connection_id = relay.id
    text = client.get(address).text
    for words in (
        "Delete Host relay?",
        "It is the primary connection: mail waits until this site has another one.",
        "It is a backup connection: the others stand in without it.",
        "1 rule leads to it (Newsletter) and is skipped until you give it another connection.",
        "2 mails wait for it.",
        "The log goes on naming it.",
    ):
        assert words in text


def test_a_deleted_connection_keeps_its_name_and_nothing_else(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        mine = session.get_one(Site, site.id)
        gone = a_connection(session, mine, primary=False, nickname="Shop", mailer="outlook")
        kept = a_connection(session, mine, primary=False, nickname="Kept")
        app, box = an_app(session, installation.keyring), a_mailbox(session)
        own = an_app(session, installation.keyring, connection=gone)
        grant = a_grant(session, installation.keyring, app, box)
        a_link(session, gone, grant)
        mine.primary_connection_id = gone.id
    a_backup(installation, site, gone, kept)
    a_rule(installation, site, gone)
    client.send(f"{page_of(gone)}/delete", {"sure": "yes"})
    page = client.get(LIST)
    assert any("Shop is deleted." in notice for notice in page.notices)
    assert "Shop" not in page.one("table").text
    found = stored(installation, gone.uid)
    assert found.deleted_at is not None
    assert (found.nickname, found.settings, found.secrets) == ("Shop", {}, None)
    assert (found.grant_id, found.lane_id) == (None, None)
    with installation.db.read() as session:
        assert session.scalars(sa.select(Link)).all() == []
        assert session.get_one(Grant, grant.id).state == GrantState.REMOVED
        assert session.get_one(OAuthApp, own.id).secret is None
        assert session.scalars(sa.select(Rule.connection_id)).all() == [gone.id]
        assert session.scalars(sa.select(Backup.position)).all() == [1]
    assert chain(installation, site) == [kept.id]
    assert primary(installation, site) is None
    assert "connection removed" in audited(installation)
    for path in (page_of(gone), f"{page_of(gone)}/delete"):
        client.get(path, status=404)
    assert "Shop" not in client.get("/sites/galerie-nord/tools/test").one("main").text
    assert "The connection Shop was deleted" in client.get(f"{SETTINGS}/routing").text


# ---- shared ----


def test_a_site_chooses_a_shared_connection_and_does_not_change_it(
    client: Browser, installation: Installation, site: Site
) -> None:
    shared = another(installation, None, "Agency relay")
    for path in (page_of(shared), f"{page_of(shared)}/delete"):
        client.get(path, status=403)
    for path in (page_of(shared), f"{page_of(shared)}/delete", f"{page_of(shared)}/duplicate"):
        client.post(path, {**NAMED, "sure": "yes"}, status=403)
    client.get(f"/settings/connections/{shared.uid}/share", status=403)
    assert stored(installation, shared.uid).nickname == "Agency relay"
    client.send(f"{SETTINGS}/primary-connection", {"connection": shared.uid})
    assert primary(installation, site) == shared.id


def test_an_admin_shares_a_connection_and_takes_it_back_once_nobody_else_uses_it(
    client: Browser, installation: Installation, site: Site
) -> None:
    as_admin(client, installation)
    relay = another(installation, site)
    assert (
        "only administrators" in client.get(f"/settings/connections/{relay.uid}/share").text.lower()
    )
    client.send(f"/settings/connections/{relay.uid}/share", {"sure": "yes"})
    assert stored(installation, relay.uid).site_id is None
    with installation.db.write() as session:
        other = a_site(session, name="Kanzlei Berger")
    a_backup(installation, other, relay)
    client.send(page_of(relay), {**NAMED, "nickname": "For all"})
    assert stored(installation, relay.uid).nickname == "For all"
    back = f"/settings/connections/{relay.uid}/take-back?site=galerie-nord"
    client.send(back, {"sure": "yes"})
    page = client.get(page_of(relay))
    assert any("It is used by Kanzlei Berger." in notice for notice in page.notices)
    assert stored(installation, relay.uid).site_id is None
    with installation.db.write() as session:
        session.execute(sa.delete(Backup))
    client.send(back, {"sure": "yes"})
    assert stored(installation, relay.uid).site_id == site.id
    assert {"connection shared", "connection taken back"} <= set(audited(installation))


# ---- the chain ----


def chain_on(page: Page) -> list[str]:
    return [li.one("b").text for li in page.one("ol", class_="chain").all("li")]


def test_the_chain_is_offered_after_the_first_success(
    client: Browser, installation: Installation, site: Site
) -> None:
    assert "Once a first mail has left" in client.get(GENERAL).text
    with installation.db.write() as session:
        a_message(session, session.get_one(Site, site.id), state=State.SENT)
    page = client.get(GENERAL)
    assert "Once there is another connection, you can choose it here." in page.text
    assert LIST in page.one("form", action=GENERAL).links_to()


def test_the_chain_is_put_in_order_by_buttons_and_saved(
    client: Browser, installation: Installation, site: Site
) -> None:
    one, two = another(installation, site, "One"), another(installation, None, "Two")
    half = another(installation, site, "Half done", settings={"host": ""})
    with installation.db.write() as session:
        mine = session.get_one(Site, site.id)
        main = session.get_one(Connection, mine.primary_connection_id)
        a_message(session, mine, state=State.SENT)
        a_message(session, mine, connection=main)
    page = client.get(GENERAL)
    offered = [option.text for option in page.one(id="backup-add").all("option")]
    assert offered == ["Choose a connection", "Main (Primary)", "One", "Two"]
    sent: dict[str, object] = {
        "from_email": "post@galerie.example",
        "mailer": "smtp",
        "smtp-host": "8.8.8.8",
        "smtp-encryption": "tls",
        "smtp-port": "587",
        "backup-shown": "y",
    }
    both: dict[str, object] = {**sent, "backup": [one.uid, two.uid]}
    added = {**sent, "backup": [one.uid], "backup-add": two.uid, "then": "backup-add"}
    page = client.post(GENERAL, added)
    assert chain_on(page) == ["One", "Two"]
    assert chain(installation, site) == []
    page = client.post(GENERAL, {**both, "then": f"backup-up:{two.uid}", "from_name": "Typed"})
    assert chain_on(page) == ["Two", "One"]
    assert page.value("from_name") == "Typed"
    assert page.one("button", autofocus="")["value"] == f"backup-down:{two.uid}"
    assert chain_on(client.post(GENERAL, {**both, "then": f"backup-down:{one.uid}"})) == [
        "Two",
        "One",
    ]
    assert chain_on(client.post(GENERAL, {**both, "then": f"backup-drop:{one.uid}"})) == ["Two"]
    client.send(GENERAL, {**sent, "backup": [two.uid, one.uid]})
    assert chain(installation, site) == [two.id, one.id]
    client.send(GENERAL, {name: value for name, value in sent.items() if name != "backup-shown"})
    assert chain(installation, site) == [two.id, one.id]
    client.send(GENERAL, sent)
    assert chain(installation, site) == []
    assert audited(installation).count("backup connections changed") == 2
    assert half.uid not in page.text


def test_a_chain_holds_nothing_of_another_site(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        foreign = a_connection(session, a_site(session), nickname="Foreign")
        shared = a_connection(session, None, nickname="Agency relay")
        session.get_one(Site, site.id).primary_connection_id = shared.id
    sent = {"backup-shown": "y", "backup": [foreign.uid]}
    page = client.post(GENERAL, sent, status=422)
    assert "was deleted meanwhile" in page.text
    assert chain(installation, site) == []
    main = named(installation, "Main")
    client.send(GENERAL, {"backup-shown": "y", "backup": [main.uid]})
    assert chain(installation, site) == [main.id]


def test_secrets_of_a_connection_stay_with_its_own_page(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.send(NEW, NAMED)
    made = named(installation, "Host relay")
    assert stored_secrets(made, installation.keyring) == {"smtp": {"password": "correct horse"}}
    page = client.get(page_of(made))
    assert "disabled" in page.one(id="smtp-password").attributes
