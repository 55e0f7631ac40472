"""`postroom sendmail`: what programs expect at /usr/sbin/sendmail."""

import os
import pwd
import sys
from contextlib import closing
from typing import NoReturn

import click
import sqlalchemy as sa

from webapp.delivery.models import Source
from webapp.delivery.wake import Waker
from webapp.disk import FULL, Disk
from webapp.ingress.accept import NotAccepted, Submission, prepare, store
from webapp.installation import Installation, open_installation
from webapp.mime.facts import facts_of
from webapp.sites.models import Site

USAGE, DATA, NO_INPUT, NO_USER, TEMPORARY = 64, 65, 66, 67, 75


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--site", "slug", help="The site this mail is from; needed when there are several.")
@click.option("-t", "read_recipients", is_flag=True, help="Take recipients from To, Cc and Bcc.")
@click.option("-f", "-r", "sender", default="", help="Envelope sender.")
@click.option("-i", "-oi", "ignore_dots", is_flag=True, help="A lone dot does not end the mail.")
@click.argument("recipients", nargs=-1)
def sendmail(
    slug: str | None,
    read_recipients: bool,
    sender: str,
    ignore_dots: bool,
    recipients: tuple[str, ...],
) -> None:
    """Read a mail from standard input and queue it; returns once it is stored."""
    raw = sys.stdin.buffer.read()
    if not ignore_dots:
        raw = _until_dot(raw)
    if not raw.strip():
        _refuse("there is no mail on standard input", NO_INPUT)
    given = [address for address in recipients if not address.startswith("-")]
    facts = facts_of(raw)
    if read_recipients:
        given += [a.email for a in (*facts.to, *facts.cc, *facts.bcc) if a.email]
    wanted = tuple(dict.fromkeys(given))
    if not wanted:
        _refuse("no recipients: name them, or use -t with a To line", USAGE)
    bad = [address for address in wanted if "@" not in address]
    if bad:
        _refuse(f"{bad[0]} is not a mail address", NO_USER)
    with closing(open_installation()) as installation:
        _queue(installation, raw, wanted, sender or facts.from_email, slug)


def _queue(
    installation: Installation,
    raw: bytes,
    recipients: tuple[str, ...],
    sender: str,
    slug: str | None,
) -> None:
    db = installation.db
    if len(raw) > installation.settings.max_message_bytes:
        _refuse("the mail is too large", DATA)
    if not Disk.of(installation.settings).has_room(len(raw)):
        _refuse(FULL, TEMPORARY)
    user = pwd.getpwuid(os.getuid()).pw_name
    submission = Submission(
        site_id=_site(installation.db.reader, slug),
        credential_id=None,
        source=Source.COMMAND,
        mail_from=sender.strip("<>"),
        recipients=recipients,
        raw=raw,
        received={"from": f"localhost ({user})", "with": "LOCAL", "login": user},
    )
    try:
        prepared = prepare(submission)
        with db.write_driver() as driver:
            accepted = store(driver, [prepared], db.now())[0]
    except NotAccepted as refusal:
        _refuse(refusal.reply, DATA)
    except sa.exc.DBAPIError as error:
        _refuse(f"the mail could not be stored: {error.orig}", TEMPORARY)
    with closing(Waker(installation.settings.instance)) as waker:
        waker.wake()
    click.echo(f"queued as {accepted.queue_id}", err=True)


def _site(engine: sa.Engine, slug: str | None) -> int:
    with engine.connect() as connection:
        query = sa.select(Site.id, Site.slug).where(Site.deleted_at.is_(None))
        query = query.where(Site.slug == slug) if slug else query
        found = connection.execute(query.order_by(Site.slug).limit(100)).all()
    if len(found) == 1:
        return int(found[0].id)
    if slug:
        return _refuse(f"there is no site {slug}: see `postroom site list`", NO_USER)
    names = ", ".join(row.slug for row in found[:10])
    return _refuse(f"say which site this is from: --site {names or '(none yet)'}", USAGE)


def _until_dot(raw: bytes) -> bytes:
    lines = raw.splitlines(keepends=True)
    for index, line in enumerate(lines):
        if line.rstrip(b"\r\n") == b".":
            return b"".join(lines[:index])
    return raw


def _refuse(sentence: str, code: int) -> NoReturn:
    click.echo(f"sendmail: {sentence}", err=True)
    sys.exit(code)
