"""The comparison of packed with padded attention, at small sizes: the real work, in little time."""

import pytest

from eao.bench import attention
from eao.bench.attention import PACKED, PADDED


@pytest.fixture(scope="module")
def report():
    return attention.run({"some": (6, (2, 5))}, 3, 2, 8, seconds=0, rounds=1, compiled=False)


def test_both_ways_give_the_same_results_and_gradients(report):
    assert [row.work for row in report.rows] == ["attention", "attention and gradient"]
    for row in report.rows:
        assert set(row.latencies) == {PADDED, PACKED}
        assert row.deviations[PACKED] < 1e-5


def test_another_result_would_show(monkeypatch):
    right = attention.packed_attention
    monkeypatch.setattr(attention, "packed_attention", lambda *arguments: right(*arguments) * 1.01)
    report = attention.run({"some": (6, (2, 5))}, 3, 2, 8, seconds=0, rounds=1, compiled=False)
    assert all(row.deviations[PACKED] > 1e-4 for row in report.rows)


def test_only_real_tokens_count(report):
    tokens = int(report.rows[0].size.split()[0])
    assert report.rows[0].size == f"{tokens} of 18 tokens, some"
    # Of three sequences with that many tokens together, the arithmetic is least when they are equally long.
    assert report.rows[0].gflop[PACKED] >= 4e-9 * 2 * 8 * tokens**2 / 3 - 1e-12
    assert report.rows[1].gflop[PACKED] == pytest.approx(3.5 * report.rows[0].gflop[PACKED])


def test_the_page_shows_what_was_measured(report):
    text = report.to_markdown()
    assert f"| {PACKED} |" in text and str(report.ceiling) in text and report.hardware.cpu in text
    header, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 1 + 2 * len(report.rows) and all(row.count("|") == header.count("|") for row in rows)


@pytest.mark.slow
def test_the_compiled_rival_gives_the_same_too():
    report = attention.run({"some": (6, (2, 5))}, 3, 2, 8, seconds=0, rounds=1)
    assert all(row.deviations[attention.COMPILED] < 1e-5 for row in report.rows)
