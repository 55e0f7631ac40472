"""How every site stands, worst first: what the board shows. A fixed number of queries in all.

How a site stands does not hang on its counts by the hour, so those are read only of the sites that
are shown: they are most of the work where there are hundreds.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session, defer

from webapp.connections.models import Connection, Health
from webapp.delivery.depth import Depth, depths
from webapp.delivery.lanes import UNREACHABLE
from webapp.delivery.models import Lane, Message, Setting, State, Tally
from webapp.fields import N_
from webapp.mailers import registry
from webapp.microsoft.dates import days_until, idle_days, nearness
from webapp.microsoft.models import Grant, GrantState, OAuthApp
from webapp.ops.status import delivers
from webapp.providers import MICROSOFT, PROVIDERS, Provider
from webapp.sites.carrying import Carried, carried
from webapp.sites.models import Mode, Site
from webapp.words import SITE, SiteState, Status, Tone

HOURS = 24
SHOWN = ("accepted", State.SENT, State.FAILED)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LAST = datetime.max.replace(tzinfo=UTC)

QUIET_LOOKS_BACK = timedelta(days=14)
QUIET_AT_LEAST = timedelta(days=3)
QUIET_GAPS = 5
"""A site is quiet after this many times its usual gap between two mails."""

NEEDS_SIGN_IN = Status(icon="auth", tone=Tone.BAD, word=N_("Needs re-authorization"))
SLOWED_DOWN = Status(icon="soon", tone=Tone.WARN, word=N_("Slowed down"))


class Part(StrEnum):
    """The three parts of the board, in the order in which they need somebody."""

    ACT = "act"
    SOON = "soon"
    FINE = "fine"


class Why(StrEnum):
    """What the sentence under a state is about."""

    NOTHING = ""
    LOGIN_REFUSED = "login-refused"
    MISCONFIGURED = "misconfigured"
    FAILING = "failing"
    UNREACHABLE = "unreachable"
    SLOWED_DOWN = "slowed-down"
    QUIET = "quiet"
    NO_CONNECTION = "no-connection"
    NOT_LINKED = "not-linked"
    BY_CHOICE = "by-choice"


PARTS: dict[SiteState, Part] = {
    SiteState.FAILING: Part.ACT,
    SiteState.NO_CONNECTION: Part.SOON,
    SiteState.QUIET: Part.SOON,
    SiteState.ON_HOLD: Part.SOON,
    SiteState.REDIRECTED: Part.SOON,
    SiteState.NOT_SENT: Part.SOON,
    SiteState.NO_MAIL: Part.FINE,
    SiteState.WORKING: Part.FINE,
}
BY_MODE: dict[str, SiteState] = {
    Mode.HOLD: SiteState.ON_HOLD,
    Mode.REDIRECT_TO: SiteState.REDIRECTED,
    Mode.DO_NOT_SEND: SiteState.NOT_SENT,
}
STOPPED = {
    Health.NEEDS_REAUTHORISATION: Why.LOGIN_REFUSED,
    Health.MISCONFIGURED: Why.MISCONFIGURED,
    Health.FAILING: Why.FAILING,
}


class Hour(NamedTuple):
    """One hour of a site: mails by what happened in it. There are thousands, so it is light."""

    accepted: int = 0
    sent: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a site has handed in, and what of it waits."""

    last_sent_at: datetime | None = None
    last_accepted_at: datetime | None = None
    waiting: int = 0
    oldest_waiting_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Mails by what happened in the hours shown."""

    accepted: int = 0
    sent: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class LastDay(Counts):
    """The same of one site, by the hour too."""

    hours: tuple[Hour, ...] = (Hour(),) * HOURS


@dataclass(frozen=True, kw_only=True)
class Ends:
    """How long the link that a site sends by is good, and the secret of its registration."""

    link_days: int | None
    """While nobody renews it; None: it has ended."""
    secret_on: date | None
    """None: nobody entered the day."""
    secret_days: int | None
    app_uid: str
    own_app: bool
    """The connection's own registration, not a shared one."""
    has_successor: bool
    """A second secret waits to be proved."""
    provider: Provider = PROVIDERS[MICROSOFT]

    @property
    def link_tone(self) -> str:
        """How near the end of the link is."""
        return Tone.BAD.value if self.link_days is None else nearness(self.link_days).value

    @property
    def link_soon(self) -> bool:
        """Whether the link is about to end, because nobody could renew it for long."""
        return self.link_days is not None and self.link_tone in {Tone.WARN, Tone.BAD}

    @property
    def secret_tone(self) -> str:
        """How near the end of the secret is."""
        return Tone.GOOD.value if self.secret_days is None else nearness(self.secret_days).value

    @property
    def secret_soon(self) -> bool:
        """Whether somebody should make a successor now."""
        return self.secret_tone in {Tone.WARN, Tone.BAD} and not self.has_successor


@dataclass(frozen=True, kw_only=True)
class Row:
    """One site and how it stands."""

    site: Site
    traffic: Traffic
    state: SiteState
    why: Why = Why.NOTHING
    place: str = ""
    """Where its mail goes: host and port, or the connection's name."""
    is_linked: bool = False
    """By an account that somebody signed in to, not by a password."""
    code: str = ""
    words: str = ""
    since: datetime | None = None
    next_look: datetime | None = None
    """Where nobody can be reached: when one mail finds out whether somebody is back. None: it is
    at it now."""
    usual_per_day: float = 0.0
    lane_id: int | None = None
    ends: Ends | None = None
    """None where it sends by no link."""
    beneath: "Row | None" = None
    """Where a mode says how it stands: how it would stand without."""
    carried: Carried | None = None
    """The backup that stands in for its primary connection."""

    @property
    def part(self) -> Part:
        """Where on the board it stands; a secret that runs out is worth an eye."""
        if not self.in_trouble and self.ends is not None and self.ends.secret_soon:
            return Part.SOON
        return self._part

    @property
    def in_trouble(self) -> bool:
        """Whether its state is one to tell on every page: a trouble, or a choice."""
        return self._part is not Part.FINE

    @property
    def _part(self) -> Part:
        if self.state is SiteState.NO_CONNECTION and self.traffic.waiting:
            return Part.ACT
        if self.why is Why.SLOWED_DOWN:
            return Part.SOON
        return PARTS[self.state]

    @property
    def status(self) -> Status:
        """How its state looks."""
        if self.why is Why.LOGIN_REFUSED and self.is_linked:
            return NEEDS_SIGN_IN
        return SLOWED_DOWN if self.why is Why.SLOWED_DOWN else SITE[self.state]

    @property
    def mark(self) -> str:
        """The tone of the bar beside a row that somebody should look at."""
        if self.part is Part.ACT:
            return Tone.BAD.value
        soon = self.part is Part.SOON and not self.in_trouble
        return Tone.WARN.value if soon or self.status.tone is Tone.WARN else ""

    def is_called(self, words: str) -> bool:
        """Whether its name or address holds these words."""
        return words.casefold() in f"{self.site.name} {self.site.url}".casefold()


@dataclass(frozen=True, kw_only=True)
class Board:
    """All rows, worst first, and what stands above them."""

    rows: tuple[Row, ...]
    counts: Counts
    worker_seen: bool
    """Whether a delivery worker was seen lately; without one no mail leaves."""

    def part(self, part: Part) -> tuple[Row, ...]:
        """The rows of one part."""
        return tuple(row for row in self.rows if row.part == part)

    @property
    def waiting(self) -> int:
        """Mails of all sites that are not over yet."""
        return sum(row.traffic.waiting for row in self.rows)

    @property
    def oldest_waiting_at(self) -> datetime | None:
        """Since when the oldest of them waits."""
        times = (row.traffic.oldest_waiting_at for row in self.rows)
        return min((at for at in times if at is not None), default=None)


def board(session: Session, site_ids: Iterable[int], now: datetime) -> Board:
    """How these sites stand."""
    wanted = sorted(set(site_ids))
    rows = sorted(_rows(session, wanted, now), key=_worst_first)
    return Board(
        rows=tuple(rows), counts=_counts(session, wanted, now), worker_seen=delivers(session, now)
    )


LEDGER_CHECKED = "ledger_checked"
"""Where the hourly check of the ledger notes what it found."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the last check of the ledger found, over all sites."""

    at: datetime
    accepted: int
    ended: int
    open: int
    gaps: int
    """Sites whose mail does not add up."""


def last_check(session: Session) -> Checked | None:
    """The last check of the ledger; None where there was none yet."""
    found = session.get(Setting, LEDGER_CHECKED)
    if found is None:
        return None
    value = found.value
    return Checked(
        at=datetime.fromisoformat(value["at"]),
        accepted=int(value["accepted"]),
        ended=int(value["ended"]),
        open=int(value["open"]),
        gaps=_count(value["gaps"]),
    )


def _count(found: object) -> int:
    return len(found) if isinstance(found, list) else int(str(found))


def depths_of(session: Session, rows: Iterable[Row], now: datetime) -> Mapping[int, Depth]:
    """How deep the lanes are that were asked to wait, by their keys."""
    lanes = {row.lane_id for row in rows if row.why is Why.SLOWED_DOWN and row.lane_id is not None}
    return depths(session, lanes, now)


def standing(session: Session, site_id: int, now: datetime) -> Row:
    """How one site stands, for the pages of that site."""
    return _rows(session, [site_id], now)[0]


def _rows(session: Session, wanted: Sequence[int], now: datetime) -> list[Row]:
    placed = session.execute(
        sa.select(Site, Connection, Lane, *_LINK)
        .outerjoin(Connection, Connection.id == Site.primary_connection_id)
        .outerjoin(Lane, Lane.id == Connection.lane_id)
        .outerjoin(Grant, Grant.id == Connection.grant_id)
        .outerjoin(OAuthApp, OAuthApp.id == Grant.app_id)
        .options(defer(Connection.secrets), defer(Connection.secrets_set), defer(Lane.windows))
        .where(Site.id.in_(wanted))
    ).all()
    traffic = _traffic(session, wanted, now)
    usual = _usual(session, [row[0] for row in placed], traffic, now)
    stand_ins = carried(session, [(row[0], row[1], row[2]) for row in placed], now)
    rows = []
    for site, connection, lane, *link in placed:
        row = replace(
            _row(site, connection, lane, traffic[site.id], usual, now),
            lane_id=lane.id if lane is not None else None,
            ends=_ends(link, now),
            carried=stand_ins.get(site.id),
        )
        if (by_choice := BY_MODE.get(site.mode)) is not None:
            row = _kept_back(row, by_choice)
        rows.append(row)
    return rows


def _kept_back(row: Row, state: SiteState) -> Row:
    """How a site stands whose mail somebody keeps back or leads elsewhere."""
    return Row(
        site=row.site,
        traffic=row.traffic,
        state=state,
        why=Why.BY_CHOICE,
        lane_id=row.lane_id,
        ends=row.ends,
        carried=row.carried,
        beneath=row,
    )


_LINK = (
    Grant.state,
    Grant.renewed_at,
    OAuthApp.uid,
    OAuthApp.connection_id,
    OAuthApp.secret_expires_on,
    OAuthApp.secret.is_not(None),
    OAuthApp.next_secret.is_not(None),
    OAuthApp.provider,
)


def _ends(link: Sequence[Any], now: datetime) -> Ends | None:
    """From what `_LINK` reads, all of it empty where the site sends by no link."""
    state, renewed_at, app_uid, connection_id, expires_on, has_secret, has_successor, at = link
    if state is None or app_uid is None:
        return None
    secret_on = expires_on if has_secret else None
    return Ends(
        link_days=idle_days(renewed_at, now, at) if state == GrantState.LINKED else None,
        secret_on=secret_on,
        secret_days=days_until(secret_on, now) if secret_on is not None else None,
        app_uid=app_uid,
        own_app=connection_id is not None,
        has_successor=bool(has_successor),
        provider=PROVIDERS[at],
    )


def _worst_first(row: Row) -> tuple[int, int, datetime, str]:
    parts = list(Part)
    states = list(PARTS)
    oldest = row.traffic.oldest_waiting_at or datetime.max.replace(
        tzinfo=row.site.created_at.tzinfo
    )
    return parts.index(row.part), states.index(row.state), oldest, row.site.name.casefold()


# ---- the state of one site ----


def _row(
    site: Site,
    connection: Connection | None,
    lane: Lane | None,
    traffic: Traffic,
    usual: Mapping[int, float],
    now: datetime,
) -> Row:
    if connection is None or lane is None:
        state = SiteState.NO_CONNECTION
        kind = registry().get(connection.mailer) if connection else None
        why = Why.NOT_LINKED if kind and kind.needs_link else Why.NO_CONNECTION
        return Row(site=site, traffic=traffic, state=state, why=why)
    if lane.is_blocked and lane.blocked_kind == UNREACHABLE:
        return _unreachable(site, connection, lane, traffic, now)
    stopped = _stopped(site, connection, lane, traffic)
    if stopped is not None:
        return stopped
    if lane.is_blocked and lane.blocked_until is not None and lane.blocked_until > now:
        return Row(
            site=site,
            traffic=traffic,
            state=SiteState.WORKING,
            why=Why.SLOWED_DOWN,
            place=place_of(connection),
            words=lane.blocked_words,
            since=lane.blocked_since,
        )
    if site.id in usual:
        return Row(
            site=site,
            traffic=traffic,
            state=SiteState.QUIET,
            why=Why.QUIET,
            since=traffic.last_accepted_at,
            usual_per_day=usual[site.id],
        )
    nothing_yet = traffic.last_accepted_at is None
    state = SiteState.NO_MAIL if nothing_yet else SiteState.WORKING
    return Row(site=site, traffic=traffic, state=state)


def _unreachable(
    site: Site, connection: Connection, lane: Lane, traffic: Traffic, now: datetime
) -> Row:
    """The row of a site whose lane pauses because nobody answers there."""
    until = lane.blocked_until
    return Row(
        site=site,
        traffic=traffic,
        state=SiteState.FAILING,
        why=Why.UNREACHABLE,
        place=place_of(connection),
        is_linked=connection.grant_id is not None,
        code=connection.last_code,
        words=lane.blocked_words,
        since=lane.blocked_since,
        next_look=until if until is not None and until > now else None,
    )


def _stopped(site: Site, connection: Connection, lane: Lane, traffic: Traffic) -> Row | None:
    """The row of a site whose mail does not get through, by its lane or by its connection.

    A blocked lane is told first: another site with the same login may have met the refusal.
    """
    blocked = lane.is_blocked and lane.blocked_until is None
    health = lane.blocked_kind if blocked else connection.health
    why = STOPPED.get(Health(health)) if health in set(Health) else None
    if blocked and why is None:
        why = Why.FAILING
    if why is None:
        return None
    return Row(
        site=site,
        traffic=traffic,
        state=SiteState.FAILING,
        why=why,
        place=place_of(connection),
        is_linked=connection.grant_id is not None,
        code=connection.last_code,
        words=connection.last_words or lane.blocked_words,
        since=lane.blocked_since if blocked else connection.health_since,
    )


def place_of(connection: Connection) -> str:
    """What a person calls the place a connection sends to."""
    settings = connection.settings.get(connection.mailer, {})
    kind = registry().get(connection.mailer)
    label = kind.service or kind.label if kind else connection.mailer
    return str(settings.get("host") or connection.nickname or label)


# ---- traffic ----


@dataclass(frozen=True, kw_only=True)
class Times:
    """When a mail came, and when it was over."""

    accepted_at: datetime
    finished_at: datetime | None


def _traffic(session: Session, wanted: Sequence[int], now: datetime) -> dict[int, Traffic]:
    newest = _newest(session, wanted)
    waiting = _waiting(session, wanted)
    ids = {found for pair in newest.values() for found in pair if found is not None}
    ids |= {oldest for _count, oldest in waiting.values()}
    times = _times(session, ids)
    traffic = {}
    for site_id in wanted:
        last_sent, last = newest.get(site_id, (None, None))
        count, oldest = waiting.get(site_id, (0, None))
        traffic[site_id] = Traffic(
            last_sent_at=times[last_sent].finished_at if last_sent in times else None,
            last_accepted_at=times[last].accepted_at if last in times else None,
            waiting=count,
            oldest_waiting_at=times[oldest].accepted_at if oldest in times else None,
        )
    return traffic


def _newest(session: Session, wanted: Sequence[int]) -> dict[int, tuple[int | None, int | None]]:
    """Per site the newest mail that was sent, and the newest of all: one probe of an index each."""
    newest = sa.select(sa.func.max(Message.id)).where(Message.site_id == Site.id)
    sent = newest.where(Message.state == State.SENT)
    rows = session.execute(
        sa.select(
            Site.id,
            sent.correlate(Site).scalar_subquery(),
            newest.correlate(Site).scalar_subquery(),
        ).where(Site.id.in_(wanted))
    )
    return {row[0]: (row[1], row[2]) for row in rows}


def _waiting(session: Session, wanted: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Per site how many mails are not over yet, and the oldest of them; from indexes alone.

    An unclear mail is over unless it is due again.
    """
    columns = (Message.site_id, sa.func.count().label("n"), sa.func.min(Message.id).label("oldest"))
    mine = sa.select(*columns).where(Message.site_id.in_(wanted)).group_by(Message.site_id)
    states = (State.HELD, State.QUEUED, State.SENDING, State.DEFERRED)
    unclear = Message.state == State.UNCERTAIN
    both = sa.union_all(
        mine.where(Message.state.in_(states)),
        mine.where(unclear, Message.due_at.is_not(None)),
    ).subquery()
    rows = session.execute(
        sa.select(both.c.site_id, sa.func.sum(both.c.n), sa.func.min(both.c.oldest)).group_by(
            both.c.site_id
        )
    )
    return {row[0]: (int(row[1]), row[2]) for row in rows}


def _times(session: Session, ids: Iterable[int]) -> dict[int, Times]:
    query = sa.select(Message.id, Message.accepted_at, Message.finished_at)
    rows = session.execute(query.where(Message.id.in_(sorted(ids))))
    return {row[0]: Times(accepted_at=row[1], finished_at=row[2]) for row in rows}


def last_day(session: Session, site_ids: Iterable[int], now: datetime) -> dict[int, LastDay]:
    """What became of the mail of these sites, by the hour."""
    wanted = sorted(set(site_ids))
    first = _first_hour(now)
    rows = session.execute(
        sa.select(Tally.site_id, Tally.hour, *(_sum_of(outcome) for outcome in SHOWN))
        .where(*_in_the_last_day(wanted, now))
        .group_by(Tally.site_id, Tally.hour)
    )
    found: dict[int, dict[int, Hour]] = defaultdict(dict)
    index = {first + number * HOUR: number for number in range(HOURS)}
    for site_id, hour, accepted, sent, failed in rows:
        if hour in index:
            found[site_id][index[hour]] = Hour(int(accepted), int(sent), int(failed))
    nothing = Hour()
    return {
        site_id: LastDay(
            accepted=sum(hour.accepted for hour in found[site_id].values()),
            sent=sum(hour.sent for hour in found[site_id].values()),
            failed=sum(hour.failed for hour in found[site_id].values()),
            hours=tuple(found[site_id].get(index, nothing) for index in range(HOURS)),
        )
        for site_id in wanted
    }


def _counts(session: Session, wanted: Sequence[int], now: datetime) -> Counts:
    rows = session.execute(
        sa.select(Tally.outcome, sa.func.sum(Tally.count))
        .where(*_in_the_last_day(wanted, now))
        .group_by(Tally.outcome)
    )
    found = {outcome: int(count) for outcome, count in rows}
    accepted, sent, failed = (found.get(outcome, 0) for outcome in SHOWN)
    return Counts(accepted=accepted, sent=sent, failed=failed)


def _first_hour(now: datetime) -> datetime:
    return now.replace(minute=0, second=0, microsecond=0) - (HOURS - 1) * HOUR


def _in_the_last_day(wanted: Sequence[int], now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        Tally.site_id.in_(wanted),
        Tally.hour >= _first_hour(now),
        Tally.outcome.in_(SHOWN),
    )


def _sum_of(outcome: str) -> sa.Function[Any]:
    return sa.func.sum(sa.case((Tally.outcome == outcome, Tally.count), else_=0))


# ---- silence ----


def _usual(
    session: Session, sites: Sequence[Site], traffic: Mapping[int, Traffic], now: datetime
) -> dict[int, float]:
    """Mails a day that the sites which fell silent usually had; nothing for all others."""
    since = {
        site.id: last - QUIET_LOOKS_BACK
        for site in sites
        if (last := traffic[site.id].last_accepted_at) is not None and now - last > QUIET_AT_LEAST
    }
    if not since:
        return {}
    rows = session.execute(
        sa.select(Tally.site_id, sa.func.sum(Tally.count))
        .where(
            Tally.outcome == "accepted",
            sa.or_(*(_from(site_id, first) for site_id, first in since.items())),
        )
        .group_by(Tally.site_id)
    )
    counts = {row[0]: int(row[1]) for row in rows}
    usual = {}
    for site in sites:
        last = traffic[site.id].last_accepted_at
        if site.id in counts and last is not None:
            days = max(DAY, min(QUIET_LOOKS_BACK, last - site.created_at)) / DAY
            per_day = counts[site.id] / days
            if is_quiet(now - last, per_day):
                usual[site.id] = per_day
    return usual


def _from(site_id: int, first: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(Tally.site_id == site_id, Tally.hour >= first)


def is_quiet(silence: timedelta, per_day: float) -> bool:
    """Whether a silence is longer than this traffic explains; little traffic says nothing."""
    if per_day < 1:
        return False
    return silence > max(QUIET_AT_LEAST, QUIET_GAPS * DAY / per_day)


# ---- the little chart ----


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Two paths in a box of 98 by 22: hours in which all went well, and hours with a failure."""

    ok: str
    no: str


def bars(hours: Sequence[Hour]) -> Bars:
    """One bar an hour; the tallest fills the box, and a single mail is still seen."""
    tallest = max((max(hour.accepted, hour.failed) for hour in hours), default=0)
    ok: list[str] = []
    no: list[str] = []
    for index, hour in enumerate(hours):
        count = max(hour.accepted, hour.failed)
        if count:
            height = max(2, round(20 * count / tallest))
            (no if hour.failed else ok).append(f"M{2.5 + 4 * index:g} 22v-{height}")
    return Bars(ok="".join(ok), no="".join(no))
