"""The table of clips, with vectors made up for the purpose."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from eao.errors import MissingDependencyError, RetrievalError
from eao.retrieval.clips import FileState, Row
from eao.retrieval.table import ClipTable

DIM = 16  # LanceDB treats lists of at least ten numbers as vectors, with checks of their own
ENCODERS = ("video-audio", "audio")


def make_rows(file: str, starts: range, seed: int = 0, silent: bool = False) -> list[Row]:
    random = np.random.default_rng(seed)
    rows = []
    for start in starts:
        vectors = {e: random.normal(size=DIM).astype(np.float32) for e in ENCODERS if not (silent and e == "audio")}
        rows.append(Row(f"{file}#t={start}", file, start, start + 1, 9.5, FileState(7, 8), vectors))
    return rows


@pytest.fixture
def table(tmp_path: Path) -> ClipTable:
    return ClipTable(tmp_path, ENCODERS, DIM)


def test_an_empty_table_has_nothing_and_writes_nothing(table: ClipTable, tmp_path: Path) -> None:
    assert (len(table), table.files(), table.remove(["x"])) == (0, {}, 0)
    assert table.nearest(np.ones(DIM, np.float32), "audio", 5) == []
    assert list(tmp_path.iterdir()) == []


def test_clips_of_a_file_are_replaced_together(table: ClipTable) -> None:
    names = ["/it's; DROP TABLE.mp4", '/"ünï"/%_.mp4']
    for name in names:
        table.replace([name], make_rows(name, range(3)))
    table.replace([names[0]], make_rows(names[0], range(1, 2), seed=1))
    assert len(table) == 4
    assert table.files() == dict.fromkeys(names, FileState(7, 8))
    table.replace(names, [])
    assert len(table) == 0


def test_clips_are_removed_by_id_or_file(table: ClipTable) -> None:
    table.replace(["a", "b"], make_rows("a", range(3)) + make_rows("b", range(2)))
    assert table.remove(["a#t=1", "a#t=9"]) == 1
    assert table.remove(["b"]) == 2
    assert len(table) == 2


def test_scores_are_exact_cosines_and_missing_vectors_are_left_out(table: ClipTable) -> None:
    rows = make_rows("a", range(30)) + make_rows("quiet", range(3), seed=1, silent=True)
    table.replace(["a", "quiet"], rows)
    query = np.random.default_rng(2).normal(size=DIM).astype(np.float32)
    for encoder, count in (("video-audio", 33), ("audio", 30)):
        having = [row for row in rows if encoder in row.vectors]
        expected = {
            row.id: float(row.vectors[encoder] @ query / np.linalg.norm(row.vectors[encoder]) / np.linalg.norm(query))
            for row in having
        }
        found = table.nearest(query, encoder, 100)
        assert len(found) == count
        assert {clip.id: clip.score for clip in found} == pytest.approx(expected, abs=1e-5)
        assert [clip.id for clip in found] == sorted(expected, key=lambda name: -expected[name])


def test_another_process_is_seen_and_many_commits_are_gathered(table: ClipTable, tmp_path: Path) -> None:
    reader = ClipTable(tmp_path, ENCODERS, DIM)
    assert len(reader) == 0
    for i in range(70):
        table.replace([f"f{i}"], make_rows(f"f{i}", range(1), seed=i))
    assert len(reader) == 70
    before = reader.nearest(np.ones(DIM, np.float32), "audio", 100)
    table.tidy()
    assert reader.nearest(np.ones(DIM, np.float32), "audio", 100) == before


def test_embeddings_that_are_not_finite_are_refused(table: ClipTable) -> None:
    (row,) = make_rows("a", range(1))
    row.vectors["audio"][3] = np.nan
    with pytest.raises(RetrievalError, match="embedding of a is not finite"):
        table.replace(["a"], [row])


def test_damage_is_an_error_that_names_the_index(table: ClipTable, tmp_path: Path) -> None:
    table.replace(["a"], make_rows("a", range(2)))
    shutil.rmtree(tmp_path / "clips.lance" / "_versions")
    with pytest.raises(RetrievalError, match=str(tmp_path)):
        len(ClipTable(tmp_path, ENCODERS, DIM))


def test_a_table_without_the_vectors_asked_for_is_an_error(table: ClipTable, tmp_path: Path) -> None:
    table.replace(["a"], make_rows("a", range(2)))
    with pytest.raises(RetrievalError, match="no vectors of video"):
        len(ClipTable(tmp_path, ("video",), DIM))


def test_without_lancedb_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(MissingDependencyError, match=r"eao\[index\]"):
        ClipTable(tmp_path, ENCODERS, DIM)
