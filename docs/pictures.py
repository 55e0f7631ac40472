"""Takes the pictures of the documentation anew: `.venv/bin/python -m docs.pictures`

With the word `tour` only those of the tour, which are pictures of the demo. For the others it
starts an installation of its own in a temporary folder, with a mail server beside it that stands in
for every host named here, and the sandbox for Microsoft; nothing goes over the network. Needs
Chromium and a Chinese font.
"""

import base64
import logging
import os
import re
import signal
import smtplib
import ssl
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from playwright.sync_api import Browser, Page, sync_playwright

from docs.palette import shrink
from tests.faults.rig import House, wait_for
from tests.rig.browser import provide_chromium
from tests.rig.ports import free_port
from tests.rig.sandbox import Sandbox
from tests.test_demo import TOLD, Demo

PICTURES = Path(__file__).parent / "pictures"
EMAIL = "mara@agentur.example"
PASSWORD = "four words are enough"  # noqa: S105  (of an installation that lives for minutes)


@dataclass(frozen=True, kw_only=True)
class Who:
    """Somebody who signs in."""

    email: str
    password: str


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a page is looked at."""

    locale: str = "en-GB"
    width: int = 1400
    dark: bool = False


MARA = Who(email=EMAIL, password=PASSWORD)
TO_THE_STAND_IN = """\
import os, socket
_connect = socket.create_connection
def _to_the_stand_in(address, *arguments, **named):
    if address[0] in os.environ["PICTURES_HOSTS"].split():
        address = ("127.0.0.1", int(os.environ["PICTURES_PORT"]))
    return _connect(address, *arguments, **named)
socket.create_connection = _to_the_stand_in
"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A site of the pictures, and the mailbox it sends with.

    Without a host it has none at first; where there is a sender, it is linked in the browser.
    """

    name: str
    url: str
    host: str = ""
    sender: str = ""
    nickname: str = ""


SHOP = Sample(
    name="Lindenhof Shop",
    url="https://lindenhof.example",
    sender="orders@lindenhof.example",
)
BOOKS = Sample(
    name="Buchladen am Tor",
    url="https://buchladen-am-tor.example",
    host="smtp.buchladen-am-tor.example",
    sender="laden@buchladen-am-tor.example",
    nickname="Hosting mail",
)
HOTEL = Sample(
    name="Hotel Enzian",
    url="https://hotel-enzian.example",
    host="smtp.office365.com",
    sender="empfang@hotel-enzian.example",
    nickname="Office mailbox",
)
SCHOOL = Sample(
    name="青山音乐学校",
    url="https://qingshan.example",
    host="smtp.qingshan.example",
    sender="office@qingshan.example",
    nickname="School mail",
)
CLUB = Sample(name="Ruderverein 1908", url="https://ruderverein.example")
SAMPLES = (SHOP, BOOKS, HOTEL, SCHOOL, CLUB)
ACCOUNT_NAME = "Lindenhof Bestellungen"
NOT_THE_ACCOUNT = "service@lindenhof.example"

GENERAL = "/sites/lindenhof-shop/settings/general"
TEST = "/sites/lindenhof-shop/tools/test"
PARTLY = "Your order 4711 is on its way"
MAILS = (
    (SCHOOL, "春季课程报名确认", "li.wei@example.org"),
    (SHOP, "Reset your password", "j.okafor@example.net"),
    (SHOP, "Your order 4706 is on its way", "anna.weber@example.org"),
    (HOTEL, "Your booking, 3 to 6 December", "c.moreau@example.com"),
    (SCHOOL, "钢琴课时间调整通知", "zhang.min@example.org"),
    (SHOP, "Your order 4709 has been received", "t.nowak@example.net"),
    (CLUB, "Registration for the winter training", "p.larsen@example.org"),
    (SHOP, "New message from the contact form", "team@lindenhof.example"),
    (HOTEL, "New enquiry: two rooms at Easter", "empfang@hotel-enzian.example"),
    (BOOKS, PARTLY, "m.rossi@example.org, depot@example.com"),
    (BOOKS, "The book you asked for has come in", "busy@example.com"),
)


class StandIn:
    """A mail server with a few whims: it greylists, and it knows not every recipient."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    async def auth_PLAIN(self, server: SMTP, words: list[str]) -> AuthResult:
        """Refuse the mailbox whose password no longer counts, in Microsoft's words."""
        login = base64.b64decode(words[1]).split(b"\0")[1].decode()
        if login == HOTEL.sender:
            refusal = (
                "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled "
                "for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information."
            )
            return AuthResult(success=False, handled=False, message=refusal)
        return AuthResult(success=True)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.seen[address] += 1
        if address == "depot@example.com":
            return "550 5.1.1 <depot@example.com>: no such mailbox here"
        if address == "busy@example.com" or (address[0] == "m" and self.seen[address] == 1):
            return f"451 4.7.1 <{address}>: greylisted, try again in a minute"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        return f"250 2.0.0 Ok: queued as {4_811_000 + sum(self.seen.values()):X}B2"


def a_house(folder: Path, port: int, certificates: trustme.CA, sandbox: Sandbox) -> House:
    """An installation whose connections to the hosts above lead to the stand-ins."""
    (folder / "sitecustomize.py").write_text(TO_THE_STAND_IN)
    bundle = folder / "ca.pem"
    bundle.write_bytes(certificates.cert_pem.bytes() + Path(sandbox.ca).read_bytes())
    return House(
        folder / "instance",
        "",
        environment_more={
            **sandbox.environment,
            "POSTROOM_CA_BUNDLE": str(bundle),
            "PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", ""))),
            "PICTURES_PORT": str(port),
            "PICTURES_HOSTS": " ".join(sample.host for sample in SAMPLES if sample.host),
        },
    )


def a_server(certificates: trustme.CA) -> Controller:
    """The stand-in, with STARTTLS and a login."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    hosts = [sample.host for sample in SAMPLES if sample.host]
    certificates.issue_cert(*hosts).configure_cert(context)
    return Controller(
        StandIn(),
        hostname="127.0.0.1",
        port=free_port(),
        tls_context=context,
        require_starttls=True,
        auth_required=True,
        auth_exclude_mechanism=["LOGIN"],
    )


def furnish(house: House) -> dict[str, tuple[str, str]]:
    """Sites with logins and connections; the login of each, by the site's name."""
    logins = {}
    for sample in SAMPLES:
        made = house.made("site", "create", sample.name, "--url", sample.url)
        login = house.made("credential", "create", made["slug"], "--kind", "smtp")
        logins[sample.name] = login["username"], login["password"]
        if sample.host:
            house.made(
                "connection", "create", made["slug"], "--mailer", "smtp", "--primary",
                "--name", sample.nickname,
                "--set", f"host={sample.host}", "--set", f"username={sample.sender}",
                "--set", "password=-", "--from-email", sample.sender,
                "--from-name", sample.name, "--per-minute", "30",
                stdin=b"not a secret\n",
            )  # fmt: skip
    return logins


def link(page: Page, sandbox: Sandbox) -> None:
    """A registration for all sites, and the shop's mailbox linked by it, as a person does it."""
    account = {"address": SHOP.sender, "name": ACCOUNT_NAME}
    sandbox.session().post(f"{sandbox.inbox}/control/accounts", json=account).raise_for_status()
    page.goto(GENERAL)
    page.click("main a[href$='/settings/microsoft-apps/new']")
    page.fill("[name=name]", "Agentur Mara")
    page.select_option("[name=cloud]", "custom")
    page.fill("[name=client_id]", sandbox.client_id)
    page.fill("[name=client_secret]", sandbox.client_secret)
    ends = datetime.now(UTC).date() + timedelta(days=702)
    page.fill("[name=secret_expires_on]", ends.isoformat())
    page.click("main form .save button")
    page.goto(GENERAL)
    page.click("button[name=then][value=authorize]:visible")
    page.click(f"button[name=account]:has-text('{SHOP.sender}')")
    page.click("button[name=decision][value=accept]")
    page.wait_for_url(re.compile(GENERAL))


def fail_a_test(page: Page) -> None:
    """A test mail from an address that the account may not send as; its page is left open."""
    page.goto(GENERAL)
    page.fill("[name=from_email]", NOT_THE_ACCOUNT)
    page.click("main form .save button:not([name=then])")
    page.goto(TEST)
    page.fill("[name=to]", EMAIL)
    page.click("main form .save button")
    page.locator("#test", has_text="ErrorSendAsDenied").wait_for()


def hand_in(house: House, logins: dict[str, tuple[str, str]]) -> None:
    """The mails, each as its site would hand it in."""
    for sample, subject, to in MAILS:
        mail = EmailMessage()
        mail["From"] = f"wordpress@{sample.url.removeprefix('https://')}"
        mail["To"], mail["Subject"] = to, subject
        mail.set_content(f"{subject}.\n\nYou get this mail because you wrote to {sample.name}.\n")
        mail.add_alternative(
            f"<h2>{subject}</h2><p>Good morning, your parcel left our house today. It should be "
            f"with you within two days.</p><p>{sample.name}</p>",
            subtype="html",
        )
        with smtplib.SMTP("127.0.0.1", house.smtp) as client:
            client.login(*logins[sample.name])
            client.send_message(mail)


def state_of(house: House, subject: str) -> str:
    """How far a mail has come."""
    found = [one for one in house.made("message", "list") if one["subject"] == subject]
    return str(found[0]["state"])


def signed_in(browser: Browser, url: str, who: Who, look: Look) -> Page:
    """A page of somebody who may see everything."""
    context = browser.new_context(
        base_url=url,
        locale=look.locale,
        viewport={"width": look.width, "height": 800},
        color_scheme="dark" if look.dark else "light",
    )
    page = context.new_page()
    page.goto("/signin")
    page.fill("[name=email]", who.email)
    page.fill("[name=password]", who.password)
    page.press("[name=password]", "Enter")
    page.wait_for_url(lambda url: "signin" not in url)
    return page


def take(page: Page, name: str, path: str, height: int = 800) -> None:
    """One picture of what is in view."""
    width = page.viewport_size["width"] if page.viewport_size else 1400
    page.set_viewport_size({"width": width, "height": height})
    page.goto(path)
    file = PICTURES / f"{name}.png"
    page.screenshot(path=file, animations="disabled")
    shrink(file)


def take_all(browser: Browser, page: Page, house: House) -> None:
    """Every picture that the documentation shows, but for the tour."""
    mails = {one["subject"]: one for one in house.made("message", "list")}
    partly = mails[PARTLY]
    message = f"/sites/{partly['site']}/log/{partly['id']}"
    take(page, "board", "/")
    take(page, "general", GENERAL, height=1600)
    take(page, "log", "/log", height=720)
    take(page, "message", message)
    url = f"http://localhost:{house.http}"
    dark = signed_in(browser, url, MARA, Look(dark=True))
    take(dark, "board-dark", "/", height=600)
    chinese = signed_in(browser, url, MARA, Look(locale="zh-CN", width=390))
    take(chinese, "board-zh", "/")
    fail_a_test(page)
    take(page, "test", page.url, height=910)


def take_pages(browser: Browser, undo: ExitStack) -> None:
    """Start an installation and what it sends by, and take its pictures."""
    folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="pictures-")))
    certificates = trustme.CA()
    server = a_server(certificates)
    server.start()
    undo.callback(server.stop)
    sandbox = undo.enter_context(Sandbox())
    house = a_house(folder, server.port, certificates, sandbox)
    house.command("migrate")
    house.command("admin", "create", EMAIL, "--password-stdin", stdin=PASSWORD.encode())
    logins = furnish(house)
    house.start()
    undo.callback(house.stop)
    page = signed_in(browser, f"http://localhost:{house.http}", MARA, Look())
    link(page, sandbox)
    hand_in(house, logins)
    # The greylisted recipient is tried again after a minute.
    wait_for(lambda: state_of(house, PARTLY) == "failed", "the second attempt", seconds=120)
    take_all(browser, page, house)


def take_tour(browser: Browser, undo: ExitStack) -> None:
    """Start the demo as a newcomer does, and walk through it."""
    folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="pictures-")))
    demo = Demo(folder)
    demo.start()
    undo.callback(demo.end, signal.SIGTERM)
    told = TOLD.search(demo.said())
    assert told
    page = signed_in(browser, demo.url, Who(email=told[1], password=told[2]), Look(width=1200))
    page.goto("/sites/pinestone-books/settings/alerts")
    incident = page.locator("main a[href*='/incidents/']").first
    wait_for(lambda: page.reload() and incident.count(), "the incident")
    incident_path = incident.get_attribute("href") or ""
    take(page, "tour-board", "/", height=760)
    take(page, "tour-incident", incident_path, height=980)
    page.goto("/sites/lindenhof-shop/log")
    held = page.locator("main a", has_text="Newsletter Nikolaus").filter(has_not_text="Entwurf")
    take(page, "tour-held", held.first.get_attribute("href") or "", height=1200)
    take(page, "tour-calendar", "/settings/calendar", height=520)


def main() -> None:
    """Start everything, take the pictures, stop everything."""
    PICTURES.mkdir(exist_ok=True)
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    with ExitStack() as undo:
        playwright = undo.enter_context(sync_playwright())
        chromium = provide_chromium(Path(playwright.chromium.executable_path))
        if chromium is None:
            sys.exit("There is no Chromium. On Debian and Ubuntu: apt-get install chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--disable-lcd-text"])
        undo.callback(browser.close)
        if "tour" not in sys.argv[1:]:
            take_pages(browser, undo)
        take_tour(browser, undo)


if __name__ == "__main__":
    main()
