"""Settings > Alerts of a site, the installation's System page, and one page for each incident."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from flask import Blueprint, g, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy.orm import Session
from werkzeug.exceptions import TooManyRequests

from webapp import schema, web
from webapp.accounts.rights import Right
from webapp.connections import service as connections
from webapp.connections.forms import OUTLOOK
from webapp.delivery.models import Heartbeat
from webapp.disk import free_bytes
from webapp.fields import N_, FieldErrors
from webapp.forms import Form, Radios, Text, refuse
from webapp.incidents import channel, reach, service, targets
from webapp.incidents import sender as alerts_by
from webapp.incidents.kinds import Said, say
from webapp.incidents.letters import since_of
from webapp.incidents.models import AlertTarget, Channel, Incident, Notification, Occasion, Told
from webapp.incidents.sender import AlertForm
from webapp.incidents.targets import NewTarget
from webapp.sites.models import Site
from webapp.web import Group, actor, db, installation, menu_entry, now, requires, see_other, tell
from webapp.words import Status, Tone

bp = Blueprint("incidents", __name__)

menu_entry(
    bp,
    "alerts",
    _l("Alerts"),
    group=Group.SETTINGS,
    order=30,
    covers=("add", "switch", "remove", "sample", "silence", "incident"),
)
menu_entry(
    bp,
    "system",
    _l("System"),
    group=Group.SYSTEM,
    order=90,
    icon="gauge",
    covers=(
        "save_connection",
        "remove_connection",
        "add_system",
        "switch_system",
        "remove_system",
        "sample_system",
        "system_incident",
    ),
)

MOST_TESTS = 10
"""Samples a minute, of a site or of the installation."""

TOLD: Mapping[str, Status] = {
    Told.SENT: Status(icon="delivered", tone=Tone.GOOD, word=N_("Told")),
    Told.DUE: Status(icon="queued", tone=Tone.INFO, word=N_("On its way")),
    Told.FAILED: Status(icon="failed", tone=Tone.BAD, word=N_("Not reached")),
    Told.DROPPED: Status(icon="blocked", tone=Tone.HOLD, word=N_("Not told")),
}
REASONS: Mapping[str, str] = {
    "private-address": N_("The address leads into a private network, which is not allowed here."),
    "not-https": N_("Only https is called."),
    "no-address": N_("The address cannot be read."),
    "unknown-host": N_("The name of the host is not known."),
    "certificate": N_("The certificate of the host is not trusted here."),
    "proxy": N_("The proxy lets nothing through."),
    "timeout": N_("No answer came in time."),
    "no-connection": N_("No connection."),
    "sealed": N_("Its key cannot be opened. Remove it and add it again."),
    channel.NO_CONNECTION: N_("This installation has no alert connection."),
    channel.NOT_LINKED: N_("The alert connection is not linked with a mailbox."),
    channel.IS_BROKEN: N_("The alert connection is what broke."),
}
OCCASIONS: Mapping[str, str] = {
    Occasion.OPENED: N_("Began"),
    Occasion.CLOSED: N_("Over"),
    Occasion.TEST: N_("Sample"),
}


RECIPES = (
    (
        "Python",
        """import hashlib, hmac, time

def is_genuine(header: str, body: bytes, key: str) -> bool:
    given = dict(part.split("=", 1) for part in header.split(","))
    wanted = hmac.new(key.encode(), given["t"].encode() + b"." + body, hashlib.sha256)
    fresh = abs(time.time() - int(given["t"])) < 300
    return fresh and hmac.compare_digest(wanted.hexdigest(), given["v1"])""",
    ),
    (
        "PHP",
        """function is_genuine(string $header, string $body, string $key): bool {
    parse_str(str_replace(',', '&', $header), $given);
    $wanted = hash_hmac('sha256', $given['t'] . '.' . $body, $key);
    return abs(time() - (int) $given['t']) < 300 && hash_equals($wanted, $given['v1']);
}""",
    ),
    (
        "Node",
        """const crypto = require("node:crypto");

function isGenuine(header, body, key) {
  const given = Object.fromEntries(header.split(",").map((part) => part.split("=")));
  const wanted = crypto.createHmac("sha256", key).update(given.t + ".").update(body).digest("hex");
  const fresh = Math.abs(Date.now() / 1000 - Number(given.t)) < 300;
  return fresh && wanted.length === given.v1.length &&
    crypto.timingSafeEqual(Buffer.from(wanted), Buffer.from(given.v1));
}""",
    ),
)
"""How a receiver proves a signature. `body` is what came, byte by byte."""


@bp.app_template_global()
def recipes() -> tuple[tuple[str, str], ...]:
    """Pairs of language and lines."""
    return RECIPES


class TargetForm(Form):
    """Somebody to tell."""

    channel = Radios(
        _l("How"), [(Channel.EMAIL.value, _l("Email")), (Channel.WEBHOOK.value, _l("Webhook"))]
    )
    address = Text(
        _l("Address"),
        description=_l("An email address, or the https address of a webhook."),
        limit=2000,
    )


class SilenceForm(Form):
    """The dead man's switch of a site."""

    silent_hours = Text(
        _l("Hours without mail"),
        description=_l(
            "When the site hands in no mail for so many hours, that is an incident. Empty: never."
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A target, and what became of the last notification to it."""

    target: AlertTarget
    status: Status | None
    why: str
    at: datetime | None
    is_due: bool


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An incident in words, for a list."""

    incident: Incident
    said: Said
    since: datetime
    waiting: int
    url: str


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Who was told of an incident, and how it went."""

    occasion: str
    address: str
    status: Status
    why: str
    at: datetime


# ---- a site's alerts ----


@bp.get("/sites/<slug>/settings/alerts")
@requires(Right.EDIT_SETTINGS)
def alerts(slug: str) -> ResponseReturnValue:
    """Whom this site tells of what."""
    return alerts_page(TargetForm(), silence_form())


@bp.post("/sites/<slug>/settings/alerts")
@requires(Right.EDIT_SETTINGS)
def add(slug: str) -> ResponseReturnValue:
    """Tell somebody from now on. A key stands in this one answer and nowhere else."""
    form = TargetForm()
    made = add_target(form, g.site.id)
    if made is None:
        return alerts_page(form, silence_form()), 422
    return alerts_page(TargetForm(formdata=None), silence_form(), made)


@bp.post("/sites/<slug>/settings/alerts/silence")
@requires(Right.EDIT_SETTINGS)
def silence(slug: str) -> ResponseReturnValue:
    """After how long without mail it is an incident."""
    form = SilenceForm()
    try:
        with db().write() as session:
            site = session.get_one(Site, g.site.id)
            text = form.silent_hours.data or ""
            targets.set_silence(session, site, text, actor=actor(), now=now())
    except FieldErrors as error:
        show_errors(form, error)
        return alerts_page(TargetForm(formdata=None), form), 422
    tell(Tone.GOOD, "", strong=_("Saved."))
    return see_other(url_for("incidents.alerts", slug=slug))


@bp.post("/sites/<slug>/settings/alerts/<target_uid>/switch")
@requires(Right.EDIT_SETTINGS)
def switch(slug: str, target_uid: str) -> ResponseReturnValue:
    """Off, or on again."""
    return switched(g.site.id, target_uid, url_for("incidents.alerts", slug=slug))


@bp.route("/sites/<slug>/settings/alerts/<target_uid>/remove", methods=["GET", "POST"])
@requires(Right.EDIT_SETTINGS)
def remove(slug: str, target_uid: str) -> ResponseReturnValue:
    """Tell it nothing any more, after a question."""
    return removed(g.site.id, target_uid, url_for("incidents.alerts", slug=slug))


@bp.post("/sites/<slug>/settings/alerts/<target_uid>/sample")
@requires(Right.EDIT_SETTINGS)
def sample(slug: str, target_uid: str) -> ResponseReturnValue:
    """Send a sample; the page then says what became of it."""
    return sampled(g.site.id, target_uid, url_for("incidents.alerts", slug=slug))


@bp.get("/sites/<slug>/incidents/<incident_uid>")
@requires(Right.VIEW_LOG)
def incident(slug: str, incident_uid: str) -> ResponseReturnValue:
    """One incident, as far as it concerns this site."""
    with db().read() as session:
        found = service.find_incident(session, incident_uid, g.site.id)
        if found is None:
            return web.not_found()
        told = told_of(session, found, g.site.id) if web.may(Right.EDIT_SETTINGS) else []
    return incident_page("incidents/incident.html", found, [g.site], told)


def alerts_page(form: TargetForm, silent: SilenceForm, made: NewTarget | None = None) -> str:
    """The page, with the key of a webhook that was added just now."""
    with db().read() as session:
        rows = target_rows(session, g.site.id)
        here = service.incidents_of_site(session, g.site.id)
        way = connections.alert_connection(session)
    return render_template(
        "incidents/alerts.html",
        form=form,
        silent=silent,
        made=made,
        rows=rows,
        shown=[shown(i, [g.site], url_of(i, g.site)) for i in here],
        by_mail=any(row.target.channel == Channel.EMAIL for row in rows),
        has_way=way is not None,
        way_works=channel.works(way),
        header=reach.HEADER,
        told_of=told_kinds(site=True),
    )


def silence_form() -> SilenceForm:
    """The form as it is stored."""
    with db().read() as session:
        hours = session.scalar(sa.select(Site.silent_hours).where(Site.id == g.site.id))
    return SilenceForm(formdata=None, data={"silent_hours": str(hours) if hours else ""})


# ---- the installation ----


@bp.get("/settings/system")
@requires(Right.SYSTEM)
def system() -> ResponseReturnValue:
    """The alert connection, whom the installation tells, what is wrong, and facts."""
    return system_page(TargetForm())


@bp.post("/settings/system")
@requires(Right.SYSTEM)
def add_system() -> ResponseReturnValue:
    """Tell somebody of every site's incidents from now on."""
    form = TargetForm()
    made = add_target(form, None)
    if made is None:
        return system_page(form), 422
    return system_page(TargetForm(formdata=None), made=made)


@bp.post("/settings/system/connection")
@requires(Right.SYSTEM)
def save_connection() -> ResponseReturnValue:
    """Save how alerts leave as mail."""
    form = alerts_by.stored_form(sent=True)
    try:
        connection = alerts_by.save(form)
    except FieldErrors as error:
        form.show(error)
        return system_page(TargetForm(formdata=None), by=form), 422
    if form.slug == OUTLOOK and request.form.get("then") == "authorize":
        return see_other(url_for("microsoft.link_alerts"))
    text = _("Send a sample to an address above, to see whether it works.")
    if channel.lacks_link(connection):
        text = _("Sign in with Microsoft now, below.")
    tell(Tone.GOOD, text, strong=_("The alert connection is saved."))
    return see_other(url_for("incidents.system", _anchor="connection"))


@bp.route("/settings/system/connection/remove", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def remove_connection() -> ResponseReturnValue:
    """Send no alerts by mail any more, after a question."""
    back = url_for("incidents.system")
    if request.form.get("sure") != "yes":
        return web.confirm(
            title=_("Remove the alert connection?"),
            text=_(
                "Its settings, its password and its link are forgotten. Only webhooks are told "
                "then."
            ),
            button=_("Remove"),
            back=back,
        )
    alerts_by.remove()
    tell(Tone.GOOD, "", strong=_("The alert connection is removed."))
    return see_other(back)


@bp.post("/settings/system/targets/<system_target_uid>/switch")
@requires(Right.SYSTEM)
def switch_system(system_target_uid: str) -> ResponseReturnValue:
    """Off, or on again."""
    return switched(None, system_target_uid, url_for("incidents.system"))


@bp.route("/settings/system/targets/<system_target_uid>/remove", methods=["GET", "POST"])
@requires(Right.SYSTEM)
def remove_system(system_target_uid: str) -> ResponseReturnValue:
    """Tell it nothing any more, after a question."""
    return removed(None, system_target_uid, url_for("incidents.system"))


@bp.post("/settings/system/targets/<system_target_uid>/sample")
@requires(Right.SYSTEM)
def sample_system(system_target_uid: str) -> ResponseReturnValue:
    """Send a sample; the page then says what became of it."""
    return sampled(None, system_target_uid, url_for("incidents.system"))


@bp.get("/settings/system/<any_incident_uid>")
@requires(Right.SYSTEM)
def system_incident(any_incident_uid: str) -> ResponseReturnValue:
    """One incident, with every site that it concerns."""
    with db().read() as session:
        found = service.find_incident(session, any_incident_uid)
        if found is None:
            return web.not_found()
        sites = sites_of(session, found)
        told = told_of(session, found, None)
    return incident_page("incidents/system_incident.html", found, sites, told)


def system_page(
    form: TargetForm,
    *,
    by: AlertForm | None = None,
    made: NewTarget | None = None,
) -> str:
    """The page, with what was sent where it was refused."""
    with db().read() as session:
        sender = alerts_by.sender(session)
        rows = target_rows(session, None)
        open_ = [shown(i, sites_of(session, i), url_of(i)) for i in service.open_incidents(session)]
        over = [
            shown(i, sites_of(session, i), url_of(i)) for i in service.closed_incidents(session)
        ]
        workers = session.scalars(sa.select(Heartbeat).order_by(Heartbeat.name)).all()
    return render_template(
        "incidents/system.html",
        form=form,
        by=by or alerts_by.stored_form(sent=False),
        sender=sender,
        **alerts_by.context(),
        made=made,
        rows=rows,
        shown=open_,
        over=over,
        header=reach.HEADER,
        told_of=told_kinds(site=False),
        facts=facts(),
        workers=workers,
    )


def facts() -> list[tuple[str, str]]:
    """What somebody who helps would ask first."""
    settings = installation().settings
    mega = free_bytes(settings.instance) // (1024 * 1024)
    return [
        (_("Address"), settings.url),
        (_("Database"), "SQLite" if db().is_sqlite else "PostgreSQL"),
        (_("Revision"), schema.current(db()) or ""),
        (_("Room on the disk"), _("%(n)s MB", n=f"{mega:,}")),
    ]


# ---- both ----


def add_target(form: TargetForm, site_id: int | None) -> NewTarget | None:
    """Add what was entered; None when it was refused, with the reason at the field."""
    try:
        with db().write() as session:
            return targets.add_target(
                session,
                installation().keyring,
                session.get_one(Site, site_id) if site_id is not None else None,
                channel=form.channel.data or "",
                address=form.address.data or "",
                actor=actor(),
                now=now(),
            )
    except FieldErrors as error:
        show_errors(form, error)
        return None


def switched(site_id: int | None, uid: str, back: str) -> ResponseReturnValue:
    """Switch a target, and go back."""
    with db().write() as session:
        found = targets.find_target(session, site_id, uid)
        if found is None:
            return web.not_found()
        targets.switch_target(session, found, actor=actor(), now=now())
    said = _("%(address)s is told again.") if found.is_on else _("%(address)s is not told now.")
    tell(Tone.GOOD, "", strong=said % {"address": found.address})
    return see_other(back)


def removed(site_id: int | None, uid: str, back: str) -> ResponseReturnValue:
    """Ask, then remove a target."""
    with db().read() as session:
        found = targets.find_target(session, site_id, uid)
    if found is None:
        return web.not_found()
    if request.form.get("sure") != "yes":
        return web.confirm(
            title=_("Remove %(address)s?", address=found.address),
            text=_(
                "It is told of nothing any more. A webhook gets another key when it is added again."
            ),
            button=_("Remove"),
            back=back,
        )
    with db().write() as session:
        target = session.get_one(AlertTarget, found.id)
        targets.remove_target(session, target, actor=actor(), now=now())
    tell(Tone.GOOD, "", strong=_("%(address)s is removed.", address=found.address))
    return see_other(back)


def sampled(site_id: int | None, uid: str, back: str) -> ResponseReturnValue:
    """Queue a sample; 429 when there were ten within a minute."""
    with db().write() as session:
        found = targets.find_target(session, site_id, uid)
        if found is None:
            return web.not_found()
        if service.tests_lately(session, site_id, now()) >= MOST_TESTS:
            raise TooManyRequests(retry_after=60)
        service.test_target(session, found, now())
    tell(
        Tone.INFO,
        _("What became of it stands in the list within seconds."),
        strong=_("A sample is on its way to %(address)s.", address=found.address),
    )
    return see_other(back)


def target_rows(session: Session, site_id: int | None) -> list[Row]:
    """The targets, with what became of the last notification to each."""
    found = []
    for target in service.targets_of(session, site_id):
        due = session.scalar(
            sa.select(Notification.id)
            .where(
                Notification.target_id == target.id,
                Notification.told == Told.DUE,
                Notification.occasion == Occasion.TEST,
            )
            .limit(1)
        )
        status = TOLD[Told.DUE] if due else TOLD.get(target.last_told)
        found.append(
            Row(
                target=target,
                status=status,
                why="" if due else reason(target.last_told, target.last_words),
                at=target.last_at,
                is_due=due is not None,
            )
        )
    return found


def reason(told: str, words: str) -> str:
    """Why somebody was not told; what a remote said stays as it is."""
    if told not in {Told.FAILED, Told.DROPPED} or not words:
        return ""
    kind, _space, status = words.partition(" ")
    if kind == "redirect" and status.isdigit():
        said = _(
            "It answered with status %(status)s, and redirects are not followed.", status=status
        )
        return str(said)
    if kind == "status" and status.isdigit():
        return str(_("It answered with status %(status)s.", status=status))
    return str(_(REASONS[words])) if words in REASONS else words


def shown(incident: Incident, sites: Sequence[Site], url: str) -> Shown:
    """An incident in the language of the page."""
    waiting = incident.details.get("waiting", {})
    return Shown(
        incident=incident,
        said=say(incident, _, over=False),
        since=since_of(incident),
        waiting=sum(waiting.get(str(site.id), 0) for site in sites),
        url=url,
    )


def url_of(incident: Incident, site: Site | None = None) -> str:
    """Its page."""
    if site is not None:
        return url_for("incidents.incident", slug=site.slug, incident_uid=incident.uid)
    return url_for("incidents.system_incident", any_incident_uid=incident.uid)


def sites_of(session: Session, incident: Incident) -> Sequence[Site]:
    """The sites that it concerns, by name."""
    keys = service.sites_of(session, incident.id)
    there = sa.select(Site).where(Site.id.in_(keys), Site.deleted_at.is_(None))
    return session.scalars(there.order_by(Site.name)).all()


def told_of(session: Session, incident: Incident, site_id: int | None) -> list[Notice]:
    """Who was told; of a site only its own targets."""
    query = (
        sa.select(Notification, AlertTarget.address)
        .join(AlertTarget, AlertTarget.id == Notification.target_id)
        .where(Notification.incident_id == incident.id)
        .order_by(Notification.id)
    )
    if site_id is not None:
        query = query.where(AlertTarget.site_id == site_id)
    return [
        Notice(
            occasion=OCCASIONS[row.occasion],
            address=address,
            status=TOLD[row.told],
            why=reason(row.told, row.words),
            at=row.sent_at or row.created_at,
        )
        for row, address in session.execute(query)
    ]


def incident_page(
    template: str, found: Incident, sites: Sequence[Site], told: Sequence[Notice]
) -> str:
    """What happened, since when, what it stopped, who can act, and who was told."""
    return render_template(
        template,
        incident=found,
        said=say(found, _, over=False),
        over=say(found, _, over=True) if found.closed_at else None,
        since=since_of(found),
        waiting=shown(found, sites, "").waiting,
        sites=sites,
        told=told,
    )


def told_kinds(*, site: bool) -> list[str]:
    """What is told of, in general words."""
    listed = [
        N_("A link, a login or an app registration is refused: mail is kept until somebody acts."),
        N_("A connection has taken no mail for 15 minutes."),
        N_("Mail was given up, or may not have gone out. Once for each reason, not for each mail."),
        N_("A secret expires in 60, 30, 7 and 1 days, or a link was not renewed for 60 days."),
        N_("No mail came for so many hours, where a site asks for it."),
    ]
    if not site:
        listed += [
            N_("The books of a site do not add up, the disk is nearly full, or alerts fail."),
        ]
    return listed


def show_errors(form: Form, error: FieldErrors) -> None:
    """Put what the service found at the fields."""
    for name, sentence in error.errors.items():
        refuse(form, name, _(sentence))
