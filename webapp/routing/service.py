"""Which connection a mail leaves by, and why. `plan` is pure.

The first that applies decides: mode do-not-send; the first control that is met; mode hold. Then
the first route that is met and whose connection can send, else the primary connection.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.connections.models import Connection as MailConnection
from webapp.routing.conditions import Groups, MailFacts, Property, meets, read_groups
from webapp.routing.models import Action, Rule, RuleKind
from webapp.sites.models import Mode, Site

MAX_REDIRECTED = 50
"""Addresses kept of those that a redirected mail was meant for."""


class Why(StrEnum):
    """The code in `Message.why`."""

    PRIMARY = "primary"
    NO_CONNECTION = "no-connection"
    RULE = "rule"
    ASKED = "asked"
    """Whoever handed it in named the connection."""
    TEST = "test"
    DO_NOT_SEND = "do-not-send"
    HOLD = "mode-hold"
    CONTROL = "control"


@dataclass(frozen=True, kw_only=True)
class Route:
    """A rule that names a connection."""

    uid: str
    name: str
    groups: Groups
    connection_id: int | None


@dataclass(frozen=True, kw_only=True)
class Control:
    """A rule that lets mail through, blocks it or holds it."""

    uid: str
    name: str
    groups: Groups
    action: Action


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a site's rules ask of a mail, in order; those without a condition are left out."""

    controls: tuple[Control, ...] = ()
    routes: tuple[Route, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.controls or self.routes)

    @cached_property
    def asks_initiator(self) -> bool:
        """Whether who handed a mail in is of interest."""
        of_rules = [
            *(rule.groups for rule in self.controls),
            *(rule.groups for rule in self.routes),
        ]
        return any(
            condition.property is Property.INITIATOR
            for groups in of_rules
            for group in groups
            for condition in group
        )


NO_RULES = Rules()
NO_LANES: Mapping[int, int] = {}


@dataclass(frozen=True, kw_only=True)
class SiteRoute:
    """What is known of a site when its mail is routed.

    `connection_id` is the primary connection, where it can send. `lanes` has the lanes of those
    connections that routes name, as far as they can send.
    """

    site_id: int
    mode: str
    retry_hours: int
    connection_id: int | None
    lane_id: int | None
    redirect_to: str = ""
    version: int = 1
    rules: Rules = NO_RULES
    lanes: Mapping[int, int] = field(default_factory=lambda: NO_LANES)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A connection that a mail leaves by whatever the rules say."""

    connection_id: int
    lane_id: int | None
    is_test: bool = False
    """A test is about the connection: no mode and no control stops it."""
    is_resend: bool = False
    """A person looked at the mail: no control stops it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of a mail: blocked, held for a person, or waiting for a connection's lane."""

    blocked: bool = False
    held: bool = False
    connection_id: int | None = None
    lane_id: int | None = None
    why: Mapping[str, Any] = field(default_factory=dict)
    version: int | None = None
    """The `routing_version` that decided; empty where no rule may move it."""
    redirect_to: str = ""
    """Who gets it instead of its recipients; empty for those themselves."""


def plan(site: SiteRoute, mail: Callable[[], MailFacts], chosen: Chosen | None = None) -> Plan:
    """Decide about one mail that comes in. Without a connection it waits until there is one."""
    if chosen is not None and chosen.is_test:
        return _as_chosen(chosen, Why.TEST)
    if site.mode == Mode.DO_NOT_SEND:
        return Plan(blocked=True, why={"code": Why.DO_NOT_SEND.value})
    exempt = chosen is not None and chosen.is_resend
    stopped = None if exempt else _controlled(site.rules.controls, mail)
    if stopped is not None and stopped["action"] == Action.BLOCK:
        return Plan(blocked=True, why=stopped)
    if stopped is None and _holds(site):
        stopped = {"code": Why.HOLD.value}
    leaves = plan_route(site, mail) if chosen is None else _as_chosen(chosen, Why.ASKED)
    return Plan(
        held=stopped is not None,
        connection_id=leaves.connection_id,
        lane_id=leaves.lane_id,
        why=stopped or leaves.why,
        version=leaves.version,
        redirect_to=site.redirect_to if site.mode == Mode.REDIRECT_TO else "",
    )


def plan_route(site: SiteRoute, mail: Callable[[], MailFacts]) -> Plan:
    """By which connection a mail leaves, if it may: the routes, then the primary connection."""
    for route in site.rules.routes:
        lane_id = site.lanes.get(route.connection_id or 0)
        match = meets(route.groups, mail()) if lane_id is not None else None
        if match is not None:
            return Plan(
                connection_id=route.connection_id,
                lane_id=lane_id,
                why={
                    "code": Why.RULE.value,
                    "rule": route.uid,
                    "name": route.name,
                    "group": match.group,
                },
                version=site.version,
            )
    if site.connection_id is None:
        return Plan(why={"code": Why.NO_CONNECTION.value}, version=site.version)
    return Plan(
        connection_id=site.connection_id,
        lane_id=site.lane_id,
        why={"code": Why.PRIMARY.value},
        version=site.version,
    )


def _as_chosen(chosen: Chosen, why: Why) -> Plan:
    return Plan(connection_id=chosen.connection_id, lane_id=chosen.lane_id, why={"code": why.value})


def _controlled(
    controls: Sequence[Control], mail: Callable[[], MailFacts]
) -> dict[str, Any] | None:
    """What the first control that is met does to a mail; None where it is let through."""
    for control in controls:
        match = meets(control.groups, mail())
        if match is None:
            continue
        if control.action is Action.ALLOW:
            return None
        return {
            "code": Why.CONTROL.value,
            "rule": control.uid,
            "name": control.name,
            "action": control.action.value,
            "group": match.group,
        }
    return None


def _holds(site: SiteRoute) -> bool:
    """Mail that is to be redirected to nobody is held: it must not reach its recipients."""
    return site.mode == Mode.HOLD or (site.mode == Mode.REDIRECT_TO and not site.redirect_to)


def redirected(original: Sequence[str]) -> dict[str, Any]:
    """What is kept, with how a mail came in, of whom it was meant for."""
    return {"redirected_from": list(original[:MAX_REDIRECTED]), "redirected": len(original)}


# ---- what is stored ----


RuleRow = tuple[str, str, str, int | None, str, object]
"""Kind, uid, name, connection, action and groups, as they are stored."""


def rules_from(rows: Iterable[RuleRow], *, routing_enabled: bool) -> Rules:
    """Rules as they were stored, in order. With routing off its routes wait for better days."""
    controls, routes = [], []
    for kind, uid, name, connection_id, action, stored in rows:
        groups = read_groups(stored)
        if not groups:
            continue
        if kind == RuleKind.CONTROL and action in set(Action):
            controls.append(Control(uid=uid, name=name, groups=groups, action=Action(action)))
        elif kind == RuleKind.ROUTE and routing_enabled:
            routes.append(Route(uid=uid, name=name, groups=groups, connection_id=connection_id))
    return Rules(controls=tuple(controls), routes=tuple(routes))


def site_route(connection: Connection, site_id: int) -> SiteRoute | None:
    """A site as its mail is routed now; None when there is no such site."""
    site = connection.execute(_SITE, {"site": site_id}).first()
    if site is None:
        return None
    rows = connection.execute(_RULES, {"site": site_id}).all()
    rules = rules_from((tuple(row) for row in rows), routing_enabled=site.routing_enabled)
    targets = {route.connection_id for route in rules.routes}
    lanes = connection.execute(_LANES, {"ids": sorted(key for key in targets if key)})
    return SiteRoute(
        site_id=site_id,
        mode=site.mode,
        retry_hours=site.retry_hours,
        connection_id=site.connection_id if site.lane_id is not None else None,
        lane_id=site.lane_id,
        redirect_to=site.redirect_to,
        version=site.routing_version,
        rules=rules,
        lanes={row.id: row.lane_id for row in lanes},
    )


_SITE = (
    sa.select(
        Site.mode,
        Site.retry_hours,
        Site.redirect_to,
        Site.routing_enabled,
        Site.routing_version,
        MailConnection.id.label("connection_id"),
        MailConnection.lane_id,
    )
    .outerjoin(
        MailConnection,
        sa.and_(
            MailConnection.id == Site.primary_connection_id, MailConnection.deleted_at.is_(None)
        ),
    )
    .where(Site.id == sa.bindparam("site"))
)
_RULES = (
    sa.select(Rule.kind, Rule.uid, Rule.name, Rule.connection_id, Rule.action, Rule.groups)
    .where(Rule.site_id == sa.bindparam("site"))
    .order_by(Rule.kind, Rule.position)
)
_LANES = sa.select(MailConnection.id, MailConnection.lane_id).where(
    MailConnection.id.in_(sa.bindparam("ids", expanding=True)),
    MailConnection.lane_id.is_not(None),
    MailConnection.deleted_at.is_(None),
)
