"""What `postroom doctor` looks at: each check is a sentence, and says what to do when it fails."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from webapp.delivery.models import Heartbeat, Lane, Message
from webapp.delivery.tally import accounts
from webapp.installation import Installation
from webapp.ops.status import delivers
from webapp.sites.models import Site

RESERVE_BYTES = 500 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check."""

    name: str
    good: bool
    words: str


def examine(installation: Installation) -> Iterator[Finding]:
    """Everything, in the order in which a person should put it right."""
    yield _disk(installation)
    yield _worker(installation)
    yield from _ledger(installation)
    yield _stranded(installation)
    yield from _lanes(installation)


def _disk(installation: Installation) -> Finding:
    free = shutil.disk_usage(installation.settings.instance).free
    good = free > RESERVE_BYTES
    words = f"{free // (1024 * 1024):,} MB free where the data lies"
    if not good:
        words += ": make room, or mail is soon refused with 452"
    return Finding(name="disk", good=good, words=words)


def _worker(installation: Installation) -> Finding:
    db = installation.db
    with db.read() as session:
        if delivers(session, db.now()):
            return Finding(name="worker", good=True, words="a delivery worker is running")
        beat = session.scalar(
            sa.select(sa.func.max(Heartbeat.beat_at)).where(Heartbeat.part == "deliver")
        )
    when = f"last seen {beat:%Y-%m-%d %H:%M} UTC" if beat else "never seen"
    words = f"no delivery worker is at work ({when}): start `postroom serve` or `postroom deliver`"
    return Finding(name="worker", good=False, words=words)


def _ledger(installation: Installation) -> Iterator[Finding]:
    with installation.db.reader.connect() as connection:
        if not installation.db.is_sqlite:
            connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        found = accounts(connection)
        names = dict(connection.execute(sa.select(Site.id, Site.name)).all())
    total = sum(account.accepted for account in found)
    wrong = [account for account in found if account.gap]
    if not wrong:
        words = f"every mail is accounted for: {total:,} accepted"
        yield Finding(name="ledger", good=True, words=words)
    for account in wrong:
        words = (
            f"{names.get(account.site_id, account.site_id)}: {account.accepted:,} accepted, but "
            f"{account.ended:,} ended and {account.open:,} open, a difference of {account.gap:,}"
        )
        yield Finding(name="ledger", good=False, words=words)


def _stranded(installation: Installation) -> Finding:
    with installation.db.reader.connect() as connection:
        count = connection.scalar(
            sa.select(sa.func.count()).where(Message.lane_id.is_(None), Message.due_at.is_not(None))
        )
    if not count:
        return Finding(name="routes", good=True, words="every waiting mail has a connection")
    words = f"{count:,} mails wait for a site without a connection: add one on its General page"
    return Finding(name="routes", good=False, words=words)


def _lanes(installation: Installation) -> Iterator[Finding]:
    with installation.db.reader.connect() as connection:
        rows = connection.execute(
            sa.select(Lane.key, Lane.blocked_kind, Lane.blocked_words).where(
                Lane.is_blocked, Lane.blocked_until.is_(None)
            )
        ).all()
    for row in rows:
        words = f"{row.key} is stopped ({row.blocked_kind}): {row.blocked_words}"
        yield Finding(name="connection", good=False, words=words)
