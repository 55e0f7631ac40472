"""Settings > Alerts, System, and the page of an incident."""

import pytest
import sqlalchemy as sa

from tests.factories import a_connection, a_membership, a_site, a_time, a_user
from tests.incidents.conftest import a_target
from tests.pages import Browser
from webapp import ids
from webapp.accounts.models import Role
from webapp.connections import service as connections
from webapp.connections.models import Connection, Health
from webapp.i18n import CHINESE
from webapp.incidents.models import (
    AlertTarget,
    Incident,
    IncidentSite,
    Notification,
    Occasion,
    Told,
)
from webapp.incidents.targets import open_key
from webapp.installation import Installation
from webapp.sites.models import Site
from webapp.testmail.service import choices

SYSTEM = "/settings/system"


@pytest.fixture
def site(client: Browser, installation: Installation) -> Site:
    """A site whose operator is signed in."""
    with installation.db.write() as session:
        made, user = a_site(session, name="Galerie Nord", slug="galerie-nord"), a_user(session)
        a_membership(session, user, made, Role.OPERATOR)
    client.sign_in(user)
    return made


@pytest.fixture
def admin(client: Browser, installation: Installation) -> None:
    with installation.db.write() as session:
        user = a_user(session, email="mara@agentur.example", is_admin=True)
    client.sign_in(user)


def alerts(site: Site, rest: str = "") -> str:
    return f"/sites/{site.slug}/settings/alerts{rest}"


def targets(installation: Installation) -> list[AlertTarget]:
    with installation.db.read() as session:
        return list(session.scalars(sa.select(AlertTarget).order_by(AlertTarget.id)))


def an_incident(installation: Installation, *sites: Site, closed: bool = False) -> Incident:
    with installation.db.write() as session:
        made = Incident(
            uid=ids.short_id(),
            cause=ids.short_id(),
            kind="link-refused",
            code="AADSTS50173",
            words="The provided grant has expired.",
            details={
                "account": "orders@contoso.example",
                "mailer": "outlook",
                "waiting": {str(site.id): 3 + n for n, site in enumerate(sites)},
            },
            opened_at=a_time(),
            closed_at=a_time() if closed else None,
        )
        session.add(made)
        session.flush()
        session.add_all(IncidentSite(incident_id=made.id, site_id=site.id) for site in sites)
        return made


# ---- a site ----


def test_a_webhook_is_added_and_its_key_is_shown_once(
    client: Browser, installation: Installation, site: Site
) -> None:
    page = client.post(alerts(site), {"channel": "webhook", "address": "https://a.example/hook"})
    (target,) = targets(installation)
    key = page.one(id="hook-key")["value"]
    assert key == open_key(installation.keyring, target)
    assert key not in str(target.secret)
    assert {node.text for node in page.all("summary")} >= {"Python", "PHP", "Node"}
    again = client.get(alerts(site))
    assert key not in again.response.text
    assert f"Remove: {target.address}" in [node.get("aria-label") for node in again.all("a")]


def test_the_python_lines_on_the_page_prove_a_signature(
    client: Browser, installation: Installation, site: Site
) -> None:
    from webapp.incidents.reach import signature
    from webapp.incidents.views import RECIPES

    space: dict[str, object] = {}
    exec(dict(RECIPES)["Python"], space)
    is_genuine = space["is_genuine"]
    header = signature("key", b"{}", installation.db.now())
    assert is_genuine(header, b"{}", "key")  # type: ignore[operator]
    assert not is_genuine(header, b"{ }", "key")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("channel", "address", "sentence"),
    [
        ("email", "nobody", "email address"),
        ("email", "", "email address"),
        ("webhook", "http://a.example/", "https://"),
        ("webhook", "http://127.0.0.1/", "https://"),
        ("webhook", "https://me:secret@a.example/", "without a login"),
        ("webhook", "https://", "whole address"),
        ("", "mara@agentur.example", "Enter"),
    ],
)
def test_what_cannot_be_told_is_refused(
    client: Browser,
    installation: Installation,
    site: Site,
    channel: str,
    address: str,
    sentence: str,
) -> None:
    page = client.post(alerts(site), {"channel": channel, "address": address}, status=422)
    assert sentence in page.errors["address"]
    assert page.value("address") == address
    assert targets(installation) == []


def test_the_same_address_is_told_once(
    client: Browser, installation: Installation, site: Site
) -> None:
    form = {"channel": "email", "address": "mara@agentur.example"}
    client.post(alerts(site), form)
    client.post(alerts(site), form | {"address": "Mara@agentur.example"}, status=422)
    assert len(targets(installation)) == 1


def test_a_target_is_switched_off_and_removed_after_a_question(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(alerts(site), {"channel": "email", "address": "mara@agentur.example"})
    (target,) = targets(installation)
    page = client.post(alerts(site, f"/{target.uid}/switch"))
    assert "switched off" in page.one("table").text
    assert not targets(installation)[0].is_on
    assert "Remove mara@agentur.example?" in client.get(alerts(site, f"/{target.uid}/remove")).h1
    client.post(alerts(site, f"/{target.uid}/remove"))
    assert len(targets(installation)) == 1
    client.post(alerts(site, f"/{target.uid}/remove"), {"sure": "yes"})
    assert targets(installation) == []


def test_a_sample_is_queued_and_the_page_tells_what_became_of_it(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(alerts(site), {"channel": "webhook", "address": "https://a.example/hook"})
    (target,) = targets(installation)
    page = client.post(alerts(site, f"/{target.uid}/sample"))
    assert "On its way" in page.one("table").text
    assert page.all("meta", http_equiv="refresh")
    with installation.db.write() as session:
        sample = session.scalars(sa.select(Notification)).one()
        assert (sample.occasion, sample.incident_id) == (Occasion.TEST, None)
        sample.told, sample.due_at = Told.FAILED, None
        row = session.get_one(AlertTarget, target.id)
        row.last_at, row.last_told, row.last_words = a_time(), Told.FAILED, "redirect 302"
    page = client.get(alerts(site))
    assert "status 302, and redirects are not followed" in page.one("table").text
    assert not page.all("meta", http_equiv="refresh")


def test_ten_samples_a_minute_are_enough(
    client: Browser, installation: Installation, site: Site
) -> None:
    client.post(alerts(site), {"channel": "webhook", "address": "https://a.example/hook"})
    (target,) = targets(installation)
    path = alerts(site, f"/{target.uid}/sample")
    for _ in range(10):
        client.post(path)
    answer = client.send(path)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")


def test_the_silence_of_a_site_is_set_and_cleared(
    client: Browser, installation: Installation, site: Site
) -> None:
    def hours() -> int | None:
        with installation.db.read() as session:
            return session.scalar(sa.select(Site.silent_hours))

    page = client.post(alerts(site, "/silence"), {"silent_hours": "26"})
    assert (hours(), page.value("silent_hours")) == (26, "26")
    for wrong in ("0", "-1", "1.5", "many", "9999"):
        page = client.post(alerts(site, "/silence"), {"silent_hours": wrong}, status=422)
        assert page.errors.keys() == {"silent_hours"}
    client.post(alerts(site, "/silence"), {"silent_hours": ""})
    assert hours() is None


def test_an_email_target_without_a_way_out_is_said(client: Browser, site: Site) -> None:
    client.post(alerts(site), {"channel": "email", "address": "mara@agentur.example"})
    assert any("alert connection" in text for text in client.get(alerts(site)).notices)


def test_a_site_sees_its_incidents_and_nothing_of_others(
    client: Browser, installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        other = a_site(session, name="Somebody Else")
    both = an_incident(installation, site, other)
    foreign = an_incident(installation, other)
    an_incident(installation, site, closed=True)
    page = client.get(alerts(site))
    assert len(page.all(class_="mark")) == 1
    assert len(page.one("tbody").all("tr")) == 1
    assert "orders@contoso.example needs re-authorization" in page.links()
    page = client.get(f"/sites/{site.slug}/incidents/{both.uid}")
    text = page.one("main").text
    assert "The provided grant has expired." in text
    assert "Mails that wait 3" in text
    assert page.all("ol")
    assert "Somebody Else" not in page.response.text
    client.get(f"/sites/{site.slug}/incidents/{foreign.uid}", status=404)
    client.get(f"{SYSTEM}/{both.uid}", status=403)


def test_a_viewer_may_read_an_incident_and_not_the_alerts(
    client: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        site, user = a_site(session), a_user(session)
        a_membership(session, user, site, Role.VIEWER)
    found = an_incident(installation, site)
    client.sign_in(user)
    client.get(f"/sites/{site.slug}/incidents/{found.uid}")
    client.get(alerts(site), status=403)


# ---- the installation ----


def smtp(**values: str) -> dict[str, str]:
    form = {
        "alert-from_email": "alerts@agentur.example",
        "smtp-host": "mail.agentur.example",
        "smtp-port": "587",
        "smtp-encryption": "tls",
        "smtp-authentication": "y",
        "smtp-username": "alerts",
        "smtp-password": "secret-one",
    }
    return form | {name.replace("__", "-"): value for name, value in values.items()}


@pytest.mark.usefixtures("admin")
def test_the_alert_connection_is_saved_and_belongs_to_no_site(
    client: Browser, installation: Installation
) -> None:
    assert any("no alert connection" in text for text in client.get(SYSTEM).notices)
    page = client.post(f"{SYSTEM}/connection", smtp())
    assert "secret-one" not in page.response.text
    assert page.value("smtp-host") == "mail.agentur.example"
    with installation.db.write() as session:
        site = a_site(session)
        a_connection(session, site)
        found = connections.alert_connection(session)
        assert found is not None
        assert (found.is_system, found.site_id) == (True, None)
        assert found not in connections.connections_of(session, site)
        assert connections.find_connection(session, site, found.uid) is None
        assert found.uid not in {c.connection.uid for c in choices(session, site)}
        with pytest.raises(connections.ForeignConnection):
            connections.set_primary(session, site, found, actor="", now=a_time())
        secrets = connections.stored_secrets(found, installation.keyring)
    assert secrets == {"smtp": {"password": "secret-one"}}
    client.post(f"{SYSTEM}/connection", smtp(smtp__password=""))
    with installation.db.read() as session:
        found = session.scalars(sa.select(Connection).where(Connection.is_system)).one()
        assert connections.stored_secrets(found, installation.keyring) == secrets


@pytest.mark.usefixtures("admin")
def test_an_alert_connection_that_lacks_something_is_refused(client: Browser) -> None:
    page = client.post(f"{SYSTEM}/connection", smtp(alert__from_email=""), status=422)
    assert page.errors.keys() == {"alert-from_email"}
    page = client.post(f"{SYSTEM}/connection", smtp(smtp__host=""), status=422)
    assert page.errors.keys() == {"smtp-host"}


@pytest.mark.usefixtures("admin")
def test_the_alert_connection_is_removed_after_a_question(
    client: Browser, installation: Installation
) -> None:
    client.post(f"{SYSTEM}/connection", smtp())
    client.get(f"{SYSTEM}/connection/remove")
    client.post(f"{SYSTEM}/connection/remove", {"sure": "yes"})
    with installation.db.read() as session:
        assert connections.alert_connection(session) is None


@pytest.mark.usefixtures("admin")
def test_the_installation_may_call_its_own_network(
    client: Browser, installation: Installation
) -> None:
    form = {"channel": "webhook", "address": "http://127.0.0.1:9000/hook"}
    client.post(SYSTEM, form)
    (target,) = targets(installation)
    assert target.site_id is None
    client.post(SYSTEM, form | {"address": "http://10.0.0.1/"}, status=422)


@pytest.mark.usefixtures("admin")
def test_the_system_page_lists_what_is_open_and_what_is_over(
    client: Browser, installation: Installation
) -> None:
    with installation.db.write() as session:
        sites = a_site(session, name="Galerie Nord"), a_site(session, name="Lindenhof")
        a_target(session, installation, "https://a.example/hook")
    open_ = an_incident(installation, *sites)
    an_incident(installation, sites[0], closed=True)
    page = client.get(SYSTEM)
    assert len(page.all(class_="mark")) == 1
    assert {node.text for node in page.all("h2")} >= {"Open incidents", "Over", "Alert connection"}
    assert "SQLite" in page.one("main").text
    page = client.get(f"{SYSTEM}/{open_.uid}")
    assert {"Galerie Nord", "Lindenhof"} <= page.links().keys()
    assert "Mails that wait 7" in page.one("main").text


@pytest.mark.usefixtures("admin")
def test_a_failing_alert_connection_is_seen(client: Browser, installation: Installation) -> None:
    client.post(f"{SYSTEM}/connection", smtp())
    with installation.db.write() as session:
        found = session.scalars(sa.select(Connection).where(Connection.is_system)).one()
        found.health, found.last_words = Health.FAILING, "connection refused"
    text = client.get(SYSTEM).one("main").text
    assert "Failing" in text
    assert "connection refused" in text


def test_only_instance_admins_open_the_system_page(client: Browser, site: Site) -> None:
    client.get(SYSTEM, status=403)
    assert SYSTEM not in client.get(alerts(site)).links_to()


@pytest.mark.usefixtures("admin")
def test_the_pages_are_whole_in_chinese(client: Browser, installation: Installation) -> None:
    with installation.db.write() as session:
        site = a_site(session, name="Nord")
        a_target(session, installation, "https://a.example/hook", site=site)
    found = an_incident(installation, site)
    client.raw.set_cookie("language", CHINESE, domain="localhost")
    for path in (SYSTEM, alerts(site), f"{SYSTEM}/{found.uid}"):
        assert client.get(path).one("html")["lang"] == "zh-Hans"
