"""Rules, stored."""

import sqlalchemy as sa

from tests.world import World
from webapp import ids
from webapp.connections.models import Backup, Connection
from webapp.delivery import replan
from webapp.delivery.replan import Replanned
from webapp.routing.conditions import Groups, stored_groups
from webapp.routing.models import Rule, RuleKind
from webapp.sites.models import Site


def a_rule(
    world: World,
    site: int,
    groups: Groups,
    *,
    connection: int | None = None,
    action: str = "",
    name: str = "",
) -> str:
    """The uid of a new last rule: a control where there is an action. Mail is not told of it."""
    kind = RuleKind.CONTROL if action else RuleKind.ROUTE
    with world.db.write() as session:
        count = session.scalar(
            sa.select(sa.func.count()).where(Rule.site_id == site, Rule.kind == kind)
        )
        rule = Rule(
            uid=ids.short_id(),
            site_id=site,
            kind=kind,
            position=(count or 0) + 1,
            name=name,
            connection_id=connection,
            action=action,
            groups=stored_groups(groups),
            created_at=world.now,
            updated_at=world.now,
        )
        session.add(rule)
        stored = session.get_one(Site, site)
        stored.routing_enabled = True
        stored.routing_version += 1
        return rule.uid


def another_connection(world: World, site: int, nickname: str = "") -> int:
    """A connection of the site that is not its primary one."""
    primary = world_primary(world, site)
    made = world.a_connection(site)
    with world.db.write() as session:
        session.get_one(Site, site).primary_connection_id = primary
        session.get_one(Connection, made).nickname = nickname
    return made


def world_primary(world: World, site: int) -> int | None:
    with world.db.read() as session:
        return session.get_one(Site, site).primary_connection_id


def set_chain(world: World, site: int, *connections: int) -> None:
    """Let these stand in, in this order."""
    with world.db.write() as session:
        session.execute(sa.delete(Backup).where(Backup.site_id == site))
        session.add_all(
            Backup(site_id=site, position=position, connection_id=key)
            for position, key in enumerate(connections, start=1)
        )


def change_site(world: World, site: int, **values: object) -> None:
    """Set columns of a site, and tell nobody."""
    with world.db.write() as session:
        session.execute(sa.update(Site).where(Site.id == site).values(**values))


def changed(world: World, site: int) -> Replanned:
    """Tell waiting mail that the routing was changed."""
    with world.db.write() as session:
        return replan.routing_changed(session, session.get_one(Site, site), world.now)
