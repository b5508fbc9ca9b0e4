"""Making the engines of one precision and proving them, encoder by encoder, in the folder of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from numpy.typing import NDArray

from eao.export.build import GRAPH_OF, SIMULATED, EncoderBuild, Options, Request
from eao.export.cases import Limits
from eao.export.encoders import input_specs
from eao.export.engines import Session, open_engine, unusable
from eao.export.manifest import EngineEntry, ParitySummary
from eao.export.parity import ParityReport, bisect_encoder, measure_parity
from eao.export.precision import simulate
from eao.export.reference import Reference
from eao.export.runtime import batch_feeds
from eao.export.thresholds import Thresholds
from eao.export.weights import share, with_weights
from eao.model import Batch
from eao.probes import has_exact_int8

SHARED_FROM = 200_000_000
"""Bytes of graphs from which on encoders share their weights by default."""


@dataclass(frozen=True)
class Proven:
    """The engines of all encoders at one request, and how they compare with the model."""

    entries: tuple[EngineEntry, ...]
    report: ParityReport


class Prover:
    """Makes and proves engines.

    Args:
        reference: what the model gives.
        folder: of the bundle.
        builds: by encoder.
        options: how engines are made.
        thresholds: by precision.
        bisect: find the first layer that leaves tolerance in each graph that fails.
        say: called with a line before each step.
    """

    def __init__(
        self,
        reference: Reference,
        folder: Path,
        builds: Mapping[str, EncoderBuild],
        options: Options,
        thresholds: dict[str, Thresholds],
        bisect: bool,
        say: Callable[[str], None],
    ) -> None:
        self.reference = reference
        self.folder = folder
        self.builds = builds
        self.options = options
        self.thresholds = thresholds
        self.bisect = bisect
        self.say = say

    def prove(self, engines: Sequence[str], precision: str, others: Sequence[Path] = ()) -> list[Proven]:
        """The engines of one precision, which share their graphs.

        If an 8-bit engine fails, more layers of the graph stay in higher precision, and all are made anew: until they
        hold, or nothing is left to try.

        Args:
            engines: full names.
            precision: of all of them.
            others: graphs that hold the same weights as those of the encoders.

        Raises:
            ExportError: an engine cannot be made.
            MissingDependencyError: the package that makes it is not installed.
        """
        while True:
            self._share_weights(GRAPH_OF.get(precision, precision), others)
            found: list[Proven] = []
            for engine in engines:
                found.append(self._prove(Request(engine, precision)))
                failing = [encoder for encoder in self.builds if found[-1].report.failures(encoder)]
                # All of them, not the first that can be tightened.
                if any([self.builds[encoder].tighten(precision) for encoder in failing]):  # noqa: C419
                    self.say(f"{precision}: more of {', '.join(failing)} in higher precision")
                    break
            else:
                for proven in found if self.bisect and precision not in GRAPH_OF else ():
                    self._bisect(proven.report)
                return found

    def _prove(self, request: Request) -> Proven:
        name = f"{request.engine} {request.precision}"
        made = {}
        for encoder, build in self.builds.items():
            self.say(f"{name}: compiling {encoder}")
            made[encoder] = build.make(request)
        self.say(f"{name}: parity")
        simulated = unusable(request.engine, precision=request.precision) is not None
        specs = {encoder: input_specs(self.reference.model, encoder) for encoder in made}
        opened: dict[str, Session] = {}

        def encode(batch: Batch, encoder: str) -> NDArray:
            if encoder not in opened:
                opened.clear()  # encoders come one after the other, and each holds gigabytes at the published size
                opened[encoder] = (
                    self.builds[encoder].simulation(request)
                    if simulated
                    else open_engine(self.folder, made[encoder], specs[encoder], self.options.threads)
                )
            return opened[encoder].run(batch_feeds(batch, specs[encoder], encoder))

        report = measure_parity(
            self.reference, encode, list(made), request.precision, request.engine, self.thresholds, self.say
        )
        report.simulated = simulated
        entries = (
            entry.model_copy(update={"parity": _summary(report, encoder, simulated)}) for encoder, entry in made.items()
        )
        return Proven(tuple(entries), report)

    def _bisect(self, report: ParityReport) -> None:
        for encoder, build in self.builds.items():
            if not report.failures(encoder):
                continue
            if build.graph(report.precision) == build.graph("fp32"):
                self.say(f"{report.name}: no layer of {encoder} can be named, its float32 graph being the measure")
            else:
                self.say(f"{report.name}: where {encoder} diverges")
                graph: Path | onnx.ModelProto = build.graph(report.precision)
                if report.precision in SIMULATED:
                    graph = simulate(onnx.load(graph))
                bisect_encoder(
                    self.reference, report, encoder, build.graph("fp32"), graph, threads=self.options.threads
                )

    def _share_weights(self, precision: str, others: Sequence[Path]) -> None:
        """Bring the weights of all graphs of a precision into one file."""
        self.say(f"{precision} graphs")
        graphs = [*others, *(build.graph(precision) for build in self.builds.values())]
        files = [with_weights(graph) for graph in graphs]
        shared = self.folder / f"weights.{precision}.bin"
        wanted = self.options.share_weights
        if wanted is None:
            size = sum(file.stat().st_size for file in {file for one in files for file in one})
            wanted = len(graphs) > 1 and size > SHARED_FROM
        if wanted and any(shared not in one for one in files):
            share(self.folder, [graph.name for graph in graphs], shared.name)


def engine_limits(requests: Iterable[Request], builds: Iterable[EncoderBuild]) -> Limits | None:
    """The sizes that all engines take: those of TensorRT's profiles, if it runs here."""
    if all(not r.engine.startswith("tensorrt") or unusable(r.engine, precision=r.precision) for r in requests):
        return None
    limits: dict[str, tuple[int, int]] = {}
    for build in builds:
        # Of several profiles the widest: between two of them there may be sizes that none takes.
        for axis, sizes in max(build.profiles(), key=lambda profile: profile["batch"].max).items():
            least, most = limits.get(axis, (sizes.min, sizes.max))
            limits[axis] = max(least, sizes.min), min(most, sizes.max)
    return limits


def _summary(report: ParityReport, encoder: str, simulated: bool) -> ParitySummary:
    measured = report.encoders[encoder]
    ranked = [ranking.top10_overlap for ranking in report.rankings if encoder in ranking.encoders]
    return ParitySummary(
        passed=not report.failures(encoder),
        max_abs=measured.figures.max_abs,
        cosine_min=measured.figures.cosine_min,
        batch_invariance=measured.batch_invariance,
        top10_overlap=min(ranked) if ranked else None,
        simulated=simulated,
        exact_int8=has_exact_int8(),
    )
