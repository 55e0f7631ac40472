"""Settings > Microsoft apps: the list, one registration, its secret, the steps at Microsoft."""

from datetime import date, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask

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
from tests.pages import Browser, Page
from webapp import create_app
from webapp.accounts.models import Role
from webapp.audit import AuditEvent
from webapp.delivery.models import Lane, State
from webapp.installation import Installation
from webapp.microsoft import apps, service
from webapp.microsoft.clouds import CLOUDS
from webapp.microsoft.models import OAuthApp

LIST = "/settings/microsoft-apps"
NEW = f"{LIST}/new"
GUIDE = f"{LIST}/guide"
CLIENT_ID = "3f1c2d84-9a07-4e51-8a3b-6d2f0c9b71e5"
TENANT_ID = "8d1f0000-0000-4000-8000-0000000000c2"
SECRET = "abc~new.secret-of-about-forty-characters_1"
VALUES = {
    "name": "Agency",
    "cloud": "global",
    "account_type": "common",
    "client_id": CLIENT_ID,
    "client_secret": SECRET,
    "secret_expires_on": "",
}


def today() -> date:
    return a_time().date()


@pytest.fixture
def admin(client: Browser, installation: Installation) -> Browser:
    with installation.db.write() as session:
        user = a_user(session, email="mara@agentur.example", is_admin=True)
    client.sign_in(user)
    return client


def made(installation: Installation, **values: object) -> OAuthApp:
    with installation.db.write() as session:
        return an_app(session, installation.keyring, **values)


def linked(
    installation: Installation, app: OAuthApp, name: str, *, blocked: str = "", waiting: int = 0
) -> None:
    """A site whose connection is linked by a registration."""
    with installation.db.write() as session:
        site = a_site(session, name=name)
        connection = a_connection(session, site)
        grant = a_grant(session, installation.keyring, app, a_mailbox(session))
        a_link(session, connection, grant)
        lane = session.get_one(Lane, connection.lane_id)
        lane.is_blocked, lane.blocked_kind = bool(blocked), blocked
        for _ in range(waiting):
            a_message(session, site, connection=connection, state=State.QUEUED)


def stored(installation: Installation) -> OAuthApp:
    with installation.db.read() as session:
        return session.scalars(sa.select(OAuthApp)).one()


def secret_of(installation: Installation, app: OAuthApp) -> str:
    return service.secret_of(app, installation.keyring)


def path_of(app: OAuthApp) -> str:
    return f"{LIST}/{app.uid}"


def row_of(page: Page, name: str) -> str:
    (row,) = [row for row in page.one("table").all("tr") if name in row.text]
    return row.text


# ---- the list ----


def test_without_a_registration_the_page_says_what_one_is_for(admin: Browser) -> None:
    page = admin.get(LIST)
    assert page.h1 == "Microsoft apps"
    assert page.all("table") == []
    assert page.links()["Add the first registration"] == NEW
    assert "no site needs an Azure account" in page.one("main").text
    assert "Sign in with Microsoft, choose the account, accept." in page.one("main").text


def test_the_list_shows_what_each_registration_is_and_does(
    admin: Browser, installation: Installation
) -> None:
    app = made(installation, name="Agency", secret_expires_on=today() + timedelta(days=412))
    linked(installation, app, "Lindenhof Shop")
    linked(installation, app, "Galerie Nord")
    made(installation, name="China", cloud="china", tenant="organizations", secret="")
    made(installation, name="Museum", tenant=TENANT_ID)
    page = admin.get(LIST)
    agency = row_of(page, "Agency")
    assert app.client_id in agency
    assert "Working Global (also GCC) Any organization, and personal accounts" in agency
    assert "412 days left" in agency
    assert agency.endswith(" 2")
    china = row_of(page, "China")
    assert "Not ready Its Application Password is missing." in china
    assert "China (21Vianet) Any organization none none" in china
    museum = row_of(page, "Museum")
    assert f"Ready Global (also GCC) One organization: {TENANT_ID} no date entered" in museum
    assert page.links()["Agency"] == path_of(app)
    assert page.links()["Add a registration"] == NEW


def test_a_connections_own_registration_is_not_among_the_shared_ones(
    admin: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        connection = a_connection(session, a_site(session))
        own = an_app(session, installation.keyring, connection=connection, name="Own")
    assert "Own" not in admin.get(LIST).one("main").text
    admin.get(path_of(own), status=404)
    admin.post(path_of(own), VALUES, status=404)
    admin.post(f"{path_of(own)}/remove", {"sure": "yes"}, status=404)


@pytest.mark.parametrize(
    ("days", "words", "tone"),
    [
        (61, "61 days left", "good"),
        (60, "60 days left", "info"),
        (31, "31 days left", "info"),
        (30, "30 days left", "warn"),
        (8, "8 days left", "warn"),
        (7, "7 days left", "bad"),
        (1, "1 day left", "bad"),
        (0, "Expires today", "bad"),
        (-1, "Expired 1 day ago", "bad"),
        (-90, "Expired 90 days ago", "bad"),
    ],
)
def test_how_long_a_secret_is_good_for_is_said_by_shape_and_word(
    admin: Browser, installation: Installation, days: int, words: str, tone: str
) -> None:
    app = made(installation, secret_expires_on=today() + timedelta(days=days))
    status = admin.get(LIST).all("span", class_="st")[-1]
    assert (status.text, tone in status["class"]) == (words, True)
    page = admin.get(path_of(app))
    assert words in page.one(id="client_secret-state").text
    told = [notice for notice in page.notices if "application password expire" in notice]
    assert bool(told) is (tone != "good")


def test_a_registration_that_microsoft_refuses_is_explained_with_its_words(
    admin: Browser, installation: Installation
) -> None:
    app = made(
        installation,
        name="Old one",
        problem_code="AADSTS7000222",
        problem_words="AADSTS7000222: The provided client secret keys are <expired>.",
        problem_since=a_time() - timedelta(hours=3),
    )
    linked(installation, app, "Galerie Nord")
    row = row_of(admin.get(LIST), "Old one")
    assert "Refused by Microsoft The Application Password has expired" in row
    assert "AADSTS7000222: The provided client secret keys are <expired>." in row
    page = admin.get(path_of(app))
    assert "The Application Password has expired." in page.notices[0]
    assert "AADSTS7000222: The provided client secret keys are <expired>." in page.notices[0]
    assert page.notices[0].count("AADSTS7000222") == 1
    assert "First refused 3 hours ago" in page.notices[0]
    assert "Mail of the connections below waits and is kept." in page.notices[0]
    assert "Old one" in page.one("section", aria_labelledby="put-right").text
    credentials = [link for link in page.links_to() if "/~/Credentials/" in link]
    assert credentials


def test_a_code_without_words_is_shown_too(admin: Browser, installation: Installation) -> None:
    app = made(installation, problem_code="invalid_client", problem_since=a_time())
    assert "invalid_client" in admin.get(path_of(app)).notices[0]
    app = made(installation, name="Mute", problem_since=a_time())
    assert "Refused by Microsoft" in row_of(admin.get(LIST), "Mute")
    assert admin.get(path_of(app)).notices


# ---- who may ----


@pytest.mark.parametrize("role", list(Role))
def test_only_an_admin_sees_and_changes_registrations(
    client: Browser, installation: Installation, role: Role
) -> None:
    app = made(installation)
    with installation.db.write() as session:
        user, site = a_user(session), a_site(session)
        a_membership(session, user, site, role)
    client.sign_in(user)
    for path in (LIST, NEW, path_of(app), f"{path_of(app)}/remove"):
        client.get(path, status=403)
    for path in (NEW, path_of(app), f"{path_of(app)}/remove"):
        client.post(path, {**VALUES, "sure": "yes"}, status=403)
    assert LIST not in client.get("/").links_to()
    assert client.get(GUIDE).h1 == "Registering an app at Microsoft"


def test_an_admin_finds_the_page_in_the_menu(admin: Browser) -> None:
    assert admin.get("/").links()["Microsoft apps"] == LIST
    current = admin.get(NEW).one("nav", class_="menu").all("a", aria_current="page")
    assert [node.text for node in current] == ["Microsoft apps"]


# ---- adding one ----


def test_a_new_registration_serves_one_click_setup(
    admin: Browser, installation: Installation
) -> None:
    page = admin.post(NEW, VALUES | {"secret_expires_on": apps.latest_day(today())})
    assert page.h1 == "Microsoft apps"
    assert "Agency is added. Each site now signs in with One-Click Setup" in page.notices[0]
    assert "730 days left" in row_of(page, "Agency")
    app = stored(installation)
    assert (app.connection_id, app.cloud, app.tenant) == (None, "global", "common")
    assert app.client_id == CLIENT_ID
    assert secret_of(installation, app) == SECRET
    assert app.secret_set_by == "mara@agentur.example"
    with installation.db.read() as session:
        event = session.scalars(sa.select(AuditEvent)).one()
    assert (event.action, event.object_id) == ("registration created", app.uid)
    assert event.changes["secret"] == "changed"
    assert SECRET not in str(event.changes)


def test_a_registration_added_for_a_site_leads_back_to_it(
    admin: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        site = a_site(session)
    page_left = f"/sites/{site.slug}/settings/general"
    form = admin.get(f"{NEW}?next={page_left}").one("form", method="post", data_leave="")
    page = admin.post(form["action"], VALUES)
    assert page.h1.startswith(site.name)
    assert "Agency is added. Sign in with Microsoft now, below." in page.notices
    assert admin.post(f"{NEW}?next=//evil.example", VALUES).h1 == "Microsoft apps"


def test_the_secret_may_be_saved_later(admin: Browser, installation: Installation) -> None:
    page = admin.post(NEW, VALUES | {"client_secret": ""})
    app = stored(installation)
    assert page.h1 == "Agency"
    assert "Agency is added. Nothing is lost now." in page.one("main").text
    assert "The Application Password is missing." in page.one("main").text
    assert f"/~/Credentials/appId/{CLIENT_ID}" in " ".join(page.links_to())
    page = admin.post(path_of(app), VALUES)
    assert "Settings saved. The new Application Password counts from now on." in page.notices[0]
    assert secret_of(installation, stored(installation)) == SECRET


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "", "Give it a name"),
        ("name", "x" * 121, "Make it shorter."),
        ("cloud", "moon", "Choose one of the clouds in the list."),
        ("client_id", "", "Enter the Application (client) ID"),
        ("client_id", "Agency", "Enter the Application (client) ID"),
        ("client_secret", TENANT_ID, "This looks like the Secret ID."),
        ("client_secret", "x" * 201, "This is longer than any secret of Microsoft’s."),
        ("secret_expires_on", "24.11.2028", "Enter a date as YYYY-MM-DD"),
        ("secret_expires_on", "2001-01-01", "This date is past."),
        ("secret_expires_on", "2099-01-01", "24 months at most"),
    ],
)
def test_a_mistake_is_said_at_its_field_and_nothing_typed_is_lost(
    admin: Browser, installation: Installation, field: str, value: str, said: str
) -> None:
    sent = VALUES | {"secret_expires_on": apps.latest_day(today())} | {field: value}
    page = admin.post(NEW, sent, status=422)
    assert list(page.errors) == [field]
    assert said in page.errors[field]
    assert f"#{field}" in page.one(id="errors").links_to()
    assert page.one(id=field)["aria-invalid"] == "true"
    kept = {name: page.value(name) for name in sent if name not in {"client_secret", field}}
    assert kept == {name: sent[name] for name in kept}
    if field not in {"cloud", "client_secret"}:
        assert page.value(field) == value
    assert "Paste it once more" in page.one(id="client_secret-state").text
    assert sent["client_secret"] not in page.response.text
    with installation.db.read() as session:
        assert session.scalars(sa.select(OAuthApp)).all() == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"account_type": "tenant", "tenant": ""}, "Enter the Directory (tenant) ID"),
        ({"account_type": "tenant", "tenant": "contoso"}, "Enter the Directory (tenant) ID"),
        ({"account_type": "tenant", "tenant": CLIENT_ID}, "This is the Application ID."),
        ({"cloud": "usgov", "account_type": "common"}, "global cloud only"),
        ({"cloud": "china", "account_type": "consumers"}, "global cloud only"),
        ({"account_type": "everybody"}, "Enter the Directory (tenant) ID"),
    ],
)
def test_cloud_accounts_and_tenant_must_agree(
    admin: Browser, values: dict[str, str], said: str
) -> None:
    page = admin.post(NEW, VALUES | values, status=422)
    field = "tenant" if values.get("account_type") == "tenant" else "account_type"
    assert said in page.errors[field]
    for name, value in values.items():
        assert page.value(name) == ("" if value == "everybody" else value)


@pytest.mark.parametrize("tenant", [TENANT_ID.upper(), "contoso.onmicrosoft.com"])
def test_one_organization_is_named_by_its_id_or_its_domain(
    admin: Browser, installation: Installation, tenant: str
) -> None:
    admin.post(NEW, VALUES | {"account_type": "tenant", "tenant": tenant})
    app = stored(installation)
    assert app.tenant == tenant.lower()
    page = admin.get(path_of(app))
    assert page.value("account_type") == "tenant"
    assert page.value("tenant") == tenant.lower()


def test_a_day_is_proposed_and_none_is_filled_in(admin: Browser) -> None:
    field = admin.get(NEW).one(id="secret_expires_on")
    assert field.get("value") == ""
    assert date.fromisoformat(field["placeholder"]) - today() == timedelta(days=730)


# ---- the secret ----


def test_a_stored_secret_is_never_on_a_page(admin: Browser, installation: Installation) -> None:
    app = made(installation, secret=SECRET)
    linked(installation, app, "Galerie Nord")
    pages = [
        admin.get(LIST),
        admin.get(path_of(app)),
        admin.post(path_of(app), VALUES | {"name": ""}, status=422),
        admin.post(path_of(app), {**VALUES, "then": "remove:client_secret"}),
        admin.post(f"{path_of(app)}/remove"),
    ]
    for page in pages:
        assert SECRET not in page.response.text
        assert (app.secret or "") not in page.response.text
    assert "Stored just now by mara@agentur.example." in pages[1].one(id="client_secret-state").text


def test_an_empty_field_keeps_the_stored_secret(admin: Browser, installation: Installation) -> None:
    app = made(installation, secret=SECRET, client_id=CLIENT_ID)
    page = admin.post(path_of(app), VALUES | {"name": "Renamed", "client_secret": ""})
    assert page.notices == ["Settings saved."]
    assert stored(installation).name == "Renamed"
    assert secret_of(installation, stored(installation)) == SECRET


def test_remove_opens_the_field_and_takes_the_secret_away_when_saved(
    admin: Browser, installation: Installation
) -> None:
    app = made(installation, secret=SECRET, client_id=CLIENT_ID)
    typed = VALUES | {"name": "Renamed", "client_secret": ""}
    page = admin.post(path_of(app), {**typed, "then": "remove:client_secret"})
    assert page.value("name") == "Renamed"
    assert page.value("remove") == "client_secret"
    assert page.all(id="client_secret-stored") == []
    assert stored(installation).secret is not None
    page = admin.post(path_of(app), {**typed, "remove": "client_secret"})
    assert "The Application Password is missing." in page.one("main").text
    assert stored(installation).secret is None
    with installation.db.read() as session:
        event = session.scalars(sa.select(AuditEvent)).one()
    assert event.changes["secret"] == "removed"


def test_before_the_secret_of_linked_connections_goes_the_page_says_what_waits(
    admin: Browser, installation: Installation
) -> None:
    app = made(installation)
    linked(installation, app, "Galerie Nord")
    page = admin.post(path_of(app), {"then": "remove:client_secret"})
    assert "mail of 1 linked connection waits" in page.one(class_="save").text


def test_a_new_secret_lets_waiting_mail_go_and_says_how_much(
    admin: Browser, installation: Installation
) -> None:
    app = made(
        installation,
        client_id=CLIENT_ID,
        problem_code="AADSTS7000222",
        problem_words="expired",
        problem_since=a_time(),
    )
    linked(installation, app, "Lindenhof Shop", blocked="misconfigured", waiting=2)
    linked(installation, app, "Galerie Nord", blocked="misconfigured", waiting=1)
    linked(installation, app, "Kanzlei", blocked="needs-reauthorisation", waiting=4)
    other = made(installation)
    linked(installation, other, "Museum", waiting=8)
    page = admin.post(path_of(app), VALUES)
    (told,) = page.notices
    assert told.startswith("Settings saved. The new Application Password counts for 3 linked")
    assert told.endswith(" 3 waiting mails go on.")
    with installation.db.read() as session:
        assert session.get_one(OAuthApp, app.id).problem_since is None
        assert session.scalar(sa.select(sa.func.count()).where(Lane.is_blocked)) == 1


def test_a_new_secret_does_not_take_over_the_day_on_which_the_old_one_expired(
    admin: Browser, installation: Installation
) -> None:
    past = (today() - timedelta(days=3)).isoformat()
    app = made(
        installation,
        secret="old" * 12,
        client_id=CLIENT_ID,
        secret_expires_on=date.fromisoformat(past),
    )
    page = admin.post(path_of(app), VALUES | {"secret_expires_on": past}, status=422)
    assert list(page.errors) == ["secret_expires_on"]
    assert secret_of(installation, stored(installation)) == "old" * 12
    admin.post(path_of(app), VALUES | {"client_secret": "", "secret_expires_on": past})


# ---- a registration in use ----


def test_what_links_belong_to_is_locked_while_there_are_any(
    admin: Browser, installation: Installation
) -> None:
    app = made(installation, client_id=CLIENT_ID, tenant=TENANT_ID)
    page = admin.get(path_of(app))
    assert page.all(id="in-use") == []
    assert "disabled" not in page.one(id="cloud").attributes
    linked(installation, app, "Galerie Nord")
    page = admin.get(path_of(app))
    assert (
        "are locked: linked connections belong to this registration" in page.one(id="in-use").text
    )
    for name in ("cloud", "account_type"):
        assert "disabled" in page.one(id=name).attributes
    for name in ("tenant", "client_id"):
        assert "readonly" in page.one(id=name).attributes
    for name in ("cloud", "account_type", "tenant", "client_id"):
        assert "in-use" in page.one(id=name)["aria-describedby"].split()
    assert page.links()["Galerie Nord"].endswith("/settings/general")


def test_a_locked_registration_is_still_renamed_as_a_browser_sends_it(
    admin: Browser, installation: Installation
) -> None:
    app = made(installation, client_id=CLIENT_ID, cloud="china", tenant="organizations")
    linked(installation, app, "Galerie Nord")
    admin.post(
        path_of(app), {"name": "Renamed", "client_id": CLIENT_ID}
    )  # disabled fields stay out
    now = stored(installation)
    assert (now.name, now.cloud, now.tenant) == ("Renamed", "china", "organizations")


@pytest.mark.parametrize(
    "changed",
    [{"client_id": TENANT_ID}, {"cloud": "china", "account_type": "organizations"}],
)
def test_a_form_that_changes_what_is_locked_is_refused(
    admin: Browser, installation: Installation, changed: dict[str, str]
) -> None:
    app = made(installation, client_id=CLIENT_ID)
    linked(installation, app, "Galerie Nord")
    page = admin.post(path_of(app), VALUES | changed, status=422)
    assert "Linked connections use this registration." in page.errors["client_id"]
    assert stored(installation).client_id == CLIENT_ID


def test_another_client_id_drops_the_secret(admin: Browser, installation: Installation) -> None:
    app = made(installation, client_id=CLIENT_ID)
    admin.post(path_of(app), VALUES | {"client_id": TENANT_ID, "client_secret": ""})
    assert stored(installation).secret is None


def test_a_cloud_that_was_taken_out_of_the_settings_is_not_swapped_for_another(
    admin: Browser, installation: Installation
) -> None:
    app = made(installation, cloud="custom", client_id=CLIENT_ID)
    page = admin.get(path_of(app))
    assert page.value("cloud") == "custom"
    page = admin.post(path_of(app), VALUES | {"cloud": "custom"}, status=422)
    assert "Choose one of the clouds in the list." in page.errors["cloud"]
    assert page.value("cloud") == "custom"
    assert "custom" in row_of(admin.get(LIST), app.name)


# ---- taking one away ----


def test_a_registration_is_removed_after_a_question(
    admin: Browser, installation: Installation
) -> None:
    app = made(installation, name="Agency")
    path = admin.get(path_of(app)).links()["Remove…"]
    page = admin.post(path)
    assert page.h1 == "Remove Agency?"
    assert page.links()["Keep it as it is"] == path_of(app)
    assert stored(installation).uid == app.uid
    page = admin.post(path, {"sure": "yes"})
    assert page.notices == ["Agency is removed."]
    assert page.links()["Add the first registration"] == NEW
    with installation.db.read() as session:
        event = session.scalars(sa.select(AuditEvent)).one()
    assert (event.action, event.object_id) == ("registration removed", app.uid)
    admin.get(path_of(app), status=404)


def test_a_registration_in_use_is_not_removed_and_its_users_are_named(
    admin: Browser, installation: Installation
) -> None:
    app = made(installation, name="Agency")
    for number in range(7):
        linked(installation, app, f"Site {number}")
    for data in ({}, {"sure": "yes"}):
        page = admin.post(f"{path_of(app)}/remove", data)
        assert page.h1 == "Agency"
        assert "Agency is still in use." in page.notices[0]
        assert "Site 0, Site 1, Site 2, Site 3, Site 4 and 2 more." in page.notices[0]
    assert stored(installation).uid == app.uid
    users = page.one("section", aria_labelledby="users")
    assert len(users.all("li")) == 7


def test_a_link_made_while_the_question_was_open_keeps_the_registration(
    admin: Browser, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = made(installation, name="Agency")

    def linked_just_before(*arguments: object, **values: object) -> None:
        raise service.StillUsed("Agency")

    monkeypatch.setattr(service, "remove_app", linked_just_before)
    page = admin.post(f"{path_of(app)}/remove", {"sure": "yes"})
    assert "Agency is still in use." in page.notices[0]
    assert stored(installation).uid == app.uid


# ---- the steps at Microsoft ----


@pytest.mark.parametrize("cloud", CLOUDS, ids=lambda cloud: cloud.slug)
@pytest.mark.parametrize("path", [NEW, GUIDE])
def test_the_steps_lead_to_the_portal_of_each_cloud(admin: Browser, cloud, path: str) -> None:  # type: ignore[no-untyped-def]
    page = admin.get(f"{path}?cloud={cloud.slug}")
    steps = page.one("section", aria_labelledby="guide")
    outside = [link for link in steps.links_to() if "#view/" in link]
    registrations = "#view/Microsoft_AAD_RegisteredApps/ApplicationsListBlade"
    roots = [root for root in (cloud.portal, cloud.entra) if root]
    assert outside == [f"{root}/{registrations}" for root in roots]
    assert ("Microsoft names no address" in steps.text) is (not cloud.portal)
    assert ("Personal accounts only" in steps.text) is cloud.personal
    assert steps.one("ul", class_="views").one("a", aria_current="true").text == cloud.label
    if path == NEW:
        assert page.value("cloud") == cloud.slug
        assert page.value("account_type") == ("common" if cloud.personal else "organizations")


@pytest.mark.parametrize("cloud", ["", "moon", "global"])
def test_an_unknown_cloud_is_taken_for_the_first(admin: Browser, cloud: str) -> None:
    links = admin.get(f"{GUIDE}?cloud={cloud}").links()
    assert links["Open the Azure portal"].startswith("https://portal.azure.com/#view/")


def test_once_the_id_is_known_each_step_leads_into_the_registration(
    admin: Browser, installation: Installation
) -> None:
    app = made(installation, client_id=CLIENT_ID, cloud="usgov", tenant="organizations", secret="")
    for page in (
        admin.get(path_of(app)),
        admin.get(f"{GUIDE}?cloud=usgov&client_id={CLIENT_ID}"),
        admin.post(NEW, VALUES | {"cloud": "usgov"}, status=422),
    ):
        root = "https://portal.azure.us/#view/Microsoft_AAD_RegisteredApps/ApplicationMenuBlade/~"
        links = page.links()
        assert links["Open its Overview"] == f"{root}/Overview/appId/{CLIENT_ID}"
        assert links["Open Authentication"] == f"{root}/Authentication/appId/{CLIENT_ID}"
        assert links["Open Certificates & secrets"] == f"{root}/Credentials/appId/{CLIENT_ID}"
        assert links["Open API permissions"] == f"{root}/CallAnAPI/appId/{CLIENT_ID}"


def test_what_is_no_id_gets_into_no_link(admin: Browser) -> None:
    page = admin.get(f"{GUIDE}?client_id=javascript:alert(1)")
    assert "alert" not in page.response.text.partition("<main")[2].partition("<footer")[0]
    assert "Open its Overview" not in page.links()


def test_everything_that_has_to_be_known_stands_in_the_steps(admin: Browser) -> None:
    text = admin.get(NEW).one("section", aria_labelledby="guide").text
    for said in (
        "credit card",
        "pay-as-you-go",
        "Registering an app costs nothing",
        "outside of a directory is deprecated",
        "Nothing is lost if you leave",
        "need not be the mailbox that sends",
        "New registration",
        "At most 120 characters, and without the word “Microsoft”",
        "where the one with personal accounts is missing",
        "platform “Web”",
        "AADSTS50011",
        "AADSTS50194",
        "AADSTS9002325",
        "neither the Object ID nor the Directory (tenant) ID",
        "730 days (24 months)",
        "not the Secret ID",
        "kept sealed and never shown again",
        "openid profile email",
        "offline_access",
        "User.Read",
        "Mail.Send",
        "unverified",
    ):
        assert said in text, said


def test_name_and_redirect_uri_are_there_to_copy(
    admin: Browser, installation: Installation
) -> None:
    page = admin.get(NEW)
    callback = f"{installation.settings.url}/oauth/microsoft/callback"
    assert page.one(id="redirect-uri")["value"] == callback
    assert page.one(id="guide-redirect")["value"] == callback
    assert page.one(id="guide-name")["value"] == "Postroom: localhost"
    copied = {node["data-copy"] for node in page.all("span") if node.get("data-copy")}
    assert copied == {"redirect-uri", "guide-redirect", "guide-name"}


def test_the_steps_are_folded_once_the_work_is_done(
    admin: Browser, installation: Installation
) -> None:
    done, open_ = made(installation), made(installation, secret="")
    for app, folded in ((done, True), (open_, False)):
        guide = admin.get(path_of(app)).one("section", aria_labelledby="guide")
        assert ("Show the steps" in guide.text) is folded


@pytest.mark.parametrize(
    ("address", "works"),
    [
        ("https://post.agentur.example", True),
        ("http://localhost:8025", True),
        ("http://post.agentur.example", False),
        ("http://127.0.0.1:8025", False),
    ],
)
def test_an_address_that_microsoft_sends_nobody_back_to_is_said(
    tmp_path: Path, address: str, works: bool
) -> None:
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    installation = an_installation(url, tmp_path, public_url=address)
    app: Flask = create_app(installation)
    app.testing = True
    browser = Browser(app)
    with installation.db.write() as session:
        user = a_user(session, is_admin=True)
    browser.sign_in(user)
    for path in (LIST, NEW, GUIDE):
        told = [text for text in browser.get(path).notices if "POSTROOM_PUBLIC_URL" in text]
        assert bool(told) is not works, path
    assert browser.get(NEW).one(id="redirect-uri")["value"].startswith(f"{address}/oauth/")
    installation.close()


# ---- Chinese ----


def test_the_pages_open_in_chinese(client: Browser, installation: Installation) -> None:
    app = made(installation, secret_expires_on=today() + timedelta(days=30))
    linked(installation, app, "青山音乐学校")
    with installation.db.write() as session:
        user = a_user(session, is_admin=True, language="zh_Hans")
    client.sign_in(user)
    day = today() + timedelta(days=30)
    for path in (LIST, path_of(app)):
        page = client.get(path)
        assert page.one("html")["lang"] == "zh-Hans"
        assert f"{day.year}年{day.month}月{day.day}日" in page.one("main").text
    assert "保存设置" in page.one(class_="save").text
    client.get(NEW)
    client.get(GUIDE)
