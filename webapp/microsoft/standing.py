"""How the link of a connection stands with one registration: what the settings page shows of it.

The page shows two of these at once, one for One-Click Setup and one for the connection's own
registration, because a switch swaps them without a reload.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.config import Settings
from webapp.connections.models import Connection, Health
from webapp.delivery import replan
from webapp.google.cloud import every_cloud
from webapp.microsoft.clouds import Cloud, is_personal
from webapp.microsoft.models import (
    Consent,
    FlowKind,
    Grant,
    GrantState,
    Link,
    LinkFlow,
    Mailbox,
    OAuthApp,
)
from webapp.microsoft.service import is_complete, is_one_click
from webapp.providers import GOOGLE, MICROSOFT, PROVIDERS, Provider

SOON_DAYS = 60
"""So long before its end a secret is worth a warning."""

SIGN_IN = frozenset({"openid", "profile", "email", "offline_access"})
"""Permissions of the sign-in itself, which say nothing about mail."""

GMAIL = frozenset({"gmail.com", "googlemail.com"})
"""Domains of personal accounts at Google."""

_SPF = {
    "usgov": "spf.protection.office365.us",
    "usdod": "spf.protection.office365.us",
    "china": "spf.protection.partner.outlook.cn",
}


class LinkState(StrEnum):
    """What the Authorization row is about."""

    INSECURE = "insecure"
    """People open Postroom neither by https nor on localhost, so nobody is sent back."""
    NO_APP = "no-app"
    """One-Click Setup, and the installation has no registration."""
    UNSAVED = "unsaved"
    """Another mailer, or the other mode, is what is stored."""
    INCOMPLETE = "incomplete"
    """The registration lacks its id or its secret."""
    READY = "ready"
    """Nobody has signed in yet, or the link was removed."""
    WAITING_FOR_ADMIN = "waiting-for-admin"
    ADMIN_AGREED = "admin-agreed"
    LINKED = "linked"
    NEEDS_REAUTHORISATION = "needs-reauthorisation"
    MISCONFIGURED = "misconfigured"
    """The provider refuses the registration itself; signing in again would not help."""


TROUBLE = frozenset({LinkState.NEEDS_REAUTHORISATION, LinkState.MISCONFIGURED})


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A connection and one registration. `link`, `grant` and `mailbox` come together or not at all.

    `code`, `words` and `since` tell of a refusal; `waiting` counts the mails it keeps.
    """

    state: LinkState
    one_click: bool
    provider: Provider = PROVIDERS[MICROSOFT]
    app: OAuthApp | None = None
    cloud: Cloud | None = None
    link: Link | None = None
    grant: Grant | None = None
    mailbox: Mailbox | None = None
    consent: LinkFlow | None = None
    code: str = ""
    words: str = ""
    since: datetime | None = None
    waiting: int = 0
    days_left: int | None = None
    """Until the stored secret expires; negative once it has."""

    @property
    def is_linked(self) -> bool:
        """Whether there is a mailbox, however the link does."""
        return self.mailbox is not None

    @property
    def in_trouble(self) -> bool:
        """Whether mail stands still until somebody acts."""
        return self.state in TROUBLE

    @property
    def personal(self) -> bool:
        """Whether the account is a personal one (Outlook.com, Hotmail, Live; Gmail)."""
        if self.mailbox is None:
            return False
        if self.mailbox.provider == GOOGLE:
            return self.mailbox.address.rpartition("@")[2].casefold() in GMAIL
        return is_personal(self.mailbox.tenant_id)

    @property
    def granted(self) -> tuple[str, ...]:
        """What the grant allows with mail."""
        return tuple(s for s in self.grant.scopes if s not in SIGN_IN) if self.grant else ()

    @property
    def missing(self) -> tuple[str, ...]:
        """What is needed and was not granted."""
        if self.grant is None:
            return ()
        granted = {scope.casefold() for scope in self.grant.scopes}
        needed = self.provider.needed
        return tuple(scope for scope in needed if scope.casefold() not in granted)

    @property
    def sends(self) -> bool:
        """Whether everything is granted without which no mail leaves."""
        return not set(self.missing) & set(self.provider.required)

    @property
    def lacks(self) -> tuple[str, ...]:
        """Which of `client_id` and `client_secret` the registration has not got."""
        found = {
            "client_id": self.app is not None and bool(self.app.client_id),
            "client_secret": self.app is not None and self.app.secret is not None,
        }
        return tuple(name for name, there in found.items() if not there)

    @property
    def secret_soon(self) -> bool:
        """Whether the secret's end is near enough to say so."""
        return self.days_left is not None and self.days_left <= SOON_DAYS

    @property
    def spf(self) -> str:
        """What the SPF record of an own domain must include in this cloud."""
        if self.provider.slug == GOOGLE:
            return "_spf.google.com"
        return _SPF.get(self.mailbox.cloud if self.mailbox else "", "spf.protection.outlook.com")

    def knows(self, address: str) -> bool:
        """Whether the account itself has this address."""
        known = self.mailbox.addresses if self.mailbox else []
        return address.casefold() in {one.casefold() for one in known}


def is_secure(settings: Settings) -> bool:
    """Whether people are sent back to us: by https, or to this machine's own name."""
    return settings.url.startswith("https:") or urlsplit(settings.url).hostname == "localhost"


def link_standing(
    session: Session,
    settings: Settings,
    connection: Connection | None,
    app: OAuthApp | None,
    *,
    one_click: bool,
    now: datetime,
    provider: str = MICROSOFT,
) -> Standing:
    """How a connection stands with a registration: a shared one with `one_click`, or its own.

    `provider` says whose accounts it is about, where there is no registration yet.
    """
    link, grant, mailbox = _linked(session, connection, app)
    consent = _consent(session, connection, app, now)
    expires_on = app.secret_expires_on if app and app.secret is not None else None
    is_used = _is_used(connection, app, one_click, PROVIDERS[provider].mailer)
    state = _state(settings, app, grant, consent, one_click=one_click, is_used=is_used)
    health = _health(connection, grant) if is_used else None
    if state is LinkState.LINKED and health is not None:
        state = LinkState(health.value)
    code, words, since = _refusal(state, connection, app, grant, health)
    return Standing(
        state=state,
        one_click=one_click,
        provider=PROVIDERS[provider],
        app=app,
        cloud=every_cloud(settings).get(app.cloud) if app else None,
        link=link,
        grant=grant,
        mailbox=mailbox,
        consent=consent,
        code=code,
        words=words,
        since=since,
        waiting=_waiting(session, connection) if state in TROUBLE else 0,
        days_left=(expires_on - now.date()).days if expires_on else None,
    )


def _linked(
    session: Session, connection: Connection | None, app: OAuthApp | None
) -> tuple[Link | None, Grant | None, Mailbox | None]:
    if connection is None or app is None:
        return None, None, None
    found = session.execute(
        sa.select(Link, Grant, Mailbox)
        .join(Grant, Grant.id == Link.grant_id)
        .join(Mailbox, Mailbox.id == Grant.mailbox_id)
        .where(
            Link.connection_id == connection.id,
            Link.app_id == app.id,
            Grant.state != GrantState.REMOVED,
        )
    ).first()
    return (found[0], found[1], found[2]) if found else (None, None, None)


def _consent(
    session: Session, connection: Connection | None, app: OAuthApp | None, now: datetime
) -> LinkFlow | None:
    """The newest question to an administrator that is not forgotten yet."""
    if connection is None or app is None:
        return None
    return session.scalar(
        sa.select(LinkFlow)
        .where(
            LinkFlow.kind == FlowKind.CONSENT,
            LinkFlow.connection_id == connection.id,
            LinkFlow.app_id == app.id,
            LinkFlow.expires_at > now,
        )
        .order_by(LinkFlow.id.desc())
        .limit(1)
    )


def _is_used(
    connection: Connection | None, app: OAuthApp | None, one_click: bool, mailer: str
) -> bool:
    """Whether what is stored says that mail leaves by this registration."""
    if connection is None or connection.mailer != mailer:
        return False
    if is_one_click(connection) is not one_click:
        return False
    chosen = connection.settings.get(mailer, {}).get("shared_app", "")
    return not one_click or not chosen or (app is not None and app.uid == chosen)


def _state(
    settings: Settings,
    app: OAuthApp | None,
    grant: Grant | None,
    consent: LinkFlow | None,
    *,
    one_click: bool,
    is_used: bool,
) -> LinkState:
    if not is_secure(settings):
        return LinkState.INSECURE
    if one_click and app is None:
        return LinkState.NO_APP
    if not is_used:
        return LinkState.UNSAVED
    if app is None or not is_complete(app):
        return LinkState.INCOMPLETE
    if app.problem_since is not None:
        return LinkState.MISCONFIGURED
    if grant is None:
        return _before_the_link(consent)
    if grant.state == GrantState.NEEDS_REAUTHORISATION:
        return LinkState.NEEDS_REAUTHORISATION
    return LinkState.LINKED


def _before_the_link(consent: LinkFlow | None) -> LinkState:
    outcome = consent.outcome if consent else ""
    if outcome == Consent.WAITING:
        return LinkState.WAITING_FOR_ADMIN
    return LinkState.ADMIN_AGREED if outcome == Consent.GIVEN else LinkState.READY


def _health(connection: Connection | None, grant: Grant | None) -> Health | None:
    """What stops the connection, as far as its mail by this grant has met it."""
    if connection is None or grant is None or connection.grant_id != grant.id:
        return None
    stopped = {Health.NEEDS_REAUTHORISATION, Health.MISCONFIGURED}
    return Health(connection.health) if connection.health in stopped else None


def _refusal(
    state: LinkState,
    connection: Connection | None,
    app: OAuthApp | None,
    grant: Grant | None,
    health: Health | None,
) -> tuple[str, str, datetime | None]:
    """Code and words of what was refused, and since when."""
    told: Sequence[tuple[str, str, datetime | None]] = ()
    by_mail = (
        (connection.last_code, connection.last_words, connection.health_since)
        if connection is not None and health is not None
        else ("", "", None)
    )
    if state is LinkState.MISCONFIGURED and app is not None:
        told = ((app.problem_code, app.problem_words, app.problem_since), by_mail)
    elif state is LinkState.NEEDS_REAUTHORISATION and grant is not None:
        refused = grant.state == GrantState.NEEDS_REAUTHORISATION
        told = ((grant.code, grant.words, grant.state_since if refused else None), by_mail)
    code, words = next(((one[0], one[1]) for one in told if one[0] or one[1]), ("", ""))
    return code, words, min((one[2] for one in told if one[2] is not None), default=None)


def _waiting(session: Session, connection: Connection | None) -> int:
    if connection is None or connection.lane_id is None:
        return 0
    return replan.waiting_on(session, connection.id, connection.lane_id)
