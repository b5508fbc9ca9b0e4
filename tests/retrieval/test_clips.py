"""What every store of clips does alike: LanceDB in a folder and by URL, and Milvus Lite."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from eao.errors import ConfigError, RetrievalError
from eao.retrieval.clips import ClipStore, Filter, Layout, Row
from eao.retrieval.location import Location
from eao.retrieval.milvus_client import connect

from .rows import DIM, ENCODERS, HOSTILE, make_rows

QUERY = np.random.default_rng(2).normal(size=DIM).astype(np.float32)


@pytest.fixture(params=["folder", "url", "milvus"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ClipStore:
    address = {"folder": f"{tmp_path}/index", "url": f"file://{tmp_path}/index", "milvus": f"{tmp_path}/clips.db"}
    return Location(address[request.param]).open(ENCODERS, DIM)


def cosine(vector: np.ndarray) -> float:
    return float(vector @ QUERY / np.linalg.norm(vector) / np.linalg.norm(QUERY))


def test_an_empty_store_has_nothing(store: ClipStore) -> None:
    assert (len(store), store.files(), store.remove(["x"]), store.vectors(["x"])) == (0, {}, 0, {})
    assert store.nearest(QUERY, "audio", 5) == []
    assert store.sample("audio", 5).shape == (0, DIM)
    assert (store.layout, store.unindexed(), list(store.scan("audio"))) == (Layout(), 0, [])


def test_clips_of_a_file_are_replaced_together_whatever_its_name(store: ClipStore) -> None:
    for name in HOSTILE:
        store.replace([name], make_rows(name, range(3)))
    assert store.files() == {name: make_rows(name, range(1))[0].state for name in HOSTILE}
    store.replace([HOSTILE[0]], make_rows(HOSTILE[0], range(1, 2), seed=1))
    assert len(store) == 3 * len(HOSTILE) - 2
    store.replace(HOSTILE[1:], [])
    assert (len(store), list(store.files())) == (1, [HOSTILE[0]])


def test_durations_and_changes_are_told(store: ClipStore) -> None:
    assert store.durations() == {}
    before = store.version()
    store.replace(["/a", "/b"], make_rows("/a", range(2), duration=3.5) + make_rows("/b", range(1), duration=7.0))
    assert store.durations() == {"/a": 3.5, "/b": 7.0}
    if before is not None:  # Milvus does not tell
        changed = store.version()
        assert changed != before and store.version() == changed
        store.remove(["/a"])
        assert store.version() not in (before, changed)
    else:
        store.remove(["/a"])
    assert store.durations() == {"/b": 7.0}


def test_names_select_only_themselves(store: ClipStore) -> None:
    for name in HOSTILE:
        store.replace([name], make_rows(name, range(2)))
    for count, name in enumerate(HOSTILE, 1):
        assert store.remove([name]) == 2, name
        assert len(store) == 2 * (len(HOSTILE) - count)
        assert name not in store.files()


def test_clips_are_removed_by_id_or_file(store: ClipStore) -> None:
    store.replace(["/a", "/b"], make_rows("/a", range(3)) + make_rows("/b", range(2)))
    assert store.remove(["/a#t=1", "/a#t=9"]) == 1
    assert set(store.files()) == {"/a", "/b"}
    assert store.remove(["/b"]) == 2
    assert store.remove(["/a#t=0", "/a#t=2"]) == 2
    assert (len(store), store.files()) == (0, {})


def test_scores_are_exact_cosines_and_missing_vectors_are_left_out(store: ClipStore) -> None:
    rows = make_rows("/a", range(30)) + make_rows("/quiet", range(3), seed=1, silent=True)
    store.replace(["/a", "/quiet"], rows)
    for encoder, count in (("video-audio", 33), ("audio", 30)):
        expected = {row.id: cosine(row.vectors[encoder]) for row in rows if encoder in row.vectors}
        found = store.nearest(QUERY, encoder, 100)
        assert len(found) == count
        assert {clip.id: clip.score for clip in found} == pytest.approx(expected, abs=1e-5)
        assert [clip.id for clip in found] == sorted(expected, key=lambda name: -expected[name])
        assert {i for ids, _ in store.scan(encoder) for i in ids} == set(expected)


def test_vectors_come_back_by_id_and_at_random(store: ClipStore) -> None:
    rows = make_rows("/a", range(9)) + make_rows("/quiet", range(1), silent=True)
    store.replace(["/a", "/quiet"], rows)
    found = store.vectors([rows[2].id, rows[-1].id, "/none"])
    assert found.keys() == {rows[2].id, rows[-1].id}
    assert {name: vectors.keys() for name, vectors in found.items()} == {
        row.id: row.vectors.keys() for row in rows[2::7]
    }
    np.testing.assert_array_equal(found[rows[2].id]["audio"], rows[2].vectors["audio"])
    sample = store.sample("video-audio", 4)
    assert sample.shape == (4, DIM)
    known = {row.vectors["video-audio"].tobytes() for row in rows}
    assert len({x.tobytes() for x in sample} & known) == 4
    np.testing.assert_array_equal(sample, store.sample("video-audio", 4))


def filtered(store: ClipStore, where: Filter) -> set[str]:
    return {clip.file for clip in store.nearest(QUERY, "video-audio", 100, where.conditions())}


def test_filters_select_by_folder_duration_and_date(store: ClipStore) -> None:
    day = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    rows: list[Row] = []
    for number, file in enumerate(("/a/x.mp4", "/a/b/y.mp4", "/a0.mp4", "/ab/z.mp4")):
        moment = int((day + datetime.timedelta(days=number)).timestamp()) * 10**9
        rows += make_rows(file, range(2), seed=number, duration=10.0 * (number + 1), modified=moment)
    store.replace(sorted({row.file for row in rows}), rows)
    assert filtered(store, Filter(folder="/a")) == {"/a/x.mp4", "/a/b/y.mp4"}
    assert filtered(store, Filter(folder="/")) == {row.file for row in rows}
    assert filtered(store, Filter(min_duration=20, max_duration=30)) == {"/a/b/y.mp4", "/a0.mp4"}
    two_days = datetime.timedelta(days=2)
    assert filtered(store, Filter(after=day + two_days)) == {"/a0.mp4", "/ab/z.mp4"}
    assert filtered(store, Filter(before=day + two_days)) == {"/a/x.mp4", "/a/b/y.mp4"}
    assert filtered(store, Filter(folder="/a", after=day + two_days)) == set()


def test_values_of_filters_are_never_read_as_a_query(store: ClipStore) -> None:
    files = [f"/{name.strip('/')}/clip.mp4" for name in HOSTILE]
    store.replace(files, [row for file in files for row in make_rows(file, range(1))])
    for file in files:
        assert filtered(store, Filter(folder=file.removesuffix("/clip.mp4"))) == {file}


def test_filters_that_nothing_fulfils_are_errors() -> None:
    with pytest.raises(ConfigError, match="at least 3 s and at most 2 s"):
        Filter(min_duration=3, max_duration=2).conditions()
    day = datetime.datetime(2026, 3, 1)
    with pytest.raises(ConfigError, match="after 2026-03-01"):
        Filter(after=day, before=day).conditions()


def test_embeddings_that_are_not_finite_are_refused(store: ClipStore) -> None:
    (row,) = make_rows("/a", range(1))
    row.vectors["audio"][3] = np.nan
    with pytest.raises(RetrievalError, match="embedding of /a is not finite"):
        store.replace(["/a"], [row])
    assert len(store) == 0


def test_clips_with_one_id_are_stored_once(store: ClipStore) -> None:
    store.replace(["/a"], make_rows("/a", range(2)) + make_rows("/a", range(2)))
    assert len(store) == 2


def test_too_few_clips_to_learn_from_are_an_error(store: ClipStore) -> None:
    store.replace(["/a"], make_rows("/a", range(20)))
    with pytest.raises(RetrievalError, match="20 clips are too few for int8"):
        store.optimize("float32", "int8", 0)
    assert store.layout.exact


def test_an_approximate_index_is_used_ranks_exactly_and_is_taken_away(store: ClipStore) -> None:
    rows = make_rows("/a", range(600))
    store.replace(["/a"], rows)
    before = store.nearest(QUERY, "video-audio", 10)
    store.optimize("float32", "int8", 0)
    assert store.layout.compression == "int8"
    after = store.nearest(QUERY, "video-audio", 10)
    assert [clip.id for clip in after] == [clip.id for clip in before]
    assert [clip.score for clip in after] == pytest.approx([clip.score for clip in before], abs=1e-5)
    added = make_rows("/new", range(1), vector=QUERY)
    store.replace(["/new"], added)
    assert store.nearest(QUERY, "video-audio", 3)[0].id == added[0].id
    store.optimize("float32", "none", 0)
    assert store.layout == Layout()
    assert store.nearest(QUERY, "video-audio", 1)[0].id == added[0].id


def test_what_another_process_left_unloaded_and_without_an_index_is_repaired(tmp_path: Path) -> None:
    address = str(tmp_path / "clips.db")
    store = Location(address).open(ENCODERS, DIM)
    store.replace(["/a"], make_rows("/a", range(5)))
    expected = store.nearest(QUERY, "audio", 5)
    client, clips = connect(address)
    for collection, field in ((clips, "vector_audio"), (f"{clips}_notes", "nothing")):
        client.release_collection(collection)
        client.drop_index(collection, index_name=f"{field}_idx")
    again = Location(address).open(ENCODERS, DIM)
    assert (len(again), list(again.files()), again.nearest(QUERY, "audio", 5)) == (5, ["/a"], expected)


def test_a_folder_that_a_killed_process_left_of_a_collection_is_in_nobodys_way(tmp_path: Path) -> None:
    address = tmp_path / "clips.db"
    client, clips = connect(str(address))
    for collection in (clips, f"{clips}_notes"):
        (address / "collections" / collection).mkdir(parents=True)
        assert not client.has_collection(collection)
    store = Location(str(address)).open(ENCODERS, DIM)
    store.replace(["/a"], make_rows("/a", range(5)))
    assert (len(store), list(store.files())) == (5, ["/a"])
