"""Asking a token endpoint for new access tokens, as each provider wants it.

What a renewal brings is a text to store, sealed, with the grant, and a token at hand. Whoever calls
has the lease; nothing here touches the database.

MSAL talks to Microsoft, but remembers nothing for us: its memory of answers is not made for many
threads, and would repeat a refusal up to a minute after a person has put it right.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import msal
import requests
from msal.exceptions import MsalServiceError

from webapp.fields import N_
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    Misconfigured,
    NeedsReauthorisation,
    TransientError,
    scrub,
)
from webapp.microsoft.clouds import Cloud, Segment
from webapp.microsoft.token_endpoint import (
    MAX_WORDS,
    NOT_OAUTH,
    Wire,
    body_of,
    network_failure,
    refusal,
)

# It logs whole answers that are no JSON, and a proxy's error page may repeat what we sent.
logging.getLogger("msal").setLevel(logging.CRITICAL)

ABOUT_THE_TOKEN = frozenset({"invalid_grant", "AADSTS9002313"})
"""Codes that speak of what was handed in with the secret, when that was made up."""
RESERVED = frozenset({"openid", "profile", "email", "offline_access"})
"""MSAL asks for these by itself."""

NO_TOKENS = N_("The stored link holds no tokens. Link the mailbox again.")
NO_SECRET = N_("The app registration has no secret.")
NOT_SENDING = N_(
    "Microsoft renewed the link without Mail.Send: what the app may do was changed there."
)

SCOPES_CHANGED = "scopes-changed"
"""Our own code for a renewal that left the permission to send out."""
SEND = "Mail.Send"
NOBODY = "this-is-the-refresh-token-of-nobody"
"""For a call that is only to find out whether a secret is right."""


@dataclass(frozen=True, kw_only=True)
class AppFacts:
    """What identifies us at a token endpoint; `tenant` is the path segment of the authority."""

    client_id: str
    secret: str = field(repr=False)
    cloud: Cloud
    tenant: str


class Verdict(StrEnum):
    """What a token endpoint thinks of a secret."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    """It did not say, or nobody could be asked."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What became of the question whether a secret is right."""

    verdict: Verdict
    code: str = ""
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class AtHand:
    """An access token; times are seconds since 1970."""

    value: str = field(repr=False)
    came_at: float
    expires_at: float


@dataclass(frozen=True, kw_only=True)
class Renewed:
    """What a renewal brought."""

    cache: str = field(repr=False)
    """To be stored in place of what was stored before."""
    at_hand: AtHand
    scopes: Sequence[str]
    """What is granted by now, without the cloud in front."""


class Renewer(Protocol):
    """How tokens of one provider are renewed. Everything raises DeliveryError."""

    def at_hand(self, client_id: str, cache: str) -> AtHand | None:
        """The newest access token in what was stored."""

    def renew(self, app: AppFacts, cache: str, scopes: Sequence[str], claims: str) -> Renewed:
        """Ask for a new one; `claims` is the challenge that came with a refusal, mostly empty."""

    def hand_over(self, app: AppFacts, refresh_token: str, scopes: Sequence[str]) -> str:
        """What to store of a refresh token that a sign-in brought."""

    def prove(self, app: AppFacts, cache: str) -> Proof:
        """Whether the token endpoint takes this secret; changes nothing."""


_STUMBLES = (
    MsalServiceError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
"""How MSAL and Python's JSON fail over what is not an answer by the book."""


class MsalRenewer:
    """Microsoft's tokens; `session` makes an HTTP session, which is closed after use."""

    def __init__(self, session: Callable[[], requests.Session]) -> None:
        self._session = session
        self._metadata: dict[str, tuple[float, requests.Response]] = {}

    def at_hand(self, client_id: str, cache: str) -> AtHand | None:
        """The access token that came last into a cache; a cache is of one grant only."""
        return _newest(_opened(cache), client_id)

    def renew(self, app: AppFacts, cache: str, scopes: Sequence[str], claims: str) -> Renewed:
        """One forced renewal, whatever is in the cache."""
        opened = _opened(cache)
        wanted = _scopes(app.cloud, scopes)

        def ask(client: msal.ConfidentialClientApplication) -> Any:
            accounts = client.get_accounts()
            return client.acquire_token_silent_with_error(
                wanted,
                accounts[0] if accounts else None,
                force_refresh=True,
                claims_challenge=claims or None,
            )

        answer = self._ask(app, opened, ask)
        named = str(answer.get("scope") or "")
        granted = _granted(named, scopes)
        if named and SEND.casefold() not in {scope.casefold() for scope in granted}:
            raise NeedsReauthorisation(NOT_SENDING, code=SCOPES_CHANGED, cause_code=Cause.AUTH)
        renewed = _newest(opened, app.client_id)
        if renewed is None:
            raise TransientError(NOT_OAUTH, cause_code=Cause.PROTOCOL)
        return Renewed(cache=str(opened.serialize()), at_hand=renewed, scopes=granted)

    def hand_over(self, app: AppFacts, refresh_token: str, scopes: Sequence[str]) -> str:
        """Take over a refresh token that a sign-in brought; returns the text to store as `cache`.

        `scopes` are without the cloud in front. Raises DeliveryError. Needs no database.
        """
        if not app.secret:
            raise Misconfigured(NO_SECRET)
        cache = msal.SerializableTokenCache()
        wanted = _scopes(app.cloud, scopes)
        self._ask(
            app,
            cache,
            lambda client: client.acquire_token_by_refresh_token(refresh_token, wanted),
            hidden=(refresh_token,),
        )
        return str(cache.serialize())

    def prove(self, app: AppFacts, cache: str = "") -> Proof:
        """Whether the token endpoint takes this secret; changes nothing, and needs no database.

        `cache` is that of a link by the same registration: then the link is renewed, and what that
        brings is thrown away, because Microsoft leaves the refresh token at hand good. Without one,
        an organization's own registration asks for a token of its own, and any other shows a
        refresh token of nobody: the secret is looked at first, so only a right one gets as far as
        being told that the token is no good.
        """
        made = msal.SerializableTokenCache()
        known = msal.SerializableTokenCache()
        known.deserialize(cache or "{}")
        found = list(known.search(known.CredentialType.REFRESH_TOKEN))
        refresh_token = str(found[0]["secret"]) if found else NOBODY

        def ask(client: msal.ConfidentialClientApplication) -> Any:
            if not found and app.tenant not in set(Segment):
                return client.acquire_token_for_client([app.cloud.scope(".default")])
            return client.acquire_token_by_refresh_token(refresh_token, _scopes(app.cloud, [SEND]))

        try:
            self._ask(app, made, ask, hidden=(refresh_token,))
        except NeedsReauthorisation:
            return Proof(verdict=Verdict.RIGHT)  # it is the link that is no good
        except TransientError as error:
            return Proof(verdict=Verdict.UNKNOWN, code=error.code, words=error.words)
        except DeliveryError as error:
            if error.code in ABOUT_THE_TOKEN:
                return Proof(verdict=Verdict.RIGHT)
            return Proof(verdict=Verdict.WRONG, code=error.code, words=error.words)
        return Proof(verdict=Verdict.RIGHT)

    def _ask(
        self,
        app: AppFacts,
        cache: msal.SerializableTokenCache,
        call: Callable[[msal.ConfidentialClientApplication], Any],
        hidden: Sequence[str] = (),
    ) -> Mapping[str, Any]:
        """One call by MSAL, which leaves what it brings in `cache`. Raises DeliveryError."""
        known = cache.search(cache.CredentialType.REFRESH_TOKEN)
        hidden = (app.secret, *hidden, *(str(entry["secret"]) for entry in known))
        session = self._session()
        wire = Wire(session, self._metadata)
        try:
            client = msal.ConfidentialClientApplication(
                app.client_id,
                client_credential=app.secret,
                authority=app.cloud.authority(app.tenant),
                instance_discovery=False,
                http_client=wire,
                token_cache=cache,
            )
            wire.remember()
            result = call(client)
        except requests.RequestException as error:
            raise network_failure(error, hidden) from error
        except _STUMBLES as error:
            if wire.last is None:
                raise Misconfigured(scrub(str(error), hidden)[:MAX_WORDS]) from error
            raise refusal(body_of(wire.last), wire.last, hidden) from error
        finally:
            session.close()
        if result is None and wire.last is None:  # there was nothing to ask with
            raise NeedsReauthorisation(NO_TOKENS, cause_code=Cause.AUTH)
        if result is None or "access_token" not in result:
            raise refusal(result or {}, wire.last, hidden)
        return dict(result)


def _opened(text: str) -> msal.SerializableTokenCache:
    cache = msal.SerializableTokenCache()
    cache.deserialize(text)
    return cache


def _scopes(cloud: Cloud, scopes: Sequence[str]) -> list[str]:
    return [cloud.scope(scope) for scope in scopes if scope not in RESERVED]


def _granted(answered: str, before: Sequence[str]) -> Sequence[str]:
    """Permissions after a renewal, without the cloud in front; no answer means the same ones.

    What belongs to the sign-in itself is not always named again.
    """
    if not answered.strip():
        return before
    named = [scope.rpartition("/")[2] for scope in answered.split()]
    granted = {scope.casefold() for scope in named} | RESERVED
    kept = [scope for scope in before if scope.casefold() in granted]
    known = {scope.casefold() for scope in kept} | RESERVED
    return [*kept, *(scope for scope in named if scope.casefold() not in known)]


def _newest(cache: msal.SerializableTokenCache, client_id: str) -> AtHand | None:
    kind = cache.CredentialType.ACCESS_TOKEN
    found = list(cache.search(kind, query={"client_id": client_id}))
    if not found:
        return None
    newest = max(found, key=lambda entry: int(entry["cached_at"]))
    return AtHand(
        value=str(newest["secret"]),
        came_at=float(newest["cached_at"]),
        expires_at=float(newest["expires_on"]),
    )
