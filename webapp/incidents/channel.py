"""The installation's own connection, by which alerts leave as mail; never that of a site."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.connections.models import Connection, Health
from webapp.connections.service import NotReady, alert_connection, load_mailer
from webapp.crypto import Keyring
from webapp.incidents.kinds import Kind
from webapp.incidents.models import Incident
from webapp.mailers.base import Mailer
from webapp.mailers.errors import DeliveryError, FailureKind

NO_CONNECTION = "no-alert-connection"
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
    if connection is None or not connection.from_email:
        raise NoWay(NO_CONNECTION)
    try:
        mailer = load_mailer(connection, keyring)
    except NotReady as error:
        raise NoWay(NO_CONNECTION) from error
    if incident is not None and is_about(incident, connection, mailer.lane_key()):
        raise NoWay(IS_BROKEN)
    return connection, mailer


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
