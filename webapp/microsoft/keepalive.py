"""Renews links that no mail renewed for a day: so they live on, and a revocation shows early.
Before that, it proves second secrets that wait for Microsoft to answer.

Microsoft ends a refresh token that nobody used for 90 days.
"""

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog

from webapp.db import Database
from webapp.mailers.errors import DeliveryError, NeedsReauthorisation
from webapp.microsoft import successors
from webapp.microsoft.models import Grant, GrantState, LinkFlow
from webapp.microsoft.service import RENEW_EVERY
from webapp.microsoft.tokens import Tokens
from webapp.rounds import Rounds

log = structlog.get_logger(__name__)

INTERVAL = timedelta(minutes=1)
PER_ROUND = 20
SHORTEST_PAUSE = timedelta(minutes=15)
LONGEST_PAUSE = timedelta(hours=4)
JITTER = 0.2
KEEP_FLOWS = timedelta(days=30)


class KeepAlive(Rounds):
    """Renews what is due; one process is enough, and several do no harm."""

    name = "keep-alive"

    def __init__(self, db: Database, tokens: Tokens, interval: timedelta = INTERVAL) -> None:
        super().__init__(interval)
        self._db = db
        self._tokens = tokens

    def round(self) -> int:
        """Renew what is due now, the oldest first; returns how many were renewed."""
        return sum(self._renew(grant_id) for grant_id in self._due() if not self._stop.is_set())

    def forget_old_flows(self) -> None:
        """Delete what became of sign-ins a month ago."""
        gone = LinkFlow.expires_at < self._db.now() - KEEP_FLOWS
        with self._db.reader.connect() as connection:
            if connection.scalar(sa.select(LinkFlow.id).where(gone).limit(1)) is None:
                return
        with self._db.write_connection() as connection:
            connection.execute(sa.delete(LinkFlow).where(gone))

    def work(self) -> None:
        """Successors of secrets first: a renewal may need them."""
        successors.settle(self._db, self._tokens)
        self.round()
        self.forget_old_flows()

    def _due(self) -> Sequence[int]:
        query = (
            sa.select(Grant.id)
            .where(_is_due(self._db.now()))
            .order_by(Grant.renew_at, Grant.id)
            .limit(PER_ROUND)
        )
        with self._db.reader.connect() as connection:
            return connection.scalars(query).all()

    def _renew(self, grant_id: int) -> bool:
        with self._db.reader.connect() as connection:
            still_due = connection.execute(
                sa.select(Grant.renewed_at).where(Grant.id == grant_id, _is_due(self._db.now()))
            ).one_or_none()
        if still_due is None:  # a mail did it meanwhile, or somebody removed the link
            return False
        try:
            self._tokens.renew(grant_id)
        except NeedsReauthorisation:
            return False  # noted, and no longer due
        except DeliveryError as error:
            log.info("a link is renewed later", grant=grant_id, words=error.words)
            self._put_off(grant_id, still_due.renewed_at)
            return False
        except Exception:  # one bad row must not let every other link run out
            log.exception("a renewal ended in a bug", grant=grant_id)
            self._put_off(grant_id, still_due.renewed_at)
            return False
        return True

    def _put_off(self, grant_id: int, renewed_at: datetime) -> None:
        now = self._db.now()
        pause = pause_after(now - renewed_at, random.random())  # noqa: S311
        with self._db.write_connection() as connection:
            connection.execute(
                sa.update(Grant)
                .where(Grant.id == grant_id, _is_due(now))
                .values(renew_at=now + pause)
            )


def _is_due(now: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(Grant.state == GrantState.LINKED, Grant.renew_at <= now)


def pause_after(age: timedelta, chance: float) -> timedelta:
    """The wait after a failure, `age` after the last renewal: it doubles with each failure,
    because it is as long as the renewal is late. `chance` in [0, 1) spreads it."""
    pause = min(max(age - RENEW_EVERY, SHORTEST_PAUSE), LONGEST_PAUSE)
    return pause * (1 - JITTER + 2 * JITTER * chance)
