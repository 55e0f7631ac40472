"""Links that no mail used: renewed once a day, told when they are refused."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.factories import a_time, a_user, an_installation
from tests.microsoft.linked import ANN, Linked, wait_until
from tests.rig.sandbox import SandboxThread
from webapp.connections.models import Health
from webapp.microsoft import keepalive, service
from webapp.microsoft.keepalive import KeepAlive, pause_after
from webapp.microsoft.models import FlowKind, GrantState, LinkFlow

BOB = "orders@contoso.example"
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxThread]:
    with SandboxThread() as running:
        yield running


@pytest.fixture
def linked(db_url: str, tmp_path: Path, sandbox: SandboxThread) -> Iterator[Linked]:
    """A mailbox that is linked; its daily renewal is not due."""
    sandbox.reset()
    settings = {
        name.removeprefix("POSTROOM_").lower(): value for name, value in sandbox.environment.items()
    }
    made = Linked(an_installation(db_url, tmp_path, **settings), sandbox)
    made.link()
    sandbox.reset()
    yield made
    made.installation.close()


def keep_alive(linked: Linked) -> KeepAlive:
    return KeepAlive(linked.installation.db, linked.tokens())


def test_only_what_is_due_is_renewed(linked: Linked) -> None:
    idle = linked.grant_id
    used = linked.link(BOB)
    linked.sandbox.reset()
    linked.make_due(idle, minutes=1)
    before = linked.grant(used).version
    now = linked.installation.db.now()
    assert keep_alive(linked).round() == 1
    assert linked.asked() == 1
    assert linked.grant(used).version == before
    renewed = linked.grant(idle)
    assert renewed.renewed_at >= now
    assert renewed.renew_at - renewed.renewed_at >= service.RENEW_EVERY - service.RENEW_SPREAD
    assert renewed.renew_at - renewed.renewed_at <= service.RENEW_EVERY
    assert keep_alive(linked).round() == 0


def test_a_mail_makes_a_renewal_unnecessary(linked: Linked) -> None:
    linked.make_due(minutes=1)
    linked.let_pass(3700)
    linked.tokens().token(linked.grant_id)
    assert keep_alive(linked).round() == 0
    assert linked.asked() == 1


def test_a_round_takes_the_oldest_first(linked: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepalive, "PER_ROUND", 1)
    newer = linked.grant_id
    older = linked.link(BOB)
    linked.make_due(newer, minutes=1)
    linked.make_due(older, minutes=2)
    rounds = keep_alive(linked)
    now = linked.installation.db.now()
    assert rounds.round() == 1
    assert linked.grant(older).renewed_at >= now > linked.grant(newer).renewed_at
    assert rounds.round() == 1
    assert linked.grant(newer).renewed_at >= now


def test_a_refusal_shows_as_in_sending(linked: Linked) -> None:
    linked.make_due(minutes=1)
    linked.sandbox.fault("revoked_grant", account=ANN)
    assert keep_alive(linked).round() == 0
    assert linked.grant().state == GrantState.NEEDS_REAUTHORISATION
    assert linked.grant().code == "AADSTS50173"
    assert linked.connection().health == Health.NEEDS_REAUTHORISATION
    assert linked.lane().is_blocked
    assert keep_alive(linked).round() == 0
    assert linked.asked() == 1


def test_an_expired_secret_is_told_though_the_token_is_still_good(linked: Linked) -> None:
    linked.make_due(minutes=1)
    linked.sandbox.fault("expired_secret")
    assert keep_alive(linked).round() == 0
    assert linked.registration().problem_code == "AADSTS7000222"
    assert linked.grant().state == GrantState.LINKED
    assert linked.grant().renew_at > linked.installation.db.now()


def test_what_passes_is_tried_again_later(linked: Linked) -> None:
    linked.make_due(minutes=1)
    linked.sandbox.fault("token_unavailable")
    before = linked.grant()
    now = linked.installation.db.now()
    assert keep_alive(linked).round() == 0
    after = linked.grant()
    assert (after.state, after.version) == (GrantState.LINKED, before.version)
    assert after.renewed_at == before.renewed_at
    assert timedelta(minutes=11) < after.renew_at - now < timedelta(minutes=20)
    assert linked.connection().health == Health.UNKNOWN


def test_pauses_double_from_a_quarter_of_an_hour_to_four() -> None:
    middle = [pause_after(DAY + timedelta(minutes=late), 0.5) for late in (0, 15, 30, 60, 999)]
    assert [pause.total_seconds() / 60 for pause in middle] == [15, 15, 30, 60, 240]
    assert pause_after(DAY, 0.0) < pause_after(DAY, 0.5) < pause_after(DAY, 0.99)


def test_two_processes_renew_once(linked: Linked) -> None:
    linked.make_due(minutes=1)
    one, other = keep_alive(linked), keep_alive(linked)
    assert one._due() == other._due() == [linked.grant_id]
    assert one._renew(linked.grant_id)
    assert not other._renew(linked.grant_id)
    assert linked.asked() == 1


def test_a_removed_link_is_left_alone(linked: Linked) -> None:
    linked.make_due(minutes=1)
    linked.remove()
    assert keep_alive(linked).round() == 0
    assert linked.asked() == 0


def test_it_runs_until_it_is_stopped(linked: Linked) -> None:
    linked.make_due(minutes=1)
    running = KeepAlive(linked.installation.db, linked.tokens(), timedelta(milliseconds=10))
    running.start()
    wait_until(lambda: linked.grant().version == 2)
    linked.make_due(minutes=1)
    wait_until(lambda: linked.grant().version == 3)
    running.stop()
    running.stop()
    assert linked.asked() == 2


def test_a_round_that_fails_is_not_the_last(
    linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked.make_due(minutes=1)
    running = KeepAlive(linked.installation.db, linked.tokens(), timedelta(milliseconds=10))
    errors = [sa.exc.OperationalError("SELECT", None, Exception("gone")), ValueError("a bug")]
    due = running._due

    def fails_twice() -> object:
        if errors:
            raise errors.pop()
        return due()

    monkeypatch.setattr(running, "_due", fails_twice)
    running.start()
    wait_until(lambda: linked.asked() == 1)
    running.stop()


def test_what_became_of_old_sign_ins_is_forgotten(linked: Linked) -> None:
    now = a_time()
    with linked.installation.db.write() as session:
        user = a_user(session)
        for digest, days in (("old", 31), ("recent", 29)):
            session.add(
                LinkFlow(
                    digest=digest,
                    kind=FlowKind.LINK,
                    connection_id=linked.connection_id,
                    app_id=linked.app_id,
                    user_id=user.id,
                    created_at=now - timedelta(days=days),
                    expires_at=now - timedelta(days=days),
                )
            )
    for _ in range(2):
        keep_alive(linked).forget_old_flows()
    with linked.installation.db.read() as session:
        assert session.scalars(sa.select(LinkFlow.digest)).all() == ["recent"]


def test_a_bug_with_one_link_keeps_no_other_from_being_renewed(
    linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy, bad = linked.grant_id, linked.link(BOB)
    linked.make_due(healthy, minutes=1)
    linked.make_due(bad, minutes=2)
    rounds = keep_alive(linked)
    renew = rounds._tokens.renew

    def stumbles(grant_id: int) -> None:
        if grant_id == bad:
            raise AssertionError("a bug")
        renew(grant_id)

    monkeypatch.setattr(rounds._tokens, "renew", stumbles)
    assert rounds.round() == 1
    assert linked.grant(healthy).version == 2
    assert linked.grant(bad).renew_at > linked.installation.db.now()


def test_a_registration_that_is_taken_again_lets_its_mail_go(linked: Linked) -> None:
    linked.make_due(minutes=1)
    linked.sandbox.fault("expired_secret")
    assert keep_alive(linked).round() == 0
    assert linked.lane().is_blocked
    linked.sandbox.reset()
    linked.make_due(minutes=1)
    assert keep_alive(linked).round() == 1
    assert linked.registration().problem_since is None
    assert not linked.lane().is_blocked
    assert linked.connection().health == Health.UNKNOWN
