"""The description of the API is true: requests of all kinds made from it are answered as it says."""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .http_service import Site

EXAMPLES = int(os.environ.get("EAO_FUZZ_EXAMPLES", "20"))
TRUE = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
schema = schemathesis.pytest.from_fixture("openapi")


@pytest.fixture(scope="module")
def openapi(site: Site) -> Any:
    return schemathesis.openapi.from_url(f"{site.url}/openapi.json")


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_answers_are_as_described(case: Any) -> None:
    answer = case.call_and_validate(checks=TRUE)
    assert answer.status_code < 500 or answer.status_code == 503, answer.text


def test_every_route_is_described(site: Site) -> None:
    paths = site.get("/openapi.json").json()["paths"]
    described = {f"{method} {path}" for path, methods in paths.items() for method in methods}
    assert described == {
        "get /health",
        "get /facets",
        "post /session",
        "delete /session",
        "get /metrics",
        "get /search",
        "post /search",
        "post /embed",
        "get /videos/{file_id}",
        "head /videos/{file_id}",
        "get /videos/{file_id}/thumbnail",
    }


def test_the_service_is_well_after_all_that(site: Site) -> None:
    assert site.get("/search", params={"q": "red"}).status_code == 200
    assert not [line for line in site.lines() if line["event"] == "a request failed"]
