"""Ids that people see: short, sortable by time, unguessable."""

import secrets
from datetime import UTC, datetime

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: no I, L, O or U, so that an id survives being read aloud."""

EPOCH = datetime(2025, 1, 1, tzinfo=UTC)
SECRET_BYTES = 20


def encode(number: int, length: int) -> str:
    """`number` in base 32, padded to `length` digits."""
    digits = []
    for _ in range(length):
        digits.append(ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(digits))


def queue_id(now: datetime) -> str:
    """Sixteen characters: milliseconds since 2025 (40 bits), then 40 random bits."""
    elapsed = int((now - EPOCH).total_seconds() * 1000)
    return encode(elapsed & ((1 << 40) - 1), 8) + encode(secrets.randbits(40), 8)


def pretty(identifier: str) -> str:
    """The same id in groups of four, as pages show it."""
    return "-".join(identifier[i : i + 4] for i in range(0, len(identifier), 4))


def plain(typed: str) -> str:
    """What a person typed or pasted, back to the stored form (Crockford's reading rules)."""
    cleaned = typed.strip().upper().replace("-", "").replace(" ", "")
    return cleaned.replace("O", "0").replace("I", "1").replace("L", "1")


def short_id() -> str:
    """Ten random characters (50 bits) for things that are few: connections, sessions."""
    return encode(secrets.randbits(50), 10).lower()


def secret() -> str:
    """A random 160-bit secret in ASCII, fit for an SMTP password or an API key."""
    return encode(secrets.randbits(SECRET_BYTES * 8), 32).lower()
