"""How quickly Settings > General opens, and how heavy it is.

    python benchmarks/settings_page.py [--count 50]

Asked for by somebody signed in, over a new connection each time, from the real web process: with
1 site and with 500. The weight is that of a browser that has kept nothing: requests and bytes on
the wire, headers included, counted by Chromium where there is one, and by following what the page
links to.
"""

import argparse
import http.client
import re
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import sqlalchemy as sa
from common import Bench, a_bench
from load import Login
from machine import free_port, heading, median, percentile, say, table, verdict
from playwright.sync_api import Error, sync_playwright

from tests.rig.browser import find_chromium
from webapp.sites.models import Site

BAR_MS, BAR_REQUESTS, BAR_BYTES = 20.0, 10, 100 * 1024


@dataclass(frozen=True, kw_only=True)
class Weight:
    """What a browser fetches for one page."""

    requests: int
    size: int


class Browser:
    """As much of a browser as is needed to sign in and to ask for a page."""

    def __init__(self, bench: Bench) -> None:
        self._port = bench.http[1]
        self._host = f"localhost:{self._port}"
        self.cookies: dict[str, str] = {}

    def sign_in(self, login: Login) -> None:
        """By the form, as people do."""
        _, page = self.request("GET", "/signin")
        token = re.search(rb'name="csrf_token"[^>]*value="([^"]+)"', page)
        if token is None:
            raise SystemExit("the sign-in page has no form")
        form = {
            "csrf_token": token[1].decode(),
            "email": login.username,
            "password": login.password,
        }
        status, _ = self.request("POST", "/signin", urlencode(form))
        if status not in {302, 303}:
            raise SystemExit(f"signing in was answered {status}")

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """Status and body."""
        response, content, _ = self._exchange(method, path, body)
        return response.status, content

    def first_byte(self, path: str) -> float:
        """Milliseconds from connecting to the first byte of the answer."""
        response, _, taken = self._exchange("GET", path)
        if response.status != 200:
            raise SystemExit(f"{path} was answered {response.status}")
        return taken

    def size(self, path: str) -> tuple[int, bytes]:
        """Bytes of the answer, headers included, and its body."""
        response, content, _ = self._exchange("GET", path)
        head = sum(len(name) + len(value) + 4 for name, value in response.getheaders())
        return head + len(content) + len("HTTP/1.1 200 OK\r\n\r\n"), content

    def _exchange(
        self, method: str, path: str, body: str | None = None
    ) -> tuple[http.client.HTTPResponse, bytes, float]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        headers = {
            "Host": self._host,
            "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()),
        }
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            headers["Origin"] = headers["Referer"] = f"http://{self._host}"
        begin = time.perf_counter()
        connection.request(method, path, body, headers)
        response = connection.getresponse()  # returns once the headers are there
        taken = (time.perf_counter() - begin) * 1000
        content = response.read()
        for cookie in response.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        connection.close()
        return response, content, taken


class Assets(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        given = dict(attrs)
        if tag == "link" and given.get("rel") in {"stylesheet", "icon", "preload"}:
            self.found.append(given.get("href") or "")
        elif tag in {"script", "img", "iframe"} and given.get("src"):
            self.found.append(given["src"] or "")


def main() -> None:
    """Measure, print; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    wanted = parser.parse_args()
    heading(f"Settings > General, signed in, {wanted.count} times")
    times: dict[int, list[float]] = {}
    with ExitStack() as stack:
        bench = stack.enter_context(a_bench())
        admin = bench.an_admin()
        site_id, _ = bench.a_site("Galerie Nord", sink=free_port())
        bench.start("web").wait_for_port(bench.http)
        with bench.installation.db.read() as session:
            path = f"/sites/{session.scalar(sa.select(Site.slug))}/settings/general"
        browser = Browser(bench)
        browser.sign_in(admin)
        for count in (1, 500):
            say(f"with {count} sites")
            while site_id < count:
                site_id, _ = bench.a_site(f"Site {site_id}")
            browser.first_byte(path)
            times[count] = [browser.first_byte(path) for _ in range(wanted.count)]
        weights = {"as linked": followed(browser, path)}
        if seen := by_chromium(bench, browser, path):
            weights["by Chromium"] = seen
    table(
        ["first byte, ms", "median", "p95"],
        [[f"{count} sites", median(each), percentile(each, 0.95)] for count, each in times.items()],
    )
    print()
    table(
        ["cold load", "requests", "bytes"],
        [[name, weight.requests, weight.size] for name, weight in weights.items()],
    )
    print()
    slowest = max(median(each) for each in times.values())
    requests = max(weight.requests for weight in weights.values())
    size = max(weight.size for weight in weights.values())
    met = [
        verdict(f"first byte under {BAR_MS:g} ms", slowest < BAR_MS, f"{slowest:.1f} ms"),
        verdict(f"at most {BAR_REQUESTS} requests", requests <= BAR_REQUESTS, str(requests)),
        verdict(f"at most {BAR_BYTES // 1024} KB", size <= BAR_BYTES, f"{size / 1024:.1f} KB"),
    ]
    sys.exit(0 if all(met) else 1)


def followed(browser: Browser, path: str) -> Weight:
    """The page, and all it links to."""
    size, page = browser.size(path)
    assets = Assets()
    assets.feed(page.decode())
    links = {urlsplit(link)._replace(scheme="", netloc="").geturl() for link in assets.found}
    return Weight(requests=1 + len(links), size=size + sum(browser.size(link)[0] for link in links))


def by_chromium(bench: Bench, browser: Browser, path: str) -> Weight | None:
    """The same as Chromium sees it; None where there is none."""
    sizes: list[float] = []
    url = bench.installation.settings.url
    try:
        with sync_playwright() as playwright:
            executable = find_chromium(Path(playwright.chromium.executable_path))
            if executable is None:
                return None
            launched = playwright.chromium.launch(executable_path=executable)
            context = launched.new_context(base_url=url)
            context.add_cookies(
                [{"name": name, "value": value, "url": url} for name, value in _kept(browser)]
            )
            page = context.new_page()
            wire = context.new_cdp_session(page)
            wire.send("Network.enable")
            wire.on("Network.loadingFinished", lambda seen: sizes.append(seen["encodedDataLength"]))
            page.goto(path, wait_until="networkidle")
            launched.close()
    except Error as error:
        say(f"Chromium did not work: {error}")
        return None
    return Weight(requests=len(sizes), size=int(sum(sizes)))


def _kept(browser: Browser) -> list[tuple[str, str]]:
    return list(browser.cookies.items())


if __name__ == "__main__":
    main()
