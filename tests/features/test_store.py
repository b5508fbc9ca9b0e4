from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from eao.config import FeaturesConfig, StreamConfig
from eao.data.captions import read_captions
from eao.errors import ConfigError, DataError
from eao.features.extractor import ClipFeatures
from eao.features.inputs import Part, Source
from eao.features.segments import ClipRule, Segment
from eao.features.store import FeatureStore

CONFIG = FeaturesConfig()
WINDOWS = ClipRule.parse("windows:2")


def features(value: float = 0.0, sound: bool = True) -> ClipFeatures:
    audio = np.full((40, 9), -value, np.float32) if sound else None
    return ClipFeatures(np.full((2, 5), value, np.float32), np.full((3, 4), value, np.float32), audio, 2.0)


def clips(source: Source, count: int, **options: bool) -> list[tuple[Segment, ClipFeatures]]:
    return [
        (Segment(f"{source.id}/{i:06d}", 2.0 * i, 2.0 * i + 2, (f"clip {i}",)), features(i, **options))
        for i in range(count)
    ]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sources(tmp_path: Path, *names: str) -> list[Source]:
    for name in names:
        (tmp_path / f"{name}.mp4").touch()
    return [Source(name, str(tmp_path / f"{name}.mp4")) for name in names]


def test_what_stands_in_the_folder_does_not_depend_on_the_order_of_the_work(tmp_path: Path) -> None:
    a, b, bad, worse = sources(tmp_path, "a", "b", "bad", "worse")
    folders = []
    for order in ((a, b), (b, a)):
        folder = tmp_path / order[0].id
        folders.append(folder)
        store = FeatureStore(folder, CONFIG, WINDOWS, {"video_2d": "0f"})
        with store.writing([a, b, bad, worse], model="/models/m"):
            for failed in (bad, worse) if order[0] is a else (worse, bad):
                store.add_failure({"file": failed.location, "kind": "damaged", "reason": "?"})
            for source in order:
                store.note(store.write(source, clips(source, 2, sound=source is a)))
    assert snapshot(folders[0]) == snapshot(folders[1])
    assert [record["id"] for record in lines(folders[0] / "manifest.jsonl")] == [
        f"{name}/{i:06d}" for name in "ab" for i in (0, 1)
    ]
    assert lines(folders[0] / "manifest.jsonl")[1] == {
        "id": "a/000001",
        "file": a.location,
        "start": 2.0,
        "end": 4.0,
        "duration": 2.0,
        "video_2d": 2,
        "video_3d": 3,
        "audio": 9,
        "clips": 2,
        "captions": ["clip 1"],
    }
    assert not (folders[0] / ".work").exists()
    assert json.loads((folders[0] / "source.json").read_text()) == {"model": "/models/m"}
    description = yaml.safe_load((folders[0] / "features.yaml").read_text())
    assert (description["clips"], description["weights"]) == ("windows:2", {"video_2d": "0f"})
    captions = read_captions(folders[0] / "captions.jsonl")
    assert [(c.id, c.caption) for c in captions][:2] == [("a/000000", "clip 0"), ("a/000001", "clip 1")]


@pytest.mark.parametrize("lost", ["line", "torn line", "array", "nothing"])
def test_a_file_is_done_when_all_its_clips_are(tmp_path: Path, lost: str) -> None:
    given = sources(tmp_path, "a", "b")
    folder = tmp_path / "out"
    store = FeatureStore(folder, CONFIG, WINDOWS)
    with store.writing(given):
        for source in given:
            store.note(store.write(source, clips(source, 3)))
    text = (folder / "manifest.jsonl").read_text()
    if lost == "line":
        (folder / "manifest.jsonl").write_text("".join(text.splitlines(keepends=True)[1:]))
    elif lost == "torn line":
        (folder / "manifest.jsonl").write_text(text[:-20])
    elif lost == "array":
        (folder / "b" / "000001_3d.npz").unlink()
    done = FeatureStore(folder, CONFIG, WINDOWS).finished(given)
    whole = [f"{i:06d}" for i in range(3)]
    expected = {"line": "b", "torn line": "a", "array": "a", "nothing": "ab"}[lost]
    assert done == {name: [f"{name}/{i}" for i in whole] for name in expected}


@pytest.mark.parametrize("kind", ["whole", "windows", "parts"])
def test_a_file_of_another_size_is_another_file(tmp_path: Path, kind: str) -> None:
    (given,) = sources(tmp_path, "a")
    parts = tuple(Part(f"a/{i:06d}", 2.0 * i, 2.0 * i + 2) for i in range(2)) if kind == "parts" else ()
    old = replace(given, parts=parts, size=100)
    folder, rule = tmp_path / "out", WINDOWS if kind == "windows" else ClipRule()
    store = FeatureStore(folder, CONFIG, rule)
    with store.writing([old]):
        store.note(store.write(old, [(Segment("a", 0.0, 2.0, ()), features())] if kind == "whole" else clips(old, 2)))
    assert FeatureStore(folder, CONFIG, rule).finished([old]).keys() == {"a"}
    assert FeatureStore(folder, CONFIG, rule).finished([replace(old, size=None)]).keys() == {"a"}

    new = replace(old, size=101)
    store = FeatureStore(folder, CONFIG, rule)
    before = snapshot(folder)
    assert store.finished([new]) == {} and snapshot(folder) == before
    with store.writing([new]):
        pass  # and then it cannot be read
    assert set(snapshot(folder)) == {".lock", "features.yaml", "manifest.jsonl"}
    assert (folder / "manifest.jsonl").read_text() == ""


def test_clips_of_a_replaced_file_go_whatever_they_are_called(tmp_path: Path) -> None:
    (given,) = sources(tmp_path, "a")
    parts = (Part("x", 0.0, 2.0), Part("y", 2.0, 4.0))
    listed = replace(given, id="x", parts=parts, size=100)
    folder = tmp_path / "out"
    store = FeatureStore(folder, CONFIG, WINDOWS)
    with store.writing([listed]):
        store.note(store.write(listed, [(Segment(p.id, p.start, p.end or 0.0, ()), features()) for p in parts]))
    for new in (replace(listed, parts=parts[:1], size=50), replace(given, id="other", size=50)):
        store = FeatureStore(folder, CONFIG, WINDOWS)
        assert store.finished([new]) == {}
        copy = shutil.copytree(folder, tmp_path / new.id)
        store = FeatureStore(copy, CONFIG, WINDOWS)
        store.finished([new])
        with store.writing([new]):
            pass
        assert not list(copy.rglob("*.npz")) and not store.records


def test_a_shorter_file_leaves_no_array_of_a_longer_one_that_was_never_noted(tmp_path: Path) -> None:
    (given,) = sources(tmp_path, "a")
    store = FeatureStore(tmp_path / "out", CONFIG, WINDOWS)
    with store.writing([given]):
        store.write(given, clips(given, 4))
        store.note(store.write(given, clips(given, 2)))
    assert {path.name[:6] for path in (tmp_path / "out" / "a").iterdir()} == {"000000", "000001"}


def test_a_clip_of_a_list_with_the_name_of_another_file_stays(tmp_path: Path) -> None:
    a, b = sources(tmp_path, "a", "b")
    store = FeatureStore(tmp_path / "out", CONFIG, WINDOWS)
    listed = replace(b, id="a", parts=(Part("a", 0.0, 2.0),), size=100)
    with store.writing([listed]):
        store.note(store.write(listed, [(Segment("a", 0.0, 2.0, ()), features())]))
    Path(b.location).unlink()
    store = FeatureStore(tmp_path / "out", CONFIG, WINDOWS)
    assert store.finished([replace(a, size=50)]) == {}
    with store.writing([a]):
        store.note(store.write(a, clips(a, 1)))
    assert store.records.keys() == {"a", "a/000000"}


def test_a_captions_file_of_somebody_elses_stays(tmp_path: Path) -> None:
    (given,) = sources(tmp_path, "a")
    store = FeatureStore(tmp_path / "out", CONFIG)
    with store.writing([given]):
        store.note(store.write(given, [(Segment("a", 0.0, 2.0, ()), features())]))
    (tmp_path / "out" / "captions.jsonl").write_text('{"id": "a", "caption": "mine"}\n')
    store = FeatureStore(tmp_path / "out", CONFIG)
    store.finished([replace(given, size=7)])
    with store.writing([given]):
        pass
    assert "mine" in (tmp_path / "out" / "captions.jsonl").read_text()


def test_sizes_are_noted_for_a_folder_that_has_none(tmp_path: Path) -> None:
    (given,) = sources(tmp_path, "a")
    sized = replace(given, size=7)
    for name, source in (("old", given), ("new", sized)):
        store = FeatureStore(tmp_path / name, CONFIG, WINDOWS)
        with store.writing([source]):
            store.note(store.write(source, clips(source, 2)))
    store = FeatureStore(tmp_path / "old", CONFIG, WINDOWS)
    assert store.finished([sized]).keys() == {"a"} and store.has_changed
    with store.writing([sized]):
        pass
    assert snapshot(tmp_path / "old") == snapshot(tmp_path / "new")


def test_parts_are_made_again_when_a_list_changes_their_times(tmp_path: Path) -> None:
    (video,) = sources(tmp_path, "v")
    parts = (Part("x", 0.0, 2.0), Part("y", 2.0, None))
    source = Source("x", video.location, parts)
    store = FeatureStore(tmp_path / "out", CONFIG, ClipRule())
    with store.writing([source]):
        store.note(
            store.write(source, [(Segment("x", 0.0, 2.0), features()), (Segment("y", 2.0, 3.5, ("y",)), features())])
        )
    again = FeatureStore(tmp_path / "out", CONFIG, ClipRule())
    assert again.finished([source]) == {"x": ["x", "y"]}
    moved = Source("x", video.location, (parts[0], Part("y", 2.5, None)))
    assert again.finished([moved]) == {}
    assert again.finished([Source("x", video.location, (*parts, Part("z", 3.0, None)))]) == {}


def test_captions_that_a_list_changes_are_taken_over_without_work(tmp_path: Path) -> None:
    (video,) = sources(tmp_path, "v")
    store = FeatureStore(tmp_path / "out", CONFIG, ClipRule())
    with store.writing([video]):
        store.note(store.write(video, [(Segment("v", 0.0, 2.0), features())]))
    assert not (tmp_path / "out" / "captions.jsonl").exists()
    again = FeatureStore(tmp_path / "out", CONFIG, ClipRule())
    described = Source("v", video.location, captions=("a dog", "it runs"))
    assert again.finished([described]) == {"v": ["v"]}
    assert again.has_changed
    with again.writing([described]):
        pass
    assert [c.caption for c in read_captions(tmp_path / "out" / "captions.jsonl")] == ["a dog", "it runs"]


def test_a_url_with_another_signature_is_the_same_file(tmp_path: Path) -> None:
    signed, other = (Source("v", f"https://ann:pw@x.org/v.mp4?sig={i}") for i in (1, 2))
    store = FeatureStore(tmp_path, CONFIG, ClipRule())
    with store.writing([signed]):
        store.note(store.write(signed, [(Segment("v", 0.0, 2.0), features())]))
    assert "pw" not in (tmp_path / "manifest.jsonl").read_text()
    again = FeatureStore(tmp_path, CONFIG, ClipRule())
    assert again.finished([other]) == {"v": ["v"]}
    with pytest.raises(DataError, match="holds the clip 'v' of"):
        again.finished([Source("v", "https://y.org/v.mp4")])


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, CONFIG)
    with store.writing([]):
        pass
    clean = snapshot(tmp_path)
    (tmp_path / ".work" / "downloads").mkdir(parents=True)
    (tmp_path / ".work" / "downloads" / "x.mp4").write_bytes(b"half")
    (tmp_path / ".work" / "0f.npz").write_bytes(b"half")
    for name in (".manifest.0123abcd.tmp.jsonl", ".features.0123abcd.tmp.yaml", ".failed.0123abcd.tmp.jsonl"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "fi')
    store = FeatureStore(tmp_path, CONFIG)
    with store.writing([]):
        pass
    assert snapshot(tmp_path) == clean


@pytest.mark.parametrize(
    ("config", "rule", "weights", "reason"),
    [
        (FeaturesConfig(video_3d=None), WINDOWS, {"video_2d": "0f"}, "video_3d is .*activation.* there, None here"),
        (FeaturesConfig(audio=False), WINDOWS, {"video_2d": "0f"}, "audio is True there, False here"),
        (CONFIG, ClipRule(), {"video_2d": "0f"}, "clips is windows:2 there, None here"),
        (CONFIG, WINDOWS, {"video_2d": "1e"}, "weights is .*0f.* there, .*1e.* here"),
    ],
)
def test_other_features_are_refused(
    tmp_path: Path, config: FeaturesConfig, rule: ClipRule, weights: dict[str, str], reason: str
) -> None:
    with FeatureStore(tmp_path, CONFIG, WINDOWS, {"video_2d": "0f"}).writing([]):
        pass
    with pytest.raises(ConfigError, match=reason):
        FeatureStore(tmp_path, config, rule, weights)


def test_where_weights_lie_is_no_other_configuration_and_a_reader_needs_none(tmp_path: Path) -> None:
    def config(path: str) -> FeaturesConfig:
        return FeaturesConfig(video_2d=StreamConfig(backbone="resnet152", rate=1.0, weights=path), video_3d=None)

    with FeatureStore(tmp_path, config("/a/r.pth"), WINDOWS, {"video_2d": "0f"}).writing([]):
        pass
    moved = FeatureStore(tmp_path, config("/b/r.pth"), WINDOWS, {"video_2d": "0f"})
    with moved.writing([]):
        pass
    noted = yaml.safe_load((tmp_path / "features.yaml").read_text())
    assert (noted["weights"], noted["clips"]) == ({"video_2d": "0f"}, "windows:2")
    assert "r.pth" not in (tmp_path / "features.yaml").read_text()
    assert FeatureStore(tmp_path, config("/c/r.pth")).records == {}


def test_a_folder_of_an_older_version_goes_on(tmp_path: Path) -> None:
    old = {key: value for key, value in CONFIG.identity().items() if key != "audio"}
    (tmp_path / "features.yaml").write_text(yaml.safe_dump(old))
    with FeatureStore(tmp_path, CONFIG, ClipRule(), {"video_2d": "0f"}).writing([]):
        pass
    assert yaml.safe_load((tmp_path / "features.yaml").read_text())["weights"] == {"video_2d": "0f"}


@pytest.mark.parametrize(
    ("name", "text"), [("features.yaml", "a: ["), ("features.yaml", "[1]"), ("manifest.jsonl", "{}")]
)
def test_a_folder_that_says_nothing_sensible_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError):
        FeatureStore(tmp_path, CONFIG, ClipRule())


def test_a_damaged_manifest_is_named_with_its_line(tmp_path: Path) -> None:
    with FeatureStore(tmp_path, CONFIG).writing([]):
        pass
    (tmp_path / "manifest.jsonl").write_text("nonsense\n{}\n")
    with pytest.raises(DataError, match=r"manifest\.jsonl:1"):
        FeatureStore(tmp_path, CONFIG)
