"""The rules of sites as accepting mail needs them: read once for each version, then remembered."""

import json
from collections.abc import Collection
from dataclasses import dataclass

from webapp.db import Driver
from webapp.routing.service import NO_RULES, RuleRow, Rules, SiteRoute, rules_from

_ROUTES = (
    "SELECT site.id, site.mode, site.retry_hours, connection.id, connection.lane_id, "
    "site.redirect_to, site.routing_version, site.routing_enabled FROM site "
    "LEFT JOIN connection ON connection.id = site.primary_connection_id "
    "AND connection.deleted_at IS NULL WHERE site.id IN "
)
_RULES = (
    'SELECT site_id, kind, uid, name, connection_id, action, "groups" FROM rule WHERE site_id IN '
)
_RULES_ORDER = " ORDER BY site_id, kind, position"
_LANES = (
    "SELECT id, lane_id FROM connection WHERE lane_id IS NOT NULL AND deleted_at IS NULL AND id IN "
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """The rules of one site, and the version they are of."""

    version: int
    rules: Rules


class Rulebook:
    """What a process that accepts mail knows of rules. A site without any costs nothing more than
    its version, which comes with its primary connection."""

    def __init__(self) -> None:
        self._pages: dict[int, Page] = {}

    def has_rules(self, site_id: int) -> bool:
        """Whether a site had rules when its mail came last."""
        page = self._pages.get(site_id)
        return page is not None and bool(page.rules)

    def routes(self, driver: Driver, site_ids: Collection[int]) -> dict[int, SiteRoute]:
        """How mail of these sites is routed now."""
        rows = driver.rows(f"{_ROUTES}{_marks(site_ids)}", *site_ids)
        self._read(driver, {row[0]: (row[6], bool(row[7])) for row in rows})
        rules = {row[0]: self._pages[row[0]].rules for row in rows}
        targets = {
            route.connection_id
            for site_rules in rules.values()
            for route in site_rules.routes
            if route.connection_id is not None
        }
        lanes: dict[int, int] = {}
        if targets:
            lanes = dict(driver.rows(f"{_LANES}{_marks(targets)}", *targets))
        return {
            site_id: SiteRoute(
                site_id=site_id,
                mode=mode,
                retry_hours=retry_hours,
                connection_id=connection_id if lane_id is not None else None,
                lane_id=lane_id,
                redirect_to=redirect_to,
                version=version,
                rules=rules[site_id],
                lanes=lanes,
            )
            for site_id, mode, retry_hours, connection_id, lane_id, redirect_to, version, _ in rows
        }

    def _read(self, driver: Driver, versions: dict[int, tuple[int, bool]]) -> None:
        """Read the rules of those sites whose version is not the remembered one."""
        new = [
            site_id
            for site_id, (version, _) in versions.items()
            if (page := self._pages.get(site_id)) is None or page.version != version
        ]
        if not new:
            return
        found: dict[int, list[RuleRow]] = {}
        for site_id, *values, groups in driver.rows(f"{_RULES}{_marks(new)}{_RULES_ORDER}", *new):
            kind, uid, name, connection_id, action = values
            read = json.loads(groups) if isinstance(groups, str) else groups
            found.setdefault(site_id, []).append((kind, uid, name, connection_id, action, read))
        for site_id in new:
            version, enabled = versions[site_id]
            rows = found.get(site_id)
            rules = rules_from(rows, routing_enabled=enabled) if rows else NO_RULES
            self._pages[site_id] = Page(version=version, rules=rules)


def _marks(values: Collection[int]) -> str:
    return f"({', '.join('?' * len(values))})"
