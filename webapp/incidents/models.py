"""Incidents, who is told of them, and what was told. One open incident for each cause."""

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db import Base, BigId, SealedText


class Channel(StrEnum):
    """How somebody is told."""

    EMAIL = "email"
    WEBHOOK = "webhook"


class Occasion(StrEnum):
    """What a notification is about."""

    OPENED = "opened"
    CLOSED = "closed"
    TEST = "test"


class Told(StrEnum):
    """What became of a notification."""

    DUE = "due"
    SENT = "sent"
    FAILED = "failed"
    DROPPED = "dropped"
    """There was no way to send it, or it had become pointless."""


class Incident(Base):
    """Something that somebody has to know of, from its first sign to its end."""

    __tablename__ = "incident"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uid: Mapped[str] = mapped_column(sa.String(20), unique=True)
    cause: Mapped[str] = mapped_column(sa.String(200))
    """What it is about, as a key: `grant:12`, `app:3`, `lane:5`, `ledger:7`, `silent:7`."""
    kind: Mapped[str] = mapped_column(sa.String(40))
    code: Mapped[str] = mapped_column(sa.String(40), default="")
    words: Mapped[str] = mapped_column(sa.Text, default="")
    """The remote's own."""
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Parameters for the sentences: names, counts, never a secret."""
    opened_at: Mapped[datetime] = mapped_column(index=True)
    closed_at: Mapped[datetime | None]

    __table_args__ = (
        sa.Index(
            "uq_incident_open",
            "cause",
            unique=True,
            sqlite_where=sa.text("closed_at IS NULL"),
            postgresql_where=sa.text("closed_at IS NULL"),
        ),
    )


class IncidentSite(Base):
    """A site that an incident concerns; an incident without any concerns the installation."""

    __tablename__ = "incident_site"

    incident_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("incident.id", ondelete="CASCADE"), primary_key=True
    )
    site_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("site.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class AlertTarget(Base):
    """Somebody to tell: an address or a webhook, of one site or of the installation."""

    __tablename__ = "alert_target"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uid: Mapped[str] = mapped_column(sa.String(20), unique=True)
    site_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("site.id", ondelete="CASCADE"), index=True
    )
    """Empty: of the installation, for the incidents of every site."""
    channel: Mapped[str] = mapped_column(sa.String(20))
    address: Mapped[str] = mapped_column(sa.String(2000))
    """An email address or an https address."""
    secret: Mapped[str | None] = mapped_column(SealedText("alert-target"))
    """Sealed: the key that signs what a webhook gets."""
    is_on: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(sa.String(320), default="")
    last_at: Mapped[datetime | None]
    last_told: Mapped[str] = mapped_column(sa.String(20), default="")
    last_words: Mapped[str] = mapped_column(sa.Text, default="")


class Notification(Base):
    """One message to one target about one incident; never two for the same occasion."""

    __tablename__ = "notification"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    incident_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("incident.id", ondelete="CASCADE"), index=True
    )
    """Empty for a test."""
    target_id: Mapped[int] = mapped_column(
        sa.ForeignKey("alert_target.id", ondelete="CASCADE"), index=True
    )
    occasion: Mapped[str] = mapped_column(sa.String(20))
    told: Mapped[str] = mapped_column(sa.String(20), default=Told.DUE)
    attempts: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime | None] = mapped_column(index=True)
    """When it is tried next; empty once it is over."""
    sent_at: Mapped[datetime | None]
    words: Mapped[str] = mapped_column(sa.Text, default="")
    created_at: Mapped[datetime]

    __table_args__ = (sa.UniqueConstraint("incident_id", "target_id", "occasion"),)
