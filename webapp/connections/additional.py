"""Settings > Additional Connections: the list, a page for each, and what is done with one."""

from flask import Blueprint, g, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from sqlalchemy.orm import Session

from webapp import web
from webapp.accounts.rights import Right
from webapp.connections import editor, lifecycle, service
from webapp.connections.editor import STATUS, Refused, tell_saved, told_moved, wake
from webapp.connections.forms import ConnectionForm, kinds
from webapp.connections.lifecycle import UsedElsewhere
from webapp.connections.models import Connection
from webapp.connections.places import own_page, page_of
from webapp.connections.uses import Listed, Uses, listed, may_be_primary, uses_of
from webapp.delivery import replan
from webapp.maillog.service import connection_name
from webapp.sites.models import Site
from webapp.sites.service import find_site
from webapp.web import Group, actor, db, menu_entry, now, own_path, requires, see_other, tell
from webapp.words import Tone

bp = Blueprint("additional", __name__)

menu_entry(
    bp,
    "connections",
    _l("Additional Connections"),
    group=Group.SETTINGS,
    order=40,
    covers=("new", "edit", "remove"),
)

NAMED = 5
"""So many rules or sites are named, the others counted."""

# ---- the list ----


@bp.get("/sites/<slug>/settings/connections")
@requires(Right.EDIT_SETTINGS)
def connections(slug: str) -> ResponseReturnValue:
    """All that the site may send by, and how each does."""
    with db().read() as session:
        rows = listed(session, g.site, now())
    return render_template("connections/list.html", rows=rows, status=STATUS, kinds=kinds())


# ---- one connection ----


@bp.route("/sites/<slug>/settings/connections/new", methods=["GET", "POST"])
@requires(Right.EDIT_SETTINGS)
def new(slug: str) -> ResponseReturnValue:
    """Add a connection."""
    return answer(None)


@bp.route("/sites/<slug>/settings/connections/<connection_uid>", methods=["GET", "POST"])
@requires(Right.EDIT_SETTINGS)
def edit(slug: str, connection_uid: str) -> ResponseReturnValue:
    """A connection on a page of its own, with every mailer and every state of its link."""
    with db().read() as session:
        connection = changeable(session, g.site, connection_uid)
    return answer(connection)


def answer(connection: Connection | None) -> ResponseReturnValue:
    """The form as it is stored; after a POST, saved."""
    form = editor.form_of(connection, asks_nickname=True)
    then = request.form.get("then", "")
    if request.method == "GET" or then.startswith("remove:"):
        return edit_page(form)
    editor.take_account(form, then)
    uid = connection.uid if connection else ""

    def again(session: Session, site: Site) -> Connection | None:
        return changeable(session, site, uid) if uid else None

    try:
        saved = editor.save(
            form,
            find=again,
            finish=editor.lead_sites,
            signs_in=then == "authorize",
            shares=web.may(Right.SYSTEM),
        )
    except Refused as refused:
        form.show(refused.connection)
        form.show_app(refused.app)
        return edit_page(form), 422
    back = own_page(g.site, saved.connection)
    address = editor.sign_in_address(form, saved, back) if then == "authorize" else ""
    if address:
        return see_other(address)
    tell_saved(saved)
    return see_other(back)


def edit_page(form: ConnectionForm) -> str:
    """The page, with what the connection is used for."""
    connection = form.connection
    here, row = url_for("additional.new", slug=g.site.slug), None
    if connection is not None:
        here = own_page(g.site, connection)
        with db().read() as session:
            row = row_of(session, connection)
    return render_template(
        "connections/edit.html", row=row, status=STATUS, **editor.context(form, here)
    )


def row_of(session: Session, connection: Connection) -> Listed | None:
    """What the list says of it."""
    rows = listed(session, g.site, now())
    return next((row for row in rows if row.connection.id == connection.id), None)


def chosen(session: Session, site: Site, uid: str) -> Connection:
    """A connection that the site may send by; 404 for any other one."""
    found = service.find_connection(session, site, uid)
    if found is None:
        web.not_found()
    assert found is not None
    return found


def changeable(session: Session, site: Site, uid: str) -> Connection:
    """The same, if whoever asks may change it: what every site may choose is the admins'."""
    found = chosen(session, site, uid)
    if service.is_shared(found) and not web.may(Right.SYSTEM):
        raise web.Denied(Right.SYSTEM)
    return found


# ---- a copy ----


@bp.post("/sites/<slug>/settings/connections/<connection_uid>/duplicate")
@requires(Right.EDIT_SETTINGS)
def duplicate(slug: str, connection_uid: str) -> ResponseReturnValue:
    """Copy a connection, but for its secrets and links."""
    with db().write() as session:
        site = session.get_one(Site, g.site.id)
        connection = changeable(session, site, connection_uid)
        name = _("%(name)s (copy)", name=connection_name(connection.nickname, connection.mailer))
        made = lifecycle.duplicate(session, site, connection, name, actor=actor(), now=now())
    tell(
        Tone.INFO,
        _("Passwords and links are not copied: enter or link them here, and save."),
        strong=_("This is the copy, %(name)s.", name=made.nickname),
    )
    return see_other(own_page(g.site, made))


# ---- the primary one ----


@bp.post("/sites/<slug>/settings/primary-connection")
@requires(Right.EDIT_SETTINGS)
def make_primary(slug: str) -> ResponseReturnValue:
    """Send with another connection from now on."""
    back = own_path(request.form.get("next")) or url_for("connections.general", slug=slug)
    uid = request.form.get("connection", "")
    if not uid:
        tell(Tone.INFO, "", strong=_("Choose a connection first."))
        return see_other(back)
    with db().write() as session:
        site = session.get_one(Site, g.site.id)
        connection = chosen(session, site, uid)
        name = connection_name(connection.nickname, connection.mailer)
        if not may_be_primary(session, site, connection):
            tell(Tone.WARN, "", strong=_("%(name)s cannot send yet.", name=name))
            return see_other(back)
        service.set_primary(session, site, connection, actor=actor(), now=now())
        moved = replan.routing_changed(session, site, now())
    wake()
    tell(Tone.GOOD, told_moved(moved), strong=_("This site sends with %(name)s now.", name=name))
    return see_other(back)


# ---- gone ----


@bp.route("/sites/<slug>/settings/connections/<connection_uid>/delete", methods=["GET", "POST"])
@requires(Right.EDIT_SETTINGS)
def remove(slug: str, connection_uid: str) -> ResponseReturnValue:
    """Delete a connection, after a question that says what it is used for."""
    with db().read() as session:
        connection = changeable(session, g.site, connection_uid)
        uses = uses_of(session, connection)
    name = connection_name(connection.nickname, connection.mailer)
    if request.form.get("sure") != "yes":
        return render_template(
            "connections/delete.html",
            connection=connection,
            name=name,
            consequences=consequences(uses),
            back=page_of(g.site, connection),
        )
    with db().write() as session:
        found = changeable(session, session.get_one(Site, g.site.id), connection_uid)
        moved = lifecycle.remove(session, found, actor=actor(), now=now())
    wake()
    tell(Tone.GOOD, told_moved(moved), strong=_("%(name)s is deleted.", name=name))
    return see_other(url_for("additional.connections", slug=slug))


def consequences(uses: Uses) -> list[str]:
    """What becomes of everything that has chosen it, in sentences."""
    told = []
    if g.site.id in {site.id for site in uses.primary_of}:
        told.append(_("It is the primary connection: mail waits until this site has another one."))
    if g.site.id in {site.id for site in uses.backup_of}:
        told.append(_("It is a backup connection: the others stand in without it."))
    rules = [rule.name or _("no name") for site, rule in uses.rules if site.id == g.site.id]
    if rules:
        told.append(
            ngettext(
                "%(num)s rule leads to it (%(names)s) and is skipped until you give it another "
                "connection.",
                "%(num)s rules lead to it (%(names)s) and are skipped until you give them another "
                "connection.",
                len(rules),
                names=names(rules),
            )
        )
    others = uses.elsewhere(g.site.id)
    if others:
        told.append(
            ngettext(
                "%(num)s other site has chosen it: %(names)s.",
                "%(num)s other sites have chosen it: %(names)s.",
                len(others),
                names=names([site.name for site in others]),
            )
        )
    if uses.waiting:
        told.append(
            ngettext(
                "%(num)s mail waits for it. It is kept, and leaves by what the rules and the "
                "primary connection say then.",
                "%(num)s mails wait for it. They are kept, and leave by what the rules and the "
                "primary connection say then.",
                uses.waiting,
            )
        )
    return told or [_("Nothing uses it.")]


def names(all_of_them: list[str]) -> str:
    """Some names, the others counted."""
    shown, more = ", ".join(all_of_them[:NAMED]), len(all_of_them) - NAMED
    if more <= 0:
        return shown
    return str(
        ngettext("%(names)s and %(num)s more", "%(names)s and %(num)s more", more, names=shown)
    )


# ---- for every site ----


@bp.route("/settings/connections/<any_connection_uid>/share", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def share(any_connection_uid: str) -> ResponseReturnValue:
    """Let every site choose a connection, after a question."""
    with db().read() as session:
        connection = any_connection(session, any_connection_uid)
        site = session.get(Site, connection.site_id) if connection.site_id else None
    name = connection_name(connection.nickname, connection.mailer)
    if site is None:
        tell(Tone.INFO, "", strong=_("Every site may choose %(name)s already.", name=name))
        return see_other(web.home_url())
    if request.form.get("sure") != "yes":
        return web.confirm(
            title=_("Share %(name)s with every site?", name=name),
            text=_(
                "Whoever edits the settings of any site here may choose it to send by, with its "
                "login or linked account. Only administrators of this installation change it then."
            ),
            button=_("Share it"),
            back=own_page(site, connection),
        )
    with db().write() as session:
        found = any_connection(session, any_connection_uid)
        if not service.is_shared(found):
            lifecycle.share(session, found, actor=actor(), now=now())
    tell(Tone.GOOD, "", strong=_("Every site may choose %(name)s now.", name=name))
    return see_other(own_page(site, connection))


@bp.route("/settings/connections/<any_connection_uid>/take-back", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def take_back(any_connection_uid: str) -> ResponseReturnValue:
    """Make a shared connection one of a single site again, where no other site uses it."""
    with db().read() as session:
        connection = any_connection(session, any_connection_uid)
        site = find_site(session, request.values.get("site", ""))
    name = connection_name(connection.nickname, connection.mailer)
    if site is None or not service.is_shared(connection):
        tell(Tone.INFO, "", strong=_("%(name)s is not shared.", name=name))
        return see_other(web.home_url())
    back = own_page(site, connection)
    if request.form.get("sure") != "yes":
        return web.confirm(
            title=_("Take %(name)s back?", name=name),
            text=_("It then belongs to %(site)s alone, and no other site sees it.", site=site.name),
            button=_("Take it back"),
            back=back,
        )
    try:
        with db().write() as session:
            found = any_connection(session, any_connection_uid)
            here = session.get_one(Site, site.id)
            lifecycle.take_back(session, here, found, actor=actor(), now=now())
    except UsedElsewhere as error:
        text = _("It is used by %(names)s.", names=error) if str(error) else ""
        text = text or _("Mail of another site waits for it.")
        tell(Tone.WARN, text, strong=_("%(name)s stays shared.", name=name))
        return see_other(back)
    tell(Tone.GOOD, "", strong=_("%(name)s belongs to %(site)s now.", name=name, site=site.name))
    return see_other(back)


def any_connection(session: Session, uid: str) -> Connection:
    """A connection of any site, or a shared one; 404 for what is not there."""
    found = service.any_connection(session, uid)
    if found is None:
        web.not_found()
    assert found is not None
    return found
