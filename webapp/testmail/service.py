"""Test mails: by which connections one can be sent, the mail itself, and how one stands.

A test is a mail like any other: it enters the ledger and leaves by the delivery worker, but by one
connection only, and before all others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid
from enum import StrEnum

import sqlalchemy as sa
from markupsafe import Markup
from sqlalchemy.orm import Session

from webapp.config import Settings
from webapp.connections.models import Connection
from webapp.connections.service import (
    NOT_LINKED,
    choosable_connections,
    is_complete,
    primary_connection,
)
from webapp.db import Database
from webapp.delivery.models import Message, Outcome, Setting, Source, State
from webapp.explain.match import explain
from webapp.explain.model import Explanation
from webapp.explain.parts import APP
from webapp.fields import N_
from webapp.ingress.accept import Pinned, Submission, prepare, store
from webapp.mailers import registry
from webapp.mailers.errors import Cause
from webapp.maillog.service import (
    AttemptRow,
    MessageDetail,
    Reason,
    connection_name,
    get_message,
)
from webapp.microsoft.service import app_in_use, is_one_click, mailbox_of
from webapp.microsoft.standing import Standing, link_standing
from webapp.mime.headers import Address, render_address
from webapp.providers import is_linked, provider_of
from webapp.sites.models import Site

MOST_IN_A_MINUTE = 10
MINUTE = timedelta(minutes=1)

NO_MAILER = N_("No mailer is chosen for this connection.")
NOT_COMPLETE = N_("The settings of this connection are not complete.")
NO_SENDER = N_("This connection has no From Email, and the site has no admin address.")

Translate = Callable[..., str]
"""`gettext`: a marked sentence and the values of its placeholders."""


class TooManyTests(Exception):
    """The site had its tests for this minute."""


# ---- by which connection ----


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A connection of a site, and why no test can leave by it; a marked sentence, or empty."""

    connection: Connection
    name: str
    sender: str
    """The address that a test by it is from; empty when nobody named one."""
    is_primary: bool
    problem: str


def choices(session: Session, site: Site) -> list[Choice]:
    """What a site may send by, the primary one first."""
    primary = primary_connection(session, site)
    others = [one for one in choosable_connections(session, site) if one is not primary]
    return [
        _choice(session, site, connection, is_primary=connection is primary)
        for connection in ([primary] if primary else []) + others
    ]


def _choice(session: Session, site: Site, connection: Connection, *, is_primary: bool) -> Choice:
    mailbox = mailbox_of(session, connection) if is_linked(connection.mailer) else None
    sender = connection.from_email or (mailbox.address if mailbox else "") or site.admin_email
    return Choice(
        connection=connection,
        name=connection_name(connection.nickname, connection.mailer),
        sender=sender,
        is_primary=is_primary,
        problem=_problem(connection, sender),
    )


def _problem(connection: Connection, sender: str) -> str:
    kind = registry().get(connection.mailer)
    if kind is None:
        return NO_MAILER
    if kind.needs_link and connection.grant_id is None:
        return NOT_LINKED
    if connection.lane_id is None or not is_complete(connection):
        return NOT_COMPLETE
    return "" if sender else NO_SENDER


# ---- the mail ----


@dataclass(frozen=True, kw_only=True)
class Letter:
    """What a test mail is made of."""

    choice: Choice
    site: Site
    to: str
    by: str
    """Who asked for it, as the mail says it."""
    is_html: bool
    language: str
    """Of its HTML, as HTML writes it."""
    sent_at: datetime
    sent_at_words: str


def send(db: Database, letter: Letter, translate: Translate) -> str:
    """Store a test mail for the delivery worker; returns its queue id. Raises TooManyTests."""
    sender, connection = letter.choice.sender, letter.choice.connection
    prepared = prepare(
        Submission(
            site_id=letter.site.id,
            credential_id=None,
            source=Source.TEST,
            mail_from=sender,
            recipients=(letter.to,),
            raw=a_mail(letter, translate),
            received={
                "by": letter.by,
                "from": "localhost",
                "with": "HTTP",
                "html": letter.is_html,
            },
            pinned=Pinned(connection_id=connection.id, lane_id=connection.lane_id),
        )
    )
    with db.write() as session:
        _note(session, letter.site.id, prepared.queue_id, letter.sent_at)
    with db.write_driver() as driver:
        store(driver, [prepared], letter.sent_at)
    return prepared.queue_id


def a_mail(letter: Letter, translate: Translate) -> bytes:
    """The source of a test mail, with CRLF. Nothing in it is loaded from elsewhere."""
    choice, site = letter.choice, letter.site
    title = translate(N_("This test mail has arrived"))
    proof = translate(
        N_("It proves that mail of %(site)s can leave by the connection %(connection)s."),
        site=site.name,
        connection=choice.name,
    )
    hint = translate(
        N_("Look whether it is in the inbox or among the junk mail, and who it says it is from.")
    )
    facts = (
        (translate(N_("Site")), f"{site.name} ({site.url})" if site.url else site.name),
        (translate(N_("Connection")), choice.name),
        (translate(N_("From")), choice.sender),
        (translate(N_("Time")), letter.sent_at_words),
        (translate(N_("Asked for by")), letter.by),
    )
    lines = [title, "", proof, hint, "", *(f"{name}: {value}" for name, value in facts), ""]
    mail = EmailMessage(policy=SMTP)
    mail["Subject"] = translate(N_("Postroom: test mail to %(address)s"), address=letter.to)
    mail["Date"] = format_datetime(letter.sent_at)
    mail["Message-ID"] = make_msgid(domain=_domain(choice.sender))
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content("\n".join([*lines, "-- ", "Postroom"]) + "\n", cte="quoted-printable")
    if letter.is_html:
        html = _html(letter.language, title, proof, hint, facts)
        mail.add_alternative(html, subtype="html", cte="quoted-printable")
    name = choice.connection.from_name or site.name
    sender, to = Address(name, choice.sender), Address("", letter.to)
    envelope = b"From: %b\r\nTo: %b\r\n" % (render_address(sender), render_address(to))
    return envelope + mail.as_bytes()


def _html(
    language: str, title: str, proof: str, hint: str, facts: Sequence[tuple[str, str]]
) -> str:
    rows = Markup("").join(_ROW.format(name, value) for name, value in facts)
    return str(_PAGE.format(language, title, title, proof, hint, rows))


_ROW = Markup(
    '<tr><th align="left" style="padding:2px 16px 2px 0;font-weight:400;color:#5c5c5c">{}</th>'
    '<td style="padding:2px 0">{}</td></tr>\n'
)
_PAGE = Markup(
    """\
<!doctype html>
<html lang="{}"><head><meta charset="utf-8"><title>{}</title></head>
<body style="margin:0;padding:24px;font:16px/1.5 sans-serif;color:#222">
<div style="max-width:560px;border-top:3px solid #8f2d56;padding-top:16px">
<h1 style="margin:0 0 12px;font-size:22px">{}</h1>
<p style="margin:0 0 8px">{}</p>
<p style="margin:0 0 16px">{}</p>
<table style="border-collapse:collapse;font-size:14px">
{}</table>
<p style="margin:20px 0 0;color:#5c5c5c;font-size:13px">Postroom</p>
</div></body></html>
"""
)


def _domain(address: str) -> str:
    """Of the sender, for the Message-ID, which is ASCII."""
    try:
        return address.rpartition("@")[2].encode("idna").decode("ascii") or "localhost"
    except UnicodeError:
        return "localhost"


# ---- the last one, and how many there were ----


def _note(session: Session, site_id: int, queue_id: str, now: datetime) -> None:
    """Remember the last test of a site, and when the ones of this minute were."""
    # Of two at once the second waits here; mail that comes in does not.
    session.get_one(Site, site_id, with_for_update={"key_share": True})
    name = _setting(site_id)
    stored = session.get(Setting, name)
    if stored is None:
        stored = Setting(name=name, value={})
        session.add(stored)
    times = [time for time in stored.value.get("times", ()) if _within_a_minute(time, now)]
    if len(times) >= MOST_IN_A_MINUTE:
        raise TooManyTests
    stored.value = {"queue_id": queue_id, "times": [*times, now.isoformat()]}
    session.flush()


def _setting(site_id: int) -> str:
    return f"test-mail:{site_id}"


def _within_a_minute(time: str, now: datetime) -> bool:
    return abs(now - datetime.fromisoformat(time)) < MINUTE


def last_test(session: Session, site: Site) -> Message | None:
    """The last test of a site, as long as it is kept."""
    stored = session.get(Setting, _setting(site.id))
    if stored is None:
        return None
    return session.scalar(
        sa.select(Message).where(
            Message.queue_id == stored.value.get("queue_id", ""), Message.site_id == site.id
        )
    )


# ---- how one stands ----


class Phase(StrEnum):
    """How far a test has come."""

    WAITING = "waiting"
    """Next in line, or asked to wait."""
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    RETRYING = "retrying"
    """Tried, and tried again by itself."""
    STOPPED = "stopped"
    """It leaves once somebody has put something right."""
    UNCLEAR = "unclear"
    KEPT = "kept"
    """By choice it is not sent."""


_PHASES: Mapping[State, Phase] = {
    State.SENDING: Phase.SENDING,
    State.SENT: Phase.SENT,
    State.FAILED: Phase.FAILED,
    State.UNCERTAIN: Phase.UNCLEAR,
    State.BLOCKED: Phase.KEPT,
    State.CANCELLED: Phase.KEPT,
    State.HELD: Phase.KEPT,
}


@dataclass(frozen=True, kw_only=True)
class Test:
    """One test, and what it leaves by as that is now."""

    mail: MessageDetail
    connection: Connection | None
    link: Standing | None
    """For a connection that a person links."""

    @property
    def phase(self) -> Phase:
        """How far it has come."""
        return phase_of(self.mail)

    @property
    def to(self) -> str:
        """Whom it was sent to."""
        return self.mail.recipients[0].address if self.mail.recipients else self.mail.row.to_line

    @property
    def sender(self) -> str:
        """The From it left with, or is to leave with."""
        return self.mail.sent_from or self.mail.row.from_email

    @property
    def is_html(self) -> bool:
        """Whether it had an HTML part."""
        return bool(self.mail.received.get("html", True))

    @property
    def last(self) -> AttemptRow | None:
        """The last try."""
        return self.mail.attempts[-1] if self.mail.attempts else None

    @property
    def mailer(self) -> str:
        """Slug of the mailer, empty when the connection is gone."""
        return self.connection.mailer if self.connection else ""

    @property
    def host(self) -> str:
        """The server that takes the mail, where the settings name one."""
        settings = self.connection.settings.get(self.mailer, {}) if self.connection else {}
        return str(settings.get("host") or "")

    @property
    def own_domain(self) -> str:
        """The domain of a From at a provider whose DNS somebody keeps; else empty."""
        if self.link is None or self.link.personal:
            return ""
        domain = self.sender.rpartition("@")[2].lower()
        return "" if domain.endswith(".onmicrosoft.com") else domain


def phase_of(mail: MessageDetail) -> Phase:
    """How far a mail has come. Pure."""
    waiting = mail.row.waiting
    if mail.row.state in _PHASES:
        return _PHASES[mail.row.state]
    if waiting is None:
        return Phase.SENDING
    if waiting.reason is Reason.NO_CONNECTION:
        return Phase.STOPPED
    if waiting.reason is Reason.BLOCKED and waiting.until is None:
        return Phase.STOPPED
    on_its_way = waiting.reason in {Reason.TURN, Reason.ROOM} or not mail.attempts
    return Phase.WAITING if on_its_way else Phase.RETRYING


def find_test(
    session: Session, settings: Settings, site: Site, queue_id: str, now: datetime
) -> Test | None:
    """A test of this site; None for any other mail."""
    mail = get_message(session, queue_id, [site.id], now)
    if mail is None or mail.source is not Source.TEST:
        return None
    connection = session.scalar(
        sa.select(Connection)
        .join(Message, Message.connection_id == Connection.id)
        .where(Message.id == mail.row.id, Connection.deleted_at.is_(None))
    )
    return Test(mail=mail, connection=connection, link=_link(session, settings, connection, now))


def _link(
    session: Session, settings: Settings, connection: Connection | None, now: datetime
) -> Standing | None:
    if connection is None or not is_linked(connection.mailer):
        return None
    return link_standing(
        session,
        settings,
        connection,
        app_in_use(session, connection),
        one_click=is_one_click(connection),
        now=now,
        provider=provider_of(connection.mailer).slug,
    )


# ---- why it failed ----


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What the remote said, or the system where the remote said nothing."""

    code: str
    words: str
    cause: str


def failure_of(test: Test) -> Failure | None:
    """What keeps a test from arriving; None when nothing does, or there is no connection any more.

    A lane that stood already says it for a test that was never tried.
    """
    phase, last, row = test.phase, test.last, test.mail.row
    if phase not in {Phase.FAILED, Phase.RETRYING, Phase.STOPPED, Phase.UNCLEAR}:
        return None
    if last is not None and last.outcome not in {Outcome.STARTED, Outcome.SENT}:
        return Failure(code=last.code, words=last.words, cause=last.cause)
    if phase is not Phase.STOPPED:
        return Failure(code=row.last_code, words=row.last_words, cause="")
    if test.connection is None or row.waiting is None or row.waiting.reason is not Reason.BLOCKED:
        return None
    told = test.link or test.connection
    code = told.code if isinstance(told, Standing) else told.last_code
    cause = Cause.AUTH if row.waiting.kind == Outcome.NEEDS_REAUTHORISATION else Cause.UNKNOWN
    return Failure(
        code=code or test.connection.last_code,
        words=row.waiting.words or test.connection.last_words,
        cause=cause,
    )


def explanation_of(test: Test, failure: Failure) -> Explanation:
    """What the failure means, and who can put it right."""
    return explain(mailer=test.mailer, code=failure.code, words=failure.words, cause=failure.cause)


def is_about_app(found: Explanation) -> bool:
    """Whether it is the app registration that has to be put right."""
    return found.who == APP


def known_of(test: Test, until: str) -> dict[str, object]:
    """What the placeholders of an explanation stand for; `until` is when it is tried again."""
    known: dict[str, object] = {"from_email": test.sender, "until": until}
    if test.link is None:
        settings = test.connection.settings.get(test.mailer, {}) if test.connection else {}
        return known | {"host": test.host, "port": settings.get("port")}
    link = test.link
    if link.mailbox is not None:
        known["account"] = link.mailbox.address
        known["tenant"] = "" if link.personal else link.mailbox.address.rpartition("@")[2]
    if link.app is not None:
        known |= {"app_name": link.app.name, "client_id": link.app.client_id}
    return known


# ---- for support ----

_LABEL = 13


def debug_log(test: Test, site: Site, versions: str) -> str:
    """Everything that was said, in plain English and UTC, without secrets and without the mail."""
    row, connection = test.mail.row, test.connection
    lines = [versions]
    lines += _line("Site", f"{site.slug} ({site.mode})")
    lines += _line("Test", f"{row.queue_id}, {row.state}, {row.accepted_at:%Y-%m-%dT%H:%M:%SZ}")
    if connection is not None:
        name = registry()[test.mailer].label if test.mailer in registry() else test.mailer
        place = "primary" if site.primary_connection_id == connection.id else "not primary"
        lines += _line("Connection", f"{name}, {place}, id {connection.uid}")
    lines += _line("Server", test.host) if test.host else ()
    if test.link is not None:
        lines += _about_link(test.link)
    lines += _line("From", f"{test.sender}   To {test.to}")
    waiting = row.waiting
    if waiting is not None and waiting.kind:
        lines += _line("Lane", f"blocked: {waiting.kind}", waiting.words)
    for attempt in test.mail.attempts:
        lines += ["", *_about_attempt(attempt)]
    return "\n".join(lines)


def _about_link(link: Standing) -> Iterator[str]:
    if link.mailbox is None or link.grant is None:
        yield from _line("Account", "not linked")
        return
    kind, tenant = "personal" if link.personal else "work", link.mailbox.tenant_id
    cloud = link.mailbox.cloud
    yield from _line(
        "Account", f"{link.mailbox.address} ({kind}, tenant {_shortened(tenant)}, {cloud} cloud)"
    )
    yield from _line("Granted", " ".join(link.grant.scopes))
    renewed = f"{link.grant.renewed_at:%Y-%m-%dT%H:%M:%SZ}"
    yield from _line("Token", f"renewed {renewed}, {link.grant.state}", link.grant.words)


def _about_attempt(attempt: AttemptRow) -> Iterator[str]:
    started = f"{attempt.started_at:%Y-%m-%dT%H:%M:%S}.{attempt.started_at.microsecond // 1000:03}Z"
    told = [started, attempt.outcome.value]
    if attempt.cause:
        told.append(f"({attempt.cause})")
    if attempt.finished_at is not None:
        told.append(f"after {(attempt.finished_at - attempt.started_at).total_seconds():.3f} s")
    yield from _line(f"Attempt {attempt.number}", " ".join(told))
    log = attempt.details.get("log")
    if isinstance(log, list) and log:
        yield from (str(line) for line in log)
        return
    yield from _line("", attempt.code, attempt.words, attempt.remote_id)


def _line(label: str, *values: str) -> list[str]:
    """The values below one another, the label before the first."""
    texts = [line for value in values if value for line in value.splitlines()]
    heads = [label, *[""] * len(texts)]
    return [f"{head:<{_LABEL}}{text}".rstrip() for head, text in zip(heads, texts, strict=False)]


def _shortened(identifier: str) -> str:
    return f"{identifier[:4]}…{identifier[-2:]}" if len(identifier) > 8 else identifier
