"""The second secret of a registration: proved by a call, used in place of the first, never lost."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from tests.factories import a_message, a_user, an_installation
from tests.microsoft.linked import Linked, wait_until
from tests.pages import Browser, Page
from tests.rig.sandbox import SandboxThread
from webapp import create_app
from webapp.audit import AuditEvent
from webapp.connections.models import Connection
from webapp.delivery.models import Lane, State
from webapp.microsoft import service, successors
from webapp.microsoft.clouds import clouds
from webapp.microsoft.keepalive import KeepAlive
from webapp.microsoft.models import GrantState
from webapp.microsoft.tokens import Verdict
from webapp.sites.models import Site

NEXT = "The.Next~Secret_Of-This-Registration-01"
WRONG = "Not.The~Secret_Of-Anything-At-All-00000"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxThread]:
    with SandboxThread() as running:
        yield running


@pytest.fixture
def linked(db_url: str, tmp_path: Path, sandbox: SandboxThread) -> Iterator[Linked]:
    """A linked mailbox whose registration has a second secret at Microsoft."""
    yield from _linked(db_url, tmp_path, sandbox)


@pytest.fixture
def lone(tmp_path: Path, sandbox: SandboxThread) -> Iterator[Linked]:
    """The same on SQLite only."""
    yield from _linked(f"sqlite:///{tmp_path / 'postroom.db'}", tmp_path, sandbox)


def _linked(db_url: str, tmp_path: Path, sandbox: SandboxThread) -> Iterator[Linked]:
    sandbox.reset()
    settings = {
        name.removeprefix("POSTROOM_").lower(): value for name, value in sandbox.environment.items()
    }
    made = Linked(an_installation(db_url, tmp_path, **settings), sandbox)
    register(sandbox)
    made.link()
    sandbox.reset()
    yield made
    made.installation.close()


def register(sandbox: SandboxThread) -> None:
    """The built-in registration, with a second secret beside the first."""
    sandbox.post(
        "applications",
        client_id=sandbox.client_id,
        client_secret=sandbox.client_secret,
        next_secret=NEXT,
    )


def unreachable(linked: Linked) -> None:
    """Microsoft's sign-in service answers that it cannot answer now."""
    linked.sandbox.fault("token_unavailable")


def proof(linked: Linked, secret: str) -> Any:
    tokens = linked.tokens()
    return successors.prove(linked.installation.db, tokens, linked.registration(), secret)


def wait_for_proof(linked: Linked, secret: str = NEXT, **values: Any) -> None:
    """A successor that could not be proved when it was saved."""
    with linked.installation.db.write() as session:
        app = linked.app(session)
        app.next_secret = linked.installation.keyring.seal(
            "oauth-app", service.app_subject(app.uid), secret
        )
        app.next_secret_set_at = linked.installation.db.now()
        app.next_secret_set_by = "mara"
        for name, value in values.items():
            setattr(app, name, value)


def settle(linked: Linked) -> int:
    return successors.settle(linked.installation.db, linked.tokens())


def in_use(linked: Linked) -> str:
    return service.secret_of(linked.registration(), linked.installation.keyring)


def waiting(linked: Linked) -> str:
    return service.next_secret_of(linked.registration(), linked.installation.keyring)


def events(linked: Linked) -> list[dict[str, Any]]:
    with linked.installation.db.read() as session:
        found = session.scalars(sa.select(AuditEvent).order_by(AuditEvent.id))
        return [event.changes or {} for event in found]


# ---- the proof ----


def test_a_link_proves_a_secret_and_stays_as_it_was(linked: Linked) -> None:
    before = linked.stored()
    assert proof(linked, NEXT).verdict is Verdict.RIGHT
    assert proof(linked, WRONG).verdict is Verdict.WRONG
    assert linked.stored() == before
    assert linked.grant().state == GrantState.LINKED
    linked.let_pass(3700)
    linked.tokens().token(linked.grant_id)


def test_microsofts_words_come_with_a_refusal_and_the_secret_does_not(lone: Linked) -> None:
    refused = proof(lone, WRONG)
    assert refused.code == "AADSTS7000215"
    assert "Invalid client secret provided." in refused.words
    assert WRONG not in repr(refused)


def test_a_link_that_was_revoked_proves_it_all_the_same(lone: Linked) -> None:
    lone.sandbox.fault("revoked_grant")
    assert proof(lone, NEXT).verdict is Verdict.RIGHT
    assert lone.grant().state == GrantState.LINKED


def test_without_a_link_a_token_of_nobody_proves_it(lone: Linked) -> None:
    lone.remove()
    assert proof(lone, NEXT).verdict is Verdict.RIGHT
    assert proof(lone, WRONG).verdict is Verdict.WRONG


def test_a_registration_of_one_organization_is_proved_by_a_token_of_its_own(lone: Linked) -> None:
    own = lone.sandbox.single_tenant
    lone.remove()
    with lone.installation.db.write() as session:
        app = lone.app(session)
        app.client_id, app.tenant = own["client_id"], own["tenant"]
    assert proof(lone, own["client_secret"]).verdict is Verdict.RIGHT
    assert lone.sandbox.token_calls("client_credentials") == 1
    assert proof(lone, WRONG).verdict is Verdict.WRONG


def test_a_service_that_is_busy_proves_nothing(lone: Linked) -> None:
    unreachable(lone)
    assert proof(lone, NEXT).verdict is Verdict.UNKNOWN


# ---- the delivery process proves it later ----


def test_a_successor_that_waits_is_used_once_microsoft_says_yes(linked: Linked) -> None:
    until = date(2028, 11, 22)
    wait_for_proof(linked, next_secret_expires_on=until, secret_expires_on=date(2026, 12, 5))
    unreachable(linked)
    assert settle(linked) == 0
    assert (in_use(linked), waiting(linked)) == (linked.sandbox.client_secret, NEXT)
    linked.sandbox.clear()
    assert settle(linked) == 1
    app = linked.registration()
    assert (in_use(linked), waiting(linked)) == (NEXT, "")
    assert (app.secret_expires_on, app.secret_set_by) == (until, "mara")
    assert (app.next_secret_expires_on, app.next_secret_set_by) == (None, "")
    assert events(linked)[-1] == {
        "secret": "changed",
        "secret_expires_on": ["2026-12-05", "2028-11-22"],
    }
    assert settle(linked) == 0


def test_a_successor_that_is_wrong_is_dropped_and_the_page_says_so(linked: Linked) -> None:
    wait_for_proof(linked, WRONG)
    assert settle(linked) == 0
    assert (in_use(linked), waiting(linked)) == (linked.sandbox.client_secret, "")
    with linked.installation.db.read() as session:
        refusal = service.refused_successor(session, linked.app(session))
    assert refusal is not None
    assert (refusal.code, "Invalid client secret" in refusal.words) == ("AADSTS7000215", True)
    assert events(linked)[-1] == {"next_secret": "refused"}


def test_what_was_saved_meanwhile_is_not_overwritten(
    linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_proof(linked)
    asked = successors.prove

    def slow(*given: Any) -> Any:
        found = asked(*given)
        linked.save_secret("Somebody.Else~Saved-This")
        return found

    monkeypatch.setattr(successors, "prove", slow)
    assert settle(linked) == 0
    assert (in_use(linked), waiting(linked)) == ("Somebody.Else~Saved-This", "")


def test_mail_that_an_expired_secret_held_goes_once_the_successor_is_proved(
    linked: Linked,
) -> None:
    linked.sandbox.fault("expired_secret", client_id=linked.sandbox.client_id)
    linked.let_pass(3700)
    with pytest.raises(Exception, match="expired"):
        linked.tokens().token(linked.grant_id)
    assert linked.lane().blocked_kind == "misconfigured"
    wait_for_proof(linked)
    rounds = KeepAlive(linked.installation.db, linked.tokens(), timedelta(hours=1))
    rounds.start()
    wait_until(lambda: not linked.lane().is_blocked)
    rounds.stop()
    assert not linked.lane().is_blocked
    assert linked.registration().problem_since is None
    assert linked.tokens().token(linked.grant_id).value


# ---- on the page ----


@pytest.fixture
def app(lone: Linked) -> Flask:
    made = create_app(lone.installation)
    made.testing = True
    return made


@pytest.fixture
def page_of(lone: Linked, client: Browser) -> Any:
    """Opens or saves the page of the registration, as an administrator."""
    with lone.installation.db.write() as session:
        user = a_user(session, email="mara@agentur.example", is_admin=True)
        uid = lone.app(session).uid
    client.sign_in(user)
    path = f"/settings/microsoft-apps/{uid}"

    def call(status: int = 200, **values: str) -> Page:
        if not values:
            return client.get(path)
        form = {
            "name": "Agency",
            "cloud": "custom",
            "account_type": "common",
            "client_id": lone.sandbox.client_id,
        }
        return client.post(path, form | values, status=status)

    return call


def test_a_right_successor_is_used_at_once(lone: Linked, page_of: Any) -> None:
    with lone.installation.db.write() as session:
        connection = session.get_one(Connection, lone.connection_id)
        site = session.get_one(Site, connection.site_id)
        lane = session.get_one(Lane, lone.lane().id)
        connection.lane_id = lane.id
        lane.is_blocked, lane.blocked_kind = True, "misconfigured"
        a_message(session, site, connection=connection, state=State.QUEUED)
    until = (date.today() + timedelta(days=700)).isoformat()  # noqa: DTZ011
    page = page_of(next_secret=NEXT, next_expires_on=until)
    told = page.notices[0]
    assert "It is in use now. 1 linked connection goes on, and nobody has to sign in" in told
    assert told.endswith("1 waiting mail goes on.")
    assert (in_use(lone), waiting(lone)) == (NEXT, "")
    app = lone.registration()
    assert app.secret_expires_on is not None
    assert app.secret_expires_on.isoformat() == until
    assert (app.secret_set_by, app.next_secret_set_at) == ("mara@agentur.example", None)
    assert NEXT not in page.response.text
    assert {"secret": "changed"}.items() <= events(lone)[-1].items()
    assert NEXT not in str(events(lone))


def test_without_waiting_mail_there_is_no_pause(lone: Linked, page_of: Any) -> None:
    told = page_of(next_secret=NEXT).notices[0]
    assert told.endswith("1 linked connection goes on without a pause.")


def test_a_wrong_successor_is_said_at_its_field_and_nothing_is_lost(
    lone: Linked, page_of: Any
) -> None:
    page = page_of(422, next_secret=WRONG, name="Renamed")
    assert list(page.errors) == ["next_secret"]
    assert "Invalid client secret provided." in page.errors["next_secret"]
    assert "the one in use stays." in page.errors["next_secret"]
    assert WRONG not in page.response.text
    assert page.value("name") == "Renamed"
    assert "Paste it once more" in page.one(id="next_secret-state").text
    assert (in_use(lone), waiting(lone)) == (lone.sandbox.client_secret, "")
    page = page_of(422, next_secret=WRONG, name="")
    assert set(page.errors) == {"name", "next_secret"}


def test_a_secret_id_is_refused_before_microsoft_is_asked(lone: Linked, page_of: Any) -> None:
    page = page_of(422, next_secret="b7d0c1f2-55ce-4a0e-9f61-3c8e2a7d4410")
    assert "This looks like the Secret ID." in page.errors["next_secret"]
    page = page_of(422, next_secret=NEXT, next_expires_on="2001-01-01")
    assert "This date is past." in page.errors["next_expires_on"]
    assert lone.asked() == 0


def test_a_successor_waits_when_microsoft_does_not_answer(lone: Linked, page_of: Any) -> None:
    unreachable(lone)
    page = page_of(next_secret=NEXT)
    assert "Microsoft did not answer" in page.notices[0]
    assert "Waiting to be proved" in page.one(id="next_secret-state").text
    assert (in_use(lone), waiting(lone)) == (lone.sandbox.client_secret, NEXT)
    assert NEXT not in page.response.text
    page = page_of(then="remove:next_secret")
    assert page.value("remove") == "next_secret"
    assert waiting(lone) == NEXT
    page_of(remove="next_secret")
    assert (in_use(lone), waiting(lone)) == (lone.sandbox.client_secret, "")
    assert events(lone)[-1]["next_secret"] == "removed"


def test_a_dropped_successor_is_told_until_another_one_is_saved(lone: Linked, page_of: Any) -> None:
    wait_for_proof(lone, WRONG)
    settle(lone)
    assert "Invalid client secret provided." in page_of().one(id="next_secret-state").text
    page = page_of(next_secret=NEXT)
    assert "Invalid client secret provided." not in page.response.text


def test_there_is_no_second_field_before_a_first_secret(lone: Linked, page_of: Any) -> None:
    with lone.installation.db.write() as session:
        lone.app(session).secret = None
    page = page_of()
    assert page.all(id="client_secret")
    assert not page.all(id="next_secret")


def test_where_no_secret_is_in_use_a_successor_is_used_at_once(linked: Linked) -> None:
    with linked.installation.db.write() as session:
        app = linked.app(session)
        app.secret = None
        values = service.AppValues(
            name=app.name,
            cloud=app.cloud,
            tenant=app.tenant,
            client_id=app.client_id,
            next_secret=NEXT,
            next_expires_on="",
        )
        service.save_app(
            session,
            linked.installation.keyring,
            app,
            values,
            clouds=clouds(linked.installation.settings),
            actor="mara",
            now=linked.installation.db.now(),
        )
    assert (in_use(linked), waiting(linked)) == (NEXT, "")
