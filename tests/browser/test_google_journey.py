"""Linking a mailbox at Google as a person does it, at the stand-in: registration, One-Click Setup,
an alias as From, a test mail, and it lies in the inbox."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.faults.rig import House
from tests.rig.browser import OpenPage, axe
from tests.rig.sandbox import SandboxThread

PASSWORD = "correct horse battery"
INFO = "info@workshop.example"
SHOP = "shop@workshop.example"
GENERAL = "/sites/workshop/settings/general"


@pytest.fixture
def sandbox() -> Iterator[SandboxThread]:
    with SandboxThread() as running:
        yield running


@pytest.fixture
def house(tmp_path: Path, sandbox: SandboxThread) -> Iterator[House]:
    made = House(tmp_path / "instance", "", environment_more=sandbox.environment)
    made.start()
    yield made
    made.stop()


def test_from_a_new_site_to_mail_that_left_through_gmail(
    house: House, open_page: OpenPage, sandbox: SandboxThread
) -> None:
    house.made("admin", "create", "mara@agentur.example", "--password-stdin",
               stdin=PASSWORD.encode())  # fmt: skip
    house.made("site", "create", "Workshop", "--url", "https://workshop.example")
    page = open_page(base_url=f"http://localhost:{house.http}", locale="en-US")
    page.goto("/signin")
    page.fill("[name=email]", "mara@agentur.example")
    page.fill("[name=password]", PASSWORD)
    page.click(".save button")
    page.wait_for_load_state("load")

    page.goto(GENERAL)
    page.check("[name=mailer][value=gmail]")
    expect(page.locator("[name=outlook-one_click]")).to_be_hidden()
    page.click("main a[href*='/settings/google-registrations/new']:visible")
    page.fill("[name=name]", "Agency app")
    page.fill("[name=client_id]", sandbox.google["client_id"])
    page.fill("[name=client_secret]", sandbox.google["client_secret"])
    assert axe(page) == []
    page.click("main form .save button")
    expect(page.locator(".notice.good")).to_contain_text("Agency app is added.")

    page.check("[name=mailer][value=gmail]")
    page.click("button[name=then][value=authorize]:visible")
    page.click(f"button[name=account]:has-text('{INFO}')")
    page.click("button[name=decision][value=accept]")
    page.wait_for_url(re.compile("/settings/general"))
    expect(page.locator(".notice.good")).to_contain_text(f"{INFO} is linked.")
    page.click(f"button[value='from-alias:{SHOP}']:visible")
    expect(page.locator("[name=from_email]")).to_have_value(SHOP)
    assert axe(page) == []

    page.goto("/sites/workshop/tools/test")
    page.fill("[name=to]", "li.wen@youxiang.example")
    page.click("main form .save button")
    page.wait_for_url(re.compile("/tools/test/"))
    expect(page.locator(".notice.good")).to_contain_text("with Google", timeout=20_000)
    (mail,) = sandbox.mails()
    assert (mail["account"], mail["recipients"]) == (INFO, ["li.wen@youxiang.example"])
    assert f"<{SHOP}>" in sandbox.raw(mail["number"])
