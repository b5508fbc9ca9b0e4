"""The comparison with the whole matrix, at small sizes: the real work, in little time."""

import pytest

from eao.bench import loss
from eao.bench.ceiling import measure_ceiling
from eao.bench.loss import TILED, WHOLE
from eao.kernels import contrastive, similarity


@pytest.fixture(scope="module")
def report():
    return loss.run([(3, 4), (40, 8)], [(5, 9, 4)], seconds=0, rounds=1)


def test_both_ways_are_measured_and_give_the_same_results(report):
    assert [(row.work, row.size) for row in report.rows] == [
        ("loss", "3 pairs of 4"),
        ("loss", "40 pairs of 8"),
        ("ranks", "5 queries, 9 items of 4"),
        ("top 10", "5 queries, 9 items of 4"),
    ]
    for row in report.rows:
        assert set(row.latencies) == set(row.memory_mb) == {WHOLE, TILED}
        assert row.deviations[TILED] < 1e-5


def test_the_page_shows_what_was_measured(report):
    text = report.to_markdown()
    assert "| loss | 40 pairs of 8 | tiled |" in text and str(report.ceiling) in text and report.hardware.cpu in text
    header, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 1 + 2 * len(report.rows) and all(row.count("|") == header.count("|") for row in rows)


def test_arithmetic_of_a_row(report):
    assert report.rows[1].gflop[TILED] == pytest.approx(3 * 2 * 40 * 40 * 8 / 1e9)
    assert report.rows[2].gflop[WHOLE] == pytest.approx(2 * 5 * 9 * 4 / 1e9)


def test_tiles_need_less_memory(monkeypatch):
    monkeypatch.setattr(contrastive, "_TILE", 500)
    monkeypatch.setattr(similarity, "_ITEMS", 500)
    report = loss.run([(4000, 4)], [(4000, 4000, 4)], seconds=0, rounds=1)
    for row in report.rows:
        # One matrix of 4000 x 4000 is 64 MB: above 32 MB, malloc takes no memory that was freed before.
        assert row.memory_mb[WHOLE] > 64 > row.memory_mb[TILED], row.work


def test_the_ceiling_is_that_of_a_machine():
    ceiling = measure_ceiling(size=256, megabytes=4, repeats=2)
    assert 0.1 < ceiling.gflops < 1e5 and 0.1 < ceiling.gbs < 1e4
