"""A real Chromium for the tests, driven by Playwright, and axe to look for barriers on a page.

`page` is one English page on a wide light screen; `open_page` opens others. Both fail their test
when a page reports an error that the test did not announce with `forgive`.
"""

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

from tests.rig.absence import absent, on_ci

_NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome-stable",
    "google-chrome",
    "microsoft-edge",
)
_REMEDY = (
    "run `apt-get install chromium fonts-wqy-microhei`"
    " or `.venv/bin/python -m playwright install chromium`, or set TEST_CHROMIUM to its path"
)
_AXE = Path(__file__).parent / "axe" / "axe.min.js"
_RULES = ("wcag2a", "wcag2aa", "wcag21aa", "wcag22aa")
_TIMEOUT_MS = 10_000


def find_chromium(bundled: Path) -> Path | None:
    """`$TEST_CHROMIUM` if set, else one of the system, else Playwright's own (`bundled`)."""
    chosen = os.environ.get("TEST_CHROMIUM")
    for name in (chosen,) if chosen else _NAMES:
        if found := shutil.which(name):
            return Path(found)
    return bundled if not chosen and bundled.exists() else None


@functools.cache
def provide_chromium(bundled: Path) -> Path | None:
    """Find Chromium and a Chinese font, and where they are missing try to install them.

    Tried once in a process; the other test processes wait for the first that does it.
    """
    found = find_chromium(bundled)
    if (found and has_chinese_font()) or os.environ.get("TEST_CHROMIUM"):
        return found
    with _one_process_at_a_time():
        _install_what_is_missing(bundled)
    return find_chromium(bundled)


def _install_what_is_missing(bundled: Path) -> None:
    missing = ([] if find_chromium(bundled) else ["chromium"]) + (
        [] if has_chinese_font() else ["fonts-wqy-microhei"]
    )
    if missing and may_use_apt():
        install_by_apt(*missing)
    if not find_chromium(bundled):
        _attempt(sys.executable, "-m", "playwright", "install", "chromium", minutes=5)


def has_chinese_font() -> bool:
    """Without one every Chinese character is an empty box, and text has the wrong width."""
    if shutil.which("fc-list"):
        listed = subprocess.run(["fc-list", ":lang=zh"], capture_output=True, check=False)
        return bool(listed.stdout.strip())
    return any(Path("/usr/share/fonts").glob("**/wqy-*"))


def may_use_apt() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_by_apt(*packages: str) -> bool:
    """True when apt-get has seen to it that these packages are there."""
    wait = ("-o", "DPkg::Lock::Timeout=300")
    _attempt("apt-get", *wait, "update", minutes=5)  # an old list may still do
    return _attempt(
        "apt-get", *wait, "install", "-y", "--no-install-recommends", *packages, minutes=15
    )


def _attempt(*command: str, minutes: int) -> bool:
    print(f"tests: {' '.join(command)}", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=minutes * 60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@contextlib.contextmanager
def _one_process_at_a_time() -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"postroom-tests-{os.geteuid()}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running Chromium, for the tests of one module.

    Not for the whole session: while Playwright runs, its event loop counts as the running one of
    this thread, and `asyncio.run` in a later test would refuse. In a module that opens pages, put
    such a call on a thread of its own.
    """
    with sync_playwright() as playwright:
        executable = provide_chromium(Path(playwright.chromium.executable_path))
        if executable is None:
            required = on_ci() or os.environ.get("TEST_REQUIRE_BROWSER") == "1"
            absent("no Chromium", remedy=_REMEDY, required=required)
        launched = playwright.chromium.launch(executable_path=executable)
        yield launched
        launched.close()


class Complaints:
    """Errors that pages reported, less those that the test said would come."""

    def __init__(self) -> None:
        self._said: list[str] = []
        # The answer to a form with a mistake in it: the browser calls it an error, we do not.
        self._expected = ["the server responded with a status of 422"]

    def forgive(self, pattern: str) -> None:
        self._expected.append(pattern)

    def hear(self, page: Page) -> None:
        page.on("console", self._hear_console)
        page.on("pageerror", self._hear_error)

    def _hear_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._said.append(f"{message.text} ({message.location.get('url', '')})")

    def _hear_error(self, error: Error) -> None:
        self._said.append(f"uncaught: {error}")

    def unexpected(self) -> list[str]:
        return [
            said
            for said in self._said
            if not any(re.search(pattern, said) for pattern in self._expected)
        ]


@pytest.fixture
def complaints() -> Complaints:
    return Complaints()


@pytest.fixture
def forgive(complaints: Complaints) -> Callable[[str], None]:
    """Announce an error the pages of this test will report, as a regular expression."""
    return complaints.forgive


class OpenPage(Protocol):
    def __call__(
        self,
        *,
        locale: str = "en-GB",
        width: int = 1400,
        height: int = 900,
        dark: bool = False,
        scripts: bool = True,
        base_url: str | None = None,
    ) -> Page:
        """A page in a browser profile of its own: no cookies, nothing kept."""
        ...


@pytest.fixture
def open_page(browser: Browser, complaints: Complaints) -> Iterator[OpenPage]:
    """Opens pages by locale, size, colour scheme, with or without scripts."""
    with contextlib.ExitStack() as contexts:

        def opened(
            *,
            locale: str = "en-GB",
            width: int = 1400,
            height: int = 900,
            dark: bool = False,
            scripts: bool = True,
            base_url: str | None = None,
        ) -> Page:
            context = browser.new_context(
                locale=locale,
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                java_script_enabled=scripts,
                base_url=base_url,
            )
            contexts.callback(context.close)
            context.set_default_timeout(_TIMEOUT_MS)
            page = context.new_page()
            complaints.hear(page)
            return page

        yield opened
    said = complaints.unexpected()
    if said:
        pytest.fail("the pages reported errors:\n" + "\n".join(said), pytrace=False)


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """An English page, 1400 wide, light."""
    return open_page()


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One rule of axe that a page breaks, and the elements that break it."""

    rule: str
    impact: str
    words: str
    elements: tuple[str, ...]


def axe(page: Page) -> list[Violation]:
    """What axe finds on the page as it is now, by WCAG 2.2 A and AA; an empty list when clean."""
    # Evaluated through the debugger and not as a script element, so that a strict
    # Content-Security-Policy neither stops it nor has to be loosened for it.
    page.evaluate(_AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        "tags => axe.run(document, {runOnly: tags, resultTypes: ['violations']})", list(_RULES)
    )
    return [
        Violation(
            rule=violation["id"],
            impact=violation["impact"],
            words=violation["help"],
            elements=tuple(node["html"] for node in violation["nodes"]),
        )
        for violation in found["violations"]
    ]
