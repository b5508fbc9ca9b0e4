"""Clients of servers on this machine, as plain as they can be, so that the load costs the servers little."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from numpy.typing import NDArray

from eao.bench.closed_loop import Ask, Opener
from eao.errors import ServingError, missing_dependency

HOST = "127.0.0.1"
_TIMEOUT = 60.0
_OUTPUT = "embedding"
_DTYPES = {"float32": "FP32", "bool": "BOOL", "int64": "INT64"}


class Request(NamedTuple):
    """One HTTP request."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}


def http_clients(port: int, make: Callable[[], Request]) -> Opener:
    """Clients that keep a connection each.

    Args:
        port: of the server.
        make: the next request; called from many threads.
    """

    @contextmanager
    def open_client() -> Iterator[Ask]:
        connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT)

        def ask() -> None:
            request = make()
            try:
                connection.request(request.method, request.path, request.body, dict(request.headers))
                response = connection.getresponse()
                answer = response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()  # the next request opens it again
                raise ServingError(f"{request.method}: {type(error).__name__}") from None
            if response.status != 200:
                raise ServingError(f"{request.method}: status {response.status} {_told(answer)}".strip())

        try:
            yield ask
        finally:
            connection.close()

    return open_client


def triton_http_clients(port: int, model: str, feeds: Mapping[str, NDArray]) -> Opener:
    """Clients that ask a model of a Triton Inference Server for the same rows again and again, in its binary form.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    try:
        from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
    except ImportError:
        raise _missing() from None
    inputs = [InferInput(name, list(a.shape), _DTYPES[a.dtype.name]) for name, a in _served(feeds).items()]
    for tensor, array in zip(inputs, _served(feeds).values(), strict=True):
        tensor.set_data_from_numpy(array)
    body, header = InferenceServerClient.generate_request_body(inputs, outputs=[InferRequestedOutput(_OUTPUT)])
    headers = {"Inference-Header-Content-Length": str(header)} if header is not None else {}
    request = Request("POST", f"/v2/models/{model}/infer", body, headers)
    return http_clients(port, lambda: request)


def triton_grpc_clients(port: int, model: str, feeds: Mapping[str, NDArray]) -> Opener:
    """As `triton_http_clients`, by gRPC.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
        from tritonclient.utils import InferenceServerException
    except ImportError:
        raise _missing() from None
    inputs = [InferInput(name, list(a.shape), _DTYPES[a.dtype.name]) for name, a in _served(feeds).items()]
    for tensor, array in zip(inputs, _served(feeds).values(), strict=True):
        tensor.set_data_from_numpy(array)
    outputs = [InferRequestedOutput(_OUTPUT)]

    @contextmanager
    def open_client() -> Iterator[Ask]:
        client = InferenceServerClient(f"{HOST}:{port}")

        def ask() -> None:
            try:
                client.infer(model, inputs, outputs=outputs, client_timeout=_TIMEOUT).as_numpy(_OUTPUT)
            except InferenceServerException as error:
                raise ServingError(f"{model}: {error.status()} {error.message()}") from None

        try:
            yield ask
        finally:
            client.close()

    return open_client


def _served(feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """A model that batches has one number a row as an axis of its own."""
    return {name: array[:, None] if array.ndim == 1 else array for name, array in feeds.items()}


def _told(answer: bytes) -> str:
    """The message of an error, where the answer is JSON with one."""
    try:
        error = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(error["message"] if isinstance(error, dict) else error)


def _missing() -> Exception:
    return missing_dependency("tritonclient", "triton-client", "measuring a Triton Inference Server")
