"""Who submits: an SMTP login checked against the digest of its random secret.

The secret has 160 random bits, so a plain digest is enough, and a right one is never delayed:
guessing at a site's login must not slow down that site's mail.
"""

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import sqlalchemy as sa

from webapp.db import Database
from webapp.sites.models import Credential, CredentialKind, Site


@dataclass(frozen=True, kw_only=True)
class Submitter:
    """A credential that proved itself."""

    credential_id: int
    site_id: int
    username: str
    senders: tuple[str, ...]

    def may_send_as(self, address: str) -> bool:
        """Whether the credential's list of senders allows it; an empty list allows any."""
        if not self.senders:
            return True
        return any(fnmatchcase(address.lower(), pattern.lower()) for pattern in self.senders)


_LOOK_UP = (
    sa.select(
        Credential.id,
        Credential.site_id,
        Credential.digest,
        Credential.senders,
        Credential.networks,
    )
    .join(Site, Site.id == Credential.site_id)
    .where(
        Credential.username == sa.bindparam("username"),
        Credential.kind == CredentialKind.SMTP,
        Credential.revoked_at.is_(None),
    )
)


def authenticate(db: Database, username: str, secret: str, address: str) -> Submitter | None:
    """The submitter, or None for a wrong, revoked or misplaced credential."""
    with db.reader.connect() as connection:
        row = connection.execute(_LOOK_UP, {"username": username[:100]}).one_or_none()
    digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
    if row is None or not hmac.compare_digest(digest, row.digest):
        return None
    if row.networks and not _inside(address, row.networks):
        return None
    return Submitter(
        credential_id=row.id,
        site_id=row.site_id,
        username=username,
        senders=tuple(row.senders),
    )


def _inside(address: str, networks: Sequence[str]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    return any(found in ipaddress.ip_network(network, strict=False) for network in networks)


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
