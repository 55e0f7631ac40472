"""Other SMTP when things go wrong: what the failure means for the mail must be exact."""

import contextlib
import socket
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest

from tests.mailers.a_mail import CONTENT, a_mailer, around, to
from tests.mailers.fakes import Answer, FakeSmtp, Move
from tests.rig.ports import free_port
from webapp.mailers.base import Receipt, Surroundings
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    FailureKind,
    NeedsReauthorisation,
    PermanentError,
    TransientError,
    UncertainError,
)
from webapp.mailers.smtp import Smtp

SHORT = 0.2
LARGE = CONTENT + b"0123456789\r\n" * 2_000_000


def failure(mailer: Smtp, content: bytes = CONTENT, **patience: float) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        mailer.send(to(), content, around(**patience))
    return caught.value


def failure_when(
    at: str, how: Answer, content: bytes = CONTENT, **patience: float
) -> DeliveryError:
    with FakeSmtp(always={at: how}) as server:
        return failure(a_mailer(server.port), content, **patience)


# Before the content: nothing was delivered


def test_a_name_nobody_knows_is_transient():
    error = failure(a_mailer(25, host="nobody.invalid"))
    assert (error.kind, error.cause_code) == (FailureKind.TRANSIENT, Cause.DNS)
    assert "nobody.invalid" in error.words


def test_a_port_where_nobody_listens_is_transient():
    port = free_port()
    error = failure(a_mailer(port))
    assert (error.kind, error.cause_code) == (FailureKind.TRANSIENT, Cause.CONNECT)
    assert error.words == f"Connection refused (127.0.0.1:{port})"


def test_a_port_that_does_not_answer_is_transient():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        error = failure(a_mailer(port), patience=SHORT)
        for each in waiting:
            each.close()
    assert (error.kind, error.cause_code) == (FailureKind.TRANSIENT, Cause.TIMEOUT)


@pytest.mark.parametrize("at", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize(
    ("how", "cause"),
    [
        (Move.CLOSE, Cause.LOST),
        (Move.RESET, Cause.LOST),
        (Move.HANG, Cause.TIMEOUT),
        (Move.DRIP, Cause.TIMEOUT),
        (b"\x15\x03\x01\x00\x02\x02\n", Cause.PROTOCOL),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Cause.PROTOCOL),
        (b"250", Cause.TIMEOUT),
        (b"250-one\r\n250-two\r\n", Cause.TIMEOUT),
        (b"250-" + b"x" * 70_000, Cause.PROTOCOL),
        (b"99 \r\n", Cause.PROTOCOL),
        ("399 neither yes nor no", Cause.PROTOCOL),
    ],
    ids=[
        "closes",
        "resets",
        "hangs",
        "drips",
        "tls",
        "http",
        "stops",
        "half",
        "endless",
        "short",
        "399",
    ],
)
def test_a_server_that_loses_its_manners_before_the_content_is_transient(at, how, cause):
    patience = SHORT if cause is Cause.TIMEOUT else 10
    error = failure_when(at, how, patience=patience)
    # A reset at the greeting can be quicker than the connection itself.
    at_once = {Cause.CONNECT} if at == "GREETING" and cause is Cause.LOST else set()
    assert error.kind is FailureKind.TRANSIENT
    assert error.cause_code in {cause, *at_once}
    assert error.words


@pytest.mark.parametrize("at", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
def test_a_421_on_a_fresh_connection_is_transient(at):
    error = failure_when(at, "421 4.3.2 too many connections")
    assert (error.kind, error.cause_code) == (FailureKind.TRANSIENT, Cause.RATE)
    assert (error.code, error.words) == ("421 4.3.2", "421 4.3.2 too many connections")


@pytest.mark.parametrize(
    ("at", "reply", "kind", "cause"),
    [
        ("GREETING", "554 5.7.1 go away", TransientError, Cause.CONNECT),
        ("MAIL", "451 4.3.0 later", TransientError, Cause.SENDER_REFUSED),
        ("MAIL", "553 5.7.1 not yours", PermanentError, Cause.SENDER_REFUSED),
        ("MAIL", "530 5.7.0 authentication required", NeedsReauthorisation, Cause.AUTH),
        ("RCPT", "530 5.7.0 authentication required", NeedsReauthorisation, Cause.AUTH),
        ("DATA", "451 4.3.0 later", TransientError, Cause.CONTENT_REFUSED),
        ("DATA", "554 5.5.1 no", PermanentError, Cause.CONTENT_REFUSED),
        ("DOT", "451 4.3.0 later", TransientError, Cause.CONTENT_REFUSED),
        ("DOT", "421 4.3.0 closing", TransientError, Cause.LOST),
        ("DOT", "554-5.7.1 spam\n554 5.7.1 see above", PermanentError, Cause.CONTENT_REFUSED),
        ("DOT", "552 5.3.4 too big", PermanentError, Cause.TOO_LARGE),
    ],
)
def test_a_refusal_keeps_the_words_of_the_server(at, reply, kind, cause):
    error = failure_when(at, reply)
    assert (type(error), error.cause_code) == (kind, cause)
    assert error.words == reply
    assert error.code == f"{reply[:3]} {reply[4:9]}"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled", "needs"),
        ("550 5.7.30 Basic authentication is not supported for Client Submission.", "needs"),
        ("454 4.7.0 Temporary authentication failure", "transient"),
    ],
)
def test_a_refused_login_keeps_the_words_of_the_server(reply, kind):
    with FakeSmtp(mechanisms="PLAIN", always={"AUTH": reply}) as server:
        error = failure(a_mailer(server.port, username="me", password="it is"))
    assert error.kind.value.startswith(kind)
    assert (error.cause_code, error.words) == (Cause.AUTH, reply)


# Recipient by recipient


def recipients(**replies: str) -> tuple[Receipt, FakeSmtp]:
    always = {f"RCPT {name}@example.com": reply for name, reply in replies.items() if reply}
    with FakeSmtp(always=dict(always)) as server:
        envelope = to(*(f"{name}@example.com" for name in replies))
        return a_mailer(server.port).send(envelope, CONTENT, around()), server


def test_each_recipient_has_a_result_of_its_own():
    receipt, server = recipients(yes="", gone="550 5.1.1 who?", later="450 4.2.0 greylisted")
    assert server.mails[0].rcpts == ["yes@example.com"]
    assert receipt.remote_id == "FAKE0"
    assert {name: error.kind for name, error in receipt.refused.items()} == {
        "gone@example.com": FailureKind.PERMANENT,
        "later@example.com": FailureKind.TRANSIENT,
    }
    assert receipt.refused["gone@example.com"].words == "550 5.1.1 who?"


def test_when_all_recipients_are_refused_nothing_is_sent():
    receipt, server = recipients(gone="550 5.1.1 who?", later="450 4.2.0 greylisted")
    assert receipt.refused.keys() == {"gone@example.com", "later@example.com"}
    assert receipt.remote_id == ""
    assert "DATA" not in server.verbs()
    assert not server.mails


def test_recipients_beyond_what_a_server_takes_at_once_wait_for_the_next_attempt():
    receipt, server = recipients(a="", b="", c="452 4.5.3 enough", d="", e="")
    assert server.mails[0].rcpts == ["a@example.com", "b@example.com"]
    assert receipt.refused.keys() == {f"{name}@example.com" for name in "cde"}
    assert all(error.kind is FailureKind.TRANSIENT for error in receipt.refused.values())
    assert all(error.retry_after is not None for error in receipt.refused.values())
    assert server.verbs().count("RCPT") == 3


def test_who_was_refused_before_the_content_failed_is_known():
    always = {"RCPT gone@example.com": "550 5.1.1 who?", "DOT": Move.CLOSE}
    envelope = to("b@example.com", "gone@example.com")
    with FakeSmtp(always=always) as server, pytest.raises(UncertainError) as caught:
        a_mailer(server.port).send(envelope, CONTENT, around())
    assert caught.value.refused.keys() == {"gone@example.com"}


# The content: up to the dot nothing was delivered


@pytest.mark.parametrize("how", [Move.CLOSE, Move.RESET])
def test_a_connection_lost_inside_the_content_is_transient(how):
    error = failure_when("CONTENT", how, content=LARGE)
    assert (error.kind, error.cause_code) == (FailureKind.TRANSIENT, Cause.LOST)


def test_a_server_that_stops_reading_inside_the_content_is_transient():
    error = failure_when("CONTENT", Move.HANG, content=LARGE, patience=SHORT)
    assert (error.kind, error.cause_code) == (FailureKind.TRANSIENT, Cause.TIMEOUT)


@contextlib.contextmanager
def serving_once(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A listener whose one connection is served by a function; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("last_words", "kind", "cause"),
    [
        (b"", FailureKind.TRANSIENT, Cause.LOST),
        (b"552 5.3.4 too big\r\n", FailureKind.PERMANENT, Cause.TOO_LARGE),
        (b"451 4.3.0 disk full\r\n", FailureKind.TRANSIENT, Cause.CONTENT_REFUSED),
        (b"250 2.0.0 taken\r\n", FailureKind.UNCERTAIN, Cause.PROTOCOL),
        (b"\x00\x01\n", FailureKind.TRANSIENT, Cause.PROTOCOL),
    ],
)
def test_a_server_that_speaks_before_the_dot_never_gets_it(last_words, kind, cause):
    heard = []

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(b"220 hi\r\n")
            for answer in (b"250 fake", b"250 ok", b"250 ok", b"354 go\r\n" + last_words):
                heard.append(sock.recv(4096))
                if answer == b"354 go\r\n":  # the end comes with it, not a moment later
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                sock.sendall(answer.removesuffix(b"\r\n") + b"\r\n")
            if not last_words:
                sock.shutdown(socket.SHUT_WR)
            while received := sock.recv(65536):
                heard.append(received)

    with serving_once(serve) as port:
        error = failure(a_mailer(port))
    assert (error.kind, error.cause_code) == (kind, cause)
    assert b"\r\n.\r\n" not in b"".join(heard)


# From the dot on: nobody can know


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        (Move.CLOSE, Cause.LOST_ANSWER),
        (Move.RESET, Cause.LOST_ANSWER),
        (Move.HANG, Cause.LOST_ANSWER),
        (b"25", Cause.LOST_ANSWER),
        (b"what a nice mail\r\n", Cause.PROTOCOL),
        ("354 more", Cause.PROTOCOL),
    ],
    ids=["closes", "resets", "hangs", "half", "garbage", "354"],
)
def test_an_answer_lost_after_the_dot_is_uncertain(how, cause):
    error = failure_when("DOT", how, last_patience=SHORT)
    assert (error.kind, error.cause_code) == (FailureKind.UNCERTAIN, cause)


def test_an_uncertain_mail_is_not_sent_again_by_the_conversation():
    with FakeSmtp() as server, a_mailer(server.port).open(around()) as conversation:
        conversation.send(to(), CONTENT)
        server.then("DOT", Move.CLOSE)
        with pytest.raises(UncertainError):
            conversation.send(to(), CONTENT)
        assert server.connections == 1
        conversation.send(to(), CONTENT)
    assert (server.connections, len(server.mails)) == (2, 3)


def test_the_last_answer_may_take_longer_than_the_others():
    with FakeSmtp(always={"DOT": Move.HANG}) as server:
        error = failure(a_mailer(server.port), patience=10, last_patience=SHORT)
        assert error.words == f"end of content: no answer within {SHORT} s"
    usual = Surroundings(hostname="postroom.test")
    assert usual.answer_timeout > usual.timeout


# A conversation outlives its failures


@pytest.mark.parametrize("at", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize("how", [Move.CLOSE, "421 4.3.0 bye", "451 4.3.0 later", b"\x00\n"])
def test_a_conversation_can_be_used_after_a_failure(at, how):
    with FakeSmtp() as server, a_mailer(server.port).open(around()) as conversation:
        server.then(at, how)
        try:
            refused = conversation.send(to(), CONTENT).refused
        except DeliveryError:
            refused = {}
        assert (at, how) != ("RCPT", "451 4.3.0 later") or refused
        before = len(server.mails)
        conversation.send(to(), CONTENT)
        assert len(server.mails) == before + 1


# Secrets


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("line", ["535 5.7.8 {}", "nonsense {}"])
@pytest.mark.parametrize("form", ["pass-w0rd!", "cGFzcy13MHJkIQ==", "AG1lAHBhc3MtdzByZCE="])
def test_a_password_in_an_answer_is_covered(mechanism, line, form):
    answer = f"{line.format(form)}\r\n".encode()
    with FakeSmtp(mechanisms=mechanism, always={"AUTH": answer}) as server:
        error = failure(a_mailer(server.port, username="me", password="pass-w0rd!"))
    told = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert "***" in error.words
    assert form not in told
