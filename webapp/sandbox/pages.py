"""The sandbox's pages: templates, languages, files. The catalogue is the one of the dashboard."""

import gettext
from functools import cache
from pathlib import Path
from typing import Any

from babel.support import NullTranslations, Translations
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from webapp import i18n
from webapp.sandbox.wire import Answer, Request, as_text

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'"
)
"""No `form-action`: a browser would apply it to the redirect back, which leads to another host."""

_FILES = {
    "tokens.css": "text/css; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "mark.svg": "image/svg+xml",
}


class Pages:
    """Renders templates; compiled catalogues lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._catalogues = i18n.compile_catalogues(folder)
        self._environment = cache(self._make)

    def _make(self, language: str) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(i18n.resource("templates")),
            autoescape=True,
            undefined=StrictUndefined,
            extensions=["jinja2.ext.i18n"],
        )
        environment.policies["ext.i18n.trimmed"] = True
        found: gettext.NullTranslations = NullTranslations()
        if language != i18n.ENGLISH:
            found = Translations.load(self._catalogues, [language])
        environment.install_gettext_translations(found, newstyle=True)  # type: ignore[attr-defined]
        environment.globals["html_lang"] = i18n.HTML_LANG[language]
        return environment

    def show(self, request: Request, name: str, /, *, status: int = 200, **values: Any) -> Answer:
        """One page in the reader's language."""
        environment = self._environment(language(request.headers.get("accept-language", "")))
        html = environment.get_template(f"sandbox/{name}.html").render(here=request.path, **values)
        headers = (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
            ("Vary", "Accept-Language"),
        )
        return Answer(status=status, headers=headers, body=html.encode())


def language(accepted: str) -> str:
    """The first language of an Accept-Language header that we speak."""
    wishes: list[tuple[float, str]] = []
    for part in accepted.split(","):
        tag, _, quality = part.strip().partition(";q=")
        try:
            wishes.append((float(quality or 1), tag.partition("-")[0].lower()))
        except ValueError:
            continue
    for quality_, primary in sorted(wishes, key=lambda wish: -wish[0]):
        if quality_ > 0 and primary in {"en", "zh"}:
            return i18n.CHINESE if primary == "zh" else i18n.ENGLISH
    return i18n.ENGLISH


def static(name: str) -> Answer:
    """One of the few files that the pages use."""
    if name not in _FILES:
        return as_text("There is no such file.", status=404)
    headers = (("Content-Type", _FILES[name]), ("Cache-Control", "max-age=300"))
    return Answer(headers=headers, body=(i18n.resource("static") / name).read_bytes())
