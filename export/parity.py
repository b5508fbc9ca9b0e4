"""Parity: how far an engine's outputs and rankings lie from those of the PyTorch model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray

from eao.evaluation.metrics import ranks, retrieval_metrics, similarity
from eao.export.cases import parity_cases
from eao.export.encoders import Model, input_names
from eao.model import Batch, encoder_modalities

# B batch, E embedding, Q queries, G gallery items

Encode = Callable[[Batch, str], NDArray[np.float32]]
"""What an engine offers: (batch, encoder) -> (B, E) float32, unit norm, as `Bundle.encode`."""

TIE = 1e-6
"""Cosines closer than this are equal as far as fp32 goes: two items that swap places within it have not changed."""
RANKS = ("R1", "R5", "R10", "MedR")
NAN = pydantic.ConfigDict(ser_json_inf_nan="strings")
"""A failed engine may give NaN, which JSON lacks."""


@dataclass(frozen=True)
class Thresholds:
    """What an engine must hold.

    Attributes:
        cosine: least cosine of any embedding with the model's.
        batch_invariance: least cosine of a clip alone with the same clip in a batch.
        top10: least share of queries with the same ten best items.
        recall: most percentage points that any R@K may move.
    """

    cosine: float
    batch_invariance: float
    top10: float
    recall: float


THRESHOLDS = {"fp32": Thresholds(cosine=0.99999, batch_invariance=0.99999, top10=1.0, recall=0.5)}
"""By precision."""


class Figures(pydantic.BaseModel):
    """Differences between two sets of embeddings, over all their rows."""

    model_config = NAN

    max_abs: float
    mean_abs: float
    cosine_min: float
    cosine_mean: float
    worst_case: str = ""


class EncoderParity(pydantic.BaseModel):
    """One encoder: figures over all cases, and by case."""

    model_config = NAN

    encoder: str
    figures: Figures
    batch_invariance: float
    cases: dict[str, Figures]


class RankingParity(pydantic.BaseModel):
    """One retrieval task on real data, by the model and by the engine.

    `top10_identical` is the share of queries whose ten best items are the same set, up to swaps of items that the model
    itself cannot tell apart (cosines within 1e-6); `top10_same_order` compares the plain lists. `recall_moved` is
    the most percentage points by which an R@K moved beyond what such ties allow: clips without sound, for example,
    share one audio embedding, and which of them comes first means nothing.
    """

    task: str
    queries: int
    gallery: int
    torch: dict[str, float]
    engine: dict[str, float]
    top10_identical: float
    top10_same_order: float
    recall_moved: float


class ParityReport(pydantic.BaseModel):
    """All of it, for JSON (`model_dump_json`) and for reading (`to_markdown`)."""

    engine: str
    precision: str
    thresholds: dict[str, float]
    encoders: dict[str, EncoderParity] = {}
    rankings: list[RankingParity] = []

    def failures(self, encoder: str | None = None) -> list[str]:
        """One line for each figure that misses its threshold, naming encoder, figure and threshold."""
        limits = self.thresholds
        lines = []
        for name, parity in self.encoders.items():
            if encoder not in (None, name):
                continue
            worst = parity.figures
            if not worst.cosine_min >= limits["cosine"]:  # so that NaN fails too
                lines.append(_miss(name, "cosine min", worst.cosine_min, limits["cosine"], worst.worst_case))
            if not parity.batch_invariance >= limits["batch_invariance"]:
                lines.append(_miss(name, "batch invariance", parity.batch_invariance, limits["batch_invariance"]))
        for ranking in self.rankings:
            if encoder is not None and encoder not in ranking.task.split(" -> "):
                continue
            if not ranking.top10_identical >= limits["top10"]:
                lines.append(_miss(ranking.task, "identical top-10", ranking.top10_identical, limits["top10"]))
            if not ranking.recall_moved <= limits["recall"]:
                moved = ranking.recall_moved
                lines.append(f"{ranking.task}: recall moved by {moved:.2f} points > {limits['recall']:g}")
        return lines

    @property
    def passed(self) -> bool:
        return not self.failures()

    def to_markdown(self) -> str:
        """Two tables and the verdict."""
        lines = [f"# Parity of {self.engine} {self.precision} with PyTorch", ""]
        lines += [f"- [x] {line}" for line in self.failures()] or ["All figures hold their thresholds."]
        lines += ["", "| encoder | cases | max abs | mean abs | cosine min | cosine mean | alone / in a batch |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for name, parity in self.encoders.items():
            f = parity.figures
            lines.append(
                f"| {name} | {len(parity.cases)} | {f.max_abs:.2g} | {f.mean_abs:.2g} | {_nines(f.cosine_min)} "
                f"| {_nines(f.cosine_mean)} | {_nines(parity.batch_invariance)} |"
            )
        lines += ["", f"Thresholds: {', '.join(f'{k} {v:g}' for k, v in self.thresholds.items())}."]
        if self.rankings:
            lines += ["", "| retrieval | queries x gallery | R@1 torch / engine | R@5 | R@10 | MedR | same top-10 |"]
            lines += ["|---|---|---|---|---|---|---|"]
            for r in self.rankings:
                pairs = [f"{r.torch[k]:.1f} / {r.engine[k]:.1f}" for k in RANKS]
                size = f"{r.queries} x {r.gallery}"
                lines.append(f"| {r.task} | {size} | {' | '.join(pairs)} | {100 * r.top10_identical:.1f} % |")
        return "\n".join(lines) + "\n"


def measure_parity(
    model: Model,
    encode: Encode,
    encoders: Sequence[str],
    precision: str = "fp32",
    engine: str = "onnxruntime",
    batches: Sequence[Batch] = (),
    progress: Callable[[str], None] | None = None,
) -> ParityReport:
    """Compare an engine with the model on made-up batches of many shapes and, where given, on real data.

    Args:
        model: the reference; put into eval mode and left as it was.
        encode: the engine, for example `Bundle(...).encode`.
        encoders: which ones.
        precision: selects the thresholds.
        engine: its name in the report.
        batches: real clips, in batches: each caption with its clip. Ranking parity is measured on them.
        progress: called with a line before each part.
    """
    thresholds = THRESHOLDS[precision]
    report = ParityReport(engine=engine, precision=precision, thresholds=vars(thresholds).copy())
    training = model.training
    model.eval()
    try:
        for encoder in encoders:
            if progress:
                progress(f"parity of {encoder}")
            report.encoders[encoder] = encoder_parity(model, encode, encoder)
        if len(batches):
            if progress:
                progress("ranking parity")
            report.rankings = ranking_parity(model, encode, encoders, batches)
    finally:
        model.train(training)
    return report


def encoder_parity(model: Model, encode: Encode, encoder: str) -> EncoderParity:
    """Compare one encoder on `parity_cases`, and each clip alone with the same clip in a batch."""
    cases: dict[str, Figures] = {}
    sizes: dict[str, int] = {}
    invariance = 1.0
    for case in parity_cases(model, encoder):
        found = encode(case.batch, encoder)
        cases[case.name] = compare(reference(model, case.batch, encoder), found)
        sizes[case.name] = len(found)
        if case.alone:
            alone = np.concatenate([encode(case.batch[i : i + 1], encoder) for i in range(len(case.batch))])
            invariance = _least(invariance, compare(found, alone).cosine_min)
    worst = min(cases, key=lambda name: _nan_first(cases[name].cosine_min))
    rows = sum(sizes.values())
    figures = Figures(
        max_abs=float(np.max([f.max_abs for f in cases.values()])),
        mean_abs=sum(f.mean_abs * sizes[name] for name, f in cases.items()) / rows,
        cosine_min=cases[worst].cosine_min,
        cosine_mean=sum(f.cosine_mean * sizes[name] for name, f in cases.items()) / rows,
        worst_case=worst,
    )
    return EncoderParity(encoder=encoder, figures=figures, batch_invariance=invariance, cases=cases)


def reference(model: Model, batch: Batch, encoder: str) -> NDArray[np.float32]:
    """What the PyTorch model gives for a batch, by its own forward: (B, E) float32, unit norm."""
    with torch.inference_mode():
        output = model(batch.only(encoder_modalities(encoder)), [encoder])[encoder]
        return torch.nn.functional.normalize(output.float(), dim=-1, eps=1e-8).numpy()


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
    return Figures(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        cosine_min=float(cosine.min()),
        cosine_mean=float(cosine.mean()),
    )


def ranking_parity(
    model: Model, encode: Encode, encoders: Sequence[str], batches: Sequence[Batch]
) -> list[RankingParity]:
    """Rank a data set by the model and by the engine, for every two encoders that share no modality, both ways."""
    given = set.intersection(*(set(batch.modalities) for batch in batches))
    usable = [e for e in encoders if set(encoder_modalities(e)) <= given]
    usable = [e for e in usable if all(_has_inputs(model, e, batch) for batch in batches)]
    by_model = {e: np.concatenate([reference(model, batch, e) for batch in batches]) for e in usable}
    by_engine = {e: np.concatenate([encode(batch.only(encoder_modalities(e)), e) for batch in batches]) for e in usable}
    results = []
    for query, gallery in _tasks(usable):
        expected = similarity(by_model[query], by_model[gallery])
        found = similarity(by_engine[query], by_engine[gallery])
        identical, same_order = top_overlap(expected, found)
        results.append(
            RankingParity(
                task=f"{query} -> {gallery}",
                queries=expected.shape[0],
                gallery=expected.shape[1],
                torch=_metrics(expected),
                engine=_metrics(found),
                top10_identical=identical,
                top10_same_order=same_order,
                recall_moved=recall_moved(expected, found),
            )
        )
    return results


def recall_moved(expected: NDArray[np.floating], found: NDArray[np.floating], ks: Sequence[int] = (1, 5, 10)) -> float:
    """The most percentage points by which the engine's R@K lies outside what ties of the model allow.

    A positive that `expected` places between ranks a and b, since it scores within 1e-6 of the items between, may be
    found at any of them.

    Args:
        expected, found: (Q, Q) similarities by the model and by the engine, positives on the diagonal.
    """
    positive = np.diagonal(expected)[:, None]
    first = (expected > positive + TIE).sum(1)
    last = (expected >= positive - TIE).sum(1) - 1
    engine = ranks(found)
    if len(engine) != len(first):  # a positive that is NaN has no rank
        return 100.0
    moved = 0.0
    for k in ks:
        wrong_hits = ((engine < k) & (first >= k)).mean()
        wrong_misses = ((engine >= k) & (last < k)).mean()
        moved = max(moved, 100 * float(wrong_hits), 100 * float(wrong_misses))
    return moved


def top_overlap(expected: NDArray[np.floating], found: NDArray[np.floating], k: int = 10) -> tuple[float, float]:
    """The shares of queries (rows) with the same k best items, as sets up to ties, and as plain lists.

    An engine may put in place of an item another that `expected` scores within 1e-6 of the k-th best.
    """
    k = min(k, expected.shape[1])
    ours = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    theirs = np.argsort(-found, axis=1, kind="stable")[:, :k]
    last = np.take_along_axis(expected, ours[:, -1:], 1)
    # Ten items that each score at least (nearly) as much as the tenth best are ten best items.
    good_enough = np.take_along_axis(expected, theirs, 1) >= last - TIE
    finite = np.isfinite(found).all(1)
    identical = good_enough.all(1) & finite
    same_order = (ours == theirs).all(1) & finite
    return float(identical.mean()), float(same_order.mean())


def _tasks(encoders: Sequence[str]) -> Iterator[tuple[str, str]]:
    for query in encoders:
        for gallery in encoders:
            if not set(encoder_modalities(query)) & set(encoder_modalities(gallery)):
                yield query, gallery


def _metrics(similarities: NDArray[np.float32]) -> dict[str, float]:
    metrics: Mapping[str, float] = retrieval_metrics(similarities)
    return {name: float(metrics[name]) for name in RANKS}


def _has_inputs(model: Model, encoder: str, batch: Batch) -> bool:
    needed = [name for name in input_names(model, encoder) if name != "audio_frames"]
    return all(getattr(batch, name) is not None for name in needed)


def _miss(name: str, figure: str, value: float, threshold: float, case: str = "") -> str:
    where = f" ({case})" if case else ""
    return f"{name}: {figure} {value:.7g} < {threshold:g}{where}"


def _nines(value: float) -> str:
    return f"{value:.7f}"


def _least(a: float, b: float) -> float:
    return float("nan") if math.isnan(a) or math.isnan(b) else min(a, b)


def _nan_first(value: float) -> float:
    return -math.inf if math.isnan(value) else value
