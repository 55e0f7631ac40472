"""Settings > General: what is shown, what is stored, what is refused, and who may."""

import socket
from typing import Any

import pytest
import sqlalchemy as sa

from tests.factories import a_connection, a_lane, a_membership, a_message, a_site, a_user
from tests.pages import Browser, Node, Page
from webapp.accounts.models import Role
from webapp.connections.models import Connection, Health
from webapp.connections.service import load_mailer, stored_secrets
from webapp.delivery.models import Lane, Message, State
from webapp.installation import Installation
from webapp.mailers.smtp import Encryption, Smtp
from webapp.sites.models import Mode, Site

PATH = "/sites/galerie-nord/settings/general"
SENT: dict[str, object] = {
    "from_email": "post@galerie.example",
    "force_from_email": "y",
    "from_name": "Galerie Nord",
    "return_path": "y",
    "mailer": "smtp",
    "smtp-host": "smtp.galerie.example",
    "smtp-encryption": "tls",
    "smtp-port": "587",
    "smtp-auto_tls": "y",
    "smtp-authentication": "y",
    "smtp-username": "galerie",
    "smtp-password": "correct horse",
    "smtp-limits-concurrency": "",
    "smtp-limits-per_minute": "30",
    "smtp-limits-per_hour": "",
    "smtp-limits-per_day": "",
    "smtp-limits-recipients_per_day": "",
}


@pytest.fixture(autouse=True)
def _names_are_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks a name server; hosts are where the test says."""
    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def look_up(host: str, *rest: object, **more: object) -> list[tuple[Any, ...]]:
    address = "10.0.0.7" if host == "intranet.example" else "8.8.8.8"
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]


@pytest.fixture
def site(client: Browser, installation: Installation) -> Site:
    """A site whose operator is signed in."""
    with installation.db.write() as session:
        site = a_site(
            session, name="Galerie Nord", slug="galerie-nord", admin_email="chef@galerie.example"
        )
        user = a_user(session, email="mara@agentur.example")
        a_membership(session, user, site, Role.OPERATOR)
    client.sign_in(user)
    return site


def as_admin(client: Browser, installation: Installation) -> None:
    with installation.db.write() as session:
        user = a_user(session, is_admin=True)
    client.sign_in(user)


def stored(installation: Installation) -> Connection:
    with installation.db.read() as session:
        return session.scalars(sa.select(Connection)).one()


def nothing_stored(installation: Installation) -> bool:
    with installation.db.read() as session:
        return session.scalar(sa.select(Connection.id).limit(1)) is None


def password(installation: Installation) -> str | None:
    found = stored_secrets(stored(installation), installation.keyring)
    return found.get("smtp", {}).get("password")


def is_on(page: Page, name: str) -> bool:
    return "checked" in page.one(name=name).attributes


def chosen(page: Page, name: str) -> str:
    (found,) = [node for node in page.all("input", name=name) if "checked" in node.attributes]
    return found["value"]


def limits_of(page: Page, slug: str) -> Node:
    """The fold that holds the limits of a mailer."""
    field = page.one(name=f"{slug}-limits-concurrency")
    return next(node for node in field.ancestors() if node.tag == "details")


def pace(page: Page, slug: str) -> str:
    return limits_of(page, slug).one("summary").text


# ---- what is shown ----


def test_a_new_site_starts_with_what_is_known_of_it(client: Browser, site: Site) -> None:
    page = client.get(PATH)
    assert page.one("nav", class_="tabs").text.startswith("General ")
    assert page.value("from_email") == "chef@galerie.example"
    assert page.value("from_name") == "Galerie Nord"
    assert (is_on(page, "force_from_email"), is_on(page, "force_from_name")) == (True, False)
    assert is_on(page, "return_path")
    assert chosen(page, "mailer") == "outlook"
    assert is_on(page, "outlook-one_click")
    assert chosen(page, "smtp-encryption") == "tls"
    assert page.value("smtp-port") == "587"
    assert [label.text for label in page.all("label", class_="tile")] == [
        "365 Start here 365 / Outlook",
        "G Google / Gmail",
        "Other SMTP",
    ]
    assert "No connection yet." in page.notices[0]


def test_what_was_saved_is_shown_again_but_for_the_password(
    client: Browser, installation: Installation, site: Site
) -> None:
    response = client.send(PATH, SENT)
    assert (response.status_code, response.headers["Location"]) == (303, PATH)
    page = client.get(PATH)
    assert page.notices == ["Settings saved."]
    for name in ("from_email", "from_name", "smtp-host", "smtp-port", "smtp-username"):
        assert page.value(name) == SENT[name]
    assert page.value("smtp-limits-per_minute") == "30"
    assert pace(page, "smtp") == "30 a minute"
    field = page.one(id="smtp-password")
    assert "disabled" in field.attributes
    assert "name" not in field.attributes
    assert "just now by mara@agentur.example" in page.one(id="smtp-password-state").text
    assert "correct horse" not in page.response.text
    assert load_mailer(stored(installation), installation.keyring) == Smtp(
        host="smtp.galerie.example",
        encryption=Encryption.TLS,
        port=587,
        auto_tls=True,
        authentication=True,
        username="galerie",
        password="correct horse",
    )
    assert client.get(PATH).notices == []


def test_the_first_connection_becomes_the_primary_one_and_takes_the_waiting_mail(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        for _ in range(3):
            a_message(session, site, state=State.QUEUED)
    assert "3 mails of this site are waiting." in client.get(PATH).one("main").text
    page = client.post(PATH, SENT)
    assert "3 waiting mails now leave by it." in page.notices[0]
    made = stored(installation)
    with installation.db.read() as session:
        assert session.get_one(Site, site.id).primary_connection_id == made.id
        for mail in session.scalars(sa.select(Message)):
            assert (mail.connection_id, mail.lane_id) == (made.id, made.lane_id)
        lane = session.get_one(Lane, made.lane_id)
        assert (lane.per_minute, lane.concurrency) == (30, None)


def test_saving_again_changes_the_same_connection_and_unblocks_it(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(PATH, SENT)
    with installation.db.write() as session:
        lane = session.get_one(Lane, stored(installation).lane_id)
        lane.is_blocked, lane.blocked_kind = True, "needs-reauthorisation"
    assert "refuses the login" in client.get(PATH).notices[0]
    client.post(PATH, SENT | {"smtp-password": "another one"})
    assert password(installation) == "another one"
    with installation.db.read() as session:
        assert not session.get_one(Lane, stored(installation).lane_id).is_blocked


def test_switches_that_are_off_are_stored_as_off(
    client: Browser, installation: Installation, site: Site
) -> None:
    off = {
        name: value
        for name, value in SENT.items()
        if name not in {"force_from_email", "return_path", "smtp-auto_tls"}
    }
    page = client.post(PATH, off)
    assert not is_on(page, "force_from_email")
    assert not is_on(page, "return_path")
    assert stored(installation).settings["smtp"]["auto_tls"] is False


# ---- the password ----


def test_a_blank_password_keeps_the_stored_one(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(PATH, SENT)
    client.post(PATH, SENT | {"smtp-password": ""})
    assert password(installation) == "correct horse"


def test_remove_opens_the_field_and_saving_removes_the_password(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(PATH, SENT)
    blank = SENT | {"smtp-password": "", "from_name": "Typed"}
    page = client.post(PATH, blank | {"then": "remove:smtp-password"})
    assert page.value("from_name") == "Typed"
    assert page.one(id="smtp-password")["name"] == "smtp-password"
    assert page.value("remove") == "smtp-password"
    assert password(installation) == "correct horse"
    client.post(PATH, blank | {"remove": "smtp-password"})
    assert password(installation) is None


def test_a_new_host_asks_for_the_password_again(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(PATH, SENT)
    moved = SENT | {"smtp-host": "smtp.evil.example", "smtp-password": ""}
    page = client.post(PATH, moved, status=422)
    assert list(page.errors) == ["smtp-password"]
    assert page.one(id="smtp-password")["name"] == "smtp-password"
    assert stored(installation).settings["smtp"]["host"] == "smtp.galerie.example"
    client.post(PATH, moved | {"smtp-password": "correct horse"})
    assert stored(installation).settings["smtp"]["host"] == "smtp.evil.example"


def test_a_typed_password_is_not_given_back_and_the_page_says_so(
    client: Browser, site: Site
) -> None:
    page = client.post(PATH, SENT | {"smtp-port": "0"}, status=422)
    assert "correct horse" not in page.response.text
    assert page.value("smtp-password") == ""
    assert "Type it once more" in page.one(id="smtp-password-state").text


# ---- what is refused ----


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("from_email", "post"),
        ("from_email", "post@galerie.example>"),
        ("from_name", "Galerie\x00Nord"),
        ("smtp-host", ""),
        ("smtp-host", "https://smtp.galerie.example"),
        ("smtp-host", "smtp galerie"),
        ("smtp-port", "0"),
        ("smtp-port", "70000"),
        ("smtp-port", "many"),
        ("smtp-port", ""),
        ("smtp-encryption", "rot13"),
        ("smtp-username", ""),
        ("mailer", "pigeon"),
        ("smtp-limits-per_minute", "0"),
        ("smtp-limits-concurrency", "-1"),
        ("smtp-limits-per_day", "lots"),
        ("smtp-limits-per_hour", "1000001"),
    ],
)
def test_a_mistake_is_said_at_its_field_and_nothing_typed_is_lost(
    client: Browser, installation: Installation, site: Site, field: str, value: str
) -> None:
    page = client.post(PATH, SENT | {field: value}, status=422)
    assert list(page.errors) == [field]
    assert page.one(id="errors").links_to() == [f"#{field}"]
    assert page.all(id=field)
    kept = {name for name in SENT if page.all("input", name=name, type="text")}
    typed = {str(name): str(wanted) for name, wanted in (SENT | {field: value}).items()}
    assert {name: page.value(name) for name in kept - {field}} == {
        name: typed[name] for name in kept - {field}
    }
    assert nothing_stored(installation)


def test_all_mistakes_are_said_at_once(client: Browser, site: Site) -> None:
    wrong = {"from_email": "x", "smtp-port": "0", "smtp-limits-per_day": "0"}
    page = client.post(PATH, SENT | wrong, status=422)
    assert list(page.errors) == ["from_email", "smtp-port", "smtp-limits-per_day"]
    assert "3 settings need a second look" in page.one(id="errors").text
    assert "open" in limits_of(page, "smtp").attributes


def test_nothing_but_a_token_is_a_mistake_and_no_crash(client: Browser, site: Site) -> None:
    assert "smtp-host" in client.post(PATH, {"mailer": "smtp"}, status=422).errors
    client.post(PATH, {})


def test_a_host_in_a_private_network_is_for_admins(
    client: Browser, installation: Installation, site: Site
) -> None:
    inside = SENT | {"smtp-host": "intranet.example"}
    page = client.post(PATH, inside, status=422)
    assert "private network" in page.errors["smtp-host"]
    assert nothing_stored(installation)
    as_admin(client, installation)
    client.post(PATH, inside)
    assert stored(installation).settings["smtp"]["host"] == "intranet.example"


def test_a_private_host_that_an_admin_set_may_stay(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        mine = session.get_one(Site, site.id)
        settings = {"host": "intranet.example", "authentication": False, "auto_tls": True}
        a_connection(session, mine, settings=settings)
    sent = {name: value for name, value in SENT.items() if name != "smtp-authentication"}
    client.post(PATH, sent | {"smtp-host": "intranet.example", "from_name": "New"})
    assert stored(installation).from_name == "New"


# ---- who may, and whose ----


@pytest.mark.parametrize(
    ("role", "status"),
    [(Role.VIEWER, 403), (Role.SUPPORT, 403), (Role.OPERATOR, 200), (Role.OWNER, 200), (None, 404)],
)
def test_settings_are_for_operators_of_the_site(
    client: Browser, installation: Installation, site: Site, role: Role | None, status: int
) -> None:
    with installation.db.write() as session:
        user = a_user(session)
        if role:
            a_membership(session, user, site, role)
    client.sign_in(user)
    client.get(PATH, status=status)
    client.post(PATH, SENT, status=status)
    assert nothing_stored(installation) == (status != 200)


def test_a_shared_primary_connection_is_shown_and_not_changed_from_here(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        shared = a_connection(
            session, None, nickname="Agency relay", settings={"host": "shared.example"}
        )
        session.get_one(Site, site.id).primary_connection_id = shared.id
    page = client.get(PATH)
    assert page.all(name="smtp-host") == []
    assert "Agency relay" in page.one(id="authorization").text
    assert "administrators of this installation alone change it" in page.text
    client.post(PATH, SENT)
    with installation.db.read() as session:
        kept = session.get_one(Connection, shared.id)
        assert kept.settings["smtp"]["host"] == "shared.example"
        assert session.get_one(Site, site.id).primary_connection_id == shared.id


# ---- troubles and choices ----


def test_a_failing_connection_is_told_with_the_words_of_the_server(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        mine = session.get_one(Site, site.id)
        a_connection(session, mine, health=Health.FAILING, last_words="421 busy")
    page = client.get(PATH)
    assert "Failing." in page.notices[0]
    assert "421 busy" in page.notices[0]


def test_a_site_that_does_not_send_says_so(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        session.get_one(Site, site.id).mode = Mode.DO_NOT_SEND
    assert "Not sent. By choice" in client.get(PATH).notices[0]


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("smtp.office365.com", True),
        ("smtp-mail.Outlook.com.", True),
        ("outlook.com.example", False),
    ],
)
def test_password_sign_in_at_microsoft_is_warned_about(
    client: Browser, installation: Installation, site: Site, host: str, warned: bool
) -> None:
    with installation.db.write() as session:
        a_connection(session, session.get_one(Site, site.id), settings={"host": host})
    said = " ".join(client.get(PATH).notices)
    assert ("Password sign-in at Microsoft is ending." in said) is warned


def test_limits_come_from_the_lane_which_other_sites_share(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        lane = a_lane(session, concurrency=3, per_day=10000)
        a_connection(session, session.get_one(Site, site.id), lane=lane)
    page = client.get(PATH)
    assert page.value("smtp-limits-concurrency") == "3"
    assert pace(page, "smtp") == "3 at a time · 10,000 a day"


def test_the_page_speaks_chinese(client: Browser, site: Site) -> None:
    page = client.get(PATH, headers={"Accept-Language": "zh-CN"})
    assert page.one("html")["lang"] == "zh-Hans"
