"""Limits around every route, with a small application in the middle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eao.serve.frame import Frame, Gate
from eao.serve.metrics import Metrics
from eao.serve.problems import Overloaded, Problem
from eao.serve.settings import Settings

Answer = Callable[[Request], Awaitable[Response]]
PATIENCE = 60.0
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


def connect(frame: Frame) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(frame), base_url="http://localhost", timeout=PATIENCE)


def count(frame: Frame, name: str, **labels: str) -> float:
    """The sum of a metric over the labels that are not given."""
    samples = [sample for family in frame.metrics.registry.collect() for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not is_so():
            await asyncio.sleep(0.001)


class Client:
    """Sends parts of a form as a server gives them to an application, then waits for the answer, or goes away.

    Attributes:
        gone: whether it went away.
        status: of the answer; 0 before there is one.
        headers: of the answer.
        read_before_answer: parts of the request that were read before the answer began.
    """

    def __init__(self, *parts: Message) -> None:
        self.parts = list(parts)
        self.has_body = bool(parts)
        self.gone = asyncio.Event()
        self.status = self.read = self.read_before_answer = 0
        self.headers: dict[bytes, bytes] = {}

    async def ask(self, frame: Frame) -> None:
        headers = [(b"host", b"localhost")]
        if self.has_body:
            headers += [(b"content-type", UPLOAD["Content-Type"].encode()), (b"transfer-encoding", b"chunked")]
        else:
            self.parts = [{"type": "http.request", "body": b"", "more_body": False}]
        scope = {"type": "http", "method": "POST", "path": "/search", "query_string": b"", "headers": headers}
        await frame(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self.parts:
            self.read += 1
            return self.parts.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
            self.read_before_answer = self.read


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
    parts = iter([b"x" * 10_000] * 1000)
    client = Client(*({"type": "http.request", "body": part, "more_body": True} for part in parts))
    frame = Frame(application(read), Settings(max_upload=50_000), Metrics(), ())
    asyncio.run(client.ask(frame))
    assert client.status == 413
    assert client.read_before_answer == 6
    assert b"connection" in client.headers  # what is left of the body must not be taken for another request


def test_a_request_without_an_answer_in_time_is_given_up() -> None:
    (answer,) = ask(slow, {}, timeout=0.05)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


def test_a_fast_upload_saves_up_no_time() -> None:
    async def wait(request: Request) -> Response:
        assert len(await request.body()) == len(content)
        await asyncio.sleep(3600)
        raise AssertionError

    content = b"x" * 20_000_000  # at the slowest speed allowed, these take 200 s

    async def run() -> httpx.Response:
        async with connect(Frame(application(wait), Settings(timeout=1), Metrics(), ())) as client:
            return await client.post("/search", content=content, headers=UPLOAD)

    answer = asyncio.run(asyncio.wait_for(run(), PATIENCE))
    assert answer.status_code == 503 and "within" in answer.json()["error"]["message"]


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


@pytest.mark.parametrize(
    ("path", "headers", "capacity"),
    [
        ("/search", {}, 2),
        ("/embed", {}, 2),
        ("/search", UPLOAD, 1),
        ("/embed", UPLOAD, 1),
        ("/videos/x", {}, 8),
        ("/videos/x/thumbnail", {}, 8),
        ("/facets", {}, 8),
    ],
)
def test_more_requests_than_may_be_inside_are_refused_at_once(
    path: str, headers: dict[str, str], capacity: int
) -> None:
    async def run() -> None:
        released = asyncio.Event()

        async def wait(request: Request) -> Response:
            await released.wait()
            return PlainTextResponse("done")

        frame = Frame(application(wait), Settings(queue=2, uploads=1), Metrics(), ())
        async with connect(frame) as client:
            asked = {asyncio.create_task(client.get(path, headers=headers)) for _ in range(capacity + 3)}
            refused: set[asyncio.Task[httpx.Response]] = set()
            while len(refused) < 3:
                refused, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            released.set()
            answers = [task.result() for task in refused]
            assert [answer.status_code for answer in answers] == [503] * 3
            assert all(answer.headers["retry-after"] == "1" for answer in answers)
            assert [(await task).text for task in waiting] == ["done"] * capacity
        assert count(frame, "eao_rejected_total", reason="overload") == 3

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_more_connections_than_may_be_open_are_refused_but_for_who_operates_it() -> None:
    async def run() -> None:
        frame = Frame(application(read), Settings(connections=10), Metrics(), {"/health"})
        frame.connections = lambda: 11
        async with connect(frame) as client:
            refused = await client.get("/search")
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            assert refused.headers["connection"] == "close" and refused.json()["error"]["hint"]
            assert (await client.get("/health")).status_code == (await client.get("/metrics")).status_code == 200
            assert count(frame, "eao_rejected_total", reason="overload") == 1
            frame.connections = lambda: 10
            assert (await client.get("/search")).status_code == 200

    asyncio.run(run())


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
    async def run() -> None:
        released = asyncio.Event()

        async def wait(request: Request) -> Response:
            await released.wait()
            return PlainTextResponse("done")

        frame = Frame(application(wait), Settings(), Metrics(), ())
        async with connect(frame) as client:
            accepted = asyncio.create_task(client.get("/search"))
            await until(lambda: frame.in_flight == 1)
            drained = asyncio.create_task(frame.drain(PATIENCE))
            await until(lambda: frame.draining)
            refused = await client.get("/search")
            assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
            assert count(frame, "eao_rejected_total", reason="draining") == 1
            assert not drained.done()
            released.set()
            assert (await accepted).text == "done" and await drained

    asyncio.run(run())


def test_a_drain_ends_though_a_request_does_not() -> None:
    async def run() -> bool:
        frame = Frame(application(slow), Settings(), Metrics(), ())
        async with connect(frame) as client:
            request = asyncio.create_task(client.get("/search"))
            await until(lambda: frame.in_flight == 1)
            drained = await frame.drain(0.1)
            request.cancel()
            return drained

    assert not asyncio.run(run())


@pytest.mark.parametrize("parts", [(), ({"type": "http.request", "body": b"x" * 10, "more_body": False},)])
def test_a_client_that_goes_away_ends_its_request(parts: tuple[Message, ...]) -> None:
    async def run() -> None:
        entered, ended = asyncio.Event(), asyncio.Event()

        async def wait(request: Request) -> Response:
            assert len(await request.body()) == 10 * len(parts)
            entered.set()
            try:
                await asyncio.sleep(3600)
            finally:
                ended.set()
            raise AssertionError

        frame = Frame(application(wait), Settings(timeout=3600, uploads=1), Metrics(), ())
        client = Client(*parts)
        asked = asyncio.create_task(client.ask(frame))
        await entered.wait()
        assert frame.in_flight == 1
        client.gone.set()
        await asked
        assert ended.is_set() and client.status == 0
        assert all(gate.inside == 0 for gate in frame.gates.values())
        assert count(frame, "eao_requests_total", status="499") == 1

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_a_client_that_goes_away_while_it_sends_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    # The middleware of the real application answers every exception, also this one, before the frame sees it.
    app = Starlette(
        routes=[Route("/search", read, methods=["POST"])],
        exception_handlers={Exception: lambda request, error: PlainTextResponse("a bug", 500)},
    )
    frame = Frame(app, Settings(), Metrics(), ())
    client = Client({"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"})
    with caplog.at_level(logging.INFO, "eao.serve"):
        asyncio.run(client.ask(frame))
    assert count(frame, "eao_requests_total", status="499") == 1 and count(frame, "eao_requests_total") == 1
    assert [record.facts["status"] for record in caplog.records] == [499]  # type: ignore[attr-defined]


def test_a_client_that_goes_away_while_it_is_answered_is_told_to_the_application() -> None:
    async def run() -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            client.gone.set()
            assert (await receive())["type"] == "http.request"
            assert (await receive())["type"] == "http.disconnect"

        client = Client()
        frame = Frame(app, Settings(), Metrics(), ())
        await client.ask(frame)
        assert count(frame, "eao_requests_total", status="200") == 1

    asyncio.run(asyncio.wait_for(run(), PATIENCE))
