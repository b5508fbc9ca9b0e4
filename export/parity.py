"""Parity: how far an engine's outputs and rankings lie from those of the PyTorch model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pydantic
from numpy.typing import NDArray

from eao.export.bisect import Divergence, first_divergence, tolerance_of
from eao.export.encoders import input_specs
from eao.export.ranking import RankingParity, compare_rankings
from eao.export.reference import CLIPS, Reference
from eao.export.runtime import batch_feeds
from eao.export.thresholds import Thresholds, thresholds_of
from eao.model import Batch, encoder_modalities

# B batch, E embedding, Q clips of a data set

Encode = Callable[[Batch, str], NDArray[np.float32]]
"""What an engine offers: (batch, encoder) -> (B, E) float32, unit norm, as `Bundle.encode`."""

_DISTRIBUTION = 33
"""A case keeps the cosines of its rows for plots, or this many quantiles of them."""


class Figures(pydantic.BaseModel):
    """Differences between two sets of embeddings, over all their rows.

    Attributes:
        max_abs, mean_abs: of the difference of any element.
        cosine_min, cosine_p1, cosine_mean: of the cosines of the rows; p1 is the first percentile.
        worst_case: the case with the least cosine, where there are several.
        worst_row: the row with the least cosine, in that case.
        cosines: of every row in ascending order, or 33 quantiles of them.
    """

    model_config = pydantic.ConfigDict(ser_json_inf_nan="strings")

    max_abs: float
    mean_abs: float
    cosine_min: float
    cosine_p1: float
    cosine_mean: float
    worst_row: int
    worst_case: str = ""
    cosines: list[float] = []


class EncoderParity(pydantic.BaseModel):
    """One encoder: figures over all cases, and by case.

    Attributes:
        batch_invariance: least cosine of a clip alone with the same clip in a batch.
    """

    model_config = pydantic.ConfigDict(ser_json_inf_nan="strings")

    encoder: str
    figures: Figures
    batch_invariance: float
    cases: dict[str, Figures]


class ParityReport(pydantic.BaseModel):
    """One engine at one precision, for JSON (`model_dump_json`); `BundleParity` joins several and shows them.

    Attributes:
        thresholds: the limits it was held to, by figure; see `Thresholds`.
        simulated: the engine cannot run on the machine that made it, and its graph in onnxruntime was compared.
        divergences: encoder -> errors by layer, where they were looked for.
    """

    engine: str
    precision: str
    thresholds: dict[str, float]
    simulated: bool = False
    encoders: dict[str, EncoderParity] = {}
    rankings: list[RankingParity] = []
    divergences: dict[str, Divergence] = {}

    @property
    def name(self) -> str:
        """Engine and precision."""
        return f"{self.engine} {self.precision}"

    @property
    def passed(self) -> bool:
        return not self.failures()

    def failures(self, encoder: str | None = None) -> list[str]:
        """One line for each figure that misses its threshold, naming encoder, figure and threshold.

        Args:
            encoder: only what concerns this one: its embeddings, and the rankings it takes part in.
        """
        lines = []
        for name, parity in self.encoders.items():
            if encoder in (None, name):
                worst = parity.figures
                where = f" ({worst.worst_case})" if worst.worst_case else ""
                lines += self._below("cosine", f"{name}: cosine min", worst.cosine_min, where)
                lines += self._below("batch_invariance", f"{name}: batch invariance", parity.batch_invariance)
        for ranking in self.rankings:
            if encoder is None or encoder in ranking.encoders:
                lines += self._ranking_failures(ranking)
        return lines

    def _ranking_failures(self, ranking: RankingParity) -> list[str]:
        task = ranking.task
        lines = self._below("top10_identical", f"{task}: identical top-10", ranking.top10_identical)
        lines += self._below("top10_overlap", f"{task}: top-10 overlap", ranking.top10_overlap)
        lines += self._beyond("recall_moved", f"{task}: hits of an R@K changed", ranking.recall_moved)
        lines += self._beyond("recall10", f"{task}: R@10 moved", ranking.recall_change["R10"])
        return lines

    # Both are written so that NaN fails.

    def _below(self, figure: str, name: str, value: float, where: str = "") -> list[str]:
        limit = self.thresholds.get(figure)
        return [] if limit is None or value >= limit else [f"{name} {value:.7g} < {limit:g}{where}"]

    def _beyond(self, figure: str, name: str, points: float) -> list[str]:
        limit = self.thresholds.get(figure)
        return [] if limit is None or abs(points) <= limit else [f"{name} by {points:.2f} points, more than {limit:g}"]


def measure_parity(
    reference: Reference,
    encode: Encode,
    encoders: Sequence[str],
    precision: str = "fp32",
    engine: str = "onnxruntime",
    thresholds: dict[str, Thresholds] | None = None,
    progress: Callable[[str], None] | None = None,
) -> ParityReport:
    """Compare an engine at one precision with the model, on cases of many shapes and, where given, on real data.

    Args:
        reference: the model's embeddings; the same object serves every engine and precision.
        encode: the engine, for example `Bundle(...).encode`.
        encoders: which ones.
        precision: selects the thresholds.
        engine: its name in the report.
        thresholds: the table of them, by default `THRESHOLDS`.
        progress: called with a line before each part.

    Raises:
        ExportError: a precision without thresholds.
    """
    report = ParityReport(engine=engine, precision=precision, thresholds=thresholds_of(precision, thresholds).limits())
    by_engine: dict[str, NDArray[np.float32]] = {}
    for encoder in encoders:
        if progress:
            progress(f"parity of {encoder}, {report.name}")
        found = _encode_clips(reference, encode, encoder)
        if found is not None:
            by_engine[encoder] = found
        report.encoders[encoder] = encoder_parity(reference, encode, encoder, found)
    by_model = {encoder: rows for encoder in by_engine if (rows := reference.clips(encoder)) is not None}
    if by_model:
        report.rankings = compare_rankings(by_model, by_engine)
    return report


def encoder_parity(
    reference: Reference, encode: Encode, encoder: str, clips: NDArray[np.float32] | None = None
) -> EncoderParity:
    """Compare one encoder on all its cases, and each clip alone with the same clip in a batch.

    Args:
        reference, encode, encoder: as for `measure_parity`.
        clips: (Q, E) the engine's embeddings of the reference's real clips, for a case of their own.
    """
    pairs: dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]] = {}
    invariance = 1.0
    for expected in reference.cases(encoder):
        case = expected.case
        found = encode(case.batch, encoder)
        pairs[case.name] = expected.embeddings, found
        if case.alone:
            alone = np.concatenate([encode(case.batch[i : i + 1], encoder) for i in range(len(case.batch))])
            invariance = _least(invariance, compare(found, alone).cosine_min)
    of_clips = reference.clips(encoder) if clips is not None else None
    if of_clips is not None and clips is not None:
        pairs[CLIPS] = of_clips, clips
    cases = {name: compare(*pair) for name, pair in pairs.items()}
    total = compare(*(np.concatenate(side) for side in zip(*pairs.values(), strict=True)))
    worst = min(cases, key=lambda name: _nan_first(cases[name].cosine_min))
    figures = total.model_copy(update={"worst_case": worst, "worst_row": cases[worst].worst_row})
    return EncoderParity(encoder=encoder, figures=figures, batch_invariance=invariance, cases=cases)


def compare(expected: NDArray[np.floating], found: NDArray[np.floating]) -> Figures:
    """Figures of two (B, E) arrays of embeddings; NaN anywhere in `found` shows in every figure."""
    if expected.shape != found.shape:
        raise ValueError(f"embeddings of shapes {expected.shape} and {found.shape} cannot be compared")
    a, b = expected.astype(np.float64), found.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    cosine = (a * b).sum(1) / np.maximum(lengths[0] * lengths[1], 1e-30)
    cosine = np.where(both_zero, 1.0, cosine)
    difference = np.abs(a - b)
    spread = np.sort(cosine) if len(cosine) <= _DISTRIBUTION else np.quantile(cosine, np.linspace(0, 1, _DISTRIBUTION))
    return Figures(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        cosine_min=float(cosine.min()),
        cosine_p1=float(np.percentile(cosine, 1)),
        cosine_mean=float(cosine.mean()),
        worst_row=int(np.argmin(cosine)),  # NaN counts as least
        cosines=spread.tolist(),
    )


def bisect_encoder(
    reference: Reference,
    report: ParityReport,
    encoder: str,
    fp32_graph: str | Path,
    graph: str | Path | onnx.ModelProto,
    threads: int | None = None,
) -> Divergence:
    """Find the first layer of an engine's graph that leaves tolerance, on the clip that it embeds worst.

    The tolerance of a layer is the relative error at which embeddings would miss the threshold of their cosine.

    Args:
        reference: of the measurement.
        report: the measurement; the result is also kept in its `divergences`.
        encoder: the one that failed.
        fp32_graph: its fp32 graph.
        graph: the graph that the engine was made from.
        threads: of the runs.

    Raises:
        ExportError: onnxruntime cannot run one of the graphs, or they have no layer in common.
    """
    worst = report.encoders[encoder].figures
    clip = reference.one_clip(encoder, worst.worst_case, worst.worst_row)
    feeds = batch_feeds(clip, input_specs(reference.model, encoder), encoder)
    tolerance = tolerance_of(report.thresholds["cosine"])
    report.divergences[encoder] = first_divergence(fp32_graph, graph, feeds, tolerance, threads)
    return report.divergences[encoder]


def _encode_clips(reference: Reference, encode: Encode, encoder: str) -> NDArray[np.float32] | None:
    """The engine's embeddings of the real clips, (Q, E); None without clips that have all the encoder reads."""
    if reference.clips(encoder) is None:
        return None
    wanted = encoder_modalities(encoder)
    return np.concatenate([encode(batch.only(wanted), encoder) for batch in reference.batches])


def _least(a: float, b: float) -> float:
    return float("nan") if math.isnan(a) or math.isnan(b) else min(a, b)


def _nan_first(value: float) -> float:
    return -math.inf if math.isnan(value) else value
