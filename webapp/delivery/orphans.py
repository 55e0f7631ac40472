"""Waiting mail whose connection is gone: it goes the way of all other mail of its site."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import aliased

from webapp.connections.models import Connection as MailConnection
from webapp.delivery.decide import LOOKS, may_go_again
from webapp.delivery.models import Message, Recipient, Source, State
from webapp.delivery.modes import end_unclear, leave_unclear
from webapp.delivery.planning import MOVING, Ground, Waiting, decide, ground_of, waiting, write
from webapp.delivery.tally import add_tally
from webapp.sites.models import Site

TEST_IS_OVER = "Postroom: the connection that was to be tested has been removed"

_PRIMARY = aliased(MailConnection)
_ORPHANS = (
    sa.select(Message.id, Message.site_id)
    .join(Site, Site.id == Message.site_id)
    .outerjoin(MailConnection, MailConnection.id == Message.connection_id)
    .outerjoin(_PRIMARY, _PRIMARY.id == Site.primary_connection_id)
    .where(
        Message.due_at.is_not(None),
        sa.or_(
            MailConnection.deleted_at.is_not(None),
            sa.and_(
                MailConnection.id.is_(None),
                _PRIMARY.lane_id.is_not(None),
                _PRIMARY.deleted_at.is_(None),
            ),
        ),
    )
    .limit(sa.bindparam("most"))
)


def find_orphans(connection: Connection, most: int = 500) -> dict[int, list[int]]:
    """Mail that waits for no connection although its site has one, or for one that was removed; by
    site. Only reads."""
    found: dict[int, list[int]] = {}
    for row in connection.execute(_ORPHANS, {"most": most}):
        found.setdefault(row.site_id, []).append(row.id)
    return found


def adopt(
    connection: Connection, site_id: int, ids: Sequence[int], now: datetime
) -> Counter[int | None]:
    """Plan these anew, whatever they asked for; how many go to which connection.

    A test fails: it was about the connection. What may have arrived goes out once more only where
    the site would rather have it twice; nobody can be asked any more.
    """
    ground = ground_of(connection, site_id)
    if ground is None:
        return Counter()
    mails = waiting(
        connection, Message.id.in_(ids), Message.due_at.is_not(None), most=len(ids), lock=True
    )
    rows = {
        row.id: row
        for row in connection.execute(
            sa.select(
                Message.id,
                Message.connection_id,
                Message.source,
                Message.state,
                Message.unclear,
                Site.after_unclear,
            )
            .join(Site, Site.id == Message.site_id)
            .where(Message.id.in_([mail.id for mail in mails]))
        )
    }
    tests, over, stays = [], [], []
    for row in rows.values():
        is_test = row.source == Source.TEST
        again = may_go_again(row.unclear, row.after_unclear)
        if row.state == State.UNCERTAIN and (is_test or not again):
            over.append(row)
        elif is_test:
            tests.append((row.id, row.connection_id))
        elif not again:
            stays.append(row.id)
    _fail(connection, site_id, tests, now)
    end_unclear(connection, site_id, over, now)
    leave_unclear(connection, stays)
    gone = {row.id for row in over} | {key for key, _ in tests}
    return _move(connection, ground, [mail for mail in mails if mail.id not in gone], now)


def _move(
    connection: Connection, ground: Ground, mails: Sequence[Waiting], now: datetime
) -> Counter[int | None]:
    if not mails:
        return Counter()
    states = (*MOVING, State.UNCERTAIN)
    moves = decide(connection, ground, mails)
    moved = write(connection, moves, ground.site.version, now, states=states)
    connection.execute(
        sa.update(Message)
        .where(Message.id.in_([mail.id for mail in mails]), Message.state == State.UNCERTAIN)
        .values(looks=LOOKS)
    )
    return moved


def _fail(
    connection: Connection, site_id: int, tests: Sequence[tuple[int, int | None]], now: datetime
) -> None:
    for message_id, connection_id in tests:
        connection.execute(
            sa.update(Message)
            .where(Message.id == message_id)
            .values(
                state=State.FAILED,
                due_at=None,
                finished_at=now,
                last_code="",
                last_words=TEST_IS_OVER,
            )
        )
        connection.execute(
            sa.update(Recipient)
            .where(Recipient.message_id == message_id, Recipient.is_due.is_(sa.true()))
            .values(state=State.FAILED, is_due=False, code="", words=TEST_IS_OVER)
        )
        add_tally(connection, {(site_id, connection_id, State.FAILED.value): 1}, now)
