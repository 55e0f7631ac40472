"""People: accounts, their roles at sites, their sessions, and the brakes on guessing."""

from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db import Base, BigId


class Role(StrEnum):
    """What a person is at one site; docs/roles.md says what each may do."""

    VIEWER = "viewer"
    SUPPORT = "support"
    OPERATOR = "operator"
    OWNER = "owner"


class User(Base):
    """Somebody who signs in by browser."""

    __tablename__ = "user"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    email: Mapped[str] = mapped_column(sa.String(320), unique=True)
    """Stored in lower case."""
    name: Mapped[str] = mapped_column(sa.String(200), default="")
    password_hash: Mapped[str] = mapped_column(sa.String(200))
    language: Mapped[str | None] = mapped_column(sa.String(20))
    is_admin: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]


class Membership(Base):
    """A person's role at one site."""

    __tablename__ = "membership"

    user_id: Mapped[int] = mapped_column(
        sa.ForeignKey("user.id", ondelete="CASCADE"), primary_key=True
    )
    site_id: Mapped[int] = mapped_column(
        sa.ForeignKey("site.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    role: Mapped[str] = mapped_column(sa.String(20))


class UserSession(Base):
    """A signed-in browser. The cookie holds a secret, the row its digest."""

    __tablename__ = "session"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("user.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    address: Mapped[str] = mapped_column(sa.String(64), default="")
    user_agent: Mapped[str] = mapped_column(sa.String(300), default="")


class Dismissal(Base):
    """A notice that somebody does not want to see again."""

    __tablename__ = "dismissal"

    user_id: Mapped[int] = mapped_column(
        sa.ForeignKey("user.id", ondelete="CASCADE"), primary_key=True
    )
    notice: Mapped[str] = mapped_column(sa.String(120), primary_key=True)
    """Which one, and of what: `basic-auth:<connection>`."""
    at: Mapped[datetime]


class Throttle(Base):
    """Failed sign-ins of one login or one address: the delay grows, nobody is locked out."""

    __tablename__ = "throttle"

    key: Mapped[str] = mapped_column(sa.String(400), primary_key=True)
    failures: Mapped[int] = mapped_column(default=0)
    last_failed_at: Mapped[datetime] = mapped_column(index=True)
