"""Which frames of a video are wanted: rate, size, crop; and choosing them by time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eao.errors import MediaError
from eao.features.container import Clock
from eao.features.pictures import Converter

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_TICK = 1e-3  # Matroska rounds timestamps to milliseconds


@dataclass(frozen=True)
class View:
    """What somebody wants to see of a video: a frame every 1/rate seconds, of a size.

    Attributes:
        rate: frames per second.
        side: pixels of the short side.
        crop: whether only the central square is wanted; else the whole picture, whose long side keeps the aspect
            (truncated to whole pixels, at most four times the short one).
    """

    rate: float
    side: int
    crop: bool = True


@dataclass(frozen=True)
class SampledFrame:
    """One frame of a clip, for one view.

    Attributes:
        time: seconds from the start of the clip.
        image: (side, side, 3) uint8 RGB, or (height, width, 3) without a crop.
        view: index of the view.
    """

    time: float
    image: NDArray[np.uint8]
    view: int


class Sampler:
    """Picks the frames that are shown at k/rate for each view. Holds one frame at a time."""

    def __init__(self, views: Sequence[View], clock: Clock) -> None:
        stream = clock.video
        assert stream is not None
        self.views = tuple(views)
        self.clock = clock
        self.next_rows = [0] * len(self.views)
        self.convert = Converter(stream.sample_aspect_ratio)
        self.default_length = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        self.held: VideoFrame | None = None
        self.held_time = 0.0
        self.count = 0
        self.end = 0.0

    def add(self, frame: VideoFrame, time: float | None) -> Iterator[SampledFrame]:
        """Take the next frame in order of display, shown from `time` seconds on (None: after the one before)."""
        time = self.end if time is None else max(time, self.held_time)
        if self.held is not None:
            yield from self._emit_before(time)
        self.held, self.held_time = frame, time
        length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        self.end = time + (length or self.default_length)
        self.count += 1

    def finish(self) -> Iterator[SampledFrame]:
        """The rows of the last frame.

        Raises:
            MediaError: if there was no frame at all.
        """
        if self.held is None:
            raise MediaError(
                f"{self.clock.budget.path}: its video stream holds no frame that can be decoded",
                "encode it again",
                "no-frames",
            )
        self.clock.check_time(self.end)
        yield from self._emit_before(self.end)
        if not any(self.next_rows):  # a clip shorter than a tick still has its first frame
            yield from self._emit_before(2 * _TICK)

    def _emit_before(self, time: float) -> Iterator[SampledFrame]:
        images: dict[tuple[int, bool], NDArray[np.uint8]] = {}  # views of one size share the picture
        while True:
            due = [row / view.rate for row, view in zip(self.next_rows, self.views, strict=True)]
            target = min(due)
            if target >= time - _TICK:
                return
            assert self.held is not None
            index = due.index(target)
            view = self.views[index]
            size = (view.side, view.crop)
            if size not in images:
                images[size] = self.convert(self.held, *size)
            self.next_rows[index] += 1
            yield SampledFrame(target, images[size], index)
