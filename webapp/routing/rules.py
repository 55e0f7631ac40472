"""The rules of a site as people edit them: read in order, checked, and stored as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp import audit, ids
from webapp.connections.models import Connection
from webapp.connections.service import choosable_connections, is_complete, is_shared
from webapp.delivery import replan
from webapp.delivery.replan import Replanned
from webapp.fields import N_, FieldErrors
from webapp.maillog.service import connection_name
from webapp.routing.conditions import Groups, check_groups, read_groups, stored_groups
from webapp.routing.models import Action, Rule, RuleKind
from webapp.sites.models import Site
from webapp.sites.service import INVISIBLE, check_line

MAX_RULES = 100
"""Of a kind, at one site."""
NAME_LENGTH = 100

Typed = tuple[tuple[Mapping[str, str], ...], ...]
"""Groups of conditions as they were typed: property, operator and value of each as text."""

EMPTY: Mapping[str, str] = {"property": "subject", "operator": "contains", "value": ""}
"""What a new condition begins with."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A rule as it was typed, or as it is stored. `uid` is empty for one that is new."""

    uid: str = ""
    name: str = ""
    connection: str = ""
    """Of a route: the uid of where mail goes."""
    action: str = ""
    """Of a control."""
    groups: Typed = ((EMPTY,),)

    @property
    def conditions(self) -> Groups:
        """What of it can be compared; see `conditions.read_groups`."""
        return read_groups([list(group) for group in self.groups])


@dataclass(frozen=True, kw_only=True)
class Target:
    """A connection that a route leads to, or may lead to."""

    id: int
    uid: str
    name: str
    is_primary: bool = False
    is_shared: bool = False
    is_ready: bool = True
    """It has all it needs to send."""
    is_gone: bool = False
    """It was deleted; only a route that named it before still does."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What became of a save."""

    is_changed: bool
    replanned: Replanned = field(default_factory=Replanned)


# ---- read ----


def rules_of(session: Session, site: Site, kind: RuleKind) -> list[Draft]:
    """The rules of a kind, in order."""
    stored = _stored(session, site, kind)
    uids = _uids(session, stored)
    return [_as_draft(rule, uids) for rule in stored]


def targets_of(session: Session, site: Site) -> list[Target]:
    """What routes may lead to, and then what of it some still name although it is deleted."""
    offered = choosable_connections(session, site)
    named = sa.select(Rule.connection_id).where(Rule.site_id == site.id)
    gone = session.scalars(
        sa.select(Connection)
        .where(Connection.id.in_(named), Connection.id.not_in([one.id for one in offered]))
        .order_by(Connection.id)
    )
    found = [
        Target(
            id=one.id,
            uid=one.uid,
            name=connection_name(one.nickname, one.mailer),
            is_primary=one.id == site.primary_connection_id,
            is_shared=is_shared(one),
            is_ready=one.lane_id is not None and is_complete(one),
        )
        for one in offered
    ]
    return found + [
        Target(
            id=one.id,
            uid=one.uid,
            name=connection_name(one.nickname, one.mailer),
            is_ready=False,
            is_gone=True,
        )
        for one in gone
    ]


def _stored(session: Session, site: Site, kind: RuleKind) -> list[Rule]:
    query = sa.select(Rule).where(Rule.site_id == site.id, Rule.kind == kind)
    return list(session.scalars(query.order_by(Rule.position, Rule.id)))


def _uids(session: Session, rules: Sequence[Rule]) -> dict[int | None, str]:
    keys = {rule.connection_id for rule in rules if rule.connection_id is not None}
    found = session.execute(
        sa.select(Connection.id, Connection.uid).where(Connection.id.in_(sorted(keys)))
    )
    return {row.id: row.uid for row in found}


def _as_draft(rule: Rule, uids: Mapping[int | None, str]) -> Draft:
    return Draft(
        uid=rule.uid,
        name=rule.name,
        connection=uids.get(rule.connection_id, ""),
        action=rule.action,
        groups=tuple(tuple(dict(each) for each in group) for group in rule.groups),
    )


# ---- save ----


def save_rules(
    session: Session,
    site: Site,
    kind: RuleKind,
    drafts: Sequence[Draft],
    *,
    enabled: bool | None = None,
    actor: str,
    now: datetime,
) -> Saved:
    """Store all rules of a kind in this order, and plan waiting mail by them.

    `enabled` switches Smart Routing. Raises FieldErrors by `r0-name`, `r0-connection`,
    `r0-g0-c0-value` and so on, counted from 0, and `rules` for all of them.
    """
    # Two people who save at once do so one after the other.
    session.refresh(site, with_for_update={"key_share": True})
    stored = _stored(session, site, kind)
    before = _shown(site, kind, stored, _uids(session, stored))
    checked = _checked(session, site, kind, drafts, stored)
    if enabled is not None:
        site.routing_enabled = enabled
    kept = _write(session, site, kind, checked, stored, now)
    session.flush()
    changes = audit.difference(before, _shown(site, kind, kept, _uids(session, kept)))
    if not changes:
        return Saved(is_changed=False)
    audit.record(
        session,
        at=now,
        actor=actor,
        action="routing changed" if kind is RuleKind.ROUTE else "controls changed",
        object_kind="site",
        object_id=site.id,
        site_id=site.id,
        changes=changes,
    )
    return Saved(is_changed=True, replanned=replan.routing_changed(session, site, now))


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """A rule as it is stored."""

    rule: Rule | None
    name: str
    connection_id: int | None
    action: str
    groups: list[Any]


def _checked(
    session: Session, site: Site, kind: RuleKind, drafts: Sequence[Draft], stored: Sequence[Rule]
) -> list[_Checked]:
    keys = {one.uid: one.id for one in choosable_connections(session, site)}
    uids = _uids(session, stored)
    left = {rule.uid: rule for rule in stored}
    errors: dict[str, str] = {}
    if len(drafts) > MAX_RULES:
        errors["rules"] = N_("A site has at most 100 rules of a kind.")
    found = []
    for number, draft in enumerate(drafts[:MAX_RULES]):
        rule = left.pop(draft.uid, None)
        mine = dict(keys)
        if rule is not None and rule.connection_id is not None:
            # What it leads to may have been deleted; the rule may stay as it is, and is skipped.
            mine.setdefault(uids[rule.connection_id], rule.connection_id)
        wrong = _wrong_with(kind, draft, mine)
        errors |= {f"r{number}-{name}": sentence for name, sentence in wrong.items()}
        if not wrong:
            is_route = kind is RuleKind.ROUTE
            found.append(
                _Checked(
                    rule=rule,
                    name=check_line(draft.name, NAME_LENGTH),
                    connection_id=mine[draft.connection] if is_route else None,
                    action="" if is_route else draft.action,
                    groups=stored_groups(draft.conditions),
                )
            )
    if errors:
        raise FieldErrors(errors)
    return found


def _wrong_with(kind: RuleKind, draft: Draft, connections: Mapping[str, int]) -> dict[str, str]:
    """Sentences by field."""
    found: dict[str, str] = {}
    try:
        check_line(draft.name, NAME_LENGTH)
    except ValueError as error:
        found["name"] = str(error)
    if kind is RuleKind.ROUTE and draft.connection not in connections:
        found["connection"] = N_("Choose a connection.")
    if kind is RuleKind.CONTROL and draft.action not in set(Action):
        found["action"] = N_("Choose what to do.")
    if not any(draft.groups):
        found["g0-c0-value"] = N_("Enter the text to compare with.")
    for g, group in enumerate(draft.groups):
        for c, condition in enumerate(group):
            if "\0" in condition.get("value", ""):
                found[f"g{g}-c{c}-value"] = INVISIBLE
    return found | check_groups(draft.groups)


def _write(
    session: Session,
    site: Site,
    kind: RuleKind,
    checked: Sequence[_Checked],
    stored: Sequence[Rule],
    now: datetime,
) -> list[Rule]:
    """The rules as they are now; those that were not given are deleted."""
    kept = []
    for position, given in enumerate(checked, start=1):
        rule = given.rule or Rule(uid=ids.short_id(), site_id=site.id, kind=kind, created_at=now)
        values = {
            "position": position,
            "name": given.name,
            "connection_id": given.connection_id,
            "action": given.action,
            "groups": given.groups,
        }
        if given.rule is None or any(getattr(rule, key) != value for key, value in values.items()):
            for key, value in values.items():
                setattr(rule, key, value)
            rule.updated_at = now
        if given.rule is None:
            session.add(rule)
        kept.append(rule)
    for rule in stored:
        if rule not in kept:
            session.delete(rule)
    return kept


def _shown(
    site: Site, kind: RuleKind, rules: Sequence[Rule], uids: Mapping[int | None, str]
) -> dict[str, Any]:
    """What the audit log compares: each rule by its uid, and their order."""
    found: dict[str, Any] = {
        f"rule {rule.uid}": {
            "name": rule.name,
            **(
                {"connection": uids.get(rule.connection_id, "")}
                if kind is RuleKind.ROUTE
                else {"action": rule.action}
            ),
            "groups": rule.groups,
        }
        for rule in rules
    }
    found["order"] = [rule.uid for rule in rules]
    if kind is RuleKind.ROUTE:
        found["enabled"] = site.routing_enabled
    return found
