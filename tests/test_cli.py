"""The commands: what they make, how they refuse, and with which exit code."""

import os
import stat
from pathlib import Path

import pytest

from tests.faults.rig import House
from tests.world import a_mail
from webapp import schema
from webapp.crypto import new_key


@pytest.fixture
def house(tmp_path: Path) -> House:
    made = House(tmp_path / "instance", "")
    made.command("migrate")
    made.commands_start_processes = True
    return made


def test_nothing_but_migrate_works_on_an_empty_database(tmp_path: Path) -> None:
    house = House(tmp_path / "instance", "", commands_start_processes=True)
    assert house.refused("site", "list") == (
        78,
        "postroom: The database is empty. Run: postroom migrate\n",
    )
    assert schema.head().encode() in house.command("migrate")
    assert b"already" in house.command("migrate")


def test_a_setting_with_a_wrong_name_is_a_sentence(house: House) -> None:
    house.environment_more = {"POSTROOM_PUBLIK_URL": "x"}
    code, words = house.refused("doctor")
    assert code == 78
    assert "Did you mean POSTROOM_PUBLIC_URL" in words


def test_sendmail_takes_what_programs_hand_it(house: House) -> None:
    house.made("site", "create", "Shop")
    raw = a_mail(to="a@example.org").replace(b"\r\n", b"\n")
    with_bcc = raw.replace(b"Subject:", b"Bcc: hidden@example.org\nCc: c@example.org\nSubject:", 1)
    house.command("sendmail", "-t", "-oi", stdin=with_bcc)
    house.command("sendmail", "-f", "me@example.com", "b@example.org", stdin=raw + b".\nnot this\n")
    newest, oldest = (
        house.made("message", "show", message["id"]) for message in house.made("message", "list")
    )
    assert [r["address"] for r in oldest["recipients"]] == [
        "a@example.org",
        "c@example.org",
        "hidden@example.org",
    ]
    assert [r["address"] for r in newest["recipients"]] == ["b@example.org"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        (["-t"], b"Subject: no recipients\n\nx\n", 64, "no recipients"),
        ([], a_mail(), 64, "no recipients"),
        (["root"], a_mail(), 67, "root is not a mail address"),
        (["a@example.org"], b"", 66, "no mail on standard input"),
        (["--site", "none", "a@example.org"], a_mail(), 67, "no site none"),
    ],
)
def test_sendmail_refuses_with_the_code_programs_know(
    house: House, arguments: list[str], stdin: bytes, code: int, words: str
) -> None:
    house.commands_start_processes = False
    house.made("site", "create", "Shop")
    found, said = house.refused("sendmail", *arguments, stdin=stdin)
    assert found == code
    assert words in said


def test_sendmail_asks_which_site_when_there_are_several(house: House) -> None:
    house.commands_start_processes = False
    house.made("site", "create", "Shop")
    house.made("site", "create", "Blog")
    code, said = house.refused("sendmail", "a@example.org", stdin=a_mail())
    assert code == 64
    assert "--site blog, shop" in said
    house.command("sendmail", "--site", "blog", "a@example.org", stdin=a_mail())


def test_the_key_is_rotated_and_the_old_one_kept_aside(house: House) -> None:
    slug = house.made("site", "create", "Shop")["slug"]
    house.made(
        "connection", "create", slug, "--mailer", "smtp", "--name", "Host", "--primary",
        "--set", "host=127.0.0.1", "--set", "username=me", "--set", "password=-",
        "--from-email", "a@example.com", stdin=b"geheim\n",
    )  # fmt: skip
    key = house.instance / "secret.key"
    old = key.read_text()
    assert b"1 secrets" in house.command("key", "rotate")
    lines = key.read_text().split()
    assert lines[1:] == old.split()
    (kept,) = house.instance.glob("secret.key.*.old")
    assert kept.read_text() == old
    assert stat.S_IMODE(os.stat(key).st_mode) == stat.S_IMODE(os.stat(kept).st_mode) == 0o600
    key.write_text(lines[0] + "\n")
    house.made("connection", "list")
    key.write_text(new_key() + "\n")
    code, words = house.refused("doctor")
    assert code == 78
    assert "does not fit this database" in words


def test_the_doctor_says_what_is_wrong(house: House) -> None:
    house.made("site", "create", "Shop")
    house.command("sendmail", "a@example.org", stdin=a_mail())
    code, _ = house.refused("doctor")
    assert code == 1
    said = house.last_output
    assert "BAD  worker: no delivery worker is at work" in said
    assert "BAD  routes: 1 mails wait" in said
    assert "ok   ledger: every mail is accounted for: 1 accepted" in said


def test_an_admin_is_made_without_a_browser(house: House) -> None:
    made = house.made("admin", "create", "Mara@Example.org", "--password-stdin", stdin=b"x" * 20)
    assert made == {"email": "mara@example.org", "is_admin": True}
    code, words = house.refused(
        "admin", "create", "b@c.example", "--password-stdin", stdin=b"short"
    )
    assert code == 65
    assert "short" not in words.lower().replace("too short", "").replace("shorter", "")
