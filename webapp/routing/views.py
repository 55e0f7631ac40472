"""Settings > Smart Routing, Settings > Controls, and the dry run of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import sqlalchemy as sa
from flask import Blueprint, g, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy.orm import Session
from wtforms import TextAreaField

from webapp import ids, web
from webapp.accounts.rights import Right
from webapp.connections.editor import told_moved, wake
from webapp.delivery.models import State
from webapp.fields import FieldErrors
from webapp.forms import Form, Text, refuse
from webapp.routing import rules, trial
from webapp.routing.conditions import Operator, Property
from webapp.routing.forms import (
    ACTIONS,
    OPERATORS,
    PROPERTIES,
    Builder,
    cards_of,
    pack,
    press,
    read_cards,
    target_field,
    with_errors,
)
from webapp.routing.models import RuleKind
from webapp.routing.presets import PRESETS
from webapp.routing.rules import MAX_RULES, Draft
from webapp.routing.trial import Logged, Trial, TypedMail, Verdict
from webapp.sites.models import Credential, Site
from webapp.web import Group, actor, db, menu_entry, now, requires, see_other, tell
from webapp.words import MAIL, Status, Tone

bp = Blueprint("routing", __name__)

menu_entry(
    bp,
    "routing",
    _l("Smart Routing"),
    group=Group.SETTINGS,
    order=50,
    covers=("save_routing", "try_mail", "try_typed"),
)
menu_entry(
    bp, "controls", _l("Controls"), group=Group.SETTINGS, order=60, covers=("save_controls",)
)

SHOWN = "rules-shown"
"""A field of the form: without it what was sent is no list of rules."""
MAX_TYPED = 20_000
MOST_INITIATORS = 50

PAGES: Mapping[RuleKind, str] = {
    RuleKind.ROUTE: "routing.routing",
    RuleKind.CONTROL: "routing.controls",
}
TEMPLATES: Mapping[RuleKind, str] = {
    RuleKind.ROUTE: "routing/routing.html",
    RuleKind.CONTROL: "routing/controls.html",
}


class TryForm(Form):
    """A mail to try: one of the log, or one as it is described."""

    mail = Text(
        _l("Id of a logged mail"),
        description=_l("As its page shows it. Empty: the mail that you describe below."),
    )
    sender = Text(_l("From"), limit=MAX_TYPED)
    to = Text(_l("To"), description=_l("Several with commas between them."), limit=MAX_TYPED)
    cc = Text(_l("CC"), limit=MAX_TYPED)
    bcc = Text(_l("BCC"), limit=MAX_TYPED)
    reply_to = Text(_l("Reply-To"), limit=MAX_TYPED)
    subject = Text(_l("Subject"), limit=MAX_TYPED)
    text = TextAreaField(_l("Message"))
    headers = TextAreaField(
        _l("Further headers"), description=_l("One on each line, such as X-Campaign: Spring.")
    )
    initiator = Text(
        _l("Initiator"),
        description=_l("The name of the login or key that hands it in."),
        limit=MAX_TYPED,
    )

    @property
    def is_used(self) -> bool:
        """Whether anything was entered."""
        return any(field.data for field in self)

    def typed(self) -> TypedMail:
        """What was described."""
        return TypedMail(
            **{name: (self[name].data or "")[:MAX_TYPED] for name in TypedMail.__dataclass_fields__}
        )

    def show(self, typed: TypedMail) -> None:
        """Fill in what is known of a mail."""
        for name in TypedMail.__dataclass_fields__:
            self[name].data = getattr(typed, name)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A dry run, for the page."""

    trial: Trial
    status: Status
    headline: str
    logged: Logged | None = None
    is_partial: bool = False
    """Only what the log knows was looked at."""
    lacks_right: bool = False
    needs_content: bool = False


@dataclass(frozen=True, kw_only=True)
class ErrorAt:
    """A field to look at again, as the summary lists it."""

    id: str
    label: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Everything the two pages show that is not stored."""

    builder: Builder
    enabled: bool
    errors: Mapping[str, str] = field(default_factory=dict)
    try_form: TryForm | None = None
    tried: Tried | None = None


# ---- the two pages ----


@bp.get("/sites/<slug>/settings/routing")
@requires(Right.EDIT_SETTINGS)
def routing(slug: str) -> ResponseReturnValue:
    """By which connection mail leaves, if not by the primary one."""
    return rules_page(RuleKind.ROUTE)


@bp.post("/sites/<slug>/settings/routing")
@requires(Right.EDIT_SETTINGS)
def save_routing(slug: str) -> ResponseReturnValue:
    """Save all routes; or change the form, or try a mail, and save nothing."""
    return answer(RuleKind.ROUTE)


@bp.get("/sites/<slug>/settings/controls")
@requires(Right.EDIT_SETTINGS)
def controls(slug: str) -> ResponseReturnValue:
    """Which mail is let through, blocked, or held for a person."""
    return rules_page(RuleKind.CONTROL)


@bp.post("/sites/<slug>/settings/controls")
@requires(Right.EDIT_SETTINGS)
def save_controls(slug: str) -> ResponseReturnValue:
    """The same for controls."""
    return answer(RuleKind.CONTROL)


def answer(kind: RuleKind) -> ResponseReturnValue:
    """What a posted form asks for."""
    if SHOWN not in request.form:
        return rules_page(kind)
    do = request.form.get("do", "")
    shown = Shown(
        builder=Builder(cards=read_cards(request.form)), enabled="enabled" in request.form
    )
    if do == "try":
        return tried_page(kind, shown)
    if do:
        chosen = request.form.get("preset", "")
        builder = press(shown.builder.cards, do, kind, chosen)
        return rules_page(kind, replace(shown, builder=builder))
    return save(kind, shown)


def save(kind: RuleKind, shown: Shown) -> ResponseReturnValue:
    """Store what was sent; where it is refused, the page with everything that was typed."""
    try:
        with db().write() as session:
            saved = rules.save_rules(
                session,
                session.get_one(Site, g.site.id),
                kind,
                shown.builder.drafts,
                enabled=shown.enabled if kind is RuleKind.ROUTE else None,
                actor=actor(),
                now=now(),
            )
    except FieldErrors as error:
        cards = with_errors(shown.builder.cards, list(error.errors))
        refused = replace(shown, builder=Builder(cards=cards), errors=error.errors)
        return rules_page(kind, refused), 422
    wake()
    tell(Tone.GOOD, told_moved(saved.replanned), strong=_("Settings saved."))
    return see_other(url_for(PAGES[kind], slug=g.site.slug))


def rules_page(kind: RuleKind, shown: Shown | None = None) -> str:
    """One of the two pages, as it is stored or as it was sent."""
    with db().read() as session:
        site = session.get_one(Site, g.site.id)
        stored = rules.rules_of(session, site, kind)
        if shown is None:
            cards = cards_of(stored)
            shown = Shown(builder=Builder(cards=cards), enabled=site.routing_enabled)
        drafts = shown.builder.drafts
        is_changed = drafts != stored or (
            kind is RuleKind.ROUTE and shown.enabled != site.routing_enabled
        )
        targets = rules.targets_of(session, site) if kind is RuleKind.ROUTE else []
        initiators = initiators_of(session)
    return render_template(
        TEMPLATES[kind],
        kind=kind,
        here=url_for(PAGES[kind], slug=g.site.slug),
        shown=shown,
        builder=shown.builder,
        is_changed=is_changed,
        targets={target.uid: target for target in targets},
        has_others=any(not target.is_primary for target in targets) or bool(drafts),
        errors={name: _(sentence) for name, sentence in shown.errors.items()},
        summary=summary(kind, shown.errors),
        most=MAX_RULES,
        presets=PRESETS,
        initiators=initiators,
        try_form=shown.try_form or TryForm(prefix="try-"),
        tried=shown.tried,
        **words(kind),
    )


def words(kind: RuleKind) -> dict[str, object]:
    """What every template of these pages may call."""
    return {
        "properties": PROPERTIES,
        "operators": OPERATORS,
        "initiator": Property.INITIATOR,
        "actions": ACTIONS,
        "target_field": target_field(kind),
        "pack": pack,
        "clause": clause,
        "Verdict": Verdict,
    }


def initiators_of(session: Session) -> list[str]:
    """Names of the site's logins and keys, to pick from."""
    query = (
        sa.select(Credential.label)
        .where(
            Credential.site_id == g.site.id, Credential.label != "", Credential.revoked_at.is_(None)
        )
        .order_by(Credential.label)
        .distinct()
        .limit(MOST_INITIATORS)
    )
    return list(session.scalars(query))


def clause(condition: Mapping[str, str]) -> str:
    """A condition in words; what was not chosen yet is left out."""
    prop, operator = condition["property"], condition["operator"]
    told = (
        _(PROPERTIES[Property(prop)]) if prop in set(Property) else "",
        _(OPERATORS[Operator(operator)]) if operator in set(Operator) else "",
        _("“%(text)s”", text=condition["value"]),
    )
    return " ".join(filter(None, told))


_LABELS = {
    "name": _l("Name"),
    "connection": _l("Send with"),
    "action": _l("Action"),
    "property": _l("Property"),
    "operator": _l("Operator"),
    "value": _l("Value"),
}


def summary(kind: RuleKind, errors: Mapping[str, str]) -> list[ErrorAt]:
    """The fields to look at again, in the order of the page."""
    found = []
    for name, sentence in errors.items():
        number, _dash, rest = name.partition("-")
        if not rest:
            found.append(ErrorAt(id="add", label=_("Rules"), sentence=_(sentence)))
            continue
        label = _(
            "Rule %(n)s, %(field)s",
            n=int(number.removeprefix("r")) + 1,
            field=_LABELS[rest.rpartition("-")[2]],
        )
        found.append(ErrorAt(id=name, label=label, sentence=_(sentence)))
    return found


# ---- the dry run ----


@bp.get("/sites/<slug>/settings/routing/try")
@requires(Right.EDIT_SETTINGS)
def try_mail(slug: str) -> ResponseReturnValue:
    """What would become of a mail by the stored rules; `?mail=` names one of the log."""
    form = TryForm(formdata=None, prefix="try-")
    form.mail.data = request.args.get("mail", "").strip()
    tried = None
    if form.mail.data:
        with db().read() as session:
            tried = try_out(session, form, session.get_one(Site, g.site.id))
    return try_page(form, tried), 422 if form.mail.errors else 200


@bp.post("/sites/<slug>/settings/routing/try")
@requires(Right.EDIT_SETTINGS)
def try_typed(slug: str) -> ResponseReturnValue:
    """The same for a mail that was described."""
    form = TryForm(prefix="try-")
    with db().read() as session:
        tried = try_out(session, form, session.get_one(Site, g.site.id))
    return try_page(form, tried), 200 if tried else 422


def try_page(form: TryForm, tried: Tried | None) -> str:
    """The page of the dry run."""
    return render_template(
        "routing/try.html", try_form=form, tried=tried, focus="", **words(RuleKind.ROUTE)
    )


def tried_page(kind: RuleKind, shown: Shown) -> ResponseReturnValue:
    """The dry run of rules that are not saved yet, on their own page."""
    form = TryForm(prefix="try-")
    with db().read() as session:
        site = session.get_one(Site, g.site.id)
        tried = try_out(
            session,
            form,
            site,
            unsaved=(kind, shown.builder.drafts),
            enabled=shown.enabled if kind is RuleKind.ROUTE else None,
        )
    builder = replace(
        shown.builder,
        focus="verdict" if tried else "try-mail",
        said=tried.headline if tried else "",
    )
    page = rules_page(kind, replace(shown, builder=builder, try_form=form, tried=tried))
    return page, 200 if tried else 422


def try_out(
    session: Session,
    form: TryForm,
    site: Site,
    *,
    unsaved: tuple[RuleKind, Sequence[Draft]] | None = None,
    enabled: bool | None = None,
) -> Tried | None:
    """Try the mail of the form; None where it is not there, which the field then says."""
    ground = trial.ground_of(session, site, unsaved=unsaved, enabled=enabled)
    logged, may_read = None, web.may(Right.READ_BODY)
    queue_id = ids.plain(form.mail.data or "")
    if queue_id:
        logged = trial.logged_mail(session, site, queue_id, may_read=may_read)
        if logged is None:
            refuse(form, "mail", _("No mail of this site has this id."))
            return None
    if logged is not None and logged.mail is None:
        form.show(logged.typed)
    mail = logged.mail if logged is not None else None
    made = trial.attempt(session, site, ground, mail or trial.typed_mail(form.typed()), now())
    status, headline = verdict(made)
    return Tried(
        trial=made,
        status=status,
        headline=headline,
        logged=logged,
        is_partial=logged is not None and mail is None,
        lacks_right=not may_read,
        needs_content=trial.asks_for_content([*ground.controls, *ground.routes]),
    )


def verdict(made: Trial) -> tuple[Status, str]:
    """What would become of it, in one sentence."""
    why, leaves = made.plan.why, made.leaves
    by = leaves.connection if leaves else ""
    decider = next((rule for rule in made.routes if rule.verdict is Verdict.DECIDES), None)
    control = next((rule for rule in made.controls if rule.verdict is Verdict.DECIDES), None)
    if made.plan.blocked:
        if why["code"] == "control" and control:
            return MAIL[State.BLOCKED], _(
                "It would not be sent: control %(rule)s blocks it.", rule=named(control)
            )
        return MAIL[State.BLOCKED], _("It would not be sent: the site’s mode is Do not send.")
    if made.plan.held:
        if why["code"] == "control" and control:
            return MAIL[State.HELD], _(
                "It would be held: control %(rule)s wants a person to release it.",
                rule=named(control),
            )
        return MAIL[State.HELD], _("It would be held: so is all mail of this site.")
    if not by:
        return MAIL[State.QUEUED], _("It would wait: this site has no connection that can send.")
    if decider:
        return MAIL[State.SENT], _(
            "It would leave by %(name)s: rule %(rule)s is met.", name=by, rule=named(decider)
        )
    if not made.is_routing_on:
        return MAIL[State.SENT], _("It would leave by %(name)s, the primary connection.", name=by)
    return MAIL[State.SENT], _(
        "It would leave by %(name)s, the primary connection: no rule is met.", name=by
    )


def named(rule: trial.TriedRule) -> str:
    """`2` or `2 “Orders”`."""
    if not rule.name:
        return str(rule.number)
    return str(_("%(n)s “%(name)s”", n=rule.number, name=rule.name))
