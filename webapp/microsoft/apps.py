"""Settings > Microsoft apps: the registrations that serve One-Click Setup, and how one is made."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import sqlalchemy as sa
from babel.dates import format_date
from flask import Blueprint, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import get_locale, ngettext
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy.orm import Session

from webapp import i18n, web
from webapp.accounts.models import Role
from webapp.accounts.rights import Access, Right, allows
from webapp.config import Settings
from webapp.connections.models import Connection
from webapp.connections.places import page_of, registration_page
from webapp.delivery.models import Lane, Message
from webapp.explain.match import explain
from webapp.explain.model import Explanation, values_for
from webapp.fields import N_, FieldErrors
from webapp.microsoft import dates, service
from webapp.microsoft.clouds import Cloud, Segment, clouds, is_guid
from webapp.microsoft.dates import Ending, Kind
from webapp.microsoft.forms import (
    ACCOUNT_TYPES,
    AnyAppForm,
    AppForm,
    app_form,
    app_values,
    show_errors,
)
from webapp.microsoft.link import MICROSOFT_SIGN_IN
from webapp.microsoft.models import Grant, Link, OAuthApp
from webapp.microsoft.service import AppValues
from webapp.microsoft.standing import is_secure
from webapp.microsoft.successors import prove
from webapp.microsoft.tokens import Proof, Tokens, Verdict
from webapp.outward import Outward
from webapp.providers import PROVIDERS
from webapp.sites.models import Site
from webapp.trust import bundle
from webapp.web import Group, actor, db, installation, menu_entry, now, requires, see_other, tell
from webapp.words import NOTICE_ICONS, Status, Tone

bp = Blueprint("apps", __name__)

menu_entry(
    bp,
    "listed",
    _l("Microsoft apps"),
    group=Group.SYSTEM,
    order=10,
    icon="key",
    covers=("new", "edit", "remove"),
)
menu_entry(bp, "calendar", _l("Calendar"), group=Group.ALL_SITES, order=80, icon="queued")

LONGEST_NAME = 90
"""Microsoft takes 120 characters; where personal accounts may sign in, 90."""
LONGEST_LIFE = timedelta(days=730)
"""The longest that a client secret may live: 24 months, as the portal offers them."""
NAMED = 5
"""So many connections are named in a notice, the others counted."""

READY = Status(icon="sent", tone=Tone.GOOD, word=N_("Ready"))
WORKING = Status(icon="delivered", tone=Tone.GOOD, word=N_("Working"))
NO_SECRET = Status(icon="soon", tone=Tone.WARN, word=N_("Not ready"))
REFUSED = Status(icon="failed", tone=Tone.BAD, word=N_("Refused by Microsoft"))


# ---- what a registration looks like ----


@dataclass(frozen=True, kw_only=True)
class Expiry:
    """When a client secret expires, in words."""

    status: Status
    day: str
    days: int
    """Whole days that are left; negative once it has expired."""


@dataclass(frozen=True, kw_only=True)
class StoredSecret:
    """How the client secret of a registration stands on a page; no part of it is in here."""

    stored: bool
    at: datetime | None
    by: str
    expiry: Expiry | None
    removed: bool
    """Somebody pressed Remove, and has not saved yet."""
    retype: bool
    """Something was typed that the page does not give back."""


@dataclass(frozen=True, kw_only=True)
class StoredSuccessor(StoredSecret):
    """The same of the second secret: `stored` while it waits to be proved."""

    refusal: service.Refusal | None
    """Why the last one was dropped, where that came after it was saved."""


@dataclass(frozen=True, kw_only=True)
class Guide:
    """What the steps in Microsoft's portal are filled in with."""

    cloud: Cloud
    redirect_uri: str
    name: str
    """A name to give the registration there."""
    client_id: str = ""

    @property
    def registrations(self) -> str:
        """The list of registrations in the portal; empty where its address is not known."""
        return _blade(self.cloud.portal, "ApplicationsListBlade")

    @property
    def entra(self) -> str:
        """The same list in the admin center."""
        return _blade(self.cloud.entra, "ApplicationsListBlade")

    def page(self, name: str) -> str:
        """A page of this registration: Overview, Authentication, Credentials, CallAnAPI."""
        if not self.client_id:
            return ""
        return _blade(self.cloud.portal, f"ApplicationMenuBlade/~/{name}/appId/{self.client_id}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A registration on the list."""

    app: OAuthApp
    cloud: str
    accounts: str
    users: int
    expiry: Expiry | None
    explanation: Explanation | None

    @property
    def status(self) -> Status:
        """Whether sites can be linked by it."""
        if self.app.problem_since is not None:
            return REFUSED
        if self.app.secret is None:
            return NO_SECRET
        return WORKING if self.users else READY

    @property
    def mark(self) -> str:
        """The tone of the bar beside a row that somebody should look at."""
        tones = {self.status.tone, self.expiry.status.tone if self.expiry else Tone.GOOD}
        return next((tone.value for tone in (Tone.BAD, Tone.WARN) if tone in tones), "")


def _blade(root: str, path: str) -> str:
    return f"{root}/#view/Microsoft_AAD_RegisteredApps/{path}" if root else ""


def expiry(app: OAuthApp | None, today: date) -> Expiry | None:
    """When the stored secret expires; None where there is none, or nobody entered the day."""
    if app is None or app.secret is None or app.secret_expires_on is None:
        return None
    return expiry_on(app.secret_expires_on, today)


def expiry_on(day: date, today: date) -> Expiry:
    """How far away the end of a secret is, in words."""
    days = (day - today).days
    if days < 0:
        words = ngettext("Expired %(num)s day ago", "Expired %(num)s days ago", -days)
    elif days == 0:
        words = _("Expires today")
    else:
        words = ngettext("%(num)s day left", "%(num)s days left", days)
    tone = Tone(dates.nearness(days).value)
    status = Status(icon=NOTICE_ICONS[tone], tone=tone, word=words)
    return Expiry(status=status, day=day_in_words(day), days=days)


def day_in_words(day: date) -> str:
    """`24 Nov 2028`, as the language of the page writes it."""
    return str(format_date(day, i18n.DATE[web.language()], locale=get_locale()))


def stored_secret(app: OAuthApp | None, form: AnyAppForm, today: date) -> StoredSecret:
    """How to show the secret, after what was pressed and typed in this request."""
    name = form.client_secret.name
    pressed = request.form.get("then", "") == f"remove:{name}"
    stored = app is not None and app.secret is not None
    return StoredSecret(
        stored=stored,
        at=app.secret_set_at if app else None,
        by=app.secret_set_by if app else "",
        expiry=expiry(app, today),
        removed=stored and (pressed or name in request.form.getlist("remove")),
        retype=bool(form.client_secret.data),
    )


def stored_successor(app: OAuthApp | None, form: AppForm, today: date) -> StoredSuccessor:
    """The same of the second secret."""
    name = form.next_secret.name
    pressed = request.form.get("then", "") == f"remove:{name}"
    stored = app is not None and app.next_secret is not None
    day = app.next_secret_expires_on if app else None
    refusal = None
    if app is not None and not stored:
        with db().read() as session:
            refusal = service.refused_successor(session, app)
    return StoredSuccessor(
        stored=stored,
        at=app.next_secret_set_at if app else None,
        by=app.next_secret_set_by if app else "",
        expiry=expiry_on(day, today) if day else None,
        removed=stored and (pressed or name in request.form.getlist("remove")),
        retype=bool(form.next_secret.data),
        refusal=refusal,
    )


def latest_day(today: date) -> str:
    """The last day that a secret made today can have: an example of how to write one."""
    return (today + LONGEST_LIFE).isoformat()


def guide_of(settings: Settings, cloud: str, client_id: str = "") -> Guide:
    """The steps for a cloud; an unknown one is taken for the first there is."""
    known = clouds(settings)
    return Guide(
        cloud=known.get(cloud) or next(iter(known.values())),
        redirect_uri=MICROSOFT_SIGN_IN.redirect_uri(settings),
        name=f"Postroom: {settings.hostname}"[:LONGEST_NAME],
        client_id=client_id.strip().lower() if is_guid(client_id) else "",
    )


def explained(app: OAuthApp) -> Explanation | None:
    """Why the provider refuses the registration, if it does."""
    if app.problem_since is None:
        return None
    mailer = PROVIDERS[app.provider].mailer
    return explain(mailer=mailer, code=app.problem_code, words=app.problem_words)


def known_about(app: OAuthApp) -> Mapping[str, object]:
    """What an explanation may say about it."""
    return values_for({"app_name": app.name, "client_id": app.client_id}, _)


# ---- the list ----


@bp.get("/settings/microsoft-apps")
@requires(Right.SYSTEM)
def listed() -> ResponseReturnValue:
    """Every shared registration."""
    settings = installation().settings
    with db().read() as session:
        apps = service.shared_apps(session)
        users = how_many_use(session)
    known, today = clouds(settings), now().date()
    rows = [
        Row(
            app=app,
            cloud=_(known[app.cloud].label) if app.cloud in known else app.cloud,
            accounts=_accounts(app),
            users=users.get(app.id, 0),
            expiry=expiry(app, today),
            explanation=explained(app),
        )
        for app in apps
    ]
    return render_template(
        "microsoft/apps.html",
        rows=rows,
        known_about=known_about,
        is_secure=is_secure(settings),
        address=settings.url,
    )


def how_many_use(session: Session) -> dict[int, int]:
    query = sa.select(Link.app_id, sa.func.count()).group_by(Link.app_id)
    return {row[0]: row[1] for row in session.execute(query)}


def _accounts(app: OAuthApp) -> str:
    """Who may link an account: in words, or the one organization."""
    if app.tenant in set(Segment):
        return str(dict(ACCOUNT_TYPES)[app.tenant])
    return str(_("One organization: %(tenant)s", tenant=app.tenant))


# ---- what ends soon ----


@dataclass(frozen=True, kw_only=True)
class Day:
    """Something on the calendar, and where it is put off."""

    ending: Ending
    expiry: Expiry
    url: str
    """Of the page with the second secret, or of the authorization; empty for who may not."""
    sites: tuple[tuple[str, str], ...]
    """Names, and where they lead."""


@bp.get("/settings/calendar")
@requires(Access.SIGNED_IN)
def calendar() -> ResponseReturnValue:
    """What ends within 90 days, of the sites that whoever asks may see."""
    at = now()
    with db().read() as session:
        mine = {site.id: role for site, role in web.my_sites(session)}
        everything = web.user().is_admin
        found = dates.endings(session, None if everything else mine, at)
        undated = dates.undated(session) if everything else []
    return render_template(
        "microsoft/calendar.html",
        days=[_on_the_calendar(ending, mine, at.date()) for ending in found],
        undated=undated,
        ahead=dates.AHEAD,
    )


def _on_the_calendar(ending: Ending, mine: Mapping[int, Role | None], today: date) -> Day:
    def edits(site: Site) -> bool:
        return allows(Right.EDIT_SETTINGS, role=mine.get(site.id), is_admin=web.user().is_admin)

    url = ""
    own = next((site for site in ending.sites if edits(site)), None)
    if ending.kind is Kind.SECRET and ending.shared:
        if web.may(Right.SYSTEM):
            url = url_for("apps.edit", app_uid=ending.app_uid, _anchor="next_secret")
    elif own is not None:
        anchor = "outlook-app-next_secret"
        if ending.kind is Kind.LINK:
            anchor = PROVIDERS[ending.provider].anchor
        url = url_for("connections.general", slug=own.slug, _anchor=anchor)
    elif ending.alerts and web.may(Right.SYSTEM):
        url = url_for("incidents.system", _anchor="connection")
    users = [(site.name, web.site_url(site, mine.get(site.id))) for site in ending.sites]
    if ending.alerts:
        users.append((_("Alerts"), url_for("incidents.system", _anchor="connection")))
    return Day(
        ending=ending,
        expiry=expiry_on(ending.day, today),
        url=url,
        sites=tuple(users),
    )


# ---- one registration ----


@bp.route("/settings/microsoft-apps/new", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def new() -> ResponseReturnValue:
    """Add a registration."""
    known = clouds(installation().settings)
    form = app_form(None, known)
    if request.method == "GET":
        wanted = known.get(request.args.get("cloud", ""))
        if wanted is not None:
            form.cloud.data = wanted.slug
            if not wanted.personal:
                form.account_type.data = Segment.ORGANIZATIONS.value
        return app_page(form, None)
    try:
        with db().write() as session:
            app = _save(session, None, form)
    except FieldErrors as error:
        show_errors(form, error)
        return app_page(form, None), 422
    strong = _("%(name)s is added.", name=app.name)
    page_left = web.own_path(request.args.get("next"))
    if not service.is_complete(app):
        tell(
            Tone.GOOD,
            _("Nothing is lost now. Its Application Password is still missing: go on below."),
            strong=strong,
        )
        return see_other(url_for("apps.edit", app_uid=app.uid))
    if page_left:
        tell(Tone.GOOD, _("Sign in with Microsoft now, below."), strong=strong)
        return see_other(page_left)
    tell(
        Tone.GOOD,
        _("Each site now signs in with One-Click Setup: Settings, General, 365 / Outlook."),
        strong=strong,
    )
    return see_other(url_for("apps.listed"))


@bp.route("/settings/microsoft-apps/<app_uid>", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def edit(app_uid: str) -> ResponseReturnValue:
    """One registration, and what it needs at Microsoft."""
    with db().read() as session:
        app = service.find_shared_app(session, app_uid)
    if app is None:
        return web.not_found()
    form = app_form(app, clouds(installation().settings))
    if request.method == "GET" or request.form.get("then", "").startswith("remove:"):
        return app_page(form, app)
    proof = proof_of(app, app_values(form))
    try:
        with db().write() as session:
            stored = session.get_one(OAuthApp, app.id)
            with refusing(proof):
                _save(session, stored, form)
            succeed(session, stored, app, proof)
            text = _what_goes_on(session, stored) if app_values(form).secret.strip() else ""
            text = about_proof(session, stored, proof) or text
    except FieldErrors as error:
        show_errors(form, error)
        return app_page(form, app), 422
    tell(Tone.GOOD, text, strong=_("Settings saved."))
    return see_other(url_for("apps.edit", app_uid=app_uid))


def _save(session: Session, app: OAuthApp | None, form: AppForm) -> OAuthApp:
    """Store what was entered; raises FieldErrors."""
    values, at = app_values(form), now()
    stored = service.save_app(
        session,
        installation().keyring,
        app,
        values,
        clouds=clouds(installation().settings),
        actor=actor(),
        now=at,
    )
    until = stored.secret_expires_on
    if values.secret.strip() and until is not None and until < at.date():
        # The day of the old secret was left beside the new one.
        raise FieldErrors({"secret_expires_on": service.LONG_GONE})
    return stored


# ---- a second secret ----


def proof_of(app: OAuthApp | None, values: AppValues) -> Proof | None:
    """Whether Microsoft takes the successor that was entered; None where none can be proved.

    Asks the network, so no unit of work is open.
    """
    if app is None or not service.succeeds(app, values, now()):
        return None
    settings, keyring = installation().settings, installation().keyring
    ca_file = str(bundle(settings))
    tokens = Tokens(db(), lambda: keyring, clouds(settings), lambda: Outward(ca_file=ca_file))
    return prove(db(), tokens, app, values.next_secret.strip())


@contextmanager
def refusing(proof: Proof | None) -> Iterator[None]:
    """Adds to what is wrong with a form that the successor is; raises FieldErrors."""
    wrong = {}
    if proof is not None and proof.verdict is Verdict.WRONG:
        wrong["next_secret"] = str(
            _(
                "Microsoft does not take it; the one in use stays. If you made the new one a "
                "moment ago, wait a minute and save again. Microsoft’s answer: %(words)s",
                words=proof.words or proof.code,
            )
        )
    try:
        yield
    except FieldErrors as error:
        raise FieldErrors({**error.errors, **wrong}) from error
    if wrong:
        raise FieldErrors(wrong)


def succeed(session: Session, stored: OAuthApp, proved: OAuthApp, proof: Proof | None) -> None:
    """Use a successor that was proved, unless the registration has become another one meanwhile."""
    if proof is None or proof.verdict is not Verdict.RIGHT or stored.next_secret is None:
        return
    if service.identity(stored) == service.identity(proved):
        service.use_successor(session, stored, actor=actor(), now=now())


def about_proof(session: Session, app: OAuthApp, proof: Proof | None) -> str:
    """What became of the successor, for the notice after a save."""
    if proof is None:
        return ""
    if proof.verdict is Verdict.UNKNOWN:
        return str(
            _(
                "Microsoft did not answer (%(words)s). The next Application Password waits to be "
                "proved; the one in use stays until then.",
                words=proof.words or proof.code,
            )
        )
    users = len(service.users_of(session, app))
    waiting = waiting_goes_on(session, app)
    said = [str(_("Microsoft takes the new Application Password. It is in use now."))]
    if users and not waiting:
        said.append(
            ngettext(
                "%(num)s linked connection goes on without a pause.",
                "%(num)s linked connections go on without a pause.",
                users,
            )
        )
    elif users:
        said.append(
            ngettext(
                "%(num)s linked connection goes on, and nobody has to sign in again.",
                "%(num)s linked connections go on, and nobody has to sign in again.",
                users,
            )
        )
    return " ".join(said + waiting)


def _what_goes_on(session: Session, app: OAuthApp) -> str:
    """What a new secret brought about."""
    users = len(service.users_of(session, app))
    if not users:
        return str(_("The new Application Password counts from now on."))
    said = [
        ngettext(
            "The new Application Password counts for %(num)s linked connection from now on.",
            "The new Application Password counts for %(num)s linked connections from now on.",
            users,
        )
    ]
    return " ".join(said + waiting_goes_on(session, app))


def waiting_goes_on(session: Session, app: OAuthApp) -> list[str]:
    waiting = _free_to_go(session, app)
    if not waiting:
        return []
    return [ngettext("%(num)s waiting mail goes on.", "%(num)s waiting mails go on.", waiting)]


def _free_to_go(session: Session, app: OAuthApp) -> int:
    """Waiting mails that leave by this registration, where nothing else stops them."""
    same_lane = (Connection.id == Message.connection_id) & (Connection.lane_id == Message.lane_id)
    query = (
        sa.select(sa.func.count())
        .select_from(Message)
        .join(Connection, same_lane)
        .join(Lane, Lane.id == Message.lane_id)
        .join(Grant, Grant.id == Connection.grant_id)
        .where(Grant.app_id == app.id, Message.due_at.is_not(None), Lane.is_blocked.is_(sa.false()))
    )
    return session.scalar(query) or 0


def app_page(form: AppForm, app: OAuthApp | None) -> str:
    """The form of a registration, with the steps in Microsoft's portal."""
    settings, today = installation().settings, now().date()
    with db().read() as session:
        users = users_and_sites(session, app)
    if app is not None and app.cloud not in clouds(settings):
        # The operator's own cloud was taken out of the settings; the menu must not choose another.
        form.cloud.choices = [*(form.cloud.choices or ()), (app.cloud, app.cloud)]
    guide = guide_of(settings, form.cloud.data or "", form.client_id.data or "")
    return render_template(
        "microsoft/app.html",
        form=form,
        app=app,
        secret=stored_secret(app, form, today),
        successor=stored_successor(app, form, today),
        users=users,
        page_of=page_of,
        explanation=explained(app) if app else None,
        known=known_about(app) if app else {},
        guide=guide,
        elsewhere=other_clouds(settings, guide, "apps.new") if app is None else [],
        latest_day=latest_day(today),
        is_secure=is_secure(settings),
        address=settings.url,
    )


def users_and_sites(session: Session, app: OAuthApp | None) -> list[tuple[Connection, Site | None]]:
    """The connections that are linked by it, with the sites they belong to."""
    if app is None:
        return []
    users = service.users_of(session, app)
    return [(user, session.get(Site, user.site_id) if user.site_id else None) for user in users]


# ---- the guide ----


@bp.get("/settings/microsoft-apps/guide")
@requires(Access.SIGNED_IN)
def how_to() -> ResponseReturnValue:
    """The steps alone, for whoever makes a registration for one connection."""
    settings = installation().settings
    guide = guide_of(settings, request.args.get("cloud", ""), request.args.get("client_id", ""))
    return render_template(
        "microsoft/how_to.html",
        guide=guide,
        elsewhere=other_clouds(settings, guide, "apps.how_to"),
        is_secure=is_secure(settings),
        address=settings.url,
    )


def other_clouds(settings: Settings, guide: Guide, endpoint: str) -> list[tuple[str, str, bool]]:
    """The same steps for each cloud: label, address, and whether it is the one in hand."""
    return [
        (
            _(cloud.label),
            url_for(endpoint, cloud=slug, next=request.args.get("next"), _anchor="guide"),
            slug == guide.cloud.slug,
        )
        for slug, cloud in clouds(settings).items()
    ]


# ---- taking one away ----


@bp.route("/settings/microsoft-apps/<app_uid>/remove", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def remove(app_uid: str) -> ResponseReturnValue:
    """Forget a registration that no connection is linked by, after a question."""
    with db().read() as session:
        app = service.find_shared_app(session, app_uid)
        users = users_and_sites(session, app)
    if app is None:
        return web.not_found()
    if users:
        return still_used(app, users)
    if request.form.get("sure") != "yes":
        return web.confirm(
            title=_("Remove %(name)s?", name=app.name),
            text=_(
                "No connection is linked by it. Its Application Password is forgotten; the "
                "registration itself stays at Microsoft until you delete it there."
            ),
            button=_("Remove"),
            back=url_for("apps.edit", app_uid=app_uid),
        )
    try:
        with db().write() as session:
            found = session.get_one(OAuthApp, app.id)
            service.remove_app(session, found, actor=actor(), now=now())
    except service.StillUsed:  # somebody linked a connection meanwhile
        with db().read() as session:
            return still_used(app, users_and_sites(session, app))
    tell(Tone.GOOD, "", strong=_("%(name)s is removed.", name=app.name))
    return see_other(url_for("apps.listed"))


def still_used(app: OAuthApp, users: list[tuple[Connection, Site | None]]) -> ResponseReturnValue:
    """Say who is linked by it, and lead back to it."""
    names = [site.name if site else connection.nickname for connection, site in users]
    listed = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        more = len(names) - NAMED
        listed = ngettext(
            "%(names)s and %(num)s more", "%(names)s and %(num)s more", more, names=listed
        )
    tell(
        Tone.WARN,
        _(
            "Linked by it: %(names)s. Remove these links first, or link them by another "
            "registration.",
            names=listed,
        ),
        strong=_("%(name)s is still in use.", name=app.name),
    )
    return see_other(registration_page(app))
