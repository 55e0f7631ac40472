"""Postroom: one dashboard for the outgoing mail of many sites."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from webapp.installation import Installation

__version__ = "0.1.0"

PAGES = (
    "webapp.health",
    "webapp.accounts.views",
    "webapp.sites.views",
    "webapp.connections.views",
    "webapp.connections.additional",
    "webapp.routing.views",
    "webapp.policy.views",
    "webapp.maillog.views",
    "webapp.queue.views",
    "webapp.testmail.views",
    "webapp.microsoft.apps",
    "webapp.microsoft.views",
    "webapp.google.views",
    "webapp.incidents.views",
    "webapp.api.views",
    "webapp.api.pages",
)


def create_app(installation: "Installation") -> "Flask":
    """The dashboard of an open installation, as a WSGI application."""
    # Imported here, because the parts without pages import this package too, and do without Flask.
    from webapp.app import build

    return build(installation, [import_module(name).bp for name in PAGES])
