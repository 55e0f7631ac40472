"""Which connection a mail leaves by, and why. `plan` is pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from webapp.sites.models import Mode


@dataclass(frozen=True, kw_only=True)
class SiteRoute:
    """What is known of a site when its mail is routed."""

    site_id: int
    mode: str
    retry_hours: int
    connection_id: int | None
    lane_id: int | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of a mail: blocked by choice, or waiting for a connection's lane."""

    blocked: bool = False
    connection_id: int | None = None
    lane_id: int | None = None
    why: Mapping[str, Any] = field(default_factory=dict)


def plan(site: SiteRoute) -> Plan:
    """Route one mail. Without a connection it waits until the site has one."""
    if site.mode == Mode.DO_NOT_SEND:
        return Plan(blocked=True, why={"code": "do-not-send"})
    if site.connection_id is None:
        return Plan(why={"code": "no-connection"})
    return Plan(connection_id=site.connection_id, lane_id=site.lane_id, why={"code": "primary"})
