"""`postroom site` and `postroom credential`."""

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from tests.factories import a_message, an_installation
from webapp.cli import postroom
from webapp.delivery.models import Message, State
from webapp.installation import Installation
from webapp.sites.commands import site as site_commands
from webapp.sites.models import AfterUnclear, Credential, Mode, Site
from webapp.sites.service import digest
from webapp.sites.settings import CHECKS


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """An installation that commands open too."""
    url = f"sqlite:///{tmp_path / 'postroom.db'}"
    made = an_installation(url, tmp_path)
    monkeypatch.setenv("POSTROOM_INSTANCE", str(made.settings.instance))
    monkeypatch.setenv("POSTROOM_DATABASE_URL", url)
    return made


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(postroom, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def made(*arguments: str) -> dict[str, str]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_a_site_is_made_and_listed(installation: Installation) -> None:
    shop = made("site", "create", "Lindenhof Shop", "--url", "https://l.example")
    assert shop["slug"] == "lindenhof-shop"
    [listed] = json.loads(run("site", "list", "--json").stdout)
    assert {"slug", *CHECKS} == listed.keys()
    assert (listed["url"], listed["mode"], listed["log_days"]) == ("https://l.example", "live", 180)
    assert run("site", "list").stdout.startswith("lindenhof-shop\tlive\t")


def test_a_site_that_cannot_be_made_says_why(installation: Installation) -> None:
    result = run("site", "create", "Shop", "--url", "nowhere", "--admin-email", "x")
    assert result.exit_code == 65
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "postroom: url: Enter the whole address, such as https://www.example.org.",
        "postroom: admin-email: Enter an email address, such as name@example.org.",
    ]


def test_do_not_send_ends_what_waits_and_live_undoes_the_mode(installation: Installation) -> None:
    made("site", "create", "Shop")
    with installation.db.write() as session:
        site = session.scalars(sa.select(Site)).one()
        a_message(session, site, state=State.QUEUED)
    result = run("site", "set", "shop", "--mode", "do-not-send")
    assert "Waiting mails that will not be sent: 1." in result.stdout
    with installation.db.read() as session:
        assert session.scalars(sa.select(Message)).one().state == State.BLOCKED
        assert session.scalars(sa.select(Site)).one().mode == Mode.DO_NOT_SEND
    assert made("site", "set", "shop", "--mode", "live")["mode"] == "live"


def test_a_site_says_what_becomes_of_a_mail_whose_answer_was_lost(
    installation: Installation,
) -> None:
    made("site", "create", "Shop")
    assert (
        made("site", "set", "shop", "--after-unclear", "never-twice")["after_unclear"]
        == "never-twice"
    )
    with installation.db.read() as session:
        assert session.scalars(sa.select(Site)).one().after_unclear == AfterUnclear.NEVER_TWICE
    assert run("site", "set", "shop", "--after-unclear", "perhaps").exit_code == 2


def test_a_change_needs_to_be_named_and_to_be_possible(installation: Installation) -> None:
    made("site", "create", "Shop")
    assert run("site", "set", "shop").exit_code == 64
    assert run("site", "set", "shop", "--mode", "off").exit_code == 2
    assert run("site", "set", "shop", "--mode", "redirect-to").exit_code == 65
    refused = run("site", "set", "shop", "--per-day", "0", "--log-days", "0")
    assert refused.exit_code == 65
    assert [line.split(":")[1].strip() for line in refused.stderr.splitlines()] == [
        "per-day",
        "log-days",
    ]
    assert run("site", "set", "other", "--mode", "live").exit_code == 67
    assert run("site", "set", "shop", "--name", " ").exit_code == 65


def test_the_command_sets_what_the_pages_set(installation: Installation) -> None:
    made("site", "create", "Shop")
    names = set(inspect_options("set")) - {"json", "slug"}
    assert names == {name.replace("_", "-") for name in CHECKS}
    given = {"--mode": "hold", "--per-hour": "500", "--body-days": "0", "--log-days": "forever"}
    found = made("site", "set", "shop", *[word for pair in given.items() for word in pair])
    assert (found["mode"], found["per_hour"], found["body_days"], found["log_days"]) == (
        "hold",
        500,
        0,
        None,
    )
    assert made("site", "set", "shop", "--per-hour", "none")["per_hour"] is None


def inspect_options(command: str) -> list[str]:
    return [option.opts[-1].removeprefix("--") for option in site_commands.commands[command].params]


def test_a_site_is_exported_and_deleted_by_its_name(installation: Installation) -> None:
    made("site", "create", "Shop")
    with installation.db.write() as session:
        a_message(session, session.scalars(sa.select(Site)).one(), state=State.QUEUED)
    lines = [json.loads(line) for line in run("site", "export", "shop").stdout.splitlines()]
    assert [line["kind"] for line in lines] == ["site", "mail"]
    assert run("site", "delete", "shop", "--name", "Other").exit_code == 65
    said = run("site", "delete", "shop", "--name", "Shop").stdout
    assert said == "Shop is deleted. Waiting mails that will not be sent: 1.\n"
    assert run("site", "list").stdout == ""
    assert run("site", "export", "shop").exit_code == 67


def test_a_login_is_made_with_its_secret_printed_once(installation: Installation) -> None:
    made("site", "create", "Shop")
    login = made("credential", "create", "shop", "--kind", "smtp", "--sender", "*@shop.example")
    with installation.db.read() as session:
        stored = session.scalars(sa.select(Credential)).one()
    assert stored.username == login["username"]
    assert stored.digest == digest(login["password"])
    assert stored.senders == ["*@shop.example"]
    assert stored.created_by == "command line"
    plain = run("credential", "create", "shop", "--kind", "smtp").stdout.splitlines()
    assert [line.split(": ")[0] for line in plain] == ["username", "password"]


def test_a_key_is_made_whole(installation: Installation) -> None:
    made("site", "create", "Shop")
    key = made("credential", "create", "shop", "--kind", "api")
    public, secret = key["key"].split(".")
    with installation.db.read() as session:
        stored = session.scalars(sa.select(Credential)).one()
    assert (stored.username, stored.digest) == (public, digest(secret))
    assert "password" not in key


def test_a_credential_is_revoked_by_its_name(installation: Installation) -> None:
    made("site", "create", "Shop")
    login = made("credential", "create", "shop", "--kind", "smtp")
    assert run("credential", "revoke", login["username"]).exit_code == 0
    with installation.db.read() as session:
        assert session.scalars(sa.select(Credential)).one().revoked_at is not None
    assert run("credential", "revoke", "nobody").exit_code == 67


def test_what_cannot_be_a_credential_is_refused(installation: Installation) -> None:
    made("site", "create", "Shop")
    assert run("credential", "create", "other", "--kind", "smtp").exit_code == 67
    wrong = run("credential", "create", "shop", "--kind", "smtp", "--sender", "shop.example")
    assert wrong.exit_code == 65
    assert "senders: Write each sender as" in wrong.stderr
