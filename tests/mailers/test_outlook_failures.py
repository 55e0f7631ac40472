"""365 / Outlook when things go wrong: what the failure means for the mail must be exact."""

import base64
import json
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.mailers.linked import MAILBOX, Linked, sandbox_token
from tests.rig.answers import Answers, answer
from tests.rig.sandbox import SandboxThread
from webapp.mailers.base import Envelope, Surroundings
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    FailureKind,
    Misconfigured,
    NeedsReauthorisation,
    PermanentError,
    TransientError,
)
from webapp.mailers.outlook import LARGEST, OutlookConversation, OutlookMailer

ENVELOPE = Envelope(mail_from=MAILBOX, recipients=("bob@example.org",))
MAIL = b"From: orders@contoso.example\r\nTo: bob@example.org\r\nSubject: hello\r\n\r\nhello\r\n"
FROM_ELSEWHERE = MAIL.replace(b"orders@", b"service@")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxThread]:
    with SandboxThread() as running:
        yield running


@pytest.fixture
def linked(sandbox: SandboxThread) -> Linked:
    sandbox.reset()
    return Linked(api=f"{sandbox.graph}/v1.0", tokens=[sandbox_token(sandbox) for _ in range(3)])


def conversation(
    sandbox: SandboxThread, linked: Linked, time_limit: tuple[float, float] = (10, 10)
) -> OutlookConversation:
    around = Surroundings(hostname="postroom.test", ca_file=sandbox.ca, tokens=linked)
    return OutlookConversation(7, around, time_limit)


def failure(
    sandbox: SandboxThread, linked: Linked, content: bytes = MAIL, **options: object
) -> DeliveryError:
    with conversation(sandbox, linked, **options) as opened, pytest.raises(DeliveryError) as caught:
        opened.send(ENVELOPE, content)
    return caught.value


# --- the faults of the sandbox -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "code", "cause", "arrived"),
    [
        ("throttled", FailureKind.TRANSIENT, "429 ApplicationThrottled", Cause.RATE, 0),
        ("unavailable", FailureKind.TRANSIENT, "503 ErrorServerBusy", Cause.RATE, 0),
        (
            "quota_exceeded",
            FailureKind.TRANSIENT,
            "429 ErrorSubmissionQuotaExceeded",
            Cause.RATE,
            0,
        ),
        (
            "server_error",
            FailureKind.UNCERTAIN,
            "500 ErrorInternalServerError",
            Cause.LOST_ANSWER,
            0,
        ),
        ("sent_504", FailureKind.UNCERTAIN, "504", Cause.LOST_ANSWER, 1),
        ("not_sent_200", FailureKind.UNCERTAIN, "200", Cause.LOST_ANSWER, 0),
        ("dropped_before", FailureKind.UNCERTAIN, "", Cause.LOST_ANSWER, 0),
        ("dropped_after", FailureKind.UNCERTAIN, "", Cause.LOST_ANSWER, 1),
        ("send_as_denied", FailureKind.PERMANENT, "403 ErrorSendAsDenied", Cause.SENDER_REFUSED, 0),
        (
            "size_exceeded",
            FailureKind.PERMANENT,
            "400 ErrorMessageSizeExceeded",
            Cause.TOO_LARGE,
            0,
        ),
        (
            "access_denied",
            FailureKind.NEEDS_REAUTHORISATION,
            "403 ErrorAccessDenied",
            Cause.AUTH,
            0,
        ),
    ],
)
def test_a_fault_means(sandbox, linked, fault, kind, code, cause, arrived):
    sandbox.fault(fault)
    error = failure(sandbox, linked)
    assert (error.kind, error.code, error.cause_code) == (kind, code, cause)
    assert error.words
    assert error.log
    assert len(sandbox.mails()) == arrived, "and only once"
    assert sum(call["times"] for call in sandbox.calls()["graph"]) == 1


def test_microsoft_says_how_long_to_wait(sandbox, linked):
    sandbox.fault("throttled", retry_after="90")
    assert failure(sandbox, linked).retry_after == timedelta(seconds=90)


def test_a_from_that_the_account_may_not_use_is_refused_for_good(sandbox, linked):
    error = failure(sandbox, linked, FROM_ELSEWHERE)
    assert error.cause_code is Cause.SENDER_REFUSED
    assert "does not have the right to send mail on behalf" in error.words


def test_an_account_without_a_mailbox_needs_somebody(sandbox, linked):
    linked.tokens = [sandbox_token(sandbox, "nomailbox@contoso.example")]
    error = failure(sandbox, linked)
    assert isinstance(error, NeedsReauthorisation)
    assert error.code == "404 MailboxNotEnabledForRESTAPI"


def test_a_missing_permission_needs_somebody(sandbox, linked):
    linked.tokens = [sandbox_token(sandbox, permissions=frozenset({"User.Read"}))]
    assert isinstance(failure(sandbox, linked), NeedsReauthorisation)


def test_an_answer_that_comes_too_late_is_uncertain(sandbox, linked):
    sandbox.fault("slow", milliseconds=2_000)
    error = failure(sandbox, linked, time_limit=(10, 0.1))
    assert error.kind is FailureKind.UNCERTAIN
    assert len(sandbox.mails()) == 1


def test_after_a_fault_the_next_mail_goes_out(sandbox, linked):
    sandbox.fault("dropped_before", times=1)
    with conversation(sandbox, linked) as opened:
        with pytest.raises(DeliveryError):
            opened.send(ENVELOPE, MAIL)
        opened.send(ENVELOPE, MAIL)
    assert len(sandbox.mails()) == 1


# --- refused tokens ----------------------------------------------------------------------------


def test_a_refused_token_is_renewed_once(sandbox, linked):
    sandbox.fault("invalid_token", times=1)
    with conversation(sandbox, linked) as opened:
        receipt = opened.send(ENVELOPE, MAIL)
    first, second, _third = linked.tokens
    assert first != second
    assert linked.asked == [(7, "", ""), (7, first, "")]
    assert len(sandbox.mails()) == 1
    statuses = [line.split()[1] for line in receipt.log if " in " in line]
    assert statuses == ["401", "202"]


def test_a_token_that_is_refused_twice_needs_a_person(sandbox, linked):
    sandbox.fault("invalid_token")
    error = failure(sandbox, linked)
    assert isinstance(error, NeedsReauthorisation)
    assert error.code == "401 InvalidAuthenticationToken"
    assert len(linked.asked) == 2
    assert len([line for line in error.log if "401 in " in line]) == 2
    assert not any(token in str(vars(error)) for token in linked.tokens)


@pytest.mark.parametrize("kind", [NeedsReauthorisation, Misconfigured, TransientError])
def test_what_the_renewal_says_counts(sandbox, linked, kind):
    sandbox.fault("invalid_token")
    linked.broken = kind("AADSTS50173", code="invalid_grant")
    error = failure(sandbox, linked)
    assert error is linked.broken
    assert "401 in " in error.log[1], "what led there is told too"


def test_another_failure_after_the_renewal_is_that_failure(sandbox, linked):
    sandbox.fault("invalid_token", times=1)
    error = failure(sandbox, linked, FROM_ELSEWHERE)
    assert error.code == "403 ErrorSendAsDenied"
    assert len([line for line in error.log if "POST" in line]) == 2


def test_a_claims_challenge_is_handed_to_the_renewal(linked):
    claims = json.dumps({"access_token": {"nbf": {"essential": True, "value": "1"}}})
    encoded = base64.b64encode(claims.encode()).decode()
    with Answers() as server:
        server.plan(
            answer(401, WWW_Authenticate=f'Bearer error="insufficient_claims", claims="{encoded}"')
        )
        linked.api = server.url
        surroundings = Surroundings(hostname="postroom.test", tokens=linked)
        OutlookMailer(grant_id=7).send(ENVELOPE, MAIL, surroundings)
    assert linked.asked[1] == (7, linked.tokens[0], claims)
    assert server.asked[1].headers["authorization"] == f"Bearer {linked.tokens[1]}"


# --- refused by us -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "said"), [(LARGEST + 1, "2.1 MB"), (int(3.1 * 1024 * 1024), "3.1 MB")]
)
def test_a_mail_that_is_too_large_is_not_tried(sandbox, linked, size, said):
    error = failure(sandbox, linked, MAIL + b"x" * (size - len(MAIL)))
    assert isinstance(error, PermanentError)
    assert error.cause_code is Cause.TOO_LARGE
    assert error.words.startswith(f"This mail is {said}. ")
    assert linked.asked == []


def test_without_a_linked_account_nothing_is_tried(linked):
    for mailer, tokens in ((OutlookMailer(), linked), (OutlookMailer(grant_id=7), None)):
        around = Surroundings(hostname="postroom.test", tokens=tokens)
        with pytest.raises(NeedsReauthorisation, match="No account is linked"):
            mailer.send(ENVELOPE, MAIL, around)
    assert linked.asked == []
