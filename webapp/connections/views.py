"""Settings > General: what a site sends with."""

from flask import Blueprint, g, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _l
from sqlalchemy.orm import Session

from webapp.accounts.rights import Right
from webapp.connections import editor, service
from webapp.connections.editor import Refused, tell_saved
from webapp.connections.forms import ConnectionForm
from webapp.connections.models import Connection
from webapp.delivery import replan
from webapp.sites.models import Site
from webapp.web import Group, actor, db, menu_entry, now, requires, see_other

bp = Blueprint("connections", __name__)

menu_entry(bp, "general", _l("General"), group=Group.SETTINGS, order=10, covers=("save_general",))


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
    editor.take_account(form, then)
    try:
        saved = editor.save(
            form, find=own_primary, finish=made_primary, signs_in=then == "authorize"
        )
    except Refused as refused:
        form.show(refused.connection)
        form.show_app(refused.app)
        return general_page(form), 422
    if then == "authorize" and (address := editor.sign_in_address(form, saved)):
        return see_other(address)
    tell_saved(saved)
    return see_other(url_for("connections.general", slug=slug))


def stored_form() -> ConnectionForm:
    """The form of the site's own primary connection, filled with what was sent if anything was."""
    with db().read() as session:
        connection = own_primary(session, g.site)
    return editor.form_of(connection)


def own_primary(session: Session, site: Site) -> Connection | None:
    """The primary connection, unless it is one that other sites use too."""
    found = service.primary_connection(session, site)
    return found if found is not None and found.site_id == site.id else None


def made_primary(session: Session, site: Site, connection: Connection) -> int:
    """What is saved here is what the site sends with."""
    service.set_primary(session, site, connection, actor=actor(), now=now())
    return replan.primary_changed(session, site, now())


def general_page(form: ConnectionForm) -> str:
    """The page, with how the site stands."""
    here = url_for("connections.general", slug=g.site.slug)
    return render_template("connections/general.html", **editor.context(form, here))
