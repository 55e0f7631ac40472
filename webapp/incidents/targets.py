"""Whom to tell: adding and removing targets of a site or of the installation."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp import audit, ids
from webapp.crypto import Keyring
from webapp.fields import N_, FieldErrors
from webapp.incidents.models import AlertTarget, Channel
from webapp.incidents.reach import check_url
from webapp.sites.models import Site
from webapp.sites.service import check_email

MOST_TARGETS = 20
LONGEST_SILENCE = 8760
"""Hours: a year."""

NOT_HTTPS = N_("Enter an address that begins with https://.")
NO_URL = N_("Enter a whole address, such as https://example.org/hook, without a login in it.")
KNOWN = N_("This one is told already.")
TOO_MANY = N_("There are 20 already. Remove one first.")
NO_ADDRESS = N_("Enter an email address, or the address of a webhook.")
NO_HOURS = N_("Enter a whole number of hours from 1 to 8760, or nothing.")


@dataclass(frozen=True, kw_only=True)
class NewTarget:
    """A target and, of a webhook, the key that signs what it gets: known now and never again."""

    target: AlertTarget
    key: str = ""


def add_target(
    session: Session,
    keyring: Keyring,
    site: Site | None,
    *,
    channel: str,
    address: str,
    actor: str,
    now: datetime,
) -> NewTarget:
    """Tell somebody from now on; without a site, of everything. Raises FieldErrors."""
    address = address.strip()
    problem = _problem(session, site, channel, address)
    if problem:
        raise FieldErrors({"address": problem})
    uid, key = ids.short_id(), ids.secret() if channel == Channel.WEBHOOK else ""
    target = AlertTarget(
        uid=uid,
        site_id=site.id if site else None,
        channel=Channel(channel),
        address=address,
        secret=keyring.seal("alert-target", key_subject(uid), key) if key else None,
        created_at=now,
        created_by=actor,
    )
    session.add(target)
    session.flush()
    _record(session, target, "alert target added", {"address": [None, address]}, actor, now)
    return NewTarget(target=target, key=key)


def find_target(session: Session, site_id: int | None, uid: str) -> AlertTarget | None:
    """A target of a site, or of the installation."""
    return session.scalar(sa.select(AlertTarget).where(AlertTarget.uid == uid, _of(site_id)))


def switch_target(session: Session, target: AlertTarget, *, actor: str, now: datetime) -> None:
    """Off, or on again."""
    target.is_on = not target.is_on
    session.flush()
    changes: dict[str, list[object]] = {"is_on": [not target.is_on, target.is_on]}
    _record(session, target, "alert target switched", changes, actor, now)


def remove_target(session: Session, target: AlertTarget, *, actor: str, now: datetime) -> None:
    """Tell it nothing any more."""
    changes: dict[str, list[object]] = {"address": [target.address, None]}
    _record(session, target, "alert target removed", changes, actor, now)
    session.delete(target)
    session.flush()


def set_silence(session: Session, site: Site, text: str, *, actor: str, now: datetime) -> None:
    """After how many hours without mail it is an incident; empty for never. Raises FieldErrors."""
    text = text.strip()
    hours = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None
    if text and (hours is None or not 1 <= hours <= LONGEST_SILENCE):
        raise FieldErrors({"silent_hours": NO_HOURS})
    if hours == site.silent_hours:
        return
    changes = {"silent_hours": [site.silent_hours, hours]}
    site.silent_hours = hours
    session.flush()
    audit.record(
        session,
        at=now,
        actor=actor,
        action="alerts changed",
        object_kind="site",
        object_id=site.id,
        site_id=site.id,
        changes=changes,
    )


def key_subject(uid: str) -> str:
    """What the sealed key of a target is bound to."""
    return f"alert-target:{uid}"


def open_key(keyring: Keyring, target: AlertTarget) -> str:
    """The key that signs what a webhook gets; raises SealError."""
    return str(keyring.unseal("alert-target", key_subject(target.uid), target.secret or ""))


def _problem(session: Session, site: Site | None, channel: str, address: str) -> str:
    if channel == Channel.WEBHOOK:
        problem = check_url(address, private=site is None)
        if problem or len(address) > 2000:
            return NOT_HTTPS if problem == "not-https" else NO_URL
    elif channel == Channel.EMAIL:
        try:
            check_email(address)
        except ValueError as error:
            return str(error)
        if not address:
            return NO_ADDRESS
    else:
        return NO_ADDRESS
    known = session.scalars(
        sa.select(AlertTarget.address).where(_of(site.id if site else None))
    ).all()
    if address.casefold() in {other.casefold() for other in known}:
        return KNOWN
    return TOO_MANY if len(known) >= MOST_TARGETS else ""


def _of(site_id: int | None) -> sa.ColumnElement[bool]:
    if site_id is None:
        return AlertTarget.site_id.is_(None)
    return AlertTarget.site_id == site_id


def _record(
    session: Session,
    target: AlertTarget,
    action: str,
    changes: dict[str, list[object]],
    actor: str,
    now: datetime,
) -> None:
    audit.record(
        session,
        at=now,
        actor=actor,
        action=action,
        object_kind="alert_target",
        object_id=target.uid,
        site_id=target.site_id,
        changes=changes,
    )
