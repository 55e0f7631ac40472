"""Lines over 998 octets: what can be encoded again is, and says the same; the rest is left."""

import re
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.mime.headers import Field, Headers, decode, parse, parse_addresses
from webapp.mime.longlines import fold_long_fields, has_long_line, shorten_body

LONG = b"wort " * 300 + b"\xc3\xa9nd."


def shortened(raw: bytes) -> tuple[bytes, bytes]:
    """The mail made short, and its body alone."""
    headers, _, body = parse(raw)
    body = shorten_body(headers, body)
    return headers.serialise() + b"\r\n" + body, body


def content(raw: bytes, at: int | None = None) -> bytes:
    message = message_from_bytes(raw, policy=policy.compat32)
    part = message if at is None else message.get_payload(at)
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload


@given(st.lists(st.integers(0, 2200).map(lambda n: b"x" * n), max_size=6))
def test_long_lines_are_seen(lines: list[bytes]) -> None:
    expected = any(len(line) > 998 for line in lines)
    assert has_long_line(b"\r\n".join(lines)) is expected
    assert has_long_line(b"\r\n".join([*lines, b""])) is expected


def test_a_line_of_998_octets_is_not_long() -> None:
    assert not has_long_line(b"x" * 998 + b"\r\n" + b"y" * 998)
    assert has_long_line(b"x" * 999)


TEXTS = st.lists(
    st.one_of(st.binary(max_size=30), st.integers(900, 1100).map(lambda n: b"a =." * (n // 4))),
    min_size=1,
).map(lambda lines: b"\r\n".join(re.sub(rb"[\r\n]", b"", line) for line in lines))


@given(TEXTS, st.sampled_from([b"text/plain", b"text/html; charset=utf-8", b"image/png", b"x"]))
def test_a_mail_of_one_part_keeps_its_content(text: bytes, kind: bytes) -> None:
    out, body = shortened(b"Content-Type: " + kind + b"\r\n\r\n" + text)
    assert not has_long_line(body)
    assert content(out) == text


def test_text_becomes_quoted_printable_and_files_base64() -> None:
    text, _ = shortened(b"Content-Transfer-Encoding: 8bit\r\n\r\n" + LONG)
    assert text.startswith(b"Content-Transfer-Encoding: quoted-printable\r\n\r\n")
    image, _ = shortened(b"Content-Type: image/png\r\n\r\n" + LONG)
    assert b"Content-Transfer-Encoding: base64\r\n\r\n" in image


def test_long_lines_of_base64_and_quoted_printable_are_wrapped() -> None:
    base64, body = shortened(b"Content-Transfer-Encoding: BASE64\r\n\r\n" + b"QUJD" * 600)
    assert content(base64) == b"ABC" * 600
    assert not has_long_line(body)
    quoted, body = shortened(
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\nshort=\r\n" + b"a=3D=C3=A9 " * 200
    )
    assert content(quoted).rstrip() == b"short" + ("a=é ".encode() * 200).rstrip()
    assert not has_long_line(body)
    assert body.startswith(b"short=\r\n")


def test_only_the_part_that_is_too_long_changes() -> None:
    part = b"Content-Type: text/plain\r\n\r\n"
    raw = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\npreamble\r\n--b\r\n"
        + part
        + b"first \r\n"
        b"--b\r\n" + part + LONG + b"\r\n--b--\r\nepilogue\r\n"
    )
    out, body = shortened(raw)
    assert body.startswith(b"preamble\r\n--b\r\n" + part + b"first \r\n--b\r\n")
    assert body.endswith(b"\r\n--b--\r\nepilogue\r\n")
    assert content(out, 1) == LONG
    assert b"Content-Transfer-Encoding" not in out.split(b"\r\n\r\n", 1)[0]


def test_a_mail_inside_a_mail_is_made_short_too() -> None:
    inner = b"Subject: " + b"word " * 300 + b"\r\nContent-Type: text/plain\r\n\r\n" + LONG
    raw = (
        b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\n" + inner + b"\r\n--b--\r\n"
    )
    out, body = shortened(raw)
    assert not has_long_line(body)
    nested = message_from_bytes(out).get_payload(0).get_payload(0)
    assert nested.get_payload(decode=True) == LONG


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: multipart/mixed\r\n\r\n--b\r\n\r\n" + LONG,
        b"Content-Type: multipart/mixed; boundary=other\r\n\r\n--b\r\n\r\n" + LONG,
        b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n" + LONG + b"\r\n--b--",
        b"Content-Transfer-Encoding: x-own\r\n\r\n" + LONG,
        b"Content-Transfer-Encoding: base64\r\n\r\n(" + LONG,
        b"Content-Type: message/partial\r\n\r\n" + LONG,
    ],
)
def test_what_cannot_be_taken_apart_stays_as_it_is(raw: bytes) -> None:
    assert shortened(raw)[0] == raw


def test_nesting_without_end_stays_as_it_is() -> None:
    raw = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (i, i)
        for i in range(5_000)
    )
    raw += b"\r\n" + LONG
    assert shortened(raw)[0] == raw


def folded(raw: bytes) -> bytes:
    headers = parse(raw)[0]
    fold_long_fields(headers)
    return headers.serialise()


def test_a_long_header_is_folded_at_its_blanks() -> None:
    raw = b"Subject: " + b"some words " * 200 + b"end\r\nX: short\r\n"
    out = folded(raw)
    assert max(map(len, out.split(b"\r\n"))) <= 78
    assert out.replace(b"\r\n ", b" ") == raw


def test_a_long_header_without_blanks_is_encoded() -> None:
    text = "你好" * 400
    out = folded(b"Subject: " + text.encode() + b"\r\n")
    assert not has_long_line(out)
    assert decode(parse(out)[0].get(b"subject") or b"") == text


def test_a_long_address_list_stays_an_address_list() -> None:
    emails = [f"someone-{i}@example.org" for i in range(200)]
    out = folded(b"To: " + ",".join(emails).encode() + b"\r\n")
    assert not has_long_line(out)
    assert [a.email for a in parse_addresses(parse(out)[0].get(b"to") or b"")] == emails


@given(
    st.lists(st.sampled_from([b"x" * 500, b" " * 600, b"\t", b"y", b"\r\n ", b",", b"<", b"\xff"]))
)
def test_folding_never_ends_the_header(pieces: list[bytes]) -> None:
    headers = parse(b"X-Long: " + b"".join(pieces) + b"\r\nLast: 1\r\n")[0]
    fold_long_fields(headers)
    out = headers.serialise()
    assert [f.name for f in parse(out)[0].fields] == [b"x-long", b"last"]
    assert not has_long_line(out)
    assert parse(out)[2] == b""


def test_a_name_as_long_as_a_line_is_left() -> None:
    headers = Headers([Field(b"x" * 2000, b"X" * 2000 + b": 1\r\n")])
    fold_long_fields(headers)
    assert headers.serialise() == b"X" * 2000 + b": 1\r\n"


def test_a_mail_by_the_standard_library_reads_the_same_after() -> None:
    message = EmailMessage(policy=policy.SMTP.clone(max_line_length=9_999))
    message["Subject"] = "x"
    message.set_content("short")
    message.add_alternative("<p>" + "word " * 400, subtype="html", cte="7bit")
    message.add_attachment(b"\x00\xff" * 900, maintype="image", subtype="png", filename="a.png")
    raw = message.as_bytes()
    out, _ = shortened(raw)
    before = [p.get_payload(decode=True) for p in message_from_bytes(raw).walk()]
    after = [p.get_payload(decode=True) for p in message_from_bytes(out).walk()]
    assert before == after
    assert not has_long_line(out)
