"""What the small script adds, seen in a real browser; and the pages of people, looked at by axe."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask import Blueprint, render_template_string
from playwright.sync_api import Page, expect
from werkzeug.serving import make_server

from tests.factories import PASSWORD, a_membership, a_site, a_time, a_user, an_installation
from tests.rig.browser import OpenPage, axe
from webapp import create_app
from webapp.accounts.models import Role
from webapp.accounts.rights import Access
from webapp.accounts.setup import setup_link
from webapp.installation import Installation
from webapp.web import requires

TRIAL = """
{% extends "base.html" %}
{% import "macros/page.html" as page with context %}
{% import "macros/forms.html" as forms with context %}
{% block title %}Trial{% endblock %}
{% block body %}
<code id="words">250 2.0.0 queued</code> {{ page.copy_button("words") }}
<p id="when">{{ time(at) }}</p>
<form method="post" data-leave>{{ forms.csrf() }}
  <label for="name">Name</label> <input id="name" name="name">
  <button type="submit">Save</button>
</form>
<a href="/account">Away</a>
{% endblock %}
"""


@dataclass(frozen=True, kw_only=True)
class Live:
    """A dashboard that answers on a port."""

    installation: Installation
    url: str


@pytest.fixture
def live(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Live]:
    port = free_port()
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    made = an_installation(url, tmp_path, http_listen=f"127.0.0.1:{port}")
    app = create_app(made)
    bp = Blueprint("trial", __name__)

    @bp.route("/trial", methods=["GET", "POST"])
    @requires(Access.SIGNED_IN)
    def trial() -> str:
        return render_template_string(TRIAL, at=a_time())

    app.register_blueprint(bp)
    server = make_server("127.0.0.1", port, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Live(installation=made, url=made.settings.url)
    server.shutdown()
    server.server_close()
    made.close()


def signed_in(page: Page, live: Live) -> Page:
    with live.installation.db.write() as session:
        user = a_user(session, email="mara@agentur.example")
        for name in ("Galerie Nord", "Lindenhof Shop", "松石书店"):
            a_membership(session, user, a_site(session, name=name), Role.VIEWER)
    page.goto(f"{live.url}/trial")
    page.fill("#email", "mara@agentur.example")
    page.fill("#password", PASSWORD)
    page.click("button.primary")
    page.wait_for_url("**/trial")
    return page


def test_a_copy_button_copies_and_shows_a_tick(page: Page, live: Live) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    signed_in(page, live)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status")).to_have_text("Copied")
    expect(page.locator("[data-copy] use")).to_have_attribute("href", "#i-check")
    assert page.evaluate("navigator.clipboard.readText()") == "250 2.0.0 queued"


def test_without_script_there_is_no_copy_button(open_page: OpenPage, live: Live) -> None:
    page = signed_in(open_page(scripts=False), live)
    expect(page.locator("[data-copy] button")).to_be_hidden()


def test_leaving_a_changed_form_asks_and_saving_it_does_not(page: Page, live: Live) -> None:
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    signed_in(page, live)
    page.click("text=Away")
    page.wait_for_url("**/account")
    assert asked == []
    page.goto(f"{live.url}/trial")
    page.fill("#name", "changed")
    page.click("main form button")
    page.wait_for_load_state()
    assert asked == []
    page.fill("#name", "changed")
    page.click("text=Away")
    page.wait_for_url("**/account")
    assert asked == ["beforeunload"]


def test_a_site_is_found_by_a_part_of_its_name(page: Page, live: Live) -> None:
    signed_in(page, live)
    page.get_by_text("All sites").first.click()
    page.fill("#find-site", "松石")
    expect(page.locator("#bar-sites li:visible")).to_have_text(["All sites", "松石书店"])


@pytest.mark.parametrize(("locale", "words"), [("en-GB", "3 minutes ago"), ("zh-CN", "3分钟前")])
def test_times_count_on_in_the_words_of_the_server(
    open_page: OpenPage, live: Live, locale: str, words: str
) -> None:
    page = open_page(locale=locale)
    page.clock.install()
    signed_in(page, live)
    page.clock.fast_forward("03:30")
    expect(page.locator("#when time")).to_have_text(words)


@pytest.mark.parametrize(
    ("locale", "width", "dark"), [("en-GB", 1400, False), ("zh-CN", 390, True)]
)
def test_the_pages_of_people_are_without_barriers(
    open_page: OpenPage, live: Live, locale: str, width: int, dark: bool
) -> None:
    page = open_page(locale=locale, width=width, dark=dark)
    page.goto(f"{live.url}/setup")
    assert axe(page) == []
    page.goto(str(setup_link(live.installation)))
    page.click("button.primary")
    expect(page.locator("#errors")).to_be_focused()
    assert axe(page) == []
    signed_in(page, live)
    page.goto(f"{live.url}/account")
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
