"""Clips in LanceDB: what only its table does. What all stores do is in test_clips.py."""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from eao.errors import MissingDependencyError, RetrievalError
from eao.retrieval.clips import Layout
from eao.retrieval.table import ClipTable

from .rows import DIM, ENCODERS, make_rows

QUERY = np.random.default_rng(2).normal(size=DIM).astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> ClipTable:
    return ClipTable(tmp_path, ENCODERS, DIM)


def nearest(table: ClipTable, encoder: str = "video-audio", **options: bool) -> list[tuple[str, float]]:
    return [(clip.id, round(clip.score, 4)) for clip in table.nearest(QUERY, encoder, 10, **options)]


def test_an_empty_table_writes_nothing(table: ClipTable, tmp_path: Path) -> None:
    assert (len(table), table.remove(["x"])) == (0, 0)
    table.tidy()
    table.compact()
    assert list(tmp_path.iterdir()) == []


def test_another_process_is_seen_and_many_commits_are_gathered(table: ClipTable, tmp_path: Path) -> None:
    reader = ClipTable(tmp_path, ENCODERS, DIM)
    assert len(reader) == 0
    for i in range(70):
        table.replace([f"f{i}"], make_rows(f"f{i}", range(1), seed=i))
    assert len(reader) == 70
    before = reader.nearest(QUERY, "audio", 100)
    table.tidy()
    assert reader.nearest(QUERY, "audio", 100) == before


def test_compacting_frees_what_was_removed(table: ClipTable) -> None:
    for i in range(10):
        table.replace([f"f{i}"], make_rows(f"f{i}", range(100), seed=i))
    table.remove([f"f{i}" for i in range(9)])
    before, found = table.size(), nearest(table)
    table.compact()
    assert before is not None
    assert (size := table.size()) is not None and size < before / 3
    assert nearest(table) == found


@pytest.mark.parametrize(("compression", "reduce"), [("none", 8), ("int8", 0), ("int8", 8), ("pq", 0), ("pq", 8)])
def test_every_layout_finds_the_same_and_new_clips_too(table: ClipTable, compression: str, reduce: int) -> None:
    rows = make_rows("a", range(500)) + make_rows("quiet", range(100), seed=1, silent=True)
    table.replace(["a", "quiet"], rows)
    expected = {encoder: nearest(table, encoder) for encoder in ENCODERS}
    table.optimize("float32", compression, reduce)  # type: ignore[arg-type]
    assert (table.layout.compression, table.layout.reduce) == (compression, reduce)
    for encoder in ENCODERS:
        # 64 candidates of 600, ranked by full vectors, hold the first ten also where half of the numbers are left out.
        assert nearest(table, encoder) == expected[encoder]
        assert nearest(table, encoder, exact=True) == expected[encoder]
    (new,) = make_rows("new", range(1), vector=QUERY)
    table.replace(["new"], [new])
    assert nearest(table)[0] == (new.id, 1.0)
    assert table.unindexed() == (1 if compression != "none" else 0)
    table.tidy()
    assert (table.unindexed(), nearest(table)[0]) == (0, (new.id, 1.0))
    assert table.remove(["new"]) == 1
    assert nearest(table) == expected["video-audio"]
    table.optimize("float32", "none", 0)
    assert table.layout == Layout()
    assert nearest(table) == expected["video-audio"]


def test_half_precision_halves_the_vectors_and_stays(table: ClipTable) -> None:
    table.replace(["a", "b"], make_rows("a", range(600)) + make_rows("b", range(10), seed=1, silent=True))
    expected = table.nearest(QUERY, "audio", 10)
    table.optimize("float16", "none", 0)
    found = table.nearest(QUERY, "audio", 10)
    assert [clip.score for clip in found] == pytest.approx([clip.score for clip in expected], abs=1e-3)
    assert table.vectors(["b#t=1"])["b#t=1"].keys() == {"video-audio"}
    table.replace(["c"], make_rows("c", range(1), vector=QUERY))
    assert table.nearest(QUERY, "audio", 1)[0].id == "c#t=0"
    table.optimize("float16", "int8", 8)
    assert str(table.layout) == "float16, reduced to 8, int8"
    assert table.nearest(QUERY, "audio", 1)[0].id == "c#t=0"
    with pytest.raises(RetrievalError, match="half precision"):
        table.optimize("float32", "none", 0)


def test_an_encoder_with_few_vectors_is_searched_one_by_one(table: ClipTable) -> None:
    rows = make_rows("a", range(20)) + make_rows("quiet", range(400), seed=1, silent=True)
    table.replace(["a", "quiet"], rows)
    expected = {encoder: nearest(table, encoder) for encoder in ENCODERS}
    table.optimize("float32", "pq", 8)
    assert {encoder: nearest(table, encoder) for encoder in ENCODERS} == expected


def test_searching_goes_on_while_rows_and_layout_change(table: ClipTable, tmp_path: Path) -> None:
    table.replace(["a"], make_rows("a", range(400)))
    best = nearest(table)[0]
    reader = ClipTable(tmp_path, ENCODERS, DIM)
    stop = threading.Event()
    seen: list[object] = []

    def search() -> None:
        while not stop.is_set():
            try:
                seen.append(nearest(reader)[0])
            except Exception as error:  # a thread's exception would be lost
                seen.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(5):
        table.replace([f"f{i}"], make_rows(f"f{i}", range(20), vector=-QUERY))
    table.optimize("float32", "int8", 8)
    table.remove(["f0"])
    table.tidy()
    table.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) == {best}


def test_a_missing_or_damaged_projection_is_an_error_that_says_what_to_do(table: ClipTable, tmp_path: Path) -> None:
    table.replace(["a"], make_rows("a", range(300)))
    table.optimize("float32", "none", 8)
    (file,) = tmp_path.glob("projection-*.npz")
    file.write_bytes(b"PK\x03\x04 broken")
    for damage in (lambda: None, file.unlink):
        damage()
        with pytest.raises(RetrievalError, match=file.name):
            ClipTable(tmp_path, ENCODERS, DIM).nearest(QUERY, "audio", 1)
    mended = ClipTable(tmp_path, ENCODERS, DIM)
    mended.optimize("float32", "none", 0)
    assert len(mended.nearest(QUERY, "audio", 1)) == 1


def test_damage_is_an_error_that_names_the_index(table: ClipTable, tmp_path: Path) -> None:
    table.replace(["a"], make_rows("a", range(2)))
    shutil.rmtree(tmp_path / "clips.lance" / "_versions")
    with pytest.raises(RetrievalError, match=str(tmp_path)):
        len(ClipTable(tmp_path, ENCODERS, DIM))


def test_vectors_that_are_cut_off_are_an_error_that_names_the_index(table: ClipTable, tmp_path: Path) -> None:
    table.replace(["a"], make_rows("a", range(200)))
    for file in (tmp_path / "clips.lance" / "data").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    damaged = ClipTable(tmp_path, ENCODERS, DIM)
    for read in (
        lambda: damaged.nearest(QUERY, "audio", 3),
        lambda: damaged.vectors(["a#0"]),
        lambda: damaged.sample("audio", 3),
    ):
        with pytest.raises(RetrievalError, match=str(tmp_path)):
            read()


def test_a_making_that_was_killed_at_once_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "clips.lance").mkdir()
    table = ClipTable(tmp_path, ENCODERS, DIM)
    assert len(table) == 0
    table.replace(["a"], make_rows("a", range(2)))
    assert len(table) == 2


def test_a_table_without_the_vectors_asked_for_is_an_error(table: ClipTable, tmp_path: Path) -> None:
    table.replace(["a"], make_rows("a", range(2)))
    with pytest.raises(RetrievalError, match="no vectors of video"):
        len(ClipTable(tmp_path, ("video",), DIM))


def test_without_lancedb_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(MissingDependencyError, match=r"'\.\[index\]"):
        ClipTable(tmp_path, ENCODERS, DIM)


@pytest.mark.parametrize("reduce", [0, 8])
def test_optimizing_that_was_killed_before_its_index_was_built_is_searched_one_by_one(
    table: ClipTable, reduce: int
) -> None:
    table.replace(["a"], make_rows("a", range(400)))
    expected = nearest(table)
    table.optimize("float32", "int8", reduce)
    for index in table._table.list_indices():
        table._table.drop_index(index.name)
    assert nearest(table) == expected
    table.optimize("float32", "int8", reduce)
    assert (nearest(table), len(list(table._table.list_indices()))) == (expected, 2)
