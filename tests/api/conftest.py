"""A site with a key of every kind, and a program that speaks to the API by it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from tests.factories import a_connection, a_credential, a_site, an_installation
from webapp import create_app
from webapp.api.views import EXTENSION
from webapp.connections.models import Connection
from webapp.installation import Installation
from webapp.sites.models import CredentialKind, Site

SCOPES = ("send", "read", "manage")


def a_letter(**more: Any) -> dict[str, Any]:
    """A mail as JSON."""
    return {
        "from": "Lindenhof <shop@lindenhof.example>",
        "to": ["mara@agentur.example"],
        "subject": "Ihre Bestellung",
        "text": "Vielen Dank.",
    } | more


@dataclass
class Program:
    """Speaks to the API with one key."""

    app: Flask
    key: str
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, **options: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        if not self.key:
            del headers["Authorization"]
        client = self.app.test_client()
        return client.open(f"/api/v1{path}", method=method, headers=headers, **options)

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.ask("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> TestResponse:
        if json is not None:
            options["json"] = json
        return self.ask("POST", path, **options)

    def send(self, **letter: Any) -> str:
        """Hand a mail in; its id."""
        answer = self.post("/messages", a_letter(**letter))
        assert answer.status_code == 202, answer.text
        return str(answer.json["id"])


@dataclass
class Desk:
    """An installation with a site, and what is needed to use its API."""

    installation: Installation
    app: Flask
    site: Site
    connection: Connection

    def program(self, *scopes: str, site: Site | None = None, **values: Any) -> Program:
        """A program with a new key; of all scopes, unless they are named."""
        with self.installation.db.write() as session:
            credential, secret = a_credential(
                session,
                site or self.site,
                CredentialKind.API,
                scopes=list(scopes or SCOPES),
                **values,
            )
        return Program(self.app, f"{credential.username}.{secret}")

    def other_site(self) -> Site:
        with self.installation.db.write() as session:
            site = a_site(session)
            a_connection(session, site)
        return site


def a_desk(installation: Installation) -> Desk:
    with installation.db.write() as session:
        site = a_site(session, name="Lindenhof")
        connection = a_connection(session, site)
    app = create_app(installation)
    app.testing = True
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.extensions[EXTENSION].sleep = lambda seconds: None
    return Desk(installation=installation, app=app, site=site, connection=connection)


@pytest.fixture
def desk(db_url: str, tmp_path: Path) -> Iterator[Desk]:
    """Once on each database."""
    installation = an_installation(db_url, tmp_path)
    made = a_desk(installation)
    yield made
    made.app.extensions[EXTENSION].close()
    installation.close()


@pytest.fixture
def light_desk(installation: Installation) -> Iterator[Desk]:
    """On SQLite, for what does not touch the database in a way of its own."""
    made = a_desk(installation)
    yield made
    made.app.extensions[EXTENSION].close()


@pytest.fixture
def program(desk: Desk) -> Program:
    """A program that may do everything."""
    return desk.program()
