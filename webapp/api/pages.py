"""The page that shows the API to people: what the OpenAPI document says, in their language."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, current_app, render_template
from flask.typing import ResponseReturnValue

from webapp import web
from webapp.accounts.rights import Access
from webapp.api.openapi import document
from webapp.problems import KINDS
from webapp.web import requires

bp = Blueprint("apidoc", __name__)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One value of an address, a header or a body. `about` is a marked sentence."""

    name: str
    place: str
    kind: str
    is_needed: bool
    about: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One status that a request may be answered with."""

    status: str
    about: str
    schema: str


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One thing that the API does."""

    name: str
    method: str
    path: str
    scope: str
    title: str
    about: str
    parameters: tuple[Parameter, ...]
    body: str
    examples: tuple[tuple[str, str], ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a body is made of."""

    name: str
    about: str
    fields: tuple[Parameter, ...]
    values: tuple[str, ...]


@bp.get("/api")
@requires(Access.SIGNED_IN)
def read() -> ResponseReturnValue:
    """The whole API on one page."""
    url = web.installation().settings.url
    told = document(current_app, url)
    return render_template(
        "api/read.html",
        url=url,
        operations=[
            _operation(path, method, one)
            for path, methods in told["paths"].items()
            for method, one in methods.items()
        ],
        shapes=[_shape(name, one) for name, one in sorted(told["components"]["schemas"].items())],
        kinds=KINDS,
    )


def _operation(path: str, method: str, one: Mapping[str, Any]) -> Operation:
    bodies = one.get("requestBody", {}).get("content", {})
    scopes: list[str] = next((each for way in one["security"] for each in way.values()), [])
    return Operation(
        name=one["operationId"],
        method=method.upper(),
        path=path,
        scope=scopes[0] if scopes else "",
        title=one["summary"],
        about=one["description"],
        parameters=tuple(
            Parameter(
                name=parameter["name"],
                place=parameter["in"],
                kind=kind_of(parameter["schema"]),
                is_needed=parameter["required"],
                about=parameter["description"],
            )
            for parameter in one["parameters"]
        ),
        body=_name(bodies.get("application/json", {}).get("schema", {})),
        examples=tuple(_examples(bodies)),
        answers=tuple(
            Answer(
                status=status,
                about=answer["description"],
                schema=next(
                    (_name(body["schema"]) for body in answer.get("content", {}).values()), ""
                ),
            )
            for status, answer in sorted(one["responses"].items())
        ),
    )


def _examples(bodies: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind, body in bodies.items():
        if "example" in body:
            example = body["example"]
            text = example if isinstance(example, str) else _pretty(example)
            yield kind, text.replace("\r\n", "\n")


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _shape(name: str, one: Mapping[str, Any]) -> Shape:
    return Shape(
        name=name,
        about=" ".join(one.get("description", "").split()),
        fields=tuple(
            Parameter(
                name=field,
                place="body",
                kind=kind_of(schema),
                is_needed=field in one.get("required", ()),
                about=schema.get("description", ""),
            )
            for field, schema in one.get("properties", {}).items()
        ),
        values=tuple(one.get("enum", ())),
    )


def kind_of(schema: Mapping[str, Any]) -> str:
    """A schema in a few words: `string`, `list of Mailbox`, `string or null`."""
    if "$ref" in schema:
        return _name(schema)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind_of(one) for one in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {kind_of(schema.get('items', {}))}"
    if "format" in schema:
        return str(schema["format"])
    return str(schema.get("type", "anything"))


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]
