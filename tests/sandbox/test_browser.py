"""The sandbox in a real browser: barriers, narrow screens, and the way through its pages."""

import pytest
from playwright.sync_api import expect

from tests.rig.browser import OpenPage, axe
from tests.rig.sandbox import SandboxThread
from tests.sandbox.conftest import Client
from tests.sandbox.test_faults import MIME, send


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (320, True)])
def test_the_pages_have_no_barriers(
    open_page: OpenPage, client: Client, width: int, dark: bool
) -> None:
    sandbox = client.sandbox
    send(client, client.link()["access_token"], MIME.replace(b"Order", b"Order" * 30))
    sandbox.fault("throttled", times=2, retry_after=7)
    address = sandbox.authorize_url(prompt="consent")
    page = open_page(width=width, dark=dark, base_url=sandbox.inbox)
    for path in (
        "/",
        f"/mails/{sandbox.mails()[0]['number']}",
        "/faults",
        f"/organizations/v2.0/adminconsent?{address.partition('?')[2]}",
        address,
    ):
        page.goto(path)
        assert axe(page) == [], path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    page.get_by_role("button", name="Ann Lee").click()
    expect(page.get_by_role("heading", name="Permissions requested")).to_be_visible()
    assert axe(page) == []


def test_a_person_cancels_without_typing(open_page: OpenPage, sandbox: SandboxThread) -> None:
    page = open_page()
    page.route("http://localhost:8025/**", lambda route: route.fulfill(body="back"))
    page.goto(sandbox.authorize_url())
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_url("**/oauth/microsoft/callback?error=access_denied**")
