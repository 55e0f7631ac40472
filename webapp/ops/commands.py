"""`postroom doctor` and `postroom key`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import click

from webapp import config
from webapp.crypto import Keyring, new_key, parse_key
from webapp.installation import key_file, open_installation, reseal, write_keys
from webapp.ops.doctor import Finding, Verdict, examine


@click.command()
@click.option("--full", is_flag=True, help="Try every stored secret, and read the whole database.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each check, in a list.")
def doctor(full: bool, as_json: bool) -> None:
    """Look whether everything is well, and say what is not and what to do.

    Ends with 1 when something is bad.
    """
    installation = open_installation()
    try:
        findings = list(examine(installation, full=full))
    finally:
        installation.close()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _tell(findings)
    sys.exit(1 if any(finding.verdict is Verdict.BAD for finding in findings) else 0)


def _tell(findings: Sequence[Finding]) -> None:
    marks = {Verdict.GOOD: "ok  ", Verdict.BAD: "BAD ", Verdict.UNKNOWN: "?   "}
    for finding in findings:
        click.echo(f"{marks[finding.verdict]} {finding.name}: {finding.words}")
        if finding.remedy:
            click.echo(f"      {finding.remedy}")


@click.group()
def key() -> None:
    """The key that seals secrets at rest."""


@key.command()
def rotate() -> None:
    """Make a new key, seal everything with it, and retire the old ones.

    With POSTROOM_SECRET_KEYS the new key is put in front of the list by you; this command then
    seals everything with the first one, and the others can be taken out.
    """
    settings = config.load()
    installation = open_installation(settings)
    if settings.secret_keys:
        count = reseal(installation.db, installation.keyring)
        click.echo(f"{count} secrets are sealed by the first key of POSTROOM_SECRET_KEYS now.")
        return
    path = key_file(settings)
    old = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    fresh = new_key()
    # Both stand in the file while rows are sealed anew: a crash in between locks nothing out. The
    # last old one stays: parts that run seal with it until they are restarted.
    write_keys(path, [fresh, *old])
    count = reseal(installation.db, Keyring([parse_key(line) for line in (fresh, *old)]))
    kept = path.with_name(f"{path.name}.{datetime.now(UTC):%Y%m%d-%H%M%S}.old")
    write_keys(kept, old)
    write_keys(path, [fresh, old[0]])
    installation.close()
    click.echo(f"{count} secrets are sealed by a new key. Restart Postroom: all parts must use it.")
    click.echo(f"The key before it stays in {path} until the next rotation.")
    click.echo(f"A copy of the old file is {kept}: keep it with your old backups, or delete it.")
