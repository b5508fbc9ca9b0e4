"""How far metrics would move with other queries: bootstrap confidence intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eao.errors import ConfigError, DataError
from eao.evaluation.metrics import metrics_from_counts

# V distinct ranks, S resamples

Intervals = dict[str, tuple[float, float]]
"""Metric -> its lower and upper bound, in the metric's own unit."""

_BLOCK = 1 << 22  # counts drawn at once in `bootstrap`, bounds the temporary memory to some 100 MB


def bootstrap(
    rank: NDArray[np.floating], total: int, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Intervals:
    """Confidence intervals of the retrieval metrics, by the percentile bootstrap over queries.

    A resample draws `total` queries with replacement. A query without a rank (missing here but counted in the full
    data set) can be drawn as well: it is an error in the recalls and has no part in the median and mean rank, as in
    `eao.evaluation.metrics.retrieval_metrics`. The gallery stays as it is, so an interval tells how much the choice of
    queries matters, not how hard another gallery would be.

    Args:
        rank: (Q',) ranks, 0 = first, from `eao.evaluation.metrics.ranks`.
        total: number of queries of the full data set, at least Q'.
        samples: number of resamples.
        level: share of the resamples that lies within an interval.
        seed: of the resampling.

    Returns:
        Every metric of `retrieval_metrics` -> bounds; NaN for the median and mean rank if no query has a rank.

    Raises:
        ConfigError: `samples` or `level` make no sense.
        DataError: there are no queries, or fewer than ranks.

    Example:
        >>> bootstrap(np.zeros(100), total=100)["R1"]
        (100.0, 100.0)
    """
    if samples < 1 or not 0 < level < 1:
        raise ConfigError(f"{samples} resamples, level {level}", "give at least 1 resample and a level between 0 and 1")
    if total < max(len(rank), 1):
        raise DataError(f"{len(rank)} ranks for {total} queries", "total counts every query, with a rank or without")
    values, counts = np.unique(rank, return_counts=True)
    # Only how often each rank is drawn matters, not which query had it. The last category takes what is left after the
    # others, whatever rounding did to the probabilities; the queries without a rank come first, as there may be none.
    shares = np.concatenate([[total - len(rank)], counts]) / total
    random = np.random.default_rng(seed)
    size = max(1, _BLOCK // len(shares))
    parts = []
    for start in range(0, samples, size):
        drawn = random.multinomial(total, shares, size=min(size, samples - start))
        parts.append(metrics_from_counts(values, drawn[:, 1:], total))
    bounds = ((1 - level) / 2, (1 + level) / 2)
    return {name: _interval(np.concatenate([part[name] for part in parts]), bounds) for name in parts[0]}


def _interval(values: NDArray[np.float64], bounds: tuple[float, float]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, bounds)
    return float(low), float(high)
