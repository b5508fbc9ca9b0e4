"""Errors as answers: `{"error": {"message", "hint"}}` with the status that tells whose turn it is.

4xx is for what the client can mend, 503 with `Retry-After` for what time or the operator mends. 500 is a bug.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from eao.errors import ConfigError, DataError, EaoError, MediaError
from eao.serve.schemas import ErrorReply

Reason = Literal["overload", "timeout", "draining", "unavailable"]
"""Why a request got 503: too much to do, too long, the service ends, or something that it needs is not there."""
REASON = "eao.reason"
"""Where the scope of a request that was refused has the `Reason`."""

_MEANINGS = {
    400: "The request makes no sense.",
    401: "The API key is missing or wrong.",
    404: "There is no such thing.",
    408: "The request came too slowly.",
    413: "The request is too large.",
    415: "A content type that is not taken.",
    416: "The range lies beyond the end of the file.",
    422: "A parameter has a value that it cannot have.",
    503: "Too much to do, or stopping: ask again after `Retry-After` seconds.",
}


class Problem(HTTPException):
    """An answer other than the one that was hoped for.

    It is an `HTTPException`, since the web framework turns others into its own while it reads a body.

    Args:
        status: of HTTP.
        message: what is wrong.
        hint: the next step.
        headers: of the answer.

    Attributes:
        reason: if the status is 503.
    """

    reason: Reason = "unavailable"

    def __init__(self, status: int, message: str, hint: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.message = message
        self.hint = hint


class Overloaded(Problem):
    """There is more to do than can be done soon.

    Args:
        message: of what there is too much.
        retry_after: seconds after which it is worth asking again.
        reason: for the metrics.
        closes: whether the connection ends with the answer.
    """

    def __init__(self, message: str, retry_after: int = 1, reason: Reason = "overload", closes: bool = False) -> None:
        headers = {"Retry-After": str(retry_after)} | ({"Connection": "close"} if closes else {})
        super().__init__(503, message, f"ask again in {retry_after} s", headers)
        self.reason = reason


def from_eao(error: EaoError) -> Problem:
    """The answer to a request that failed with one of the project's errors."""
    if isinstance(error, ConfigError | DataError | MediaError):
        return Problem(400, error.message, error.hint)
    # An index that cannot be read, a server of models that does not answer: the operator has to act.
    return Problem(503, error.message, error.hint, {"Retry-After": "60"})


def problem_reply(problem: HTTPException) -> JSONResponse:
    """The answer, as JSON."""
    message = problem.message if isinstance(problem, Problem) else str(problem.detail)
    hint = problem.hint if isinstance(problem, Problem) else ""
    content = {"error": {"message": message, "hint": hint}}
    return JSONResponse(content, problem.status_code, headers=dict(problem.headers) if problem.headers else None)


def validation_problem(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """The answer to parameters that pydantic refused; it names the first of them."""
    first = errors[0]
    where = ".".join(str(part) for part in first.get("loc", ()) if part not in ("query", "body", "path"))
    return Problem(422, f"{where or 'the request'}: {first.get('msg', 'not valid')}", "see /openapi.json")


def declare(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its OpenAPI; beside those that every route has."""
    every = {400, 401, 503, *statuses}
    return {status: {"model": ErrorReply, "description": _MEANINGS[status]} for status in sorted(every)}
