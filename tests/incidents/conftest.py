"""An installation with a watch and a teller that are moved by hand, on both databases."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

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
from tests.incidents.hooks import Hook
from webapp import ids
from webapp.connections.models import Connection
from webapp.incidents.models import AlertTarget, Channel, Incident, Notification
from webapp.incidents.targets import key_subject
from webapp.incidents.tell import Teller
from webapp.incidents.watch import Watch
from webapp.installation import Installation
from webapp.mailers.base import Surroundings
from webapp.microsoft.models import Grant, GrantState
from webapp.sites.models import Site

KEY = "k" * 32


class Desk:
    """Things to watch, and what was noticed and told."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.db = installation.db
        self.ahead = timedelta()
        real = installation.db.now
        installation.db.now = lambda: real() + self.ahead  # type: ignore[method-assign]
        self.watch = Watch(installation)
        self.teller = self.a_teller()

    def a_teller(self, **given: Any) -> Teller:
        surroundings = Surroundings(hostname="postroom.example", timeout=timedelta(seconds=5))
        return Teller(self.installation, lambda: self.installation.keyring, surroundings, **given)

    @property
    def now(self) -> datetime:
        return self.db.now()

    def later(self, **delta: float) -> None:
        """Let time pass."""
        self.ahead += timedelta(**delta)

    def round(self) -> None:
        """Look, and tell what is due."""
        self.watch.round()
        self.teller.round()

    def incidents(self) -> list[Incident]:
        with self.db.read() as session:
            return list(session.scalars(sa.select(Incident).order_by(Incident.id)))

    def open(self) -> list[str]:
        """The kinds of the open incidents."""
        return [found.kind for found in self.incidents() if found.closed_at is None]

    def told(self) -> list[tuple[str, str]]:
        """Occasion and outcome of each notification."""
        with self.db.read() as session:
            rows = session.scalars(sa.select(Notification).order_by(Notification.id))
            return [(row.occasion, row.told) for row in rows]

    # ---- making things ----

    def site(self, **values: Any) -> Site:
        with self.db.write() as session:
            return a_site(session, **values)

    def linked(self, site: Site, **values: Any) -> Grant:
        """The site's primary connection, linked; returns its grant."""
        with self.db.write() as session:
            app = an_app(session, self.installation.keyring)
            mailbox = a_mailbox(session)
            grant = a_grant(session, self.installation.keyring, app, mailbox, **values)
            connection = a_connection(
                session, session.get_one(Site, site.id), mailer="outlook", grant_id=grant.id
            )
            connection.lane_id = mailbox.lane_id
            a_link(session, connection, grant)
            return grant

    def refuse(self, grant: Grant) -> None:
        self.change(
            Grant,
            grant.id,
            state=GrantState.NEEDS_REAUTHORISATION,
            state_since=self.now,
            code="AADSTS50173",
            words="The provided grant has expired.",
        )

    def link_again(self, grant: Grant) -> None:
        self.change(Grant, grant.id, state=GrantState.LINKED, code="", words="")

    def change(self, kind: type[Any], key: int, **values: Any) -> None:
        with self.db.write() as session:
            row = session.get_one(kind, key)
            for name, value in values.items():
                setattr(row, name, value)

    def target(
        self,
        address: str,
        *,
        site: Site | None = None,
        channel: Channel = Channel.WEBHOOK,
        **values: Any,
    ) -> AlertTarget:
        with self.db.write() as session:
            return a_target(
                session, self.installation, address, site=site, channel=channel, **values
            )

    def alert_connection(self, port: int, **values: Any) -> Connection:
        settings = {"host": "127.0.0.1", "port": port, "encryption": "none"}
        settings |= {"auto_tls": False, "authentication": False}
        with self.db.write() as session:
            return a_connection(
                session,
                None,
                settings=settings,
                is_system=True,
                from_email="alerts@agentur.example",
                **values,
            )


def a_target(
    session: Session,
    installation: Installation,
    address: str,
    *,
    site: Site | None = None,
    channel: Channel = Channel.WEBHOOK,
    **values: Any,
) -> AlertTarget:
    """Somebody to tell; a webhook signs with KEY."""
    uid = ids.short_id()
    sealed = installation.keyring.seal("alert-target", key_subject(uid), KEY)
    made = AlertTarget(
        uid=uid,
        site_id=site.id if site else None,
        channel=channel,
        address=address,
        secret=sealed if channel is Channel.WEBHOOK else None,
        created_at=installation.db.now(),
        **values,
    )
    session.add(made)
    session.flush()
    return made


@pytest.fixture
def desk(db_url: str, tmp_path: Path) -> Iterator[Desk]:
    installation = an_installation(db_url, tmp_path)
    yield Desk(installation)
    installation.close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as made:
        yield made
