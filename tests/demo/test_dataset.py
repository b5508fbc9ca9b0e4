"""The data set as a whole: its plan, its files, resuming and what happens to broken stamps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from eao.demo import dataset
from eao.demo.captions import OPPOSITES
from eao.demo.dataset import build_dataset, plan
from eao.demo.stamps import Stamp
from eao.errors import DataError


def read_records(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "captions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def built(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> dataset.DatasetSummary:
    """The miniature stamps, rendered in this process. Read only."""
    return build_dataset(tmp_path_factory.mktemp("built"), miniature, workers=0)


def stamp(index: int, speech: bool = True, effect: bool = False) -> Stamp:
    recordings = {"fr": Path("fr.ogg"), "es": Path("es.ogg")} if speech else {}
    return Stamp(
        f"a-{index}", Path("a.png"), f"A {index}", f"{index}", "a", "", recordings, Path("e.ogg") if effect else None
    )


def test_every_line_names_a_file_with_the_streams_it_promises(built: dataset.DatasetSummary) -> None:
    records = read_records(built.root)
    assert len(records) == sum(built.clips.values()) == 2 * sum(built.objects.values())
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        assert record["file"] == f"videos/{record['id']}.mp4"
        assert record["id"].startswith(record["split"] + "/")
        assert record["caption"].startswith(record["description"] + ", ")
        with av.open(str(built.root / record["file"])) as container:
            assert bool(container.streams.audio) == (record["language"] is not None)
    assert sum(record["language"] is None for record in records) == built.without_audio


def test_the_folder_holds_the_clips_and_the_licence_and_nothing_else(built: dataset.DatasetSummary) -> None:
    assert {path.name for path in built.root.iterdir()} == {
        "videos",
        "captions.jsonl",
        "dataset.json",
        "LICENSE-stamps.txt",
    }
    files = {path.relative_to(built.root).as_posix() for path in (built.root / "videos").rglob("*") if path.is_file()}
    assert files == {record["file"] for record in read_records(built.root)}
    assert "Copyright of the stamps" in (built.root / "LICENSE-stamps.txt").read_text(encoding="utf-8")


def test_each_gallery_object_has_one_gallery_clip_and_one_of_the_opposite_motion(built: dataset.DatasetSummary) -> None:
    by_object: dict[str, list[dict[str, Any]]] = {}
    for record in read_records(built.root):
        by_object.setdefault(record["object"], []).append(record)
    assert built.objects["test"] >= 2
    for pair in by_object.values():
        motions = {record["motion"] for record in pair}
        assert len(motions) == 2
        if pair[0]["split"] == "train":
            assert not any(record["gallery"] for record in pair)
        else:
            assert sum(record["gallery"] for record in pair) == 1
            assert any(motions == set(opposite) for opposite in OPPOSITES)


def test_french_is_spoken_and_spanish_only_where_there_is_no_french(miniature: Path, tmp_path: Path) -> None:
    planned = plan({"train": dataset.read_stamps(miniature)})
    languages = {item.stamp.noun: item.language for item in planned if item.clip.has_audio}
    assert languages.pop("owl") == "es"
    assert set(languages.values()) == {"fr"}


def test_about_a_tenth_of_the_clips_has_no_audio_whatever_the_split() -> None:
    for split in ("train", "test"):
        planned = plan({split: [stamp(index) for index in range(1000)]})
        # 2,000 draws at 0.08: three standard deviations are 0.018.
        assert sum(not item.clip.has_audio for item in planned) / len(planned) == pytest.approx(0.08, abs=0.02)


def test_a_stamp_without_speech_sounds_by_its_effect_or_not_at_all() -> None:
    with_effect = plan({"train": [stamp(index, speech=False, effect=True) for index in range(50)]})
    assert all(item.clip.effect is not None and item.language is None for item in with_effect)
    assert sum(item.clip.has_audio for item in with_effect) > 75
    assert not any(item.clip.has_audio for item in plan({"train": [stamp(index, speech=False) for index in range(50)]}))


def test_the_motions_are_all_used_equally() -> None:
    planned = plan({"test": [stamp(index) for index in range(600)]})
    counts = {motion: sum(item.clip.motion == motion for item in planned) for motion in dataset.MOTIONS}
    assert all(count == pytest.approx(200, abs=45) for count in counts.values())


def test_a_second_build_renders_nothing_and_a_lost_clip_alone_comes_back(
    built: dataset.DatasetSummary, miniature: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(built.root, tmp_path / "copy"))
    before = (root / "captions.jsonl").read_bytes()
    assert build_dataset(root, miniature, workers=0).rendered == 0
    lost = root / read_records(root)[3]["file"]
    content = lost.read_bytes()
    lost.unlink()
    calls: list[tuple[int, int, str]] = []
    again = build_dataset(root, miniature, workers=0, progress=lambda *call: calls.append(call))
    assert again.rendered == 1
    assert lost.read_bytes() == content
    assert (root / "captions.jsonl").read_bytes() == before
    total = len(read_records(root))
    assert calls == [(total - 1, total, ""), (total, total, f"{lost.parent.name}/{lost.stem}")]


def test_what_a_killed_process_left_behind_is_removed(
    built: dataset.DatasetSummary, miniature: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(built.root, tmp_path / "copy"))
    old, young = (root / f"videos/train/.{name}.tmp.mp4" for name in ("old", "young"))
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    build_dataset(root, miniature, workers=0)
    assert (old.exists(), young.exists()) == (False, True)


def test_two_processes_make_the_same_files_as_none(
    built: dataset.DatasetSummary, miniature: Path, tmp_path: Path
) -> None:
    summary = build_dataset(tmp_path / "two", miniature, limit_objects=5, workers=2)
    assert summary.rendered == sum(summary.clips.values())
    assert summary.clips["train"] < built.clips["train"]
    for record in read_records(summary.root):
        assert (summary.root / record["file"]).read_bytes() == (built.root / record["file"]).read_bytes()


def test_an_interrupt_leaves_whole_clips_and_the_next_build_goes_on(
    built: dataset.DatasetSummary, miniature: Path, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(tmp_path, miniature, limit_objects=3, workers=2, progress=interrupt)
    there = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "videos").rglob("*") if path.is_file()}
    assert len(there) >= 4
    for file in there:
        assert (tmp_path / file).read_bytes() == (built.root / file).read_bytes()
    summary = build_dataset(tmp_path, miniature, limit_objects=3, workers=0)
    assert summary.rendered == sum(summary.clips.values()) - len(there)


def test_a_broken_stamp_is_left_out_with_a_reason(
    miniature: Path, tmp_path: Path, write_stamp: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    stamps = Path(shutil.copytree(miniature / "food", tmp_path / "stamps/food")).parent
    (stamps / "food/apple.png").unlink(missing_ok=True)
    write_stamp(stamps / "food", "plum", "A plum.")
    (stamps / "food/plum.png").write_bytes(b"no picture")
    summary = build_dataset(tmp_path / "out", stamps, workers=0)
    assert list(summary.skipped) == ["food-plum"]
    assert "plum.png" in summary.skipped["food-plum"]
    assert "food-plum is left out" in caplog.text
    assert "food-plum" not in {record["object"] for record in read_records(summary.root)}


def test_a_folder_of_another_seed_is_refused(built: dataset.DatasetSummary, miniature: Path) -> None:
    with pytest.raises(DataError, match="other settings") as caught:
        build_dataset(built.root, miniature, seed=1, workers=0)
    assert caught.value.hint


def test_a_folder_without_usable_stamps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "food").mkdir()
    (tmp_path / "food/readme.txt").write_text("No picture.\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no stamp"):
        build_dataset(tmp_path / "out", tmp_path)
