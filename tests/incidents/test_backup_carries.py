"""While a backup carries, its primary connection is an incident all the same, and nothing has
failed."""

from tests.factories import a_connection, a_lane, a_message
from tests.incidents.conftest import Desk
from webapp.connections.models import Backup
from webapp.delivery.detours import Detours
from webapp.delivery.models import Lane, Message, State
from webapp.incidents.kinds import CARRIED, Kind, say
from webapp.sites.models import Site


def test_a_stopped_connection_is_told_and_said_to_be_stood_in_for(desk: Desk) -> None:
    site, other = desk.site(), desk.site()
    with desk.db.write() as session:
        lane, second = a_lane(session), a_lane(session)
        row = session.get_one(Site, site.id)
        primary = a_connection(session, row, lane=lane)
        backup = a_connection(session, None, primary=False, lane=second)
        session.add(Backup(site_id=site.id, position=1, connection_id=backup.id))
        mail = a_message(session, row, connection=primary)
        a_connection(session, session.get_one(Site, other.id), lane=lane)
    stopped = {"is_blocked": True, "blocked_kind": "misconfigured", "blocked_since": desk.now}
    desk.change(Lane, lane.id, **stopped)
    Detours(desk.db).round()
    desk.watch.round()
    (found,) = desk.incidents()
    assert (found.kind, found.details["carried"]) == (Kind.STOPPED, [site.id])
    assert found.details["waiting"] == {}
    assert found.details["stopped"] == 0
    assert CARRIED in say(found, lambda text, **values: text % values, over=False).text
    with desk.db.read() as session:
        carried = session.get_one(Message, mail.id)
    assert (carried.connection_id, carried.state) == (backup.id, State.QUEUED)

    desk.change(Lane, second.id, **stopped)
    desk.watch.round()
    told = {tuple(one.details["sites"]): one.details["carried"] for one in desk.incidents()}
    assert told == {(site.id, other.id): [], (site.id,): []}
