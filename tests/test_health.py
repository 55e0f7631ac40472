"""The pages for machines."""

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import a_connection, a_lane, a_message, a_site, a_time, an_installation
from tests.pages import Browser
from webapp import create_app
from webapp.delivery.models import Heartbeat, State
from webapp.installation import Installation
from webapp.ops import status


def beat(installation: Installation, part: str, ago: timedelta, *, owner: bool = True) -> None:
    with installation.db.write() as session:
        at = installation.db.now() - ago
        name = f"{part}:host:{owner:d}"
        session.add(Heartbeat(name=name, part=part, beat_at=at, details={"owner": owner}))


def test_the_process_says_that_it_lives(client: Browser) -> None:
    assert client.fetch("/healthz").json == {"alive": True}


def test_ready_means_that_a_delivery_worker_was_seen_within_a_minute(
    client: Browser, installation: Installation
) -> None:
    beat(installation, "submission", timedelta())
    answer = client.fetch("/readyz")
    assert (answer.status_code, answer.json["delivery"]) == (503, False)  # type: ignore[index]
    beat(installation, "deliver", timedelta(), owner=False)
    assert client.fetch("/readyz").status_code == 503
    beat(installation, "deliver", timedelta(seconds=50))
    answer = client.fetch("/readyz")
    assert (answer.status_code, answer.json["ready"]) == (200, True)  # type: ignore[index]


def test_a_worker_that_went_silent_is_not_ready(
    client: Browser, installation: Installation
) -> None:
    beat(installation, "deliver", timedelta(seconds=70))
    assert client.fetch("/readyz").status_code == 503


def test_another_revision_is_not_ready(client: Browser, installation: Installation) -> None:
    beat(installation, "deliver", timedelta())
    with installation.db.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '0000'"))
    answer = client.fetch("/readyz").json
    assert answer == {"ready": False, "database": True, "revision": False, "delivery": False}


def test_a_database_that_does_not_answer_is_not_ready(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(db: object) -> str:
        raise sa.exc.OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr(status.schema, "current", broken)
    assert not status.readiness(installation.db).database


def numbers(client: Browser, **options: object) -> dict[str, float]:
    text = client.fetch("/metrics", **options).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_the_numbers_are_read_from_the_database(db_url: str, tmp_path: Path) -> None:
    installation = an_installation(db_url, tmp_path)
    client = Browser(create_app(installation))
    with installation.db.write() as session:
        site = a_site(session)
        connection = a_connection(session, site)
        old = a_time() - timedelta(hours=1)
        a_message(session, site, state=State.DEFERRED, connection=connection, at=old)
        a_message(session, site, state=State.QUEUED, connection=connection)
        a_message(session, site, state=State.SENT, connection=connection)
        a_message(session, site, state=State.UNCERTAIN)
        a_lane(session, is_blocked=True)
    beat(installation, "deliver", timedelta(seconds=5))
    found = numbers(client)
    assert found['postroom_messages_open{state="deferred"}'] == 1
    assert found['postroom_messages_open{state="queued"}'] == 1
    assert found['postroom_messages_open{state="sending"}'] == 0
    assert found['postroom_messages_open{state="uncertain"}'] == 0
    assert 3600 <= found["postroom_oldest_waiting_seconds"] < 3700
    assert found['postroom_messages_total{outcome="accepted"}'] == 4
    assert found['postroom_messages_total{outcome="sent"}'] == 1
    assert found["postroom_lanes_blocked"] == 1
    name = 'postroom_heartbeat_age_seconds{name="deliver:host:1",part="deliver"}'
    assert 5 <= found[name] < 60
    installation.close()


def test_the_numbers_are_for_this_machine_only(client: Browser) -> None:
    elsewhere = {"environ_overrides": {"REMOTE_ADDR": "192.0.2.1"}}
    assert client.fetch("/metrics").status_code == 200
    assert client.fetch("/metrics", **elsewhere).status_code == 404
    assert client.fetch("/metrics", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 404


def test_with_a_token_the_numbers_are_for_its_holder(tmp_path: Path) -> None:
    made = an_installation(f"sqlite:///{tmp_path / 'x.db'}", tmp_path, metrics_token="s3cret")
    client = Browser(create_app(made))
    assert client.fetch("/metrics").status_code == 404
    wrong = {"Authorization": "Bearer guess"}
    assert client.fetch("/metrics", headers=wrong).status_code == 404
    right = {"Authorization": "Bearer s3cret"}
    assert client.fetch("/metrics", headers=right).status_code == 200
    made.close()


def test_counting_open_mail_uses_the_index_of_open_mail(installation: Installation) -> None:
    statements = []

    def note(conn: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    sa.event.listen(installation.db.reader, "before_cursor_execute", note)
    with installation.db.read() as session:
        list(status.samples(session, a_time()))
    counts = [text for text in statements if "FROM message" in text]
    with installation.db.read() as session:
        for text in counts:
            plan = str(
                session.execute(sa.text(f"EXPLAIN QUERY PLAN {text.replace('?', '1')}")).all()
            )
            assert "ix_message_state" in plan, text
