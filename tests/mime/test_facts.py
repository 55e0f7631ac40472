"""The facts of a mail, from proper mails and from anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.mime.facts import facts_of, too_many_hops
from webapp.mime.headers import Address
from webapp.mime.outgoing import crlf

MAIL = """\
Received: from a by b; Fri, 1 Jan 2027 00:00:00 +0000
Received: from c by d; Fri, 1 Jan 2027 00:00:00 +0000
Date: Fri, 1 Jan 2027 00:00:00 +0000
From: =?utf-8?B?5L2g5aW9?= <Wordpress@Example.com>
To: Li <li@x.cn>, b@x.cn
Cc: undisclosed-recipients:;
Bcc: hidden@x.cn
Resent-Bcc: also@x.cn
Reply-To: r@x.cn
Subject: =?utf-8?Q?Order_=E2=84=96?=
 20430
Message-ID: <[a@b]>

Hello
"""


def test_facts_are_read_from_the_headers() -> None:
    facts = facts_of(MAIL.encode())
    assert facts.subject == "Order № 20430"
    assert (facts.from_name, facts.from_email) == ("你好", "Wordpress@Example.com")
    assert facts.to == (Address("Li", "li@x.cn"), Address("", "b@x.cn"))
    assert facts.cc == ()
    assert facts.bcc == (Address("", "hidden@x.cn"), Address("", "also@x.cn"))
    assert facts.reply_to == (Address("", "r@x.cn"),)
    assert facts.message_id == "<[a@b]>"
    assert facts.date_header
    assert facts.received_count == 2
    assert not facts.has_attachments


def test_a_mail_without_headers_has_empty_facts() -> None:
    facts = facts_of(b"Hello world")
    assert (facts.subject, facts.from_email, facts.message_id) == ("", "", "")
    assert facts.to == ()
    assert not facts.date_header


def test_a_long_subject_is_cut_and_free_of_nul() -> None:
    subject = facts_of(b"Subject: \x00" + b"x" * 5000 + b"\r\n\r\n").subject
    assert subject == "x" * 998


def test_a_from_without_an_address_keeps_its_name() -> None:
    facts = facts_of(b'From: "WordPress"\r\n\r\n')
    assert (facts.from_name, facts.from_email) == ("WordPress", "")


@pytest.mark.parametrize("count", [20, 21])
def test_more_than_twenty_hops_are_too_many(count: int) -> None:
    facts = facts_of(b"Received: by x; now\r\n" * count + b"\r\n")
    assert too_many_hops(facts) is (count > 20)


def a_multipart(kind: str, part_header: str) -> bytes:
    return (
        f'Content-Type: multipart/{kind}; boundary="b 1"\n\n--b 1\nContent-Type: text/plain\n\n'
        f"filename=x.pdf\n--b 1\n{part_header}\n\ndata\n--b 1--\n"
    ).encode()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (a_multipart("mixed", "Content-Disposition: attachment"), True),
        (a_multipart("mixed", "content-type: image/png;\n name=x.png"), True),
        (a_multipart("mixed", "Content-Type: image/png; filename*0*=utf-8''x"), True),
        (a_multipart("mixed", "Content-Type: text/html"), False),
        (a_multipart("related", "Content-Type: image/png; name=x.png"), False),
        (a_multipart("alternative", "Content-Disposition: ATTACHMENT; filename=x"), True),
        (b"Content-Disposition: attachment\n\nx", True),
        (b"Content-Type: multipart/mixed\n\n--x\nContent-Disposition: attachment\n", False),
    ],
)
def test_attachments_are_guessed_from_the_outermost_parts(raw: bytes, expected: bool) -> None:
    assert facts_of(raw).has_attachments is expected
    assert facts_of(crlf(raw)).has_attachments is expected


LINES = [
    b"From: a@b",
    b"Bcc: c@d",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\r\n",
    b" x",
    b"To: e@f",
    b"y",
    b"\x00",
]


@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(LINES)).map(b"".join)))
def test_facts_never_raise_and_do_not_depend_on_line_ends(raw: bytes) -> None:
    facts = facts_of(raw)
    assert "\x00" not in facts.subject + facts.from_email + facts.from_name + facts.message_id
    assert facts_of(crlf(raw)) == facts
