"""The kinds of service mail can leave by: one module each, found by listing this package."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from webapp.mailers.base import Mailer


def registry() -> dict[str, type[Mailer]]:
    """Every mailer by its slug."""
    return dict(_found())


@cache
def _found() -> tuple[tuple[str, type[Mailer]], ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return tuple(
        (kind.slug, kind)
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Mailer)
        and kind.__module__ == module.__name__
        and vars(kind).get("slug")
    )
