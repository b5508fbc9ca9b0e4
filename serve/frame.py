"""What stands around every route: who may ask, how much, for how long; headers, one line in the log, and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eao.serve.access import Access
from eao.serve.logs import SHOWN, event, log
from eao.serve.metrics import Metrics
from eao.serve.problems import REASON, Overloaded, Problem, problem_reply
from eao.serve.settings import Settings

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_BODY = 2**20  # bytes of a request without files
_SLOWEST = 100_000  # bytes per second: a slower upload runs into the time limit
_LINGER = 1.0  # seconds that what a refused client still sends is read, so that it comes to read the answer
_DISCONNECTED = 499
_FIELDS = 50  # of a query that is read for the log
_ALWAYS = ("/health", "/metrics")  # an operator looks at them under any load, and while the service drains
_FORMS = ("/search", "/embed")


class Gate:
    """A place for a bounded number of requests.

    Args:
        name: of the kind of request.
        capacity: requests inside at once.
    """

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self.inside = 0

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside during the block.

        Raises:
            Overloaded: it is full.
        """
        if self.inside >= self.capacity:
            raise Overloaded(f"{self.inside} {self.name} are being served already")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class Frame:
    """The outermost part of the service.

    Args:
        app: the routes.
        settings: of the service.
        metrics: where it counts.
        open_paths: that need no key.

    Attributes:
        draining: whether new requests are refused, because the service is about to stop.
        in_flight: requests that are being answered.
        connections: tells how many are open; whoever runs the application knows better than it does.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, open_paths: Collection[str]) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.access = Access(settings)
        self.open_paths = frozenset(open_paths)
        self.draining = False
        self.in_flight = 0
        self.connections: Callable[[], int] = lambda: self.in_flight
        self.gates = {
            gate.name: gate
            for gate in (
                Gate("searches", settings.queue),
                Gate("uploads", settings.uploads),
                Gate("pictures", 4 * settings.queue),
                Gate("files", 4 * settings.queue),
                Gate("others", 4 * settings.queue),
            )
        }
        metrics.watch("eao_in_flight", "Requests that are being answered.", lambda: self.in_flight)
        metrics.watch("eao_connections", "Connections that are open.", lambda: self.connections())
        for gate in self.gates.values():
            metrics.watch("eao_inside", "Requests that are let in.", lambda gate=gate: gate.inside, kind=gate.name)  # type: ignore[misc]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self.settings)
        self.in_flight += 1
        try:
            await self._answer(exchange)
        finally:
            self.in_flight -= 1
            self._note(exchange)

    async def drain(self, seconds: float) -> bool:
        """Refuse what is new, and wait until what was accepted is done. Returns whether all of it was."""
        self.draining = True
        deadline = time.monotonic() + seconds
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return not self.in_flight

    async def _answer(self, exchange: Exchange) -> None:
        try:
            self._check(exchange)
            with self._gate(exchange).enter():
                async with asyncio.timeout(self.settings.timeout) as exchange.timer, exchange.watched():
                    await self.app(exchange.scope, exchange.receive, exchange.reply)
        except TimeoutError:
            await exchange.refuse(self._timed_out(exchange))
        except Problem as problem:
            await exchange.refuse(problem)
        except ClientDisconnect:
            exchange.status = exchange.status or _DISCONNECTED
        except Exception:  # a bug: it is told to the operator, and the service goes on
            log.exception("a request failed", extra={"facts": {"id": exchange.id}})
            await exchange.refuse(Problem(500, "something went wrong here", f"the log says more about {exchange.id}"))

    def _check(self, exchange: Exchange) -> None:
        path = exchange.scope["path"]
        self.access.check_host(exchange.headers.get("host", ""))
        if path not in _ALWAYS:
            if self.draining:
                raise Overloaded("the service is stopping", retry_after=5, reason="draining")
            if (count := self.connections()) > self.settings.connections:
                raise Overloaded(f"{count} connections are open", closes=True)
        if path not in self.open_paths:
            self.access.check_key(exchange.headers)
        exchange.check_length()

    def _gate(self, exchange: Exchange) -> Gate:
        path = exchange.scope["path"]
        if path in _FORMS:
            return self.gates["uploads" if exchange.has_files else "searches"]
        if path.startswith("/videos/"):
            return self.gates["pictures" if path.endswith("/thumbnail") else "files"]
        return self.gates["others"]

    def _timed_out(self, exchange: Exchange) -> Problem:
        if not exchange.is_read:
            return Problem(408, "the request came too slowly", "use a faster connection, or a smaller file")
        return Overloaded(f"there was no answer within {self.settings.timeout:g} s", reason="timeout")

    def _note(self, exchange: Exchange) -> None:
        route = getattr(exchange.scope.get("route"), "path", None)
        if route is None:
            route = exchange.scope["path"] if exchange.scope["path"] in self.open_paths else "unmatched"
        seconds = time.perf_counter() - exchange.began
        method = exchange.scope["method"] if exchange.scope["method"] in _METHODS else "other"
        self.metrics.requests.labels(route, method, str(exchange.status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if exchange.has_files:
            self.metrics.uploaded.inc(exchange.received)
        if exchange.status == 503 and REASON in exchange.scope:
            self.metrics.rejected.labels(exchange.scope[REASON]).inc()
        client = exchange.scope.get("client")
        event(
            "request",
            id=exchange.id,
            method=method,
            route=route,
            status=exchange.status,
            ms=round(1000 * seconds, 1),
            bytes=exchange.sent,
            client=client[0] if client else "",
            **exchange.query(),
        )


class Exchange:
    """One request and its answer, watched on their way through.

    Args:
        scope: of ASGI.
        receive: likewise.
        send: likewise.
        settings: of the service.

    Attributes:
        id: of the request, for the log; a client may give it as `X-Request-ID`.
        status: of the answer; 0 before there is one, 499 if the client went away before.
        received: bytes of the body.
        sent: bytes of the answer's body.
        timer: ends the request, until the answer begins.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.began = time.perf_counter()
        given = self.headers.get("x-request-id", "")
        self.id = given if re.fullmatch(r"[\w-]{1,64}", given, re.ASCII) else uuid.uuid4().hex
        self.has_files = scope["path"] in _FORMS and self.headers.get("content-type", "").lower().startswith(
            "multipart/"
        )
        self.limit = settings.max_upload if self.has_files else _BODY
        self.status = 0
        self.received = self.sent = 0
        self.timer: asyncio.Timeout | None = None
        self._timeout = settings.timeout
        self._receive = receive
        self._send = send
        self._read = asyncio.Event()
        self._gone = asyncio.Event()
        self._is_told = True  # whether the application was told that the body is at its end
        if self.headers.get("content-length", "0") == "0" and "transfer-encoding" not in self.headers:
            self._read.set()
            self._is_told = False

    @property
    def is_read(self) -> bool:
        """Whether the body was read to its end."""
        return self._read.is_set()

    def check_length(self) -> None:
        """Raise Problem if the body is said to be too long."""
        length = self.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.limit:
            raise self._too_large()

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Let the request end during the block when the client goes away, unless the answer has begun."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()

    async def receive(self) -> Message:
        """The next part of the body.

        Raises:
            Problem: there is more of it than is allowed.
        """
        if self.is_read:
            return await self._after_body()
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.status = self.status or _DISCONNECTED
        else:
            size = len(message.get("body", b""))
            self.received += size
            if not message.get("more_body", False):
                self._read.set()
            if self.received > self.limit:
                raise self._too_large()
            if self.has_files and self.timer is not None and not self.timer.expired():
                # A fast upload must not save up time: what is left is never more than it was at first.
                most = asyncio.get_running_loop().time() + self._timeout
                self.timer.reschedule(min((self.timer.when() or 0.0) + size / _SLOWEST, most))
        return message

    async def reply(self, message: Message) -> None:
        """Send a part of the answer."""
        if self.status == _DISCONNECTED:
            return  # nobody reads it
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
            headers["x-request-id"] = self.id
            if not self.is_read:
                headers["connection"] = "close"
            if self.timer is not None and not self.timer.expired():
                self.timer.reschedule(None)  # how fast an answer is read is the client's affair
            await self._send(message)
            return
        self.sent += len(message.get("body", b""))
        if message.get("more_body", False) or self.is_read:
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        await self._linger()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, problem: Problem) -> None:
        """Answer with an error, unless an answer has begun: then the connection ends in the middle of it."""
        self.timer = None
        if not self.status:
            self.scope[REASON] = problem.reason
            await problem_reply(problem)(self.scope, self.receive, self.reply)

    def query(self) -> Mapping[str, str]:
        """What was searched for, for the log."""
        try:
            fields = parse_qs(self.scope.get("query_string", b"").decode("latin-1"), max_num_fields=_FIELDS)
        except ValueError:  # more of them than any route has
            return {}
        words = fields.get("q", [""])[0]
        return {"q": words[:SHOWN]} if words else {}

    def _too_large(self) -> Problem:
        return Problem(413, f"the request is larger than {self.limit:,} bytes", "send less, or a shorter file")

    async def _after_body(self) -> Message:
        # From here on `_watch` alone reads from the server: two readers would take each other's messages.
        if not self._is_told:
            self._is_told = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _watch(self) -> None:
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
        if not self.status and self.timer is not None and not self.timer.expired():
            self.status = _DISCONNECTED
            self.timer.reschedule(asyncio.get_running_loop().time())

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while not self.is_read:
                    message = await self._receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        self._read.set()


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
