"""The verbs on a connection as a whole: copy it, share it, take it back, remove it; the chain.

A removed connection stays as a row without settings, secrets and links: the log and rules go on
naming it.
"""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp import audit, ids
from webapp.connections.models import Backup, Connection, Health
from webapp.connections.service import (
    NICKNAME_LENGTH,
    ForeignConnection,
    forget_health,
    is_shared,
    may_choose,
)
from webapp.connections.uses import chain_ids, uses_of, waiting_with
from webapp.delivery import replan
from webapp.delivery.replan import Replanned
from webapp.microsoft import service as microsoft
from webapp.microsoft.models import Link, LinkFlow, OAuthApp
from webapp.sites.models import Site


class UsedElsewhere(ValueError):
    """Other sites use the connection; the text names them."""


# ---- a copy ----


def duplicate(
    session: Session,
    site: Site,
    connection: Connection,
    nickname: str,
    *,
    actor: str,
    now: datetime,
) -> Connection:
    """A connection of this site with the same settings, without secrets and links."""
    made = Connection(
        uid=ids.short_id(),
        site_id=site.id,
        nickname=nickname[:NICKNAME_LENGTH],
        mailer=connection.mailer,
        settings={slug: dict(settings) for slug, settings in connection.settings.items()},
        secrets_set={},
        from_email=connection.from_email,
        force_from_email=connection.force_from_email,
        from_name=connection.from_name,
        force_from_name=connection.force_from_name,
        return_path=connection.return_path,
        version=1,
        health=Health.UNKNOWN,
        created_at=now,
        updated_at=now,
    )
    session.add(made)
    session.flush()
    for own in microsoft.own_apps(session, connection):
        _copy_app(session, own, made, now)
    _record(session, made, "connection duplicated", actor, now, {"from": [None, connection.uid]})
    return made


def _copy_app(session: Session, app: OAuthApp, made: Connection, now: datetime) -> None:
    """Which registration it is, without its secret."""
    session.add(
        OAuthApp(
            uid=ids.short_id(),
            connection_id=made.id,
            name=app.name,
            provider=app.provider,
            cloud=app.cloud,
            tenant=app.tenant,
            client_id=app.client_id,
            created_at=now,
            updated_at=now,
        )
    )
    session.flush()


# ---- for every site, or for one ----


def share(session: Session, connection: Connection, *, actor: str, now: datetime) -> None:
    """Let every site choose it."""
    before = session.get_one(Site, connection.site_id)
    connection.site_id = None
    connection.updated_at = now
    session.flush()
    changes = {"site": [before.slug, None]}
    _record(session, connection, "connection shared", actor, now, changes, site_id=before.id)


def take_back(
    session: Session, site: Site, connection: Connection, *, actor: str, now: datetime
) -> None:
    """Make a shared connection one of this site alone; raises UsedElsewhere."""
    if not is_shared(connection):
        raise ForeignConnection(connection.uid)
    others = uses_of(session, connection).elsewhere(site.id)
    if others:
        raise UsedElsewhere(", ".join(other.name for other in others))
    waiting = waiting_with(session, connection, except_site=site.id)
    if waiting:
        raise UsedElsewhere("")
    connection.site_id = site.id
    connection.updated_at = now
    session.flush()
    _record(session, connection, "connection taken back", actor, now, {"site": [None, site.slug]})


# ---- gone ----


def remove(session: Session, connection: Connection, *, actor: str, now: datetime) -> Replanned:
    """Take a connection away from every site; its waiting mail finds another way.

    Rules keep pointing at it, and are skipped; who has it as primary connection has none then.
    """
    site_id = connection.site_id
    own = microsoft.own_apps(session, connection)
    linked = session.scalars(sa.select(Link.app_id).where(Link.connection_id == connection.id))
    for app_id in sorted({*linked, *(app.id for app in own)}):
        microsoft.hold_app(session, app_id)
    microsoft.forget_links(session, connection, now)
    for app in own:
        app.secret = app.next_secret = None
        app.secret_expires_on = app.next_secret_expires_on = None
    session.execute(sa.delete(LinkFlow).where(LinkFlow.connection_id == connection.id))
    connection.deleted_at = connection.updated_at = now
    connection.settings, connection.secrets, connection.secrets_set = {}, None, {}
    connection.version += 1
    forget_health(connection)
    session.flush()
    _leave(session, connection)
    changes = {"nickname": [connection.nickname, None], "mailer": [connection.mailer, None]}
    _record(session, connection, "connection removed", actor, now, changes, site_id=site_id)
    replanned = replan.connection_deleted(session, connection, now)
    connection.lane_id = None
    session.flush()
    return replanned


def _leave(session: Session, connection: Connection) -> None:
    """Nobody sends by it any more, and no chain holds it."""
    session.execute(
        sa.update(Site)
        .where(Site.primary_connection_id == connection.id)
        .values(primary_connection_id=None)
        .execution_options(synchronize_session="fetch")
    )
    chains = session.scalars(
        sa.delete(Backup).where(Backup.connection_id == connection.id).returning(Backup.site_id)
    ).all()
    for site_id in sorted(chains):
        site = session.get_one(Site, site_id)
        _write_chain(session, site, chain_ids(session, site))


# ---- the chain ----


def set_backups(
    session: Session, site: Site, chain: Sequence[Connection], *, actor: str, now: datetime
) -> bool:
    """Let these stand in, in this order; returns whether that is another chain than before."""
    for connection in chain:
        if not may_choose(site, connection):
            raise ForeignConnection(connection.uid)
    wanted = list(dict.fromkeys(connection.id for connection in chain))
    before = chain_ids(session, site)
    if wanted == before:
        return False
    _write_chain(session, site, wanted)
    known = session.execute(
        sa.select(Connection.id, Connection.uid).where(Connection.id.in_({*before, *wanted}))
    )
    uids = {row.id: row.uid for row in known}
    audit.record(
        session,
        at=now,
        actor=actor,
        action="backup connections changed",
        object_kind="site",
        object_id=site.id,
        site_id=site.id,
        changes={"backups": [[uids[key] for key in before], [uids[key] for key in wanted]]},
    )
    return True


def _write_chain(session: Session, site: Site, keys: Sequence[int]) -> None:
    session.execute(sa.delete(Backup).where(Backup.site_id == site.id))
    session.add_all(
        Backup(site_id=site.id, position=position, connection_id=key)
        for position, key in enumerate(keys, start=1)
    )
    session.flush()


def _record(
    session: Session,
    connection: Connection,
    action: str,
    actor: str,
    now: datetime,
    changes: dict[str, list[str | None]],
    *,
    site_id: int | None = None,
) -> None:
    audit.record(
        session,
        at=now,
        actor=actor,
        action=action,
        object_kind="connection",
        object_id=connection.uid,
        site_id=connection.site_id if site_id is None else site_id,
        changes=dict(changes),
    )
