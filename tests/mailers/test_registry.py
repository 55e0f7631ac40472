"""What holds for every mailer; a new one is tested here as soon as its file exists."""

import re
from dataclasses import MISSING, fields
from enum import Enum

import pytest

from tests.rig.ports import free_port
from webapp.fields import FieldQuestion, from_json, questions, secrets_of, settings_of
from webapp.mailers import registry
from webapp.mailers.base import Conversation, Envelope, Mailer, Surroundings
from webapp.mailers.errors import (
    DeliveryError,
    FailureKind,
    Misconfigured,
    NeedsReauthorisation,
    PermanentError,
    TransientError,
    UncertainError,
    scrub,
)

SECRET = "n0b0dy-may-see-this"
SPECIAL = {"host": "127.0.0.1", "domain": "example.com", "username": "someone"}

every_mailer = pytest.mark.parametrize("kind", registry().values(), ids=registry().keys())


def an_answer(asked: FieldQuestion) -> object:
    if asked.question.secret:
        return SECRET
    if asked.name == "port":
        return free_port()
    if asked.question.choices:
        return asked.question.choices[0][0]
    return {str: SPECIAL.get(asked.name, "something"), int: 5, bool: True}[asked.type]


def a_mailer(kind: type[Mailer]) -> Mailer:
    answers = {asked.name: an_answer(asked) for asked in questions(kind)}
    return from_json(kind, answers, answers)


def test_the_registry_knows_other_smtp():
    assert registry()["smtp"].label == "Other SMTP"


@every_mailer
def test_a_mailer_introduces_itself(kind):
    assert re.fullmatch(r"[a-z][a-z0-9]*", kind.slug)
    assert kind.label
    assert kind.description.endswith(".")


@every_mailer
def test_every_setting_has_a_label_and_can_be_asked_for(kind):
    asked = {each.name: each for each in questions(kind)}
    filled_in = {"grant_id"} if kind.needs_link else set()
    assert set(asked) | filled_in == {each.name for each in fields(kind)}
    for each in asked.values():
        assert each.question.label
        assert each.type in (str, int, bool) or issubclass(each.type, Enum)


@every_mailer
def test_what_sounds_like_a_secret_is_marked_as_one(kind):
    for asked in questions(kind):
        if re.search(r"password|secret|token|key(?!_id)", asked.name):
            assert asked.question.secret, asked.name


@every_mailer
def test_nothing_secret_shows_in_a_mailer_or_its_lane(kind):
    mailer = a_mailer(kind)
    assert SECRET not in repr(mailer)
    assert SECRET not in mailer.lane_key()
    assert SECRET not in str(settings_of(mailer))


@every_mailer
def test_settings_survive_json(kind):
    mailer = a_mailer(kind)
    assert from_json(kind, settings_of(mailer), secrets_of(mailer)) == mailer


@every_mailer
def test_defaults_pass_their_own_checks(kind):
    required = {
        asked.name: an_answer(asked)
        for asked in questions(kind)
        if asked.required or asked.name == "username"
    }
    made = from_json(kind, required, required)
    for declared in fields(kind):
        if declared.default is not MISSING and declared.name not in required:
            assert getattr(made, declared.name) == declared.default


@every_mailer
def test_the_lane_is_the_same_for_the_same_login(kind):
    mailer = a_mailer(kind)
    if kind.needs_link:
        assert mailer.lane_key() == ""
        return
    assert mailer.lane_key().startswith(f"{kind.slug}:")
    assert from_json(kind, settings_of(mailer), secrets_of(mailer)).lane_key() == mailer.lane_key()


@every_mailer
def test_a_network_that_is_not_there_is_a_delivery_error_without_secrets(kind):
    mailer = a_mailer(kind)
    surroundings = Surroundings(hostname="postroom.test")
    envelope = Envelope(mail_from="a@example.com", recipients=("b@example.com",))
    with mailer.open(surroundings) as conversation:
        assert isinstance(conversation, Conversation)
        with pytest.raises(DeliveryError) as caught:
            conversation.send(envelope, b"Subject: x\r\n\r\nx\r\n")
    assert caught.value.words
    assert SECRET not in f"{caught.value} {caught.value!r} {vars(caught.value)}"


def test_an_envelope_has_a_recipient():
    with pytest.raises(ValueError, match="recipient"):
        Envelope(mail_from="a@example.com", recipients=())


def test_each_kind_of_failure_has_its_error():
    kinds = {
        error.kind
        for error in (
            TransientError,
            UncertainError,
            PermanentError,
            NeedsReauthorisation,
            Misconfigured,
        )
    }
    assert kinds == set(FailureKind)


def test_scrub_covers_every_secret():
    text = scrub("hunter22 and hunter22, not cat", ["hunter22", "cat", ""])
    assert text == "*** and ***, not cat"
