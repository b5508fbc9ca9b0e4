"""Measuring a bundle: engine x precision x encoder x batch x length, beside the PyTorch model."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from eao.bench.arrivals import measure_arrivals
from eao.bench.ceiling import measure_ceiling
from eao.bench.cost import Cost, measure_cost
from eao.bench.feeds import Point, plan_points, random_feeds
from eao.bench.hardware import describe_hardware
from eao.bench.latency import Function, compare, foreign_load
from eao.bench.report import TORCH, BenchReport, Copies, EngineFacts, Entry, Result
from eao.bench.roofline import call_bytes, encoder_work
from eao.errors import ConfigError, EaoError, ExportError
from eao.export.bundle import choose_encoders
from eao.export.encoders import BATCH, SPECTROGRAM_FRAMES, TEXT_TOKENS, VIDEO_TOKENS, Model, to_batch
from eao.export.engines import PRECISIONS, Session, engine_name, open_engine
from eao.export.manifest import EngineEntry, FileEntry, check_file, versions
from eao.export.runtime import Bundle
from eao.kernels.contrastive import normalize

# B batch, E embedding

Progress = Callable[[str], None]
_COPY_RUNS = 20


@dataclass(frozen=True)
class Options:
    """What is measured, and for how long.

    Attributes:
        batches: clips a call.
        lengths: of the clips, as shares of the longest; every batch is measured at every length.
        seconds: for each way at each size, after a quarter of it to warm up.
        max_runs: the most calls that are counted of it; None: as many as the time allows.
        rate: requests a second that come at random times; None: only calls made one after the other.
        deadline_ms: how long the answer to such a request may take.
        threads: of one run, for all ways; by default all cores.
    """

    batches: Sequence[int] = (1, 8)
    lengths: Sequence[float] = (1.0,)
    seconds: float = 2.0
    max_runs: int | None = None
    rate: float | None = None
    deadline_ms: float | None = None
    threads: int | None = None

    def check(self) -> None:
        """Refuse what measures nothing.

        Raises:
            ConfigError: a batch below 1, a length outside (0, 1], no time, or a deadline without a rate.
        """
        if not self.batches or min(self.batches) < 1:
            raise ConfigError(f"batches {list(self.batches)}: there must be one, of at least 1 clip")
        if not self.lengths or min(self.lengths) <= 0 or max(self.lengths) > 1:
            raise ConfigError(f"lengths {list(self.lengths)} are no shares of the longest clip", "such as 0.25 and 1")
        if self.seconds <= 0 or (self.max_runs is not None and self.max_runs < 1):
            raise ConfigError("no time or no calls to measure", "give seconds above 0, and at least 1 call")
        if self.rate is not None and self.rate <= 0:
            raise ConfigError("the rate must be above 0")
        if self.deadline_ms is not None and self.rate is None:
            raise ConfigError("a deadline is for requests that come at a rate", "give the rate too: --rate 50/s")


class _Way(NamedTuple):
    """An engine that is open."""

    name: str
    session: Session
    file_bytes: int


class Remote(Protocol):
    """Encoders that run elsewhere, such as `eao.serve.client.TritonBackend`."""

    @property
    def encoders(self) -> tuple[str, ...]:
        """What it offers."""

    def run(self, encoder: str, feeds: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """Embeddings (B, E) of arrays by the names of an encoder's inputs."""


class _RemoteSession(NamedTuple):
    """One encoder of a server, as a session."""

    remote: Remote
    encoder: str

    def run(self, feeds: Mapping[str, NDArray]) -> NDArray[np.float32]:
        return self.remote.run(self.encoder, feeds)


@runtime_checkable
class _Timed(Protocol):
    """A session on a device that tells copies apart, as `TensorRTSession`."""

    def time(self, feeds: Mapping[str, NDArray]) -> tuple[float, float, float]:
        """Milliseconds of copying in, computing and copying out."""


def bench_bundle(
    model: Model | None,
    bundle: Bundle | str | Path,
    encoders: str | Sequence[str] = "all",
    engines: Sequence[str] = (),
    precisions: Sequence[str] = (),
    options: Options | None = None,
    text_tokens: int = 20,
    video_tokens: int = 48,
    audio_frames: int = 1024,
    progress: Progress | None = None,
    servers: Mapping[str, Remote] | None = None,
) -> BenchReport:
    """Measure the engines of a bundle that run on this machine, in turns with the PyTorch model where one is given.

    Sizes are rounded up to what an engine takes; positional models keep their fixed sizes.

    Args:
        model: for comparison, in eager mode, on the device it lies on; None measures the engines alone.
        bundle: a bundle or its folder.
        encoders: "all", names joined by commas, or a sequence.
        engines: runtimes; by default all of the bundle.
        precisions: by default all of the bundle.
        options: batches, lengths and time.
        text_tokens, video_tokens, audio_frames: sizes of the longest clip.
        progress: called with a line before each measurement.
        servers: by name, what serves the same encoders, to be measured beside the engines.

    Raises:
        ConfigError: an encoder the bundle does not have, or sizes that are none.
        ExportError: no engine that was asked for runs here, or the bundle was changed.
    """
    options = options or Options()
    options.check()
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    longest = {TEXT_TOKENS: text_tokens, VIDEO_TOKENS: video_tokens, SPECTROGRAM_FRAMES: audio_frames}
    if min(longest.values()) < 1:
        raise ConfigError("the sizes of the longest clip must be at least 1")
    chosen = bundle_encoders(bundle, model, encoders)
    wanted, skipped = choose_engines(bundle, chosen, engines, precisions)
    say = progress or (lambda line: None)
    hardware = describe_hardware()
    threads = options.threads or hardware.cores
    entries: list[Entry] = []
    facts: list[EngineFacts] = []
    with _torch_threads(threads):
        say("the machine's ceilings")
        ceiling = measure_ceiling("cuda" if bundle.device.startswith("cuda") else "cpu")
        verify = _Verifier(bundle)
        for encoder in chosen:
            points = plan_points(bundle.manifest.specs(encoder), longest, options.batches, options.lengths)
            ways = []
            for entry in (e for e in wanted if e.encoder == encoder):
                say(f"{entry.key}: load and memory")
                verify.files(entry)
                try:
                    cost, session = _open(bundle, entry, points, threads)
                except EaoError as error:  # one engine that does not open leaves the others' figures standing
                    skipped[entry.key] = error.message
                    continue
                name = _way(entry)
                ways.append(_Way(name, session, round(1e6 * cost.file_mb)))
                facts.append(
                    EngineFacts(
                        encoder=encoder,
                        way=name,
                        cost=cost,
                        parity=entry.parity,
                        left=len(entry.left),
                        layers=entry.layers,
                    )
                )
            ways += [
                _Way(name, _RemoteSession(remote, encoder), ways[0].file_bytes)
                for name, remote in (servers or {}).items()
                if ways and encoder in remote.encoders
            ]
            hollow = tuple(fact.way for fact in facts if fact.encoder == encoder and fact.left == fact.layers > 0)
            for point in points if ways else ():
                say(f"{encoder}, batch {point.sizes[BATCH]}, length {point.length:g}")
                measured = _measure(model, bundle, encoder, ways, point, options)
                entries.append(measured.model_copy(update={"hollow": hollow}))
    if not entries:
        raise ExportError(f"no engine of {bundle.path} runs here", _reasons(skipped))
    return BenchReport(
        bundle=str(bundle.path),
        device=bundle.device,
        threads=threads,
        hardware=hardware,
        versions=versions(),
        ceiling=ceiling,
        model_mb=sum(p.nbytes for p in model.parameters()) / 1e6 if model is not None else None,
        entries=entries,
        engines=facts,
        skipped=skipped,
    )


def bundle_encoders(bundle: Bundle, model: Model | None, encoders: str | Sequence[str]) -> tuple[str, ...]:
    """The encoders of a bundle that a user named, or all of them.

    Raises:
        ConfigError: the bundle has no such encoder.
        ExportError: the model has none.
    """
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


def choose_engines(
    bundle: Bundle, encoders: Sequence[str], engines: Sequence[str] = (), precisions: Sequence[str] = ()
) -> tuple[list[EngineEntry], dict[str, str]]:
    """The engines of a bundle that were asked for and run here; and of the others, why they do not.

    Raises:
        ConfigError: an unknown precision.
        ExportError: an unknown engine, or none that was asked for runs here.
    """
    names = [engine_name(name) for name in engines]
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ConfigError(f"there is no precision {precision!r}", f"choose from {', '.join(PRECISIONS)}")
    asked = [
        entry
        for entry in bundle.manifest.engines.values()
        if entry.encoder in encoders
        and (not names or entry.engine in names)
        and (not precisions or entry.precision in precisions)
        and bundle.engine in (None, entry.engine)
        and bundle.precision in (None, entry.precision)
    ]
    reasons = {_way(entry): bundle.refusal(entry) for entry in asked}
    skipped = {way: reason for way, reason in reasons.items() if reason is not None}
    found = [entry for entry in asked if _way(entry) not in skipped]
    if not found:
        held = sorted({_way(entry) for entry in bundle.manifest.engines.values()})
        raise ExportError(
            f"no engine of {bundle.path} that was asked for runs here",
            _reasons(skipped) or f"it has {', '.join(held)}",
        )
    return found, skipped


def torch_encoder(model: Model, encoder: str, feeds: Mapping[str, NDArray]) -> Function:
    """The model as a user calls it, over packed tokens; on a device with the copies to it and back."""
    model.eval()
    device = next(model.parameters()).device
    batch = to_batch(model, encoder, tuple(torch.from_numpy(array) for array in feeds.values()))
    return lambda: normalize(model(batch.to(device), [encoder])[encoder]).cpu()


def _open(bundle: Bundle, entry: EngineEntry, points: Sequence[Point], threads: int) -> tuple[Cost, Session]:
    cost = measure_cost(bundle.path, entry, [point.sizes for point in points], threads, bundle.device)
    return cost, open_engine(bundle.path, entry, bundle.manifest.specs(entry.encoder), threads, bundle.device)


def _measure(
    model: Model | None, bundle: Bundle, encoder: str, ways: Sequence[_Way], point: Point, options: Options
) -> Entry:
    feeds = random_feeds(bundle.manifest.specs(encoder), point.sizes)
    functions: dict[str, Function] = {TORCH: torch_encoder(model, encoder, feeds)} if model is not None else {}
    functions |= {way.name: partial(way.session.run, feeds) for way in ways}
    work = encoder_work(bundle.config.model, encoder, point.sizes)
    weights = {TORCH: work.weights, **{way.name: way.file_bytes for way in ways}}
    batch = point.sizes[BATCH]
    with torch.inference_mode(), foreign_load() as others:
        found = compare(
            functions,
            warmup_seconds=options.seconds / 4,
            max_seconds=options.seconds,
            max_runs=options.max_runs,
            items=batch,
        )
        arrivals = {
            name: measure_arrivals(function, options.rate, options.seconds, options.deadline_ms, batch)
            for name, function in functions.items()
            if options.rate is not None
        }
    copies = {way.name: _copies(way.session, feeds) for way in ways}
    return Entry(
        encoder=encoder,
        length=point.length,
        sizes=point.sizes,
        gflop=work.gflop,
        results={
            name: Result(
                latency=latency,
                spread=found.spreads[name],
                speedup=found.speedups[name],
                noise=found.noise[name],
                traffic=call_bytes(weights[name], feeds, bundle.manifest.embedding_dim),
                copies=copies.get(name),
                arrivals=arrivals.get(name),
            )
            for name, latency in found.latencies.items()
        },
        foreign_cores=others.cores,
    )


def _copies(session: Session, feeds: Mapping[str, NDArray]) -> Copies | None:
    if not isinstance(session, _Timed):
        return None
    upload, compute, download = zip(*(session.time(feeds) for _ in range(_COPY_RUNS)), strict=True)
    return Copies(
        upload_ms=statistics.median(upload),
        compute_ms=statistics.median(compute),
        download_ms=statistics.median(download),
    )


class _Verifier:
    """Compares files with the manifest, each once however many encoders share it."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._seen: set[FileEntry] = set()

    def files(self, entry: EngineEntry) -> None:
        for file in entry.files if self.bundle.verify else ():
            if file not in self._seen:
                check_file(self.bundle.path, file)
                self._seen.add(file)


def _way(entry: EngineEntry) -> str:
    return f"{entry.engine} {entry.precision}"


def _reasons(skipped: Mapping[str, str]) -> str:
    return "; ".join(f"{engine}: {reason}" for engine, reason in skipped.items())


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
