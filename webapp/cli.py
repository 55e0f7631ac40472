"""The `postroom` commands. Exit codes follow sysexits(3); output for programs is JSON."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import ClassVar

import click

from webapp import __version__, config, logs

OK, FAILED, USAGE, NO_USER, DATA, UNAVAILABLE = 0, 1, 64, 67, 65, 69
SOFTWARE, TEMPORARY, CONFIG = 70, 75, 78


class Commands(click.Group):
    """Groups are imported when they are called: `postroom --help` needs no database driver."""

    modules: ClassVar[dict[str, str]] = {
        "site": "webapp.sites.commands:site",
        "credential": "webapp.sites.commands:credential",
        "connection": "webapp.connections.commands:connection",
        "message": "webapp.maillog.commands:message",
        "sendmail": "webapp.ingress.commands:sendmail",
        "admin": "webapp.accounts.commands:admin",
        "key": "webapp.ops.commands:key",
        "doctor": "webapp.ops.commands:doctor",
        "backup": "webapp.ops.commands:backup",
        "restore": "webapp.ops.commands:restore",
        "demo": "webapp.demo:demo",
        "sandbox": "webapp.sandbox.commands:sandbox",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*super().list_commands(ctx), *self.modules})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command, imported now."""
        if cmd_name not in self.modules:
            return super().get_command(ctx, cmd_name)
        module, _, name = self.modules[cmd_name].partition(":")
        found: click.Command = getattr(import_module(module), name)
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="postroom")
def postroom() -> None:
    """Postroom: one dashboard for the outgoing mail of many sites."""


@postroom.command()
def migrate() -> None:
    """Bring the database up to date."""
    from webapp import schema
    from webapp.installation import load_keys, open_database, prove_key

    settings = config.load()
    db = open_database(settings)
    keyring = load_keys(settings, may_create=schema.is_empty(db))
    before, after = schema.migrate(db)
    prove_key(db, keyring)
    db.close()
    click.echo(f"The database is at revision {after}" + ("." if before != after else " already."))


@postroom.command()
def web() -> None:
    """Run the dashboard alone."""
    _part("web")


@postroom.command()
def submission() -> None:
    """Run the SMTP listener alone."""
    _part("submission")


@postroom.command()
def deliver() -> None:
    """Run the delivery worker alone."""
    _part("deliver")


def _part(name: str) -> None:
    import os

    from webapp import parts

    logs.configure(as_json=config.load().log_json)
    getattr(parts, name)()
    sys.stderr.flush()
    os._exit(OK)  # a thread on the network may hang for minutes; what it does is recorded


@postroom.command()
def serve() -> None:
    """Run everything: dashboard, SMTP listener, delivery worker."""
    from webapp import parts, web_server
    from webapp.accounts.setup import setup_link
    from webapp.installation import open_installation
    from webapp.serve import Supervisor

    settings = config.load()
    logs.configure(as_json=settings.log_json)
    installation = open_installation(settings, migrate=True)
    parts.refuse_open_door(installation)
    link = setup_link(installation)
    installation.close()
    web_server.preload()
    click.echo(f"Postroom {__version__}: {settings.url}")
    click.echo(f"Submission (SMTP): {settings.submission_listen}")
    if link is not None:
        click.echo(f"\nMake the first account here (works once, for 24 hours):\n  {link}\n")
    sys.stdout.flush()
    run: dict[str, Callable[[], None]] = {
        "web": parts.web,
        "submission": parts.submission,
        "deliver": parts.deliver,
    }
    sys.exit(Supervisor(run).run())


def main() -> None:
    """The entry point: refusals are sentences, not tracebacks."""
    from sqlalchemy.exc import OperationalError

    from webapp.config import ConfigError
    from webapp.schema import SchemaError

    try:
        code = postroom.main(standalone_mode=False)
    except click.exceptions.Abort:
        _say("Stopped.")
        sys.exit(FAILED)
    except click.UsageError as error:
        error.show()
        sys.exit(USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (ConfigError, SchemaError) as error:
        _say(str(error))
        sys.exit(CONFIG)
    except OperationalError as error:
        _say(f"The database does not answer: {error.orig}")
        sys.exit(UNAVAILABLE)
    sys.exit(code if isinstance(code, int) else OK)


def _say(sentence: str) -> None:
    click.echo(f"postroom: {sentence}", err=True)


if __name__ == "__main__":
    main()
