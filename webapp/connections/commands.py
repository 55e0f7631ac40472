"""`postroom connection`: what sites send with, from a terminal or a script."""

import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click
import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.connections import lifecycle, service
from webapp.connections.models import Connection
from webapp.connections.service import FormValues, check_limit
from webapp.connections.uses import Uses, chain_ids, uses_of
from webapp.delivery import replan
from webapp.delivery.lanes import Limits
from webapp.delivery.models import Lane
from webapp.delivery.replan import Replanned
from webapp.delivery.wake import Waker
from webapp.fields import FieldErrors, from_texts, questions
from webapp.google import cloud as google
from webapp.installation import Installation, open_installation
from webapp.mailers import registry
from webapp.mailers.base import Mailer
from webapp.microsoft import service as microsoft
from webapp.microsoft.clouds import GLOBAL, Segment
from webapp.microsoft.service import AppValues
from webapp.providers import GOOGLE, is_linked, provider_of
from webapp.sites.models import Site
from webapp.sites.service import all_sites, find_site

ACTOR = "command line"
USAGE, DATA, NO_USER, NO_INPUT = 64, 65, 67, 66
LIMITS = ("concurrency", "per_minute", "per_hour", "per_day", "recipients_per_day")
OF_AN_APP = ("name", "client_id", "client_secret", "cloud", "tenant", "secret_expires_on")
"""What `--set` takes besides the mailer's own settings where an account is linked: the connection
then brings an app registration of its own."""
OFF = {"false", "off", "no", "0"}
BELONGS_TO_MAILBOX = "limits belong to the mailbox: set them once it is linked"


@click.group()
def connection() -> None:
    """Connections: configured mailers, by which mail leaves."""


@connection.command()
@click.argument("slug")
@click.option("--mailer", required=True, help="Its slug, for example smtp.")
@click.option("--name", default="", help="A nickname.")
@click.option(
    "--set",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the mailer. Secrets as NAME=@FILE, or NAME=- for standard input.",
)
@click.option("--from-email", default="", help="The address mail is sent from.")
@click.option("--from-name", default="", help="The name mail is sent from.")
@click.option(
    "--force-from/--no-force-from",
    default=None,
    help="Use --from-email for every mail (the default where it is given).",
)
@click.option("--concurrency", metavar="N|none", help="Mails at a time.")
@click.option("--per-minute", metavar="N|none", help="Mails a minute.")
@click.option("--per-hour", metavar="N|none", help="Mails an hour.")
@click.option("--per-day", metavar="N|none", help="Mails a day.")
@click.option("--recipients-per-day", metavar="N|none", help="Recipients a day.")
@click.option("--primary", is_flag=True, help="The site sends with it from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def create(
    slug: str,
    mailer: str,
    name: str,
    given: tuple[str, ...],
    from_email: str,
    from_name: str,
    force_from: bool | None,
    primary: bool,
    as_json: bool,
    **limits: str | None,
) -> None:
    """Give a site a connection. Hosts in private networks are fine here.

    With --mailer outlook or gmail it uses a registration of this installation; name its own by
    client_id and client_secret=@FILE, at Microsoft also cloud, tenant and secret_expires_on. A
    person then signs in, at the address that is printed.
    """
    kind = registry().get(mailer)
    if kind is None:
        refuse(f"there is no mailer {mailer}; there are: {', '.join(registry())}", USAGE)
    texts = read_settings(kind, given)
    app = own_registration(kind, texts)
    if kind.needs_link and any(value is not None for value in limits.values()):
        refuse(BELONGS_TO_MAILBOX, USAGE)
    with closing(open_installation()) as installation:
        try:
            made, waiting = store(
                installation,
                slug,
                form_values(
                    kind,
                    texts,
                    nickname=name,
                    from_email=from_email,
                    from_name=from_name,
                    force_from=bool(from_email) if force_from is None else force_from,
                ),
                chosen_limits(limits),
                app=app,
                primary=primary,
            )
        except FieldErrors as error:
            refuse(
                "\n".join(f"{field}: {text}" for field, text in error.errors.items()),
                DATA,
            )
        wake(installation)
    address = link_address(installation, slug, made) if kind.needs_link else ""
    if as_json:
        linked = {"link": address} if address else {}
        click.echo(json.dumps({**shown(made), "primary": primary, "waiting": waiting, **linked}))
        return
    click.echo(f"The connection is made. Its id is {made.uid}.")
    if address:
        click.echo(f"Somebody who may edit the site links the mailbox at {address}")
    elif waiting:
        click.echo(f"Waiting mails that now leave by it: {waiting}.")


@connection.command(name="list")
@click.argument("slug", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print all as a JSON list.")
def list_(slug: str | None, as_json: bool) -> None:
    """List what one site may send by, or every site; what is shared comes last."""
    with closing(open_installation()) as installation, installation.db.read() as session:
        sites = [the_site(session, slug)] if slug else all_sites(session)
        rows = [row for site in sites for row in rows_of(session, site)]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        words = [row["id"], row["site"], row["mailer"], row["name"], row["health"]]
        use = ["primary"] * bool(row["primary"])
        use += [f"backup {row['backup']}"] * bool(row["backup"]) + ["shared"] * bool(row["shared"])
        click.echo("\t".join([*map(str, words), ", ".join(use)]))


def rows_of(session: Session, site: Site) -> list[dict[str, object]]:
    """What a site may send by, for programs."""
    chain = chain_ids(session, site)
    return [
        {
            **shown(each),
            "site": site.slug,
            "primary": each.id == site.primary_connection_id,
            "backup": chain.index(each.id) + 1 if each.id in chain else None,
            "shared": service.is_shared(each),
        }
        for each in service.choosable_connections(session, site)
    ]


@connection.command(name="set-primary")
@click.argument("slug")
@click.argument("connection_id")
def set_primary(slug: str, connection_id: str) -> None:
    """Let a site send by this connection from now on."""
    with closing(open_installation()) as installation:
        now = installation.db.now()
        with installation.db.write() as session:
            site = the_site(session, slug)
            found = the_connection(session, site, connection_id)
            if found.lane_id is None or not service.is_complete(found):
                refuse(f"the connection {connection_id} cannot send yet", DATA)
            service.set_primary(session, site, found, actor=ACTOR, now=now)
            moved = replan.routing_changed(session, site, now)
        wake(installation)
    click.echo("The site sends by it now.")
    tell_moved(moved)


@connection.command()
@click.argument("slug")
@click.argument("connection_ids", nargs=-1)
@click.option("--none", "nothing", is_flag=True, help="No connection stands in any more.")
def backup(slug: str, connection_ids: tuple[str, ...], nothing: bool) -> None:
    """Let these connections stand in when another one fails, in this order."""
    if nothing == bool(connection_ids):
        refuse("name the connections in their order, or say --none", USAGE)
    with closing(open_installation()) as installation:
        now = installation.db.now()
        with installation.db.write() as session:
            site = the_site(session, slug)
            chain = [the_connection(session, site, each) for each in connection_ids]
            lifecycle.set_backups(session, site, chain, actor=ACTOR, now=now)
            moved = replan.routing_changed(session, site, now)
        wake(installation)
    click.echo(f"Connections that stand in: {len(chain)}.")
    tell_moved(moved)


@connection.command()
@click.argument("connection_id")
@click.option("--yes", is_flag=True, help="Do it without a question.")
def delete(connection_id: str, yes: bool) -> None:
    """Delete a connection, also a shared one; says first what uses it."""
    with closing(open_installation()) as installation:
        with installation.db.read() as session:
            uses = uses_of(session, any_connection(session, connection_id))
        if not yes:
            click.echo(used_words(uses))
            click.confirm("Delete it?", abort=True)
        now = installation.db.now()
        with installation.db.write() as session:
            found = any_connection(session, connection_id)
            moved = lifecycle.remove(session, found, actor=ACTOR, now=now)
        wake(installation)
    click.echo("The connection is deleted.")
    tell_moved(moved)


def used_words(uses: Uses) -> str:
    """What uses a connection, on one line each."""
    lines = [f"primary connection of {site.slug}" for site in uses.primary_of]
    lines += [f"backup connection of {site.slug}" for site in uses.backup_of]
    lines += [f"rule {rule.name or rule.uid} of {site.slug}" for site, rule in uses.rules]
    lines += [f"waiting mails: {uses.waiting}"] * bool(uses.waiting)
    return "\n".join(lines or ["nothing uses it"])


def tell_moved(moved: Replanned) -> None:
    """How many waiting mails now leave otherwise."""
    for name, count in moved.by:
        click.echo(f"Waiting mails that now leave by {name}: {count}.")
    if moved.left:
        click.echo(f"Waiting mails that are looked at in a moment: {moved.left}.")


def the_connection(session: Session, site: Site, uid: str) -> Connection:
    """A connection that the site may send by, or the end."""
    found = service.find_connection(session, site, uid)
    if found is None:
        refuse(f"{site.slug} has no connection with the id {uid}", NO_USER)
    return found


def any_connection(session: Session, uid: str) -> Connection:
    """A connection of any site, or a shared one; or the end."""
    found = service.any_connection(session, uid)
    if found is None:
        refuse(f"there is no connection with the id {uid}", NO_USER)
    return found


def wake(installation: Installation) -> None:
    """Tell the worker that mail may go now."""
    with closing(Waker(installation.settings.instance)) as waker:
        waker.wake()


def store(
    installation: Installation,
    slug: str,
    values: FormValues,
    wanted: Mapping[str, int | None],
    *,
    app: AppValues | None,
    primary: bool,
) -> tuple[Connection, int]:
    """Save it, and tell the ledger; also returns how many waiting mails now leave by it."""
    now = installation.db.now()
    with installation.db.write() as session:
        site = the_site(session, slug)
        if is_linked(values.mailer) and app is None:
            provider = provider_of(values.mailer).slug
            values = replace(values, settings=with_shared_app(session, values.settings, provider))
        made = service.save_connection(
            session, installation.keyring, site, None, values, actor=ACTOR, now=now
        )
        if app is not None:
            microsoft.save_app(
                session,
                installation.keyring,
                None,
                app,
                clouds=google.clouds_of(installation.settings, provider_of(values.mailer).slug),
                connection=made,
                actor=ACTOR,
                now=now,
            )
        if primary:
            service.set_primary(session, site, made, actor=ACTOR, now=now)
        if is_linked(values.mailer):
            return made, microsoft.use_app(session, made, now)
        lane_key = service.load_mailer(made, installation.keyring).lane_key()
        limits = merged_limits(session, lane_key, wanted)
        waiting = replan.connection_saved(session, made, lane_key=lane_key, limits=limits, now=now)
        if primary:
            waiting += replan.routing_changed(session, site, now).moved
    return made, waiting


def own_registration(kind: type[Mailer], texts: dict[str, str]) -> AppValues | None:
    """The registration that the connection brings, taken out of the settings; None for none."""
    if not is_linked(kind.slug):
        return None
    given = {name: texts.pop(name) for name in OF_AN_APP if name in texts}
    if not given:
        return None
    if texts.setdefault("one_click", "false").lower() not in OFF:
        refuse("with one_click=true the registration of this installation is used", USAGE)
    is_google = provider_of(kind.slug).slug == GOOGLE
    return AppValues(
        name=given.get("name", ""),
        cloud=google.PROVIDER if is_google else given.get("cloud", GLOBAL),
        tenant=google.TENANT if is_google else given.get("tenant", Segment.COMMON.value),
        client_id=given.get("client_id", ""),
        secret=given.get("client_secret", ""),
        secret_expires_on=given.get("secret_expires_on", ""),
    )


def with_shared_app(
    session: Session, settings: Mapping[str, object], provider: str
) -> dict[str, object]:
    """The settings with the registration that One-Click Setup uses; raises FieldErrors."""
    if not settings.get("one_click", True):
        return dict(settings)
    apps = {app.uid: app for app in microsoft.shared_apps(session, provider)}
    chosen = str(settings.get("shared_app") or "")
    if chosen and chosen not in apps:
        raise FieldErrors({"shared_app": "There is no registration with this id."})
    if len(apps) > 1 and not chosen:
        ids = ", ".join(f"{app.uid} ({app.name})" for app in apps.values())
        raise FieldErrors({"shared_app": f"Name one of {ids}."})
    return {**settings, "shared_app": chosen or next(iter(apps), "")}


def link_address(installation: Installation, slug: str, made: Connection) -> str:
    """Where a person links the mailbox."""
    return f"{installation.settings.url}/sites/{slug}/connections/{made.uid}/link"


def the_site(session: Session, slug: str) -> Site:
    """The site with this slug, or the end."""
    found = find_site(session, slug)
    if found is None:
        refuse(f"there is no site with the slug {slug}", NO_USER)
    return found


def form_values(
    kind: type[Mailer],
    texts: Mapping[str, str],
    *,
    nickname: str,
    from_email: str,
    from_name: str,
    force_from: bool,
) -> FormValues:
    """What was asked for, as a page would send it; raises FieldErrors for an unknown setting."""
    settings, secrets = from_texts(kind, texts)
    if "authentication" in {asked.name for asked in questions(kind)}:
        settings["authentication"] = bool(settings.get("username"))
    return FormValues(
        nickname=nickname,
        from_email=from_email,
        force_from_email=force_from,
        from_name=from_name,
        mailer=kind.slug,
        settings=settings,
        secrets={name: str(value) for name, value in secrets.items()},
    )


def read_settings(kind: type[Mailer], given: Iterable[str]) -> dict[str, str]:
    """The `NAME=VALUE` pairs; a secret is read from a file or from standard input."""
    secret = {asked.name for asked in questions(kind) if asked.question.secret}
    if is_linked(kind.slug):
        secret.add("client_secret")
    texts = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            refuse(f"--set {name}: write it as NAME=VALUE", USAGE)
        texts[name] = read_secret(name, value) if name in secret else value
    return texts


def read_secret(name: str, value: str) -> str:
    """What a file or standard input holds, without the line end."""
    if value == "-":
        return sys.stdin.readline().rstrip("\r\n")
    if not value.startswith("@"):
        refuse(
            f"--set {name}: write {name}=@FILE, or {name}=- for standard input; everybody on this "
            "machine can see arguments",
            USAGE,
        )
    try:
        return Path(value[1:]).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"--set {name}: the file cannot be read ({error})", NO_INPUT)


def chosen_limits(given: Mapping[str, str | None]) -> dict[str, int | None]:
    """The limits that were named; raises FieldErrors."""
    limits: dict[str, int | None] = {}
    errors = {}
    for name in LIMITS:
        text = given.get(name)
        if text is None:
            continue
        try:
            limits[name] = None if text.lower() == "none" else check_limit(text)
        except ValueError as error:
            errors[name] = str(error)
    if errors:
        raise FieldErrors(errors)
    return limits


def merged_limits(
    session: Session, lane_key: str, wanted: Mapping[str, int | None]
) -> Limits | None:
    """The lane's limits with those that were named; None when none was."""
    if not wanted:
        return None
    lane = session.scalar(sa.select(Lane).where(Lane.key == lane_key))
    known = {name: getattr(lane, name) for name in LIMITS} if lane else {}
    return Limits(**{**known, **wanted})


def shown(found: Connection) -> dict[str, object]:
    """A connection for programs; no secret in it."""
    return {
        "id": found.uid,
        "name": found.nickname,
        "mailer": found.mailer,
        "settings": found.settings.get(found.mailer, {}),
        "from_email": found.from_email,
        "health": str(found.health),
    }


def refuse(sentences: str, code: int) -> NoReturn:
    """Say why on standard error, and end."""
    for sentence in sentences.splitlines():
        click.echo(f"postroom: {sentence}", err=True)
    sys.exit(code)
