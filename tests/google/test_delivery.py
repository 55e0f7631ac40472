"""From the queue to Gmail: a real worker, real tokens, Google's stand-in."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import sqlalchemy as sa

from tests.delivery.test_worker import Post
from tests.factories import an_app, an_installation
from tests.rig.sandbox import SandboxThread
from webapp.connections import service as connections
from webapp.connections.models import Health
from webapp.connections.service import FormValues
from webapp.delivery.models import Attempt, Lane, Outcome, State
from webapp.google.cloud import NEEDED, google
from webapp.google.cloud import every_cloud as clouds
from webapp.installation import Installation, load_keys
from webapp.mailers.base import Surroundings
from webapp.microsoft import service
from webapp.microsoft.models import Grant, OAuthApp
from webapp.microsoft.service import Account
from webapp.microsoft.tokens import AppFacts, Tokens
from webapp.outward import Outward
from webapp.sites.models import Site

INFO = "info@workshop.example"
BACK = "http://localhost:8025/oauth/google/callback"


class GmailPost(Post):
    """A worker that sends through the sandbox's Gmail."""

    def __init__(self, installation: Installation, sandbox: SandboxThread) -> None:
        super().__init__(installation)
        self.sandbox = sandbox

    def tokens(self) -> Tokens:
        settings, ca_file = self.installation.settings, self.sandbox.ca
        return Tokens(
            self.installation.db,
            lambda: load_keys(settings, may_create=False),
            clouds(settings),
            lambda: Outward(ca_file=ca_file),
        )

    def surroundings(self) -> Surroundings:
        return replace(super().surroundings(), ca_file=self.sandbox.ca, tokens=self.tokens())

    def refresh_token(self) -> str:
        """What somebody's sign-in leaves."""
        about = self.sandbox.google
        scopes = [google(self.installation.settings).scope(name) for name in NEEDED]
        asked = {
            "client_id": about["client_id"],
            "redirect_uri": BACK,
            "response_type": "code",
            "scope": " ".join(["openid email", *scopes]),
            "access_type": "offline",
            "prompt": "consent",
        }
        page = f"{self.sandbox.inbox}/google/o/oauth2/v2/auth?{urlencode(asked)}"
        code = parse_qs(urlsplit(self.sandbox.sign_in(page, INFO)).query)["code"][0]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK}
        known = {name: about[name] for name in ("client_id", "client_secret")}
        with self.sandbox.session() as session:
            answer = session.post(f"{about['authority']}/token", data=form | known, timeout=30)
        return str(answer.json()["refresh_token"])

    def link(self) -> None:
        about, keyring = self.sandbox.google, self.installation.keyring
        facts = AppFacts(
            client_id=about["client_id"],
            secret=about["client_secret"],
            cloud=google(self.installation.settings),
            tenant="google",
        )
        cache = self.tokens().hand_over(facts, self.refresh_token(), NEEDED)
        with self.installation.db.write() as session:
            site = session.get_one(Site, self.site)
            app = session.scalar(sa.select(OAuthApp)) or an_app(
                session,
                keyring,
                provider="google",
                cloud="google",
                tenant="google",
                client_id=facts.client_id,
                secret=facts.secret,
            )
            now = self.installation.db.now()
            connection = connections.save_connection(
                session,
                keyring,
                site,
                connections.primary_connection(session, site),
                FormValues(
                    mailer="gmail",
                    settings={"one_click": True, "shared_app": app.uid},
                    from_email=INFO,
                ),
                actor="test",
                now=now,
            )
            connections.set_primary(session, site, connection, actor="test", now=now)
            service.attach(
                session,
                keyring,
                site,
                connection,
                app,
                Account(tenant_id="google", object_id="113456789012345678901", address=INFO),
                cache=cache,
                scopes=NEEDED,
                actor="test",
                now=now,
            )
            session.get_one(Lane, connection.lane_id).per_minute = None
        self.waker.wake()

    def forget_access_token(self) -> None:
        keyring = self.installation.keyring
        with self.installation.db.write() as session:
            grant = session.scalars(sa.select(Grant)).one()
            subject = service.grant_subject(grant.id)
            kept = json.loads(str(keyring.unseal("grant", subject, str(grant.cache))))
            grant.cache = keyring.seal("grant", subject, json.dumps(kept | {"access_token": ""}))
            grant.version += 1

    def attempts(self) -> list[Attempt]:
        with self.installation.db.read() as session:
            query = sa.select(Attempt).order_by(Attempt.message_id, Attempt.number)
            return list(session.scalars(query))


@pytest.fixture
def post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GmailPost]:
    monkeypatch.setattr("webapp.delivery.worker.POLL_SECONDS", 0.2)
    with SandboxThread() as sandbox:
        named = {name.removeprefix("POSTROOM_"): v for name, v in sandbox.environment.items()}
        url = f"sqlite:///{tmp_path / 'postroom.db'}"
        made = GmailPost(an_installation(url, tmp_path, **named), sandbox)
        yield made
        made.close()


def test_mail_leaves_through_gmail_to_exactly_its_recipients(post: GmailPost) -> None:
    post.link()
    post.forget_access_token()
    before = post.sandbox.token_calls("refresh_token")
    post.hand_in(3, "kunde@example.org", "hidden@example.org")
    post.work()
    post.wait_for(lambda: post.states() == [State.SENT] * 3)
    assert post.sandbox.token_calls("refresh_token") - before == 1
    mail = post.sandbox.mails()[0]
    assert sorted(mail["recipients"]) == ["hidden@example.org", "kunde@example.org"]
    assert f"From: Shop <{INFO}>" in post.sandbox.raw(mail["number"])
    attempt = post.attempts()[0]
    assert (attempt.outcome, attempt.code) == (Outcome.SENT, "200")
    assert attempt.remote_id
    assert post.connection().health == Health.WORKING
    assert post.world.gaps() == 0


def test_a_revoked_link_holds_the_mail_until_it_is_linked_again(post: GmailPost) -> None:
    post.link()
    world = post.sandbox.world
    world.google.revoke(world.google.find(INFO))
    post.work()
    post.hand_in(2)
    post.wait_for(lambda: post.lane().is_blocked)
    post.wait_for(lambda: State.SENDING not in post.states())
    assert set(post.states()) <= {State.QUEUED, State.DEFERRED}
    found = post.connection()
    assert (found.health, found.last_code) == (Health.NEEDS_REAUTHORISATION, "invalid_grant")
    post.link()
    post.wait_for(lambda: post.states() == [State.SENT] * 2)
    assert set(post.sandbox.counts().values()) == {2}
