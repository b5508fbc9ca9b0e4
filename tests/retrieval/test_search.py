"""Ranking files by their best clip, against the same by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eao.errors import ConfigError
from eao.retrieval.clips import FileState, Row
from eao.retrieval.search import check_weights, search_store
from eao.retrieval.table import ClipTable

DIM = 12


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """200 clips of "long", all nearer to the query (1, 0, 0 ...) than the few of nine other files."""
    random = np.random.default_rng(0)
    made = []
    for file, count, pull in [("long", 200, 20.0), *((f"f{i}", 3, 0.5 * i) for i in range(9))]:
        for start in range(count):
            vectors = {e: random.normal(size=DIM).astype(np.float32) for e in ("video", "audio")}
            vectors["video"][0] += pull
            if file == "f4":
                del vectors["audio"]
            made.append(Row(f"{file}#{start}", file, start, start + 1, count, FileState(0, 0), vectors))
    return made


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> ClipTable:
    table = ClipTable(tmp_path_factory.mktemp("index"), ("video", "audio"), DIM)
    table.replace(["long", *(f"f{i}" for i in range(9))], rows)
    return table


QUERY = np.eye(DIM, dtype=np.float32)[0]


def cosine(vector: np.ndarray) -> float:
    return float(vector @ QUERY / np.linalg.norm(vector))


@pytest.mark.parametrize("k", [1, 5, 10, 50])
def test_a_file_of_many_clips_does_not_crowd_out_the_others(table: ClipTable, rows: list[Row], k: int) -> None:
    best: dict[str, tuple[float, str]] = {}
    for row in rows:
        best[row.file] = max(best.get(row.file, (-1.0, "")), (cosine(row.vectors["video"]), row.id))
    expected = sorted(best.values(), reverse=True)[:k]
    hits = search_store(table, QUERY, {"video": 1.0}, k)
    assert [hit.id for hit in hits] == [name for _, name in expected]
    assert [hit.score for hit in hits] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert [hit.rank for hit in hits] == list(range(1, min(k, 10) + 1))


def test_weighted_scores_are_means_over_the_vectors_a_clip_has(table: ClipTable, rows: list[Row]) -> None:
    weights = {"video": 0.25, "audio": 0.75}
    best: dict[str, float] = {}
    for row in rows:
        total = sum(weights[e] for e in row.vectors)
        score = sum(weights[e] * cosine(v) for e, v in row.vectors.items()) / total
        best[row.file] = max(best.get(row.file, -1.0), score)
    hits = search_store(table, QUERY, weights, 10)
    assert {hit.file: hit.score for hit in hits} == pytest.approx(best, abs=1e-5)


def test_of_a_compressed_index_weighted_scores_are_those_of_candidates(tmp_path: Path) -> None:
    """Each list is short beside the index, and hits are nearly those of comparing every clip."""
    random = np.random.default_rng(0)
    table = ClipTable(tmp_path, ("video", "audio"), DIM)
    rows = []
    for i in range(3000):
        subject = random.normal(size=DIM)
        vectors = {e: (subject + random.normal(size=DIM)).astype(np.float32) for e in ("video", "audio")}
        if i % 10 == 0:
            del vectors["audio"]
        rows.append(Row(f"f{i}#0", f"f{i}", 0, 1, 1, FileState(0, 0), vectors))
    table.replace([row.file for row in rows], rows)
    table.optimize("float32", "int8", 0)
    asked: list[int] = []

    class Watched(ClipTable):
        def nearest(self, vector, encoder, limit, where=(), exact=False):  # type: ignore[no-untyped-def]
            asked.append(limit)
            return super().nearest(vector, encoder, limit, where, exact)

    watched = Watched(tmp_path, ("video", "audio"), DIM)
    weights = {"video": 0.6, "audio": 0.4}
    shared = 0
    for query in random.normal(size=(20, DIM)).astype(np.float32):
        exact = {hit.id: hit.score for hit in search_store(table, query, weights, 10, exact=True)}
        hits = search_store(watched, query, weights, 10)
        assert len(hits) == 10 and [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        common = [hit for hit in hits if hit.id in exact]
        assert [hit.score for hit in common] == pytest.approx([exact[hit.id] for hit in common], abs=1e-5)
        shared += len(common)
    assert shared >= 190
    assert max(asked) == 256


def test_equal_scores_are_ordered_by_file_and_time(tmp_path: Path) -> None:
    table = ClipTable(tmp_path, ("video",), DIM)
    same = {"video": np.ones(DIM, np.float32)}
    rows = [Row(f"{f}#{s}", f, s, s + 1, 9, FileState(0, 0), dict(same)) for f in "cab" for s in (2, 1)]
    table.replace(["a", "b", "c"], rows)
    assert [hit.id for hit in search_store(table, QUERY, {"video": 1.0}, 3)] == ["a#1", "b#1", "c#1"]


def test_weights_add_up_to_one_and_bad_ones_are_errors() -> None:
    assert check_weights({"video": 3, "audio": 1}, ("video", "audio")) == {"video": 0.75, "audio": 0.25}
    for weights in ({}, {"smell": 1.0}, {"video": 0.0}, {"video": float("nan")}):
        with pytest.raises(ConfigError):
            check_weights(weights, ("video", "audio"))
