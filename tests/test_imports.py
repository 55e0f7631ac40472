"""Imports point one way: a module of `webapp` imports only from layers above its own."""

import ast
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

WEBAPP = Path(__file__).parents[1] / "webapp"

# From the ground up, one layer a line; modules of a `package.*` layer may import one another. A new
# module goes on the first line below everything that it imports.
LAYERS = (
    "config",
    "disk",
    "trust",
    "outward",
    "oauth_session",
    "logs",
    "ids",
    "rounds",
    "db",
    "crypto",
    "fields",
    "i18n",
    "mime.*",
    "microsoft.clouds",
    "mailers.errors",
    "microsoft.codes",
    "mailers.base",
    "mailers.http_wire",
    "microsoft.graph",
    "google.cloud",
    "providers",
    "google.gmail",
    "mailers.linked",
    "microsoft.token_endpoint",
    "microsoft.sent_items",
    "mailers.*",
    "mailers",
    "audit",
    "accounts.models",
    "accounts.rights",
    "accounts.service",
    "sites.models",
    "sites.service",
    "sites.settings",
    "connections.models",
    "microsoft.models",
    "connections.service",
    "microsoft.dates",
    "routing.models",
    "routing.presets",
    "routing.conditions",
    "routing.service",
    "routing.book",
    "delivery.models",
    "delivery.content",
    "api.models",
    "incidents.models",
    "delivery.beats",
    "schema",
    "installation",
    "accounts.setup",
    "delivery.lanes",
    "delivery.wake",
    "delivery.clock",
    "delivery.ownership",
    "delivery.decide",
    "delivery.backups",
    "delivery.tally",
    "delivery.detours",
    "delivery.depth",
    "delivery.settle",
    "delivery.queue",
    "delivery.finish",
    "delivery.upkeep",
    "delivery.outcomes",
    "delivery.sender",
    "delivery.modes",
    "delivery.planning",
    "delivery.orphans",
    "delivery.replan",
    "delivery.drain",
    "microsoft.renewal",
    "google.renewal",
    "microsoft.service",
    "microsoft.tokens",
    "microsoft.successors",
    "microsoft.keepalive",
    "microsoft.standing",
    "explain.*",
    "ingress.accept",
    "ingress.login",
    "delivery.actions",
    "maillog.service",
    "queue.lanes",
    "queue.mails",
    "maillog.space",
    "maillog.emptying",
    "maillog.retention",
    "connections.uses",
    "connections.lifecycle",
    "routing.rules",
    "routing.trial",
    "testmail.service",
    "api.pace",
    "api.checks",
    "api.schemas",
    "api.letter",
    "api.service",
    "ops.*",
    "incidents.kinds",
    "incidents.signs",
    "incidents.service",
    "incidents.watch",
    "incidents.reach",
    "incidents.targets",
    "incidents.channel",
    "incidents.letters",
    "incidents.tell",
    "policy",
    "policy.removal",
    "policy.export",
    "words",
    "sites.carrying",
    "sites.board",
    "sites.banners",
    "sites.handin",
    "ingress.smtp",
    "delivery.worker",
    "sandbox.*",
    "*.commands",
    "web",
    "show",
    "maillog.choices",
    "maillog.story",
    "problems",
    "protect",
    "api.*",
    "forms",
    "routing.forms",
    "microsoft.forms",
    "connections.forms",
    "connections.chain",
    "connections.accounts",
    "connections.places",
    "microsoft.refusals",
    "microsoft.sign_in",
    "google.sign_in",
    "microsoft.link",
    "microsoft.apps",
    "google.forms",
    "connections.gmail",
    "connections.outlook",
    "incidents.sender",
    "connections.editor",
    "policy.forms",
    "connections.additional",
    "*.views",
    "health",
    "app",
    "__init__",
    "web_server",
    "serve",
    "parts",
    "demo",
    "cli",
)
FIRST_WITH_FLASK = LAYERS.index("web")
FLASK = ("flask", "flask_*", "werkzeug", "wtforms")
DATABASE = ("sqlalchemy", "alembic", "psycopg", "webapp.db")


def layer_of(module: str) -> int | None:
    matches = (number for number, layer in enumerate(LAYERS) if fnmatch(module, layer))
    return next(matches, None)


def imports_of(source: str, module: str, ours: Mapping[str, str]) -> Iterator[str]:
    """Full names of what a module imports anywhere in it, down to the module where it is ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"webapp.{module}: write the full name instead of a relative one"
            )
            for name in node.names:
                if (node.module, name.name) == ("webapp", "__version__"):
                    continue  # a constant that anybody may show
                full = f"{node.module}.{name.name}"
                yield full if full.removeprefix("webapp.") in ours else str(node.module)


def is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, p) or fnmatch(name, f"{p}.*") for p in patterns)


def faults(sources: Mapping[str, str]) -> Iterator[str]:
    """One sentence for each import that points the wrong way."""
    for module, source in sources.items():
        imports = sorted(set(imports_of(source, module, sources)))
        if module.startswith("migrations"):
            for name in imports:
                if is_any(name, ("webapp",)) and name != "webapp.db":
                    yield f"webapp.{module} imports {name}: of ours, migrations know webapp.db only"
            continue
        here = layer_of(module)
        if here is None:
            yield f"webapp.{module} stands in no layer: add it to LAYERS in tests/test_imports.py"
            continue
        for name in imports:
            if here < FIRST_WITH_FLASK and is_any(name, FLASK):
                yield f"webapp.{module} imports {name}: nothing above webapp.web knows Flask"
            if module.startswith(("mime", "mailers")) and is_any(name, DATABASE):
                yield f"webapp.{module} imports {name}: it must work without a database"
            if is_any(name, ("webapp",)):
                yield from _upward(module, here, name)


def _upward(module: str, here: int, imported: str) -> Iterator[str]:
    there = layer_of(imported.removeprefix("webapp.") if imported != "webapp" else "__init__")
    together = there == here and LAYERS[here].endswith(".*")
    if there is not None and there >= here and not together:
        yield (
            f"webapp.{module} (layer {LAYERS[here]}) imports {imported}"
            f" (layer {LAYERS[there]}), which does not stand above it"
        )


def webapp_sources() -> dict[str, str]:
    """Source by module name without `webapp.`; packages that are a docstring only are left out."""
    found = {}
    for path in sorted(WEBAPP.rglob("*.py")):
        parts = path.relative_to(WEBAPP).with_suffix("").parts
        package = len(parts) > 1 and parts[-1] == "__init__"
        source = path.read_text(encoding="utf-8")
        if parts[-1] != "__init__" or not _only_a_docstring(source):
            found[".".join(parts[:-1] if package else parts)] = source
    return found


def _only_a_docstring(source: str) -> bool:
    body = ast.parse(source).body
    return len(body) == int(ast.get_docstring(ast.parse(source)) is not None)


def test_imports_point_one_way() -> None:
    assert list(faults(webapp_sources())) == []


def test_an_import_that_points_down_is_found() -> None:
    sources = {"db": "def f():\n    from webapp import web", "web": "from webapp.db import Base"}
    assert list(faults(sources)) == [
        "webapp.db (layer db) imports webapp.web (layer web), which does not stand above it"
    ]


def test_pages_do_not_import_one_another_but_mailers_do() -> None:
    sources = {
        "sites.views": "import webapp.accounts.views",
        "mailers.smtp": "from webapp.mailers.base import Mailer",
    }
    (fault,) = faults(sources)
    assert fault.startswith("webapp.sites.views (layer *.views) imports webapp.accounts.views")


def test_a_module_that_nobody_placed_is_found() -> None:
    (fault,) = faults({"helpers": ""})
    assert fault.startswith("webapp.helpers stands in no layer")


def test_flask_and_the_database_stay_out_of_the_mailers() -> None:
    sources = {"mailers.smtp": "import flask_babel\nfrom sqlalchemy.orm import Session"}
    assert len(list(faults(sources))) == 2


def test_a_migration_does_not_import_todays_models() -> None:
    sources = {"migrations.versions.0001": "import webapp.sites.models\nimport webapp.db"}
    assert [fault.split(":")[0] for fault in faults(sources)] == [
        "webapp.migrations.versions.0001 imports webapp.sites.models"
    ]
