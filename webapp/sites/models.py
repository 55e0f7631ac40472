"""Sites, and the credentials by which they hand in mail."""

from datetime import datetime
from enum import StrEnum

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
