"""One kind of work done in several ways, measured in turns: times, arithmetic, memory, how far the results differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Self

import pydantic
import torch
from torch import Tensor

from eao.bench.ceiling import Ceiling, measure_ceiling
from eao.bench.docs import measured_on
from eao.bench.hardware import Hardware, describe_hardware
from eao.bench.latency import Latency, compare, foreign_load, peak_memory

Work = Callable[[], Tensor]


class Row(pydantic.BaseModel):
    """Work at one size.

    Attributes:
        work: what is done.
        size: of what is worked on.
        latencies: way -> times of a call.
        speedups: way -> how much faster than the first way.
        noise: way -> half the interquartile range of that ratio, over its median.
        gflop: way -> arithmetic of a call, in 1e9 operations.
        gbyte: what a call has to read and write at least, in 1e9 bytes; None if that was not counted.
        memory_mb: way -> by how much memory rose during a call, in 1e6 bytes; empty if it was not measured.
        deviations: way -> the largest difference from the first way's results; empty if there is nothing to compare.
    """

    work: str
    size: str
    latencies: dict[str, Latency]
    speedups: dict[str, float]
    noise: dict[str, float]
    gflop: dict[str, float]
    gbyte: float | None = None
    memory_mb: dict[str, float] = {}
    deviations: dict[str, float] = {}

    def gflops(self, way: str) -> float:
        """1e9 operations a second, at the median time."""
        return self.gflop[way] / self.latencies[way].median_ms * 1e3


class WaysReport(pydantic.BaseModel):
    """Rows, and the conditions they were measured under. A benchmark adds what it says of them."""

    hardware: Hardware
    versions: dict[str, str]
    threads: int
    device: str
    ceiling: Ceiling
    foreign_cores: float | None
    rows: list[Row]

    @classmethod
    def of(cls, measure: Callable[[str], Iterable[Row]], **attributes: Any) -> Self:
        """Call `measure` with the device, on a GPU if there is one, and note the conditions meanwhile."""
        hardware, device = describe_hardware(), "cuda" if torch.cuda.is_available() else "cpu"
        with foreign_load() as others:
            ceiling = measure_ceiling(device)
            rows = list(measure(device))
        return cls(
            hardware=hardware,
            versions={"torch": version("torch")},
            threads=torch.get_num_threads(),
            device=device,
            ceiling=ceiling,
            foreign_cores=others.cores,
            rows=rows,
            **attributes,
        )

    def page(self, introduction: str, remark: str = "") -> str:
        """The section of a Markdown page: introduction, table, remark, conditions."""
        measured = "Measured in turns in one process; ± is half the interquartile range of the ratio."
        parts = [f"{introduction} {measured}", "\n".join(table(self.rows)), remark]
        if self.foreign_cores is not None:
            parts.append(f"Other processes kept {self.foreign_cores:.2f} cores busy meanwhile.")
        return "\n\n".join(part for part in (*parts, measured_on(self.hardware, self.versions, self.threads)) if part)


def measure_ways(
    work: str,
    size: str,
    ways: Mapping[str, Work],
    gflop: float | Mapping[str, float],
    options: Mapping[str, Any],
    select: Callable[[str, Tensor], Tensor] | None = lambda way, result: result,
    memory: bool = False,
    gbyte: float | None = None,
) -> Row:
    """Measure each way in turns with the others.

    Args:
        work, size: for the row.
        ways: by name; each gives what it computed as one tensor. The first is what the others are compared with.
        gflop: of each way, or of all.
        options: of `eao.bench.latency.compare`; there is no further warm-up.
        select: what of a way's result is compared with the other ways'; None: nothing is.
        memory: whether memory is to be measured, in a call of its own.
        gbyte: see `Row`.
    """
    # The first calls, so that a library's own memory and a compiler's time are not counted below.
    deviations = {}
    expected = None
    for way, function in ways.items():
        result = function().detach()
        if select is not None:
            result = select(way, result).cpu()
            expected = result if expected is None else expected
            deviations[way] = float((result - expected).abs().max())
        del result
    del expected
    memory_mb = {way: _memory_mb(function) for way, function in ways.items()} if memory else {}
    functions = {way: partial(_finish, function) for way, function in ways.items()}
    comparison = compare(functions, warmup_seconds=0, **options)
    return Row(
        work=work,
        size=size,
        latencies=comparison.latencies,
        speedups=comparison.speedups,
        noise=comparison.noise,
        gflop=dict(gflop) if isinstance(gflop, Mapping) else dict.fromkeys(ways, gflop),
        gbyte=gbyte,
        memory_mb=memory_mb,
        deviations=deviations,
    )


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table; columns of traffic and of memory only if these were measured."""
    traffic, memory = any(row.gbyte for row in rows), any(row.memory_mb for row in rows)
    numbers = ["ms", "GFLOP/s", *["GB/s"] * traffic, *["memory MB"] * memory, "speed-up", "largest difference"]
    lines = [f"| work | size | way | {' | '.join(numbers)} |", f"|---|---|---|{'---:|' * len(numbers)}"]
    for row in rows:
        for i, (way, latency) in enumerate(row.latencies.items()):
            cells = [row.work, row.size, way, f"{latency.median_ms:,.{2 if latency.median_ms < 10 else 0}f}"]
            cells.append(f"{row.gflops(way):,.0f}")
            if traffic:
                cells.append("" if row.gbyte is None else f"{row.gbyte / latency.median_ms * 1e3:,.1f}")
            if memory:
                cells.append(f"{row.memory_mb[way]:,.0f}" if row.memory_mb else "")
            cells.append(f"{row.speedups[way]:.2f}x ± {100 * row.noise[way]:.0f} %" if i else "")
            cells.append(f"{row.deviations[way]:.1e}" if i and row.deviations else "")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _memory_mb(function: Work) -> float:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _finish(function)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with peak_memory() as memory:
        _finish(function)
    return memory.growth / 1e6


def _finish(function: Work) -> None:
    """Call it, and wait for a GPU if there is one."""
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
