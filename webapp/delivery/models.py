"""The ledger: messages, their content, recipients and attempts; lanes; counts.

`due_at` is set exactly while a message waits to be claimed. Whatever is being sent, held or over
has none, so the index of due mail stays as small as the work at hand.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db import Base, BigId


class State(StrEnum):
    """Where a message, or one recipient of it, is."""

    HELD = "held"
    QUEUED = "queued"
    SENDING = "sending"
    DEFERRED = "deferred"
    UNCERTAIN = "uncertain"
    SENT = "sent"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"


OPEN_STATES = (State.HELD, State.QUEUED, State.SENDING, State.DEFERRED)
"""Never over. `uncertain` is open too, but only while `due_at` is set."""


class Source(StrEnum):
    """How a message came in."""

    SMTP = "smtp"
    API = "api"
    TEST = "test"
    RESEND = "resend"
    COMMAND = "command"


class Outcome(StrEnum):
    """What came of an attempt; the five kinds of failure, and the two good ends."""

    STARTED = "started"
    SENT = "sent"
    PARTLY = "partly"
    TRANSIENT = "transient"
    UNCERTAIN = "uncertain"
    PERMANENT = "permanent"
    NEEDS_REAUTHORISATION = "needs-reauthorisation"
    MISCONFIGURED = "misconfigured"


ASKED = "asked"
"""The code in `Message.why` of a mail whose connection was named by whoever handed it in."""


class Lane(Base):
    """What a remote limits: a login at a host, a mailbox, a key. Drained by one owner at a time."""

    __tablename__ = "lane"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(500), unique=True)
    owner_token: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    """A finish counts only while the token of the worker that claimed is still here."""
    concurrency: Mapped[int | None]
    per_minute: Mapped[int | None]
    per_hour: Mapped[int | None]
    per_day: Mapped[int | None]
    recipients_per_day: Mapped[int | None]
    windows: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What was taken lately, by window; see `delivery.lanes`."""
    throttled: Mapped[int] = mapped_column(default=0)
    """Times in a row that the remote asked to slow down."""
    is_blocked: Mapped[bool] = mapped_column(default=False)
    blocked_until: Mapped[datetime | None]
    """Empty while blocked means: until somebody acts."""
    blocked_since: Mapped[datetime | None]
    trips: Mapped[int] = mapped_column(default=0, server_default="0")
    """Times in a row that the remote could not be reached at all, while the breaker is open."""
    blocked_kind: Mapped[str] = mapped_column(sa.String(30), default="")
    blocked_words: Mapped[str] = mapped_column(sa.Text, default="")
    is_paused: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """A person lets nothing leave by it for now; apart from whatever else blocks it."""


class Message(Base):
    """One mail as it was handed in, and how far it has come."""

    __tablename__ = "message"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    queue_id: Mapped[str] = mapped_column(sa.String(20), unique=True)
    site_id: Mapped[int] = mapped_column(sa.ForeignKey("site.id"))
    credential_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("credential.id", ondelete="SET NULL")
    )
    source: Mapped[str] = mapped_column(sa.String(10))
    received: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """How it came in: login, address, protocol, TLS version."""
    state: Mapped[str] = mapped_column(sa.String(12))
    due_at: Mapped[datetime | None]
    lane_id: Mapped[int | None] = mapped_column(sa.ForeignKey("lane.id"))
    connection_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("connection.id", ondelete="SET NULL")
    )
    why: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Why the planned connection: a code and its parameters."""
    planned_id: Mapped[int | None] = mapped_column(BigId)
    """The connection that routing chose; `connection_id` is another one while a backup stands in.
    No foreign key: connections are never deleted."""
    routed_version: Mapped[int | None]
    """The site's `routing_version` by which it was planned; empty where no rule may move it."""
    detour: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    """Set where a backup stood in: `refused` and `passed`, keys of connections; see
    `delivery.backups`."""

    subject: Mapped[str] = mapped_column(sa.Text)
    mail_from: Mapped[str] = mapped_column(sa.String(320))
    from_email: Mapped[str] = mapped_column(sa.String(320))
    from_name: Mapped[str] = mapped_column(sa.String(200))
    sent_from: Mapped[str] = mapped_column(sa.String(320), default="")
    """The From address of the last attempt, once there was one."""
    to_line: Mapped[str] = mapped_column(sa.Text)
    """The recipients, cut after a few, as the log shows them."""
    message_id: Mapped[str] = mapped_column(sa.String(500), default="")
    size_bytes: Mapped[int]
    recipient_count: Mapped[int]
    has_attachments: Mapped[bool]

    accepted_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    """Attempts that count for the back-off; being asked to wait does not."""
    unclear: Mapped[int] = mapped_column(default=0)
    """Times the answer was lost."""
    looks: Mapped[int] = mapped_column(default=0, server_default="0")
    """Times that the remote was asked whether an unclear mail had gone out."""
    maybe_twice: Mapped[bool] = mapped_column(default=False)
    """It went out again after an answer was lost."""
    last_code: Mapped[str] = mapped_column(sa.String(40), default="")
    last_words: Mapped[str] = mapped_column(sa.Text, default="")

    __table_args__ = (
        sa.Index("ix_message_site", "site_id", "id"),
        sa.Index("ix_message_site_state", "site_id", "state", "id"),
        sa.Index(
            "ix_message_state",
            "state",
            "id",
            sqlite_where=sa.text("state <> 'sent'"),
            postgresql_where=sa.text("state <> 'sent'"),
        ),
        sa.Index(
            "ix_message_due",
            "lane_id",
            "due_at",
            sqlite_where=sa.text("due_at IS NOT NULL"),
            postgresql_where=sa.text("due_at IS NOT NULL"),
        ),
        sa.Index(
            "ix_message_due_site",
            "lane_id",
            "site_id",
            "due_at",
            "id",
            sqlite_where=sa.text("due_at IS NOT NULL"),
            postgresql_where=sa.text("due_at IS NOT NULL"),
        ),
        sa.Index(
            "ix_message_detour",
            "id",
            sqlite_where=sa.text("detour IS NOT NULL AND due_at IS NOT NULL"),
            postgresql_where=sa.text("detour IS NOT NULL AND due_at IS NOT NULL"),
        ),
    )


class Content(Base):
    """The mail itself, compressed; deleted by policy while the message row stays."""

    __tablename__ = "content"

    message_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("message.id", ondelete="CASCADE"), primary_key=True
    )
    raw: Mapped[bytes] = mapped_column(sa.LargeBinary)
    """zlib."""


class Recipient(Base):
    """One RCPT TO with a state of its own."""

    __tablename__ = "recipient"

    message_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("message.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(sa.String(320))
    state: Mapped[str] = mapped_column(sa.String(12))
    """`sending` is never stored here: the message's open attempt says it."""
    is_due: Mapped[bool]
    """Still to be tried. An unclear one may be either: tried once more, or left as it is."""
    code: Mapped[str] = mapped_column(sa.String(40), default="")
    words: Mapped[str] = mapped_column(sa.Text, default="")
    attempt: Mapped[int | None]
    """The number of the attempt that gave this state."""


class Attempt(Base):
    """One try on one connection, noted before the network is touched."""

    __tablename__ = "attempt"

    message_id: Mapped[int] = mapped_column(
        BigId, sa.ForeignKey("message.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    connection_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("connection.id", ondelete="SET NULL"), index=True
    )
    connection_name: Mapped[str] = mapped_column(sa.String(160), default="")
    """Nickname or mailer at that time, for when the connection is gone."""
    outcome: Mapped[str] = mapped_column(sa.String(30))
    cause: Mapped[str] = mapped_column(sa.String(40), default="")
    code: Mapped[str] = mapped_column(sa.String(40), default="")
    words: Mapped[str] = mapped_column(sa.Text, default="")
    remote_id: Mapped[str] = mapped_column(sa.String(300), default="")
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """From address and why, Reply-To added, recipients tried, when it is tried again."""
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class Tally(Base):
    """Counts by site, connection, outcome and hour. Deltas are appended, and folded later."""

    __tablename__ = "tally"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    site_id: Mapped[int]
    connection_id: Mapped[int | None]
    outcome: Mapped[str] = mapped_column(sa.String(12))
    """`accepted`, or the state in which a message ended."""
    hour: Mapped[datetime]
    count: Mapped[int]

    __table_args__ = (sa.Index("ix_tally_site_hour", "site_id", "hour"),)


class Heartbeat(Base):
    """A process that runs, and when it last said so."""

    __tablename__ = "heartbeat"

    name: Mapped[str] = mapped_column(sa.String(200), primary_key=True)
    part: Mapped[str] = mapped_column(sa.String(20), index=True)
    beat_at: Mapped[datetime]
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Setting(Base):
    """A value of the installation: the delivery token, the key's fingerprint, the set-up link."""

    __tablename__ = "setting"

    name: Mapped[str] = mapped_column(sa.String(60), primary_key=True)
    value: Mapped[dict[str, Any]] = mapped_column(default=dict)


def may_move() -> sa.ColumnElement[bool]:
    """Waiting mail that follows the rules of its site to another connection: not what nobody knows
    to have arrived, which stays where it went out; not a test, nor what asked for a connection."""
    unclear = sa.exists().where(
        Recipient.message_id == Message.id,
        Recipient.is_due,
        Recipient.state == State.UNCERTAIN,
    )
    return sa.and_(
        Message.state.in_((State.QUEUED, State.DEFERRED)),
        Message.routed_version.is_not(None),
        sa.not_(unclear),
    )


_SENT: sa.ColumnElement[str] = sa.literal_column("'sent'")


def is_in(state: State) -> sa.ColumnElement[bool]:
    """Messages in one unfinished state, written so that SQLite, too, uses the partial index."""
    literal: sa.ColumnElement[str] = sa.literal_column(f"'{state.value}'")
    return sa.and_(Message.state == literal, Message.state != _SENT)
