"""`postroom message`: the log for programs and for people at a terminal."""

import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import click
import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp import ids
from webapp.delivery.models import Message, State, is_in
from webapp.delivery.wake import Waker
from webapp.installation import open_installation
from webapp.maillog import service
from webapp.maillog.service import AttemptRow, LogRow, MessageDetail, RecipientRow
from webapp.ops import hold
from webapp.sites.models import Site
from webapp.sites.service import ids_beside_deleted

DATA = 65
LISTED = 50
AT_A_TIME = 500


@click.group()
def message() -> None:
    """Mails that were handed in, and what became of them."""


@message.command(name="list")
@click.option("--site", "slug", help="Only mails of the site with this slug.")
@click.option("--state", "states", multiple=True, type=click.Choice([s.value for s in State]))
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, the newest first.")
@click.option("--json", "as_json", is_flag=True, help="All mails as a JSON list, unless limited.")
def list_(slug: str | None, states: tuple[str, ...], limit: int | None, as_json: bool) -> None:
    """List mails, the newest first."""
    installation = open_installation()
    with installation.db.read() as session:
        rows = service.every_message(
            session,
            site_ids=_site_ids(session, slug),
            states=tuple(State(state) for state in states),
            now=installation.db.now(),
            limit=limit if as_json else limit or LISTED,
        )
        if as_json:
            _print_list(_listed(session, rows))
        else:
            for row in rows:
                click.echo(_line(row))
    installation.close()


@message.command()
@click.argument("id_", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def show(id_: str, as_json: bool) -> None:
    """Show one mail: its state, its recipients, and every attempt."""
    installation = open_installation()
    with installation.db.read() as session:
        mail = service.get_message(session, ids.plain(id_), None, installation.db.now())
    installation.close()
    if mail is None:
        _refuse(f"there is no mail with the id {id_}")
    if as_json:
        click.echo(json.dumps(_shown(mail), ensure_ascii=False, default=_text))
    else:
        click.echo("\n".join(_lines(mail)))


@message.command()
@click.argument("names", metavar="[ID]...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Every mail that is held.")
@click.option("--site", "slug", help="With --all: only those of the site with this slug.")
def release(names: tuple[str, ...], all_: bool, slug: str | None) -> None:
    """Let held mail go."""
    if bool(names) == all_:
        raise click.UsageError("Name the mails, or say --all.")
    installation = open_installation()
    db = installation.db
    with db.read() as session:
        query = sa.select(Message.id).where(is_in(State.HELD)).order_by(Message.id)
        sites = _site_ids(session, slug)
        if names:
            query = query.where(Message.queue_id.in_([ids.plain(one) for one in names]))
        if sites is not None:
            query = query.where(Message.site_id.in_(sites))
        keys = session.scalars(query).all()
    released = 0
    for start in range(0, len(keys), AT_A_TIME):
        with db.write_connection() as connection:
            released += hold.release(connection, keys[start : start + AT_A_TIME], db.now())
    Waker(installation.settings.instance).wake()
    installation.close()
    click.echo(f"{released} mails are on their way.")


def _site_ids(session: Session, slug: str | None) -> list[int] | None:
    if slug is None:
        return ids_beside_deleted(session)
    found = session.scalar(sa.select(Site.id).where(Site.slug == slug, Site.deleted_at.is_(None)))
    if found is None:
        _refuse(f"there is no site with the slug {slug}")
    return [found]


def _refuse(sentence: str) -> NoReturn:
    click.echo(f"postroom: {sentence}", err=True)
    sys.exit(DATA)


# ---- for programs ----


def _print_list(objects: Iterator[Mapping[str, Any]]) -> None:
    """One JSON list, a mail a line, written as it is read."""
    click.echo("[", nl=False)
    for index, each in enumerate(objects):
        click.echo("," if index else "")
        click.echo(json.dumps(each, ensure_ascii=False, default=_text), nl=False)
    click.echo("\n]")


def _listed(session: Session, rows: Iterator[LogRow]) -> Iterator[dict[str, Any]]:
    while chunk := list(itertools.islice(rows, AT_A_TIME)):
        keys = [row.id for row in chunk]
        recipients = service.recipients(session, keys)
        attempts = service.attempts(session, keys)
        for row in chunk:
            yield _object(row, recipients.get(row.id, ()), attempts.get(row.id, ()))


def _object(
    row: LogRow, recipients: Sequence[RecipientRow], attempts: Sequence[AttemptRow]
) -> dict[str, Any]:
    return {
        "id": row.queue_id,
        "site": row.site_slug,
        "state": row.state.value,
        "maybe_twice": row.maybe_twice,
        "message_id": row.message_id,
        "subject": row.subject,
        "from": row.from_email,
        "accepted_at": row.accepted_at,
        "finished_at": row.finished_at,
        "via": row.via,
        "recipients": [
            {
                "address": recipient.address,
                "state": recipient.state.value,
                "code": recipient.code,
                "words": recipient.words,
            }
            for recipient in recipients
        ],
        "attempts": [
            {
                "number": attempt.number,
                "connection": attempt.connection,
                "outcome": attempt.outcome.value,
                "cause": attempt.cause,
                "code": attempt.code,
                "words": attempt.words,
                "remote_id": attempt.remote_id,
                "started_at": attempt.started_at,
                "finished_at": attempt.finished_at,
            }
            for attempt in attempts
        ],
    }


def _shown(mail: MessageDetail) -> dict[str, Any]:
    waiting = mail.row.waiting
    return _object(mail.row, mail.recipients, mail.attempts) | {
        "source": mail.source.value,
        "mail_from": mail.mail_from,
        "sent_from": mail.sent_from,
        "size_bytes": mail.size_bytes,
        "expires_at": mail.expires_at,
        "has_content": mail.has_content,
        "why": dict(mail.why),
        "waits_for": waiting.reason.value if waiting else None,
        "next_at": waiting.until if waiting else None,
    }


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


# ---- for people ----


def _line(row: LogRow) -> str:
    at = row.accepted_at.strftime("%Y-%m-%d %H:%M:%S")
    twice = " (maybe twice)" if row.maybe_twice else ""
    to = _one_line(row.to_line)
    return f"{at}Z  {row.queue_id}  {row.state.value:<9}  {to}  {_one_line(row.subject)}{twice}"


def _lines(mail: MessageDetail) -> Iterator[str]:
    row = mail.row
    yield f"{ids.pretty(row.queue_id)}  {_one_line(row.subject)}"
    twice = ", may have arrived twice" if row.maybe_twice else ""
    yield f"State: {row.state.value}{twice}"
    yield f"Site: {row.site_slug}   Via: {row.via or 'none yet'}"
    yield f"From: {_one_line(row.from_email)}   Accepted: {_text(row.accepted_at)}"
    if row.waiting is not None:
        until = f" until {_text(row.waiting.until)}" if row.waiting.until else ""
        yield f"Waits: {row.waiting.reason.value}{until}"
    for recipient in mail.recipients:
        words = _said(recipient.code, recipient.words)
        yield f"To: {_one_line(recipient.address)}   {recipient.state.value}{words}"
    for attempt in mail.attempts:
        words = _said(attempt.code, attempt.words)
        yield (
            f"Attempt {attempt.number}: {_text(attempt.started_at)}   {attempt.connection}   "
            f"{attempt.outcome.value}{words}"
        )


def _said(code: str, words: str) -> str:
    text = words if words.startswith(code) else f"{code} {words}"
    return f"   {_one_line(text)}" if text.strip() else ""


def _one_line(text: str) -> str:
    """What others wrote, without what could steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
