"""The OpenAPI document: complete, and what the API really does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.conftest import Desk, a_desk
from tests.factories import an_installation
from webapp.api.schemas import Scope
from webapp.api.views import EXTENSION

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


@dataclass(frozen=True, kw_only=True)
class Served:
    """An API as schemathesis sees it, a key, and a message."""

    schema: Any
    key: str
    queue_id: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An API with some mail, as schemathesis sees it."""
    folder = tmp_path_factory.mktemp("api")
    installation = an_installation(
        f"sqlite:///{folder / 'postroom.db'}", folder, api_per_minute=1_000_000
    )
    desk = a_desk(installation)
    program = desk.program()
    yield Served(
        schema=schemathesis.openapi.from_wsgi("/api/v1/openapi.json", desk.app),
        key=program.key,
        queue_id=program.send(),
    )
    desk.app.extensions[EXTENSION].close()
    installation.close()


NAMES = ("send", "list", "show", "resend", "cancel", "retry", "openapi")


@pytest.mark.parametrize("name", NAMES)
def test_whatever_comes_is_answered_as_the_document_says(served: Served, name: str) -> None:
    asked = served.schema.find_operation_by_id(name)

    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    @given(case=asked.as_strategy())
    def ask(case: Any) -> None:
        # A made-up id is never one of ours: every other time, ask for the mail that is there.
        if case.path_parameters and len(str(case.path_parameters["queue_id"])) % 2:
            case.path_parameters["queue_id"] = served.queue_id
        answer = case.call(headers={"Authorization": f"Bearer {served.key}"})
        case.validate_response(answer, checks=CHECKS)

    ask()


def test_the_document_is_valid_and_complete(light_desk: Desk) -> None:
    told = light_desk.app.test_client().get("/api/v1/openapi.json").json
    validate(told)
    assert told["openapi"].startswith("3.1")
    names = {
        one["operationId"]: one for methods in told["paths"].values() for one in methods.values()
    }
    assert set(names) == set(NAMES)
    views = light_desk.app.view_functions
    asked = {"messages": "list", "message": "show"}
    for endpoint, view in views.items():
        if not endpoint.startswith("api."):
            continue
        name = endpoint.removeprefix("api.")
        one = names[asked.get(name, name)]
        scope = view.required_right
        if isinstance(scope, Scope):
            assert one["security"] == [{"key": [scope]}]
            assert {"401", "403", "429", "500"} <= set(one["responses"])
    for one in names.values():
        assert one["summary"]
        for status, answer in one["responses"].items():
            assert answer["description"]
            assert ("application/problem+json" in answer.get("content", {})) == (status >= "400")
        for parameter in one["parameters"]:
            assert parameter["description"], parameter["name"]
    assert set(names["send"]["requestBody"]["content"]) == {"application/json", "message/rfc822"}
    for shape in told["components"]["schemas"].values():
        for field in shape.get("properties", {}).values():
            assert field.get("description"), shape["title"]
