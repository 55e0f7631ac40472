"""Linking a mailbox as a person does it, at the stand-in for Microsoft, over its own certificates:
site, registration, One-Click Setup, From, test mail, a mail by SMTP, and both in the inbox."""

import re
import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.faults.rig import House, wait_for
from tests.rig.browser import OpenPage, axe
from tests.rig.sandbox import Sandbox

PASSWORD = "correct horse battery"
ORDERS = "orders@contoso.example"
GENERAL = "/sites/lindenhof-shop/settings/general"
TEST = "/sites/lindenhof-shop/tools/test"

LANGUAGES = [
    pytest.param(
        {"locale": "en-US", "width": 1400, "dark": False},
        {
            "linked": "linked",
            "tested": "The test mail is with Microsoft",
            "connected": "Connected as",
            "held": "Needs re-authorization",
        },
        id="en",
    ),
    pytest.param(
        {"locale": "zh-CN", "width": 390, "dark": True},
        {"linked": "已", "tested": "Microsoft", "connected": "已连接", "held": "授权"},
        id="zh",
    ),
]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


@pytest.fixture
def house(tmp_path: Path, sandbox: Sandbox) -> Iterator[House]:
    sandbox.reset()
    made = House(tmp_path / "instance", "", environment_more=sandbox.environment)
    made.start()
    yield made
    made.stop()


@dataclass
class Person:
    """Somebody at a browser, with a site whose settings are open."""

    page: Page
    house: House
    sandbox: Sandbox
    login: dict[str, str]

    def clean(self) -> None:
        self.page.wait_for_load_state("load")
        assert axe(self.page) == []

    def save_and_sign_in(self, account: str = ORDERS, decision: str = "accept") -> None:
        """Three clicks: the button, the account, the consent (which comes once)."""
        self.page.click("button[name=then][value=authorize]:visible")
        self.page.click(f"button[name=account]:has-text('{account}')")
        if decision != "accept" or self.page.locator("button[name=decision][value=accept]").count():
            self.page.click(f"button[name=decision][value={decision}]")
        self.page.wait_for_url(re.compile("/settings/general"))

    def send_test(self) -> None:
        self.page.goto(TEST)
        self.page.fill("[name=to]", "mara@agentur.example")
        self.page.click("main form .save button")
        self.page.wait_for_url(re.compile("/tools/test/"))

    def hand_in(self, subject: str) -> None:
        with smtplib.SMTP("127.0.0.1", self.house.smtp) as client:
            client.login(self.login["username"], self.login["password"])
            client.send_message(a_mail(subject))

    def arrived(self, subject: str) -> list[dict[str, Any]]:
        return [mail for mail in self.sandbox.mails() if mail["subject"] == subject]


@pytest.fixture
def somebody(house: House, open_page: OpenPage, sandbox: Sandbox) -> Any:
    def arrive(**look: Any) -> Person:
        house.made("admin", "create", "mara@agentur.example", "--password-stdin",
                   stdin=PASSWORD.encode())  # fmt: skip
        house.made("site", "create", "Lindenhof Shop", "--url", "https://lindenhof.example")
        login = house.made("credential", "create", "lindenhof-shop", "--kind", "smtp")
        page = open_page(base_url=f"http://localhost:{house.http}", **look)
        page.goto("/signin")
        page.fill("[name=email]", "mara@agentur.example")
        page.fill("[name=password]", PASSWORD)
        page.click(".save button")
        return Person(page, house, sandbox, login)

    return arrive


def a_mail(subject: str) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = subject
    mail["From"] = "WordPress <wordpress@lindenhof.example>"
    mail["To"] = "Li Wen <li.wen@youxiang.example>"
    mail.set_content("Thank you\n")
    return mail


def add_shared_app(person: Person) -> None:
    page = person.page
    page.goto(GENERAL)
    page.click("main a[href*='/settings/microsoft-apps/new']")
    person.clean()
    page.fill("[name=name]", "Agency app")
    page.select_option("[name=cloud]", "custom")
    page.fill("[name=client_id]", person.sandbox.client_id)
    page.fill("[name=client_secret]", person.sandbox.client_secret)
    page.click("main form .save button")
    expect(page.locator(".notice.good")).to_be_visible()
    person.clean()
    assert person.sandbox.client_secret not in page.content()


@pytest.mark.parametrize(("look", "words"), LANGUAGES)
def test_from_a_new_site_to_mail_that_left_through_microsoft(
    somebody: Any, look: dict[str, Any], words: dict[str, str]
) -> None:
    person: Person = somebody(**look)
    page = person.page
    add_shared_app(person)

    page.goto(GENERAL)
    person.clean()
    person.save_and_sign_in()
    expect(page.locator(".notice.good")).to_contain_text(words["linked"])
    expect(page.locator("[name=from_email]")).to_have_value(ORDERS)
    expect(page.locator("main")).to_contain_text(words["connected"])
    person.clean()

    person.send_test()
    expect(page.locator(".notice.good")).to_contain_text(words["tested"], timeout=20_000)
    person.clean()
    page.goto(TEST)
    person.clean()

    person.hand_in("订单 20431 已确认")
    wait_for(lambda: person.arrived("订单 20431 已确认"), "the mail")
    assert len(person.sandbox.mails()) == 2
    page.goto("/sites/lindenhof-shop/log")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.click("a.name:has-text('20431')")
    expect(page.locator(".time")).to_contain_text("202")
    person.clean()
    page.goto(f"{person.sandbox.inbox}/")
    expect(page.locator("main")).to_contain_text("订单 20431 已确认")
    person.clean()

    page.goto(GENERAL)
    page.click("main a[href$='/unlink']")
    person.clean()
    page.click("main form button.danger")
    expect(page.locator("button[name=then][value=authorize]:visible")).to_be_visible()
    person.clean()


def test_the_same_with_a_registration_of_the_sites_own(somebody: Any) -> None:
    person: Person = somebody()
    page, own = person.page, person.sandbox.single_tenant
    page.goto(GENERAL)
    page.uncheck("[name=outlook-one_click]")
    page.select_option("[name=outlook-app-cloud]", "custom")
    page.select_option("[name=outlook-app-account_type]", "tenant")
    page.fill("[name=outlook-app-tenant]", own["tenant"])
    page.fill("[name=outlook-app-client_id]", own["client_id"])
    page.fill("[name=outlook-app-client_secret]", own["tenant"])
    page.click("main form .save button")
    expect(page.locator(".notice.bad")).to_contain_text("Secret ID")
    person.clean()
    page.fill("[name=outlook-app-client_secret]", own["client_secret"])
    page.click("main form .save button")
    expect(page.locator(".notice.good")).to_contain_text("Settings saved")
    person.clean()
    person.save_and_sign_in("ann@contoso.example")
    expect(page.locator("[name=from_email]")).to_have_value("ann@contoso.example")
    person.send_test()
    expect(page.locator(".notice.good")).to_contain_text("Microsoft", timeout=20_000)
    (mail,) = person.sandbox.mails()
    assert (mail["account"], mail["client_id"]) == ("ann@contoso.example", own["client_id"])
