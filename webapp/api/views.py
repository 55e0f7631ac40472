"""The HTTP API: hand mail in, ask how far it has come, and act on it. Answers are JSON."""

import functools
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager
from typing import Any, NoReturn, ParamSpec, TypeVar

import sqlalchemy as sa
from flask import Blueprint, Flask, Response, current_app, g, jsonify, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from sqlalchemy.orm import Session

from webapp import web
from webapp.accounts.rights import Access
from webapp.api import letter, service
from webapp.api.checks import check_email
from webapp.api.openapi import document, operation
from webapp.api.schemas import (
    LONGEST_KEY,
    AcceptedOut,
    ListQuery,
    MessageIn,
    MessageOut,
    MimeHeaders,
    PageOut,
    ResendIn,
    Scope,
    SendHeaders,
    pointer_of,
)
from webapp.api.service import Busy, Office
from webapp.config import Settings
from webapp.delivery import actions
from webapp.delivery.actions import NotPossible, Refusal
from webapp.delivery.models import Message, Source
from webapp.fields import N_
from webapp.ingress.accept import Accepted, NotAccepted, Once, Pinned, Submission
from webapp.ingress.login import Submitter
from webapp.maillog import service as maillog
from webapp.mime.facts import facts_of
from webapp.problems import Refused
from webapp.protect import csrf
from webapp.web import db, now, requires

bp = Blueprint("api", __name__, url_prefix="/api/v1")
csrf.exempt(bp)  # a key comes with each request; no browser sends it by itself

EXTENSION = "postroom.api"
JSON = "application/json"
MIME = "message/rfc822"
LARGEST_JSON = 1.5
"""Times the largest mail: base64 takes a third more, and text may be written in escapes."""
SMALL_BODY = 1024 * 1024
MOST_FAULTS = 20
RETRY_SECONDS = 5
LONGEST_LINE = 64 * 1024
ID_LENGTH = 20
OPEN_TO_ALL = "Bearer"

P = ParamSpec("P")
M = TypeVar("M", bound=BaseModel)


@bp.record
def open_office(state: Any) -> None:
    """What the requests of an application share; closed when the application is gone."""
    app: Flask = state.app
    installation = app.extensions[web.EXTENSION].installation
    office = Office(settings=installation.settings, db=installation.db)
    app.extensions[EXTENSION] = office
    weakref.finalize(app, office.close)


def office() -> Office:
    """What the requests of this application share."""
    found: Office = current_app.extensions[EXTENSION]
    return found


def settings() -> Settings:
    """Of this installation."""
    return web.installation().settings


# ---- who asks ----


def needs(
    scope: Scope,
) -> Callable[[Callable[P, ResponseReturnValue]], Callable[P, ResponseReturnValue]]:
    """Let only those in who hold a key with this scope; the submitter is `g.submitter` then."""

    def wrap(view: Callable[P, ResponseReturnValue]) -> Callable[P, ResponseReturnValue]:
        @functools.wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> ResponseReturnValue:
            admit(scope)
            return view(*args, **kwargs)

        guarded.required_right = scope  # type: ignore[attr-defined]
        return guarded

    return wrap


def admit(scope: Scope) -> None:
    """Check the key, count the request, then look whether the key may do it."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise Refused("no-key", headers={"WWW-Authenticate": "Bearer"})
    address = request.remote_addr or ""
    submitter = office().submitter(key, address)
    if submitter is None:
        refuse_key(key, address)
    g.submitter = submitter
    g.allowance = office().pace.take(submitter.credential_id, time.monotonic())
    if not g.allowance.is_granted:
        raise Refused("too-many", headers={"Retry-After": str(g.allowance.wait)})
    if scope not in submitter.scopes:
        words = f'Bearer error="insufficient_scope", scope="{scope}"'
        detail = f"This takes a key with the scope {scope}."
        raise Refused("scope", detail, headers={"WWW-Authenticate": words})


def refuse_key(key: str, address: str) -> NoReturn:
    """Take longer each time. Only a few wait at once: each wait takes a thread of the dashboard."""
    delay = office().delay_of(key, address)
    if not office().sleepers.acquire(blocking=False):
        raise Refused("too-many", headers={"Retry-After": str(math.ceil(delay))})
    try:
        office().sleep(delay)
    finally:
        office().sleepers.release()
    raise Refused("no-key", headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


def submitter() -> Submitter:
    """Who holds the key of the request in hand."""
    found: Submitter = g.submitter
    return found


@bp.after_request
def tell_limits(response: Response) -> Response:
    """How many requests are left, as the draft of the IETF names it."""
    allowance = g.get("allowance")
    if allowance is not None:
        response.headers["RateLimit-Limit"] = str(allowance.limit)
        response.headers["RateLimit-Remaining"] = str(allowance.remaining)
        response.headers["RateLimit-Reset"] = str(allowance.reset)
    return response


# ---- what was sent ----


@contextmanager
def body(largest: int) -> Iterator[bytes]:
    """The body of the request, with room for it in memory."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused("media-type", "A compressed body is not taken.")
    request.max_content_length = largest
    size = request.content_length or 0
    if size > largest:
        raise Refused("too-large", f"At most {largest} bytes.")
    try:
        with office().memory(size):
            yield request.get_data(cache=False)
    except Busy as error:
        raise Refused("busy", headers={"Retry-After": str(RETRY_SECONDS)}) from error


def read_json(raw: bytes, model: type[M]) -> M:
    """A body in JSON as what it should be; raises Refused with a pointer to each fault."""
    try:
        found = from_json(raw)
    except ValueError as error:
        raise Refused("unreadable", f"This is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise invalid({"detail": "The body must be a JSON object.", "pointer": ""})
    try:
        return model.model_validate(found)
    except ValidationError as error:
        faults = _faults(error)
        raise invalid(
            *({"detail": text, "pointer": pointer_of(found, where)} for where, text in faults)
        ) from error


def read_query(model: type[M]) -> M:
    """The query of the address; raises Refused with the name of each wrong parameter."""
    try:
        return model.model_validate(request.args.to_dict())
    except ValidationError as error:
        faults = _faults(error)
        raise invalid(
            *({"detail": text, "parameter": str(where[0])} for where, text in faults)
        ) from error


def _faults(error: ValidationError) -> list[tuple[tuple[int | str, ...], str]]:
    """Where, and what in words; never what was sent."""
    found = error.errors(include_input=False, include_context=False, include_url=False)
    return [(one["loc"], one["msg"].removeprefix("Value error, ")) for one in found][:MOST_FAULTS]


def invalid(*faults: Mapping[str, str]) -> Refused:
    """422, with where it is wrong."""
    return Refused("invalid", faults[0]["detail"] if len(faults) == 1 else "", errors=faults)


def header_text(name: str) -> str | None:
    """A header field of the request; UTF-8 is allowed in it."""
    value = request.headers.get(name)
    if value is None:
        return None
    return value.encode("latin-1", "replace").decode("utf-8", "replace").strip()


def request_name(*parts: bytes) -> Once | None:
    """The name that an Idempotency-Key gives to the request, which consists of these parts."""
    key = header_text("Idempotency-Key")
    if key is None:
        return None
    if not 1 <= len(key) <= LONGEST_KEY:
        text = f"An Idempotency-Key has 1 to {LONGEST_KEY} characters."
        raise invalid({"detail": text, "parameter": "Idempotency-Key"})
    return service.once(submitter(), key, *parts)


# ---- hand in ----


@bp.post("/messages")
@operation(
    "send",
    takes=MessageIn,
    headers=MimeHeaders,
    gives=AcceptedOut,
    status=202,
    says=N_("The mail is stored."),
    scope=Scope.SEND,
    problems=(
        "unreadable",
        "sender",
        "key-used",
        "too-large",
        "media-type",
        "invalid",
        "hops",
        "busy",
        "disk-full",
    ),
)
@needs(Scope.SEND)
def send() -> ResponseReturnValue:
    """Hand in a mail, as JSON or whole."""
    largest = settings().max_message_bytes
    if request.mimetype not in {JSON, MIME}:
        raise Refused("media-type")
    if not office().acceptor.has_room(request.content_length or 0):
        raise Refused("disk-full")
    with body(largest if request.mimetype == MIME else int(largest * LARGEST_JSON)) as raw:
        told = [request.headers.get(name, "").encode("latin-1") for name in _ENVELOPE]
        name = request_name(request.mimetype.encode(), raw, *told)
        if name is not None:
            with db().read() as session:
                first = service.answered(session, name, now())
            if first is not None:
                return taken(first, name)
        submission = (_from_mime if request.mimetype == MIME else _from_json)(raw, name)
    return taken(hand_in(submission), name)


_ENVELOPE = ("X-Postroom-Mail-From", "X-Postroom-Rcpt-To", "X-Postroom-Connection")


def _from_json(raw: bytes, name: Once | None) -> Submission:
    asked = read_json(raw, MessageIn)
    if asked.text is None and asked.html is None and not asked.attachments:
        raise invalid({"detail": "Give text, html or attachments.", "pointer": ""})
    recipients = letter.recipients_of(asked)
    check_count(recipients, {"pointer": "/to"})
    check_senders([asked.from_.email], {"pointer": "/from"})
    pinned = find_pinned(asked.connection, {"pointer": "/connection"})
    return _submission(asked.from_.email, recipients, letter.a_mail(asked), pinned, name)


def _from_mime(raw: bytes, name: Once | None) -> Submission:
    if not raw.strip():
        raise invalid({"detail": "The body is empty.", "pointer": ""})
    if longest_line(raw) > LONGEST_LINE:
        raise invalid({"detail": "A line is longer than 64 KB.", "pointer": ""})
    facts = facts_of(raw)
    sender = header_text("X-Postroom-Mail-From")
    mail_from = facts.from_email if sender is None else sender.strip("<>")
    if mail_from and sender is not None:
        check_addresses([mail_from], "X-Postroom-Mail-From")
    named = header_text("X-Postroom-Rcpt-To")
    if named is None:
        listed = [one.email for one in (*facts.to, *facts.cc, *facts.bcc) if "@" in one.email]
    else:
        listed = [one.strip(" \t<>") for one in named.split(",") if one.strip()]
        check_addresses(listed, "X-Postroom-Rcpt-To")
    recipients = tuple(dict.fromkeys(listed))
    check_count(recipients, {"parameter": "X-Postroom-Rcpt-To"})
    check_senders([mail_from, facts.from_email], {"parameter": "X-Postroom-Mail-From"})
    asked = header_text("X-Postroom-Connection") or None
    pinned = find_pinned(asked, {"parameter": "X-Postroom-Connection"})
    return _submission(mail_from, recipients, raw, pinned, name)


def _submission(
    mail_from: str,
    recipients: Sequence[str],
    raw: bytes,
    pinned: Pinned | None,
    name: Once | None,
) -> Submission:
    largest = settings().max_message_bytes
    if len(raw) > largest:
        raise Refused("too-large", f"The mail would have {len(raw)} bytes: at most {largest}.")
    return Submission(
        site_id=submitter().site_id,
        credential_id=submitter().credential_id,
        source=Source.API,
        mail_from=mail_from,
        recipients=tuple(recipients),
        raw=raw,
        received=how_it_came(),
        pinned=pinned,
        once=name,
    )


def how_it_came() -> dict[str, Any]:
    """What the Received line and the message page say of it."""
    address = request.remote_addr or ""
    return {
        "from": f"[{address}]",
        "with": "HTTPS" if request.is_secure else "HTTP",
        "login": submitter().username,
        "address": address,
    }


def longest_line(raw: bytes) -> int:
    """Of a mail, in bytes."""
    return max(map(len, raw.splitlines()), default=0) if len(raw) > LONGEST_LINE else 0


def check_addresses(addresses: Sequence[str], parameter: str) -> None:
    """Addresses of a header field of the request."""
    for address in addresses:
        try:
            check_email(address)
        except ValueError as error:
            raise invalid({"detail": str(error), "parameter": parameter}) from error


def check_count(recipients: Sequence[str], where: Mapping[str, str]) -> None:
    """At least one, and not too many."""
    most = settings().max_recipients
    if not recipients:
        raise invalid({"detail": "There is no recipient.", **where})
    if len(recipients) > most:
        raise invalid({"detail": f"Too many recipients: at most {most} a mail.", **where})


def check_senders(addresses: Sequence[str], where: Mapping[str, str]) -> None:
    """What the key may send as."""
    if service.not_allowed(submitter(), addresses):
        detail = "The key may not send as this address."
        raise Refused("sender", errors=[{"detail": detail, **where}])


def find_pinned(uid: str | None, where: Mapping[str, str]) -> Pinned | None:
    """The connection that the request asks for."""
    if uid is None:
        return None
    with db().read() as session:
        found = service.find_pinned(session, submitter().site_id, uid)
    if found is None:
        raise invalid({"detail": "This site has no such connection.", **where})
    if found.lane_id is None:
        raise invalid({"detail": "This connection is not set up to send yet.", **where})
    return found


def hand_in(submission: Submission) -> Accepted:
    """Store a mail, together with whatever comes in at the same moment; raises Refused."""
    try:
        return office().acceptor.submit(submission).result(service.PATIENCE)
    except NotAccepted as error:
        raise refused_as(error.reply) from error
    except NotInTime as error:
        raise Refused("busy", headers={"Retry-After": str(RETRY_SECONDS)}) from error


def refused_as(reply: str) -> Refused:
    """What an answer of SMTP is in HTTP."""
    if reply.startswith("452"):
        return Refused("disk-full")
    if reply.startswith("5"):
        return Refused("hops")
    return Refused("busy", headers={"Retry-After": str(RETRY_SECONDS)})


def taken(accepted: Accepted, name: Once | None) -> ResponseReturnValue:
    """202, the same for the same request; 409 when the name stands for another one."""
    if accepted.first_body and name is not None and accepted.first_body != name.body_digest:
        raise Refused("key-used")
    told = AcceptedOut(
        id=accepted.queue_id,
        status=accepted.state,
        url=service.url_of(settings(), accepted.queue_id),
    )
    response = answer(told, 202)
    response.headers["Location"] = told.url
    if accepted.first_body:
        response.headers["Idempotency-Replayed"] = "true"
    return response


def answer(model: BaseModel, status: int = 200) -> Response:
    """A model as JSON."""
    return Response(model.model_dump_json(by_alias=True), status, content_type=JSON)


# ---- look ----


@bp.get("/messages")
@operation(
    "list",
    query=ListQuery,
    gives=PageOut,
    says=N_("A page of messages, newest first."),
    scope=Scope.READ,
    problems=("invalid",),
)
@needs(Scope.READ)
def messages() -> ResponseReturnValue:
    """List the messages of the site."""
    asked = read_query(ListQuery)
    with db().read() as session:
        page = maillog.list_messages(
            session,
            site_ids=[submitter().site_id],
            now=now(),
            states=(asked.state,) if asked.state else (),
            search=asked.q,
            since=asked.since,
            until=asked.until,
            before_id=asked.after,
            limit=asked.limit,
        )
    shown = tuple(service.summary(settings(), row) for row in page.rows)
    following = None if page.older is None else str(page.older)
    return answer(PageOut(messages=shown, next=following))


@bp.get("/messages/<queue_id>")
@operation(
    "show",
    gives=MessageOut,
    says=N_("The message."),
    scope=Scope.READ,
    problems=("not-found",),
)
@needs(Scope.READ)
def message(queue_id: str) -> ResponseReturnValue:
    """Show one message."""
    return show(queue_id)


def show(queue_id: str) -> Response:
    """A message of this site as JSON."""
    with db().read() as session:
        key_of(session, queue_id)
        found = maillog.get_message(session, queue_id, [submitter().site_id], now())
    if found is None:
        raise Refused("not-found")
    return answer(service.detail(settings(), found))


def key_of(session: Session, queue_id: str) -> Message:
    """The message of this site with this id; raises Refused for any other."""
    found = None
    if queue_id.isascii() and queue_id.isalnum() and len(queue_id) <= ID_LENGTH:
        found = session.scalar(
            sa.select(Message).where(
                Message.queue_id == queue_id, Message.site_id == submitter().site_id
            )
        )
    if found is None:
        raise Refused("not-found")
    return found


# ---- act ----


@bp.post("/messages/<queue_id>/resend")
@operation(
    "resend",
    takes=ResendIn,
    headers=SendHeaders,
    gives=AcceptedOut,
    status=202,
    says=N_("It is stored as a new message."),
    scope=Scope.MANAGE,
    problems=(
        "unreadable",
        "sender",
        "not-found",
        "state",
        "key-used",
        "too-large",
        "media-type",
        "invalid",
        "busy",
        "disk-full",
    ),
)
@needs(Scope.MANAGE)
def resend(queue_id: str) -> ResponseReturnValue:
    """Send a message once more."""
    with body(SMALL_BODY) as raw:
        if raw and request.mimetype != JSON:
            raise Refused("media-type", "Send application/json, or no body.")
        name = request_name(b"resend", queue_id.encode(), raw)
        asked = read_json(raw, ResendIn) if raw else ResendIn()
    to = tuple(dict.fromkeys(mailbox.email for mailbox in asked.to))
    if to:
        check_count(to, {"pointer": "/to"})
    with db().read() as session:
        first = service.answered(session, name, now()) if name else None
        if first is not None:
            return taken(first, name)
        mail = key_of(session, queue_id)
        check_senders([mail.mail_from, mail.from_email], {"pointer": ""})
        try:
            submission = actions.resent(
                session,
                mail,
                to=to,
                credential_id=submitter().credential_id,
                received=how_it_came(),
                once=name,
            )
        except NotPossible as error:
            raise Refused("state", _REFUSALS[error.refusal]) from error
    return taken(hand_in(submission), name)


_REFUSALS: Mapping[Refusal, str] = {
    Refusal.SENDING: "It is being sent at this moment.",
    Refusal.OVER: "It is over.",
    Refusal.NOT_PUT_OFF: "It is waiting, and leaves by itself.",
    Refusal.NO_CONTENT: "The mail itself is no longer kept.",
    Refusal.SILENT: "The site is set to send nothing.",
    Refusal.NOT_HELD: "It is not held.",
}


@bp.post("/messages/<queue_id>/cancel")
@operation(
    "cancel",
    gives=MessageOut,
    says=N_("It is cancelled."),
    scope=Scope.MANAGE,
    problems=("not-found", "state"),
)
@needs(Scope.MANAGE)
def cancel(queue_id: str) -> ResponseReturnValue:
    """Take a waiting message back."""
    return act(queue_id, actions.cancel)


@bp.post("/messages/<queue_id>/retry")
@operation(
    "retry",
    gives=MessageOut,
    says=N_("It is tried at once."),
    scope=Scope.MANAGE,
    problems=("not-found", "state"),
)
@needs(Scope.MANAGE)
def retry(queue_id: str) -> ResponseReturnValue:
    """Try a message now."""
    return act(queue_id, actions.retry)


def act(queue_id: str, action: Callable[..., None]) -> Response:
    """One move of the ledger, and the message as it is then."""
    with db().read() as session:
        key = key_of(session, queue_id).id
    try:
        with db().write_connection() as connection:
            action(connection, key, now())
    except NotPossible as error:
        raise Refused("state", _REFUSALS[error.refusal]) from error
    office().waker.wake()
    return show(queue_id)


# ---- the document ----


@bp.get("/openapi.json")
@operation("openapi", gives=None, says=N_("This document."), scope=None)
@requires(Access.PUBLIC)
def openapi() -> ResponseReturnValue:
    """The OpenAPI document."""
    return jsonify(document(current_app, settings().url))
