"""Where a connection is edited."""

from flask import url_for

from webapp.connections.models import Connection
from webapp.microsoft.models import OAuthApp
from webapp.providers import GOOGLE
from webapp.sites.models import Site


def page_of(site: Site, connection: Connection, anchor: str | None = None) -> str:
    """The page on which somebody at this site edits the connection: General for its own primary
    one, else the connection's own."""
    if site.primary_connection_id == connection.id and connection.site_id == site.id:
        return url_for("connections.general", slug=site.slug, _anchor=anchor)
    return own_page(site, connection, anchor)


def own_page(site: Site, connection: Connection, anchor: str | None = None) -> str:
    """The page of this connection alone, also where it is the primary one."""
    return url_for("additional.edit", slug=site.slug, connection_uid=connection.uid, _anchor=anchor)


def registration_page(app: OAuthApp) -> str:
    """The page of a shared registration."""
    if app.provider == GOOGLE:
        return url_for("google.edit", google_app_uid=app.uid)
    return url_for("apps.edit", app_uid=app.uid)
