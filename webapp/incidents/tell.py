"""Sends notifications that are due, on a thread of its own: mail never waits for an alert.

A notification is claimed before it is sent, so two processes do not both send it; one that dies
meanwhile leaves it due again, because rather twice than never is right for an alert.
"""

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from webapp import i18n
from webapp.accounts.models import User
from webapp.connections.models import Connection
from webapp.crypto import Keyring, SealError
from webapp.incidents import channel, reach, service
from webapp.incidents.channel import NoWay
from webapp.incidents.letters import Letter, as_json, as_mail, letter, translator
from webapp.incidents.models import (
    AlertTarget,
    Channel,
    Incident,
    Notification,
    Occasion,
    Told,
)
from webapp.incidents.reach import Trust, Unreached
from webapp.incidents.targets import open_key
from webapp.installation import Installation
from webapp.mailers.base import Envelope, Surroundings
from webapp.mailers.errors import DeliveryError, PermanentError
from webapp.rounds import Rounds
from webapp.sites.models import Site

log = structlog.get_logger(__name__)

INTERVAL = timedelta(seconds=2)
CLAIMED_FOR = timedelta(minutes=3)
"""Longer than any attempt takes."""
RETRIES = (
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=15),
    timedelta(minutes=60),
)
PER_ROUND = 50
AT_ONCE = 4
ANSWER_LIMIT = timedelta(seconds=60)
WORDS_KEPT = 500


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A claimed notification with all that sending it takes."""

    notification: Notification
    target: AlertTarget
    told: Letter
    translate: Callable[..., str]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it. `code` is a word of ours, `words` are the remote's."""

    told: Told
    words: str = ""
    final: bool = True


class Teller(Rounds):
    """One process is enough, and several do no harm."""

    name = "tell"

    def __init__(
        self,
        installation: Installation,
        keys: Callable[[], Keyring],
        surroundings: Surroundings,
        interval: timedelta = INTERVAL,
        resolver: reach.Resolver = socket.getaddrinfo,
    ) -> None:
        super().__init__(interval)
        self._settings = installation.settings
        self._db = installation.db
        self._keys = keys
        self._surroundings = replace(surroundings, answer_timeout=ANSWER_LIMIT)
        self._resolver = resolver
        self._translators: dict[str, Callable[..., str]] = {}

    def round(self) -> int:
        """Send what is due now; returns how many were tried."""
        due = self._due()
        if not due:
            return 0
        # Several at once, because one that does not answer must not keep the others.
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tell") as pool:
            return sum(pool.map(self._tell, due))

    def work(self) -> None:
        """One round."""
        self.round()

    def _due(self) -> Sequence[int]:
        opening = sa.orm.aliased(Notification)
        untold = sa.select(opening.id).where(
            opening.incident_id == Notification.incident_id,
            opening.target_id == Notification.target_id,
            opening.occasion == Occasion.OPENED,
            opening.told == Told.DUE,
        )
        query = (
            sa.select(Notification.id)
            .where(
                Notification.due_at <= self._db.now(),
                # The end is told after the beginning.
                sa.or_(Notification.occasion != Occasion.CLOSED, ~untold.exists()),
            )
            .order_by(Notification.due_at, Notification.id)
            .limit(PER_ROUND)
        )
        with self._db.reader.connect() as connection:
            return connection.scalars(query).all()

    def _tell(self, notification_id: int) -> bool:
        if self._stop.is_set():
            return False
        try:
            with self._db.write() as session:
                parcel = self._claim(session, notification_id)
            if parcel is None:
                return False
            result = self._send(parcel)
            with self._db.write() as session:
                record(session, parcel.notification.id, result, self._db.now())
        except sa.exc.SQLAlchemyError as error:
            log.warning("an alert waits for the database", error=type(error).__name__)
            return False
        log.info(
            "an alert was sent" if result.told is Told.SENT else "an alert was not sent",
            target=parcel.target.uid,
            occasion=parcel.notification.occasion,
            told=result.told.value,
            words=result.words,
        )
        return True

    def _claim(self, session: Session, notification_id: int) -> Parcel | None:
        """Take it for this process, if it is still due and still worth telling."""
        now = self._db.now()
        claimed = session.execute(
            sa.update(Notification)
            .where(
                Notification.id == notification_id,
                Notification.told == Told.DUE,
                Notification.due_at <= now,
            )
            .values(due_at=now + CLAIMED_FOR, attempts=Notification.attempts + 1)
        )
        if claimed.rowcount != 1:  # type: ignore[attr-defined]
            return None
        found = session.get_one(Notification, notification_id)
        target = session.get_one(AlertTarget, found.target_id)
        incident = session.get(Incident, found.incident_id) if found.incident_id else None
        if self._is_pointless(session, found, target):
            found.told, found.due_at = Told.DROPPED, None
            return None
        shown = service.sites_of(session, incident.id) if incident else [target.site_id or 0]
        there = sa.select(Site).where(Site.id.in_(shown), Site.deleted_at.is_(None))
        sites = session.scalars(there.order_by(Site.name)).all()
        translate = self._translator(_language(session, target))
        told = letter(
            Occasion(found.occasion),
            target,
            incident,
            sites,
            translate,
            public_url=self._settings.url,
            at=now,
        )
        return Parcel(notification=found, target=target, told=told, translate=translate)

    def _translator(self, language: str) -> Callable[..., str]:
        if language not in self._translators:
            self._translators[language] = translator(self._settings.instance, language)
        return self._translators[language]

    @staticmethod
    def _is_pointless(session: Session, found: Notification, target: AlertTarget) -> bool:
        """The target was switched off, or nobody there ever heard that it began."""
        if found.occasion == Occasion.TEST:
            return False
        if not target.is_on:
            return True
        if found.occasion == Occasion.OPENED:
            return False
        opening = session.scalar(
            sa.select(Notification.told).where(
                Notification.incident_id == found.incident_id,
                Notification.target_id == found.target_id,
                Notification.occasion == Occasion.OPENED,
            )
        )
        return opening != Told.SENT

    def _send(self, parcel: Parcel) -> Result:
        try:
            if parcel.target.channel == Channel.WEBHOOK:
                return self._call(parcel)
            return self._mail(parcel)
        except SealError:
            return Result(told=Told.FAILED, words="sealed")
        except Exception as error:  # a bug must not leave it due for ever
            log.exception("an alert ended in a bug", target=parcel.target.uid)
            return Result(told=Told.FAILED, words=f"Postroom: {type(error).__name__}", final=False)

    def _call(self, parcel: Parcel) -> Result:
        target, body = parcel.target, as_json(parcel.told)
        key = open_key(self._keys(), target)
        trust = Trust(
            ca_file=self._surroundings.ca_file,
            private=target.site_id is None,
            resolver=self._resolver,
        )
        headers = {
            reach.HEADER: reach.signature(key, body, self._db.now()),
            "X-Postroom-Incident": parcel.told.incident.uid if parcel.told.incident else "",
        }
        try:
            status = reach.post(target.address, body, headers, trust)
        except Unreached as error:
            return Result(told=Told.FAILED, words=error.code, final=False)
        return Result(told=Told.SENT, words=str(status))

    def _mail(self, parcel: Parcel) -> Result:
        with self._db.read() as session:
            try:
                connection, mailer = channel.way_out(session, self._keys(), parcel.told.incident)
            except NoWay as error:
                return Result(told=Told.DROPPED, words=error.code)
        sender = connection.from_email
        content = as_mail(parcel.told, sender, parcel.translate)
        envelope = Envelope(mail_from=sender, recipients=(parcel.target.address,))
        problem: DeliveryError | None = None
        try:
            receipt = mailer.send(envelope, content, self._surroundings)
            problem = next(iter(receipt.refused.values()), None)
        except DeliveryError as error:
            problem = error
        self._note(connection, problem)
        if problem is None:
            return Result(told=Told.SENT, words=receipt.words[:WORDS_KEPT])
        words = " ".join(filter(None, [problem.code, problem.words]))[:WORDS_KEPT]
        return Result(told=Told.FAILED, words=words, final=isinstance(problem, PermanentError))

    def _note(self, connection: Connection, problem: DeliveryError | None) -> None:
        """One recipient that is refused says nothing against the connection."""
        if isinstance(problem, PermanentError):
            return
        with self._db.write() as session:
            channel.note(session, connection, problem, self._db.now())


def record(session: Session, notification_id: int, result: Result, now: datetime) -> None:
    """Write down what came of an attempt, and when the next one is due."""
    found = session.get(Notification, notification_id)
    if found is None:  # its target was removed meanwhile
        return
    found.words = result.words
    tries = RETRIES if found.occasion != Occasion.TEST else ()
    if result.told is Told.FAILED and not result.final and found.attempts <= len(tries):
        found.due_at = now + tries[found.attempts - 1]
    else:
        found.told, found.due_at = result.told, None
        found.sent_at = now if result.told is Told.SENT else None
    target = session.get_one(AlertTarget, found.target_id)
    target.last_at, target.last_told, target.last_words = now, result.told, result.words


def _language(session: Session, target: AlertTarget) -> str:
    """That of whoever added the target."""
    chosen = session.scalar(sa.select(User.language).where(User.email == target.created_by))
    return chosen if chosen in i18n.LANGUAGES else i18n.ENGLISH
