"""Metrics against the reference's numbers, and against the definition written as a loop."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.numpy import load_file

from eao.errors import ConfigError, DataError
from eao.evaluation.metrics import (
    SHORT_NAMES,
    TASKS,
    average_by_id,
    evaluate,
    metrics_from_counts,
    metrics_from_ranks,
    metrics_lines,
    metrics_table,
    ranks,
    retrieval_metrics,
    similarity,
    task_encoders,
    task_ranks,
)
from eao.evaluation.published import find_published

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
CASES = json.loads((GOLDEN / "metrics.json").read_text())["cases"]
MATRICES = [case for case in CASES if case["name"] != "RetrievalMetric"]
AVERAGING = json.loads((GOLDEN / "average_embeddings.json").read_text())["cases"]
YOUCOOK = json.loads((GOLDEN / "youcook_evaluation.json").read_text())
# Percentages and ranks are ratios of small integers: only the order of summation can differ.
EXACT = {"rel": 1e-12, "nan_ok": True}


def naive_ranks(similarities: np.ndarray) -> list[float]:
    """The definition: the mean of the places that hold the right answer's value in the sorted row."""
    found = []
    for i, row in enumerate(similarities):
        with np.errstate(invalid="ignore"):
            places = np.flatnonzero(np.sort(-row) + row[i] == 0)
        if len(places):
            found.append(float(places.mean()))
    return found


@pytest.fixture(scope="module")
def matrices() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "metrics.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("case", [c for c in MATRICES if c["error"] is None], ids=lambda case: case["name"])
def test_metrics_equal_the_reference(case: dict, matrices: dict[str, np.ndarray]) -> None:
    metrics = retrieval_metrics(matrices[case["name"]], **case["kwargs"])
    expected = {key: np.nan if value is None else value for key, value in case["metrics"].items()}
    assert metrics == {key: pytest.approx(value, **EXACT) for key, value in expected.items()}


def test_more_queries_than_items_is_an_error(matrices: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match="30 queries for 20 items"):
        retrieval_metrics(matrices["tall_30x20"])


def test_every_task_equals_the_reference(matrices: dict[str, np.ndarray]) -> None:
    case = next(case for case in CASES if case["name"] == "RetrievalMetric")
    for task, expected in case["metrics"].items():
        if not expected:
            continue
        query, gallery = task.split("2")
        forward = matrices.get(f"simsdict.{task}")
        matrix = forward if forward is not None else matrices[f"simsdict.{gallery}2{query}"].T
        metrics = retrieval_metrics(matrix, case["complete_dataset_size"])
        assert metrics == {key: pytest.approx(value, **EXACT) for key, value in expected.items()}, task


def test_evaluation_of_embeddings_equals_the_reference() -> None:
    stored = load_file(GOLDEN / "youcook_evaluation.safetensors")
    names = {key: f"raw.{key if len(key) > 1 else SHORT_NAMES[key]}_embed" for key in SHORT_NAMES}
    embeddings = {SHORT_NAMES[key]: stored[name] for key, name in names.items()}
    results = evaluate(embeddings, list(YOUCOOK["metrics"]), complete_dataset_size=3350)
    assert set(results) == {task.removesuffix("_metrics") for task in YOUCOOK["metrics"]}
    for task, expected in YOUCOOK["metrics"].items():
        got = results[task.removesuffix("_metrics")]
        assert got == {key: pytest.approx(value, **EXACT) for key, value in expected.items()}, task


@settings(max_examples=100, deadline=None)
@given(data=st.data(), queries=st.integers(1, 9), extra=st.integers(0, 4))
def test_ranks_follow_the_definition_with_ties_nan_and_infinity(data: st.DataObject, queries: int, extra: int) -> None:
    values = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf, np.nan])
    size = queries * (queries + extra)
    drawn = data.draw(st.lists(values, min_size=size, max_size=size))
    matrix = np.array(drawn, dtype=np.float32).reshape(queries, queries + extra)
    assert ranks(matrix).tolist() == naive_ranks(matrix)


def test_blocks_of_rows_do_not_change_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).integers(0, 5, (17, 23)).astype(np.float32)
    whole = ranks(matrix)
    monkeypatch.setattr("eao.evaluation.metrics._BLOCK", 3 * 23)
    assert np.array_equal(ranks(matrix), whole)


def test_positives_name_the_right_column_of_each_query() -> None:
    matrix = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    assert ranks(matrix, positives=np.array([0, 0, 1])).tolist() == [0, 0, 0]
    assert ranks(matrix, positives=np.array([1, 1, 0])).tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="3 columns between 0 and 1"):
        ranks(matrix, positives=np.array([0, 1, 2]))


def test_a_row_of_nan_is_reported_and_counts_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    matrix = np.eye(4)
    matrix[2] = np.nan
    with caplog.at_level(logging.WARNING):
        metrics = retrieval_metrics(matrix)
    assert (metrics["R1"], metrics["MedR"]) == (75.0, 1.0)
    assert "1 of 4 queries have no rank" in caplog.text


def test_all_nan_gives_zero_recall_and_no_rank() -> None:
    metrics = retrieval_metrics(np.full((3, 3), np.nan))
    assert metrics["R50"] == 0
    assert np.isnan(metrics["MedR"])
    assert np.isnan(metrics["MeanR"])


def test_sizes_that_make_no_sense_are_errors() -> None:
    with pytest.raises(ConfigError, match="complete_dataset_size is 3, but there are 4"):
        retrieval_metrics(np.eye(4), complete_dataset_size=3)
    with pytest.raises(DataError, match="no queries"):
        retrieval_metrics(np.empty((0, 5)))
    with pytest.raises(DataError, match="matrix"):
        ranks(np.ones(3))


def test_similarity_is_the_cosine_and_survives_zero_rows() -> None:
    a = np.array([[3.0, 4.0], [0.0, 0.0]])
    result = similarity(a, np.array([[1.0, 0.0]]))
    assert result.dtype == np.float32
    assert result.tolist() == [[pytest.approx(0.6)], [0.0]]


def test_task_names() -> None:
    assert len(TASKS) == 18
    assert task_encoders(["t2va_metrics", "v+a2t"]) == ("text", "video-audio", "video+audio")
    assert task_encoders(["t2v_va"]) == ()
    with pytest.raises(ConfigError, match="did you mean t2va"):
        task_encoders(["t2vaa"])


def test_tasks_without_embeddings_are_empty() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    results = evaluate({"text": x, "video": x}, ["t2v", "t2va", "v2a_metrics", "t2v_va"])
    assert results["t2v"]["R1"] == 100
    assert results["t2va"] == results["v2a"] == results["t2v_va"] == {}


@pytest.mark.parametrize("case", AVERAGING, ids=lambda case: case["name"])
def test_averaging_by_id_equals_the_reference(case: dict) -> None:
    with np.load(GOLDEN / "average_embeddings.npz", allow_pickle=False) as file:
        given = {key: file[f"{case['name']}.in.{key}"] for key in ("text_embed", "tv_embed")}
        expected = {key: file[f"{case['name']}.out.{key}"] for key in given}
    averaged, ids = average_by_id(given, case["ids"])
    for key, rows in expected.items():
        assert len(ids) == len(rows) == case["out_shape"][0]
        assert averaged[key].dtype == np.float32
        np.testing.assert_allclose(averaged[key], rows, rtol=1e-6, atol=1e-7)  # one float32 rounding of a short mean


def test_averaging_needs_an_id_for_every_row() -> None:
    with pytest.raises(DataError, match="2 ids for 3 text embeddings"):
        average_by_id({"text": np.ones((3, 2))}, ["a", "b"])


def test_printed_lines_and_table() -> None:
    results = {"t2va": retrieval_metrics(np.eye(3)), "v2t": {}}
    assert metrics_lines(results, split="test", dataset="MSRVTT", epoch=3) == [
        "[test]MSRVTT epoch 3         100.0 100.0 100.0 1           100.0 1 1.0",
        "[t2va_metrics] epoch 3, R@1: 100.0, R@5: 100.0, R@10 100.0, R@50 100.0MedR: 1, MeanR: 1.0",
    ]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(metrics_table(results, "test"))
    assert "t2va" in capture.get()
    assert "v2t" not in capture.get()


@settings(max_examples=50, deadline=None)
@given(sets=st.lists(st.lists(st.integers(0, 120).map(lambda x: x / 2), max_size=12), min_size=1, max_size=4))
def test_counts_give_the_metrics_of_the_ranks_they_count(sets: list[list[float]]) -> None:
    values = np.unique(np.concatenate([np.array(s, dtype=float) for s in sets]))
    counts = np.array([[s.count(v) for v in values] for s in sets], dtype=np.int64).reshape(len(sets), len(values))
    together = metrics_from_counts(values, counts, 15)
    for i, rank in enumerate(map(np.array, sets)):
        for k in (5, 10, 50):
            assert together[f"R{k}"][i] == pytest.approx(100 * (rank < k).sum() / 15)
        assert together["R1"][i] == pytest.approx(100 * (rank == 0).sum() / 15)
        median, mean = (np.median(rank) + 1, np.mean(rank) + 1) if len(rank) else (np.nan, np.nan)
        assert together["MedR"][i] == pytest.approx(median, nan_ok=True)
        assert together["MeanR"][i] == pytest.approx(mean, nan_ok=True)


def test_ranks_of_tasks_are_those_behind_their_metrics() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 6, 3))
    found = task_ranks({"text": x, "video": y}, ["v2t_metrics", "t2va", "t2v"])
    assert list(found) == ["v2t", "t2v"]
    results = evaluate({"text": x, "video": y}, list(found), complete_dataset_size=8)
    assert results == {task: metrics_from_ranks(rank, 8) for task, rank in found.items()}


def test_table_with_intervals_and_published_figures() -> None:
    results = {"t2va": retrieval_metrics(np.eye(3)), "v2t": retrieval_metrics(np.eye(3))}
    intervals = {"t2va": {"R1": (91.25, 100.0), "MedR": (1.0, 1.5)}}
    table = metrics_table(results, intervals=intervals, published=find_published("msrvtt", ["t2va"]))
    columns = {column.header: list(column.cells) for column in table.columns}
    assert [str(cell) for cell in columns["task"]] == ["t2va", "  published [1]", "v2t"]
    assert columns["R@1"] == ["100.0\n91.2–100.0", "9.9", "100.0"]
    assert columns["R@50"] == ["100.0", "", "100.0"]
    assert columns["MedR"] == ["1\n1–1.5", "", "1"]
    assert str(table.caption).startswith("[1] t2va: Lin et al.")
    assert "Table 2, zero-shot, row Everything-At-Once" in str(table.caption)
