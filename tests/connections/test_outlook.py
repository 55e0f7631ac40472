"""Settings > General for 365 / Outlook: the states of a link, both ways to link, refusals."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

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
    an_installation,
)
from tests.pages import Browser, Node, Page
from webapp import create_app
from webapp.accounts.models import Role
from webapp.connections.models import Connection, Health
from webapp.delivery.models import Lane, Message, State
from webapp.installation import Installation
from webapp.microsoft.clouds import PERSONAL_TENANT
from webapp.microsoft.models import (
    Consent,
    FlowKind,
    GrantState,
    Link,
    LinkFlow,
    Mailbox,
    OAuthApp,
)
from webapp.microsoft.service import secret_of
from webapp.sites.models import Site

PATH = "/sites/galerie-nord/settings/general"
GUID = "3f1c2d84-9a07-4e51-8a3b-6d2f0c9b71e5"
VALUE = "Xy7~abcdefghijklmnopqrstuvwxyz0123456789"
SHARED: dict[str, object] = {
    "from_email": "",
    "force_from_email": "y",
    "from_name": "Galerie Nord",
    "return_path": "y",
    "mailer": "outlook",
    "outlook-one_click": "y",
}
OWN: dict[str, object] = {
    "from_email": "",
    "force_from_email": "y",
    "from_name": "Galerie Nord",
    "return_path": "y",
    "mailer": "outlook",
    "outlook-app-cloud": "global",
    "outlook-app-account_type": "common",
    "outlook-app-tenant": "",
    "outlook-app-client_id": GUID,
    "outlook-app-client_secret": VALUE,
    "outlook-app-secret_expires_on": "",
}
SMTP: dict[str, object] = {
    "from_email": "post@galerie.example",
    "from_name": "Die Galerie",
    "mailer": "smtp",
    "smtp-host": "8.8.8.8",
    "smtp-encryption": "tls",
    "smtp-port": "587",
    "smtp-authentication": "y",
    "smtp-username": "galerie",
    "smtp-password": "correct horse",
    "smtp-limits-per_minute": "7",
}


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


@dataclass
class Linked:
    """Rows of a linked connection."""

    connection: Connection
    app: OAuthApp
    mailbox: Mailbox


def linked(
    installation: Installation,
    site: Site,
    *,
    own: bool = False,
    app: dict[str, Any] | None = None,
    mailbox: dict[str, Any] | None = None,
    grant: dict[str, Any] | None = None,
    **connection: Any,
) -> Linked:
    """The site's connection, linked by a shared registration or by its own."""
    with installation.db.write() as session:
        mine = session.get_one(Site, site.id)
        box = a_mailbox(session, **({"address": "orders@contoso.example"} | (mailbox or {})))
        connection = {"from_email": box.address} | connection
        made = a_connection(session, mine, mailer="outlook", **connection)
        registration = an_app(
            session, installation.keyring, connection=made if own else None, **(app or {})
        )
        a_link(
            session, made, a_grant(session, installation.keyring, registration, box, **grant or {})
        )
        made.settings = {"outlook": {"one_click": not own, "shared_app": ""}}
    return Linked(made, registration, box)


def row(page: Page, mode: str = "shared-app") -> Node:
    """The Authorization row of one of the two ways to link."""
    return page.one(id=f"authorization-{mode}")


def links(part: Node) -> dict[str, str]:
    return {node.text: node["href"] for node in part.all("a")}


def stored(installation: Installation) -> Connection:
    with installation.db.read() as session:
        return session.scalars(sa.select(Connection)).one()


def own_app(installation: Installation) -> OAuthApp:
    with installation.db.read() as session:
        return session.scalars(sa.select(OAuthApp).where(OAuthApp.connection_id.is_not(None))).one()


def is_on(page: Page, name: str) -> bool:
    return "checked" in page.one(name=name).attributes


# ---- each state ----


def test_without_a_shared_registration_people_are_told_whom_to_ask(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        a_user(session, name="Ida Berg", is_admin=True)
    found = row(client.get(PATH))
    assert "No app registration here yet" in found.text
    assert "Ask an administrator of this installation: Ida Berg." in found.text
    assert found.links_to() == []
    assert found.all("button") == []


def test_without_a_shared_registration_an_admin_is_led_to_it(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        admin = a_user(session, is_admin=True)
    client.sign_in(admin)
    found = row(client.get(PATH))
    assert found.links_to() == [f"/settings/microsoft-apps/new?next={PATH}%23authorization"]


def test_a_new_site_signs_in_with_one_button(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        an_app(session, installation.keyring)
    found = row(client.get(PATH))
    assert "The button saves this page first." in found.text
    assert "No mailbox password is asked for or stored." in found.text
    assert all(word in found.text for word in ("Mail.Send", "User.Read", "offline_access"))
    button = found.one("button", value="authorize")
    assert button.text == "Sign in with Microsoft"
    answer = client.send(PATH, SHARED | {"then": "authorize"})
    made = stored(installation)
    assert answer.headers["Location"] == f"/sites/galerie-nord/connections/{made.uid}/link"
    assert made.mailer == "outlook"


def test_saved_and_not_linked_offers_to_sign_in_or_to_ask_an_admin(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        an_app(session, installation.keyring)
    page = client.post(PATH, SHARED)
    assert page.notices[-1] == "Settings saved."
    found = row(page)
    assert "Saved, and not linked to a mailbox yet." in found.text
    assert found.one("button", value="authorize").text == "Sign in with Microsoft"
    made = stored(installation)
    assert links(found)["Ask your admin for approval"].endswith(f"{made.uid}/ask-admin")


def test_a_linked_account_is_shown_with_all_that_is_known_of_it(
    client: Browser, installation: Installation, site: Site
) -> None:
    made = linked(
        installation,
        site,
        app={"name": "Agency app"},
        mailbox={"name": "Contoso Orders", "sign_in_name": "orders@contoso.onmicrosoft.com"},
    )
    found = row(client.get(PATH))
    for words in (
        "Connected as Contoso Orders <orders@contoso.example>",
        "Microsoft 365, work or school account",
        "Signs in as orders@contoso.onmicrosoft.com",
        "Global (also GCC)",
        "Agency app",
        "just now by mara@agentur.example",
        "an idle site never runs out",
        "read its own name; send as itself",
    ):
        assert words in found.text
    uid = made.connection.uid
    assert links(found) == {
        "Send a test": f"/sites/galerie-nord/tools/test?via={uid}",
        "Remove Connection…": f"/sites/galerie-nord/connections/{uid}/unlink",
    }
    assert found.one("button", value="authorize").text == "Re-authorize"


def test_a_personal_account_is_called_one(
    client: Browser, installation: Installation, site: Site
) -> None:
    linked(installation, site, mailbox={"tenant_id": PERSONAL_TENANT})
    page = client.get(PATH)
    assert "Outlook.com, personal account" in row(page).text
    assert "account.microsoft.com › Your info" in page.one(id="outlook-name-shared-app-help").text


def test_a_permission_that_was_not_granted_asks_to_authorize_again(
    client: Browser, installation: Installation, site: Site
) -> None:
    linked(installation, site, grant={"scopes": ["User.Read"]})
    assert "Mail.Send, and sends nothing without it." in row(client.get(PATH)).text


def test_a_refused_link_says_why_since_when_and_what_waits(
    client: Browser, installation: Installation, site: Site
) -> None:
    words = "AADSTS50173: The provided grant has expired."
    made = linked(
        installation,
        site,
        grant={
            "state": GrantState.NEEDS_REAUTHORISATION,
            "state_since": a_time() - timedelta(hours=3),
            "code": "AADSTS50173",
            "words": words,
        },
    )
    with installation.db.write() as session:
        for _ in range(3):
            a_message(session, site, state=State.QUEUED, connection=made.connection)
    page = client.get(PATH)
    found = row(page)
    assert "Needs re-authorization Since 3 hours ago" in found.text
    assert found.one("code").text == words
    assert "3 mails wait and are kept." in found.text
    assert found.all("ol", class_="steps")
    assert found.one("button", value="authorize").text == "Re-authorize"
    assert found.all("a", class_="danger")
    assert "Needs re-authorization." in page.notices[0]
    assert page.notices == page.notices[:1]


@pytest.mark.parametrize("told", [True, False])
def test_trouble_is_told_once_above(
    client: Browser, installation: Installation, site: Site, told: bool
) -> None:
    made = linked(installation, site, grant={"state": GrantState.NEEDS_REAUTHORISATION})
    if told:
        with installation.db.write() as session:
            lane = session.get_one(Lane, made.mailbox.lane_id)
            lane.is_blocked, lane.blocked_since = True, a_time()
            lane.blocked_kind = Health.NEEDS_REAUTHORISATION
    assert len(client.get(PATH).notices) == 1


def test_a_refused_shared_registration_is_for_an_admin(
    client: Browser, installation: Installation, site: Site
) -> None:
    problem = {"problem_code": "AADSTS7000222", "problem_since": a_time()}
    made = linked(installation, site, app=problem)
    with installation.db.write() as session:
        admin = a_user(session, name="Ida Berg", is_admin=True)
    found = row(client.get(PATH))
    assert "Microsoft refuses the app registration" in found.text
    assert "AADSTS7000222" in found.text
    assert "Ask an administrator of this installation: Ida Berg." in found.text
    assert not found.all("button", value="authorize")
    client.sign_in(admin)
    found = row(client.get(PATH))
    assert f"/settings/microsoft-apps/{made.app.uid}" in found.links_to()


def test_an_own_registration_that_is_refused_leads_to_its_secret(
    client: Browser, installation: Installation, site: Site
) -> None:
    problem = {"problem_code": "AADSTS7000215", "problem_since": a_time()}
    linked(installation, site, own=True, app=problem)
    page = client.get(PATH)
    assert "#outlook-app-next_secret" in row(page, "own-app").links_to()
    assert page.all(id="outlook-app-next_secret")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Consent.WAITING, "Waiting for the administrator"),
        (Consent.GIVEN, "The administrator agreed."),
        (Consent.REFUSED, "The administrator did not agree."),
    ],
)
def test_a_question_to_an_administrator_is_followed(
    client: Browser, installation: Installation, site: Site, outcome: Consent, words: str
) -> None:
    with installation.db.write() as session:
        an_app(session, installation.keyring)
    client.post(PATH, SHARED)
    uid = stored(installation).uid
    client.send(f"/sites/galerie-nord/connections/{uid}/ask-admin")
    with installation.db.write() as session:
        flow = session.scalars(sa.select(LinkFlow)).one()
        assert flow.kind == FlowKind.CONSENT
        flow.outcome = outcome
    found = row(client.get(PATH))
    assert words in found.text
    assert found.one("button", value="authorize")
    waits = outcome is Consent.WAITING
    assert bool(found.all(id="consent-shared-app")) is waits
    if waits:
        link = found.one(id="consent-shared-app")["value"]
        assert link.startswith("https://login.microsoftonline.com/")
        assert link in found.one(id="message-shared-app").text
        take_back = found.one(
            "button", formaction=f"/sites/galerie-nord/connections/{uid}/ask-admin/forget"
        )
        client.send(take_back["formaction"])
        assert not client.get(PATH).all(id="consent-shared-app")


@pytest.mark.parametrize("one_click", [True, False])
def test_without_https_the_section_is_one_warning_and_loses_nothing(
    tmp_path: Path, one_click: bool
) -> None:
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    made = an_installation(url, tmp_path, public_url="http://post.agentur.example")
    browser = Browser(create_app(made))
    with made.db.write() as session:
        site = a_site(session, slug="galerie-nord")
        user = a_user(session, is_admin=True)
    browser.sign_in(user)
    linked(made, site, own=not one_click, app={"client_id": GUID})
    page = browser.get(PATH)
    section = next(n for n in page.all("div", class_="if-outlook") if n.all("h2"))
    assert "http://post.agentur.example" in section.one(class_="notice").text
    assert section.all("button") == []
    fields = {
        node["name"]: node.get("value", "y")
        for node in page.one("form", novalidate="").all("input")
        if node.get("name")
        and node["name"] != "csrf_token"
        and (node.get("type") not in {"checkbox", "radio"} or "checked" in node.attributes)
    }
    browser.post(PATH, fields)
    assert stored(made).settings["outlook"]["one_click"] is one_click
    if not one_click:
        assert own_app(made).client_id == GUID
    made.close()


# ---- both ways to link ----


def test_an_own_registration_is_stored_sealed_and_never_shown(
    client: Browser, installation: Installation, site: Site
) -> None:
    expires = (a_time() + timedelta(days=300)).date().isoformat()
    page = client.post(PATH, OWN | {"outlook-app-secret_expires_on": expires})
    app = own_app(installation)
    assert (app.client_id, app.tenant, app.cloud) == (GUID, "common", "global")
    assert secret_of(app, installation.keyring) == VALUE
    assert VALUE not in page.response.text
    assert not is_on(page, "outlook-one_click")
    assert page.value("outlook-app-client_id") == GUID
    assert page.value("outlook-app-secret_expires_on") == expires
    assert "by mara@agentur.example" in page.one(id="outlook-app-client_secret-state").text
    assert "/oauth/microsoft/callback" in page.one(id="redirect-uri")["value"]
    assert row(page, "own-app").one("button", value="authorize").text == "Sign in with Microsoft"


def test_a_blank_secret_keeps_the_stored_one_and_remove_takes_it_away(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(PATH, OWN)
    blank = OWN | {"outlook-app-client_secret": ""}
    client.post(PATH, blank)
    assert secret_of(own_app(installation), installation.keyring) == VALUE
    page = client.post(PATH, blank | {"then": "remove:outlook-app-client_secret"})
    assert page.value("remove") == "outlook-app-client_secret"
    assert own_app(installation).secret is not None
    page = client.post(PATH, blank | {"remove": "outlook-app-client_secret"})
    assert own_app(installation).secret is None
    assert "The Application Password is missing." in row(page, "own-app").text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"client_id": "", "client_secret": ""}, "Application ID and Application Password"),
        ({"client_secret": ""}, "The Application Password is missing."),
        ({"client_id": ""}, "The Application ID is missing."),
    ],
)
def test_what_is_not_complete_is_saved_but_does_not_sign_in(
    client: Browser,
    installation: Installation,
    site: Site,
    change: dict[str, str],
    words: str,
) -> None:
    sent = OWN | {f"outlook-app-{name}": value for name, value in change.items()}
    page = client.post(PATH, sent | {"then": "authorize"}, status=422)
    assert set(page.errors) == {f"outlook-app-{name}" for name in change}
    with installation.db.read() as session:
        assert session.scalar(sa.select(Connection.id)) is None
    assert words in row(client.post(PATH, sent), "own-app").text


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("client_id", "not an id", "Application (client) ID"),
        ("client_secret", GUID, "Secret ID"),
        ("cloud", "moon", "Choose one of the clouds"),
        ("secret_expires_on", "tomorrow", "YYYY-MM-DD"),
        ("secret_expires_on", "2001-01-01", "past"),
    ],
)
def test_a_mistake_is_said_at_its_field_and_nothing_typed_is_lost(
    client: Browser, installation: Installation, site: Site, field: str, value: str, words: str
) -> None:
    sent = OWN | {f"outlook-app-{field}": value, "from_email": "me@galerie.example"}
    page = client.post(PATH, sent, status=422)
    assert list(page.errors) == [f"outlook-app-{field}"]
    assert words in page.errors[f"outlook-app-{field}"]
    assert page.one(id="errors").links_to() == [f"#outlook-app-{field}"]
    assert page.all(id=f"outlook-app-{field}")
    assert page.value("from_email") == "me@galerie.example"
    if field not in {"client_secret", "cloud"}:
        assert page.value(f"outlook-app-{field}") == value
    assert value not in page.one(id="outlook-app-client_secret").get("value")
    assert VALUE not in page.response.text
    with installation.db.read() as session:
        assert session.scalar(sa.select(OAuthApp.id)) is None


def test_the_tenant_counts_for_one_organization_only(
    client: Browser, installation: Installation, site: Site
) -> None:
    sent = OWN | {"outlook-app-account_type": "tenant", "outlook-app-tenant": ""}
    assert "outlook-app-tenant" in client.post(PATH, sent, status=422).errors
    client.post(PATH, sent | {"outlook-app-tenant": "contoso.onmicrosoft.com"})
    assert own_app(installation).tenant == "contoso.onmicrosoft.com"
    client.post(
        PATH, OWN | {"outlook-app-account_type": "organizations", "outlook-app-tenant": "x"}
    )
    assert own_app(installation).tenant == "organizations"


def test_mistakes_of_the_connection_and_of_its_registration_are_said_at_once(
    client: Browser, installation: Installation, site: Site
) -> None:
    wrong = {"from_email": "nobody", "outlook-app-client_id": "x"}
    for _ in range(2):
        page = client.post(PATH, OWN | wrong, status=422)
        assert list(page.errors) == ["from_email", "outlook-app-client_id"]
        client.post(PATH, OWN)


def test_with_one_click_the_own_fields_are_not_looked_at_and_stay_as_they_were(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(PATH, OWN)
    typed = OWN | SHARED | {"outlook-app-client_id": "rubbish", "outlook-app-client_secret": ""}
    page = client.post(PATH, typed)
    assert is_on(page, "outlook-one_click")
    app = own_app(installation)
    assert app.client_id == GUID
    assert secret_of(app, installation.keyring) == VALUE


def test_the_switch_keeps_both_links(
    client: Browser, installation: Installation, site: Site
) -> None:
    made = linked(installation, site)
    page = client.post(PATH, OWN | {"from_email": "orders@contoso.example"})
    assert "Connected as Contoso Orders" in row(page).text
    assert "Counts as soon as you save." in row(page).text
    assert not row(page).all("a", class_="danger")
    found = stored(installation)
    assert (found.grant_id, found.lane_id) == (None, None)
    page = client.post(PATH, SHARED | {"from_email": "orders@contoso.example"})
    assert stored(installation).lane_id == made.mailbox.lane_id
    assert "Counts as soon as you save." not in row(page).text


def test_another_application_id_drops_the_secret_and_the_link(
    client: Browser, installation: Installation, site: Site
) -> None:
    linked(installation, site, own=True, app={"client_id": GUID})
    blank = OWN | {"outlook-app-client_secret": "", "from_email": "orders@contoso.example"}
    client.post(PATH, blank)
    assert stored(installation).grant_id is not None
    other = GUID.replace("3", "4")
    page = client.post(PATH, blank | {"outlook-app-client_id": other})
    assert (own_app(installation).secret, stored(installation).grant_id) == (None, None)
    assert "The Application Password is missing." in row(page, "own-app").text


def test_several_shared_registrations_are_chosen_from(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        first, second = (an_app(session, installation.keyring, name=n) for n in ("One", "Two"))
    page = client.get(PATH)
    assert [option.text for option in page.one(name="outlook-shared_app").all("option")] == [
        "One",
        "Two",
    ]
    assert page.value("outlook-shared_app") == first.uid
    page = client.post(PATH, SHARED | {"outlook-shared_app": second.uid})
    assert page.value("outlook-shared_app") == second.uid
    assert stored(installation).settings["outlook"]["shared_app"] == second.uid


def test_a_registration_of_somebody_else_cannot_be_chosen(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        an_app(session, installation.keyring)
        other = a_connection(session, a_site(session))
        foreign = an_app(session, installation.keyring, connection=other)
    page = client.post(PATH, SHARED | {"outlook-shared_app": foreign.uid}, status=422)
    assert "Choose one of the values offered." in page.one(id="errors").text


def test_the_only_registration_is_stored_so_that_a_second_changes_nothing(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        only = an_app(session, installation.keyring)
    client.post(PATH, SHARED)
    assert stored(installation).settings["outlook"]["shared_app"] == only.uid
    with installation.db.write() as session:
        session.delete(session.get_one(OAuthApp, only.id))
    client.post(PATH, SHARED)
    assert stored(installation).settings["outlook"]["shared_app"] == ""


def test_a_site_goes_from_smtp_to_outlook_and_back_and_loses_neither(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(PATH, SMTP)
    with installation.db.write() as session:
        app = an_app(session, installation.keyring)
        box = a_mailbox(session, address="orders@contoso.example")
        made = session.scalars(sa.select(Connection)).one()
        smtp_lane = made.lane_id
        grant = a_grant(session, installation.keyring, app, box)
        session.add(
            Link(connection_id=made.id, app_id=app.id, grant_id=grant.id, linked_at=a_time())
        )
        mail = a_message(session, site, state=State.QUEUED, connection=made)

    def where() -> tuple[int | None, int | None]:
        with installation.db.read() as session:
            lane_id = session.get_one(Message, mail.id).lane_id
            return session.scalars(sa.select(Connection.grant_id)).one(), lane_id

    sent = SHARED | {"from_email": "orders@contoso.example", "from_name": "typed over"}
    page = client.post(PATH, sent)
    assert "1 waiting mail now leaves by it." in page.notices[0]
    assert where() == (grant.id, box.lane_id)
    assert page.value("smtp-host") == "8.8.8.8"
    assert page.value("from_name") == "Die Galerie"
    assert not is_on(page, "return_path")

    page = client.post(PATH, SMTP | {"smtp-password": ""})
    assert where() == (None, smtp_lane)
    assert page.value("smtp-limits-per_minute") == "7"
    assert "Connected as" in row(page).text
    client.post(PATH, sent)
    assert where() == (grant.id, box.lane_id)


def test_mail_waits_until_the_mailbox_is_linked(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(PATH, SMTP)
    with installation.db.write() as session:
        an_app(session, installation.keyring)
        a_message(session, site, connection=session.scalars(sa.select(Connection)).one())
    page = client.post(PATH, SHARED)
    assert any("1 mail waits until it is linked." in said for said in page.notices)


# ---- From ----


def test_the_name_of_the_mailbox_is_shown_and_not_asked_for(
    client: Browser, installation: Installation, site: Site
) -> None:
    linked(installation, site, mailbox={"name": "Contoso Orders"})
    page = client.get(PATH)
    field = page.one(id="outlook-name-shared-app")
    assert field["value"] == "Contoso Orders"
    assert "readonly" in field.attributes
    assert "admin center › Users › Active users" in page.one(id="outlook-name-shared-app-help").text
    assert "disabled" in page.one(id="outlook-force").attributes
    assert page.one(id="outlook-name-own-app")["value"] == ""


def test_a_personal_account_with_a_foreign_from_is_refused_with_the_right_one_at_hand(
    client: Browser, installation: Installation, site: Site
) -> None:
    linked(
        installation,
        site,
        mailbox={
            "tenant_id": PERSONAL_TENANT,
            "addresses": ["orders@contoso.example", "o@live.example"],
        },
    )
    foreign = SHARED | {"from_email": "shop@galerie.example"}
    page = client.post(PATH, foreign, status=422)
    assert "A personal account sends as its own addresses only." in page.errors["from_email"]
    assert page.value("from_email") == "shop@galerie.example"
    button = next(b for b in page.all("button", value="from-account"))
    assert button.text == "Use orders@contoso.example"
    assert stored(installation).from_email == "orders@contoso.example"
    client.post(PATH, foreign | {"then": "from-account"})
    assert stored(installation).from_email == "orders@contoso.example"
    client.post(PATH, SHARED | {"from_email": "O@live.example"})
    assert stored(installation).from_email == "O@live.example"
    not_forced = {name: value for name, value in foreign.items() if name != "force_from_email"}
    client.post(PATH, not_forced, status=422)
    assert stored(installation).from_email == "O@live.example"


def test_a_work_account_with_a_foreign_from_is_saved_with_a_warning(
    client: Browser, installation: Installation, site: Site
) -> None:
    linked(installation, site)
    page = client.post(PATH, SHARED | {"from_email": "shop@contoso.example"})
    (said,) = page.notices
    assert said.startswith("Settings saved. orders@contoso.example sends as shop@contoso.example")
    assert stored(installation).from_email == "shop@contoso.example"
    assert page.one("button", value="from-account").text == "Use orders@contoso.example"
    page = client.post(PATH, SHARED | {"from_email": "x@y.example", "then": "from-account"})
    assert page.notices == ["Settings saved."]
    assert page.all("button", value="from-account") == []
    assert stored(installation).from_email == "orders@contoso.example"


@pytest.mark.parametrize(
    ("address", "tenant", "hinted"),
    [
        ("orders@contoso.example", "", True),
        ("orders@contoso.onmicrosoft.com", "", False),
        ("orders@outlook.example", PERSONAL_TENANT, False),
    ],
)
def test_spf_and_dkim_are_told_for_an_own_domain(
    client: Browser,
    installation: Installation,
    site: Site,
    address: str,
    tenant: str,
    hinted: bool,
) -> None:
    mailbox = {"address": address} | ({"tenant_id": tenant} if tenant else {})
    linked(installation, site, mailbox=mailbox)
    text = client.get(PATH).one("main").text
    assert ("include:spf.protection.outlook.com" in text) is hinted
    assert ("selector1._domainkey.contoso.example" in text) is hinted


# ---- limits ----


def test_limits_are_told_before_there_is_a_mailbox(client: Browser, site: Site) -> None:
    page = client.get(PATH)
    assert (
        "3 at a time, 30 a minute, 10,000 recipients a day, from the moment it is linked."
        in page.one("main").text
    )
    assert page.all(name="outlook-limits-per_minute") == []


def test_limits_are_those_of_the_mailbox_and_each_mailer_has_its_own(
    client: Browser, installation: Installation, site: Site
) -> None:
    made = linked(installation, site)
    page = client.get(PATH)
    assert page.value("outlook-limits-per_minute") == "30"
    assert page.value("smtp-limits-per_minute") == ""
    sent = SHARED | {
        "from_email": "orders@contoso.example",
        "outlook-limits-concurrency": "2",
        "outlook-limits-per_minute": "",
        "outlook-limits-per_hour": "",
        "outlook-limits-per_day": "",
        "outlook-limits-recipients_per_day": "5000",
        "smtp-limits-per_minute": "rubbish",
    }
    page = client.post(PATH, sent)
    with installation.db.read() as session:
        lane = session.get_one(Lane, made.mailbox.lane_id)
    assert (lane.concurrency, lane.per_minute, lane.recipients_per_day) == (2, None, 5000)
    assert "2 at a time · 5,000 recipients a day" in page.one("main").text
    page = client.post(PATH, sent | {"outlook-limits-per_day": "0"}, status=422)
    assert list(page.errors) == ["outlook-limits-per_day"]


def test_a_login_may_have_a_limit_of_recipients_too(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(PATH, SMTP | {"smtp-limits-recipients_per_day": "2000"})
    with installation.db.read() as session:
        lane = session.get_one(Lane, stored(installation).lane_id)
    assert (lane.per_minute, lane.recipients_per_day) == (7, 2000)


def test_limits_typed_for_one_mailbox_are_not_those_of_another(
    client: Browser, installation: Installation, site: Site
) -> None:
    """Both ways to link may lead to different mailboxes."""
    made = linked(installation, site)
    with installation.db.write() as session:
        app = an_app(session, installation.keyring, connection=made.connection, client_id=GUID)
        other = a_mailbox(session, address="other@contoso.example")
        grant = a_grant(session, installation.keyring, app, other)
        link = {"connection_id": made.connection.id, "app_id": app.id, "grant_id": grant.id}
        session.add(Link(**link, linked_at=a_time()))
    sent = OWN | {
        "outlook-app-client_secret": "",
        "from_email": "other@contoso.example",
        "outlook-limits-per_minute": "11",
    }
    client.post(PATH, sent)
    with installation.db.read() as session:
        lanes = [session.get_one(Lane, box.lane_id).per_minute for box in (made.mailbox, other)]
    assert lanes == [11, 30]
    assert stored(installation).lane_id == other.lane_id


# ---- who may, and in which language ----


@pytest.mark.parametrize("role", [Role.VIEWER, Role.SUPPORT])
def test_support_may_not_open_or_save_it(
    client: Browser, installation: Installation, site: Site, role: Role
) -> None:
    with installation.db.write() as session:
        user = a_user(session)
        a_membership(session, user, site, role)
    client.sign_in(user)
    client.get(PATH, status=403)
    client.post(PATH, OWN | {"then": "authorize"}, status=403)
    with installation.db.read() as session:
        assert session.scalar(sa.select(OAuthApp.id)) is None


def test_the_secret_of_a_connection_is_asked_for_before_it_runs_out(
    client: Browser, installation: Installation, site: Site
) -> None:
    expires_on = (a_time() + timedelta(days=12)).date()
    linked(installation, site, own=True, app={"secret_expires_on": expires_on})
    said = client.get(PATH).notices[0]
    assert said.startswith("The application password expires in 12 days.")
    assert "Paste its successor below" in said


State_ = Callable[[Installation, Site], object]
STATES: dict[str, State_] = {
    "no-app": lambda installation, site: None,
    "linked": linked,
    "own": lambda installation, site: linked(installation, site, own=True),
    "personal": lambda installation, site: linked(
        installation, site, mailbox={"tenant_id": PERSONAL_TENANT}, from_email="a@b.example"
    ),
    "foreign": lambda installation, site: linked(installation, site, from_email="a@b.example"),
    "lacking": lambda installation, site: linked(installation, site, grant={"scopes": []}),
    "refused": lambda installation, site: linked(
        installation,
        site,
        grant={"state": GrantState.NEEDS_REAUTHORISATION, "code": "AADSTS50173"},
    ),
    "misconfigured": lambda installation, site: linked(
        installation, site, app={"problem_since": a_time(), "problem_code": "AADSTS7000222"}
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_the_page_is_whole_in_chinese(
    client: Browser, installation: Installation, site: Site, name: str
) -> None:
    STATES[name](installation, site)
    page = client.get(PATH, headers={"Accept-Language": "zh-CN"})
    assert page.one("html")["lang"] == "zh-Hans"
    english = re.findall(r"(?:\b[a-z]+,? ){3,}[a-z]+\b", page.one("main").text)
    assert english == []
