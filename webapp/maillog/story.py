"""What the log says in words: one line for the list, the story of one mail for its page.

The ledger keeps codes and parameters; here they become sentences in the language of the page.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import flask_babel

from webapp import show, web
from webapp.accounts.rights import Right
from webapp.delivery.decide import FOUND, LOOKS, NOT_FOUND, SETTLED
from webapp.delivery.finish import ONWARD
from webapp.delivery.lanes import UNREACHABLE, Limits
from webapp.delivery.models import Outcome, Source, State
from webapp.fields import N_
from webapp.mailers.errors import Cause
from webapp.maillog.choices import Step, _, moment, ngettext, not_sent_because, routed
from webapp.maillog.service import (
    AttemptRow,
    LogRow,
    MessageDetail,
    Reason,
    RecipientRow,
    View,
    Waiting,
)
from webapp.mime.sender import FromReason
from webapp.sites.models import AfterUnclear
from webapp.words import Status, Tone, status_of

PARTLY = Status(icon="failed", tone=Tone.BAD, word=N_("Partly sent"))

VIEWS: Mapping[View, str] = {
    View.ALL: N_("All"),
    View.SENT: N_("Sent"),
    View.WAITING: N_("Waiting"),
    View.FAILED: N_("Failed"),
    View.UNCLEAR: N_("Unclear"),
    View.HELD: N_("Held"),
    View.NOT_SENT: N_("Not sent"),
}

_NOT_TRIED = (State.BLOCKED, State.CANCELLED)
_HAS_WORDS = (State.DEFERRED, State.UNCERTAIN, State.FAILED)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the list."""

    row: LogRow
    status: Status
    mark: str
    """The tone of the bar at its left; empty when nobody needs to look."""
    to: str
    more: int
    """Recipients besides the one that is shown."""
    via: str
    note: str
    words: str
    """The remote's own."""


# --- the list ----------------------------------------------------------------------------------


def line(row: LogRow) -> Line:
    """How the list shows a message."""
    first = row.to_line.split(", ")[0]
    return Line(
        row=row,
        status=status(row),
        mark=_mark(row),
        to=first,
        more=row.recipient_count - 1 if first else 0,
        via=_("not sent") if row.state in _NOT_TRIED else row.via,
        note=note(row),
        words=_words_of(row),
    )


def status(row: LogRow) -> Status:
    """The state's shape and word."""
    return PARTLY if row.is_partly_sent else status_of(row.state)


def _mark(row: LogRow) -> str:
    if row.state is State.FAILED:
        return "bad"
    waiting = row.waiting
    if waiting is None or waiting.until is not None:
        return ""
    return "warn" if waiting.reason in {Reason.BLOCKED, Reason.NO_CONNECTION} else ""


def _words_of(row: LogRow) -> str:
    if row.state in _HAS_WORDS:
        return said(row.last_code, row.last_words)
    waiting = row.waiting
    return waiting.words if waiting is not None and waiting.reason is Reason.BLOCKED else ""


def said(code: str, words: str, remote_id: str = "") -> str:
    """What the remote said, its code first and once."""
    begins = bool(code) and words.startswith(code.split(" ")[0])
    text = words if begins or not code else f"{code} {words}".rstrip()
    return text if not remote_id or remote_id in text else f"{text}\n{remote_id}".lstrip()


def note(row: LogRow) -> str:
    """One sentence under the subject: what a message waits for, or what to know of it."""
    notes = [_note_of_state(row)]
    if row.maybe_twice:
        notes.append(_("It may have arrived twice."))
    return " ".join(filter(None, notes))


def _note_of_state(row: LogRow) -> str:
    if row.state is State.BLOCKED:
        return _("Kept in the log, but not sent.")
    if row.state is State.HELD:
        return _("Held: it waits until somebody releases it.")
    if row.state is State.UNCERTAIN and row.waiting is None:
        return _("The answer was lost. It may have arrived; it is not sent again.")
    if row.waiting is None:
        return ""
    if row.is_asked_about:
        return _("The answer was lost. Microsoft is asked whether it lies in Sent Items.")
    if row.state is State.UNCERTAIN and row.waiting.until is not None:
        return _(
            "The answer was lost. It is sent once more at %(time)s.", time=when(row.waiting.until)
        )
    return waits(row.waiting, row.attempts)


def waits(waiting: Waiting, attempts: int) -> str:
    """What a message waits for; empty when it is simply next in line."""
    if waiting.reason is Reason.NO_CONNECTION:
        return _("Waits until the site has a connection.")
    if waiting.reason is Reason.PAUSED:
        return _("Waits: somebody has paused what leaves this way.")
    if waiting.reason is Reason.ROOM and waiting.limits is not None:
        return _("Waits for room: %(limits)s on this connection.", limits=_limits(waiting.limits))
    if waiting.until is None:
        return _waits_for_somebody(waiting) if waiting.reason is Reason.BLOCKED else ""
    time = when(waiting.until)
    if waiting.reason is Reason.BLOCKED:
        if waiting.kind == UNREACHABLE:
            since = when(waiting.since) if waiting.since else ""
            return _(
                "The remote cannot be reached since %(since)s. Next try at %(time)s.",
                since=since,
                time=time,
            )
        return _("The remote asked to slow down. It goes on at %(time)s.", time=time)
    if not attempts:
        return _("Next at %(time)s.", time=time)
    return ngettext(
        "Tried once, next at %(time)s.",
        "Tried %(num)s times, next at %(time)s.",
        attempts,
        time=time,
    )


def _waits_for_somebody(waiting: Waiting) -> str:
    since = when(waiting.since) if waiting.since else ""
    if waiting.kind == Outcome.NEEDS_REAUTHORISATION:
        return _("Waits: the login is refused since %(time)s. Enter a new one.", time=since)
    return _(
        "Waits: nothing leaves by this connection since %(time)s. Check its settings.", time=since
    )


def _limits(limits: Limits) -> str:
    named = (
        (limits.per_minute, _("%(n)s a minute")),
        (limits.per_hour, _("%(n)s an hour")),
        (limits.per_day, _("%(n)s a day")),
        (limits.recipients_per_day, _("%(n)s recipients a day")),
    )
    return ", ".join(text % {"n": show.number(limit)} for limit, text in named if limit is not None)


def when(at: datetime) -> str:
    """`15:07` today, `24 Nov 2026, 15:07` on another day, in the time zone of the site."""
    time = str(flask_babel.format_datetime(at, "HH:mm"))
    day = show.date(at)
    return time if day == show.date(web.now()) else _("%(day)s, %(time)s", day=day, time=time)


# --- the story ---------------------------------------------------------------------------------


def headline(mail: MessageDetail) -> str:
    """How it stands, in one sentence."""
    row = mail.row
    if row.is_partly_sent:
        sent = sum(recipient.state is State.SENT for recipient in mail.recipients)
        return _("Sent to %(sent)s of %(all)s recipients", sent=sent, all=row.recipient_count)
    if row.state is State.SENT and row.finished_at is not None:
        span = length(row.finished_at - row.accepted_at)
        if row.via:
            return _("Sent after %(time)s, by %(via)s", time=span, via=row.via)
        return _("Sent after %(time)s", time=span)
    if row.state is State.FAILED and row.attempts:
        return ngettext("Failed after one attempt", "Failed after %(num)s attempts", row.attempts)
    return _(status_of(row.state).word)


def steps(mail: MessageDetail) -> list[Step]:
    """Everything that happened, and what comes next."""
    return [
        _accepted(mail),
        *routed(mail),
        *(step for attempt in mail.attempts for step in _attempt(mail, attempt)),
        *_ending(mail),
    ]


_SOURCES: Mapping[Source, str] = {
    Source.SMTP: N_("by SMTP"),
    Source.API: N_("by the HTTP API"),
    Source.TEST: N_("as a test"),
    Source.RESEND: N_("as a resend"),
    Source.COMMAND: N_("by a command on the server"),
}


def _accepted(mail: MessageDetail) -> Step:
    told = mail.received
    parts = [_(_SOURCES[mail.source])]
    if told.get("login"):
        parts.append(_("login %(name)s", name=told["login"]))
    if told.get("by"):
        parts.append(_("by %(name)s", name=told["by"]))
    if told.get("address"):
        parts.append(_("from %(address)s", address=told["address"]))
    if told.get("tls"):
        parts.append(str(told["tls"]).replace("TLSv", "TLS "))
    by_smtp = mail.source is Source.SMTP
    return Step(
        icon="mail",
        at=mail.row.accepted_at,
        title=_("Accepted"),
        aside=", ".join(parts),
        answer=f"250 2.0.0 queued as {mail.row.queue_id}" if by_smtp else "",
    )


_TITLES: Mapping[Outcome, tuple[str, str, str]] = {
    Outcome.STARTED: ("sending", "info", N_("Attempt %(n)s: under way")),
    Outcome.SENT: ("sent", "good", N_("Attempt %(n)s: sent")),
    Outcome.PARTLY: ("soon", "warn", N_("Attempt %(n)s: sent to some, refused for others")),
    Outcome.TRANSIENT: ("retry", "warn", N_("Attempt %(n)s: put off")),
    Outcome.UNCERTAIN: ("unsure", "warn", N_("Attempt %(n)s: the answer was lost")),
    Outcome.PERMANENT: ("failed", "bad", N_("Attempt %(n)s: refused")),
    Outcome.NEEDS_REAUTHORISATION: ("failed", "bad", N_("Attempt %(n)s: the login was refused")),
    Outcome.MISCONFIGURED: (
        "failed",
        "bad",
        N_("Attempt %(n)s: the connection is not set up right"),
    ),
}

_CAUSES: Mapping[str, str] = {
    Cause.DNS: N_("The name of the server was not found."),
    Cause.CONNECT: N_("The server did not take the connection."),
    Cause.TLS: N_("The encrypted connection did not come about."),
    Cause.AUTH: N_("The server refused the login. Everything that uses it waits for a new one."),
    Cause.RATE: N_("The server asked to slow down. This does not count as a failure."),
    Cause.TIMEOUT: N_("The server did not answer in time."),
    Cause.LOST: N_("The connection broke before the mail was handed over."),
    Cause.LOST_ANSWER: N_("The whole mail had gone out; whether it was taken is not known."),
    Cause.PROTOCOL: N_("The server did not answer as a mail server does."),
    Cause.UNSUPPORTED: N_("The server cannot do what this mail needs."),
    Cause.SENDER_REFUSED: N_("The server refused the sender. Trying again would not help."),
    Cause.RECIPIENT_REFUSED: N_("The server refused the recipient."),
    Cause.TOO_MANY_RECIPIENTS: N_("The server does not take that many recipients at once."),
    Cause.CONTENT_REFUSED: N_("The server refused this mail as it is."),
    Cause.TOO_LARGE: N_("The mail is larger than the server takes."),
    "owner-lost": N_("The delivery process ended before the answer came."),
}


def _attempt(mail: MessageDetail, attempt: AttemptRow) -> Iterator[Step]:
    icon, tone, title = _TITLES[attempt.outcome]
    asked_to_wait = attempt.outcome is Outcome.TRANSIENT and attempt.cause == Cause.RATE
    yield Step(
        icon=icon,
        tone=tone,
        at=attempt.started_at,
        title=_("Attempt %(n)s: asked to wait", n=attempt.number)
        if asked_to_wait
        else _(title, n=attempt.number),
        aside=_attempt_aside(attempt, is_backup=_is_backup(mail, attempt)),
        words=said(attempt.code, attempt.words, attempt.remote_id),
        text=_attempt_text(attempt),
        log=_attempt_log(attempt),
    )
    settled = attempt.details.get(SETTLED)
    if isinstance(settled, dict):
        yield _settled(settled)


def _settled(told: Mapping[str, Any]) -> Step:
    """What is known by now of an attempt whose answer was lost, and what follows from it."""
    at, looks = moment(told.get("at")), told.get("looks")
    if told.get("what") == FOUND:
        return Step(
            icon="sent",
            tone="good",
            at=at,
            title=_("Found in Sent Items"),
            text=_("So it went out, and is not sent again."),
        )
    if told.get("what") == NOT_FOUND and isinstance(looks, int) and looks < LOOKS:
        text = ngettext(
            "Looked once. The copy can take a while to appear.",
            "Looked %(num)s times. The copy can take a while to appear.",
            looks,
        )
        return Step(icon="unsure", tone="warn", at=at, title=_("Not in Sent Items yet"), text=text)
    asked = told.get("what") == NOT_FOUND
    title = _("Not in Sent Items") if asked else _("Nobody can look up whether it went out")
    return Step(icon="unsure", tone="warn", at=at, title=title, text=_choice(told))


def _choice(told: Mapping[str, Any]) -> str:
    if told.get("choice") == AfterUnclear.NEVER_TWICE:
        return _("This site wants no mail twice: it is left as it is.")
    if told.get("unclear") == 1:
        return _("This site would rather have a mail twice than never: it is sent once more.")
    return _("It was sent once more already: it is left as it is.")


def _attempt_log(attempt: AttemptRow) -> str:
    """What was said; whoever may not read a mail may not read that either."""
    lines = attempt.details.get("log")
    if not isinstance(lines, list) or not web.may(Right.READ_BODY):
        return ""
    return "\n".join(str(line) for line in lines)


def _attempt_aside(attempt: AttemptRow, *, is_backup: bool) -> str:
    name = attempt.connection
    if is_backup:
        name = _("%(name)s (backup)", name=name)
    if attempt.finished_at is None:
        return name
    span = _("after %(time)s", time=length(attempt.finished_at - attempt.started_at))
    return f"{span}, {name}" if name else span


def _is_backup(mail: MessageDetail, attempt: AttemptRow) -> bool:
    """Whether a backup made this attempt: an earlier one handed on to it, or the mail is on a
    detour. Being another than planned is not enough: rules may have changed since."""
    used = attempt.connection_id
    if used is None or mail.planned_id is None or used == mail.planned_id:
        return False
    handed_on = any(
        one.details.get(ONWARD) == used for one in mail.attempts if one.number < attempt.number
    )
    return handed_on or mail.has_detour


_NO_SIGN_IN = N_(
    "The server takes no sign-in that we know. Check host, port and encryption, or switch "
    "Authentication off."
)


def _cause(attempt: AttemptRow) -> str:
    if attempt.outcome is Outcome.MISCONFIGURED and attempt.cause == Cause.AUTH:
        return _(_NO_SIGN_IN)  # the login itself was never asked about
    return _(_CAUSES[attempt.cause]) if attempt.cause in _CAUSES else ""


def _attempt_text(attempt: AttemptRow) -> str:
    sentences = [_cause(attempt)]
    refused, tried = attempt.details.get("refused"), attempt.details.get("recipients")
    if attempt.outcome is Outcome.PARTLY and refused and tried:
        sentences.append(_("Refused for %(n)s of %(all)s recipients.", n=refused, all=tried))
    next_at = moment(attempt.details.get("next_at"))
    if next_at is not None and attempt.finished_at is not None and next_at > attempt.finished_at:
        span = length(next_at - attempt.finished_at)
        sentences.append(_("Next attempt after %(time)s.", time=span))
    return " ".join(filter(None, sentences))


def _ending(mail: MessageDetail) -> Iterator[Step]:
    """What is next, or why it ended other than by the last attempt."""
    row = mail.row
    look = status_of(row.state)
    if row.state is State.UNCERTAIN or (row.waiting is not None and note(row)):
        at = row.waiting.until if row.waiting else None
        title = _("Next") if row.waiting else _("Left as it is")
        yield Step(icon=look.icon, tone=look.tone, at=at, title=title, text=_note_of_state(row))
    elif row.state in _NOT_TRIED:
        yield Step(
            icon=look.icon,
            tone=look.tone,
            at=row.finished_at,
            title=_(look.word),
            text=not_sent_because(mail.why) or _note_of_state(row),
            is_decision=bool(not_sent_because(mail.why)),
        )
    elif row.state is State.FAILED and _gave_up(mail):
        span = length(mail.expires_at - row.accepted_at)
        text = _("It was tried for as long as the site wants it: %(time)s.", time=span)
        yield Step(icon="failed", tone="bad", at=row.finished_at, title=_("Given up"), text=text)


def _gave_up(mail: MessageDetail) -> bool:
    """Whether it failed because its time was over."""
    return bool(mail.attempts) and mail.attempts[-1].outcome is Outcome.TRANSIENT


def length(span: timedelta) -> str:
    """`0.4 s` below ten seconds, else the greatest whole unit."""
    seconds = max(0.0, span.total_seconds())
    if seconds < 10:
        return _("%(n)s s", n=show.number(round(seconds, 1)))
    return show.duration(span)


# --- facts -------------------------------------------------------------------------------------

_FROM_WHY: Mapping[str, str] = {
    FromReason.FORCED: N_("forced by %(via)s"),
    FromReason.PLACEHOLDER: N_("set by %(via)s, because a program’s placeholder was asked for"),
}


def from_why(mail: MessageDetail) -> str:
    """Why it left with another From than the one that was asked; empty when it did not."""
    if not mail.attempts or mail.sent_from == mail.row.from_email:
        return ""
    last = mail.attempts[-1]
    text = _FROM_WHY.get(str(last.details.get("from_why", "")))
    return _(text, via=last.connection or mail.row.via) if text else ""


def reply_to_added(mail: MessageDetail) -> str:
    """The Reply-To that was added so that answers still arrive; empty when none was."""
    if not mail.attempts:
        return ""
    added = mail.attempts[-1].details.get("reply_to_added")
    return added if isinstance(added, str) else (mail.row.from_email if added else "")


def recipient_status(recipient: RecipientRow) -> Status:
    """The shape and word of one recipient."""
    return status_of(recipient.state)
