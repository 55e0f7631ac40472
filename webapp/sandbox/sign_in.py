"""The pages that people see when they link an account: sign-in, consent, administrator consent.

Nothing is kept between two pages: the request of the application stays in the address.
"""

import secrets
from dataclasses import dataclass
from urllib.parse import urlencode

from webapp.sandbox.directory import PERSONAL_TENANT, Account, Application
from webapp.sandbox.faults import Kind
from webapp.sandbox.oauth import (
    Problem,
    Refused,
    missing,
    no_such_application,
    no_such_tenant,
    permissions,
    scopes_in,
)
from webapp.sandbox.pages import Pages
from webapp.sandbox.tokens import Code, Grant
from webapp.sandbox.wire import Answer, Request, redirect
from webapp.sandbox.world import World

DECLINED = Problem(
    error="access_denied",
    number=65004,
    text="User declined to consent to access the app.",
    subcode="cancel",
)
ADMIN_NEEDED = Problem(
    error="access_denied",
    number=90094,
    text="The grant requires administrator permission.",
)
DISABLED = Problem(error="access_denied", number=50057, text="The user account is disabled.")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an application asks for, and that it may be sent back to."""

    application: Application
    segment: str
    redirect_uri: str
    state: str
    scopes: tuple[str, ...]

    def back(self, **values: str) -> Answer:
        """Send the browser back to the application."""
        given = {name: value for name, value in {**values, "state": self.state}.items() if value}
        return redirect(f"{self.redirect_uri}?{urlencode(given)}")

    def refuse(self, world: World, problem: Problem) -> Answer:
        """Send it back with an error."""
        return self.back(
            error=problem.error,
            error_description=problem.describe(world),
            error_subcode=problem.subcode,
        )


def authorize(world: World, pages: Pages, segment: str, request: Request) -> Answer:
    """The page that begins a sign-in, and what it leads to."""
    try:
        application = _application(world, segment, request.arguments)
    except Refused as refused:
        return _show_refused(world, pages, request, refused.problem)
    asked = Asked(
        application=application,
        segment=segment,
        redirect_uri=request.arguments["redirect_uri"],
        state=request.arguments.get("state", ""),
        scopes=(),
    )
    try:
        asked = _with_scopes(world, asked, request.arguments)
        if request.method == "GET":
            return _show_sign_in(world, pages, request, asked)
        return _decide(world, pages, request, asked)
    except Refused as refused:
        return asked.refuse(world, refused.problem)


def _application(world: World, segment: str, given: dict[str, str]) -> Application:
    """Everything that Microsoft shows on its own page and does not send back."""
    if not world.directory.exists(segment):
        raise Refused(no_such_tenant(segment))
    client_id = given.get("client_id", "")
    if not client_id:
        raise Refused(missing("client_id"))
    application = world.directory.applications.get(client_id)
    if application is None:
        raise Refused(no_such_application(client_id, segment))
    redirect_uri = given.get("redirect_uri", "")
    if not application.takes(redirect_uri):
        text = (
            f"The redirect URI '{redirect_uri}' specified in the request does not match the "
            f"redirect URIs configured for the application '{client_id}'."
        )
        raise Refused(Problem(error="invalid_request", number=50011, text=text))
    _check_audience(world, application, segment)
    return application


def _check_audience(world: World, application: Application, segment: str) -> None:
    if application.tenant and segment in {"common", "organizations"}:
        text = (
            f"Application '{application.client_id}'({application.name}) is not configured as a "
            "multi-tenant application. Usage of the /common endpoint is not supported for such "
            "apps."
        )
        raise Refused(Problem(error="invalid_request", number=50194, text=text))
    tenant = world.directory.tenant_of(segment)
    if tenant == PERSONAL_TENANT and not application.personal:
        text = (
            f"Application '{application.client_id}'({application.name}) is configured for use by "
            "Azure Active Directory users only."
        )
        raise Refused(Problem(error="invalid_request", number=9002332, text=text))
    if tenant and application.tenant not in ("", tenant):
        raise Refused(no_such_application(application.client_id, segment))


def _with_scopes(world: World, asked: Asked, given: dict[str, str]) -> Asked:
    if given.get("response_type") != "code":
        text = "The response_type is not supported: the sandbox gives codes only."
        raise Refused(Problem(error="unsupported_response_type", number=700054, text=text))
    scopes = scopes_in(world, given.get("scope", ""))
    if not scopes:
        raise Refused(missing("scope"))
    if given.get("code_challenge_method", "S256") != "S256":
        text = "The code_challenge_method is not valid: only S256 is supported."
        raise Refused(Problem(error="invalid_request", number=9002313, text=text))
    return Asked(
        application=asked.application,
        segment=asked.segment,
        redirect_uri=asked.redirect_uri,
        state=asked.state,
        scopes=scopes,
    )


def _show_refused(world: World, pages: Pages, request: Request, problem: Problem) -> Answer:
    return pages.show(
        request,
        "refused",
        status=400,
        number=f"AADSTS{problem.number}",
        words=problem.describe(world),
    )


def _show_sign_in(
    world: World, pages: Pages, request: Request, asked: Asked, words: str = ""
) -> Answer:
    hint = world.directory.find(request.arguments.get("login_hint", ""))
    accounts = sorted(world.directory.accounts.values(), key=lambda account: account != hint)
    return pages.show(
        request,
        "sign_in",
        status=400 if words else 200,
        application=asked.application,
        accounts=accounts,
        hint=hint.upn if hint else request.arguments.get("login_hint", ""),
        words=words,
    )


def _decide(world: World, pages: Pages, request: Request, asked: Asked) -> Answer:
    form = request.form
    decision = form.get("decision", "")
    if decision == "cancel":
        return asked.refuse(world, DECLINED)
    if decision == "admin":
        return asked.refuse(world, ADMIN_NEEDED)
    try:
        account = world.directory.add_account(form.get("account") or form.get("address", ""))
    except ValueError:
        text = (
            "AADSTS50034: The user account does not exist. Write an address like "
            "ann@contoso.example."
        )
        return _show_sign_in(world, pages, request, asked, text)
    if problem := _misfit(world, asked, account):
        return _show_sign_in(world, pages, request, asked, problem.describe(world))
    if refusal := _fault(world, asked, account):
        return asked.refuse(world, refusal)
    if decision != "accept" and not _has_consent(world, request, asked, account):
        return pages.show(
            request,
            "consent",
            application=asked.application,
            account=account,
            permissions=sorted(permissions(asked.scopes)),
            stays="offline_access" in asked.scopes,
        )
    return _accept(world, request, asked, account)


def _misfit(world: World, asked: Asked, account: Account) -> Problem | None:
    """Why this account may not sign in at this address."""
    if account.is_personal and asked.segment == "organizations":
        text = (
            f"User account '{account.upn}' is a personal Microsoft account. Personal Microsoft "
            "accounts are not supported for this application."
        )
        return Problem(error="invalid_request", number=500200, text=text)
    if account.is_personal and not asked.application.personal:
        text = (
            f"User account '{account.upn}' is a personal Microsoft account. Personal Microsoft "
            "accounts are not supported for this application."
        )
        return Problem(error="invalid_request", number=500200, text=text)
    tenant = world.directory.tenant_of(asked.segment)
    if tenant and tenant != account.tenant:
        text = (
            f"User account '{account.upn}' does not exist in tenant '{asked.segment}' and cannot "
            f"access the application '{asked.application.client_id}' in that tenant."
        )
        return Problem(error="invalid_request", number=50020, text=text)
    return None


def _fault(world: World, asked: Asked, account: Account) -> Problem | None:
    client_id = asked.application.client_id
    kinds = [Kind.DENIED, Kind.ACCOUNT_DISABLED]
    if (client_id, account.tenant) not in world.tenant_consents:
        kinds.append(Kind.ADMIN_NEEDED)
    fault = world.faults.take(kinds, account=account, client_id=client_id)
    if fault is None:
        return None
    found = {
        Kind.DENIED: DECLINED,
        Kind.ACCOUNT_DISABLED: DISABLED,
        Kind.ADMIN_NEEDED: ADMIN_NEEDED,
    }
    return found[fault.kind]


def _has_consent(world: World, request: Request, asked: Asked, account: Account) -> bool:
    if request.arguments.get("prompt") == "consent":
        return False
    client_id = asked.application.client_id
    if (client_id, account.tenant) in world.tenant_consents:
        return True
    known = world.consents.get((client_id, account.oid), frozenset())
    return bool(known) and permissions(asked.scopes) <= known


def _accept(world: World, request: Request, asked: Asked, account: Account) -> Answer:
    client_id = asked.application.client_id
    before = world.consents.get((client_id, account.oid), frozenset())
    world.consents[client_id, account.oid] = before | permissions(asked.scopes)
    grant = Grant(oid=account.oid, client_id=client_id, scopes=asked.scopes, at=world.clock())
    code = Code(
        grant=grant,
        redirect_uri=asked.redirect_uri,
        challenge=request.arguments.get("code_challenge", ""),
        nonce=request.arguments.get("nonce", ""),
    )
    return asked.back(code=world.tokens.new_code(code), session_state=secrets.token_hex(16))


# ---- for a whole tenant ----


def admin_consent(world: World, pages: Pages, segment: str, request: Request) -> Answer:
    """The page on which an administrator permits an application for everybody of a tenant."""
    given = request.arguments
    try:
        if segment in {"common", "consumers"}:
            text = (
                "No tenant-identifying information found in either the request or implied by any "
                "provided credentials."
            )
            raise Refused(Problem(error="invalid_request", number=50059, text=text))
        application = _application(
            world, "common" if segment == "organizations" else segment, given
        )
        scopes = scopes_in(world, given.get("scope", ""))
    except Refused as refused:
        return _show_refused(world, pages, request, refused.problem)
    asked = Asked(
        application=application,
        segment=segment,
        redirect_uri=given["redirect_uri"],
        state=given.get("state", ""),
        scopes=scopes,
    )
    fixed = world.directory.tenant_of(segment)
    tenants = {
        tenant: domain
        for tenant, domain in world.directory.tenants().items()
        if fixed in (None, tenant)
    }
    if request.method == "GET":
        return pages.show(
            request,
            "admin_consent",
            application=application,
            tenants=tenants,
            permissions=sorted(permissions(scopes)),
        )
    tenant = request.form.get("tenant", "")
    if request.form.get("decision") != "accept" or tenant not in tenants:
        return asked.refuse(world, DECLINED)
    world.tenant_consents.add((application.client_id, tenant))
    return asked.back(admin_consent="True", tenant=tenant, scope=" ".join(scopes))
