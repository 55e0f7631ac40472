"""Renewing access tokens at Google, by Authlib.

What is stored is a JSON text: the refresh token, and the newest access token with its times. Google
gives no new refresh token with a renewal, so the first one is kept until somebody links again.

Facts: https://developers.google.com/identity/protocols/oauth2/web-server and
.../protocols/oauth2#expiration (November 2026).
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import requests
from authlib.common.errors import AuthlibBaseError

from webapp.fields import N_
from webapp.google.cloud import SCOPES_AT, SEND
from webapp.mailers.errors import (
    Cause,
    DeliveryError,
    Misconfigured,
    NeedsReauthorisation,
    TransientError,
    scrub,
)
from webapp.microsoft.renewal import (
    NO_SECRET,
    NO_TOKENS,
    NOBODY,
    SCOPES_CHANGED,
    AppFacts,
    AtHand,
    Proof,
    Renewed,
    Verdict,
)
from webapp.microsoft.token_endpoint import (
    METADATA_SECONDS,
    NOT_OAUTH,
    body_of,
    network_failure,
    retry_after,
)
from webapp.oauth_session import OAuthSession

MAX_WORDS = 300
NOT_SENDING = N_("Google renewed the link without permission to send mail.")

_SIGN_IN = frozenset({"openid", "email", "profile"})
_OF_THE_GRANT = frozenset({"invalid_grant", "invalid_rapt", "admin_policy_enforced"})
_STUMBLES = (AuthlibBaseError, ValueError, LookupError, TypeError, AttributeError)
"""How Authlib and Python's JSON fail over what is not an answer by the book."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The text that is kept, sealed, with a grant."""

    refresh_token: str = field(repr=False)
    access_token: str = field(default="", repr=False)
    came_at: float = 0.0
    expires_at: float = 0.0

    def text(self) -> str:
        """As JSON."""
        return json.dumps(self.__dict__)


class GoogleRenewer:
    """Google's tokens; `session` makes an HTTP session, which is closed after use."""

    def __init__(self, session: Callable[[], requests.Session]) -> None:
        self._session = session
        self._endpoints: dict[str, tuple[float, str]] = {}

    def at_hand(self, client_id: str, cache: str) -> AtHand | None:
        """The access token that came last."""
        stored = read_stored(cache)
        if stored is None or not stored.access_token:
            return None
        return AtHand(
            value=stored.access_token, came_at=stored.came_at, expires_at=stored.expires_at
        )

    def renew(self, app: AppFacts, cache: str, scopes: Sequence[str], claims: str) -> Renewed:
        """One renewal; Google has no claims challenge."""
        stored = read_stored(cache)
        if stored is None:
            raise NeedsReauthorisation(NO_TOKENS, cause_code=Cause.AUTH)
        answer, came_at = self._ask(app, stored.refresh_token)
        granted = permissions_in(str(answer.get("scope") or "")) or tuple(scopes)
        if SEND not in granted:
            raise NeedsReauthorisation(NOT_SENDING, code=SCOPES_CHANGED, cause_code=Cause.AUTH)
        newest = replace(
            stored,
            refresh_token=str(answer.get("refresh_token") or stored.refresh_token),
            access_token=str(answer["access_token"]),
            came_at=came_at,
            expires_at=came_at + _seconds(answer.get("expires_in")),
        )
        at_hand = AtHand(
            value=newest.access_token, came_at=newest.came_at, expires_at=newest.expires_at
        )
        return Renewed(cache=newest.text(), at_hand=at_hand, scopes=granted)

    def hand_over(self, app: AppFacts, refresh_token: str, scopes: Sequence[str]) -> str:
        """The text to store; proves that the refresh token works."""
        stored = Stored(refresh_token=refresh_token)
        return self.renew(app, stored.text(), scopes, "").cache

    def prove(self, app: AppFacts, cache: str) -> Proof:
        """Whether Google takes this secret: it looks at it before it looks at the token."""
        stored = read_stored(cache)
        try:
            self._ask(app, stored.refresh_token if stored else NOBODY)
        except NeedsReauthorisation:
            return Proof(verdict=Verdict.RIGHT)  # it is the token that is no good
        except TransientError as error:
            return Proof(verdict=Verdict.UNKNOWN, code=error.code, words=error.words)
        except DeliveryError as error:
            return Proof(verdict=Verdict.WRONG, code=error.code, words=error.words)
        return Proof(verdict=Verdict.RIGHT)

    def _ask(self, app: AppFacts, refresh_token: str) -> tuple[Mapping[str, Any], float]:
        """The answer of the token endpoint, and when it came."""
        if not app.secret:
            raise Misconfigured(NO_SECRET)
        hidden = (app.secret, refresh_token)
        answers: list[requests.Response] = []

        def keep(answer: requests.Response) -> requests.Response:
            answers.append(answer)
            return answer

        with self._client(app) as client:
            client.register_compliance_hook("refresh_token_response", keep)
            try:
                came_at = time.time()
                # A redirect would carry the secret elsewhere.
                found = client.refresh_token(
                    self._token_endpoint(app, client, keep),
                    refresh_token=refresh_token,
                    allow_redirects=False,
                )
            except requests.RequestException as error:
                if answers and error.response is not None:
                    raise refusal(answers[-1], hidden) from error
                raise network_failure(error, hidden) from error
            except _STUMBLES as error:
                if not answers:
                    raise Misconfigured(scrub(str(error), hidden)[:MAX_WORDS]) from error
                raise refusal(answers[-1], hidden) from error
        if not isinstance(found.get("access_token"), str):
            raise refusal(answers[-1], hidden)
        return dict(found), came_at

    def _client(self, app: AppFacts) -> OAuthSession:
        with self._session() as made:
            trusted = made.verify
        return OAuthSession(
            app.client_id,
            app.secret,
            token_endpoint_auth_method="client_secret_post",  # noqa: S106  (the name of a way)
            ca_file=trusted if isinstance(trusted, str) else None,
        )

    def _token_endpoint(
        self, app: AppFacts, client: OAuthSession, keep: Callable[[requests.Response], object]
    ) -> str:
        """From the metadata, which is good for a day."""
        url = app.cloud.metadata_url(app.tenant)
        until, known = self._endpoints.get(url, (0.0, ""))
        if time.monotonic() < until:
            return known
        answer = client.request("GET", url, withhold_token=True)
        keep(answer)
        found = body_of(answer).get("token_endpoint")
        if answer.status_code != 200 or not isinstance(found, str):
            raise ValueError("no metadata")
        self._endpoints[url] = (time.monotonic() + METADATA_SECONDS, found)
        return found


def read_stored(cache: str) -> Stored | None:
    """What was stored; None when it is nothing of ours."""
    try:
        found = json.loads(cache)
        return Stored(**found) if found.get("refresh_token") else None
    except (ValueError, TypeError, AttributeError):
        return None


def permissions_in(scope: str) -> tuple[str, ...]:
    """What an answer grants, without Google's address in front and what belongs to the sign-in."""
    bare = (text.removeprefix(SCOPES_AT) for text in scope.split())
    wanted = (text for text in bare if text not in _SIGN_IN and not text.startswith("userinfo."))
    return tuple(dict.fromkeys(wanted))


def refusal(answer: requests.Response, hidden: Sequence[str]) -> DeliveryError:
    """What Google means by an answer without a token (RFC 6749, 5.2)."""
    body, status = body_of(answer), answer.status_code
    error = body.get("error")
    error = error if isinstance(error, str) else ""
    said = body.get("error_description")
    subtype = body.get("error_subtype")
    words = " ".join(str(part) for part in (said or error, subtype) if part)
    words = scrub(words, hidden)[:MAX_WORDS]
    if status == 429 or status >= 500:
        return TransientError(
            words or f"HTTP {status}",
            code=error or f"HTTP {status}",
            retry_after=retry_after(answer),
            cause_code=Cause.RATE if status == 429 else Cause.UNKNOWN,
        )
    if not error:
        return TransientError(NOT_OAUTH, code=f"HTTP {status}", cause_code=Cause.PROTOCOL)
    if error in _OF_THE_GRANT:
        return NeedsReauthorisation(words, code=error[:40], cause_code=Cause.AUTH)
    return Misconfigured(words, code=error[:40])


def _seconds(value: object) -> float:
    """The life of a token; an hour where none is named, as Google's always have."""
    return float(value) if isinstance(value, int | float) and value > 0 else 3600.0
