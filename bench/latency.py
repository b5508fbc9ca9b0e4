"""How long calls take: percentiles, throughput, fair comparison of several functions, and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydantic

Function = Callable[[], object]
_CLEAR_PEAK = "5"  # see proc(5), clear_refs
_LEAST_ROUNDS = 4


class Latency(pydantic.BaseModel):
    """Times of one call, in milliseconds, and what they mean for throughput (items a second)."""

    runs: int
    min_ms: float
    mean_ms: float
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    throughput: float

    @classmethod
    def of(cls, seconds: Sequence[float], items: int = 1) -> Latency:
        """From the times of single calls, each of which handles `items` items.

        Throughput is that of calls made one after the other: items over the mean time.
        """
        if not seconds:
            raise ValueError("no runs were measured")
        ms = np.asarray(seconds, dtype=np.float64) * 1e3
        p90, p95, p99 = (float(p) for p in np.percentile(ms, [90, 95, 99]))
        return cls(
            runs=len(ms),
            min_ms=float(ms.min()),
            mean_ms=float(ms.mean()),
            median_ms=float(np.median(ms)),
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            throughput=items * 1e3 / float(ms.mean()),
        )


@dataclass(frozen=True)
class Comparison:
    """Several functions measured in turns.

    Attributes:
        latencies: by name.
        speedups: by name, the median over rounds of (time of the first function / time of this one); the first has 1.
        noise: by name, half the interquartile range of those ratios over their median. A speed-up that differs from 1
            by less than this says nothing.
        spreads: by name, half the interquartile range of the median times of the rounds over their median: the noise of
            the times themselves.
    """

    latencies: dict[str, Latency]
    speedups: dict[str, float]
    noise: dict[str, float]
    spreads: dict[str, float]


def compare(
    functions: Mapping[str, Function],
    *,
    warmup_seconds: float = 0.5,
    max_seconds: float = 3.0,
    max_runs: int | None = None,
    rounds: int = 12,
    items: int = 1,
) -> Comparison:
    """Measure functions in turns, so that a busy or throttled machine slows all of them alike.

    In each round every function runs for a slice of the time. The first call of a slice is not counted unless it fills
    the slice: it meets the caches, and for a moment the waiting threads, of another library. The order turns round from
    round to round.

    Args:
        functions: by name; the first is the one the others are compared with.
        warmup_seconds: of each function, before the first round; at least one call is made unless it is 0.
        max_seconds: for each function, over all rounds.
        max_runs: the most calls of each function that are counted, over all rounds, but one in each round.
        rounds: the number of rounds; at least one call of each function is counted in each. Where calls are so long
            that this takes more than the time for all functions, four rounds are enough.
        items: how many items one call handles.
    """
    if not functions:
        raise ValueError("there is nothing to compare")
    for function in functions.values():
        _warm_up(function, warmup_seconds)
    times: dict[str, list[list[float]]] = {name: [] for name in functions}
    names = list(functions)
    most = None if max_runs is None else max(max_runs // rounds, 1)
    end = time.perf_counter() + max_seconds * len(functions)
    for i in range(rounds):
        if i >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name in names if i % 2 == 0 else reversed(names):
            times[name].append(_slice(functions[name], max_seconds / rounds, most))
    medians = {name: np.array([statistics.median(t) for t in slices]) for name, slices in times.items()}
    ratios = {name: medians[names[0]] / medians[name] for name in names}
    return Comparison(
        latencies={name: Latency.of([t for part in slices for t in part], items) for name, slices in times.items()},
        speedups={name: float(np.median(r)) for name, r in ratios.items()},
        noise={name: _spread(r) for name, r in ratios.items()},
        spreads={name: _spread(m) for name, m in medians.items()},
    )


class Contention:
    """How many cores other processes kept busy while a block ran; None where the system does not say."""

    cores: float | None = None


@contextlib.contextmanager
def foreign_load() -> Iterator[Contention]:
    """Measure what other processes take from the machine while a block runs.

    A library whose threads meet at barriers waits for the slowest of them, so a single busy neighbour can make it many
    times slower and another library hardly at all. Such a disturbance is the same in every round: the noise of a
    comparison does not show it, this does.

    Example:
        >>> with foreign_load() as others:
        ...     time.sleep(0.01)
    """
    contention = Contention()
    start, busy, own = time.perf_counter(), _busy_seconds(), _own_seconds()
    try:
        yield contention
    finally:
        elapsed, now = time.perf_counter() - start, _busy_seconds()
        if busy is not None and now is not None and elapsed > 0:
            contention.cores = max(now - busy - (_own_seconds() - own), 0.0) / elapsed


class PeakMemory:
    """The most resident memory of this process while a block ran, in bytes.

    Where the system cannot forget an earlier peak (anything but Linux), the figure is the peak since the process began.

    Example:
        >>> with peak_memory() as memory:
        ...     block = bytearray(50_000_000)
        >>> memory.peak > 50_000_000
        True
    """

    before: int = 0
    peak: int = 0

    @property
    def growth(self) -> int:
        """By how much the peak lay above the resident memory at the start."""
        return max(self.peak - self.before, 0)


@contextlib.contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the peak resident memory of a block; see `PeakMemory`."""
    memory = PeakMemory()
    # Memory that was freed but not given back would be used again unseen.
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    # Not every container lets a process clear its own peak.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    memory.before = _status("VmRSS") or _lifetime_peak()
    try:
        yield memory
    finally:
        memory.peak = _status("VmHWM") or _lifetime_peak()


def _warm_up(function: Function, seconds: float) -> None:
    if seconds == 0:
        return
    end = time.perf_counter() + seconds
    function()
    while time.perf_counter() < end:
        function()


def _slice(function: Function, seconds: float, most: int | None) -> list[float]:
    first = _time(function)
    if first >= seconds:
        return [first]
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and (most is None or len(times) < most)):
        times.append(_time(function))
    return times


def _time(function: Function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _spread(values: np.ndarray) -> float:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float((high - low) / 2 / middle)


def _busy_seconds() -> float | None:
    """Seconds that all cores together spent on work since boot, without waiting for disks."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Seconds of work of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")]
    return values[0] if values else 0


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
