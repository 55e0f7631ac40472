"""The message page gets something to show from any bytes."""

from base64 import b64encode, encodebytes
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.mime.view import (
    MailView,
    attachment_bytes,
    inline_images,
    raw_text,
    read_mail,
    safe_filename,
)

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def a_full_mail() -> bytes:
    message = EmailMessage()
    message["Subject"] = "Grüße 你好"
    message["From"] = "Li <li@x.cn>"
    message.set_content("Plain ü\n")
    message.add_alternative("<p>Bunt <img src='cid:logo@x'></p>", subtype="html")
    html = message.get_payload(1)
    html.add_related(PNG, "image", "png", cid="<logo@x>", disposition="inline")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="报价.pdf")
    message.add_attachment("a;b\n", subtype="csv", filename="../../etc/x.csv")
    message.add_attachment(EmailMessage())
    return message.as_bytes()


def test_a_proper_mail_is_shown_whole() -> None:
    view = read_mail(a_full_mail())
    assert view.headers_text.startswith("Subject: Grüße 你好\nFrom: Li <li@x.cn>\n")
    assert view.text == "Plain ü\n"
    assert view.html is not None
    assert "cid:logo@x" in view.html
    assert not view.truncated
    found = [(a.filename, a.content_type, a.disposition) for a in view.attachments]
    assert found == [
        ("part-1.png", "image/png", "inline"),
        ("报价.pdf", "application/pdf", "attachment"),
        ("_.._etc_x.csv", "text/csv", "attachment"),
        ("part-4.eml", "message/rfc822", "attachment"),
    ]
    assert view.attachments[0].content_id == "logo@x"


def test_attachments_come_back_as_they_were() -> None:
    raw = a_full_mail()
    assert attachment_bytes(raw, 0) == PNG
    assert attachment_bytes(raw, 1) == b"%PDF"
    for attachment in read_mail(raw).attachments:
        assert attachment.size_bytes == len(attachment_bytes(raw, attachment.index))
    for index in (-1, 4):
        with pytest.raises(ValueError, match="attachment"):
            attachment_bytes(raw, index)


def test_text_offered_as_a_file_is_a_file() -> None:
    raw = b"Content-Disposition: attachment\r\n\r\nHello"
    view = read_mail(raw)
    assert view.text is None
    assert [a.filename for a in view.attachments] == ["part-1.txt"]


def test_images_inside_the_mail_become_data_addresses() -> None:
    assert inline_images(a_full_mail()) == {
        "logo@x": "data:image/png;base64," + b64encode(PNG).decode()
    }


def test_only_images_a_browser_may_show_are_inlined() -> None:
    raw = b"Content-Type: image/svg+xml\r\nContent-ID: <a>\r\n\r\n<svg/>"
    assert inline_images(raw) == {}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b"Hello", "Hello"),
        (b"\x00\x01Hel\x00lo", " Hello"),
        (b"Content-Type: text/plain; charset=x-none\r\n\r\nH\xc3\xa9", "Hé"),
        (b"Content-Type: text/plain; charset=hex\r\n\r\n6161", "6161"),
        (b"Content-Type: text/plain; charset=utf-8\r\n\r\nH\xe9", "H\ufffd"),
        (b"Content-Type: /;;=\r\n\r\nHello", "Hello"),
        (b"Content-Transfer-Encoding: base64\r\n\r\nSGVsbG8", "Hello"),
        (b"Content-Transfer-Encoding: base64\r\n\r\n!!S%GVsbG8==x", "Hello"),
        (b"Content-Transfer-Encoding: none\r\n\r\nHello", "Hello"),
        (b"Content-Type: multipart/mixed\r\n\r\n--b\r\nHello", "--b\nHello"),
        (b"Content-Type: multipart/mixed; boundary=c\r\n\r\n--b\r\nHello", "--b\nHello"),
        (b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHello", "Hello"),
        (b'Content-Type: multipart/mixed; boundary="b\n\n--b\n\nHello', "--b\n\nHello"),
        (b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nx --b\n--bc\n--b--", "x --b\n--bc"),
        (b"Message-ID: <[a@b]>\r\n\r\nHello", "Hello"),
        (b"Subject: \xff\xfe\r\n\r\nHello", "Hello"),
        (b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\none\n--b\n\ntwo\n--b--", "one\ntwo"),
    ],
)
def test_a_broken_mail_is_shown_as_well_as_possible(raw: bytes, text: str) -> None:
    view = read_mail(raw)
    assert view.text == text
    assert view.attachments == ()


def test_headers_are_shown_even_when_they_are_broken() -> None:
    raw = b"From a@b Fri\nMessage-ID: <[a@b]>\nSubject: caf\xe9\x00\x07\n more\nX:\n\n"
    assert (
        read_mail(raw).headers_text == "From a@b Fri\nMessage-ID: <[a@b]>\nSubject: café  more\nX: "
    )


def nested(levels: int) -> bytes:
    return (
        b"".join(
            b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (i, i)
            for i in range(levels)
        )
        + b"\r\ninnermost"
    )


def test_ten_thousand_nested_parts_are_shown() -> None:
    view = read_mail(nested(10_000))
    assert view.text is not None
    assert "innermost" in view.text
    assert read_mail(nested(20)).text == "innermost"


def test_ten_thousand_parts_side_by_side_are_cut() -> None:
    part = b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n"
    view = read_mail(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + part * 10_000)
    assert len(view.attachments) == 200
    assert view.truncated


def test_a_mail_inside_a_mail_inside_a_mail_is_one_attachment() -> None:
    raw = b"Content-Type: message/rfc822\r\n\r\n" * 10_000 + b"Subject: x\r\n\r\n"
    assert [a.content_type for a in read_mail(raw).attachments] == ["message/rfc822"]


def test_long_text_and_html_are_cut_and_say_so() -> None:
    for kind in (b"plain", b"html"):
        view = read_mail(b"Content-Type: text/" + kind + b"\r\n\r\n" + b"x" * 1_000_001)
        assert len(view.text or view.html or "") == 1_000_000
        assert view.truncated
        exact = read_mail(b"Content-Type: text/" + kind + b"\r\n\r\n" + b"x" * 1_000_000)
        assert not exact.truncated


def test_long_headers_are_cut_and_say_so() -> None:
    view = read_mail(b"X: " + b"x" * 150_000 + b"\r\nY: " + b"y" * 150_000 + b"\r\n\r\n")
    assert len(view.headers_text) == 200_000
    assert view.truncated


@given(st.binary(max_size=3_000), st.sampled_from([b"base64", b"8bit"]))
def test_the_size_shown_is_the_size_of_the_file(content: bytes, encoding: bytes) -> None:
    body = encodebytes(content) if encoding == b"base64" else content
    raw = b"Content-Type: image/png\r\nContent-Transfer-Encoding: " + encoding + b"\r\n\r\n" + body
    (attachment,) = read_mail(raw).attachments
    assert attachment_bytes(raw, 0) == content
    assert attachment.size_bytes == len(content)


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ("attachment; filename=a.png", "a.png"),
        ('attachment; filename="a \\"b\\".png"', "a _b_.png"),
        ("attachment; filename*=UTF-8''%e4%bd%a0.png", "你.png"),
        ("attachment; filename*0*=gb2312''%c4%e3; filename*1=b; filename*2=.png", "你b.png"),
        ('attachment; filename="=?utf-8?B?5L2g?=.png"', "你.png"),
        ("attachment; filename=a.png; filename*=utf-8''b.png", "b.png"),
        ("attachment; filename*=x'", "x'"),
        ("attachment; filename*99999=x", "part-1.png"),
        ("attachment; filename", "part-1.png"),
        ("attachment; filename=..", "part-1.png"),
        ("attachment; filename=C:\\x\\y.png", "C__x_y.png"),
    ],
)
def test_file_names_are_read_in_all_their_spellings(disposition: str, filename: str) -> None:
    raw = f"Content-Type: image/png\r\nContent-Disposition: {disposition}\r\n\r\nx".encode()
    assert read_mail(raw).attachments[0].filename == filename


@given(st.text(max_size=300))
def test_a_file_name_stays_in_its_folder(name: str) -> None:
    safe = safe_filename(name)
    assert not set(safe) & set('/\\\x00\r\n:*?"<>|\u202e')
    assert not safe.startswith(".")
    assert len(safe) <= 150


def test_a_long_file_name_keeps_its_extension() -> None:
    assert safe_filename("x" * 300 + ".pdf") == "x" * 146 + ".pdf"


def test_the_source_shows_control_characters() -> None:
    assert raw_text(b"a\x00b\r\nc\td\x1b", 100) == "a\u2400b\nc\td\u241b"
    assert raw_text("你好".encode(), 4) == "你"
    assert raw_text(b"caf\xe9", 100) == "café"


LINES = [
    b"Content-Type: multipart/mixed; boundary=b", b"Content-Type: multipart/digest; boundary=c",
    b"--b", b"--b--", b"--c", b"", b"", b"text", b"Content-Transfer-Encoding: base64", b"QUJD=",
    b"Content-Transfer-Encoding: quoted-printable", b"=C3=", b"Content-Type: text/html",
    b"Content-Type: text/plain; charset=utf-7", b"+2AA-", b"Content-Type: image/png; name*=x",
    b"Content-Disposition: inline; filename=\xff", b"Content-ID: <a@b>", b"\x00\xff",
]  # fmt: skip
hostile = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda lines, end: end.join(lines),
        st.lists(st.sampled_from(LINES), max_size=30),
        st.sampled_from([b"\r\n", b"\n", b"\r"]),
    ),
)


@given(hostile)
def test_any_bytes_can_be_looked_at(raw: bytes) -> None:
    view = read_mail(raw)
    assert isinstance(view, MailView)
    shown = view.headers_text + (view.text or "") + (view.html or "") + raw_text(raw, 1_000)
    shown += "".join(a.filename + a.content_id + a.content_type for a in view.attachments)
    shown.encode("utf-8")
    assert "\x00" not in shown
    for attachment in view.attachments:
        attachment_bytes(raw, attachment.index)
    inline_images(raw)
