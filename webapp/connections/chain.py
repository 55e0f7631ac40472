"""The Backup Connection block of General: an ordered chain that works without JavaScript.

Its rows are hidden fields; a button moves one and gives the page back, and Save Settings stores
them. A page that does not show the block leaves the chain as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from flask import request
from sqlalchemy.orm import Session

from webapp.connections.models import Connection
from webapp.connections.service import find_connection
from webapp.connections.uses import Listed
from webapp.delivery.models import State, Tally
from webapp.fields import N_
from webapp.sites.models import Site

FIELD = "backup"
SHOWN = "backup-shown"
PICKED = "backup-add"

GONE = N_("A connection of the chain was deleted meanwhile. Look through the order, and save.")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The chain as the page shows it."""

    rows: tuple[Listed, ...]
    offered: tuple[Listed, ...]
    """Complete connections that are not in it."""
    is_offered: bool
    """Whether there is anything to say about it yet: a first mail has left, or it is in use."""
    has_others: bool
    """Whether there is any connection besides the primary one."""
    pressed: str = ""
    """The button that was pressed, which keeps the focus."""
    error: str = ""

    @property
    def is_open(self) -> bool:
        """Whether there is anything to choose from."""
        return self.is_offered and (bool(self.rows) or self.has_others)


def chain_of(session: Session, site: Site, found: Sequence[Listed], error: str = "") -> Chain:
    """What was sent, with the move that was asked for; else what is stored."""
    by_uid = {row.connection.uid: row for row in found}
    then = request.form.get("then", "")
    if SHOWN in request.form:
        uids = moved([uid for uid in request.form.getlist(FIELD) if uid in by_uid], then)
    else:
        in_order = sorted((row.backup, row.connection.uid) for row in found if row.backup)
        uids = [uid for _place, uid in in_order]
    rows = tuple(by_uid[uid] for uid in uids if uid in by_uid)
    others = [row for row in found if not row.is_primary]
    return Chain(
        rows=rows,
        offered=tuple(row for row in found if row.is_usable and row not in rows),
        is_offered=bool(rows) or SHOWN in request.form or has_sent(session, site),
        has_others=bool(error) or any(row.is_usable for row in others),
        pressed=then if then.startswith(f"{FIELD}-") else "",
        error=error,
    )


def is_move(then: str) -> bool:
    """Whether the button only moves something in the chain."""
    return then.startswith(f"{FIELD}-")


def moved(uids: list[str], then: str) -> list[str]:
    """The order after a button was pressed: `backup-add`, `backup-up:ID`, `backup-down:ID`,
    `backup-drop:ID`."""
    order = list(dict.fromkeys(uids))
    verb, _colon, uid = then.removeprefix(f"{FIELD}-").partition(":")
    if then == PICKED:
        picked = request.form.get(PICKED, "")
        return order + [picked] * (bool(picked) and picked not in order)
    if not is_move(then) or uid not in order:
        return order
    at = order.index(uid)
    order.remove(uid)
    if verb == "up":
        order.insert(max(at - 1, 0), uid)
    elif verb == "down":
        order.insert(at + 1, uid)
    return order


def sent_chain(session: Session, site: Site) -> list[Connection] | None:
    """The chain that was sent; None where the page did not show it. Raises ForeignConnection as
    LookupError for what this site may not choose."""
    if SHOWN not in request.form:
        return None
    found = []
    for uid in dict.fromkeys(request.form.getlist(FIELD)):
        connection = find_connection(session, site, uid)
        if connection is None:
            raise LookupError(uid)
        found.append(connection)
    return found


def has_sent(session: Session, site: Site) -> bool:
    """Whether a mail of the site has ever left."""
    sent = sa.select(Tally.id).where(Tally.site_id == site.id, Tally.outcome == State.SENT)
    return session.scalar(sent.limit(1)) is not None
