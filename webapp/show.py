"""What templates call: icons, states, times, sizes, files of `static/`."""

import hashlib
import re
from datetime import UTC, datetime, timedelta
from datetime import date as Day
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from babel.dates import format_date, format_datetime, format_timedelta, get_timezone
from babel.numbers import format_decimal
from flask import Flask, g, get_flashed_messages, request, url_for
from flask_babel import get_locale
from flask_babel import gettext as _
from markupsafe import Markup

from webapp import __version__, i18n, ids, web
from webapp.accounts.rights import Right
from webapp.sites import banners as bannering
from webapp.sites import board as boards
from webapp.words import NOTICE_ICONS, Tone, status_of

_SYMBOL = re.compile(r'<symbol id="i-([a-z-]+)".*?</symbol>', re.DOTALL)
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))
_AS_A_DATE_AFTER = timedelta(days=30)


def set_up_templates(app: Flask) -> None:
    """Give every template what it may call."""
    source = (i18n.resource("templates") / "icons.svg").read_text(encoding="utf-8")
    app.extensions[web.EXTENSION].icons = {m[1]: m[0] for m in _SYMBOL.finditer(source)}
    env = app.jinja_env
    env.trim_blocks = env.lstrip_blocks = True
    env.globals.update(
        icon=icon,
        icon_sprite=icon_sprite,
        time=time_tag,
        status_of=status_of,
        notice_icon=lambda tone: NOTICE_ICONS[Tone(tone)],
        notices_told=lambda: get_flashed_messages(with_categories=True),
        asset=asset,
        may=web.may,
        Right=Right,
        links=web.links,
        Group=web.Group,
        my_bar=my_bar,
        standing=standing,
        site_banners=site_banners,
        home_url=web.home_url,
        page_address=web.page_address,
        with_query=web.with_query,
        person=web.person,
        colours=web.colours,
        language=web.language,
        languages=i18n.LANGUAGES,
        html_lang=i18n.HTML_LANG,
        version=__version__,
        demo_inbox=app.extensions[web.EXTENSION].installation.settings.demo_inbox,
    )
    env.filters.update(
        bytes=size,
        pretty=ids.pretty,
        number=number,
        full_time=full_time,
        clock=clock_time,
        day=day,
    )


def icon(name: str, css: str = "i") -> Markup:
    """An icon in the colour of the text around it; its drawing follows at the end of the page.

    The drawings stand in the page itself: style sheets do not reach into another document, and
    some icons take the colour of the paper.
    """
    if name not in web.frame().icons:
        raise KeyError(f"there is no icon {name}")
    g.setdefault("icons", set()).add(name)
    return Markup('<svg class="{}" aria-hidden="true"><use href="#i-{}"/></svg>').format(css, name)


def icon_sprite() -> Markup:
    """The drawings of the icons that this page used; the last thing on it."""
    drawings = web.frame().icons
    return Markup("\n".join(drawings[name] for name in sorted(g.get("icons", ()))))  # noqa: S704


def time_tag(at: datetime | None, *, short: bool = False) -> Markup:
    """How long ago (or until when), with the full time as title; old times as a date."""
    if at is None:
        return Markup("")
    words, ticks = relative(at, web.now(), short=short)
    return Markup('<time datetime="{}" title="{}"{}>{}</time>').format(
        at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        full_time(at),
        Markup(' data-ticks="{}"').format("short" if short else "long") if ticks else "",
        words,
    )


def relative(at: datetime, now: datetime, *, short: bool = False) -> tuple[str, bool]:
    """`2 minutes ago` in the language of the page, and whether a script may count it on."""
    distance = now - at
    seconds = abs(int(distance.total_seconds()))
    if abs(distance) > _AS_A_DATE_AFTER:
        return date(at), False
    for unit, length in _UNITS:
        if seconds >= length:
            whole = timedelta(seconds=seconds // length * length)
            return _in_unit(whole if distance > timedelta() else -whole, unit, short), True
    return (_("now") if short else _("just now")), distance >= timedelta()


def _in_unit(ago: timedelta, unit: Any, short: bool) -> str:
    return format_timedelta(
        -ago,
        granularity=unit,
        threshold=1e9,  # never go on to a greater unit than the one asked for
        add_direction=not short,
        format="short" if short else "long",
        locale=get_locale(),
    )


def duration(span: timedelta) -> str:
    """A length of time in its greatest whole unit: `6 hr`, `31 min`, `12 sec`."""
    seconds = int(span.total_seconds())
    unit, length = next((pair for pair in _UNITS if seconds >= pair[1]), ("second", 1))
    return _in_unit(-timedelta(seconds=seconds // length * length), unit, short=True)


def full_time(at: datetime) -> str:
    """`23 Nov 2026, 15:03:10 CET` in the time zone of the site."""
    zone = ZoneInfo(web.time_zone())
    text = format_datetime(
        at, i18n.DATE_TIME[web.language()], get_timezone(zone), locale=get_locale()
    )
    return f"{text} {at.astimezone(zone).tzname()}"


def date(at: datetime) -> str:
    """`23 Nov 2026` in the time zone of the site."""
    there = at.astimezone(ZoneInfo(web.time_zone()))
    return format_date(there, i18n.DATE[web.language()], locale=get_locale())


def day(value: Day) -> str:
    """`23 Nov 2026`, of a day that has no time zone."""
    return str(format_date(value, i18n.DATE[web.language()], locale=get_locale()))


def clock_time(at: datetime) -> str:
    """`15:03:10` in the time zone of the site."""
    return at.astimezone(ZoneInfo(web.time_zone())).strftime("%H:%M:%S")


def number(value: float) -> str:
    """`1,318` as the language writes it."""
    return format_decimal(value, locale=get_locale())


def size(value: int) -> str:
    """`186 KB`: in steps of 1,024, as mail programs count."""
    if value < 1024:
        return str(_("%(n)s bytes", n=value))
    if value < 1024 * 1024:
        return str(_("%(n)s KB", n=number(round(value / 1024))))
    return str(_("%(n)s MB", n=number(round(value / 1024 / 1024, 1))))


def my_bar() -> dict[str, Any]:
    """The site switcher: the sites of whoever asks, or none of them when there are too many."""
    with web.db().read() as session:
        found = web.my_sites(session, limit=web.MOST_SITES_IN_BAR + 1)
    many = len(found) > web.MOST_SITES_IN_BAR
    sites = [] if many else [(site, web.site_url(site, role)) for site, role in found]
    return {"sites": sites, "many": many}


def standing() -> boards.Row:
    """How the site in hand stands; asked for once a page."""
    if "standing" not in g:
        with web.db().read() as session:
            g.standing = boards.standing(session, g.site.id, web.now())
    found: boards.Row = g.standing
    return found


def site_banners() -> tuple[bannering.Banner, ...]:
    """What every page of the site in hand says at its top."""
    row = standing()
    with web.db().read() as session:
        return bannering.banners(session, row, web.user().id)


def asset(name: str) -> str:
    """The address of a file in `static/`, which changes with its content."""
    return url_for("static", filename=name, v=fingerprint(i18n.resource("static") / name))


@cache
def fingerprint(path: Path) -> str:
    """A few characters of the file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def is_current_asset() -> bool:
    """Whether this request names the content it gets, so that it may be kept for ever."""
    if request.endpoint != "static" or not request.view_args:
        return False
    path = i18n.resource("static") / str(request.view_args["filename"])
    return path.is_file() and request.args.get("v") == fingerprint(path)
