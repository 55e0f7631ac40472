"""Which mail meets which conditions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.routing.conditions import (
    MAX_CONDITIONS,
    MAX_GROUPS,
    Condition,
    Groups,
    MailFacts,
    Match,
    Operator,
    Property,
    check_groups,
    facts_for_rules,
    meets,
    read_groups,
    stored_groups,
)

RAW = (
    b"From: Shop <orders@shop.example>\r\n"
    b"To: Ann <ann@a.example>, bob@b.example\r\n"
    b"Cc: carol@c.example\r\n"
    b"Bcc: dan@d.example\r\n"
    b"Reply-To: help@shop.example\r\n"
    b"Subject: =?utf-8?q?Your_inv=C3=B6ice?= 42\r\n"
    b"X-Campaign: Spring\r\n"
    b"Content-Type: text/html; charset=utf-8\r\n\r\n"
    b"<p>Thank you</p>\r\n"
)
ENVELOPE = ["ann@a.example", "bob@b.example", "carol@c.example", "DAN@d.example", "eve@e.example"]
FACTS = facts_for_rules(RAW, ENVELOPE, "Checkout")


def one(prop: str, operator: str, value: str) -> Groups:
    condition = Condition(property=Property(prop), operator=Operator(operator), value=value)
    return ((condition,),)


def test_the_facts_are_those_of_the_mail_as_it_was_submitted() -> None:
    assert FACTS.subject == "Your invöice 42"
    assert FACTS.message == "<p>Thank you</p>\n"
    assert (FACTS.from_email, FACTS.from_name) == ("orders@shop.example", "Shop")
    assert FACTS.to == ("ann@a.example", "bob@b.example")
    assert FACTS.cc == ("carol@c.example",)
    assert FACTS.reply_to == ("help@shop.example",)
    assert FACTS.initiator == "Checkout"
    assert ("x-campaign", "Spring") in FACTS.headers
    assert "subject" not in dict(FACTS.headers)


def test_bcc_is_the_header_and_whoever_no_header_names() -> None:
    assert FACTS.bcc == ("dan@d.example", "eve@e.example")


def test_the_header_tells_the_initiator_before_the_credential_does() -> None:
    raw = b"X-Postroom-Initiator: Contact form\r\n\r\nx"
    assert facts_for_rules(raw, [], "Checkout").initiator == "Contact form"


@pytest.mark.parametrize("raw", [b"", b"\x00\xff\r\n\r\n", b"To: <>\r\nFrom: \r\n"])
def test_any_bytes_have_facts(raw: bytes) -> None:
    facts = facts_for_rules(raw, [], "")
    assert facts.from_email == ""
    assert facts.to == ()


def test_a_huge_mail_is_looked_at_from_its_beginning() -> None:
    facts = facts_for_rules(b"\r\n" + b"long line " * 100_000, [], "")
    assert len(facts.message) == 200_000


@pytest.mark.parametrize(
    ("prop", "operator", "value"),
    [
        ("subject", "contains", "INVÖICE"),
        ("subject", "does-not-contain", "refund"),
        ("subject", "is", "  your invöice 42 "),
        ("subject", "is-not", "your"),
        ("subject", "starts-with", "your inv"),
        ("subject", "ends-with", "42"),
        ("message", "contains", "thank you"),
        ("from-email", "ends-with", "@shop.example"),
        ("from-name", "is", "shop"),
        ("to", "is", "bob@b.example"),
        ("cc", "contains", "carol"),
        ("bcc", "is", "eve@e.example"),
        ("reply-to", "starts-with", "help@"),
        ("header-name", "is", "X-Campaign"),
        ("header-value", "is", "spring"),
        ("initiator", "is", "checkout"),
        ("initiator", "is-not", "contact form"),
    ],
)
def test_each_property_and_operator_can_be_met(prop: str, operator: str, value: str) -> None:
    assert meets(one(prop, operator, value), FACTS)


@pytest.mark.parametrize(
    ("prop", "operator", "value"),
    [
        ("subject", "contains", "refund"),
        ("subject", "does-not-contain", "42"),
        ("subject", "is", "your invöice"),
        ("subject", "is-not", "your invöice 42"),
        ("subject", "starts-with", "42"),
        ("subject", "ends-with", "your"),
        ("to", "does-not-contain", "ann"),
        ("to", "is-not", "bob@b.example"),
        ("cc", "is", "ann@a.example"),
    ],
)
def test_each_operator_can_fail(prop: str, operator: str, value: str) -> None:
    assert meets(one(prop, operator, value), FACTS) is None


def test_a_property_without_values_meets_negatives_only() -> None:
    nobody = facts_for_rules(b"\r\nx", [], "")
    assert meets(one("cc", "contains", "a"), nobody) is None
    assert meets(one("cc", "does-not-contain", "a"), nobody) == Match(group=0, values=("",))


def test_all_of_a_group_and_any_of_the_groups() -> None:
    wrong = one("subject", "is", "no")[0]
    right = one("to", "is", "bob@b.example")[0]
    assert meets((wrong + right,), FACTS) is None
    assert meets((wrong, right + right), FACTS) == Match(
        group=1, values=("bob@b.example", "bob@b.example")
    )
    assert meets((), FACTS) is None
    assert meets(((),), FACTS) is None


def test_a_match_tells_the_piece_of_a_long_value_that_met_it() -> None:
    facts = facts_for_rules(b"\r\n" + b"x" * 5000 + b" needle " + b"y" * 5000, [], "")
    match = meets(one("message", "contains", "needle"), facts)
    assert match
    assert "needle" in match.values[0]
    assert len(match.values[0]) <= 200


_TEXTS = st.text(alphabet="aAbB ß", max_size=3)
_OPPOSITES = [("contains", "does-not-contain"), ("is", "is-not")]


@given(values=st.lists(_TEXTS, max_size=4), sought=_TEXTS, operators=st.sampled_from(_OPPOSITES))
def test_a_negative_is_met_exactly_where_no_value_meets_its_opposite(
    values: list[str], sought: str, operators: tuple[str, str]
) -> None:
    affirmative, negative = operators
    facts = MailFacts(
        subject="",
        message="",
        from_email="",
        from_name="",
        to=tuple(values),
        cc=(),
        bcc=(),
        reply_to=(),
        headers=(),
        initiator="",
    )
    each = [
        meets(one("to", affirmative, sought), facts_of_one)
        for value in values
        for facts_of_one in [MailFacts(**(vars(facts) | {"to": (value,)}))]
    ]
    assert bool(meets(one("to", affirmative, sought), facts)) == any(each)
    assert bool(meets(one("to", negative, sought), facts)) == (not any(each))


def test_what_is_stored_reads_back() -> None:
    groups = one("subject", "contains", "x") + one("to", "is", "a@b.example")
    assert read_groups(stored_groups(groups)) == groups


def test_conditions_without_a_value_do_not_count_and_unknown_ones_take_their_group_along() -> None:
    good = {"property": "subject", "operator": "is", "value": "x"}
    empty = good | {"value": " "}
    unknown = good | {"operator": "resembles"}
    assert read_groups([[good, empty], [good, unknown], [empty], [], "?", [5, good]]) == (
        one("subject", "is", "x") + one("subject", "is", "x")
    )
    assert read_groups(None) == ()


def test_what_is_wrong_is_said_at_the_field() -> None:
    good = {"property": "subject", "operator": "is", "value": "x"}
    assert check_groups([[good], list(one("to", "is", "a")[0])]) == {}
    wrong = check_groups(
        [
            [good, good | {"value": ""}],
            [good | {"property": "weather", "operator": "resembles", "value": "x" * 999}],
            [good | {"property": "initiator", "operator": "contains"}],
        ]
    )
    assert set(wrong) == {
        "g0-c1-value",
        "g1-c0-property",
        "g1-c0-operator",
        "g1-c0-value",
        "g2-c0-operator",
    }
    assert check_groups([[good] * (MAX_CONDITIONS + 1)]) != {}
    assert check_groups([[good]] * (MAX_GROUPS + 1)) != {}
