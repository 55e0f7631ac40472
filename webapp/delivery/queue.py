"""The queue: which due mail of which lane goes next, and the claim that makes it ours.

Each move runs in the caller's transaction. States are written as literals and `due_at` is named,
because a partial index is used only where the statement itself says what the index is about.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.delivery.backups import has_chain
from webapp.delivery.decide import LOOKS, Claimed, may_go_again
from webapp.delivery.lanes import LONGEST_PAUSE
from webapp.delivery.models import Attempt, Lane, Message, Outcome, Recipient, Source, State
from webapp.mailers.errors import Cause
from webapp.sites.models import Site

NO_LIMITS: Mapping[int, int] = {}
MANY = 1_000_000
SOON_OVER = 2 * LONGEST_PAUSE + timedelta(hours=1)
"""Whose time ends within this may be given up by the attempt that now begins."""
LOOK_LEASE = timedelta(minutes=5)
"""Longer than a look can take: nobody else looks meanwhile."""
SOUGHT = "message_id"
"""In the details of an attempt that ended unclear: the Message-ID that left."""
LAST_TRIED = "last"
"""In the details of a started attempt: the position of its last recipient, if more are due."""


class LaneLost(Exception):
    """Another worker has taken over; nothing of this transaction may stay."""


_DUE_LANES = sa.text(
    "SELECT lane.id FROM lane WHERE NOT lane.is_paused "
    "AND (NOT lane.is_blocked OR lane.blocked_until <= :now) AND EXISTS "
    "(SELECT 1 FROM message WHERE message.lane_id = lane.id AND message.due_at <= :now) "
    "ORDER BY lane.id"
).bindparams(sa.bindparam("now", type_=Message.due_at.type))

_DUE_SITES = sa.text(
    """
    WITH RECURSIVE walk (site_id) AS (
        SELECT (SELECT min(site_id) FROM message
                WHERE lane_id = :lane AND due_at IS NOT NULL AND site_id > :after)
        UNION ALL
        SELECT (SELECT min(site_id) FROM message
                WHERE lane_id = :lane AND due_at IS NOT NULL AND site_id > walk.site_id)
        FROM walk WHERE walk.site_id IS NOT NULL
    )
    SELECT site_id FROM walk WHERE site_id IS NOT NULL LIMIT :count
    """
)

_DUE_MESSAGES = sa.text(
    "SELECT id FROM message WHERE lane_id = :lane AND site_id = :site AND due_at <= :now "
    "ORDER BY due_at, id LIMIT :count"
).bindparams(sa.bindparam("now", type_=Message.due_at.type))

_DUE_TESTS = sa.text(
    "SELECT id FROM message WHERE lane_id = :lane AND site_id = :site AND due_at <= :now "
    "AND source = 'test' ORDER BY due_at, id LIMIT :count"
).bindparams(sa.bindparam("now", type_=Message.due_at.type))

TESTS_GO_FIRST = timedelta(days=15)
"""Tests are due longer ago than all other mail, so that a few rows are looked at to find them."""

_STILL_ON_ITS_LANE = sa.func.coalesce(Message.lane_id, 0) == sa.bindparam("lane")
"""A page may have moved a mail a moment ago. Written so that no index on lanes can be used: SQLite
would walk all mail that waits on the lane, to find the few that are named."""

_TAKE = (
    sa.update(Message)
    .where(
        Message.id.in_(sa.bindparam("ids", expanding=True)),
        Message.due_at.is_not(None),
        Message.connection_id.is_not(None),
        _STILL_ON_ITS_LANE,
    )
    .values(
        state=State.SENDING,
        due_at=None,
        attempts=Message.attempts + 1,
        started_at=sa.func.coalesce(
            Message.started_at, sa.bindparam("now", type_=Message.due_at.type)
        ),
        # The message may be deferred for one recipient, and unclear for another that goes along.
        maybe_twice=sa.or_(
            Message.maybe_twice,
            sa.exists().where(
                Recipient.message_id == Message.id,
                Recipient.is_due,
                Recipient.state == State.UNCERTAIN,
            ),
        ),
    )
    .returning(Message.id)
)

_CLAIM = _TAKE.where(Message.state != State.UNCERTAIN)
"""Of an unclear mail it must first be seen whether the remote can be asked."""

_UNCLEAR = (
    sa.select(
        Message.id,
        Message.connection_id,
        Message.unclear,
        Message.looks,
        Site.after_unclear,
    )
    .join(Site, Site.id == Message.site_id)
    .where(
        Message.id.in_(sa.bindparam("ids", expanding=True)),
        _STILL_ON_ITS_LANE,
        Message.connection_id.is_not(None),
        Message.due_at.is_not(None),
        Message.state == State.UNCERTAIN,
    )
)

_LOOK = (
    sa.update(Message)
    .where(
        Message.id.in_(sa.bindparam("ids", expanding=True)),
        Message.due_at.is_not(None),
        _STILL_ON_ITS_LANE,
        Message.state == State.UNCERTAIN,
    )
    .values(due_at=sa.bindparam("until", type_=Message.due_at.type))
    .returning(Message.id)
)

_LAST_DETAILS = (
    sa.select(Attempt.message_id, Attempt.details)
    .join(Message, sa.and_(Message.id == Attempt.message_id, Message.attempts == Attempt.number))
    .where(Message.id.in_(sa.bindparam("ids", expanding=True)))
)

_START_ATTEMPT = sa.insert(Attempt)

_CLAIMED = (
    sa.select(
        Message.id,
        Message.queue_id,
        Message.site_id,
        Message.lane_id,
        Message.connection_id,
        Message.attempts,
        Message.mail_from,
        Message.received,
        Message.accepted_at,
        Message.expires_at,
        Message.failures,
        Message.unclear,
        Message.looks,
        Message.source,
        Message.started_at,
        Message.planned_id,
        Message.routed_version,
        Message.detour,
        Site.after_unclear,
    )
    .join(Site, Site.id == Message.site_id)
    .where(Message.id.in_(sa.bindparam("ids", expanding=True)))
)

_RECIPIENTS = (
    sa.select(
        Recipient.message_id,
        Recipient.position,
        Recipient.address,
        Recipient.state,
        Recipient.is_due,
    )
    .where(Recipient.message_id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(Recipient.message_id, Recipient.position)
)

_OWNERS = (
    sa.select(Lane.id, Lane.owner_token)
    .where(Lane.id.in_(sa.bindparam("lanes", expanding=True)))
    .order_by(Lane.id)
    .with_for_update(read=True)
)


def fence(connection: Connection, lane_ids: Iterable[int], token: int) -> None:
    """Raise LaneLost unless every one of these lanes is still ours; keeps them until commit."""
    wanted = sorted(set(lane_ids))
    if not wanted:
        return
    rows = connection.execute(_OWNERS, {"lanes": wanted}).all()
    if any(row.owner_token > token for row in rows):
        raise LaneLost("another worker has taken over")
    strangers = [row.id for row in rows if row.owner_token < token]
    if strangers:  # made since we took over
        connection.execute(sa.update(Lane).where(Lane.id.in_(strangers)).values(owner_token=token))


def due_lanes(connection: Connection, now: datetime) -> list[int]:
    """Lanes with something to do now; the cost follows the lanes, not the mail that waits."""
    return list(connection.execute(_DUE_LANES, {"now": now}).scalars())


Room = Callable[[int], int | None]
"""How many mails a site may send now, by its own limits; None is unlimited."""


def no_limit(_site_id: int) -> int | None:
    """Room for everything."""
    return None


def due_ids(
    connection: Connection,
    lane_id: int,
    count: int,
    after_site: int,
    now: datetime,
    room: Room = no_limit,
) -> tuple[list[int], int]:
    """Up to `count` due messages of a lane, round robin over its sites from `after_site` on.

    Returns their keys and the site that was served last. Sites whose mail is not due yet, and sites
    without `room`, cost one look each, and hold nobody up; of these only tests go out.
    """
    found: list[int] = []
    last = after_site
    hungry: list[tuple[int, int, int]] = []
    for sites in _rounds(connection, lane_id, after_site, count):
        share = max(1, (count - len(found)) // len(sites))
        for site in sites:
            free = room(site)
            most = MANY if free is None else free
            wanted = min(share, count - len(found))
            if most:
                ids = _ids_of(connection, lane_id, site, min(wanted, most), now)
            else:
                ids = _tests_of(connection, lane_id, site, wanted, now)
            found.extend(ids)
            if ids:
                last = site
            if len(ids) == share < most:
                hungry.append((site, share, most))
            if len(found) >= count:
                return found, last
    for site, share, most in hungry:
        wanted = min(share + count - len(found), most)
        more = _ids_of(connection, lane_id, site, wanted, now)
        found.extend(more[share:])
        if len(found) >= count:
            break
    return found[:count], last


def _tests_of(
    connection: Connection, lane_id: int, site_id: int, count: int, now: datetime
) -> list[int]:
    values = {"lane": lane_id, "site": site_id, "count": count, "now": now - TESTS_GO_FIRST}
    return list(connection.execute(_DUE_TESTS, values).scalars())


def _rounds(connection: Connection, lane_id: int, after: int, count: int) -> Iterator[list[int]]:
    """The lane's sites with waiting mail, some at a time, once round from `after`."""
    size = max(count, 8)
    start, turned = after, False
    while True:
        values = {"lane": lane_id, "after": start, "count": size}
        sites = list(connection.execute(_DUE_SITES, values).scalars())
        if turned:
            sites = [site for site in sites if site <= after]
        if sites:
            yield sites
        if len(sites) == size:
            start = sites[-1]
        elif turned or after <= 0:
            return
        else:
            start, turned = 0, True


def _ids_of(
    connection: Connection, lane_id: int, site_id: int, count: int, now: datetime
) -> list[int]:
    values = {"lane": lane_id, "site": site_id, "count": count, "now": now}
    return list(connection.execute(_DUE_MESSAGES, values).scalars())


def recipients_due(
    connection: Connection, ids: Sequence[int], most: Mapping[int, int]
) -> list[int]:
    """How many recipients the next attempt of each of these messages has."""
    counted = sa.select(
        Message.id,
        Message.connection_id,
        sa.select(sa.func.count())
        .where(Recipient.message_id == Message.id, Recipient.is_due)
        .scalar_subquery()
        .label("due"),
    ).where(Message.id.in_(ids))
    found = {
        row.id: min(row.due, most.get(row.connection_id, MANY))
        for row in connection.execute(counted)
    }
    return [found.get(id_, 0) for id_ in ids]


def claim(
    connection: Connection,
    lane_id: int,
    ids: Sequence[int],
    names: Mapping[int, str],
    now: datetime,
    most: Mapping[int, int] = NO_LIMITS,
    *,
    is_probe: bool = False,
    settling: Collection[int] = (),
) -> list[Claimed]:
    """Make these messages ours and note the attempts as started.

    By connection key: `names`, and how many recipients one mail may have at `most`. `settling` are
    the connections whose remote can be asked: of unclear mail there a look is claimed first.
    """
    if not ids:
        return []
    ours = set(connection.execute(_CLAIM, {"ids": ids, "lane": lane_id, "now": now}).scalars())
    looks: list[Claimed] = []
    if len(ours) < len(ids):
        rest = [id_ for id_ in ids if id_ not in ours]
        to_ask, to_send = _unclear(connection, lane_id, rest, settling)
        if to_send:
            values = {"ids": to_send, "lane": lane_id, "now": now}
            ours |= set(connection.execute(_TAKE, values).scalars())
        looks = _claim_looks(connection, lane_id, to_ask, now, is_probe=is_probe)
    ids = [id_ for id_ in ids if id_ in ours]  # somebody may have cancelled one meanwhile
    if not ids:
        return looks
    tried: dict[int, list[Any]] = {}
    others: dict[int, Counter[str]] = {}
    for row in connection.execute(_RECIPIENTS, {"ids": ids}):
        if row.is_due:
            tried.setdefault(row.message_id, []).append(row)
        else:
            others.setdefault(row.message_id, Counter())[row.state] += 1
    rows = connection.execute(_CLAIMED, {"ids": ids}).all()
    tries = _tries(connection, [row.id for row in rows if row.expires_at <= now + SOON_OVER])
    claims = []
    for row in rows:
        due, size = tried.get(row.id, []), most.get(row.connection_id, MANY)
        claims.append(
            Claimed(
                **_of(row),
                recipients=tuple((one.position, one.address) for one in due[:size]),
                later=len(due[size:]),
                is_unclear_later=any(one.state == State.UNCERTAIN for one in due[size:]),
                others=others.get(row.id, {}),
                is_probe=is_probe,
                tries=tries.get(row.id, 0),
            )
        )
    connection.execute(
        _START_ATTEMPT,
        [
            {
                "message_id": claim.message_id,
                "number": claim.number,
                "connection_id": claim.connection_id,
                "connection_name": names.get(claim.connection_id, "")[:160],
                "outcome": Outcome.STARTED,
                "cause": "",
                "code": "",
                "words": "",
                "remote_id": "",
                "details": {LAST_TRIED: claim.recipients[-1][0]} if claim.later else {},
                "started_at": now,
            }
            for claim in claims
        ],
    )
    order = {message_id: index for index, message_id in enumerate(ids)}
    return sorted(claims, key=lambda claim: order[claim.message_id]) + looks


def _unclear(
    connection: Connection, lane_id: int, ids: Sequence[int], settling: Collection[int]
) -> tuple[list[int], list[int]]:
    """Which of these are unclear and to be asked about, and which are to be sent once more."""
    to_ask: list[int] = []
    to_send: list[int] = []
    for row in connection.execute(_UNCLEAR, {"ids": ids, "lane": lane_id}):
        asks = row.connection_id in settling or not may_go_again(row.unclear, row.after_unclear)
        (to_ask if asks and row.looks < LOOKS else to_send).append(row.id)
    return to_ask, to_send


def _claim_looks(
    connection: Connection, lane_id: int, ids: Sequence[int], now: datetime, *, is_probe: bool
) -> list[Claimed]:
    """Ours for a while: a look is no attempt, so whoever is killed with one leaves it to others."""
    if not ids:
        return []
    values = {"ids": ids, "lane": lane_id, "until": now + LOOK_LEASE}
    ours = list(connection.execute(_LOOK, values).scalars())
    if not ours:
        return []
    details = {row[0]: row[1] for row in connection.execute(_LAST_DETAILS, {"ids": ours})}
    return [
        Claimed(
            **_of(row),
            recipients=(),
            others={},
            is_probe=is_probe,
            is_look=True,
            sought=str((details.get(row.id) or {}).get(SOUGHT) or ""),
        )
        for row in connection.execute(_CLAIMED, {"ids": ours})
    ]


def _of(row: Any) -> dict[str, Any]:
    """What a claim knows of its message."""
    return {
        "message_id": row.id,
        "queue_id": row.queue_id,
        "site_id": row.site_id,
        "lane_id": row.lane_id,
        "connection_id": row.connection_id,
        "number": row.attempts,
        "mail_from": row.mail_from,
        "received": row.received,
        "accepted_at": row.accepted_at,
        "started_at": row.started_at,
        "expires_at": row.expires_at,
        "failures": row.failures,
        "unclear": row.unclear,
        "after_unclear": row.after_unclear,
        "is_test": row.source == Source.TEST,
        "has_chain": has_chain(row.source, row.routed_version),
        "planned_id": row.planned_id,
        "detour": row.detour,
        "looks": row.looks,
    }


def _tries(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """How often each of these messages was tried and failed; being asked to wait is no try."""
    if not ids:
        return {}
    counted = connection.execute(
        sa.select(Attempt.message_id, sa.func.count())
        .where(
            Attempt.message_id.in_(ids),
            Attempt.outcome == Outcome.TRANSIENT,
            Attempt.cause != Cause.RATE,
        )
        .group_by(Attempt.message_id)
    )
    return {row[0]: row[1] for row in counted}
