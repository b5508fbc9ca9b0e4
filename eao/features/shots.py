"""Finding the cuts of a video with PySceneDetect, on frames that are decoded anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eao.errors import missing_dependency
from eao.features.frames import SampledFrame, View

if TYPE_CHECKING:
    from eao.features.extractor import OpenClip, Reader

VIEW = View(rate=24.0, side=64, crop=False)
"""What the detector is shown: its threshold is made for consecutive frames, and details do not matter to it."""
THRESHOLD = 27.0
"""Mean change of hue, saturation and brightness that makes a cut; PySceneDetect's own."""


class ShotFinder:
    """Looks for cuts in frames of `VIEW`, which come one after the other.

    Args:
        shortest: seconds between two cuts, at the least.

    Raises:
        MissingDependencyError: PySceneDetect is not installed.
    """

    def __init__(self, shortest: float) -> None:
        try:
            from scenedetect import FrameTimecode
            from scenedetect.detectors import ContentDetector
        except ImportError:
            raise missing_dependency("scenedetect", "shots", "cutting videos at their shots") from None
        self.timecode = FrameTimecode
        self.detector: Any = ContentDetector(threshold=THRESHOLD, min_scene_len=max(1, round(shortest * VIEW.rate)))
        self.count = 0
        self.cuts: list[float] = []

    def add(self, image: NDArray[np.uint8]) -> None:
        """Take the next frame, (height, width, 3) RGB."""
        time = self.timecode(self.count, fps=VIEW.rate)
        found = self.detector.process_frame(time, np.ascontiguousarray(image[..., ::-1]))
        self.cuts += [cut.frame_num / VIEW.rate for cut in found]
        self.count += 1


def watch_shots(open_clip: OpenClip, finder: ShotFinder) -> OpenClip:
    """A way of opening clips by which `finder` sees the frames it needs; the one who opens does not see those."""

    def open_watched(path: str | Path, views: Sequence[View]) -> Reader:
        return _Watched(open_clip(path, [*views, VIEW]), len(views), finder)

    return open_watched


class _Watched:
    def __init__(self, reader: Reader, index: int, finder: ShotFinder) -> None:
        self.reader = reader
        self.index = index
        self.finder = finder

    @property
    def audio(self) -> NDArray[np.float32] | None:
        return self.reader.audio

    @property
    def duration(self) -> float:
        return self.reader.duration

    def __iter__(self) -> Iterator[SampledFrame]:
        for frame in self.reader:
            if frame.view == self.index:
                self.finder.add(frame.image)
            else:
                yield frame
