"""A ledger on each database, filled through the one way in."""

from collections.abc import Iterator
from datetime import datetime

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.world import World, a_world
from webapp.delivery.models import Message, State
from webapp.maillog.service import LogPage, list_messages


class Ledger(World):
    """A world whose mails can be put into any state, and read as the log reads them."""

    def add(
        self, site: int, subject: str, *to: str, state: State = State.SENT, **values: object
    ) -> int:
        """One more mail; returns its key."""
        raw = f"From: Shop <shop@lindenhof.example>\r\nSubject: {subject}\r\n\r\nHello\r\n".encode()
        queue_id = self.accept(site, *(to or ("kunde@mail.example",)), raw=raw)
        due_at = self.now if state in {State.QUEUED, State.DEFERRED} else None
        with self.db.write() as session:
            change = sa.update(Message).where(Message.queue_id == queue_id)
            session.execute(change.values(**{"state": state, "due_at": due_at} | values))
            key = session.scalar(sa.select(Message.id).where(Message.queue_id == queue_id))
        assert key is not None
        return key

    def page(self, **wanted: object) -> LogPage:
        """A page of the log, of all sites unless told otherwise."""
        with self.db.read() as session:
            return list_messages(session, **{"site_ids": None, "now": self.now} | wanted)  # type: ignore[arg-type]

    def subjects(self, **wanted: object) -> list[str]:
        """What the log shows, from the top."""
        return [row.subject for row in self.page(**wanted).rows]

    def read(self) -> Session:
        """An open session; the test closes it by its end."""
        return self.db.read()  # type: ignore[return-value]

    def at(self, moment: datetime) -> "Ledger":
        """Move the clock."""
        self.now = moment
        return self


@pytest.fixture
def ledger(db_url: str) -> Iterator[Ledger]:
    """Runs a test once on SQLite and once on PostgreSQL."""
    made = a_world(db_url)
    yield Ledger(made.db, made.now, made.token)
    made.db.close()
