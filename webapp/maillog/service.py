"""What the log shows of the ledger: pages of messages, one message, its content. Reads only.

A page is found by key, newest first, and what it costs follows its length, not the number of
messages kept: filters walk an index from the newest end, each site by itself, and the ends are
merged. A search first looks through the newest few messages, which finds every common word at
once; only what is rarer asks the full-text index, and then there is little to sort.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import reduce
from heapq import nlargest, nsmallest
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from webapp import ids
from webapp.connections.models import Connection
from webapp.delivery.decide import LOOKS, may_go_again
from webapp.delivery.lanes import Limits, Pace
from webapp.delivery.models import (
    Attempt,
    Content,
    Lane,
    Message,
    Outcome,
    Recipient,
    Source,
    State,
)
from webapp.mailers import registry
from webapp.mime.tokens import fts5_query, query_terms, tsquery
from webapp.sites.models import Site

PAGE = 50
COUNT_CAP = 1_000

LAST_ID = 2**62
EXPORT_CHUNK = 500

LOOK_THROUGH = {"sqlite": 500, "postgresql": 4_000}
"""Newest messages that a search reads before it asks the full-text index."""

LOOK_FURTHER = 10_000
"""Messages or hits that one search reads at most; a link goes on from there."""

MANY_HITS = 30_000
"""PostgreSQL sorts the hits of its index; more than these take too long."""


class View(StrEnum):
    """The views above the list, by the word that stands in the address."""

    ALL = "all"
    SENT = "sent"
    WAITING = "waiting"
    FAILED = "failed"
    UNCLEAR = "unclear"
    HELD = "held"
    NOT_SENT = "not-sent"


VIEW_STATES: Mapping[View, tuple[State, ...]] = {
    View.ALL: (),
    View.SENT: (State.SENT,),
    View.WAITING: (State.QUEUED, State.SENDING, State.DEFERRED),
    View.FAILED: (State.FAILED,),
    View.UNCLEAR: (State.UNCERTAIN,),
    View.HELD: (State.HELD,),
    View.NOT_SENT: (State.BLOCKED, State.CANCELLED),
}


class Reason(StrEnum):
    """Why a message that is not over has not left yet."""

    NO_CONNECTION = "no-connection"
    PAUSED = "paused"
    """A person lets nothing leave by its lane for now."""
    BLOCKED = "blocked"
    """Nothing leaves by its lane: until a time, or until somebody acts."""
    LATER = "later"
    ROOM = "room"
    """The limits of its lane are used up for now."""
    TURN = "turn"


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What a message waits for. `until` is empty when it takes a person."""

    reason: Reason
    until: datetime | None = None
    since: datetime | None = None
    kind: str = ""
    """Why the lane is blocked, in one word: an outcome, or `throttled`."""
    words: str = ""
    limits: Limits | None = None


@dataclass(frozen=True, kw_only=True)
class LogRow:
    """One message as the list shows it."""

    id: int
    queue_id: str
    site_id: int
    site_slug: str
    site_name: str
    state: State
    is_partly_sent: bool
    """Failed for some recipients, sent to others."""
    maybe_twice: bool
    subject: str
    from_email: str
    to_line: str
    recipient_count: int
    has_attachments: bool
    via: str
    """Nickname or mailer of the connection; empty when there is none."""
    message_id: str
    accepted_at: datetime
    finished_at: datetime | None
    attempts: int
    last_code: str
    last_words: str
    waiting: Waiting | None
    is_asked_about: bool = False
    """Unclear, and the remote is still to be asked whether it went out."""


@dataclass(frozen=True, kw_only=True)
class LogPage:
    """A page of the log, newest first, and where the ones beside it begin."""

    rows: tuple[LogRow, ...]
    newer: int | None
    """The key to pass as `after_id`; empty on the first page."""
    older: int | None
    """The key to pass as `before_id`; empty on the last page."""
    reached: datetime | None = None
    """Set when the search stopped before the end: how far it has looked."""


@dataclass(frozen=True, kw_only=True)
class RecipientRow:
    """One recipient and what became of it."""

    address: str
    state: State
    code: str
    words: str
    attempt: int | None


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    """One try on one connection."""

    number: int
    connection: str
    connection_id: int | None = None
    outcome: Outcome
    cause: str
    code: str
    words: str
    remote_id: str
    details: Mapping[str, Any]
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class MessageDetail:
    """One message with everything but its content."""

    row: LogRow
    source: Source
    received: Mapping[str, Any]
    why: Mapping[str, Any]
    planned_id: int | None = None
    """The connection that routing chose."""
    has_detour: bool = False
    """A backup stands in for that, or did."""
    mail_from: str
    from_name: str
    sent_from: str
    size_bytes: int
    expires_at: datetime
    unclear: int
    recipients: tuple[RecipientRow, ...]
    attempts: tuple[AttemptRow, ...]
    has_content: bool
    newer: str | None
    """Queue id of the next newer message of the site."""
    older: str | None


# --- which messages ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """Which messages are meant: of these sites (None: all), in these states (none: any), by key."""

    sites: tuple[int, ...] | None
    states: tuple[State, ...]
    low: int
    """The smallest key that belongs to it."""
    high: int
    """The key after the largest."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be in it."""
        return self.sites == () or self.low >= self.high

    @property
    def is_spread(self) -> bool:
        """Whether its messages are in no single stretch of an index."""
        if self.sites is None:
            return State.SENT in self.states
        return len(self.sites) > 1

    def beyond(self, key: int, *, newest: bool) -> "_Scope":
        """What is left after everything up to a key was looked at."""
        return replace(self, high=key) if newest else replace(self, low=key + 1)


def list_messages(
    session: Session,
    *,
    site_ids: Sequence[int] | None,
    now: datetime,
    view: View = View.ALL,
    search: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
    before_id: int | None = None,
    after_id: int | None = None,
    limit: int = PAGE,
    states: Sequence[State] = (),
) -> LogPage:
    """A page of the messages of these sites (None: all of them), in these states or in those of
    the view.

    `before_id` and `after_id` are keys from another page; without them it is the first page.
    """
    whole = _scope(session, site_ids, view, since, until)
    whole = replace(whole, states=tuple(states) or whole.states)
    if after_id is not None:
        page = _page_after(session, whole, search, after_id, limit)
        if page is not None:
            return _with_rows(session, *page, now)
        before_id = None  # fewer than a page are newer: it is the first page
    page = _page_before(session, whole, search, before_id, limit)
    return _with_rows(session, *page, now)


def _scope(
    session: Session,
    site_ids: Sequence[int] | None,
    view: View,
    since: datetime | None,
    until: datetime | None,
) -> _Scope:
    return _Scope(
        sites=None if site_ids is None else tuple(sorted(set(site_ids))),
        states=VIEW_STATES[view],
        low=first_id_from(session, since) if since else 0,
        high=first_id_from(session, until) if until else LAST_ID,
    )


_Found = tuple[list[int], int | None, int | None, int | None]
"""Keys newest first, the keys for newer and older, and how far a search has looked."""


def _page_before(
    session: Session, whole: _Scope, search: str, before_id: int | None, limit: int
) -> _Found:
    high = whole.high if before_id is None else min(whole.high, before_id)
    found, reached = _find(session, replace(whole, high=high), search, limit + 1, newest=True)
    keys = found[:limit]
    older = keys[-1] if len(found) > limit else reached
    newer = None
    if before_id is not None and _has_any(session, replace(whole, low=max(whole.low, before_id))):
        newer = keys[0] if keys else before_id - 1
    return keys, newer, older, reached if len(found) <= limit else None


def _page_after(
    session: Session, whole: _Scope, search: str, after_id: int, limit: int
) -> _Found | None:
    """The page that ends just above a key; None when it would not be full."""
    above = replace(whole, low=max(whole.low, after_id + 1))
    found, reached = _find(session, above, search, limit + 1, newest=False)
    if len(found) <= limit and reached is None:
        return None
    keys = sorted(found[:limit], reverse=True)
    has_older = _has_any(session, replace(whole, high=min(whole.high, after_id + 1)))
    newer = keys[0] if len(found) > limit else reached
    return keys, newer, (keys[-1] if keys else after_id + 1) if has_older else None, None


def _has_any(session: Session, scope: _Scope) -> bool:
    """Whether anything is there. Without its search: whoever pages came from there."""
    return bool(_scan(session, scope, 1, newest=True))


def _find(
    session: Session, scope: _Scope, search: str, limit: int, *, newest: bool
) -> tuple[list[int], int | None]:
    if not search.strip():
        return _scan(session, scope, limit, newest=newest), None
    query = _Query.of(search, _dialect(session))
    if query is None or scope.is_empty:
        return [], None
    return _search(session, scope, query, limit, newest=newest)


def first_id_from(session: Session, moment: datetime) -> int:
    """The key of the first message accepted at or after a moment; keys and times run alike."""
    low = session.scalar(sa.select(sa.func.min(Message.id))) or 0
    high = (session.scalar(sa.select(sa.func.max(Message.id))) or 0) + 1
    next_one = (
        sa.select(Message.id, Message.accepted_at)
        .where(Message.id >= sa.bindparam("middle"))
        .order_by(Message.id)
        .limit(1)
    )
    while low < high:
        middle = (low + high) // 2
        row = session.execute(next_one, {"middle": middle}).first()
        if row is not None and row.accepted_at < moment:
            low = row.id + 1
        else:
            high = middle
    return low


# --- by index ----------------------------------------------------------------------------------


def _scan(session: Session, scope: _Scope, limit: int, *, newest: bool) -> list[int]:
    """Keys of a scope from one end: one short walk of an index for each site and state."""
    if scope.is_empty:
        return []
    found: list[int] = []
    for state in scope.states or (None,):
        query = _walk(session, scope, state, limit, newest=newest)
        found.extend(session.scalars(query))
    return nlargest(limit, found) if newest else nsmallest(limit, found)


def _walk(
    session: Session, scope: _Scope, state: State | None, limit: int, *, newest: bool
) -> sa.Select[int]:
    """The first `limit` keys of a scope in one state, or in any."""
    if scope.sites is None and state is not State.SENT:
        return _ordered(sa.select(Message.id), Message, scope, state, limit, newest=newest)
    if scope.sites is not None and len(scope.sites) == 1:
        of_site = sa.select(Message.id).where(Message.site_id == scope.sites[0])
        return _ordered(of_site, Message, scope, state, limit, newest=newest)
    inner = aliased(Message)
    each = _ordered(
        sa.select(inner.id).where(inner.site_id == Site.id),
        inner,
        scope,
        state,
        limit,
        newest=newest,
    )
    # Both say: for each site, the first few of an index. PostgreSQL has a word for it; SQLite
    # takes the keys from the list and finds each in its table.
    if _dialect(session) == "postgresql":
        ends = each.lateral("ends")
        query = sa.select(ends.c.id).select_from(Site).join(ends, sa.true())
        key: Any = ends.c.id
    else:
        listed = Message.id.in_(each.correlate(Site))
        query = sa.select(Message.id).select_from(Site).join(Message, listed)
        key = Message.id
    if scope.sites is not None:
        query = query.where(Site.id.in_(scope.sites))
    return query.order_by(key.desc() if newest else key).limit(limit)


def _ordered(
    query: sa.Select[int],
    message: Any,
    scope: _Scope,
    state: State | None,
    limit: int,
    *,
    newest: bool,
) -> sa.Select[int]:
    query = query.where(message.id >= scope.low, message.id < scope.high)
    if state is not None:
        query = query.where(*_in_state(message, state))
    return query.order_by(message.id.desc() if newest else message.id).limit(limit)


def _in_state(message: Any, state: State) -> list[sa.ColumnElement[bool]]:
    """The state as a literal, and what follows from it: or SQLite passes the partial index by."""
    conditions = [message.state == _literal(state)]
    if state is not State.SENT:
        conditions.append(message.state != _literal(State.SENT))
    return conditions


def _literal(state: State) -> sa.BindParameter[str]:
    return sa.literal(state.value, sa.String(), literal_execute=True)


def _filtered(message: Any, scope: _Scope) -> Iterator[sa.ColumnElement[bool]]:
    """The sites and states of a scope as conditions on a row at hand."""
    if scope.sites is not None:
        yield message.site_id.in_(scope.sites)
    if scope.states:
        yield message.state.in_([state.value for state in scope.states])


def _dialect(session: Session) -> str:
    return session.get_bind().dialect.name


# --- by search ---------------------------------------------------------------------------------

_words = sa.table("message_search", sa.column("rowid"), sa.column("message_id"), sa.column("words"))


@dataclass(frozen=True, kw_only=True)
class _Query:
    """What was typed, in the words of one database."""

    dialect: str
    text: str
    phrases: tuple[str, ...]

    @classmethod
    def of(cls, search: str, dialect: str) -> "_Query | None":
        """None when nothing in it can be searched for."""
        text = fts5_query(search) if dialect == "sqlite" else tsquery(search)
        if text is None:
            return None
        phrases = tuple(" ".join(phrase) for phrase in query_terms(search))
        return cls(dialect=dialect, text=text, phrases=phrases)

    @property
    def key(self) -> sa.ColumnClause[Any]:
        """The message's key in the table of words."""
        return _words.c.rowid if self.dialect == "sqlite" else _words.c.message_id

    def fits(self) -> sa.ColumnElement[bool]:
        """Whether the words of the row at hand fit, without the index."""
        if self.dialect == "postgresql":
            return self._matches()
        # FTS5 keeps the tokens as they were stored, with one blank between them.
        text = sa.literal(" ").concat(_words.c.words)
        return sa.and_(*(sa.func.instr(text, f" {phrase}") > 0 for phrase in self.phrases))

    def hits(self, scope: _Scope, *, newest: bool) -> sa.Select[int]:
        """Keys from the full-text index."""
        query = sa.select(self.key.label("id"))
        if self.dialect == "postgresql":
            # Fenced, or a wrong estimate makes PostgreSQL read the whole table backwards.
            hits = query.where(self._matches()).cte("hits").prefix_with("MATERIALIZED")
            return sa.select(hits.c.id).where(hits.c.id >= scope.low, hits.c.id < scope.high)
        words = f"{{words}} : ({self.text})"
        if scope.sites is not None:
            listed = " OR ".join(f'"s{site}"' for site in scope.sites)
            words = f"{{site}} : ({listed}) AND {words}"
        match = sa.literal_column("message_search", sa.String()).op("MATCH", is_comparison=True)
        return query.where(
            match(words), _words.c.rowid >= scope.low, _words.c.rowid < scope.high
        ).order_by(_words.c.rowid.desc() if newest else _words.c.rowid)

    def _matches(self) -> sa.ColumnElement[bool]:
        return _words.c.words.op("@@", is_comparison=True)(
            sa.cast(self.text, sa.dialects.postgresql.TSQUERY)
        )


def _search(
    session: Session, scope: _Scope, query: _Query, limit: int, *, newest: bool
) -> tuple[list[int], int | None]:
    """Keys of a scope that fit, and how far was looked when that is not to the end."""
    first = LOOK_THROUGH[query.dialect]
    found, reached = _look_through(session, scope, query, limit, first, newest=newest)
    if reached is None or len(found) >= limit:
        return found, None
    rest = scope.beyond(reached, newest=newest)
    if query.dialect == "postgresql" and _estimate(session, query) > MANY_HITS:
        further, reached = _look_through(
            session, rest, query, limit - len(found), LOOK_FURTHER, newest=newest
        )
    else:
        further, reached = _by_index(session, rest, query, limit - len(found), newest=newest)
    found += further
    return found, None if len(found) >= limit else reached


def _look_through(
    session: Session, scope: _Scope, query: _Query, limit: int, count: int, *, newest: bool
) -> tuple[list[int], int | None]:
    """What fits among the first `count` messages; the last key read, None at the very end."""
    if scope.is_spread:
        read: sa.Select[Any] = _window(scope, count, newest=newest)
    else:
        walks = [
            _walk(session, scope, state, count, newest=newest).subquery()
            for state in scope.states or (None,)
        ]
        each = reduce(sa.union_all, [sa.select(walk.c.id) for walk in walks])  # type: ignore[arg-type]
        ends = each.subquery()
        read = sa.select(ends.c.id, sa.true().label("belongs"))
        read = read.order_by(ends.c.id.desc() if newest else ends.c.id).limit(count)
    window = read.subquery()
    hits = (
        sa.select(window.c.id)
        .where(window.c.belongs, _each(query.key == window.c.id, query.fits()))
        .order_by(window.c.id.desc() if newest else window.c.id)
        .limit(limit)
    )
    found = list(session.scalars(hits))
    if len(found) >= limit:
        return found, found[-1]
    return found, _last(session, read, count, newest=newest)


def _each(*conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Whether there is a row like this, asked for one row of the query around it after another.

    As a join, or with EXISTS, either database may begin at the other end: with everything.
    """
    return sa.select(sa.literal(1)).where(*conditions).scalar_subquery() == 1


def _window(scope: _Scope, count: int, *, newest: bool) -> sa.Select[Any]:
    """The first messages of all sites, and which of them belong: for a person of several sites."""
    query = (
        sa.select(Message.id, sa.and_(*_filtered(Message, scope)).label("belongs"))
        .where(Message.id >= scope.low, Message.id < scope.high)
        .order_by(Message.id.desc() if newest else Message.id)
    )
    return cast(sa.Select[Any], query.limit(count))


def _by_index(
    session: Session, scope: _Scope, query: _Query, limit: int, *, newest: bool
) -> tuple[list[int], int | None]:
    """What the full-text index has; on SQLite, with a filter by state, at most so many hits."""
    if query.dialect == "postgresql":
        return _belonging(session, scope, query.hits(scope, newest=newest), limit, newest), None
    if not scope.states:  # the index knows the sites
        return list(session.scalars(query.hits(scope, newest=newest).limit(limit))), None
    first = list(session.scalars(query.hits(scope, newest=newest).limit(limit * 4)))
    found = _belonging(
        session, scope, sa.select(Message.id).where(Message.id.in_(first)), limit, newest
    )
    if len(found) >= limit or len(first) < limit * 4:
        return found, None
    rest = scope.beyond(first[-1], newest=newest)
    hits = query.hits(rest, newest=newest).limit(LOOK_FURTHER)
    found += _belonging(session, rest, hits, limit - len(found), newest)
    return found, _last(session, hits, LOOK_FURTHER, newest=newest)


def _belonging(
    session: Session, scope: _Scope, hits: sa.Select[Any], limit: int, newest: bool
) -> list[int]:
    """The first of these hits that are of the sites and states of the scope."""
    found = hits.subquery()
    read = sa.select(found.c.id).order_by(found.c.id.desc() if newest else found.c.id).subquery()
    wanted = sa.select(read.c.id)
    if scope.sites is not None or scope.states:
        wanted = wanted.where(_each(Message.id == read.c.id, *_filtered(Message, scope)))
    wanted = wanted.order_by(read.c.id.desc() if newest else read.c.id).limit(limit)
    return list(session.scalars(wanted))


def _last(session: Session, read: sa.Select[Any], count: int, *, newest: bool) -> int | None:
    """The last key of what was read when that was `count` of them; None: it was all there is."""
    rows = read.subquery()
    edge = (sa.func.min if newest else sa.func.max)(rows.c.id)
    total, last = session.execute(sa.select(sa.func.count(), edge).select_from(rows)).one()
    return last if total == count else None


def _estimate(session: Session, query: _Query) -> int:
    """How many hits PostgreSQL expects; costs no more than planning."""
    text = sa.text(
        "EXPLAIN (FORMAT JSON) SELECT FROM message_search WHERE words @@ CAST(:q AS tsquery)"
    )
    plan: Any = session.execute(text, {"q": query.text}).scalar()
    return int(plan[0]["Plan"]["Plan Rows"])


# --- what a row shows --------------------------------------------------------------------------

_ROW = (
    sa.select(
        Message.id,
        Message.queue_id,
        Message.site_id,
        Site.slug,
        Site.name,
        Message.state,
        Message.due_at,
        Message.maybe_twice,
        Message.subject,
        Message.from_email,
        Message.to_line,
        Message.recipient_count,
        Message.has_attachments,
        Message.message_id,
        Message.accepted_at,
        Message.finished_at,
        Message.attempts,
        Message.last_code,
        Message.last_words,
        Message.unclear,
        Message.looks,
        Site.after_unclear,
        Connection.nickname,
        Connection.mailer,
        Lane,
    )
    .join(Site, Site.id == Message.site_id)
    .outerjoin(Connection, Connection.id == Message.connection_id)
    .outerjoin(Lane, Lane.id == Message.lane_id)
)


def _with_rows(
    session: Session,
    keys: list[int],
    newer: int | None,
    older: int | None,
    reached: int | None,
    now: datetime,
) -> LogPage:
    looked_to = None
    if reached is not None:
        looked_to = session.scalar(sa.select(Message.accepted_at).where(Message.id == reached))
    return LogPage(
        rows=tuple(rows(session, keys, now)), newer=newer, older=older, reached=looked_to
    )


def rows(session: Session, keys: Sequence[int], now: datetime) -> list[LogRow]:
    """What the list shows of the messages with these keys, newest first."""
    if not keys:
        return []
    found = session.execute(_ROW.where(Message.id.in_(keys)).order_by(Message.id.desc())).all()
    failed = [row.id for row in found if row.state == State.FAILED and row.recipient_count > 1]
    partly = set(session.scalars(_partly_sent(failed))) if failed else set()
    return [_row(row, row.id in partly, now) for row in found]


def _partly_sent(keys: Sequence[int]) -> sa.Select[int]:
    return (
        sa.select(Recipient.message_id)
        .where(Recipient.message_id.in_(keys), Recipient.state == State.SENT)
        .distinct()
    )


def _row(row: Any, is_partly_sent: bool, now: datetime) -> LogRow:
    state = State(row.state)
    return LogRow(
        id=row.id,
        queue_id=row.queue_id,
        site_id=row.site_id,
        site_slug=row.slug,
        site_name=row.name,
        state=state,
        is_partly_sent=is_partly_sent,
        maybe_twice=row.maybe_twice,
        subject=row.subject,
        from_email=row.from_email,
        to_line=row.to_line,
        recipient_count=row.recipient_count,
        has_attachments=row.has_attachments,
        via=connection_name(row.nickname, row.mailer),
        message_id=row.message_id,
        accepted_at=row.accepted_at,
        finished_at=row.finished_at,
        attempts=row.attempts,
        last_code=row.last_code,
        last_words=row.last_words,
        waiting=waiting_for(row.due_at, row.Lane, now),
        is_asked_about=state is State.UNCERTAIN and row.due_at is not None and _is_asked(row),
    )


def _is_asked(row: Any) -> bool:
    kind = registry().get(row.mailer or "")
    asks = (kind is not None and kind.settles) or not may_go_again(row.unclear, row.after_unclear)
    return asks and row.looks < LOOKS


def connection_name(nickname: str | None, mailer: str | None) -> str:
    """What a connection is called on a page: its nickname, else its mailer; may be empty."""
    if nickname:
        return nickname
    kind = registry().get(mailer or "")
    return kind.label if kind else (mailer or "")


def waiting_for(due_at: datetime | None, lane: Lane | None, now: datetime) -> Waiting | None:
    """What a message waits for; None when it is being sent, held or over. Pure."""
    if due_at is None:
        return None
    if lane is None:
        return Waiting(reason=Reason.NO_CONNECTION)
    if lane.is_paused:
        return Waiting(reason=Reason.PAUSED)
    until = lane.blocked_until
    if lane.is_blocked and (until is None or until > now):
        return Waiting(
            reason=Reason.BLOCKED,
            until=max(until, due_at) if until else None,
            since=lane.blocked_since,
            kind=lane.blocked_kind,
            words=lane.blocked_words,
        )
    if due_at > now:
        return Waiting(reason=Reason.LATER, until=due_at)
    limits = Limits(
        concurrency=lane.concurrency,
        per_minute=lane.per_minute,
        per_hour=lane.per_hour,
        per_day=lane.per_day,
        recipients_per_day=lane.recipients_per_day,
    )
    pace = Pace(limits, lane.windows)
    if pace.room(now) == 0 or not pace.fit(now, [1]):
        return Waiting(reason=Reason.ROOM, until=pace.next_room(now), limits=limits)
    return Waiting(reason=Reason.TURN)


# --- counts ------------------------------------------------------------------------------------


def counts(
    session: Session, site_ids: Sequence[int] | None, cap: int = COUNT_CAP
) -> dict[View, int]:
    """How many messages each view has, counted to `cap` at most: `cap + 1` means more."""
    if site_ids is not None and not site_ids:
        return dict.fromkeys(View, 0)
    columns = [_count(site_ids, states, cap).label(view.name) for view, states in _COUNTED]
    row = session.execute(sa.select(*columns)).one()
    return {view: row[index] for index, (view, _) in enumerate(_COUNTED)}


_COUNTED = tuple(VIEW_STATES.items())


def _count(
    site_ids: Sequence[int] | None, states: Sequence[State], cap: int
) -> sa.ScalarSelect[int]:
    some = sa.select(sa.literal(1).label("one"))
    if site_ids is not None:
        some = some.where(Message.site_id.in_(site_ids))
    elif State.SENT in states:
        # The index of all sites leaves out what was sent; by site it is found at once.
        some = some.where(Message.site_id.in_(sa.select(Site.id)))
    if site_ids is None and states and State.SENT not in states:
        some = some.where(Message.state != _literal(State.SENT))
    if states:
        some = some.where(Message.state.in_([_literal(state) for state in states]))
    limited = some.select_from(Message).limit(cap + 1).subquery()
    return sa.select(sa.func.count()).select_from(limited).scalar_subquery()


# --- one message -------------------------------------------------------------------------------


def find_by_id(session: Session, typed: str, site_ids: Sequence[int] | None) -> LogRow | None:
    """The message of a queue id as a person typed it, if it belongs to one of these sites."""
    key = session.execute(
        sa.select(Message.id, Message.site_id, Message.accepted_at).where(
            Message.queue_id == ids.plain(typed)
        )
    ).first()
    if key is None or (site_ids is not None and key.site_id not in site_ids):
        return None
    return rows(session, [key.id], key.accepted_at)[0]


def get_message(
    session: Session, queue_id: str, site_ids: Sequence[int] | None, now: datetime
) -> MessageDetail | None:
    """A message of one of these sites (None: of any), by the exact queue id."""
    message = session.scalar(sa.select(Message).where(Message.queue_id == queue_id))
    if message is None or (site_ids is not None and message.site_id not in site_ids):
        return None
    return MessageDetail(
        row=rows(session, [message.id], now)[0],
        source=Source(message.source),
        received=message.received,
        why=message.why,
        planned_id=message.planned_id,
        has_detour=message.detour is not None,
        mail_from=message.mail_from,
        from_name=message.from_name,
        sent_from=message.sent_from,
        size_bytes=message.size_bytes,
        expires_at=message.expires_at,
        unclear=message.unclear,
        recipients=tuple(recipients(session, [message.id]).get(message.id, ())),
        attempts=tuple(attempts(session, [message.id]).get(message.id, ())),
        has_content=bool(
            session.scalar(sa.select(sa.exists().where(Content.message_id == message.id)))
        ),
        newer=_neighbour(session, message, newer=True),
        older=_neighbour(session, message, newer=False),
    )


def _neighbour(session: Session, message: Message, *, newer: bool) -> str | None:
    query = sa.select(Message.queue_id).where(Message.site_id == message.site_id).limit(1)
    if newer:
        return session.scalar(query.where(Message.id > message.id).order_by(Message.id))
    return session.scalar(query.where(Message.id < message.id).order_by(Message.id.desc()))


def recipients(session: Session, keys: Sequence[int]) -> dict[int, list[RecipientRow]]:
    """The recipients of messages by message key, in order."""
    found: dict[int, list[RecipientRow]] = {}
    query = sa.select(Recipient).where(Recipient.message_id.in_(keys))
    for row in session.scalars(query.order_by(Recipient.message_id, Recipient.position)):
        shown = RecipientRow(
            address=row.address,
            state=State(row.state),
            code=row.code,
            words=row.words,
            attempt=row.attempt,
        )
        found.setdefault(row.message_id, []).append(shown)
    return found


def attempts(session: Session, keys: Sequence[int]) -> dict[int, list[AttemptRow]]:
    """The attempts of messages by message key, in order."""
    found: dict[int, list[AttemptRow]] = {}
    query = sa.select(Attempt).where(Attempt.message_id.in_(keys))
    for row in session.scalars(query.order_by(Attempt.message_id, Attempt.number)):
        shown = AttemptRow(
            number=row.number,
            connection=row.connection_name,
            connection_id=row.connection_id,
            outcome=Outcome(row.outcome),
            cause=row.cause,
            code=row.code,
            words=row.words,
            remote_id=row.remote_id,
            details=row.details,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
        found.setdefault(row.message_id, []).append(shown)
    return found


def every_message(
    session: Session,
    *,
    site_ids: Sequence[int] | None,
    states: Sequence[State],
    now: datetime,
    limit: int | None = None,
) -> Iterator[LogRow]:
    """All messages of these sites and states, newest first, a few hundred at a time."""
    scope = _Scope(
        sites=None if site_ids is None else tuple(sorted(set(site_ids))),
        states=tuple(states),
        low=0,
        high=LAST_ID,
    )
    left = limit
    while left is None or left > 0:
        size = EXPORT_CHUNK if left is None else min(EXPORT_CHUNK, left)
        keys = _scan(session, scope, size, newest=True)
        yield from rows(session, keys, now)
        if len(keys) < size:
            return
        scope = replace(scope, high=keys[-1])
        left = None if left is None else left - size
