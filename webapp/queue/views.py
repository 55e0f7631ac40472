"""The page of the queue: what each lane has before it, and the mail that waits, is held or has
failed, for whoever may manage the queue of some sites."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

from flask import Blueprint, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from sqlalchemy.orm import Session

from webapp import audit, show, web
from webapp.accounts.rights import Access, Right, allows
from webapp.connections.editor import pace
from webapp.delivery.lanes import Limits
from webapp.delivery.wake import Waker
from webapp.maillog import story
from webapp.queue import lanes as lane_service
from webapp.queue import mails as mail_service
from webapp.queue.lanes import Scope
from webapp.queue.mails import OFFERED, Do, Filter, Shown
from webapp.sites.models import Site
from webapp.sites.service import ids_beside_deleted
from webapp.web import Group, db, menu_entry, not_found, now, requires, see_other, tell
from webapp.words import Tone

bp = Blueprint("queue", __name__)

menu_entry(
    bp,
    "overview",
    _l("Queue"),
    group=Group.ALL_SITES,
    order=30,
    icon="queue",
    covers=("act",),
    anywhere=Right.MANAGE_QUEUE,
)

LANES_SHOWN = 30
SOON = timedelta(minutes=1)
"""What is drained by then needs no word."""
MOST_NAMED = 200
"""Mails that one form may name."""
HURRIES = 10
"""Commits by which mail that is put off is made due at once."""

VIEWS = {
    Shown.WAITING: _l("Queued"),
    Shown.RETRYING: _l("Retrying"),
    Shown.HELD: _l("Held"),
    Shown.FAILED: _l("Failed"),
}
BUTTONS = {Do.RELEASE: _l("Release"), Do.RETRY: _l("Retry now"), Do.CANCEL: _l("Cancel")}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the address says."""

    sites: tuple[Site, ...]
    """Those whose queue whoever asks may manage."""
    whole: Scope
    site: Site | None
    shown: Shown
    lane_id: int | None

    @property
    def filter(self) -> Filter:
        """The mail that it is about."""
        scope = self.whole if self.site is None else Scope(site_ids=(self.site.id,))
        return Filter(scope=scope, shown=self.shown, lane_id=self.lane_id)


@dataclass(frozen=True, kw_only=True)
class Tab:
    """One of the views above the list."""

    label: str
    url: str
    count: str
    here: bool


@bp.get("/queue")
@requires(Access.SIGNED_IN)
def overview() -> ResponseReturnValue:
    """Lanes and mail of every site whose queue whoever asks may manage."""
    with db().read() as session:
        asked = _asked(session)
        rows = lane_service.lane_rows(session, asked.whole, now()) if asked.sites else []
        found = mail_service.page(
            session, asked.filter, now(), before=_key("before"), after=_key("after")
        )
        tabs = _tabs(session, asked)
    lane = next((row for row in rows if row.id == asked.lane_id), None)
    all_lanes = "lanes" in request.args
    busy = [row for row in rows if not row.is_idle]
    return render_template(
        "queue/queue.html",
        asked=asked,
        lane=lane,
        lanes=rows if all_lanes else busy[:LANES_SHOWN],
        more_lanes=0 if all_lanes else len(rows) - len(busy[:LANES_SHOWN]),
        soon=now() + SOON,
        paces={row.id: paces(row.limits) for row in rows},
        lines=[story.line(row) for row in found.rows],
        tabs=tabs,
        buttons=[(what, BUTTONS[what]) for what in OFFERED[asked.shown]],
        total=_total(tabs),
        newer=_turn(after=found.newer),
        older=_turn(before=found.older),
    )


def _every(session: Session) -> tuple[int, ...] | None:
    found = ids_beside_deleted(session)
    return None if found is None else tuple(found)


def _asked(session: Session) -> Asked:
    """Read the address; a word that means nothing counts as not there, a strange site is a 404."""
    is_admin = web.user().is_admin
    sites = tuple(
        site
        for site, role in web.my_sites(session)
        if allows(Right.MANAGE_QUEUE, role=role, is_admin=is_admin)
    )
    slug = request.args.get("site", "")
    site = next((site for site in sites if site.slug == slug), None)
    if slug and site is None:
        not_found()
    status = request.args.get("status", "")
    return Asked(
        sites=sites,
        whole=Scope(site_ids=_every(session) if is_admin else tuple(site.id for site in sites)),
        site=site,
        shown=Shown(status) if status in set(Shown) else Shown.WAITING,
        lane_id=_key("lane"),
    )


def _key(name: str) -> int | None:
    return _number(request.args.get(name, ""))


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        return None
    return int(text)


def _tabs(session: Session, asked: Asked) -> list[Tab]:
    here = asked.filter
    return [
        Tab(
            label=str(label),
            url=web.with_query(status=shown.value, before=None, after=None),
            count=_capped(
                mail_service.count(
                    session, Filter(scope=here.scope, shown=shown, lane_id=here.lane_id)
                )
            ),
            here=shown is asked.shown,
        )
        for shown, label in VIEWS.items()
    ]


def _total(tabs: Sequence[Tab]) -> str:
    return next(tab.count for tab in tabs if tab.here)


def _capped(count: int) -> str:
    cap = mail_service.CAP
    return f"{show.number(cap)}+" if count > cap else show.number(count)


def _turn(*, before: int | None = None, after: int | None = None) -> str:
    if before is None and after is None:
        return ""
    return web.with_query(
        before=None if before is None else str(before), after=None if after is None else str(after)
    )


def paces(limits: Limits) -> list[str]:
    """The limits of a lane in words."""
    return [pace(name, str(value)) for name, value in vars(limits).items() if value is not None]


# ---- one lane ----


@bp.post("/queue/lane")
@requires(Access.SIGNED_IN)
def change_lane() -> ResponseReturnValue:
    """Pause a lane, resume it, or let it try now."""
    what, lane_id = request.form.get("do", ""), _number(request.form.get("lane", ""))
    back = url_for("queue.overview", lane=request.args.get("back"))
    if lane_id is None or what not in {"pause", "resume", "try"}:
        return see_other(back)
    with db().write() as session:
        asked = _asked(session)
        may = lane_service.may_manage(session, lane_id, asked.whole)
        if may is None:
            not_found()
        if not may:
            tell(Tone.BAD, _("Other sites send by this lane too, so an instance admin must do it."))
            return see_other(back)
        if what == "try":
            lane_service.try_now(session, lane_id, now())
        else:
            lane_service.set_paused(session, lane_id, is_paused=what == "pause")
        audit.record(
            session,
            at=now(),
            actor=web.actor(),
            action=f"lane-{what}",
            object_kind="lane",
            object_id=lane_id,
        )
    if what == "pause":
        tell(Tone.GOOD, _("Nothing new leaves by this lane. What is under way ends as usual."))
    elif what == "resume":
        tell(Tone.GOOD, _("Mail leaves by this lane again."))
    else:
        count = _hurry(lane_id)
        tell(
            Tone.GOOD,
            ngettext(
                "The lane tries again now, with %(num)s mail that was put off.",
                "The lane tries again now, with %(num)s mails that were put off.",
                count,
            ),
        )
    wake()
    return see_other(back)


def _hurry(lane_id: int) -> int:
    total = 0
    for _commit in range(HURRIES):
        with db().write_connection() as connection:
            count = lane_service.hurry(connection, lane_id, now())
        total += count
        if count < lane_service.AT_ONCE:
            break
    return total


def wake() -> None:
    """Tell the delivery worker that there is something to do."""
    with closing(Waker(web.installation().settings.instance)) as waker:
        waker.wake()


# ---- mails ----


@bp.post("/queue")
@requires(Access.SIGNED_IN)
def act() -> ResponseReturnValue:
    """Release, retry or cancel the mails that are named, or all that match."""
    form = request.form
    what = Do(form["do"]) if form.get("do") in set(Do) else None
    with db().read() as session:
        asked = _asked(session)
        if what is None or what not in OFFERED[asked.shown]:
            return see_other(_list_url())
        names = form.getlist("mail")[:MOST_NAMED]
        everything = form.get("scope") == "all"
        ids = mail_service.named(session, asked.whole, names)
        upto = _number(form.get("upto", "")) or mail_service.newest(session)
        count = mail_service.count(session, asked.filter, upto=upto) if everything else len(ids)
    if names and not ids and not everything:
        not_found()
    if not count and not form.get("after"):
        tell(Tone.WARN, _("Choose at least one mail."))
        return see_other(_list_url())
    if form.get("sure") != "yes" and (everything or what is not Do.RETRY):
        return _question(what, asked, count, names=names, upto=upto if everything else None)
    if not everything:
        done = mail_service.do_named(db(), what, ids)
        _told(what, done.done, done.seen)
        return see_other(_list_url())
    return _all_of_them(what, asked, upto)


def _all_of_them(what: Do, asked: Asked, upto: int) -> ResponseReturnValue:
    """A part of them in this request; the page says how far it came, and goes on by a button."""
    before_done = _number(request.form.get("done", "")) or 0
    before_seen = _number(request.form.get("seen", "")) or 0
    after = _number(request.form.get("after", "")) or 0
    worked = mail_service.do_all(db(), what, asked.filter, after=after, upto=upto)
    done, seen = before_done + worked.done, before_seen + worked.seen
    wake()
    if worked.is_over:
        _told(what, done, seen)
        return see_other(_list_url())
    with db().read() as session:
        left = mail_service.count(session, asked.filter, after=worked.after, upto=upto)
    return render_template(
        "queue/progress.html",
        what=what,
        button=BUTTONS[what],
        done=done,
        left=_capped(left),
        hidden={"upto": upto, "after": worked.after, "done": done, "seen": seen},
        back=_list_url(),
    )


def _told(what: Do, done: int, seen: int) -> None:
    wake()
    texts = {
        Do.RELEASE: ngettext("%(num)s mail was released.", "%(num)s mails were released.", done),
        Do.RETRY: ngettext(
            "%(num)s mail is tried again now.", "%(num)s mails are tried again now.", done
        ),
        Do.CANCEL: ngettext("%(num)s mail was cancelled.", "%(num)s mails were cancelled.", done),
    }
    text = texts[what]
    if seen > done:
        text = f"{text} " + ngettext(
            "%(num)s was in no state for it and stays as it is.",
            "%(num)s were in no state for it and stay as they are.",
            seen - done,
        )
    tell(Tone.GOOD if done else Tone.WARN, text)
    with db().write() as session:
        audit.record(
            session,
            at=now(),
            actor=web.actor(),
            action=f"queue-{what}",
            object_kind="queue",
            object_id="",
            changes={"mails": [0, done]},
        )


def _question(
    what: Do, asked: Asked, count: int, *, names: Sequence[str], upto: int | None
) -> ResponseReturnValue:
    titles = {
        Do.RELEASE: ngettext("Release %(num)s mail?", "Release %(num)s mails?", count),
        Do.RETRY: ngettext("Try %(num)s mail now?", "Try %(num)s mails now?", count),
        Do.CANCEL: ngettext("Cancel %(num)s mail?", "Cancel %(num)s mails?", count),
    }
    texts = {
        Do.RELEASE: _("It leaves now, by the rules that count now. That cannot be taken back."),
        Do.RETRY: _(
            "It is tried at once, whatever is put off. Where nobody knows whether it arrived, it "
            "may arrive twice."
        ),
        Do.CANCEL: _("Nobody gets it who has not got it yet. That cannot be taken back."),
    }
    title = titles[what]
    if count > mail_service.CAP:
        title = _(
            "%(what)s: more than %(n)s mails?",
            what=str(BUTTONS[what]),
            n=show.number(mail_service.CAP),
        )
    return render_template(
        "queue/sure.html",
        title=title,
        text=texts[what],
        what=what,
        button=ngettext("Cancel the mail", "Cancel the mails", count)
        if what is Do.CANCEL
        else BUTTONS[what],
        names=() if upto is not None else names,
        upto=upto,
        asked=asked,
        back=_list_url(),
    )


def _list_url() -> str:
    return web.with_query(before=None, after=None)
