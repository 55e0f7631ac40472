"""A site as JSON lines: its settings, then its log, oldest first; no mail and no secret in them."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.accounts.models import Membership, User
from webapp.connections.models import Backup, Connection
from webapp.db import Database
from webapp.delivery.models import Message
from webapp.incidents.models import AlertTarget, Channel
from webapp.maillog import service as maillog
from webapp.maillog.service import connection_name
from webapp.routing.models import Rule
from webapp.sites import settings
from webapp.sites.models import Credential, Site

CHUNK = 500
Line = dict[str, Any]


def lines(db: Database, site_id: int) -> Iterator[str]:
    """Each with its line break. Reads a little at a time, so that nobody waits for a download."""
    with db.read() as session:
        found = list(_settings(session, site_id))
    yield from map(_json, found)
    after = 0
    while True:
        with db.read() as session:
            keys, mails = _mails(session, site_id, after)
        if not keys:
            return
        yield from map(_json, mails)
        after = keys[-1]


def _json(line: Line) -> str:
    return f"{json.dumps(line, ensure_ascii=False, default=_text)}\n"


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _settings(session: Session, site_id: int) -> Iterator[Line]:
    site = session.get_one(Site, site_id)
    yield {
        "kind": "site",
        "slug": site.slug,
        **settings.shown(site),
        "silent_hours": site.silent_hours,
        "routing_enabled": site.routing_enabled,
        "created_at": site.created_at,
    }
    yield from _connections(session, site)
    names = {row.id: row.uid for row in session.execute(sa.select(Connection.id, Connection.uid))}
    backups = sa.select(Backup).where(Backup.site_id == site.id).order_by(Backup.position)
    for backup in session.scalars(backups):
        uid = names.get(backup.connection_id)
        yield {"kind": "backup", "position": backup.position, "connection": uid}
    rules = sa.select(Rule).where(Rule.site_id == site.id).order_by(Rule.kind, Rule.position)
    for rule in session.scalars(rules):
        yield {
            "kind": rule.kind,
            "position": rule.position,
            "name": rule.name,
            "connection": names.get(rule.connection_id or 0),
            "action": rule.action,
            "groups": rule.groups,
        }
    yield from _people(session, site)


def _connections(session: Session, site: Site) -> Iterator[Line]:
    query = sa.select(Connection).where(
        Connection.site_id == site.id, Connection.deleted_at.is_(None)
    )
    for one in session.scalars(query.order_by(Connection.id)):
        yield {
            "kind": "connection",
            "id": one.uid,
            "nickname": one.nickname,
            "is_primary": one.id == site.primary_connection_id,
            "mailer": one.mailer,
            "settings": one.settings.get(one.mailer, {}),
            "from_email": one.from_email,
            "force_from_email": one.force_from_email,
            "from_name": one.from_name,
            "force_from_name": one.force_from_name,
            "return_path": one.return_path,
        }


def _people(session: Session, site: Site) -> Iterator[Line]:
    logins = sa.select(Credential).where(Credential.site_id == site.id).order_by(Credential.id)
    for login in session.scalars(logins):
        yield {
            "kind": "credential",
            "type": login.kind,
            "username": login.username,
            "label": login.label,
            "scopes": login.scopes,
            "senders": login.senders,
            "networks": login.networks,
            "created_at": login.created_at,
            "last_used_at": login.last_used_at,
            "revoked_at": login.revoked_at,
        }
    members = sa.select(User.email, Membership.role).join(Membership, Membership.user_id == User.id)
    for row in session.execute(members.where(Membership.site_id == site.id).order_by(User.email)):
        yield {"kind": "member", "email": row.email, "role": row.role}
    targets = sa.select(AlertTarget).where(AlertTarget.site_id == site.id).order_by(AlertTarget.id)
    for target in session.scalars(targets):
        yield {"kind": "alert", "channel": target.channel, "address": _place(target)}


def _place(target: AlertTarget) -> str:
    """Of a webhook only the host: what follows it is often a key."""
    if target.channel == Channel.WEBHOOK:
        return urlsplit(target.address).hostname or ""
    return target.address


def _mails(session: Session, site_id: int, after: int) -> tuple[list[int], list[Line]]:
    query = (
        sa.select(Message, Connection.nickname, Connection.mailer)
        .outerjoin(Connection, Connection.id == Message.connection_id)
        .where(Message.site_id == site_id, Message.id > after)
        .order_by(Message.id)
        .limit(CHUNK)
    )
    rows = session.execute(query).all()
    keys = [row[0].id for row in rows]
    recipients = maillog.recipients(session, keys)
    attempts = maillog.attempts(session, keys)
    return keys, [
        {
            **_mail(message, connection_name(nickname, mailer)),
            "recipients": [
                {"address": r.address, "state": r.state.value, "code": r.code, "words": r.words}
                for r in recipients.get(message.id, ())
            ],
            "attempts": [
                {
                    "number": a.number,
                    "connection": a.connection,
                    "outcome": a.outcome.value,
                    "code": a.code,
                    "words": a.words,
                    "remote_id": a.remote_id,
                    "started_at": a.started_at,
                    "finished_at": a.finished_at,
                }
                for a in attempts.get(message.id, ())
            ],
        }
        for message, nickname, mailer in rows
    ]


def _mail(message: Message, via: str) -> Line:
    return {
        "kind": "mail",
        "id": message.queue_id,
        "state": message.state,
        "source": message.source,
        "subject": message.subject,
        "from": message.from_email,
        "sent_from": message.sent_from,
        "mail_from": message.mail_from,
        "message_id": message.message_id,
        "size_bytes": message.size_bytes,
        "has_attachments": message.has_attachments,
        "accepted_at": message.accepted_at,
        "finished_at": message.finished_at,
        "maybe_twice": message.maybe_twice,
        "via": via,
        "why": message.why,
    }
