"""Why a link ended is told apart: a new password, a second proof, a consent, fewer permissions."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factories import an_installation
from tests.microsoft.linked import Linked
from tests.rig.sandbox import SandboxThread
from webapp.connections.models import Health
from webapp.explain.match import MICROSOFT, SCOPES_CHANGED, explain
from webapp.mailers.errors import NeedsReauthorisation
from webapp.microsoft import renewal
from webapp.microsoft.models import GrantState

EXPIRED = 3700


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxThread]:
    with SandboxThread() as running:
        yield running


@pytest.fixture
def linked(db_url: str, tmp_path: Path, sandbox: SandboxThread) -> Iterator[Linked]:
    sandbox.reset()
    settings = {
        name.removeprefix("POSTROOM_").lower(): value for name, value in sandbox.environment.items()
    }
    made = Linked(an_installation(db_url, tmp_path, **settings), sandbox)
    made.link()
    sandbox.reset()
    yield made
    made.installation.close()


@pytest.mark.parametrize(
    ("fault", "code", "title"),
    [
        ("revoked_grant", "AADSTS50173", "Microsoft has ended the link"),
        ("mfa_required", "AADSTS50076", "Microsoft wants a second proof of identity"),
        ("consent_withdrawn", "AADSTS65001", "The app has no permission to send"),
        ("account_disabled", "AADSTS50057", "The account is disabled"),
        ("reduced_consent", "scopes-changed", "Not all permissions were granted"),
    ],
)
def test_what_ended_a_link_is_told_apart_by_its_code(
    linked: Linked, fault: str, code: str, title: str
) -> None:
    linked.sandbox.fault(fault)
    linked.let_pass(EXPIRED)
    with pytest.raises(NeedsReauthorisation) as caught:
        linked.tokens().token(linked.grant_id)
    assert caught.value.code == code
    grant = linked.grant()
    assert (grant.state, grant.code) == (GrantState.NEEDS_REAUTHORISATION, code)
    assert linked.connection().health == Health.NEEDS_REAUTHORISATION
    assert linked.lane().is_blocked
    found = explain(mailer=MICROSOFT, code=grant.code, words=grant.words)
    assert found.title == title
    linked.sandbox.clear()
    linked.link_again()
    assert linked.grant().state == GrantState.LINKED
    assert not linked.lane().is_blocked


def test_setting_up_a_second_proof_is_not_giving_one() -> None:
    keys = [explain(mailer=MICROSOFT, code=f"AADSTS{n}", words="").key for n in (50076, 50079)]
    assert keys == ["mfa-needed", "mfa-register"]


def test_both_sides_call_it_by_the_same_code() -> None:
    assert renewal.SCOPES_CHANGED == SCOPES_CHANGED


def test_a_permission_that_is_not_needed_may_go_and_another_come(linked: Linked) -> None:
    before = ["User.Read", "Mail.Send", "offline_access"]
    answered = "openid https://graph.example/Mail.Send https://graph.example/Mail.ReadWrite"
    assert renewal._granted(answered, before) == ["Mail.Send", "offline_access", "Mail.ReadWrite"]
    assert renewal._granted("", before) == before
    linked.let_pass(EXPIRED)
    linked.tokens().token(linked.grant_id)
    assert {"User.Read", "Mail.Send"} <= set(linked.grant().scopes)
