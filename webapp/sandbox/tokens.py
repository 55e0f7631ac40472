"""Codes, refresh tokens, access tokens and ID tokens of the sandbox.

Access tokens are signed and carry what they say, so they live through a restart; refresh tokens are
random and remembered. As at Microsoft, a refresh gives a new one and the old one stays valid.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from webapp.sandbox.directory import Account

OPENID = frozenset({"openid", "profile", "email", "offline_access"})
SEND = "Mail.Send"
CODE_LASTS = 600.0
MOST_REFRESH_TOKENS = 2_000

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Grant:
    """Who lets which application do what. Scopes as they were asked for, with their prefix."""

    oid: str
    client_id: str
    scopes: tuple[str, ...]
    at: float


@dataclass(frozen=True, kw_only=True)
class Code:
    """One sign-in, waiting to be redeemed."""

    grant: Grant
    redirect_uri: str
    challenge: str
    nonce: str


@dataclass(frozen=True, kw_only=True)
class Access:
    """What an access token permits. `oid` empty: the application itself, by `roles`."""

    oid: str
    tenant: str
    client_id: str
    permissions: frozenset[str]
    expires_at: float


class Used(Exception):
    """The code was redeemed before."""


class Expired(Exception):
    """The code is older than ten minutes."""


class Tokens:
    """Issues and recognises tokens. `audience` is the Graph root; `issuer` takes a tenant."""

    def __init__(
        self,
        *,
        key: rsa.RSAPrivateKey,
        audience: str,
        issuer: Callable[[str], str],
        clock: Clock,
        lasts: int = 3600,
    ) -> None:
        self._key = key
        self._audience = audience
        self._issuer = issuer
        self._clock = clock
        self.lasts = lasts
        self._codes: dict[str, Code] = {}
        self._used: set[str] = set()
        self._refresh: dict[str, Grant] = {}
        self._valid_from: dict[str, float] = {}
        self._known: dict[str, Access] = {}

    # ---- what survives a restart ----

    def remember(self, memory: dict[str, Any]) -> None:
        """Take over what `memory` gave in an earlier run."""
        for token, grant in memory.get("refresh", {}).items():
            self._refresh[token] = Grant(**{**grant, "scopes": tuple(grant["scopes"])})
        self._valid_from.update(memory.get("valid_from", {}))

    def memory(self) -> dict[str, Any]:
        """Everything that must be there after a restart."""
        refresh = {token: asdict(grant) for token, grant in self._refresh.items()}
        return {"refresh": refresh, "valid_from": self._valid_from}

    # ---- codes ----

    def new_code(self, code: Code) -> str:
        """A code for the redirect; good once, for ten minutes."""
        text = f"1.{secrets.token_urlsafe(48)}"
        self._codes[text] = code
        return text

    def peek_code(self, text: str) -> Code | None:
        """What a code stands for, without using it up."""
        return self._codes.get(text)

    def redeem(self, text: str) -> Code:
        """Use a code up; raises Used, Expired, or KeyError when it never was one."""
        if text in self._used:
            raise Used
        code = self._codes.pop(text)
        self._used.add(text)
        if self._clock() - code.grant.at > CODE_LASTS:
            raise Expired
        return code

    # ---- refresh tokens ----

    def new_refresh_token(self, grant: Grant) -> str:
        """One more for this grant."""
        text = f"1.{secrets.token_urlsafe(96)}"
        self._refresh[text] = grant
        while len(self._refresh) > MOST_REFRESH_TOKENS:
            del self._refresh[next(iter(self._refresh))]
        return text

    def grant_of(self, refresh_token: str) -> Grant | None:
        """What a refresh token stands for, revoked or not."""
        return self._refresh.get(refresh_token)

    def is_revoked(self, grant: Grant) -> bool:
        """Whether the account's sessions were ended after this grant was given."""
        return grant.at <= self._valid_from.get(grant.oid, -1.0)

    def revoke(self, oid: str) -> None:
        """End every session of an account; access tokens that are out stay good until they end."""
        self._valid_from[oid] = self._clock()

    # ---- signed tokens ----

    def new_access_token(
        self, *, oid: str, tenant: str, client_id: str, permissions: frozenset[str]
    ) -> str:
        """A token for Graph."""
        now = int(self._clock())
        claims = {
            "aud": self._audience,
            "iss": self._issuer(tenant),
            "iat": now,
            "nbf": now,
            "exp": now + self.lasts,
            "appid": client_id,
            "oid": oid,
            "tid": tenant,
            "scp" if oid else "roles": " ".join(sorted(permissions)),
            "uti": secrets.token_urlsafe(16),
            "ver": "1.0",
        }
        return self.sign(claims)

    def new_id_token(self, *, account: Account, code: Code, scopes: frozenset[str]) -> str:
        """Who signed in."""
        now = int(self._clock())
        client_id = code.grant.client_id
        claims: dict[str, Any] = {
            "aud": client_id,
            "iss": self._issuer(account.tenant),
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
            "oid": account.oid,
            "sub": hashlib.sha256(f"{client_id} {account.oid}".encode()).hexdigest()[:43],
            "tid": account.tenant,
            "uti": secrets.token_urlsafe(16),
            "ver": "2.0",
        }
        if code.nonce:
            claims["nonce"] = code.nonce
        if "profile" in scopes:
            claims |= {"name": account.name, "preferred_username": account.upn}
        if "email" in scopes and account.mail:
            claims["email"] = account.mail
        return self.sign(claims)

    def access(self, token: str) -> Access | None:
        """What a token permits; None when it is not ours, or has ended."""
        found = self._known.get(token) or self._read(token)
        if found is None or found.expires_at <= self._clock():
            self._known.pop(token, None)
            return None
        self._known[token] = found
        return found

    def _read(self, token: str) -> Access | None:
        signed, _, signature = token.rpartition(".")
        try:
            self._key.public_key().verify(
                _decode(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
            )
            claims = json.loads(_decode(signed.partition(".")[2]))
        except (InvalidSignature, ValueError):
            return None
        if claims.get("aud") != self._audience:
            return None  # an ID token
        return Access(
            oid=claims["oid"],
            tenant=claims["tid"],
            client_id=claims["appid"],
            permissions=frozenset(claims.get("scp", claims.get("roles", "")).split()),
            expires_at=claims["exp"],
        )

    def sign(self, claims: dict[str, Any]) -> str:
        """A JSON Web Token of these claims."""
        header = {"typ": "JWT", "alg": "RS256", "kid": self.key_id}
        signed = f"{encode(json.dumps(header))}.{encode(json.dumps(claims))}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{encode(signature)}"

    @property
    def key_id(self) -> str:
        """Names the key in headers and in the list of keys."""
        modulus = self._key.public_key().public_numbers().n
        return encode(hashlib.sha256(_number(modulus)).digest())[:27]

    def public_keys(self) -> dict[str, Any]:
        """The JSON Web Key Set."""
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "RSA",
            "use": "sig",
            "kid": self.key_id,
            "n": encode(_number(numbers.n)),
            "e": encode(_number(numbers.e)),
        }
        return {"keys": [key]}


def encode(value: str | bytes) -> str:
    """base64url without padding."""
    data = value.encode() if isinstance(value, str) else value
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def encode_digest(text: str) -> str:
    """The challenge of a verifier (RFC 7636, S256)."""
    return encode(hashlib.sha256(text.encode()).digest())


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _number(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
