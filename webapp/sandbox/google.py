"""Google as far as mail is sent through it: sign-in, tokens, and the Gmail API.

It shares accounts' faults, the inbox and the signing key with the rest of the sandbox; everything
else is Google's own way: opaque tokens, a refresh token with the first consent only, and a From
that the account may not use is silently replaced.

Facts: https://developers.google.com/identity/protocols/oauth2/web-server and the discovery document
of Gmail v1 (November 2026).
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn
from urllib.parse import urlencode, urlsplit

from webapp.sandbox import mails
from webapp.sandbox.directory import Account
from webapp.sandbox.faults import Kind
from webapp.sandbox.pages import Pages
from webapp.sandbox.tokens import CODE_LASTS, encode_digest
from webapp.sandbox.wire import Answer, Request, as_json, redirect
from webapp.sandbox.world import World

PREFIX = "/gmail/"
CALLBACK = "/oauth/google/callback"
TENANT = "google"
SCOPES_AT = "https://www.googleapis.com/auth/"
SEND, SETTINGS = "gmail.send", "gmail.settings.basic"
MAY_SEND = frozenset({SEND, "gmail.compose", "gmail.modify", "https://mail.google.com/"})
MAY_LIST = frozenset({SETTINGS, "gmail.readonly", "gmail.modify", "https://mail.google.com/"})
LARGEST = 36_700_160

CLIENT_ID = "407408718192-sandbox.apps.googleusercontent.example"
CLIENT_SECRET = "GOCSPX-Not.A.Real_Secret_0001"  # noqa: S105  (opens nothing)
APPLICATION_NAME = "Postroom (Google)"

ACCOUNTS = (
    Account(
        oid="113456789012345678901",
        tenant=TENANT,
        name="Workshop",
        upn="info@workshop.example",
        mail="info@workshop.example",
        proxies=("smtp:shop@workshop.example",),
    ),
    Account(
        oid="113456789012345678902",
        tenant=TENANT,
        name="Kim",
        upn="kim@gmail.example",
        mail="kim@gmail.example",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Given:
    """Who lets the application do what, with the code, or by a token."""

    sub: str
    scopes: tuple[str, ...]
    at: float
    redirect_uri: str = ""
    challenge: str = ""
    nonce: str = ""
    offline: bool = False


class Refused(Exception):
    """The token endpoint says no."""

    def __init__(self, status: int, error: str, words: str = "", wait: str = "") -> None:
        super().__init__(words)
        self.status, self.error, self.words, self.wait = status, error, words, wait


class Refusal(Exception):
    """Gmail says no."""

    def __init__(
        self, status: int, reason: str, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers


class Dropped(Exception):
    """No answer at all."""


class Google:
    """What the sandbox knows of Google: codes, tokens, consents. Refresh tokens are remembered."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.accounts = {account.oid: account for account in ACCOUNTS}
        self.codes: dict[str, Given] = {}
        self.access: dict[str, tuple[Given, float]] = {}
        self.refresh: dict[str, Given] = {}
        self.consented: set[str] = set()
        self.file = world.folder.path / "google.json"
        if self.file.exists():
            for token, given in json.loads(self.file.read_text()).items():
                self.refresh[token] = Given(**{**given, "scopes": tuple(given["scopes"])})

    @property
    def issuer(self) -> str:
        """Where everything of Google's lies."""
        return f"{self.world.addresses.authority}/google"

    def find(self, text: str) -> Account | None:
        """An account by any of its addresses."""
        wanted = text.strip().lower()
        return next((one for one in self.accounts.values() if wanted in one.addresses), None)

    def remember(self, token: str, given: Given) -> None:
        """Keep a refresh token over restarts."""
        self.refresh[token] = given
        self.file.write_text(json.dumps({key: asdict(one) for key, one in self.refresh.items()}))

    def revoke(self, account: Account) -> None:
        """End every grant of an account, its access tokens too, as Google does."""
        self.refresh = {key: one for key, one in self.refresh.items() if one.sub != account.oid}
        self.access = {key: one for key, one in self.access.items() if one[0].sub != account.oid}
        self.file.write_text(json.dumps({key: asdict(one) for key, one in self.refresh.items()}))


# ---- metadata and keys ----


def metadata(google: Google) -> Answer:
    """The OpenID document."""
    inbox = google.world.addresses.inbox
    return as_json(
        {
            "issuer": google.issuer,
            "authorization_endpoint": f"{inbox}/google/o/oauth2/v2/auth",
            "token_endpoint": f"{google.issuer}/token",
            "revocation_endpoint": f"{google.issuer}/revoke",
            "jwks_uri": f"{google.issuer}/oauth2/v3/certs",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "scopes_supported": ["openid", "email", "profile"],
            "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
            "code_challenge_methods_supported": ["plain", "S256"],
        }
    )


# ---- sign-in ----


@dataclass(frozen=True, kw_only=True)
class _Application:
    name: str = APPLICATION_NAME
    client_id: str = CLIENT_ID


def authorize(google: Google, pages: Pages, request: Request) -> Answer:
    """The page that begins a sign-in, and what it leads to."""
    given = request.arguments
    words = _misfit(given)
    if words:
        number = "redirect_uri_mismatch" if "redirect" in words else "invalid_request"
        return pages.show(request, "refused", status=400, number=number, words=words)
    if request.method == "GET":
        return _show_sign_in(google, pages, request)
    decision = request.form.get("decision", "")
    if decision in {"cancel", "admin"}:
        error = "access_denied" if decision == "cancel" else "admin_policy_enforced"
        return _back(given, error=error)
    account = google.find(request.form.get("account") or request.form.get("address", ""))
    if account is None:
        return _show_sign_in(google, pages, request, "Couldn't find this Google Account.")
    fault = google.world.faults.take((Kind.DENIED,), account=account, client_id=CLIENT_ID)
    if fault:
        return _back(given, error="access_denied")
    if decision != "accept" and (
        given.get("prompt") == "consent" or account.oid not in google.consented
    ):
        return pages.show(
            request,
            "consent",
            application=_Application(),
            account=account,
            permissions=sorted(given["scope"].split()),
            stays=given.get("access_type") == "offline",
        )
    code = f"4/{secrets.token_urlsafe(40)}"
    first = account.oid not in google.consented or given.get("prompt") == "consent"
    google.consented.add(account.oid)
    google.codes[code] = Given(
        sub=account.oid,
        scopes=tuple(given["scope"].split()),
        at=google.world.clock(),
        redirect_uri=given["redirect_uri"],
        challenge=given.get("code_challenge", ""),
        nonce=given.get("nonce", ""),
        offline=first and given.get("access_type") == "offline",
    )
    return _back(given, code=code, scope=given["scope"])


def _misfit(given: dict[str, str]) -> str:
    """What Google shows on its own page and does not send back."""
    if given.get("client_id") != CLIENT_ID:
        return "The OAuth client was not found."
    parts = urlsplit(given.get("redirect_uri", ""))
    is_local = (parts.scheme, parts.hostname) == ("http", "localhost")
    if parts.path != CALLBACK or not (parts.scheme == "https" or is_local):
        return "The redirect URI in the request does not match the ones authorized for the client."
    if given.get("response_type") != "code" or not given.get("scope"):
        return "Required parameter is missing: response_type or scope."
    return ""


def _show_sign_in(google: Google, pages: Pages, request: Request, words: str = "") -> Answer:
    hint = google.find(request.arguments.get("login_hint", ""))
    return pages.show(
        request,
        "sign_in",
        status=400 if words else 200,
        application=_Application(),
        accounts=sorted(google.accounts.values(), key=lambda account: account != hint),
        hint=hint.upn if hint else "",
        words=words,
    )


def _back(given: dict[str, str], **values: str) -> Answer:
    query = urlencode({**values, "state": given.get("state", "")})
    return redirect(f"{given['redirect_uri']}?{query}")


# ---- tokens ----


def token(google: Google, request: Request) -> Answer:
    """Answer the token endpoint, and count it."""
    form = request.form
    try:
        given = as_json(_exchange(google, form))
    except Refused as refused:
        body = {"error": refused.error}
        if refused.words:
            body["error_description"] = refused.words
        headers = (("Retry-After", refused.wait),) if refused.wait else ()
        given = as_json(body, status=refused.status, headers=headers)
    client_id = form.get("client_id", "")
    google.world.calls.token[form.get("grant_type", ""), client_id, given.status] += 1
    return replace(given, headers=(*given.headers, ("Cache-Control", "no-store")))


_FAULTS: dict[Kind, tuple[int, str, str]] = {
    Kind.WRONG_SECRET: (401, "invalid_client", "The provided client secret is invalid."),
    Kind.EXPIRED_SECRET: (401, "invalid_client", "The provided client secret is invalid."),
    Kind.REVOKED_GRANT: (400, "invalid_grant", "Token has been expired or revoked."),
    Kind.ACCOUNT_DISABLED: (400, "invalid_grant", "Account has been deleted"),
    Kind.MFA_REQUIRED: (400, "invalid_rapt", "reauth related error (invalid_rapt)"),
    Kind.CONSENT_WITHDRAWN: (400, "invalid_grant", "Token has been expired or revoked."),
    Kind.TOKEN_THROTTLED: (429, "rate_limit_exceeded", "Too many requests."),
    Kind.TOKEN_UNAVAILABLE: (503, "backend_error", "Try again later."),
}


def _exchange(google: Google, form: dict[str, str]) -> dict[str, Any]:
    world = google.world
    if form.get("client_id") != CLIENT_ID:
        raise Refused(401, "invalid_client", "The OAuth client was not found.")
    if form.get("client_secret") != CLIENT_SECRET:
        raise Refused(*_FAULTS[Kind.WRONG_SECRET])
    match form.get("grant_type"):
        case "authorization_code":
            given = google.codes.pop(form.get("code", ""), None)
        case "refresh_token":
            given = google.refresh.get(form.get("refresh_token", ""))
        case _:
            raise Refused(400, "unsupported_grant_type", "Invalid grant_type")
    account = google.accounts[given.sub] if given else None
    if fault := world.faults.take(_FAULTS, account=account, client_id=CLIENT_ID):
        raise Refused(*_FAULTS[fault.kind], fault.retry_after)
    if given is None or account is None:
        raise Refused(*_FAULTS[Kind.REVOKED_GRANT])
    is_code = form["grant_type"] == "authorization_code"
    if is_code:
        _check_code(google, form, given)
    return _tokens(google, account, given, is_code=is_code)


def _check_code(google: Google, form: dict[str, str], given: Given) -> None:
    if form.get("redirect_uri") != given.redirect_uri:
        raise Refused(400, "redirect_uri_mismatch", "Bad Request")
    if given.challenge and encode_digest(form.get("code_verifier", "")) != given.challenge:
        raise Refused(400, "invalid_grant", "Invalid code verifier.")
    if google.world.clock() - given.at > CODE_LASTS:
        raise Refused(400, "invalid_grant", "Malformed auth code.")


def _tokens(google: Google, account: Account, given: Given, *, is_code: bool) -> dict[str, Any]:
    world = google.world
    scopes = given.scopes
    if world.faults.take((Kind.REDUCED_CONSENT,), account=account, client_id=CLIENT_ID):
        scopes = tuple(scope for scope in scopes if not scope.endswith(SEND))
    access = f"ya29.{secrets.token_urlsafe(60)}"
    lasts = world.tokens.lasts
    google.access[access] = (replace(given, scopes=scopes), world.clock() + lasts)
    body: dict[str, Any] = {
        "access_token": access,
        "expires_in": lasts,
        "scope": " ".join(scopes),
        "token_type": "Bearer",
    }
    if is_code and given.offline:
        body["refresh_token"] = f"1//{secrets.token_urlsafe(60)}"
        google.remember(body["refresh_token"], given)
    if "openid" in scopes:
        body["id_token"] = _id_token(google, account, given)
    return body


def _id_token(google: Google, account: Account, given: Given) -> str:
    now = int(google.world.clock())
    claims: dict[str, Any] = {
        "iss": google.issuer,
        "azp": CLIENT_ID,
        "aud": CLIENT_ID,
        "sub": account.oid,
        "email": account.mail,
        "email_verified": True,
        "name": account.name,
        "iat": now,
        "exp": now + 3600,
    }
    if not str(account.mail).endswith("@gmail.example"):
        claims["hd"] = str(account.mail).partition("@")[2]
    if given.nonce:
        claims["nonce"] = given.nonce
    return google.world.tokens.sign(claims)


def revoke(google: Google, request: Request) -> Answer:
    """End the grant that a token belongs to."""
    text = request.form.get("token") or request.arguments.get("token", "")
    given = google.refresh.get(text) or google.access.get(text, (None,))[0]
    if given is None:
        return as_json({"error": "invalid_token"}, status=400)
    google.revoke(google.accounts[given.sub])
    return as_json({})


# ---- Gmail ----


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call by somebody who may call."""

    google: Google
    request: Request
    account: Account
    permissions: frozenset[str]

    def fault(self, *kinds: Kind) -> Any:
        """A planned fault of these kinds for this call."""
        faults = self.google.world.faults
        return faults.take(kinds, account=self.account, client_id=CLIENT_ID)


def answer(google: Google, request: Request) -> Answer:
    """Answer a call, and count it."""
    path, act = _operation(request)
    delay = 0.0
    try:
        call = _admit(google, request)
        if slow := call.fault(Kind.SLOW):
            delay = slow.milliseconds / 1000
        given = act(call)
    except Refusal as refusal:
        given = _error(refusal)
    except Dropped:
        given = Answer(dropped=True)
    google.world.calls.graph[path, "dropped" if given.dropped else str(given.status)] += 1
    return replace(given, delay=delay)


def _error(refusal: Refusal) -> Answer:
    body = {
        "error": {
            "code": refusal.status,
            "message": refusal.message,
            "errors": [{"message": refusal.message, "domain": "global", "reason": refusal.reason}],
        }
    }
    return as_json(body, status=refusal.status, headers=refusal.headers)


def _operation(request: Request) -> tuple[str, Callable[[Call], Answer]]:
    path = request.path.removeprefix("/gmail")
    if path == "/upload/gmail/v1/users/me/messages/send" and request.method == "POST":
        return path, _send
    if path == "/gmail/v1/users/me/settings/sendAs" and request.method == "GET":
        return path, _list_aliases
    return "other", _not_here


def _not_here(call: Call) -> Answer:
    raise Refusal(404, "notFound", "Requested entity was not found.")


def _admit(google: Google, request: Request) -> Call:
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    given, until = google.access.get(text, (None, 0.0))
    if scheme.lower() != "bearer" or given is None or until <= google.world.clock():
        _refuse_token()
    bare = frozenset(scope.removeprefix(SCOPES_AT) for scope in given.scopes)
    account = google.accounts[given.sub]
    call = Call(google=google, request=request, account=account, permissions=bare)
    if call.fault(Kind.INVALID_TOKEN):
        _refuse_token()
    if fault := call.fault(*_BEFORE):
        _show(google, fault)
    return call


def _refuse_token() -> NoReturn:
    challenge = (("WWW-Authenticate", 'Bearer realm="https://accounts.google.com/"'),)
    raise Refusal(401, "authError", "Invalid Credentials", challenge)


_BEFORE = (Kind.THROTTLED, Kind.UNAVAILABLE, Kind.SERVER_ERROR, Kind.DROPPED_BEFORE)
_SENDING = (Kind.ACCESS_DENIED, Kind.QUOTA_EXCEEDED, Kind.NOT_SENT_200)
_AFTER = (Kind.SENT_504, Kind.DROPPED_AFTER)


def _show(google: Google, fault: Any) -> NoReturn:
    retry = (("Retry-After", fault.retry_after),) if fault.retry_after else ()
    match fault.kind:
        case Kind.THROTTLED:
            raise Refusal(429, "rateLimitExceeded", "Too many concurrent requests for user", retry)
        case Kind.QUOTA_EXCEEDED:
            until = google.world.now() + timedelta(minutes=15)
            words = f"User-rate limit exceeded.  Retry after {until:%Y-%m-%dT%H:%M:%S.000Z}"
            raise Refusal(429, "userRateLimitExceeded", words, retry)
        case Kind.UNAVAILABLE:
            raise Refusal(503, "backendError", "The service is currently unavailable.", retry)
        case Kind.SERVER_ERROR:
            raise Refusal(500, "backendError", "Backend Error")
        case Kind.ACCESS_DENIED:
            words = "Request had insufficient authentication scopes."
            raise Refusal(403, "insufficientPermissions", words)
    raise Dropped


def _send(call: Call) -> Answer:
    if not MAY_SEND & call.permissions:
        words = "Request had insufficient authentication scopes."
        raise Refusal(403, "insufficientPermissions", words)
    if len(call.request.body) > LARGEST:
        raise Refusal(413, "uploadTooLarge", "Request is too large.")
    if call.request.media_type != "message/rfc822":
        raise Refusal(
            400, "badContent", f"Media type '{call.request.media_type}' is not supported."
        )
    try:
        parsed = mails.parse(call.request.body)
    except mails.NotMail:
        raise Refusal(400, "invalidArgument", "'raw' RFC822 payload message is invalid") from None
    if not parsed.recipients:
        raise Refusal(400, "invalidArgument", "Recipient address required")
    if fault := call.fault(*_SENDING):
        if fault.kind is Kind.NOT_SENT_200:
            return as_json({})
        _show(call.google, fault)
    own = str(call.account.mail)
    if parsed.sender not in call.account.addresses:
        parsed = replace(parsed, sender=own, from_text=f"{call.account.name} <{own}>")
    world = call.google.world
    world.inbox.take(parsed, account=own, client_id=CLIENT_ID, at=world.now())
    if fault := call.fault(*_AFTER):
        if fault.kind is Kind.DROPPED_AFTER:
            raise Dropped
        return Answer(status=504, headers=(("Content-Type", "text/html"),), body=b"<h1>504</h1>")
    number = secrets.token_hex(8)
    return as_json({"id": number, "threadId": number, "labelIds": ["SENT"]})


def _list_aliases(call: Call) -> Answer:
    if not MAY_LIST & call.permissions:
        words = "Request had insufficient authentication scopes."
        raise Refusal(403, "insufficientPermissions", words)
    own = {
        "sendAsEmail": call.account.mail,
        "displayName": call.account.name,
        "isPrimary": True,
        "isDefault": True,
    }
    others = [
        {
            "sendAsEmail": proxy.partition(":")[2],
            "displayName": "",
            "replyToAddress": "",
            "isDefault": False,
            "treatAsAlias": True,
            "verificationStatus": "accepted",
        }
        for proxy in call.account.proxies
    ]
    return as_json({"sendAs": [own, *others]})
