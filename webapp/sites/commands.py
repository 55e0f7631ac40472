"""`postroom site` and `postroom credential`: sites and their logins from a terminal or a script."""

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, NoReturn, TypeVar

import click
from sqlalchemy.orm import Session

from webapp.delivery import replan
from webapp.fields import FieldErrors
from webapp.installation import open_installation
from webapp.policy import export, removal
from webapp.sites import service, settings
from webapp.sites.models import AfterUnclear, CredentialKind, Mode, Site
from webapp.sites.service import NewCredential

ACTOR = "command line"
USAGE, DATA, NO_USER = 64, 65, 67

Command = TypeVar("Command", bound=Callable[..., Any])


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


def _set(option: str, help: str, **more: Any) -> Callable[[Command], Command]:
    """An option of `site set`; all of them are text, checked as on the pages."""
    return click.option(option, default=None, help=help, **more)


def _words(values: Iterable[str]) -> click.Choice[str]:
    return click.Choice([str(value) for value in values])


@site.command(name="set")
@click.argument("slug")
@_set("--mode", "What happens to its mail.", type=_words(Mode))
@_set("--redirect-to", "Who gets all mail in the mode redirect-to.")
@_set("--name", "How it is called.")
@_set("--url", "Where it is found.")
@_set("--admin-email", "Who looks after it.")
@_set("--time-zone", "By its name, such as Europe/Berlin.")
@_set(
    "--after-unclear",
    "Whether a mail goes once more when its answer was lost and nobody can know.",
    type=_words(AfterUnclear),
)
@_set("--retry-hours", "How long a mail is tried.")
@_set("--patience-minutes", "How long a mail waits for its connection until a backup takes over.")
@_set("--per-minute", "How many mails may leave; none: no limit.", metavar="N|none")
@_set("--per-hour", "The same for an hour.", metavar="N|none")
@_set("--per-day", "The same for a day.", metavar="N|none")
@_set("--log-days", "How long a finished mail stays in the log.", metavar="N|forever")
@_set(
    "--body-days",
    "How long the mail itself is kept once it is over; forever: as long as its entry.",
    metavar="N|forever",
)
@_set("--details-days", "The same for the conversation with the remote.", metavar="N|forever")
@_set("--placeholder-emails", "Senders that count as none, with spaces between them.")
@_set("--placeholder-names", "Names of senders that count as none, one a line.")
@click.option("--json", "as_json", is_flag=True, help="Print the site as JSON.")
def set_site(slug: str, as_json: bool, **given: str | None) -> None:
    """Change a site. A mode counts for mail that waits, too."""
    if all(value is None for value in given.values()):
        refuse("say what to change, for example --mode do-not-send", USAGE)
    with closing(open_installation()) as installation:
        now = installation.db.now()
        touched = 0
        try:
            with installation.db.write() as session:
                found = find_site(session, slug)
                changes = settings.set_site(session, found, actor=ACTOR, now=now, **given)
                if changes.keys() & settings.OF_THE_MODE:
                    touched = replan.mode_changed(session, found, now)
        except FieldErrors as error:
            refuse_fields(error)
    if as_json:
        print_json({**shown_site(found), "touched": touched})
    elif touched:
        click.echo(f"{found.name} is saved. {BY_MODE[Mode(found.mode)]}: {touched}.")
    else:
        click.echo(f"{found.name} is saved.")


BY_MODE = {
    Mode.DO_NOT_SEND: "Waiting mails that will not be sent",
    Mode.HOLD: "Waiting mails that are held",
    Mode.REDIRECT_TO: "Waiting mails that go to the other address",
    Mode.LIVE: "Waiting mails",
}


@site.command(name="export")
@click.argument("slug")
def export_site(slug: str) -> None:
    """Print its settings and its log as JSON lines, without mail and without secrets."""
    with closing(open_installation()) as installation:
        with installation.db.read() as session:
            found = find_site(session, slug)
        for line in export.lines(installation.db, found.id):
            click.echo(line, nl=False)


@site.command(name="delete")
@click.argument("slug")
@click.option("--name", prompt="Its name, to be sure", help="Its name, to be sure.")
def delete_site(slug: str, name: str) -> None:
    """Delete a site with its logins, connections and log. There is no way back."""
    with closing(open_installation()) as installation, installation.db.write() as session:
        found = find_site(session, slug)
        if name.strip() != found.name:
            refuse("that is not its name", DATA)
        removed = removal.delete_site(session, found, actor=ACTOR, now=installation.db.now())
    click.echo(f"{name.strip()} is deleted. Waiting mails that will not be sent: {removed}.")


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
    return {"slug": found.slug, **settings.shown(found)}


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
