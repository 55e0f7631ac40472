"""Sealing secrets at rest: one derived key per purpose, rotation by a list of keys.

A sealed value carries the name of what it belongs to (`subject`, such as `connection:12`), so that
a token copied to another row is refused. Keys are 32 random bytes in URL-safe base 64.
"""

import base64
import json
import secrets
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32


class SealError(Exception):
    """A sealed value cannot be opened: another key, another purpose, another row, or damage."""


def new_key() -> str:
    """A fresh key, as it stands in the key file or in POSTROOM_SECRET_KEYS."""
    return base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def parse_key(text: str) -> bytes:
    """The key's bytes; raises ValueError with a sentence when it is not a key."""
    try:
        key = base64.urlsafe_b64decode(text.strip().encode())
    except ValueError as error:
        raise ValueError("a key is 44 characters of URL-safe base 64") from error
    if len(key) != KEY_BYTES:
        raise ValueError("a key is 44 characters of URL-safe base 64 (32 bytes)")
    return key


class Keyring:
    """The installation's keys, newest first. The newest seals, all of them open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys:
            raise ValueError("a keyring needs at least one key")
        self._keys = tuple(keys)
        self._fernets: dict[str, MultiFernet] = {}

    def derive(self, purpose: str, index: int = 0) -> bytes:
        """32 bytes for one purpose, from the key at `index` (0 is the newest)."""
        return HKDF(SHA256(), 32, None, f"postroom:{purpose}".encode()).derive(self._keys[index])

    def fingerprint(self) -> str:
        """Twelve characters by which people tell the newest key from others; nothing follows from
        them."""
        return self.derive("fingerprint")[:6].hex()

    def derive_all(self, purpose: str) -> list[bytes]:
        """One derived key for each key of the ring, newest first."""
        return [self.derive(purpose, index) for index in range(len(self._keys))]

    def seal(self, purpose: str, subject: str, value: object) -> str:
        """A token for `value` (anything JSON can hold) that opens only for this subject."""
        inner = json.dumps({"for": subject, "value": value}, separators=(",", ":"))
        return self._fernet(purpose).encrypt(inner.encode()).decode()

    def unseal(self, purpose: str, subject: str, token: str) -> object:
        """The sealed value; raises SealError."""
        try:
            inner = json.loads(self._fernet(purpose).decrypt(token.encode()))
        except (InvalidToken, ValueError) as error:
            raise SealError(f"a sealed value of {subject} cannot be opened") from error
        if inner["for"] != subject:
            raise SealError(f"a sealed value found at {subject} belongs to another row")
        return inner["value"]

    def rotate(self, purpose: str, token: str) -> str:
        """The same value, sealed by the newest key; raises SealError."""
        try:
            return self._fernet(purpose).rotate(token.encode()).decode()
        except InvalidToken as error:
            raise SealError("a sealed value cannot be opened by any key at hand") from error

    def _fernet(self, purpose: str) -> MultiFernet:
        found = self._fernets.get(purpose)
        if found is None:
            keys = [base64.urlsafe_b64encode(key) for key in self.derive_all(purpose)]
            found = MultiFernet([Fernet(key) for key in keys])
            self._fernets[purpose] = found
        return found
