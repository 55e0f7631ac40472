"""`postroom demo`: everything of the product to click through, without an account at Microsoft.

An installation of its own in `demo/` below the instance folder, the sandbox beside its three parts,
and, at the first start, two sites with mail in every state. Nothing of it leaves this machine.
"""

import asyncio
import base64
import hashlib
import json
import os
import secrets
import shutil
import signal
import smtplib
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import click
import requests
import sqlalchemy as sa
import structlog

from webapp import config, ids, logs, parts, web_server
from webapp.accounts.service import create_user
from webapp.config import ConfigError, Listen, Settings
from webapp.connections import service as connections
from webapp.connections.models import Connection
from webapp.connections.service import FormValues
from webapp.delivery import actions, replan
from webapp.delivery.models import Lane, Message, Source, State
from webapp.delivery.wake import Waker
from webapp.ingress.accept import Pinned, Submission, prepare, store
from webapp.installation import Installation, load_keys, open_installation
from webapp.microsoft import service as microsoft
from webapp.microsoft.clouds import CUSTOM, Cloud, clouds
from webapp.microsoft.models import OAuthApp
from webapp.microsoft.service import Account, AppValues
from webapp.microsoft.tokens import AppFacts, Tokens
from webapp.outward import Outward
from webapp.routing import rules
from webapp.routing.conditions import Operator, Property
from webapp.routing.models import Action, RuleKind
from webapp.routing.rules import Draft
from webapp.sandbox import server
from webapp.sandbox.directory import SHARED_APPLICATION
from webapp.sandbox.folder import Folder
from webapp.serve import Supervisor
from webapp.sites import service as sites
from webapp.sites import settings as site_settings
from webapp.sites.models import AfterUnclear, CredentialKind, Mode, Site

log = structlog.get_logger(__name__)

EMAIL = "demo@postroom.example"
ACTOR = "demo"
NOTE = "demo.json"
PATIENCE = 60.0
"""Seconds until a step of the first start counts as gone wrong."""
LOOK_EVERY = 0.1
SCOPES = ("User.Read", "Mail.Send")
SECRET_LASTS = timedelta(days=24)
"""So that the calendar has something to say."""
SHOP_ACCOUNT = "orders@contoso.example"
BOOKS_ACCOUNT = "noreply@fabrikam.example"


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a demo remembers about itself, in a file beside its database."""

    email: str
    password: str
    ready: bool

    def write(self, folder: Path) -> None:
        """For the next start."""
        fresh = folder / f"{NOTE}.new"
        with open(fresh, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump(asdict(self), file)
        fresh.replace(folder / NOTE)

    @classmethod
    def read(cls, folder: Path) -> "Note | None":
        """None at the first start."""
        try:
            return cls(**json.loads((folder / NOTE).read_text()))
        except (OSError, ValueError, TypeError):
            return None


def _listen(_context: click.Context, _parameter: click.Parameter, value: str) -> Listen:
    try:
        listen = config.parse_listen(value)
        server.check(listen)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    except server.NotLoopback as error:
        raise click.BadParameter("the demo listens on this machine only") from error
    return listen


def _address(name: str, default: str, what: str) -> Callable[[Any], Any]:
    return click.option(name, default=default, show_default=True, callback=_listen, help=what)


@click.command()
@_address("--http", "127.0.0.1:8035", "The dashboard.")
@_address("--submission", "127.0.0.1:2535", "Where mail can be handed in.")
@_address("--sandbox", "127.0.0.1:9080", "Sign-in and inbox of the stand-in for Microsoft.")
@_address("--sandbox-tls", "127.0.0.1:9443", "Its tokens and Graph.")
def demo(http: Listen, submission: Listen, sandbox: Listen, sandbox_tls: Listen) -> None:
    """Show everything, without an account at Microsoft, until Ctrl-C.

    Its data is in demo/ below the instance folder; delete that folder to begin anew.
    """
    folder = config.load().instance / "demo"
    note = _begin(folder)
    options = server.Options(listen=sandbox, tls_listen=sandbox_tls, folder=folder / "sandbox")
    Folder(options.folder).tls()  # so that its CA can be trusted before it runs
    config.replace_environment(
        {
            "POSTROOM_INSTANCE": str(folder),
            "POSTROOM_HTTP_LISTEN": http,
            "POSTROOM_SUBMISSION_LISTEN": submission,
            "POSTROOM_MICROSOFT_AUTHORITY": f"https://localhost:{sandbox_tls.port}",
            "POSTROOM_MICROSOFT_GRAPH": f"https://localhost:{sandbox_tls.port}/graph",
            "POSTROOM_CA_BUNDLE": str(options.folder / "ca.pem"),
            "POSTROOM_DEMO_INBOX": f"http://localhost:{sandbox.port}",
        }
    )
    settings = config.load()
    logs.configure(as_json=False, quiet=True)
    _refuse_taken_ports(http, submission, sandbox, sandbox_tls)
    open_installation(settings, migrate=True).close()
    web_server.preload()
    sys.stdout.flush()
    _in_a_process_of_its_own(lambda: guide(settings, note, folder))
    supervisor = Supervisor(
        {
            "sandbox": lambda: run_sandbox(options),
            "web": parts.web,
            "submission": parts.submission,
            "deliver": parts.deliver,
        }
    )
    sys.exit(supervisor.run())


def _begin(folder: Path) -> Note:
    """What is known from the last start; one that was cut short is begun anew."""
    folder.mkdir(parents=True, exist_ok=True)
    note = Note.read(folder)
    if note is not None and note.ready:
        return note
    if note is not None:
        click.echo("The first start was cut short: beginning anew.")
        shutil.rmtree(folder)
        folder.mkdir()
    note = Note(email=EMAIL, password=secrets.token_urlsafe(9), ready=False)
    note.write(folder)
    return note


def _refuse_taken_ports(*listens: Listen) -> None:
    """Say so now: the parts would try again and again."""
    for listen in listens:
        if is_taken(listen):
            raise ConfigError(
                f"{listen} is in use, perhaps by another demo. Choose other ports: see "
                "`postroom demo --help`."
            )


def is_taken(listen: Listen) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((listen.host, listen.port), 1).close()
    except OSError:
        return False
    return True


def _in_a_process_of_its_own(work: Callable[[], None]) -> None:
    """It ends by itself, or with us: the supervisor forks, so that threads are no way."""
    parent = os.getpid()
    if os.fork() != 0:
        return
    code = 1
    try:
        work()
        code = 0
    except (KeyboardInterrupt, Stopped):
        pass
    except Exception:  # the edge of a process: nobody else would ever hear of it
        log.exception("the demo could not be prepared")
        with suppress(ProcessLookupError):
            os.kill(parent, signal.SIGTERM)
    finally:
        sys.stdout.flush()
        os._exit(code)


def run_sandbox(options: server.Options) -> None:
    """The stand-in for Microsoft, until SIGTERM."""
    world = server.build(options)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await server.serve(world, options, ready=lambda: None, until=stop)

    asyncio.run(run())


# ---- the guide: waits until everything runs, fills it once, and says where to look ----


class Stopped(Exception):
    """The demo was stopped meanwhile, or something does not come."""


def guide(settings: Settings, note: Note, folder: Path) -> None:
    """Prepare the first start, and print the tour."""
    inbox = Sandbox(settings)
    wait(inbox.runs, "the sandbox")
    wait(lambda: is_taken(settings.submission_listen), "submission")
    wait(lambda: is_taken(settings.http_listen), "the dashboard")
    if not note.ready:
        click.echo("Preparing two sites and some mail; this takes a few seconds ...")
        sys.stdout.flush()
        installation = open_installation(settings)
        try:
            prepare_everything(installation, inbox, note)
        finally:
            installation.close()
        Note(email=note.email, password=note.password, ready=True).write(folder)
    click.echo(tour(settings, note))


def wait(until: Callable[[], object], what: str) -> None:
    """Raises Stopped when the demo ends, or when it does not come."""
    patience = time.monotonic() + PATIENCE
    parent = os.getppid()
    while not until():
        if os.getppid() != parent:
            raise Stopped
        if time.monotonic() > patience:
            raise TimeoutError(f"{what} did not come within {PATIENCE:.0f} s")
        time.sleep(LOOK_EVERY)


def tour(settings: Settings, note: Note) -> str:
    """What to look at first."""
    return (
        f"\nOpen {settings.url} and sign in as {note.email} with the password {note.password}\n"
        "1. The first page lists two sites, the one in trouble first: its link was revoked.\n"
        "2. Its mail is held, not lost: link the mailbox again in three clicks, and it leaves.\n"
        "3. The log of Lindenhof Shop has mail in every state; open one that failed, and its fix;\n"
        "   one is held by a control until you release it.\n"
        f"4. {settings.demo_inbox} shows what arrived, and makes things go wrong.\n"
        "5. Ctrl-C ends it all; the next start has the same data.\n"
    )


class Sandbox:
    """The sandbox of this demo, as a browser and as its control see it."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.demo_inbox
        self._ca = str(settings.ca_bundle)
        self._plain = Outward()
        self._redirect = f"{settings.url}/oauth/microsoft/callback"

    def runs(self) -> bool:
        """Whether it answers."""
        try:
            return self._plain.get(f"{self._root}/control/faults", proxies=NO_PROXY).ok
        except requests.RequestException:
            return False

    def tell(self, name: str, **given: object) -> None:
        """A call of its control."""
        answer = self._plain.post(f"{self._root}/control/{name}", json=given, proxies=NO_PROXY)
        answer.raise_for_status()

    def sign_in(self, app: AppFacts, account: str) -> Mapping[str, Any]:
        """What the token endpoint answers to somebody who signed in and agreed."""
        verifier = secrets.token_urlsafe(48)
        digest = hashlib.sha256(verifier.encode()).digest()
        asked = {
            "client_id": app.client_id,
            "response_type": "code",
            "redirect_uri": self._redirect,
            "scope": " ".join(("openid profile email offline_access", *_scopes(app.cloud))),
            "state": ids.short_id(),
            "nonce": ids.short_id(),
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        page = self._plain.post(
            f"{self._root}/{app.tenant}/oauth2/v2.0/authorize?{urlencode(asked)}",
            data={"account": account, "decision": "accept"},
            allow_redirects=False,
            proxies=NO_PROXY,
        )
        back = parse_qs(urlsplit(page.headers["Location"]).query)
        with Outward(ca_file=self._ca) as outward:
            answer = outward.post(
                f"{app.cloud.authority(app.tenant)}/oauth2/v2.0/token",
                data={
                    "grant_type": "authorization_code",
                    "code": back["code"][0],
                    "redirect_uri": self._redirect,
                    "code_verifier": verifier,
                    "client_id": app.client_id,
                    "client_secret": app.secret,
                },
                proxies=NO_PROXY,
            )
        answer.raise_for_status()
        found: Mapping[str, Any] = answer.json()
        return found


NO_PROXY = {"http": "", "https": ""}


def _scopes(cloud: Cloud) -> tuple[str, ...]:
    return tuple(cloud.scope(permission) for permission in SCOPES)


def claims_of(id_token: str) -> Mapping[str, str]:
    """What an ID token says; whose it is need not be proved on this machine."""
    payload = id_token.split(".")[1]
    found: Mapping[str, str] = json.loads(base64.urlsafe_b64decode(payload + "=" * 3))
    return found


# ---- what there is to see ----


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One sample site, and how its programs hand mail in."""

    slug: str
    site_id: int
    connection_id: int
    username: str
    password: str
    sender: str


def prepare_everything(installation: Installation, sandbox: Sandbox, note: Note) -> None:
    """An account, two sites, a registration, linked mailboxes, and mail in every state."""
    db = installation.db
    with db.write() as session:
        create_user(
            session,
            email=note.email,
            name="Demo",
            password=note.password,
            is_admin=True,
            language=None,
            now=db.now(),
            actor=ACTOR,
        )
        app = _registration(installation, session)
    shop = _site(
        installation, sandbox, app, name="Lindenhof Shop", url="https://lindenhof-shop.example",
        account=SHOP_ACCOUNT,
    )  # fmt: skip
    books = _site(
        installation, sandbox, app, name="松石书店 Pinestone Books",
        url="https://pinestone-books.example", account=BOOKS_ACCOUNT,
    )  # fmt: skip
    _mail_of_the_shop(installation, sandbox, shop)
    _mail_of_the_books(installation, sandbox, books)


def _registration(installation: Installation, session: Any) -> OAuthApp:
    now = installation.db.now()
    return microsoft.save_app(
        session,
        installation.keyring,
        None,
        AppValues(
            name="Sandbox",
            cloud=CUSTOM,
            tenant="common",
            client_id=SHARED_APPLICATION.client_id,
            secret=SHARED_APPLICATION.secret,
            secret_expires_on=(now.date() + SECRET_LASTS).isoformat(),
        ),
        clouds=clouds(installation.settings),
        actor=ACTOR,
        now=now,
    )


def _site(
    installation: Installation,
    sandbox: Sandbox,
    app: OAuthApp,
    *,
    name: str,
    url: str,
    account: str,
) -> Shown:
    """A site with a login and a linked connection."""
    cloud = clouds(installation.settings)[CUSTOM]
    facts = AppFacts(
        client_id=app.client_id,
        secret=SHARED_APPLICATION.secret,
        cloud=cloud,
        tenant=app.tenant,
    )
    answer = sandbox.sign_in(facts, account)
    who = claims_of(answer["id_token"])
    settings, db, keyring = installation.settings, installation.db, installation.keyring
    tokens = Tokens(
        db,
        lambda: load_keys(settings, may_create=False),
        clouds(settings),
        lambda: Outward(ca_file=str(settings.ca_bundle)),
    )
    cache = tokens.hand_over(facts, str(answer["refresh_token"]), SCOPES)
    with db.write() as session:
        now = db.now()
        site = sites.create_site(
            session, name=name, url=url, admin_email=f"admin@{sites.host_of(url)}",
            actor=ACTOR, now=now,
        )  # fmt: skip
        site.after_unclear = AfterUnclear.NEVER_TWICE  # so that an unclear mail stays one
        login = sites.create_credential(
            session, site, kind=CredentialKind.SMTP, label="Website", actor=ACTOR, now=now
        )
        connection = connections.save_connection(
            session,
            keyring,
            site,
            None,
            FormValues(
                mailer="outlook",
                from_email=account,
                from_name=name,
                settings={"one_click": True, "shared_app": app.uid},
            ),
            actor=ACTOR,
            now=now,
        )
        connections.set_primary(session, site, connection, actor=ACTOR, now=now)
        microsoft.attach(
            session,
            keyring,
            site,
            connection,
            session.get_one(OAuthApp, app.id),
            Account(
                tenant_id=who["tid"],
                object_id=who["oid"],
                address=account,
                name=who.get("name", ""),
            ),
            cache=cache,
            scopes=SCOPES,
            actor=ACTOR,
            now=now,
        )
        return Shown(
            slug=site.slug,
            site_id=site.id,
            connection_id=connection.id,
            username=login.credential.username,
            password=login.secret,
            sender=account,
        )


def _mail_of_the_shop(installation: Installation, sandbox: Sandbox, shop: Shown) -> None:
    send = _Sender(installation, shop)
    _set_mode(installation, shop, Mode.DO_NOT_SEND)
    send("Newsletter Advent", "leser@mail.example", "Diese Woche alles rund um den Advent.")
    send.until(State.BLOCKED)
    _set_mode(installation, shop, Mode.LIVE)
    _hold_newsletters(installation, shop)
    send("Newsletter Nikolaus", "leser@mail.example", "Am 6. Dezember ist der Laden offen.")
    send.until(State.HELD)
    send("Newsletter Nikolaus (Entwurf)", "leser@mail.example", "Hier fehlt noch der Text.")
    send.until(State.HELD)
    send.cancel()
    for subject, to, text in (
        ("Ihre Bestellung 20431", "a.keller@mail.example", "Vielen Dank für Ihre Bestellung."),
        ("Ihr Passwort bei Lindenhof", "b.vogt@mail.example", "Zum Ändern des Passworts: ..."),
        ("New order 20432", "admin@lindenhof-shop.example", "One table, two chairs."),
    ):
        send(subject, to, text)
        send.until(State.SENT)
    sandbox.tell("faults", kind="send_as_denied", account=shop.sender, times=1)
    send("Kontaktformular: Frage zu Tisch Linde", "laden@lindenhof-shop.example", "Guten Tag ...")
    send.until(State.FAILED)
    sandbox.tell("faults", kind="dropped_after", account=shop.sender, times=1)
    send("Ihre Rechnung 2026-1123", "c.brandt@mail.example", "Ihre Rechnung liegt bereit.")
    send.until(State.UNCERTAIN)
    _deferred(installation, shop)


def _mail_of_the_books(installation: Installation, sandbox: Sandbox, books: Shown) -> None:
    send = _Sender(installation, books)
    for subject, to, text in (
        ("订单确认 8842", "wang.li@mail.example", "感谢您的订购。我们会尽快发货。"),
        ("Your order 8843 is on its way", "j.field@mail.example", "Two books are on their way."),
    ):
        send(subject, to, text)
        send.until(State.SENT)
    sandbox.tell("revoke", account=books.sender)
    sandbox.tell("faults", kind="invalid_token", account=books.sender, times=1)
    send("订单确认 8844", "chen.yu@mail.example", "感谢您的订购。")
    with installation.db.read() as session:
        lane = session.get_one(Connection, books.connection_id).lane_id
    wait(lambda: _is_stopped(installation, lane), "the end of a revoked link")
    send("密码重置", "zhao.min@mail.example", "请点击以下链接重置密码。")


def _is_stopped(installation: Installation, lane: int | None) -> bool:
    with installation.db.read() as session:
        found = session.get_one(Lane, lane)
        return found.is_blocked and found.blocked_until is None


def _set_mode(installation: Installation, shown: Shown, mode: Mode) -> None:
    with installation.db.write() as session:
        site = session.get_one(Site, shown.site_id)
        site_settings.set_site(session, site, mode=mode, actor=ACTOR, now=installation.db.now())


def _hold_newsletters(installation: Installation, shown: Shown) -> None:
    """A control: somebody looks at a newsletter before it leaves."""
    is_one = {
        "property": Property.SUBJECT.value,
        "operator": Operator.STARTS_WITH.value,
        "value": "Newsletter",
    }
    draft = Draft(name="Newsletters are looked at first", action=Action.HOLD, groups=((is_one,),))
    with installation.db.write() as session:
        site, now = session.get_one(Site, shown.site_id), installation.db.now()
        rules.save_rules(session, site, RuleKind.CONTROL, (draft,), actor=ACTOR, now=now)


def _deferred(installation: Installation, shop: Shown) -> None:
    """A mail for a second connection, whose server does not answer: it is tried again and again."""
    db = installation.db
    with db.write() as session:
        now = db.now()
        site = session.get_one(Site, shop.site_id)
        old = connections.save_connection(
            session,
            installation.keyring,
            site,
            None,
            FormValues(
                nickname="Old mail server",
                mailer="smtp",
                from_email="shop@lindenhof-shop.example",
                settings={
                    "host": "127.0.0.1",
                    "port": 9,
                    "encryption": "none",
                    "authentication": False,
                },
            ),
            actor=ACTOR,
            now=now,
        )
        lane_key = connections.load_mailer(old, installation.keyring).lane_key()
        replan.connection_saved(session, old, lane_key=lane_key, limits=None, now=now)
        pinned = Pinned(connection_id=old.id, lane_id=old.lane_id)
    raw = _mail("shop@lindenhof-shop.example", "lager@lindenhof-shop.example", "Lagerliste", "...")
    submission = Submission(
        site_id=shop.site_id,
        credential_id=None,
        source=Source.COMMAND,
        mail_from="shop@lindenhof-shop.example",
        recipients=("lager@lindenhof-shop.example",),
        raw=raw,
        received={"from": "localhost (demo)", "with": "LOCAL", "login": ACTOR},
        pinned=pinned,
    )
    prepared = prepare(submission)
    with db.write_driver() as driver:
        store(driver, [prepared], db.now())
    Waker(installation.settings.instance).wake()
    wait(lambda: _state_of(installation, prepared.queue_id) == State.DEFERRED, "a deferred mail")


class _Sender:
    """Hands mail in by SMTP, as a program of the site does."""

    def __init__(self, installation: Installation, shown: Shown) -> None:
        self._installation = installation
        self._shown = shown
        self._queue_id = ""

    def __call__(self, subject: str, to: str, text: str) -> None:
        """One mail."""
        shown, listen = self._shown, self._installation.settings.submission_listen
        with smtplib.SMTP(listen.host, listen.port, timeout=PATIENCE) as client:
            client.login(shown.username, shown.password)
            client.mail(shown.sender)
            client.rcpt(to)
            code, said = client.data(_mail(shown.sender, to, subject, text))
            if code != 250:
                raise smtplib.SMTPDataError(code, said)
        self._queue_id = said.decode().rsplit(" ", 1)[-1]

    def until(self, state: State) -> None:
        """Wait until the last one is in a state."""
        wait(
            lambda: _state_of(self._installation, self._queue_id) == state,
            f"a mail that is {state.value}",
        )

    def cancel(self) -> None:
        """Take the last one back."""
        db = self._installation.db
        with db.read() as session:
            query = sa.select(Message.id).where(Message.queue_id == self._queue_id)
            key = session.scalars(query).one()
        with db.write_connection() as connection:
            actions.cancel(connection, key, db.now())


def _state_of(installation: Installation, queue_id: str) -> str | None:
    with installation.db.read() as session:
        return session.scalar(sa.select(Message.state).where(Message.queue_id == queue_id))


def _mail(sender: str, to: str, subject: str, text: str) -> bytes:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = sender, to, subject
    mail.set_content(text)
    mail.add_alternative(f"<html><body><p>{text}</p></body></html>", subtype="html")
    return bytes(mail).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
