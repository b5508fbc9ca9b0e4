"""Ranking parity: whether an engine finds the same clips as the PyTorch model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pydantic
from numpy.typing import NDArray

from eao.evaluation.metrics import ranks, retrieval_metrics, similarity
from eao.model import encoder_modalities

# Q queries, G gallery items, E embedding

TIE = 1e-6
"""Cosines closer than this are equal as far as fp32 goes: two items that swap places within it have not changed."""
RECALLS = (1, 5, 10)
RANKS = (*(f"R{k}" for k in RECALLS), "MedR")
_TAU_QUERIES = 500
"""Kendall's tau is taken over at most this many queries, spread evenly: each costs a sort of the gallery."""


class RankingParity(pydantic.BaseModel):
    """One retrieval task on real data, by the model and by the engine.

    Items that the model itself cannot tell apart (cosines within 1e-6) may swap places: clips without sound, for
    example, share one audio embedding, and which of them comes first means nothing.

    Attributes:
        torch, engine: R1, R5, R10 (percent) and MedR, plainly.
        top10_identical: share of queries whose ten best items are the same set, up to ties.
        top10_same_order: share of queries whose ten best items are the same list, ties or not.
        top10_overlap: share of the ten best items that are the model's, up to ties; mean over queries.
        kendall_tau: rank correlation of the whole gallery, mean over queries; None where the model ties everything.
        recall_moved: the most percentage points of queries that an R@K gained, or lost, beyond what ties allow.
        recall_change: R1, R5 and R10 of the engine less the model's, as far as ties do not allow it.
    """

    model_config = pydantic.ConfigDict(ser_json_inf_nan="strings")

    task: str
    queries: int
    gallery: int
    torch: dict[str, float]
    engine: dict[str, float]
    top10_identical: float
    top10_same_order: float
    top10_overlap: float
    kendall_tau: float | None
    recall_moved: float
    recall_change: dict[str, float]

    @property
    def encoders(self) -> tuple[str, str]:
        """The encoders of queries and gallery."""
        query, _, gallery = self.task.partition(" -> ")
        return query, gallery

    @property
    def medr_change(self) -> float:
        """Median rank of the engine less the model's, plainly."""
        return self.engine["MedR"] - self.torch["MedR"]


def compare_rankings(
    by_model: Mapping[str, NDArray[np.floating]], by_engine: Mapping[str, NDArray[np.floating]]
) -> list[RankingParity]:
    """Rank the same clips by both, for every two encoders that share no modality, both ways.

    Args:
        by_model, by_engine: encoder -> (Q, E); row i of every encoder is clip i. Encoders that only one has are left
            out.
    """
    results = []
    for query, gallery in _tasks([e for e in by_model if e in by_engine]):
        expected = similarity(by_model[query], by_model[gallery])
        found = similarity(by_engine[query], by_engine[gallery])
        identical, same_order, overlap = top_overlap(expected, found)
        results.append(
            RankingParity(
                task=f"{query} -> {gallery}",
                queries=expected.shape[0],
                gallery=expected.shape[1],
                torch=_metrics(expected),
                engine=_metrics(found),
                top10_identical=identical,
                top10_same_order=same_order,
                top10_overlap=overlap,
                kendall_tau=kendall_tau(expected, found),
                recall_moved=recall_moved(expected, found),
                recall_change=recall_change(expected, found),
            )
        )
    return results


def recall_moved(expected: NDArray[np.floating], found: NDArray[np.floating]) -> float:
    """The most percentage points of queries that an R@K of the engine gained, or lost, beyond what ties allow.

    A positive that `expected` places between ranks a and b, since it scores within 1e-6 of the items between, may be
    found at any of them.

    Args:
        expected, found: (Q, Q) similarities by the model and by the engine, positives on the diagonal.
    """
    first, last = _tied_ranks(expected)
    engine = ranks(found)
    if len(engine) != len(first):  # a positive that is NaN has no rank
        return 100.0
    moved = 0.0
    for k in RECALLS:
        wrong_hits = ((engine < k) & (first >= k)).mean()
        wrong_misses = ((engine >= k) & (last < k)).mean()
        moved = max(moved, 100 * float(wrong_hits), 100 * float(wrong_misses))
    return moved


def recall_change(expected: NDArray[np.floating], found: NDArray[np.floating]) -> dict[str, float]:
    """By how many percentage points each R@K lies outside what ties of the model allow: below (negative) or above.

    Args:
        expected, found: as for `recall_moved`. NaN if a positive is NaN in `found`.
    """
    first, last = _tied_ranks(expected)
    engine = ranks(found)
    if len(engine) != len(first):
        return {f"R{k}": float("nan") for k in RECALLS}
    changes = {}
    for k in RECALLS:
        recall, least, most = (100 * float((r < k).mean()) for r in (engine, last, first))
        changes[f"R{k}"] = max(recall - most, 0.0) + min(recall - least, 0.0)
    return changes


def top_overlap(expected: NDArray[np.floating], found: NDArray[np.floating], k: int = 10) -> tuple[float, float, float]:
    """How far the k best items of the queries (rows) agree.

    An engine may put in place of an item another that `expected` scores within 1e-6 of the k-th best.

    Returns:
        the share of queries with the same items up to ties, the share with the same plain lists, and the mean share of
        items that are the same up to ties. A row with NaN agrees in nothing.
    """
    k = min(k, expected.shape[1])
    ours = np.argsort(-expected, axis=1, kind="stable")[:, :k]
    theirs = np.argsort(-found, axis=1, kind="stable")[:, :k]
    last = np.take_along_axis(expected, ours[:, -1:], 1)
    finite = np.isfinite(found).all(1)
    # Ten items that each score at least (nearly) as much as the tenth best are ten best items.
    good_enough = (np.take_along_axis(expected, theirs, 1) >= last - TIE) & finite[:, None]
    same_order = (ours == theirs).all(1) & finite
    return float(good_enough.all(1).mean()), float(same_order.mean()), float(good_enough.mean())


def kendall_tau(expected: NDArray[np.floating], found: NDArray[np.floating]) -> float | None:
    """Kendall's tau-b of each query's (row's) gallery, mean over queries; cosines are told apart to 1e-6.

    Returns:
        None if every query ties its whole gallery in `expected`; 0 for a query that only `found` ties; NaN for NaN.
    """
    from scipy.stats import kendalltau

    if not np.isfinite(found).all():
        return float("nan")
    chosen = np.unique(np.linspace(0, len(expected) - 1, min(len(expected), _TAU_QUERIES)).round().astype(int))
    taus = []
    for a, b in zip(_steps(expected[chosen]), _steps(found[chosen]), strict=True):
        if np.ptp(a) > 0:
            taus.append(kendalltau(a, b).statistic if np.ptp(b) > 0 else 0.0)
    return float(np.mean(taus)) if taus else None


def _steps(similarities: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.rint(similarities.astype(np.float64) / TIE).astype(np.int64)


def _tied_ranks(expected: NDArray[np.floating]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """The first and the last rank that each positive may take by ties: (Q,), (Q,)."""
    positive = np.diagonal(expected)[:, None]
    return (expected > positive + TIE).sum(1), (expected >= positive - TIE).sum(1) - 1


def _tasks(encoders: Sequence[str]) -> Iterator[tuple[str, str]]:
    for query in encoders:
        for gallery in encoders:
            if not set(encoder_modalities(query)) & set(encoder_modalities(gallery)):
                yield query, gallery


def _metrics(similarities: NDArray[np.float32]) -> dict[str, float]:
    metrics: Mapping[str, float] = retrieval_metrics(similarities)
    return {name: float(metrics[name]) for name in RANKS}
