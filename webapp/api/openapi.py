"""The OpenAPI document, drawn up from the models by spectree and completed here.

spectree only describes: the views check requests themselves, because they take two kinds of body
and must never repeat in an error what was sent.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from flask import Flask
from pydantic import BaseModel
from spectree import Response, SecurityScheme, SpecTree
from spectree.models import SecureType, SecuritySchemeData

from webapp import __version__
from webapp.api.schemas import ID, Problem, Scope
from webapp.fields import N_
from webapp.problems import KINDS, MEDIA_TYPE

View = TypeVar("View", bound=Callable[..., Any])

TITLE = N_("Postroom HTTP API")
ABOUT = N_(
    "Hand in mail by HTTP, and ask how far it has come. Every request carries a key of the site; "
    "every error is a problem of RFC 9457."
)
KEY = N_("A key of the API, made on the page Connect of a site.")
SCHEME = "key"
ALWAYS = ("no-key", "too-many", "bug", "busy")
"""What any request may be answered with."""

_spec = SpecTree(
    "flask",
    title=TITLE,
    description=ABOUT,
    version=__version__,
    mode="strict",
    annotations=False,
    page_templates={},
    naming_strategy=lambda model: model.__name__,
    nested_naming_strategy=lambda _parent, child: child,
    validation_error_model=Problem,
    security_schemes=[
        SecurityScheme(
            name=SCHEME,
            data=SecuritySchemeData(type=SecureType.HTTP, scheme="bearer", description=KEY),
        )
    ],
)

_parameters: set[str] = set()
"""Models whose fields are parameters: no body is made of them."""


def operation(
    name: str,
    *,
    gives: type[BaseModel] | None,
    status: int = 200,
    says: str,
    scope: Scope | None,
    takes: type[BaseModel] | None = None,
    query: type[BaseModel] | None = None,
    headers: type[BaseModel] | None = None,
    problems: Sequence[str] = (),
) -> Callable[[View], View]:
    """Describe a view: what it takes, what it gives, and how it may refuse."""
    kinds = dict.fromkeys((*problems, *(ALWAYS if scope else ())))
    by_status: dict[int, list[str]] = {}
    for kind in kinds:
        by_status.setdefault(KINDS[kind][0], []).append(KINDS[kind][1])
    if scope is not None:
        by_status.setdefault(403, []).append(KINDS["scope"][1])
    answers = {
        f"HTTP_{code}": (Problem, "; ".join(dict.fromkeys(titles)))
        for code, titles in sorted(by_status.items())
    }
    _parameters.update(model.__name__ for model in (query, headers) if model is not None)
    return _spec.validate(
        json=takes,
        query=query,
        headers=headers,
        resp=Response(**{f"HTTP_{status}": (gives, says)}, **answers),
        security=[{SCHEME: [scope.value]}] if scope else [{}],
        operation_id=name,
        path_parameter_descriptions={"queue_id": N_("The id of the message.")},
        skip_validation=True,
    )


def document(app: Flask, url: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of this installation."""
    with app.app_context():
        told: dict[str, Any] = copy.deepcopy(_spec.spec)
    told["servers"] = [{"url": url}]
    told["jsonSchemaDialect"] = "https://spec.openapis.org/oas/3.1/dialect/base"
    told["components"]["headers"] = _HEADERS
    for name in _parameters:
        del told["components"]["schemas"][name]
    for name, shape in told["components"]["schemas"].items():
        shape["description"] = SHAPES[name]
    for path in told["paths"].values():
        for one in path.values():
            _complete(one)
    _describe_bodies(told["paths"]["/api/v1/messages"]["post"])
    resend = told["paths"]["/api/v1/messages/{queue_id}/resend"]["post"]
    resend["requestBody"]["required"] = False
    return told


_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "RateLimit-Limit": {
        "description": N_("How many requests a minute the key may make."),
        "schema": {"type": "integer"},
    },
    "RateLimit-Remaining": {
        "description": N_("How many of them are left."),
        "schema": {"type": "integer"},
    },
    "RateLimit-Reset": {
        "description": N_("Seconds until all of them are there again."),
        "schema": {"type": "integer"},
    },
    "Retry-After": {
        "description": N_("Seconds to wait before the next request."),
        "schema": {"type": "integer"},
    },
    "WWW-Authenticate": {
        "description": N_("How to sign in: with a Bearer key."),
        "schema": {"type": "string"},
    },
}
_LIMITS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")


def _complete(one: dict[str, Any]) -> None:
    one["summary"], one["description"] = OPERATIONS[one["operationId"]]
    is_public = one["security"] == [{}]
    for status, answer in one["responses"].items():
        names = [] if is_public or status == "401" else list(_LIMITS)
        if status in {"429", "503"}:
            names.append("Retry-After")
        if status in {"401", "403"}:
            names.append("WWW-Authenticate")
        if names:
            answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
        if int(status) >= 400:
            answer["content"] = {MEDIA_TYPE: answer["content"]["application/json"]}
    for parameter in one["parameters"]:
        parameter["schema"] = _without_null(parameter["schema"])
    if not one["tags"]:
        del one["tags"]
    if is_public:
        one["responses"].pop("422", None)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is there or it is not; there is no null in an address or a header."""
    told = {name: value for name, value in schema.items() if name != "description"}
    if told.get("default", "") is None:
        del told["default"]
    choices = [one for one in told.get("anyOf", ()) if one != {"type": "null"}]
    if len(choices) == 1:
        del told["anyOf"]
        told |= choices[0]
    return told


OPERATIONS: Mapping[str, tuple[str, str]] = {
    "send": (
        N_("Hand in a mail"),
        N_(
            "As JSON, of which the mail is made here, or as a whole mail in message/rfc822. The "
            "answer 202 comes once the mail is stored safely; it goes out by itself then."
        ),
    ),
    "list": (N_("List the messages of the site"), N_("Newest first, a page at a time.")),
    "show": (
        N_("Show one message"),
        N_("With every recipient and every try, but without its content."),
    ),
    "resend": (
        N_("Send a message once more"),
        N_(
            "To everybody it was sent to, or to others. It becomes a message of its own and goes "
            "out before those that wait."
        ),
    ),
    "cancel": (
        N_("Take a waiting message back"),
        N_("For all its recipients it has not gone to yet."),
    ),
    "retry": (
        N_("Try a message now"),
        N_(
            "One that was put off, one that was given up after the last try, or one of which "
            "nobody knows whether it arrived: that one may arrive twice."
        ),
    ),
    "openapi": (N_("The OpenAPI document"), N_("For programs that read it. It takes no key.")),
}
"""Of each operation, what it does in a line, and in more words."""

SHAPES: Mapping[str, str] = {
    "AcceptedOut": N_("The mail is stored, and goes out by itself from here on."),
    "AttachmentIn": N_("A file that goes along."),
    "AttemptOut": N_("One try to send it."),
    "Fault": N_("One thing that is wrong with a request."),
    "Mailbox": N_("An address, with the name of who has it."),
    "MessageIn": N_("A mail to be made and sent."),
    "MessageOut": N_("A message with everything but its content."),
    "PageOut": N_("A page of messages, newest first."),
    "Problem": N_("Why a request was refused (RFC 9457)."),
    "RecipientOut": N_("One recipient, and what became of it."),
    "ResendIn": N_("Whom a message is sent to once more."),
    "State": N_("Where a message, or one recipient of it, is."),
    "SummaryOut": N_("A message as the list shows it."),
}
"""What each body, or part of one, stands for."""

MAIL_EXAMPLE = {
    "from": "Contoso Shop <shop@example.org>",
    "to": ["mara@agentur.example"],
    "subject": "Your order 20431",
    "text": "Thank you for your order.",
}
RAW_EXAMPLE = (
    "From: Contoso Shop <shop@example.org>\r\nTo: mara@agentur.example\r\n"
    "Subject: Your order 20431\r\n\r\nThank you for your order.\r\n"
)
ACCEPTED_EXAMPLE = {
    "id": ID,
    "status": "queued",
    "url": f"https://post.example.org/api/v1/messages/{ID}",
}


def _describe_bodies(send: dict[str, Any]) -> None:
    content = send["requestBody"]["content"]
    content["application/json"]["example"] = MAIL_EXAMPLE
    content["message/rfc822"] = {
        "schema": {"type": "string", "description": N_("A whole mail, as it is.")},
        "example": RAW_EXAMPLE,
    }
    send["responses"]["202"]["content"]["application/json"]["example"] = ACCEPTED_EXAMPLE
