"""Settings > Email Log."""

from datetime import timedelta

import sqlalchemy as sa

from tests.factories import a_membership, a_message, a_site, a_time, a_user
from tests.pages import Browser
from webapp.accounts.models import Role
from webapp.audit import AuditEvent
from webapp.delivery.models import State
from webapp.installation import Installation
from webapp.sites.models import Site, SiteSpace

PATH = "/sites/shop/settings/email-log"


def an_operator(client: Browser, installation: Installation) -> Site:
    with installation.db.write() as session:
        site, user = a_site(session, name="Shop", slug="shop"), a_user(session)
        a_membership(session, user, site, Role.OPERATOR)
    client.sign_in(user)
    return site


def stored(installation: Installation) -> Site:
    with installation.db.read() as session:
        return session.scalars(sa.select(Site)).one()


def test_the_page_shows_what_is_kept_and_what_it_takes(
    client: Browser, installation: Installation
) -> None:
    site = an_operator(client, installation)
    page = client.get(PATH)
    assert [page.value(n) for n in ("log_days", "body_days", "details_days")] == ["180", "90", "30"]
    assert "was not counted yet" in page.one("main").text
    with installation.db.write() as session:
        counts = {"mails": 1200, "log_bytes": 3_000_000, "bodies": 1, "body_bytes": 2048}
        session.add(SiteSpace(site_id=site.id, counted_at=a_time(), **counts))
        session.get_one(Site, site.id).body_days = 45
    page = client.get(PATH)
    text = page.one("main").text
    assert "1,200 mails, about 2.9 MB." in text
    assert "1 mail, 2 KB compressed." in text
    assert (page.value("body_days"), page.value("body_days_custom")) == ("custom", "45")


def test_a_longer_time_is_saved_at_once(client: Browser, installation: Installation) -> None:
    an_operator(client, installation)
    given = {"log_days": "forever", "body_days": "custom", "details_days": "forever"}
    page = client.post(PATH, {**given, "body_days_custom": "200"})
    assert page.notices[-1] == "Settings saved."
    site = stored(installation)
    assert (site.log_days, site.body_days, site.details_days) == (None, 200, None)
    with installation.db.read() as session:
        [event] = session.scalars(sa.select(AuditEvent))
        assert event.changes["body_days"] == [90, 200]


def test_before_mail_is_deleted_the_page_says_how_much(
    client: Browser, installation: Installation
) -> None:
    site = an_operator(client, installation)
    with installation.db.write() as session:
        here = session.get_one(Site, site.id)
        for days in (100, 20, 10):
            at = a_time() - timedelta(days=days)
            a_message(session, here, state=State.SENT, at=at, finished_at=at)
    given = {"log_days": "30", "body_days": "7", "details_days": "30"}
    asked = client.post(PATH, given)
    assert "1 mail goes from the log" in asked.one("main").text
    assert "Of 2 mails the mail itself" in asked.one("main").text
    assert stored(installation).log_days == 180
    form = {node["name"]: node.get("value") for node in asked.one("main").all("input")}
    form |= {"sure": "yes"}
    form.pop("csrf_token")
    assert client.post(PATH, form).notices[-1] == "Settings saved."
    assert (stored(installation).log_days, stored(installation).body_days) == (30, 7)


def test_what_cannot_be_used_stays_with_its_sentence(
    client: Browser, installation: Installation
) -> None:
    an_operator(client, installation)
    given = {"log_days": "custom", "body_days": "custom", "details_days": "nonsense"}
    page = client.post(PATH, {**given, "log_days_custom": "", "body_days_custom": "x"}, status=422)
    assert list(page.errors) == ["details_days"]
    given["details_days"] = "1"
    page = client.post(PATH, {**given, "body_days_custom": "x"}, status=422)
    assert list(page.errors) == ["log_days_custom", "body_days_custom"]
    assert page.value("body_days_custom") == "x"
