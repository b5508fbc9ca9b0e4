"""Requests that come at random, whether or not the engine is free: latency with the wait in the queue."""

from __future__ import annotations

import re
import time

import numpy as np
import pydantic

from eao.bench.latency import Function, Latency
from eao.errors import ConfigError

_OVERTIME = 2.0
"""A queue that only grows is left when this many times the time of the arrivals has passed."""
_PER_SECOND = {"s": 1.0, "m": 60.0, "min": 60.0}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Arrivals(pydantic.BaseModel):
    """What requests met that came independently of each other (a Poisson process) and were served one at a time.

    Attributes:
        rate: requests a second that were sent, on average.
        requests: how many came.
        served: how many had been answered when the measurement ended.
        latency: from arrival to answer, of those that were served; its throughput is that of the answers in fact given.
        utilization: share of the time in which the engine worked.
        deadline_ms: how long an answer may take, if that was said.
        missed: share of all requests that had no answer by then.
    """

    rate: float
    requests: int
    served: int
    latency: Latency
    utilization: float
    deadline_ms: float | None = None
    missed: float | None = None

    @property
    def overloaded(self) -> bool:
        """Whether requests came faster than they were answered, so that the latency tells of the measurement's length
        alone."""
        return self.served < self.requests


def measure_arrivals(
    function: Function, rate: float, seconds: float, deadline_ms: float | None = None, items: int = 1, seed: int = 0
) -> Arrivals:
    """Call a function for each of the requests of a Poisson process, in the order of their arrival.

    Args:
        function: answers one request; it must have finished when it returns.
        rate: requests a second.
        seconds: during which requests come; at least one does.
        deadline_ms: see `Arrivals`.
        items: how many items (clips) a request holds, for the throughput.
        seed: of the arrivals: the same for everything that is to be compared.
    """
    arrivals = _arrivals(rate, seconds, seed)
    function()
    waited: list[float] = []
    busy = 0.0
    start = time.perf_counter()
    for arrival in arrivals:
        begin = time.perf_counter() - start
        if waited and begin > _OVERTIME * seconds:
            break
        if begin < arrival:
            time.sleep(arrival - begin)
            begin = time.perf_counter() - start
        function()
        end = time.perf_counter() - start
        busy += end - begin
        waited.append(end - arrival)
    elapsed = time.perf_counter() - start
    missed = None
    if deadline_ms is not None:
        in_time = sum(1e3 * wait <= deadline_ms for wait in waited)
        missed = 1 - in_time / len(arrivals)
    latency = Latency.of(waited, items)
    return Arrivals(
        rate=rate,
        requests=len(arrivals),
        served=len(waited),
        latency=latency.model_copy(update={"throughput": items * len(waited) / elapsed}),
        utilization=busy / elapsed,
        deadline_ms=deadline_ms,
        missed=missed,
    )


def parse_rate(text: str) -> float:
    """Requests a second, from "50/s", "600/min" or a number.

    Raises:
        ConfigError: it is none of these, or not above 0.

    Example:
        >>> parse_rate("600/min")
        10.0
    """
    number, unit = _parse(text, r"/(\w+)", "a rate", "50/s", _PER_SECOND, 1.0)
    return number / unit


def parse_milliseconds(text: str) -> float:
    """Milliseconds, from "20ms", "0.5s", "800us" or a number of milliseconds.

    Raises:
        ConfigError: it is none of these, or not above 0.

    Example:
        >>> parse_milliseconds("0.5s")
        500.0
    """
    number, unit = _parse(text, r"([a-z]+)", "a duration", "20ms", _MILLISECONDS, 1.0)
    return number * unit


def _parse(
    text: str, unit: str, what: str, example: str, units: dict[str, float], default: float
) -> tuple[float, float]:
    match = re.fullmatch(rf"(\d+(?:\.\d*)?|\.\d+)\s*(?:{unit})?", text.strip())
    if match is None or (match[2] or "") not in {"", *units} or float(match[1]) == 0:
        raise ConfigError(f"{text!r} is not {what}", f"write it as {example}")
    return float(match[1]), units.get(match[2] or "", default)


def _arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds after the start, ascending."""
    generator = np.random.default_rng(seed)
    times = [generator.exponential(1 / rate)]
    while times[-1] < seconds:
        times.append(times[-1] + generator.exponential(1 / rate))
    return times[:-1] or times
