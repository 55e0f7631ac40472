"""Pages of people: the first account, signing in and out, the own account."""

import math
from datetime import timedelta

from flask import Blueprint, make_response, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import force_locale, ngettext
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from werkzeug.wrappers import Response
from wtforms import PasswordField

from webapp import i18n, web
from webapp.accounts import service
from webapp.accounts import setup as first
from webapp.accounts.models import User
from webapp.accounts.rights import Access
from webapp.accounts.service import AccountError
from webapp.forms import Choice, Form, Text, an_email, filled, refuse
from webapp.web import db, now, own_path, person, requires, see_other, tell
from webapp.words import Tone

bp = Blueprint("accounts", __name__)

COOKIE_LASTS = timedelta(days=365)


class SignInForm(Form):
    """Email and password."""

    email = Text(_l("Email"), [filled(_l("Enter your email address."))], limit=320)
    password = PasswordField(_l("Password"), [filled(_l("Enter your password."))])


class SetupForm(Form):
    """The first account."""

    email = Text(_l("Email"), [filled(_l("Enter your email address.")), an_email], limit=320)
    name = Text(_l("Name"), description=_l("How colleagues see you, for example in the log."))
    password = PasswordField(_l("Password"), description=_l("At least 12 characters."))
    again = PasswordField(_l("Password Again"))


class ProfileForm(Form):
    """Name and language."""

    name = Text(_l("Name"), description=_l("How colleagues see you, for example in the log."))
    language = Choice(_l("Language"), [("", _l("As the browser asks")), *i18n.LANGUAGES.items()])


class PasswordForm(Form):
    """The old password and a new one."""

    old = PasswordField(_l("Current Password"), [filled(_l("Enter your current password."))])
    password = PasswordField(_l("New Password"), description=_l("At least 12 characters."))
    again = PasswordField(_l("New Password Again"))


def all_good(form: SetupForm | PasswordForm) -> bool:
    """Every field, so that all errors are shown at once."""
    fields = form.validate()
    return check_new_password(form) and bool(fields)


def check_new_password(form: SetupForm | PasswordForm) -> bool:
    """Long enough, and the same both times; else the errors stand at the fields."""
    try:
        service.check_new_password(form.password.data or "")
    except AccountError as error:
        refuse(form, "password", _(str(error)))
        return False
    if form.again.data != form.password.data:
        refuse(form, "again", _("The two passwords differ. Type the same one twice."))
        return False
    return True


# ---- the first account ----


@bp.route("/setup", methods=["GET", "POST"])
@requires(Access.PUBLIC)
def setup() -> ResponseReturnValue:
    """The first account, for whoever has the link that the terminal shows."""
    token = request.args.get("token", "")
    if web.anybody_has_an_account():
        if person():
            return see_other(web.home_url())
        if token:
            tell(Tone.INFO, _("The first account exists. This link has done its work: sign in."))
        return see_other(url_for("accounts.signin"))
    with db().read() as session:
        fits = first.fits(session, token, now())
    if not fits:
        return private(render_template("accounts/no_setup.html", tried=bool(token)), 200)
    form = SetupForm()
    if form.is_submitted() and all_good(form) and create_first(form, token):
        return see_other("/")
    return private(render_template("accounts/setup.html", form=form), 422 if form.errors else 200)


def create_first(form: SetupForm, token: str) -> bool:
    """Make the account, use the token up and sign in; False when somebody was quicker."""
    hashed = service.hash_password(form.password.data or "")
    with db().write() as session:
        at = now()
        if not first.use(session, token, at):
            refuse(form, "email", _("This link was used already. Sign in instead."))
            return False
        try:
            made = service.add_user(
                session,
                email=form.email.data or "",
                name=form.name.data or "",
                password_hash=hashed,
                is_admin=True,
                language=web.language(),
                now=at,
                actor=form.email.data or "",
            )
        except AccountError as error:
            session.rollback()
            refuse(form, error.field, _(str(error)))
            return False
        web.sign_in(session, made)
    return True


def private(page: str, code: int) -> Response:
    """A page whose address is a secret: it is not told to the next page."""
    response = make_response(page, code)
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


# ---- signing in and out ----


@bp.route("/signin", methods=["GET", "POST"])
@requires(Access.PUBLIC)
def signin() -> ResponseReturnValue:
    """Email and password; too many failures make the next try wait."""
    if not web.anybody_has_an_account():
        return see_other(url_for("accounts.setup"))
    target = own_path(request.args.get("next")) or "/"
    if person():
        return see_other(target)
    form = SignInForm()
    if not form.validate_on_submit():
        page = render_template("accounts/signin.html", form=form, wait=0, wrong=False)
        return page, 422 if form.errors else 200
    keys = service.throttle_keys(form.email.data or "", request.remote_addr or "")
    with db().read() as session:
        wait = service.delay_for(session, keys, now())
        found = service.find_user(session, form.email.data or "")
    if wait > timedelta():
        return too_early(form, wait)
    if not service.check_password(found, form.password.data or "") or found is None:
        with db().write() as session:
            service.note_failure(session, keys, now())
        return render_template("accounts/signin.html", form=form, wait=0, wrong=True), 422
    return welcome(found, form.password.data or "", keys, target)


def too_early(form: SignInForm, wait: timedelta) -> ResponseReturnValue:
    """The sign-in page with how long to wait; the password is not even looked at."""
    seconds = math.ceil(wait.total_seconds())
    page = render_template("accounts/signin.html", form=form, wait=seconds, wrong=False)
    return page, 429, {"Retry-After": str(seconds)}


def welcome(found: User, password: str, keys: tuple[str, str], target: str) -> ResponseReturnValue:
    """Sign in, and keep what this browser knew: the language chosen before."""
    fresh = service.rehash(found, password)
    chosen = request.cookies.get(web.LANGUAGE_COOKIE)
    with db().write() as session:
        service.clear(session, keys[:1])
        who = session.get_one(User, found.id)
        if fresh:
            who.password_hash = fresh
        if who.language is None and chosen in i18n.LANGUAGES:
            who.language = chosen
        web.sign_in(session, who)
    return see_other(target)


@bp.post("/signout")
@requires(Access.SIGNED_IN)
def signout() -> ResponseReturnValue:
    """End the session of this browser."""
    with db().write() as session:
        web.sign_out(session)
    tell(Tone.GOOD, _("You are signed out."))
    return see_other(url_for("accounts.signin"))


# ---- the own account ----


@bp.route("/account", methods=["GET", "POST"])
@requires(Access.SIGNED_IN)
def account() -> ResponseReturnValue:
    """Name, language, and where one is signed in."""
    me = web.user()
    form = ProfileForm(data={"name": me.name, "language": me.language or ""})
    if form.validate_on_submit():
        chosen = form.language.data or None
        with db().write() as session:
            service.set_profile(
                session, me.id, name=form.name.data or "", language=chosen, now=now()
            )
        with force_locale(chosen or web.language()):
            tell(Tone.GOOD, _("Your account is saved."))
        response = see_other(url_for("accounts.account"))
        return remember_language(response, chosen) if chosen else response
    return account_page(form, PasswordForm()), 422 if form.errors else 200


def account_page(form: ProfileForm, passwords: PasswordForm) -> str:
    """The page with both of its forms."""
    me = web.user()
    with db().read() as session:
        places = service.sessions_of(session, me.id, now())
    here = web.person()
    current = here.session.id if here else 0
    return render_template(
        "accounts/account.html", me=me, form=form, passwords=passwords, places=places, here=current
    )


@bp.post("/account/password")
@requires(Access.SIGNED_IN)
def password() -> ResponseReturnValue:
    """Change the password; every other session of this person ends."""
    me = web.user()
    form = PasswordForm()
    if not (all_good(form) and old_password_fits(form, me)):
        profile = ProfileForm(formdata=None, data={"name": me.name, "language": me.language or ""})
        return account_page(profile, form), 422
    hashed = service.hash_password(form.password.data or "")
    here = web.person()
    with db().write() as session:
        ended = service.set_password(
            session,
            me.id,
            hashed,
            now=now(),
            actor=me.email,
            keep=here.session.id if here else 0,
        )
    text = ngettext("%(num)s other session was ended.", "%(num)s other sessions were ended.", ended)
    tell(Tone.GOOD, text if ended else "", strong=_("Your password is changed."))
    return see_other(url_for("accounts.account"))


def old_password_fits(form: PasswordForm, me: User) -> bool:
    """Whoever sits down at an open browser must not get away with the account."""
    keys = service.throttle_keys(me.email, request.remote_addr or "")
    with db().read() as session:
        wait = service.delay_for(session, keys, now())
    if wait > timedelta():
        seconds = math.ceil(wait.total_seconds())
        text = ngettext(
            "Too many tries. Wait %(num)s second, then try again.",
            "Too many tries. Wait %(num)s seconds, then try again.",
            seconds,
        )
        refuse(form, "old", text)
        return False
    if service.check_password(me, form.old.data or ""):
        return True
    with db().write() as session:
        service.note_failure(session, keys, now())
    refuse(form, "old", _("This is not your current password."))
    return False


@bp.post("/account/sessions/<int:session_id>/end")
@requires(Access.SIGNED_IN)
def end_session(session_id: int) -> ResponseReturnValue:
    """Sign one of one's own browsers out."""
    me = web.user()
    with db().write() as session:
        ended = service.end_session(session, session_id, user_id=me.id)
    if not ended:
        return web.not_found()
    tell(Tone.GOOD, _("That browser is signed out."))
    return see_other(url_for("accounts.account"))


# ---- language and colours: choices of a browser, signed in or not ----


@bp.get("/language")
@requires(Access.PUBLIC)
def choose_language() -> ResponseReturnValue:
    """Remember the language in a cookie, and with the person, and go back."""
    response = see_other(own_path(request.args.get("next")) or "/")
    chosen = request.args.get("to", "")
    if chosen not in i18n.LANGUAGES:
        return response
    me = web.person()
    if me is not None:
        with db().write() as session:
            service.set_profile(session, me.user.id, name=me.user.name, language=chosen, now=now())
    return remember_language(response, chosen)


@bp.get("/colours")
@requires(Access.PUBLIC)
def colours() -> ResponseReturnValue:
    """Remember light or dark in a cookie, or forget it, and go back."""
    response = see_other(own_path(request.args.get("next")) or "/")
    chosen = request.args.get("to", "")
    if chosen in web.COLOURS:
        return remember(response, web.COLOURS_COOKIE, chosen)
    response.delete_cookie(web.COLOURS_COOKIE)
    return response


def remember_language(response: Response, chosen: str) -> Response:
    """The language, for as long as a year."""
    return remember(response, web.LANGUAGE_COOKIE, chosen)


def remember(response: Response, name: str, value: str) -> Response:
    """A cookie that holds a choice and nothing else."""
    secure = request.is_secure
    response.set_cookie(
        name, value, max_age=COOKIE_LASTS, secure=secure, httponly=True, samesite="Lax"
    )
    return response
