"""Pages of sites: the board, adding one, and how a site hands in its mail."""

import re
from itertools import groupby

from flask import Blueprint, abort, g, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

from webapp import web
from webapp.accounts.models import Role
from webapp.accounts.rights import Access, Right, allows
from webapp.fields import FieldErrors
from webapp.forms import Choice, Form, Text, refuse
from webapp.sites import banners, handin, service
from webapp.sites import board as boards
from webapp.sites.board import Part
from webapp.sites.models import Credential, CredentialKind, Site
from webapp.sites.service import NewCredential
from webapp.web import Group, actor, db, menu_entry, now, requires, see_other, tell
from webapp.words import Tone

bp = Blueprint("sites", __name__)

ON_A_PAGE = 100
MAX_SEARCH = 200

menu_entry(bp, "board", _l("Sites"), group=Group.ALL_SITES, order=10, icon="board", covers=("new",))
menu_entry(
    bp,
    "credentials",
    _l("Connect"),
    group=Group.SITE,
    order=90,
    covers=("create_credential", "create_key", "revoke_credential"),
)


class SiteForm(Form):
    """What a site is called, and where it is."""

    name = Text(_l("Name"), description=_l("How you call it, for example Lindenhof Shop."))
    url = Text(
        _l("Address"),
        description=_l("Where the site is found. It may stay empty."),
        limit=service.URL_LENGTH,
    )
    admin_email = Text(
        _l("Admin Address"),
        description=_l("Who looks after the site. It is the first From Email offered."),
        limit=320,
    )


class CredentialForm(Form):
    """A login for a site."""

    label = Text(_l("Label"), description=_l("What it is for, for example web server."), limit=100)
    senders = Text(
        _l("Allowed Senders"),
        description=_l(
            "Addresses it may send from, such as shop@example.org or *@example.org, with spaces "
            "between them. Empty: any."
        ),
        limit=5000,
    )


class KeyForm(CredentialForm):
    """A key of the API for a site."""

    scopes = Choice(
        _l("It may"),
        (
            ("send", _l("hand in mail")),
            ("send read", _l("hand in mail, and see what became of it")),
            ("send read manage", _l("the same, and cancel, retry and resend")),
            ("read", _l("only see what became of mail")),
        ),
    )


def show_errors(form: Form, error: FieldErrors) -> None:
    """Put what the service found at the fields."""
    for name, sentence in error.errors.items():
        refuse(form, name, _(sentence))


# ---- all sites ----


@bp.get("/")
@requires(Access.SIGNED_IN)
def board() -> ResponseReturnValue:
    """Every site one may see, worst first."""
    at = now()
    asked = request.args.get("state", "")
    search = " ".join(request.args.get("q", "").split())[:MAX_SEARCH]
    with db().read() as session:
        mine = web.my_sites(session)
        found = boards.board(session, [site.id for site, _role in mine], at)
        rows = [
            row
            for row in found.rows
            if (row.part == asked or asked not in set(Part)) and row.is_called(search)
        ]
        pages = -(-len(rows) // ON_A_PAGE)
        page = page_of(pages)
        rows = rows[(page - 1) * ON_A_PAGE : page * ON_A_PAGE]
        ids = {row.site.id for row in rows}
        days = boards.last_day(session, ids, at)
        depths = boards.depths_of(session, rows, at)
        checked = boards.last_check(session) if web.user().is_admin else None
    here = [(site, role) for site, role in mine if site.id in ids]
    return render_template(
        "sites/board.html",
        board=found,
        parts=[(part, list(group)) for part, group in groupby(rows, lambda row: row.part)],
        days=days,
        depths=depths,
        checked=checked,
        shown=asked if asked in set(Part) else "",
        search=search,
        is_long=len(found.rows) > ON_A_PAGE,
        before=web.with_query(page=str(page - 1)) if page > 1 else "",
        after=web.with_query(page=str(page + 1)) if page < pages else "",
        urls={site.id: web.site_url(site, role) for site, role in here},
        fixable=fixable(here),
        bars=boards.bars,
    )


def page_of(pages: int) -> int:
    """The page that the address asks for, among so many."""
    asked = request.args.get("page", "")
    wanted = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 9 else 1
    return max(1, min(wanted, pages))


def fixable(mine: list[tuple[Site, Role | None]]) -> dict[int, str]:
    """Where the settings are of those sites whose settings one may change."""
    is_admin = web.user().is_admin
    return {
        site.id: url_for("connections.general", slug=site.slug)
        for site, role in mine
        if allows(Right.EDIT_SETTINGS, role=role, is_admin=is_admin)
    }


@bp.route("/sites/new", methods=["GET", "POST"])
@requires(Right.ADD_SITE)
def new() -> ResponseReturnValue:
    """Add a site; then it is connected."""
    form = SiteForm(data={"admin_email": web.user().email})
    if request.method == "GET":
        return render_template("sites/new.html", form=form)
    try:
        with db().write() as session:
            site = service.create_site(
                session,
                name=form.name.data or "",
                url=form.url.data or "",
                admin_email=form.admin_email.data or "",
                actor=actor(),
                now=now(),
            )
    except FieldErrors as error:
        show_errors(form, error)
        return render_template("sites/new.html", form=form), 422
    tell(
        Tone.GOOD,
        _("Make a login below, and give it to the site."),
        strong=_("%(name)s is added.", name=site.name),
    )
    return see_other(url_for("sites.credentials", slug=site.slug))


@bp.post("/sites/<slug>/put-away")
@requires(Right.VIEW_LOG)
def put_away(slug: str) -> ResponseReturnValue:
    """Warn whoever asks no more of sign-ins with a password that Microsoft ends."""
    uids = request.form.getlist("connection")
    with db().write() as session:
        try:
            banners.put_away(session, g.site, web.user().id, uids, now())
        except LookupError:
            abort(404)
    return see_other(web.own_path(request.form.get("next")) or web.home_url())


# ---- how a site hands in its mail ----


@bp.get("/sites/<slug>/credentials")
@requires(Right.MANAGE_CREDENTIALS)
def credentials(slug: str) -> ResponseReturnValue:
    """The logins of a site, and ready-made settings."""
    return credentials_page(CredentialForm())


@bp.post("/sites/<slug>/credentials")
@requires(Right.MANAGE_CREDENTIALS)
def create_credential(slug: str) -> ResponseReturnValue:
    """Make a login. Its password stands in this one answer and nowhere else, so no redirect."""
    form = CredentialForm()
    try:
        with db().write() as session:
            made = service.create_credential(
                session,
                session.get_one(Site, g.site.id),
                kind=CredentialKind.SMTP,
                label=form.label.data or "",
                senders=re.split(r"[\s,;]+", form.senders.data or ""),
                actor=actor(),
                now=now(),
            )
    except FieldErrors as error:
        show_errors(form, error)
        return credentials_page(form), 422
    return credentials_page(CredentialForm(formdata=None), made)


@bp.post("/sites/<slug>/keys")
@requires(Right.MANAGE_CREDENTIALS)
def create_key(slug: str) -> ResponseReturnValue:
    """Make a key of the API. It stands in this one answer and nowhere else, so no redirect."""
    form = KeyForm(prefix="key-")
    if not form.validate():
        return credentials_page(CredentialForm(formdata=None), key_form=form), 422
    try:
        with db().write() as session:
            made = service.create_credential(
                session,
                session.get_one(Site, g.site.id),
                kind=CredentialKind.API,
                label=form.label.data or "",
                senders=re.split(r"[\s,;]+", form.senders.data or ""),
                scopes=(form.scopes.data or "").split(),
                actor=actor(),
                now=now(),
            )
    except FieldErrors as error:
        show_errors(form, error)
        return credentials_page(CredentialForm(formdata=None), key_form=form), 422
    return credentials_page(CredentialForm(formdata=None), made_key=made)


def credentials_page(
    form: CredentialForm,
    made: NewCredential | None = None,
    *,
    key_form: KeyForm | None = None,
    made_key: NewCredential | None = None,
) -> str:
    """The page, with the password of a login or the key that was made just now."""
    with db().read() as session:
        logins = service.credentials_of(session, g.site.id, kind=CredentialKind.SMTP)
        keys = service.credentials_of(session, g.site.id, kind=CredentialKind.API)
    settings = web.installation().settings
    where = handin.place(settings)
    shown = made.credential if made else (logins[-1] if logins else None)
    shown_key = made_key.credential if made_key else (keys[-1] if keys else None)
    return render_template(
        "sites/credentials.html",
        key_form=key_form or KeyForm(formdata=None, prefix="key-"),
        keys=keys,
        made_key=made_key,
        shown_key=shown_key,
        api_recipes=handin.api_recipes(
            settings.url,
            made_key.key if made_key else _("KEY"),
            handin.example_sender(shown_key.senders, g.site.admin_email),
            g.site.slug,
        )
        if shown_key
        else [],
        form=form,
        logins=logins,
        made=made,
        shown=shown,
        where=where,
        recipes=handin.recipes(where, login_of(shown, made)) if shown else [],
    )


def login_of(credential: Credential, made: NewCredential | None) -> handin.Login:
    """What the ready-made settings sign in with; the password only where it is known."""
    return handin.Login(
        username=credential.username,
        password=made.secret if made else _("PASSWORD"),
        sender=handin.example_sender(credential.senders, g.site.admin_email),
    )


@bp.route("/sites/<slug>/credentials/<int:credential_id>/revoke", methods=["GET", "POST"])
@requires(Right.MANAGE_CREDENTIALS)
def revoke_credential(slug: str, credential_id: int) -> ResponseReturnValue:
    """Take a login away, after a question."""
    with db().read() as session:
        found = service.find_credential(session, g.site.id, credential_id)
    if found is None or found.revoked_at is not None:
        return web.not_found()
    back = url_for("sites.credentials", slug=slug)
    if request.form.get("sure") != "yes":
        return web.confirm(
            title=_("Revoke %(login)s?", login=found.username),
            text=_(
                "Whatever signs in with it can hand in no more mail, at once and for good. Mail "
                "that was handed in already still goes out."
            ),
            button=_("Revoke"),
            back=back,
        )
    with db().write() as session:
        site = session.get_one(Site, g.site.id)
        credential = session.get_one(Credential, found.id)
        service.revoke_credential(session, site, credential, actor=actor(), now=now())
    tell(Tone.GOOD, "", strong=_("%(login)s is revoked.", login=found.username))
    return see_other(back)
