from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from eao.errors import MissingDependencyError
from eao.features.frames import View
from eao.features.media import ClipReader
from eao.features.shots import VIEW, ShotFinder, watch_shots

pytest.importorskip("scenedetect")


@pytest.fixture(scope="module")
def three_shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cuts at 2.0 and 3.5 s of 6, at 10 frames a second; each shot a moving square on a ground of its own colour."""
    path = tmp_path_factory.mktemp("shots") / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        for index in range(60):
            shot = int(index >= 20) + int(index >= 35)
            image = np.empty((96, 128, 3), np.uint8)
            image[:] = [(20, 60, 160), (200, 180, 40), (30, 140, 50)][shot]
            image[20:50, index : index + 30] = 240
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(video.encode(None))
    return path


def find(path: Path, shortest: float) -> tuple[list[float], int]:
    finder = ShotFinder(shortest)
    reader = watch_shots(ClipReader, finder)(path, [View(2.0, 32)])
    return finder.cuts if (frames := list(reader)) else [], len(frames)


def test_cuts_are_found_at_their_time_and_the_other_views_are_left_alone(three_shots: Path) -> None:
    cuts, frames = find(three_shots, 1.0)
    assert cuts == pytest.approx([2.0, 3.5], abs=1 / VIEW.rate)
    assert frames == 12


def test_a_video_without_cuts(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    assert find(write_clip(tmp_path / "a.mp4", seconds=3.0), 1.0)[0] == []


def test_sound_and_length_come_through(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    reader = watch_shots(ClipReader, ShotFinder(1.0))(write_clip(tmp_path / "a.mp4", seconds=1.0), [View(1.0, 32)])
    assert len(list(reader)) == 1
    assert reader.duration == pytest.approx(1.0, abs=0.01)
    assert reader.audio is not None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scenedetect", None)
    with pytest.raises(MissingDependencyError, match=r"'\.\[shots\]"):
        ShotFinder(1.0)
