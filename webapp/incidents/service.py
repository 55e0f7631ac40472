"""Opening and closing incidents, and whom they are told to. Each verb works in the caller's unit.

A cause has one open row. One that comes back within ten minutes of its end, before the end was
told, is the same incident again, and nobody hears of the gap; later, or once the end was told, it
is a new one. So a cause that comes and goes is told at most once each way in ten minutes, and a
cause that has come back for good is never kept quiet.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp import ids
from webapp.incidents.kinds import BY_SOMEBODY, SETTLES, Kind
from webapp.incidents.models import (
    AlertTarget,
    Incident,
    IncidentSite,
    Notification,
    Occasion,
    Told,
)
from webapp.incidents.signs import Sign


def open_incident(session: Session, sign: Sign, now: datetime) -> Incident | None:
    """Open one for this cause, or the last one again; None when there is one already.

    Raises IntegrityError when another process opens one at this moment.
    """
    if session.scalar(_open_for(sign.cause)) is not None:
        return None
    found = _just_closed(session, sign.cause, now)
    if found is not None:
        found.closed_at = None
        session.execute(
            sa.delete(Notification).where(
                Notification.incident_id == found.id, Notification.occasion == Occasion.CLOSED
            )
        )
    else:
        found = Incident(
            uid=ids.short_id(), cause=sign.cause[:200], kind=sign.kind, details={}, opened_at=now
        )
        session.add(found)
        session.flush()
    update_incident(session, found, sign, now)
    return found


def update_incident(session: Session, incident: Incident, sign: Sign, now: datetime) -> bool:
    """Note how it stands by now; sites that it has come to concern are told. Was there news?"""
    details = {**sign.details}
    if sign.since is not None:
        details["since"] = incident.details.get("since") or sign.since.isoformat()
    waiting = sum(details.get("waiting", {}).values())
    details["stopped"] = max(waiting, incident.details.get("stopped", 0))
    if sign.kind in {Kind.FAILED, Kind.UNCLEAR}:
        details["count"] = max(details["count"], incident.details.get("count", 0))
    known = set(sites_of(session, incident.id))
    fresh = sign.sites - known
    details["sites"] = sorted(known | fresh)
    if not fresh and incident.details == details and incident.code == sign.code[:40]:
        return False
    incident.code, incident.words, incident.details = sign.code[:40], sign.words, details
    session.add_all(IncidentSite(incident_id=incident.id, site_id=site) for site in sorted(fresh))
    session.flush()
    _queue(session, incident, known | fresh, now)
    return True


def close_incident(session: Session, incident_id: int, now: datetime, *, quietly: bool) -> bool:
    """It is over; whoever heard of it hears that too, unless `quietly`. False: it was already."""
    incident = session.get(Incident, incident_id, with_for_update=True)
    if incident is None or incident.closed_at is not None:
        return False
    incident.closed_at = now
    session.flush()
    if not quietly:
        due = now if incident.kind in BY_SOMEBODY else now + SETTLES
        heard = sa.select(Notification.target_id).where(
            Notification.incident_id == incident.id,
            Notification.occasion == Occasion.OPENED,
            Notification.told.in_([Told.SENT, Told.DUE]),
        )
        for target_id in session.scalars(heard).all():
            session.add(_notification(incident.id, target_id, Occasion.CLOSED, now, due))
        session.flush()
    return True


def test_target(session: Session, target: AlertTarget, now: datetime) -> Notification:
    """Send a sample to a target."""
    made = _notification(None, target.id, Occasion.TEST, now, now)
    session.add(made)
    session.flush()
    return made


def tests_lately(session: Session, site_id: int | None, now: datetime) -> int:
    """Samples within the last minute, to all targets of a site or of the installation."""
    query = (
        sa.select(sa.func.count())
        .select_from(Notification)
        .join(AlertTarget, AlertTarget.id == Notification.target_id)
        .where(
            _of(site_id),
            Notification.occasion == Occasion.TEST,
            Notification.created_at > now - timedelta(minutes=1),
        )
    )
    return session.scalar(query) or 0


# ---- reading ----


def open_incidents(session: Session) -> Sequence[Incident]:
    """Every open one, the newest first."""
    query = sa.select(Incident).where(Incident.closed_at.is_(None)).order_by(Incident.id.desc())
    return session.scalars(query).all()


def incidents_of_site(session: Session, site_id: int) -> Sequence[Incident]:
    """The open ones that concern a site, the newest first."""
    query = (
        sa.select(Incident)
        .join(IncidentSite, IncidentSite.incident_id == Incident.id)
        .where(IncidentSite.site_id == site_id, Incident.closed_at.is_(None))
    )
    return session.scalars(query.order_by(Incident.id.desc())).all()


def closed_incidents(session: Session, limit: int = 50) -> Sequence[Incident]:
    """The last ones that are over, the newest first."""
    query = sa.select(Incident).where(Incident.closed_at.is_not(None))
    return session.scalars(query.order_by(Incident.closed_at.desc()).limit(limit)).all()


def find_incident(session: Session, uid: str, site_id: int | None = None) -> Incident | None:
    """One by its id; for a site only if it concerns that."""
    query = sa.select(Incident).where(Incident.uid == uid)
    if site_id is not None:
        query = query.join(IncidentSite, IncidentSite.incident_id == Incident.id).where(
            IncidentSite.site_id == site_id
        )
    return session.scalar(query)


def sites_of(session: Session, incident_id: int) -> Sequence[int]:
    """The sites that it concerns."""
    return session.scalars(
        sa.select(IncidentSite.site_id)
        .where(IncidentSite.incident_id == incident_id)
        .order_by(IncidentSite.site_id)
    ).all()


def targets_of(session: Session, site_id: int | None) -> Sequence[AlertTarget]:
    """The targets of a site, or of the installation, the oldest first."""
    return session.scalars(
        sa.select(AlertTarget).where(_of(site_id)).order_by(AlertTarget.id)
    ).all()


# ---- within ----


def _of(site_id: int | None) -> sa.ColumnElement[bool]:
    if site_id is None:
        return AlertTarget.site_id.is_(None)
    return AlertTarget.site_id == site_id


def _open_for(cause: str) -> sa.Select[int]:
    return sa.select(Incident.id).where(Incident.cause == cause, Incident.closed_at.is_(None))


def _just_closed(session: Session, cause: str, now: datetime) -> Incident | None:
    """The last one for this cause, if it ended just now and nobody was told that."""
    told = sa.select(Notification.id).where(
        Notification.incident_id == Incident.id,
        Notification.occasion == Occasion.CLOSED,
        sa.or_(Notification.told != Told.DUE, Notification.attempts > 0),
    )
    return session.scalar(
        sa.select(Incident)
        .where(Incident.cause == cause, Incident.closed_at > now - SETTLES, ~told.exists())
        .order_by(Incident.id.desc())
        .limit(1)
    )


def _queue(session: Session, incident: Incident, sites: Iterable[int], now: datetime) -> None:
    """Tell the targets that did not hear of it yet; an address that stands twice hears once."""
    targets = session.scalars(
        sa.select(AlertTarget)
        .where(
            AlertTarget.is_on,
            sa.or_(AlertTarget.site_id.is_(None), AlertTarget.site_id.in_(list(sites))),
        )
        .order_by(AlertTarget.id)
    ).all()
    heard = session.execute(
        sa.select(AlertTarget.id, AlertTarget.channel, AlertTarget.address)
        .join(Notification, Notification.target_id == AlertTarget.id)
        .where(Notification.incident_id == incident.id, Notification.occasion == Occasion.OPENED)
    ).all()
    seen = {(row.channel, row.address.casefold()) for row in heard}
    for target in targets:
        key = (target.channel, target.address.casefold())
        if key not in seen:
            seen.add(key)
            session.add(_notification(incident.id, target.id, Occasion.OPENED, now, now))
    session.flush()


def _notification(
    incident_id: int | None, target_id: int, occasion: Occasion, now: datetime, due: datetime
) -> Notification:
    return Notification(
        incident_id=incident_id,
        target_id=target_id,
        occasion=occasion,
        told=Told.DUE,
        attempts=0,
        due_at=due,
        created_at=now,
    )
