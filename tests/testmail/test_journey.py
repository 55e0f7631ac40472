"""A test from the form to the remote's answer: real worker, real server, and a real browser."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from werkzeug.serving import make_server

from tests.delivery.test_worker import Post
from tests.factories import PASSWORD, a_membership, a_user, an_installation
from tests.mailers.fakes import FakeSmtp
from tests.pages import Browser
from tests.rig.browser import OpenPage, axe
from webapp import create_app
from webapp.accounts.models import Role
from webapp.delivery.models import Heartbeat
from webapp.installation import Installation
from webapp.sites.models import Site

MARA = "mara@agentur.example"
REFUSAL = "550 5.1.1 No such user here"


class House(Post):
    """A site that sends by a server on loopback, and Mara, who operates it."""

    def __init__(self, installation: Installation) -> None:
        super().__init__(installation)
        with installation.db.write() as session:
            site = session.get_one(Site, self.site)
            self.url = f"/sites/{site.slug}/tools/test"
            self.mara = a_user(session, email=MARA)
            a_membership(session, self.mara, site, Role.OPERATOR)

    def ready(self) -> FakeSmtp:
        server = self.server()
        self.connect(server, from_email="shop@lindenhof.example")
        self.work()
        with self.installation.db.write() as session:
            at = self.installation.db.now()
            details = {"owner": True}
            session.add(Heartbeat(name="here", part="deliver", beat_at=at, details=details))
        return server

    def close(self) -> None:
        for worker, thread in self.workers:
            worker.stop()
            thread.join()
        for server in self.servers:
            server.__exit__(None, None, None)
        self.waker.close()


@pytest.fixture
def house(installation: Installation) -> Iterator[House]:
    made = House(installation)
    yield made
    made.close()


def test_a_test_is_delivered_and_its_page_says_so(house: House, client: Browser) -> None:
    server = house.ready()
    client.sign_in(house.mara)
    sent = client.send(house.url, {"to": "kunde@example.org", "html": "y"})
    assert sent.status_code == 303
    house.wait_for(lambda: house.states() == ["sent"])
    page = client.get(sent.headers["Location"])
    assert "The test mail was accepted by 127.0.0.1" in page.one(id="test").text
    (mail,) = server.mails
    assert mail.rcpts == ["kunde@example.org"]
    assert b"From: Site 1 <shop@lindenhof.example>" in mail.content
    assert mail.content.count(b"Message-ID:") == 1


def test_a_refused_test_is_explained_and_sent_again_by_its_button(
    house: House, client: Browser
) -> None:
    server = house.ready()
    server.then("RCPT kunde@example.org", REFUSAL)
    client.sign_in(house.mara)
    sent = client.send(house.url, {"to": "kunde@example.org"})
    house.wait_for(lambda: house.states() == ["failed"])
    page = client.get(sent.headers["Location"])
    assert REFUSAL in page.one(id="test").text
    assert page.one(id="debug-log").text.count("Attempt") == 1
    (form,) = [form for form in page.one(id="test").all("form") if form["action"] == house.url]
    hidden = {node["name"]: node["value"] for node in form.all("input")}
    client.send(house.url, hidden)
    house.wait_for(lambda: house.states() == ["failed", "sent"])


# ---- in a browser ----


@pytest.fixture
def live(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[House]:
    port = free_port()
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    installation = an_installation(url, tmp_path, http_listen=f"127.0.0.1:{port}")
    server = make_server("127.0.0.1", port, create_app(installation), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made = House(installation)
    yield made
    server.shutdown()
    server.server_close()
    made.close()
    installation.close()


def signed_in(page: Page, house: House) -> Page:
    page.goto(f"{house.installation.settings.url}/signin?next={house.url}")
    page.fill("#email", MARA)
    page.fill("#password", PASSWORD)
    page.click("button.primary")
    page.wait_for_url(f"**{house.url}")
    return page


@pytest.mark.parametrize("scripts", [True, False])
def test_the_page_follows_a_test_to_its_end(
    open_page: OpenPage, live: House, scripts: bool
) -> None:
    server = live.server()
    server.then("RCPT kunde@example.org", REFUSAL)
    live.connect(server, from_email="shop@lindenhof.example")
    page = signed_in(open_page(scripts=scripts), live)
    page.fill("#to", "kunde@example.org")
    page.get_by_role("button", name="Send Email").click()
    page.wait_for_url(f"**{live.url}/*")
    if scripts:
        page.evaluate("window.stays = true")
    live.work()
    expect(page.locator("#test h2")).to_have_text("The test mail was not sent", timeout=20_000)
    expect(page.locator("#test code.words")).to_have_text(REFUSAL)
    if scripts:
        assert page.evaluate("window.stays"), "swapped, not loaded again"
        expect(page.get_by_role("status")).to_have_text("The test mail was not sent")
        expect(page.get_by_role("button", name="Copy the debug log")).to_be_visible()
        assert page.locator("use").evaluate_all(
            "uses => uses.every(use => document.querySelector(use.getAttribute('href')))"
        )
        assert axe(page) == []
