"""Things to test with, each with good defaults. All but the first take an open session that writes.

with installation.db.write() as session:
    site = a_site(session, name="Galerie Nord")
    a_membership(session, a_user(session), site, Role.VIEWER)
    mail = a_message(session, site, state=State.FAILED)
"""

import hashlib
import itertools
import shutil
import tempfile
import zlib
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from argon2 import PasswordHasher
from sqlalchemy.orm import Session

from tests.rig import postgres
from webapp import config, i18n, ids, schema
from webapp.accounts.models import Membership, Role, User
from webapp.connections.models import Connection, Health
from webapp.crypto import Keyring, new_key
from webapp.db import Database
from webapp.delivery.models import Content, Lane, Message, Recipient, Source, State, Tally
from webapp.installation import Installation, open_installation, write_keys
from webapp.microsoft.models import Grant, GrantState, Link, Mailbox, OAuthApp
from webapp.microsoft.service import app_subject, grant_subject, lane_key
from webapp.sites.models import Credential, CredentialKind, Mode, Site

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""Hashes like the real one, in a fraction of a millisecond."""

PASSWORD = "correct horse battery"
"""The password of every user made here, unless the test gives another."""

_numbers = itertools.count(1)


def an_installation(db_url: str, tmp_path: Path, **settings: object) -> Installation:
    """A migrated, empty installation of this database; further settings by their names."""
    instance = tmp_path / "instance"
    instance.mkdir(exist_ok=True)
    if not (instance / "translations").exists():
        shutil.copytree(_compiled(), instance / "translations")
    given = {f"POSTROOM_{name.upper()}": str(value) for name, value in settings.items()}
    environ = {"POSTROOM_INSTANCE": str(instance), "POSTROOM_DATABASE_URL": db_url, **given}
    if give_tables(db_url) and not (instance / "secret.key").exists():
        write_keys(instance / "secret.key", [new_key()])
    return open_installation(config.load(environ), migrate=True)


def give_tables(db_url: str) -> bool:
    """Give an empty database every table, from a copy made once; whether it was empty."""
    url = sa.make_url(db_url)
    if db_url.startswith("postgresql"):
        return postgres.give_tables(url, _migrate)
    if not url.database or Path(url.database).exists():
        return False
    shutil.copyfile(_migrated(), url.database)
    return True


def _migrate(url: sa.URL) -> None:
    db = Database(url)
    schema.migrate(db)
    db.close()


@cache
def _migrated() -> Path:
    """An empty SQLite database with every table, made once per process."""
    folder = Path(tempfile.mkdtemp(prefix="postroom-tests-"))
    url = f"sqlite:///{folder / 'empty.db'}"
    made = open_installation(
        config.load({"POSTROOM_INSTANCE": str(folder), "POSTROOM_DATABASE_URL": url}), migrate=True
    )
    with made.db.write() as session:
        session.execute(sa.text("DELETE FROM setting"))  # the check value of a key of its own
    with made.db.writer.connect() as connection:
        connection.rollback()
        connection.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    made.close()
    return folder / "empty.db"


@cache
def _compiled() -> Path:
    return i18n.compile_catalogues(Path(tempfile.mkdtemp(prefix="postroom-tests-")))


def a_time() -> datetime:
    """Now, to the second, as tests like to compare it."""
    return datetime.now(UTC).replace(microsecond=0)


@cache
def _hash(password: str) -> str:
    return CHEAP.hash(password)


def a_user(
    session: Session,
    *,
    email: str = "",
    name: str = "Mara Lindner",
    password: str = PASSWORD,
    is_admin: bool = False,
    language: str | None = None,
) -> User:
    """Somebody with an account and no role anywhere."""
    user = User(
        email=email or f"person{next(_numbers)}@agentur.example",
        name=name,
        password_hash=_hash(password),
        is_admin=is_admin,
        language=language,
        created_at=a_time(),
    )
    session.add(user)
    session.flush()
    return user


def a_site(
    session: Session, *, name: str = "", slug: str = "", mode: Mode = Mode.LIVE, **values: Any
) -> Site:
    """A site without a connection."""
    number = next(_numbers)
    slug = slug or f"site-{number}"
    defaults = {
        "url": f"https://{slug}.example",
        "admin_email": f"admin@{slug}.example",
        "created_at": a_time(),
    }
    site = Site(slug=slug, name=name or f"Site {number}", mode=mode, **(defaults | values))
    session.add(site)
    session.flush()
    return site


def a_membership(
    session: Session, user: User, site: Site, role: Role = Role.OPERATOR
) -> Membership:
    """The person's role at the site."""
    found = Membership(user_id=user.id, site_id=site.id, role=role)
    session.add(found)
    session.flush()
    return found


def a_credential(
    session: Session, site: Site, kind: CredentialKind = CredentialKind.SMTP, **values: Any
) -> tuple[Credential, str]:
    """A login or key of the site, and its secret."""
    secret = ids.secret()
    credential = Credential(
        site_id=site.id,
        kind=kind,
        username=values.pop("username", "") or f"{site.slug}-{ids.short_id()}",
        digest=hashlib.sha256(secret.encode()).hexdigest(),
        created_at=a_time(),
        **values,
    )
    session.add(credential)
    session.flush()
    return credential, secret


def a_lane(session: Session, key: str = "", **values: Any) -> Lane:
    """A lane without limits."""
    lane = Lane(key=key or f"smtp:mail{next(_numbers)}.example:587:user", **values)
    session.add(lane)
    session.flush()
    return lane


def a_connection(
    session: Session,
    site: Site | None,
    *,
    primary: bool = True,
    nickname: str = "",
    mailer: str = "smtp",
    settings: dict[str, Any] | None = None,
    secrets: dict[str, Any] | None = None,
    keyring: Keyring | None = None,
    lane: Lane | None = None,
    **values: Any,
) -> Connection:
    """An Other SMTP connection with a lane; the site's primary one, unless told otherwise.

    `settings` and `secrets` are those of the mailer; secrets need the installation's keyring.
    """
    defaults: dict[str, Any] = {"host": "mail.hoster.example", "port": 587, "encryption": "tls"}
    made = Connection(
        uid=ids.short_id(),
        site_id=site.id if site else None,
        nickname=nickname,
        mailer=mailer,
        settings={mailer: defaults | (settings or {})},
        from_email=values.pop("from_email", f"mail@{site.slug if site else 'shared'}.example"),
        lane_id=(lane or a_lane(session)).id,
        health=values.pop("health", Health.UNKNOWN),
        created_at=a_time(),
        updated_at=a_time(),
        **values,
    )
    session.add(made)
    session.flush()
    if secrets and keyring:
        made.secrets = keyring.seal("connection", f"connection:{made.uid}", {mailer: secrets})
        stored = {"at": a_time().isoformat(), "by": "mara@agentur.example"}
        made.secrets_set = {mailer: dict.fromkeys(secrets, stored)}
    if site and primary:
        site.primary_connection_id = made.id
    session.flush()
    return made


def a_mail(
    *,
    sender: str = "shop@site.example",
    to: str = "kunde@mail.example",
    subject: str = "Rechnung 2026-1123",
    text: str = "Vielen Dank für Ihre Bestellung.",
    html: str = "",
    files: dict[str, bytes] | None = None,
) -> bytes:
    """The source of a mail, with CRLF."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = sender, to, subject
    mail["Message-ID"] = f"<{ids.short_id()}@site.example>"
    mail["Date"] = "Mon, 23 Nov 2026 15:00:00 +0100"
    mail.set_content(text)
    if html:
        mail.add_alternative(html, subtype="html")
    for name, content in (files or {}).items():
        mail.add_attachment(content, maintype="application", subtype="pdf", filename=name)
    return mail.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def a_message(
    session: Session,
    site: Site,
    *,
    state: State = State.QUEUED,
    to: tuple[str, ...] = ("kunde@mail.example",),
    sender: str = "shop@site.example",
    subject: str = "Rechnung 2026-1123",
    raw: bytes | None = None,
    connection: Connection | None = None,
    at: datetime | None = None,
    **values: Any,
) -> Message:
    """A mail in the ledger, with content, recipients and its place in the tally."""
    at = at or a_time()
    source = raw or a_mail(sender=sender, to=", ".join(to), subject=subject)
    waits = state in {State.QUEUED, State.DEFERRED}
    over = state in {State.SENT, State.FAILED, State.CANCELLED, State.BLOCKED}
    columns: dict[str, Any] = {
        "queue_id": ids.queue_id(at),
        "source": Source.SMTP,
        "due_at": at if waits else None,
        "lane_id": connection.lane_id if connection else None,
        "connection_id": connection.id if connection else None,
        "planned_id": connection.id if connection else None,
        "routed_version": None if values.get("source") == Source.TEST else 1,
        "mail_from": sender,
        "from_email": sender,
        "from_name": "",
        "to_line": ", ".join(to),
        "size_bytes": len(source),
        "recipient_count": len(to),
        "has_attachments": False,
        "accepted_at": at,
        "expires_at": at + timedelta(hours=72),
        "finished_at": at if over else None,
    }
    mail = Message(site_id=site.id, state=state, subject=subject, **(columns | values))
    session.add(mail)
    session.flush()
    session.add(Content(message_id=mail.id, raw=zlib.compress(source)))
    stored = State.QUEUED if state is State.SENDING else state
    is_due = waits or state in {State.SENDING, State.HELD}
    session.add_all(
        Recipient(
            message_id=mail.id, position=position, address=address, state=stored, is_due=is_due
        )
        for position, address in enumerate(to)
    )
    _count(session, site, connection, at, "accepted")
    if over:
        _count(session, site, connection, at, state.value)
    session.flush()
    return mail


def _count(
    session: Session, site: Site, connection: Connection | None, at: datetime, outcome: str
) -> None:
    session.add(
        Tally(
            site_id=site.id,
            connection_id=connection.id if connection else None,
            outcome=outcome,
            hour=at.replace(minute=0, second=0, microsecond=0),
            count=1,
        )
    )


def an_app(
    session: Session, keyring: Keyring, *, connection: Connection | None = None, **values: Any
) -> OAuthApp:
    """A registration with a secret; a shared one unless a connection is given."""
    number = next(_numbers)
    secret = values.pop("secret", "abc~defghijklmnopqrstuvwxyz0123456789AB")
    defaults = {
        "uid": ids.short_id(),
        "connection_id": connection.id if connection else None,
        "name": f"Agency app {number}",
        "cloud": "global",
        "tenant": "common",
        "client_id": f"3f1c2d84-9a07-4e51-8a3b-{number:012d}",
        "secret_set_at": a_time(),
        "secret_set_by": "mara@agentur.example",
        "created_at": a_time(),
        "updated_at": a_time(),
    }
    app = OAuthApp(**(defaults | values))
    if secret:
        app.secret = keyring.seal("oauth-app", app_subject(app.uid), secret)
    session.add(app)
    session.flush()
    return app


def a_mailbox(session: Session, *, address: str = "", **values: Any) -> Mailbox:
    """An account at Microsoft, with its lane."""
    number = next(_numbers)
    address = address or f"orders{number}@contoso.example"
    defaults = {
        "provider": "microsoft",
        "cloud": "global",
        "tenant_id": "8d1f0000-0000-4000-8000-0000000000c2",
        "object_id": f"99999999-8888-4777-8666-{number:012d}",
        "sign_in_name": address,
        "name": "Contoso Orders",
        "addresses": [address],
        "created_at": a_time(),
        "updated_at": a_time(),
    }
    mailbox = Mailbox(address=address, **(defaults | values))
    lane = Lane(key=lane_key(mailbox), windows={}, concurrency=3, per_minute=30)
    session.add(lane)
    session.flush()
    mailbox.lane_id = lane.id
    session.add(mailbox)
    session.flush()
    return mailbox


def a_grant(
    session: Session, keyring: Keyring, app: OAuthApp, mailbox: Mailbox, **values: Any
) -> Grant:
    """A grant with a token cache that holds nothing."""
    cache = values.pop("cache", "{}")
    defaults = {
        "scopes": ["User.Read", "Mail.Send"],
        "version": 1,
        "state": GrantState.LINKED,
        "state_since": a_time(),
        "renewed_at": a_time(),
        "renew_at": a_time() + timedelta(hours=24),
    }
    grant = Grant(app_id=app.id, mailbox_id=mailbox.id, **(defaults | values))
    session.add(grant)
    session.flush()
    grant.cache = keyring.seal("grant", grant_subject(grant.id), cache)
    session.flush()
    return grant


def a_link(session: Session, connection: Connection, grant: Grant) -> Link:
    """The connection sends by this grant."""
    link = Link(
        connection_id=connection.id,
        app_id=grant.app_id,
        grant_id=grant.id,
        linked_at=a_time(),
        linked_by="mara@agentur.example",
    )
    session.add(link)
    mailbox = session.get_one(Mailbox, grant.mailbox_id)
    connection.mailer = "outlook"
    connection.settings = {**connection.settings, "outlook": {"one_click": True, "shared_app": ""}}
    connection.grant_id = grant.id
    connection.lane_id = mailbox.lane_id
    session.flush()
    return link
