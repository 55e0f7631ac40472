"""Registrations at an identity provider, mailboxes, the grants that open them, and who uses them.

    oauth_app ──< grant >── mailbox ── lane
                    │
                  link >── connection

A connection keeps a link for each registration it was linked with, so that switching One-Click
Setup off and on again loses neither.
"""

from datetime import date, datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db import Base, BigId, SealedText


class GrantState(StrEnum):
    """Whether mail can leave by a grant."""

    LINKED = "linked"
    NEEDS_REAUTHORISATION = "needs-reauthorisation"
    REMOVED = "removed"


class FlowKind(StrEnum):
    """What somebody was sent to the provider for."""

    LINK = "link"
    CONSENT = "consent"
    """An administrator is asked to allow the registration for everybody."""


class Consent(StrEnum):
    """What became of a request to an administrator."""

    WAITING = "waiting"
    GIVEN = "given"
    REFUSED = "refused"


class OAuthApp(Base):
    """A registration: a shared one of the installation, or a connection's own."""

    __tablename__ = "oauth_app"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uid: Mapped[str] = mapped_column(sa.String(20), unique=True)
    connection_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("connection.id", ondelete="CASCADE")
    )
    """Whose own it is; empty for a shared one, which serves One-Click Setup."""
    name: Mapped[str] = mapped_column(sa.String(120), default="")
    provider: Mapped[str] = mapped_column(
        sa.String(20), default="microsoft", server_default="microsoft"
    )
    """Whose registration it is: `microsoft` or `google`."""
    cloud: Mapped[str] = mapped_column(sa.String(20))
    tenant: Mapped[str] = mapped_column(sa.String(255))
    """The path segment of its authority: `common`, `organizations`, `consumers` or one tenant."""
    client_id: Mapped[str] = mapped_column(sa.String(255), default="")
    secret: Mapped[str | None] = mapped_column(SealedText("oauth-app"))
    """Sealed: the client secret, a text."""
    secret_set_at: Mapped[datetime | None]
    secret_set_by: Mapped[str] = mapped_column(sa.String(320), default="")
    secret_expires_on: Mapped[date | None] = mapped_column(sa.Date)
    next_secret: Mapped[str | None] = mapped_column(SealedText("oauth-app"))
    """Sealed: a successor that has not proved itself yet."""
    next_secret_set_at: Mapped[datetime | None]
    next_secret_set_by: Mapped[str] = mapped_column(sa.String(320), default="", server_default="")
    next_secret_expires_on: Mapped[date | None] = mapped_column(sa.Date)
    problem_code: Mapped[str] = mapped_column(sa.String(40), default="")
    """The provider's code, while it refuses the registration itself."""
    problem_words: Mapped[str] = mapped_column(sa.Text, default="")
    problem_since: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    __table_args__ = (sa.UniqueConstraint("connection_id", "provider"),)


class Mailbox(Base):
    """One account at the provider, whatever it is called today."""

    __tablename__ = "mailbox"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    provider: Mapped[str] = mapped_column(
        sa.String(20), default="microsoft", server_default="microsoft"
    )
    cloud: Mapped[str] = mapped_column(sa.String(20))
    tenant_id: Mapped[str] = mapped_column(sa.String(64))
    object_id: Mapped[str] = mapped_column(sa.String(64))
    address: Mapped[str] = mapped_column(sa.String(320))
    """Its primary address; the sign-in name where the provider tells none."""
    sign_in_name: Mapped[str] = mapped_column(sa.String(320), default="")
    name: Mapped[str] = mapped_column(sa.String(256), default="")
    addresses: Mapped[list[str]] = mapped_column(default=list)
    """Every address it is known to have, the primary one among them."""
    lane_id: Mapped[int | None] = mapped_column(sa.ForeignKey("lane.id"))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    __table_args__ = (sa.UniqueConstraint("cloud", "tenant_id", "object_id"),)


class Grant(Base):
    """What a registration may do with a mailbox, and the tokens for it."""

    __tablename__ = "grant"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    app_id: Mapped[int] = mapped_column(sa.ForeignKey("oauth_app.id", ondelete="CASCADE"))
    mailbox_id: Mapped[int] = mapped_column(
        sa.ForeignKey("mailbox.id", ondelete="CASCADE"), index=True
    )
    scopes: Mapped[list[str]] = mapped_column(default=list)
    """Granted permissions, without the cloud in front: `Mail.Send`, `gmail.send`."""
    cache: Mapped[str | None] = mapped_column(SealedText("grant"))
    """Sealed: the tokens as the provider's renewer keeps them, a text; empty once removed."""
    version: Mapped[int] = mapped_column(default=1)
    """Raised whenever cache or state change; a renewal counts only while it is unchanged."""
    lease_owner: Mapped[str] = mapped_column(sa.String(64), default="")
    lease_until: Mapped[datetime | None]
    """Who renews it now; nobody else does meanwhile."""
    state: Mapped[str] = mapped_column(sa.String(30), default=GrantState.LINKED)
    state_since: Mapped[datetime]
    code: Mapped[str] = mapped_column(sa.String(40), default="")
    words: Mapped[str] = mapped_column(sa.Text, default="")
    """What the provider said when it refused."""
    renewed_at: Mapped[datetime]
    renew_at: Mapped[datetime] = mapped_column(index=True)
    """When it is renewed next if no mail does it before."""

    __table_args__ = (sa.UniqueConstraint("app_id", "mailbox_id"),)


class Link(Base):
    """A connection uses a grant, as long as it uses that grant's registration."""

    __tablename__ = "link"

    connection_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("connection.id", ondelete="CASCADE"), primary_key=True
    )
    app_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("oauth_app.id", ondelete="CASCADE"), primary_key=True
    )
    grant_id: Mapped[int] = mapped_column(sa.ForeignKey("grant.id", ondelete="CASCADE"), index=True)
    linked_at: Mapped[datetime]
    linked_by: Mapped[str] = mapped_column(sa.String(320), default="")


class LinkFlow(Base):
    """Somebody was sent to the provider and is expected back, once."""

    __tablename__ = "link_flow"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    """SHA-256 of `state`, in hexadecimal."""
    kind: Mapped[str] = mapped_column(sa.String(10))
    connection_id: Mapped[int] = mapped_column(
        sa.ForeignKey("connection.id", ondelete="CASCADE"), index=True
    )
    app_id: Mapped[int] = mapped_column(sa.ForeignKey("oauth_app.id", ondelete="CASCADE"))
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("user.id", ondelete="CASCADE"))
    data: Mapped[str | None] = mapped_column(SealedText("link-flow"))
    """Sealed: verifier, nonce and redirect URI of a link; the state of a request for consent."""
    outcome: Mapped[str] = mapped_column(sa.String(20), default=Consent.WAITING)
    code: Mapped[str] = mapped_column(sa.String(40), default="")
    words: Mapped[str] = mapped_column(sa.Text, default="")
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
