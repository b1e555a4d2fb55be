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
    response_schema_conformance,
    status_code_conformance,
)

from nexus_gateway.errors import GatewayError
from nexus_gateway.web.app import ROUTES
from nexus_gateway.web.auth import Access
from nexus_gateway.web.openapi import OPERATIONS, document

DOCUMENT = document(ROUTES)
CHECKS: list[CheckFunction] = [
    content_type_conformance,
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
    operation = DOCUMENT["paths"][path][route.method.lower()]
    assert ("security" in operation) == (route.access is not Access.PUBLIC)
    assert ("401" in operation["responses"]) == (route.access is not Access.PUBLIC)


async def test_the_gateway_keeps_to_it(tmp_path: Path) -> None:
    async with process(tmp_path, LEDGER="off") as gateway:
        for result in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations():
            operation: Any = result.ok()
            if operation.path != "/v1/events":  # it never ends
                await asyncio.to_thread(call, operation, gateway.url)


def call(operation: Any, url: str) -> None:
    @A_FEW
    @given(case=operation.as_strategy())
    def some(case: Any) -> None:
        response = case.call(base_url=url, timeout=30)
        assert response.status_code != 500
        case.validate_response(response, checks=CHECKS)

    some()
