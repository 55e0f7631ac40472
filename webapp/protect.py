"""What stands around every page: headers, cookies, CSRF, host names, proxies, error pages."""

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import sqlalchemy as sa
import structlog
from flask import Flask, Response, redirect, render_template, request
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError, CSRFProtect
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from webapp import ids, problems, show, web
from webapp.accounts.service import SESSION_LASTS
from webapp.config import Settings
from webapp.crypto import Keyring
from webapp.disk import Disk, data_folders
from webapp.fields import N_

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger(__name__)
csrf = CSRFProtect()

LARGEST_FORM = 1024 * 1024
AWAY_SECONDS = 5
FOR_PROGRAMS = {"health", "api"}
"""Blueprints without cookies: they answer under any name of this machine."""
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data:",
        "style-src 'self'",
        "script-src 'self'",
        "frame-src 'self'",
        "form-action 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
FOR_EVER = "public, max-age=31536000, immutable"
_SECRET_NAME = re.compile(r"password|secret|token|key", re.IGNORECASE)


# ---- cookies and keys ----


def configure(app: Flask, settings: Settings, keyring: Keyring) -> None:
    """Cookies, keys and limits. A rotated key keeps people signed in."""
    newest, *older = (key.hex() for key in keyring.derive_all("flask-session"))
    app.config.update(
        SECRET_KEY=newest,
        SECRET_KEY_FALLBACKS=older,
        WTF_CSRF_SECRET_KEY=keyring.derive("csrf").hex(),
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session; a page may stay open over lunch
        WTF_CSRF_SSL_STRICT=False,  # would refuse browsers that keep the referrer to themselves
        WTF_I18N_ENABLED=False,
        SESSION_COOKIE_NAME="postroom",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=is_https(settings),
        PERMANENT_SESSION_LIFETIME=SESSION_LASTS,
        MAX_CONTENT_LENGTH=LARGEST_FORM,
        MAX_FORM_MEMORY_SIZE=LARGEST_FORM,
        TEMPLATES_AUTO_RELOAD=False,
    )


def is_https(settings: Settings) -> bool:
    """Whether people open Postroom by https."""
    return settings.url.startswith("https:")


# ---- host names and proxies ----


def is_loopback_name(host: str) -> bool:
    """Whether a host name can only mean this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def to_our_host(settings: Settings) -> Response | None:
    """Pages asked for by another name of this machine go to ours: a cookie belongs to one name."""
    if request.blueprint in FOR_PROGRAMS or request.method not in {"GET", "HEAD"}:
        return None
    ours = urlsplit(settings.url).hostname or ""
    asked = urlsplit(f"//{request.host}").hostname or ""
    if asked == ours or not is_loopback_name(ours) or not is_loopback_name(asked):
        return None
    query = request.query_string.decode("ascii", "replace")
    target = f"{settings.url}{request.path}{'?' + query if query else ''}"
    found: Response = redirect(target, 302)  # type: ignore[assignment]
    return found


class DiskFull(HTTPException):
    """507: only the last of the disk is left, and that is for mail that was taken already."""

    code = 507
    description = "The disk is full."


LAST_RESERVE = 10
"""Pages may write until only this part of the reserve for new mail is left: a tenth."""


def last_reserve(settings: Settings) -> Disk:
    """The disk as pages see it: they may go on when new mail is refused, but not to the end."""
    return Disk(data_folders(settings), settings.disk_reserve_bytes // LAST_RESERVE)


def refuse_without_room(disk: Disk) -> None:
    """Pages that change something are refused when only the last reserve is left."""
    if request.blueprint in FOR_PROGRAMS or request.method in {"GET", "HEAD", "OPTIONS"}:
        return
    if not disk.has_room():
        raise DiskFull


class TrustedProxies:
    """Believe forwarded headers from named proxies only; from anybody else they are ignored."""

    def __init__(self, app: "WSGIApplication", networks: Iterable[str]) -> None:
        self._plain = app
        self._proxied = ProxyFix(app, x_for=1, x_proto=1, x_host=1)
        self._networks = [ipaddress.ip_network(name, strict=False) for name in networks]

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """One request, by way of ProxyFix where the peer is trusted."""
        app = self._proxied if self._trusts(environ.get("REMOTE_ADDR", "")) else self._plain
        return app(environ, start_response)

    def _trusts(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


# ---- headers ----


def add_headers(response: Response, settings: Settings) -> Response:
    """Every answer: what the browser may do with it, and how long it may keep it."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if is_https(settings):
        response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
    if request.endpoint == "static":
        response.headers["Cache-Control"] = FOR_EVER if show.is_current_asset() else "no-cache"
    else:
        response.headers.setdefault("Cache-Control", "no-store")
    return response


# ---- error pages ----

PAGES = {
    400: N_("This request cannot be read"),
    403: N_("Not allowed"),
    404: N_("Nothing here"),
    405: N_("Nothing here"),
    413: N_("Too large"),
    429: N_("Too many tries"),
    500: N_("Something broke here"),
    507: N_("The disk is full"),
}


def show_http_error(error: HTTPException) -> ResponseReturnValue:
    """The page for an error that has a number."""
    if error.response is not None:
        return error.response
    if problems.is_for_program():
        return problems.answer(error)
    if error.code == 401:
        return web.to_sign_in()
    code = error.code if error.code in PAGES else 400
    right = error.right if isinstance(error, web.Denied) else None
    page = render_template("errors/http.html", code=code, title=PAGES[code], right=right)
    response = app_response(page, error.code or code)
    for name, value in error.get_headers():
        if name.lower() not in {"content-type", "content-length"}:
            response.headers[name] = value
    return response


def app_response(page: str, code: int) -> Response:
    """A page with a status."""
    return Response(page, code, content_type="text/html; charset=utf-8")


def show_csrf_error(error: CSRFError) -> ResponseReturnValue:
    """The form came without a valid token: offer to send it again, or say how to get it back.

    What was typed is offered only to a request from our own pages, and no secret among it.
    """
    ours = request.headers.get("Origin") == request.host_url.rstrip("/")
    secret = any(_SECRET_NAME.search(name) and value for name, value in _typed())
    fields = _typed() if ours and not secret and not request.files else []
    return app_response(render_template("errors/csrf.html", fields=fields), 400)


def _typed() -> list[tuple[str, str]]:
    return [pair for pair in request.form.items(multi=True) if pair[0] != "csrf_token"]


def show_bug(error: Exception) -> ResponseReturnValue:
    """The page for a mistake of ours, with an id that is in the log too."""
    error_id = ids.short_id()
    log.error("a page failed", error_id=error_id, path=request.path, exc_info=error)
    if problems.is_for_program():
        away = isinstance(error, sa.exc.OperationalError)  # of the database: it comes back
        later = {"Retry-After": str(AWAY_SECONDS)} if away else {}
        return problems.problem("busy" if away else "bug", error_id=error_id, headers=later)
    try:
        page = render_template("errors/bug.html", error_id=error_id, title=PAGES[500])
    except Exception:  # noqa: BLE001  (the frame itself may be what fails, as without a database)
        text = f"{PAGES[500]}: {error_id}\n"
        return Response(text, 500, content_type="text/plain; charset=utf-8")
    return app_response(page, 500)
