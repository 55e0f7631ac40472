"""Access tokens of linked mailboxes: at hand, renewed once, never undoing what a person did."""

import gc
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import certifi
import pytest
import requests
import sqlalchemy as sa

from tests.factories import an_installation
from tests.microsoft.linked import (
    SCOPES,
    Gate,
    Linked,
    access_token,
    at_once,
    refresh_token,
)
from tests.rig.ports import free_port
from tests.rig.sandbox import SandboxThread
from webapp.connections.models import Health
from webapp.crypto import new_key
from webapp.delivery.models import Outcome
from webapp.installation import key_file, reseal, write_keys
from webapp.mailers.base import AccessToken
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    Misconfigured,
    NeedsReauthorisation,
    TransientError,
)
from webapp.microsoft import tokens as module
from webapp.microsoft.models import Grant, GrantState, OAuthApp
from webapp.microsoft.tokens import Tokens
from webapp.outward import Outward

EXPIRED = 3700
NEARLY_EXPIRED = 3400


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxThread]:
    with SandboxThread() as running:
        yield running


@pytest.fixture
def linked(db_url: str, tmp_path: Path, sandbox: SandboxThread) -> Iterator[Linked]:
    """A mailbox that is linked, on each kind of database."""
    yield from a_linked(db_url, tmp_path, sandbox)


@pytest.fixture
def lone(tmp_path: Path, sandbox: SandboxThread) -> Iterator[Linked]:
    """The same on SQLite only, for what the database has no part in."""
    yield from a_linked(f"sqlite:///{tmp_path / 'postroom.db'}", tmp_path, sandbox)


def a_linked(db_url: str, tmp_path: Path, sandbox: SandboxThread) -> Iterator[Linked]:
    settings = {
        name.removeprefix("POSTROOM_").lower(): value for name, value in sandbox.environment.items()
    }
    sandbox.reset()
    made = Linked(an_installation(db_url, tmp_path, **settings), sandbox)
    made.link()
    sandbox.reset()
    yield made
    made.installation.close()


def the_error(call: Callable[[], object]) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        call()
    return caught.value


@pytest.fixture
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a second passed between any two calls."""
    monkeypatch.setattr(module, "LOOK_EVERY", 0.0)


@pytest.fixture
def forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a while passed after each failure."""
    monkeypatch.setattr(module, "REMEMBER_SECONDS", 0.0)


def never() -> NoReturn:
    raise AssertionError("the network was asked")


# ---- a token at hand ----


def test_a_stored_token_is_given_out_without_the_network(linked: Linked) -> None:
    given = linked.tokens(never).token(linked.grant_id)
    assert given.value == access_token(linked.stored())
    assert given.api == f"{linked.sandbox.graph}/v1.0"
    assert given.value not in repr(given)


def test_the_next_mail_reads_no_database(lone: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = lone.tokens(never)
    monkeypatch.setattr(module, "LOOK_EVERY", 3600.0)
    first = tokens.token(lone.grant_id)
    tokens.token(lone.grant_id)

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the database was read")

    monkeypatch.setattr(lone.installation.db, "look_up", refuse)
    monkeypatch.setattr(tokens, "_read", refuse)
    assert tokens.token(lone.grant_id) is first


@pytest.mark.usefixtures("looks_always")
def test_a_removed_link_is_noticed(linked: Linked) -> None:
    tokens = linked.tokens(never)
    tokens.token(linked.grant_id)
    linked.remove()
    assert linked.grant().state == GrantState.REMOVED
    for _ in range(2):
        error = the_error(lambda: tokens.token(linked.grant_id))
        assert isinstance(error, NeedsReauthorisation)
        assert error.words == module.UNLINKED


@pytest.mark.usefixtures("looks_always")
def test_a_new_link_is_noticed(linked: Linked) -> None:
    tokens = linked.tokens(never)
    old = tokens.token(linked.grant_id)
    new = linked.link_again()
    assert tokens.token(linked.grant_id).value == new != old.value


def test_a_grant_that_is_gone_is_a_link_that_was_removed(lone: Linked) -> None:
    error = the_error(lambda: lone.tokens(never).token(lone.grant_id + 1))
    assert isinstance(error, NeedsReauthorisation)


# ---- one renewal for all ----


def test_fifty_threads_at_the_end_of_a_token_make_one_renewal(linked: Linked) -> None:
    linked.let_pass(EXPIRED)
    tokens = linked.tokens()
    given = at_once(50, lambda _: tokens.token(linked.grant_id))
    assert len({token.value for token in given}) == 1
    assert linked.asked() == 1


def test_processes_make_one_renewal_together(linked: Linked) -> None:
    linked.let_pass(EXPIRED)
    both = [linked.tokens(), linked.tokens()]
    given = at_once(40, lambda number: both[number % 2].token(linked.grant_id))
    assert {token.value for token in given} == {access_token(linked.stored())}
    assert linked.asked() == 1


ANOTHER_PROCESS = textwrap.dedent(
    """
    import sys
    from tests.microsoft.linked import at_once
    from webapp import config
    from webapp.installation import load_keys, open_database
    from webapp.microsoft.clouds import clouds
    from webapp.microsoft.tokens import Tokens
    from webapp.outward import Outward
    grant_id = int(sys.argv[1])
    settings = config.load(dict(pair.split("=", 1) for pair in sys.argv[2:]))
    db = open_database(settings)
    tokens = Tokens(
        db,
        lambda: load_keys(settings, may_create=False),
        clouds(settings),
        lambda: Outward(ca_file=str(settings.ca_bundle)),
    )
    print("ready", flush=True)
    sys.stdin.readline()
    for token in at_once(10, lambda _: tokens.token(grant_id)):
        print("token", token.value)
    db.close()
    """
)


def test_real_processes_make_one_renewal_together(linked: Linked) -> None:
    linked.let_pass(EXPIRED)
    linked.sandbox.fault("token_slow", milliseconds=300)
    settings = linked.installation.settings
    environ = linked.sandbox.environment | {
        "POSTROOM_INSTANCE": str(settings.instance),
        "POSTROOM_DATABASE_URL": linked.installation.db.url.render_as_string(hide_password=False),
    }
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(linked.grant_id)]
    command += [f"{name}={value}" for name, value in environ.items()]
    started = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [tokens_in(process.communicate(timeout=60)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert [len(lines) for lines in said] == [10, 10]
    assert len({token for lines in said for token in lines}) == 1
    assert linked.asked() == 1


def tokens_in(said: str) -> list[str]:
    return [line.split()[1] for line in said.splitlines() if line.startswith("token ")]


def test_a_renewal_is_stored_with_its_new_refresh_token(linked: Linked) -> None:
    before, old = linked.grant(), linked.stored()
    linked.let_pass(EXPIRED)
    given = linked.tokens().token(linked.grant_id)
    after, new = linked.grant(), linked.stored()
    assert access_token(new) == given.value
    assert refresh_token(new) != refresh_token(old)
    assert after.version == before.version + 1
    assert after.renewed_at > before.renewed_at
    assert after.renew_at > after.renewed_at
    assert (after.lease_owner, after.lease_until) == ("", None)
    linked.let_pass(EXPIRED)
    assert linked.tokens().token(linked.grant_id).value != given.value
    assert linked.asked() == 2


def test_a_token_is_renewed_five_minutes_before_its_end(linked: Linked) -> None:
    linked.let_pass(3600 - 330)
    old = linked.tokens(never).token(linked.grant_id)
    linked.let_pass(60)
    assert linked.tokens().token(linked.grant_id).value != old.value


def test_tokens_that_live_for_a_minute_are_used_for_half_of_it(lone: Linked) -> None:
    lone.sandbox.post("expiry", seconds=60)
    try:
        lone.let_pass(EXPIRED)
        tokens = lone.tokens()
        first = tokens.token(lone.grant_id)
        assert tokens.token(lone.grant_id) == first
        assert lone.tokens().token(lone.grant_id) == first
        assert lone.asked() == 1
    finally:
        lone.sandbox.post("expiry", seconds=3600)


def test_nobody_waits_for_a_renewal_while_the_old_token_is_good(linked: Linked) -> None:
    linked.let_pass(NEARLY_EXPIRED)
    old = access_token(linked.stored())
    tokens, gate = linked.gated()
    other = linked.tokens(never)
    with ThreadPoolExecutor(1) as pool:
        renewal = pool.submit(tokens.token, linked.grant_id)
        assert gate.asked.wait(30)
        assert other.token(linked.grant_id).value == old
        gate.let_in.set()
        assert renewal.result(30).value != old


def test_no_thread_waits_for_another_while_the_old_token_is_good(lone: Linked) -> None:
    tokens, gate = lone.gated()
    old = tokens.token(lone.grant_id)
    lone.let_pass(NEARLY_EXPIRED)
    slot = tokens._slot(lone.grant_id)
    assert slot.held is not None
    slot.held = replace(slot.held, good_until=0.0)
    with ThreadPoolExecutor(1) as pool:
        renewal = pool.submit(tokens.token, lone.grant_id)
        assert gate.asked.wait(30)
        try:
            assert slot.lock.locked()
            assert tokens.token(lone.grant_id) == old
        finally:
            gate.let_in.set()
        assert renewal.result(30) != old


@pytest.mark.parametrize("ends_in", [-module.LEASE, timedelta(hours=6)], ids=["dead", "ahead"])
def test_a_lease_whose_owner_died_ends(linked: Linked, ends_in: timedelta) -> None:
    """Also one that was taken while the clock was hours ahead."""
    linked.let_pass(EXPIRED)
    with linked.installation.db.write() as session:
        grant = session.get_one(Grant, linked.grant_id)
        grant.lease_owner = "somebody"
        grant.lease_until = linked.installation.db.now() + ends_in
    linked.tokens().token(linked.grant_id)
    assert linked.asked() == 1


def test_somebody_elses_renewal_is_not_waited_for_forever(
    linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked.let_pass(EXPIRED)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.1)
    with linked.installation.db.write() as session:
        grant = session.get_one(Grant, linked.grant_id)
        grant.lease_owner = "somebody"
        grant.lease_until = linked.installation.db.now() + module.LEASE
    error = the_error(lambda: linked.tokens(never).token(linked.grant_id))
    assert isinstance(error, TransientError)


# ---- what a person does meanwhile wins ----


def with_a_renewal_on_the_network(
    linked: Linked, tokens: Tokens, gate: Gate, then: Callable[[], object]
) -> AccessToken | DeliveryError:
    """Do something while the token endpoint is being asked; what the renewal came to."""
    linked.let_pass(EXPIRED)
    with ThreadPoolExecutor(1) as pool:
        renewal = pool.submit(tokens.token, linked.grant_id)
        assert gate.asked.wait(30)
        try:
            then()
        finally:
            gate.let_in.set()
        try:
            return renewal.result(30)
        except DeliveryError as error:
            return error


def test_a_late_renewal_does_not_undo_a_remove(linked: Linked) -> None:
    tokens, gate = linked.gated()
    came = with_a_renewal_on_the_network(linked, tokens, gate, linked.remove)
    assert isinstance(came, NeedsReauthorisation)
    assert linked.asked() == 1
    grant = linked.grant()
    assert (grant.state, grant.cache) == (GrantState.REMOVED, None)


def test_a_late_renewal_keeps_a_new_link(linked: Linked) -> None:
    tokens, gate = linked.gated()
    new = []
    came = with_a_renewal_on_the_network(
        linked, tokens, gate, lambda: new.append(linked.link_again())
    )
    assert isinstance(came, AccessToken)
    assert [came.value] == new == [access_token(linked.stored())]


def test_a_late_refusal_keeps_a_new_link(linked: Linked) -> None:
    tokens, gate = linked.gated()
    new = []

    def link_again() -> None:
        new.append(linked.link_again())
        linked.sandbox.fault("revoked_grant", times=1)

    came = with_a_renewal_on_the_network(linked, tokens, gate, link_again)
    assert isinstance(came, AccessToken)
    assert [came.value] == new
    assert linked.grant().state == GrantState.LINKED
    assert not linked.lane().is_blocked


def test_a_late_refusal_of_an_old_secret_does_not_stop_the_new_one(linked: Linked) -> None:
    tokens, gate = linked.gated()

    def save() -> None:
        linked.save_secret(linked.sandbox.client_secret)
        linked.sandbox.fault("wrong_secret", times=1)

    came = with_a_renewal_on_the_network(linked, tokens, gate, save)
    assert isinstance(came, AccessToken)
    assert linked.asked() == 2
    assert linked.registration().problem_code == ""
    assert not linked.lane().is_blocked


def test_a_renewal_that_cannot_be_stored_is_used_all_the_same(
    lone: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone.let_pass(EXPIRED)
    tokens = lone.tokens()

    def fail(*_: object) -> NoReturn:
        raise sa.exc.OperationalError("UPDATE", None, Exception("gone"))

    monkeypatch.setattr(tokens, "_save", fail)
    assert tokens.token(lone.grant_id).value != access_token(lone.stored())


# ---- a token that the remote refused ----


def test_a_refused_token_is_renewed_once_for_all(linked: Linked) -> None:
    both = [linked.tokens(), linked.tokens()]
    refused, _ = (tokens.token(linked.grant_id).value for tokens in both)
    given = at_once(
        40, lambda number: both[number % 2].token(linked.grant_id, refused=refused).value
    )
    assert set(given) == {access_token(linked.stored())}
    assert given[0] != refused
    assert linked.asked() == 1


def test_a_newer_token_answers_a_refusal_without_the_network(linked: Linked) -> None:
    tokens, other = linked.tokens(never), linked.tokens()
    refused = tokens.token(linked.grant_id).value
    newer = other.token(linked.grant_id, refused=refused)
    assert tokens.token(linked.grant_id, refused=refused) == newer
    assert other.token(linked.grant_id, refused=refused) == newer
    assert linked.asked() == 1


def test_a_second_refusal_is_one_more_renewal(linked: Linked) -> None:
    tokens = linked.tokens()
    first = tokens.token(linked.grant_id).value
    second = tokens.token(linked.grant_id, refused=first).value
    assert tokens.token(linked.grant_id, refused=second).value not in (first, second)
    assert linked.asked() == 2


def test_a_challenge_is_handed_on(lone: Linked) -> None:
    sent = []

    class Heard(Gate):
        def post(self, url: object, *args: object, **kwargs: object) -> requests.Response:
            sent.append(kwargs["data"])
            return super().post(url, *args, **kwargs)

    heard = Heard(lone.sandbox.ca)
    heard.let_in.set()
    tokens = lone.tokens(lambda: heard)
    refused = tokens.token(lone.grant_id).value
    claims = '{"access_token":{"nbf":{"essential":true,"value":"1700000000"}}}'
    tokens.token(lone.grant_id, refused=refused, claims=claims)
    (form,) = sent
    assert form["claims"] == claims  # type: ignore[index]
    wanted = {lone.facts.cloud.scope(scope) for scope in SCOPES}
    assert wanted < set(form["scope"].split())  # type: ignore[index]


# ---- refusals ----

OWNER = [
    ("revoked_grant", "AADSTS50173"),
    ("mfa_required", "AADSTS50076"),
    ("consent_withdrawn", "AADSTS65001"),
    ("account_disabled", "AADSTS50057"),
]


@pytest.mark.parametrize(("fault", "code"), OWNER)
def test_a_refused_link_stops_its_lane_until_it_is_linked_again(
    linked: Linked, fault: str, code: str
) -> None:
    linked.let_pass(NEARLY_EXPIRED)
    linked.sandbox.fault(fault)
    error = the_error(lambda: linked.tokens().token(linked.grant_id))
    assert isinstance(error, NeedsReauthorisation)
    assert error.code == code
    assert error.cause_code is Cause.AUTH
    for part in (code, "Trace ID: ", "Correlation ID: "):
        assert part in error.words
    grant, connection, lane = linked.grant(), linked.connection(), linked.lane()
    assert (grant.state, grant.code) == (GrantState.NEEDS_REAUTHORISATION, code)
    assert grant.words == connection.last_words == lane.blocked_words == error.words
    assert grant.lease_owner == ""
    assert connection.health == Health.NEEDS_REAUTHORISATION
    assert (lane.is_blocked, lane.blocked_until) == (True, None)
    assert lane.blocked_kind == Outcome.NEEDS_REAUTHORISATION

    again = the_error(lambda: linked.tokens(never).token(linked.grant_id))
    assert (type(again), again.code, again.words) == (type(error), error.code, error.words)

    linked.sandbox.clear()
    new = linked.link_again()
    assert linked.tokens(never).token(linked.grant_id).value == new
    assert not linked.lane().is_blocked


@pytest.mark.usefixtures("looks_always")
def test_every_process_sees_a_refusal(linked: Linked) -> None:
    other = linked.tokens(never)
    held = other.token(linked.grant_id)
    linked.sandbox.fault("revoked_grant")
    the_error(lambda: linked.tokens().token(linked.grant_id, refused=held.value))
    assert isinstance(the_error(lambda: other.token(linked.grant_id)), NeedsReauthorisation)


def test_fifty_threads_hear_one_refusal(linked: Linked) -> None:
    linked.let_pass(EXPIRED)
    linked.sandbox.fault("revoked_grant")
    tokens = linked.tokens()
    errors = at_once(50, lambda _: the_error(lambda: tokens.token(linked.grant_id)))
    assert {error.code for error in errors} == {"AADSTS50173"}
    assert linked.asked() == 1


@pytest.mark.parametrize(
    ("fault", "code"), [("wrong_secret", "AADSTS7000215"), ("expired_secret", "AADSTS7000222")]
)
def test_a_refused_secret_marks_the_registration(linked: Linked, fault: str, code: str) -> None:
    linked.let_pass(EXPIRED)
    linked.sandbox.fault(fault)
    tokens = linked.tokens()
    errors = at_once(20, lambda _: the_error(lambda: tokens.token(linked.grant_id)))
    assert {(type(error), error.code) for error in errors} == {(Misconfigured, code)}
    assert linked.asked() == 1
    assert linked.grant().state == GrantState.LINKED
    assert linked.grant().lease_owner == ""
    assert linked.registration().problem_code == code
    assert linked.registration().problem_words == errors[0].words
    assert linked.connection().health == Health.MISCONFIGURED
    assert linked.lane().blocked_kind == Outcome.MISCONFIGURED

    linked.sandbox.clear()
    linked.save_secret(linked.sandbox.client_secret)
    assert tokens.token(linked.grant_id).value == access_token(linked.stored())
    assert not linked.lane().is_blocked


def test_secrets_that_are_echoed_are_not_in_the_words(lone: Linked) -> None:
    class Echo(Outward):
        def post(self, url: object, *args: object, **kwargs: Any) -> requests.Response:
            answer = requests.Response()
            answer.status_code = 400
            form = kwargs["data"]
            said = f"Bad: {form['client_secret']} {form['refresh_token']}\r\nTrace ID: t-1"
            body = {"error": "invalid_grant", "error_description": said}
            answer._content = json.dumps(body).encode()
            return answer

    lone.let_pass(EXPIRED)
    tokens = lone.tokens(lambda: Echo(ca_file=lone.sandbox.ca))
    error = the_error(lambda: tokens.token(lone.grant_id))
    assert error.code == "invalid_grant"
    assert error.words == "Bad: *** *** Trace ID: t-1"
    error = the_error(lambda: tokens.hand_over(lone.facts, "1.brought", SCOPES))
    assert error.words == "Bad: *** *** Trace ID: t-1"


@pytest.mark.parametrize(
    ("status", "text"),
    [(403, "<html>"), (302, ""), (200, "[]"), (200, "{}"), (200, "<html>"), (502, "<html>")],
)
def test_a_gateway_that_answers_instead_is_no_refusal(lone: Linked, status: int, text: str) -> None:
    class Gateway(Outward):
        def post(self, url: object, *args: object, **kwargs: object) -> requests.Response:
            answer = requests.Response()
            answer.status_code = status
            answer._content = text.encode()
            return answer

    lone.let_pass(EXPIRED)
    tokens = lone.tokens(lambda: Gateway(ca_file=lone.sandbox.ca))
    error = the_error(lambda: tokens.token(lone.grant_id))
    assert (type(error), error.code) == (TransientError, f"HTTP {status}")
    assert lone.grant().state == GrantState.LINKED
    assert not lone.lane().is_blocked


def an_answer(status: int, text: str, **headers: str) -> type[Outward]:
    """Sessions that get this from every token endpoint."""

    class Answered(Outward):
        def post(self, url: object, *args: object, **kwargs: object) -> requests.Response:
            answer = requests.Response()
            answer.status_code = status
            answer._content = text.encode()
            answer.headers.update(headers)
            return answer

    return Answered


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, '{"error": {"code": "Forbidden"}}'),
        (400, '{"error": ["x"], "error_codes": 7}'),
        (200, '{"access_token": "a", "token_type": "Bearer", "expires_in": Infinity}'),
        (200, '{"access_token": "a", "token_type": "Bearer", "expires_in": []}'),
        (200, "[" * 100_000),
    ],
)
def test_an_answer_of_another_form_is_no_bug_and_stops_nothing(
    lone: Linked, status: int, text: str
) -> None:
    lone.let_pass(EXPIRED)
    session = an_answer(status, text)
    tokens = lone.tokens(lambda: session(ca_file=lone.sandbox.ca))
    gc.disable()  # whatever was thrown away before must not be cleared up as deep as that
    try:
        error = the_error(lambda: tokens.token(lone.grant_id))
    finally:
        gc.enable()
    assert isinstance(error, TransientError)
    assert (lone.grant().state, lone.grant().lease_owner) == (GrantState.LINKED, "")
    assert not lone.lane().is_blocked


def test_codes_in_another_form_hide_no_refusal(lone: Linked) -> None:
    lone.let_pass(EXPIRED)
    session = an_answer(400, '{"error": "invalid_grant", "error_codes": 50173, "suberror": {}}')
    tokens = lone.tokens(lambda: session(ca_file=lone.sandbox.ca))
    assert isinstance(the_error(lambda: tokens.token(lone.grant_id)), NeedsReauthorisation)


def test_a_wait_without_end_is_cut(lone: Linked) -> None:
    lone.let_pass(EXPIRED)
    session = an_answer(503, "{}", **{"Retry-After": "9" * 5_000})
    tokens = lone.tokens(lambda: session(ca_file=lone.sandbox.ca))
    error = the_error(lambda: tokens.token(lone.grant_id))
    assert error.retry_after is not None
    assert error.retry_after.total_seconds() == 3600


def test_a_page_that_repeats_what_we_sent_is_not_logged(
    lone: Linked, caplog: pytest.LogCaptureFixture
) -> None:
    lone.let_pass(EXPIRED)
    session = an_answer(200, f"<html>{lone.facts.secret}</html>")
    tokens = lone.tokens(lambda: session(ca_file=lone.sandbox.ca))
    the_error(lambda: tokens.token(lone.grant_id))
    assert lone.facts.secret not in caplog.text


def test_without_a_secret_the_registration_is_marked(lone: Linked) -> None:
    with lone.installation.db.write() as session:
        session.get_one(OAuthApp, lone.app_id).secret = None
    lone.tokens(never).token(lone.grant_id)
    lone.let_pass(EXPIRED)
    error = the_error(lambda: lone.tokens(never).token(lone.grant_id))
    assert isinstance(error, Misconfigured)
    assert lone.registration().problem_words == error.words == module.NO_SECRET


def test_a_cloud_that_is_no_longer_set_up_is_a_matter_of_settings(lone: Linked) -> None:
    tokens = Tokens(lone.installation.db, lone.keys, {}, never)
    error = the_error(lambda: tokens.token(lone.grant_id))
    assert isinstance(error, Misconfigured)
    assert error.words == module.NO_CLOUD


def test_a_tenant_that_does_not_exist_is_named(lone: Linked) -> None:
    lone.let_pass(EXPIRED)
    with lone.installation.db.write() as session:
        session.get_one(OAuthApp, lone.app_id).tenant = "nobody.example"
    error = the_error(lambda: lone.tokens().token(lone.grant_id))
    assert isinstance(error, Misconfigured)
    assert error.code == "AADSTS90002"
    assert "nobody.example" in error.words


def test_a_link_without_tokens_must_be_made_again(lone: Linked) -> None:
    keyring = lone.installation.keyring
    with lone.installation.db.write() as session:
        grant = session.get_one(Grant, lone.grant_id)
        grant.cache = keyring.seal("grant", f"grant:{grant.id}", "{}")
    error = the_error(lambda: lone.tokens().token(lone.grant_id))
    assert isinstance(error, NeedsReauthorisation)
    assert lone.grant().state == GrantState.NEEDS_REAUTHORISATION


# ---- failures that pass ----


def test_throttling_is_answered_once_for_all_and_blocks_nothing(linked: Linked) -> None:
    linked.let_pass(EXPIRED)
    linked.sandbox.fault("token_throttled", retry_after=17)
    tokens = linked.tokens()
    errors = at_once(50, lambda _: the_error(lambda: tokens.token(linked.grant_id)))
    assert linked.asked() == 1
    for error in errors:
        assert isinstance(error, TransientError)
        assert (error.code, error.cause_code) == ("AADSTS90055", Cause.RATE)
        assert error.retry_after is not None
        assert error.retry_after.total_seconds() == 17
    assert linked.grant().state == GrantState.LINKED
    assert linked.grant().lease_owner == ""
    assert not linked.lane().is_blocked
    assert linked.connection().health == Health.UNKNOWN


@pytest.mark.usefixtures("forgets")
def test_a_busy_sign_in_service_is_asked_again(linked: Linked) -> None:
    linked.let_pass(EXPIRED)
    linked.sandbox.fault("token_unavailable", times=1)
    tokens = linked.tokens()
    error = the_error(lambda: tokens.token(linked.grant_id))
    assert isinstance(error, TransientError)
    assert error.code == "AADSTS90033"
    assert "Trace ID: " in error.words
    assert tokens.token(linked.grant_id).value == access_token(linked.stored())


def test_without_a_network_mail_waits(lone: Linked) -> None:
    lone.let_pass(EXPIRED)
    away = replace(lone.facts.cloud, login=f"https://127.0.0.1:{free_port()}")
    tokens = Tokens(
        lone.installation.db, lone.keys, {"custom": away}, lambda: Outward(ca_file=lone.sandbox.ca)
    )
    error = the_error(lambda: tokens.token(lone.grant_id))
    assert isinstance(error, TransientError)
    assert error.cause_code is Cause.CONNECT
    assert "refused" in error.words
    assert "object at" not in error.words
    assert lone.grant().lease_owner == ""


def test_a_certificate_that_is_not_trusted_is_told_as_such(
    lone: Linked, sandbox: SandboxThread
) -> None:
    lone.let_pass(EXPIRED)
    error = the_error(
        lambda: lone.tokens(lambda: Outward(ca_file=certifi.where())).token(lone.grant_id)
    )
    assert (type(error), error.cause_code) == (TransientError, Cause.TLS)


@pytest.mark.parametrize("fault", ["token_unavailable", "token_throttled", "expired_secret"])
def test_a_token_that_is_still_good_survives_a_failing_renewal(linked: Linked, fault: str) -> None:
    linked.let_pass(NEARLY_EXPIRED)
    linked.sandbox.fault(fault)
    tokens = linked.tokens()
    given = at_once(20, lambda _: tokens.token(linked.grant_id).value)
    assert set(given) == {access_token(linked.stored())}
    assert linked.asked() == 1
    assert not linked.lane().is_blocked
    assert linked.registration().problem_code == ""


def test_a_database_that_is_away_is_a_reason_to_wait(
    lone: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = lone.tokens(never)

    def fail(*_: object) -> NoReturn:
        raise sa.exc.OperationalError("SELECT", None, Exception("gone"))

    monkeypatch.setattr(tokens, "_read", fail)
    assert isinstance(the_error(lambda: tokens.token(lone.grant_id)), TransientError)


# ---- keys ----


def test_keys_that_were_rotated_meanwhile_are_loaded_again(linked: Linked) -> None:
    tokens = linked.tokens()
    tokens.token(linked.grant_id)
    settings = linked.installation.settings
    path = key_file(settings)
    write_keys(path, [new_key(), path.read_text().strip()])
    reseal(linked.installation.db, linked.keys())
    write_keys(path, [path.read_text().splitlines()[0]])
    refused = tokens.token(linked.grant_id).value
    assert tokens.token(linked.grant_id, refused=refused).value == access_token(linked.stored())


def test_a_key_that_does_not_fit_is_no_reason_to_link_again(lone: Linked) -> None:
    path = key_file(lone.installation.settings)
    write_keys(path, [new_key()])
    error = the_error(lambda: lone.tokens(never).token(lone.grant_id))
    assert isinstance(error, TransientError)
    path.unlink()
    assert isinstance(the_error(lambda: lone.tokens(never).token(lone.grant_id)), TransientError)
    assert lone.grant().state == GrantState.LINKED


# ---- a new link ----


def test_a_sign_in_is_handed_over(lone: Linked) -> None:
    brought = lone.refresh_token()
    cache = lone.tokens().hand_over(lone.facts, brought, ["openid", "offline_access", *SCOPES])
    assert access_token(cache)
    assert refresh_token(cache) not in ("", brought)


def test_a_sign_in_that_is_refused_raises(lone: Linked) -> None:
    tokens = lone.tokens()
    error = the_error(lambda: tokens.hand_over(lone.facts, "1.not-a-token", SCOPES))
    assert (type(error), error.code) == (NeedsReauthorisation, "AADSTS70000")
    brought = lone.refresh_token()
    lone.sandbox.fault("expired_secret")
    error = the_error(lambda: tokens.hand_over(lone.facts, brought, SCOPES))
    assert (type(error), error.code) == (Misconfigured, "AADSTS7000222")
    error = the_error(lambda: tokens.hand_over(replace(lone.facts, secret=""), "1.x", SCOPES))
    assert isinstance(error, Misconfigured)


def test_metadata_is_fetched_once(lone: Linked) -> None:
    fetched = []

    class Counted(Gate):
        def get(self, url: object, *args: object, **kwargs: object) -> requests.Response:
            fetched.append(url)
            return super().get(url, *args, **kwargs)

    counted = Counted(lone.sandbox.ca)
    counted.let_in.set()
    tokens = lone.tokens(lambda: counted)
    for _ in range(3):
        tokens.token(lone.grant_id, refused=tokens.token(lone.grant_id).value)
    assert len(fetched) == 1
