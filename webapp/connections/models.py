"""Connections: configured mailers of a site, or shared ones."""

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db import Base, BigId, SealedText


class Health(StrEnum):
    """What the last attempts on a connection say of it."""

    UNKNOWN = "unknown"
    WORKING = "working"
    FAILING = "failing"
    NEEDS_REAUTHORISATION = "needs-reauthorisation"
    MISCONFIGURED = "misconfigured"


class Connection(Base):
    """One configured mailer with a From block of its own."""

    __tablename__ = "connection"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uid: Mapped[str] = mapped_column(sa.String(20), unique=True)
    """The id people see."""
    site_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("site.id", ondelete="CASCADE"), index=True
    )
    """Empty for a connection that every site may choose."""
    nickname: Mapped[str] = mapped_column(sa.String(100), default="")
    mailer: Mapped[str] = mapped_column(sa.String(40), default="")
    """A mailer's slug; empty while none was chosen."""
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Per mailer slug, so that trying another mailer loses nothing."""
    secrets: Mapped[str | None] = mapped_column(SealedText("connection"))
    """Sealed: per mailer slug and field, the value."""
    secrets_set: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Per mailer slug and field: when it was stored, and by whom."""

    from_email: Mapped[str] = mapped_column(sa.String(320), default="")
    force_from_email: Mapped[bool] = mapped_column(default=True)
    from_name: Mapped[str] = mapped_column(sa.String(200), default="")
    force_from_name: Mapped[bool] = mapped_column(default=False)
    return_path: Mapped[bool] = mapped_column(default=True)

    grant_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("grant.id", ondelete="SET NULL", use_alter=True), index=True
    )
    """The link in use, for mailers that need one."""
    is_system: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """The installation's own, for alerts; no site may choose it."""
    lane_id: Mapped[int | None] = mapped_column(sa.ForeignKey("lane.id"), index=True)
    version: Mapped[int] = mapped_column(default=1)
    """Raised with every save, so that a process knows when what it opened is out of date."""
    health: Mapped[str] = mapped_column(sa.String(30), default=Health.UNKNOWN)
    health_since: Mapped[datetime | None]
    last_code: Mapped[str] = mapped_column(sa.String(40), default="")
    last_words: Mapped[str] = mapped_column(sa.Text, default="")
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    """A removed connection keeps its name, for the log, and nothing else."""


class Backup(Base):
    """A connection that stands in, at its place in the chain of a site."""

    __tablename__ = "backup"

    site_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("site.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    """From 1."""
    connection_id: Mapped[int] = mapped_column(
        sa.ForeignKey("connection.id", ondelete="CASCADE"), index=True
    )

    __table_args__ = (sa.UniqueConstraint("site_id", "connection_id"),)
