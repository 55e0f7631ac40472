"""The pages with the longest things that people give them, on screens of every width."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from werkzeug.serving import make_server

from tests.factories import (
    PASSWORD,
    a_connection,
    a_lane,
    a_message,
    a_site,
    a_time,
    a_user,
    an_installation,
)
from tests.rig.browser import OpenPage, axe
from webapp import create_app
from webapp.connections.models import Health
from webapp.delivery.models import State

LONG = "W" * 300
HOST = "www.tierarztpraxis-oeztuerk.example"
WIDTHS = (1400, 1050, 900, 390, 320)


@dataclass(frozen=True, kw_only=True)
class Live:
    """A dashboard that answers on a port, and the pages of it to look at."""

    url: str
    paths: tuple[str, ...]


@pytest.fixture
def live(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Live]:
    port = free_port()
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    made = an_installation(url, tmp_path, http_listen=f"127.0.0.1:{port}")
    with made.db.write() as session:
        a_user(session, email="mara@agentur.example", name=LONG[:200], is_admin=True)
        site = a_site(session, name=LONG[:200], slug="long", url=f"https://{HOST}/{LONG[:100]}")
        words = f"535 {LONG} 5.7.139 Authentication unsuccessful, " * 5
        lane = a_lane(
            session,
            is_blocked=True,
            blocked_since=a_time(),
            blocked_kind=Health.NEEDS_REAUTHORISATION,
            blocked_words=words,
        )
        connection = a_connection(session, site, lane=lane, settings={"host": f"{LONG}.example"})
        mail = a_message(
            session,
            site,
            connection=connection,
            state=State.FAILED,
            subject=LONG,
            to=(f"{LONG[:64]}@{HOST}", "b@example.org"),
            last_words=words,
        )
        short = a_site(session, name="Galerie", slug="short", url=f"https://{HOST}")
        a_connection(session, short, health=Health.FAILING, last_words=words)
        paths = (
            "/",
            f"/log?q={LONG[:150]}",
            "/sites/long/log",
            "/queue?status=failed",
            f"/sites/long/log/{mail.queue_id}",
            "/sites/long/settings/general",
            "/sites/long/credentials",
            "/api",
        )
    server = make_server("127.0.0.1", port, create_app(made), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Live(url=f"http://localhost:{port}", paths=paths)
    server.shutdown()
    thread.join()
    server.server_close()
    made.close()


def signed_in(open_page: OpenPage, live: Live, **look: Any) -> Page:
    page = open_page(base_url=live.url, **look)
    page.goto("/signin")
    page.fill("[name=email]", "mara@agentur.example")
    page.fill("[name=password]", PASSWORD)
    page.click(".save button")
    page.wait_for_url(f"{live.url}/")
    return page


@pytest.mark.parametrize("scripts", [True, False])
def test_nothing_scrolls_sideways(open_page: OpenPage, live: Live, scripts: bool) -> None:
    page = signed_in(open_page, live, scripts=scripts)
    for path in live.paths:
        page.goto(path)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (path, width)


@pytest.mark.parametrize("width", [1400, 1050, 390])
def test_the_address_of_a_site_breaks_at_its_signs_only(
    open_page: OpenPage, live: Live, width: int
) -> None:
    page = signed_in(open_page, live, width=width)
    lines = (
        page.locator("tr", has_text="Galerie")
        .locator(".sub2")
        .evaluate(
            """node => {
          const text = node.firstChild, lines = [];
          for (let at = 0; at < text.length; at++) {
            const range = document.createRange();
            range.setStart(text, at); range.setEnd(text, at + 1);
            const top = Math.round(range.getBoundingClientRect().top);
            if (!lines.length || lines.at(-1).top !== top) lines.push({ top, text: "" });
            lines.at(-1).text += text.data[at];
          }
          return lines.map(line => line.text);
        }"""
        )
    )
    assert "".join(lines) == HOST
    assert all(line.endswith(("-", ".")) for line in lines[:-1]), lines


def test_a_stacked_row_of_the_log_begins_at_its_edge(open_page: OpenPage, live: Live) -> None:
    page = signed_in(open_page, live, width=390)
    page.goto("/sites/long/log")
    row, cell = (page.locator(f"tbody {part}").first.bounding_box() for part in ("tr", "td.s"))
    assert row is not None
    assert cell is not None
    assert cell["x"] - row["x"] < 20


def test_without_script_no_empty_line_is_left_where_copy_would_be(
    open_page: OpenPage, live: Live
) -> None:
    page = signed_in(open_page, live, scripts=False)
    page.goto("/sites/long/credentials")
    page.click("main form button[type=submit]")
    assert not page.locator(".fold .cap").first.is_visible()


def test_the_errors_of_a_form_are_large_enough_to_be_hit(open_page: OpenPage, live: Live) -> None:
    page = signed_in(open_page, live)
    page.goto("/sites/new")
    page.fill("[name=url]", "nonsense")
    page.fill("[name=admin_email]", "nonsense")
    page.click(".save button")
    assert page.locator("#errors li").count() == 3
    assert axe(page) == []
