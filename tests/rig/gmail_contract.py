"""Gmail's own description of itself, and whether a request and an answer agree with it.

The discovery document comes with Google's client library, which is installed for tests only.
"""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


@cache
def description() -> dict[str, Any]:
    """The discovery document of Gmail v1."""
    library = importlib.util.find_spec("googleapiclient")
    assert library is not None
    assert library.origin is not None
    folder = Path(library.origin).parent / "discovery_cache/documents"
    found: dict[str, Any] = json.loads((folder / "gmail.v1.json").read_text())
    return found


def method(name: str) -> dict[str, Any]:
    """One call by its id: `users.messages.send`."""
    *resources, last = name.split(".")
    at: dict[str, Any] = description()
    for resource in resources:
        at = at["resources"][resource]
    found: dict[str, Any] = at["methods"][last]
    return found


def check_upload(name: str, verb: str, url: str, media_type: str, size: int) -> None:
    """Whether a request is a simple upload as the description has it."""
    wanted = method(name)
    upload = wanted["mediaUpload"]
    parts = urlsplit(url)
    assert verb == wanted["httpMethod"]
    assert parts.path == upload["protocols"]["simple"]["path"].replace("{userId}", "me")
    assert parse_qs(parts.query) == {"uploadType": ["media"]}
    assert media_type.split("/")[0] in {kind.split("/")[0] for kind in upload["accept"]}
    assert size <= int(upload["maxSize"])


def check_call(name: str, verb: str, url: str) -> None:
    """Whether a request without a body is one of the description's."""
    wanted = method(name)
    assert verb == wanted["httpMethod"]
    assert urlsplit(url).path == f"/{wanted['path']}".replace("{userId}", "me")


def check_answer(name: str, value: object) -> None:
    """Whether an answer has nothing that the description does not know, and the right types."""
    _check(value, method(name)["response"], name)


def _check(value: object, schema: dict[str, Any], at: str) -> None:
    if "$ref" in schema:
        schema = description()["schemas"][schema["$ref"]]
    kinds = {"string": str, "boolean": bool, "integer": int, "array": list, "object": dict}
    assert isinstance(value, kinds[schema["type"]]), f"{at}: {value!r} is no {schema['type']}"
    if "enum" in schema:
        assert value in schema["enum"], f"{at}: {value!r}"
    if isinstance(value, list):
        for one in value:
            _check(one, schema["items"], at)
    if isinstance(value, dict):
        for name, inner in value.items():
            assert name in schema["properties"], f"{at} has no {name}"
            _check(inner, schema["properties"][name], f"{at}.{name}")
