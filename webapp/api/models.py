"""What the API remembers: answers to requests that carry an Idempotency-Key."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db import Base, BigId


class Idempotency(Base):
    """A request that was answered: the same key and body get the same answer, for a day."""

    __tablename__ = "idempotency"

    credential_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("credential.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    """SHA-256 of the key, in hexadecimal."""
    body_digest: Mapped[str] = mapped_column(sa.String(64))
    status: Mapped[int]
    answer: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
