"""Settings > General: what a site sends with."""

from collections.abc import Mapping

from flask import Blueprint, g, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from sqlalchemy.orm import Session

from webapp import web
from webapp.accounts.rights import Right
from webapp.connections import service
from webapp.connections.forms import DOTS, LIMITS, ConnectionForm, connection_form
from webapp.connections.models import Connection
from webapp.connections.service import FormValues, PrivateHost
from webapp.delivery import replan
from webapp.delivery.lanes import Limits
from webapp.delivery.models import Lane
from webapp.fields import FieldErrors
from webapp.mailers import registry
from webapp.sites.models import Site
from webapp.web import Group, actor, db, installation, menu_entry, now, requires, see_other, tell
from webapp.words import Tone

bp = Blueprint("connections", __name__)

menu_entry(bp, "general", _l("General"), group=Group.SETTINGS, order=10, covers=("save_general",))

MICROSOFT = ("live.com", "hotmail.com", "outlook.com", "office.com", "office365.com")
"""Last two labels of hosts where password sign-in for SMTP is being switched off."""


@bp.get("/sites/<slug>/settings/general")
@requires(Right.EDIT_SETTINGS)
def general(slug: str) -> ResponseReturnValue:
    """The primary connection as it is stored."""
    return general_page(stored_form())


@bp.post("/sites/<slug>/settings/general")
@requires(Right.EDIT_SETTINGS)
def save_general(slug: str) -> ResponseReturnValue:
    """Save the primary connection, and move the mail that waits."""
    form = stored_form()
    if request.form.get("then", "").startswith("remove:"):
        return general_page(form)
    try:
        waiting = save(form)
    except FieldErrors as error:
        form.show(error)
        return general_page(form), 422
    text = ngettext(
        "%(num)s waiting mail now leaves by it.", "%(num)s waiting mails now leave by it.", waiting
    )
    tell(Tone.GOOD, text if waiting else "", strong=_("Settings saved."))
    return see_other(url_for("connections.general", slug=slug))


def stored_form() -> ConnectionForm:
    """The form of the site's own primary connection, filled with what was sent if anything was."""
    with db().read() as session:
        connection = own_primary(session, g.site)
        lane = session.get(Lane, connection.lane_id) if connection and connection.lane_id else None
    limits = {name: getattr(lane, name) for name in LIMITS} if lane else {}
    return connection_form(g.site, connection, limits)


def own_primary(session: Session, site: Site) -> Connection | None:
    """The primary connection, unless it is one that other sites use too."""
    found = service.primary_connection(session, site)
    return found if found is not None and found.site_id == site.id else None


def save(form: ConnectionForm) -> int:
    """Store what was entered; returns how many waiting mails it moved. Raises FieldErrors."""
    values = form.values()
    problems = private_host(values, form.connection)
    limits: Mapping[str, int | None] = {}
    try:
        limits = form.limit_values()
    except FieldErrors as error:
        problems |= error.errors
    with db().write() as session:
        site = session.get_one(Site, g.site.id)
        try:
            connection = service.save_connection(
                session,
                installation().keyring,
                site,
                own_primary(session, site),
                values,
                actor=actor(),
                now=now(),
            )
        except FieldErrors as error:
            problems = {**error.errors, **problems}
        if problems:
            raise FieldErrors(problems)
        service.set_primary(session, site, connection, actor=actor(), now=now())
        return spread(session, site, connection, Limits(**limits))


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
    waiting = replan.connection_saved(
        session, connection, lane_key=mailer.lane_key(), limits=limits, now=now()
    )
    return waiting + replan.primary_changed(session, site, now())


def general_page(form: ConnectionForm) -> str:
    """The page, with how the site stands."""
    return render_template(
        "connections/general.html",
        form=form,
        kinds=registry(),
        dots=DOTS,
        microsoft=is_microsoft(form.connection),
        paces=paces(form),
    )


def is_microsoft(connection: Connection | None) -> bool:
    """Whether it signs in to Microsoft with a password."""
    settings = connection.settings.get(connection.mailer, {}) if connection else {}
    host = str(settings.get("host", "")).lower().rstrip(".")
    return ".".join(host.split(".")[-2:]) in MICROSOFT


def paces(form: ConnectionForm) -> list[str]:
    """The limits in words; empty when there are none."""
    words = {
        "concurrency": _l("%(n)s at a time"),
        "per_minute": _l("%(n)s a minute"),
        "per_hour": _l("%(n)s an hour"),
        "per_day": _l("%(n)s a day"),
    }
    return [
        str(words[name]) % {"n": form.limits[name].data}
        for name in LIMITS
        if form.limits[name].data
    ]
