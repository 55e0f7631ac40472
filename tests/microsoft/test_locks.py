"""Links on PostgreSQL: who changes the same rows at the same time waits, and sees what the other
did."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.factories import (
    a_connection,
    a_grant,
    a_link,
    a_mailbox,
    a_site,
    an_app,
    an_installation,
)
from webapp.connections.models import Connection, Health
from webapp.delivery.models import Outcome
from webapp.delivery.outcomes import Outcomes
from webapp.installation import Installation
from webapp.microsoft import service
from webapp.microsoft.models import Grant, GrantState, Link, OAuthApp
from webapp.sites.models import Site

MARA = "mara@agentur.example"


@dataclass
class Place:
    """Two connections that are linked by one grant."""

    installation: Installation
    pool: ThreadPoolExecutor
    app_id: int
    grant_id: int
    site_id: int
    connections: list[int]

    def beside(self, act: Callable[[Session], object]) -> Future[object]:
        """Do it in a unit of work of its own, until it is done or waits for a lock."""

        def run() -> object:
            with self.installation.db.write() as session:
                return act(session)

        found = self.pool.submit(run)
        end = time.monotonic() + 30
        while not found.done() and not self._waiting():
            assert time.monotonic() < end
        return found

    def _waiting(self) -> bool:
        with self.installation.db.reader.connect() as connection:
            waiting = sa.text(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return bool(connection.scalar(waiting))

    def detach(self, session: Session, which: int) -> int:
        return service.detach(
            session,
            session.get_one(Site, self.site_id),
            session.get_one(Connection, self.connections[which]),
            actor=MARA,
            now=self.installation.db.now(),
        )

    def attach(self, session: Session, which: int) -> None:
        service.attach(
            session,
            self.installation.keyring,
            session.get_one(Site, self.site_id),
            session.get_one(Connection, self.connections[which]),
            session.get_one(OAuthApp, self.app_id),
            self.account(session),
            cache="{}",
            scopes=["Mail.Send"],
            actor=MARA,
            now=self.installation.db.now(),
        )

    def account(self, session: Session) -> service.Account:
        connection = session.get_one(Connection, self.connections[0])
        mailbox = service.mailbox_of(session, connection)
        assert mailbox is not None
        return service.Account(
            tenant_id=mailbox.tenant_id, object_id=mailbox.object_id, address=mailbox.address
        )

    def refuse(self, session: Session) -> None:
        service.note_refusal(
            session,
            self.grant_id,
            kind=Outcome.MISCONFIGURED,
            code="AADSTS7000215",
            words="wrong",
            now=self.installation.db.now(),
        )

    def grant(self) -> Grant:
        with self.installation.db.read() as session:
            return session.get_one(Grant, self.grant_id)


@pytest.fixture
def place(pg_url: str, tmp_path: Path) -> Iterator[Place]:
    installation = an_installation(pg_url, tmp_path)
    with installation.db.write() as session:
        site = a_site(session)
        app = an_app(session, installation.keyring)
        grant = a_grant(session, installation.keyring, app, a_mailbox(session))
        connections = [a_connection(session, site) for _ in range(2)]
        for connection in connections:
            connection.mailer = "outlook"
            connection.settings = {"outlook": {"one_click": True, "shared_app": app.uid}}
            a_link(session, connection, grant)
        keys = [connection.id for connection in connections]
        made = Place(installation, ThreadPoolExecutor(4), app.id, grant.id, site.id, keys)
    yield made
    made.pool.shutdown()
    installation.close()


def test_of_two_who_remove_at_once_the_last_one_forgets_the_tokens(place: Place) -> None:
    with place.installation.db.write() as session:
        place.detach(session, 0)
        other = place.beside(lambda session: place.detach(session, 1))
    other.result(30)
    assert (place.grant().state, place.grant().cache) == (GrantState.REMOVED, None)


def test_a_link_made_while_another_is_removed_keeps_its_tokens(place: Place) -> None:
    with place.installation.db.write() as session:
        place.detach(session, 1)
    with place.installation.db.write() as session:
        place.attach(session, 1)
        other = place.beside(lambda session: place.detach(session, 0))
    other.result(30)
    assert place.grant().state == GrantState.LINKED
    assert place.grant().cache is not None


def test_a_refusal_and_a_page_that_saves_the_secret_take_rows_in_one_order(place: Place) -> None:
    with place.installation.db.write() as session:
        app = session.get_one(OAuthApp, place.app_id)
        app.name = "as a page that saves begins"
        session.flush()
        refusal = place.beside(place.refuse)
        service.secret_stored(session, app, place.installation.db.now())
    refusal.result(30)


def test_a_refusal_and_a_new_link_take_rows_in_one_order(place: Place) -> None:
    with place.installation.db.write() as session:
        place.refuse(session)
        link = place.beside(lambda session: place.attach(session, 0))
        service.note_refusal(
            session,
            place.grant_id,
            kind=Outcome.NEEDS_REAUTHORISATION,
            code="",
            words="",
            now=place.installation.db.now(),
        )
    link.result(30)
    assert place.grant().state == GrantState.LINKED


def test_a_registration_by_which_a_link_is_being_made_cannot_be_removed(place: Place) -> None:
    with place.installation.db.write() as session:
        account = place.account(session)
        for which in (0, 1):
            place.detach(session, which)

    def remove(session: Session) -> None:
        app = session.get_one(OAuthApp, place.app_id)
        service.remove_app(session, app, actor=MARA, now=place.installation.db.now())

    with place.installation.db.write() as session:
        place.account = lambda _: account  # type: ignore[method-assign]
        place.attach(session, 0)
        removal = place.beside(remove)
    with pytest.raises(service.StillUsed):
        removal.result(30)
    with place.installation.db.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Link)) == 1


def test_the_health_of_connections_is_written_in_the_order_of_their_keys(place: Place) -> None:
    db, (first, second) = place.installation.db, place.connections
    news = Outcomes()
    news._unwritten = [(key, 1, Health.FAILING, "", "") for key in (second, first)]

    def write(session: Session) -> None:
        news.write_health(session.connection(), db.now())

    with db.write() as session:
        session.get_one(Connection, first, with_for_update=True)
        other = place.beside(write)
        session.get_one(Connection, second, with_for_update=True)
    other.result(30)


def test_two_first_links_of_a_mailbox_by_two_registrations_share_it(place: Place) -> None:
    """Each holds the lock of its own registration, so both find no mailbox and make one."""
    db, keyring = place.installation.db, place.installation.keyring
    with db.write() as session:
        other = an_app(session, keyring).id
        for key in place.connections:
            service.forget_links(session, session.get_one(Connection, key), db.now())
    account = service.Account(
        tenant_id="8d1f0000-0000-4000-8000-0000000000c2",
        object_id="11111111-8888-4777-8666-000000000001",
        address="new@contoso.example",
    )

    def attach(session: Session, app_id: int, which: int) -> int:
        return service.attach(
            session,
            keyring,
            session.get_one(Site, place.site_id),
            session.get_one(Connection, place.connections[which]),
            session.get_one(OAuthApp, app_id),
            account,
            cache="{}",
            scopes=["Mail.Send"],
            actor=MARA,
            now=db.now(),
        ).mailbox.id

    with db.write() as session:
        first = attach(session, place.app_id, 0)
        second = place.beside(lambda session: attach(session, other, 1))
    assert second.result(30) == first
    with db.read() as session:
        grants = session.scalars(sa.select(Grant).where(Grant.mailbox_id == first)).all()
        lanes = {session.get_one(Connection, key).lane_id for key in place.connections}
    assert {grant.app_id for grant in grants} == {place.app_id, other}
    assert len(lanes) == 1
    assert None not in lanes
