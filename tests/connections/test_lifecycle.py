"""A connection goes while mail waits for it, on both databases."""

from collections.abc import Sequence

import pytest
import sqlalchemy as sa

from tests.factories import a_connection, a_message, a_site, a_time
from webapp.connections import lifecycle
from webapp.connections.models import Backup, Connection
from webapp.connections.uses import chain_ids
from webapp.db import Database
from webapp.delivery.models import Message, State
from webapp.sites.models import Site

ACTOR = "mara@agentur.example"


def where_it_waits(db: Database, mails: Sequence[Message]) -> list[tuple[str, int | None, bool]]:
    """State, connection, and whether it has the lane of that connection."""
    with db.read() as session:
        found = [session.get_one(Message, mail.id) for mail in mails]
        lanes = {one.id: one.lane_id for one in session.scalars(sa.select(Connection))}
        return [
            (
                mail.state,
                mail.connection_id,
                mail.lane_id is not None and mail.lane_id == lanes.get(mail.connection_id or 0),
            )
            for mail in found
        ]


def test_waiting_mail_of_a_deleted_connection_is_kept_and_finds_the_primary_one(
    db: Database,
) -> None:
    with db.write() as session:
        site = a_site(session)
        main = a_connection(session, site, nickname="Main")
        gone = a_connection(session, site, nickname="Gone", primary=False)
        session.add(Backup(site_id=site.id, position=1, connection_id=gone.id))
        queued = a_message(session, site, connection=gone)
        later = a_message(session, site, connection=gone, state=State.DEFERRED)
        other = a_message(session, site, connection=main)
    with db.write() as session:
        found = session.get_one(Connection, gone.id)
        moved = lifecycle.remove(session, found, actor=ACTOR, now=db.now())
    assert (moved.moved, moved.by) == (2, (("Main", 2),))
    assert where_it_waits(db, [queued, later, other]) == [
        ("queued", main.id, True),
        ("deferred", main.id, True),
        ("queued", main.id, True),
    ]
    with db.read() as session:
        assert chain_ids(session, session.get_one(Site, site.id)) == []


def test_mail_of_the_deleted_primary_connection_waits_for_the_next_one(db: Database) -> None:
    with db.write() as session:
        site = a_site(session)
        gone = a_connection(session, site)
        mail = a_message(session, site, connection=gone)
    with db.write() as session:
        found = session.get_one(Connection, gone.id)
        lifecycle.remove(session, found, actor=ACTOR, now=db.now())
    assert where_it_waits(db, [mail]) == [("queued", None, False)]
    with db.read() as session:
        assert session.get_one(Site, site.id).primary_connection_id is None


def test_a_deleted_connection_is_never_put_into_a_chain(db: Database) -> None:
    with db.write() as session:
        site = a_site(session)
        gone = a_connection(session, site, primary=False, deleted_at=a_time())
        with pytest.raises(LookupError):
            lifecycle.set_backups(session, site, [gone], actor=ACTOR, now=db.now())
