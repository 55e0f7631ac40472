"""Gmail's answers: what was sent, what was not, and what nobody knows."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.rig.answers import DROP, DROP_EARLY, Answers, answer
from webapp.google.gmail import Alias, Gmail
from webapp.mailers.errors import Cause, DeliveryError, FailureKind
from webapp.mailers.http_wire import TokenRefused

TOKEN = "ya29.this-is-secret"
MIME = b"From: a@workshop.example\r\nTo: b@example.org\r\nSubject: hello\r\n\r\nhello\r\n"
LONG = MIME + b"0123456789\r\n" * 2_000_000  # more than the system takes before anybody reads it
NOW = datetime(2026, 11, 23, 15, 5, 11, tzinfo=UTC)
SENT = json.dumps({"id": "19a2b3", "threadId": "19a2b3", "labelIds": ["SENT"]}).encode()


@pytest.fixture
def server() -> Iterator[Answers]:
    with Answers() as running:
        yield running


def gmail(server: Answers) -> Gmail:
    return Gmail(server.url.removesuffix("/v1.0"), now=lambda: NOW)


def refusal(message: str, *reasons: str, status: str = "", details: str = "") -> bytes:
    """The body of an error, as Google's interfaces write it."""
    return json.dumps(
        {
            "error": {
                "message": message,
                "status": status,
                "errors": [{"reason": reason, "domain": "global"} for reason in reasons],
                "details": [{"@type": "x", "reason": details}] if details else [],
            }
        }
    ).encode()


def failure(server: Answers, planned: bytes, mime: bytes = MIME) -> DeliveryError:
    server.plan(planned)
    with pytest.raises(DeliveryError) as caught:
        gmail(server).send_mime(TOKEN, mime)
    return caught.value


def test_a_mail_goes_up_as_it_is(server: Answers) -> None:
    server.plan(answer(200, SENT))
    sent = gmail(server).send_mime(TOKEN, MIME)
    (asked,) = server.asked
    assert asked.method == "POST"
    assert asked.path == "/upload/gmail/v1/users/me/messages/send?uploadType=media"
    assert asked.headers["content-type"] == "message/rfc822"
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert asked.body == MIME
    assert (sent.status, sent.request_id) == (200, "19a2b3")
    assert TOKEN not in "\n".join(sent.log)


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"id": ""}', b'{"id": 7}'])
def test_a_success_without_an_id_proves_nothing(server: Answers, body: bytes) -> None:
    error = failure(server, answer(200, body))
    assert (error.kind, error.cause_code) == (FailureKind.UNCERTAIN, Cause.LOST_ANSWER)


@pytest.mark.parametrize(
    ("status", "body", "kind", "cause"),
    [
        (429, refusal("Slow", "rateLimitExceeded"), FailureKind.TRANSIENT, Cause.RATE),
        (403, refusal("Slow", "userRateLimitExceeded"), FailureKind.TRANSIENT, Cause.RATE),
        (403, refusal("Day", "dailyLimitExceeded"), FailureKind.TRANSIENT, Cause.RATE),
        (403, refusal("Off", "accessNotConfigured"), FailureKind.MISCONFIGURED, Cause.UNKNOWN),
        (403, refusal("Off", details="SERVICE_DISABLED"), FailureKind.MISCONFIGURED, Cause.UNKNOWN),
        (
            403,
            refusal("No", "insufficientPermissions"),
            FailureKind.NEEDS_REAUTHORISATION,
            Cause.AUTH,
        ),
        (
            403,
            refusal("No", "forbidden", details="ACCESS_TOKEN_SCOPE_INSUFFICIENT"),
            FailureKind.NEEDS_REAUTHORISATION,
            Cause.AUTH,
        ),
        (403, refusal("Admin", "domainPolicy"), FailureKind.NEEDS_REAUTHORISATION, Cause.AUTH),
        (
            400,
            refusal("Mail service not enabled", "failedPrecondition"),
            FailureKind.NEEDS_REAUTHORISATION,
            Cause.AUTH,
        ),
        (
            400,
            refusal("Recipient address required", "invalidArgument"),
            FailureKind.PERMANENT,
            Cause.RECIPIENT_REFUSED,
        ),
        (
            400,
            refusal("Invalid header", "invalidArgument"),
            FailureKind.PERMANENT,
            Cause.CONTENT_REFUSED,
        ),
        (413, b"<h1>Too large</h1>", FailureKind.PERMANENT, Cause.TOO_LARGE),
        (500, refusal("Backend", "backendError"), FailureKind.UNCERTAIN, Cause.LOST_ANSWER),
        (502, b"<h1>Bad gateway</h1>", FailureKind.UNCERTAIN, Cause.LOST_ANSWER),
        (504, b"", FailureKind.UNCERTAIN, Cause.LOST_ANSWER),
        (503, refusal("Later", "backendError"), FailureKind.TRANSIENT, Cause.UNKNOWN),
        (404, b"", FailureKind.TRANSIENT, Cause.UNKNOWN),
    ],
)
def test_each_refusal_says_what_must_happen_next(
    server: Answers, status: int, body: bytes, kind: FailureKind, cause: Cause
) -> None:
    error = failure(server, answer(status, body))
    assert (error.kind, error.cause_code) == (kind, cause)
    assert error.code.startswith(str(status))
    assert TOKEN not in "\n".join(error.log)


def test_a_refused_token_is_told_apart(server: Answers) -> None:
    error = failure(server, answer(401, refusal("Invalid Credentials", "authError")))
    assert isinstance(error, TokenRefused)
    assert (error.code, error.words) == ("401 authError", "Invalid Credentials")


@pytest.mark.parametrize(
    ("words", "wait"),
    [
        ("User-rate limit exceeded.  Retry after 2026-11-23T15:20:11.123Z", timedelta(minutes=15)),
        ("User-rate limit exceeded.  Retry after 2026-11-20T00:00:00Z", timedelta()),
        ("User-rate limit exceeded.  Retry after 2027-11-20T00:00:00Z", timedelta(days=1)),
        ("User-rate limit exceeded.  Retry after 2027-99-20T00:00:00Z", None),
        ("User-rate limit exceeded.", None),
    ],
)
def test_when_to_come_back_stands_in_a_sentence(
    server: Answers, words: str, wait: timedelta | None
) -> None:
    error = failure(server, answer(429, refusal(words, "userRateLimitExceeded")))
    assert error.retry_after == wait


def test_a_header_that_says_when_wins(server: Answers) -> None:
    planned = answer(429, refusal("Retry after 2026-11-23T15:20:11Z"), Retry_After="7")
    assert failure(server, planned).retry_after == timedelta(seconds=7)


def test_an_answer_that_is_lost_leaves_the_mail_unclear(server: Answers) -> None:
    assert failure(server, DROP).kind is FailureKind.UNCERTAIN
    assert failure(server, DROP_EARLY, LONG).kind is FailureKind.TRANSIENT


def test_the_addresses_of_an_account_are_listed(server: Answers) -> None:
    listed = [
        {"sendAsEmail": "Info@Workshop.example", "displayName": "Workshop", "isPrimary": True},
        {"sendAsEmail": "shop@workshop.example", "verificationStatus": "accepted"},
        {"sendAsEmail": "new@workshop.example", "verificationStatus": "pending"},
        "nonsense",
    ]
    server.plan(answer(200, json.dumps({"sendAs": listed}).encode()))
    found = gmail(server).aliases(TOKEN)
    assert server.asked[0].path == "/gmail/v1/users/me/settings/sendAs"
    assert found == (
        Alias(address="info@workshop.example", name="Workshop", is_primary=True, is_verified=True),
        Alias(address="shop@workshop.example", name="", is_primary=False, is_verified=True),
        Alias(address="new@workshop.example", name="", is_primary=False, is_verified=False),
    )


def test_asking_for_addresses_is_never_unclear(server: Answers) -> None:
    server.plan(answer(500, b""))
    with pytest.raises(DeliveryError) as caught:
        gmail(server).aliases(TOKEN)
    assert caught.value.kind is FailureKind.TRANSIENT
