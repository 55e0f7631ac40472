"""Counts by site, connection, outcome and hour, and the law of the ledger that rests on them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.delivery.models import Message, State, Tally, is_in

ACCEPTED = "accepted"
_COUNT = Tally.__table__.c.count  # a row has a method of that name
_COUNT_UP = sa.insert(Tally)


def add_tally(
    connection: Connection, counts: Mapping[tuple[int, int | None, str], int], now: datetime
) -> None:
    """Append what happened; `fold_tally` adds it up later."""
    if not counts:
        return
    hour = now.replace(minute=0, second=0, microsecond=0)
    connection.execute(
        _COUNT_UP,
        [
            {
                "site_id": site_id,
                "connection_id": connection_id,
                "outcome": outcome,
                "hour": hour,
                "count": count,
            }
            for (site_id, connection_id, outcome), count in counts.items()
        ],
    )


def fold_tally(connection: Connection, batch: int = 2000) -> int:
    """Add up the newest deltas into one row a group; returns how many rows are gone."""
    newest = connection.execute(
        sa.select(Tally.id).order_by(Tally.id.desc()).limit(batch)
    ).scalars()
    gone = connection.execute(
        sa.delete(Tally)
        .where(Tally.id.in_(list(newest)))
        .returning(
            Tally.site_id, Tally.connection_id, Tally.outcome, Tally.hour, _COUNT.label("amount")
        )
    ).all()
    sums: Counter[tuple[int, int | None, str, datetime]] = Counter()
    for row in gone:
        sums[row.site_id, row.connection_id, row.outcome, row.hour] += row.amount
    if sums:
        connection.execute(
            sa.insert(Tally),
            [
                {
                    "site_id": site_id,
                    "connection_id": connection_id,
                    "outcome": outcome,
                    "hour": hour,
                    "count": count,
                }
                for (site_id, connection_id, outcome, hour), count in sums.items()
            ],
        )
    return len(gone) - len(sums)


@dataclass(frozen=True, kw_only=True)
class Account:
    """One site's ledger: what came in against what became of it."""

    site_id: int
    accepted: int
    ended: int
    open: int

    @property
    def gap(self) -> int:
        """Zero, or something was lost or counted twice."""
        return self.accepted - self.ended - self.open


def accounts(connection: Connection) -> list[Account]:
    """The law of the ledger, site by site, in one reading of the database."""
    tallied = connection.execute(
        sa.select(
            Tally.site_id,
            sa.func.sum(sa.case((Tally.outcome == ACCEPTED, _COUNT), else_=0)),
            sa.func.sum(sa.case((Tally.outcome != ACCEPTED, _COUNT), else_=0)),
        ).group_by(Tally.site_id)
    ).all()
    still_open: Counter[int] = Counter()
    for state in (State.HELD, State.QUEUED, State.SENDING, State.DEFERRED, State.UNCERTAIN):
        counted = sa.select(Message.site_id, sa.func.count()).where(is_in(state))
        if state is State.UNCERTAIN:
            counted = counted.where(Message.due_at.is_not(None))
        for site_id, amount in connection.execute(counted.group_by(Message.site_id)):
            still_open[site_id] += amount
    found = {site_id: (int(came or 0), int(gone or 0)) for site_id, came, gone in tallied}
    return [
        Account(
            site_id=site_id,
            accepted=found.get(site_id, (0, 0))[0],
            ended=found.get(site_id, (0, 0))[1],
            open=still_open[site_id],
        )
        for site_id in sorted(found.keys() | still_open.keys())
    ]
