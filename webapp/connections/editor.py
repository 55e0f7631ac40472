"""What the pages of a connection share: the form as it is stored, saving it, showing it."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

from flask import current_app, g
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from jinja2 import Template
from sqlalchemy.orm import Session

from webapp import web
from webapp.connections import service
from webapp.connections.accounts import Accounts
from webapp.connections.forms import (
    DOTS,
    LIMITS,
    ConnectionForm,
    LimitsForm,
    connection_form,
    kinds,
)
from webapp.connections.gmail import GoogleAccounts
from webapp.connections.models import Connection
from webapp.connections.outlook import OutlookAccounts
from webapp.connections.service import FormValues, PrivateHost
from webapp.connections.uses import Readiness
from webapp.delivery import replan
from webapp.delivery.depth import Depth, depths
from webapp.delivery.lanes import Limits
from webapp.delivery.models import Lane
from webapp.delivery.replan import Replanned
from webapp.delivery.wake import Waker
from webapp.fields import N_, FieldErrors
from webapp.mailers import registry
from webapp.maillog.service import connection_name
from webapp.microsoft import service as microsoft
from webapp.microsoft.models import Mailbox
from webapp.show import number
from webapp.sites.banners import ends_passwords
from webapp.sites.models import Site
from webapp.web import actor, db, installation, now, tell
from webapp.words import Status, Tone

ACCOUNTS: Mapping[str, Accounts] = {
    known.slug: known for known in (OutlookAccounts(), GoogleAccounts()) if known.slug in registry()
}
"""By slug, how the accounts of the mailers that are linked are shown and saved."""

NO_NICKNAME = N_("Give it a name by which people choose it.")

STATUS = {
    Readiness.READY: Status(icon="delivered", tone=Tone.GOOD, word=N_("Ready")),
    Readiness.INCOMPLETE: Status(icon="soon", tone=Tone.WARN, word=N_("Not complete")),
    Readiness.NOT_AUTHORISED: Status(icon="soon", tone=Tone.WARN, word=N_("Not authorized")),
    Readiness.NEEDS_REAUTHORISATION: Status(
        icon="failed", tone=Tone.BAD, word=N_("Needs re-authorization")
    ),
    Readiness.FAILING: Status(icon="failed", tone=Tone.BAD, word=N_("Failing")),
    Readiness.PAUSED: Status(icon="held", tone=Tone.HOLD, word=N_("Paused")),
}

Find = Callable[[Session, Site], Connection | None]
Finish = Callable[[Session, Site, Connection, bool], Replanned]
"""What follows a save in the same unit of work: with the site, what was saved, and whether it has
just become able to send, or unable."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a save brought about."""

    connection: Connection
    mailbox: Mailbox | None
    """Of the link in use, where the mailer needs one."""
    waiting: int
    """Mails that stand with it."""
    moved: Replanned = field(default_factory=Replanned)
    """Mails that were planned anew."""
    about_secret: str = ""
    """What became of a second secret of the own registration."""


class Refused(Exception):
    """What was entered cannot be used: of the connection, and of its registration."""

    def __init__(self, connection: Mapping[str, str], app: Mapping[str, str]) -> None:
        super().__init__()
        self.connection = FieldErrors(connection)
        self.app = FieldErrors(app)


# ---- the form ----


def form_of(connection: Connection | None, *, asks_nickname: bool = False) -> ConnectionForm:
    """The form of a connection of the site in hand, or of a new one; filled with what was sent if
    anything was."""
    with db().read() as session:
        links = {slug: known.links(session, connection) for slug, known in ACCOUNTS.items()}
        mailboxes = {slug: link.mailbox for slug, link in links.items()}
        limits = limits_of(session, connection, mailboxes)
    accounts = {
        slug: (links[slug], known.app_form(links[slug])) for slug, known in ACCOUNTS.items()
    }
    return connection_form(g.site, connection, limits, accounts, asks_nickname=asks_nickname)


def limits_of(
    session: Session, connection: Connection | None, mailboxes: Mapping[str, Mailbox | None]
) -> dict[str, Mapping[str, int | None]]:
    """The stored limits, by mailer: a login's lane, and the lane of the linked mailbox."""
    found: dict[str, Mapping[str, int | None]] = {}
    lanes = {slug: mailbox.lane_id if mailbox else None for slug, mailbox in mailboxes.items()}
    if connection is not None and connection.mailer not in mailboxes:
        lanes[connection.mailer] = connection.lane_id
    for slug, lane_id in lanes.items():
        lane = session.get(Lane, lane_id) if lane_id else None
        if lane is not None:
            found[slug] = {name: getattr(lane, name) for name in LIMITS}
    return found


# ---- saving ----


def take_account(form: ConnectionForm, then: str) -> None:
    """Where the button says so, put the address of the linked account into From Email, or another
    one by which it may send."""
    mailbox = form.account.standing.mailbox if form.account else None
    if mailbox is None:
        return
    chosen = then.removeprefix("from-alias:")
    if then == "from-account":
        form.block.from_email.data = mailbox.address
    elif chosen != then and chosen in mailbox.addresses:
        form.block.from_email.data = chosen


def save(
    form: ConnectionForm,
    *,
    find: Find,
    finish: Finish,
    signs_in: bool = False,
    shares: bool = False,
) -> Saved:
    """Store what was entered, in one unit of work; with `signs_in` nothing may be missing for it.

    `find` reads the connection again, under the lock; `shares` lets whoever acts change one that
    every site may choose. Raises Refused.
    """
    try:
        values = form.values()
    except FieldErrors as error:
        raise Refused(error.errors, {}) from error
    accounts = ACCOUNTS.get(form.slug)
    problems = private_host(values, form.connection)
    if form.asks_nickname and not values.nickname.strip():
        problems["nickname"] = NO_NICKNAME
    if accounts is not None:
        problems |= accounts.unknown_app(form)
    limits: Mapping[str, int | None] = {}
    try:
        limits = form.limit_values()
    except FieldErrors as error:
        problems |= error.errors
    proof = accounts.proof(form) if accounts and form.brings_app else None
    with db().write() as session:
        site = session.get_one(Site, g.site.id)
        before = find(session, site)
        for app in microsoft.own_apps(session, before):
            microsoft.hold_app(session, app.id)  # before the connection, as everybody does
        shown = microsoft.mailbox_of(session, before) if before else None
        had_lane = before is not None and before.lane_id is not None
        connection = None
        try:
            connection = service.save_connection(
                session,
                installation().keyring,
                site,
                before,
                values,
                shares=shares,
                actor=actor(),
                now=now(),
            )
        except FieldErrors as error:
            problems = {**error.errors, **problems}
        app_problems: Mapping[str, str] = {}
        if accounts and form.brings_app:
            app_problems = accounts.save_app(
                session, before, connection, form, proof, signs_in=signs_in
            )
        if problems or app_problems or connection is None:
            raise Refused(problems, app_problems)
        if accounts is not None:
            saved = with_link(session, accounts, connection, shown, limits)
            about_secret = accounts.told(session, connection, proof)
            saved = replace(saved, about_secret=about_secret)
        else:
            waiting = spread(session, connection, Limits(**limits))
            saved = Saved(connection=connection, mailbox=None, waiting=waiting)
        turned = had_lane != (connection.lane_id is not None)
        return replace(saved, moved=finish(session, site, connection, turned))


def with_link(
    session: Session,
    accounts: Accounts,
    connection: Connection,
    shown: Mailbox | None,
    limits: Mapping[str, int | None],
) -> Saved:
    """Use the link that belongs to the registration in use; `shown` is the mailbox whose limits
    were on the page. Raises Refused for a From that the account can never use."""
    waiting = accounts.use(session, connection)
    if shown is not None and limits:
        set_limits(session, shown, limits)
    mailbox = microsoft.mailbox_of(session, connection)
    never = accounts.never_sends(connection, mailbox) if mailbox is not None else ""
    if never:
        raise Refused({"from_email": never}, {})
    return Saved(connection=connection, mailbox=mailbox, waiting=waiting)


def set_limits(session: Session, mailbox: Mailbox, limits: Mapping[str, int | None]) -> None:
    """The pace of a mailbox, for every connection that sends by it."""
    lane = session.get(Lane, mailbox.lane_id, with_for_update=True) if mailbox.lane_id else None
    if lane is not None:
        for name, value in limits.items():
            setattr(lane, name, value)


def private_host(values: FormValues, connection: Connection | None) -> dict[str, str]:
    """What is wrong with a new host; asks the network, so no unit of work is open."""
    host = str(values.settings.get("host") or "")
    stored = connection.settings.get(values.mailer, {}).get("host") if connection else None
    if web.user().is_admin or not host or host == stored:
        return {}
    try:
        service.check_host(host)
    except PrivateHost as error:
        return {"host": str(error)}
    return {}


def spread(session: Session, connection: Connection, limits: Limits) -> int:
    """Tell the ledger what was saved; returns how many waiting mails leave by it."""
    mailer = service.load_mailer(connection, installation().keyring)
    connection.grant_id = None  # the link is kept, and is found again when it is needed
    return replan.connection_saved(
        session, connection, lane_key=mailer.lane_key(), limits=limits, now=now()
    )


def lead_sites(session: Session, site: Site, connection: Connection, turned: bool) -> Replanned:
    """After a save, plan the mail of every site that sends with it; what became of this site's."""
    here = Replanned()
    for one in service.sites_sending_by(session, connection) if turned else ():
        moved = replan.routing_changed(session, one, now())
        here = moved if one.id == site.id else here
    return here


def wake() -> None:
    """Tell the worker that mail may go now."""
    with closing(Waker(installation().settings.instance)) as waker:
        waker.wake()


def told_moved(moved: Replanned) -> str:
    """How many waiting mails now leave otherwise, in sentences."""
    told = [
        ngettext(
            "%(num)s waiting mail now leaves by %(name)s.",
            "%(num)s waiting mails now leave by %(name)s.",
            count,
            name=name,
        )
        for name, count in moved.by
    ]
    if moved.left:
        told.append(
            ngettext(
                "%(num)s more is looked at in a moment.",
                "%(num)s more are looked at in a moment.",
                moved.left,
            )
        )
    return " ".join(told)


def sign_in_address(form: ConnectionForm, saved: Saved, back: str = "") -> str:
    """Where the account signs in, and comes back to the settings or to `back`; empty where the
    page itself says what is missing for it."""
    accounts = ACCOUNTS.get(form.slug)
    if accounts is None or form.account is None or not accounts.may_sign_in(form.account):
        return ""
    return accounts.sign_in_address(g.site, saved.connection, back)


def tell_saved(saved: Saved) -> None:
    """The notice after a save; it warns of a From that needs a right at the provider."""
    connection = saved.connection
    own = connection_name(connection.nickname, connection.mailer)
    others = tuple((name, count) for name, count in saved.moved.by if name != own)
    elsewhere = Replanned(by=others)
    mails = saved.waiting + saved.moved.moved + saved.moved.left - sum(n for _name, n in others)
    if connection.lane_id is None:
        text = ngettext(
            "%(num)s mail waits until it is linked.",
            "%(num)s mails wait until it is linked.",
            mails,
        )
    else:
        text = ngettext(
            "%(num)s waiting mail now leaves by it.",
            "%(num)s waiting mails now leave by it.",
            mails,
        )
    told = list(filter(None, (text if mails else "", told_moved(elsewhere), saved.about_secret)))
    strong = _("Settings saved.")
    accounts = ACCOUNTS.get(connection.mailer)
    right = ""
    if accounts is not None and saved.mailbox is not None:
        right = accounts.needs_right(connection, saved.mailbox)
    if not right:
        tell(Tone.GOOD, " ".join(told), strong=strong)
        return
    text = " ".join([right, *told])
    tell(Tone.WARN, text, strong=strong, href="#from_email", link=_("Go to the field"))


# ---- showing ----


def context(form: ConnectionForm, here: str) -> dict[str, object]:
    """What `connections/editor.html` is filled with; `here` is the address of the page."""
    return {
        "form": form,
        "here": here,
        "is_primary": is_primary(form.connection),
        "kinds": kinds(),
        "blocks": blocks(),
        "linked": {slug: known.context(form) for slug, known in ACCOUNTS.items()},
        "dots": DOTS,
        "microsoft": is_microsoft(form.connection),
        "paces": {slug: paces(limits) for slug, limits in form.limits.items()},
        "usual": {slug: usual_pace(kind.usual_limits) for slug, kind in kinds().items()},
        "depth": depth_of(form.connection),
    }


def is_primary(connection: Connection | None) -> bool:
    """Whether the site in hand sends with it."""
    return connection is not None and connection.id == g.site.primary_connection_id


def blocks() -> dict[str, Template]:
    """The template of each mailer's part of the page."""
    env = current_app.jinja_env
    return {
        slug: env.select_template(
            [f"connections/mailers/{slug}.html", "connections/mailers/plain.html"]
        )
        for slug in kinds()
    }


def depth_of(connection: Connection | None) -> Depth | None:
    """What waits on its lane; None where it has none yet."""
    if connection is None or connection.lane_id is None:
        return None
    with db().read() as session:
        return depths(session, [connection.lane_id], now()).get(connection.lane_id)


def is_microsoft(connection: Connection | None) -> bool:
    """Whether it signs in to Microsoft with a password."""
    settings = connection.settings.get(connection.mailer, {}) if connection else {}
    return ends_passwords(str(settings.get("host", "")))


PACES = {
    "concurrency": _l("%(n)s at a time"),
    "per_minute": _l("%(n)s a minute"),
    "per_hour": _l("%(n)s an hour"),
    "per_day": _l("%(n)s a day"),
    "recipients_per_day": _l("%(n)s recipients a day"),
}


def paces(limits: LimitsForm) -> list[str]:
    """The limits in words; empty when there are none."""
    typed = {name: limits[name].data for name in LIMITS}
    return [pace(name, str(text)) for name, text in typed.items() if text]


def usual_pace(usual: Mapping[str, int]) -> list[str]:
    """The limits that a mailbox begins with, in words."""
    return [pace(name, str(value)) for name, value in usual.items()]


def pace(name: str, text: str) -> str:
    """One limit in words; what is no number stays as it was typed."""
    shown = number(int(text)) if text.isascii() and text.isdigit() else text
    return str(PACES[name]) % {"n": shown}
