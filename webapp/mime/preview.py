"""The HTML of a mail made harmless for the preview frame.

Kept: structure, tables and inline styles, which is what mails are laid out with. Dropped with
their content: scripts and `<style>` blocks (mail programs that ignore them are common, so mails
are written to look right without, and a style sheet can load remote things in too many ways).
The frame's own policy is the second wall; nothing here relies on it.
"""

import html as entities
import re
from collections.abc import Callable, Mapping

import nh3

INLINE_IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})

MAX_NESTING = 1_000
"""Open elements at one time; beyond it the time of the HTML parser grows with the square."""

_TAGS = (set(nh3.ALLOWED_TAGS) - {"map", "area"}) | {"font", "tfoot", "big"}
_DROPPED_WITH_CONTENT = {
    "applet",
    "canvas",
    "embed",
    "iframe",
    "math",
    "noembed",
    "noframes",
    "noscript",
    "object",
    "script",
    "style",
    "svg",
    "template",
    "title",
}
_LOOKS = {"align", "bgcolor", "border", "color", "dir", "height", "lang", "style", "title"}
_LOOKS |= {"valign", "width"}
_ATTRIBUTES = {
    "*": _LOOKS,
    "a": {"href"},
    "img": {"src", "alt", "hspace", "vspace"},
    "font": {"face", "size"},
    "table": {"cellpadding", "cellspacing", "background", "summary"},
    "td": {"colspan", "rowspan", "nowrap", "background"},
    "th": {"colspan", "rowspan", "nowrap", "scope", "background"},
    "col": {"span"},
    "colgroup": {"span"},
    "ol": {"start", "type"},
    "ul": {"type"},
    "li": {"type", "value"},
    "hr": {"size", "noshade"},
}
_LINK_SCHEMES = ("http:", "https:", "mailto:", "tel:")
_DATA_IMAGE = re.compile(r"data:(image/[a-z]+);base64,[A-Za-z0-9+/=\s]*\Z", re.IGNORECASE)
_OPEN_OR_CLOSE = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
# Elements that never hold others, or that the next of their kind closes.
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"}
_CLOSED_BY_THE_NEXT = {"p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option"}
_FLAT = _VOID | _CLOSED_BY_THE_NEXT | {"html", "head", "body"}

# A declaration is kept only when all of it is known to be harmless: no url(), no escapes, no
# quotes left open. The functions allowed take numbers and colours.
_PROPERTY = re.compile(r"-?[a-zA-Z][a-zA-Z-]*\Z")
_VALUE = re.compile(
    r"""(?:(?:rgba?|hsla?|calc|linear-gradient)\([\w\s#%.,+*/-]*+\)"""
    r"""|'[\w\s.,-]*+'|"[\w\s.,-]*+"|[\w\s#%.,!+*/-])++\Z""",
    re.IGNORECASE,
)
_URL = re.compile(r"\burl\s*\([^()]*\)", re.IGNORECASE)
_BEHAVES = frozenset({"behavior", "-moz-binding", "position", "z-index"})


def sanitise_html(html: str, cid_to_data: Mapping[str, str], images: bool) -> tuple[str, int]:
    """HTML that loads nothing and runs nothing, and how many remote images were kept away.

    `cid_to_data` gives the `data:` address of the images inside the mail. With `images` the
    remote ones load; those that styles ask for never do and are not counted. HTML nested too deep
    to parse in time is shown as its source.
    """
    html = html.encode("utf-8", "ignore").decode("utf-8").replace("\x00", "")
    if _nesting(html) > MAX_NESTING:
        return f"<pre>{entities.escape(html)}</pre>", 0
    blocked = 0

    def source(value: str) -> str | None:
        nonlocal blocked
        address = value.strip()
        scheme = address[:6].lower()
        if scheme.startswith("cid:"):
            return _image_data(cid_to_data.get(address[4:]))
        if scheme.startswith("data:"):
            return _image_data(address)
        if not _is_remote(address):
            return None
        if images:
            return "https:" + address if address.startswith("//") else address
        blocked += 1
        return None

    def keep(tag: str, attribute: str, value: str) -> str | None:
        if attribute in {"src", "background"}:
            return source(value)
        if attribute == "style":
            return _safe_style(value)
        if attribute == "href":
            return value if value.strip().lower().startswith(_LINK_SCHEMES) else None
        return value

    return _cleaned(html, keep), blocked


def _cleaned(html: str, keep: Callable[[str, str, str], str | None]) -> str:
    return nh3.clean(
        html,
        tags=_TAGS,
        clean_content_tags=_DROPPED_WITH_CONTENT,
        attributes=_ATTRIBUTES,
        attribute_filter=keep,
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
        url_schemes={"http", "https", "mailto", "tel", "cid", "data"},
    )


def _is_remote(address: str) -> bool:
    return address.lower().startswith(("http:", "https:", "//"))


def _image_data(address: str | None) -> str | None:
    found = _DATA_IMAGE.match(address) if address else None
    return address if found and found[1].lower() in INLINE_IMAGES else None


def _safe_style(style: str) -> str | None:
    kept: list[str] = []
    for declaration in style.split(";"):
        name, colon, value = declaration.partition(":")
        name, value = name.strip().lower(), _URL.sub("", value).strip()
        if not colon or name in _BEHAVES:
            continue
        if _PROPERTY.match(name) and _VALUE.match(value):
            kept.append(f"{name}: {value}")
    return "; ".join(kept) or None


def _nesting(html: str) -> int:
    """The most elements open at one time, an upper bound that is good enough for real mails."""
    open_now: dict[str, int] = {}
    depth = deepest = 0
    for found in _OPEN_OR_CLOSE.finditer(html):
        name = found[2].lower()
        if name in _FLAT:
            continue
        if not found[1]:
            open_now[name] = open_now.get(name, 0) + 1
            depth += 1
            deepest = max(deepest, depth)
        elif open_now.get(name):
            open_now[name] -= 1
            depth -= 1
    return deepest
