"""An index built from real files, searched, changed, interrupted and damaged."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from eao.config import FeaturesConfig
from eao.embedder import Embedder
from eao.errors import ConfigError, DataError, RetrievalError
from eao.retrieval.adding import AddReport
from eao.retrieval.clips import Filter
from eao.retrieval.index import Index
from eao.retrieval.search import Hit


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, clips: Path, embedder: Embedder) -> Index:
    index = Index(tmp_path_factory.mktemp("built") / "index", embedder)
    assert index.add(clips) == AddReport(indexed=4, clips=6)
    return index


@pytest.fixture
def folder(tmp_path: Path, clips: Path) -> Path:
    """A folder of its own, with two clips."""
    target = tmp_path / "videos"
    target.mkdir()
    for name in ("red.mp4", "it's green.mp4"):
        shutil.copy2(clips / name, target / name)
    return target


def test_every_file_is_found_and_long_ones_in_windows(built: Index, clips: Path) -> None:
    assert len(built) == 6
    hits = built.search("red square", k=10)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]
    assert {hit.file for hit in hits} == {str(path) for path in clips.rglob("*.mp4")}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.id == f"{hit.file}#t={hit.start:.2f},{hit.end:.2f}"
        assert 0 <= hit.start < hit.end <= 5.1


def test_an_embedded_query_finds_what_its_words_find(built: Index, embedder: Embedder, clips: Path) -> None:
    vector = embedder.embed(text="red square")[0]
    weights = {"video": 0.7, "audio": 0.3}
    where = Filter(max_duration=4)
    expected = built.search("red square", weights=weights, where=where, explain=True)
    assert built.search_vector(vector, weights, where=where, explain=True) == expected
    assert set(built.states()) == set(built.durations()) == {str(path) for path in clips.rglob("*.mp4")}
    cosine = built.vectors(expected[0].id)["video"] @ vector
    assert expected[0].explanation is not None
    assert cosine == pytest.approx(expected[0].explanation.matches["video"].cosine, abs=1e-6)
    assert built.vectors("nothing") == {}


def test_scores_are_the_cosines_of_the_best_window(built: Index, embedder: Embedder, clips: Path) -> None:
    query = embedder.embed(text="red square")[0]
    windows = embedder.embed_clips(clips / "long.mp4")
    assert [(round(w.start, 2), round(w.end, 2)) for w in windows] == [(0, 1.92), (1.92, 3.84), (3.08, 5)]
    for encoder in ("video-audio", "video", "audio"):
        cosines = [float(window.vectors[encoder] @ query) for window in windows]
        (hit,) = [h for h in built.search("red square", encoder=encoder) if h.file.endswith("long.mp4")]
        assert hit.score == pytest.approx(max(cosines), abs=1e-5)  # float32 in LanceDB
        assert hit.start == pytest.approx(windows[int(np.argmax(cosines))].start)


def test_a_video_and_a_sound_find_their_own_file(built: Index, clips: Path) -> None:
    for path in clips.glob("*.mp4"):
        if path.stem == "long":
            continue  # its query is its first window only
        for given in ({"video": path}, {"audio": path}, {"video": path, "audio": path}):
            best = built.search(**given, k=1)[0]
            assert best.file == str(path)
            assert best.score == pytest.approx(1, abs=1e-4)


def test_clips_without_sound_are_not_compared_by_sound(built: Index) -> None:
    assert not any("blue" in hit.file for hit in built.search("tone", encoder="audio"))
    by_both = {h.file: h.score for h in built.search("tone", weights={"video": 2, "audio": 2})}
    by_video = {h.file: h.score for h in built.search("tone", encoder="video")}
    (silent,) = [file for file in by_both if "blue" in file]
    assert by_both[silent] == pytest.approx(by_video[silent])
    (loud,) = [file for file in by_both if "red" in file]
    sound = next(h.score for h in built.search("tone", encoder="audio") if h.file == loud)
    assert by_both[loud] == pytest.approx((by_video[loud] + sound) / 2)


def test_k_limits_the_files_not_the_clips(built: Index) -> None:
    for k in (1, 2, 3):
        assert len({hit.file for hit in built.search("tone", k=k)}) == k


def test_queries_that_make_no_sense_are_errors(built: Index) -> None:
    with pytest.raises(ConfigError, match="k is 0"):
        built.search("red", k=0)
    with pytest.raises(DataError, match="vocabulary"):
        built.search("zebra")
    with pytest.raises(DataError, match="no words"):
        built.search("")
    with pytest.raises(ConfigError, match="nothing to look for"):
        built.search()
    with pytest.raises(ConfigError, match="no vectors of 'text'"):
        built.search("red", encoder="text")
    with pytest.raises(ConfigError, match="weight of audio"):
        built.search("red", weights={"audio": -1})
    with pytest.raises(ConfigError, match="both"):
        built.search("red", encoder="audio", weights={"audio": 1})


def test_adding_again_skips_replaces_and_reports(tmp_path: Path, folder: Path, embedder: Embedder) -> None:
    (folder / "broken.mp4").write_bytes((folder / "red.mp4").read_bytes()[:300])
    index = Index(tmp_path / "index", embedder)
    calls: list[tuple[int, int, str]] = []
    first = index.add(folder, progress=lambda *call: calls.append(call))
    assert (first.indexed, first.clips, first.skipped) == (2, 2, 0)
    assert len(first.failed) == 1
    assert "broken.mp4" in first.failed[0]
    assert calls[-1][:2] == (3, 3)

    assert index.add([folder / "red.mp4", folder]).skipped == 2
    assert len(index) == 2

    shutil.copy(folder / "it's green.mp4", folder / "red.mp4")
    again = index.add(folder)
    assert (again.indexed, again.skipped) == (1, 1)
    hits = Index(tmp_path / "index", embedder).search(video=folder / "it's green.mp4")
    assert [hit.score for hit in hits] == pytest.approx([1, 1], abs=1e-4)


def test_a_file_that_became_unreadable_loses_its_clips(tmp_path: Path, folder: Path, embedder: Embedder) -> None:
    index = Index(tmp_path / "index", embedder)
    index.add(folder)
    (folder / "red.mp4").write_bytes(b"no video")
    report = index.add(folder)
    assert (report.indexed, report.skipped, len(report.failed)) == (0, 1, 1)
    assert index.files == [str(folder / "it's green.mp4")]


def test_an_interrupted_run_keeps_its_work_and_resumes(tmp_path: Path, folder: Path, embedder: Embedder) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index(tmp_path / "index", embedder).add(folder, progress=interrupt)
    index = Index(tmp_path / "index", embedder)
    assert len(index) == 1
    assert (index.add(folder).indexed, len(index)) == (1, 2)


def test_clips_are_removed_by_id_and_by_file(tmp_path: Path, clips: Path, embedder: Embedder) -> None:
    index = Index(tmp_path / "index", embedder)
    index.add([clips / "long.mp4", clips / "it's green.mp4"])
    hit = next(h for h in index.search("red") if "long" in h.file)
    assert index.remove([hit.id]) == 1
    assert index.remove(str(clips / "it's green.mp4")) == 1
    assert (len(index), index.files) == (2, [str(clips / "long.mp4")])
    with pytest.raises(RetrievalError, match="no clip or file 'nothing'"):
        index.remove(["nothing"])


def test_a_folder_without_videos_leaves_no_index(tmp_path: Path, embedder: Embedder) -> None:
    (tmp_path / "videos").mkdir()
    index = Index(tmp_path / "index", embedder)
    with pytest.raises(DataError):
        index.add(tmp_path / "videos")
    assert not (tmp_path / "index" / "index.json").exists()
    with pytest.raises(RetrievalError, match="is empty"):
        index.search("red")


def test_another_model_is_refused_by_name(
    built: Index, make_embedder: Callable[[int], Embedder], embedder: Embedder
) -> None:
    other = make_embedder(1)
    other.source = "runs/other"
    with pytest.raises(RetrievalError) as error:
        Index(built.path, other)
    assert "runs/other" in str(error.value)
    assert embedder.model_hash[:12] in str(error.value)
    assert len(Index(built.path, make_embedder(0))) == len(built)


def test_other_features_are_refused(built: Index, embedder: Embedder) -> None:
    features = embedder.config.features.model_copy(
        update={"video_3d": embedder.config.features.video_3d.model_copy(update={"rate": 4.0})}
    )
    changed = Embedder(embedder.backend, config=embedder.config.model_copy(update={"features": features}))
    with pytest.raises(RetrievalError, match="at 2/s, not activation-motion at 4/s"):
        Index(built.path, changed)


def test_an_index_finds_its_model_again(tmp_path: Path, folder: Path, embedder: Embedder) -> None:
    import eao
    from eao.checkpoint import save_native

    save_native(tmp_path / "model", embedder.backend.model, embedder.config)
    Index(tmp_path / "index", tmp_path / "model").add(folder / "red.mp4")
    assert Index(tmp_path / "index").search("red")[0].file == str(folder / "red.mp4")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(eao.CheckpointError, match="model"):
        Index(tmp_path / "index").search("red")


def test_a_missing_or_damaged_index_is_an_error(tmp_path: Path, built: Index, embedder: Embedder) -> None:
    with pytest.raises(RetrievalError, match="no index at"):
        Index(tmp_path / "nowhere")
    copy = tmp_path / "copy"
    shutil.copytree(built.path, copy)
    with pytest.raises(RetrievalError, match="never saved"):
        Index(copy).search("red")
    metadata = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**metadata, "format": 99}))
    with pytest.raises(RetrievalError, match="format 99"):
        Index(copy)
    (copy / "index.json").write_text("{")
    with pytest.raises(RetrievalError, match="damaged"):
        Index(copy)


def test_features_give_the_same_index_without_decoding(tmp_path: Path, clips: Path, built: Index) -> None:
    from eao.features.extract import extract_folder

    files = [clips / "quiet" / "blue.mp4", clips / "long.mp4"]
    extract_folder(files, tmp_path / "features", built.embedder.config.features)
    index = Index(tmp_path / "index", built.embedder)
    assert index.add_features(tmp_path / "features").clips == 4
    assert index.files == sorted(map(str, files))
    for encoder in ("video-audio", "video", "audio"):
        expected = {hit.id: hit.score for hit in built.search("tone", encoder=encoder) if hit.file in index.files}
        found = {hit.id: hit.score for hit in index.search("tone", encoder=encoder)}
        assert found == pytest.approx(expected, abs=2e-3)  # features are stored as float16
    assert index.add_features(tmp_path / "features").skipped == 2
    assert index.add(files).skipped == 2


def test_features_of_a_file_that_was_replaced_since_do_not_pass_for_those_of_the_new_one(
    tmp_path: Path, folder: Path, embedder: Embedder
) -> None:
    from eao.features.extract import extract_folder

    features, config = tmp_path / "features", embedder.config.features
    extract_folder([folder], features, config)
    shutil.copy2(folder / "it's green.mp4", folder / "red.mp4")
    index = Index(tmp_path / "index", embedder)
    assert index.add_features(features).indexed == 2  # of the old file
    assert extract_folder([folder], features, config).extracted == ["red"]
    assert index.add_features(features).indexed == 1
    same = {hit.file: hit.score for hit in index.search("tone", encoder="video")}
    assert len(same) == 2 and len(set(same.values())) == 1


def test_features_of_another_kind_are_refused(tmp_path: Path, built: Index) -> None:
    with pytest.raises(DataError, match="holds no features"):
        built.add_features(tmp_path)
    (tmp_path / "features.yaml").write_text("video_2d: {backbone: efficientnet-lite0, rate: 1.0}\n")
    with pytest.raises(ConfigError, match="another configuration"):
        built.add_features(tmp_path)


def test_a_reader_sees_what_another_process_adds(tmp_path: Path, folder: Path, embedder: Embedder) -> None:
    writer = Index(tmp_path / "index", embedder)
    writer.add(folder / "red.mp4")
    reader = Index(tmp_path / "index", embedder)
    writer.add(folder)
    assert len(reader) == 2
    os.utime(folder / "red.mp4")
    assert writer.add(folder).indexed == 1
    assert len(reader) == 2


def write_clips(folder: Path, file: str, cuts: list[tuple[float, float]], features: FeaturesConfig) -> None:
    """A folder of features as `eao extract --clips` writes it: several clips of one file."""
    folder.mkdir(exist_ok=True)
    (folder / "features.yaml").write_text(yaml.safe_dump(features.identity()))
    rng = np.random.default_rng(0)
    lines = []
    for number, (start, end) in enumerate(cuts):
        rows, frames = max(1, round(2 * (end - start))), round(100 * (end - start))
        np.savez(folder / f"c{number}_3d.npz", features=rng.standard_normal((rows, 98)).astype(np.float16))
        np.savez(folder / f"c{number}_spec.npz", arr_0=(10 * rng.standard_normal((40, frames)) - 40).astype(np.float16))
        record = {"id": f"c{number}", "file": file, "start": start, "end": end, "duration": 9.0}
        lines.append(json.dumps({**record, "video_2d": None, "video_3d": rows, "audio": frames}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def test_clips_of_an_extraction_are_indexed_as_they_are(tmp_path: Path, embedder: Embedder) -> None:
    cuts = [(0.0, 1.5), (1.5, 2.5), (4.0, 5.0)]
    index = Index(tmp_path / "index", embedder)
    write_clips(tmp_path / "features", "/gone/film.mp4", cuts[:2], embedder.config.features)
    assert index.add(tmp_path / "features") == AddReport(indexed=1, clips=2)
    assert index.add(tmp_path / "features") == AddReport(skipped=1)
    # The extraction had been broken off: now it is whole.
    write_clips(tmp_path / "features", "/gone/film.mp4", cuts, embedder.config.features)
    assert index.add(tmp_path / "features") == AddReport(indexed=1, clips=3)
    (hit,) = index.search("red square")
    assert {(clip.start, clip.end) for clip in hit.clips} <= set(cuts)
    assert len(index) == 3
    (hit,) = index.search("red square", where=Filter(min_duration=9, max_duration=9))
    assert hit.file == "/gone/film.mp4"


def test_a_file_lists_its_clips_that_would_be_found_on_their_own(built: Index) -> None:
    hits = built.search("red square", k=10)
    worst = hits[-1].score
    for hit in hits:
        assert (hit.clips[0].id, hit.clips[0].score) == (hit.id, hit.score)
        scores = [clip.score for clip in hit.clips]
        assert scores == sorted(scores, reverse=True)
        assert all(score >= worst for score in scores)
    everything = {clip.id: clip.score for hit in built.search("red square", k=10) for clip in hit.clips}
    long = next(hit for hit in hits if hit.file.endswith("long.mp4"))
    windows = built.embedder.embed_clips(long.file)
    query = built.embedder.embed(text="red square")[0]
    fitting = sum(float(w.vectors["video-audio"] @ query) >= worst for w in windows)
    assert sum("long.mp4" in name for name in everything) == fitting


def test_an_explanation_sets_each_cosine_against_that_of_random_clips(built: Index, embedder: Embedder) -> None:
    query = embedder.embed(text="green tone")[0]
    usual = {e: np.concatenate([x for _, x in built._store.scan(e)]) @ query for e in built.encoders}
    for hit in built.search("green tone", explain=True):
        found = hit.explanation
        assert found is not None
        assert set(found.matches) == {"video-audio", "video", *([] if "blue" in hit.file else ["audio"])}
        assert found.matches["video-audio"].cosine == pytest.approx(hit.score, abs=1e-5)
        for encoder, match in found.matches.items():
            # All six clips are in the sample.
            expected = (match.cosine - usual[encoder].mean()) / usual[encoder].std()
            assert match.standard_score == pytest.approx(expected, abs=1e-3)
        assert found.strongest == max(found.matches, key=lambda e: found.matches[e].standard_score)
    assert built.search("green tone")[0].explanation is None


def test_words_can_be_joined_with_a_video_or_a_sound(built: Index, clips: Path, embedder: Embedder) -> None:
    for given in ({"video": clips / "red.mp4"}, {"audio": clips / "it's green.mp4"}):
        query = embedder.embed(text="blue", **given)[0]
        hit = built.search("blue", **given)[0]
        clip = built._store.vectors([hit.id])[hit.id]["video-audio"]
        assert hit.score == pytest.approx(float(clip @ query), abs=1e-5)


def test_filters_choose_files(built: Index, clips: Path) -> None:
    assert [hit.file for hit in built.search("red", where=Filter(folder=clips / "quiet"))] == [
        str(clips / "quiet/blue.mp4")
    ]
    assert {Path(hit.file).name for hit in built.search("red", where=Filter(min_duration=1.4))} == {
        "red.mp4",
        "long.mp4",
    }
    assert built.search("red", where=Filter(before=datetime.datetime(2000, 1, 1))) == []


def test_threads_and_tasks_search_while_files_are_added(tmp_path: Path, clips: Path, embedder: Embedder) -> None:
    index = Index(tmp_path / "index", embedder)
    index.add(clips / "red.mp4")

    async def all_at_once() -> tuple[AddReport, AddReport, list[list[Hit]]]:
        adding = asyncio.create_task(index.aadd(clips))
        again = asyncio.create_task(index.aadd(clips))
        found = await asyncio.gather(*(index.asearch("red square", k=1) for _ in range(8)))
        return await adding, await again, list(found)

    first, second, found = asyncio.run(all_at_once())
    assert first.indexed + second.indexed == 3
    assert first.skipped + second.skipped == 5
    assert len(index) == 6
    assert {hits[0].file for hits in found} <= {str(path) for path in clips.rglob("*.mp4")}
    assert asyncio.run(index.asearch("red square")) == index.search("red square")


def test_statistics_and_compaction(tmp_path: Path, folder: Path, embedder: Embedder) -> None:
    index = Index(tmp_path / "index", embedder)
    index.add(folder)
    index.remove(str(folder / "red.mp4"))
    index.compact()
    stats = index.stats()
    assert (stats.clips, stats.files, stats.embedding_dim, stats.layout) == (1, 1, 32, "float32")
    assert stats.megabytes is not None and 0 < stats.megabytes < 1


def test_names_that_are_not_utf8_are_reported(tmp_path: Path, folder: Path, embedder: Embedder) -> None:
    shutil.copy(folder / "red.mp4", os.fsencode(folder) + b"/\xff.mp4")
    report = Index(tmp_path / "index", embedder).add(folder)
    assert (report.indexed, len(report.failed)) == (2, 1)
    assert "not valid UTF-8" in report.failed[0]


def test_an_index_at_a_url_and_in_milvus_answers_as_one_in_a_folder(
    tmp_path: Path, clips: Path, built: Index, embedder: Embedder
) -> None:
    expected = built.search("red square", explain=True)
    for address in (f"file://{tmp_path}/index", str(tmp_path / "clips.db")):
        index = Index(address, embedder)
        assert index.add(clips).clips == 6
        assert Index(address, embedder).add(clips).skipped == 4
        found = Index(address, embedder).search("red square", explain=True)
        assert [hit.id for hit in found] == [hit.id for hit in expected]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
