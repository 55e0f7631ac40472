import re

import pytest

from webapp.explain import google
from webapp.explain.model import (
    FALLBACKS,
    WHO_LABELS,
    Action,
    Explanation,
    Who,
    values_for,
)
from webapp.explain.texts import EXPLANATIONS
from webapp.microsoft.codes import CODES, Act

PLACEHOLDERS = {
    "account",
    "from_email",
    "tenant",
    "app_name",
    "client_id",
    "host",
    "port",
    "limit",
    "until",
}

every_explanation = pytest.mark.parametrize(
    "explanation", EXPLANATIONS.values(), ids=list(EXPLANATIONS)
)


@every_explanation
def test_an_explanation_says_what_happened_and_what_to_do(explanation: Explanation) -> None:
    assert explanation.title
    assert not explanation.title.endswith(".")
    assert explanation.cause.endswith(".")
    assert explanation.steps
    assert all(step.text.endswith(".") for step in explanation.steps)


@every_explanation
def test_an_explanation_names_all_who_could_put_it_right(explanation: Explanation) -> None:
    named = [part.who for part in explanation.who]
    assert len(set(named)) == len(named)
    assert named[0] is Who.YOU
    circles = (
        {Who.ADMIN, Who.MICROSOFT},
        {Who.WORKSPACE_ADMIN, Who.GOOGLE},
        {Who.OPERATOR, Who.PROVIDER},
    )
    assert any(circle <= set(named) for circle in circles)
    assert any(part.on for part in explanation.who)
    assert all(part.sentence.endswith(".") for part in explanation.who)
    assert all(WHO_LABELS[who] for who in named)


@every_explanation
def test_placeholders_are_among_those_that_pages_fill(explanation: Explanation) -> None:
    for sentence in explanation.sentences:
        assert set(re.findall(r"%\((\w+)\)", sentence)) <= PLACEHOLDERS
        assert "%(" not in sentence % values_for({})
        # General words in its place would make the sentence begin with a small letter.
        assert not sentence.startswith("%(")


@every_explanation
def test_nobody_is_blamed_or_begged(explanation: Explanation) -> None:
    words = " ".join(explanation.sentences).casefold()
    assert not re.search(r"\b(please|oops|sorry|your fault|you failed|you forgot)\b", words)


@every_explanation
def test_a_message_to_copy_exists_where_a_step_offers_it(explanation: Explanation) -> None:
    offered = {Action.COPY_ADMIN_MESSAGE, Action.ASK_ADMIN} & {s.action for s in explanation.steps}
    assert bool(offered) <= bool(explanation.admin_message)


def test_every_code_of_googles_has_its_explanation() -> None:
    tables = (google.BY_CODE, google.BY_STATUS, google.BY_CAUSE)
    assert {key for table in tables for key in table.values()} <= set(EXPLANATIONS)  # type: ignore[attr-defined]


def test_every_code_of_microsofts_has_its_explanation() -> None:
    assert {code.about for code in CODES.values()} <= set(EXPLANATIONS)


def test_what_goes_on_by_itself_says_so() -> None:
    # An unclear answer is the one thing that nobody needs to act on and that is not just retried.
    by_itself = {code.about for code in CODES.values() if code.who is Act.NOBODY}
    retried = {key for key in by_itself if EXPLANATIONS[key].retry}
    assert by_itself - retried == {"answer-unclear"}


def test_a_password_a_second_factor_and_permissions_are_told_apart() -> None:
    keys = ("password-changed", "mfa-needed", "permissions-changed", "sessions-revoked")
    assert len({EXPLANATIONS[key].title for key in keys}) == len(keys)
    assert len({EXPLANATIONS[key].cause for key in keys}) == len(keys)


def test_every_key_is_its_own() -> None:
    assert all(key == explanation.key for key, explanation in EXPLANATIONS.items())


def test_unknown_values_are_put_into_general_words() -> None:
    title = EXPLANATIONS["send-as-denied"].title
    known = {"account": "orders@lindenhof.example", "from_email": None}
    assert title % values_for(known) == (
        "Microsoft does not let orders@lindenhof.example send as the From Email"
    )


def test_general_words_are_translated_and_known_values_are_not() -> None:
    values = values_for({"account": "a@b.example"}, str.upper)
    assert values["account"] == "a@b.example"
    assert values["host"] == "THE MAIL SERVER"
    assert set(values) == set(FALLBACKS) == PLACEHOLDERS
