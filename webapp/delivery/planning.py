"""Waiting mail planned anew: what the rules of its site say of it by now, and where it goes then.

Reading and deciding needs no lock; writing says by its statement what must still be true, so a
mail that was claimed, cancelled or planned by somebody else meanwhile is left as it is.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.connections.models import Backup
from webapp.connections.models import Connection as MailConnection
from webapp.delivery.content import stored_mail
from webapp.delivery.models import Message, Recipient, State, may_move
from webapp.mailers import registry
from webapp.routing.conditions import MailFacts, facts_for_rules
from webapp.routing.service import Plan, SiteRoute, Why, plan_route, site_route
from webapp.sites.models import Credential

KEPT = ("held", "released")
"""In `Message.why`: what stays true whatever the rules say later."""
MOVING = (State.QUEUED, State.DEFERRED)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A mail that waits, and where it stands."""

    id: int
    connection_id: int | None
    lane_id: int | None
    planned_id: int | None
    version: int | None
    why: Mapping[str, Any]
    detour: Mapping[str, Any] | None
    received: Mapping[str, Any]
    label: str
    """Of the credential that handed it in."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What is known of a site while its waiting mail is planned anew."""

    site: SiteRoute
    chain: tuple[int, ...]
    """Its backups, in order."""
    lanes: Mapping[int, int | None]
    """Of every connection that is there and may matter; without a lane it cannot send."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a mail goes, and why."""

    planned_id: int | None
    connection_id: int | None
    lane_id: int | None
    why: Mapping[str, Any]
    detour: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Move:
    """A mail and its place."""

    mail: Waiting
    place: Place
    version: int | None
    """Of the rules that decided."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether it leaves by another connection than before."""
        return self.place.connection_id != self.mail.connection_id


# ---- read ----


_COLUMNS = (
    Message.id,
    Message.connection_id,
    Message.lane_id,
    Message.planned_id,
    Message.routed_version.label("version"),
    Message.why,
    Message.detour,
    Message.received,
    sa.func.coalesce(Credential.label, "").label("label"),
)


def waiting(
    connection: Connection, *where: sa.ColumnElement[bool], most: int, lock: bool = False
) -> list[Waiting]:
    """Mail in the order it came. With `lock` it stays as it is until commit, and whatever somebody
    else is working on at this moment is left out."""
    query = (
        sa.select(*_COLUMNS)
        .outerjoin(Credential, Credential.id == Message.credential_id)
        .where(*where)
        .order_by(Message.id)
        .limit(most)
    )
    if lock:
        query = query.with_for_update(of=Message, skip_locked=True)
    return [Waiting(**row._mapping) for row in connection.execute(query)]


def is_stale(site_id: int, version: int) -> sa.ColumnElement[bool]:
    """Waiting mail of a site that an older version of its rules has planned."""
    return sa.and_(
        Message.site_id == site_id,
        Message.due_at.is_not(None),
        Message.routed_version < version,
        may_move(),
    )


def ground_of(connection: Connection, site_id: int) -> Ground | None:
    """A site as its mail is planned now; None when there is no such site."""
    site = site_route(connection, site_id)
    if site is None:
        return None
    chain = connection.execute(
        sa.select(Backup.connection_id)
        .join(MailConnection, MailConnection.id == Backup.connection_id)
        .where(Backup.site_id == site_id, MailConnection.deleted_at.is_(None))
        .order_by(Backup.position)
    )
    return Ground(site=site, chain=tuple(chain.scalars()), lanes={})


def with_lanes(connection: Connection, ground: Ground, mails: Iterable[Waiting]) -> Ground:
    """The same, with the lanes of every connection by which these mails may leave."""
    site = ground.site
    keys = {key for mail in mails for key in (mail.connection_id, mail.planned_id)}
    keys |= {site.connection_id, *ground.chain}
    rows = connection.execute(
        sa.select(MailConnection.id, MailConnection.lane_id).where(
            MailConnection.id.in_(sorted(key for key in keys if key is not None)),
            MailConnection.deleted_at.is_(None),
        )
    )
    return replace(ground, lanes={**site.lanes, **{row.id: row.lane_id for row in rows}})


class Letters:
    """What rules look at in stored mail, read only as far as a rule asks for it."""

    def __init__(self, connection: Connection, mails: Sequence[Waiting]) -> None:
        self._connection = connection
        self._ids = [mail.id for mail in mails]

    @cached_property
    def _recipients(self) -> dict[int, list[str]]:
        rows = self._connection.execute(
            sa.select(Recipient.message_id, Recipient.address)
            .where(Recipient.message_id.in_(self._ids))
            .order_by(Recipient.message_id, Recipient.position)
        )
        found: dict[int, list[str]] = {}
        for row in rows:
            found.setdefault(row.message_id, []).append(row.address)
        return found

    def facts(self, mail: Waiting) -> MailFacts:
        """Of a mail as it was handed in, to whom it was meant for."""
        meant = mail.received.get("redirected_from") or self._recipients.get(mail.id, [])
        raw = stored_mail(self._connection, mail.id) or b""
        return facts_for_rules(raw, meant, mail.label)


# ---- decide ----


def decide(
    connection: Connection,
    ground: Ground,
    mails: Sequence[Waiting],
    *,
    keep_asked: bool = False,
) -> list[Move]:
    """Where each of these mails goes now. Only reads.

    With `keep_asked` what asked for a connection keeps it, as long as that is there.
    """
    ground = with_lanes(connection, ground, mails)
    letters = Letters(connection, mails)
    moves = []
    for mail in mails:
        if keep_asked and mail.version is None and mail.connection_id in ground.lanes:
            moves.append(Move(mail=mail, place=_as_asked(mail, ground), version=None))
            continue
        plan = plan_route(ground.site, _once(partial(letters.facts, mail)))
        moves.append(Move(mail=mail, place=place(mail, plan, ground), version=plan.version))
    return moves


def _as_asked(mail: Waiting, ground: Ground) -> Place:
    return Place(
        planned_id=mail.connection_id,
        connection_id=mail.connection_id,
        lane_id=ground.lanes.get(mail.connection_id or 0),
        why={"code": Why.ASKED.value},
        detour=None,
    )


def _once(read: Callable[[], MailFacts]) -> Callable[[], MailFacts]:
    """Rules ask many times; the mail is read once."""
    found: list[MailFacts] = []

    def facts() -> MailFacts:
        if not found:
            found.append(read())
        return found[0]

    return facts


def place(mail: Waiting, plan: Plan, ground: Ground) -> Place:
    """Where a mail with this plan goes. Pure.

    It stays with a backup that stands in as long as that may: its plan is the old one, and the
    backup is still in the chain. A connection that refused the mail for good is not asked again
    while there is another.
    """
    why = {**plan.why, **{name: mail.why[name] for name in KEPT if name in mail.why}}
    detour = mail.detour or {}
    refused = set(detour.get("refused", ()))
    if plan.connection_id is None:
        return _without_plan(mail, why, ground)
    candidates = [plan.connection_id, *(key for key in ground.chain if key != plan.connection_id)]
    open_to_it = [key for key in candidates if key not in refused]
    if mail.planned_id == plan.connection_id and mail.connection_id in open_to_it:
        connection_id, kept = mail.connection_id, mail.detour
    else:
        connection_id = next(
            (key for key in open_to_it if ground.lanes.get(key) is not None), plan.connection_id
        )
        kept = {**detour, "refused": sorted(refused), "passed": []} if refused else None
    return Place(
        planned_id=plan.connection_id,
        connection_id=connection_id,
        lane_id=ground.lanes.get(connection_id or 0),
        why=why,
        detour=kept,
    )


def _without_plan(mail: Waiting, why: Mapping[str, Any], ground: Ground) -> Place:
    """Where routing knows no connection: a backup may carry it all the same; else it waits for its
    own connection, as long as that is there and only taken off its lane."""
    detour = mail.detour or {}
    refused = set(detour.get("refused", ()))
    waits_for = mail.planned_id if mail.planned_id is not None else mail.connection_id
    is_there = waits_for is not None and waits_for in ground.lanes
    own = waits_for if is_there and ground.lanes[waits_for or 0] is None else None
    stands_in = mail.connection_id in set(ground.chain) - refused
    connection_id = mail.connection_id if stands_in else own
    kept = mail.detour if stands_in or refused else None
    return Place(
        planned_id=own,
        connection_id=connection_id,
        lane_id=ground.lanes.get(connection_id or 0),
        why=why,
        detour=kept,
    )


# ---- write ----


def write(
    connection: Connection,
    moves: Sequence[Move],
    version: int,
    now: datetime,
    *,
    states: Collection[State] = MOVING,
) -> Counter[int | None]:
    """Put mail where it belongs; returns how many went to each connection that is another one.

    What was put off by the old connection is due at once with the new one.
    """
    groups: dict[str, list[Move]] = {}
    for move in moves:
        groups.setdefault(_key(move), []).append(move)
    moved: Counter[int | None] = Counter()
    for group in groups.values():
        count = _write_group(connection, group, version, now, states)
        if group[0].is_elsewhere:
            moved[group[0].place.connection_id] += count
    return moved


def _key(move: Move) -> str:
    """Mails with the same one are written by one statement."""
    return json.dumps([vars(move.place), move.mail.connection_id])


def _write_group(
    connection: Connection,
    group: Sequence[Move],
    version: int,
    now: datetime,
    states: Collection[State],
) -> int:
    first = group[0]
    values: dict[str, Any] = dict(vars(first.place)) | {"routed_version": version}
    if first.is_elsewhere:
        values["due_at"] = sa.case((Message.due_at > now, now), else_=Message.due_at)
    written = connection.execute(
        sa.update(Message)
        .where(
            Message.id.in_([move.mail.id for move in group]),
            Message.due_at.is_not(None),
            Message.state.in_(states),
            Message.connection_id.is_not_distinct_from(first.mail.connection_id),
            sa.func.coalesce(Message.routed_version, 0) <= version,
        )
        .values(values)
    )
    return written.rowcount


def names_of(connection: Connection, keys: Iterable[int | None]) -> dict[int, str]:
    """What connections are called: their nickname, else their mailer's label."""
    rows = connection.execute(
        sa.select(MailConnection.id, MailConnection.nickname, MailConnection.mailer).where(
            MailConnection.id.in_(sorted(key for key in keys if key is not None))
        )
    )
    return {row.id: row.nickname or _label(row.mailer) for row in rows}


def _label(mailer: str) -> str:
    kind = registry().get(mailer)
    return str(kind.label) if kind else mailer
