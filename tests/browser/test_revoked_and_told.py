"""A link is revoked at the stand-in for Microsoft: its mail is held, the pages say so, and all
are told once, by the mailbox of the alerts and by a webhook. Linked again in the browser, the mail
leaves, and all are told once more."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import Page, expect
from werkzeug.serving import make_server

from tests.browser.test_narrow import Live, signed_in
from tests.factories import a_user, an_installation
from tests.incidents.hooks import Hook, is_genuine
from tests.microsoft.test_delivery import ORDERS, GraphPost
from tests.rig.browser import OpenPage, axe
from tests.rig.sandbox import SandboxThread
from webapp import create_app
from webapp.delivery.models import Outcome, State
from webapp.incidents.tell import Teller
from webapp.incidents.watch import Watch
from webapp.microsoft.models import Grant, Mailbox
from webapp.microsoft.service import grant_subject

ANN, MARA = "ann@contoso.example", "mara@agentur.example"
SYSTEM = "/settings/system"

CHINESE = {"locale": "zh-CN", "width": 390, "dark": True}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxThread]:
    with SandboxThread() as running:
        yield running


@dataclass
class House:
    """Postroom in this process: pages on a port, mail that is handed in, and what watches it."""

    post: GraphPost
    live: Live
    watch: Watch
    teller: Teller

    @property
    def slug(self) -> str:
        return self.post.slug

    def look(self) -> None:
        """More often than is needed: nobody may be told twice."""
        for _ in range(3):
            self.watch.round()
            self.teller.round()

    def forget_token(self, account: str) -> None:
        """As if the hour were over for which the access token at hand is good."""
        installation = self.post.installation
        with installation.db.write() as session:
            grant = session.scalars(
                sa.select(Grant).join(Mailbox).where(Mailbox.address == account)
            ).one()
            subject = grant_subject(grant.id)
            cache = json.loads(str(installation.keyring.unseal("grant", subject, str(grant.cache))))
            text = json.dumps(cache | {"AccessToken": {}})
            grant.cache = installation.keyring.seal("grant", subject, text)
            grant.version += 1

    def mails_of(self, account: str) -> list[dict[str, Any]]:
        """What an account has sent, the oldest first."""
        return [m for m in reversed(self.post.sandbox.mails()) if m["account"] == account]


@pytest.fixture
def house(tmp_path: Path, free_port: Callable[[], int], sandbox: SandboxThread) -> Iterator[House]:
    sandbox.reset()
    port = free_port()
    named = {name.removeprefix("POSTROOM_"): v for name, v in sandbox.environment.items()}
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    made = an_installation(url, tmp_path, http_listen=f"127.0.0.1:{port}", **named)
    with made.db.write() as session:
        a_user(session, email=MARA, is_admin=True)
    post = GraphPost(made, sandbox)
    server = make_server("127.0.0.1", port, create_app(made), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    teller = Teller(made, lambda: made.keyring, post.surroundings())
    yield House(post, Live(url=f"http://localhost:{port}", paths=()), Watch(made), teller)
    server.shutdown()
    thread.join()
    server.server_close()
    post.close()


def clean(page: Page) -> None:
    page.wait_for_load_state("load")
    assert axe(page) == []


def sign_in_at_microsoft(page: Page, account: str, back: str) -> None:
    """Three clicks: the button, the account, the consent (which comes once)."""
    page.click("button[name=then][value=authorize]:visible")
    page.click(f"button[name=account]:has-text('{account}')")
    if page.locator("button[name=decision][value=accept]").count():
        page.click("button[name=decision][value=accept]")
    page.wait_for_url(re.compile(back))


def tell_somebody(page: Page, channel: str, address: str) -> str:
    """Add a target on System; the key of a webhook."""
    page.goto(SYSTEM)
    page.check(f"[name=channel][value={channel}]")
    page.fill("[name=address]", address)
    page.click("form:has([name=address]) .save button")
    expect(page.locator("table").first).to_contain_text(address)
    return page.input_value("#hook-key") if channel == "webhook" else ""


def test_a_revoked_link_holds_mail_is_told_once_and_over_once_it_is_linked_again(
    open_page: OpenPage, house: House
) -> None:
    post, sandbox = house.post, house.post.sandbox
    post.link()
    page = signed_in(open_page, house.live)
    chinese = signed_in(open_page, house.live, **CHINESE)
    log, general = (f"/sites/{house.slug}/{name}" for name in ("log", "settings/general"))
    with Hook() as hook:
        page.goto(SYSTEM)
        page.check("[name='alert-mailer'][value=outlook]")
        sign_in_at_microsoft(page, ANN, f"{SYSTEM}#connection")
        expect(page.locator("[name='alert-from_email']")).to_have_value(ANN)
        clean(page)
        key = tell_somebody(page, "webhook", hook.url)
        tell_somebody(page, "email", MARA)

        house.forget_token(ORDERS)
        sandbox.revoke(ORDERS)
        post.hand_in(1)
        post.work()
        post.wait_for(lambda: post.lane().is_blocked and State.SENDING not in post.states())
        house.look()

        # The mail is held, and the pages of the site and the board say so.
        assert post.states() in ([State.QUEUED], [State.DEFERRED])
        for path in (log, general):
            page.goto(path)
            expect(page.locator(".notices")).to_contain_text("Needs re-authorization.")
        page.goto("/")
        row = page.locator("tr", has_text="Site 1")
        expect(row).to_contain_text("does not accept the link to the mailbox any more")
        expect(row).to_contain_text("1 mail is kept and goes out by itself")
        for path in ("/", log):
            chinese.goto(path)
            expect(chinese.locator("main")).to_contain_text("需要重新授权")
            clean(chinese)

        # Everybody was told, once.
        (call,) = hook.calls
        assert is_genuine(call, key)
        assert (call.facts["kind"], call.facts["occasion"]) == ("link-refused", "opened")
        assert (call.facts["code"][:6], call.facts["waiting"]) == ("AADSTS", 1)
        (mail,) = house.mails_of(ANN)
        assert mail["recipients"] == [MARA]
        assert f"{ORDERS} needs re-authorization" in mail["subject"]
        chinese.goto(call.facts["link"])
        expect(chinese.locator("main")).to_contain_text(ORDERS)
        clean(chinese)
        assert house.mails_of(ORDERS) == []

        page.goto(general)
        sign_in_at_microsoft(page, ORDERS, "/settings/general")
        expect(page.locator(".notice.good")).to_contain_text(
            f"{ORDERS} is linked. 1 waiting mail now leaves."
        )
        post.wait_for(lambda: post.states() == [State.SENT])
        house.look()

        # It left by itself, once, and everybody was told that, once.
        assert len(house.mails_of(ORDERS)) == 1
        assert post.attempts()[-1].outcome == Outcome.SENT
        opened, closed = hook.calls
        assert is_genuine(closed, key)
        assert (closed.facts["id"], closed.facts["occasion"]) == (opened.facts["id"], "closed")
        assert closed.facts["until"]
        _began, over = house.mails_of(ANN)
        assert over["recipients"] == [MARA]
        assert f"{ORDERS} may send again" in over["subject"]
        page.goto(closed.facts["link"])
        expect(page.locator(".notice.good").first).to_contain_text(f"{ORDERS} may send again")
        page.goto("/")
        expect(page.locator("tr", has_text="Site 1")).to_contain_text("Working")
        assert post.world.gaps() == 0
