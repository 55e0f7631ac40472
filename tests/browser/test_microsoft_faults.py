"""Every way in which the link and a send can fail at the stand-in for Microsoft, as the page says
it: what happened, Microsoft's own code, and the way out."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import expect

from tests.browser.test_microsoft_journey import GENERAL, Person, add_shared_app
from tests.faults.rig import wait_for
from tests.rig.browser import OpenPage
from tests.rig.sandbox import Sandbox
from webapp import config
from webapp.delivery.models import Lane
from webapp.installation import open_installation

# The fixtures of the journey, for a sandbox whose tokens are good for a moment only: Postroom then
# asks for a new one with every mail, and meets what the token endpoint is told to say.
from tests.browser.test_microsoft_journey import house, somebody  # noqa: F401  # isort: skip

MOMENT = 3
"""Seconds."""

AT_SIGN_IN = [
    ("denied", "AADSTS65004", "The permission was not given"),
    ("admin_needed", "AADSTS90094", "An administrator has to approve the app"),
    ("reduced_consent", "Mail.Send", "permission"),
    ("account_disabled", "AADSTS50057", "The account is disabled"),
    ("wrong_secret", "AADSTS7000215", "The Application Password is not the right one"),
    ("expired_secret", "AADSTS7000222", "The Application Password has expired"),
    ("wrong_cloud", "AADSTS900382", "The account lives in another Microsoft cloud"),
    ("token_unavailable", "AADSTS90033", "sign-in service is busy"),
]
AT_RENEWAL = [
    ("revoked_grant", "AADSTS50173", "Microsoft has ended the link"),
    ("mfa_required", "AADSTS50076", "Microsoft wants a second proof of identity"),
    ("consent_withdrawn", "AADSTS65001", "The app has no permission to send"),
    ("expired_secret", "AADSTS7000222", "The Application Password has expired"),
]
AT_SENDING = [
    ("send_as_denied", "ErrorSendAsDenied", "Microsoft does not let"),
    ("size_exceeded", "ErrorMessageSizeExceeded", "The mail is too large for Microsoft"),
    ("server_error", "ErrorInternalServerError", "does not say whether the mail went out"),
    ("sent_504", "504", "does not say whether the mail went out"),
    ("not_sent_200", "200", "does not say whether the mail went out"),
    ("dropped_after", "", "answer"),
    ("access_denied", "ErrorAccessDenied", "The permission to send is missing"),
]
"""In this order: the last one stops the mailbox until it is linked again."""
SLOWING_DOWN = [
    ("throttled", "ApplicationThrottled", "Microsoft asks to slow down"),
    ("unavailable", "ErrorServerBusy", "Microsoft asks to slow down"),
    ("quota_exceeded", "ErrorSubmissionQuotaExceeded", "The mailbox has sent as much"),
]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(lasts=MOMENT) as running:
        yield running


def linked(person: Person) -> None:
    add_shared_app(person)
    person.page.goto(GENERAL)
    person.save_and_sign_in()
    expect(person.page.locator(".notice.good")).to_contain_text("is linked")


def test_each_refusal_at_sign_in_is_told_where_it_began(
    somebody: Any,  # noqa: F811
) -> None:
    person: Person = somebody()
    page = person.page
    add_shared_app(person)
    for fault, code, sentence in AT_SIGN_IN:
        person.sandbox.reset()
        page.goto(GENERAL)
        if fault == "denied":
            person.save_and_sign_in(decision="cancel")
        else:
            person.sandbox.fault(fault)
            person.save_and_sign_in()
        notice = page.locator("main .notices")
        expect(notice).to_contain_text(code)
        expect(notice).to_contain_text(sentence)
        if fault.endswith("_secret"):  # nobody can sign in before it is put right
            person.clean()
            page.click("main a:has-text('Open the registration')")
            save_the_secret_again(person)
            continue
        expect(page.locator("button[name=then][value=authorize]:visible")).to_be_visible()
        person.clean()
    person.sandbox.reset()
    page.goto(GENERAL)
    person.save_and_sign_in()
    expect(page.locator(".notice.good")).to_contain_text("is linked")


def test_each_refusal_of_a_renewal_holds_the_mail_and_says_why(
    somebody: Any,  # noqa: F811
) -> None:
    person: Person = somebody()
    page = person.page
    linked(person)
    for fault, code, sentence in AT_RENEWAL:
        person.sandbox.fault(fault)
        time.sleep(MOMENT)  # the token at hand is good until then, and would be used
        person.send_test()
        result = page.locator("#test")
        expect(result).to_contain_text(sentence, timeout=20_000)
        expect(result).to_contain_text(code)
        person.clean()
        page.goto(GENERAL)
        expect(page.locator("main")).to_contain_text(sentence)
        expect(page.locator("main")).to_contain_text(code)
        person.clean()
        page.goto("/")
        state = "Failing" if fault.endswith("_secret") else "Needs re-authorization"
        expect(page.locator(".board")).to_contain_text(state)
        person.sandbox.clear()
        before = len(person.sandbox.mails())
        page.goto(GENERAL)
        if fault.endswith("_secret"):
            page.click("main a:has-text('Open the registration')")
            save_the_secret_again(person)
        else:
            person.save_and_sign_in()
            expect(page.locator(".notice.good")).to_contain_text("is linked")
        until_sent(person, before)


def save_the_secret_again(person: Person) -> None:
    page = person.page
    page.click("main button[value^='remove:']")
    page.fill("[name=client_secret]", person.sandbox.client_secret)
    page.click("main form .save button")
    expect(page.locator(".notice.good")).to_be_visible()


def until_sent(person: Person, before: int) -> None:
    """What was held leaves by itself."""
    wait_for(lambda: len(person.sandbox.mails()) > before, "the mail that was held")


def test_each_refusal_of_a_mail_is_explained(somebody: Any) -> None:  # noqa: F811
    person: Person = somebody()
    page = person.page
    linked(person)
    for fault, code, sentence in AT_SENDING:
        person.sandbox.fault(fault, times=1)
        person.send_test()
        result = page.locator("#test")
        expect(result).to_contain_text(sentence, timeout=20_000)
        expect(result).to_contain_text(code)
        person.clean()
    page.goto(GENERAL)
    expect(page.locator("main")).to_contain_text("ErrorAccessDenied")


def test_being_asked_to_wait_is_told_and_a_slow_answer_is_waited_for(
    somebody: Any,  # noqa: F811
) -> None:
    person: Person = somebody()
    linked(person)
    for fault, code, sentence in SLOWING_DOWN:
        person.sandbox.fault(fault, times=1, retry_after=600)
        person.send_test()
        result = person.page.locator("#test")
        expect(result).to_contain_text(sentence, timeout=20_000)
        expect(result).to_contain_text(code)
        person.clean()
        let_time_pass(person)
    person.sandbox.clear()
    person.sandbox.fault("slow", milliseconds=2500)
    person.send_test()
    expect(person.page.locator("#test .notice")).to_be_visible()
    expect(person.page.locator(".notice.good")).to_contain_text("Microsoft", timeout=20_000)


def let_time_pass(person: Person) -> None:
    """What was asked to wait for is over."""
    settings = config.load(person.house.environment)
    with closing(open_installation(settings)) as installation, installation.db.write() as session:
        session.execute(sa.update(Lane).values(is_blocked=False, blocked_until=None))


def test_a_wrong_address_is_shown_by_microsoft_itself(
    open_page: OpenPage, sandbox: Sandbox, forgive: Callable[[str], None]
) -> None:
    page = open_page(base_url=sandbox.inbox)
    forgive("400")
    page.goto(sandbox.authorize_url(redirect_uri="http://localhost:8025/other"))
    expect(page.locator("main")).to_contain_text("AADSTS50011")
