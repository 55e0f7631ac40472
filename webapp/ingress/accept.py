"""The one way in: check, route, store durably, and only then answer.

`prepare` does what needs no database (parse, compress, find the search words); `store` writes
everything of many messages in one transaction; `Acceptor` groups whatever arrived while the last
commit was under way. No timer: a group is as large as the traffic makes it.
"""

import asyncio
import json
import queue
import threading
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache, cached_property, partial
from typing import Any

import sqlalchemy as sa
import structlog

from webapp import ids
from webapp.db import Database, Driver, utcnow
from webapp.delivery.models import Message, Source, State
from webapp.delivery.wake import Waker
from webapp.disk import FULL, Disk
from webapp.mime.facts import Facts, facts_of
from webapp.mime.outgoing import too_many_hops
from webapp.mime.tokens import tokens, tsvector_literal
from webapp.routing.book import Rulebook
from webapp.routing.conditions import MailFacts, facts_for_rules
from webapp.routing.service import Chosen, Plan, SiteRoute, plan, redirected
from webapp.sites.models import Credential

log = structlog.get_logger(__name__)

SEARCH_WORDS = 400
SHOWN_RECIPIENTS = 3
MAX_GROUP = 200
NO_TIME = timedelta()
AHEAD = timedelta(days=30)
"""Due before anything that may still be waiting: somebody looks at the page."""


class NotAccepted(Exception):
    """The mail cannot be taken; `reply` is the SMTP answer."""

    def __init__(self, reply: str) -> None:
        super().__init__(reply)
        self.reply = reply


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A connection that a mail leaves by whatever the site's settings say: it is a test of that
    connection, or whoever handed it in asked for it."""

    connection_id: int
    lane_id: int | None


@dataclass(frozen=True, kw_only=True)
class Once:
    """A name for a request: a mail handed in again under it is not stored a second time."""

    credential_id: int
    digest: str
    """Of the name."""
    body_digest: str
    lasts: timedelta


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One mail as it was handed in."""

    site_id: int
    credential_id: int | None
    source: Source
    mail_from: str
    """Envelope sender; empty for a bounce."""
    recipients: Sequence[str]
    raw: bytes
    received: Mapping[str, Any]
    pinned: Pinned | None = None
    once: Once | None = None

    @property
    def is_first(self) -> bool:
        """Whether somebody looks at the page and waits: it goes before all others."""
        return self.source in {Source.TEST, Source.RESEND}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A submission with all that can be found out without the database.

    The id is made here, once: however often storing it is tried, it can be stored only once.
    """

    queue_id: str = field(default_factory=lambda: ids.queue_id(utcnow()))
    submission: Submission
    facts: Facts
    compressed: bytes
    words: Sequence[str]

    @cached_property
    def rule_facts(self) -> MailFacts:
        """What rules look at; read only where there are any."""
        return facts_for_rules(self.submission.raw, self.submission.recipients, "")


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The answer: ours from now on."""

    queue_id: str
    state: State
    first_body: str = ""
    """Set when nothing was stored, because a request of this name was answered before: the digest
    of what that one carried."""


def prepare(submission: Submission) -> Prepared:
    """Parse and compress. Raises NotAccepted for a mail that runs in circles."""
    facts = facts_of(submission.raw)
    if too_many_hops(facts):
        raise NotAccepted("554 5.4.6 Too many hops: this mail is going round in circles")
    return Prepared(
        submission=submission,
        facts=facts,
        compressed=zlib.compress(submission.raw, 1),
        words=search_words(facts.subject, facts.from_email, facts.from_name, submission.recipients),
    )


def store(
    driver: Driver, group: Sequence[Prepared], now: datetime, book: Rulebook | None = None
) -> list[Accepted]:
    """Write a group of mails; they are ours once the caller has committed.

    A mail whose request was answered before is left out, and gets that answer. Whoever stores
    often keeps a `book`, so that no rules are read twice.
    """
    sites = {item.submission.site_id for item in group}
    routes = (book or Rulebook()).routes(driver, sites)
    plans = _plans(driver, group, routes)
    answers = _repeats(driver, group, plans, now)
    fresh = [item for item in group if item.queue_id not in answers]
    if fresh:
        answers |= {told.queue_id: told for told in _store_all(driver, fresh, plans, routes, now)}
    return [answers[item.queue_id] for item in group]


def _plans(
    driver: Driver, group: Sequence[Prepared], routes: Mapping[int, SiteRoute]
) -> dict[str, Plan]:
    """What becomes of each of these mails, by queue id."""
    labels = _labels(driver, group, routes)

    def facts(item: Prepared) -> MailFacts:
        found = item.rule_facts
        if found.initiator:
            return found
        return replace(found, initiator=labels.get(item.submission.credential_id or 0, ""))

    found: dict[str, Plan] = {}
    alike: dict[int, Plan] = {}
    for item in group:
        site = routes[item.submission.site_id]
        if site.rules or item.submission.pinned is not None:
            found[item.queue_id] = plan(site, cache(partial(facts, item)), _chosen(item.submission))
        else:  # all mail of the site goes the same way
            known = alike.get(site.site_id)
            if known is None:
                known = alike[site.site_id] = plan(site, partial(facts, item))
            found[item.queue_id] = known
    return found


def _labels(
    driver: Driver, group: Sequence[Prepared], routes: Mapping[int, SiteRoute]
) -> dict[int, str]:
    """What the credentials of these mails are called, where a rule asks for it."""
    wanted = {
        item.submission.credential_id
        for item in group
        if item.submission.credential_id and routes[item.submission.site_id].rules.asks_initiator
    }
    if not wanted:
        return {}
    marks = ", ".join("?" * len(wanted))
    statement = f"SELECT id, label FROM credential WHERE id IN ({marks})"  # noqa: S608
    return dict(driver.rows(statement, *wanted))


def _chosen(submission: Submission) -> Chosen | None:
    pinned = submission.pinned
    if pinned is None:
        return None
    return Chosen(
        connection_id=pinned.connection_id,
        lane_id=pinned.lane_id,
        is_test=submission.source is Source.TEST,
        is_resend=submission.source is Source.RESEND,
    )


def _store_all(
    driver: Driver,
    group: Sequence[Prepared],
    plans: Mapping[str, Plan],
    routes: Mapping[int, SiteRoute],
    now: datetime,
) -> list[Accepted]:
    first_id = _reserve_ids(driver, len(group))
    messages, contents, recipients, searches = [], [], [], []
    counts: Counter[tuple[int, str]] = Counter()
    accepted = []
    for message_id, item in zip(first_id, group, strict=True):
        site_id = item.submission.site_id
        decision = plans[item.queue_id]
        row = _message_row(message_id, item, decision, routes[site_id], now)
        messages.append(row)
        contents.append({"message_id": message_id, "raw": item.compressed})
        recipients.extend(_recipient_rows(message_id, item.submission, decision))
        searches.append((message_id, site_id, item.words))
        counts[site_id, "accepted"] += 1
        if decision.blocked:
            counts[site_id, State.BLOCKED] += 1
        accepted.append(Accepted(queue_id=row["queue_id"], state=State(row["state"])))
    hour = now.replace(minute=0, second=0, microsecond=0)
    driver.insert("message", messages)
    driver.insert("content", contents)
    driver.insert("recipient", recipients)
    make_searchable(driver, searches)
    tallied = [
        {
            "site_id": site_id,
            "connection_id": None,
            "outcome": outcome,
            "hour": hour,
            "count": count,
        }
        for (site_id, outcome), count in sorted(counts.items())
    ]
    driver.insert("tally", tallied)
    return accepted


_INSERT_SEARCH_SQLITE = "INSERT INTO message_search (rowid, site, words) VALUES (?, ?, ?)"
_INSERT_SEARCH = "INSERT INTO message_search (message_id, words) VALUES (?, CAST(? AS tsvector))"


# The row is the claim to the name: of two at once, the second waits here for the first to commit.
_CLAIM_NAME = (
    "INSERT INTO idempotency "
    "(credential_id, digest, body_digest, status, answer, created_at, expires_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (credential_id, digest) DO UPDATE SET "
    "body_digest = excluded.body_digest, status = excluded.status, answer = excluded.answer, "
    "created_at = excluded.created_at, expires_at = excluded.expires_at "
    "WHERE idempotency.expires_at <= excluded.created_at RETURNING digest"
)
_FIRST_ANSWER = "SELECT body_digest, answer FROM idempotency WHERE credential_id = ? AND digest = ?"
TAKEN = 202
"""What HTTP calls a mail that was accepted."""


def _repeats(
    driver: Driver, group: Sequence[Prepared], plans: Mapping[str, Plan], now: datetime
) -> dict[str, Accepted]:
    """Claim the names of these mails; by queue id, those whose name was answered before."""
    found = {}
    named = [(once, item) for item in group if (once := item.submission.once)]
    # In the order of their keys, so that two processes never wait for one another.
    for once, item in sorted(named, key=lambda pair: (pair[0].credential_id, pair[0].digest)):
        answer = {"id": item.queue_id, "status": _state(plans[item.queue_id])}
        row = (once.credential_id, once.digest, once.body_digest, TAKEN, answer)
        if not driver.rows(_CLAIM_NAME, *driver.plain((*row, now, now + once.lasts))):
            first = driver.rows(_FIRST_ANSWER, once.credential_id, once.digest)[0]
            found[item.queue_id] = first_answer(*first)
    return found


def first_answer(body_digest: str, answer: Any) -> Accepted:
    """What was answered to the first request of a name; JSON as either driver gives it."""
    told = json.loads(answer) if isinstance(answer, str) else answer
    return Accepted(queue_id=told["id"], state=State(told["status"]), first_body=body_digest)


def _reserve_ids(driver: Driver, count: int) -> Sequence[int]:
    """Keys for `count` messages; on SQLite the write lock is ours, so the next ones are free."""
    if driver.is_sqlite:
        last = driver.rows("SELECT max(id) FROM message")[0][0] or 0
        return range(last + 1, last + 1 + count)
    reserved = driver.rows("SELECT nextval('message_id_seq') FROM generate_series(1, ?)", count)
    return [row[0] for row in reserved]


def _message_row(
    message_id: int, item: Prepared, decision: Plan, route: SiteRoute, now: datetime
) -> dict[str, Any]:
    submission, facts = item.submission, item.facts
    recipients, original = _delivered_to(submission, decision), submission.recipients
    received, why = dict(submission.received), dict(decision.why)
    if decision.redirect_to:
        received |= redirected(original)
        why["redirected"] = len(original)
    waits = not (decision.blocked or decision.held)
    return {
        "id": message_id,
        "queue_id": item.queue_id,
        "site_id": submission.site_id,
        "credential_id": submission.credential_id,
        "source": submission.source,
        "received": received,
        "state": _state(decision),
        "due_at": now - (AHEAD if submission.is_first else NO_TIME) if waits else None,
        "lane_id": decision.lane_id,
        "connection_id": decision.connection_id,
        "planned_id": decision.connection_id,
        "routed_version": decision.version,
        "why": why,
        "subject": facts.subject,
        "mail_from": submission.mail_from[:320],
        "from_email": facts.from_email[:320],
        "from_name": facts.from_name[:200],
        "sent_from": "",
        "to_line": ", ".join(recipients[:SHOWN_RECIPIENTS]),
        "message_id": facts.message_id[:500],
        "size_bytes": len(submission.raw),
        "recipient_count": len(recipients),
        "has_attachments": facts.has_attachments,
        "accepted_at": now,
        "expires_at": now + timedelta(hours=route.retry_hours),
        "finished_at": now if decision.blocked else None,
        "attempts": 0,
        "failures": 0,
        "unclear": 0,
        "maybe_twice": False,
        "last_code": "",
        "last_words": "",
    }


def _recipient_rows(
    message_id: int, submission: Submission, decision: Plan
) -> list[dict[str, Any]]:
    state = _state(decision)
    return [
        {
            "message_id": message_id,
            "position": position,
            "address": address,
            "state": state,
            "is_due": not decision.blocked,
            "code": "",
            "words": "",
        }
        for position, address in enumerate(_delivered_to(submission, decision))
    ]


def _state(decision: Plan) -> State:
    if decision.blocked:
        return State.BLOCKED
    return State.HELD if decision.held else State.QUEUED


def _delivered_to(submission: Submission, decision: Plan) -> Sequence[str]:
    return (decision.redirect_to,) if decision.redirect_to else submission.recipients


def search_words(
    subject: str, from_email: str, from_name: str, recipients: Sequence[str]
) -> list[str]:
    """The words by which a mail is found."""
    return tokens(" ".join((subject, from_email, from_name, *recipients)), SEARCH_WORDS)


def make_searchable(driver: Driver, mails: Sequence[tuple[int, int, Sequence[str]]]) -> None:
    """Put mails into the search index: key, site and words of each."""
    if driver.is_sqlite:
        rows = [(key, f"s{site_id}", " ".join(words)) for key, site_id, words in mails]
        driver.many(_INSERT_SEARCH_SQLITE, rows)
    else:
        driver.many(_INSERT_SEARCH, [(key, tsvector_literal(words)) for key, _, words in mails])


def note_use(db: Database, credential_id: int, address: str) -> None:
    """Remember when a credential was last used, at most once a minute."""
    now = db.now()
    with db.write_connection() as connection:
        connection.execute(
            sa.update(Credential)
            .where(
                Credential.id == credential_id,
                sa.or_(
                    Credential.last_used_at.is_(None),
                    Credential.last_used_at < now - timedelta(minutes=1),
                ),
            )
            .values(last_used_at=now, last_used_from=address)
        )


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A submission and whoever waits for its answer: a thread, or a coroutine of `loop`."""

    submission: Submission
    answer: "Future[Accepted] | asyncio.Future[Accepted]"
    loop: asyncio.AbstractEventLoop | None = None


Answer = Accepted | NotAccepted


class Acceptor:
    """Stores submissions in grouped commits, on one thread of its own.

    With a `disk`, new mail is refused as soon as only the reserve is left there.
    """

    def __init__(self, db: Database, waker: Waker, disk: Disk | None = None) -> None:
        self._db = db
        self._waker = waker
        self._disk = disk
        self._book = Rulebook()
        self._waiting: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="accept", daemon=True)
        self._thread.start()

    def submit(self, submission: Submission) -> "Future[Accepted]":
        """Queue one mail; the future resolves after the commit, or carries NotAccepted."""
        answer: Future[Accepted] = Future()
        self._waiting.put(Waiting(submission=submission, answer=answer))
        return answer

    def submit_async(self, submission: Submission) -> "asyncio.Future[Accepted]":
        """The same for a coroutine of the running event loop."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Accepted] = loop.create_future()
        self._waiting.put(Waiting(submission=submission, answer=answer, loop=loop))
        return answer

    def has_room(self, size: int = 0) -> bool:
        """Whether a mail of this size may come; it may still be refused once it is there."""
        return self._disk is None or self._disk.has_room(size)

    def close(self) -> None:
        """Store what was submitted so far, then stop."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        over = False
        while not over:
            group = [self._waiting.get()]
            while len(group) < MAX_GROUP:
                try:
                    group.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            over = None in group
            self._store([item for item in group if item is not None])

    def _store(self, group: list[Waiting]) -> None:
        answers: list[tuple[Waiting, Answer]] = []
        ready: list[tuple[Waiting, Prepared]] = []
        for item in group:
            try:
                self._check_room(len(item.submission.raw))
                ready.append((item, prepare(item.submission)))
            except NotAccepted as refusal:
                answers.append((item, refusal))
            except Exception as error:  # one mail's bug must not end this thread
                log.exception("a mail could not be read")
                answers.append((item, _refusal(error)))
        if ready:
            answers.extend(self._stored(ready))
        _tell(answers)

    def _check_room(self, size: int) -> None:
        if self._disk is None:
            return
        if not self._disk.has_room(size):
            raise NotAccepted(FULL)
        self._disk.take(size)

    def _stored(self, ready: list[tuple[Waiting, Prepared]]) -> list[tuple[Waiting, Answer]]:
        try:
            accepted = self._commit([prepared for _, prepared in ready])
        except Exception as error:  # noqa: BLE001  (some mail of the group, or the database)
            log.warning("a group of mails could not be stored", error=type(error).__name__)
            return self._stored_singly(ready, error)
        return [(item, answer) for (item, _), answer in zip(ready, accepted, strict=True)]

    def _stored_singly(
        self, ready: list[tuple[Waiting, Prepared]], error: Exception
    ) -> list[tuple[Waiting, Answer]]:
        """The group's commit failed: those of it that are there are answered, the others stored
        one by one, so that one of them does not take all along."""
        try:
            there = self._there(ready)
        except sa.exc.SQLAlchemyError:  # the database is away; whoever sent them tries again
            return [(item, _refusal(error)) for item, _ in ready]
        return [(item, there.get(mail.queue_id) or self._single(mail)) for item, mail in ready]

    def _single(self, mail: Prepared) -> Answer:
        try:
            return self._commit([mail])[0]
        except sa.exc.OperationalError as error:  # the disk or the server, not this mail
            log.warning("a mail could not be stored", error=str(error.orig)[:300])
            return _refusal(error)
        except Exception as error:
            log.exception("a mail could not be stored")
            return _refusal(error)

    def _there(self, ready: list[tuple[Waiting, Prepared]]) -> dict[str, Accepted]:
        """Which of these mails are stored, whatever the commit seemed to say."""
        wanted = [mail.queue_id for _, mail in ready]
        with self._db.reader.connect() as connection:
            rows = connection.execute(
                sa.select(Message.queue_id, Message.state).where(Message.queue_id.in_(wanted))
            )
            return {
                row.queue_id: Accepted(queue_id=row.queue_id, state=State(row.state))
                for row in rows
            }

    def _commit(self, group: list[Prepared]) -> list[Accepted]:
        for mail in group:
            if self._book.has_rules(mail.submission.site_id):
                _ = mail.rule_facts  # read now, not while the database is held
        now = self._db.now()
        with self._db.write_driver() as driver:
            accepted = store(driver, group, now, self._book)
        self._waker.wake()
        return accepted


def _tell(answers: list[tuple[Waiting, Answer]]) -> None:
    """Give everybody their answer; one wake-up per event loop, not one per mail."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Waiting, Answer]]] = {}
    for item, answer in answers:
        if item.loop is None:
            _resolve(item, answer)
        else:
            by_loop.setdefault(item.loop, []).append((item, answer))
    for loop, told in by_loop.items():
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve_all, told)


def _resolve_all(answers: list[tuple[Waiting, Answer]]) -> None:
    for item, answer in answers:
        _resolve(item, answer)


def _resolve(item: Waiting, answer: Answer) -> None:
    if item.answer.done():  # the client is gone; its mail is ours all the same
        return
    if isinstance(answer, NotAccepted):
        item.answer.set_exception(answer)
    else:
        item.answer.set_result(answer)


def _refusal(error: Exception) -> NotAccepted:
    text = str(getattr(error, "orig", error)).lower()
    if any(words in text for words in ("is full", "no space", "disk i/o error")):
        return NotAccepted("452 4.3.1 The disk is full or cannot be written to: try again later")
    return NotAccepted("451 4.3.0 The mail could not be stored: try again later")
