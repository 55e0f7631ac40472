"""Sites, and the credentials by which they hand in mail."""

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db import Base, BigId


class Mode(StrEnum):
    """What happens to a site's mail."""

    LIVE = "live"
    HOLD = "hold"
    REDIRECT_TO = "redirect-to"
    DO_NOT_SEND = "do-not-send"


class AfterUnclear(StrEnum):
    """What to do when an answer was lost after the whole mail had gone out."""

    RATHER_TWICE = "rather-twice"
    NEVER_TWICE = "never-twice"


class CredentialKind(StrEnum):
    """How a credential is used."""

    SMTP = "smtp"
    API = "api"


class Site(Base):
    """Whoever submits mail: usually one web site."""

    __tablename__ = "site"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    slug: Mapped[str] = mapped_column(sa.String(60), unique=True)
    name: Mapped[str] = mapped_column(sa.String(200))
    url: Mapped[str] = mapped_column(sa.String(500), default="")
    admin_email: Mapped[str] = mapped_column(sa.String(320), default="")
    time_zone: Mapped[str] = mapped_column(sa.String(60), default="UTC")
    mode: Mapped[str] = mapped_column(sa.String(20), default=Mode.LIVE)
    after_unclear: Mapped[str] = mapped_column(sa.String(20), default=AfterUnclear.RATHER_TWICE)
    retry_hours: Mapped[int] = mapped_column(default=72)
    silent_hours: Mapped[int | None]
    """An incident when no mail comes for so long; empty for sites that do not wish it."""
    redirect_to: Mapped[str] = mapped_column(sa.String(320), default="", server_default="")
    """Who gets all mail in mode redirect-to."""
    patience_minutes: Mapped[int] = mapped_column(default=10, server_default="10")
    """How long a mail may wait for its connection before a backup takes over."""
    per_minute: Mapped[int | None]
    per_hour: Mapped[int | None]
    per_day: Mapped[int | None]
    """How many mails may leave at most, over all its connections; empty is no limit."""
    log_days: Mapped[int | None] = mapped_column(default=180)
    """How long finished mail stays in the log; empty is for ever."""
    body_days: Mapped[int | None] = mapped_column(default=90)
    """How long the mail itself is kept once it is over: 0 not at all, empty as long as the log."""
    details_days: Mapped[int | None] = mapped_column(default=30)
    """How long the conversation with the remote is kept with an attempt; empty as the log."""
    routing_enabled: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    routing_version: Mapped[int] = mapped_column(default=1, server_default="1")
    """Raised by every change of rules, primary connection or backups; see `delivery.replan`."""
    routing_changed_at: Mapped[datetime | None]
    """Set while waiting mail may still stand where an older version had put it."""
    setup_step: Mapped[str] = mapped_column(sa.String(20), default="", server_default="")
    """Where its wizard goes on; empty once it is done, or was never begun."""
    deleted_at: Mapped[datetime | None]
    """Set while the site is being removed, a little at a time."""
    placeholder_emails: Mapped[list[str]] = mapped_column(default=list)
    """Patterns of senders that programs set when nobody configured one."""
    placeholder_names: Mapped[list[str]] = mapped_column(default=list)
    primary_connection_id: Mapped[int | None] = mapped_column(BigId, index=True)
    """No foreign key: it would close a circle; deleting a connection clears it."""
    created_at: Mapped[datetime]


class Credential(Base):
    """An SMTP login or an API key. Only the SHA-256 of the random secret is kept."""

    __tablename__ = "credential"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    site_id: Mapped[int] = mapped_column(sa.ForeignKey("site.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    label: Mapped[str] = mapped_column(sa.String(100), default="")
    username: Mapped[str] = mapped_column(sa.String(100), unique=True)
    """The public half: the SMTP user name, or the first part of an API key."""
    digest: Mapped[str] = mapped_column(sa.String(64))
    scopes: Mapped[list[str]] = mapped_column(default=list)
    senders: Mapped[list[str]] = mapped_column(default=list)
    """Patterns such as `*@example.org`; empty means any."""
    networks: Mapped[list[str]] = mapped_column(default=list)
    """Networks such as `203.0.113.0/24` it may be used from; empty means any."""
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(sa.String(320), default="")
    last_used_at: Mapped[datetime | None]
    last_used_from: Mapped[str] = mapped_column(sa.String(64), default="")
    revoked_at: Mapped[datetime | None]


class SitePace(Base):
    """What a site sent lately, by window, for its own limits; written by the worker alone."""

    __tablename__ = "site_pace"

    site_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("site.id", ondelete="CASCADE"), primary_key=True
    )
    windows: Mapped[dict[str, Any]] = mapped_column(default=dict)


class SiteSpace(Base):
    """What the log of a site takes, counted now and then by the worker."""

    __tablename__ = "site_space"

    site_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("site.id", ondelete="CASCADE"), primary_key=True
    )
    mails: Mapped[int] = mapped_column(default=0)
    log_bytes: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    """About what rows without bodies take."""
    bodies: Mapped[int] = mapped_column(default=0)
    body_bytes: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    """As stored, compressed."""
    counted_at: Mapped[datetime]
