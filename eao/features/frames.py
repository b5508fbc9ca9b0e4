"""Which frames of a video are wanted, and making pictures of them: rate, size, crop, rotation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eao.errors import MediaError
from eao.features.container import Clock

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_TICK = 1e-3  # Matroska rounds timestamps to milliseconds
_MAX_ASPECT = 4  # of a resized frame, against absurdly elongated pictures


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
        self.convert = _Converter(stream.sample_aspect_ratio)
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


class _Converter:
    """Turns decoded frames into upright RGB arrays."""

    def __init__(self, pixel_aspect: Fraction | None) -> None:
        from av.video.reformatter import VideoReformatter

        aspect = float(pixel_aspect or 1)
        self.pixel_aspect = aspect if 0.1 < aspect < 10 else 1.0
        # One for a size in the whole clip, since building its tables costs more than scaling one frame.
        self.reformatters: dict[int, VideoReformatter] = {}
        self.new_reformatter = VideoReformatter

    def __call__(self, frame: VideoFrame, side: int, crop: bool) -> NDArray[np.uint8]:
        width, height = frame.width * self.pixel_aspect, float(frame.height)
        scale = side / min(width, height)
        # The long side is truncated, as in the feature extractors of the field. Even an absurdly elongated picture must
        # not need gigabytes.
        width, height = (max(side, min(int(length * scale + 1e-6), _MAX_ASPECT * side)) for length in (width, height))
        reformatter = self.reformatters.setdefault(side, self.new_reformatter())
        scaled = reformatter.reformat(frame, width, height, "rgb24", interpolation="BICUBIC")
        array = np.asarray(scaled.to_ndarray(), dtype=np.uint8)
        if crop:
            top, left = (height - side) // 2, (width - side) // 2
            array = array[top : top + side, left : left + side]
        turns = round(frame.rotation / 90) % 4  # the picture is to be turned counter-clockwise by this
        return np.ascontiguousarray(np.rot90(array, turns))
