"""The Graph client against a server that answers as it is told: what each answer means."""

import base64
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from tests.rig.answers import DROP, DROP_EARLY, SILENCE, Answers, answer
from tests.rig.graph_contract import check_request
from tests.rig.ports import free_port
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    FailureKind,
    NeedsReauthorisation,
    PermanentError,
    TransientError,
    UncertainError,
)
from webapp.mailers.http_wire import IDLE_SECONDS, LARGEST_BODY, MAX_WORDS, TokenRefused
from webapp.microsoft.graph import Graph

TOKEN = "eyJ0eXAiOiJKV1Qi.this-is-secret.c2lnbmF0dXJl"
MIME = b"From: a@contoso.example\r\nTo: b@example.org\r\nSubject: hello\r\n\r\nhello\r\n"
LONG = MIME + b"0123456789\r\n" * 100_000
VERY_LONG = LONG * 20  # more than the system takes before anybody reads it
NOW = datetime(2026, 11, 23, 15, 5, 11, 402_000, UTC)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A running server, its certificates, and a way to make clients of it."""

    server: Answers
    ca_file: str
    elsewhere: ssl.SSLContext

    def graph(self, **options: object) -> Graph:
        return Graph(self.server.url, **{"ca_file": self.ca_file, "now": lambda: NOW} | options)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, trustme.CA]:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("trust") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return str(path), ca


def context(ca: trustme.CA, name: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(made)
    return made


@pytest.fixture
def place(certificates: tuple[str, trustme.CA]) -> Iterator[Place]:
    path, ca = certificates
    with Answers(context(ca, "127.0.0.1")) as server:
        yield Place(server=server, ca_file=path, elsewhere=context(ca, "elsewhere.example"))


def graph_error(code: str, message: str = "No.", *inner: str) -> bytes:
    """The body of an error, with the codes of the errors inside it."""
    nested: dict[str, object] = {"request-id": "abc"}
    for each in reversed(inner):
        nested = {"code": each, "innerError": nested}
    return json.dumps({"error": {"code": code, "message": message, "innerError": nested}}).encode()


def failure(place: Place, *answers: bytes, mime: bytes = MIME, **options: object) -> DeliveryError:
    place.server.plan(*answers)
    graph = place.graph(**options)
    with pytest.raises(DeliveryError) as caught:
        graph.send_mime(TOKEN, mime)
    graph.close()
    return caught.value


# --- what goes out -----------------------------------------------------------------------------


def test_a_mail_goes_out_as_base64_of_the_whole_message(place):
    place.server.plan(answer(202, request_id="0c41d7f8"))
    sent = place.graph().send_mime(TOKEN, MIME)
    asked = place.server.asked[0]
    assert (asked.method, asked.path) == ("POST", "/v1.0/me/sendMail")
    assert base64.b64decode(asked.body, validate=True) == MIME
    assert asked.headers["content-type"] == "text/plain"
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert asked.headers["user-agent"].startswith("Postroom/")
    assert sent.status == 202
    assert sent.request_id == "0c41d7f8"
    assert sent.client_request_id == asked.headers["client-request-id"]


@given(st.integers(0, 700_000))
@example(0)
@example(96 * 1024)
@example(96 * 1024 * 2 + 1)
def test_a_mail_of_any_size_arrives_whole(certificates, size):
    path, ca = certificates
    mime = (LONG * 2)[:size]
    with Answers(context(ca, "127.0.0.1")) as server:
        Graph(server.url, ca_file=path).send_mime(TOKEN, mime)
    assert base64.b64decode(server.asked[0].body, validate=True) == mime


def test_each_request_has_an_id_of_its_own(place):
    graph = place.graph()
    ids = {graph.send_mime(TOKEN, MIME).client_request_id for _ in range(3)}
    assert len(ids) == 3


def test_cookies_are_not_kept(place):
    place.server.plan(answer(202, Set_Cookie="who=you; Path=/"))
    graph = place.graph()
    graph.send_mime(TOKEN, MIME)
    graph.send_mime(TOKEN, MIME)
    assert "cookie" not in place.server.asked[1].headers


def test_requests_are_as_graph_describes_them(place):
    graph = place.graph()
    graph.send_mime(TOKEN, MIME)
    place.server.plan(answer(200, b'{"id": "1"}'))
    graph.me(TOKEN)
    for asked in place.server.asked:
        headers = {name.title(): value for name, value in asked.headers.items()}
        url = place.server.url.removesuffix("/v1.0") + asked.path
        check_request(asked.method, url, headers, asked.body)


# --- who it is ---------------------------------------------------------------------------------


def test_me_tells_who_the_token_speaks_for(place):
    body = {
        "id": "9999",
        "displayName": "Ann Lee",
        "mail": "Ann@contoso.example",
        "userPrincipalName": "ann.lee@contoso.example",
        "proxyAddresses": [
            "smtp:Orders@contoso.example",
            "SMTP:Ann@contoso.example",
            "X500:/o=ExchangeLabs/cn=ann",
        ],
    }
    place.server.plan(answer(200, json.dumps(body).encode()))
    me = place.graph().me(TOKEN)
    assert (me.id, me.name, me.mail) == ("9999", "Ann Lee", "Ann@contoso.example")
    assert me.sign_in_name == "ann.lee@contoso.example"
    assert me.addresses == ("ann@contoso.example", "orders@contoso.example")
    assert "proxyAddresses" in place.server.asked[0].path


def test_an_account_without_a_mailbox_has_no_mail(place):
    body = {"id": "9999", "displayName": None, "mail": None, "proxyAddresses": None}
    place.server.plan(answer(200, json.dumps(body).encode()))
    me = place.graph().me(TOKEN)
    assert (me.name, me.mail, me.addresses) == ("", "", ())


@pytest.mark.parametrize(
    "planned", [answer(200, b"<html>"), answer(200, b"[]"), answer(504), answer(202), DROP]
)
def test_asking_who_it_is_is_never_uncertain(place, planned):
    place.server.plan(planned)
    with pytest.raises(TransientError) as caught:
        place.graph().me(TOKEN)
    assert caught.value.log


# --- what answers mean -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Meant:
    """An answer and what it means."""

    status: int
    body: bytes = b""
    kind: type[DeliveryError]
    code: str
    cause: Cause = Cause.UNKNOWN


HTML = b"<html><head><title>504</title></head><body>Gateway <b>Time-out</b></body></html>"


@pytest.mark.parametrize(
    "meant",
    [
        Meant(
            status=429,
            body=graph_error("TooManyRequests"),
            kind=TransientError,
            code="429 TooManyRequests",
            cause=Cause.RATE,
        ),
        Meant(status=429, kind=TransientError, code="429", cause=Cause.RATE),
        Meant(
            status=503,
            body=graph_error("serviceNotAvailable"),
            kind=TransientError,
            code="503 serviceNotAvailable",
            cause=Cause.RATE,
        ),
        Meant(status=503, kind=UncertainError, code="503", cause=Cause.LOST_ANSWER),
        Meant(status=504, body=HTML, kind=UncertainError, code="504", cause=Cause.LOST_ANSWER),
        Meant(
            status=500,
            body=graph_error("ErrorInternalServerError"),
            kind=UncertainError,
            code="500 ErrorInternalServerError",
            cause=Cause.LOST_ANSWER,
        ),
        Meant(status=200, kind=UncertainError, code="200", cause=Cause.LOST_ANSWER),
        Meant(
            status=403,
            body=graph_error("ErrorSendAsDenied"),
            kind=PermanentError,
            code="403 ErrorSendAsDenied",
            cause=Cause.SENDER_REFUSED,
        ),
        Meant(
            status=403,
            body=graph_error("ErrorAccessDenied"),
            kind=NeedsReauthorisation,
            code="403 ErrorAccessDenied",
            cause=Cause.AUTH,
        ),
        Meant(
            status=404,
            body=graph_error("MailboxNotEnabledForRESTAPI"),
            kind=NeedsReauthorisation,
            code="404 MailboxNotEnabledForRESTAPI",
            cause=Cause.AUTH,
        ),
        Meant(status=413, kind=PermanentError, code="413", cause=Cause.TOO_LARGE),
        Meant(
            status=401,
            body=graph_error("InvalidAuthenticationToken"),
            kind=TokenRefused,
            code="401 InvalidAuthenticationToken",
            cause=Cause.AUTH,
        ),
        Meant(status=302, kind=TransientError, code="302", cause=Cause.PROTOCOL),
    ],
    ids=lambda meant: meant.code + (" with body" if meant.body else ""),
)
def test_an_answer_means(place, meant):
    error = failure(place, answer(meant.status, meant.body, Location="https://example.org/"))
    assert (type(error), error.code, error.cause_code) == (meant.kind, meant.code, meant.cause)
    assert len(place.server.asked) == 1, "nothing may be sent again"


def test_a_202_is_a_success_whatever_comes_with_it(place):
    place.server.plan(answer(202, HTML, Retry_After="9"), answer(202))
    graph = place.graph()
    assert graph.send_mime(TOKEN, MIME).status == 202
    assert graph.send_mime(TOKEN, MIME).status == 202
    assert place.server.connections == 1


def test_a_202_stays_a_success_when_the_rest_of_it_is_lost(place):
    place.server.plan(b"HTTP/1.0 202 Accepted\r\nContent-Length: 9\r\n\r\nshort")
    assert place.graph().send_mime(TOKEN, MIME).status == 202


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("7", timedelta(seconds=7)),
        ("0", timedelta()),
        ("Mon, 23 Nov 2026 15:05:41 GMT", timedelta(seconds=29.598)),
        ("Mon, 23 Nov 2026 15:05:41 -0000", timedelta(seconds=29.598)),
        ("Mon, 23 Nov 2026 15:00:00 GMT", timedelta()),
        ("999999999999999999999", timedelta(days=1)),
        ("Mon, 23 Nov 9999 15:00:00 GMT", timedelta(days=1)),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(place, value, wait):
    assert failure(place, answer(429, Retry_After=value)).retry_after == wait


def test_the_innermost_known_code_counts(place):
    body = graph_error("BadRequest", "No.", "ErrorSendAsDenied", "SomethingNew")
    error = failure(place, answer(403, body))
    assert error.code == "403 ErrorSendAsDenied"
    assert error.cause_code is Cause.SENDER_REFUSED


def test_an_unknown_code_is_kept(place):
    assert failure(place, answer(400, graph_error("BrandNew", "x", "Other"))).code == "400 BrandNew"


def test_the_words_are_microsofts(place):
    said = "The user account\r\nmay \u0000 not \ud800 send."
    error = failure(place, answer(403, graph_error("ErrorSendAsDenied", said)))
    assert error.words == "The user account may \N{REPLACEMENT CHARACTER} not ? send."


def test_of_a_page_the_text_is_kept(place):
    body = b"<script>var a = '<b>';</script>" + HTML.replace(b"Gateway", b"Gateway &amp;")
    assert failure(place, answer(504, body)).words == "504 Gateway Time-out: 504 Gateway & Time-out"


def test_of_nothing_the_status_line_is_kept(place):
    assert failure(place, answer(429)).words == "429 Too Many Requests"


def test_words_are_cut(place):
    assert len(failure(place, answer(504, b"word " * 50_000)).words) == MAX_WORDS


def test_an_endless_body_does_not_stand_in_the_way_of_the_next_answer(place):
    place.server.plan(answer(504, b"x" * (LARGEST_BODY + 1)))
    graph = place.graph()
    with pytest.raises(UncertainError):
        graph.send_mime(TOKEN, MIME)
    assert graph.send_mime(TOKEN, MIME).status == 202


CHALLENGE = '{"access_token":{"nbf":{"essential":true,"value":"1604106651"}}}'
IN_BASE64 = base64.urlsafe_b64encode(CHALLENGE.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        (f'Bearer realm="", error="insufficient_claims", claims="{IN_BASE64}"', CHALLENGE),
        (f"Bearer claims={IN_BASE64}, realm=x", CHALLENGE),
        (f'Bearer claims="{CHALLENGE}", realm="x"', CHALLENGE),
        ('Bearer claims="' + CHALLENGE.replace('"', r"\"") + '"', CHALLENGE),
        ('Bearer realm="", error="invalid_token"', ""),
        ('Bearer claims="not base64 of anything"', ""),
        ('Bearer claims="W10="', ""),
        ("", ""),
    ],
)
def test_a_refused_token_brings_the_claims_that_the_next_one_needs(place, header, claims):
    error = failure(place, answer(401, WWW_Authenticate=header))
    assert isinstance(error, TokenRefused)
    assert error.claims == claims


def test_a_claims_challenge_counts_with_any_refusal(place):
    error = failure(
        place,
        answer(
            403, graph_error("insufficient_claims"), WWW_Authenticate=f"Bearer claims={IN_BASE64}"
        ),
    )
    assert isinstance(error, TokenRefused)
    assert error.claims == CHALLENGE


# --- no answer ---------------------------------------------------------------------------------


def test_an_answer_that_does_not_come_is_uncertain(place):
    error = failure(place, SILENCE, time_limit=(5.0, 0.1))
    assert (type(error), error.cause_code) == (UncertainError, Cause.LOST_ANSWER)
    assert error.words.startswith("no answer within 0.1 s")


def test_a_connection_lost_after_the_mail_is_uncertain(place):
    error = failure(place, DROP)
    assert (type(error), error.cause_code) == (UncertainError, Cause.LOST_ANSWER)


def test_an_answer_that_is_not_http_is_uncertain(place):
    assert type(failure(place, b"what?\r\n\r\n")) is UncertainError


def test_a_connection_lost_before_the_mail_was_out_is_transient(place):
    error = failure(place, DROP_EARLY, mime=VERY_LONG)
    assert (type(error), error.cause_code) == (TransientError, Cause.LOST)
    assert place.server.asked == []


@pytest.mark.parametrize("token", ["secret\r\nb", "secret\u2026"])
def test_a_token_that_no_header_can_hold_sends_nothing_and_is_told_nowhere(place, token):
    graph = place.graph()
    with pytest.raises(TransientError) as caught:
        graph.send_mime(token, MIME)
    assert caught.value.__context__ is None
    assert "secret" not in "".join([caught.value.words, *caught.value.log])
    place.server.plan(answer(202))
    assert graph.send_mime(TOKEN, MIME).status == 202


def test_a_refused_connection_is_transient(place):
    graph = Graph(f"https://127.0.0.1:{free_port()}/v1.0", ca_file=place.ca_file)
    with pytest.raises(TransientError) as caught:
        graph.send_mime(TOKEN, MIME)
    assert caught.value.cause_code is Cause.CONNECT
    assert "refused" in caught.value.words


@pytest.mark.parametrize(
    ("host", "cause"), [("nobody.invalid", Cause.DNS), ("bad..name", Cause.LOST)]
)
def test_a_host_without_an_address_is_transient(place, host, cause):
    with pytest.raises(TransientError) as caught:
        Graph(f"https://{host}/v1.0", ca_file=place.ca_file).send_mime(TOKEN, MIME)
    assert caught.value.cause_code is cause
    assert host in caught.value.words


def test_a_certificate_for_another_name_is_transient(place):
    with Answers(place.elsewhere) as server:
        graph = Graph(server.url, ca_file=place.ca_file)
        with pytest.raises(TransientError) as caught:
            graph.send_mime(TOKEN, MIME)
    assert caught.value.cause_code is Cause.TLS
    assert "127.0.0.1" in caught.value.words
    assert server.asked == []


def test_a_certificate_that_nobody_vouches_for_is_transient(place):
    with pytest.raises(TransientError) as caught:
        Graph(place.server.url).send_mime(TOKEN, MIME)
    assert caught.value.cause_code is Cause.TLS
    assert place.server.asked == []


def test_without_a_file_of_our_own_the_usual_certificates_are_trusted(place, monkeypatch):
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", place.ca_file)
    assert Graph(place.server.url).send_mime(TOKEN, MIME).status == 202


def test_a_server_without_tls_is_transient(place):
    with Answers() as server:
        address = server.url.replace("http:", "https:")
        with pytest.raises(TransientError) as caught:
            Graph(address, ca_file=place.ca_file).send_mime(TOKEN, MIME)
    assert caught.value.cause_code in (Cause.TLS, Cause.LOST)


def test_a_handshake_that_gets_no_answer_is_transient(place):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"https://127.0.0.1:{mute.getsockname()[1]}/v1.0"
        graph = Graph(address, ca_file=place.ca_file, time_limit=(0.1, 5.0))
        with pytest.raises(TransientError) as caught:
            graph.send_mime(TOKEN, MIME)
    assert caught.value.cause_code is Cause.TIMEOUT


def test_a_proxy_that_is_not_there_is_transient(place, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
    graph = Graph("https://graph.microsoft.example/v1.0", ca_file=place.ca_file)
    with pytest.raises(TransientError) as caught:
        graph.send_mime(TOKEN, MIME)
    assert caught.value.cause_code is Cause.CONNECT
    assert caught.value.words.startswith("proxy: ")


# --- the connection ----------------------------------------------------------------------------


def test_the_connection_is_kept_from_mail_to_mail(place):
    graph = place.graph()
    place.server.plan(answer(202), answer(403, graph_error("ErrorSendAsDenied")))
    graph.send_mime(TOKEN, MIME)
    with pytest.raises(PermanentError):
        graph.send_mime(TOKEN, MIME)
    graph.send_mime(TOKEN, MIME)
    assert place.server.connections == 1


def test_a_connection_that_the_server_closed_meanwhile_is_replaced_unseen(place):
    graph = place.graph()
    graph.send_mime(TOKEN, MIME)
    place.server.hang_up()
    assert graph.send_mime(TOKEN, MIME).status == 202
    assert len(place.server.asked) == 2


def test_a_connection_that_was_idle_for_long_is_not_trusted(place):
    time = [0.0]
    graph = place.graph(clock=lambda: time[0])
    graph.send_mime(TOKEN, MIME)
    time[0] += IDLE_SECONDS
    graph.send_mime(TOKEN, MIME)
    assert place.server.connections == 1
    time[0] += IDLE_SECONDS + 1
    graph.send_mime(TOKEN, MIME)
    assert place.server.connections == 2


def test_a_closed_client_opens_again(place):
    graph = place.graph()
    graph.send_mime(TOKEN, MIME)
    graph.close()
    graph.close()
    assert graph.send_mime(TOKEN, MIME).status == 202


# --- the log -----------------------------------------------------------------------------------


def ticking(*seconds: float) -> Callable[[], float]:
    return iter(seconds).__next__


def test_the_log_tells_what_was_said(place):
    body = graph_error("ErrorSendAsDenied", "No right.")
    error = failure(place, answer(403, body, request_id="0c41d7f8"), clock=ticking(1.0, 1.617))
    ours = place.server.asked[0].headers["client-request-id"]
    assert error.log == (
        f"15:05:11.402Z POST {place.server.url}/me/sendMail  (MIME, 0.1 KB)",
        "15:05:11.402Z 403 in 617 ms",
        "              request-id        0c41d7f8",
        f"              client-request-id {ours}",
        f"              {body.decode()}",
    )


def test_a_success_leaves_a_log_too(place):
    log = place.graph().send_mime(TOKEN, MIME).log
    assert log[1].startswith("15:05:11.402Z 202 in ")


def test_no_answer_leaves_a_log_too(place):
    log = failure(place, DROP).log
    assert "connection lost" in log[1]
    assert place.server.asked[0].headers["client-request-id"] in log[2]


@pytest.mark.parametrize("status", [401, 400, 504])
def test_the_token_stands_in_no_log_even_if_it_comes_back(place, status):
    for body in (f"<p>{TOKEN}</p>".encode(), graph_error("BadRequest", TOKEN)):
        error = failure(place, answer(status, body))
        assert TOKEN not in f"{error} {error!r} {vars(error)}"
        assert "***" in error.words


# --- whatever comes ----------------------------------------------------------------------------

_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "code", "message", "innerError"]), inner)
    ),
)
_bodies = st.one_of(
    st.binary(max_size=200),
    _anything.map(json.dumps).map(str.encode),
    st.builds(
        lambda code, message: json.dumps({"error": {"code": code, "message": message}}).encode(),
        st.sampled_from(["ErrorSendAsDenied", "BadRequest", "NewLimit"]) | _anything,
        _anything,
    ),
)
_header = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


@pytest.fixture(scope="module")
def shared_place(certificates: tuple[str, trustme.CA]) -> Iterator[Place]:
    path, ca = certificates
    made = context(ca, "127.0.0.1")
    with Answers(made) as server:
        yield Place(server=server, ca_file=path, elsewhere=made)


@given(
    status=st.integers(200, 599).filter(lambda status: status != 202),
    body=_bodies,
    retry_after=_header | st.integers().map(str),
    challenge=_header.map(lambda text: f"Bearer claims={text}"),
)
@example(status=400, body=b"[" * 60_000, retry_after="", challenge="")
@example(status=400, body=b'{"a":' * 10_000, retry_after="", challenge="")
@example(status=400, body=b'{"error": ' + b"9" * 5_000 + b"}", retry_after="", challenge="")
def test_whatever_is_answered_only_delivery_errors_come_out(
    shared_place, status, body, retry_after, challenge
):
    reply = answer(status, body, Retry_After=retry_after, WWW_Authenticate=challenge)
    error = failure(shared_place, reply)
    assert error.words
    assert error.code.startswith(str(status))
    "".join([error.words, error.code, *error.log]).encode()
    assert "\0" not in error.words
    if error.retry_after is not None:
        assert timedelta() <= error.retry_after <= timedelta(days=1)
    if status < 300:
        assert error.kind is FailureKind.UNCERTAIN


@given(st.binary(max_size=100).filter(lambda raw: not raw.startswith(b"HTTP/1.1 ")))
@example(b"HTTP/1.0 202 Accepted\r\nContent-Encoding: gzip\r\n\r\nnot gzip")
@example(b"HTTP/1.0 -5 What\r\n\r\n")
@example(b"HTTP/1.0 500 \xff\r\nno header\r\n\r\n")
def test_whatever_bytes_come_only_delivery_errors_come_out(shared_place, raw):
    shared_place.server.plan(raw)
    graph = shared_place.graph()
    if raw.startswith(b"HTTP/1.0 202"):
        assert graph.send_mime(TOKEN, MIME).status == 202
        return
    with pytest.raises((UncertainError, TransientError)):
        graph.send_mime(TOKEN, MIME)
