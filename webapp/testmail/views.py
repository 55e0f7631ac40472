"""Tools > Email Test: send a test by one connection, and follow it to its end."""

import platform
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from flask import Blueprint, abort, g, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from wtforms import BooleanField

from webapp import __version__, i18n, ids, show, web
from webapp.accounts.rights import Right
from webapp.connections.accounts import keeper_of
from webapp.connections.models import Connection
from webapp.connections.places import page_of, registration_page
from webapp.connections.service import is_shared
from webapp.delivery.models import Message, Outcome, State
from webapp.delivery.wake import Waker
from webapp.explain.model import WHO_LABELS, Action, Explanation, Part, Who, values_for
from webapp.explain.parts import fitted
from webapp.fields import N_
from webapp.forms import Form, Radios, Text, choices, filled, refuse
from webapp.google.cloud import CLIENTS_PAGE
from webapp.maillog import story
from webapp.maillog.service import Reason
from webapp.microsoft.apps import guide_of
from webapp.ops.status import delivers
from webapp.providers import GOOGLE, is_linked, provider_of
from webapp.sites.models import Mode
from webapp.sites.service import check_email
from webapp.testmail import service
from webapp.testmail.service import Choice, Failure, Letter, Phase, Test, TooManyTests
from webapp.web import Group, db, installation, menu_entry, now, requires, see_other
from webapp.words import Tone

bp = Blueprint("testmail", __name__)

menu_entry(bp, "form", _l("Tools"), group=Group.SITE, order=40, covers=("send", "result"))

ONCE_A_SECOND = 1
NOW_AND_THEN = 10
NEVER = 0
"""Seconds between two looks at a test; it is over, or it takes a person."""


# ---- the form ----


class TestForm(Form):
    """Where a test goes, and by what."""

    to = Text(
        _l("Send To"),
        [filled(_l("Enter the address that the test is to reach."))],
        description=_l("Your own address, unless you change it."),
        limit=320,
    )
    via = Radios(
        _l("Connection"),
        (),
        description=_l("The test goes through this one only: no routing, no backup."),
    )
    html = BooleanField(
        _l("HTML"), description=_l("On: a designed mail with a text part. Off: plain text.")
    )


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why no test can be sent, and the way out."""

    text: str
    href: str = ""
    link: str = ""


@bp.get("/sites/<slug>/tools/test")
@requires(Right.SEND_TEST)
def form(slug: str) -> ResponseReturnValue:
    """Ask where to send a test."""
    found = known_choices()
    usable = [choice for choice in found if not choice.problem]
    asked = request.args.get("via", "")
    via = asked if asked in {choice.connection.uid for choice in usable} else ""
    first = usable[0].connection.uid if usable else ""
    made = a_form(usable, to=web.user().email, via=via or first, html=True)
    return form_page(made, found)


@bp.post("/sites/<slug>/tools/test")
@requires(Right.SEND_TEST)
def send(slug: str) -> ResponseReturnValue:
    """Store a test for the delivery worker, and go on to what becomes of it."""
    found = known_choices()
    usable = {choice.connection.uid: choice for choice in found if not choice.problem}
    form = a_form(list(usable.values()))
    if len(usable) == 1 and not form.via.data:
        form.via.data = next(iter(usable))
    if not is_valid(form) or not usable:
        return form_page(form, found), 422
    at = now()
    letter = Letter(
        choice=usable[form.via.data],
        site=g.site,
        to=str(form.to.data),
        by=web.user().name or web.user().email,
        is_html=form.html.data,
        language=i18n.HTML_LANG[web.language()],
        sent_at=at,
        sent_at_words=show.full_time(at),
    )
    try:
        queue_id = service.send(db(), letter, translated)
    except TooManyTests:
        return form_page(form, found, too_many=True), 429
    wake()
    return see_other(url_for("testmail.result", slug=slug, queue_id=queue_id))


def known_choices() -> list[Choice]:
    """The connections of the site in hand."""
    with db().read() as session:
        return service.choices(session, g.site)


def a_form(usable: list[Choice], **values: object) -> TestForm:
    """The form with the connections that it offers."""
    made = TestForm(**values)
    made.via.choices = choices((choice.connection.uid, choice.name) for choice in usable)
    return made


def is_valid(form: TestForm) -> bool:
    """Whether a test can be sent as it was asked for; says at each field why not."""
    valid: bool = form.validate()
    if form.to.data and not form.to.errors:
        try:
            form.to.data = check_email(form.to.data)
        except ValueError as error:
            refuse(form, "to", _(str(error)))
            return False
    return valid


def translated(sentence: str, **values: object) -> str:
    """In the language of whoever sends the test."""
    return str(_(sentence, **values))


def wake() -> None:
    """Tell the delivery worker."""
    waker = Waker(installation().settings.instance)
    waker.wake()
    waker.close()


def form_page(form: TestForm, found: list[Choice], *, too_many: bool = False) -> str:
    """The page, with the last test of the site below the form."""
    with db().read() as session:
        last = service.last_test(session, g.site)
    return render_template(
        "testmail/form.html",
        form=form,
        usable=[choice for choice in found if not choice.problem],
        trouble=trouble_of(found),
        is_silent=g.site.mode == Mode.DO_NOT_SEND,
        too_many=too_many,
        most=service.MOST_IN_A_MINUTE,
        last=last,
        last_word=last_word(last) if last else "",
    )


def trouble_of(found: list[Choice]) -> Trouble | None:
    """Why none of these can send; None when one can."""
    if any(not choice.problem for choice in found):
        return None
    text, link = _("This site has no connection yet."), _("Set up the connection")
    if found:
        text, link = _(found[0].problem), _("Open the settings")
    if not web.may(Right.EDIT_SETTINGS):
        return Trouble(text=text)
    return Trouble(text=text, href=settings_of(found[0].connection if found else None), link=link)


UNDER_WAY = N_("under way")
_LAST: dict[str, str] = {
    State.SENT: N_("accepted"),
    State.FAILED: N_("failed"),
    State.BLOCKED: N_("kept, not sent"),
    State.CANCELLED: N_("cancelled"),
    State.UNCERTAIN: N_("unclear"),
}


def last_word(last: Message) -> str:
    """How the last test ended, or that it has not yet."""
    return str(_(_LAST.get(last.state, UNDER_WAY)))


# ---- what becomes of it ----


@dataclass(frozen=True, kw_only=True)
class Way:
    """What a page does for a step: a link, a button that posts, or a text to copy."""

    label: str
    href: str = ""
    post: str = ""
    hidden: dict[str, str] = field(default_factory=dict)
    copies: bool = False
    """Copies the text for the administrator."""
    css: str = ""
    outside: bool = False
    """The link leads away from here."""


@dataclass(frozen=True, kw_only=True)
class ShownStep:
    """One numbered step, with its buttons."""

    text: str
    ways: tuple[Way, ...]


@dataclass(frozen=True, kw_only=True)
class ShownPart:
    """One line of "Who can put it right"."""

    icon: str
    label: str
    sentence: str
    on: bool


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A failure in the words of the page."""

    title: str
    cause: str
    words: str
    """The remote's own."""
    who: tuple[ShownPart, ...]
    steps: tuple[ShownStep, ...]
    again: Way | None
    """To test again, where none of the steps says it and the test does not leave by itself."""
    admin_message: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How it stands: a heading, and the sentence under it."""

    tone: Tone
    title: str
    text: str = ""


@bp.get("/sites/<slug>/tools/test/<queue_id>")
@requires(Right.SEND_TEST)
def result(slug: str, queue_id: str) -> ResponseReturnValue:
    """What became of a test, or how far it is."""
    if (plain := ids.plain(queue_id)) != queue_id:
        return see_other(url_for("testmail.result", slug=slug, queue_id=plain))
    at = now()
    with db().read() as session:
        test = service.find_test(session, installation().settings, g.site, queue_id, at)
        worker = delivers(session, at)
    if test is None:
        abort(404)
    failure = service.failure_of(test)
    follow = seconds_until_next_look(test)
    verdict = verdict_of(test, failure, has_worker=worker, at=at)
    return render_template(
        "testmail/result.html",
        test=test,
        row=test.mail.row,
        via=via_of(test),
        verdict=verdict,
        explained=explained_of(test, failure, at) if failure else None,
        follow=follow,
        state=state_of(test, verdict),
        log=service.debug_log(test, g.site, versions()) if shows_log(test) else "",
    )


def state_of(test: Test, verdict: Verdict) -> str:
    """Differs whenever the page does, apart from times that tick."""
    shown = f"{verdict} {test.phase} {len(test.mail.attempts)}"
    return f"{zlib.crc32(shown.encode()):08x}"


def shows_log(test: Test) -> bool:
    """Whether there is something to tell support, and whoever asks may read it."""
    is_fine = {Phase.WAITING, Phase.SENDING, Phase.SENT, Phase.KEPT}
    return web.may(Right.READ_BODY) and test.phase not in is_fine


def seconds_until_next_look(test: Test) -> int:
    """How soon the page looks again by itself; 0 once it is over, or waits for a person."""
    waiting = test.mail.row.waiting
    match test.phase:
        case Phase.WAITING | Phase.SENDING:
            slow = waiting is not None and waiting.until is not None
            return NOW_AND_THEN if slow else ONCE_A_SECOND
        case Phase.RETRYING:
            return NOW_AND_THEN
        case Phase.UNCLEAR:
            return NOW_AND_THEN if waiting is not None else NEVER
        case _:
            return NEVER


def via_of(test: Test) -> str:
    """What took the mail, or is to take it, in one word."""
    if is_linked(test.mailer):
        return provider_of(test.mailer).name
    return test.host or test.mail.row.via or _("the connection")


def versions() -> str:
    """The first line of a debug log."""
    dialect = db().reader.dialect
    found = dialect.server_version_info or ()
    number = ".".join(str(part) for part in found)
    name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(dialect.name, dialect.name)
    return f"Postroom {__version__}   Python {platform.python_version()}   {name} {number}".rstrip()


# ---- in words ----


def verdict_of(test: Test, failure: Failure | None, *, has_worker: bool, at: datetime) -> Verdict:
    """How it stands, in a heading and a sentence."""
    match test.phase:
        case Phase.WAITING | Phase.SENDING:
            return under_way(test, has_worker=has_worker)
        case Phase.SENT:
            return arrived(test)
        case Phase.FAILED:
            return Verdict(
                tone=Tone.BAD, title=_("The test mail was not sent"), text=tried(test, at)
            )
        case Phase.RETRYING:
            parts = (tried(test, at), again_by_itself(test))
            text = " ".join(filter(None, parts))
            return Verdict(
                tone=Tone.WARN, title=_("The test mail did not get through yet"), text=text
            )
        case Phase.STOPPED:
            return stopped(test, failure, at)
        case Phase.UNCLEAR:
            return Verdict(
                tone=Tone.WARN,
                title=_("Whether the test mail arrived is not known"),
                text=story.note(test.mail.row),
            )
        case Phase.KEPT:
            return Verdict(
                tone=Tone.HOLD,
                title=_("The test mail was kept, not sent"),
                text=story.note(test.mail.row),
            )


def under_way(test: Test, *, has_worker: bool) -> Verdict:
    """Next in line, on the network, or asked to wait."""
    waiting = test.mail.row.waiting
    if test.phase is Phase.WAITING and not has_worker:
        return Verdict(
            tone=Tone.WARN,
            title=_("Nothing delivers mail at the moment"),
            text=_(
                "No delivery process was seen for a minute. The test mail is kept and leaves once "
                "one runs: “postroom serve” starts it with the rest, “postroom deliver” alone."
            ),
        )
    if waiting is not None and waiting.reason is not Reason.TURN:
        text = story.waits(waiting, test.mail.row.attempts)
        if waiting.reason is Reason.ROOM and waiting.until is not None:
            next_at = _("Next at %(time)s.", time=story.when(waiting.until))
            text = f"{text} {next_at}"
        return Verdict(tone=Tone.INFO, title=_("The test mail waits"), text=text)
    return Verdict(tone=Tone.INFO, title=_("Handing over to %(via)s…", via=via_of(test)))


def arrived(test: Test) -> Verdict:
    """The remote took responsibility."""
    row = test.mail.row
    if is_linked(test.mailer):
        title = _("The test mail is with %(provider)s", provider=provider_of(test.mailer).name)
    else:
        title = _("The test mail was accepted by %(host)s", host=via_of(test))
    span = story.length((row.finished_at or row.accepted_at) - row.accepted_at)
    text = _(
        "Handed over after %(time)s, from %(sender)s. Look into the inbox of %(address)s, and "
        "among its junk mail: a few minutes are normal.",
        time=span,
        sender=test.sender,
        address=test.to,
    )
    return Verdict(tone=Tone.GOOD, title=title, text=text)


def stopped(test: Test, failure: Failure | None, at: datetime) -> Verdict:
    """It leaves once somebody has put something right."""
    title = _("The test mail cannot leave")
    later = _("It is kept, and leaves by itself once that is put right.")
    if failure is None:
        text = _("The connection it was meant for is gone, or no longer linked.")
        return Verdict(tone=Tone.BAD, title=title, text=f"{text} {later}")
    if test.last is not None:
        return Verdict(tone=Tone.BAD, title=title, text=f"{tried(test, at)} {later}")
    waiting = test.mail.row.waiting
    since = waiting.since if waiting else None
    text = _("Nothing leaves by this connection since %(time)s.", time=story.when(since or at))
    return Verdict(tone=Tone.BAD, title=title, text=f"{text} {later}")


_TRIED: dict[Outcome, str] = {
    Outcome.PERMANENT: N_("%(via)s refused it after %(span)s, at %(time)s."),
    Outcome.NEEDS_REAUTHORISATION: N_("%(via)s refused it after %(span)s, at %(time)s."),
}
_TRIED_OTHERWISE = N_("%(via)s did not take it: tried for %(span)s, at %(time)s.")


def tried(test: Test, at: datetime) -> str:
    """What the last try met, how long after it began, and when."""
    last = test.last
    if last is None or last.finished_at is None:
        return ""
    today = show.date(last.finished_at) == show.date(at)
    ended = show.clock_time(last.finished_at) if today else show.full_time(last.finished_at)
    sentence = _TRIED.get(last.outcome, _TRIED_OTHERWISE)
    name = last.connection or via_of(test)
    span = story.length(last.finished_at - last.started_at)
    return str(_(sentence, via=name, span=span, time=ended))


def again_by_itself(test: Test) -> str:
    """When it is tried again without anybody doing anything."""
    waiting = test.mail.row.waiting
    if waiting is None or waiting.until is None:
        return ""
    return str(_("Next try by itself at %(time)s.", time=story.when(waiting.until)))


# ---- why, and what to do ----

_ICONS = {
    Who.YOU: "user",
    Who.ADMIN: "shield",
    Who.MICROSOFT: "server",
    Who.WORKSPACE_ADMIN: "shield",
    Who.GOOGLE: "server",
    Who.PROVIDER: "server",
    Who.OPERATOR: "gauge",
}


_LEAVES_BY_ITSELF = frozenset({Phase.STOPPED, Phase.RETRYING})


def explained_of(test: Test, failure: Failure, at: datetime) -> Explained:
    """The explanation with everything that is known of this test."""
    plain = service.explanation_of(test, failure)
    app = test.link.app if test.link else None
    found = fitted(
        plain,
        keeper=keeper_of(app) if app else None,
        personal=test.link is not None and test.link.personal,
    )
    waiting = test.mail.row.waiting
    until = story.when(waiting.until) if waiting and waiting.until else ""
    values = values_for(service.known_of(test, until), translated)

    is_asked = any(step.action is Action.TEST_AGAIN for step in found.steps)

    def said(sentence: str) -> str:
        return str(_(sentence, **values))

    return Explained(
        title=said(found.title),
        cause=said(found.cause),
        words=story.said(failure.code, failure.words),
        who=tuple(
            ShownPart(
                icon=_ICONS[part.who],
                label=_(WHO_LABELS[part.who]),
                sentence=said(part.sentence),
                on=part.on,
            )
            for part in three_first(found.who)
        ),
        steps=shown_steps(test, found, said, about_app=service.is_about_app(plain)),
        again=None if is_asked or test.phase in _LEAVES_BY_ITSELF else again_of(test),
        admin_message=said(found.admin_message) if found.admin_message else "",
    )


def three_first(who: Sequence[Part]) -> Sequence[Part]:
    """Three stand beside one another; of four, whoever has nothing to do comes last."""
    return who if len(who) <= 3 else sorted(who, key=lambda part: not part.on)


def shown_steps(
    test: Test, found: Explanation, said: Callable[[str], str], *, about_app: bool
) -> tuple[ShownStep, ...]:
    """The steps with their buttons; the first thing to press stands out, if anything needs to be
    pressed: what was done already has no button."""
    shown: list[ShownStep] = []
    has_primary = found.retry
    is_done = sends_as_account(test)
    for step in found.steps:
        ways = ways_of(test, step.action, found, about_app=about_app)
        can_stand_out = (
            ways
            and not ways[0].copies
            and (is_done if step.action is Action.TEST_AGAIN else not is_done)
        )
        if can_stand_out and not has_primary:
            ways = (replace(ways[0], css="primary"), *ways[1:])
            has_primary = True
        shown.append(ShownStep(text=said(step.text), ways=ways))
    return tuple(shown)


def ways_of(test: Test, action: Action, found: Explanation, *, about_app: bool) -> tuple[Way, ...]:
    """What this page can do for a step, for whoever asks."""
    has_message = bool(found.admin_message)
    copy = Way(label=_("Copy a message for the admin"), copies=True)
    match action:
        case Action.SET_FROM:
            return only(set_from(test))
        case Action.REAUTHORISE:
            label = _("Link it") if test.link and not test.link.is_linked else _("Re-authorize")
            back = web.page_address()
            return only(at_the_link(test, "microsoft.link", label, css="slate", back=back))
        case Action.ASK_ADMIN:
            asked = at_the_link(test, "microsoft.ask_admin", _("Get the consent link"))
            return (*only(asked), *((copy,) if has_message else ()))
        case Action.COPY_ADMIN_MESSAGE:
            return (copy,) if has_message else ()
        case Action.OPEN_CONNECTION:
            return only(open_shared_app(test) if about_app else open_connection(test))
        case Action.OPEN_APP:
            return only(open_app(test))
        case Action.TEST_AGAIN:
            return (again_of(test),)
        case _:
            return ()


def only(way: Way | None) -> tuple[Way, ...]:
    """A way that may not be there."""
    return (way,) if way else ()


def set_from(test: Test) -> Way | None:
    """Send as the linked account."""
    mailbox = test.link.mailbox if test.link else None
    if mailbox is None or mailbox.address.casefold() == test.sender.casefold():
        return None
    if sends_as_account(test):
        return None
    label = _("Set From Email to %(address)s", address=mailbox.address)
    way = at_the_link(test, "microsoft.send_as_account", label, back=web.page_address())
    return replace(way, href="", post=way.href) if way else None


def sends_as_account(test: Test) -> bool:
    """Whether the From Email was set to the linked account after this test failed."""
    mailbox = test.link.mailbox if test.link else None
    if mailbox is None or test.connection is None:
        return False
    account = mailbox.address.casefold()
    return test.connection.from_email.casefold() == account != test.sender.casefold()


def at_the_link(
    test: Test, endpoint: str, label: str, *, css: str = "", back: str = ""
) -> Way | None:
    """A page about the connection's link; `back` is where it leads afterwards."""
    if test.connection is None or not may_edit(test.connection):
        return None
    address = url_for(
        endpoint, slug=g.site.slug, connection_uid=test.connection.uid, next=back or None
    )
    return Way(label=label, href=address, css=css)


def may_edit(connection: Connection | None) -> bool:
    """Whether whoever asks may change its settings: shared ones are the admins'."""
    shared = connection is not None and is_shared(connection)
    return web.may(Right.SYSTEM if shared else Right.EDIT_SETTINGS)


def open_connection(test: Test) -> Way | None:
    """The settings of the connection."""
    if not may_edit(test.connection):
        return None
    return Way(label=_("Open the settings"), href=settings_of(test.connection))


def settings_of(connection: Connection | None) -> str:
    """Where it is edited; where it is gone, what the site sends with now."""
    if connection is None:
        return url_for("connections.general", slug=g.site.slug)
    return page_of(g.site, connection)


def open_shared_app(test: Test) -> Way | None:
    """The page where the registration is kept: that of all shared ones, or the connection's."""
    app = test.link.app if test.link else None
    if app is None or app.connection_id is not None:
        return open_connection(test)
    if not web.may(Right.SYSTEM):
        return None
    if app.provider == GOOGLE:
        label = _("Open it under Google registrations")
    else:
        label = _("Open it under Microsoft apps")
    return Way(label=label, href=registration_page(app))


def open_app(test: Test) -> Way | None:
    """The registration where the provider keeps it, for whoever keeps it."""
    app = test.link.app if test.link else None
    if app is None:
        return open_connection(test)
    is_theirs = web.may(Right.EDIT_SETTINGS if app.connection_id is not None else Right.SYSTEM)
    if app.provider == GOOGLE:
        page = CLIENTS_PAGE
    else:
        page = guide_of(installation().settings, app.cloud, app.client_id).page("Overview")
    if not is_theirs or not page:
        return None
    return Way(label=_("Open the registration"), href=page, outside=True)


def again_of(test: Test) -> Way:
    """Send the same test once more."""
    hidden = {"to": test.to, "via": test.connection.uid if test.connection else ""}
    if test.is_html:
        hidden["html"] = "y"
    return Way(
        label=_("Test again now"),
        post=url_for("testmail.send", slug=g.site.slug),
        hidden=hidden,
        css="slate",
    )
