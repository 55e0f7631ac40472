"""Settings > Google registrations: those that serve One-Click Setup, and how one is made."""

from dataclasses import dataclass

from flask import Blueprint, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from sqlalchemy.orm import Session

from webapp import web
from webapp.accounts.rights import Access, Right
from webapp.connections.places import page_of
from webapp.explain.model import Explanation
from webapp.fields import N_, FieldErrors
from webapp.google.cloud import CLIENTS_PAGE, clouds_of
from webapp.google.forms import GoogleAppForm, google_app_form
from webapp.mailers import registry
from webapp.microsoft import apps, service
from webapp.microsoft.link import SIGN_INS
from webapp.microsoft.models import OAuthApp
from webapp.microsoft.standing import is_secure
from webapp.providers import GOOGLE, PROVIDERS
from webapp.web import Group, actor, db, installation, menu_entry, now, requires, see_other, tell
from webapp.words import Status, Tone

bp = Blueprint("google", __name__)

if PROVIDERS[GOOGLE].mailer in registry():  # without its mailer there is nothing to register for
    menu_entry(
        bp,
        "listed",
        _l("Google registrations"),
        group=Group.SYSTEM,
        order=11,
        icon="key",
        covers=("new", "edit", "remove"),
    )

REFUSED = Status(icon="failed", tone=Tone.BAD, word=N_("Refused by Google"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A registration on the list."""

    app: OAuthApp
    users: int
    explanation: Explanation | None

    @property
    def status(self) -> Status:
        """Whether sites can be linked by it."""
        if self.app.problem_since is not None:
            return REFUSED
        if self.app.secret is None:
            return apps.NO_SECRET
        return apps.WORKING if self.users else apps.READY

    @property
    def mark(self) -> str:
        """The tone of the bar beside a row that somebody should look at."""
        return self.status.tone.value if self.status.tone in {Tone.BAD, Tone.WARN} else ""


@bp.get("/settings/google-registrations")
@requires(Right.SYSTEM)
def listed() -> ResponseReturnValue:
    """Every shared registration."""
    settings = installation().settings
    with db().read() as session:
        found = service.shared_apps(session, GOOGLE)
        users = apps.how_many_use(session)
    rows = [
        Row(app=app, users=users.get(app.id, 0), explanation=apps.explained(app)) for app in found
    ]
    return render_template(
        "google/apps.html",
        rows=rows,
        known_about=apps.known_about,
        is_secure=is_secure(settings),
        address=settings.url,
    )


# ---- one registration ----


@bp.route("/settings/google-registrations/new", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def new() -> ResponseReturnValue:
    """Add a registration."""
    form = google_app_form(None)
    if request.method == "GET":
        return app_page(form, None)
    try:
        with db().write() as session:
            app = _save(session, None, form)
    except FieldErrors as error:
        form.show(error)
        return app_page(form, None), 422
    strong = _("%(name)s is added.", name=app.name)
    if not service.is_complete(app):
        text = _("Nothing is lost now. Its Client Secret is still missing: go on below.")
        tell(Tone.GOOD, text, strong=strong)
        return see_other(url_for("google.edit", google_app_uid=app.uid))
    page_left = web.own_path(request.args.get("next"))
    if page_left:
        tell(Tone.GOOD, _("Sign in with Google now, below."), strong=strong)
        return see_other(page_left)
    text = _("Each site now signs in with One-Click Setup: Settings, General, Google / Gmail.")
    tell(Tone.GOOD, text, strong=strong)
    return see_other(url_for("google.listed"))


@bp.route("/settings/google-registrations/<google_app_uid>", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def edit(google_app_uid: str) -> ResponseReturnValue:
    """One registration, and what it needs at Google."""
    with db().read() as session:
        app = service.find_shared_app(session, google_app_uid, GOOGLE)
    if app is None:
        return web.not_found()
    form = google_app_form(app)
    if request.method == "GET" or request.form.get("then", "").startswith("remove:"):
        return app_page(form, app)
    text = ""
    try:
        with db().write() as session:
            stored = session.get_one(OAuthApp, app.id)
            _save(session, stored, form)
            if form.values().secret.strip():
                text = _what_goes_on(session, stored)
    except FieldErrors as error:
        form.show(error)
        return app_page(form, app), 422
    tell(Tone.GOOD, text, strong=_("Settings saved."))
    return see_other(url_for("google.edit", google_app_uid=google_app_uid))


def _save(session: Session, app: OAuthApp | None, form: GoogleAppForm) -> OAuthApp:
    """Store what was entered; raises FieldErrors."""
    return service.save_app(
        session,
        installation().keyring,
        app,
        form.values(),
        clouds=clouds_of(installation().settings, GOOGLE),
        actor=actor(),
        now=now(),
    )


def _what_goes_on(session: Session, app: OAuthApp) -> str:
    """What a new secret brought about."""
    users = len(service.users_of(session, app))
    if not users:
        return str(_("The new Client Secret counts from now on."))
    said = ngettext(
        "The new Client Secret counts for %(num)s linked connection from now on.",
        "The new Client Secret counts for %(num)s linked connections from now on.",
        users,
    )
    return " ".join([said, *apps.waiting_goes_on(session, app)])


def app_page(form: GoogleAppForm, app: OAuthApp | None) -> str:
    """The form of a registration, with the steps in Google's console."""
    settings = installation().settings
    with db().read() as session:
        users = apps.users_and_sites(session, app)
    return render_template(
        "google/app.html",
        form=form,
        app=app,
        secret=apps.stored_secret(app, form, now().date()),
        users=users,
        page_of=page_of,
        explanation=apps.explained(app) if app else None,
        known=apps.known_about(app) if app else {},
        redirect_uri=SIGN_INS[GOOGLE].redirect_uri(settings),
        clients_page=CLIENTS_PAGE,
        is_secure=is_secure(settings),
        address=settings.url,
    )


# ---- the guide ----


@bp.get("/settings/google-registrations/guide")
@requires(Access.SIGNED_IN)
def how_to() -> ResponseReturnValue:
    """The steps alone, for whoever makes a registration for one connection."""
    settings = installation().settings
    return render_template(
        "google/how_to.html",
        redirect_uri=SIGN_INS[GOOGLE].redirect_uri(settings),
        is_secure=is_secure(settings),
        address=settings.url,
    )


# ---- taking one away ----


@bp.route("/settings/google-registrations/<google_app_uid>/remove", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def remove(google_app_uid: str) -> ResponseReturnValue:
    """Forget a registration that no connection is linked by, after a question."""
    with db().read() as session:
        app = service.find_shared_app(session, google_app_uid, GOOGLE)
        users = apps.users_and_sites(session, app)
    if app is None:
        return web.not_found()
    if users:
        return apps.still_used(app, users)
    if request.form.get("sure") != "yes":
        return web.confirm(
            title=_("Remove %(name)s?", name=app.name),
            text=_(
                "No connection is linked by it. Its Client Secret is forgotten; the client itself "
                "stays at Google until you delete it there."
            ),
            button=_("Remove"),
            back=url_for("google.edit", google_app_uid=google_app_uid),
        )
    try:
        with db().write() as session:
            found = session.get_one(OAuthApp, app.id)
            service.remove_app(session, found, actor=actor(), now=now())
    except service.StillUsed:  # somebody linked a connection meanwhile
        with db().read() as session:
            return apps.still_used(app, apps.users_and_sites(session, app))
    tell(Tone.GOOD, "", strong=_("%(name)s is removed.", name=app.name))
    return see_other(url_for("google.listed"))
