"""A connection to a Triton Inference Server, by gRPC or HTTP: addresses, timeouts, retries, and what errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import re
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar

from eao.errors import ConfigError, DataError, EaoError, ServingError, missing_dependency

log = logging.getLogger(__name__)

Transport = Literal["grpc", "http"]
T = TypeVar("T")

_PORTS: dict[str, int] = {"grpc": 8001, "http": 8000}
_FIRST_WAIT = 0.1
"""Seconds before the first retry; each further one waits twice as long."""
_CLEANING = 5.0
"""Seconds that cleaning up may take."""
_STARTING = threading.Lock()


@dataclass(frozen=True)
class Address:
    """Where a server is, and by which protocol it is spoken to.

    Attributes:
        protocol: "grpc" or "http".
        target: host:port.
    """

    protocol: Transport
    target: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """An address from `triton://host:port`, which is gRPC, `triton+grpc://...` or `triton+http://...`.

        Without a port, it is Triton's own: 8001 for gRPC, 8000 for HTTP.

        Raises:
            ConfigError: it is none of these.

        Example:
            >>> Address.parse("triton+http://localhost")
            Address(protocol='http', target='localhost:8000')
        """
        match = re.fullmatch(r"triton(?:\+(grpc|http))?://([\w.-]+|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?/?", text.strip())
        if match is None:
            raise ConfigError(
                f"{text!r} is no address of a Triton Inference Server",
                "write triton://host:port for gRPC, or triton+http://host:port",
            )
        protocol: Transport = "http" if match[1] == "http" else "grpc"
        return cls(protocol, f"{match[2]}:{match[3] or _PORTS[protocol]}")

    def __str__(self) -> str:
        return f"triton+{self.protocol}://{self.target}"


class Connection:
    """A connection that many threads and event loops may use.

    All work is done by one event loop in a thread of its own, shared by all connections of the process, since
    tritonclient's objects belong to one thread. A process that was forked has to open connections of its own.

    Args:
        address: of the server.
        timeout: seconds that one request may take.
        retries: further attempts after the connection was lost or refused, or the server was overloaded. What the
            server refuses as wrong is never sent again.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """

    def __init__(self, address: Address, timeout: float = 30.0, retries: int = 4) -> None:
        self.address = address
        self.timeout = timeout
        self.retries = retries
        self.api = _import_api(address.protocol)
        # What makes gRPC's answers JSON, as those of HTTP are.
        self.as_json: dict[str, bool] = {"as_json": True} if address.protocol == "grpc" else {}
        self.loop = _event_loop()
        self._client = asyncio.run_coroutine_threadsafe(self._open(), self.loop).result()
        # Also runs when the interpreter ends: aiohttp complains of sessions that are left open.
        self._close = weakref.finalize(self, _close_client, self._client, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work on the connection's event loop and wait for it, from any thread."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def arun(self, work: Coroutine[Any, Any, T]) -> T:
        """As `run`, from a coroutine of any event loop. A task that is cancelled cancels the work."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    async def request(self, call: Callable[[Any], Awaitable[T]], model: str = "") -> T:
        """Ask the server something, on the connection's event loop.

        Args:
            call: given tritonclient's asyncio client, asks it; called again by a retry.
            model: that it is about, for messages.

        Raises:
            ServingError: the server does not answer or fails, or the model is not loaded.
            DataError: it refuses the request.
        """
        for attempt in range(self.retries + 1):
            try:
                return await asyncio.wait_for(call(self._client), self.timeout)
            except TimeoutError:
                raise ServingError(
                    f"{self.address} gave no answer{_of(model)} within {self.timeout:g} s",
                    "it may be overloaded: see its statistics, or allow more time: timeout=...",
                ) from None
            except self._failures() as error:
                if not _may_pass(error) or attempt == self.retries:
                    raise await self._explain(error, model) from None
                wait = _FIRST_WAIT * 2**attempt
                log.info("%s: %s; trying again in %.1f s", self.address, _reason(error), wait)
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Close the connection; what is under way fails. May be called twice."""
        self._close()

    async def _open(self) -> Any:
        asynchronous = importlib.import_module(f"tritonclient.{self.address.protocol}.aio")
        if self.address.protocol == "http":
            return asynchronous.InferenceServerClient(self.address.target, conn_timeout=None)
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            # gRPC's own waits, up to two minutes, would outlast the retries after a server has come back.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # By its name a wait as well, but it is how long a server may take to accept a connection.
            ("grpc.min_reconnect_backoff_ms", 5000),
        ]
        return asynchronous.InferenceServerClient(self.address.target, channel_args=options)

    def _failures(self) -> tuple[type[Exception], ...]:
        from tritonclient.utils import InferenceServerException

        if self.address.protocol == "grpc":
            return (InferenceServerException, OSError)
        from aiohttp import ClientError

        return (InferenceServerException, ClientError, OSError)

    async def _explain(self, error: Exception, model: str) -> EaoError:
        """What a failure means, by what the server says of itself."""
        if not await self._ask(self._client.is_server_live()):
            return ServingError(
                f"no Triton Inference Server answers at {self.address}: {_reason(error)}",
                "start one: eao serve triton --bundle BUNDLE --out REPOSITORY --up; gRPC and HTTP have ports of their "
                "own: triton://host:8001, triton+http://host:8000",
            )
        if model and not await self._ask(self._client.is_model_ready(model)):
            return ServingError(
                f"{self.address} has no model {model!r} that is ready: {_reason(error)}",
                "load it, or read the server's log for why it did not load",
            )
        if _is_refusal(error):
            return DataError(f"{self.address} refuses the request{_of(model)}: {_reason(error)}")
        return ServingError(f"{self.address} failed{_of(model)}: {_reason(error)}", "see the server's log")

    async def _ask(self, question: Awaitable[bool]) -> bool:
        # A TimeoutError is an OSError, and so among the failures.
        try:
            return await asyncio.wait_for(question, min(self.timeout, 5.0))
        except self._failures():
            return False


def _import_api(protocol: Transport) -> ModuleType:
    """`InferInput` and `InferRequestedOutput` of a protocol."""
    try:
        return importlib.import_module(f"tritonclient.{protocol}")
    except ImportError:
        raise missing_dependency("tritonclient", "triton-client", "a Triton Inference Server") from None


def _event_loop() -> asyncio.AbstractEventLoop:
    with _STARTING:
        return _start_event_loop()


@functools.cache
def _start_event_loop() -> asyncio.AbstractEventLoop:
    # One for the whole process: gRPC's asyncio layer polls for a single loop, and logs an error for every other.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="eao-triton-client", daemon=True).start()
    return loop


def finish(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
    """Do work that cleans up on an event loop, and wait for it a few seconds; not on the loop itself, where the garbage
    collector may have found what is to be cleaned up."""
    future = asyncio.run_coroutine_threadsafe(work, loop)
    with contextlib.suppress(RuntimeError):
        if asyncio.get_running_loop() is loop:
            return
    with contextlib.suppress(TimeoutError):
        future.result(timeout=_CLEANING)


def _close_client(client: Any, loop: asyncio.AbstractEventLoop) -> None:
    finish(client.close(), loop)


def _status(error: Exception) -> str:
    """As "503" or "StatusCode.UNAVAILABLE"; empty if no answer came."""
    status = getattr(error, "status", None)
    return (status() or "") if callable(status) else ""


def _may_pass(error: Exception) -> bool:
    """Whether the connection was lost, or the server has too much to do: requests change nothing, so that they may be
    sent twice."""
    answered = callable(getattr(error, "status", None))
    return not answered or _status(error) in ("503", "StatusCode.UNAVAILABLE")


def _is_refusal(error: Exception) -> bool:
    status = _status(error).removeprefix("StatusCode.")
    refused = ("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "OUT_OF_RANGE", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED")
    return status in refused or re.fullmatch("4..", status) is not None


def _reason(error: Exception) -> str:
    message = getattr(error, "message", None)
    text = message() if callable(message) else str(error)
    return " ".join(str(text or type(error).__name__).split())


def _of(model: str) -> str:
    return f" for {model}" if model else ""
