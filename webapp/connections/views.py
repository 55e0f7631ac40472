"""Settings > General: what a site sends with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import sqlalchemy as sa
from flask import Blueprint, g, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from sqlalchemy.orm import Session

from webapp import ids, web
from webapp.accounts.models import User
from webapp.accounts.rights import Right
from webapp.connections import service
from webapp.connections.forms import (
    DOTS,
    LIMITS,
    OUTLOOK,
    ConnectionForm,
    LimitsForm,
    Links,
    connection_form,
    kinds,
)
from webapp.connections.models import Connection
from webapp.connections.service import FormValues, PrivateHost
from webapp.delivery import replan
from webapp.delivery.depth import Depth, depths
from webapp.delivery.lanes import Limits
from webapp.delivery.models import Lane
from webapp.explain.match import explain
from webapp.explain.model import WHO_LABELS, Explanation, values_for
from webapp.explain.parts import fitted
from webapp.fields import N_, FieldErrors
from webapp.mailers.outlook import OutlookMailer
from webapp.microsoft import apps
from webapp.microsoft import link as flows
from webapp.microsoft import service as microsoft
from webapp.microsoft.clouds import Segment, clouds, is_personal
from webapp.microsoft.link import ConsentRequest
from webapp.microsoft.models import Consent, Link, Mailbox, OAuthApp
from webapp.microsoft.standing import LinkState, Standing, is_secure, link_standing
from webapp.microsoft.tokens import Proof
from webapp.show import number
from webapp.sites.models import Site
from webapp.web import Group, actor, db, installation, menu_entry, now, requires, see_other, tell
from webapp.words import Tone

bp = Blueprint("connections", __name__)

menu_entry(bp, "general", _l("General"), group=Group.SETTINGS, order=10, covers=("save_general",))

MICROSOFT = ("live.com", "hotmail.com", "outlook.com", "office.com", "office365.com")
"""Last two labels of hosts where password sign-in for SMTP is being switched off."""

PERSONAL_FROM = N_(
    "A personal account sends as its own addresses only. Use one of them, or link a Microsoft 365 "
    "account that has this domain."
)
ASKABLE = frozenset(
    {
        LinkState.READY,
        LinkState.WAITING_FOR_ADMIN,
        LinkState.ADMIN_AGREED,
        LinkState.NEEDS_REAUTHORISATION,
    }
)
"""Where an administrator's consent may be what is missing."""

NO_ID = N_("Enter the Application ID: Microsoft asks for it at the sign-in.")
NO_SECRET = N_("Enter the Application Password: Microsoft asks for it at the sign-in.")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a save brought about."""

    connection: Connection
    mailbox: Mailbox | None
    """Of the link in use, where the mailer needs one."""
    waiting: int
    about_secret: str = ""
    """What became of a second secret of the own registration."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One of the two ways to link, with the class by which the switch shows it."""

    css: str
    standing: Standing
    can_ask: bool = False
    request: ConsentRequest | None = None
    """The question to an administrator that is out, or answered."""
    message: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the question still counts: an administrator has not answered, and nobody has
        linked a mailbox since it was asked."""
        if self.request is None or self.request.outcome != Consent.WAITING:
            return False
        link = self.standing.link
        return (
            self.standing.state != LinkState.LINKED
            or link is None
            or self.request.asked_at > link.linked_at
        )


@bp.get("/sites/<slug>/settings/general")
@requires(Right.EDIT_SETTINGS)
def general(slug: str) -> ResponseReturnValue:
    """The primary connection as it is stored."""
    return general_page(stored_form())


@bp.post("/sites/<slug>/settings/general")
@requires(Right.EDIT_SETTINGS)
def save_general(slug: str) -> ResponseReturnValue:
    """Save the primary connection, and move the mail that waits; then sign in, where asked to."""
    form = stored_form()
    then = request.form.get("then", "")
    if then.startswith("remove:"):
        return general_page(form)
    if then == "from-account" and form.standing.mailbox is not None:
        form.block.from_email.data = form.standing.mailbox.address
    try:
        saved = save(form, signs_in=then == "authorize")
    except Refused as refused:
        form.show(refused.connection)
        form.show_app(refused.app)
        return general_page(form), 422
    if then == "authorize" and form.slug == OUTLOOK and may_sign_in(form):
        address = url_for("microsoft.link", slug=slug, connection_uid=saved.connection.uid)
        return see_other(address)
    tell_saved(saved)
    return see_other(url_for("connections.general", slug=slug))


def may_sign_in(form: ConnectionForm) -> bool:
    """Whether Microsoft can be asked, and sends people back; the page says why not."""
    has_app = form.brings_app or microsoft.is_complete(form.links.shared.app)
    return has_app and is_secure(installation().settings)


def tell_saved(saved: Saved) -> None:
    """The notice after a save; it warns of a From that needs a right at Microsoft."""
    if saved.connection.lane_id is None:
        text = ngettext(
            "%(num)s mail waits until it is linked.",
            "%(num)s mails wait until it is linked.",
            saved.waiting,
        )
    else:
        text = ngettext(
            "%(num)s waiting mail now leaves by it.",
            "%(num)s waiting mails now leave by it.",
            saved.waiting,
        )
    told = list(filter(None, (text if saved.waiting else "", saved.about_secret)))
    address, strong = saved.connection.from_email, _("Settings saved.")
    if saved.mailbox is None or not is_foreign(address, saved.mailbox):
        tell(Tone.GOOD, " ".join(told), strong=strong)
        return
    right = _(
        "%(account)s sends as %(from_email)s only with an alias or the right Send As at Microsoft.",
        account=saved.mailbox.address,
        from_email=address,
    )
    text = " ".join([right, *told])
    tell(Tone.WARN, text, strong=strong, href="#from_email", link=_("Go to the field"))


def is_foreign(address: str, mailbox: Mailbox) -> bool:
    """Whether it is an address that the account is not known to have."""
    known = {one.casefold() for one in mailbox.addresses}
    return bool(address) and address.casefold() not in known


def stored_form() -> ConnectionForm:
    """The form of the site's own primary connection, filled with what was sent if anything was."""
    with db().read() as session:
        connection = own_primary(session, g.site)
        links = links_of(session, connection)
        limits = limits_of(session, connection, links.mailbox)
    return connection_form(g.site, connection, limits, links, clouds(installation().settings))


def links_of(session: Session, connection: Connection | None) -> Links:
    """How the connection stands with a shared registration, and with its own."""
    settings, at = installation().settings, now()
    offered = microsoft.shared_apps(session)
    shared = shared_app_shown(session, connection, offered)
    own = microsoft.own_app(session, connection)
    found = {
        True: link_standing(session, settings, connection, shared, one_click=True, now=at),
        False: link_standing(session, settings, connection, own, one_click=False, now=at),
    }
    used = None
    if connection is not None and connection.mailer == OUTLOOK:
        used = found[bool(connection.settings.get(OUTLOOK, {}).get("one_click", True))]
    return Links(
        shared=found[True],
        own=found[False],
        apps=tuple(offered),
        used=used,
        mailbox=microsoft.mailbox_of(session, connection) if connection else None,
    )


def shared_app_shown(
    session: Session, connection: Connection | None, offered: list[OAuthApp]
) -> OAuthApp | None:
    """The shared registration that the page is about: the one just chosen, the stored one, the
    one that it is linked by, or the first."""
    by_uid = {app.uid: app for app in offered}
    chosen = by_uid.get(request.form.get(f"{OUTLOOK}-shared_app", ""))
    stored = microsoft.shared_app_of(session, connection)
    if chosen or stored or connection is None:
        return chosen or stored or next(iter(offered), None)
    linked = set(session.scalars(sa.select(Link.app_id).where(Link.connection_id == connection.id)))
    return next((app for app in offered if app.id in linked), next(iter(offered), None))


def limits_of(
    session: Session, connection: Connection | None, mailbox: Mailbox | None
) -> dict[str, Mapping[str, int | None]]:
    """The stored limits, by mailer: a login's lane, and the lane of the linked mailbox."""
    found: dict[str, Mapping[str, int | None]] = {}
    lanes = {OUTLOOK: mailbox.lane_id if mailbox else None}
    if connection is not None and connection.mailer != OUTLOOK:
        lanes[connection.mailer] = connection.lane_id
    for slug, lane_id in lanes.items():
        lane = session.get(Lane, lane_id) if lane_id else None
        if lane is not None:
            found[slug] = {name: getattr(lane, name) for name in LIMITS}
    return found


def own_primary(session: Session, site: Site) -> Connection | None:
    """The primary connection, unless it is one that other sites use too."""
    found = service.primary_connection(session, site)
    return found if found is not None and found.site_id == site.id else None


class Refused(Exception):
    """What was entered cannot be used: of the connection, and of its registration."""

    def __init__(self, connection: Mapping[str, str], app: Mapping[str, str]) -> None:
        super().__init__()
        self.connection = FieldErrors(connection)
        self.app = FieldErrors(app)


def save(form: ConnectionForm, *, signs_in: bool = False) -> Saved:
    """Store what was entered, in one unit of work; with `signs_in` nothing may be missing for it.

    Raises Refused.
    """
    try:
        values = form.values()
    except FieldErrors as error:
        raise Refused(error.errors, {}) from error
    problems = private_host(values, form.connection) | unknown_app(form)
    limits: Mapping[str, int | None] = {}
    try:
        limits = form.limit_values()
    except FieldErrors as error:
        problems |= error.errors
    proof = apps.proof_of(form.links.own.app, form.app_values()) if form.brings_app else None
    with db().write() as session:
        site = session.get_one(Site, g.site.id)
        before = own_primary(session, site)
        app = microsoft.own_app(session, before)
        if app is not None:
            microsoft.hold_app(session, app.id)  # before the connection, as everybody does
        shown = microsoft.mailbox_of(session, before) if before else None
        connection = None
        try:
            connection = service.save_connection(
                session, installation().keyring, site, before, values, actor=actor(), now=now()
            )
        except FieldErrors as error:
            problems = {**error.errors, **problems}
        app_problems = (
            save_app(session, before, connection, form, proof, signs_in) if form.brings_app else {}
        )
        if problems or app_problems or connection is None:
            raise Refused(problems, app_problems)
        service.set_primary(session, site, connection, actor=actor(), now=now())
        if form.slug == OUTLOOK:
            saved = with_link(session, site, connection, shown, limits)
            own = microsoft.own_app(session, connection)
            told = apps.about_proof(session, own, proof) if own is not None else ""
            return replace(saved, about_secret=told)
        waiting = spread(session, site, connection, Limits(**limits))
        return Saved(connection=connection, mailbox=None, waiting=waiting)


def unknown_app(form: ConnectionForm) -> dict[str, str]:
    """What is wrong with the chosen shared registration."""
    chosen = form.mailers[OUTLOOK].shared_app.data
    if form.slug != OUTLOOK or not form.one_click or not chosen:
        return {}
    known = {app.uid for app in form.links.apps}
    return {} if chosen in known else {"shared_app": N_("Choose one of the values offered.")}


def save_app(
    session: Session,
    before: Connection | None,
    saved: Connection | None,
    form: ConnectionForm,
    proof: Proof | None,
    signs_in: bool,
) -> Mapping[str, str]:
    """Store the registration that the connection brings; returns what is wrong with it.

    It is checked even where the connection was refused, so that all is said at once: the unit of
    work is thrown away then.
    """
    stored = form.links.own.app
    try:
        with apps.refusing(proof):
            app = microsoft.save_app(
                session,
                installation().keyring,
                microsoft.own_app(session, before),
                form.app_values(),
                clouds=clouds(installation().settings),
                connection=saved or before or scratch(session),
                actor=actor(),
                now=now(),
            )
    except FieldErrors as error:
        return error.errors
    if stored is not None:
        apps.succeed(session, app, stored, proof)
    if not signs_in:
        return {}
    needed = {
        "client_id": (bool(app.client_id), NO_ID),
        "client_secret": (bool(app.secret), NO_SECRET),
    }
    return {name: sentence for name, (there, sentence) in needed.items() if not there}


def scratch(session: Session) -> Connection:
    """A connection that lasts as long as this unit of work, which is thrown away."""
    at = now()
    made = Connection(uid=ids.short_id(), site_id=g.site.id, created_at=at, updated_at=at)
    session.add(made)
    session.flush()
    return made


def with_link(
    session: Session,
    site: Site,
    connection: Connection,
    shown: Mailbox | None,
    limits: Mapping[str, int | None],
) -> Saved:
    """Use the link that belongs to the registration in use; `shown` is the mailbox whose limits
    were on the page. Raises Refused for a From that the account can never use."""
    waiting = microsoft.use_app(session, site, connection, now())
    if shown is not None and limits:
        set_limits(session, shown, limits)
    mailbox = microsoft.mailbox_of(session, connection)
    if mailbox is not None and never_sends(mailbox, connection):
        raise Refused({"from_email": PERSONAL_FROM}, {})
    return Saved(connection=connection, mailbox=mailbox, waiting=waiting)


def never_sends(mailbox: Mailbox, connection: Connection) -> bool:
    """Whether its From Email can never work: no right lets a personal account use another one."""
    return is_personal(mailbox.tenant_id) and is_foreign(connection.from_email, mailbox)


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


def spread(session: Session, site: Site, connection: Connection, limits: Limits) -> int:
    """Tell the ledger what was saved; returns how many waiting mails now leave by it."""
    mailer = service.load_mailer(connection, installation().keyring)
    connection.grant_id = None  # the link is kept, and is found again when it is needed
    waiting = replan.connection_saved(
        session, connection, lane_key=mailer.lane_key(), limits=limits, now=now()
    )
    return waiting + replan.primary_changed(session, site, now())


def general_page(form: ConnectionForm) -> str:
    """The page, with how the site stands."""
    settings, today = installation().settings, now().date()
    own = form.links.own
    return render_template(
        "connections/general.html",
        form=form,
        kinds=kinds(),
        dots=DOTS,
        microsoft=is_microsoft(form.connection),
        modes=modes(form, secure=is_secure(settings)),
        secure=is_secure(settings),
        public_url=settings.url,
        app_secret=apps.stored_secret(own.app, form.app, today),
        app_successor=apps.stored_successor(own.app, form.app, today),
        latest_day=apps.latest_day(today),
        guide=apps.guide_of(settings, form.app.cloud.data or "", form.app.client_id.data or ""),
        paces={slug: paces(limits) for slug, limits in form.limits.items()},
        usual=usual_pace(),
        depth=depth_of(form.connection),
        explained=explained,
        known_of=known_of,
        who_labels=WHO_LABELS,
        admins=admins() if needs_admin(form) else [],
        permissions=flows.PERMISSIONS,
    )


def depth_of(connection: Connection | None) -> Depth | None:
    """What waits on its lane; None where it has none yet."""
    if connection is None or connection.lane_id is None:
        return None
    with db().read() as session:
        return depths(session, [connection.lane_id], now()).get(connection.lane_id)


def modes(form: ConnectionForm, *, secure: bool) -> list[Mode]:
    """Both ways to link; only the one in use where there is no switch."""
    if not secure:
        return [Mode(css="", standing=form.standing)]
    with db().read() as session:
        return [
            mode(session, form.connection, css, standing)
            for css, standing in (("shared-app", form.links.shared), ("own-app", form.links.own))
        ]


def mode(session: Session, connection: Connection | None, css: str, standing: Standing) -> Mode:
    """One way to link, with the question to an administrator that is out about it."""
    app = standing.app
    if connection is None or app is None or app.tenant == Segment.CONSUMERS:
        return Mode(css=css, standing=standing)
    request = flows.consent_request(session, installation().keyring, connection, app)
    account = standing.mailbox.address if standing.mailbox else ""
    return Mode(
        css=css,
        standing=standing,
        can_ask=standing.state in ASKABLE and not standing.personal,
        request=request,
        message=flows.admin_message(request, app, account, g.site) if request else "",
    )


def needs_admin(form: ConnectionForm) -> bool:
    """Whether the page has to name those who keep the shared registrations."""
    shared = form.links.shared
    return not web.may(Right.SYSTEM) and (shared.app is None or shared.in_trouble)


def admins() -> list[str]:
    """Who may change the installation, by name."""
    with db().read() as session:
        found = session.scalars(sa.select(User).where(User.is_admin).order_by(User.id))
        return [user.name or user.email for user in found]


def explained(standing: Standing) -> Explanation:
    """Why the link stands still, who can put it right, and how."""
    found = explain(mailer=OUTLOOK, code=standing.code, words=standing.words)
    keeper = apps.keeper_of(standing.app) if standing.app else None
    return fitted(found, keeper=keeper, personal=standing.personal)


def known_of(standing: Standing) -> Mapping[str, object]:
    """What an explanation may say about a link."""
    known = {
        "account": standing.mailbox.address if standing.mailbox else "",
        "app_name": standing.app.name if standing.app else "",
        "client_id": standing.app.client_id if standing.app else "",
    }
    return values_for(known, _)


def is_microsoft(connection: Connection | None) -> bool:
    """Whether it signs in to Microsoft with a password."""
    settings = connection.settings.get(connection.mailer, {}) if connection else {}
    host = str(settings.get("host", "")).lower().rstrip(".")
    return ".".join(host.split(".")[-2:]) in MICROSOFT


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


def usual_pace() -> list[str]:
    """The limits that a mailbox at Microsoft begins with, in words."""
    return [pace(name, str(value)) for name, value in OutlookMailer.usual_limits.items()]


def pace(name: str, text: str) -> str:
    """One limit in words; what is no number stays as it was typed."""
    shown = number(int(text)) if text.isascii() and text.isdigit() else text
    return str(PACES[name]) % {"n": shown}
