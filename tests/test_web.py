"""The frame around every page: headers, names of this machine, proxies, errors, menu, times."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Blueprint, Flask, Response, g, render_template_string, request

from tests.factories import a_membership, a_site, a_user, an_installation
from tests.pages import Browser, Node, Page, faults
from webapp import create_app, show, web, words
from webapp.accounts.models import Role
from webapp.accounts.rights import Access, Right
from webapp.crypto import new_key
from webapp.delivery.models import State
from webapp.installation import Installation
from webapp.web import Group, menu_entry, requires


def pages_for_these_tests() -> Blueprint:
    """A blueprint with one page of each kind."""
    bp = Blueprint("trial", __name__, url_prefix="/trial")

    @bp.get("/all")
    @requires(Access.SIGNED_IN)
    def everywhere() -> str:
        return page("All")

    @bp.get("/admin")
    @requires(Right.SYSTEM)
    def system() -> str:
        return page("System")

    @bp.get("/<slug>/log")
    @requires(Right.VIEW_LOG)
    def log(slug: str) -> str:
        return page(f"Log of {g.site.slug}, {g.role}")

    @bp.get("/<slug>/general")
    @requires(Right.EDIT_SETTINGS)
    def general(slug: str) -> str:
        return page("General")

    @bp.route("/bug", methods=["GET", "POST"])
    @requires(Access.PUBLIC)
    def bug() -> str:
        if request.method == "POST":
            return page(f"took {len(request.form)}")
        raise ZeroDivisionError("a planted mistake")

    @bp.get("/who")
    @requires(Access.PUBLIC)
    def who() -> Response:
        return Response(f"{request.remote_addr} {request.scheme} {request.host}")

    menu_entry(bp, "everywhere", "Sites", group=Group.ALL_SITES, order=1, icon="board")
    menu_entry(bp, "system", "System", group=Group.SYSTEM, order=1, icon="gauge")
    menu_entry(bp, "log", "Email Log", group=Group.SITE, order=2, icon="log")
    menu_entry(bp, "general", "General", group=Group.SETTINGS, order=1)
    return bp


def page(title: str) -> str:
    source = '{% extends "base.html" %}{% block title %}{{ name }}{% endblock %}'
    return render_template_string(source, name=title)


@pytest.fixture
def app(installation: Installation) -> Flask:
    made = create_app(installation)
    made.extensions["postroom"].entries.clear()
    made.register_blueprint(pages_for_these_tests())
    made.testing = True
    return made


def signed_in(client: Browser, installation: Installation, role: Role | None = None) -> str:
    """Sign in somebody with this role at a site of theirs; returns the site's slug."""
    with installation.db.write() as session:
        site = a_site(session, slug="nord", name="Galerie Nord")
        user = a_user(session, is_admin=role is None)
        if role:
            a_membership(session, user, site, role)
    client.sign_in(user)
    return site.slug


# ---- headers ----


def test_every_page_carries_a_strict_policy(client: Browser, installation: Installation) -> None:
    signed_in(client, installation)
    headers = client.fetch("/trial/all").headers
    policy = headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    for part in ("default-src 'self'", "form-action 'self'", "base-uri 'none'"):
        assert part in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Strict-Transport-Security" not in headers


def test_over_https_the_cookie_is_secure_and_https_is_remembered(tmp_path: Path) -> None:
    url = "https://post.example.org"
    made = an_installation(f"sqlite:///{tmp_path / 'x.db'}", tmp_path, public_url=url)
    browser = Browser(create_app(made))
    with made.db.write() as session:
        a_user(session)
    response = browser.fetch("/signin")
    assert response.headers["Strict-Transport-Security"].startswith("max-age=")
    cookie = response.headers["Set-Cookie"]
    assert all(part in cookie for part in ("Secure", "HttpOnly", "SameSite=Lax"))
    made.close()


def test_files_are_kept_for_ever_under_the_address_of_their_content(client: Browser) -> None:
    address = client.get("/setup").all("link", rel="stylesheet")[0]["href"]
    assert "immutable" in client.fetch(address).headers["Cache-Control"]
    other = address.partition("?")[0] + "?v=0"
    assert client.fetch(other).headers["Cache-Control"] == "no-cache"


# ---- names of this machine, proxies ----


def test_another_name_of_this_machine_leads_to_ours(client: Browser) -> None:
    for name in ("127.0.0.1", "[::1]"):
        response = client.raw.get("/setup?token=x", base_url=f"http://{name}:8025")
        assert response.headers["Location"] == "http://localhost:8025/setup?token=x"
        assert client.raw.get("/healthz", base_url=f"http://{name}:8025").status_code == 200


def test_the_name_of_a_server_is_left_alone(client: Browser) -> None:
    assert client.raw.get("/setup", base_url="http://192.0.2.7:8025").status_code == 200


FORWARDED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "post.example.org",
}


def ask_who(app: Flask, peer: str) -> str:
    client = app.test_client()
    environ = {"REMOTE_ADDR": peer}
    answer = client.get("/trial/who", headers=FORWARDED, environ_overrides=environ)
    return answer.text


def test_forwarded_headers_count_from_a_named_proxy_only(tmp_path: Path) -> None:
    made = an_installation(
        f"sqlite:///{tmp_path / 'x.db'}", tmp_path, trusted_proxies="10.0.0.0/8 ::1"
    )
    app = create_app(made)
    app.register_blueprint(pages_for_these_tests())
    for proxy in ("10.1.2.3", "::1"):
        assert ask_who(app, proxy) == "203.0.113.9 https post.example.org"
    assert ask_who(app, "192.0.2.1") == "192.0.2.1 http localhost"
    made.close()


def test_without_named_proxies_forwarded_headers_are_ignored(app: Flask) -> None:
    assert ask_who(app, "127.0.0.1") == "127.0.0.1 http localhost"


# ---- errors ----


def test_a_page_that_is_not_there_says_so_in_the_frame(client: Browser) -> None:
    assert client.get("/nowhere", status=404).h1 == "Nothing here"
    assert client.post("/healthz", status=405).h1 == "Nothing here"


def test_a_mistake_of_ours_has_an_id_that_is_in_the_log(
    client: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    found = client.get("/trial/bug", status=500)
    assert found.h1 == "Something broke here"
    logged = capsys.readouterr().out
    assert f"error_id={found.one('main').one('code').text}" in logged
    assert "a planted mistake" not in found.response.text


def test_a_database_that_is_gone_still_gives_an_answer(
    client: Browser, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_in(client, installation)
    monkeypatch.setattr(web.Database, "read", lambda self: 1 / 0)
    answer = client.fetch("/account")
    assert answer.status_code == 500
    assert answer.text.startswith("Something broke here: ")


def test_a_form_that_is_too_large_is_refused(client: Browser) -> None:
    found = client.post("/trial/bug", {"text": "x" * 1_100_000}, status=413)
    assert found.h1 == "Too large"


def post_without_a_token(client: Browser, origin: str, data: dict[str, str]) -> Page:
    response = client.raw.post(
        "/trial/bug", base_url=client.url, data=data, headers={"Origin": origin}
    )
    assert response.status_code == 400
    found = Page(response)
    assert list(faults(found)) == []
    return found


def test_a_form_without_a_token_can_be_sent_again(client: Browser) -> None:
    found = post_without_a_token(client, client.url, {"name": "typed", "csrf_token": "old"})
    assert found.h1 == "Not saved yet"
    form = found.one("main").one("form")
    data = {node["name"]: node["value"] for node in form.all("input")}
    assert data["name"] == "typed"
    again = client.raw.post(form["action"], base_url=client.url, data=data)
    assert Page(again).h1 == "took 2"


@pytest.mark.parametrize(
    ("origin", "data"),
    [
        ("https://evil.example", {"name": "typed"}),
        ("null", {"name": "typed"}),
        ("http://localhost:8025", {"name": "typed", "smtp-password": "hidden"}),
    ],
)
def test_what_others_sent_and_secrets_are_not_offered_again(
    client: Browser, origin: str, data: dict[str, str]
) -> None:
    found = post_without_a_token(client, origin, data)
    assert found.one("main").all("input") == []
    assert "hidden" not in found.one("main").text


# ---- rights, menu ----


def menu_of(found: Page) -> list[str]:
    return [node.text for node in found.one("nav", class_="menu").all("a")]


def test_the_menu_shows_what_one_may_open(client: Browser, installation: Installation) -> None:
    slug = signed_in(client, installation, Role.VIEWER)
    assert menu_of(client.get("/trial/all"))[-1:] == ["Sites"]
    assert menu_of(client.get(f"/trial/{slug}/log"))[-2:] == ["Galerie Nord", "Email Log"]
    assert "System" not in menu_of(client.get("/trial/all"))


def test_an_operator_sees_settings_and_an_admin_the_system(
    client: Browser, app: Flask, installation: Installation
) -> None:
    slug = signed_in(client, installation, Role.OPERATOR)
    found = client.get(f"/trial/{slug}/general")
    assert menu_of(found)[-3:] == ["Galerie Nord", "Settings", "Email Log"]
    assert found.one("nav", class_="menu").one("a", aria_current="page").text == "Settings"
    admin = Browser(app)
    with installation.db.write() as session:
        boss = a_user(session, is_admin=True)
    admin.sign_in(boss)
    found = admin.get("/trial/admin")
    assert menu_of(found)[-1] == "System"


def test_a_missing_right_is_named(client: Browser, installation: Installation) -> None:
    slug = signed_in(client, installation, Role.VIEWER)
    found = client.get(f"/trial/{slug}/general", status=403)
    assert "“edit settings”" in found.one("main").text


def test_a_site_of_others_does_not_exist(client: Browser, installation: Installation) -> None:
    signed_in(client, installation, Role.OWNER)
    with installation.db.write() as session:
        other = a_site(session)
    one = client.get(f"/trial/{other.slug}/log", status=404).one("main").text
    assert one == client.get("/trial/no-such-site/log", status=404).one("main").text


def test_the_switcher_lists_ones_own_sites(client: Browser, installation: Installation) -> None:
    slug = signed_in(client, installation, Role.VIEWER)
    with installation.db.write() as session:
        a_site(session, name="Somebody else")
    found = client.get("/trial/all").one(id="bar-sites")
    assert "Somebody else" not in found.text
    assert f"/trial/{slug}/log" in found.links_to()


def test_with_many_sites_the_switcher_leads_to_the_board(
    client: Browser, installation: Installation
) -> None:
    signed_in(client, installation)
    with installation.db.write() as session:
        for _number in range(20):
            a_site(session)
    assert client.get("/trial/all").one(id="bar-sites").text == "Find a site"


# ---- how things are shown ----


def test_every_state_of_a_mail_has_a_shape_and_a_word(app: Flask) -> None:
    drawn = app.extensions["postroom"].icons
    shown = [words.status_of(state) for state in (*State, *words.SiteState)]
    assert {status.icon for status in shown} <= drawn.keys()
    assert set(words.NOTICE_ICONS.values()) <= drawn.keys()
    assert set(words.NOTICE_ICONS) == set(words.Tone)


@pytest.mark.parametrize(
    ("ago", "long", "short", "chinese"),
    [
        (timedelta(seconds=59), "just now", "now", "刚刚"),
        (timedelta(seconds=60), "1 minute ago", "1 min", "1分钟前"),
        (timedelta(minutes=59, seconds=59), "59 minutes ago", "59 min", "59分钟前"),
        (timedelta(hours=23, minutes=59), "23 hours ago", "23 hr", "23小时前"),
        (timedelta(days=9), "9 days ago", "9 days", "9天前"),
        (-timedelta(minutes=3), "in 3 minutes", "3 min", "3分钟后"),
        (timedelta(days=31), "23 Oct 2026", "23 Oct 2026", "2026年10月23日"),
    ],
)
def test_times_are_relative_in_whole_units(
    app: Flask, installation: Installation, ago: timedelta, long: str, short: str, chinese: str
) -> None:
    from datetime import UTC, datetime

    now = datetime(2026, 11, 23, 14, 5, tzinfo=UTC)
    with app.test_request_context():
        assert show.relative(now - ago, now)[0] == long
        assert show.relative(now - ago, now, short=True)[0] == short
    with app.test_request_context(headers={"Accept-Language": "zh-CN"}):
        assert show.relative(now - ago, now)[0] == chinese


def test_the_full_time_is_that_of_the_site(app: Flask, installation: Installation) -> None:
    from datetime import UTC, datetime

    at = datetime(2026, 11, 23, 14, 3, 10, tzinfo=UTC)
    with installation.db.write() as session:
        site = a_site(session, time_zone="Europe/Berlin")
    with app.test_request_context():
        assert show.full_time(at) == "23 Nov 2026, 14:03:10 UTC"
    with app.test_request_context():
        g.site = site
        assert show.full_time(at) == "23 Nov 2026, 15:03:10 CET"


def test_a_page_holds_the_drawings_of_its_icons_and_no_others(client: Browser) -> None:
    found = client.get("/setup")
    used = {node["href"].removeprefix("#") for node in found.all("use")}
    assert used == {node["id"] for node in found.all("symbol")}


def test_the_pages_stay_light(client: Browser, installation: Installation) -> None:
    signed_in(client, installation)
    found = client.get("/account")
    files = [node.get("href") or node.get("src") for node in _files(found)]
    weight = sum(len(client.fetch(name).data) for name in files)
    assert len(files) < 10
    assert weight + len(found.response.data) < 70_000


def _files(found: Page) -> list[Node]:
    return [*found.all("link"), *found.all("script")]


def test_the_colours_are_all_in_the_tokens() -> None:
    root = Path(__file__).parents[1]
    sheet = (root / "static" / "app.css").read_text(encoding="utf-8")
    assert not re.search(r"#(?!000|fff|222)[0-9a-f]{3,6}\b(?![^{]*\{)", sheet)


def test_a_new_key_leaves_people_signed_in(tmp_path: Path) -> None:
    url, (old, new) = f"sqlite:///{tmp_path / 'x.db'}", (new_key(), new_key())
    made = an_installation(url, tmp_path, secret_keys=old)
    browser = Browser(create_app(made))
    with made.db.write() as session:
        user = a_user(session)
    browser.sign_in(user)
    cookie = browser.raw.get_cookie("postroom", "localhost")
    made.close()
    made = an_installation(url, tmp_path, secret_keys=f"{new},{old}")
    later = Browser(create_app(made))
    assert cookie is not None
    later.raw.set_cookie("postroom", cookie.value, domain="localhost")
    later.get("/account")
    made.close()


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(milliseconds=400), "0 sec"),
        (timedelta(seconds=59), "59 sec"),
        (timedelta(minutes=90), "1 hr"),
        (timedelta(days=2, hours=3), "2 days"),
    ],
)
def test_a_length_of_time_is_told_in_its_greatest_unit(
    app: Flask, span: timedelta, words: str
) -> None:
    with app.test_request_context():
        assert show.duration(span) == words
