"""Heartbeats: which processes run, as pages, probes and metrics see it."""

import os
import socket
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from webapp.delivery.models import Heartbeat

FORGET_AFTER = timedelta(days=1)
AHEAD = timedelta(minutes=1)


def name_of(part: str) -> str:
    """This process, as it is listed."""
    return f"{part}:{socket.gethostname()}:{os.getpid()}"


def beat(
    connection: Connection, name: str, part: str, now: datetime, details: Mapping[str, Any]
) -> None:
    """Say that a process is alive, and forget those that have said nothing for a day, or that said
    so by a clock that has been put back since: whoever is alive says so again."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"name": name, "part": part, "beat_at": now, "details": dict(details)}
    statement = insert(Heartbeat).values(values)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={"beat_at": statement.excluded.beat_at, "details": statement.excluded.details},
        )
    )
    old, ahead = Heartbeat.beat_at < now - FORGET_AFTER, Heartbeat.beat_at > now + AHEAD
    connection.execute(sa.delete(Heartbeat).where(sa.or_(old, ahead)))


def forget(connection: Connection, name: str) -> None:
    """A process ends in good order."""
    connection.execute(sa.delete(Heartbeat).where(Heartbeat.name == name))
