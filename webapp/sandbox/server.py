"""The two listeners: pages and control on plain HTTP; tokens, keys and Graph over TLS."""

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from webapp.config import Listen
from webapp.sandbox import control, google, graph, panel, sign_in, token_endpoint
from webapp.sandbox import pages as shown
from webapp.sandbox.directory import CONTOSO_APPLICATION, SHARED_APPLICATION
from webapp.sandbox.folder import Folder
from webapp.sandbox.pages import Pages
from webapp.sandbox.wire import Answer, Connection, Handler, Request, as_text
from webapp.sandbox.world import Addresses, World

OWN_NAMES = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a sandbox is started."""

    listen: Listen
    tls_listen: Listen
    folder: Path
    lasts: int = 3600
    """Seconds that an access token is good for."""


class NotLoopback(Exception):
    """The sandbox would be reachable from elsewhere."""


def check(listen: Listen) -> None:
    """Raises NotLoopback unless only this machine can reach it."""
    try:
        alone = listen.host == "localhost" or ipaddress.ip_address(listen.host).is_loopback
    except ValueError:
        alone = False
    if not alone:
        raise NotLoopback(str(listen))


def build(options: Options) -> World:
    """The state of a sandbox, with what its folder remembers."""
    addresses = Addresses(
        inbox=f"http://localhost:{options.listen.port}",
        authority=f"https://localhost:{options.tls_listen.port}",
    )
    world = World(Folder(options.folder), addresses, lasts=options.lasts)
    world.google = google.Google(world)
    return world


async def serve(
    world: World, options: Options, *, ready: Callable[[], None], until: asyncio.Event
) -> None:
    """Listen until the event is set; `ready` is called once both listeners are open."""
    check(options.listen)
    check(options.tls_listen)
    loop = asyncio.get_running_loop()
    plain, tls = plain_side(world), tls_side(world)
    connected: set[Connection] = set()
    servers = [
        await loop.create_server(
            lambda: Connection(plain, connected), options.listen.host, options.listen.port
        ),
        await loop.create_server(
            lambda: Connection(tls, connected),
            options.tls_listen.host,
            options.tls_listen.port,
            ssl=world.folder.tls(),
        ),
    ]
    try:
        ready()
        await until.wait()
    finally:
        for server in servers:
            server.close()
        while connected:
            for connection in connected:
                connection.abort()
            await asyncio.sleep(0.001)


def plain_side(world: World) -> Handler:
    """Sign-in, inbox, panel, control."""
    pages = Pages(world.folder.path)
    gmail = world.google

    def handle(request: Request) -> Answer:
        if _host(request) not in OWN_NAMES:  # a foreign name that was made to point here
            return as_text("Open the sandbox as localhost.", status=421)
        match request.segments:
            case ("",):
                return panel.inbox(world, pages, request)
            case ("mails", number):
                return panel.mail(world, pages, request, number)
            case ("faults",):
                return panel.faults(world, pages, request)
            case ("static", name):
                return shown.static(name)
            case ("control", *_):
                return control.answer(world, request)
            case ("google", "o", "oauth2", "v2", "auth"):
                return google.authorize(gmail, pages, request)
            case (segment, "oauth2", "v2.0", "authorize"):
                return sign_in.authorize(world, pages, segment, request)
            case (segment, "v2.0", "adminconsent"):
                return sign_in.admin_consent(world, pages, segment, request)
        return pages.show(request, "missing", status=404)

    return handle


def _host(request: Request) -> str:
    return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""


def tls_side(world: World) -> Handler:
    """Metadata, tokens, Graph; the pages too, for who builds addresses from the authority."""
    gmail = world.google

    def handle(request: Request) -> Answer:
        if request.path.startswith(google.PREFIX):
            return google.answer(gmail, request)
        if request.path.startswith(graph.PREFIX):
            return graph.answer(world, request)
        match request.segments:
            case ("google", ".well-known", "openid-configuration"):
                return google.metadata(gmail)
            case ("google", "oauth2", "v3", "certs"):
                return token_endpoint.keys(world, "")
            case ("google", "token") if request.method == "POST":
                return google.token(gmail, request)
            case ("google", "revoke") if request.method == "POST":
                return google.revoke(gmail, request)
            case (segment, "v2.0", ".well-known", "openid-configuration"):
                return token_endpoint.metadata(world, segment)
            case (segment, "discovery", "v2.0", "keys"):
                return token_endpoint.keys(world, segment)
            case (segment, "oauth2", "v2.0", "token") if request.method == "POST":
                return token_endpoint.token(world, segment, request)
            case (_, "v2.0", "adminconsent") | (_, "oauth2", "v2.0", "authorize"):
                query = f"?{request.query}" if request.query else ""
                return Answer(
                    status=302,
                    headers=(("Location", f"{world.addresses.inbox}{request.path}{query}"),),
                )
        return as_text("The sandbox has nothing here.", status=404)

    return handle


def describe(world: World) -> dict[str, Any]:
    """What somebody needs to know to use a sandbox that runs."""
    return {
        "inbox": world.addresses.inbox,
        "authority": world.addresses.authority,
        "graph": world.addresses.graph,
        "ca": str(world.folder.ca),
        "client_id": SHARED_APPLICATION.client_id,
        "client_secret": SHARED_APPLICATION.secret,
        "single_tenant": {
            "client_id": CONTOSO_APPLICATION.client_id,
            "client_secret": CONTOSO_APPLICATION.secret,
            "tenant": CONTOSO_APPLICATION.tenant,
        },
        "google": {
            "authority": world.google.issuer,
            "gmail": f"{world.addresses.authority}/gmail",
            "client_id": google.CLIENT_ID,
            "client_secret": google.CLIENT_SECRET,
            "accounts": [account.mail for account in google.ACCOUNTS],
        },
        "accounts": [account.mail or account.upn for account in world.directory.accounts.values()],
    }
