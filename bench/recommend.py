"""Which engines of a bundle to use: of those that keep its rankings, the fastest; and why not the others."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import pydantic

from eao.bench.matrix import Options, Progress, bench_bundle
from eao.bench.report import TORCH, BenchReport, Entry
from eao.config import Config
from eao.errors import ExportError
from eao.export.encoders import Model
from eao.export.engines import ENGINES, OFFERED, engine_name, unusable
from eao.export.manifest import engine_key, load_manifest
from eao.export.page import Table
from eao.export.parity import ParityReport
from eao.export.parity_report import BundleParity

CHOSEN = "chosen"


class Limits(pydantic.BaseModel):
    """What an engine must hold; None leaves it free.

    Attributes:
        latency_ms: milliseconds that 95 % of the calls take at most: one clip, of the greatest length.
        recall_drop: percentage points that R@10 loses at most, in any retrieval task the encoder takes part in.
    """

    latency_ms: float | None = None
    recall_drop: float | None = None


class Candidate(pydantic.BaseModel):
    """An engine of an encoder, measured.

    Attributes:
        latency_ms: 95th percentile; None if it does not run here.
        speedup: over PyTorch eager, in turns with it.
        recall_drop: points of R@10, the worst task's; None if rankings were not compared.
        verdict: `CHOSEN`, or why it is not.
    """

    encoder: str
    engine: str
    precision: str
    latency_ms: float | None = None
    speedup: float | None = None
    recall_drop: float | None = None
    verdict: str = ""

    @property
    def key(self) -> str:
        return engine_key(self.encoder, self.engine, self.precision)


class Recommendation(pydantic.BaseModel):
    """The candidates of every encoder, the fastest first."""

    limits: Limits
    candidates: list[Candidate]
    busy: bool

    @property
    def chosen(self) -> dict[str, str]:
        """Encoder -> key of its engine; encoders for which none will do are left out."""
        return {c.encoder: c.key for c in self.candidates if c.verdict == CHOSEN}

    @property
    def unmet(self) -> tuple[str, ...]:
        """Encoders for which no engine will do."""
        return tuple(dict.fromkeys(c.encoder for c in self.candidates if c.encoder not in self.chosen))

    def table(self) -> Table:
        """A row for each candidate."""
        rows = [
            (
                c.encoder,
                c.engine,
                c.precision,
                "" if c.latency_ms is None else f"{c.latency_ms:.2f}",
                "" if c.speedup is None else f"{c.speedup:.2f}x",
                "" if c.recall_drop is None else f"{c.recall_drop:+.2f}",
                c.verdict,
            )
            for c in self.candidates
        ]
        return Table(("encoder", "engine", "precision", "p95 ms", "speed-up", "R@10 lost", ""), rows)


def runnable_engines(
    engines: Sequence[str] = (), precisions: Sequence[str] = (), device: str = "cpu"
) -> tuple[list[str], list[str]]:
    """The engines that run on this machine, and the precisions of at least one of them.

    Args:
        engines: names, long or short; by default all that run here.
        precisions: by default all that the engines offer and this machine can make.
        device: "cpu" or "cuda".
    """
    names = [engine_name(name) for name in engines] or [
        engine for engine in ENGINES if unusable(engine, device) is None
    ]
    offered = [p for e in names for p in OFFERED[e] if unusable(e, device, p) is None and _makes(p)]
    return names, list(precisions) or list(dict.fromkeys(offered))


def recommend_engines(
    bundle: str | Path,
    model: Model,
    config: Config,
    limits: Limits,
    seconds: float = 1.0,
    progress: Progress | None = None,
) -> Recommendation:
    """Measure the engines of a bundle beside PyTorch, choose, and put the chosen ones first in its manifest.

    Args:
        bundle: folder, as `write_bundle` left it: with parity.json, of engines that failed too.
        model: that it was made of.
        config: of the experiment, for the greatest lengths.
        limits: to hold.
        seconds: of each engine.
        progress: called with a line before each measurement.

    Raises:
        ExportError: no engine runs here; or a limit of recall, and rankings were not compared.
    """
    folder = Path(bundle)
    parity = BundleParity.load(folder)
    if limits.recall_drop is not None and not any(report.rankings for report in parity.reports):
        raise ExportError(
            "there is no recall to lose: rankings were not compared",
            "give data.test.features=FOLDER data.test.captions=FILE, and encoders of which one finds the other",
        )
    report = bench_bundle(
        model,
        folder,
        options=Options(batches=(1,), seconds=seconds),
        text_tokens=config.data.text.max_words,
        video_tokens=config.data.video_tokens,
        audio_frames=config.data.audio_frames,
        progress=progress,
    )
    found = recommend(report, parity, limits)
    prefer(folder, found)
    return found


def recommend(report: BenchReport, parity: BundleParity, limits: Limits) -> Recommendation:
    """Choose from what was measured: a batch of one at one length, and the parity of the same bundle."""
    candidates: list[Candidate] = []
    for encoder in dict.fromkeys(name for one in parity.reports for name in one.encoders):
        entry = next((entry for entry in report.entries if entry.encoder == encoder), None)
        ranked = sorted(_candidates(encoder, entry, report, parity, limits), key=_by_latency)
        best = next((c for c in ranked if not c.verdict), None)
        for candidate in ranked:
            if candidate is best:
                candidate.verdict = CHOSEN
            elif not candidate.verdict:
                candidate.verdict = "slower"
        candidates += ranked
    return Recommendation(
        limits=limits, candidates=candidates, busy=any(not entry.reliable for entry in report.entries)
    )


def prefer(folder: Path, found: Recommendation) -> None:
    """Put the chosen engines first in a bundle's manifest, so that `eao.load` takes them, and note the speed-ups."""
    manifest = load_manifest(folder)
    chosen = set(found.chosen.values())
    speedups = {c.key: c.speedup for c in found.candidates}
    engines = {key: entry.model_copy(update={"speedup": speedups.get(key)}) for key, entry in manifest.engines.items()}
    ordered = dict(sorted(engines.items(), key=lambda item: item[0] not in chosen))
    manifest.model_copy(update={"engines": ordered}).save(folder)


def _candidates(
    encoder: str, entry: Entry | None, report: BenchReport, parity: BundleParity, limits: Limits
) -> Iterator[Candidate]:
    for one in parity.reports:
        if encoder not in one.encoders:
            continue
        result = None if entry is None else entry.results.get(one.name)
        candidate = Candidate(
            encoder=encoder,
            engine=one.engine,
            precision=one.precision,
            latency_ms=None if result is None else result.latency.p95_ms,
            speedup=None if result is None or entry is None or TORCH not in entry.results else result.speedup,
            recall_drop=_recall_drop(one, encoder),
        )
        candidate.verdict = _objection(candidate, one, entry, report.skipped, limits)
        yield candidate


def _objection(
    candidate: Candidate, parity: ParityReport, entry: Entry | None, skipped: dict[str, str], limits: Limits
) -> str:
    """Why an engine will not do; empty if it will."""
    if failures := parity.failures(candidate.encoder):
        return f"fails parity: {failures[0]}"
    if candidate.latency_ms is None:
        reason = skipped.get(candidate.key) or skipped.get(parity.name, "it was not measured")
        return f"does not run here: {reason}"
    drop = candidate.recall_drop
    if limits.recall_drop is not None and (drop is None or drop > limits.recall_drop):
        return "recall was not compared" if drop is None else f"loses {drop:.2f} points of R@10"
    if limits.latency_ms is not None and candidate.latency_ms > limits.latency_ms:
        return f"above {limits.latency_ms:g} ms"
    if entry is not None and parity.name in entry.slower:
        return "slower than PyTorch"
    if entry is not None and parity.name in entry.hollow:
        return "all its layers stayed in float32"
    return ""


def _recall_drop(parity: ParityReport, encoder: str) -> float | None:
    changes = [ranking.recall_change["R10"] for ranking in parity.rankings if encoder in ranking.encoders]
    return max(0.0, -min(changes)) if changes else None


def _by_latency(candidate: Candidate) -> float:
    return float("inf") if candidate.latency_ms is None else candidate.latency_ms


def _makes(precision: str) -> bool:
    """Whether what a precision needs beside its engine is installed."""
    return precision not in ("int8-weights", "int8-nncf") or importlib.util.find_spec("nncf") is not None


def describe(found: Recommendation) -> Sequence[str]:
    """Sentences for what the table does not say."""
    lines = []
    for encoder in found.unmet:
        best = next((c for c in found.candidates if c.encoder == encoder), None)
        nearest = "" if best is None or best.latency_ms is None else f"; the fastest takes {best.latency_ms:.2f} ms"
        lines.append(f"[x] no engine of {encoder} will do{nearest}")
    if found.busy:
        lines.append("[!] other processes were busy meanwhile: measure again on a quiet machine")
    return lines
