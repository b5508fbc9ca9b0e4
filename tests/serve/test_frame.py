"""Limits around every route, with a small application in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from eao.serve.frame import Frame, Gate
from eao.serve.metrics import Metrics
from eao.serve.problems import Overloaded, Problem
from eao.serve.settings import Settings

Answer = Callable[[Request], Awaitable[Response]]
UPLOAD = {"Content-Type": "multipart/form-data; boundary=b"}


def application(answer: Answer) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await answer(Request(scope, receive))
        await response(scope, receive, send)

    return app


async def read(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body())})


async def slow(request: Request) -> Response:
    await asyncio.sleep(30)
    return PlainTextResponse("too late")


def ask(answer: Answer, *requests: dict[str, Any], **settings: Any) -> list[httpx.Response]:
    """The answers to requests at the same time."""

    async def run() -> list[httpx.Response]:
        frame = Frame(application(answer), Settings(**settings), Metrics(), {"/open"})
        transport = httpx.ASGITransport(frame)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*(client.request(**{"method": "GET", "url": "/", **r}) for r in requests))

    return asyncio.run(run())


def test_a_body_without_files_is_limited() -> None:
    small, large = ask(read, *({"method": "POST", "content": b"x" * size} for size in (2**20, 2**20 + 1)))
    assert small.json() == {"bytes": 2**20}
    assert large.status_code == 413 and "larger" in large.json()["error"]["message"]


def test_a_body_whose_length_is_not_told_is_limited_as_it_comes() -> None:
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 10_000

    (answer,) = ask(
        read, {"method": "POST", "url": "/search", "content": parts(), "headers": UPLOAD}, max_upload=50_000
    )
    assert answer.status_code == 413
    assert "connection" in answer.headers  # what is left of the body must not be taken for another request


def test_a_request_without_an_answer_in_time_is_given_up() -> None:
    (answer,) = ask(slow, {}, timeout=0.05)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


def test_a_body_that_comes_too_slowly_is_given_up() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(30)

    (answer,) = ask(read, {"method": "POST", "content": parts()}, timeout=0.05)
    assert answer.status_code == 408


def test_how_fast_an_answer_is_read_is_not_limited() -> None:
    async def answer(request: Request) -> Response:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(0.2)
            await send({"type": "http.response.body", "body": b"late"})

        return app  # type: ignore[return-value]

    (got,) = ask(answer, {}, timeout=0.05)
    assert got.text == "late"


def test_more_requests_than_may_be_inside_are_refused_at_once() -> None:
    async def wait(request: Request) -> Response:
        await asyncio.sleep(0.1)
        return PlainTextResponse("done")

    answers = ask(wait, *[{"url": "/search"}] * 7, queue=3)
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 4
    assert all(a.headers["retry-after"] == "1" for a in answers if a.status_code == 503)


def test_a_gate_is_free_again_when_a_request_fails() -> None:
    gate = Gate("searches", 1)
    with pytest.raises(KeyError), gate.enter():
        raise KeyError
    with gate.enter(), pytest.raises(Overloaded), gate.enter():
        pass
    assert gate.inside == 0


def test_a_bug_is_told_without_its_details() -> None:
    async def broken(request: Request) -> Response:
        raise ZeroDivisionError("the secret is 42")

    (answer,) = ask(broken, {})
    assert answer.status_code == 500 and "secret" not in answer.text


def test_a_problem_becomes_its_answer() -> None:
    async def refuse(request: Request) -> Response:
        raise Problem(404, "not here", "look there", {"X-More": "1"})

    (answer,) = ask(refuse, {})
    assert answer.json() == {"error": {"message": "not here", "hint": "look there"}}
    assert answer.status_code == 404 and answer.headers["x-more"] == "1"


def test_the_key_is_asked_for_but_on_open_paths() -> None:
    key = "0123456789abcdef"
    given = {"headers": {"X-API-Key": key}}
    answers = ask(read, {}, {"url": "/open"}, given, api_key=key)
    assert [answer.status_code for answer in answers] == [401, 200, 200]


def test_a_foreign_name_is_refused() -> None:
    (answer,) = ask(read, {"headers": {"Host": "evil.example"}})
    assert answer.status_code == 400


def test_every_answer_has_the_headers_that_protect_the_page() -> None:
    for answer in ask(read, {}, {"headers": {"Host": "evil.example"}}):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(("given", "kept"), [("abc-1_2", True), ("a b", False), ("x" * 65, False), ("a\nb", False)])
def test_a_request_is_known_by_an_id(given: str, kept: bool) -> None:
    (answer,) = ask(read, {"headers": {"X-Request-ID": given.replace("\n", "%0a")}})
    assert (answer.headers["x-request-id"] == given) == kept


def test_while_draining_what_was_accepted_is_finished_and_the_rest_refused() -> None:
    async def wait(request: Request) -> Response:
        await asyncio.sleep(0.2)
        return PlainTextResponse("done")

    async def run() -> tuple[httpx.Response, httpx.Response, bool]:
        frame = Frame(application(wait), Settings(), Metrics(), set())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(frame), base_url="http://localhost") as client:
            accepted = asyncio.create_task(client.get("/search"))
            await asyncio.sleep(0.05)
            drained = asyncio.create_task(frame.drain(10))
            await asyncio.sleep(0)
            refused = await client.get("/search")
            return await accepted, refused, await drained

    accepted, refused, drained = asyncio.run(run())
    assert accepted.text == "done" and drained
    assert refused.status_code == 503 and refused.headers["retry-after"] == "5"


def test_a_drain_ends_though_a_request_does_not() -> None:
    async def run() -> bool:
        frame = Frame(application(slow), Settings(), Metrics(), set())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(frame), base_url="http://localhost") as client:
            request = asyncio.create_task(client.get("/search"))
            await asyncio.sleep(0.05)
            drained = await frame.drain(0.1)
            request.cancel()
            return drained

    assert not asyncio.run(run())
