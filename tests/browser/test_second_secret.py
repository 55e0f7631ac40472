"""A client secret that has expired, replaced through the second slot while mail waits for it."""

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import expect

from tests.browser.test_microsoft_journey import GENERAL, Person, add_shared_app
from tests.faults.rig import wait_for
from tests.rig.sandbox import Sandbox
from webapp import config
from webapp.delivery.models import Message, State
from webapp.installation import open_installation
from webapp.microsoft.models import OAuthApp

# The fixtures of the journey, for a sandbox whose tokens are good for a moment only: so each mail
# needs the secret.
from tests.browser.test_microsoft_journey import house, somebody  # noqa: F401  # isort: skip

MOMENT = 3
"""Seconds."""
NEXT = "The.Next~Secret_Of-This-Registration-01"
LOG = "/sites/lindenhof-shop/log"
LANGUAGES = [
    pytest.param(
        {"locale": "en-US", "width": 1400, "dark": False},
        {
            "expires": "The application password expires in 12 days",
            "refused": "Microsoft refuses the app registration",
            "wrong": "Microsoft does not take it",
            "used": "It is in use now. 1 linked connection goes on",
        },
        id="en",
    ),
    pytest.param(
        {"locale": "zh-CN", "width": 390, "dark": True},
        {"expires": "12", "refused": "Microsoft", "wrong": "AADSTS7000215", "used": "1"},
        id="zh",
    ),
]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(lasts=MOMENT) as running:
        yield running


def expires_in(person: Person, days: int) -> None:
    """The day of the stored secret, which a form takes only while it is ahead."""
    settings = config.load(person.house.environment)
    with closing(open_installation(settings)) as installation, installation.db.write() as session:
        day = (installation.db.now() + timedelta(days=days)).date()
        session.execute(sa.update(OAuthApp).values(secret_expires_on=day))


def states(person: Person) -> list[str]:
    settings = config.load(person.house.environment)
    with closing(open_installation(settings)) as installation, installation.db.read() as session:
        return list(session.scalars(sa.select(Message.state)))


@pytest.mark.parametrize(("look", "words"), LANGUAGES)
def test_an_expired_secret_is_followed_by_the_next_without_a_failed_mail(
    somebody: Any,  # noqa: F811
    look: dict[str, Any],
    words: dict[str, str],
) -> None:
    person: Person = somebody(**look)
    page, sandbox = person.page, person.sandbox
    add_shared_app(person)
    page.goto(GENERAL)
    person.save_and_sign_in()
    person.hand_in("first")
    wait_for(lambda: person.arrived("first"), "the first mail")

    expires_in(person, 12)
    page.goto(LOG)
    expect(page.locator(".notices")).to_contain_text(words["expires"])
    person.clean()
    for path in ("/settings/calendar", "/"):
        page.goto(path)
        expect(page.locator("table")).to_contain_text("12")
        person.clean()

    expires_in(person, -1)
    sandbox.fault("expired_secret", client_id=sandbox.client_id)
    time.sleep(MOMENT)  # the token at hand is good until then, and would be used
    for number in range(3):
        person.hand_in(f"held {number}")
    page.goto(GENERAL)
    way_out = page.locator("main a[href*='/settings/microsoft-apps/']:visible")
    main = page.locator("main")
    wait_for(
        lambda: (
            page.reload() is not None
            and words["refused"] in main.inner_text()
            and way_out.count() > 0
        ),
        "the refusal",
    )
    way_out.first.click()
    person.clean()

    sandbox.post(
        "applications",
        client_id=sandbox.client_id,
        client_secret=sandbox.client_secret,
        next_secret=NEXT,
    )
    page.fill("[name=next_secret]", "Not.The~Secret_Of-Anything-At-All-00000")
    page.click("main form .save button")
    expect(page.locator("#next_secret-error")).to_contain_text(words["wrong"])
    person.clean()
    page.fill("[name=next_secret]", NEXT)
    page.click("main form .save button")
    expect(page.locator(".notice.good")).to_contain_text(words["used"])
    assert NEXT not in page.content()
    person.clean()

    for number in range(3):
        wait_for(
            lambda subject=f"held {number}": person.arrived(subject),  # type: ignore[misc]
            "a mail that was held",
        )
    person.hand_in("after")
    wait_for(lambda: person.arrived("after"), "a mail by the new secret")
    page.goto("/")
    person.clean()
    wait_for(lambda: set(states(person)) == {State.SENT}, "every mail to be sent")
    assert all(count == 1 for count in sandbox.counts().values())
