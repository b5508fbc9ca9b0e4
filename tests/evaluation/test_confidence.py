"""Bootstrap intervals: against the definition written as a loop, against theory, and at the edges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.errors import ConfigError, DataError
from eao.evaluation.confidence import bootstrap
from eao.evaluation.metrics import metrics_from_ranks


def naive_bootstrap(rank: np.ndarray, total: int, samples: int, level: float, seed: int) -> dict[str, np.ndarray]:
    """The definition: draw queries, of which some have no rank, and evaluate each draw."""
    random = np.random.default_rng(seed)
    queries = np.concatenate([rank, np.full(total - len(rank), np.nan)])
    drawn = [queries[random.integers(0, total, total)] for _ in range(samples)]
    values = [metrics_from_ranks(draw[np.isfinite(draw)], total) for draw in drawn]
    bounds = [(1 - level) / 2, (1 + level) / 2]
    return {name: np.quantile([v[name] for v in values], bounds) for name in values[0]}


def test_intervals_agree_with_resampling_of_queries() -> None:
    rank = np.floor(np.random.default_rng(1).exponential(8, 150)) + np.tile([0, 0.5, 0], 50)
    ours = bootstrap(rank, 170, samples=4000, level=0.9)
    naive = naive_bootstrap(rank, 170, samples=4000, level=0.9, seed=2)
    assert set(ours) == set(naive)
    for name, expected in naive.items():
        # Two independent Monte Carlo estimates of the same quantiles: each is off by some 3 % of the interval's width.
        assert ours[name] == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0])), name


def test_the_width_of_a_recall_is_the_binomial_one() -> None:
    rank = np.where(np.arange(2000) < 600, 0, 99)
    low, high = bootstrap(rank, 2000, samples=10_000)["R1"]
    half = 100 * 1.96 * math.sqrt(0.3 * 0.7 / 2000)
    # 3 % for 10,000 resamples and for the normal approximation.
    assert (low, high) == pytest.approx((30 - half, 30 + half), abs=0.06 * half)


@settings(max_examples=50, deadline=None)
@given(rank=st.lists(st.integers(0, 120).map(lambda x: x / 2), max_size=30), missing=st.integers(0, 9))
def test_bounds_are_in_order_and_within_what_ranks_allow(rank: list[float], missing: int) -> None:
    total = max(1, len(rank) + missing)
    intervals = bootstrap(np.array(rank), total, samples=50)
    assert set(intervals) == set(metrics_from_ranks(np.array(rank), total))
    for name, (low, high) in intervals.items():
        if name in ("MedR", "MeanR"):
            if rank:
                assert min(rank) + 1 <= low <= high <= max(rank) + 1
            else:
                assert math.isnan(low) and math.isnan(high)
        else:
            assert 0 <= low <= high <= 100


def test_missing_queries_lower_the_recalls_but_not_the_ranks() -> None:
    rank = np.zeros(90)
    intervals = bootstrap(rank, 100)
    assert intervals["MedR"] == intervals["MeanR"] == (1.0, 1.0)
    assert intervals["R1"] == intervals["R50"]
    assert intervals["R1"][0] < 90 < intervals["R1"][1] < 100


def test_the_seed_decides_and_blocks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = np.random.default_rng(0).integers(0, 40, 60)
    first = bootstrap(rank, 64, samples=100, seed=3)
    assert bootstrap(rank, 64, samples=100, seed=4) != first
    monkeypatch.setattr("eao.evaluation.confidence._BLOCK", 7 * 40)
    assert bootstrap(rank, 64, samples=100, seed=3) == first


def test_a_wider_level_gives_wider_intervals() -> None:
    rank = np.random.default_rng(0).integers(0, 40, 60)
    narrow, wide = bootstrap(rank, 60, level=0.5), bootstrap(rank, 60, level=0.99)
    assert wide["MeanR"][0] < narrow["MeanR"][0] < narrow["MeanR"][1] < wide["MeanR"][1]


def test_arguments_that_make_no_sense_are_errors() -> None:
    for wrong in ({"samples": 0}, {"level": 0.0}, {"level": 1.0}):
        with pytest.raises(ConfigError, match="resamples, level"):
            bootstrap(np.zeros(3), 3, **wrong)
    for rank, total in ((np.zeros(3), 2), (np.zeros(0), 0)):
        with pytest.raises(DataError, match=f"{len(rank)} ranks for {total} queries"):
            bootstrap(rank, total)
