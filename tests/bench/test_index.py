"""The measurement of the index, small: the real index, in little time."""

from __future__ import annotations

import numpy as np
import pytest

from eao.bench import index
from eao.bench.clustered import CHUNK, Clusters


@pytest.fixture(scope="module")
def report() -> index.IndexReport:
    return index.run(vectors=2000, dim=64, clusters=50, queries=20, reduce=(16,))


@pytest.mark.slow
def test_every_layout_is_measured(report: index.IndexReport) -> None:
    assert [row.layout for row in report.rows] == [
        "float32",
        "float32, reduced to 16",
        "float32, reduced to 16, int8",
        "float32, reduced to 16, pq",
        "float32, int8",
        "float32, pq",
        "float16",
        "float16, reduced to 16, int8",
    ]
    for row in report.rows:
        assert row.megabytes > 0 and row.build_seconds > 0 and 0 < row.p50_ms <= row.p95_ms
    assert report.rows[0].recall10 == 1  # exact
    assert report.rows[6].megabytes < 0.7 * report.rows[0].megabytes
    assert report.recommended is not None and report.recommended.recall10 >= index.RECALL


@pytest.mark.slow
def test_the_page_shows_what_was_measured(report: index.IndexReport) -> None:
    text = report.to_markdown()
    assert "| float32, reduced to 16, int8 |" in text and report.hardware.cpu in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(report.rows) and len({row.count("|") for row in rows}) == 1


def test_vectors_lie_in_clusters_with_a_falling_spectrum() -> None:
    source = Clusters(64, clusters=20, seed=1)
    (x,) = source.chunks(2000)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    cosines = x @ x.T
    nearest = np.sort(cosines, axis=1)[:, -20]  # one of about 100 in the same cluster
    assert np.median(nearest) > 0.6 > 0.2 > np.median(np.abs(cosines))
    spectrum = np.linalg.svd(x, compute_uv=False) ** 2
    # One over the rank would give 17 between the first and the 17th; clusters and normalisation bend it.
    assert 5 < spectrum[0] / spectrum[16] < 60
    axes = (x**2).mean(axis=0)
    assert axes.max() / axes.min() < 20  # and no axis shows it


def test_chunks_are_the_same_at_every_call_and_queries_near_their_members() -> None:
    source = Clusters(16, clusters=5)
    assert [len(x) for x in source.chunks(CHUNK + 1)] == [CHUNK, 1]
    first, again = next(source.chunks(100)), next(source.chunks(100))
    np.testing.assert_array_equal(first, again)
    queries = source.queries(10, of=100, perturbation=0.1)
    assert (queries @ first.T).max(axis=1).min() > 0.98
