"""Settings > Email Log and Settings > Misc: what is kept of a site's mail, what happens to it, and
the end of the site.
"""

from collections.abc import Mapping

from flask import Blueprint, Response, g, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from sqlalchemy.orm import Session

from webapp import web
from webapp.accounts.models import Dismissal
from webapp.accounts.rights import Right
from webapp.delivery import replan
from webapp.fields import FieldErrors
from webapp.forms import refuse
from webapp.maillog import retention
from webapp.maillog.retention import COUNTED, Kept, Policy
from webapp.policy import export, removal
from webapp.policy.forms import (
    MEANING,
    DeleteForm,
    MiscForm,
    RetentionForm,
    misc_form,
    retention_form,
)
from webapp.show import number
from webapp.sites import settings
from webapp.sites.banners import errors_notice
from webapp.sites.models import Mode, Site, SiteSpace
from webapp.web import Group, actor, db, menu_entry, now, requires, see_other, tell
from webapp.words import Tone

bp = Blueprint("policy", __name__)

menu_entry(
    bp, "email_log", _l("Email Log"), group=Group.SETTINGS, order=20, covers=("save_email_log",)
)
menu_entry(
    bp, "misc", _l("Misc"), group=Group.SETTINGS, order=70, covers=("save_misc", "delete_site")
)


# ---- Email Log ----


@bp.get("/sites/<slug>/settings/email-log")
@requires(Right.EDIT_SETTINGS)
def email_log(slug: str) -> ResponseReturnValue:
    """What is kept, for how long, and what it takes."""
    return email_log_page(retention_form(g.site))


@bp.post("/sites/<slug>/settings/email-log")
@requires(Right.EDIT_SETTINGS)
def save_email_log(slug: str) -> ResponseReturnValue:
    """Save it; where that deletes mail, after a question that says how much."""
    form = retention_form(g.site)
    if not form.validate():
        return email_log_page(form), 422
    texts = form.texts()
    try:
        wanted = settings.checked(g.site, texts)
    except FieldErrors as error:
        form.show(error.errors)
        return email_log_page(form), 422
    if request.form.get("sure") != "yes" and (lost := losses(wanted)):
        return web.confirm(
            title=_("Delete what is older?"),
            text=" ".join([*lost, _("That begins within a minute, and there is no way back.")]),
            button=_("Save and delete"),
            back=url_for("policy.email_log", slug=slug),
            **{field.name: str(field.data or "") for field in form},
        )
    with db().write() as session:
        site = session.get_one(Site, g.site.id)
        settings.set_site(session, site, actor=actor(), now=now(), **texts)
    tell(Tone.GOOD, "", strong=_("Settings saved."))
    return see_other(url_for("policy.email_log", slug=slug))


def email_log_page(form: RetentionForm) -> str:
    """The page, with what the log takes by the last count."""
    with db().read() as session:
        space = session.get(SiteSpace, g.site.id)
    return render_template("sites/email_log.html", form=form, space=space)


def policy_of(site: Site) -> Policy:
    """How long a site keeps what, as it is stored."""
    return Policy(
        site_id=site.id,
        log_days=site.log_days,
        body_days=site.body_days,
        details_days=site.details_days,
    )


def losses(wanted: Mapping[str, object]) -> list[str]:
    """What saving this deletes at once, a sentence for each part."""
    days = {name: value if isinstance(value, int) else None for name, value in wanted.items()}
    would = Policy(
        site_id=g.site.id,
        log_days=days["log_days"],
        body_days=days["body_days"],
        details_days=days["details_days"],
    )
    with db().read() as session:
        found = retention.more_to_go(session, policy_of(g.site), would, now())
    said = {
        Kept.LOG: lambda n: ngettext(
            "%(n)s mail goes from the log, with everything of it.",
            "%(n)s mails go from the log, with everything of them.",
            n,
            n=counted(n),
        ),
        Kept.BODY: lambda n: ngettext(
            "Of %(n)s mail the mail itself with its attachments is deleted.",
            "Of %(n)s mails the mail itself with its attachments is deleted.",
            n,
            n=counted(n),
        ),
        Kept.DETAILS: lambda n: ngettext(
            "Of %(n)s mail the conversation with the remote is deleted.",
            "Of %(n)s mails the conversation with the remote is deleted.",
            n,
            n=counted(n),
        ),
    }
    return [said[kept](found[kept]) for kept in reversed(Kept) if found.get(kept)]


def counted(count: int) -> str:
    """A number that was counted only so far."""
    return _("more than %(n)s", n=number(COUNTED)) if count > COUNTED else number(count)


# ---- Misc ----


@bp.get("/sites/<slug>/settings/misc")
@requires(Right.EDIT_SETTINGS)
def misc(slug: str) -> ResponseReturnValue:
    """Everything else."""
    return misc_page(stored_misc())


@bp.post("/sites/<slug>/settings/misc")
@requires(Right.EDIT_SETTINGS)
def save_misc(slug: str) -> ResponseReturnValue:
    """Save it; a mode counts at once, for waiting mail too."""
    form = stored_misc()
    form.validate()
    touched = 0
    try:
        if any(field.errors for field in form):
            form.show(errors_of(form))
            return misc_page(form), 422
        with db().write() as session:
            site = session.get_one(Site, g.site.id)
            changes = settings.set_site(session, site, actor=actor(), now=now(), **form.texts())
            if changes.keys() & settings.OF_THE_MODE:
                touched = replan.mode_changed(session, site, now())
            hide_errors(session, site, hide=bool(form.hide_errors.data))
    except FieldErrors as error:
        form.show(error.errors)
        return misc_page(form), 422
    tell(Tone.GOOD, told_of(Mode(site.mode), touched), strong=_("Settings saved."))
    return see_other(url_for("policy.misc", slug=slug))


def errors_of(form: MiscForm) -> Mapping[str, str]:
    """What the settings themselves find, so that all is said at once."""
    try:
        settings.checked(g.site, form.texts())
    except FieldErrors as error:
        return error.errors
    return {}


def told_of(mode: Mode, touched: int) -> str:
    """What a mode did to the mail that waits."""
    if not touched:
        return ""
    if mode is Mode.HOLD:
        said = ngettext("%(num)s waiting mail is held.", "%(num)s waiting mails are held.", touched)
    elif mode is Mode.REDIRECT_TO:
        said = ngettext(
            "%(num)s waiting mail now goes to the other address.",
            "%(num)s waiting mails now go to the other address.",
            touched,
        )
    else:
        said = ngettext(
            "%(num)s waiting mail will not be sent.",
            "%(num)s waiting mails will not be sent.",
            touched,
        )
    return str(said)


def stored_misc() -> MiscForm:
    """The form as it is stored, or as it was sent."""
    with db().read() as session:
        hidden = session.get(Dismissal, (web.user().id, errors_notice(g.site)))
    return misc_form(g.site, hides_errors=hidden is not None)


def hide_errors(session: Session, site: Site, *, hide: bool) -> None:
    """Whether whoever asks is told on the site's pages that its last mail failed."""
    key = (web.user().id, errors_notice(site))
    stored = session.get(Dismissal, key)
    if hide and stored is None:
        session.add(Dismissal(user_id=key[0], notice=key[1], at=now()))
    elif not hide and stored is not None:
        session.delete(stored)


def misc_page(form: MiscForm) -> str:
    """The page, with how much mail a mode would touch."""
    with db().read() as session:
        waiting = replan.site_waiting(session, g.site.id)
    return render_template("sites/misc.html", form=form, meaning=MEANING, waiting=waiting)


# ---- the end of a site ----


@bp.get("/sites/<slug>/settings/misc/export")
@requires(Right.DELETE_SITE)
def export_site(slug: str) -> ResponseReturnValue:
    """Its settings and its log as a file, without mail and without secrets."""
    name = f"{g.site.slug}-{now():%Y-%m-%d}.jsonl"
    return Response(
        export.lines(db(), g.site.id),
        mimetype="application/x-ndjson",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


@bp.route("/sites/<slug>/settings/misc/delete", methods=["GET", "POST"])
@requires(Right.DELETE_SITE)
def delete_site(slug: str) -> ResponseReturnValue:
    """Delete the site, once its name was typed."""
    form = DeleteForm()
    if request.method == "GET":
        return delete_page(form)
    if (form.sure_name.data or "") != g.site.name:
        refuse(form, "sure_name", _("Enter the name as it stands above."))
        return delete_page(form), 422
    with db().write() as session:
        site = session.get_one(Site, g.site.id)
        stopped = removal.delete_site(session, site, actor=actor(), now=now())
    text = _("Its log is being deleted now, a little at a time.")
    if stopped:
        text = f"{told_of(Mode.DO_NOT_SEND, stopped)} {text}"
    tell(Tone.GOOD, text, strong=_("%(name)s is deleted.", name=g.site.name))
    return see_other(web.home_url())


def delete_page(form: DeleteForm) -> str:
    """The question, with what goes."""
    with db().read() as session:
        waiting = replan.site_waiting(session, g.site.id)
        space = session.get(SiteSpace, g.site.id)
    return render_template("sites/delete.html", form=form, waiting=waiting, space=space)
