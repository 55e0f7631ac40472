"""The installation's own connection, by which alerts leave as mail; never that of a site."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.connections.models import Connection, Health
from webapp.connections.service import NotReady, alert_connection, is_complete, load_mailer
from webapp.crypto import Keyring
from webapp.delivery.models import Lane
from webapp.incidents.kinds import Kind
from webapp.incidents.models import Incident
from webapp.mailers import registry
from webapp.mailers.base import Mailer
from webapp.mailers.errors import DeliveryError, FailureKind
from webapp.sites.models import Site

NO_CONNECTION = "no-alert-connection"
NOT_LINKED = "alert-connection-not-linked"
IS_BROKEN = "alert-connection-broken"

HEALTH = {
    FailureKind.NEEDS_REAUTHORISATION: Health.NEEDS_REAUTHORISATION,
    FailureKind.MISCONFIGURED: Health.MISCONFIGURED,
}


class NoWay(Exception):
    """No mail can be sent about this incident; `code` is one of the words above."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def way_out(
    session: Session, keyring: Keyring, incident: Incident | None
) -> tuple[Connection, Mailer]:
    """The connection and its mailer; raises NoWay."""
    connection = alert_connection(session)
    if connection is None:
        raise NoWay(NO_CONNECTION)
    try:
        mailer = load_mailer(connection, keyring)
    except NotReady as error:
        raise NoWay(NOT_LINKED if lacks_link(connection) else NO_CONNECTION) from error
    if not connection.from_email:
        raise NoWay(NO_CONNECTION)
    lane_key = mailer.lane_key() or _stored_lane(session, connection)
    if incident is not None and is_about(incident, connection, lane_key):
        raise NoWay(IS_BROKEN)
    return connection, mailer


def lacks_link(connection: Connection) -> bool:
    """Whether it needs an account, and none is linked."""
    kind = registry().get(connection.mailer)
    return kind is not None and kind.needs_link and connection.grant_id is None


def works(connection: Connection | None) -> bool:
    """Whether alerts can leave as mail, as far as is known now."""
    if connection is None or not connection.from_email or not is_complete(connection):
        return False
    return connection.health in {Health.UNKNOWN, Health.WORKING}


def sites_by(session: Session, connection: Connection) -> Sequence[str]:
    """Sites that send by the mailbox by which alerts leave: what stops them stops both."""
    if connection.grant_id is None or connection.lane_id is None:
        return ()
    query = (
        sa.select(Site.name)
        .join(Connection, Connection.site_id == Site.id)
        .where(Connection.lane_id == connection.lane_id, Connection.is_system.is_(False))
        .distinct()
        .order_by(Site.name)
    )
    return session.scalars(query).all()


def _stored_lane(session: Session, connection: Connection) -> str:
    """The lane of a linked mailbox, which the mailer does not know."""
    lane = session.get(Lane, connection.lane_id) if connection.lane_id else None
    return lane.key if lane else ""


def is_about(incident: Incident, connection: Connection, lane_key: str) -> bool:
    """Whether the incident is about the way by which its own alert would leave."""
    if incident.kind == Kind.ALERTS:
        return True
    details = incident.details
    if lane_key and details.get("lane") == lane_key:
        return True
    return connection.grant_id is not None and connection.grant_id in details.get("grants", ())


def note(
    session: Session, connection: Connection, error: DeliveryError | None, now: datetime
) -> None:
    """Remember how it went; what was learnt with other settings is no news."""
    health = Health.WORKING
    if error is not None:
        health = HEALTH.get(error.kind, Health.FAILING)
    session.execute(
        sa.update(Connection)
        .where(Connection.id == connection.id, Connection.version == connection.version)
        .values(
            health=health,
            health_since=sa.case(
                (Connection.health == health, Connection.health_since),
                else_=sa.bindparam("since", now),
            ),
            last_code=error.code[:40] if error else "",
            last_words=error.words if error else "",
        )
    )
