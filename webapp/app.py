"""The application, put together: a list."""

from collections.abc import Iterable

from flask import Blueprint, Flask, Response
from flask_babel import Babel
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException

from webapp import i18n, protect, show, web
from webapp.installation import Installation


def build(installation: Installation, pages: Iterable[Blueprint]) -> Flask:
    """Everything that makes the dashboard of this installation."""
    settings = installation.settings
    app = Flask(
        "webapp",
        template_folder=str(i18n.resource("templates")),
        static_folder=str(i18n.resource("static")),
        static_url_path="/static",
        instance_path=str(settings.instance),
    )
    app.extensions[web.EXTENSION] = web.Frame(installation=installation)
    protect.configure(app, settings, installation.keyring)
    app.config["BABEL_TRANSLATION_DIRECTORIES"] = str(i18n.compile_catalogues(settings.instance))
    Babel(app, locale_selector=web.language, timezone_selector=web.time_zone)
    app.before_request(lambda: protect.to_our_host(settings))
    disk = protect.last_reserve(settings)
    app.before_request(lambda: protect.refuse_without_room(disk))
    protect.csrf.init_app(app)
    web.set_up_login(app)
    show.set_up_templates(app)
    for bp in pages:
        app.register_blueprint(bp)

    @app.after_request
    def add_headers(response: Response) -> Response:
        return protect.add_headers(response, settings)

    app.register_error_handler(CSRFError, protect.show_csrf_error)
    app.register_error_handler(HTTPException, protect.show_http_error)
    app.register_error_handler(Exception, protect.show_bug)
    app.wsgi_app = protect.TrustedProxies(app.wsgi_app, settings.trusted_proxies)  # type: ignore[method-assign]
    return app
