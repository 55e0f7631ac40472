"""Who submits: an SMTP login or a key of the API, checked against the digest of its random secret.

The secret has 160 random bits, so a plain digest is enough, and a right one is never delayed:
guessing at a site's login must not slow down that site's mail.
"""

import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from webapp.db import Database
from webapp.sites.models import CredentialKind


@dataclass(frozen=True, kw_only=True)
class Submitter:
    """A credential that proved itself."""

    credential_id: int
    site_id: int
    username: str
    senders: tuple[str, ...]
    scopes: frozenset[str] = frozenset()
    """What a key may do; a login has none."""

    def may_send_as(self, address: str) -> bool:
        """Whether the credential's list of senders allows it; an empty list allows any."""
        if not self.senders:
            return True
        return any(fnmatchcase(address.lower(), pattern.lower()) for pattern in self.senders)


_LOOK_UP = (
    "SELECT id, site_id, digest, senders, networks, scopes FROM credential "
    "WHERE username = ? AND kind = ? AND revoked_at IS NULL"
)


def authenticate(
    db: Database,
    username: str,
    secret: str,
    address: str,
    kind: CredentialKind = CredentialKind.SMTP,
) -> Submitter | None:
    """The submitter, or None for a wrong, revoked or misplaced credential."""
    if not username.isprintable():  # no login of ours, and no text a database would take
        return None
    row = db.look_up(_LOOK_UP, username[:100], kind.value)
    digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
    if row is None or not hmac.compare_digest(digest, row[2]):
        return None
    senders, networks = _list(row[3]), _list(row[4])
    if networks and not _inside(address, networks):
        return None
    return Submitter(
        credential_id=row[0],
        site_id=row[1],
        username=username,
        senders=tuple(senders),
        scopes=frozenset(_list(row[5])),
    )


def _list(value: Any) -> list[str]:
    """A JSON column: text from SQLite's driver, a list from PostgreSQL's."""
    found: list[str] = json.loads(value) if isinstance(value, str) else value
    return found


def _inside(address: str, networks: Sequence[str]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    return any(found in ipaddress.ip_network(network, strict=False) for network in networks)


class Known:
    """Logins that were right a moment ago: a program that sends ten mails signs in ten times.

    A revoked one is forgotten with the rest within `SECONDS`.
    """

    SECONDS = 1.0
    MOST = 5_000

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], tuple[float, Submitter]] = {}

    def get(self, username: str, secret: str, address: str) -> Submitter | None:
        """The submitter, when the same login from the same address was right just now."""
        found = self._found.get((username, secret, address))
        if found is None or time.monotonic() - found[0] > self.SECONDS:
            return None
        return found[1]

    def note(self, username: str, secret: str, address: str, submitter: Submitter) -> None:
        """It was right."""
        if len(self._found) >= self.MOST:
            self._found.clear()
        self._found[username, secret, address] = (time.monotonic(), submitter)


class Brake:
    """Growing delays for wrong logins, by login and by address; forgets after an hour of peace."""

    FIRST = 0.5
    LONGEST = 20.0
    FORGET = 3600.0
    MOST = 20_000

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}

    def failed(self, *keys: str) -> float:
        """Count a failure; returns how many seconds the answer should take."""
        now = time.monotonic()
        if len(self._failures) > self.MOST:
            self._failures.clear()
        worst = 0
        for key in keys:
            count, since = self._failures.get(key, (0, now))
            count = 1 if now - since > self.FORGET else count + 1
            self._failures[key] = (count, now)
            worst = max(worst, count)
        return float(min(self.LONGEST, self.FIRST * 2 ** min(worst - 1, 10)))
