"""Requests and answers held against the published description of Microsoft Graph.

The description is not part of the project: TEST_GRAPH_OPENAPI names the file, and without it these
checks are skipped. Addresses are moved to https://graph.microsoft.com first, so a Graph root on the
loopback will do.
"""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
import yaml
from openapi_core import OpenAPI
from openapi_core.datatypes import RequestParameters
from werkzeug.datastructures import Headers, ImmutableMultiDict

GRAPH = "https://graph.microsoft.com"
VARIABLE = "TEST_GRAPH_OPENAPI"


def description() -> OpenAPI:
    """The description, read once; skips the test where there is none."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        pytest.skip(f"{VARIABLE} names no file: set it to the description of Microsoft Graph")
    if not Path(name).is_file():
        pytest.skip(f"{VARIABLE} names {name}, and there is no such file")
    return _load(name)


@functools.cache
def _load(name: str) -> OpenAPI:
    found = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    for path in found["paths"].values():
        for operation in path.values():
            if isinstance(operation, dict) and "401" in operation.get("responses", {}):
                # The file leaves 400 out, for the sake of mock servers; its form is the usual one.
                operation["responses"].setdefault("400", operation["responses"]["401"])
    return OpenAPI.from_dict(found)


@dataclass
class _Request:
    method: str
    path: str
    content_type: str
    body: bytes | None
    parameters: RequestParameters
    host_url: str = GRAPH


@dataclass
class _Response:
    status_code: int
    content_type: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def _request(method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> _Request:
    parts = urlsplit(url)
    _, found, path = parts.path.partition("/v1.0/")
    assert found, f"{url} is not an address of Graph v1.0"
    return _Request(
        method=method.lower(),
        path=f"/v1.0/{path}",
        content_type=headers.get("Content-Type", ""),
        body=body or None,
        parameters=RequestParameters(
            query=ImmutableMultiDict(parse_qsl(parts.query)),
            header=Headers(dict(headers)),
            cookie=ImmutableMultiDict(),
        ),
    )


def check_request(
    method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
) -> None:
    """Raises openapi-core's error when Graph's description does not allow this request."""
    description().validate_request(_request(method, url, headers, body))


def check_answer(
    method: str,
    url: str,
    *,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    asked: Mapping[str, str] | None = None,
) -> None:
    """Raises openapi-core's error when Graph would not answer this request in this way."""
    request = _request(method, url, asked or {}, None)
    answer = _Response(
        status_code=status,
        content_type=headers.get("Content-Type", ""),
        data=body,
        headers=dict(headers),
    )
    description().validate_response(request, answer)


def check_prepared(request: requests.PreparedRequest) -> None:
    """`check_request` for a request of `requests`."""
    body = request.body
    data: Any = body.encode() if isinstance(body, str) else body
    check_request(str(request.method), str(request.url), request.headers, data)


def check_response(answer: requests.Response) -> None:
    """`check_answer` for an answer that `requests` got."""
    check_answer(
        str(answer.request.method),
        str(answer.request.url),
        status=answer.status_code,
        headers=answer.headers,
        body=answer.content,
        asked=answer.request.headers,
    )
