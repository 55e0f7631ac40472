"""A ledger with sites, connections and mail, for the tests of everything that moves mail."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tests.factories import give_tables
from webapp import ids
from webapp.connections.models import Backup, Connection
from webapp.db import Database
from webapp.delivery import detours, queue, tally, upkeep
from webapp.delivery import finish as finishing
from webapp.delivery.decide import Claimed, Finished, Result
from webapp.delivery.models import Attempt, Lane, Message, Recipient, Source
from webapp.ingress.accept import Accepted, Submission, prepare, store
from webapp.sites.models import Site

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)


def a_mail(
    subject: str = "Order 20431", to: str = "kunde@example.org", body: str = "Hello"
) -> bytes:
    """A small mail, CRLF lines."""
    return (
        f"From: Shop <shop@example.com>\r\nTo: {to}\r\nSubject: {subject}\r\n"
        f"Message-ID: <{ids.short_id()}@example.com>\r\n"
        "Date: Mon, 23 Nov 2026 15:00:00 +0100\r\n"
        f"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{body}\r\n"
    ).encode()


@dataclass
class World:
    """Makes things, and moves them; each call is a unit of work of its own."""

    db: Database
    now: datetime = NOW
    token: int = 0
    _made: int = field(default=0)

    def later(self, **delta: float) -> datetime:
        """Let time pass."""
        self.now += timedelta(**delta)
        return self.now

    def a_site(self, **values: Any) -> int:
        """A site's key."""
        self._made += 1
        given = {
            "slug": f"site-{self._made}",
            "name": f"Site {self._made}",
            "created_at": self.now,
            "placeholder_emails": [],
            "placeholder_names": [],
        } | values
        with self.db.write() as session:
            site = Site(**given)
            session.add(site)
            session.flush()
            return site.id

    def a_connection(self, *sites: int, lane: str | None = None, **limits: int | None) -> int:
        """A connection's key; it becomes the primary one of these sites."""
        self._made += 1
        with self.db.write() as session:
            key = lane or f"smtp:me@host-{self._made}:25"
            row = session.scalar(sa.select(Lane).where(Lane.key == key))
            if row is None:
                row = Lane(key=key, windows={}, **limits)
                session.add(row)
                session.flush()
            connection = Connection(
                uid=ids.short_id(),
                site_id=sites[0] if sites else None,
                mailer="smtp",
                settings={},
                secrets_set={},
                lane_id=row.id,
                created_at=self.now,
                updated_at=self.now,
            )
            session.add(connection)
            session.flush()
            for site_id in sites:
                site = session.get(Site, site_id)
                assert site is not None
                site.primary_connection_id = connection.id
            return connection.id

    def lane_of(self, connection: int) -> int:
        """The lane of a connection."""
        with self.db.read() as session:
            lane = session.scalar(sa.select(Connection.lane_id).where(Connection.id == connection))
        assert lane is not None
        return lane

    def accept(
        self, site: int, *recipients: str, raw: bytes | None = None, mail_from: str = "a@b.example"
    ) -> str:
        """Hand a mail in; returns its queue id."""
        return self.accept_many(site, [recipients or ("kunde@example.org",)], raw, mail_from)[
            0
        ].queue_id

    def accept_many(
        self,
        site: int,
        recipients: Sequence[Sequence[str]],
        raw: bytes | None = None,
        mail_from: str = "a@b.example",
    ) -> list[Accepted]:
        """Hand several mails in, in one commit."""
        group = [
            prepare(
                Submission(
                    site_id=site,
                    credential_id=None,
                    source=Source.SMTP,
                    mail_from=mail_from,
                    recipients=tuple(to),
                    raw=a_mail() if raw is None else raw,
                    received={},
                )
            )
            for to in recipients
        ]
        with self.db.write_driver() as driver:
            return store(driver, group, self.now)

    def take_over(self) -> int:
        """Become the owner."""
        with self.db.write_connection() as connection:
            self.token = upkeep.take_over(connection, self.now)
        return self.token

    def claim(
        self, lane: int, count: int = 1, after_site: int = 0, most: Mapping[int, int] | None = None
    ) -> list[Claimed]:
        """Claim what is due; `most` is how many recipients a mail may have, by connection."""
        with self.db.write_connection() as connection:
            found, _ = queue.due_ids(connection, lane, count, after_site, self.now)
            return queue.claim(connection, lane, found, {}, self.now, most or {})

    def finish(self, claim: Claimed, result: Result | None = None) -> None:
        """Write down a result; none given is a success. Backups take over, lanes stay as they
        are."""
        done = Finished(
            claim=claim,
            result=result or Result(code="250", words="ok"),
            finished_at=self.now,
        )
        with self.db.write_connection() as connection:
            queue.fence(connection, [claim.lane_id], self.token)
            chains = detours.chains_of(connection, [claim.site_id])
            keys = [claim.planned_id, claim.connection_id]
            ways = detours.ways_for(connection, chains, keys)
            finishing.finish(connection, [done], {}, ways=ways)

    def a_chain(self, site: int, *connections: int) -> None:
        """Give the site these backups, in this order."""
        with self.db.write() as session:
            session.execute(sa.delete(Backup).where(Backup.site_id == site))
            session.add_all(
                Backup(site_id=site, position=position, connection_id=connection)
                for position, connection in enumerate(connections, 1)
            )

    def set_lane(self, lane: int, **values: Any) -> None:
        """Change columns of a lane."""
        with self.db.write() as session:
            session.execute(sa.update(Lane).where(Lane.id == lane).values(**values))

    def message(self, queue_id: str) -> Message:
        """The row as it is now."""
        with self.db.read() as session:
            return session.scalars(sa.select(Message).where(Message.queue_id == queue_id)).one()

    def recipients(self, queue_id: str) -> dict[str, str]:
        """State by address."""
        with self.db.read() as session:
            rows = session.execute(
                sa.select(Recipient.address, Recipient.state)
                .join(Message, Message.id == Recipient.message_id)
                .where(Message.queue_id == queue_id)
                .order_by(Recipient.position)
            )
            return dict(rows.all())

    def attempts(self, queue_id: str) -> list[Attempt]:
        """All tries, in order."""
        with self.db.read() as session:
            return list(
                session.scalars(
                    sa.select(Attempt)
                    .join(Message, Message.id == Attempt.message_id)
                    .where(Message.queue_id == queue_id)
                    .order_by(Attempt.number)
                )
            )

    def gaps(self) -> int:
        """Mails the ledger's law misses, over all sites."""
        with self.db.reader.connect() as connection:
            return sum(abs(account.gap) for account in tally.accounts(connection))


def a_world(url: str) -> World:
    """An empty, migrated database with a ledger."""
    give_tables(url)
    db = Database(url)
    world = World(db)
    world.take_over()
    return world
