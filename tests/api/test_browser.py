"""The page of the API and the keys, as a browser shows them."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

from tests.factories import PASSWORD, a_site, a_user, an_installation
from tests.rig.browser import OpenPage, axe
from webapp import create_app

WIDTHS = (1400, 390, 320)


@pytest.fixture
def url(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[str]:
    """A dashboard with a site, on a port."""
    port = free_port()
    database = f"sqlite:///{tmp_path / 'postroom.db'}"
    made = an_installation(database, tmp_path, http_listen=f"127.0.0.1:{port}")
    with made.db.write() as session:
        a_user(session, email="mara@agentur.example", is_admin=True)
        a_site(session, slug="shop")
    server = make_server("127.0.0.1", port, create_app(made), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{port}"
    server.shutdown()
    thread.join()
    server.server_close()
    made.close()


@pytest.mark.parametrize("look", [{}, {"dark": True}, {"locale": "zh-CN"}], ids=str)
def test_a_key_is_made_and_the_api_read(
    open_page: OpenPage, url: str, look: dict[str, Any]
) -> None:
    page = open_page(base_url=url, **look)
    page.goto("/signin")
    page.fill("[name=email]", "mara@agentur.example")
    page.fill("[name=password]", PASSWORD)
    page.click(".save button")
    page.wait_for_url(f"{url}/")
    page.goto("/sites/shop/credentials")
    page.select_option("[name=key-scopes]", "send read")
    page.click("form[action$='/keys'] .save button")
    assert page.input_value("#in-key").startswith("pk_")
    assert axe(page) == []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("footer a[href='/api']")
    assert page.url == f"{url}/api"
    assert axe(page) == []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
