"""Who changed what: one row per change, secrets shown only as changed."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column

from webapp.db import Base, BigId


class AuditEvent(Base):
    """One change, with what was there before and after."""

    __tablename__ = "audit_event"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(sa.String(320))
    """An e-mail address, or `command line`."""
    action: Mapped[str] = mapped_column(sa.String(60))
    site_id: Mapped[int | None] = mapped_column(index=True)
    object_kind: Mapped[str] = mapped_column(sa.String(30))
    object_id: Mapped[str] = mapped_column(sa.String(40))
    changes: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Per field: [before, after]; secrets as `changed`."""


def record(
    session: Session,
    *,
    at: datetime,
    actor: str,
    action: str,
    object_kind: str,
    object_id: object,
    site_id: int | None = None,
    changes: dict[str, Any] | None = None,
) -> None:
    """Note one change, in the unit of work that makes it."""
    session.add(
        AuditEvent(
            at=at,
            actor=actor,
            action=action,
            site_id=site_id,
            object_kind=object_kind,
            object_id=str(object_id),
            changes=changes or {},
        )
    )


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    """The fields that differ, as [before, after]."""
    keys = before.keys() | after.keys()
    return {
        key: [before.get(key), after.get(key)]
        for key in sorted(keys)
        if before.get(key) != after.get(key)
    }
