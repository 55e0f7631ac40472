"""Settings > General: what a site sends with, and what stands in for it."""

from flask import Blueprint, g, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy.orm import Session

from webapp.accounts.rights import Right
from webapp.connections import editor, lifecycle, service
from webapp.connections.chain import GONE, Chain, chain_of, is_move, sent_chain
from webapp.connections.editor import STATUS, Refused, tell_saved, told_moved
from webapp.connections.forms import ConnectionForm, kinds
from webapp.connections.models import Connection
from webapp.connections.uses import Listed, listed
from webapp.delivery import replan
from webapp.delivery.replan import Replanned
from webapp.sites.models import Site
from webapp.web import Group, actor, db, menu_entry, now, requires, see_other, tell
from webapp.words import Tone

bp = Blueprint("connections", __name__)

menu_entry(bp, "general", _l("General"), group=Group.SETTINGS, order=10, covers=("save_general",))


@bp.get("/sites/<slug>/settings/general")
@requires(Right.EDIT_SETTINGS)
def general(slug: str) -> ResponseReturnValue:
    """The primary connection as it is stored."""
    return shared_page() if sends_by_shared() else general_page(stored_form())


@bp.post("/sites/<slug>/settings/general")
@requires(Right.EDIT_SETTINGS)
def save_general(slug: str) -> ResponseReturnValue:
    """Save the primary connection and the chain, and move the mail that waits; then sign in, where
    asked to."""
    then = request.form.get("then", "")
    if sends_by_shared():
        return save_chain_alone(then)
    form = stored_form()
    if then.startswith("remove:") or is_move(then):
        return general_page(form)
    editor.take_account(form, then)
    try:
        saved = editor.save(form, find=own_primary, finish=follow, signs_in=then == "authorize")
    except Refused as refused:
        form.show(refused.connection)
        form.show_app(refused.app)
        return general_page(form), 422
    except LookupError:
        return general_page(form, error=_(GONE)), 422
    if then == "authorize" and (address := editor.sign_in_address(form, saved)):
        return see_other(address)
    tell_saved(saved)
    return see_other(url_for("connections.general", slug=slug))


# ---- the primary connection ----


def stored_form() -> ConnectionForm:
    """The form of the site's own primary connection, filled with what was sent if anything was."""
    with db().read() as session:
        connection = own_primary(session, g.site)
    return editor.form_of(connection)


def own_primary(session: Session, site: Site) -> Connection | None:
    """The primary connection, unless it is one that other sites use too."""
    found = service.primary_connection(session, site)
    return found if found is not None and found.site_id == site.id else None


def follow(session: Session, site: Site, connection: Connection, turned: bool) -> Replanned:
    """What is saved here is what the site sends with, and the chain is what stands in for it."""
    chosen = service.set_primary(session, site, connection, actor=actor(), now=now())
    other_chain = save_chain(session, site)
    if not (turned or chosen or other_chain):
        return Replanned()
    return replan.routing_changed(session, site, now())


def sends_by_shared() -> bool:
    """Whether the site in hand sends by what every site may choose."""
    with db().read() as session:
        found = service.primary_connection(session, g.site)
    return found is not None and service.is_shared(found)


# ---- the chain ----


def save_chain(session: Session, site: Site) -> bool:
    """Store the chain that was sent; returns whether it is another one than before.

    Raises LookupError for a connection that the site may not choose.
    """
    chain = sent_chain(session, site)
    if chain is None:
        return False
    return lifecycle.set_backups(session, site, chain, actor=actor(), now=now())


def save_chain_alone(then: str) -> ResponseReturnValue:
    """The same on the page that has no connection to save."""
    if is_move(then):
        return shared_page()
    try:
        with db().write() as session:
            site = session.get_one(Site, g.site.id)
            other = save_chain(session, site)
            moved = replan.routing_changed(session, site, now()) if other else Replanned()
    except LookupError:
        return shared_page(error=_(GONE)), 422
    tell(Tone.GOOD, told_moved(moved), strong=_("Settings saved."))
    return see_other(url_for("connections.general", slug=g.site.slug))


# ---- showing ----


def general_page(form: ConnectionForm, error: str = "") -> str:
    """The page, with how the site stands."""
    rows, chain = rows_and_chain(error)
    here = url_for("connections.general", slug=g.site.slug)
    return render_template(
        "connections/general.html",
        chain=chain,
        choice=choice_of(rows),
        **editor.context(form, here),
    )


def shared_page(error: str = "") -> str:
    """The page of a site that sends by what every site may choose."""
    rows, chain = rows_and_chain(error)
    return render_template(
        "connections/general_shared.html",
        row=next(row for row in rows if row.is_primary),
        chain=chain,
        choice=choice_of(rows),
        kinds=kinds(),
        status=STATUS,
        here=url_for("connections.general", slug=g.site.slug),
    )


def rows_and_chain(error: str) -> tuple[list[Listed], Chain]:
    """What the site may send by, and what of it stands in."""
    with db().read() as session:
        rows = listed(session, g.site, now())
        return rows, chain_of(session, g.site, rows, error)


def choice_of(rows: list[Listed]) -> list[Listed]:
    """What can be made the primary connection; empty where there is no choice."""
    found = [row for row in rows if row.is_primary or row.is_usable]
    return found if any(not row.is_primary for row in found) else []
