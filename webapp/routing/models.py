"""Rules of a site, in order: which connection its mail leaves by, and which mail is let through."""

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db import Base, BigId


class RuleKind(StrEnum):
    """What a rule decides."""

    ROUTE = "route"
    CONTROL = "control"


class Action(StrEnum):
    """What a control does with a mail that meets its conditions."""

    ALLOW = "allow"
    BLOCK = "block"
    HOLD = "hold"


class Rule(Base):
    """Conditions, and what follows where a mail meets them; the first that is met decides."""

    __tablename__ = "rule"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uid: Mapped[str] = mapped_column(sa.String(20), unique=True)
    site_id: Mapped[int] = mapped_column(sa.ForeignKey("site.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(sa.String(10))
    position: Mapped[int]
    """From 1, among the site's rules of its kind."""
    name: Mapped[str] = mapped_column(sa.String(100), default="")
    connection_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("connection.id", ondelete="SET NULL"), index=True
    )
    """Of a route: where the mail goes; a rule whose connection is gone or not ready is skipped."""
    action: Mapped[str] = mapped_column(sa.String(10), default="", server_default="")
    """Of a control."""
    groups: Mapped[list[Any]] = mapped_column(default=list)
    """Conditions, all of a group and any of the groups; see `routing.conditions`."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    __table_args__ = (sa.Index("ix_rule_site", "site_id", "kind", "position"),)
