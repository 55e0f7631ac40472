"""What `postroom doctor` looks at: each check says what it found, and what to do when that is bad.

Nothing is changed and nobody is told. Words are for a terminal, and in English as all commands are.
"""

import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import requests
import sqlalchemy as sa

from webapp import schema, trust
from webapp.config import Listen
from webapp.crypto import Keyring, SealError
from webapp.db import Database, SealedText, utcnow
from webapp.delivery.models import Heartbeat, Lane, Message
from webapp.disk import Disk
from webapp.google.cloud import every_cloud
from webapp.installation import Installation, key_file, sealed_columns
from webapp.microsoft.models import Grant, GrantState, Mailbox, OAuthApp
from webapp.ops.checks import check_ledger
from webapp.ops.status import delivers
from webapp.outward import Outward
from webapp.sites.models import Mode, Site

MB = 1024 * 1024
SAMPLE = 50
"""Sealed values of each kind that are opened; with `full`, all."""
PATIENCE = 3.0
CLOCK_MAY_DIFFER = timedelta(minutes=5)
IDLE_DAYS = 60
"""Microsoft forgets a link that was not used for 90."""
SECRET_DAYS = 7


class Verdict(StrEnum):
    """What a check came to."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check."""

    name: str
    verdict: Verdict
    words: str
    """What was found."""
    remedy: str = ""
    """What to do; empty when nothing is to be done."""


def good(name: str, words: str) -> Finding:
    """All is well."""
    return Finding(name=name, verdict=Verdict.GOOD, words=words)


def bad(name: str, words: str, remedy: str) -> Finding:
    """Somebody has to act."""
    return Finding(name=name, verdict=Verdict.BAD, words=words, remedy=remedy)


def unknown(name: str, words: str, remedy: str = "") -> Finding:
    """It could not be found out."""
    return Finding(name=name, verdict=Verdict.UNKNOWN, words=words, remedy=remedy)


def examine(installation: Installation, *, full: bool = False) -> Iterator[Finding]:
    """Everything, in the order in which a person should put it right."""
    yield from _disk(installation)
    yield from _folder(installation)
    yield from _database(installation, full=full)
    yield from _key(installation, full=full)
    yield from _worker(installation)
    yield from _listeners(installation)
    yield from _clock(installation)
    yield from _public_url(installation)
    yield from _ledger(installation)
    yield from _sites(installation)
    yield from _lanes(installation)
    yield from _registrations(installation)
    yield from _grants(installation)


# ---- this machine ----


def _disk(installation: Installation) -> Iterator[Finding]:
    reserve = installation.settings.disk_reserve_bytes
    free = Disk.of(installation.settings).free()
    words = f"{free // MB:,} MB free where the data lies; {reserve // MB:,} MB are kept in reserve"
    if free > reserve:
        yield good("disk", words)
    else:
        yield bad("disk", words, "Make room: new mail is refused with 452 until there is some.")


def _folder(installation: Installation) -> Iterator[Finding]:
    settings = installation.settings
    private = [settings.instance]
    if not settings.secret_keys:
        private.append(key_file(settings))
    if installation.db.is_sqlite:
        private.append(Path(str(installation.db.url.database)))
    open_to_others = [path for path in private if _is_open(path)]
    if not open_to_others:
        yield good("folder", f"{settings.instance} is closed to other users")
    for path in open_to_others:
        yield bad(
            "folder",
            f"other users of this machine may open {path}",
            f"Run: chmod go-rwx {path}",
        )


def _is_open(path: Path) -> bool:
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
    except OSError:
        return False


def _listeners(installation: Installation) -> Iterator[Finding]:
    settings = installation.settings
    for name, listen in (
        ("dashboard", settings.http_listen),
        ("submission", settings.submission_listen),
    ):
        if _answers(listen):
            yield good(name, f"something listens on {listen}")
        elif installation.db.is_sqlite:
            part = "web" if name == "dashboard" else name
            yield bad(
                name,
                f"nothing listens on {listen}",
                f"Start `postroom serve` or `postroom {part}`.",
            )
        else:
            yield unknown(name, f"nothing listens on {listen} here; it may run on another host")


def _answers(listen: Listen) -> bool:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (not bound to: asked about)
    try:
        socket.create_connection(
            (everywhere.get(listen.host, listen.host), listen.port), PATIENCE
        ).close()
    except OSError:
        return False
    return True


def _clock(installation: Installation) -> Iterator[Finding]:
    if not installation.db.is_sqlite:
        with installation.db.reader.connect() as connection:
            theirs = connection.scalar(sa.text("SELECT clock_timestamp()"))
        yield _compared("the database server", theirs)
    for name, asked in _sign_in_hosts(installation):
        theirs = _date_at(asked, str(trust.bundle(installation.settings)))
        if theirs is None:
            yield unknown("clock", f"{name} did not tell the time within {PATIENCE:.0f} s")
        else:
            yield _compared(name, theirs)


def _compared(name: str, theirs: datetime) -> Finding:
    apart = abs(utcnow() - theirs)
    if apart <= CLOCK_MAY_DIFFER:
        return good("clock", f"this machine's clock agrees with that of {name}")
    return bad(
        "clock",
        f"this machine's clock and that of {name} differ by {apart.total_seconds() / 60:.0f} min",
        "Switch time synchronisation on (timedatectl set-ntp true): sign-in of linked accounts, "
        "retries and the log depend on the clock.",
    )


def _sign_in_hosts(installation: Installation) -> Iterator[tuple[str, str]]:
    known = every_cloud(installation.settings)
    with installation.db.read() as session:
        used = session.scalars(sa.select(OAuthApp.cloud).distinct()).all()
    logins = {known[slug].login for slug in used if slug in known}
    yield from ((str(urlsplit(login).hostname), login) for login in sorted(logins))


def _date_at(address: str, ca_file: str) -> datetime | None:
    """What a server says the time is; None when it says nothing in time."""
    with (
        suppress(requests.RequestException, ValueError, TypeError),
        Outward(ca_file=ca_file, time_limit=(PATIENCE, PATIENCE)) as outward,
    ):
        answer = outward.head(address, allow_redirects=False)
        return parsedate_to_datetime(answer.headers["Date"]) if "Date" in answer.headers else None
    return None


def _public_url(installation: Installation) -> Iterator[Finding]:
    url = installation.settings.url
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https" and host not in {"localhost", "127.0.0.1", "::1"}:
        yield bad(
            "address",
            f"{url} is neither https nor localhost",
            "Put a proxy with a certificate in front and set POSTROOM_PUBLIC_URL to its https "
            "address: passwords travel in clear until then, and Microsoft links no account.",
        )
    elif _within(lambda: bool(socket.getaddrinfo(host, None))):
        yield good("address", f"people open {url}")
    else:
        yield bad(
            "address",
            f"{host} does not resolve on this machine",
            "Correct POSTROOM_PUBLIC_URL, or add the name to DNS.",
        )


def _within(ask: Callable[[], bool]) -> bool:
    """The answer, or False when it does not come in time: looking up a name cannot be stopped."""
    answers: list[bool] = []

    def run() -> None:
        with suppress(OSError, UnicodeError):
            answers.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return any(answers)


# ---- the database ----


def _database(installation: Installation, *, full: bool) -> Iterator[Finding]:
    db = installation.db
    kind = "SQLite" if db.is_sqlite else "PostgreSQL"
    yield good("database", f"{kind}, at revision {schema.current(db)} as this program needs it")
    if full and db.is_sqlite:
        try:
            with db.reader.connect() as connection:
                said = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check(5)")]
        except sa.exc.DatabaseError as error:  # so damaged that it cannot even be looked through
            said = [str(error.orig)]
        if said == ["ok"]:
            yield good("database file", "sound")
        else:
            yield bad(
                "database file",
                "; ".join(said)[:500],
                "Stop Postroom, keep a copy of the files, and restore the last backup.",
            )


def _key(installation: Installation, *, full: bool) -> Iterator[Finding]:
    opened = 0
    for column in sealed_columns():
        tokens = _sealed(installation.db, column, None if full else SAMPLE)
        closed = [token for token in tokens if not _opens(installation.keyring, column, token)]
        opened += len(tokens) - len(closed)
        if closed:
            yield bad(
                "key",
                f"{len(closed)} of {len(tokens)} secrets in {column.table.name}.{column.name} "
                "cannot be opened",
                "Add the key that sealed them to the key file or POSTROOM_SECRET_KEYS, after the "
                "one that is there; or enter those passwords and secrets again.",
            )
    how = "all" if full else f"at most {SAMPLE} of each kind"
    words = f"the key opens what it sealed: {opened:,} stored secrets tried ({how})"
    yield good("key", f"{words}; fingerprint {installation.keyring.fingerprint()}")


def _sealed(db: Database, column: sa.Column[str], most: int | None) -> list[str]:
    newest = [key.desc() for key in column.table.primary_key.columns]
    query = sa.select(column).where(column.is_not(None)).order_by(*newest).limit(most)
    with db.reader.connect() as connection:
        return list(connection.execute(query).scalars())


def _opens(keyring: Keyring, column: sa.Column[str], token: str) -> bool:
    assert isinstance(column.type, SealedText)
    try:
        keyring.rotate(column.type.purpose, token)  # opens it, whatever row it belongs to
    except SealError:
        return False
    return True


def _ledger(installation: Installation) -> Iterator[Finding]:
    ledger = check_ledger(installation.db)
    if ledger.holds:
        yield good("ledger", f"every mail is accounted for: {ledger.accepted:,} accepted")
    for gap in ledger.gaps:
        account = gap.account
        yield bad(
            "ledger",
            f"{gap.name or gap.site_id}: {account.accepted:,} accepted, but {account.ended:,} "
            f"ended and {account.open:,} open, a difference of {account.gap:,}",
            "Mail was lost or counted twice. Keep a backup of this moment, compare the site's log "
            "with its programs, and report it to the makers of Postroom.",
        )


# ---- delivery ----


def _worker(installation: Installation) -> Iterator[Finding]:
    db = installation.db
    with db.read() as session:
        if delivers(session, db.now()):
            yield good("worker", "a delivery worker is at work")
            return
        beat = session.scalar(
            sa.select(sa.func.max(Heartbeat.beat_at)).where(Heartbeat.part == "deliver")
        )
    when = f"last seen {beat:%Y-%m-%d %H:%M} UTC" if beat else "never seen"
    yield bad(
        "worker",
        f"no delivery worker is at work ({when})",
        "Start `postroom serve` or `postroom deliver`: mail waits until then.",
    )


def _sites(installation: Installation) -> Iterator[Finding]:
    with installation.db.reader.connect() as connection:
        without = connection.execute(
            sa.select(Site.slug, Site.name)
            .where(
                Site.primary_connection_id.is_(None),
                Site.mode == Mode.LIVE,
                Site.deleted_at.is_(None),
            )
            .order_by(Site.slug)
        ).all()
        stranded = connection.scalar(
            sa.select(sa.func.count()).where(Message.lane_id.is_(None), Message.due_at.is_not(None))
        )
    remedy = "Add one on its General page, or set the site to send nothing."
    for site in without:
        yield bad("routes", f"{site.name} ({site.slug}) has no connection", remedy)
    if stranded:
        yield bad("routes", f"{stranded:,} mails wait without a connection", remedy)
    if not without and not stranded:
        yield good("routes", "every site and every waiting mail has a connection")


def _lanes(installation: Installation) -> Iterator[Finding]:
    with installation.db.reader.connect() as connection:
        rows = connection.execute(
            sa.select(Lane.key, Lane.blocked_kind, Lane.blocked_words)
            .where(Lane.is_blocked, Lane.blocked_until.is_(None))
            .order_by(Lane.key)
        ).all()
    for row in rows:
        yield bad(
            "connection",
            f"{row.key} is stopped ({row.blocked_kind}): {row.blocked_words}",
            "Open the connection's page: it says what to do. Its mail is kept meanwhile.",
        )
    if not rows:
        yield good("connection", "none is stopped")


def _registrations(installation: Installation) -> Iterator[Finding]:
    today = installation.db.now().date()
    with installation.db.read() as session:
        apps = session.scalars(sa.select(OAuthApp).order_by(OAuthApp.id)).all()
    for app in apps:
        name = app.name or app.client_id
        if app.problem_code:
            yield bad(
                "registration",
                f"{name} is refused ({app.problem_code}): {app.problem_words}",
                "Store a new secret, or correct the registration, on its page.",
            )
        elif app.secret_expires_on is None:
            yield unknown(
                "registration",
                f"nobody noted when the secret of {name} expires",
                "Enter the date that Microsoft shows beside the secret.",
            )
        elif (days := (app.secret_expires_on - today).days) <= SECRET_DAYS:
            ends = f"ends in {days} days" if days >= 0 else f"ended {-days} days ago"
            yield bad(
                "registration",
                f"the secret of {name} {ends}",
                "Make a new one at Microsoft and store it: linked accounts stay linked.",
            )
        else:
            yield good("registration", f"the secret of {name} is good for {days} more days")


def _grants(installation: Installation) -> Iterator[Finding]:
    now = installation.db.now()
    with installation.db.read() as session:
        rows = session.execute(
            sa.select(Grant, Mailbox.address)
            .join(Mailbox, Mailbox.id == Grant.mailbox_id)
            .where(Grant.state != GrantState.REMOVED)
            .order_by(Mailbox.address)
        ).all()
    for grant, address in rows:
        days = (now - grant.renewed_at).days
        words = f"{address}: renewed {days} days ago, may {', '.join(sorted(grant.scopes))}"
        if grant.state != GrantState.LINKED:
            said = f" ({grant.code}): {grant.words}" if grant.code else ""
            yield bad(
                "link",
                f"{address} must be linked again{said}",
                "Open a connection that uses it and link it; the mail that waits then goes out.",
            )
        elif days > IDLE_DAYS:
            yield bad(
                "link",
                words,
                "Microsoft ends it after 90 days. Let this machine reach Microsoft, or link again.",
            )
        else:
            yield good("link", words)
