"""Days that are left: of a client secret until it expires, of a link until it is idle too long.

Microsoft ends a link whose refresh token nobody used for 90 days, Google after six months. Ours are
renewed every day, so a link that counts down tells that renewals do not happen.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.connections.models import Connection
from webapp.microsoft.models import Grant, GrantState, Link, Mailbox, OAuthApp
from webapp.providers import GOOGLE, MICROSOFT, PROVIDERS
from webapp.sites.models import Site

STEPS = (60, 30, 7, 1)
"""Days before an end at which somebody is told."""
NOTED, SOON, URGENT, _LAST = STEPS
IDLE = timedelta(days=90)
IDLE_AT_GOOGLE = timedelta(days=180)
AHEAD = 90
"""Days that the calendar shows."""


class Nearness(StrEnum):
    """How near an end is, by the tone in which a page says it."""

    FAR = "good"
    NOTED = "info"
    SOON = "warn"
    URGENT = "bad"


class Kind(StrEnum):
    """What comes to an end."""

    SECRET = "secret"  # noqa: S105  (a word for a kind)
    LINK = "link"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Something that ends on a day, and the sites that stop then."""

    kind: Kind
    day: date
    days: int
    """Whole days that are left; negative once it is over."""
    app_uid: str
    app_name: str
    shared: bool
    """Whether the registration serves One-Click Setup, or is a connection's own."""
    provider: str = MICROSOFT
    address: str = ""
    """Of the mailbox, for a link."""
    has_successor: bool = False
    """A second secret waits to be proved."""
    sites: tuple[Site, ...] = field(default=(), repr=False)
    alerts: bool = False
    """Whether the installation's own alerts leave by it."""

    @property
    def nearness(self) -> Nearness:
        """How soon that is."""
        return nearness(self.days)


def nearness(days: int) -> Nearness:
    """How near an end is that is so many days away; what is over is urgent."""
    if days <= URGENT:
        return Nearness.URGENT
    if days <= SOON:
        return Nearness.SOON
    return Nearness.NOTED if days <= NOTED else Nearness.FAR


def days_until(day: date, now: datetime) -> int:
    """Whole days that are left; 0 on the day itself, negative after it."""
    return (day - now.date()).days


def idle_days(renewed_at: datetime, now: datetime, provider: str = MICROSOFT) -> int:
    """Days until a link that nobody renews is ended; on the day of its renewal it has them all."""
    return max(0, idle(provider).days - max(0, (now - renewed_at).days))


def idle(provider: str) -> timedelta:
    """How long a provider keeps a link that nobody renews."""
    return IDLE_AT_GOOGLE if provider == GOOGLE else IDLE


def endings(session: Session, site_ids: Collection[int] | None, now: datetime) -> list[Ending]:
    """What ends within 90 days, the nearest first; three queries, however much that is.

    `site_ids` are the sites that whoever asks may see; None: all of them, and registrations that
    nothing is linked by. A link is named once it was not renewed for a month.
    """
    sites = _sites_by_grant(session, site_ids)
    found = [*_secrets(session, sites, site_ids is None, now), *_links(session, sites, now)]
    return sorted(found, key=lambda one: (one.day, one.kind, one.app_name, one.address))


def undated(session: Session) -> list[OAuthApp]:
    """Shared registrations with a secret whose end nobody entered: nothing can be told of them."""
    query = sa.select(OAuthApp).where(
        OAuthApp.provider == MICROSOFT,  # Google's secrets do not expire
        OAuthApp.connection_id.is_(None),
        OAuthApp.secret.is_not(None),
        OAuthApp.secret_expires_on.is_(None),
    )
    return list(session.scalars(query.order_by(OAuthApp.name, OAuthApp.id)))


@dataclass(frozen=True, kw_only=True)
class _Use:
    grant_id: int
    app_id: int
    site: Site | None
    """None: the installation's own connection."""


def _sites_by_grant(session: Session, site_ids: Collection[int] | None) -> list[_Use]:
    """The links by which mail leaves now; that of the alerts is for who sees everything."""
    query = (
        sa.select(Link.grant_id, Link.app_id, Site)
        .join(Connection, Connection.id == Link.connection_id)
        .outerjoin(Site, Site.id == Connection.site_id)
        .where(
            Connection.grant_id == Link.grant_id,
            sa.or_(Site.id.is_not(None), Connection.is_system),
        )
        .order_by(sa.func.lower(Site.name), Site.id)
    )
    if site_ids is not None:
        query = query.where(Site.id.in_(sorted(site_ids)))
    return [
        _Use(grant_id=row[0], app_id=row[1], site=row[2]) for row in session.execute(query).unique()
    ]


def _secrets(
    session: Session, uses: Iterable[_Use], every: bool, now: datetime
) -> Iterable[Ending]:
    by_app = _by_site((use.app_id, use.site) for use in uses)
    query = sa.select(OAuthApp).where(
        OAuthApp.secret.is_not(None),
        OAuthApp.secret_expires_on <= now.date() + timedelta(days=AHEAD),
    )
    if not every:
        query = query.where(OAuthApp.id.in_(sorted(by_app)))
    for app in session.scalars(query):
        assert app.secret_expires_on is not None
        yield Ending(
            kind=Kind.SECRET,
            day=app.secret_expires_on,
            days=days_until(app.secret_expires_on, now),
            app_uid=app.uid,
            app_name=app.name or app.client_id,
            shared=app.connection_id is None,
            has_successor=app.next_secret is not None,
            sites=_sites(by_app[app.id]),
            alerts=0 in by_app[app.id],
        )


def _links(session: Session, uses: Iterable[_Use], now: datetime) -> Iterable[Ending]:
    by_grant = _by_site((use.grant_id, use.site) for use in uses)
    rows = session.execute(
        sa.select(Grant.id, Grant.renewed_at, Mailbox.address, OAuthApp)
        .join(Mailbox, Mailbox.id == Grant.mailbox_id)
        .join(OAuthApp, OAuthApp.id == Grant.app_id)
        .where(
            Grant.state == GrantState.LINKED,
            sa.or_(
                *(
                    sa.and_(
                        OAuthApp.provider == provider,
                        Grant.renewed_at <= now - idle(provider) + timedelta(days=NOTED),
                    )
                    for provider in PROVIDERS
                )
            ),
            Grant.id.in_(sorted(by_grant)),
        )
    )
    for grant_id, renewed_at, address, app in rows:
        yield Ending(
            kind=Kind.LINK,
            provider=app.provider,
            day=(renewed_at + idle(app.provider)).date(),
            days=idle_days(renewed_at, now, app.provider),
            app_uid=app.uid,
            app_name=app.name or app.client_id,
            shared=app.connection_id is None,
            address=address,
            sites=_sites(by_grant[grant_id]),
            alerts=0 in by_grant[grant_id],
        )


def _by_site(uses: Iterable[tuple[int, Site | None]]) -> dict[int, dict[int, Site | None]]:
    """By what is used, then by site; 0 stands for the installation's own connection."""
    found: dict[int, dict[int, Site | None]] = defaultdict(dict)
    for key, site in uses:
        found[key][site.id if site else 0] = site
    return found


def _sites(used_by: Mapping[int, Site | None]) -> tuple[Site, ...]:
    return tuple(site for site in used_by.values() if site is not None)
