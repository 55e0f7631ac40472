"""What leaves: the envelope rules, the From, the added headers, and nothing else changed."""

from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.utils import parsedate_to_datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.mime.headers import Address, address_key, parse, parse_addresses, render_addresses
from webapp.mime.outgoing import FromBlock, Outgoing, Placeholders, compose, crlf

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
BLOCK = FromBlock(email="", force_email=False, name="", force_name=False, return_path=False)
FORCING = replace(BLOCK, email="set@x.example", force_email=True)
PLACEHOLDERS = Placeholders(emails=("wordpress@shop.example",), names=("WordPress",))
MAIL = (
    b"From: Me <me@shop.example>\r\nTo: Li <li@x.cn>, b@x.cn\r\nBcc: hidden@x.cn\r\n"
    b"Subject: Hi\r\n\r\nHello\r\n"
)


def a_mail_that_leaves(
    raw: bytes = MAIL,
    *,
    recipients: tuple[str, ...] = ("li@x.cn", "b@x.cn", "hidden@x.cn"),
    block: FromBlock = BLOCK,
    mail_from: str = "bounce@shop.example",
    received_from: str = "wp.example ([10.0.0.1])",
    queue_id: str = "01ABC",
    hostname: str = "relay.example",
    header_envelope: bool = False,
) -> Outgoing:
    return compose(
        raw,
        queue_id=queue_id,
        hostname=hostname,
        received_from=received_from,
        received_with="ESMTPSA",
        received_at=NOW,
        mail_from=mail_from,
        recipients=recipients,
        block=block,
        placeholders=PLACEHOLDERS,
        header_envelope=header_envelope,
    )


def header(outgoing: Outgoing, name: bytes) -> list[bytes]:
    return [value.strip() for value in parse(outgoing.content)[0].get_all(name)]


def named(outgoing: Outgoing, *names: bytes) -> list[str]:
    return [a.email for n in names for v in header(outgoing, n) for a in parse_addresses(v)]


# The envelope

LOCALS = st.sampled_from(["a", "B", "b", "c", "li.wen", "用户", "O'Neil", "x+y"])
EMAILS = st.builds("{}@{}".format, LOCALS, st.sampled_from(["x.cn", "X.cn", "例子.测试"]))
LISTED = st.builds(Address, st.sampled_from(["", "Li, Wen", "你好", 'q"q', "A B"]), EMAILS)
LISTS = st.lists(st.lists(LISTED, max_size=3), max_size=2)


@given(
    to=LISTS, cc=LISTS, bcc=LISTS, others=st.lists(EMAILS, max_size=3), some=st.randoms(),
    header_envelope=st.booleans(),
)  # fmt: skip
def test_recipients_are_exactly_those_of_the_attempt(
    to: list[list[Address]],
    cc: list[list[Address]],
    bcc: list[list[Address]],
    others: list[str],
    some: Random,
    header_envelope: bool,
) -> None:
    """Redirect (others only), retry of some, Bcc: the envelope and the headers say the same."""
    lists = {b"To": to, b"Cc": cc, b"Bcc": bcc}
    fields = [
        name + b": " + render_addresses(group) + b"\r\n" for name in lists for group in lists[name]
    ]
    listed = [a.email for groups in lists.values() for group in groups for a in group]
    recipients = tuple(some.sample(listed + others, len(listed + others) // 2))
    out = a_mail_that_leaves(
        b"".join(fields) + b"\r\nHello", recipients=recipients, header_envelope=header_envelope
    )
    assert out.recipients == recipients
    if not header_envelope:
        assert header(out, b"bcc") == []
        assert named(out, b"to") == [a.email for group in to for a in group]
        assert named(out, b"cc") == [a.email for group in cc for a in group]
        return
    in_headers = {address_key(email) for email in named(out, b"to", b"cc", b"bcc")}
    assert in_headers == {address_key(email) for email in recipients}
    for name, groups in ((b"To", to), (b"Cc", cc)):
        kept_and_moved = named(out, name, b"X-Original-" + name)
        assert sorted(kept_and_moved) == sorted(a.email for group in groups for a in group)
    assert len(header(out, b"bcc")) <= 1


def test_with_an_envelope_to_and_cc_stay_as_written() -> None:
    raw = b"To:  Li  <li@x.cn> , b@x.cn\r\nCC: c@x.cn\r\nResent-Bcc: h@x.cn\r\n\r\n"
    out = a_mail_that_leaves(raw, recipients=("other@x.cn",))
    assert b"To:  Li  <li@x.cn> , b@x.cn\r\nCC: c@x.cn\r\n" in out.content
    assert b"h@x.cn" not in out.content


def test_without_an_envelope_others_move_aside_with_their_names() -> None:
    out = a_mail_that_leaves(recipients=("B@X.cn", "h@x.cn"), header_envelope=True)
    assert header(out, b"to") == [b"b@x.cn"]
    assert header(out, b"x-original-to") == [b"Li <li@x.cn>"]
    assert header(out, b"bcc") == [b"h@x.cn"]


def test_headers_that_name_only_recipients_stay_as_written() -> None:
    raw = b"To:  Li  <LI@x.cn> , b@x.cn\r\n\r\n"
    out = a_mail_that_leaves(raw, recipients=("li@x.cn", "b@x.cn"), header_envelope=True)
    assert b"To:  Li  <LI@x.cn> , b@x.cn\r\n" in out.content


def test_a_bcc_behind_a_bare_carriage_return_goes_too() -> None:
    out = a_mail_that_leaves(b"Subject: x\rBcc: h@x.cn\r\n\r\nHello")
    assert b"h@x.cn" not in out.content


# The From


def test_a_kept_from_stays_as_written() -> None:
    raw = b"From:  Me   <me@shop.example>\r\n\r\nx"
    assert b"From:  Me   <me@shop.example>\r\n" in a_mail_that_leaves(raw).content


def test_a_forced_from_replaces_all_from_headers_and_rescues_answers() -> None:
    raw = b"A: 1\r\nFrom: Me <me@shop.example>\r\nFrom: x@y\r\nSender: s@y\r\n\r\nx"
    out = a_mail_that_leaves(raw, block=replace(FORCING, name="Shöp", force_name=True))
    assert header(out, b"from") == [b"=?utf-8?b?U2jDtnA=?= <set@x.example>"]
    assert header(out, b"sender") == [b"s@y"]
    assert header(out, b"reply-to") == [b"Me <me@shop.example>"]
    assert out.reply_to_added == "me@shop.example"
    assert (out.from_email, out.from_name) == ("set@x.example", "Shöp")


@pytest.mark.parametrize(
    ("raw", "block"),
    [
        (b"From: me@shop.example\r\nReply-To: r@x.cn\r\n\r\n", FORCING),
        (b"From: SET@x.example\r\n\r\n", FORCING),
        (b"From: Only A Name\r\n\r\n", FORCING),
        (b"Subject: none\r\n\r\n", FORCING),
        (b"From: wordpress@shop.example\r\n\r\n", replace(FORCING, force_email=False)),
        (b"From: me@shop.example\r\n\r\n", replace(FORCING, force_email=False)),
    ],
)
def test_answers_are_not_rescued_when_there_is_no_need(raw: bytes, block: FromBlock) -> None:
    out = a_mail_that_leaves(raw, block=block)
    assert out.reply_to_added == ""
    assert b"Reply-To: " not in out.content.replace(b"Reply-To: r@x.cn", b"")


def test_an_empty_reply_to_does_not_stop_the_rescue() -> None:
    out = a_mail_that_leaves(b"From: me@shop.example\r\nReply-To: \r\n\r\n", block=FORCING)
    assert header(out, b"reply-to") == [b"me@shop.example"]


def test_a_forced_placeholder_is_rescued_as_any_other() -> None:
    out = a_mail_that_leaves(b"From: wordpress@shop.example\r\n\r\n", block=FORCING)
    assert out.reply_to_added == "wordpress@shop.example"


def test_a_missing_from_is_filled_in() -> None:
    out = a_mail_that_leaves(b"Hello", block=replace(BLOCK, email="set@x.example", name="Set"))
    assert header(out, b"from") == [b"Set <set@x.example>"]


@pytest.mark.parametrize(
    ("return_path", "mail_from", "expected"),
    [
        (False, "bounce@shop.example", "bounce@shop.example"),
        (False, "", ""),
        (True, "bounce@shop.example", "set@x.example"),
    ],
)
def test_return_path(return_path: bool, mail_from: str, expected: str) -> None:
    block = replace(FORCING, return_path=return_path)
    assert a_mail_that_leaves(block=block, mail_from=mail_from).mail_from == expected


# Added headers


def test_missing_headers_are_added_the_same_way_each_time() -> None:
    out = a_mail_that_leaves(b"Hello")
    assert out == a_mail_that_leaves(b"Hello")
    assert header(out, b"message-id") == [b"<01ABC@relay.example>"]
    assert parsedate_to_datetime(header(out, b"date")[0].decode()) == NOW
    assert parse(out.content)[2] == b"Hello"


def test_headers_that_are_there_stay() -> None:
    raw = b"Message-ID: <[a@b]>\r\nDate: yesterday\r\n\r\nx"
    out = a_mail_that_leaves(raw)
    assert header(out, b"message-id") == [b"<[a@b]>"]
    assert header(out, b"date") == [b"yesterday"]


def test_the_trace_line_comes_first_and_names_the_queue_id() -> None:
    out = a_mail_that_leaves(b"Received: old\r\n\r\nx")
    assert out.content.startswith(
        b"Received: from wp.example ([10.0.0.1])\r\n\tby relay.example with ESMTPSA id 01ABC;\r\n"
        b"\tTue, 24 Nov 2026 10:00:00 +0000\r\nReceived: old\r\n"
    )
    assert a_mail_that_leaves(received_from="").content.startswith(b"Received: by relay.example ")


def test_nothing_handed_in_can_add_a_header() -> None:
    evil = "x\r\nBcc: h@x.cn\r\n\r\n"
    block = replace(FORCING, email="e@x" + evil, name=evil, force_name=True)
    out = a_mail_that_leaves(
        b"x", block=block, received_from=evil, queue_id=evil, hostname=evil, recipients=(evil,),
        header_envelope=True,
    )  # fmt: skip
    names = [field.name for field in parse(out.content)[0].fields]
    assert names == [b"received", b"from", b"bcc", b"date", b"message-id"]


def test_a_naive_time_is_a_programmer_error() -> None:
    with pytest.raises(ValueError, match="time zone"):
        compose(
            b"", queue_id="", hostname="", received_from="", received_with="",
            received_at=NOW.replace(tzinfo=None), mail_from="", recipients=(), block=BLOCK,
            placeholders=PLACEHOLDERS,
        )  # fmt: skip


# The body


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a\nb\rc\r\nd", b"a\r\nb\r\nc\r\nd"),
        (b"a\r\r\nb\r\r", b"a\r\nb\r\n\r\n"),
        (b"a\r\n", b"a\r\n"),
        (b"\n\n\r", b"\r\n\r\n\r\n"),
    ],
)
def test_line_ends_become_crlf(raw: bytes, expected: bytes) -> None:
    assert crlf(raw) == expected
    assert crlf(expected) == expected


BODIES = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from([b"x", b"\r\n", b"\n", b"\r", b".", b"\x00", b"--b"])).map(b"".join),
)


@given(BODIES)
def test_a_body_leaves_as_it_came_but_for_its_line_ends(body: bytes) -> None:
    out = a_mail_that_leaves(b"Subject: x\r\nX-Odd : 1\r\n\r\n" + body, block=FORCING)
    assert out.content.endswith(b"\r\n\r\n" + crlf(body))
    assert parse(out.content)[2] == crlf(body)


@given(BODIES, st.booleans())
def test_any_bytes_leave_as_a_mail(raw: bytes, header_envelope: bool) -> None:
    out = a_mail_that_leaves(raw, header_envelope=header_envelope)
    assert out.content.count(b"\r") == out.content.count(b"\n") == out.content.count(b"\r\n")
    message = message_from_bytes(out.content)
    assert len(message.get_all("Message-ID", [])) == 1
    assert message.defects == []


def test_overlong_lines_do_not_leave() -> None:
    raw = b"Subject: " + b"word " * 300 + b"\r\n\r\n" + "é".encode() * 900 + b"\r\nshort"
    out = a_mail_that_leaves(raw)
    assert max(map(len, out.content.split(b"\r\n"))) <= 998
    assert header(out, b"mime-version") == [b"1.0"]
    message = message_from_bytes(out.content)
    assert message.get_payload(decode=True) == "é".encode() * 900 + b"\r\nshort"


def test_a_long_header_alone_changes_nothing_else() -> None:
    out = a_mail_that_leaves(b"Subject: " + b"word " * 300 + b"\r\n\r\nbody")
    assert header(out, b"mime-version") == []
    assert parse(out.content)[2] == b"body"


def test_a_mail_without_a_blank_line_gets_one() -> None:
    out = a_mail_that_leaves(b"Subject: x")
    assert out.content.endswith(b"\r\n\r\n")
    out = a_mail_that_leaves(b"From me Fri\nSubject: x\nHello there")
    assert parse(out.content)[2] == b"Hello there"
    assert b"From me Fri" not in out.content
