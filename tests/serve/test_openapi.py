"""The description of the API is true: requests of all kinds made from it are answered as it says."""

from __future__ import annotations

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .http_service import PATIENCE, Site

EXAMPLES = int(os.environ.get("EAO_FUZZ_EXAMPLES", "15"))
TRUE = [status_code_conformance, content_type_conformance, response_schema_conformance, response_headers_conformance]
PLAIN = ["GET /health", "GET /facets", "GET /metrics", "DELETE /session"]
WITH_INPUT = [
    "POST /session",
    "GET /search",
    "POST /search",
    "POST /embed",
    "GET /videos/{file_id}",
    "HEAD /videos/{file_id}",
    "GET /videos/{file_id}/thumbnail",
]


@pytest.fixture(scope="module")
def description(site: Site) -> Any:
    return schemathesis.openapi.from_url(f"{site.url}/openapi.json")


def fuzz(description: Any, route: str, mode: GenerationMode, **fixed: Any) -> None:
    """Ask with what Hypothesis makes of a route's description, fitting or not, and check the answers."""

    @given(case=description.find_operation_by_label(route).as_strategy(generation_mode=mode, **fixed))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        answer = case.call_and_validate(checks=TRUE, timeout=PATIENCE)
        assert answer.status_code < 500 or answer.status_code == 503, answer.text

    ask()


@pytest.mark.parametrize("route", [*PLAIN, *WITH_INPUT])
def test_requests_that_fit_are_answered_as_described(description: Any, route: str) -> None:
    fuzz(description, route, GenerationMode.POSITIVE)


@pytest.mark.parametrize("route", WITH_INPUT)
def test_requests_that_do_not_fit_are_answered_as_described(description: Any, route: str) -> None:
    fuzz(description, route, GenerationMode.NEGATIVE)


@pytest.mark.parametrize("route", [route for route in WITH_INPUT if "{file_id}" in route])
def test_requests_for_files_that_are_there_are_answered_as_described(site: Site, description: Any, route: str) -> None:
    file_id = site.get("/search", params={"q": "red"}).json()["hits"][0]["id"]
    fuzz(description, route, GenerationMode.POSITIVE, path_parameters={"file_id": file_id})


def test_every_route_is_described(site: Site) -> None:
    paths = site.get("/openapi.json").json()["paths"]
    described = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert described == {*PLAIN, *WITH_INPUT}


def test_the_service_is_well_after_all_that(site: Site) -> None:
    assert site.get("/search", params={"q": "red"}).status_code == 200
    assert not site.lines(event="a request failed")
