"""Which connection of a site's chain carries a mail next. Pure: standings in, a connection out.

A mail's candidates are the connection that routing chose, then the backups in their order. Whoever
refused it for good is never asked again; whoever put it off for too long only when nobody else is
left. The same facts always give the same answer, so nothing goes round in circles.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from webapp.delivery.decide import Claimed, Finished, Step, blocks_lane
from webapp.delivery.lanes import UNREACHABLE
from webapp.delivery.models import Source, State
from webapp.fields import N_
from webapp.mailers.errors import FailureKind

USUAL_PATIENCE = timedelta(minutes=10)


class Standing(StrEnum):
    """What can be said of a connection before it is tried."""

    OPEN = "open"
    PAUSED = "paused"
    """A person lets nothing leave by it: what is there waits, and nothing is sent there."""
    CLOSED = "closed"
    """Until somebody acts, or for longer than the site's patience."""
    NONE = "none"
    """It has no lane: it is not linked, or not set up."""


class Reason(StrEnum):
    """Why a mail left a connection; the values of blocked lanes are those of `blocked_kind`."""

    REFUSED = "refused"
    WAITED = "waited"
    SLOW = "transient"
    UNREACHABLE = UNREACHABLE
    LOGIN = "needs-reauthorisation"
    SETUP = "misconfigured"
    UNLINKED = "unlinked"


REASONS: Mapping[Reason, str] = {
    Reason.REFUSED: N_("it refused this mail"),
    Reason.WAITED: N_("it put this mail off for too long"),
    Reason.SLOW: N_("it asked to slow down for too long"),
    Reason.UNREACHABLE: N_("it could not be reached for too long"),
    Reason.LOGIN: N_("its login is refused"),
    Reason.SETUP: N_("its set-up is refused"),
    Reason.UNLINKED: N_("it is not linked"),
}


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A site's backups, in order, and how long a mail waits before one of them takes over."""

    backups: tuple[int, ...] = ()
    patience: timedelta = USUAL_PATIENCE

    def candidates(self, planned: int | None) -> tuple[int, ...]:
        """Who may carry a mail, the first first."""
        first = () if planned is None else (planned,)
        return first + tuple(key for key in self.backups if key != planned)


@dataclass(frozen=True, kw_only=True)
class LaneNow:
    """The lane of a connection, as far as it matters here."""

    lane_id: int | None = None
    is_paused: bool = False
    is_blocked: bool = False
    blocked_until: datetime | None = None
    blocked_since: datetime | None = None
    blocked_kind: str = ""
    trips: int = 0

    def is_shut(self, now: datetime) -> bool:
        """Whether nothing but a probe can leave by it now."""
        if self.lane_id is None:
            return True
        if not self.is_blocked:
            return False
        return self.trips > 0 or self.blocked_until is None or self.blocked_until > now

    def is_looking(self, now: datetime) -> bool:
        """Whether its next mail finds out if somebody answers there again."""
        until = self.blocked_until
        return self.is_blocked and self.trips > 0 and until is not None and until <= now

    def standing(self, patience: timedelta, now: datetime) -> Standing:
        """What it is worth to a mail of a site with this patience."""
        if self.lane_id is None:
            return Standing.NONE
        if self.is_paused:
            return Standing.PAUSED
        if not self.is_shut(now):
            return Standing.OPEN
        if self.blocked_until is None:
            return Standing.CLOSED
        lasts = max(self.blocked_until, now) - (self.blocked_since or now)
        return Standing.CLOSED if lasts > patience else Standing.OPEN

    def reason(self) -> Reason:
        """Why mail leaves it while it is closed."""
        if self.lane_id is None:
            return Reason.UNLINKED
        known = {reason.value for reason in Reason}
        return Reason(self.blocked_kind) if self.blocked_kind in known else Reason.SLOW


@dataclass(frozen=True, kw_only=True)
class Detour:
    """What a mail has behind it: stored as `Message.detour`."""

    refused: frozenset[int] = frozenset()
    """Connections that said a final no to it, or to one of its recipients."""
    passed: frozenset[int] = frozenset()
    """Connections that put it off for longer than its site waits."""
    later: tuple[int, ...] = ()
    """Recipients, by position, that were refused beside others of whom nobody knows yet: these go
    on once that is known."""
    why: str = ""
    """A `Reason`: why it left the connection before this one."""

    @classmethod
    def read(cls, stored: Mapping[str, Any] | None) -> "Detour":
        """From the column."""
        found = stored or {}
        return cls(
            refused=frozenset(found.get("refused") or ()),
            passed=frozenset(found.get("passed") or ()),
            later=tuple(found.get("later") or ()),
            why=str(found.get("why") or ""),
        )

    def stored(self, *, is_elsewhere: bool) -> dict[str, Any] | None:
        """For the column; None where nothing is to be remembered. `is_elsewhere` says that the
        mail stands at a connection that routing did not choose."""
        if not (is_elsewhere or self.refused or self.passed or self.later):
            return None
        kept: dict[str, Any] = {"refused": sorted(self.refused), "passed": sorted(self.passed)}
        if self.later:
            kept["later"] = sorted(self.later)
        return kept | {"why": self.why}


def choose(
    candidates: Sequence[int],
    current: int | None,
    *,
    refused: Iterable[int],
    passed: Iterable[int],
    standings: Mapping[int, Standing],
) -> int | None:
    """The connection that carries a mail next; None when everybody has refused it.

    Connections that are not in `standings` are gone. While nobody can take the mail it waits for
    the first that has not refused it.
    """
    gone_by, final = set(passed), set(refused)
    allowed = [key for key in candidates if key in standings and key not in final]

    def is_open(key: int) -> bool:
        paused_here = key == current and standings[key] is Standing.PAUSED
        return paused_here or standings[key] is Standing.OPEN

    takes = [key for key in allowed if is_open(key)]
    fresh = [key for key in takes if key not in gone_by]
    if fresh:
        return fresh[0]
    if current in takes:
        return current
    able = [key for key in allowed if standings[key] is not Standing.NONE]
    return next(iter(takes or able or allowed), None)


# ---- after an attempt ----


@dataclass(frozen=True, kw_only=True)
class Ways:
    """What must be known of sites and connections to send a mail on."""

    chains: Mapping[int, Chain]
    """By site."""
    lanes: Mapping[int, LaneNow]
    """By connection; those that are gone are missing."""

    def standings(self, keys: Iterable[int], chain: Chain, now: datetime) -> dict[int, Standing]:
        """Of those connections that are there."""
        return {
            key: self.lanes[key].standing(chain.patience, now) for key in keys if key in self.lanes
        }


NO_WAYS = Ways(chains={}, lanes={})


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Where a mail stands after an attempt, and what that means for its recipients."""

    connection_id: int
    lane_id: int | None
    detour: Mapping[str, Any] | None
    steps: Mapping[int, Step]
    is_moved: bool = False
    revived: tuple[int, ...] = ()
    """Recipients of earlier attempts that are to be tried again."""
    begins_anew: bool = False
    """Whether the next connection gets the tries of a new mail."""


def has_chain(source: str, routed_version: int | None) -> bool:
    """Whether a backup may carry a mail: not a test, not what a person sent again or what asked for
    its connection."""
    return routed_version is not None and source not in {Source.TEST, Source.RESEND}


def wants_way(item: Finished) -> bool:
    """Whether it has to be asked where the mail of an attempt goes next."""
    failed = item.result.error is not None or bool(item.result.refused)
    waits = item.claim.detour is not None and "later" in item.claim.detour
    return item.claim.has_chain and (failed or waits)


def onward(item: Finished, steps: Mapping[int, Step], ways: Ways) -> Turn | None:
    """Send a mail on to its next connection, if there is one. None: it stays, as `steps` say."""
    claim = item.claim
    chain = ways.chains.get(claim.site_id)
    if chain is None or not wants_way(item):
        return None
    before = Detour.read(claim.detour)
    if not before.later and set(chain.candidates(claim.planned_id)) <= {claim.connection_id}:
        return None
    errors = {position: item.result.error_of(position) for position in steps}
    final = [p for p, error in errors.items() if error and error.kind is FailureKind.PERMANENT]
    if final or before.later:
        here = {claim.connection_id} if final else set()
        met = replace(before, refused=before.refused | here, why=Reason.REFUSED.value)
        if _is_unclear(claim, steps):
            return _after_the_unclear(item, steps, final, met)
        return _refused(item, steps, final, met, chain, ways)
    if _is_unclear(claim, steps):
        return None
    return _put_off(item, steps, before, chain, ways)


def _is_unclear(claim: Claimed, steps: Mapping[int, Step]) -> bool:
    """Whether somebody may have it already, and that is still to be found out here."""
    found = any(step.is_due and step.state is State.UNCERTAIN for step in steps.values())
    return found or claim.is_unclear_later


def _after_the_unclear(
    item: Finished, steps: Mapping[int, Step], final: Sequence[int], met: Detour
) -> Turn:
    claim = item.claim
    met = replace(met, later=tuple(sorted({*met.later, *final})))
    return Turn(
        connection_id=claim.connection_id,
        lane_id=claim.lane_id,
        detour=met.stored(is_elsewhere=claim.connection_id != claim.planned_id),
        steps=steps,
    )


def _refused(
    item: Finished,
    steps: Mapping[int, Step],
    final: Sequence[int],
    met: Detour,
    chain: Chain,
    ways: Ways,
) -> Turn:
    claim = item.claim
    target = _target(claim, met, chain, ways, item.finished_at)
    later, met = met.later, replace(met, later=())
    if target is None:
        return Turn(
            connection_id=claim.connection_id,
            lane_id=claim.lane_id,
            detour=met.stored(is_elsewhere=claim.connection_id != claim.planned_id),
            steps=steps,
        )
    again = {position for position, step in steps.items() if step.is_due} | set(final)
    return _turn(item, steps, again, target, met, ways, revived=later, begins_anew=True)


def _put_off(
    item: Finished, steps: Mapping[int, Step], before: Detour, chain: Chain, ways: Ways
) -> Turn | None:
    """Nobody said a final no: it goes on when the lane is closed, or the wait becomes too long."""
    claim, now = item.claim, item.finished_at
    errors = {position: item.result.error_of(position) for position in steps}
    waits = [
        position
        for position, error in errors.items()
        if error and (error.kind is FailureKind.TRANSIENT or blocks_lane(error))
    ]
    if not waits:
        return None
    lane = ways.lanes.get(claim.connection_id, LaneNow())
    is_closed = lane.standing(chain.patience, now) in {Standing.CLOSED, Standing.NONE}
    is_over = any(not steps[position].is_due for position in waits)
    start = claim.started_at or claim.accepted_at
    is_long = is_over or any(
        step.due_at is not None and step.due_at - start > chain.patience
        for position, step in steps.items()
        if (error := errors[position]) and error.kind is FailureKind.TRANSIENT
    )
    if not (is_closed or is_long):
        return None
    reason = lane.reason() if is_closed else Reason.WAITED
    met = replace(before, why=reason.value)
    if is_over or not is_closed:
        met = replace(met, passed=before.passed | {claim.connection_id})
    target = _target(claim, met, chain, ways, now)
    if target is None or target == claim.connection_id:
        return None
    if is_over and target in met.passed:  # its time is over, and nobody is new to it
        return None
    again = {position for position, step in steps.items() if step.is_due} | set(waits)
    return _turn(item, steps, again, target, met, ways, begins_anew=not is_closed or is_over)


def _target(claim: Claimed, met: Detour, chain: Chain, ways: Ways, now: datetime) -> int | None:
    candidates = chain.candidates(claim.planned_id)
    return choose(
        candidates,
        claim.connection_id,
        refused=met.refused,
        passed=met.passed,
        standings=ways.standings(candidates, chain, now),
    )


def _turn(
    item: Finished,
    steps: Mapping[int, Step],
    again: Iterable[int],
    target: int,
    met: Detour,
    ways: Ways,
    *,
    revived: tuple[int, ...] = (),
    begins_anew: bool,
) -> Turn:
    due = Step(state=State.DEFERRED, is_due=True, due_at=item.finished_at)
    is_moved = target != item.claim.connection_id
    if is_moved:
        steps = {**steps, **dict.fromkeys(again, due)}
    return Turn(
        connection_id=target,
        lane_id=ways.lanes[target].lane_id,
        detour=met.stored(is_elsewhere=target != item.claim.planned_id),
        steps=steps,
        is_moved=is_moved,
        revived=revived,
        begins_anew=begins_anew and is_moved,
    )
