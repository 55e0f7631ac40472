"""The whole way, as a newcomer goes it: first run, site, login, connection, a mail, the log."""

import re
import smtplib
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.faults.rig import House, Sink, wait_for
from tests.rig.browser import OpenPage, axe

PASSWORD = "correct horse battery"


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "instance", "")
    made.start()
    yield made
    made.stop()


LANGUAGES = [
    pytest.param(
        {"locale": "en-US", "width": 1400, "dark": False},
        {"empty": "No site yet", "saved": "Settings saved", "sent": "Sent", "wrong": "Not saved"},
        id="en",
    ),
    pytest.param(
        {"locale": "zh-CN", "width": 390, "dark": True},
        {"empty": "还没有站点", "saved": "设置已保存", "sent": "已发出", "wrong": "尚未保存"},
        id="zh",
    ),
]


@pytest.mark.parametrize(("look", "words"), LANGUAGES)
def test_from_the_first_start_to_the_mail_in_the_log(
    house: House, open_page: OpenPage, sink: Sink, look: dict[str, object], words: dict[str, str]
) -> None:
    found = re.search(r"http://\S+/setup\?\S+", house.log())
    assert found is not None
    base = f"http://localhost:{house.http}"
    page = open_page(base_url=base, **look)

    page.goto(found.group())
    clean(page)
    page.fill("[name=email]", "mara@agentur.example")
    page.fill("[name=name]", "Mara Lindner")
    page.fill("[name=password]", PASSWORD)
    page.fill("[name=again]", PASSWORD)
    page.click(".save button")
    expect(page.locator("main h2").first).to_contain_text(words["empty"])
    clean(page)

    page.click("main a.btn.primary >> nth=0")
    clean(page)
    page.fill("[name=name]", "Lindenhof Shop")
    page.fill("[name=url]", "https://lindenhof.example")
    page.click(".save button")
    expect(page).to_have_url(re.compile("/sites/lindenhof-shop/credentials"))
    clean(page)
    page.click("main form button[type=submit]")
    settings = page.locator("pre").first.text_content() or ""
    username, password = (
        re.search(rf"'{name}', '([^']+)'", settings).group(1)  # type: ignore[union-attr]
        for name in ("WPMS_SMTP_USER", "WPMS_SMTP_PASS")
    )
    clean(page)
    page.reload()
    assert password not in page.content()

    page.goto("/sites/lindenhof-shop/settings/general")
    page.check("[name=mailer][value=smtp]")
    page.fill("[name=from_email]", "not an address")
    page.fill("[name=smtp-port]", "70000")
    page.click(".save button")
    expect(page.locator(".notice.bad")).to_contain_text(words["wrong"])
    expect(page.locator("[name=from_email]")).to_have_value("not an address")
    expect(page.locator("[name=smtp-port]")).to_have_value("70000")
    clean(page)
    page.fill("[name=from_email]", "orders@lindenhof.example")
    page.fill("[name=smtp-host]", "127.0.0.1")
    page.check("[name=smtp-encryption][value=none]")
    page.fill("[name=smtp-port]", str(sink.port))
    page.uncheck("[name=smtp-authentication]")
    page.click(".save button")
    expect(page.locator(".notice.good")).to_contain_text(words["saved"])
    clean(page)

    with smtplib.SMTP("127.0.0.1", house.smtp) as client:
        client.login(username, password)
        client.send_message(a_mail("订单 20431 已确认"))
    wait_for(lambda: sink.arrived, "the mail")

    wait_for(lambda: is_sent(house), "the server's answer")
    page.goto("/sites/lindenhof-shop/log")
    expect(page.locator("tbody td.s")).to_contain_text(words["sent"])
    clean(page)
    page.fill("[name=q]", "20431")
    page.keyboard.press("Enter")
    page.click("a.name")
    expect(page.locator("h1")).to_contain_text("订单 20431 已确认")
    expect(page.locator(".time")).to_contain_text("250 2.0.0 taken")
    frame = page.frame_locator("iframe.paper")
    expect(frame.locator("h1")).to_have_text("Thank you")
    clean(page)
    for part in ("text", "headers", "raw", "attachments"):
        page.click(f"nav.parts a[href*='part={part}']")
        clean(page)

    page.goto("/")
    expect(page.locator(".board")).to_contain_text("Lindenhof Shop")
    clean(page)
    page.goto("/account")
    clean(page)


def is_sent(house: House) -> bool:
    return [mail["state"] for mail in house.made("message", "list")] == ["sent"]


def a_mail(subject: str) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = subject
    mail["From"] = "WordPress <wordpress@lindenhof.example>"
    mail["To"] = "Li Wen <li.wen@youxiang.example>"
    mail.set_content("Thank you\n")
    mail.add_alternative("<h1>Thank you</h1><script>alert(1)</script>", subtype="html")
    mail.add_attachment(b"%PDF-1.7", maintype="application", subtype="pdf", filename="AGB.pdf")
    return mail


def clean(page: Page) -> None:
    """Nothing for axe, and nothing scrolls sideways."""
    page.wait_for_load_state("networkidle")  # frames included: axe looks into them
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
