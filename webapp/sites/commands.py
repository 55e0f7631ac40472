"""`postroom site` and `postroom credential`: sites and their logins from a terminal or a script."""

import json
import sys
from contextlib import closing
from typing import NoReturn

import click
from sqlalchemy.orm import Session

from webapp.delivery import replan
from webapp.fields import FieldErrors
from webapp.installation import open_installation
from webapp.sites import service
from webapp.sites.models import AfterUnclear, CredentialKind, Site
from webapp.sites.service import OFFERED_MODES, NewCredential

ACTOR = "command line"
USAGE, DATA, NO_USER = 64, 65, 67


@click.group()
def site() -> None:
    """Sites: whoever hands in mail."""


@site.command(name="create")
@click.argument("name")
@click.option("--url", default="", help="Where the site is found.")
@click.option("--admin-email", default="", help="Who looks after it.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def create_site(name: str, url: str, admin_email: str, as_json: bool) -> None:
    """Add a site."""
    with closing(open_installation()) as installation:
        try:
            with installation.db.write() as session:
                made = service.create_site(
                    session,
                    name=name,
                    url=url,
                    admin_email=admin_email,
                    actor=ACTOR,
                    now=installation.db.now(),
                )
        except FieldErrors as error:
            refuse_fields(error)
    if as_json:
        print_json(shown_site(made))
    else:
        click.echo(f"{made.name} is added. Its slug is {made.slug}.")


@site.command(name="set")
@click.argument("slug")
@click.option("--mode", type=click.Choice([mode.value for mode in OFFERED_MODES]))
@click.option("--name", default=None, help="How it is called.")
@click.option("--url", default=None, help="Where it is found.")
@click.option("--admin-email", default=None, help="Who looks after it.")
@click.option(
    "--after-unclear",
    type=click.Choice([choice.value for choice in AfterUnclear]),
    help="Whether a mail goes once more when its answer was lost and nobody can know.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the site as JSON.")
def set_site(
    slug: str,
    mode: str | None,
    name: str | None,
    url: str | None,
    admin_email: str | None,
    after_unclear: str | None,
    as_json: bool,
) -> None:
    """Change a site. Mail that waits when it is set to do-not-send is not sent."""
    if all(given is None for given in (mode, name, url, admin_email, after_unclear)):
        refuse("say what to change, for example --mode do-not-send", USAGE)
    with closing(open_installation()) as installation:
        now = installation.db.now()
        try:
            with installation.db.write() as session:
                found = find_site(session, slug)
                service.set_site(
                    session,
                    found,
                    name=name,
                    url=url,
                    admin_email=admin_email,
                    mode=mode,
                    after_unclear=AfterUnclear(after_unclear) if after_unclear else None,
                    actor=ACTOR,
                    now=now,
                )
                blocked = replan.mode_changed(session, found, now)
        except FieldErrors as error:
            refuse_fields(error)
    if as_json:
        print_json({**shown_site(found), "blocked": blocked})
    elif blocked:
        click.echo(f"{found.name} is saved. Waiting mails that will not be sent: {blocked}.")
    else:
        click.echo(f"{found.name} is saved.")


@site.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print all as a JSON list.")
def list_sites(as_json: bool) -> None:
    """List the sites, by name."""
    with closing(open_installation()) as installation, installation.db.read() as session:
        found = service.all_sites(session)
    if as_json:
        print_json([shown_site(each) for each in found])
        return
    for each in found:
        click.echo("\t".join((each.slug, each.mode, each.name, each.url)))


@click.group()
def credential() -> None:
    """Logins and keys by which sites hand in their mail."""


@credential.command(name="create")
@click.argument("slug")
@click.option("--kind", type=click.Choice([kind.value for kind in CredentialKind]), required=True)
@click.option("--label", default="", help="What it is for.")
@click.option(
    "--sender",
    "senders",
    multiple=True,
    metavar="PATTERN",
    help="An address it may send from, or *@example.org; none given: any.",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(service.SCOPES),
    help="What a key may do; none given: send.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def create_credential(
    slug: str,
    kind: str,
    label: str,
    senders: tuple[str, ...],
    scopes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a login or a key. Its secret is printed now and never again."""
    with closing(open_installation()) as installation:
        try:
            with installation.db.write() as session:
                made = service.create_credential(
                    session,
                    find_site(session, slug),
                    kind=CredentialKind(kind),
                    label=label,
                    senders=senders,
                    scopes=scopes,
                    actor=ACTOR,
                    now=installation.db.now(),
                )
        except FieldErrors as error:
            refuse_fields(error)
    secrets = secrets_of(made)
    if as_json:
        print_json({"site": slug, "kind": kind, "label": made.credential.label, **secrets})
        return
    for name, value in secrets.items():
        click.echo(f"{name}: {value}")


@credential.command(name="revoke")
@click.argument("username")
def revoke_credential(username: str) -> None:
    """Take a login or a key away for good, by its public name."""
    with closing(open_installation()) as installation, installation.db.write() as session:
        found = service.find_by_username(session, username)
        if found is None:
            refuse(f"there is no credential {username}", NO_USER)
        service.revoke_credential(
            session, found[1], found[0], actor=ACTOR, now=installation.db.now()
        )
    click.echo(f"{username} is revoked.")


def find_site(session: Session, slug: str) -> Site:
    """The site with this slug, or the end."""
    found = service.find_site(session, slug)
    if found is None:
        refuse(f"there is no site with the slug {slug}", NO_USER)
    return found


def secrets_of(made: NewCredential) -> dict[str, str]:
    """What a program must be told: a user name and a password, or one key."""
    if made.credential.kind == CredentialKind.API:
        return {"username": made.credential.username, "key": made.key}
    return {"username": made.credential.username, "password": made.secret}


def shown_site(found: Site) -> dict[str, object]:
    """A site for programs."""
    return {
        "slug": found.slug,
        "name": found.name,
        "url": found.url,
        "admin_email": found.admin_email,
        "mode": str(found.mode),
        "after_unclear": str(found.after_unclear),
    }


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, ensure_ascii=False))


def refuse_fields(error: FieldErrors) -> NoReturn:
    """One sentence for each value that cannot be used."""
    refuse(
        "\n".join(f"{name.replace('_', '-')}: {text}" for name, text in error.errors.items()), DATA
    )


def refuse(sentences: str, code: int) -> NoReturn:
    """Say why on standard error, and end."""
    for sentence in sentences.splitlines():
        click.echo(f"postroom: {sentence}", err=True)
    sys.exit(code)
