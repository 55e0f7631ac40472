"""The pages of incidents and alerts in a browser: for everybody, and on screens of every width."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from werkzeug.serving import make_server

from tests.browser.test_narrow import LONG, WIDTHS, Live, signed_in
from tests.factories import a_site, a_time, a_user, an_installation
from tests.incidents.conftest import a_target
from tests.rig.browser import OpenPage, axe
from webapp import create_app, ids
from webapp.incidents.models import (
    AlertTarget,
    Channel,
    Incident,
    IncidentSite,
    Notification,
    Occasion,
    Told,
)


@pytest.fixture
def live(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Live]:
    port = free_port()
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    made = an_installation(url, tmp_path, http_listen=f"127.0.0.1:{port}")
    at = a_time()
    with made.db.write() as session:
        a_user(session, email="mara@agentur.example", is_admin=True)
        site = a_site(session, name="Galerie Nord", slug="galerie")
        failed = {"last_at": at, "last_told": Told.FAILED, "last_words": f"550 {LONG}"}
        a_target(session, made, f"https://a.example/{LONG}", site=site)
        target: AlertTarget = a_target(
            session, made, "mara@agentur.example", site=site, channel=Channel.EMAIL, **failed
        )
        a_target(session, made, f"https://b.example/{LONG}", is_on=False)
        uids = []
        for closed_at in (None, at):
            found = Incident(
                uid=ids.short_id(),
                cause=ids.short_id(),
                kind="link-refused",
                code="AADSTS50173",
                words=LONG,
                details={"account": f"{LONG[:64]}@a.example", "mailer": "outlook"},
                opened_at=at,
                closed_at=closed_at,
            )
            session.add(found)
            session.flush()
            session.add(IncidentSite(incident_id=found.id, site_id=site.id))
            session.add(
                Notification(
                    incident_id=found.id,
                    target_id=target.id,
                    occasion=Occasion.OPENED,
                    told=Told.FAILED,
                    words=LONG,
                    created_at=at,
                )
            )
            uids.append(found.uid)
    server = make_server("127.0.0.1", port, create_app(made), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Live(
        url=f"http://localhost:{port}",
        paths=(
            "/sites/galerie/settings/alerts",
            "/settings/system",
            *(f"/settings/system/{uid}" for uid in uids),
            f"/sites/galerie/incidents/{uids[0]}",
        ),
    )
    server.shutdown()
    thread.join()
    server.server_close()
    made.close()


def test_nothing_scrolls_sideways_and_axe_finds_nothing(open_page: OpenPage, live: Live) -> None:
    page = signed_in(open_page, live)
    wrong = []
    for path in live.paths:
        page.goto(path)
        wrong += [f"{path}: {fault}" for fault in axe(page)]
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            if page.evaluate("document.documentElement.scrollWidth") > width:
                wrong.append(f"{path} at {width}")
    assert wrong == []
