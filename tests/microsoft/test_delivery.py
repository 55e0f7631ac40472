"""From the queue to Microsoft: a real worker, real tokens, Graph's stand-in, both databases."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.delivery.test_worker import Post
from tests.factories import an_installation
from tests.rig.linking import ACTOR, hand_over, link, sign_in
from tests.rig.sandbox import SandboxThread
from webapp.connections.models import Connection, Health
from webapp.delivery.models import Attempt, Lane, Message, Outcome, State
from webapp.installation import Installation, load_keys
from webapp.mailers.base import Surroundings
from webapp.microsoft import service
from webapp.microsoft.clouds import clouds
from webapp.microsoft.models import Grant, GrantState, OAuthApp
from webapp.microsoft.service import Account
from webapp.microsoft.tokens import Tokens
from webapp.outward import Outward
from webapp.sites.models import Site

ORDERS = "orders@contoso.example"


class GraphPost(Post):
    """A worker that sends through the sandbox."""

    def __init__(self, installation: Installation, sandbox: SandboxThread) -> None:
        super().__init__(installation)
        self.sandbox = sandbox
        with installation.db.read() as session:
            self.slug = session.get_one(Site, self.site).slug

    def surroundings(self) -> Surroundings:
        settings, ca_file = self.installation.settings, self.sandbox.ca
        tokens = Tokens(
            self.installation.db,
            lambda: load_keys(settings, may_create=False),
            clouds(settings),
            lambda: Outward(ca_file=ca_file),
        )
        return replace(super().surroundings(), ca_file=ca_file, tokens=tokens)

    def link(self, **given: Any) -> None:
        link(self.installation, self.sandbox, self.slug, **given)

    def link_again(self) -> None:
        """As the link flow does it."""
        cache, who = hand_over(self.sandbox, sign_in(self.sandbox, ORDERS)["refresh_token"])
        with self.installation.db.write() as session:
            connection = session.scalars(
                sa.select(Connection).where(Connection.is_system.is_(False))
            ).one()
            service.attach(
                session,
                self.installation.keyring,
                session.get_one(Site, self.site),
                connection,
                session.scalars(sa.select(OAuthApp)).one(),
                Account(tenant_id=who["tid"], object_id=who["oid"], address=ORDERS),
                cache=cache,
                scopes=service.NEEDED,
                actor=ACTOR,
                now=self.installation.db.now(),
            )
        self.waker.wake()

    def forget_tokens(self) -> None:
        """Start anew, with no token in memory and none stored that is still good."""
        with self.installation.db.write() as session:
            grant = session.scalars(sa.select(Grant)).one()
            keyring = self.installation.keyring
            subject = service.grant_subject(grant.id)
            cache = str(keyring.unseal("grant", subject, str(grant.cache)))
            grant.cache = keyring.seal("grant", subject, _without_access_tokens(cache))
            grant.version += 1

    def attempts(self) -> list[Attempt]:
        with self.installation.db.read() as session:
            query = sa.select(Attempt).order_by(Attempt.message_id, Attempt.number)
            return list(session.scalars(query))


def _without_access_tokens(cache: str) -> str:
    import json

    stored = json.loads(cache)
    stored["AccessToken"] = {}
    return json.dumps(stored)


@pytest.fixture
def post(db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GraphPost]:
    monkeypatch.setattr("webapp.delivery.worker.POLL_SECONDS", 0.2)
    with SandboxThread() as sandbox:
        named = {name.removeprefix("POSTROOM_"): v for name, v in sandbox.environment.items()}
        made = GraphPost(an_installation(db_url, tmp_path, **named), sandbox)
        yield made
        made.close()


def test_mail_leaves_through_graph_to_exactly_its_recipients(post: GraphPost) -> None:
    post.link()
    post.work()
    post.hand_in(1, "kunde@example.org", "hidden@example.org")
    post.wait_for(lambda: post.states() == [State.SENT])
    (mail,) = post.sandbox.mails()
    assert sorted(mail["recipients"]) == ["hidden@example.org", "kunde@example.org"]
    assert mail["account"] == ORDERS
    raw = post.sandbox.raw(mail["number"])
    assert "hidden@example.org" not in raw
    assert f"From: Shop <{ORDERS}>" in raw
    assert "Reply-To: Shop <shop@example.com>" in raw
    (attempt,) = post.attempts()
    assert (attempt.outcome, attempt.code) == (Outcome.SENT, "202")
    assert attempt.remote_id
    assert any("sendMail" in line for line in attempt.details["log"])
    post.wait_for(lambda: post.connection().health == Health.WORKING)
    assert post.world.gaps() == 0


def test_many_mails_at_expiry_make_one_call_for_a_token(post: GraphPost) -> None:
    post.link()
    post.forget_tokens()
    before = post.sandbox.token_calls()
    post.hand_in(50)
    post.work()
    post.wait_for(lambda: post.states() == [State.SENT] * 50)
    assert post.sandbox.token_calls() - before == 1
    assert set(post.sandbox.counts().values()) == {50}


def test_a_mailbox_is_asked_three_at_a_time_by_default(post: GraphPost) -> None:
    post.link(limited=True)
    lane = post.lane()
    assert (lane.concurrency, lane.per_minute, lane.recipients_per_day) == (3, 30, 10_000)
    post.sandbox.fault("slow", milliseconds=300)
    post.hand_in(6)
    post.work()
    most = 0
    while post.states() != [State.SENT] * 6:
        most = max(most, post.states().count(State.SENDING))
    assert most == 3


def test_the_day_of_a_mailbox_is_counted_in_recipients(post: GraphPost) -> None:
    post.link()
    with post.installation.db.write() as session:
        session.scalars(sa.select(Lane)).one().recipients_per_day = 5
    post.work()
    post.hand_in(2, "a@example.org", "b@example.org")
    post.hand_in(1, "a@example.org", "b@example.org")
    post.wait_for(lambda: post.states() == [State.SENT, State.SENT, State.QUEUED])
    post.hand_in(1, "c@example.org")
    assert post.states()[2] == State.QUEUED


def test_more_than_five_hundred_recipients_go_in_several_mails(post: GraphPost) -> None:
    post.link()
    post.work()
    everybody = [f"reader{number}@example.org" for number in range(1001)]
    post.hand_in(1, *everybody)
    post.wait_for(lambda: post.states() == [State.SENT])
    mails = post.sandbox.mails()
    assert sorted(len(mail["recipients"]) for mail in mails) == [1, 500, 500]
    assert {address for mail in mails for address in mail["recipients"]} == set(everybody)
    assert not post.world.message(post.queue_ids()[0]).maybe_twice


def test_being_asked_to_wait_blocks_the_mailbox_and_counts_as_no_failure(post: GraphPost) -> None:
    post.link()
    post.sandbox.fault("throttled", times=1, retry_after=60)
    post.work()
    post.hand_in(1)
    post.wait_for(lambda: post.states() == [State.DEFERRED])
    lane = post.lane()
    assert lane.blocked_until is not None
    assert lane.blocked_until - post.installation.db.now() > timedelta(seconds=50)
    assert post.world.message(post.queue_ids()[0]).failures == 0
    assert post.attempts()[0].code.startswith("429")


@pytest.mark.parametrize("fault", ["sent_504", "dropped_after"])
def test_a_lost_answer_is_sent_once_more_and_marked(post: GraphPost, fault: str) -> None:
    post.link()
    post.sandbox.fault(fault, times=1)
    post.work()
    post.hand_in(1)
    post.wait_for(lambda: post.states() == [State.UNCERTAIN])
    with post.installation.db.write() as session:
        session.execute(sa.update(Message).values(due_at=post.installation.db.now()))
    post.waker.wake()
    post.wait_for(lambda: post.states() == [State.SENT])
    assert post.world.message(post.queue_ids()[0]).maybe_twice
    assert set(post.sandbox.counts().values()) == {2}


def test_a_sender_that_the_account_may_not_use_fails_this_mail_alone(post: GraphPost) -> None:
    post.link(from_email="service@contoso.example")
    post.work()
    post.hand_in(1)
    post.wait_for(lambda: post.states() == [State.FAILED])
    (attempt,) = post.attempts()
    assert (attempt.outcome, attempt.code) == (Outcome.PERMANENT, "403 ErrorSendAsDenied")
    assert not post.lane().is_blocked


def test_a_mail_too_large_fails_with_a_sentence_that_says_why(post: GraphPost) -> None:
    post.link()
    post.work()
    raw = b"From: a@b.example\r\nTo: k@example.org\r\n\r\n" + (b"x" * 70 + b"\r\n") * 43_000
    post.world.now = post.installation.db.now()
    post.world.accept_many(post.site, [("k@example.org",)], raw)
    post.waker.wake()
    post.wait_for(lambda: post.states() == [State.FAILED])
    (attempt,) = post.attempts()
    assert attempt.words.startswith("This mail is 3.0 MB.")
    assert post.sandbox.mails() == []


def test_a_revoked_link_holds_the_mail_until_it_is_linked_again(post: GraphPost) -> None:
    post.link()
    post.sandbox.revoke(ORDERS)
    post.forget_tokens()
    post.work()
    post.hand_in(3)
    post.wait_for(lambda: post.lane().is_blocked)
    post.wait_for(lambda: State.SENDING not in post.states())
    assert set(post.states()) <= {State.QUEUED, State.DEFERRED}
    connection = post.connection()
    assert connection.health == Health.NEEDS_REAUTHORISATION
    assert connection.last_code == "AADSTS50173"
    with post.installation.db.read() as session:
        grant = session.scalars(sa.select(Grant)).one()
    assert grant.state == GrantState.NEEDS_REAUTHORISATION
    post.link_again()
    post.wait_for(lambda: post.states() == [State.SENT] * 3)
    post.wait_for(lambda: post.connection().health == Health.WORKING)
    assert set(post.sandbox.counts().values()) == {3}


def test_an_expired_secret_holds_the_mail_until_a_new_one_is_saved(post: GraphPost) -> None:
    post.link()
    post.sandbox.fault("expired_secret")
    post.forget_tokens()
    post.work()
    post.hand_in(2)
    post.wait_for(lambda: post.lane().is_blocked)
    assert post.lane().blocked_kind == Outcome.MISCONFIGURED
    post.wait_for(lambda: post.connection().health == Health.MISCONFIGURED)
    with post.installation.db.read() as session:
        app = session.scalars(sa.select(OAuthApp)).one()
    assert app.problem_code == "AADSTS7000222"
    post.sandbox.clear()
    with post.installation.db.write() as session:
        app = session.get_one(OAuthApp, app.id)
        app.secret = post.installation.keyring.seal(
            "oauth-app", service.app_subject(app.uid), post.sandbox.client_secret
        )
        service.secret_stored(session, app, post.installation.db.now())
    post.waker.wake()
    post.wait_for(lambda: post.states() == [State.SENT] * 2)


def test_a_token_refused_before_its_time_is_renewed_once(post: GraphPost) -> None:
    post.link()
    before = post.sandbox.token_calls()
    post.sandbox.fault("invalid_token", times=1)
    post.work()
    post.hand_in(1)
    post.wait_for(lambda: post.states() == [State.SENT])
    assert post.sandbox.token_calls() - before == 1
    assert post.world.message(post.queue_ids()[0]).attempts == 1
