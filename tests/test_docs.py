"""What the documentation lists is what the program has, and what it links to is there."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from webapp import config
from webapp.cli import postroom
from webapp.connections.commands import OF_AN_APP
from webapp.explain.texts import EXPLANATIONS
from webapp.mailers import outlook
from webapp.mailers.outlook import OutlookMailer
from webapp.microsoft.clouds import CLOUDS, CUSTOM
from webapp.sandbox.commands import sandbox
from webapp.sandbox.faults import Kind

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
ADRS = sorted((DOCS / "adr").glob("*.md"))

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_SETTING_ROW = re.compile(r"^\| `(POSTROOM_\w+)` \|", re.MULTILINE)
_COMMAND_ROW = re.compile(r"^\| `postroom ([a-z -]+)[^`]*` \|", re.MULTILINE)
_REFUSAL = re.compile(r'f?"([45]\d\d \d\.\d{1,3}\.\d{1,3}) ')


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose_of(path: Path) -> str:
    """A page without its code blocks."""
    return _FENCE.sub("", text_of(path))


def anchors(path: Path) -> set[str]:
    """What links may name after the #, made from the headings as code hosts do it."""
    plain = (
        re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(prose_of(path))
    )
    return {heading.strip().replace(" ", "-") for heading in plain}


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Every command that does something, as it is typed."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, (*words, name))
        else:
            yield " ".join((*words, name))


def test_every_setting_is_documented_and_no_other() -> None:
    documented = _SETTING_ROW.findall(text_of(DOCS / "configuration.md"))
    wanted = {config.PREFIX + name.upper() for name in config.Settings.model_fields}
    assert sorted(documented) == sorted(wanted)


def test_the_defaults_in_the_docs_are_those_of_the_code() -> None:
    page = text_of(DOCS / "configuration.md")
    for name, setting in config.Settings.model_fields.items():
        default = setting.default
        if isinstance(default, bool):
            shown = f"`{str(default).lower()}`"
        elif isinstance(default, config.Listen):
            shown = f"`{default}`"
        elif isinstance(default, int):
            shown = str(default)
        else:
            continue
        row = next(
            line for line in page.splitlines() if line.startswith(f"| `POSTROOM_{name.upper()}`")
        )
        assert row.split("|")[2].strip().startswith(shown), row


def test_every_command_is_documented_and_no_other() -> None:
    rows = _COMMAND_ROW.findall(text_of(DOCS / "configuration.md"))
    assert sorted(row.strip() for row in rows) == sorted(commands(postroom))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_and_commands_that_are_named_exist(page: Path) -> None:
    known = {config.PREFIX + name.upper() for name in config.Settings.model_fields}
    assert set(re.findall(r"POSTROOM_[A-Z_]*[A-Z]", text_of(page))) <= known
    first = {name.split()[0] for name in commands(postroom)}
    named = re.findall(r"`(?:postroom|\./run) ([a-z]+)", text_of(page))
    assert set(named) <= first | {"test"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose_of(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no such file"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


def test_each_decision_has_a_number_of_its_own_and_all_its_parts() -> None:
    numbers = [int(path.name.partition("-")[0]) for path in ADRS]
    assert numbers == list(range(1, len(ADRS) + 1))
    for number, path in zip(numbers, ADRS, strict=True):
        text = text_of(path)
        assert text.startswith(f"# {number}. "), path.name
        for part in ("**Context.**", "**Decision.**", "**Cost.**"):
            assert text.count(part) == 1, f"{path.name}: {part}"


def test_what_the_code_says_about_the_docs_is_there() -> None:
    for source in (ROOT / "webapp").rglob("*.py"):
        for name in re.findall(r"\bdocs/[\w/.-]+\.md", text_of(source)):
            assert (ROOT / name).exists(), f"{source.relative_to(ROOT)} names {name}"


def test_the_readme_begins_with_the_two_commands() -> None:
    block = _FENCE.search(text_of(ROOT / "README.md"))
    assert block is not None
    lines = [line.partition("#")[0].strip() for line in block.group().splitlines()]
    assert [line for line in lines if line and "```" not in line] == ["./run", "./run test"]


def test_the_changelog_knows_this_version() -> None:
    from webapp import __version__

    assert f"## {__version__}" in text_of(ROOT / "CHANGELOG.md")


def test_every_refusal_of_the_listener_is_explained() -> None:
    ingress = ROOT / "webapp" / "ingress"
    given = {code for path in ingress.glob("*.py") for code in _REFUSAL.findall(text_of(path))}
    assert given
    page = text_of(DOCS / "hand-in-mail.md")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    explained = {code for row in rows for code in re.findall(r"`(\d{3} [\d.]+)`", row)}
    assert given <= explained
    assert explained <= given


def test_the_pictures_are_small() -> None:
    pictures = list((DOCS / "pictures").glob("*.png"))
    assert pictures
    assert sum(path.stat().st_size for path in pictures) < 800 * 1024


# ---- Microsoft ----


@pytest.mark.parametrize("name", ["install.md", "microsoft.md"])
def test_the_hosts_to_open_in_a_firewall_are_named_for_each_cloud(name: str) -> None:
    rows = [line for line in text_of(DOCS / name).splitlines() if line.startswith("| ")]
    for cloud in CLOUDS:
        hosts = [urlsplit(root).netloc for root in (cloud.login, cloud.graph)]
        found = [row for row in rows if all(re.search(rf"[` ]{host}[` ]", row) for host in hosts)]
        assert len(found) == 1, cloud.slug


def test_the_clouds_for_the_command_line_are_those_there_are() -> None:
    page = text_of(DOCS / "configuration.md")
    row = next(line for line in page.splitlines() if line.startswith("| `cloud` |"))
    slugs = set(re.findall(r"`(\w+)`", row)) - {"cloud"}
    assert slugs == {CUSTOM, *(cloud.slug for cloud in CLOUDS)}
    given = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert set(OF_AN_APP) <= set(given)


def test_the_notices_of_microsoft_bear_the_titles_that_pages_show() -> None:
    page = text_of(DOCS / "troubleshooting.md")
    table = page.partition("\n## Microsoft\n")[2].partition("\n### ")[0]
    titles = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    shown = {re.sub(r"%\(\w+\)s", "…", one.title) for one in EXPLANATIONS.values()}
    assert len(titles) > 12
    assert set(titles) - {"It says"} <= shown


def test_what_is_said_of_the_pace_and_the_size_is_what_the_mailer_says() -> None:
    page = text_of(DOCS / "how-mail-moves.md")
    usual = OutlookMailer.usual_limits
    assert f"{usual['concurrency']} mails at a time" in page
    assert f"{usual['per_minute']} mails a minute" in page
    assert f"{usual['recipients_per_day']:,} recipients a day" in page
    assert f"({outlook.LARGEST:,} bytes" in page
    assert f"More than {OutlookMailer.max_recipients} recipients" in page


def test_every_fault_of_the_sandbox_is_named() -> None:
    page = text_of(DOCS / "sandbox.md")
    faults = page.partition("## What can go wrong")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z][a-z_0-9]+)`", faults)) == {kind.value for kind in Kind}


def test_the_readme_tries_the_sandbox_where_it_listens() -> None:
    readme = text_of(ROOT / "README.md")
    ports = {option.name: option.default for option in sandbox.params}
    tls = str(ports["tls_listen"]).replace("127.0.0.1", "https://localhost")
    assert f"POSTROOM_MICROSOFT_AUTHORITY={tls}\n" in readme
    assert f"POSTROOM_MICROSOFT_GRAPH={tls}/graph\n" in readme
    assert str(ports["listen"]).replace("127.0.0.1", "http://localhost") in readme
