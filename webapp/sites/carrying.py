"""Which backup carries the mail of a site while its primary connection does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased, defer

from webapp.connections.models import Backup, Connection, Health
from webapp.delivery.backups import LaneNow, Standing
from webapp.delivery.models import Lane, Message
from webapp.maillog.service import connection_name
from webapp.sites.models import Mode, Site

Placed = tuple[Site, Connection | None, Lane | None]
"""A site, its primary connection, and the lane of that."""

_CLOSED = {Standing.CLOSED, Standing.NONE}
_LOAD = (defer(Connection.secrets), defer(Connection.secrets_set), defer(Connection.settings))


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A backup stands in for the primary connection."""

    by: str
    """The name of the backup."""
    since: datetime | None
    """None: nobody noted when the primary stopped."""


def carried(session: Session, placed: Sequence[Placed], now: datetime) -> dict[int, Carried]:
    """By site, the backup that carries its mail; sites whose primary does so are missing.

    A closed lane leaves no other way. A connection that merely fails is asked first with every
    mail, so there the newest mail has to have left by a backup.
    """
    down = {
        site.id: (site, primary, lane)
        for site, primary, lane in placed
        if primary is not None and site.mode in {Mode.LIVE, Mode.REDIRECT_TO}
        if _is_closed(site, lane, now) or primary.health not in {Health.WORKING, Health.UNKNOWN}
    }
    chains = _chains(session, sorted(down))
    newest = _newest(
        session, [key for key in chains if not _is_closed(down[key][0], down[key][2], now)]
    )
    found = {}
    for site_id, chain in chains.items():
        site, primary, lane = down[site_id]
        if _is_closed(site, lane, now):
            taker = next((one for one, its in chain if _is_open(site, its, now)), None)
            since = lane.blocked_since if lane is not None else primary.health_since
        else:
            planned, by = newest.get(site_id, (None, None))
            taken = by if planned == primary.id else None
            taker = next((one for one, _lane in chain if one.id == taken), None)
            since = primary.health_since
        if taker is not None and taker.id != primary.id:
            found[site_id] = Carried(by=connection_name(taker.nickname, taker.mailer), since=since)
    return found


def _chains(
    session: Session, site_ids: Sequence[int]
) -> dict[int, list[tuple[Connection, Lane | None]]]:
    if not site_ids:
        return {}
    rows = session.execute(
        sa.select(Backup.site_id, Connection, Lane)
        .join(Connection, Connection.id == Backup.connection_id)
        .outerjoin(Lane, Lane.id == Connection.lane_id)
        .options(*_LOAD, defer(Lane.windows))
        .where(Backup.site_id.in_(site_ids), Connection.deleted_at.is_(None))
        .order_by(Backup.site_id, Backup.position)
    )
    found: dict[int, list[tuple[Connection, Lane | None]]] = {}
    for site_id, connection, lane in rows:
        found.setdefault(site_id, []).append((connection, lane))
    return found


def _newest(
    session: Session, site_ids: Sequence[int]
) -> Mapping[int, tuple[int | None, int | None]]:
    """Of the newest mail of each site: the connection it was meant for, and where it is."""
    if not site_ids:
        return {}
    mine = aliased(Message)
    last = sa.select(sa.func.max(mine.id)).where(mine.site_id == Site.id)
    rows = session.execute(
        sa.select(Message.site_id, Message.planned_id, Message.connection_id)
        .select_from(Site)
        .join(Message, Message.id == last.correlate(Site).scalar_subquery())
        .where(Site.id.in_(site_ids))
    )
    return {row[0]: (row[1], row[2]) for row in rows}


def _standing(site: Site, lane: Lane | None, now: datetime) -> Standing:
    if lane is None:
        return Standing.NONE
    facts = LaneNow(
        lane_id=lane.id,
        is_paused=lane.is_paused,
        is_blocked=lane.is_blocked,
        blocked_until=lane.blocked_until,
        blocked_since=lane.blocked_since,
        blocked_kind=lane.blocked_kind,
        trips=lane.trips,
    )
    return facts.standing(timedelta(minutes=site.patience_minutes), now)


def _is_closed(site: Site, lane: Lane | None, now: datetime) -> bool:
    return _standing(site, lane, now) in _CLOSED


def _is_open(site: Site, lane: Lane | None, now: datetime) -> bool:
    return _standing(site, lane, now) is Standing.OPEN
