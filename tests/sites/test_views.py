"""The pages of sites: the board, adding one, logins with their ready-made settings."""

import re
import smtplib
from datetime import timedelta

import pytest
import sqlalchemy as sa

from tests.factories import (
    a_connection,
    a_credential,
    a_lane,
    a_membership,
    a_message,
    a_site,
    a_time,
    a_user,
)
from tests.pages import Browser, Page
from webapp.accounts.models import Role, User
from webapp.connections.models import Health
from webapp.delivery.models import Heartbeat, Message, State
from webapp.installation import Installation
from webapp.sites import handin
from webapp.sites.models import Credential, Mode, Site
from webapp.sites.service import digest


def an_admin(client: Browser, installation: Installation) -> User:
    with installation.db.write() as session:
        user = a_user(session, email="mara@agentur.example", is_admin=True)
    client.sign_in(user)
    return user


def with_role(client: Browser, installation: Installation, role: Role) -> Site:
    with installation.db.write() as session:
        site, user = a_site(session, name="Galerie Nord", slug="galerie-nord"), a_user(session)
        a_membership(session, user, site, role)
    client.sign_in(user)
    return site


def names(page: Page) -> list[str]:
    return [link.text for link in page.one("table").all("a", class_="name")]


# ---- the board ----


def test_before_the_first_site_an_admin_is_led_to_add_one(
    client: Browser, installation: Installation
) -> None:
    an_admin(client, installation)
    page = client.get("/")
    assert page.h1 == "Sites"
    assert page.links()["Add the first site"] == "/sites/new"
    assert page.all("table") == []


def test_somebody_without_a_role_is_told_whom_to_ask(
    client: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        a_site(session, name="Not yours")
        user = a_user(session)
    client.sign_in(user)
    page = client.get("/")
    assert "given you a role" in page.one("main").text
    assert "Not yours" not in page.one("main").text
    assert "/sites/new" not in page.links_to()


def test_the_board_shows_every_site_worst_first(
    client: Browser, installation: Installation
) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        fine = a_site(session, name="Fine", url="https://fine.example")
        works = a_connection(session, fine, health=Health.WORKING)
        a_message(session, fine, state=State.SENT, connection=works)
        failing = a_site(session, name="Failing <b>")
        refused = a_connection(
            session,
            failing,
            health=Health.NEEDS_REAUTHORISATION,
            last_code="535",
            last_words="535 <no>",
        )
        a_message(session, failing, state=State.DEFERRED, connection=refused)
        a_site(session, name="New")
    page = client.get("/")
    assert names(page) == ["Failing <b>", "New", "Fine"]
    rows = [row.text for row in page.one("table").all("tr")]
    assert "mail.hoster.example refuses the login." in rows[2]
    assert "1 mail is kept and goes out by itself" in rows[2]
    assert "535 <no>" in rows[2]
    assert "not used" in rows[2]
    assert [node.text for node in page.one("ul", class_="views").all("li")] == [
        "All 3",
        "Need you 1",
        "Keep an eye on 1",
        "Working 1",
    ]


def test_the_filter_is_in_the_address(client: Browser, installation: Installation) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        a_connection(session, a_site(session, name="Bad"), health=Health.FAILING)
        a_site(session, name="New")
    assert names(client.get("/?state=act")) == ["Bad"]
    assert names(client.get("/?state=soon")) == ["New"]
    assert names(client.get("/?state=nonsense")) == ["Bad", "New"]
    nothing = client.get("/?state=fine")
    assert nothing.all("table") == []
    assert nothing.links()["Show all sites"] == "/"


def test_a_viewer_sees_their_own_sites_only_and_no_buttons(
    client: Browser, installation: Installation
) -> None:
    with_role(client, installation, Role.VIEWER)
    with installation.db.write() as session:
        a_site(session, name="Not yours")
    page = client.get("/")
    assert names(page) == ["Galerie Nord"]
    assert "Add a site" not in page.links()
    assert "Set up the connection" not in page.links()


def test_the_board_has_a_hundred_sites_on_a_page(
    client: Browser, installation: Installation
) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        for number in range(103):
            a_connection(session, a_site(session, name=f"Site {number:03}"))
        a_site(session, name="New")
    first = client.get("/?state=nonsense")
    assert names(first)[:2] == ["New", "Site 000"]
    assert len(names(first)) == 100
    assert first.one("ul", class_="views").all("li")[0].text == "All 104"
    assert first.links()["Next page"] == "/?state=nonsense&page=2"
    second = client.get("/?page=2")
    assert names(second) == ["Site 099", "Site 100", "Site 101", "Site 102"]
    assert second.links()["Previous page"] == "/?page=1"
    assert "Next page" not in second.links()
    assert second.links()["Keep an eye on 1"] == "/?state=soon"
    assert names(client.get("/?page=9999")) == names(second)
    assert names(client.get("/?page=-1")) == names(client.get("/?page=²")) == names(first)


def test_one_site_of_many_is_found_by_its_name_or_address(
    client: Browser, installation: Installation
) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        for number in range(101):
            a_site(session, name=f"Site {number:03}", url="https://x.example")
        a_site(session, name="Übersee", url="https://far.example")
    assert client.get("/").one("input", name="q").get("value") == ""
    assert names(client.get("/?q=übersee")) == ["Übersee"]
    found = client.get("/?q=FAR.example&state=soon")
    assert (names(found), found.value("q"), found.value("state")) == (
        ["Übersee"],
        "FAR.example",
        "soon",
    )
    nothing = client.get("/?q=<b>")
    assert "No site is called “<b>”." in nothing.one("main").text
    assert nothing.links()["Show all sites"] == "/"


def test_a_short_board_has_no_search(client: Browser, installation: Installation) -> None:
    with_role(client, installation, Role.OWNER)
    assert client.get("/").all("input", name="q") == []


def pages_of(site: Site, mail: Message, credential: Credential) -> list[str]:
    root = f"/sites/{site.slug}"
    return [
        f"{root}/settings/general",
        f"{root}/log",
        f"{root}/log/{mail.queue_id}",
        f"{root}/credentials",
        f"{root}/credentials/{credential.id}/revoke",
    ]


@pytest.mark.parametrize(
    ("site_values", "lane_values", "health", "said"),
    [
        ({}, {}, Health.NEEDS_REAUTHORISATION, "Failing. mail.hoster.example refuses the login."),
        ({"mode": Mode.DO_NOT_SEND}, {}, Health.WORKING, "Not sent. By choice:"),
        (
            {},
            {"is_blocked": True, "blocked_until": a_time() + timedelta(hours=1)},
            Health.WORKING,
            "Slowed down. mail.hoster.example asked to wait.",
        ),
    ],
)
def test_what_stands_at_a_site_is_said_on_each_of_its_pages(
    client: Browser,
    installation: Installation,
    site_values: dict[str, Mode],
    lane_values: dict[str, object],
    health: Health,
    said: str,
) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        site = a_site(session, **site_values)  # type: ignore[arg-type]
        lane = a_lane(session, **lane_values)
        connection = a_connection(session, site, lane=lane, health=health)
        mail = a_message(session, site, state=State.SENT, connection=connection)
        credential, _ = a_credential(session, site)
    for path in pages_of(site, mail, credential):
        assert said in client.get(path).notices[0], path


def test_the_way_out_stands_beside_the_trouble_where_there_is_one(
    client: Browser, installation: Installation
) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        failing = a_site(session)
        a_connection(session, failing, health=Health.FAILING)
        off = a_site(session, mode=Mode.DO_NOT_SEND)
    settings = f"/sites/{failing.slug}/settings/general"
    assert client.get(f"/sites/{failing.slug}/log").links()["Open the settings"] == settings
    assert "Open the settings" not in client.get(settings).links()
    assert "Open the settings" not in client.get(f"/sites/{off.slug}/log").links()


def test_a_mistake_is_told_before_what_stands(client: Browser, installation: Installation) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        site = a_site(session)
    path = f"/sites/{site.slug}/settings/general"
    page = client.post(path, {"from_email": "no", "mailer": "smtp"}, status=422)
    assert "Not saved yet" in page.notices[0]
    assert "No connection yet." in page.notices[1]


def test_the_board_says_so_when_no_worker_runs(client: Browser, installation: Installation) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        a_site(session)
    assert "No mail leaves at the moment." in client.get("/").notices[0]
    with installation.db.write() as session:
        details = {"owner": True}
        session.add(Heartbeat(name="deliver:1", part="deliver", beat_at=a_time(), details=details))
    assert client.get("/").notices == []


def test_five_hundred_sites_are_asked_for_as_one(
    client: Browser, installation: Installation
) -> None:
    an_admin(client, installation)
    with installation.db.write() as session:
        for _ in range(40):
            a_connection(session, a_site(session))
    asked: list[str] = []
    engine = installation.db.reader
    sa.event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    assert len(names(client.get("/"))) == 40
    assert len(asked) < 20


# ---- adding a site ----

NEW = {
    "name": "Lindenhof Shop",
    "url": "https://www.lindenhof.example",
    "admin_email": "orders@lindenhof.example",
}


def test_a_new_site_leads_to_its_logins(client: Browser, installation: Installation) -> None:
    an_admin(client, installation)
    assert client.get("/sites/new").value("admin_email") == "mara@agentur.example"
    response = client.send("/sites/new", NEW)
    assert response.status_code == 303
    assert response.headers["Location"] == "/sites/lindenhof-shop/credentials"
    page = client.get("/sites/lindenhof-shop/credentials")
    assert "Lindenhof Shop is added." in page.one("main").text
    assert "No connection yet." in page.one("main").text
    with installation.db.read() as session:
        assert session.scalars(sa.select(Site)).one().url == NEW["url"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", ""), ("url", "lindenhof.example"), ("admin_email", "orders at lindenhof")],
)
def test_a_mistake_is_said_at_its_field_and_nothing_typed_is_lost(
    client: Browser, installation: Installation, field: str, value: str
) -> None:
    an_admin(client, installation)
    page = client.post("/sites/new", NEW | {field: value}, status=422)
    assert list(page.errors) == [field]
    assert f"#{field}" in page.one(id="errors").links_to()
    assert page.one(id=field)["aria-invalid"] == "true"
    assert {name: page.value(name) for name in NEW} == NEW | {field: value}
    with installation.db.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Site)) == 0


@pytest.mark.parametrize("role", list(Role))
def test_only_an_admin_adds_sites(client: Browser, installation: Installation, role: Role) -> None:
    with_role(client, installation, role)
    client.get("/sites/new", status=403)
    client.post("/sites/new", NEW, status=403)


# ---- logins ----

PATH = "/sites/galerie-nord/credentials"


def test_a_login_is_shown_once_and_works_from_then_on(
    client: Browser, installation: Installation
) -> None:
    with_role(client, installation, Role.OPERATOR)
    response = client.send(
        PATH, {"label": "web server", "senders": "*@galerie.example, a@b.example"}
    )
    page = Page(response)
    password = page.one(id="in-password")["value"]
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in response.headers or password not in response.headers["Set-Cookie"]
    with installation.db.read() as session:
        stored = session.scalars(sa.select(Credential)).one()
    assert stored.digest == digest(password)
    assert stored.senders == ["*@galerie.example", "a@b.example"]
    assert page.one(id="in-username")["value"] == stored.username
    for recipe in ("wp", "php", "python", "curl"):
        text = page.one(id=f"recipe-{recipe}").text
        assert password in text
        assert stored.username in text
    again = client.get(PATH)
    assert password not in again.response.text
    assert "PASSWORD" in again.one(id="recipe-wp").text
    assert "web server" in again.one("table").text


def test_a_pattern_that_cannot_be_meant_is_said_at_its_field(
    client: Browser, installation: Installation
) -> None:
    with_role(client, installation, Role.OPERATOR)
    page = client.post(PATH, {"label": "x", "senders": "galerie.example"}, status=422)
    assert list(page.errors) == ["senders"]
    assert page.value("senders") == "galerie.example"
    assert page.value("label") == "x"


def test_a_login_says_when_and_from_where_it_was_last_used(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation, Role.OPERATOR)
    with installation.db.write() as session:
        used = a_time() - timedelta(hours=3)
        a_credential(session, site, last_used_at=used, last_used_from="192.0.2.7")
        a_credential(session, site)
    rows = [row.text for row in client.get(PATH).one("table").all("tr")]
    assert "never" in rows[1]
    assert "3 hours ago 192.0.2.7" in rows[2]


def test_a_login_is_revoked_after_a_question(client: Browser, installation: Installation) -> None:
    site = with_role(client, installation, Role.OPERATOR)
    with installation.db.write() as session:
        credential, _secret = a_credential(session, site)
    path = f"{PATH}/{credential.id}/revoke"
    assert client.get(path).h1 == f"Revoke {credential.username}?"
    client.post(path)
    with installation.db.read() as session:
        assert session.get_one(Credential, credential.id).revoked_at is None
    page = client.post(path, {"sure": "yes"})
    assert f"{credential.username} is revoked." in page.notices
    assert page.all("table") == []
    client.get(path, status=404)


def test_a_login_of_another_site_is_not_there(client: Browser, installation: Installation) -> None:
    with_role(client, installation, Role.OWNER)
    with installation.db.write() as session:
        credential, _secret = a_credential(session, a_site(session, slug="other"))
    client.get(f"{PATH}/{credential.id}/revoke", status=404)
    client.post(f"{PATH}/{credential.id}/revoke", {"sure": "yes"}, status=404)
    client.get(f"/sites/other/credentials/{credential.id}/revoke", status=404)
    with installation.db.read() as session:
        assert session.get_one(Credential, credential.id).revoked_at is None


@pytest.mark.parametrize(
    ("role", "status"), [(Role.VIEWER, 403), (Role.SUPPORT, 403), (Role.OPERATOR, 200)]
)
def test_logins_are_for_operators(
    client: Browser, installation: Installation, role: Role, status: int
) -> None:
    with_role(client, installation, role)
    client.get(PATH, status=status)
    client.post(PATH, {"label": ""}, status=status)


# ---- ready-made settings ----

LOGIN = handin.Login(username="shop-ab12", password="s3cret", sender="o'brien@shop.example")
PLAIN = handin.Place(host="127.0.0.1", port=2525, tls=False, this_machine_only=True)
SECURE = handin.Place(host="post.example.org", port=587, tls=True, this_machine_only=False)


def recipe(slug: str, where: handin.Place) -> str:
    (found,) = [r for r in handin.recipes(where, LOGIN) if r.slug == slug]
    return found.text


def test_wordpress_is_told_not_to_encrypt_where_there_is_no_certificate() -> None:
    assert recipe("wp", PLAIN).splitlines() == [
        "define( 'WPMS_ON', true );",
        "define( 'WPMS_MAILER', 'smtp' );",
        "define( 'WPMS_SMTP_HOST', '127.0.0.1' );",
        "define( 'WPMS_SMTP_PORT', 2525 );",
        "define( 'WPMS_SSL', '' );",
        "define( 'WPMS_SMTP_AUTH', true );",
        "define( 'WPMS_SMTP_AUTOTLS', false );",
        "define( 'WPMS_SMTP_USER', 'shop-ab12' );",
        "define( 'WPMS_SMTP_PASS', 's3cret' );",
    ]
    assert "define( 'WPMS_SSL', 'tls' );" in recipe("wp", SECURE)


def test_curl_and_php_follow_the_certificate() -> None:
    assert "--ssl-reqd" not in recipe("curl", PLAIN)
    assert "--ssl-reqd" in recipe("curl", SECURE)
    assert "SMTPSecure = 'tls'" in recipe("php", SECURE)
    assert "SMTPAutoTLS = false" in recipe("php", PLAIN)


@pytest.mark.parametrize("where", [PLAIN, SECURE])
def test_the_python_settings_run(where: handin.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []

    class Server:
        def __init__(self, *place: object) -> None:
            did.append(f"to {place}")

        def __enter__(self) -> "Server":
            return self

        def __exit__(self, *error: object) -> None: ...

        def starttls(self, **context: object) -> None:
            did.append("tls")

        def login(self, *login: str) -> None:
            did.append(f"as {login}")

        def send_message(self, mail: object) -> None:
            did.append("sent")

    monkeypatch.setattr(smtplib, "SMTP", Server)
    exec(recipe("python", where), {})
    expected = [f"to {(where.host, where.port)}", "as ('shop-ab12', 's3cret')", "sent"]
    assert [step for step in did if step != "tls"] == expected
    assert ("tls" in did) is where.tls


@pytest.mark.parametrize(
    ("senders", "admin", "sender"),
    [
        (["*@a.example"], "x@b.example", "shop@a.example"),
        ([], "x@b.example", "x@b.example"),
        ([], "", "shop@example.org"),
    ],
)
def test_the_example_sends_from_an_address_that_is_allowed(
    senders: list[str], admin: str, sender: str
) -> None:
    assert handin.example_sender(senders, admin) == sender


def test_the_page_offers_what_the_listener_listens_on(
    client: Browser, installation: Installation
) -> None:
    site = with_role(client, installation, Role.OPERATOR)
    with installation.db.write() as session:
        a_credential(session, site)
    page = client.get(PATH)
    assert page.one(id="in-host")["value"] == "127.0.0.1"
    assert page.one(id="in-port")["value"] == "2525"
    assert re.search(r"WPMS_SSL', ''", page.one(id="recipe-wp").text)
