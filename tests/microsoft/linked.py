"""Mailboxes that are linked at the sandbox, for the tests of their tokens."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import sqlalchemy as sa

from tests.factories import a_connection, a_grant, a_link, a_mailbox, a_site, an_app
from tests.rig.sandbox import SandboxThread
from webapp.connections.models import Connection
from webapp.crypto import Keyring
from webapp.delivery.models import Lane
from webapp.installation import Installation, load_keys
from webapp.microsoft import service
from webapp.microsoft.clouds import clouds
from webapp.microsoft.models import Grant, Link, Mailbox, OAuthApp
from webapp.microsoft.tokens import AppFacts, Tokens
from webapp.outward import Outward
from webapp.sites.models import Site

ANN = "ann@contoso.example"
SCOPES = ["User.Read", "Mail.Send"]


class Gate(Outward):
    """A session that tells when it is about to ask the token endpoint, and waits to be let in."""

    def __init__(self, ca_file: str) -> None:
        super().__init__(ca_file=ca_file)
        self.asked = threading.Event()
        self.let_in = threading.Event()

    def post(self, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        self.asked.set()
        assert self.let_in.wait(30)
        return super().post(url, *args, **kwargs)


@dataclass
class Linked:
    """An installation, a sandbox, and one mailbox linked by one connection."""

    installation: Installation
    sandbox: SandboxThread
    grant_id: int = 0
    connection_id: int = 0
    app_id: int = 0
    facts: AppFacts = field(init=False)

    def __post_init__(self) -> None:
        cloud = clouds(self.installation.settings)["custom"]
        self.facts = AppFacts(
            client_id=self.sandbox.client_id,
            secret=self.sandbox.client_secret,
            cloud=cloud,
            tenant="common",
        )

    # ---- making things ----

    def link(self, account: str = ANN) -> int:
        """One more mailbox, by the same registration; returns the grant's key."""
        keyring = self.installation.keyring
        cache = self.cache(account)
        with self.installation.db.write() as session:
            app = session.get(OAuthApp, self.app_id) or an_app(
                session,
                keyring,
                cloud="custom",
                client_id=self.sandbox.client_id,
                secret=self.sandbox.client_secret,
            )
            site = a_site(session)
            connection = a_connection(session, site)
            mailbox = a_mailbox(session, address=account, cloud="custom")
            grant = a_grant(session, keyring, app, mailbox, cache=cache, scopes=SCOPES)
            a_link(session, connection, grant)
        self.grant_id, self.connection_id, self.app_id = grant.id, connection.id, app.id
        return grant.id

    def cache(self, account: str = ANN) -> str:
        """What a finished sign-in leaves."""
        return self.tokens().hand_over(self.facts, self.refresh_token(account), SCOPES)

    def refresh_token(self, account: str = ANN) -> str:
        where = self.sandbox.sign_in(self.sandbox.authorize_url(), account)
        code = parse_qs(urlsplit(where).query)["code"][0]
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": "http://localhost:8025/oauth/microsoft/callback",
            "client_id": self.facts.client_id,
            "client_secret": self.facts.secret,
        }
        with self.sandbox.session() as session:
            answer = session.post(
                f"{self.sandbox.authority}/common/oauth2/v2.0/token", data=form, timeout=30
            )
        return str(answer.json()["refresh_token"])

    def tokens(self, session: Callable[[], requests.Session] | None = None) -> Tokens:
        """As another process would make it."""
        return Tokens(
            self.installation.db,
            self.keys,
            clouds(self.installation.settings),
            session or (lambda: Outward(ca_file=self.sandbox.ca)),
        )

    def gated(self) -> tuple[Tokens, Gate]:
        """Tokens whose renewals wait at a gate."""
        gate = Gate(self.sandbox.ca)
        return self.tokens(lambda: gate), gate

    def keys(self) -> Keyring:
        return load_keys(self.installation.settings, may_create=False)

    # ---- what pages do meanwhile ----

    def remove(self) -> None:
        db = self.installation.db
        with db.write() as session:
            connection = session.get_one(Connection, self.connection_id)
            site = session.get_one(Site, connection.site_id)
            connection.settings = {
                "outlook": {"one_click": True, "shared_app": self.app(session).uid}
            }
            service.detach(session, site, connection, actor="mara", now=db.now())

    def link_again(self) -> str:
        """The same account once more; returns its new access token."""
        db, cache = self.installation.db, self.cache()
        with db.write() as session:
            connection = session.get_one(Connection, self.connection_id)
            mailbox = session.get_one(Mailbox, session.get_one(Grant, self.grant_id).mailbox_id)
            service.attach(
                session,
                self.installation.keyring,
                session.get_one(Site, connection.site_id),
                connection,
                self.app(session),
                service.Account(
                    tenant_id=mailbox.tenant_id,
                    object_id=mailbox.object_id,
                    address=mailbox.address,
                ),
                cache=cache,
                scopes=SCOPES,
                actor="mara",
                now=db.now(),
            )
        return access_token(cache)

    def save_secret(self, secret: str) -> None:
        db = self.installation.db
        with db.write() as session:
            app = self.app(session)
            values = service.AppValues(
                name=app.name,
                cloud=app.cloud,
                tenant=app.tenant,
                client_id=app.client_id,
                secret=secret,
            )
            service.save_app(
                session,
                self.installation.keyring,
                app,
                values,
                clouds=clouds(self.installation.settings),
                actor="mara",
                now=db.now(),
            )

    def app(self, session: sa.orm.Session) -> OAuthApp:
        return session.get_one(OAuthApp, self.app_id)

    # ---- time ----

    def let_pass(self, seconds: float, grant_id: int = 0) -> None:
        """Make the stored access token so much older; it lives for an hour."""
        grant_id = grant_id or self.grant_id
        cache = json.loads(self.stored(grant_id))
        for entry in cache["AccessToken"].values():
            for name in ("cached_at", "expires_on", "extended_expires_on"):
                entry[name] = str(int(float(entry[name]) - seconds))
        sealed = self.installation.keyring.seal(
            "grant", service.grant_subject(grant_id), json.dumps(cache)
        )
        with self.installation.db.write() as session:
            session.get_one(Grant, grant_id).cache = sealed

    def make_due(self, grant_id: int = 0, **ago: float) -> None:
        """The daily renewal of a grant is late by so much."""
        with self.installation.db.write() as session:
            grant = session.get_one(Grant, grant_id or self.grant_id)
            grant.renew_at = self.installation.db.now() - timedelta(**ago)
            grant.renewed_at = grant.renew_at - service.RENEW_EVERY

    # ---- what there is ----

    def stored(self, grant_id: int = 0) -> str:
        """The text of a grant's cache."""
        grant_id = grant_id or self.grant_id
        sealed = self.grant(grant_id).cache
        assert sealed is not None
        return str(self.keys().unseal("grant", service.grant_subject(grant_id), sealed))

    def grant(self, grant_id: int = 0) -> Grant:
        with self.installation.db.read() as session:
            return session.get_one(Grant, grant_id or self.grant_id)

    def connection(self) -> Connection:
        with self.installation.db.read() as session:
            return session.get_one(Connection, self.connection_id)

    def registration(self) -> OAuthApp:
        with self.installation.db.read() as session:
            return self.app(session)

    def lane(self) -> Lane:
        with self.installation.db.read() as session:
            mailbox = session.get_one(Mailbox, self.grant().mailbox_id)
            return session.get_one(Lane, mailbox.lane_id)

    def links(self) -> int:
        with self.installation.db.read() as session:
            return session.scalar(sa.select(sa.func.count()).select_from(Link)) or 0

    def asked(self) -> int:
        """How often the sandbox was asked for a renewal since it was reset."""
        return self.sandbox.token_calls("refresh_token")


def access_token(cache: str) -> str:
    """The one in MSAL's text."""
    (entry,) = json.loads(cache)["AccessToken"].values()
    return str(entry["secret"])


def refresh_token(cache: str) -> str:
    """The one in MSAL's text."""
    (entry,) = json.loads(cache)["RefreshToken"].values()
    return str(entry["secret"])


def at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """Call it so many times together; returns what came back."""
    together = threading.Barrier(count)

    def one(number: int) -> Any:
        together.wait(30)
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def wait_until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)
