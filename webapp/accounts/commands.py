"""`postroom admin`: accounts from the command line, for the first one and for emergencies."""

import json
import sys

import click

from webapp.accounts import service
from webapp.installation import open_installation

DATA = 65


@click.group()
def admin() -> None:
    """Accounts of people who may do everything."""


@admin.command()
@click.argument("email")
@click.option("--name", default="", help="How pages call this person.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def create(email: str, name: str, password_stdin: bool, as_json: bool) -> None:
    """Make an administrator's account."""
    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    installation = open_installation()
    try:
        with installation.db.write() as session:
            user = service.create_user(
                session,
                email=email,
                name=name,
                password=password,
                is_admin=True,
                language=None,
                now=installation.db.now(),
            )
    except service.AccountError as error:
        click.echo(f"postroom: {error}", err=True)
        sys.exit(DATA)
    installation.close()
    if as_json:
        click.echo(json.dumps({"email": user.email, "is_admin": True}))
    else:
        click.echo(f"{user.email} may sign in now.")
