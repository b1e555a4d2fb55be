"""GET /openapi.json describes every route, and the gateway keeps to it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from processes import process
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from nexus_gateway.dialects import DIALECTS
from nexus_gateway.errors import GatewayError
from nexus_gateway.web.app import ROUTES
from nexus_gateway.web.auth import Access
from nexus_gateway.web.openapi import OPERATIONS, document

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = document(ROUTES)
CHECKS: list[CheckFunction] = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
A_FEW = settings(
    max_examples=6,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.generate,),
    suppress_health_check=[*HealthCheck],
)


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_route_is_described_and_no_other() -> None:
    paths = {(r.method, re.sub(r"\{(\w+)[^}]*\}", r"{\1}", r.path)) for r in ROUTES}
    assert paths == {*OPERATIONS}


def statuses(error: type[GatewayError]) -> set[int]:
    return {error.status}.union(*(statuses(kind) for kind in error.__subclasses__()))


def test_every_status_of_an_error_is_described() -> None:
    described = {
        status
        for methods in DOCUMENT["paths"].values()
        for operation in methods.values()
        for status in operation["responses"]
    }
    # 405 is of a method that no operation has, 417 and 505 are of HTTP.
    missing = {str(status) for status in statuses(GatewayError)} - described - {"405", "417", "505"}
    assert missing == set()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_what_needs_a_key_says_so(route: Any) -> None:
    path = re.sub(r"\{(\w+)[^}]*\}", r"{\1}", route.path)
    described = operation(path, route.method.lower())
    is_public = route.access is Access.PUBLIC
    assert ("security" not in described) == is_public
    for status in ("401", "403"):
        assert (status not in described["responses"]) == is_public


def operation(path: str, method: str = "post") -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method]
    return found


def schema_of(response: dict[str, Any]) -> str:
    reference: str = response["content"]["application/json"]["schema"]["$ref"]
    return reference.rpartition("/")[2]


@pytest.mark.parametrize(
    ("path", "method", "schema"),
    [
        *((path, "post", "Error") for path in ("/v1/chat/completions", "/v1/responses")),
        *((f"/v1/messages{end}", "post", "AnthropicError") for end in ("", "/count_tokens")),
        *((f"/v1/models{end}", "get", "EitherError") for end in ("", "/{id}")),
    ],
)
def test_an_error_has_the_shape_of_its_api(path: str, method: str, schema: str) -> None:
    responses = operation(path, method)["responses"]
    assert {schema_of(responses[status]) for status in responses if status != "200"} == {schema}


# The names as docs/api.md has them.
def documented_headers(section: str) -> set[str]:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    table = text.partition(f"## {section} headers\n")[2].partition("\n## ")[0]
    rows = [line.partition(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("path", DIALECTS)
def test_an_endpoint_that_reaches_a_provider_names_its_headers(path: str) -> None:
    described = operation(path)
    named = {p["name"] for p in described["parameters"] if p["in"] == "header"}
    # The others are of every request, and of tracing.
    assert named == documented_headers("Request") - {"X-Request-Id", "traceparent", "tracestate"}
    for status, response in described["responses"].items():
        assert documented_headers("Response") - {"X-Nexus-Estimate"} <= {*response["headers"]}
        assert ("Retry-After" in response["headers"]) == (status in ("429", "503"))


def test_an_estimate_says_so() -> None:
    for path in ("/v1/messages/count_tokens", "/v1/responses/input_tokens"):
        assert "X-Nexus-Estimate" in operation(path)["responses"]["200"]["headers"]


async def test_the_gateway_keeps_to_it(tmp_path: Path) -> None:
    async with process(tmp_path, LEDGER="off") as gateway:
        for result in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations():
            described: Any = result.ok()
            if described.path != "/v1/events":  # it never ends
                await asyncio.to_thread(call, described, gateway.url)


def call(described: Any, url: str) -> None:
    @A_FEW
    @given(case=described.as_strategy())
    def some(case: Any) -> None:
        response = case.call(base_url=url, timeout=30)
        assert response.status_code != 500
        case.validate_response(response, checks=CHECKS)

    some()
