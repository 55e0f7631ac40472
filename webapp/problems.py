"""Errors as programs read them: problem details (RFC 9457), for everything under /api/."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from flask import Response, request
from werkzeug.exceptions import HTTPException

from webapp import web
from webapp.fields import N_

MEDIA_TYPE = "application/problem+json"
PREFIX = "/api/"
PAGE = "/api"
"""Where each kind is explained."""

KINDS: Mapping[str, tuple[int, str, str]] = {
    "unreadable": (
        400,
        N_("The request cannot be read"),
        N_("The body is not what its type says, or the request is not HTTP as it should be."),
    ),
    "no-key": (
        401,
        N_("No valid key"),
        N_(
            "The key is missing or wrong, was revoked, or may not be used from this address. Send "
            "it as Authorization: Bearer KEY."
        ),
    ),
    "scope": (
        403,
        N_("The key may not do this"),
        N_("The key lacks the scope that is named. Make one that has it."),
    ),
    "sender": (
        403,
        N_("The key may not send as this address"),
        N_("The key has a list of allowed senders, and the address is not on it."),
    ),
    "not-found": (
        404,
        N_("Nothing here"),
        N_("There is no such thing, or it belongs to another site."),
    ),
    "method": (
        405,
        N_("Not possible here"),
        N_("The address is right, the method is not."),
    ),
    "state": (
        409,
        N_("Not possible in this state"),
        N_("The message is being sent at this moment, or it is over. Look at its state first."),
    ),
    "key-used": (
        409,
        N_("The Idempotency-Key was used before"),
        N_("With another body. Use a new key for each new mail."),
    ),
    "too-large": (
        413,
        N_("Too large"),
        N_("The mail or the request is larger than this installation takes."),
    ),
    "media-type": (
        415,
        N_("This type of body is not taken"),
        N_("Send application/json, or a whole mail as message/rfc822."),
    ),
    "invalid": (
        422,
        N_("The request is not valid"),
        N_("Each fault is listed with the place where it is."),
    ),
    "hops": (
        422,
        N_("The mail is going round in circles"),
        N_("It has been relayed more than 20 times."),
    ),
    "too-many": (
        429,
        N_("Too many requests"),
        N_("Wait as long as Retry-After says. Each key has a limit of requests a minute."),
    ),
    "bug": (
        500,
        N_("Something broke here"),
        N_("A mistake of ours. It stands in the log under the id that is given."),
    ),
    "busy": (
        503,
        N_("Not at this moment"),
        N_("The mail was not stored. Send it again, with the same Idempotency-Key."),
    ),
    "disk-full": (
        507,
        N_("The disk is full"),
        N_("The mail was not stored. Send it again once there is room."),
    ),
}
"""Every kind of problem: its status, its title, and what it is about."""

_BY_STATUS = {
    400: "unreadable",
    401: "no-key",
    403: "scope",
    404: "not-found",
    405: "method",
    413: "too-large",
    415: "media-type",
    429: "too-many",
    503: "busy",
}


class Refused(HTTPException):
    """A request that is answered with a problem; raise it anywhere in a view of the API."""

    def __init__(
        self,
        kind: str,
        detail: str = "",
        *,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = KINDS[kind][0]
        self.kind = kind
        self.errors = errors
        self.more = dict(headers or {})


def is_for_program() -> bool:
    """Whether the answer to the request in hand is read by a program."""
    return request.path.startswith(PREFIX)


def answer(error: HTTPException) -> Response:
    """The problem that stands for an error."""
    if isinstance(error, Refused):
        return problem(error.kind, error.description, errors=error.errors, headers=error.more)
    status = error.code or 500
    kind = _BY_STATUS.get(status, "bug" if status >= 500 else "unreadable")
    response = problem(kind, status=status)
    for name, value in error.get_headers():
        if name.lower() in {"allow", "retry-after"}:
            response.headers[name] = value
    return response


def problem(
    kind: str,
    detail: str | None = None,
    *,
    status: int = 0,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
    error_id: str = "",
) -> Response:
    """The answer for a kind of problem."""
    own, title, _about = KINDS[kind]
    status = status or own
    known = f"{web.installation().settings.url}{PAGE}#{kind}"
    told: dict[str, Any] = {"type": known, "title": title, "status": status}
    if status != own:
        told["title"] = HTTPStatus(status).phrase
    if detail:
        told["detail"] = detail
    if errors:
        told["errors"] = list(errors)
    if error_id:
        told["error_id"] = error_id
    body = json.dumps(told, ensure_ascii=False)
    return Response(body, status, headers=dict(headers or {}), content_type=MEDIA_TYPE)
