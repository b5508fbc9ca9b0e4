"""Latency of a bundle's engines beside the PyTorch model, as JSON and as a table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pydantic
import torch

from eao.bench.docs import measured_on
from eao.bench.hardware import Hardware, describe_hardware
from eao.bench.latency import Function, Latency, compare, foreign_load, peak_memory
from eao.errors import ConfigError
from eao.export.bundle import choose_encoders
from eao.export.encoders import (
    BATCH,
    SPECTROGRAM_FRAMES,
    TEXT_TOKENS,
    VIDEO_TOKENS,
    Axis,
    EncoderModule,
    InputSpec,
    Model,
    concrete_shape,
)
from eao.export.manifest import versions
from eao.export.runtime import Bundle
from eao.files import write_text

# B batch, E embedding

Progress = Callable[[str], None]
TORCH = "torch"
ENGINE = "onnxruntime"
QUIET = 0.1
"""Cores that other processes may keep busy during a measurement that is to be quoted."""


class Entry(pydantic.BaseModel):
    """One encoder at one size: latency by runtime, and how much faster than PyTorch each runtime is.

    `speedup` and `noise` are None without a PyTorch model to compare with. `noise` is relative; see
    `eao.bench.latency.Comparison`. `foreign_cores` is how many cores other processes kept busy meanwhile.
    """

    encoder: str
    sizes: dict[str, int]
    latencies: dict[str, Latency]
    speedup: float | None = None
    noise: float | None = None
    foreign_cores: float | None = None

    @property
    def reliable(self) -> bool:
        """Whether the machine was quiet: otherwise the speed-up tells of its load more than of the engine."""
        return self.foreign_cores is None or self.foreign_cores <= QUIET


class Memory(pydantic.BaseModel):
    """One engine: seconds from file to a ready session and of the first run after it, file size, and memory.

    `memory_mb` is by how much peak resident memory rose while the session was opened and run at every size.
    """

    encoder: str
    file_mb: float
    load_seconds: float
    first_run_ms: float
    memory_mb: float


class BenchReport(pydantic.BaseModel):
    """A measurement with all that is needed to read it."""

    bundle: str
    threads: int
    hardware: Hardware
    versions: dict[str, str]
    model_mb: float | None = None
    entries: list[Entry]
    memory: list[Memory]

    @property
    def slower(self) -> list[Entry]:
        """The reliable entries where the engine is slower than PyTorch by more than the noise."""
        return [
            e for e in self.entries if e.reliable and e.speedup is not None and e.speedup * (1 + (e.noise or 0)) < 1
        ]

    def to_markdown(self) -> str:
        """Latency and memory tables, with the machine they were measured on."""
        hardware = self.hardware
        lines = [
            measured_on(hardware, self.versions, self.threads)
            + " Milliseconds a call, engine and PyTorch eager in turns.",
            "",
            "| encoder | batch | sizes | torch median | engine median | p90 | p99 | clips/s | speed-up |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(entry) for entry in self.entries]
        if busy := [e.foreign_cores for e in self.entries if not e.reliable and e.foreign_cores is not None]:
            lines += [
                "",
                f"[!] Other processes kept up to {max(busy):.1f} of {hardware.cores} cores busy during {len(busy)} of "
                f"{len(self.entries)} measurements. Their times are too long, and their speed-ups are left out: "
                "measure again on a quiet machine.",
            ]
        for entry in self.slower:
            lines += [
                "",
                f"[!] {entry.encoder} at batch {entry.sizes[BATCH]} is slower than PyTorch: do not prefer it.",
            ]
        lines += ["", "| engine | file MB | load s | first run ms | peak memory MB |", "|---|---|---|---|---|"]
        for m in self.memory:
            lines.append(
                f"| {m.encoder} | {m.file_mb:.1f} | {m.load_seconds:.2f} | {m.first_run_ms:.1f} | {m.memory_mb:.0f} |"
            )
        if self.model_mb is not None:
            lines += ["", f"The PyTorch model holds {self.model_mb:.1f} MB of weights, for all encoders together."]
        return "\n".join(lines) + "\n"

    def save(self, path: str | Path) -> None:
        """Write JSON, atomically."""
        write_text(path, self.model_dump_json(indent=2) + "\n")


def bench_bundle(
    model: Model | None,
    bundle: Bundle | str | Path,
    encoders: str | Sequence[str] = "all",
    batches: Sequence[int] = (1, 8),
    text_tokens: int = 20,
    video_tokens: int = 48,
    audio_frames: int = 1024,
    seconds: float = 2.0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure every engine of a bundle, in turns with the PyTorch model where one is given.

    Sizes are rounded up to what an engine takes; positional models keep their fixed sizes.

    Args:
        model: for comparison, in eager mode; None measures the engines alone.
        bundle: a bundle or its folder.
        encoders: "all", names joined by commas, or a sequence.
        batches: clips a call.
        text_tokens, video_tokens, audio_frames: sizes of one clip.
        seconds: of measurement for each encoder, batch size and runtime, after a quarter of it for warm-up.
        threads: for both runtimes; by default all cores.
        progress: called with a line before each measurement.

    Raises:
        ConfigError: an encoder the bundle does not have, or a size below 1.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    hardware = describe_hardware()
    threads = threads or hardware.cores
    chosen = _choose(bundle, model, encoders)
    sizes = {TEXT_TOKENS: text_tokens, VIDEO_TOKENS: video_tokens, SPECTROGRAM_FRAMES: audio_frames}
    if min(*sizes.values(), *batches) < 1:
        raise ConfigError("sizes and batches must be at least 1")
    entries: list[Entry] = []
    memory: list[Memory] = []
    with _torch_threads(threads):
        for encoder in chosen:
            fresh = Bundle(bundle.path, threads, bundle.device, bundle.verify)
            plan = [_fit(fresh, encoder, {**sizes, BATCH: batch}) for batch in batches]
            memory.append(_measure_memory(fresh, encoder, plan))
            for size in plan:
                if progress:
                    progress(f"{encoder}, batch {size[BATCH]}")
                entries.append(_measure(model, fresh, encoder, size, seconds))
    weights = sum(p.nbytes for p in model.parameters()) / 1e6 if model is not None else None
    return BenchReport(
        bundle=str(bundle.path),
        threads=threads,
        hardware=hardware,
        versions=versions(),
        model_mb=weights,
        entries=entries,
        memory=memory,
    )


def random_feeds(specs: Sequence[InputSpec], sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of an engine, every token real; `sizes` by axis name."""
    generator = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for spec in specs:
        shape = concrete_shape(spec, sizes)
        if spec.dtype == "bool":
            feeds[spec.name] = np.ones(shape, dtype=np.bool_)
        elif spec.dtype == "int64":
            feeds[spec.name] = np.full(shape, feeds["audio"].shape[2], dtype=np.int64)
        elif spec.name == "audio":
            feeds[spec.name] = generator.uniform(-80, 0, shape).astype(np.float32)
        else:
            feeds[spec.name] = generator.standard_normal(shape, dtype=np.float32)
    return feeds


def _measure(model: Model | None, bundle: Bundle, encoder: str, sizes: dict[str, int], seconds: float) -> Entry:
    feeds = random_feeds(bundle.manifest.specs(encoder), sizes)
    functions: dict[str, Function] = {}
    if model is not None:
        module = EncoderModule(model, encoder).eval()
        tensors = tuple(torch.from_numpy(array) for array in feeds.values())
        functions[TORCH] = lambda: module(*tensors)
    functions[ENGINE] = lambda: bundle.run(encoder, feeds)
    with torch.inference_mode(), foreign_load() as others:
        found = compare(functions, warmup_seconds=seconds / 4, max_seconds=seconds, items=sizes[BATCH])
    compared = model is not None
    return Entry(
        encoder=encoder,
        sizes=sizes,
        latencies=found.latencies,
        speedup=found.speedups[ENGINE] if compared else None,
        noise=found.noise[ENGINE] if compared else None,
        foreign_cores=others.cores,
    )


def _measure_memory(bundle: Bundle, encoder: str, plan: Sequence[dict[str, int]]) -> Memory:
    specs = bundle.manifest.specs(encoder)
    feeds = [random_feeds(specs, sizes) for sizes in plan]
    import onnxruntime  # noqa: F401  its own libraries are no engine's memory

    with peak_memory() as memory:
        start = time.perf_counter()
        bundle.session(encoder)
        loaded = time.perf_counter()
        bundle.run(encoder, feeds[0])
        first = time.perf_counter()
        for later in feeds[1:]:
            bundle.run(encoder, later)
    return Memory(
        encoder=encoder,
        file_mb=sum(file.size for file in bundle.entry(encoder).files) / 1e6,
        load_seconds=loaded - start,
        first_run_ms=(first - loaded) * 1e3,
        memory_mb=memory.growth / 1e6,
    )


def _fit(bundle: Bundle, encoder: str, sizes: dict[str, int]) -> dict[str, int]:
    axes = {a.name: a for spec in bundle.manifest.specs(encoder) for a in spec.shape if isinstance(a, Axis)}
    return {name: axis.size(-(-sizes[name] // axis.multiple)) for name, axis in axes.items()}


def _choose(bundle: Bundle, model: Model | None, encoders: str | Sequence[str]) -> tuple[str, ...]:
    names = [n.strip() for n in encoders.split(",")] if isinstance(encoders, str) else list(encoders)
    chosen = bundle.encoders if names == ["all"] else tuple(names)
    for name in chosen:
        if name not in bundle.encoders:
            raise ConfigError(
                f"the bundle {bundle.path} has no encoder {name!r}", f"it has {', '.join(bundle.encoders)}"
            )
    if model is not None:
        choose_encoders(model, chosen)
    return chosen


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row(entry: Entry) -> str:
    engine = entry.latencies[ENGINE]
    reference = entry.latencies.get(TORCH)
    sizes = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in entry.sizes.items() if name != BATCH)
    torch_median = f"{reference.median_ms:.2f}" if reference is not None else "-"
    speedup = "-"
    if entry.speedup is not None:
        speedup = f"{entry.speedup:.2f}x ± {100 * (entry.noise or 0):.0f} %" if entry.reliable else "busy machine"
    return (
        f"| {entry.encoder} | {entry.sizes[BATCH]} | {sizes or 'fixed'} | {torch_median} | {engine.median_ms:.2f} "
        f"| {engine.p90_ms:.2f} | {engine.p99_ms:.2f} | {engine.throughput:.0f} | {speedup} |"
    )
