"""What the API does, without HTTP: hand mail in, find what was answered, list, show."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection as DbConnection
from sqlalchemy.orm import Session

from webapp.api.models import Idempotency
from webapp.api.pace import Pace
from webapp.api.schemas import AttemptOut, MessageOut, RecipientOut, SummaryOut
from webapp.config import Settings
from webapp.connections.models import Connection
from webapp.db import Database
from webapp.delivery.wake import Waker
from webapp.disk import Disk
from webapp.ingress.accept import Accepted, Acceptor, Once, Pinned, first_answer, note_use
from webapp.ingress.login import Brake, Submitter, authenticate
from webapp.maillog.service import LogRow, MessageDetail
from webapp.sites.models import CredentialKind

REMEMBERED = timedelta(hours=24)
"""How long an Idempotency-Key counts."""
NOTE_USE_EVERY = 60.0
SLEEPERS = 2
"""Wrong keys that are kept waiting at once: each wait takes a thread of the dashboard."""
PATIENCE = 60.0
"""Seconds to wait for a commit; what takes longer is answered as not stored, and may be."""
OLD_KEYS = 500


class Busy(Exception):
    """There is no room at this moment."""


@dataclass
class Office:
    """What all requests of one web process share."""

    settings: Settings
    db: Database
    brake: Brake = field(default_factory=Brake)
    sleep: Callable[[float], None] = time.sleep
    noted: dict[int, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _acceptor: Acceptor | None = None
    _waker: Waker | None = None
    _taken: int = 0

    def __post_init__(self) -> None:
        self.pace = Pace(self.settings.api_per_minute)
        self.sleepers = threading.BoundedSemaphore(SLEEPERS)

    @property
    def waker(self) -> Waker:
        """Tells the worker that there is something to do."""
        with self._lock:
            if self._waker is None:
                self._waker = Waker(self.settings.instance)
            return self._waker

    @property
    def acceptor(self) -> Acceptor:
        """The one way in; made when the first mail comes, as a thread does not survive a fork."""
        waker = self.waker
        with self._lock:
            if self._acceptor is None:
                self._acceptor = Acceptor(self.db, waker, Disk.of(self.settings))
            return self._acceptor

    def close(self) -> None:
        """Store what was handed in so far, and stop."""
        if self._acceptor is not None:
            self._acceptor.close()
        if self._waker is not None:
            self._waker.close()

    @contextmanager
    def memory(self, size: int) -> Iterator[None]:
        """Room for a request of this size while it is being read; raises Busy."""
        with self._lock:
            if self._taken + size > self.settings.max_data_memory_bytes:
                raise Busy
            self._taken += size
        try:
            yield
        finally:
            with self._lock:
                self._taken -= size

    def submitter(self, key: str, address: str) -> Submitter | None:
        """Who holds this key; None for a wrong or revoked one, or from a wrong place."""
        username, dot, secret = key.partition(".")
        if not dot or not key.isascii():
            return None
        found = authenticate(self.db, username, secret, address, CredentialKind.API)
        if found is not None:
            self._note_use(found, address)
        return found

    def _note_use(self, found: Submitter, address: str) -> None:
        now = time.monotonic()
        if now - self.noted.get(found.credential_id, -NOTE_USE_EVERY) < NOTE_USE_EVERY:
            return
        self.noted[found.credential_id] = now
        note_use(self.db, found.credential_id, address)

    def delay_of(self, key: str, address: str) -> float:
        """Count a wrong key; how many seconds its answer should take."""
        return self.brake.failed(f"key:{key.partition('.')[0][:100]}", f"address:{address}")


# ---- the same request again ----


def once(submitter: Submitter, key: str, *body: bytes) -> Once:
    """The name of a request that carries an Idempotency-Key."""
    digest = hashlib.sha256()
    for part in body:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return Once(
        credential_id=submitter.credential_id,
        digest=hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest(),
        body_digest=digest.hexdigest(),
        lasts=REMEMBERED,
    )


def answered(session: Session, name: Once, now: datetime) -> Accepted | None:
    """What was answered when a request of this name came first."""
    row = session.get(Idempotency, (name.credential_id, name.digest))
    if row is None or row.expires_at <= now:
        return None
    return first_answer(row.body_digest, row.answer)


def drop_old_keys(connection: DbConnection, now: datetime, most: int = OLD_KEYS) -> int:
    """Forget Idempotency-Keys whose day is over, a batch at a time; returns how many went."""
    old = (
        sa.select(Idempotency.credential_id, Idempotency.digest)
        .where(Idempotency.expires_at <= now)
        .order_by(Idempotency.expires_at)
        .limit(most)
    )
    keys = [(row.credential_id, row.digest) for row in connection.execute(old)]
    if not keys:
        return 0
    gone = connection.execute(
        sa.delete(Idempotency).where(
            sa.tuple_(Idempotency.credential_id, Idempotency.digest).in_(keys),
            Idempotency.expires_at <= now,  # it may have been used anew since
        )
    )
    return gone.rowcount


# ---- by which connection ----


def find_pinned(session: Session, site_id: int, uid: str) -> Pinned | None:
    """A connection of this site that can send, or one that is shared; by its id."""
    row = session.execute(
        sa.select(Connection.id, Connection.lane_id).where(
            Connection.uid == uid,
            sa.or_(Connection.site_id == site_id, Connection.site_id.is_(None)),
            Connection.is_system.is_(False),
            Connection.deleted_at.is_(None),
        )
    ).first()
    return Pinned(connection_id=row.id, lane_id=row.lane_id) if row else None


# ---- how it is shown ----


def url_of(settings: Settings, queue_id: str) -> str:
    """Where a program asks for a message."""
    return f"{settings.url}/api/v1/messages/{queue_id}"


def summary(settings: Settings, row: LogRow) -> SummaryOut:
    """A message as the list shows it."""
    return SummaryOut(**_summary(settings, row))


def _summary(settings: Settings, row: LogRow) -> dict[str, Any]:
    return {
        "id": row.queue_id,
        "status": row.state,
        "from_": row.from_email,
        "subject": row.subject,
        "to": row.to_line,
        "recipient_count": row.recipient_count,
        "message_id": row.message_id,
        "maybe_twice": row.maybe_twice,
        "has_attachments": row.has_attachments,
        "attempt_count": row.attempts,
        "last_code": row.last_code,
        "last_words": row.last_words,
        "accepted_at": row.accepted_at,
        "finished_at": row.finished_at,
        "url": url_of(settings, row.queue_id),
    }


def detail(settings: Settings, mail: MessageDetail) -> MessageOut:
    """A message with everything but its content."""
    waiting = mail.row.waiting
    return MessageOut(
        **_summary(settings, mail.row),
        source=mail.source,
        mail_from=mail.mail_from,
        sent_from=mail.sent_from,
        size_bytes=mail.size_bytes,
        next_try_at=waiting.until if waiting else None,
        waits_for=waiting.reason if waiting else "",
        expires_at=mail.expires_at,
        recipients=_recipients(mail),
        attempts=_attempts(mail),
    )


def _recipients(mail: MessageDetail) -> tuple[RecipientOut, ...]:
    return tuple(
        RecipientOut(
            address=one.address,
            status=one.state,
            code=one.code,
            words=one.words,
            attempt=one.attempt,
        )
        for one in mail.recipients
    )


def _attempts(mail: MessageDetail) -> tuple[AttemptOut, ...]:
    return tuple(
        AttemptOut(
            number=one.number,
            connection=one.connection,
            outcome=one.outcome,
            code=one.code,
            words=one.words,
            remote_id=one.remote_id,
            started_at=one.started_at,
            finished_at=one.finished_at,
        )
        for one in mail.attempts
    )


def not_allowed(submitter: Submitter, addresses: Sequence[str]) -> str:
    """The first of these addresses that the credential may not send as; empty when all are fine."""
    return next((one for one in addresses if one and not submitter.may_send_as(one)), "")
