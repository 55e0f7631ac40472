"""What stands behind the pages of tests, on each database."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import a_connection, a_message, a_site, a_time, an_installation
from webapp.delivery.models import Message, Source, State
from webapp.installation import Installation
from webapp.sites.models import Site
from webapp.testmail import service
from webapp.testmail.service import Letter, Phase, TooManyTests

NOW = a_time()


@pytest.fixture
def installation(db_url: str, tmp_path: Path) -> Iterator[Installation]:
    made = an_installation(db_url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def site(installation: Installation) -> Site:
    with installation.db.write() as session:
        site = a_site(session, name="Lindenhof Shop")
        a_connection(session, site, settings={"authentication": False})
        return site


def as_it_is(sentence: str, **values: object) -> str:
    return sentence % values if values else sentence


def a_test(installation: Installation, site: Site, *, later: float = 0) -> str:
    with installation.db.read() as session:
        (choice,) = service.choices(session, site)
    letter = Letter(
        choice=choice,
        site=site,
        to="mara@agentur.example",
        by="Mara",
        is_html=True,
        language="en",
        sent_at=NOW + timedelta(seconds=later),
        sent_at_words="now",
    )
    return service.send(installation.db, letter, as_it_is)


def count(installation: Installation) -> int:
    with installation.db.read() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(Message)) or 0


def test_ten_tests_a_minute_are_sent_and_the_eleventh_is_not(
    installation: Installation, site: Site
) -> None:
    for second in range(10):
        a_test(installation, site, later=second)
    with pytest.raises(TooManyTests):
        a_test(installation, site, later=59)
    a_test(installation, site, later=60)
    assert count(installation) == 11


def test_tests_at_the_same_time_are_counted_one_by_one(
    installation: Installation, site: Site
) -> None:
    refused: list[TooManyTests] = []

    def send() -> None:
        try:
            a_test(installation, site)
        except TooManyTests as error:
            refused.append(error)

    threads = [threading.Thread(target=send) for _ in range(14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (count(installation), len(refused)) == (10, 4)


def test_the_last_test_is_remembered_as_long_as_it_is_kept(
    installation: Installation, site: Site
) -> None:
    with installation.db.write() as session:
        assert service.last_test(session, site) is None
    a_test(installation, site)
    last = a_test(installation, site)
    with installation.db.write() as session:
        a_message(session, site)
        found = service.last_test(session, site)
        assert found is not None
        assert found.queue_id == last
        assert service.last_test(session, a_site(session)) is None
        found.site_id = a_site(session).id  # as if the key of a deleted site came back
        session.flush()
        assert service.last_test(session, site) is None
        session.delete(found)
        session.flush()
        assert service.last_test(session, site) is None


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        (State.QUEUED, Phase.WAITING),
        (State.SENDING, Phase.SENDING),
        (State.SENT, Phase.SENT),
        (State.FAILED, Phase.FAILED),
        (State.BLOCKED, Phase.KEPT),
        (State.CANCELLED, Phase.KEPT),
        (State.HELD, Phase.KEPT),
        (State.UNCERTAIN, Phase.UNCLEAR),
    ],
)
def test_how_far_a_test_is_follows_from_its_state(
    installation: Installation, site: Site, state: State, phase: Phase
) -> None:
    with installation.db.write() as session:
        (choice,) = service.choices(session, site)
        given = {"state": state, "source": Source.TEST, "connection": choice.connection}
        mail = a_message(session, site, **given)
        test = service.find_test(session, installation.settings, site, mail.queue_id, NOW)
        assert test is not None
        assert test.phase is phase
