"""Other SMTP: settings, TLS, login, and a mail that arrives as it was."""

import pytest

from tests.mailers.a_mail import CONTENT, a_mailer, around, to
from tests.mailers.fakes import FakeSmtp, Move, a_real_server
from webapp.fields import FieldErrors, from_json
from webapp.mailers import smtp
from webapp.mailers.errors import Cause, Misconfigured, PermanentError, TransientError
from webapp.mailers.smtp import MAILS_PER_CONNECTION, Encryption, Smtp, SmtpConversation
from webapp.mailers.smtp_wire import wire_form

PASSWORD = "pässwörd-密码"


def settings(**given: object) -> Smtp:
    return from_json(Smtp, {"host": "smtp.example.com", "username": "me"} | given)


@pytest.mark.parametrize(
    "host",
    [
        "smtp.example.com",
        "localhost",
        "mail_relay",
        "192.0.2.7",
        "2001:db8::1",
        "bücher.example",
        "SMTP.Example.COM",
    ],
)
def test_a_host_may_be_a_name_or_an_address(host):
    assert settings(host=host).host == host


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        ("", "Enter a value"),
        ("https://smtp.example.com", "without https"),
        ("smtp.example.com/mail", "without a path"),
        ("smtp example com", "spaces"),
        ("me@example.com", "not a mail address"),
        ("smtp.example.com:587", "field of its own"),
        ("[2001:db8::1]", "field of its own"),
        ("smtp..example.com", "such as"),
        ("-smtp.example.com", "such as"),
        ("256.1.1.1", "such as"),
        ("a" * 64 + ".example", "such as"),
        (".".join(["abcdefg"] * 40), "such as"),
    ],
)
def test_a_bad_host_is_answered_with_advice(host, advice):
    with pytest.raises(FieldErrors) as caught:
        settings(host=host)
    assert advice in caught.value.errors["host"]


@pytest.mark.parametrize("port", [0, -1, 65536, 70000])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(FieldErrors, match="port: Enter a port from 1 to 65535"):
        settings(port=port)


def test_authentication_needs_a_user_name():
    with pytest.raises(FieldErrors, match="username"):
        settings(username="")
    assert settings(username="", authentication=False).username == ""


def test_the_defaults_are_the_safe_ones():
    made = settings()
    assert (made.port, made.encryption, made.auto_tls) == (587, Encryption.TLS, True)


def test_a_lane_is_a_login_at_a_server():
    assert settings(host="SMTP.Example.com").lane_key() == "smtp:me@smtp.example.com:587"
    assert settings(authentication=False).lane_key() == "smtp:@smtp.example.com:587"


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\nb\rc", b"a\r\nb\r\nc\r\n"),
        (b".a\r\n..b\r\n.\r\n", b"..a\r\n...b\r\n..\r\n"),
        (b"a\n.\nb\r\n", b"a\r\n..\r\nb\r\n"),
        (b"a\r.\rb", b"a\r\n..\r\nb\r\n"),
        (b"a\r\n\r\n", b"a\r\n\r\n"),
        (b"", b"\r\n"),
    ],
)
def test_content_goes_out_in_strict_lines_with_dots_doubled(content, wire):
    assert wire_form(content) == wire


def test_a_mail_arrives_as_it_was():
    content = CONTENT + b".\r\n..two dots\r\n" + "Grüße 你好\r\n".encode() + b"bytes \xff\xfe\r\n"
    with FakeSmtp() as server:
        receipt = a_mailer(server.port).send(
            to("b@example.com", "c@example.com"), content, around()
        )
    (mail,) = server.mails
    assert mail.content == content
    assert mail.rcpts == ["b@example.com", "c@example.com"]
    assert mail.mail.startswith("MAIL FROM:<a@example.com> ")
    assert mail.mail.endswith("BODY=8BITMIME")
    assert (receipt.remote_id, receipt.code, receipt.refused) == ("FAKE0", "250 2.0.0", {})
    assert receipt.words == "250 2.0.0 Ok: queued as FAKE0"
    assert server.verbs() == ["ehlo", "MAIL", "RCPT", "RCPT", "DATA", "QUIT"]
    assert server.commands[0] == "ehlo postroom.test"


def test_a_bounce_has_an_empty_sender():
    with FakeSmtp() as server:
        a_mailer(server.port).send(to(mail_from=""), CONTENT, around())
    assert server.mails[0].mail == f"MAIL FROM:<> SIZE={len(CONTENT)}"


def test_a_large_mail_arrives_whole():
    content = CONTENT + (b"." + b"0123456789" * 7 + b"\r\n") * 100_000
    with FakeSmtp() as server:
        a_mailer(server.port).send(to(), content, around())
    assert server.mails[0].content == content


def test_a_server_from_before_esmtp_is_greeted_the_old_way():
    with FakeSmtp(always={"EHLO": "502 what?"}) as server:
        a_mailer(server.port).send(to(), CONTENT, around())
    assert server.verbs()[:2] == ["ehlo", "helo"]
    assert server.mails[0].mail == "MAIL FROM:<a@example.com>"


def test_answers_of_many_lines_are_understood():
    with FakeSmtp(
        always={"GREETING": "220-hello\n220 there", "DOT": "250-yes\n250 queued as Z"}
    ) as s:
        receipt = a_mailer(s.port).send(to(), CONTENT, around())
    assert (receipt.words, receipt.remote_id) == ("250-yes\n250 queued as Z", "Z")


# TLS


def test_starttls_is_used_and_the_certificate_checked(trust):
    with FakeSmtp(tls=trust.server) as server:
        mailer = a_mailer(server.port, encryption=Encryption.TLS)
        mailer.send(to(), CONTENT, around(ca_file=trust.ca_file))
    assert server.mails[0].secure
    assert server.verbs()[:3] == ["ehlo", "STARTTLS", "ehlo"]


def test_ssl_speaks_tls_from_the_first_byte(trust):
    with FakeSmtp(tls=trust.server, implicit=True) as server:
        mailer = a_mailer(server.port, encryption=Encryption.SSL, host="localhost")
        mailer.send(to(), CONTENT + b"x" * 300_000, around(ca_file=trust.ca_file))
    assert server.mails[0].secure


@pytest.mark.parametrize(("auto_tls", "secure"), [(True, True), (False, False)])
def test_auto_tls_encrypts_where_it_can(trust, auto_tls, secure):
    with FakeSmtp(tls=trust.server) as server:
        mailer = a_mailer(server.port, auto_tls=auto_tls)
        mailer.send(to(), CONTENT, around(ca_file=trust.ca_file))
    assert server.mails[0].secure is secure


def test_tls_is_never_left_out():
    with FakeSmtp() as server, pytest.raises(Misconfigured, match="STARTTLS is not") as caught:
        a_mailer(server.port, encryption=Encryption.TLS).send(to(), CONTENT, around())
    assert caught.value.cause_code is Cause.TLS
    assert not server.mails


@pytest.mark.parametrize("encryption", [Encryption.NONE, Encryption.SSL, Encryption.TLS])
def test_a_certificate_nobody_vouches_for_is_refused(trust, encryption):
    implicit = encryption is Encryption.SSL
    with (
        FakeSmtp(tls=trust.server, implicit=implicit) as server,
        pytest.raises(Misconfigured, match="certificate verify failed") as caught,
    ):
        a_mailer(server.port, encryption=encryption).send(to(), CONTENT, around())
    assert caught.value.cause_code is Cause.TLS
    assert not server.mails


@pytest.mark.parametrize("encryption", [Encryption.SSL, Encryption.TLS])
def test_a_certificate_for_another_host_is_refused(trust, encryption):
    implicit = encryption is Encryption.SSL
    trusted = around(ca_file=trust.ca_file)
    with (
        FakeSmtp(tls=trust.elsewhere, implicit=implicit) as server,
        pytest.raises(Misconfigured, match=r"certificate verify failed.*127\.0\.0\.1") as caught,
    ):
        a_mailer(server.port, encryption=encryption).send(to(), CONTENT, trusted)
    assert caught.value.cause_code is Cause.TLS


def test_ssl_on_a_port_that_starts_plain_is_for_a_person_to_change(trust):
    with FakeSmtp() as server, pytest.raises(Misconfigured, match="TLS handshake") as caught:
        a_mailer(server.port, encryption=Encryption.SSL).send(to(), CONTENT, around())
    assert caught.value.cause_code is Cause.TLS


def test_a_handshake_cut_short_is_tried_again():
    with FakeSmtp(always={"GREETING": Move.CLOSE}) as server:
        mailer = a_mailer(server.port, encryption=Encryption.SSL)
        with pytest.raises(TransientError) as caught:
            mailer.send(to(), CONTENT, around())
    assert caught.value.cause_code in (Cause.TLS, Cause.LOST)


def test_what_was_said_before_the_handshake_does_not_count(trust):
    slipped_in = b"220 go ahead\r\n250-fake\r\n250 AUTH PLAIN\r\n"
    with (
        FakeSmtp(tls=trust.server, always={"STARTTLS": slipped_in}) as server,
        pytest.raises(TransientError, match="before the handshake"),
    ):
        a_mailer(server.port, encryption=Encryption.TLS).send(to(), CONTENT, around())


def test_missing_certificates_are_for_a_person_to_mend(trust):
    with (
        FakeSmtp(tls=trust.server) as server,
        pytest.raises(Misconfigured, match="cannot be read") as caught,
    ):
        a_mailer(server.port).send(to(), CONTENT, around(ca_file="/nowhere/ca.pem"))
    assert caught.value.cause_code is Cause.TLS


# Login


@pytest.mark.parametrize("mechanisms", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2 LOGIN PLAIN"])
def test_a_login_may_hold_any_letters(mechanisms):
    with FakeSmtp(mechanisms=mechanisms, logins={"jürgen": PASSWORD}) as server:
        mailer = a_mailer(server.port, username="jürgen", password=PASSWORD)
        mailer.send(to(), CONTENT, around())
    assert server.mails[0].login == "jürgen"


def test_plain_is_preferred():
    with FakeSmtp(mechanisms="CRAM-MD5 LOGIN PLAIN", logins={"me": "it is"}) as server:
        a_mailer(server.port, username="me", password="it is").send(to(), CONTENT, around())
    assert server.commands[1].startswith("AUTH PLAIN ")


def test_a_way_to_sign_in_the_server_only_claims_to_know_is_passed_over():
    with FakeSmtp(mechanisms="PLAIN LOGIN", logins={"me": "it is"}) as server:
        server.then("AUTH", "504 5.5.4 not that one")
        a_mailer(server.port, username="me", password="it is").send(to(), CONTENT, around())
    assert server.mails[0].login == "me"


def test_a_refused_password_is_not_tried_twice():
    with FakeSmtp(mechanisms="PLAIN LOGIN", logins={"me": "other"}) as server:
        mailer = a_mailer(server.port, username="me", password="it is")
        with pytest.raises(Exception, match="535"):
            mailer.send(to(), CONTENT, around())
    assert server.verbs().count("AUTH") == 1


def test_without_authentication_nobody_signs_in():
    with FakeSmtp(mechanisms="PLAIN") as server:
        mailer = a_mailer(server.port, username="me", authentication=False)
        mailer.send(to(), CONTENT, around())
    assert "AUTH" not in server.verbs()


def test_a_server_without_a_login_we_know_is_for_a_person_to_change():
    with FakeSmtp(mechanisms="GSSAPI") as server, pytest.raises(Misconfigured) as caught:
        a_mailer(server.port, username="me", password="it is").send(to(), CONTENT, around())
    assert caught.value.cause_code is Cause.AUTH
    assert "GSSAPI" in caught.value.words


@pytest.mark.parametrize("excluded", [(), ("PLAIN",)])
def test_a_real_server_takes_tls_and_login_and_the_mail(trust, excluded):
    content = CONTENT + b".\r\n.dotted\r\n" + "你好\r\n".encode()
    with a_real_server(trust.server, {"jürgen": PASSWORD}, *excluded) as (port, kept):
        mailer = a_mailer(port, encryption=Encryption.TLS, username="jürgen", password=PASSWORD)
        with mailer.open(around(ca_file=trust.ca_file)) as conversation:
            for recipient in ("用户@example.com", "c@example.com"):
                receipt = conversation.send(to(recipient), content)
    first, second = kept.envelopes
    assert first.content == second.content == content
    assert first.rcpt_tos == ["用户@example.com"]
    assert first.smtp_utf8
    assert not second.smtp_utf8
    assert receipt.remote_id == "REAL1"


# Extensions


def test_smtputf8_is_asked_for_only_where_needed():
    header = "Subject: 你好\r\n\r\nx\r\n".encode()
    old_header = "Subject: Grüße\r\n\r\nx\r\n".encode("latin-1")
    with (
        FakeSmtp(extensions=("SMTPUTF8", "8BITMIME")) as server,
        a_mailer(server.port).open(around()) as conversation,
    ):
        conversation.send(to("用户@example.com"), CONTENT)
        conversation.send(to(mail_from="用户@example.com"), CONTENT)
        conversation.send(to(), header)
        conversation.send(to(), old_header)
        conversation.send(to(), CONTENT + "你好".encode())
    assert ["SMTPUTF8" in mail.mail for mail in server.mails] == [True, True, True, False, False]


def test_a_recipient_the_server_cannot_name_is_refused_alone():
    with FakeSmtp() as server:
        receipt = a_mailer(server.port).send(
            to("用户@example.com", "c@example.com"), CONTENT, around()
        )
    error = receipt.refused["用户@example.com"]
    assert (type(error), error.cause_code) == (PermanentError, Cause.UNSUPPORTED)
    assert "SMTPUTF8" in error.words
    assert server.mails[0].rcpts == ["c@example.com"]


def test_a_sender_the_server_cannot_name_is_refused():
    with FakeSmtp() as server, pytest.raises(PermanentError, match="SMTPUTF8"):
        a_mailer(server.port).send(to(mail_from="用户@example.com"), CONTENT, around())


def test_raw_headers_go_out_as_they_are_where_nothing_better_is_offered():
    content = "Subject: 你好\r\n\r\nx\r\n".encode()
    with FakeSmtp(extensions=()) as server:
        a_mailer(server.port).send(to(), content, around())
    assert server.mails[0].content == content


def test_a_mail_over_the_announced_size_stays_here():
    with (
        FakeSmtp(extensions=("SIZE 100",)) as server,
        pytest.raises(PermanentError, match="SIZE 100") as caught,
    ):
        a_mailer(server.port).send(to(), CONTENT + b"x" * 100, around())
    assert caught.value.cause_code is Cause.TOO_LARGE
    assert "MAIL" not in server.verbs()


def test_commands_cannot_be_slipped_into_an_address():
    with FakeSmtp() as server:
        mailer = a_mailer(server.port)
        with mailer.open(around()) as conversation:
            with pytest.raises(PermanentError):
                conversation.send(to(mail_from="a@b>\r\nRCPT TO:<x@example.com"), CONTENT)
            receipt = conversation.send(to("b@b>\r\nDATA\r\n", "c@example.com"), CONTENT)
    assert receipt.refused.keys() == {"b@b>\r\nDATA\r\n"}
    assert server.mails[0].rcpts == ["c@example.com"]


# One connection for many mails


def test_mails_share_a_connection():
    with FakeSmtp(mechanisms="PLAIN", logins={"me": "it is"}) as server:
        mailer = a_mailer(server.port, username="me", password="it is")
        with mailer.open(around()) as conversation:
            for _ in range(3):
                conversation.send(to(), CONTENT)
    assert server.connections == 1
    assert server.verbs() == ["ehlo", "AUTH", *["MAIL", "RCPT", "DATA"] * 3, "QUIT"]


def test_a_connection_is_renewed_after_many_mails():
    with FakeSmtp() as server, a_mailer(server.port).open(around()) as conversation:
        for _ in range(MAILS_PER_CONNECTION + 1):
            conversation.send(to(), CONTENT)
    assert server.connections == 2
    assert len(server.mails) == MAILS_PER_CONNECTION + 1


def test_a_server_that_hung_up_in_between_is_not_noticed():
    with FakeSmtp() as server, a_mailer(server.port).open(around()) as conversation:
        conversation.send(to(), CONTENT)
        server.hang_up()
        conversation.send(to(), CONTENT)
    assert (server.connections, len(server.mails)) == (2, 2)


@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("how", ["421 4.4.2 idle for too long", Move.CLOSE, Move.RESET, b"\x00\n"])
def test_a_kept_connection_that_ends_before_the_content_is_not_noticed(at, how):
    with FakeSmtp() as server, a_mailer(server.port).open(around()) as conversation:
        conversation.send(to(), CONTENT)
        server.then(at, how)
        conversation.send(to(), CONTENT)
    assert (server.connections, len(server.mails)) == (2, 2)


def test_a_farewell_sent_while_idle_is_understood():
    with (
        FakeSmtp(always={"DOT": b"250 ok\r\n421 too many mails, closing\r\n"}) as server,
        a_mailer(server.port).open(around()) as conversation,
    ):
        conversation.send(to(), CONTENT)
        conversation.send(to(), CONTENT)
    assert (server.connections, len(server.mails)) == (2, 2)


def test_an_idle_connection_is_tried_before_it_is_used():
    now = [0.0]
    with FakeSmtp() as server:
        conversation = SmtpConversation(a_mailer(server.port), around(), clock=lambda: now[0])
        conversation.send(to(), CONTENT)
        now[0] += 19
        conversation.send(to(), CONTENT)
        assert "RSET" not in server.verbs()
        now[0] += 21
        conversation.send(to(), CONTENT)
        assert server.verbs().count("RSET") == 1
        now[0] += 21
        server.then("RSET", Move.CLOSE)
        conversation.send(to(), CONTENT)
        conversation.close()
        conversation.close()
    assert (server.connections, len(server.mails)) == (2, 4)


def test_an_idle_connection_that_no_longer_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(smtp, "PROBE_SECONDS", 0.2)
    now = [0.0]
    with FakeSmtp(always={"RSET": Move.HANG}) as server:
        conversation = SmtpConversation(a_mailer(server.port), around(), clock=lambda: now[0])
        conversation.send(to(), CONTENT)
        now[0] += 21
        conversation.send(to(), CONTENT)
        conversation.close()
    assert (server.connections, len(server.mails)) == (2, 2)


def test_a_refused_mail_leaves_nothing_to_the_next():
    with (
        FakeSmtp(always={"RCPT no@example.com": "550 5.1.1 who?"}) as server,
        a_mailer(server.port).open(around()) as conversation,
    ):
        conversation.send(to("no@example.com"), CONTENT)
        conversation.send(to("b@example.com"), CONTENT)
    assert server.verbs() == ["ehlo", "MAIL", "RCPT", "RSET", "MAIL", "RCPT", "DATA", "QUIT"]
    assert [mail.rcpts for mail in server.mails] == [["b@example.com"]]


@pytest.mark.parametrize("how", [Move.CLOSE, Move.RESET, Move.HANG, "500 what?"])
def test_a_rude_farewell_is_no_failure(how, monkeypatch):
    monkeypatch.setattr(smtp, "PROBE_SECONDS", 0.2)
    with FakeSmtp(always={"QUIT": how}) as server:
        a_mailer(server.port).send(to(), CONTENT, around())
    assert len(server.mails) == 1
