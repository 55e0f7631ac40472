"""The web process: gunicorn with one worker and several threads."""

import gc
from importlib import import_module
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from webapp import PAGES, create_app
from webapp.config import Settings
from webapp.installation import Installation, open_installation

GRACE_SECONDS = 30


def run_web(installation: Installation) -> None:
    """Serve the dashboard until SIGTERM, which lets requests in hand finish.

    Takes the installation over and closes it: the worker is a process of its own, and neither a
    database connection nor a file lock may cross a fork.
    """
    settings = installation.settings
    installation.close()
    WebServer(settings).run()


def preload() -> None:
    """Import what the web process needs, so that processes forked afterwards share the memory."""
    for name in (*PAGES, "webapp.app", "gunicorn.workers.gthread"):
        import_module(name)


class WebServer(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn without its command line and its configuration files."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn."""
        for name, value in options(self._settings).items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Called by gunicorn in the worker."""
        app = create_app(open_installation(self._settings))
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be looked through again and again
        return app


def options(settings: Settings) -> dict[str, Any]:
    """What differs from gunicorn's own defaults."""
    return {
        "bind": [str(settings.http_listen).replace("localhost", "127.0.0.1")],
        "workers": 1,
        "worker_class": "gthread",
        "threads": settings.http_threads,
        "graceful_timeout": GRACE_SECONDS,
        "keepalive": 15,
        "accesslog": None,  # addresses may hold the token of a set-up link
        "errorlog": "-",
        "loglevel": "warning",
        "proc_name": "postroom-web",
        "worker_tmp_dir": str(settings.instance),
        "control_socket_disable": True,  # it would write into the home folder
        "forwarded_allow_ips": "",  # proxies are named in POSTROOM_TRUSTED_PROXIES, see protect.py
        "secure_scheme_headers": {},
        "limit_request_line": 8190,
    }
