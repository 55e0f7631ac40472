"""`postroom sandbox`."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import click

from webapp import config
from webapp.sandbox import server
from webapp.sandbox.world import World

if sys.platform == "win32":
    new_event_loop = asyncio.new_event_loop
else:
    from uvloop import new_event_loop


def _listen(_context: click.Context, _parameter: click.Parameter, value: str) -> config.Listen:
    try:
        listen = config.parse_listen(value)
        server.check(listen)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    except server.NotLoopback as error:
        raise click.BadParameter(
            "the sandbox listens on this machine only, for example on 127.0.0.1"
        ) from error
    return listen


@click.command()
@click.option(
    "--listen",
    default="127.0.0.1:9080",
    show_default=True,
    callback=_listen,
    help="Pages, inbox and control (plain HTTP).",
)
@click.option(
    "--tls-listen",
    default="127.0.0.1:9443",
    show_default=True,
    callback=_listen,
    help="Tokens and Graph (TLS).",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Certificates and memory. [default: sandbox/ in the instance folder]",
)
@click.option(
    "--token-lasts",
    type=click.IntRange(1, 86_400),
    default=3600,
    show_default=True,
    help="Seconds that an access token is good for.",
)
@click.option("--json", "as_json", is_flag=True, help="Say where everything is in one JSON line.")
def sandbox(
    listen: config.Listen,
    tls_listen: config.Listen,
    folder: Path | None,
    token_lasts: int,
    as_json: bool,
) -> None:
    """Stand in for Microsoft and Google: link accounts and send mail without them."""
    options = server.Options(
        listen=listen,
        tls_listen=tls_listen,
        folder=(folder or config.load().instance / "sandbox").resolve(),
        lasts=token_lasts,
    )
    world = server.build(options)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_run(world, options, as_json=as_json))
    except OSError as error:
        raise click.ClickException(f"The sandbox cannot listen: {error.strerror}") from error


async def _run(world: World, options: server.Options, *, as_json: bool) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    say = _say_json if as_json else _say_lines
    await server.serve(world, options, ready=lambda: say(server.describe(world)), until=stop)


def _say_json(found: dict[str, Any]) -> None:
    click.echo(json.dumps(found))
    sys.stdout.flush()


def _say_lines(found: dict[str, Any]) -> None:
    click.echo("The sandbox is ready. It is neither Microsoft nor Google. Give these to Postroom:")
    click.echo(f"  POSTROOM_MICROSOFT_AUTHORITY={found['authority']}")
    click.echo(f"  POSTROOM_MICROSOFT_GRAPH={found['graph']}")
    click.echo(f"  POSTROOM_GOOGLE_AUTHORITY={found['google']['authority']}")
    click.echo(f"  POSTROOM_GOOGLE_GMAIL={found['google']['gmail']}")
    click.echo(f"  POSTROOM_CA_BUNDLE={found['ca']}")
    click.echo(f"Application ID {found['client_id']}, secret {found['client_secret']}")
    google = found["google"]
    click.echo(f"Google: Client ID {google['client_id']}, secret {google['client_secret']}")
    click.echo(f"What arrives, and what goes wrong: {found['inbox']}")
    sys.stdout.flush()
