"""`postroom doctor`, `key`, `backup` and `restore`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click

from webapp import config
from webapp.crypto import Keyring, new_key, parse_key
from webapp.installation import key_file, open_installation, reseal, write_keys
from webapp.ops import restore as restoring
from webapp.ops.archive import BackupError, Manifest, verify
from webapp.ops.backup import back_up
from webapp.ops.doctor import Finding, Verdict, examine
from webapp.ops.restore import refuse_if_used

USAGE, NO_INPUT, IO_ERROR = 64, 66, 74


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


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--with-key",
    is_flag=True,
    help="Put the key in, too: whoever gets the file can then open every stored secret.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def backup(file: Path, with_key: bool, as_json: bool) -> None:
    """Write everything the database holds to FILE, while Postroom runs.

    FILE is a .tar.gz; one of that name is replaced once the new one is whole. It holds all mail in
    clear text, and opens for its owner only.
    """
    installation = open_installation()
    try:
        manifest = back_up(installation, file, with_key=with_key)
        where = key_file(installation.settings)
    except (BackupError, OSError) as error:
        _refuse(error)
    finally:
        installation.close()
    if as_json:
        click.echo(json.dumps(_summary(manifest)))
        return
    click.echo(f"{_described(manifest)}: {file}")
    if with_key:
        click.echo("The key is in it: keep it as safe as the key.", err=True)
    else:
        click.echo(f"The key is not in it. Keep a copy of {where} in another place.", err=True)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--hold/--deliver",
    default=None,
    help="What becomes of mail that waited when the backup was made: held until you release it, or "
    "sent as soon as Postroom runs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was restored as JSON.")
def restore(file: Path, hold: bool | None, as_json: bool) -> None:
    """Load a backup into an empty installation.

    Mail that waited when the backup was made may have been sent since, or may still be sent by the
    installation it came from: say whether it is to be held or delivered.
    """
    settings = config.load()
    try:
        manifest = verify(file)
        refuse_if_used(settings)
        if hold is None and manifest.waiting:
            hold = _ask_about_waiting(manifest.waiting)
        found = restoring.restore(settings, file, manifest, hold=bool(hold))
    except FileNotFoundError as error:
        _refuse(error, NO_INPUT)
    except (BackupError, OSError) as error:
        _refuse(error)
    if as_json:
        click.echo(json.dumps({**_summary(manifest), "held": found.held}))
        return
    click.echo(f"Restored: {_described(manifest)}, made {manifest.made_at:%Y-%m-%d %H:%M} UTC.")
    if found.key_written:
        click.echo(f"The key from the backup is in {found.key_written}.")
    if found.held:
        click.echo(f"{found.held:,} mails are held. Release them: postroom message release --all")
    elif found.waiting:
        click.echo(f"{found.waiting:,} mails are sent once Postroom runs.")
    if not found.ledger.holds:
        click.echo("The ledger of the backup does not add up: run postroom doctor.", err=True)
        sys.exit(1)


def _ask_about_waiting(waiting: int) -> bool:
    told = (
        f"{waiting:,} mails waited when this backup was made. If they were sent since, or the "
        "installation they come from still runs, they would arrive twice."
    )
    if not sys.stdin.isatty():
        click.echo(f"postroom: {told} Say --hold or --deliver.", err=True)
        sys.exit(USAGE)
    click.echo(told)
    return click.confirm("Hold them until you release them?", default=True)


def _described(manifest: Manifest) -> str:
    sites, mails = (manifest.tables[name].rows for name in ("site", "message"))
    return f"{sites:,} sites and {mails:,} mails, {manifest.waiting:,} of them waiting"


def _summary(manifest: Manifest) -> dict[str, object]:
    return {
        "made_at": manifest.made_at.isoformat(),
        "version": manifest.version,
        "revision": manifest.revision,
        "with_key": manifest.with_key,
        "key_fingerprint": manifest.key_fingerprint,
        "waiting": manifest.waiting,
        "rows": {name: table.rows for name, table in manifest.tables.items()},
    }


def _refuse(error: BackupError | OSError, code: int | None = None) -> NoReturn:
    if isinstance(error, BackupError):
        code = error.code
    words = str(error) if isinstance(error, BackupError) else f"{error.filename}: {error.strerror}"
    click.echo(f"postroom: {words}", err=True)
    sys.exit(code or IO_ERROR)
