"""The pages of people: the first account, signing in and out, the own account."""

import re
from datetime import timedelta

import pytest
import sqlalchemy as sa
from flask import Flask

from tests.factories import PASSWORD, a_user
from tests.pages import Browser
from webapp.accounts import service
from webapp.accounts.models import User, UserSession
from webapp.accounts.setup import setup_link
from webapp.delivery.models import Setting
from webapp.installation import Installation


def path_of(link: str | None) -> str:
    assert link
    return "/" + link.split("/", 3)[3]


def mara(installation: Installation, **values: object) -> User:
    with installation.db.write() as session:
        return a_user(session, email="mara@agentur.example", **values)  # type: ignore[arg-type]


NEW = {"email": "Mara@Agentur.example", "name": "Mara", "password": PASSWORD, "again": PASSWORD}


# ---- the first account ----


def test_without_an_account_every_page_says_where_the_link_is(client: Browser) -> None:
    for path in ("/", "/signin", "/account"):
        assert client.fetch(path).headers["Location"] == "/setup"
    assert "postroom admin create" in client.get("/setup").one("main").text


def test_the_link_makes_the_first_account_and_signs_in(
    client: Browser, installation: Installation
) -> None:
    link = path_of(setup_link(installation))
    client.get(link)
    response = client.send(link, NEW)
    assert response.headers["Location"] == "/"
    assert client.get("/account").one("summary", aria_label="Mara")
    with installation.db.read() as session:
        user = session.scalars(sa.select(User)).one()
    assert (user.email, user.is_admin, user.language) == ("mara@agentur.example", True, "en")


def test_a_used_link_says_what_to_run(client: Browser, installation: Installation) -> None:
    link = path_of(setup_link(installation))
    setup_link(installation)
    assert "no longer works" in client.get(link).one("main").text


def test_a_link_that_made_its_account_leads_to_signing_in(
    client: Browser, installation: Installation
) -> None:
    link = path_of(setup_link(installation))
    with installation.db.write() as session:
        a_user(session)
    assert client.fetch(link).location == "/signin"
    page = client.get("/signin")
    assert "This link has done its work" in page.one("main").text


def test_a_link_ends_after_a_day(
    client: Browser, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = path_of(setup_link(installation))
    later = installation.db.now() + timedelta(hours=25)
    monkeypatch.setattr("webapp.accounts.views.now", lambda: later)
    assert "no longer works" in client.get(link).one("main").text


def test_the_token_is_kept_as_a_digest_and_not_told_to_others(
    client: Browser, installation: Installation
) -> None:
    link = path_of(setup_link(installation))
    with installation.db.read() as session:
        stored = str(session.get_one(Setting, "setup_token").value)
    assert link.partition("token=")[2] not in stored
    assert client.fetch(link).headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"email": "mara"}, "email"),
        ({"email": ""}, "email"),
        ({"password": "short", "again": "short"}, "password"),
        ({"again": "something else"}, "again"),
        ({"name": "x" * 201}, "name"),
    ],
)
def test_a_wrong_first_account_is_an_error_at_the_field(
    client: Browser, installation: Installation, wrong: dict[str, str], where: str
) -> None:
    link = path_of(setup_link(installation))
    page = client.post(link, NEW | wrong, status=422)
    assert list(page.errors) == [where]
    assert page.value("name") == (NEW | wrong)["name"]
    assert f"#{where}" in page.one(id="errors").links_to()
    with installation.db.read() as session:
        assert not service.has_users(session)


def test_there_is_no_link_once_somebody_has_an_account(
    client: Browser, installation: Installation
) -> None:
    link = path_of(setup_link(installation))
    mara(installation)
    assert setup_link(installation) is None
    assert client.send(link, NEW).headers["Location"] == "/signin"


# ---- signing in and out ----

RIGHT = {"email": " MARA@agentur.example ", "password": PASSWORD}
WRONG = {"email": "mara@agentur.example", "password": "not the password"}


def test_signing_in_comes_back_to_the_page_asked_for(
    client: Browser, installation: Installation
) -> None:
    mara(installation)
    asked = client.fetch("/account?tab=1")
    assert asked.headers["Location"] == "/signin?next=/account?tab%3D1"
    assert client.send(asked.headers["Location"], RIGHT).headers["Location"] == "/account?tab=1"


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "http:evil.example",
        " //evil.example",
        "account",
    ],
)
def test_a_foreign_target_after_signing_in_is_refused(
    client: Browser, installation: Installation, target: str
) -> None:
    mara(installation)
    response = client.raw.post(
        "/signin",
        base_url=client.url,
        query_string={"next": target},
        data={**RIGHT, "csrf_token": client.token()},
    )
    assert response.headers["Location"] == "/"


def test_a_wrong_password_and_an_unknown_person_get_the_same_answer(
    client: Browser, installation: Installation
) -> None:
    mara(installation)
    one = client.post("/signin", WRONG, status=422)
    other = client.post("/signin", WRONG | {"email": "nobody@x.example"}, status=422)
    assert one.notices == other.notices
    assert "do not belong together" in one.notices[0]
    assert one.value("email") == "mara@agentur.example"
    assert one.value("password") == ""


def test_an_unknown_person_costs_as_much_work_as_a_known_one(
    client: Browser, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = []

    class Counting:
        def hash(self, password: str) -> str:
            return service_hasher.hash(password)

        def verify(self, stored: str, password: str) -> bool:
            verified.append(stored)
            return bool(service_hasher.verify(stored, password))

    service_hasher = service.hasher
    monkeypatch.setattr(service, "hasher", Counting())
    mara(installation)
    client.post("/signin", WRONG | {"email": "nobody@x.example"}, status=422)
    assert len(verified) == 1


def test_after_some_failures_the_next_try_has_to_wait(
    client: Browser, installation: Installation
) -> None:
    mara(installation)
    for _number in range(3):
        client.post("/signin", WRONG, status=422)
    page = client.post("/signin", RIGHT, status=429)
    assert "Too many tries. Wait" in page.notices[0]
    assert int(page.response.headers["Retry-After"]) >= 1


def test_a_success_forgets_the_failures_of_the_login(
    client: Browser, installation: Installation
) -> None:
    mara(installation)
    for _round in range(2):
        client.post("/signin", WRONG, status=422)
        client.post("/signin", WRONG, status=422)
        assert client.send("/signin", RIGHT).status_code == 303
        client.sign_out()


def test_signing_out_ends_the_session_on_the_server(
    client: Browser, installation: Installation
) -> None:
    client.sign_in(mara(installation))
    with client.raw.session_transaction(base_url=client.url) as cookie:
        kept = cookie["_user_id"]
    page = client.post("/signout")
    assert page.notices == ["You are signed out."]
    with client.raw.session_transaction(base_url=client.url) as cookie:
        cookie["_user_id"] = kept
    assert client.fetch("/account").headers["Location"].startswith("/signin")


def test_the_cookie_holds_a_secret_that_the_database_does_not_know(
    client: Browser, installation: Installation
) -> None:
    client.sign_in(mara(installation))
    with client.raw.session_transaction(base_url=client.url) as cookie:
        secret = cookie["_user_id"]
    with installation.db.read() as session:
        stored = session.scalars(sa.select(UserSession)).one()
    assert stored.digest == service.digest(secret) != secret


def test_a_session_ends_after_a_month_without_use(
    client: Browser, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.sign_in(mara(installation))
    later = installation.db.now() + timedelta(days=31)
    monkeypatch.setattr("webapp.web.now", lambda: later)
    assert client.fetch("/account").status_code == 303


def test_being_seen_is_noted_once_a_minute(
    client: Browser, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.sign_in(mara(installation))

    def seen(after: timedelta) -> timedelta:
        monkeypatch.setattr("webapp.web.now", lambda: start + after)
        client.get("/account")
        with installation.db.read() as session:
            return session.scalars(sa.select(UserSession)).one().seen_at - start

    with installation.db.read() as session:
        start = session.scalars(sa.select(UserSession)).one().seen_at
    assert seen(timedelta(seconds=59)) == timedelta()
    assert seen(timedelta(seconds=61)) == timedelta(seconds=61)


# ---- the own account ----


def test_name_and_language_are_saved(client: Browser, installation: Installation) -> None:
    client.sign_in(mara(installation))
    page = client.post("/account", {"name": " 林木 ", "language": "zh_Hans"})
    assert page.one("html")["lang"] == "zh-Hans"
    assert page.value("name") == "林木"
    client.post("/account", {"name": "M", "language": "xx"}, status=422)


def test_a_new_password_ends_the_other_sessions(
    client: Browser, app: Flask, installation: Installation
) -> None:
    user = mara(installation)
    other = Browser(app)
    client.sign_in(user)
    other.sign_in(user)
    fresh = {"old": PASSWORD, "password": "another long password", "again": "another long password"}
    page = client.post("/account/password", fresh)
    assert page.notices == ["Your password is changed. 1 other session was ended."]
    assert other.fetch("/account").status_code == 303
    client.sign_out()
    client.post("/signin", RIGHT, status=422)
    assert client.send("/signin", RIGHT | {"password": fresh["password"]}).status_code == 303


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"old": "not mine"}, "old"),
        ({"old": ""}, "old"),
        ({"password": "short"}, "password"),
        ({"again": "different"}, "again"),
    ],
)
def test_a_password_that_cannot_be_changed_so_is_an_error_at_the_field(
    client: Browser, installation: Installation, wrong: dict[str, str], where: str
) -> None:
    client.sign_in(mara(installation))
    good = {"old": PASSWORD, "password": "another long password", "again": "another long password"}
    page = client.post("/account/password", good | wrong, status=422)
    assert list(page.errors) == [where]


def test_guessing_the_old_password_has_to_wait_too(
    client: Browser, installation: Installation
) -> None:
    client.sign_in(mara(installation))
    good = {"old": PASSWORD, "password": "another long password", "again": "another long password"}
    for _number in range(3):
        client.post("/account/password", good | {"old": "guess"}, status=422)
    page = client.post("/account/password", good, status=422)
    assert page.errors["old"].startswith("Too many tries.")


def test_another_browser_can_be_signed_out(
    client: Browser, app: Flask, installation: Installation
) -> None:
    user = mara(installation)
    other = Browser(app)
    other.sign_in(user)
    client.sign_in(user)
    table = client.get("/account").one("table")
    (form,) = table.all("form")
    page = client.post(form["action"])
    assert page.notices == ["That browser is signed out."]
    assert other.fetch("/account").status_code == 303


def test_a_session_of_somebody_else_cannot_be_ended(
    client: Browser, app: Flask, installation: Installation
) -> None:
    client.sign_in(mara(installation))
    with installation.db.write() as session:
        stranger = a_user(session)
    other = Browser(app)
    other.sign_in(stranger)
    with installation.db.read() as session:
        theirs = session.scalars(
            sa.select(UserSession.id).where(UserSession.user_id == stranger.id)
        ).one()
    client.post(f"/account/sessions/{theirs}/end", status=404)
    other.get("/account")


# ---- language and colours ----


def test_the_language_follows_the_browser_until_somebody_chooses(
    client: Browser, installation: Installation
) -> None:
    mara(installation)
    for wish in ("zh-CN,zh;q=0.9,en;q=0.8", "zh-Hans-CN", "zh", "zh-SG,en;q=0.1"):
        page = client.get("/signin", headers={"Accept-Language": wish})
        assert page.one("html")["lang"] == "zh-Hans"
    assert client.get("/signin", headers={"Accept-Language": "de"}).one("html")["lang"] == "en"
    english = {"Accept-Language": "en"}
    page = client.get("/signin", headers=english)
    client.fetch(page.links()["中文"])
    assert client.get("/signin", headers=english).one("html")["lang"] == "zh-Hans"


def test_the_language_chosen_before_signing_in_is_kept_with_the_person(
    client: Browser, installation: Installation
) -> None:
    mara(installation)
    client.fetch("/language?to=zh_Hans&next=/signin")
    client.send("/signin", RIGHT)
    with installation.db.read() as session:
        assert session.scalars(sa.select(User.language)).one() == "zh_Hans"


def test_the_switch_leads_back_to_the_page_in_hand_and_nowhere_else(
    client: Browser, installation: Installation
) -> None:
    client.sign_in(mara(installation))
    link = client.get("/account?a=1&b=2").links()["中文"]
    assert client.fetch(link).headers["Location"] == "/account?a=1&b=2"
    foreign = client.fetch("/language?to=zh_Hans&next=//evil.example")
    assert foreign.headers["Location"] == "/"


def test_colours_are_kept_in_a_cookie(client: Browser, installation: Installation) -> None:
    client.sign_in(mara(installation))
    assert "data-theme" not in client.get("/account").one("html").attributes
    client.fetch("/colours?to=dark")
    assert client.get("/account").one("html")["data-theme"] == "dark"
    client.fetch("/colours?to=")
    assert "data-theme" not in client.get("/account").one("html").attributes


def test_no_password_is_ever_written_into_a_page(
    client: Browser, installation: Installation
) -> None:
    link = path_of(setup_link(installation))
    response = client.send(link, NEW | {"again": "something else"})
    assert not re.search(f"{PASSWORD}|something else", response.text)
