"""What was measured of a bundle's engines, with all that is needed to read it: JSON and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pydantic

from eao.bench.arrivals import Arrivals
from eao.bench.ceiling import Ceiling
from eao.bench.cost import Cost
from eao.bench.docs import measured_on
from eao.bench.hardware import Hardware
from eao.bench.latency import Latency
from eao.bench.roofline import bound_ms
from eao.errors import ConfigError
from eao.export.encoders import BATCH
from eao.export.manifest import ParitySummary
from eao.export.page import Table
from eao.files import write_text

TORCH = "torch"
"""The way beside the engines: the PyTorch model itself, in eager mode."""
QUIET = 0.1
"""Cores that other processes may keep busy during a measurement that is to be quoted."""
BUSY = "busy machine"


class Copies(pydantic.BaseModel):
    """Milliseconds of one call on a device: inputs to it, its work, the output back."""

    upload_ms: float
    compute_ms: float
    download_ms: float


class Result(pydantic.BaseModel):
    """An engine, or PyTorch, at one size.

    Attributes:
        latency: of calls made one after the other.
        spread: half the interquartile range of the rounds' median times, over their median.
        speedup: over the first of those measured in turns, which is PyTorch if it was among them.
        noise: of the speed-up, relative; see `eao.bench.latency.Comparison`.
        traffic: bytes of weights, inputs and output.
        copies: where the runtime tells them apart.
        arrivals: requests that came at random, if they were asked for.
    """

    latency: Latency
    spread: float
    speedup: float
    noise: float
    traffic: int
    copies: Copies | None = None
    arrivals: Arrivals | None = None


class Entry(pydantic.BaseModel):
    """One encoder at one size, by every way, measured in turns.

    Attributes:
        length: share of the longest clip.
        sizes: by axis.
        gflop: arithmetic of a call, in 1e9 operations.
        results: by way: "torch", "onnxruntime fp32", "openvino int8" ...
        foreign_cores: how many cores other processes kept busy meanwhile.
        hollow: ways in 8 bits of which every layer stayed in float32 for the sake of parity.
    """

    encoder: str
    length: float
    sizes: dict[str, int]
    gflop: float
    results: dict[str, Result]
    foreign_cores: float | None = None
    hollow: tuple[str, ...] = ()

    @property
    def reliable(self) -> bool:
        """Whether the machine was quiet: otherwise the speed-ups tell of its load more than of the engines."""
        return self.foreign_cores is None or self.foreign_cores <= QUIET

    @property
    def engines(self) -> dict[str, Result]:
        """The results but PyTorch's."""
        return {way: result for way, result in self.results.items() if way != TORCH}

    @property
    def slower(self) -> tuple[str, ...]:
        """The engines that are slower than PyTorch by more than the noise; none on a busy machine."""
        if TORCH not in self.results or not self.reliable:
            return ()
        return tuple(way for way, r in self.engines.items() if r.speedup * (1 + r.noise) < 1)

    @property
    def recommended(self) -> str | None:
        """The fastest engine that is faster than PyTorch by more than the noise, measured on a quiet machine; none that
        is only called int8."""
        if TORCH not in self.results or not self.reliable:
            return None
        faster = {
            way: r.speedup for way, r in self.engines.items() if r.speedup > 1 + r.noise and way not in self.hollow
        }
        return max(faster, key=faster.__getitem__) if faster else None

    def describe_sizes(self) -> str:
        """The sizes but the batch."""
        return ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in self.sizes.items() if name != BATCH) or "fixed"

    def describe_speedup(self, way: str) -> str:
        """With its noise; nothing for what the others are compared with."""
        result = self.results[way]
        if way == next(iter(self.results)):
            return ""
        return f"{result.speedup:.2f}x ± {100 * result.noise:.0f} %" if self.reliable else BUSY

    def verdict(self, way: str) -> str:
        """What to make of an engine at this size; empty if there is nothing to say."""
        if way in self.slower:
            return "[!] slower than PyTorch"
        if way in self.hollow:
            return "[!] all in float32"
        return "recommended" if way == self.recommended else ""


class EngineFacts(pydantic.BaseModel):
    """One engine, apart from its speed: `cost` as measured here, the rest as the bundle's manifest has it.

    Of the `layers` that could be quantised, `left` stayed in float32 for the sake of parity.
    """

    encoder: str
    way: str
    cost: Cost
    parity: ParitySummary | None = None
    left: int = 0
    layers: int = 0


class BenchReport(pydantic.BaseModel):
    """A measurement of a bundle.

    Attributes:
        model_mb: weights of the PyTorch model, if it was measured, in 1e6 bytes.
        skipped: engine -> why it was not measured.
    """

    format: Literal[2] = 2
    bundle: str
    device: str
    threads: int
    hardware: Hardware
    versions: dict[str, str]
    ceiling: Ceiling
    model_mb: float | None = None
    entries: list[Entry]
    engines: list[EngineFacts]
    skipped: dict[str, str] = {}

    @property
    def slower(self) -> list[tuple[Entry, str]]:
        """Where an engine is slower than PyTorch by more than the noise."""
        return [(entry, way) for entry in self.entries for way in entry.slower]

    def facts(self, encoder: str, way: str) -> EngineFacts | None:
        """Of one engine; None for PyTorch."""
        return next((f for f in self.engines if (f.encoder, f.way) == (encoder, way)), None)

    def to_markdown(self) -> str:
        """All tables, with the machine they were measured on."""
        lines = [f"{self.measured_on()} {self.introduction()}", "", self.latency_table().to_markdown()]
        lines += [line for note in self.notes() for line in ("", note)]
        for heading, table in self.further_tables():
            lines += ["", heading, "", table.to_markdown()]
        return "\n".join(lines) + "\n"

    def measured_on(self) -> str:
        """The sentence with machine and versions."""
        return measured_on(self.hardware, self.versions, self.threads)

    def introduction(self) -> str:
        """How to read the table of latencies."""
        first = next((next(iter(entry.results)) for entry in self.entries), TORCH)
        return (
            "Milliseconds a call, all ways in turns in one process; every token real. Speed-up is over "
            f"{'PyTorch eager' if first == TORCH else first}, ± half the interquartile range of the ratio. GFLOP/s "
            "count the arithmetic of the encoder with its padding, GB/s its weights, inputs and output once a call; "
            f"float32 products and copies reached {self.ceiling} here, and `of bound` is how near a call comes to the "
            "least time these allow (A = arithmetic, M = memory), where int8 can pass the float32 bound."
        )

    def notes(self) -> Iterator[str]:
        """Sentences of warning."""
        if busy := [e.foreign_cores for e in self.entries if not e.reliable and e.foreign_cores is not None]:
            yield (
                f"[!] Other processes kept up to {max(busy):.1f} of {self.hardware.cores} cores busy during {len(busy)}"
                f" of {len(self.entries)} measurements. Their times are too long, and their speed-ups are left out: "
                "measure again on a quiet machine."
            )
        for encoder in dict.fromkeys(entry.encoder for entry, _ in self.slower):
            where = [f"{way} at batch {e.sizes[BATCH]}" for e, way in self.slower if e.encoder == encoder]
            yield f"[!] {encoder}: slower than PyTorch, do not prefer {', '.join(dict.fromkeys(where))}."
        for engine, reason in self.skipped.items():
            yield f"{engine} was not measured: {reason}."
        if self.model_mb is not None:
            yield f"The PyTorch model holds {self.model_mb:.1f} MB of weights, for all encoders together."

    def further_tables(self) -> Iterator[tuple[str, Table]]:
        """Headings and tables beside the latencies."""
        yield "Every engine was opened and run in a process of its own:", self.engine_table()
        if any(r.copies for e in self.entries for r in e.results.values()):
            yield "Median milliseconds on the device, without a CUDA graph:", self.copies_table()
        if any(r.arrivals for e in self.entries for r in e.results.values()):
            yield "Requests at random times, served one at a time; latency includes the wait:", self.arrivals_table()

    def latency_table(self) -> Table:
        """A row for each encoder, size and way."""
        header = ("encoder", "batch", "sizes", "engine", "median", "p90", "p95", "p99", "min", "clips/s", "speed-up")
        rows = []
        for entry, way, result in self._results():
            latency = result.latency
            times = (latency.median_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.min_ms)
            cells = [entry.encoder, str(entry.sizes[BATCH]), entry.describe_sizes(), way, *map(_ms, times)]
            cells += [_figures(latency.throughput), entry.describe_speedup(way)]
            least, limit = bound_ms(self.ceiling, entry.gflop, result.traffic)
            cells.append(f"{entry.gflop / latency.median_ms * 1e3:,.0f}")
            cells.append(f"{result.traffic / latency.median_ms / 1e6:,.1f}")
            cells.append(f"{100 * least / latency.median_ms:.0f} % {limit[0].upper()}")
            rows.append((*cells, entry.verdict(way)))
        return Table((*header, "GFLOP/s", "GB/s", "of bound", ""), rows)

    def engine_table(self) -> Table:
        """A row for each engine."""
        header = (
            "encoder",
            "engine",
            "file MB",
            "load s",
            "first run ms",
            "peak memory MB",
            "cosine min",
            "top-10 kept",
            "layers in float32",
        )
        rows = []
        for facts in self.engines:
            cost, parity = facts.cost, facts.parity
            cells = [facts.encoder, facts.way, f"{cost.file_mb:,.1f}", f"{cost.load_seconds:.2f}"]
            memory = f"{cost.memory_mb:,.0f}"
            if cost.device_mb is not None:
                memory += f" + {cost.device_mb:,.0f} on the GPU"
            cells += [_ms(cost.first_run_ms), memory]
            cells.append("" if parity is None else f"{parity.cosine_min:.6f}")
            kept = None if parity is None else parity.top10_overlap
            cells.append("" if kept is None else f"{100 * kept:.1f} %")
            rows.append((*cells, f"{facts.left} of {facts.layers}" if facts.layers else ""))
        return Table(header, rows)

    def copies_table(self) -> Table:
        """A row for each engine and size whose runtime tells copies apart."""
        rows = []
        for entry, way, result in self._results():
            if result.copies is not None:
                times = (result.copies.upload_ms, result.copies.compute_ms, result.copies.download_ms)
                rows.append((entry.encoder, str(entry.sizes[BATCH]), entry.describe_sizes(), way, *map(_ms, times)))
        return Table(("encoder", "batch", "sizes", "engine", "copies in", "work", "copies out"), rows)

    def arrivals_table(self) -> Table:
        """A row for each way and size that answered requests."""
        header = ("encoder", "batch", "sizes", "engine", "requests/s", "median", "p90", "p99", "busy", "missed")
        rows = []
        for entry, way, result in self._results():
            if (found := result.arrivals) is None:
                continue
            times = (found.latency.median_ms, found.latency.p90_ms, found.latency.p99_ms)
            cells = [entry.encoder, str(entry.sizes[BATCH]), entry.describe_sizes(), way, f"{found.rate:g}"]
            cells += [*map(_ms, times), "overloaded" if found.overloaded else f"{100 * found.utilization:.0f} %"]
            late = "" if found.missed is None else f"{100 * found.missed:.1f} % of {found.deadline_ms:g} ms"
            rows.append((*cells, late))
        return Table(header, rows)

    def save(self, path: str | Path) -> None:
        """Write JSON, atomically."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    def save_html(self, path: str | Path) -> None:
        """Write one page with tables and plots that needs no other file, atomically.

        Raises:
            MissingDependencyError: matplotlib, which draws the plots, is not installed.
        """
        from eao.bench.page import render_page

        write_text(path, render_page(self))

    @classmethod
    def load(cls, path: str | Path) -> BenchReport:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing, or no report of this version.
        """
        hint = "write one: eao bench BUNDLE --out FILE"
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}", hint) from None
        except ValueError as error:
            raise ConfigError(f"{path} is no report of engines: {str(error).splitlines()[0]}", hint) from None

    def _results(self) -> Iterator[tuple[Entry, str, Result]]:
        return ((entry, way, result) for entry in self.entries for way, result in entry.results.items())


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _figures(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
