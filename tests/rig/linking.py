"""A connection linked with a mailbox of the sandbox, without a browser: what the link flow does,
in a few lines, for tests of what comes after it."""

import base64
import hashlib
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msal
import sqlalchemy as sa

from tests.rig.sandbox import Running
from webapp import ids
from webapp.connections import service as connections
from webapp.connections.models import Connection
from webapp.connections.service import FormValues
from webapp.delivery.models import Lane
from webapp.installation import Installation
from webapp.microsoft import service
from webapp.microsoft.clouds import CUSTOM, clouds
from webapp.microsoft.service import Account, AppValues
from webapp.sites.models import Site

ACTOR = "test"
REDIRECT = "http://localhost:8025/oauth/microsoft/callback"
VERIFIER = "a-verifier-that-is-long-enough-for-a-challenge-of-forty-three"
PERMISSIONS = ("User.Read", "Mail.Send")


def link(
    installation: Installation,
    sandbox: Running,
    slug: str,
    account: str = "orders@contoso.example",
    *,
    limited: bool = False,
    from_email: str = "",
) -> str:
    """Make the site's primary connection one of 365 / Outlook, linked; returns its id.

    Unless `limited`, its lane has no limits: tests do not wait for minutes.
    """
    tokens = sign_in(sandbox, account)
    cache, who = hand_over(sandbox, tokens["refresh_token"])
    with installation.db.write() as session:
        site = session.scalars(sa.select(Site).where(Site.slug == slug)).one()
        now = installation.db.now()
        app = next(iter(service.shared_apps(session)), None)
        if app is None:
            app = service.save_app(
                session,
                installation.keyring,
                None,
                AppValues(
                    name="Sandbox",
                    cloud=CUSTOM,
                    tenant="common",
                    client_id=sandbox.client_id,
                    secret=sandbox.client_secret,
                ),
                clouds=clouds(installation.settings),
                actor=ACTOR,
                now=now,
            )
        connection = connections.save_connection(
            session,
            installation.keyring,
            site,
            connections.primary_connection(session, site),
            FormValues(
                mailer="outlook",
                settings={"one_click": True, "shared_app": app.uid},
                from_email=from_email or account,
            ),
            actor=ACTOR,
            now=now,
        )
        connections.set_primary(session, site, connection, actor=ACTOR, now=now)
        service.attach(
            session,
            installation.keyring,
            site,
            connection,
            app,
            Account(
                tenant_id=who["tid"],
                object_id=who["oid"],
                address=account,
                name=who.get("name", ""),
            ),
            cache=cache,
            scopes=PERMISSIONS,
            actor=ACTOR,
            now=now,
        )
        if not limited:
            unlimit(session.get_one(Lane, connection.lane_id))
        return connection.uid


def unlimit(lane: Lane) -> None:
    """As fast as it goes."""
    lane.concurrency = lane.per_minute = lane.per_hour = lane.per_day = None
    lane.recipients_per_day = None


def sign_in(sandbox: Running, account: str) -> dict[str, Any]:
    """The token endpoint's answer to somebody who signed in and agreed."""
    digest = hashlib.sha256(VERIFIER.encode()).digest()
    url = sandbox.authorize_url(
        redirect_uri=REDIRECT,
        state=ids.short_id(),
        nonce=ids.short_id(),
        code_challenge=base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        code_challenge_method="S256",
    )
    back = urlsplit(sandbox.sign_in(url, account))
    answer = sandbox.session().post(
        f"{sandbox.authority}/common/oauth2/v2.0/token",
        data={
            "grant_type": "authorization_code",
            "code": parse_qs(back.query)["code"][0],
            "redirect_uri": REDIRECT,
            "code_verifier": VERIFIER,
            "client_id": sandbox.client_id,
            "client_secret": sandbox.client_secret,
        },
        timeout=30,
    )
    assert answer.ok, answer.text
    found: dict[str, Any] = answer.json()
    return found


def hand_over(sandbox: Running, refresh_token: str) -> tuple[str, dict[str, str]]:
    """MSAL's cache with the refresh token in it, and whose it is."""
    cache = msal.SerializableTokenCache()
    application = msal.ConfidentialClientApplication(
        sandbox.client_id,
        client_credential=sandbox.client_secret,
        authority=f"{sandbox.authority}/common",
        instance_discovery=False,
        http_client=sandbox.session(),
        token_cache=cache,
    )
    scopes = [f"{sandbox.graph}/{permission}" for permission in PERMISSIONS]
    found = application.acquire_token_by_refresh_token(refresh_token, scopes)
    assert "access_token" in found, found
    return cache.serialize(), found["id_token_claims"]


def connection_of(installation: Installation, uid: str) -> Connection:
    """The connection as it is now."""
    with installation.db.read() as session:
        return session.scalars(sa.select(Connection).where(Connection.uid == uid)).one()
