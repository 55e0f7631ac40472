"""`postroom message`, as programs and people call it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.factories import a_message, a_site
from webapp.delivery.models import State
from webapp.installation import Installation
from webapp.maillog import commands, service

Call = Callable[..., Result]


@pytest.fixture
def call(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the command against the installation of the test."""
    monkeypatch.setenv("POSTROOM_INSTANCE", str(installation.settings.instance))
    monkeypatch.setenv("POSTROOM_DATABASE_URL", installation.settings.database)
    return lambda *words: CliRunner().invoke(commands.message, words, catch_exceptions=False)


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_list_as_json_has_every_mail(
    installation: Installation, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "EXPORT_CHUNK", 2)
    monkeypatch.setattr(commands, "AT_A_TIME", 3)
    with installation.db.write() as session:
        site = a_site(session, slug="nord")
        for number in range(7):
            a_message(
                session,
                site,
                state=State.SENT,
                maybe_twice=number == 3,
                message_id=f"<{number}@site.example>",
            )
    found = parsed(call("list", "--json"))
    assert [each["message_id"] for each in found] == [
        f"<{n}@site.example>" for n in range(6, -1, -1)
    ]
    assert [each["maybe_twice"] for each in found].index(True) == 3
    assert found[0]["state"] == "sent"
    assert found[0]["site"] == "nord"
    assert found[0]["recipients"] == [
        {"address": "kunde@mail.example", "state": "sent", "code": "", "words": ""}
    ]


def test_an_empty_list_is_json_too(call: Call) -> None:
    assert parsed(call("list", "--json")) == []


def test_the_list_keeps_to_site_state_and_limit(installation: Installation, call: Call) -> None:
    with installation.db.write() as session:
        nord, sued = a_site(session, slug="nord"), a_site(session, slug="sued")
        for site in (nord, sued):
            for state in (State.SENT, State.FAILED, State.FAILED):
                a_message(session, site, state=state)
    found = parsed(call("list", "--json", "--site", "nord", "--state", "failed"))
    assert [(each["site"], each["state"]) for each in found] == [("nord", "failed")] * 2
    assert len(parsed(call("list", "--json", "--limit", "4"))) == 4


def test_the_list_for_people_is_a_line_a_mail_without_tricks(
    installation: Installation, call: Call
) -> None:
    with installation.db.write() as session:
        subject = "Red \x1b[31m\nalert"
        a_message(session, a_site(session), subject=subject, raw=b"x", maybe_twice=True)
    (line,) = call("list").stdout.splitlines()
    assert "queued" in line
    assert line.endswith("Red [31m alert (maybe twice)")


def test_one_mail_is_shown_by_its_id_as_written_on_the_page(
    installation: Installation, call: Call
) -> None:
    with installation.db.write() as session:
        mail = a_message(session, a_site(session, slug="nord"), subject="Rechnung 7")
    typed = f"{mail.queue_id[:4]}-{mail.queue_id[4:]}".lower()
    found = parsed(call("show", typed, "--json"))
    assert found["id"] == mail.queue_id
    assert found["state"] == "queued"
    assert found["maybe_twice"] is False
    assert found["waits_for"] == "no-connection"
    assert found["attempts"] == []
    text = call("show", typed).stdout
    assert "Rechnung 7" in text
    assert "Waits: no-connection" in text


def test_what_is_not_there_is_refused_with_a_sentence(call: Call) -> None:
    for words in (("show", "ABC"), ("list", "--site", "nowhere")):
        result = call(*words)
        assert result.exit_code == 65
        assert result.stderr.startswith("postroom: there is no ")
