"""What the log of a site takes: counted once an hour, a little at a time, by whoever deletes."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import InstrumentedAttribute

from webapp.db import Clock, Database
from webapp.delivery.models import Attempt, Content, Message
from webapp.sites.models import SiteSpace

EVERY = timedelta(hours=1)
AT_MOST_OF_THE_TIME = 0.01
"""Of a huge log: it is counted as seldom as it takes to stay below."""
SLICE = 1000
REST = 3.0
"""Times as long as a slice took, nothing is read after it."""

ROW_BYTES, RECIPIENT_BYTES, ATTEMPT_BYTES = 700, 150, 200
"""About what the fixed part of a row takes, with its places in the indexes."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is kept of a site, or of a part of it."""

    mails: int = 0
    log_bytes: int = 0
    bodies: int = 0
    body_bytes: int = 0

    def __add__(self, other: "Space") -> "Space":
        return Space(
            mails=self.mails + other.mails,
            log_bytes=self.log_bytes + other.log_bytes,
            bodies=self.bodies + other.bodies,
            body_bytes=self.body_bytes + other.body_bytes,
        )


def weigh(connection: Connection, site_id: int, after: int) -> tuple[Space, int | None]:
    """The next `SLICE` mails behind a key, and the last key of them; None where that is all."""
    keys = connection.scalars(
        sa.select(Message.id)
        .where(Message.site_id == site_id, Message.id > after)
        .order_by(Message.id)
        .limit(SLICE)
    ).all()
    if not keys:
        return Space(), None
    texts = _length(Message.subject, Message.to_line, Message.last_words, Message.received)
    mails, written, recipients = connection.execute(
        sa.select(sa.func.count(), sa.func.sum(texts), sa.func.sum(Message.recipient_count)).where(
            Message.id.in_(keys)
        )
    ).one()
    bodies, packed = connection.execute(
        sa.select(sa.func.count(), sa.func.sum(sa.func.length(Content.raw))).where(
            Content.message_id.in_(keys)
        )
    ).one()
    attempts, said = connection.execute(
        sa.select(sa.func.count(), sa.func.sum(_length(Attempt.words, Attempt.details))).where(
            Attempt.message_id.in_(keys)
        )
    ).one()
    fixed = mails * ROW_BYTES + attempts * ATTEMPT_BYTES + (recipients or 0) * RECIPIENT_BYTES
    found = Space(
        mails=mails,
        log_bytes=int(fixed + (written or 0) + (said or 0)),
        bodies=bodies,
        body_bytes=int(packed or 0),
    )
    return found, keys[-1] if len(keys) == SLICE else None


def _length(*columns: InstrumentedAttribute[Any]) -> sa.ColumnElement[int]:
    lengths = [sa.func.length(sa.cast(column, sa.Text)) for column in columns]
    return sum(lengths[1:], lengths[0])


class Scale:
    """Counts what sites keep, each about once an hour; `pause` returns True when it is to stop."""

    def __init__(self, db: Database, clock: Clock, pause: Callable[[float], bool]) -> None:
        self._db = db
        self._clock = clock
        self._pause = pause
        self._due: dict[int, datetime] = {}

    def work(self, site_ids: Iterable[int]) -> None:
        """Count those whose time has come."""
        known = list(site_ids)
        if not self._due:
            self._due = self._counted()
        for site_id in known:
            now = self._clock()
            if now < self._due.get(site_id, now):
                continue
            began = time.monotonic()
            found = self._weigh(site_id)
            if found is None:
                return
            self._note(site_id, found)
            took = timedelta(seconds=time.monotonic() - began)
            self._due[site_id] = now + max(EVERY, took / AT_MOST_OF_THE_TIME)
        self._due = {site_id: self._due[site_id] for site_id in known}

    def _counted(self) -> dict[int, datetime]:
        """When each is due by the last count of an earlier process."""
        with self._db.reader.connect() as connection:
            rows = connection.execute(sa.select(SiteSpace.site_id, SiteSpace.counted_at))
            return {row.site_id: row.counted_at + EVERY for row in rows}

    def _weigh(self, site_id: int) -> Space | None:
        """All of a site; None when told to stop."""
        found, last = Space(), 0
        while True:
            began = time.perf_counter()
            with self._db.reader.connect() as connection:
                part, at = weigh(connection, site_id, last)
            found += part
            if at is None:
                return found
            last = at
            if self._pause((time.perf_counter() - began) * REST):
                return None

    def _note(self, site_id: int, found: Space) -> None:
        values = {
            "mails": found.mails,
            "log_bytes": found.log_bytes,
            "bodies": found.bodies,
            "body_bytes": found.body_bytes,
            "counted_at": self._clock(),
        }
        with self._db.write_connection() as connection:
            known = connection.execute(
                sa.update(SiteSpace).where(SiteSpace.site_id == site_id).values(values)
            )
            if not known.rowcount:
                connection.execute(sa.insert(SiteSpace).values(site_id=site_id, **values))
