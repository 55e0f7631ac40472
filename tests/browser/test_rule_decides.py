"""The way of a rule: built by the keyboard, tried, saved, and seen deciding about a real mail."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from werkzeug.serving import make_server

from tests.browser.test_narrow import Live, signed_in
from tests.delivery.test_worker import Post
from tests.factories import a_connection, a_user, an_installation
from tests.mailers.fakes import FakeSmtp
from tests.rig.browser import OpenPage, axe
from webapp import create_app
from webapp.routing import rules
from webapp.routing.models import RuleKind
from webapp.sites.models import Site


@dataclass(frozen=True, kw_only=True)
class Running:
    """A dashboard and a worker; the second server is for what a rule sends there."""

    live: Live
    post: Post
    second: FakeSmtp


@pytest.fixture
def running(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Running]:
    port = free_port()
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    made = an_installation(url, tmp_path, http_listen=f"127.0.0.1:{port}")
    post = Post(made)
    post.connect(post.server(), nickname="Office")
    second = post.server()
    settings = {"host": "127.0.0.1", "port": second.port, "encryption": "none"}
    settings |= {"auto_tls": False, "authentication": False}
    with made.db.write() as session:
        site = session.get_one(Site, post.site)
        a_connection(session, site, primary=False, nickname="Brevo", settings=settings)
        a_user(session, email="mara@agentur.example", is_admin=True)
    server = make_server("127.0.0.1", port, create_app(made), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    post.work()
    live = Live(url=f"http://localhost:{port}", paths=("/sites/site-1/settings/routing",))
    yield Running(live=live, post=post, second=second)
    server.shutdown()
    thread.join()
    server.server_close()
    post.close()


def test_a_rule_is_built_by_keyboard_tried_saved_and_decides_about_a_mail(
    open_page: OpenPage, running: Running
) -> None:
    page = signed_in(open_page, running.live)
    page.goto(running.live.paths[0])
    page.focus("#enabled")
    page.keyboard.press("Space")
    tab_to(page, "[value=add]")
    page.keyboard.press("Enter")
    expect(page.locator("#r0-connection")).to_be_focused()
    page.keyboard.type("Brevo")
    tab_to(page, "#r0-g0-c0-value")
    page.keyboard.type("order")
    tab_to(page, "[value='add-condition:0:0']")
    page.keyboard.press("Enter")
    expect(page.locator("#r0-g0-c1-property")).to_be_focused()
    expect(page.locator("#said")).to_have_text("A condition was added.")
    page.keyboard.type("Initiator")
    expect(page.locator("#r0-g0-c1-operator")).to_have_value("is")
    for key in ("Home", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    expect(page.locator("#r0-g0-c1-property")).to_have_value("from-email")
    tab_to(page, "#r0-g0-c1-operator")
    page.keyboard.type("ends")
    tab_to(page, "#r0-g0-c1-value")
    page.keyboard.type("@example.com")

    tab_to(page, "[value=add]")
    page.keyboard.press("Enter")
    expect(page.locator("#r1-connection")).to_be_focused()
    page.keyboard.press("Alt+ArrowUp")
    expect(page.locator("#said")).to_have_text("The rule is number 1 of 2 now.")
    expect(page.locator("#r1-g0-c1-value")).to_have_value("@example.com")
    expect(page.locator("[value='down:0']")).to_be_focused()
    tab_to(page, "[value='remove:0']")
    page.keyboard.press("Enter")
    expect(page.locator("#r0-connection")).to_be_focused()
    assert axe(page) == []

    tab_to(page, "#dry-run summary")
    page.keyboard.press("Enter")
    tab_to(page, "#try-sender")
    page.keyboard.type("shop@example.com")
    tab_to(page, "#try-subject")
    page.keyboard.type("Your order")
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_be_focused()
    expect(page.locator("#verdict h2")).to_have_text("It would leave by Brevo: rule 1 is met.")
    expect(page.locator("#verdict")).to_contain_text("met, by “shop@example.com”")
    assert axe(page) == []
    assert stored(running) == 0
    assert asks_before_leaving(page)

    tab_to(page, ".save button")
    page.keyboard.press("Enter")
    expect(page.locator(".notice.good")).to_contain_text("Settings saved.")
    assert stored(running) == 1
    assert not asks_before_leaving(page)

    (queue_id,) = running.post.hand_in(1)
    running.post.wait_for(lambda: len(running.second.mails) == 1)
    page.goto(f"/sites/site-1/log/{queue_id}")
    expect(page.locator(".time")).to_contain_text("Routed to Brevo")
    page.click(".time a[href*=try]")
    expect(page.locator("#verdict h2")).to_have_text("It would leave by Brevo: rule 1 is met.")
    assert axe(page) == []


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the focus is there, as a person would."""
    wanted = page.locator(selector)
    for _ in range(60):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"Tab does not lead to {selector}")


def asks_before_leaving(page: Page) -> bool:
    script = """() => {
        const event = new Event("beforeunload", { cancelable: true });
        window.dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    return bool(page.evaluate(script))


def stored(running: Running) -> int:
    with running.post.installation.db.read() as session:
        site = session.get_one(Site, running.post.site)
        return len(rules.rules_of(session, site, RuleKind.ROUTE))
