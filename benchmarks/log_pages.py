"""How long the server takes for the pages of the mail log when a million mails lie in it.

    python benchmarks/log_pages.py [--rows 1000000] [--database sqlite|postgresql|URL] [--runs 30]

Fills a database in a temporary folder (or the empty one named by a URL), then asks for each page
in turn as a signed-in instance admin. The times are those of the whole request inside the server:
queries, rendering, headers. A figure over 100 ms is marked.
"""

import argparse
import contextlib
import random
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from tests.rig.postgres import PostgresServer, find_postgres
from webapp import config, create_app, ids
from webapp.accounts import service as accounts
from webapp.accounts.models import Membership, Role, User
from webapp.connections.models import Connection
from webapp.db import Database
from webapp.delivery.models import Attempt, Content, Lane, Message, Outcome, Recipient, State
from webapp.installation import Installation, open_installation
from webapp.mime.tokens import tokens, tsvector_literal
from webapp.sites.models import Site

BAR_MS = 100
SITES = 50
BATCH = 20_000
WITH_CONTENT = 10
"""The mail itself is kept for one in this many messages, the newest."""

END = datetime.now(UTC).replace(microsecond=0)
STATES = {
    State.SENT: 970,
    State.FAILED: 12,
    State.DEFERRED: 6,
    State.QUEUED: 3,
    State.UNCERTAIN: 2,
    State.HELD: 2,
    State.CANCELLED: 2,
    State.BLOCKED: 3,
}
GIVEN = (
    *("anna", "ben", "clara", "david", "elif", "finn", "greta", "hugo"),
    *("ines", "jonas", "kira", "lena", "mia", "noah", "olga", "paul"),
)
FAMILY = (
    *("meier", "okafor", "lund", "seidel", "brandt", "tanaka"),
    *("rossi", "novak", "silva", "weber", "moreau", "haas"),
)
DOMAINS = ["mail.example", "post.example", "brev.example", "youxiang.example", "kunde.example"]
ENGLISH = (
    "Your order #{n} is confirmed",
    "Password reset for {name}",
    "[{site}] New order #{n}",
    "Low stock: linen apron, natural ({n})",
    "Invoice {n} is attached",
    "A comment on “Winter hours” waits for your approval",
)
GERMAN = (
    "Rechnung 2026-{n}",
    "Ihre Bestellung {n} ist unterwegs",
    "Dein Gutschein zum Geburtstag",
    "Terminbestätigung für {name}",
)
CHINESE = ("订单 {n} 已发货", "您的密码重置链接", "发票 {n} 请查收", "松石书店十一月新书")
RARE = "Kaleidoskop"
MAIL = """\
From: Shop <shop@example.org>\r
To: {to}\r
Subject: A mail of the benchmark\r
Message-ID: <{n}@example.org>\r
MIME-Version: 1.0\r
Content-Type: text/html; charset=utf-8\r
\r
<h1>Thank you</h1><p>Your order {n} is on its way.</p><table>{lines}</table>\r
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One page and how long it took, in milliseconds."""

    name: str
    first: float
    """Cold: with nothing of it in any cache."""
    median: float
    p95: float


def rows(count: int, sites: Sequence[Site], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Messages in the order they came, most of them of a few busy sites."""
    busy = list(accumulate(1 / (rank + 1) for rank in range(len(sites))))
    states = list(accumulate(STATES.values()))
    start = END - timedelta(days=180)
    step = (END - start) / count
    for number in range(1, count + 1):
        site = rng.choices(sites, cum_weights=busy)[0]
        state = rng.choices(list(STATES), cum_weights=states)[0]
        yield _message(number, site, state, start + step * number, rng)


def _message(
    number: int, site: Site, state: State, at: datetime, rng: random.Random
) -> dict[str, Any]:
    given, family = rng.choice(GIVEN), rng.choice(FAMILY)
    address = f"{given}.{family}{rng.randrange(40_000)}@{rng.choice(DOMAINS)}"
    kind = rng.choices((ENGLISH, GERMAN, CHINESE), weights=(55, 30, 15))[0]
    subject = rng.choice(kind).format(n=20_000 + number, name=f"{given} {family}", site=site.name)
    if number % 50_000 == 77:
        subject = f"{subject} {RARE}"
    waits = state in {State.DEFERRED, State.QUEUED}
    failed = state in {State.FAILED, State.DEFERRED}
    return {
        "id": number,
        "queue_id": ids.queue_id(at),
        "site_id": site.id,
        "credential_id": None,
        "source": "smtp",
        "received": {"login": "wp", "address": "203.0.113.24", "protocol": "ESMTPA"},
        "state": state.value,
        "due_at": at + timedelta(hours=1) if waits else None,
        "lane_id": 1,
        "connection_id": 1,
        "why": {"code": "primary"},
        "subject": subject,
        "mail_from": f"shop@{site.slug}.example",
        "from_email": f"shop@{site.slug}.example",
        "from_name": site.name,
        "sent_from": f"shop@{site.slug}.example",
        "to_line": address,
        "message_id": f"<{number}.{rng.randrange(10**6)}@{site.slug}.example>",
        "size_bytes": rng.randrange(1_500, 90_000),
        "recipient_count": 1,
        "has_attachments": rng.random() < 0.1,
        "accepted_at": at,
        "expires_at": at + timedelta(hours=72),
        "started_at": at,
        "finished_at": None if waits else at,
        "attempts": 1,
        "failures": int(failed),
        "unclear": int(state is State.UNCERTAIN),
        "maybe_twice": False,
        "last_code": "451 4.7.0" if failed else "250 2.0.0",
        "last_words": "4.7.0 The mailbox is busy, try again later" if failed else "queued",
    }


def recipient_of(message: dict[str, Any]) -> dict[str, Any]:
    """The one recipient of a message."""
    return {
        "message_id": message["id"],
        "position": 0,
        "address": message["to_line"],
        "state": message["state"],
        "is_due": message["due_at"] is not None,
        "code": message["last_code"],
        "words": message["last_words"],
        "attempt": 1,
    }


def attempt_of(message: dict[str, Any]) -> dict[str, Any]:
    """The one attempt of a message."""
    failed = message["failures"] > 0
    return {
        "message_id": message["id"],
        "number": 1,
        "connection_id": 1,
        "connection_name": "Relay",
        "outcome": (Outcome.TRANSIENT if failed else Outcome.SENT).value,
        "cause": "",
        "code": message["last_code"],
        "words": message["last_words"],
        "remote_id": "",
        "details": {"recipients": 1},
        "started_at": message["accepted_at"],
        "finished_at": message["accepted_at"] + timedelta(milliseconds=400),
    }


def content_of(message: dict[str, Any]) -> dict[str, Any]:
    """The mail itself."""
    lines = "<tr><td>Linen apron, natural</td><td>29.00</td></tr>" * 20
    raw = MAIL.format(to=message["to_line"], n=message["id"], lines=lines).encode()
    return {"message_id": message["id"], "raw": zlib.compress(raw, 1)}


def search_words(message: dict[str, Any]) -> list[str]:
    """What the log can be searched for."""
    texts = (message["subject"], message["from_email"], message["from_name"], message["to_line"])
    return tokens(" ".join(texts))


def fill(db: Database, count: int) -> None:
    """Sites, one connection, and `count` messages with everything that belongs to them."""
    with db.write() as session:
        sites = _make_sites(session)
    rng = random.Random(20261123)
    batch: list[dict[str, Any]] = []
    started = time.monotonic()
    for message in rows(count, sites, rng):
        batch.append(message)
        if len(batch) == BATCH or message["id"] == count:
            _store(db, batch, count)
            batch = []
            say(f"\r{message['id']:>9,} mails stored in {time.monotonic() - started:4.0f} s", "")
    say("")
    with db.writer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not db.is_sqlite:
            connection.execute(sa.text("SELECT setval('message_id_seq', :n)"), {"n": count})
            connection.execute(sa.text("VACUUM ANALYZE"))


def _make_sites(session: Session) -> list[Site]:
    session.add(Lane(id=1, key="smtp:relay.example:587:wp", windows={}))
    session.flush()
    connection = Connection(
        id=1,
        uid=ids.short_id(),
        nickname="Relay",
        mailer="smtp",
        lane_id=1,
        created_at=END,
        updated_at=END,
    )
    session.add(connection)
    sites = [
        Site(slug=f"site-{n}", name=f"Site {n}", primary_connection_id=1, created_at=END)
        for n in range(1, SITES + 1)
    ]
    session.add_all(sites)
    session.flush()
    return sites


def _store(db: Database, batch: Sequence[dict[str, Any]], count: int) -> None:
    newest = [message for message in batch if message["id"] > count - count // WITH_CONTENT]
    with db.write_connection() as connection:
        _insert(connection, Message.__table__, batch)
        _insert(connection, Recipient.__table__, [recipient_of(m) for m in batch])
        _insert(connection, Attempt.__table__, [attempt_of(m) for m in batch])
        _insert(connection, Content.__table__, [content_of(m) for m in newest])
        _insert_search(connection, batch)


def _insert(connection: sa.Connection, table: Any, values: Sequence[dict[str, Any]]) -> None:
    """Straight through the driver: the statement of the ORM, without its work per row."""
    if not values:
        return
    dialect = connection.dialect
    bound = [
        (column, column.type.dialect_impl(dialect).bind_processor(dialect))
        for column in table.columns
        if column.name in values[0]
    ]
    prepared = (
        tuple(
            process(row[column.name]) if process is not None else row[column.name]
            for column, process in bound
        )
        for row in values
    )
    names = ", ".join(column.name for column, _ in bound)
    _copy(connection, table.name, names, len(bound), prepared)


def _insert_search(connection: sa.Connection, batch: Sequence[dict[str, Any]]) -> None:
    if connection.dialect.name == "sqlite":
        found = (
            (message["id"], f"s{message['site_id']}", " ".join(search_words(message)))
            for message in batch
        )
        _copy(connection, "message_search", "rowid, site, words", 3, found)
        return
    literals = ((m["id"], tsvector_literal(search_words(m))) for m in batch)
    _copy(connection, "message_search", "message_id, words", 2, literals)


def _copy(
    connection: sa.Connection, table: str, names: str, width: int, values: Iterable[Any]
) -> None:
    cursor = connection.connection.cursor()
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * width)
        cursor.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)
        return
    with cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
        for row in values:
            copy.write_row(row)


def pages(db: Database) -> Iterator[tuple[str, str, bool]]:
    """Name, address, and whether a person of five sites asks for it instead of an admin."""
    with db.read() as session:
        newest = session.scalar(sa.select(sa.func.max(Message.id))) or 0
        address = session.scalar(sa.select(Message.to_line).where(Message.id == newest // 2))
        one = session.execute(
            sa.select(Message.queue_id, Site.slug)
            .join(Site, Site.id == Message.site_id)
            .where(Message.id == newest - newest // 20)
        ).one()
    mail = f"/sites/{one.slug}/log/{one.queue_id}"
    deep = newest // 100
    yield "first page", "/log", False
    yield "deep page", f"/log?before={deep}", False
    yield "deep page, back", f"/log?after={deep}", False
    for status in ("sent", "waiting", "failed", "held"):
        yield f"status {status}", f"/log?status={status}", False
    yield "last 7 days, failed", "/log?since=7d&status=failed", False
    yield "busy site", "/sites/site-1/log", False
    yield "quiet site", "/sites/site-50/log", False
    yield "busy site, failed", "/sites/site-1/log?status=failed", False
    yield "quiet site, failed", "/sites/site-50/log?status=failed", False
    yield "five sites", "/log", True
    yield "five sites, failed", "/log?status=failed", True
    words = {
        "recipient": address or "",
        "recipient, beginning": (address or "").partition("@")[0][:8],
        "rare word": RARE,
        "common word": "order",
        "two words": "rechnung anna",
        "Chinese word": "发货",
        "number": str(20_000 + newest // 3),
        "no hit": "gutschien",
    }
    for name, typed in words.items():
        yield f"search, {name}", f"/log?{urlencode({'q': typed})}", False
    yield "search, deep", f"/log?q=order&before={deep}", False
    yield "search, failed only", "/log?q=rechnung&status=failed", False
    yield "search, busy site", "/sites/site-1/log?q=rechnung", False
    yield "search, quiet site", "/sites/site-50/log?q=rechnung", False
    yield "search, five sites", "/log?q=rechnung", True
    yield "one mail", mail, False
    yield "one mail, its HTML", f"{mail}/html", False


def measure(installation: Installation, runs: int) -> Iterator[Figure]:
    """Ask for each page once to warm it, then `runs` times."""
    app = create_app(installation)
    admin, person = (_signed_in(app, installation, is_admin) for is_admin in (True, False))
    url = installation.settings.url
    for name, path, by_person in pages(installation.db):
        client = person if by_person else admin
        times = []
        for _ in range(runs + 1):
            started = time.perf_counter()
            response = client.get(path, base_url=url)
            times.append((time.perf_counter() - started) * 1000)
            if response.status_code != 200:
                raise SystemExit(f"{path} answered {response.status_code}")
        warm = sorted(times[1:])
        p95 = warm[min(len(warm) - 1, round(len(warm) * 0.95))]
        yield Figure(name=name, first=times[0], median=statistics.median(warm), p95=p95)


def _signed_in(app: Flask, installation: Installation, is_admin: bool) -> FlaskClient:
    db = installation.db
    with db.write() as session:
        user = User(
            email=f"{'admin' if is_admin else 'person'}@example.org",
            password_hash="",
            is_admin=is_admin,
            created_at=END,
        )
        session.add(user)
        session.flush()
        for number in () if is_admin else (3, 9, 22, 41, 44):
            site_id = session.scalar(sa.select(Site.id).where(Site.slug == f"site-{number}"))
            session.add(Membership(user_id=user.id, site_id=site_id, role=Role.OPERATOR))
        secret = accounts.open_session(session, user.id, now=db.now())
    client = app.test_client()
    with client.session_transaction(base_url=installation.settings.url) as cookie:
        cookie["_user_id"] = secret
        cookie["_fresh"] = True
    return client


@contextlib.contextmanager
def database(wanted: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if wanted == "sqlite":
        yield f"sqlite:///{folder / 'postroom.db'}"
    elif wanted == "postgresql":
        home = find_postgres()
        if home is None:
            raise SystemExit("no PostgreSQL: install the development dependencies, or give a URL")
        server = PostgresServer(home)
        try:
            with server.empty_database() as url:
                yield url
        finally:
            server.stop()
    else:
        yield wanted


def table(figures: Iterable[Figure]) -> int:
    """Print the figures as they come; returns how many are over the bar."""
    over = 0
    print(f"{'page':<28}{'first':>9}{'median':>9}{'p95':>9}  ms")
    for figure in figures:
        slow = figure.median > BAR_MS
        over += slow
        mark = f"  over {BAR_MS}" if slow else ""
        print(
            f"{figure.name:<28}{figure.first:>9.1f}{figure.median:>9.1f}{figure.p95:>9.1f}{mark}",
            flush=True,
        )
    return over


def main() -> None:
    """Fill, measure, print; exit 1 when a median is over the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--database", default="sqlite", help="sqlite, postgresql, or a URL")
    parser.add_argument("--runs", type=int, default=30)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="postroom-log-") as name:
        folder = Path(name)
        with database(wanted.database, folder) as url:
            environ = {"POSTROOM_INSTANCE": name, "POSTROOM_DATABASE_URL": url}
            installation = open_installation(config.load(environ), migrate=True)
            fill(installation.db, wanted.rows)
            kind = installation.db.url.get_backend_name()
            print(f"{wanted.rows:,} mails of {SITES} sites, {kind}, {wanted.runs} runs a page")
            over = table(measure(installation, wanted.runs))
            installation.close()
    sys.exit(1 if over else 0)


def say(text: str, end: str = "\n") -> None:
    """Progress goes to standard error, the table to standard output."""
    print(text, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
