"""What every page stands on: who asks, whether they may, the menu, notices, safe redirects.

A view is written as

    @bp.get("/sites/<slug>/log")
    @requires(Right.VIEW_LOG)
    def site_log(slug: str) -> ResponseReturnValue: ...

and finds the site in `g.site`. A view without `@requires` fails the tests.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ParamSpec, cast
from urllib.parse import urlencode

import sqlalchemy as sa
from flask import (
    Blueprint,
    Flask,
    abort,
    current_app,
    flash,
    g,
    redirect,
    render_template,
    request,
    url_for,
)
from flask import session as cookie
from flask.blueprints import BlueprintSetupState
from flask.typing import ResponseReturnValue
from flask_login import LoginManager, current_user, login_user, logout_user
from sqlalchemy.orm import Session
from werkzeug.exceptions import Forbidden
from werkzeug.wrappers import Response

from webapp import i18n
from webapp.accounts import service as accounts
from webapp.accounts.models import Membership, Role, User, UserSession
from webapp.accounts.rights import Access, Policy, Right, allows, is_per_site
from webapp.db import Database
from webapp.installation import Installation
from webapp.sites.models import Site
from webapp.words import Tone

EXTENSION = "postroom"
LANGUAGE_COOKIE = "language"
COLOURS_COOKIE = "colours"
COLOURS = ("light", "dark")
MOST_SITES_IN_BAR = 20

P = ParamSpec("P")


class Group(StrEnum):
    """Where a menu line stands."""

    ALL_SITES = "all-sites"
    SITE = "site"
    SETTINGS = "settings"
    """The tabs of a site's settings; the menu line Settings leads to the first of them."""
    SYSTEM = "system"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the menu, or a tab. It is shown to whoever may open its page."""

    group: Group
    endpoint: str
    label: str
    icon: str
    order: int
    covers: tuple[str, ...]
    """Endpoints of further pages on which this line counts as the current one."""
    anywhere: Right | None = None
    """Shown only to whoever has this right at some site."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """An entry as one page shows it."""

    url: str
    label: str
    icon: str
    here: bool


@dataclass(kw_only=True)
class Frame:
    """What the pages of one application share."""

    installation: Installation
    entries: list[Entry] = field(default_factory=list)
    icons: dict[str, str] = field(default_factory=dict)
    has_users: bool = False


@dataclass(frozen=True, kw_only=True)
class Person:
    """Whoever is signed in, in the shape that Flask-Login asks for."""

    user: User
    session: UserSession
    secret: str
    is_authenticated: bool = True
    is_active: bool = True
    is_anonymous: bool = False

    def get_id(self) -> str:
        """The secret of the session, so that a session can be revoked."""
        return self.secret


def frame() -> Frame:
    """What the pages of this application share."""
    return cast(Frame, current_app.extensions[EXTENSION])


def installation() -> Installation:
    """The open installation."""
    return frame().installation


def db() -> Database:
    """The database; open a unit of work by `with db().read() as session` or `db().write()`."""
    return frame().installation.db


def now() -> datetime:
    """The clock of the ledger."""
    return db().now()


# ---- who asks ----


def person() -> Person | None:
    """Whoever is signed in."""
    return cast(Person, current_user) if current_user.is_authenticated else None


def user() -> User:
    """The signed-in user, on a page that is not public."""
    found = person()
    if found is None:
        abort(401)
    return found.user


def actor() -> str:
    """The name under which a change by this request goes into the audit log."""
    found = person()
    return found.user.email if found else ""


def load_person(secret: str) -> Person | None:
    """The person of a session cookie; notes at most once a minute that the session is in use."""
    at = now()
    with db().read() as session:
        found = accounts.find_session(session, secret, at)
    if found is None:
        return None
    if at - found.session.seen_at >= accounts.SEEN_EVERY:
        with db().write() as session:
            accounts.note_seen(session, found.session.id, at)
    return Person(user=found.user, session=found.session, secret=secret)


def sign_in(session: Session, who: User) -> None:
    """Begin a session for this browser, in the caller's unit of work."""
    secret = accounts.open_session(
        session,
        who.id,
        now=now(),
        address=request.remote_addr or "",
        user_agent=request.user_agent.string,
    )
    row = session.scalars(
        sa.select(UserSession).where(UserSession.digest == accounts.digest(secret))
    ).one()
    cookie.clear()
    cookie.permanent = True
    login_user(Person(user=who, session=row, secret=secret))


def sign_out(session: Session) -> None:
    """End the session of this browser, in the caller's unit of work."""
    found = person()
    if found is not None:
        accounts.end_session(session, found.session.id, user_id=found.user.id)
    logout_user()
    cookie.clear()


def set_up_login(app: Flask) -> None:
    """Make Flask-Login read our sessions; everything else of it stays unused."""
    manager = LoginManager()
    manager.session_protection = None
    manager.user_loader(load_person)
    manager.init_app(app)


# ---- whether they may ----


class Denied(Forbidden):
    """The person is known but lacks a right."""

    def __init__(self, right: Right) -> None:
        super().__init__()
        self.right = right


def requires(
    policy: Policy,
) -> Callable[[Callable[P, ResponseReturnValue]], Callable[P, ResponseReturnValue]]:
    """Let only those open a view who may. For a right at a site the URL must hold `<slug>`."""

    def wrap(view: Callable[P, ResponseReturnValue]) -> Callable[P, ResponseReturnValue]:
        @functools.wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> ResponseReturnValue:
            return refuse(policy, kwargs) or view(*args, **kwargs)

        guarded.required_right = policy  # type: ignore[attr-defined]
        return guarded

    return wrap


def policy_of(endpoint: str) -> Policy:
    """What a view asks for; raises AttributeError for a view without `@requires`."""
    view: Any = current_app.view_functions[endpoint]
    return cast(Policy, view.required_right)


def refuse(policy: Policy, arguments: dict[str, Any]) -> Response | None:
    """None when the request may go on; else a redirect to sign in. Raises 403 or 404."""
    if policy is Access.PUBLIC:
        return None
    found = person()
    if found is None:
        return to_sign_in()
    if isinstance(policy, Access):
        return None
    role: Role | None = None
    if is_per_site(policy):
        g.site, role = site_in_hand(found, arguments["slug"])
        g.role = role
    if not allows(policy, role=role, is_admin=found.user.is_admin):
        raise Denied(policy)
    return None


def may(right: Right) -> bool:
    """Whether whoever asks has a right, at the site in hand where it is held per site."""
    found = person()
    role = g.get("role")
    return found is not None and allows(right, role=role, is_admin=found.user.is_admin)


def may_anywhere(right: Right) -> bool:
    """Whether whoever asks has a right at some site."""
    found = person()
    if found is None:
        return False
    if found.user.is_admin:
        return True
    if "roles" not in g:
        query = sa.select(Membership.role).where(Membership.user_id == found.user.id).distinct()
        with db().read() as session:
            g.roles = [Role(role) for role in session.scalars(query)]
    return any(allows(right, role=role, is_admin=False) for role in g.roles)


def site_in_hand(found: Person, slug: str) -> tuple[Site, Role | None]:
    """The site of a URL and the person's role there; 404 for whoever has nothing to do with it."""
    query = (
        sa.select(Site, Membership.role)
        .outerjoin(
            Membership,
            (Membership.site_id == Site.id) & (Membership.user_id == found.user.id),
        )
        .where(Site.slug == slug, Site.deleted_at.is_(None))
    )
    with db().read() as session:
        row = session.execute(query).first()
    site: Site | None = row[0] if row else None
    role = Role(row[1]) if row and row[1] else None
    if site is None or (role is None and not found.user.is_admin):
        abort(404)
    return site, role


def my_sites(session: Session, limit: int | None = None) -> list[tuple[Site, Role | None]]:
    """The sites that whoever asks may see, by name; the role is None for an instance admin."""
    who = user()
    query = sa.select(Site, Membership.role).where(Site.deleted_at.is_(None))
    query = query.order_by(sa.func.lower(Site.name), Site.id)
    joined = (Membership.site_id == Site.id) & (Membership.user_id == who.id)
    query = query.join(Membership, joined, isouter=who.is_admin).limit(limit)
    return [(row[0], Role(row[1]) if row[1] else None) for row in session.execute(query)]


def anybody_has_an_account() -> bool:
    """Whether the first account was made; asked of the database until it was."""
    shared = frame()
    if not shared.has_users:
        with db().read() as session:
            shared.has_users = accounts.has_users(session)
    return shared.has_users


def to_sign_in() -> Response:
    """Off to sign in and back afterwards; to the first steps while nobody has an account."""
    if not anybody_has_an_account():
        return redirect(url_for("accounts.setup"), 303)
    back = page_address()
    return redirect(url_for("accounts.signin", next=None if back == "/" else back), 303)


# ---- where to ----


def own_path(target: str | None) -> str | None:
    """The target if it is a path of this site, else None: browsers read `//host` and `/\\host`
    as another host, and leave out tabs and line breaks before they look."""
    if not target or not target.startswith("/") or target.startswith("//"):
        return None
    if "\\" in target or any(ord(char) < 33 or ord(char) == 127 for char in target):
        return None
    return target


def page_address() -> str:
    """The page in hand as a path to come back to; the home page when it cannot be fetched."""
    rule = request.url_rule
    if rule is None or rule.methods is None or "GET" not in rule.methods:
        return "/"
    query = request.query_string.decode("ascii", "replace") if request.method == "GET" else ""
    return own_path(f"{request.path}?{query}" if query else request.path) or "/"


def home_url() -> str:
    """Where people begin."""
    return url_for("sites.board")


def see_other(target: str) -> Response:
    """Redirect after a change was saved."""
    return redirect(target, 303)


def not_found() -> ResponseReturnValue:
    """The same answer for what is not there and for what is somebody else's."""
    abort(404)


def confirm(*, title: str, text: str, button: str, back: str, **hidden: str) -> str:
    """The page that asks before something is taken away; its POST carries `sure=yes`."""
    return render_template(
        "confirm.html",
        title=title,
        text=text,
        button=button,
        back=back,
        action=request.full_path if request.query_string else request.path,
        hidden=hidden,
    )


def tell(
    tone: Tone, text: str, *, strong: str = "", href: str = "", link: str = "", words: str = ""
) -> None:
    """A notice on the next page: bold opening, sentence, the way out as a link, and what the
    remote said."""
    notice = {"text": text, "strong": strong, "href": href, "link": link, "words": words}
    flash(cast(str, {key: str(value) for key, value in notice.items()}), tone)


# ---- menu ----


def menu_entry(
    bp: Blueprint,
    view: str,
    label: str,
    *,
    group: Group,
    order: int,
    icon: str = "",
    covers: tuple[str, ...] = (),
    anywhere: Right | None = None,
) -> None:
    """Give a view of this blueprint a line in the menu. `covers` names other views of it, and
    `anywhere` a right that one must have at some site."""
    entry = Entry(
        group=group,
        endpoint=f"{bp.name}.{view}",
        label=label,
        icon=icon,
        order=order,
        covers=tuple(f"{bp.name}.{name}" for name in covers),
        anywhere=anywhere,
    )

    def register(state: BlueprintSetupState) -> None:
        state.app.extensions[EXTENSION].entries.append(entry)

    bp.record(register)


def links(group: Group, site: Site | None = None) -> list[Link]:
    """The lines of a group that whoever asks may open, in order; for a site, or for none."""
    site = site or g.get("site")
    arguments: dict[str, Any] = (
        {"slug": site.slug} if site and group in {Group.SITE, Group.SETTINGS} else {}
    )
    return [
        Link(
            url=url_for(entry.endpoint, **arguments),
            label=entry.label,
            icon=entry.icon,
            here=request.endpoint in {entry.endpoint, *entry.covers},
        )
        for entry in sorted(frame().entries, key=lambda entry: entry.order)
        if entry.group == group and _may_open(entry)
    ]


def _may_open(entry: Entry) -> bool:
    if entry.anywhere is not None and not may_anywhere(entry.anywhere):
        return False
    policy = policy_of(entry.endpoint)
    if isinstance(policy, Right):
        return may(policy)
    return policy is Access.PUBLIC or person() is not None


def site_url(site: Site, role: Role | None) -> str:
    """The page of a site that its name links to: its log if there is one, else its settings."""
    who = user()
    entries = [e for e in frame().entries if e.group in {Group.SITE, Group.SETTINGS}]
    shown = [
        entry
        for entry in sorted(entries, key=lambda entry: entry.order)
        if isinstance(right := policy_of(entry.endpoint), Right)
        and allows(right, role=role, is_admin=who.is_admin)
    ]
    if not shown:
        return home_url()
    log = [entry for entry in shown if entry.group == Group.SITE]
    return url_for((log or shown)[0].endpoint, slug=site.slug)


# ---- how it is shown ----


def language() -> str:
    """The locale of this request: the person's own choice, the browser's cookie, its wish list."""
    found = person()
    for wish in (found.user.language if found else None, request.cookies.get(LANGUAGE_COOKIE)):
        if wish in i18n.LANGUAGES:
            return wish
    # Not `best_match`: it would take a plain `en` of low rank before a `zh-CN` of the highest.
    for tag, quality in request.accept_languages:
        primary = tag.partition("-")[0].lower()
        if quality > 0 and primary in {"en", "zh"}:
            return i18n.CHINESE if primary == "zh" else i18n.ENGLISH
    return i18n.ENGLISH


def time_zone() -> str:
    """The time zone of the site in hand, else UTC."""
    site: Site | None = g.get("site")
    return site.time_zone if site else "UTC"


def colours() -> str:
    """`light` or `dark` when a person chose, else empty: as the system."""
    chosen = request.cookies.get(COLOURS_COOKIE, "")
    return chosen if chosen in COLOURS else ""


def with_query(**changes: str | None) -> str:
    """The address in hand with some parameters changed; None takes one out."""
    query = {key: value for key, value in request.args.items() if key not in changes}
    query |= {key: value for key, value in changes.items() if value is not None}
    return f"{request.path}?{urlencode(query)}" if query else request.path
