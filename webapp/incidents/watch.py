"""Looks at the state of things every ten seconds, and opens and closes incidents."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog

from webapp.incidents import service
from webapp.incidents.kinds import Kind
from webapp.incidents.models import Incident
from webapp.incidents.signs import Sign, ledger_signs, signs
from webapp.installation import Installation
from webapp.rounds import Rounds

log = structlog.get_logger(__name__)

INTERVAL = timedelta(seconds=10)
LEDGER_EVERY = timedelta(hours=1)

LEDGER = frozenset({Kind.LEDGER.value})
ALL_BUT_LEDGER = frozenset(kind.value for kind in Kind) - LEDGER


class Watch(Rounds):
    """One process is enough, and several do no harm."""

    name = "watch"

    def __init__(self, installation: Installation, interval: timedelta = INTERVAL) -> None:
        super().__init__(interval)
        self._installation = installation
        self._db = installation.db
        self._ledger_at: datetime | None = None

    def round(self) -> None:
        """Compare what is wrong now with the open incidents."""
        with self._db.read() as session:
            found = signs(session, self._db.now(), self._installation.settings)
        self._settle(found, ALL_BUT_LEDGER)

    def check_ledger(self) -> None:
        """The same for the books of every site."""
        with self._db.reader.connect() as connection:
            found = ledger_signs(connection, is_sqlite=self._db.is_sqlite)
        self._settle(found, LEDGER)

    def _settle(self, found: Sequence[Sign], kinds: Collection[str]) -> None:
        with self._db.read() as session:
            known = {i.cause: i for i in service.open_incidents(session) if i.kind in kinds}
        for sign in found:
            try:
                self._note(sign, known.get(sign.cause[:200]))
            except sa.exc.IntegrityError:  # another process was quicker, or a site is gone
                log.info("an incident was noted elsewhere", cause=sign.cause)
            except sa.exc.SQLAlchemyError:
                raise
            except Exception:  # one bad sign must not make every other one go unnoticed
                log.exception("an incident could not be noted", cause=sign.cause)
        causes = {sign.cause[:200] for sign in found}
        for incident in known.values():
            if incident.cause not in causes:
                self._close(incident, causes)

    def _note(self, sign: Sign, incident: Incident | None) -> None:
        now = self._db.now()
        if incident is None:
            with self._db.write() as session:
                opened = service.open_incident(session, sign, now)
            if opened is not None:
                log.warning("an incident begins", kind=sign.kind.value, cause=sign.cause)
            return
        if not _has_news(sign, incident):
            return
        with self._db.write() as session:
            current = session.get(Incident, incident.id)
            if current is not None and current.closed_at is None:
                service.update_incident(session, current, sign, now)

    def _close(self, incident: Incident, causes: Collection[str]) -> None:
        quietly = incident.kind == Kind.SECRET and _is_followed(incident.cause, causes)
        with self._db.write() as session:
            closed = service.close_incident(session, incident.id, self._db.now(), quietly=quietly)
        if closed:
            log.warning("an incident is over", kind=incident.kind, cause=incident.cause)

    def work(self) -> None:
        """Look at everything, and once an hour at the books."""
        self.round()
        now = self._db.now()
        due = self._ledger_at
        if due is None or now >= due or due - now > LEDGER_EVERY:
            self.check_ledger()
            self._ledger_at = now + LEDGER_EVERY


def _has_news(sign: Sign, incident: Incident) -> bool:
    """Whether writing it down could change anything; saves a write at every look."""
    known = incident.details
    if sign.details.get("count", 0) < known.get("count", 0):
        sign = replace(sign, details={**sign.details, "count": known["count"]})
    return (
        incident.code != sign.code[:40]
        or not sign.sites.issubset(known.get("sites", ()))
        or any(known.get(name) != value for name, value in sign.details.items())
    )


def _is_followed(cause: str, causes: Collection[str]) -> bool:
    """Whether the next reminder about the same date took this one's place."""
    about = cause.rpartition(":")[0]
    return any(other.startswith(f"{about}:") for other in causes)
