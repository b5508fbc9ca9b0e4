"""Making pictures of decoded frames: upright, progressive, of the wanted size, 8-bit RGB."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

_MAX_ASPECT = 4  # of a resized frame, against absurdly elongated pictures
_SMALLEST_INTERLACED = 8  # pixels: the filter needs a few lines above and below
_PQ, _HLG = 16, 18  # transfer characteristics of ITU-T H.273: SMPTE ST 2084, and ARIB STD-B67
_BT2020 = 9  # primaries of ITU-T H.273
_REFERENCE_WHITE = 203.0  # cd/m2 of white paper in HDR video (ITU-R BT.2408)
_HLG_PEAK = 1000.0  # cd/m2 of the display that HLG is made for
_KNEE = 0.75  # linear light above which highlights are compressed into what is left

_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""ITU-R BT.2087, of linear light."""


class Deinterlacer:
    """Makes whole frames of two fields (FFmpeg's bwdif) from the first interlaced frame on; passes others through.

    Frames come out one frame late, since the filter looks at the next one.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._form: tuple[int, int, str] | None = None
        self._times: deque[float | None] = deque()

    def add(self, frame: VideoFrame, time: float | None) -> Iterator[tuple[VideoFrame, float | None]]:
        """Take the next frame; gives the frames that are ready with their times."""
        form = (frame.width, frame.height, frame.format.name)
        if self._graph is not None and form != self._form:
            yield from self.flush()
        if self._graph is None:
            if not frame.interlaced_frame or min(frame.width, frame.height) < _SMALLEST_INTERLACED:
                yield frame, time
                return
            self._graph, self._form = self._new_graph(frame), form
        self._times.append(time)
        self._graph.push(frame)
        yield from self._ready()

    def flush(self) -> Iterator[tuple[VideoFrame, float | None]]:
        """The frames that wait for a next one."""
        if self._graph is not None:
            self._graph.push(None)
            yield from self._ready()
            self._graph = None

    def _ready(self) -> Iterator[tuple[VideoFrame, float | None]]:
        from av.error import BlockingIOError as NotYet
        from av.error import EOFError as EndOfFile

        assert self._graph is not None
        while True:
            try:
                frame = self._graph.vpull()
            except (NotYet, EndOfFile):
                return
            yield frame, self._times.popleft()

    @staticmethod
    def _new_graph(frame: VideoFrame) -> Graph:
        from av.filter import Graph

        graph = Graph()
        graph.threads = 1
        time_base = frame.time_base or Fraction(1, 1000)  # times are kept beside the filter
        source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
        graph.link_nodes(
            source, graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"), graph.add("buffersink")
        ).configure()
        return graph


class Converter:
    """Turns decoded frames into upright RGB arrays. Pictures of one kind have one shape, whatever the frames become.

    Args:
        pixel_aspect: width of a pixel over its height.
    """

    def __init__(self, pixel_aspect: Fraction | None) -> None:
        from av.video.reformatter import VideoReformatter

        aspect = float(pixel_aspect or 1)
        self.pixel_aspect = aspect if 0.1 < aspect < 10 else 1.0
        # One for a size in the whole clip, since building its tables costs more than scaling one frame.
        self.reformatters: dict[int, VideoReformatter] = {}
        self.new_reformatter = VideoReformatter
        self.shapes: dict[int, tuple[int, int]] = {}  # upright, of whole pictures with a short side of so many pixels

    def __call__(self, frame: VideoFrame, side: int, crop: bool) -> NDArray[np.uint8]:
        """(side, side, 3) uint8, or (height, width, 3) without a crop."""
        transposed, flip_x, flip_y = _orientation(frame)
        width, height = self._scaled_size(frame, side)
        if crop:
            rows = columns = side
        else:
            shape = self.shapes.setdefault(side, (width, height) if transposed else (height, width))
            columns, rows = shape if transposed else shape[::-1]
            # Frames of another aspect than the first cover its shape.
            factor = max(1.0, columns / width, rows / height)
            width, height = (math.ceil(length * factor - 1e-6) for length in (width, height))
        top, left = (height - rows) // 2, (width - columns) // 2
        array = self._resize(frame, side, width, height)[top : top + rows, left : left + columns]
        if transposed:
            array = array.transpose(1, 0, 2)
        return np.ascontiguousarray(array[:: -1 if flip_y else 1, :: -1 if flip_x else 1])

    def _scaled_size(self, frame: VideoFrame, side: int) -> tuple[int, int]:
        width, height = frame.width * self.pixel_aspect, float(frame.height)
        scale = side / min(width, height)
        # The long side is truncated, as in the feature extractors of the field. Even an absurdly elongated picture must
        # not need gigabytes.
        width, height = (max(side, min(int(length * scale + 1e-6), _MAX_ASPECT * side)) for length in (width, height))
        return width, height

    def _resize(self, frame: VideoFrame, side: int, width: int, height: int) -> NDArray[np.uint8]:
        reformatter = self.reformatters.setdefault(side, self.new_reformatter())
        is_hdr = frame.color_trc in (_PQ, _HLG)
        # Several clips are decoded side by side: one thread each.
        scaled = reformatter.reformat(
            frame, width, height, "rgb48le" if is_hdr else "rgb24", interpolation="BICUBIC", threads=1
        )
        if is_hdr:
            return tone_map(
                np.asarray(scaled.to_ndarray(), np.uint16), frame.color_trc == _HLG, frame.color_primaries == _BT2020
            )
        return np.asarray(scaled.to_ndarray(), dtype=np.uint8)


def tone_map(image: NDArray[np.uint16], hlg: bool, wide_gamut: bool = True) -> NDArray[np.uint8]:
    """A picture of HDR video as SDR video would show it: white paper is near white, highlights are compressed.

    FFmpeg's scaler can do this too, but takes seconds to build its tables for each file.

    Args:
        image: (height, width, 3) uint16 RGB, coded as hybrid log-gamma (ITU-R BT.2100), else as PQ (SMPTE ST 2084).
        hlg: which of the two.
        wide_gamut: whether its primaries are those of BT.2020.

    Returns:
        (height, width, 3) uint8 RGB of BT.709 primaries for a display gamma of 2.4.
    """
    light = _linear_light(hlg)[image >> 4]
    if hlg:  # from the light of the scene to that of the display
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= (_HLG_PEAK / _REFERENCE_WHITE) * np.maximum(luminance, 1e-6)[..., None] ** 0.2
    if wide_gamut:
        light = np.maximum(light @ _BT2020_TO_BT709.T, 0.0)
    excess = np.maximum(light - _KNEE, 0.0) / (1 - _KNEE)
    light = np.minimum(light, _KNEE) + (1 - _KNEE) * (1 - np.exp(-excess))
    return np.asarray(np.rint(255 * light ** (1 / 2.4)), dtype=np.uint8)


@functools.cache
def _linear_light(hlg: bool) -> NDArray[np.float32]:
    """(4096,) light for each code value: of PQ relative to white paper, of HLG relative to the scene's maximum."""
    code = np.arange(4096) / 4095
    if hlg:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    else:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        light = 10_000 / _REFERENCE_WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    return light.astype(np.float32)


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Whether the stored picture is to be transposed, then mirrored left to right, then turned upside down."""
    from av.sidedata.sidedata import Type

    side_data: Any = frame.side_data
    data = side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return False, False, False
    # A point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32, 5)
    if max(abs(int(a)), abs(int(d))) >= max(abs(int(b)), abs(int(c))):
        return False, bool(a < 0), bool(d < 0)
    return True, bool(c < 0), bool(b < 0)
