"""What was decided about a mail when it came in: redirected, held, routed, and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import flask_babel

from webapp.fields import N_
from webapp.maillog.service import MessageDetail
from webapp.routing.models import Action
from webapp.routing.service import Why


def _(sentence: str, **values: object) -> str:
    return str(flask_babel.gettext(sentence, **values))


def ngettext(one: str, many: str, number: int, **values: object) -> str:
    """Flask-Babel's, with a type."""
    return str(flask_babel.ngettext(one, many, number, **values))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that happened to a mail, or that comes next."""

    icon: str
    title: str
    tone: str = ""
    at: datetime | None = None
    aside: str = ""
    words: str = ""
    text: str = ""
    answer: str = ""
    """What we ourselves answered."""
    log: str = ""
    """What was said, line by line, for those who may read it."""
    is_decision: bool = False
    """A rule, a mode or the lack of one decided it: a dry run tells more."""


def moment(text: Any) -> datetime | None:
    """A time as the ledger's details keep it; None for anything else."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def routed(mail: MessageDetail) -> Iterator[Step]:
    """What was decided when a mail came in, and when it was released."""
    yield from _redirected(mail)
    held = mail.why.get("held")
    if isinstance(held, dict):
        yield from _held(mail, held)
        yield Step(
            icon="route",
            at=moment(mail.why.get("released")),
            title=_("Released"),
            text=_("Somebody let it go; where it goes was decided then."),
        )
    yield from _held(mail, mail.why)
    yield from _leads(mail)


def _redirected(mail: MessageDetail) -> Iterator[Step]:
    """Who gets a mail that was meant for others."""
    meant = mail.received.get("redirected_from")
    if not isinstance(meant, list) or not meant:
        return
    more = int(mail.received.get("redirected") or len(meant)) - len(meant)
    listed = ", ".join(str(address) for address in meant)
    text = _("It was meant for: %(addresses)s", addresses=listed)
    if more > 0:
        text = ngettext(
            "It was meant for: %(addresses)s and one more",
            "It was meant for: %(addresses)s and %(num)s more",
            more,
            addresses=listed,
        )
    title = _("Redirected: the site’s mode is Redirect to")
    yield Step(icon="route", at=mail.row.accepted_at, tone="warn", title=title, text=text)


def _held(mail: MessageDetail, why: Mapping[str, Any]) -> Iterator[Step]:
    """The mode or the control that kept a mail for somebody to look at."""
    at = mail.row.accepted_at
    if why.get("code") == Why.HOLD:
        text = _("The site’s mode was Hold.")
        yield Step(icon="held", at=at, title=_("Held"), text=text, is_decision=True)
    elif why.get("code") == Why.CONTROL and why.get("action") == Action.HOLD:
        yield Step(icon="held", at=at, title=_("Held"), text=_by_control(why), is_decision=True)


def not_sent_because(why: Mapping[str, Any]) -> str:
    """What blocked a mail; empty where nothing did."""
    if why.get("code") == Why.DO_NOT_SEND:
        return _("Kept, but not sent: the site’s mode is Do not send.")
    if why.get("code") == Why.CONTROL and why.get("action") == Action.BLOCK:
        return _by_control(why)
    return ""


def _by_control(why: Mapping[str, Any]) -> str:
    name = why.get("name")
    return _("By the control “%(name)s”.", name=name) if name else _("By a control of this site.")


def _leads(mail: MessageDetail) -> Iterator[Step]:
    """The connection that was chosen, and why."""
    code, at = mail.why.get("code"), mail.row.accepted_at
    if code == Why.NO_CONNECTION:
        text = _("This site has none that can send. The mail waits until it does.")
        yield Step(icon="route", at=at, tone="warn", title=_("No connection yet"), text=text)
        return
    text = _why_text(mail.why)
    if text and mail.row.via:
        title = _("Routed to %(via)s", via=mail.row.via)
        by_rules = code in {Why.RULE, Why.PRIMARY}
        yield Step(icon="route", at=at, title=title, text=text, is_decision=by_rules)


_REASONS: Mapping[str, str] = {
    Why.PRIMARY: N_("The primary connection of this site."),
    Why.TEST: N_("A test of this connection: no routing, no backup."),
    Why.ASKED: N_("Whoever handed it in asked for this connection."),
}


def _why_text(why: Mapping[str, Any]) -> str:
    code = why.get("code")
    if code == Why.RULE:
        name = why.get("name")
        return _("By the rule “%(name)s”.", name=name) if name else _("By a rule of this site.")
    return _(_REASONS[code]) if isinstance(code, str) and code in _REASONS else ""
