"""Headers as bytes: nothing raises, nothing is lost, nothing can be injected."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.mime.headers import (
    Address,
    Field,
    Headers,
    charset_to_text,
    clean,
    clean_email,
    decode,
    encode_words,
    new_field,
    parse,
    parse_addresses,
    render_address,
    render_addresses,
    serialise,
    split,
)

PIECES = [
    b"To: a@b", b"Subject: =?utf-8?B?5L2g?=", b"From me", b"\r\n", b"\n", b"\r", b"\r\r\n", b" ",
    b"\t", b":", b"\x00", b"\xff", b"=?", b"?=", b"<", b">", b'"', b"(", b")", b"\\", b",", b";",
    b"[", b"]", b"@", b"x", b"=?gb2312?Q?=C4=E3?=", b"=?x?b?\xff?=",
]  # fmt: skip
hostile = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES)).map(b"".join))
NAMES = st.text(max_size=120).map(lambda t: parse_addresses(t + "<a@b>")[0].name)
LOCALS = st.from_regex(r"[a-zA-Z0-9+=._'-]{1,20}|[a-zé你]{1,10}", fullmatch=True).filter(
    lambda t: ".." not in t and t[0] != "." and t[-1] != "."
)
EMAILS = st.builds("{}@{}".format, LOCALS, st.sampled_from(["b.example", "例子.测试", "x"]))


@given(hostile)
def test_what_is_parsed_serialises_to_the_same_bytes(raw: bytes) -> None:
    assert serialise(*parse(raw)) == raw


@given(hostile)
def test_reading_headers_never_raises(raw: bytes) -> None:
    for field in split(raw).headers.fields:
        text = decode(field.value)
        assert "\x00" not in text
        assert "\n" not in text
        text.encode("utf-8")
        parse_addresses(field.value)
    for address in parse_addresses(raw):
        "".join(address).encode("utf-8")
        assert "\r" not in "".join(address)
        assert "\n" not in "".join(address)


CHARSETS = [
    "utf-7", "utf-16", "gb2312", "hex", "idna", "rot13", "undefined", "unicode_escape", "punycode",
    "raw_unicode_escape", "zip", "iso-2022-jp", "", "x", "../etc", "a\x00b", "big5", "mbcs",
    "ks_c_5601-1987", "cp1252", "utf_16_be", "aliases",
]  # fmt: skip


@given(st.binary(max_size=40), st.sampled_from(CHARSETS))
def test_any_charset_gives_text(data: bytes, charset: str) -> None:
    assert isinstance(charset_to_text(data, charset), str)


def test_a_codec_that_is_no_charset_is_not_used() -> None:
    codecs.lookup("rot13")
    assert charset_to_text(b"abc", "rot13") == "abc"
    assert charset_to_text(b"\\u4f60", "unicode_escape") == "\\u4f60"


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r", b"\r\r\n"])
def test_every_kind_of_line_end_ends_a_header(end: bytes) -> None:
    raw = end.join([b"A: 1", b"B: 2", b"\tmore", b"", b"body"])
    headers, _, body = parse(raw)
    assert [f.name for f in headers.fields] == [b"a", b"b"]
    assert decode(headers.get(b"B") or b"") == "2 more"
    assert body == b"body"


@pytest.mark.parametrize(
    ("raw", "names", "body"),
    [
        (b"", [], b""),
        (b"Hello world", [], b"Hello world"),
        (b"\r\nHello", [], b"Hello"),
        (b" Subject: x\r\n\r\nHello", [], b" Subject: x\r\n\r\nHello"),
        (b"Subject: x", [b"subject"], b""),
        (b"Subject: x\r\nHello world\r\n", [b"subject"], b"Hello world\r\n"),
        (b"From a@b Fri\nSubject : x\n\nHello", [b"", b"subject"], b"Hello"),
    ],
)
def test_headers_end_where_they_stop_being_headers(
    raw: bytes, names: list[bytes], body: bytes
) -> None:
    headers, _, found = parse(raw)
    assert [f.name for f in headers.fields] == names
    assert found == body


def test_fields_are_looked_up_and_changed_by_name() -> None:
    headers = parse(b"A: 1\r\nb: 2\r\nB: 3\r\nC: \r\n\r\n")[0]
    assert headers.get(b"B") == b" 2"
    assert headers.get_all(b"b") == [b" 2", b" 3"]
    assert headers.get(b"x") is None
    assert not headers.has(b"c")
    headers.replace(b"B", b"9")
    headers.prepend(b"Z", b"0")
    headers.replace(b"N", b"1")
    assert headers.remove(b"c", b"x") == 1
    assert headers.serialise() == b"Z: 0\r\nA: 1\r\nB: 9\r\nN: 1\r\n"


@given(hostile)
def test_a_value_can_never_start_another_field(value: bytes) -> None:
    block = new_field(b"X", value).raw + b"Last: 1\r\n"
    assert [f.name for f in split(block).headers.fields] == [b"x", b"last"]


def test_a_wrong_field_name_is_refused() -> None:
    with pytest.raises(ValueError, match="field name"):
        new_field(b"X\r\nBcc", b"a@b")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b" plain", "plain"),
        (b" a\r\n\tb", "a b"),
        ("你好".encode(), "你好"),
        (b"caf\xe9", "café"),
        (b"=?gb2312?B?xOO6ww==?= 1", "你好 1"),
        (b"=?utf-8?B?5L0=?=\r\n =?utf-8?B?oA==?=", "你"),
        (b"x =?utf-8?Q?a?= =?latin1?Q?b?= y", "x ab y"),
        (b"=?utf-8?Q?Hello world=21?=", "Hello world!"),
        (b"=?utf-8?Q?How are you??=", "How are you?"),
        (b"=?x-none?Q?=E9?=", "é"),
        (b"=?utf-8?B?5L2g5?=", "你"),
        (b"=?broken", "=?broken"),
        (b"a\x00b\x07c", "ab c"),
        (b"=?utf-8?Q?a=0D=0ABcc=3A_x?=", "a Bcc: x"),
    ],
)
def test_values_are_decoded(value: bytes, text: str) -> None:
    assert decode(value) == text


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ("a@b.c", [("", "a@b.c")]),
        ("Li Wen <li@x.cn>", [("Li Wen", "li@x.cn")]),
        ('"Doe, John" <j@d>, b@c', [("Doe, John", "j@d"), ("", "b@c")]),
        ("undisclosed-recipients:;", []),
        ('Team: a@b, "x" <c@d>;, e@f', [("", "a@b"), ("x", "c@d"), ("", "e@f")]),
        ("a@b (John (x) Doe)", [("John (x) Doe", "a@b")]),
        ("=?utf-8?B?5L2g?= =?utf-8?Q?_x?= <a@b>", [("你 x", "a@b")]),
        ("=?utf-8?Q?Doe,_John?= <j@d>", [("Doe, John", "j@d")]),
        ('"john doe"@x.org', [("", '"john doe"@x.org')]),
        ('n <"a b"@c>', [("n", '"a b"@c')]),
        ("root", [("", "root")]),
        ('"WordPress"', [("WordPress", "")]),
        ("John Doe j@d.org", [("John Doe", "j@d.org")]),
        ("<@a,@b:c@d>", [("", "c@d")]),
        ("x <a@b", [("x", "a@b")]),
        ("a @ b", [("", "a@b")]),
        ("[Site] Foo <a@b>", [("[Site] Foo", "a@b")]),
        ("u@[IPv6:::1]", [("", "u@[IPv6:::1]")]),
        ('"unclosed <a@b>', [('"unclosed', "a@b")]),
        ("用户@例子.测试", [("", "用户@例子.测试")]),
        ("a@b;c@d", [("", "a@b"), ("", "c@d")]),
        (";;,,", []),
    ],
)
def test_address_lists_are_read(value: str, addresses: list[tuple[str, str]]) -> None:
    assert [tuple(a) for a in parse_addresses(value.encode())] == addresses


@given(NAMES, EMAILS)
def test_a_rendered_address_reads_back_the_same(name: str, email: str) -> None:
    rendered = render_address(Address(name, email))
    assert parse_addresses(rendered) == [Address(name, email)]
    assert all(len(line) <= 78 for line in rendered.split(b"\r\n"))


def test_a_name_that_looks_encoded_reads_back_as_it_looks() -> None:
    address = Address("=?utf-8?q?x?=", "a@b")
    assert parse_addresses(render_address(address)) == [address]


@given(st.lists(st.tuples(NAMES, EMAILS), max_size=6))
def test_a_rendered_list_reads_back_the_same(pairs: list[tuple[str, str]]) -> None:
    addresses = [Address(*pair) for pair in pairs]
    field = new_field(b"To", render_addresses(addresses))
    assert parse_addresses(field.value) == addresses


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_rendered_address_stays_in_its_field(name: str, email: str) -> None:
    block = b"To: " + render_address(Address(name, email)) + b"\r\nLast: 1\r\n"
    assert [f.name for f in split(block).headers.fields] == [b"to", b"last"]


@given(st.text(min_size=1, max_size=200))
def test_encoded_words_decode_to_their_text(text: str) -> None:
    words = encode_words(text)
    assert decode(words) == clean(text).strip()
    assert all(len(line.strip()) <= 75 for line in words.split(b"\r\n"))


def test_only_a_quoted_local_part_keeps_its_blanks() -> None:
    assert clean_email(" a b@c\r\n") == "ab@c"
    assert clean_email('"a b"@c d') == '"a b"@cd'


@pytest.mark.parametrize(
    "value",
    [b'"\\' * 50_000, b"(" * 100_000, b"<" * 100_000, b'<"' * 50_000, b" " * 200_000,
     b"=?" * 50_000, b"=?a?q?" * 30_000, b"[" * 100_000, b"a@b," * 50_000, b"\\" * 100_000,
     b'<"\\"' * 40_000, b"a b" * 50_000 + b"@", b":" * 100_000],
)  # fmt: skip
def test_long_hostile_lists_are_read_in_time(value: bytes) -> None:
    # Quadratic reading would hang here rather than fail.
    parse_addresses(value)
    decode(value)
    split(b"To: " + value + b"\r\n\r\n")


def test_the_number_of_fields_is_bounded() -> None:
    raw = b"A: 1\r\n" * 20_000
    headers, _, body = parse(raw)
    assert len(headers.fields) == 10_000
    assert serialise(headers, b"", body) == raw


def test_headers_start_empty() -> None:
    headers = Headers()
    headers.append(b"A", b"1")
    assert headers.fields == [Field(b"a", b"A: 1\r\n")]
