from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eao.export.ranking import compare_rankings, kendall_tau, recall_change, recall_moved, top_overlap

NAN = np.full((12, 12), np.nan)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_ties_within_rounding_are_no_difference_and_real_swaps_are() -> None:
    expected = np.linspace(1, 0, 20, dtype=np.float64)[None].repeat(2, 0)
    expected[:, 10] = expected[:, 9] - 1e-7  # the tenth and eleventh best
    swapped = expected.copy()
    swapped[0, [9, 10]] = swapped[0, [10, 9]]
    assert top_overlap(expected, swapped) == (1.0, 0.5, 1.0)
    swapped[1, [0, 15]] = swapped[1, [15, 0]]
    assert top_overlap(expected, swapped) == (0.5, 0.0, 0.95)


def test_nan_never_counts_as_the_same_ranking() -> None:
    expected = np.eye(12)
    assert top_overlap(expected, NAN) == (0, 0, 0)
    assert recall_moved(expected, NAN) == 100
    assert np.isnan(recall_change(expected, NAN)["R10"])
    tau = kendall_tau(expected, NAN)
    assert tau is not None and np.isnan(tau)


def test_hits_lost_and_gained_cancel_in_the_change_but_not_in_what_moved() -> None:
    expected = np.eye(20) + np.linspace(0, 0.5, 20)  # every query finds its item first
    expected[1, 1] = -1.0  # but one, which finds it last
    found = expected.copy()
    found[0, 0], found[1, 1] = -1.0, 2.0
    assert recall_change(expected, found) == {"R1": 0.0, "R5": 0.0, "R10": 0.0}
    assert recall_moved(expected, found) == pytest.approx(5)
    found[1, 1] = -1.0
    assert recall_change(expected, found)["R10"] == pytest.approx(-5)


def test_what_a_tie_of_the_model_allows_is_no_change_of_recall() -> None:
    expected = np.full((12, 12), 0.5)  # as clips without sound, which share one embedding
    first, last = expected + np.eye(12), expected - np.eye(12)
    assert recall_change(expected, first) == recall_change(expected, last) == {"R1": 0.0, "R5": 0.0, "R10": 0.0}
    assert recall_moved(expected, first) == recall_moved(expected, last) == 0


def test_kendall_tau_of_equal_reversed_and_tied_galleries() -> None:
    expected = np.linspace(0, 1, 15)[None].repeat(3, 0)
    assert kendall_tau(expected, expected) == pytest.approx(1)
    assert kendall_tau(expected, expected + 1e-8 * np.arange(15)[::-1]) == pytest.approx(1)
    assert kendall_tau(expected, -expected) == pytest.approx(-1)
    assert kendall_tau(expected, np.zeros_like(expected)) == 0
    assert kendall_tau(np.zeros_like(expected), expected) is None


def test_one_swap_of_neighbours_costs_tau_its_share() -> None:
    expected = np.arange(4.0)[None]
    found = expected[:, [1, 0, 2, 3]]
    assert kendall_tau(expected, found) == pytest.approx(1 - 2 / 6)  # of 6 pairs one is discordant


@given(st.integers(0, 2**32 - 1), st.integers(1, 14), st.sampled_from([0.0, 1e-9, 0.1, 3.0]))
def test_figures_are_shares_and_exact_agreement_is_perfect(seed: int, size: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    expected = rng.integers(0, 4, (size, size)).astype(np.float64)  # with many ties
    found = expected + noise * rng.standard_normal((size, size))
    identical, same_order, overlap = top_overlap(expected, found)
    assert 0 <= same_order <= 1 and 0 <= identical <= overlap <= 1
    moved = recall_moved(expected, found)
    assert all(abs(change) <= moved + 1e-9 for change in recall_change(expected, found).values())
    if noise <= 1e-9:
        assert identical == 1 and moved == 0


def test_tasks_are_all_pairs_without_a_shared_modality_both_ways() -> None:
    rng = np.random.default_rng(0)
    rows = {name: unit(rng.standard_normal((11, 5))) for name in ("text", "video", "video-audio", "audio")}
    found = compare_rankings(rows, {name: rows[name] for name in ("text", "video", "video-audio")})
    assert {r.encoders for r in found} == {
        ("text", "video"),
        ("video", "text"),
        ("text", "video-audio"),
        ("video-audio", "text"),
    }
    for ranking in found:
        assert ranking.torch == ranking.engine and ranking.medr_change == 0
        assert ranking.top10_overlap == ranking.kendall_tau == 1
