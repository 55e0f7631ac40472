"""Which reply of a server means what for the mail."""

from datetime import timedelta

import pytest

from webapp.mailers.errors import (
    Cause,
    Misconfigured,
    NeedsReauthorisation,
    PermanentError,
    TransientError,
)
from webapp.mailers.smtp_replies import MAX_WORDS, Reply, Stage, readable, refusal, remote_id


def a_reply(text: str) -> Reply:
    return Reply(int(text[:3]), text.encode() + b"\r\n")


@pytest.mark.parametrize(
    ("stage", "text", "kind", "cause"),
    [
        (Stage.GREETING, "554 5.7.1 not from your address", TransientError, Cause.CONNECT),
        (Stage.HELLO, "550 bad name", TransientError, Cause.CONNECT),
        (Stage.STARTTLS, "454 4.3.0 TLS not available", TransientError, Cause.TLS),
        (Stage.STARTTLS, "502 5.5.1 no", Misconfigured, Cause.TLS),
        (Stage.AUTH, "535 5.7.139 Authentication unsuccessful", NeedsReauthorisation, Cause.AUTH),
        (Stage.AUTH, "550 5.7.30 Basic authentication", NeedsReauthorisation, Cause.AUTH),
        (Stage.AUTH, "534 5.7.9 too weak", NeedsReauthorisation, Cause.AUTH),
        (Stage.AUTH, "432 4.7.12 a password transition", NeedsReauthorisation, Cause.AUTH),
        (Stage.AUTH, "432 4.3.2 concurrent connections", TransientError, Cause.RATE),
        (Stage.AUTH, "454 4.7.0 temporary failure", TransientError, Cause.AUTH),
        (Stage.AUTH, "454 4.7.0 too many login attempts", TransientError, Cause.RATE),
        (Stage.AUTH, "538 5.7.11 encryption needed", Misconfigured, Cause.TLS),
        (Stage.AUTH, "504 5.5.4 unknown mechanism", Misconfigured, Cause.AUTH),
        (Stage.AUTH, "530 5.7.0 Must issue a STARTTLS command first", Misconfigured, Cause.TLS),
        (Stage.SENDER, "530 5.7.0 Must issue a STARTTLS command first", Misconfigured, Cause.TLS),
        (Stage.SENDER, "530 5.7.57 client not authenticated", NeedsReauthorisation, Cause.AUTH),
        (Stage.SENDER, "451 4.1.8 no such domain", TransientError, Cause.SENDER_REFUSED),
        (Stage.SENDER, "450 4.7.1 sending rate exceeded", TransientError, Cause.RATE),
        (Stage.SENDER, "553 5.7.1 not your address", PermanentError, Cause.SENDER_REFUSED),
        (Stage.SENDER, "552 5.3.4 too big", PermanentError, Cause.TOO_LARGE),
        (Stage.RECIPIENT, "450 4.2.0 greylisted", TransientError, Cause.RECIPIENT_REFUSED),
        (Stage.RECIPIENT, "550 5.1.1 unknown user", PermanentError, Cause.RECIPIENT_REFUSED),
        (Stage.RECIPIENT, "552 5.2.2 mailbox full", PermanentError, Cause.RECIPIENT_REFUSED),
        (Stage.RECIPIENT, "452 4.5.3 enough", TransientError, Cause.TOO_MANY_RECIPIENTS),
        (Stage.RECIPIENT, "452 Too many recipients", TransientError, Cause.TOO_MANY_RECIPIENTS),
        (Stage.RECIPIENT, "552 enough", TransientError, Cause.TOO_MANY_RECIPIENTS),
        (Stage.RECIPIENT, "452 4.2.2 over quota", TransientError, Cause.RECIPIENT_REFUSED),
        (Stage.DATA, "451 4.3.0 later", TransientError, Cause.CONTENT_REFUSED),
        (Stage.BODY, "451 4.7.0 throttled", TransientError, Cause.RATE),
        (Stage.BODY, "421 4.4.2 closing", TransientError, Cause.LOST),
        (Stage.BODY, "552 message size exceeds limit", PermanentError, Cause.TOO_LARGE),
        (Stage.BODY, "552 5.7.0 attachment blocked", PermanentError, Cause.CONTENT_REFUSED),
        (Stage.BODY, "554 5.6.0 spam", PermanentError, Cause.CONTENT_REFUSED),
        (Stage.BODY, "554 5.2.252 SendAsDenied", PermanentError, Cause.CONTENT_REFUSED),
    ],
)
def test_a_refusal_has_its_kind_and_cause(stage, text, kind, cause):
    error = refusal(stage, a_reply(text), "their words")
    assert (type(error), error.cause_code) == (kind, cause)
    assert error.words == "their words"
    assert text.startswith(error.code)


def test_too_many_recipients_come_back_soon():
    error = refusal(Stage.RECIPIENT, a_reply("452 4.5.3 enough"), "")
    assert error.retry_after == timedelta(minutes=1)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("250 2.0.0 Ok: queued as 4Xk2Qy1zLz9rH", "4Xk2Qy1zLz9rH"),
        ("250 2.0.0 queued as 01J9Z", "01J9Z"),
        ("250 OK id=1rKxyz-0001ab-2C", "1rKxyz-0001ab-2C"),
        ("250 2.6.0 <AM0.outlook.com> [InternalId=4711, Hostname=x] Queued mail", "4711"),
        ("250 2.0.0 4B5C6D Message accepted for delivery", "4B5C6D"),
        ("250 Ok 0107019a8c5e2f41-6b0c9d7e-000000", "0107019a8c5e2f41-6b0c9d7e-000000"),
        ("250 2.0.0 Ok", ""),
        ("250 done", ""),
    ],
)
def test_the_remote_id_is_found_where_there_is_one(words, name):
    assert remote_id(words) == name


def test_words_are_kept_whole_but_not_for_ever():
    assert readable(b"250-one\r\n250 two\r\n") == "250-one\n250 two"
    assert len(readable(b"5" * 100_000)) == MAX_WORDS


def test_words_can_always_be_stored():
    assert readable(b"550 \xff\x00 caf\xc3\xa9\r\n") == "550 \N{REPLACEMENT CHARACTER}" * 1 + (
        "\N{REPLACEMENT CHARACTER} café"
    )


def test_a_secret_across_the_end_of_the_words_is_covered():
    raw = b"x" * (MAX_WORDS - 3) + b"hunter22"
    assert "hun" not in readable(raw, ["hunter22"])
