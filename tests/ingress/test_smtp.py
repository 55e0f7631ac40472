"""Submission by SMTP: a real listener, real clients, and everything a client can do wrong."""

import asyncio
import base64
import hashlib
import smtplib
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import trustme

from tests.rig.ports import free_port
from tests.world import World, a_mail
from webapp.config import Settings, load
from webapp.delivery.models import Content, Message
from webapp.ingress.accept import Acceptor
from webapp.ingress.login import Brake
from webapp.ingress.smtp import LONGEST_LINE, SubmissionServer
from webapp.sites.models import Credential, CredentialKind

SECRET = "correct-horse"


class Listener:
    """The submission server on a thread of its own."""

    def __init__(self, world: World, acceptor: Acceptor, settings: Settings) -> None:
        self.world = world
        self.port = settings.submission_listen.port
        self._loop = asyncio.new_event_loop()
        self.server = SubmissionServer(settings, world.db, acceptor)
        Brake.FIRST, Brake.LONGEST = 0.01, 0.02
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.call(self.server.start())

    def call(self, coroutine: object) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)  # type: ignore[arg-type]

    def stop(self) -> None:
        self.call(self.server.stop(patience=5))
        self.call(asyncio.sleep(0.05))  # for transports that close in the next turn of the loop
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def client(self, **options: object) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.port, timeout=20, **options)  # type: ignore[arg-type]

    def signed_in(self) -> smtplib.SMTP:
        client = self.client()
        client.login("wp-shop", SECRET)
        return client

    def talk(self, *lines: bytes) -> "Talk":
        return Talk(self.port, *lines)


class Talk:
    """A raw conversation, for what smtplib would never say."""

    def __init__(self, port: int, *lines: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.file = self.socket.makefile("rb")
        self.greeting = self.reply()
        for line in lines:
            self.say(line)

    def say(self, line: bytes) -> str:
        self.socket.sendall(line + b"\r\n")
        return self.reply()

    def reply(self) -> str:
        text = ""
        while True:
            line = self.file.readline().decode()
            text += line
            if line[3:4] != "-":
                return text.strip()

    def sign_in(self) -> "Talk":
        assert self.say(b"EHLO me").startswith("250")
        plain = base64.b64encode(b"\0wp-shop\0" + SECRET.encode())
        assert self.say(b"AUTH PLAIN " + plain).startswith("235")
        return self

    def ready_for_data(self) -> "Talk":
        assert self.say(b"MAIL FROM:<shop@example.com>").startswith("250")
        assert self.say(b"RCPT TO:<kunde@example.org>").startswith("250")
        assert self.say(b"DATA").startswith("354")
        return self

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> "Talk":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


Start = Callable[..., Listener]


@pytest.fixture
def start(world: World, acceptor: Acceptor, tmp_path: Path) -> Iterator[Start]:
    running: list[Listener] = []
    before = Brake.FIRST, Brake.LONGEST

    def begin(**settings: object) -> Listener:
        environ = {
            "POSTROOM_INSTANCE": str(tmp_path),
            "POSTROOM_SUBMISSION_LISTEN": f"127.0.0.1:{free_port()}",
            **{f"POSTROOM_{name.upper()}": str(value) for name, value in settings.items()},
        }
        running.append(Listener(world, acceptor, load(environ)))
        return running[-1]

    yield begin
    for listener in running:
        listener.stop()
    Brake.FIRST, Brake.LONGEST = before


@pytest.fixture
def site(world: World) -> int:
    made = world.a_site()
    add_credential(world, made)
    return made


def add_credential(world: World, site_id: int, **values: object) -> None:
    given = {"username": "wp-shop", "senders": [], "networks": []} | values
    with world.db.write() as session:
        session.add(
            Credential(
                site_id=site_id,
                kind=CredentialKind.SMTP,
                digest=hashlib.sha256(SECRET.encode()).hexdigest(),
                scopes=[],
                created_at=world.now,
                **given,
            )
        )


def kept(world: World) -> list[bytes]:
    with world.db.read() as session:
        query = sa.select(Content.raw).join(Message).order_by(Message.id)
        return [zlib.decompress(raw) for raw in session.scalars(query)]


def test_a_mail_is_stored_before_it_is_answered(start: Start, world: World, site: int) -> None:
    with start().signed_in() as client:
        client.mail("shop@example.com")
        client.rcpt("kunde@example.org")
        code, words = client.data(a_mail("Order 1"))
    assert code == 250
    assert words.startswith(b"2.0.0 queued as ")
    message = world.message(words.decode().split()[-1])
    assert (message.subject, message.site_id, message.source) == ("Order 1", site, "smtp")
    assert message.received["login"] == "wp-shop"
    assert message.received["with"] == "ESMTPA"


def test_the_bytes_arrive_unchanged(start: Start, world: World, site: int) -> None:
    raw = a_mail(body=".one dot\r\n..two\r\n\r\n.\r\nafter a lone dot\r\ntabs\tand ünicode")
    with start().signed_in() as client:
        client.sendmail("shop@example.com", ["a@example.org"], raw)
        client.sendmail("shop@example.com", ["b@example.org"], raw)
    assert kept(world) == [raw, raw]


def test_what_is_offered(start: Start, site: int) -> None:
    with start().client() as client:
        client.ehlo()
        offered = client.esmtp_features
    assert offered["size"] == str(50 * 1024 * 1024)
    assert {"8bitmime", "smtputf8", "pipelining", "enhancedstatuscodes", "auth"} <= set(offered)
    assert "starttls" not in offered


def test_both_mechanisms_sign_in(start: Start, site: int) -> None:
    listener = start()
    for mechanism in ("auth_plain", "auth_login"):
        with listener.client() as client:
            client.ehlo()
            client.user, client.password = "wp-shop", SECRET
            name = mechanism.removeprefix("auth_").upper()
            code, _ = client.auth(name, getattr(client, mechanism))
            assert code == 235
            client.noop()
    with listener.talk(b"EHLO me", b"AUTH LOGIN " + base64.b64encode(b"wp-shop")) as talk:
        assert talk.say(base64.b64encode(SECRET.encode())).startswith("235")


def test_a_wrong_login_is_535_and_then_421(start: Start, site: int) -> None:
    with start().talk(b"EHLO me") as talk:
        wrong = b"AUTH PLAIN " + base64.b64encode(b"\0wp-shop\0wrong")
        assert talk.say(wrong).startswith("535 5.7.8 ")
        assert talk.say(wrong).startswith("535 5.7.8 ")
        assert talk.say(wrong).startswith("421 4.7.0 ")
        assert talk.file.readline() == b""


@pytest.mark.parametrize(
    "line",
    [
        b"AUTH PLAIN !!!",
        b"AUTH PLAIN",
        b"AUTH",
        b"AUTH CRAM-MD5",
        b"AUTH PLAIN YQ==",
        b"AUTH a b c",
    ],
)
def test_a_login_that_is_no_login_is_a_syntax_error(start: Start, site: int, line: bytes) -> None:
    with start().talk(b"EHLO me") as talk:
        reply = talk.say(line)
        if reply.startswith("334"):
            reply = talk.say(b"*")
        assert reply[:3] in {"501", "504"}
        assert talk.say(b"NOOP").startswith("250 2.0.0 ")


def test_a_revoked_login_and_a_foreign_network_are_refused(
    start: Start, world: World, site: int
) -> None:
    add_credential(world, site, username="elsewhere", networks=["203.0.113.0/24"])
    add_credential(world, site, username="here", networks=["127.0.0.0/8"])
    listener = start()
    with world.db.write() as session:
        session.execute(
            sa.update(Credential)
            .where(Credential.username == "wp-shop")
            .values(revoked_at=world.now)
        )
    for username, code in (("wp-shop", 535), ("elsewhere", 535), ("here", 235)):
        with listener.client() as client:
            client.ehlo()
            login = base64.b64encode(f"\0{username}\0{SECRET}".encode()).decode()
            assert client.docmd("AUTH PLAIN", login)[0] == code


@pytest.mark.parametrize("line", [b"MAIL FROM:<a@b.example>", b"RCPT TO:<a@b.example>", b"DATA"])
def test_nothing_goes_without_a_login(start: Start, site: int, line: bytes) -> None:
    with start().talk(b"EHLO me") as talk:
        assert talk.say(line).startswith("530 5.7.0 ")


def test_only_crlf_dot_crlf_ends_the_data(start: Start, world: World, site: int) -> None:
    with start().talk() as talk:
        talk.sign_in().ready_for_data()
        smuggled = (
            b"Subject: one\r\n\r\nbody\n.\nMAIL FROM:<evil@example.com>\r\n.\nstill\n.\r\nend"
        )
        assert talk.say(smuggled + b"\r\n.").startswith("250 2.0.0 queued as ")
        assert talk.say(b"NOOP").startswith("250")
    unstuffed = smuggled.replace(b"\r\n.", b"\r\n")
    assert kept(world) == [unstuffed + b"\r\n"]


def test_commands_may_come_in_one_piece(start: Start, world: World, site: int) -> None:
    with start().talk() as talk:
        talk.sign_in()
        one = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
        talk.socket.sendall(one)
        assert [talk.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
        talk.socket.sendall(a_mail("one") + b".\r\n" + one)
        assert [talk.reply()[:3] for _ in range(4)] == ["250", "250", "250", "354"]
        talk.socket.sendall(a_mail("two") + b".\r\nQUIT\r\n")
        assert [talk.reply()[:3] for _ in range(2)] == ["250", "221"]
    assert len(kept(world)) == 2


def test_an_empty_mail_is_a_mail(start: Start, world: World, site: int) -> None:
    with start().talk() as talk:
        talk.sign_in().ready_for_data()
        assert talk.say(b".").startswith("250 2.0.0 queued as ")
    assert kept(world) == [b""]


def test_the_thousand_and_first_recipient_is_refused(start: Start, world: World, site: int) -> None:
    with start().talk() as talk:
        talk.sign_in()
        talk.say(b"MAIL FROM:<a@b.example>")
        for number in range(1000):
            assert talk.say(b"RCPT TO:<r%d@example.org>" % number).startswith("250 2.1.5 ")
        assert talk.say(b"RCPT TO:<last@example.org>").startswith("452 4.5.3 ")
        talk.say(b"DATA")
        answer = talk.say(a_mail() + b".")
        assert answer.startswith("250 2.0.0 ")
    assert world.message(answer.split()[-1]).recipient_count == 1000


def test_a_recipient_given_twice_gets_one_mail(start: Start, world: World, site: int) -> None:
    with start().signed_in() as client:
        client.sendmail("a@b.example", ["c@d.example", "c@d.example"], a_mail())
    with world.db.read() as session:
        assert session.scalar(sa.select(Message.recipient_count)) == 1


def test_long_lines_are_taken_and_endless_ones_refused(
    start: Start, world: World, site: int
) -> None:
    with start().talk() as talk:
        talk.sign_in().ready_for_data()
        long = b"Subject: long\r\n\r\n" + b"x" * 60_000
        assert talk.say(long + b"\r\n.").startswith("250 2.0.0 ")
        talk.ready_for_data()
        endless = b"Subject: endless\r\n\r\n" + b"x" * 1_000_000
        assert talk.say(endless + b"\r\n.").startswith("500 5.5.2 ")
        talk.ready_for_data()
        edge = b"x" * LONGEST_LINE
        assert talk.say(edge + b"\r\n.").startswith("250 2.0.0 ")
    assert kept(world) == [long + b"\r\n", edge + b"\r\n"]


def test_half_a_mail_is_no_mail(start: Start, world: World, site: int) -> None:
    listener = start()
    with listener.talk() as talk:
        talk.sign_in().ready_for_data()
        talk.socket.sendall(a_mail())
    with listener.signed_in() as client:
        client.sendmail("a@b.example", ["c@d.example"], a_mail("whole"))
    assert len(kept(world)) == 1
    assert listener.server.office.data_bytes == 0


def test_a_login_sends_only_as_whom_it_may(start: Start, world: World, site: int) -> None:
    add_credential(world, site, username="bound", senders=["*@example.com"])
    with start().client() as client:
        client.login("bound", SECRET)
        assert client.mail("boss@other.example")[0] == 550
        assert client.mail("boss@other.example")[1].startswith(b"5.7.1 ")
        assert client.mail("shop@Example.com")[0] == 250
        client.rcpt("c@d.example")
        assert client.data(a_mail())[0] == 250
        client.mail("shop@example.com")
        client.rcpt("c@d.example")
        forged = a_mail().replace(b"shop@example.com>\r\nTo", b"boss@other.example>\r\nTo")
        code, words = client.data(forged)
        assert (code, words[:6]) == (550, b"5.7.1 ")


def test_too_large_is_said_before_and_after(start: Start, world: World, site: int) -> None:
    listener = start(max_message_bytes=1_000_000)
    with listener.talk() as talk:
        talk.sign_in()
        assert talk.say(b"MAIL FROM:<a@b.example> SIZE=1000001").startswith("552 5.3.4 ")
        talk.ready_for_data()
        talk.socket.sendall(b"x\r\n" * 500_000)
        assert talk.say(b".").startswith("552 5.3.4 ")
        assert talk.say(b"NOOP").startswith("250")
    assert kept(world) == []
    assert listener.server.office.data_bytes == 0


def test_sixty_megabytes_are_too_many(start: Start, site: int) -> None:
    with start().talk() as talk:
        talk.sign_in().ready_for_data()
        piece = (b"x" * 998 + b"\r\n") * 1000
        for _ in range(60):
            talk.socket.sendall(piece)
        assert talk.say(b".").startswith("552 5.3.4 ")


def test_too_much_mail_at_once_has_to_wait(start: Start, world: World, site: int) -> None:
    listener = start(max_data_memory_bytes=200_000)
    with listener.talk() as talk:
        talk.sign_in()
        assert talk.say(b"MAIL FROM:<a@b.example> SIZE=300000").startswith("452 4.3.1 ")
        talk.ready_for_data()
        talk.socket.sendall(b"x\r\n" * 300_000)
        assert talk.say(b".").startswith("452 4.3.1 ")
    with listener.signed_in() as client:
        client.sendmail("a@b.example", ["c@d.example"], a_mail())


def test_over_the_cap_of_connections_it_is_421(start: Start, site: int) -> None:
    listener = start(max_submission_connections=3)
    talks = [listener.talk() for _ in range(3)]
    late = listener.talk()
    assert late.greeting.startswith("421 4.3.2 ")
    assert late.file.readline() == b""
    talks.pop().close()
    while not (again := listener.talk()).greeting.startswith("220"):
        again.close()
    for talk in (*talks, late, again):
        talk.close()


def test_two_thousand_idle_connections_leave_room_for_work(
    start: Start, world: World, site: int
) -> None:
    listener = start(max_submission_connections=2100)
    idle = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(2000)]
    with listener.signed_in() as client:
        client.sendmail("a@b.example", ["c@d.example"], a_mail())
    for connection in idle:
        connection.close()
    assert len(kept(world)) == 1


def test_nul_bytes_are_taken_in_the_mail_and_refused_in_addresses(
    start: Start, world: World, site: int
) -> None:
    with start().talk() as talk:
        talk.sign_in()
        assert talk.say(b"MAIL FROM:<a\0@b.example>").startswith("501 5.1.7 ")
        talk.say(b"MAIL FROM:<a@b.example>")
        assert talk.say(b"RCPT TO:<c\0@d.example>").startswith("501 5.1.3 ")
        talk.say(b"RCPT TO:<c@d.example>")
        talk.say(b"DATA")
        assert talk.say(b"Subject: n\0l\r\n\r\na\0b\r\n.").startswith("250 2.0.0 ")
    assert kept(world) == [b"Subject: n\0l\r\n\r\na\0b\r\n"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"MAIL FROM:<>", "250 2.1.0"),
        (b"MAIL FROM: shop@example.com", "250 2.1.0"),
        (b"MAIL FROM:<shop@example.com> BODY=8BITMIME SMTPUTF8 SIZE=12", "250 2.1.0"),
        ("MAIL FROM:<größe@exämple.com> SMTPUTF8".encode(), "250 2.1.0"),
        (b"MAIL FROM:<shop@example.com> XYZ=1", "555 5.5.4"),
        (b"MAIL TO:<shop@example.com>", "501 5.1.7"),
        (b"MAIL", "501 5.1.7"),
        (b"RCPT TO:<a@b.example>", "503 5.5.1"),
        (b"DATA", "503 5.5.1"),
        (b"MAIL FROM:<" + b"x" * 400 + b"@example.com>", "501 5.1.7"),
        (b"FOO", "500 5.5.2"),
        (b"x" * 5000, "500 5.5.2"),
        (b"\xff\xfe", "500 5.5.2"),
        (b"", "500 5.5.2"),
    ],
)
def test_each_command_is_answered_as_it_deserves(
    start: Start, site: int, line: bytes, code: str
) -> None:
    with start().talk() as talk:
        talk.sign_in()
        assert talk.say(line).startswith(code)
        assert talk.say(b"RSET").startswith("250 2.0.0 ")


@pytest.mark.parametrize(
    "line", [b"RCPT TO:<postmaster>", b"RCPT TO:<@example.org>", b"RCPT TO:<a@>"]
)
def test_a_recipient_needs_a_name_and_a_domain(start: Start, site: int, line: bytes) -> None:
    with start().talk() as talk:
        talk.sign_in()
        talk.say(b"MAIL FROM:<a@b.example>")
        assert talk.say(line).startswith("553 5.1.3 ")


def test_closing_down_says_421_and_finishes_the_mail_in_hand(
    start: Start, world: World, site: int
) -> None:
    listener = start()
    idle, busy = listener.talk(), listener.talk().sign_in().ready_for_data()
    busy.socket.sendall(a_mail())
    while not listener.server.office.data_bytes:
        busy.socket.sendall(b"x\r\n")
    stopping = threading.Thread(target=lambda: listener.call(listener.server.stop(patience=20)))
    stopping.start()
    assert idle.reply().startswith("421 4.3.2 ")
    assert busy.say(b".").startswith("250 2.0.0 queued as ")
    assert busy.reply().startswith("421 4.3.2 ")
    stopping.join(20)
    idle.close()
    busy.close()
    assert len(kept(world)) == 1


def test_with_a_certificate_a_login_needs_tls(
    start: Start, world: World, site: int, tmp_path: Path
) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("localhost", "127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(made.cert_chain_pems[0].bytes())
    (tmp_path / "key.pem").write_bytes(made.private_key_pem.bytes())
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    listener = start(tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    with listener.talk() as talk:
        assert "STARTTLS" in talk.say(b"EHLO me")
        plain = base64.b64encode(b"\0wp-shop\0" + SECRET.encode())
        assert talk.say(b"AUTH PLAIN " + plain).startswith("538 5.7.11 ")
    with listener.client() as client:
        client.starttls(context=trusted)
        client.login("wp-shop", SECRET)
        client.sendmail("a@b.example", ["c@d.example"], a_mail())
    with world.db.read() as session:
        received = session.scalar(sa.select(Message.received))
    assert received["with"] == "ESMTPSA"
    assert received["tls"].startswith("TLSv1.")


def test_what_was_said_before_starttls_does_not_count(
    start: Start, world: World, site: int, tmp_path: Path
) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    (tmp_path / "cert.pem").write_bytes(made.cert_chain_pems[0].bytes())
    (tmp_path / "key.pem").write_bytes(made.private_key_pem.bytes())
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    listener = start(
        tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem", allow_plain_auth=1
    )
    talk = listener.talk().sign_in()
    talk.socket.sendall(b"STARTTLS\r\nMAIL FROM:<injected@example.com>\r\n")
    assert talk.reply().startswith("220")
    with trusted.wrap_socket(talk.socket, server_hostname="localhost") as secure:
        secure.sendall(b"EHLO me\r\nMAIL FROM:<a@b.example>\r\n")
        answer = b""
        while b"530" not in answer:
            answer += secure.recv(4096)
    talk.file.close()
