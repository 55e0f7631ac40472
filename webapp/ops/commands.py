"""`postroom doctor` and `postroom key`."""

import sys
from datetime import UTC, datetime

import click

from webapp import config
from webapp.crypto import Keyring, new_key, parse_key
from webapp.installation import key_file, open_installation, reseal, write_keys
from webapp.ops.doctor import examine


@click.command()
def doctor() -> None:
    """Look whether everything is well, and say what is not."""
    installation = open_installation()
    findings = list(examine(installation))
    installation.close()
    for finding in findings:
        click.echo(f"{'ok  ' if finding.good else 'BAD '} {finding.name}: {finding.words}")
    sys.exit(0 if all(finding.good for finding in findings) else 1)


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
