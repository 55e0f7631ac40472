"""Pages of the mail log: the list of all sites or of one, one mail, and what is in it."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from flask import (
    Blueprint,
    Response,
    abort,
    g,
    redirect,
    render_template,
    request,
    send_file,
    url_for,
)
from flask.typing import ResponseReturnValue
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from markupsafe import Markup, escape
from sqlalchemy.orm import Session

from webapp import ids, show, web
from webapp.accounts.rights import Access, Right, allows
from webapp.delivery.content import stored_mail
from webapp.fields import N_
from webapp.maillog import service, story
from webapp.maillog.service import LogPage, MessageDetail, View
from webapp.mime.view import (
    Attachment,
    MailView,
    attachment_bytes,
    inline_images,
    raw_text,
    read_mail,
    sanitise_html,
)
from webapp.sites.models import Site
from webapp.sites.service import ids_beside_deleted
from webapp.web import Group, db, menu_entry, now, requires

bp = Blueprint("maillog", __name__)

menu_entry(bp, "everywhere", _l("Email Log"), group=Group.ALL_SITES, order=20, icon="log")
menu_entry(bp, "site_log", _l("Email Log"), group=Group.SITE, order=10, covers=("message",))

MAX_SEARCH = 200
RAW_SHOWN = 200_000
SHOW_ONCE = "once"
QUEUE_ID_LENGTH = 16
SHOWN_RECIPIENTS = 3

PERIODS = {
    "24h": (timedelta(hours=24), N_("24 hours")),
    "7d": (timedelta(days=7), N_("7 days")),
    "30d": (timedelta(days=30), N_("30 days")),
}

# A mail's own HTML gets a policy of its own, and an origin of its own: it runs nothing, sends
# nothing and loads nothing but the images inside it.
PREVIEW_POLICY = (
    "sandbox; default-src 'none'; img-src data:{images}; style-src 'unsafe-inline'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
FILE_POLICY = "sandbox; default-src 'none'"
_PIECE = re.compile(r"[^@._+-]{0,24}[@._+-]|[^@._+-]{1,24}")
PREVIEW = """\
<!doctype html>
<html><head><meta charset="utf-8"><meta name="color-scheme" content="light">
<meta name="viewport" content="width=device-width"><title>Preview</title>
<style>
body{{margin:16px;font:15px/1.5 sans-serif;overflow-wrap:break-word}} img{{max-width:100%}}
</style></head><body>{body}</body></html>
"""


@bp.app_template_filter("breakable")
def breakable(address: str) -> Markup:
    """An address that may go on in the next line after its signs, and within what is very long."""
    pieces = _PIECE.findall(address)
    return Markup("<wbr>").join(escape(piece) for piece in pieces)


class Part(StrEnum):
    """The parts of a mail, by the word that stands in the address."""

    HTML = "html"
    TEXT = "text"
    HEADERS = "headers"
    RAW = "raw"
    ATTACHMENTS = "attachments"


# ---- the list ----


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What the address says is wanted."""

    view: View
    search: str
    period: str
    """A key of PERIODS, or empty."""
    site: Site | None
    before: int | None
    after: int | None

    @property
    def narrows(self) -> bool:
        """Whether more could be found with less of it."""
        return bool(self.search or self.period or self.site or self.view is not View.ALL)


@dataclass(frozen=True, kw_only=True)
class Tab:
    """One of the views above the list."""

    label: str
    url: str
    count: str
    here: bool


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A filter in use, and the address without it."""

    text: str
    without: str


@bp.get("/log")
@requires(Access.SIGNED_IN)
def everywhere() -> ResponseReturnValue:
    """The mail of all sites of whoever asks."""
    with db().read() as session:
        sites = _readable_sites(session)
        filters = _filters(sites)
        site_ids = _site_ids(session, sites, filters)
        if (found := _by_typed_id(session, filters, site_ids)) is not None:
            return found
        return _render(session, filters, site_ids, sites)


@bp.get("/sites/<slug>/log")
@requires(Right.VIEW_LOG)
def site_log(slug: str) -> ResponseReturnValue:
    """The mail of one site."""
    with db().read() as session:
        filters = _filters([])
        site_ids = [g.site.id]
        if (found := _by_typed_id(session, filters, site_ids)) is not None:
            return found
        return _render(session, filters, site_ids, [])


def _readable_sites(session: Session) -> list[Site]:
    is_admin = web.user().is_admin
    return [
        site
        for site, role in web.my_sites(session)
        if allows(Right.VIEW_LOG, role=role, is_admin=is_admin)
    ]


def _site_ids(session: Session, sites: Sequence[Site], filters: Filters) -> list[int] | None:
    """The sites to look at; None for an instance admin, who sees them all."""
    if filters.site is not None:
        return [filters.site.id]
    return ids_beside_deleted(session) if web.user().is_admin else [site.id for site in sites]


def _filters(sites: Sequence[Site]) -> Filters:
    """Read the address; a word that means nothing counts as not there, a strange site is a 404."""
    asked = request.args.get("site", "")
    site = next((site for site in sites if site.slug == asked), None)
    if asked and sites and site is None:
        abort(404)
    status = request.args.get("status", "")
    period = request.args.get("since", "")
    return Filters(
        view=View(status) if status in set(View) else View.ALL,
        search=" ".join(request.args.get("q", "").split())[:MAX_SEARCH],
        period=period if period in PERIODS else "",
        site=site,
        before=_key("before"),
        after=_key("after"),
    )


def _key(name: str) -> int | None:
    text = request.args.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        return None
    return int(text)


def _by_typed_id(
    session: Session, filters: Filters, site_ids: Sequence[int] | None
) -> ResponseReturnValue | None:
    """Off to the mail whose id was typed into the search."""
    if len(ids.plain(filters.search)) != QUEUE_ID_LENGTH or not filters.search.isascii():
        return None
    row = service.find_by_id(session, filters.search, site_ids)
    if row is None:
        return None
    return redirect(url_for("maillog.message", slug=row.site_slug, queue_id=row.queue_id))


def _render(
    session: Session,
    filters: Filters,
    site_ids: Sequence[int] | None,
    sites: Sequence[Site],
) -> ResponseReturnValue:
    at = now()
    period = PERIODS.get(filters.period)
    page = service.list_messages(
        session,
        site_ids=site_ids,
        now=at,
        view=filters.view,
        search=filters.search,
        since=at - period[0] if period else None,
        before_id=filters.before,
        after_id=filters.after,
    )
    return render_template(
        "maillog/log.html",
        lines=[story.line(row) for row in page.rows],
        page_=page,
        filters=filters,
        tabs=_tabs(session, filters, site_ids),
        chips=_chips(filters),
        periods=[(value, _(label)) for value, (_span, label) in PERIODS.items()],
        sites=sites,
        newer=_turn(after=page.newer),
        older=_turn(before=page.older),
        empty=_empty(filters, page),
        submission=web.installation().settings.submission_listen,
    )


def _turn(*, before: int | None = None, after: int | None = None) -> str:
    """The address of a page beside this one; empty when there is none."""
    if before is None and after is None:
        return ""
    return web.with_query(
        before=None if before is None else str(before), after=None if after is None else str(after)
    )


def _first_page(**changes: str | None) -> str:
    """The first page with other filters."""
    return web.with_query(before=None, after=None, **changes)


def _tabs(session: Session, filters: Filters, site_ids: Sequence[int] | None) -> list[Tab]:
    """The views with their counts; a search or a period is not counted, because that is slow."""
    counted = not filters.search and not filters.period
    counts = service.counts(session, site_ids) if counted else {}
    return [
        Tab(
            label=_(label),
            url=_first_page(status=None if view is View.ALL else view.value),
            count=_capped(counts.get(view)),
            here=view is filters.view,
        )
        for view, label in story.VIEWS.items()
    ]


def _capped(count: int | None) -> str:
    if count is None:
        return ""
    cap = service.COUNT_CAP
    return f"{show.number(cap)}+" if count > cap else show.number(count)


def _chips(filters: Filters) -> list[Chip]:
    chips = []
    if filters.search:
        chips.append(Chip(text=_("words: %(q)s", q=filters.search), without=_first_page(q=None)))
    if filters.site is not None:
        text = _("site: %(name)s", name=filters.site.name)
        chips.append(Chip(text=text, without=_first_page(site=None)))
    if filters.period:
        text = _("since: %(period)s", period=_(PERIODS[filters.period][1]))
        chips.append(Chip(text=text, without=_first_page(since=None)))
    return chips


@dataclass(frozen=True, kw_only=True)
class Empty:
    """Why nothing is shown, and where more might be."""

    title: str
    text: str
    ways: tuple[tuple[str, str], ...]
    """Addresses and what their buttons say."""


def _empty(filters: Filters, page: LogPage) -> Empty | None:
    """None when there is something to show, or nothing was ever handed in."""
    if page.rows or not (filters.narrows or filters.before or filters.after):
        return None
    ways = []
    if page.older is not None:
        ways.append((_turn(before=page.older), _("Search further back")))
    if filters.view is not View.ALL:
        ways.append((_first_page(status=None), _("Search all views")))
    if filters.period:
        ways.append((_first_page(since=None), _("Search all time")))
    if filters.site is not None:
        ways.append((_first_page(site=None), _("Search all sites")))
    ways.append((request.path, _("Clear all filters")))
    return Empty(
        title=_("No mail matches these filters"),
        text=_searched(filters, page),
        ways=tuple(dict.fromkeys(ways)),
    )


def _searched(filters: Filters, page: LogPage) -> str:
    if page.reached is not None:
        return str(
            _("Searched subject and addresses back to %(date)s.", date=story.when(page.reached))
        )
    view, period = (
        _(story.VIEWS[filters.view]),
        _(PERIODS[filters.period][1]) if filters.period else "",
    )
    if filters.search and period:
        return str(
            _(
                "Searched subject and addresses of the last %(period)s for “%(q)s”.",
                period=period,
                q=filters.search,
            )
        )
    if filters.search:
        return str(_("Searched subject and addresses for “%(q)s”.", q=filters.search))
    if period:
        return str(_("Looked at the last %(period)s, view “%(view)s”.", period=period, view=view))
    return str(_("There is none in the view “%(view)s”.", view=view))


# ---- one mail ----


@bp.get("/sites/<slug>/log/<queue_id>")
@requires(Right.VIEW_LOG)
def message(slug: str, queue_id: str) -> ResponseReturnValue:
    """The story of one mail, its facts, and, for those who may, what is in it."""
    plain = ids.plain(queue_id)
    if plain != queue_id:
        target = url_for("maillog.message", slug=slug, queue_id=plain)
        query = request.query_string.decode("ascii", "replace")
        return redirect(f"{target}?{query}" if query else target)
    at = now()
    with db().read() as session:
        mail = service.get_message(session, queue_id, [g.site.id], at)
        if mail is None:
            abort(404)
        raw = _content(session, mail)
    return render_template(
        "maillog/message.html",
        mail=mail,
        row=mail.row,
        status=story.status(mail.row),
        headline=story.headline(mail),
        steps=story.steps(mail),
        from_why=story.from_why(mail),
        reply_to=story.reply_to_added(mail),
        shown_recipients=mail.recipients[:SHOWN_RECIPIENTS],
        said=story.said,
        body=None if raw is None else _body(raw),
    )


def _content(session: Session, mail: MessageDetail) -> bytes | None:
    """The mail itself, for those who may read it."""
    return stored_mail(session, mail.row.id) if web.may(Right.READ_BODY) else None


@dataclass(frozen=True, kw_only=True)
class Body:
    """The part that is shown, and the tabs to the others."""

    part: Part
    tabs: tuple[tuple[Part, str, int], ...]
    """Part, label, and a number behind it."""
    text: str
    attachments: tuple[Attachment, ...]
    images_blocked: int
    images: bool
    """Whether remote images are shown this once."""
    is_cut: bool


_PARTS = {
    Part.HTML: N_("HTML"),
    Part.TEXT: N_("Text"),
    Part.HEADERS: N_("Headers"),
    Part.RAW: N_("Raw"),
    Part.ATTACHMENTS: N_("Attachments"),
}


def _body(raw: bytes) -> Body:
    shown = read_mail(raw)
    there = _parts_of(shown)
    asked = request.args.get("part", "")
    part = Part(asked) if asked in {part.value for part in there} else there[0]
    images = request.args.get("images") == SHOW_ONCE
    blocked = 0
    if part is Part.HTML and shown.html is not None:
        blocked = sanitise_html(shown.html, {}, images)[1]
    texts = {Part.TEXT: shown.text or "", Part.HEADERS: shown.headers_text}
    return Body(
        part=part,
        tabs=tuple(
            (each, _(_PARTS[each]), len(shown.attachments) if each is Part.ATTACHMENTS else 0)
            for each in there
        ),
        text=raw_text(raw, RAW_SHOWN) if part is Part.RAW else texts.get(part, ""),
        attachments=shown.attachments,
        images_blocked=blocked,
        images=images,
        is_cut=shown.truncated or (part is Part.RAW and len(raw) > RAW_SHOWN),
    )


def _parts_of(shown: MailView) -> list[Part]:
    missing = {
        Part.HTML: shown.html is None,
        Part.TEXT: shown.text is None,
        Part.ATTACHMENTS: not shown.attachments,
    }
    return [part for part in Part if not missing.get(part, False)]


def _raw(queue_id: str) -> bytes:
    """The mail itself; 404 when it is of another site or no longer kept."""
    with db().read() as session:
        row = service.find_by_id(session, queue_id, [g.site.id])
        raw = None if row is None else stored_mail(session, row.id)
    if raw is None:
        abort(404)
    return raw


@bp.get("/sites/<slug>/log/<queue_id>/html")
@requires(Right.READ_BODY)
def preview(slug: str, queue_id: str) -> ResponseReturnValue:
    """The HTML of a mail, made harmless, as a document for the frame of its page."""
    raw = _raw(queue_id)
    images = request.args.get("images") == SHOW_ONCE
    html = read_mail(raw).html or ""
    body, _blocked = sanitise_html(html, inline_images(raw), images)
    response = Response(PREVIEW.format(body=body), content_type="text/html; charset=utf-8")
    policy = PREVIEW_POLICY.format(images=" https: http:" if images else "")
    response.headers["Content-Security-Policy"] = policy
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@bp.get("/sites/<slug>/log/<queue_id>/raw")
@requires(Right.READ_BODY)
def raw(slug: str, queue_id: str) -> ResponseReturnValue:
    """The mail as it was handed in, as a file."""
    return _as_file(_raw(queue_id), f"{ids.plain(queue_id)}.eml", "text/plain")


@bp.get("/sites/<slug>/log/<queue_id>/attachments/<int:index>")
@requires(Right.READ_BODY)
def attachment(slug: str, queue_id: str, index: int) -> ResponseReturnValue:
    """One attachment, as a file."""
    raw = _raw(queue_id)
    found = [one for one in read_mail(raw).attachments if one.index == index]
    if not found:
        abort(404)
    return _as_file(attachment_bytes(raw, index), found[0].filename, "application/octet-stream")


def _as_file(content: bytes, name: str, kind: str) -> Response:
    """Always to be saved, never shown: nothing in a mail may run under our name."""
    response = send_file(io.BytesIO(content), mimetype=kind, as_attachment=True, download_name=name)
    response.headers["Content-Security-Policy"] = FILE_POLICY
    response.headers["Cache-Control"] = "no-store"
    return response
