"""One attempt on the network: load the mail, make what leaves, hand it over. No transaction open.

Conversations are kept by connection and version, so that many mails leave over one sign-in.
"""

import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog

from webapp.db import Database
from webapp.delivery.decide import Claimed, Result
from webapp.delivery.queue import SOUGHT
from webapp.mailers.base import Conversation, Envelope, Mailer, Surroundings
from webapp.mailers.errors import DeliveryError, PermanentError, TransientError, UncertainError
from webapp.mime.outgoing import FromBlock, Outgoing, Placeholders, compose, message_id_of

log = structlog.get_logger(__name__)

IDLE_SECONDS = 30.0
WAIT_FOR_DATABASE = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A connection as it was when its mails were claimed."""

    connection_id: int
    version: int
    name: str
    mailer: Mailer | None
    """None when the settings are not complete; `problem` then says why."""
    problem: str
    block: FromBlock


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that one attempt needs."""

    claim: Claimed
    opened: Opened
    placeholders: Placeholders


class Conversations:
    """Idle conversations, by connection and version."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._idle: dict[tuple[int, int], list[tuple[float, Conversation]]] = {}
        self._lock = threading.Lock()

    def take(self, opened: Opened) -> Conversation:
        """An idle conversation of this connection, or a new one."""
        assert opened.mailer is not None
        with self._lock:
            idle = self._idle.get((opened.connection_id, opened.version))
            if idle:
                return idle.pop()[1]
        return opened.mailer.open(self._surroundings)

    def give_back(self, opened: Opened, conversation: Conversation) -> None:
        """Keep it for the next mail."""
        with self._lock:
            key = (opened.connection_id, opened.version)
            self._idle.setdefault(key, []).append((time.monotonic(), conversation))

    def close_idle(self, *, older_than: float = IDLE_SECONDS) -> None:
        """Close what nobody used for a while."""
        limit = time.monotonic() - older_than
        with self._lock:
            old: list[Conversation] = []
            for key, idle in list(self._idle.items()):
                old.extend(conversation for since, conversation in idle if since <= limit)
                self._idle[key] = [item for item in idle if item[0] > limit]
                if not self._idle[key]:
                    del self._idle[key]
        if old:  # on a thread of its own: a server may take its time with a goodbye
            threading.Thread(target=_close_all, args=(old,), daemon=True).start()


def _close_all(conversations: Sequence[Conversation]) -> None:
    for conversation in conversations:
        conversation.close()


class Sender:
    """Carries out attempts; used by many threads at once."""

    def __init__(
        self,
        db: Database,
        surroundings: Surroundings,
        hostname: str,
    ) -> None:
        self._db = db
        self._hostname = hostname
        self._surroundings = surroundings
        self.conversations = Conversations(surroundings)

    def attempt(self, job: Job) -> Result:
        """Try once. Never raises: a bug of ours is an attempt that failed, and is logged."""
        version = job.opened.version
        if job.claim.is_look:
            return self._look(job)
        try:
            outgoing = self._prepare(job)
        except DeliveryError as error:
            return Result(error=error, version=version)
        except Exception as error:  # a bug must not leave the mail in `sending`
            log.exception("a mail could not be prepared", queue_id=job.claim.queue_id)
            problem = TransientError(f"Postroom: {type(error).__name__}")
            return Result(error=problem, version=version)
        try:
            return self._hand_over(job, outgoing)
        except Exception as error:  # the same, and nobody knows how far it came
            log.exception("an attempt ended in a bug", queue_id=job.claim.queue_id)
            problem_there = UncertainError(f"Postroom: {type(error).__name__}")
            return Result(error=problem_there, version=version)

    def _prepare(self, job: Job) -> Outgoing:
        if job.opened.mailer is None:
            raise TransientError(job.opened.problem)
        raw = self._content(job.claim.message_id)
        if raw is None:
            raise PermanentError("The text of this mail is no longer kept.")
        return self._outgoing(job, raw, envelope=job.opened.mailer.envelope)

    def _hand_over(self, job: Job, outgoing: Outgoing) -> Result:
        envelope = Envelope(mail_from=outgoing.mail_from, recipients=outgoing.recipients)
        details = _details(outgoing)
        conversation = self.conversations.take(job.opened)
        try:
            receipt = conversation.send(envelope, outgoing.content)
        except DeliveryError as error:
            self.conversations.give_back(job.opened, conversation)
            settles = isinstance(error, UncertainError) and self._can_settle(job)
            if settles:
                details[SOUGHT] = self._message_id(job, outgoing.content)
            return Result(
                error=error,
                can_settle=settles,
                version=job.opened.version,
                refused=_by_position(job.claim, error.refused),
                sent_from=outgoing.from_email,
                details=details | _said(error.log),
            )
        except BaseException:
            conversation.close()
            raise
        self.conversations.give_back(job.opened, conversation)
        return Result(
            version=job.opened.version,
            refused=_by_position(job.claim, receipt.refused),
            remote_id=receipt.remote_id,
            code=receipt.code,
            words=receipt.words,
            sent_from=outgoing.from_email,
            details=details | _said(receipt.log),
        )

    def _look(self, job: Job) -> Result:
        """Ask whether the last attempt went out. Whatever goes wrong here is a look later."""
        version = job.opened.version
        try:
            if job.opened.mailer is None:
                raise TransientError(job.opened.problem)
            sought = job.claim.sought or self._message_id(job, self._content(job.claim.message_id))
            found = job.opened.mailer.settle(sought, self._surroundings) if sought else None
        except DeliveryError as error:
            return Result(error=error, version=version)
        except Exception as error:  # a bug must not send a mail twice, nor forget it
            log.exception("a look ended in a bug", queue_id=job.claim.queue_id)
            problem = TransientError(f"Postroom: {type(error).__name__}")
            return Result(error=problem, version=version)
        return Result(found=found, version=version)

    def _can_settle(self, job: Job) -> bool:
        mailer = job.opened.mailer
        return mailer is not None and mailer.can_settle(self._surroundings)

    def _message_id(self, job: Job, raw: bytes | None) -> str:
        if raw is None:
            return ""
        return message_id_of(raw, queue_id=job.claim.queue_id, hostname=self._hostname)

    def _content(self, message_id: int) -> bytes | None:
        """The mail itself. While the database is away, this waits: nothing was tried yet."""
        for pause in (*WAIT_FOR_DATABASE, None):
            try:
                row = self._db.look_up("SELECT raw FROM content WHERE message_id = ?", message_id)
            except sa.exc.SQLAlchemyError as error:
                if pause is None:
                    raise TransientError("Postroom: the database did not answer") from error
                time.sleep(pause)
            else:
                return None if row is None else zlib.decompress(row[0])
        return None

    def _outgoing(self, job: Job, raw: bytes, *, envelope: bool) -> Outgoing:
        claim, received = job.claim, job.claim.received
        return compose(
            raw,
            queue_id=claim.queue_id,
            hostname=self._hostname,
            received_from=str(received.get("from", "")),
            received_with=str(received.get("with", "")),
            received_at=claim.accepted_at,
            mail_from=claim.mail_from,
            recipients=[address for _, address in claim.recipients],
            block=job.opened.block,
            placeholders=job.placeholders,
            header_envelope=not envelope,
        )


def _by_position(claim: Claimed, refused: Mapping[str, DeliveryError]) -> dict[int, DeliveryError]:
    return {
        position: refused[address] for position, address in claim.recipients if address in refused
    }


def _said(lines: tuple[str, ...]) -> dict[str, Any]:
    """What was said, as it stands in the details of an attempt."""
    return {"log": list(lines)} if lines else {}


def _details(outgoing: Outgoing) -> dict[str, Any]:
    return {
        "from": outgoing.from_email,
        "from_why": outgoing.decision.reason,
        "reply_to_added": outgoing.reply_to_added,
    }
