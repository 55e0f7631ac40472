"""Graph as far as mail is sent through it: /me, /me/sendMail, /users/{id}/sendMail, Sent Items."""

import binascii
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn

from webapp.sandbox import mails
from webapp.sandbox.directory import Account
from webapp.sandbox.faults import Fault, Kind
from webapp.sandbox.tokens import SEND, Access
from webapp.sandbox.wire import Answer, Request
from webapp.sandbox.world import World

PREFIX = "/graph/v1.0/"
LARGEST_REQUEST = 4 * 1024 * 1024

BEFORE = (
    Kind.THROTTLED,
    Kind.UNAVAILABLE,
    Kind.SERVER_ERROR,
    Kind.DROPPED_BEFORE,
    Kind.ACCESS_DENIED,
)
SENDING = (
    Kind.SEND_AS_DENIED,
    Kind.QUOTA_EXCEEDED,
    Kind.SIZE_EXCEEDED,
    Kind.NOT_SENT_200,
)
AFTER = (Kind.SENT_504, Kind.DROPPED_AFTER)

_GATEWAY_TIMEOUT = b"<html><head><title>504 Gateway Time-out</title></head><body></body></html>"


class Refusal(Exception):
    """An answer other than success."""

    def __init__(
        self, status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


class Dropped(Exception):
    """No answer at all."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call by somebody who may call."""

    world: World
    request: Request
    access: Access
    account: Account | None
    """Whose token it is; None for the application itself."""

    def fault(self, *kinds: Kind) -> Fault | None:
        """A planned fault of these kinds for this call."""
        return self.world.faults.take(kinds, account=self.account, client_id=self.access.client_id)


def answer(world: World, request: Request) -> Answer:
    """Answer a call, and count it."""
    path, act = _operation(request)
    ids = _ids(request)
    delay = 0.0
    try:
        call = _admit(world, request)
        if slow := call.fault(Kind.SLOW):
            delay = slow.milliseconds / 1000
        given = act(call)
    except Refusal as refusal:
        given = _error(world, refusal, ids)
    except Dropped:
        given = Answer(dropped=True)
    world.calls.graph[path, "dropped" if given.dropped else str(given.status)] += 1
    return replace(given, headers=(*given.headers, *ids), delay=delay)


def _ids(request: Request) -> tuple[tuple[str, str], ...]:
    ours = str(uuid.uuid4())
    return (
        ("request-id", ours),
        ("client-request-id", request.headers.get("client-request-id") or ours),
    )


def _error(world: World, refusal: Refusal, ids: tuple[tuple[str, str], ...]) -> Answer:
    inner = {"date": f"{world.now():%Y-%m-%dT%H:%M:%S}", **dict(ids)}
    body = {"error": {"code": refusal.code, "message": refusal.message, "innerError": inner}}
    return Answer(
        status=refusal.status,
        headers=(("Content-Type", "application/json"), *refusal.headers),
        body=json.dumps(body).encode(),
    )


def _operation(request: Request) -> tuple[str, Callable[[Call], Answer]]:
    """The path as the description writes it, and what is done there."""
    path = request.path.removeprefix(PREFIX)
    if path == "me/sendMail" and request.method == "POST":
        return "/me/sendMail", _send_mine
    if path == "me" and request.method == "GET":
        return "/me", _show_me
    if path == "me/mailFolders/sentitems/messages" and request.method == "GET":
        return "/me/mailFolders/sentitems/messages", _show_sent
    parts = request.segments[2:]
    wanted = (request.method, len(parts), parts[0], parts[-1])
    if wanted == ("POST", 3, "users", "sendMail"):
        return "/users/{id}/sendMail", _send_from
    return "other", _not_here


def _not_here(call: Call) -> Answer:
    raise Refusal(404, "ResourceNotFound", f"The sandbox does not know {call.request.path}.")


def _admit(world: World, request: Request) -> Call:
    """Read the access token, and let the faults come that hit any call."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    access = world.tokens.access(token) if scheme.lower() == "bearer" else None
    if access is None:
        _refuse_token()
    account = world.directory.find(access.oid) if access.oid else None
    call = Call(world=world, request=request, access=access, account=account)
    if call.fault(Kind.INVALID_TOKEN):
        _refuse_token()
    if fault := call.fault(*BEFORE):
        _show(fault)
    return call


def _refuse_token() -> NoReturn:
    raise Refusal(
        401,
        "InvalidAuthenticationToken",
        "Access token has expired or is not yet valid.",
        (("WWW-Authenticate", 'Bearer realm="", error="invalid_token"'),),
    )


def _show(fault: Fault) -> NoReturn:
    retry = (("Retry-After", fault.retry_after),) if fault.retry_after else ()
    match fault.kind:
        case Kind.THROTTLED:
            message = "Application is over its MailboxConcurrency limit."
            raise Refusal(429, "ApplicationThrottled", message, retry)
        case Kind.UNAVAILABLE:
            message = "The server cannot service this request right now."
            raise Refusal(503, "ErrorServerBusy", message, retry)
        case Kind.SERVER_ERROR:
            message = "An internal server error occurred. The operation failed."
            raise Refusal(500, "ErrorInternalServerError", message)
        case Kind.SEND_AS_DENIED:
            _deny_sender()
        case Kind.QUOTA_EXCEEDED:
            message = (
                "The message can't be submitted because the sender's submission quota was exceeded."
            )
            raise Refusal(429, "ErrorSubmissionQuotaExceeded", message, retry)
        case Kind.SIZE_EXCEEDED:
            message = "The message exceeds the maximum supported size."
            raise Refusal(400, "ErrorMessageSizeExceeded", message)
        case Kind.DROPPED_BEFORE:
            raise Dropped
    _deny_access()


def _deny_access() -> NoReturn:
    message = "Access is denied. Check credentials and try again."
    raise Refusal(403, "ErrorAccessDenied", message)


def _deny_sender() -> NoReturn:
    message = (
        "The user account which was used to submit this request does not have the right to send "
        "mail on behalf of the specified sending account."
    )
    raise Refusal(403, "ErrorSendAsDenied", message)


# ---- /me ----


def _show_me(call: Call) -> Answer:
    account = _signed_in(call)
    if "User.Read" not in call.access.permissions:
        message = "Insufficient privileges to complete the operation."
        raise Refusal(403, "Authorization_RequestDenied", message)
    wanted = call.request.arguments.get("$select", "")
    names = [name for name in wanted.split(",") if name] or list(_SHOWN)
    values = _properties(account)
    for name in names:
        if name not in values:
            message = (
                f"Parsing OData Select and Expand failed: Could not find a property named '{name}'"
                " on type 'microsoft.graph.user'."
            )
            raise Refusal(400, "BadRequest", message)
    context = f"{call.world.addresses.graph}/v1.0/$metadata#users/$entity"
    body = {"@odata.context": context, **{name: values[name] for name in names}}
    return Answer(
        headers=(("Content-Type", "application/json"),),
        body=json.dumps(body, ensure_ascii=False).encode(),
    )


_SHOWN = ("displayName", "givenName", "id", "mail", "surname", "userPrincipalName")


def _properties(account: Account) -> dict[str, Any]:
    given, _, surname = account.name.rpartition(" ")
    return {
        "id": account.graph_id,
        "displayName": account.name,
        "givenName": given or None,
        "surname": surname or None,
        "mail": account.mail,
        "userPrincipalName": account.upn,
        "proxyAddresses": list(account.proxies),
        "otherMails": [],
    }


def _signed_in(call: Call) -> Account:
    if call.account is None:
        message = "/me request is only valid with delegated authentication flow."
        raise Refusal(400, "BadRequest", message)
    return call.account


# ---- Sent Items ----

READ = frozenset({"Mail.ReadWrite", "Mail.Read", "Mail.ReadBasic"})
_BY_MESSAGE_ID = re.compile(r"internetMessageId eq '((?:[^']|'')*)'")


def _show_sent(call: Call) -> Answer:
    """Mails of this account with one Message-ID; the copies may take a while to show."""
    account = _signed_in(call)
    if not READ & call.access.permissions:
        _deny_access()
    given = call.request.arguments
    wanted = _BY_MESSAGE_ID.fullmatch(given.get("$filter", ""))
    if wanted is None:
        message = "Invalid filter clause: the sandbox filters by internetMessageId only."
        raise Refusal(400, "BadRequest", message)
    message_id = wanted[1].replace("''", "'")
    found = [
        mail
        for mail in call.world.inbox.all()
        if mail.parsed.message_id == message_id and mail.account == account.mail
    ]
    if found and (late := call.fault(Kind.SENT_ITEMS_EMPTY)):
        after = timedelta(milliseconds=late.milliseconds)
        shown = call.world.now() - after
        found = [mail for mail in found if after and mail.at <= shown]
    values = [
        {
            "@odata.etag": f'W/"{mail.number}"',
            "id": f"AAMk{mail.number:012d}=",
            "sentDateTime": f"{mail.at:%Y-%m-%dT%H:%M:%SZ}",
            "internetMessageId": mail.parsed.message_id,
        }
        for mail in found[: _top(given.get("$top", ""))]
    ]
    chosen = [name for name in given.get("$select", "").split(",") if name]
    if chosen:
        kept = {*chosen, "id", "@odata.etag"}
        values = [{n: v for n, v in value.items() if n in kept} for value in values]
    return Answer(
        headers=(("Content-Type", "application/json"),),
        body=json.dumps({"value": values}).encode(),
    )


def _top(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 4 else 10


# ---- sendMail ----


def _send_mine(call: Call) -> Answer:
    account = _signed_in(call)
    if SEND not in call.access.permissions:
        _deny_access()
    return _send(call, account)


def _send_from(call: Call) -> Answer:
    mailbox = call.world.directory.find(call.request.segments[3])
    if mailbox is None or mailbox.tenant != call.access.tenant:
        raise Refusal(404, "ErrorInvalidUser", "The requested user is invalid.")
    if SEND not in call.access.permissions or call.account not in (None, mailbox):
        _deny_access()
    # The token is the application's: the fault of an account means the mailbox in the path.
    return _send(replace(call, account=mailbox), mailbox)


def _send(call: Call, mailbox: Account) -> Answer:
    if len(call.request.body) > LARGEST_REQUEST:
        raise Refusal(413, "BadRequest", "The maximum request length supported is 4MB.")
    if mailbox.mail is None:
        message = "The mailbox is either inactive, soft-deleted, or is hosted on-premise."
        raise Refusal(404, "MailboxNotEnabledForRESTAPI", message)
    parsed = _read_mail(call.request)
    if not parsed.recipients:
        raise Refusal(400, "ErrorInvalidRecipients", "At least one recipient isn't valid.")
    if fault := call.fault(*SENDING):
        if fault.kind is Kind.NOT_SENT_200:
            return Answer(status=200)
        _show(fault)
    if parsed.sender and parsed.sender not in mailbox.addresses:
        _deny_sender()
    world = call.world
    world.inbox.take(parsed, account=mailbox.mail, client_id=call.access.client_id, at=world.now())
    if fault := call.fault(*AFTER):
        if fault.kind is Kind.DROPPED_AFTER:
            raise Dropped
        return Answer(status=504, headers=(("Content-Type", "text/html"),), body=_GATEWAY_TIMEOUT)
    return Answer(status=202)


def _read_mail(request: Request) -> mails.Parsed:
    if request.media_type == "text/plain":
        try:
            body = request.body.translate(None, b"\r\n")
            raw = binascii.a2b_base64(body, strict_mode=True)
        except binascii.Error:
            message = "Invalid base64 string for MIME content."
            raise Refusal(400, "ErrorMimeContentInvalidBase64String", message) from None
    elif request.media_type == "application/json":
        raw = _mime_of(request.body)
    else:
        raise Refusal(400, "BadRequest", "Write requests must contain the Content-Type header.")
    try:
        return mails.parse(raw)
    except mails.NotMail:
        raise Refusal(400, "ErrorMimeContentInvalid", "The MIME content is invalid.") from None


def _mime_of(body: bytes) -> bytes:
    try:
        given = json.loads(body)
        named = {name.lower(): value for name, value in given.items()}
        return mails.from_json(named["message"])
    except mails.BadMessage as error:
        raise Refusal(400, "RequestBodyRead", str(error)) from None
    except (ValueError, AttributeError, KeyError):
        raise Refusal(400, "BadRequest", "Empty payload. JSON content expected.") from None
