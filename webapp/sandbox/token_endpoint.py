"""Metadata, keys and the token endpoint."""

import base64
import binascii
import hmac
import json
import uuid
from dataclasses import replace
from typing import Any
from urllib.parse import unquote_plus

from webapp.sandbox.directory import Account, Application
from webapp.sandbox.faults import Fault, Kind
from webapp.sandbox.oauth import (
    Problem,
    Refused,
    missing,
    no_such_application,
    no_such_tenant,
    permission,
    permissions,
    scopes_in,
)
from webapp.sandbox.tokens import SEND, Code, Expired, Grant, Used, encode, encode_digest
from webapp.sandbox.wire import Answer, Request, as_json
from webapp.sandbox.world import World

_WHOLE_APPLICATION = (
    Kind.WRONG_SECRET,
    Kind.EXPIRED_SECRET,
    Kind.WRONG_CLOUD,
    Kind.TOKEN_THROTTLED,
    Kind.TOKEN_UNAVAILABLE,
)
_ANY_SIGN_IN = (Kind.ACCOUNT_DISABLED,)
_REFRESH = (Kind.REVOKED_GRANT, Kind.MFA_REQUIRED, Kind.CONSENT_WITHDRAWN)

REVOKED = Problem(
    error="invalid_grant",
    number=50173,
    text=(
        "The provided grant has expired due to it being revoked, a fresh auth token is needed. "
        "The user might have changed or reset their password."
    ),
    suberror="bad_token",
)
DISABLED = Problem(error="invalid_grant", number=50057, text="The user account is disabled.")
NOT_CONSENTED = Problem(
    error="invalid_grant",
    number=65001,
    text=(
        "The user or administrator has not consented to use the application. Send an interactive "
        "authorization request for this user and resource."
    ),
    suberror="consent_required",
)
_PROBLEMS = {
    Kind.WRONG_SECRET: Problem(
        status=401,
        error="invalid_client",
        number=7000215,
        text=(
            "Invalid client secret provided. Ensure the secret being sent in the request is the "
            "client secret value, not the client secret ID, for a secret added to the app."
        ),
    ),
    Kind.EXPIRED_SECRET: Problem(
        status=401,
        error="invalid_client",
        number=7000222,
        text=(
            "The provided client secret keys for the app are expired. Create new keys for the app."
        ),
    ),
    Kind.WRONG_CLOUD: Problem(
        error="invalid_request",
        number=900382,
        text="Confidential Client is not supported in Cross Cloud request.",
    ),
    Kind.TOKEN_THROTTLED: Problem(
        status=429,
        error="temporarily_unavailable",
        number=90055,
        text="Tenant is throttled: too many requests are incoming.",
    ),
    Kind.TOKEN_UNAVAILABLE: Problem(
        status=503,
        error="temporarily_unavailable",
        number=90033,
        text="A transient error has occurred. Please try again.",
    ),
    Kind.ACCOUNT_DISABLED: DISABLED,
    Kind.REVOKED_GRANT: REVOKED,
    Kind.MFA_REQUIRED: Problem(
        error="interaction_required",
        number=50076,
        text=(
            "Due to a configuration change made by your administrator, or because you moved to a "
            "new location, you must use multi-factor authentication to access the resource."
        ),
        suberror="basic_action",
    ),
    Kind.CONSENT_WITHDRAWN: NOT_CONSENTED,
}


def metadata(world: World, segment: str) -> Answer:
    """The OpenID document. On the joint segments the issuer is a template, as at Microsoft."""
    if not world.directory.exists(segment):
        return _refusal(world, Refused(no_such_tenant(segment)))
    at = world.addresses
    return as_json(
        {
            "issuer": at.issuer(world.directory.tenant_of(segment) or "{tenantid}"),
            "authorization_endpoint": f"{at.inbox}/{segment}/oauth2/v2.0/authorize",
            "token_endpoint": f"{at.authority}/{segment}/oauth2/v2.0/token",
            "jwks_uri": f"{at.authority}/{segment}/discovery/v2.0/keys",
            "userinfo_endpoint": f"{at.graph}/oidc/userinfo",
            "end_session_endpoint": f"{at.inbox}/{segment}/oauth2/v2.0/logout",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
            "code_challenge_methods_supported": ["S256"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "claims_supported": [
                "sub",
                "iss",
                "aud",
                "exp",
                "iat",
                "nonce",
                "tid",
                "oid",
                "ver",
                "preferred_username",
                "name",
                "email",
            ],
            "msgraph_host": at.graph.removeprefix("https://"),
            "cloud_instance_name": "localhost",
            "cloud_graph_host_name": at.graph.removeprefix("https://"),
            "tenant_region_scope": None,
        }
    )


def keys(world: World, segment: str) -> Answer:
    """The keys that sign ID tokens."""
    return as_json(world.tokens.public_keys())


def token(world: World, segment: str, request: Request) -> Answer:
    """Answer the token endpoint, and count it."""
    form = request.form
    slow: Fault | None = None
    try:
        client_id, secret = _client(request)
        slow = world.faults.take((Kind.TOKEN_SLOW,), account=None, client_id=client_id)
        given = as_json(_exchange(world, segment, form, client_id, secret))
    except Refused as refused:
        given = _refusal(world, refused)
        client_id = form.get("client_id", "")
    grant_type = form.get("grant_type", "")
    world.calls.token[grant_type, client_id, given.status] += 1
    headers = (*given.headers, ("Cache-Control", "no-store"), ("Pragma", "no-cache"))
    return replace(given, headers=headers, delay=slow.milliseconds / 1000 if slow else 0.0)


def _refusal(world: World, refused: Refused) -> Answer:
    problem = refused.problem
    body: dict[str, Any] = {
        "error": problem.error,
        "error_description": problem.describe(world),
        "error_codes": [problem.number],
        "timestamp": f"{world.now():%Y-%m-%d %H:%M:%SZ}",
        "trace_id": str(uuid.uuid4()),
        "correlation_id": str(uuid.uuid4()),
        "error_uri": f"{world.addresses.authority}/error?code={problem.number}",
    }
    if problem.suberror:
        body["suberror"] = problem.suberror
    return as_json(body, status=problem.status, headers=refused.headers)


def _client(request: Request) -> tuple[str, str]:
    """Client id and secret, from the body or from Basic authentication."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(text).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise Refused(missing("client_id")) from None
        return unquote_plus(name), unquote_plus(secret)
    client_id = request.form.get("client_id", "")
    if not client_id:
        raise Refused(missing("client_id"))
    return client_id, request.form.get("client_secret", "")


def _exchange(
    world: World, segment: str, form: dict[str, str], client_id: str, secret: str
) -> dict[str, Any]:
    if not world.directory.exists(segment):
        raise Refused(no_such_tenant(segment))
    application = world.directory.applications.get(client_id)
    if application is None:
        raise Refused(no_such_application(client_id, segment))
    grant_type = form.get("grant_type", "")
    _show_faults(world, application, grant_type, _account(world, form), secret)
    _check_secret(application, secret)
    match grant_type:
        case "authorization_code":
            return _by_code(world, application, form)
        case "refresh_token":
            return _by_refresh_token(world, application, form)
        case "client_credentials":
            return _by_secret_alone(world, segment, application, form)
        case "":
            raise Refused(missing("grant_type"))
    text = f"The app requested an unsupported grant type '{grant_type}'."
    raise Refused(Problem(error="unsupported_grant_type", number=70003, text=text))


def _account(world: World, form: dict[str, str]) -> Account | None:
    """Whose code or refresh token it is, before it is used up."""
    grant = world.tokens.grant_of(form.get("refresh_token", ""))
    if code := world.tokens.peek_code(form.get("code", "")):
        grant = code.grant
    return world.directory.find(grant.oid) if grant else None


def _show_faults(
    world: World,
    application: Application,
    grant_type: str,
    account: Account | None,
    secret: str,
) -> None:
    kinds: tuple[Kind, ...] = _WHOLE_APPLICATION
    if application.next_secret and not _is(secret, application.secret):
        kinds = tuple(kind for kind in kinds if kind is not Kind.EXPIRED_SECRET)
    if account is not None:
        kinds += _ANY_SIGN_IN
    if grant_type == "refresh_token":
        kinds += _REFRESH
    fault = world.faults.take(kinds, account=account, client_id=application.client_id)
    if fault:
        retry = (("Retry-After", fault.retry_after),) if fault.retry_after else ()
        raise Refused(_PROBLEMS[fault.kind], retry)


def _check_secret(application: Application, secret: str) -> None:
    if not secret:
        text = (
            "The request body must contain the following parameter: 'client_assertion' or "
            "'client_secret'."
        )
        raise Refused(Problem(status=401, error="invalid_client", number=7000218, text=text))
    if not _is(secret, application.secret) and not _is(secret, application.next_secret):
        raise Refused(_PROBLEMS[Kind.WRONG_SECRET])


def _is(secret: str, known: str) -> bool:
    return bool(known) and hmac.compare_digest(secret.encode(), known.encode())


# ---- the three grants ----


def _by_code(world: World, application: Application, form: dict[str, str]) -> dict[str, Any]:
    code = _redeem(world, form.get("code", ""))
    if code.grant.client_id != application.client_id:
        text = "The provided authorization code was issued to another application."
        raise Refused(Problem(error="invalid_grant", number=70000, text=text))
    if form.get("redirect_uri") != code.redirect_uri:
        text = "The reply address does not match the one of the sign-in request."
        raise Refused(Problem(error="invalid_grant", number=50011, text=text))
    if code.challenge and encode_digest(form.get("code_verifier", "")) != code.challenge:
        text = (
            "The Code_Verifier does not match the code_challenge supplied in the authorization "
            "request."
        )
        raise Refused(Problem(error="invalid_grant", number=501481, text=text))
    return _tokens(world, form, code.grant, code)


def _redeem(world: World, text: str) -> Code:
    if not text:
        raise Refused(missing("code"))
    try:
        return world.tokens.redeem(text)
    except Used:
        said = (
            "OAuth2 Authorization code was already redeemed, please retry with a new valid code "
            "or use an existing refresh token."
        )
        number = 54005
    except Expired:
        said, number = "The provided authorization code or refresh token has expired.", 70008
    except KeyError:
        said, number = "The provided value for the 'code' parameter is not valid.", 70000
    raise Refused(Problem(error="invalid_grant", number=number, text=said))


def _by_refresh_token(
    world: World, application: Application, form: dict[str, str]
) -> dict[str, Any]:
    grant = world.tokens.grant_of(form.get("refresh_token", ""))
    if grant is None or grant.client_id != application.client_id:
        text = "The provided value for the 'refresh_token' parameter is not valid."
        raise Refused(Problem(error="invalid_grant", number=70000, text=text))
    if world.tokens.is_revoked(grant):
        raise Refused(REVOKED)
    return _tokens(world, form, grant, None)


def _tokens(world: World, form: dict[str, str], grant: Grant, code: Code | None) -> dict[str, Any]:
    account = world.directory.accounts[grant.oid]
    scopes = _granted(world, form, grant, account)
    permitted = permissions(scopes)
    body: dict[str, Any] = {
        "token_type": "Bearer",
        "scope": " ".join(scope for scope in scopes if scope != "offline_access"),
        "expires_in": world.tokens.lasts,
        "ext_expires_in": world.tokens.lasts,
        "access_token": world.tokens.new_access_token(
            oid=account.oid,
            tenant=account.tenant,
            client_id=grant.client_id,
            permissions=permitted,
        ),
    }
    if "offline_access" in grant.scopes:
        body["refresh_token"] = world.tokens.new_refresh_token(grant)
        world.save()
    if "openid" in scopes:
        asked = code or Code(grant=grant, redirect_uri="", challenge="", nonce="")
        body["id_token"] = world.tokens.new_id_token(
            account=account, code=asked, scopes=frozenset(scopes)
        )
    if form.get("client_info") == "1":
        info = {"uid": account.oid, "utid": account.tenant}
        body["client_info"] = encode(json.dumps(info))
    return body


def _granted(world: World, form: dict[str, str], grant: Grant, account: Account) -> tuple[str, ...]:
    """The scopes of the new token: those asked for, else all that were consented to."""
    asked = scopes_in(world, form.get("scope", "")) or grant.scopes
    if any(permission(scope) == ".default" for scope in asked):
        asked = grant.scopes
    if not permissions(asked) <= permissions(grant.scopes):
        raise Refused(NOT_CONSENTED)
    reduced = world.faults.take((Kind.REDUCED_CONSENT,), account=account, client_id=grant.client_id)
    return tuple(scope for scope in asked if not (reduced and permission(scope) == SEND))


def _by_secret_alone(
    world: World, segment: str, application: Application, form: dict[str, str]
) -> dict[str, Any]:
    tenant = world.directory.tenant_of(segment)
    if tenant is None or segment == "consumers":
        text = (
            "The grant type is not supported over the /common or /consumers endpoints. Use the "
            "/organizations or tenant-specific endpoint."
        )
        raise Refused(Problem(error="invalid_request", number=9001023, text=text))
    if application.tenant not in ("", tenant):
        raise Refused(no_such_application(application.client_id, segment))
    scopes = scopes_in(world, form.get("scope", ""))
    if [permission(scope) for scope in scopes] != [".default"]:
        text = (
            "The provided value for scope is not valid. Client credential flows must have a scope"
            " value with /.default suffixed to the resource identifier."
        )
        raise Refused(Problem(error="invalid_scope", number=1002012, text=text))
    reduced = world.faults.take(
        (Kind.REDUCED_CONSENT,), account=None, client_id=application.client_id
    )
    return {
        "token_type": "Bearer",
        "expires_in": world.tokens.lasts,
        "ext_expires_in": world.tokens.lasts,
        "access_token": world.tokens.new_access_token(
            oid="",
            tenant=tenant,
            client_id=application.client_id,
            permissions=frozenset() if reduced else frozenset({SEND}),
        ),
    }
