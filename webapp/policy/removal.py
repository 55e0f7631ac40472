"""Delete a site: it is gone at once for everybody, and its mail a little at a time; see
`maillog.retention`.
"""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp import audit
from webapp.connections import lifecycle
from webapp.connections.models import Connection
from webapp.delivery import replan
from webapp.incidents.models import AlertTarget
from webapp.microsoft import service as microsoft
from webapp.microsoft.models import Link, OAuthApp
from webapp.sites.models import Credential, Mode, Site
from webapp.sites.service import revoke_credential


def delete_site(session: Session, site: Site, *, actor: str, now: datetime) -> int:
    """Take its logins away, stop its mail, remove its connections, and let the worker do the rest;
    returns how many waiting mails are not sent.
    """
    connections = _connections(session, site)
    _hold_apps(session, connections)
    site.deleted_at = now
    site.mode = Mode.DO_NOT_SEND  # for what is being handed in at this moment
    site.silent_hours = None
    stopped = replan.mode_changed(session, site, now)
    logins = sa.select(Credential).where(Credential.site_id == site.id).order_by(Credential.id)
    for credential in session.scalars(logins).all():
        revoke_credential(session, site, credential, actor=actor, now=now)
    for connection in connections:
        lifecycle.remove(session, connection, actor=actor, now=now)
    session.execute(
        sa.update(AlertTarget).where(AlertTarget.site_id == site.id).values(is_on=False)
    )
    audit.record(
        session,
        at=now,
        actor=actor,
        action="site deleted",
        object_kind="site",
        object_id=site.id,
        site_id=site.id,
        changes={"name": [site.name, None], "slug": [site.slug, None]},
    )
    session.flush()
    return stopped


def _connections(session: Session, site: Site) -> list[Connection]:
    query = sa.select(Connection).where(
        Connection.site_id == site.id, Connection.deleted_at.is_(None)
    )
    return list(session.scalars(query.order_by(Connection.id)))


def _hold_apps(session: Session, connections: list[Connection]) -> None:
    """Every registration before any connection, as everybody does."""
    keys = [connection.id for connection in connections]
    linked = sa.select(Link.app_id).where(Link.connection_id.in_(keys))
    own = sa.select(OAuthApp.id).where(OAuthApp.connection_id.in_(keys))
    for app_id in sorted({*session.scalars(linked), *session.scalars(own)}):
        microsoft.hold_app(session, app_id)
