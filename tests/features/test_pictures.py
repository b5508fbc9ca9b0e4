from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from eao.errors import MediaError
from eao.features.frames import View
from eao.features.limits import Limits
from eao.features.media import ClipReader
from eao.features.pictures import tone_map

ClipWriter = Callable[..., Path]


def images(path: Path, rate: float, side: int, crop: bool = True) -> list[np.ndarray]:
    return [frame.image for frame in ClipReader(path, [View(rate, side, crop)])]


def write_fields(path: Path, codec: str, options: dict[str, str], count: int = 12, height: int = 64) -> Path:
    """A bright bar that moves 2 pixels between the upper field (even lines) and the lower one of each frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, height, "yuv420p"
        for i in range(count):
            image = np.full((height, 96, 3), 16, np.uint8)
            image[0::2, 4 * i : 4 * i + 16] = image[1::2, 4 * i + 2 : 4 * i + 18] = 235
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def combing(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image[..., 0].astype(float), axis=0)).mean())


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mpg", "mpeg2video", {"flags": "+ilme+ildct", "qscale": "2"}),
        ("a.mkv", "libx264", {"x264-params": "tff=1", "crf": "5"}),
    ],
)
def test_interlaced_video_becomes_whole_frames(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    frames = images(write_fields(tmp_path / name, codec, options), 25.0, 64, crop=False)
    assert len(frames) == 12
    assert max(map(combing, frames)) < 1  # as stored: 9
    # The bar is where the second field of its frame shows it.
    left = [int((frame[32, :, 0] > 120).argmax()) for frame in frames]
    np.testing.assert_allclose(left, [4 * i + 2 for i in range(12)], atol=2)


def test_progressive_video_is_left_alone(tmp_path: Path) -> None:
    frames = images(write_fields(tmp_path / "a.mkv", "libx264", {"crf": "5"}), 25.0, 64, crop=False)
    assert min(map(combing, frames)) > 5


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Change the display matrix of an MP4 file's first track."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0
    data[place : place + 36] = struct.pack(">9i", *(65536 * v for v in (a, b, 0, c, d, 0)), 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


MATRICES = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.parametrize("matrix", MATRICES)
def test_every_orientation(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    """The left half and the top quarter are brighter as stored; a point (x, y) is shown at (a x + c y, b x + d y)."""
    stored = np.full((32, 32), 40, np.uint8)
    stored[:, :16] += 120
    stored[:8] += 60
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(stored, "gray")), *stream.encode(None)):
            container.mux(packet)
    a, b, c, d = matrix
    y, x = np.mgrid[:32, :32] - 15.5
    shown = np.empty_like(stored)
    shown[(b * x + d * y + 15.5).astype(int), (a * x + c * y + 15.5).astype(int)] = stored
    image = images(with_matrix(path, *matrix), 1.0, 32)[0][..., 1]
    np.testing.assert_allclose(image, shown, atol=30)  # the edges ring


def test_interlaced_video_that_changes_its_size(tmp_path: Path) -> None:
    options = {"flags": "+ilme+ildct", "qscale": "2"}
    parts = [write_fields(tmp_path / f"{height}.ts", "mpeg2video", options, 20, height) for height in (64, 96)]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = images(tmp_path / "a.ts", 25.0, 64)
    assert len(frames) in (39, 40)
    assert max(map(combing, frames)) < 2
    # The bar of 16 pixels in a picture of 96 x 64, and in one of 96 x 96.
    widths = [int((frames[index][32, :, 0] > 120).sum()) for index in (10, 25)]
    np.testing.assert_allclose(widths, [16, 10.7], atol=1.5)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("sizes", [((64, 48), (48, 96)), ((48, 64), (96, 48))])
def test_a_video_that_changes_its_size_keeps_one_shape(
    tmp_path: Path, write_clip: ClipWriter, sizes: tuple[tuple[int, int], ...], crop: bool
) -> None:
    """Two recordings in one file, whose timestamps start anew."""
    colours = [(200, 40, 40), (40, 40, 200)]
    data = b""
    for size, colour in zip(sizes, colours, strict=True):
        data += write_clip(tmp_path / "part.ts", seconds=1.0, size=size, colour=colour, tone=None).read_bytes()
    (tmp_path / "a.ts").write_bytes(data)
    frames = images(tmp_path / "a.ts", 4.0, 24, crop)
    assert len(frames) in (7, 8)  # the jump costs less than a quarter of a second
    whole = (24, 32, 3) if sizes[0][0] > sizes[0][1] else (32, 24, 3)
    assert {frame.shape for frame in frames} == {(24, 24, 3) if crop else whole}
    for frame, colour in ((frames[0], colours[0]), (frames[-1], colours[1])):
        np.testing.assert_allclose(frame.reshape(-1, 3), np.broadcast_to(colour, (frame.size // 3, 3)), atol=12)


def test_a_video_that_grows_beyond_the_limit_is_refused(tmp_path: Path, write_clip: ClipWriter) -> None:
    parts = [write_clip(tmp_path / f"{width}.ts", seconds=0.5, size=(width, 48), tone=None) for width in (64, 256)]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(MediaError):
        list(ClipReader(tmp_path / "a.ts", [View(4.0, 16)], limits=Limits(max_pixels=64 * 48)))


def pq(light: np.ndarray) -> np.ndarray:
    """Code values of light in cd/m2 by SMPTE ST 2084."""
    power = (light / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def test_hdr_video_is_shown_as_sdr(tmp_path: Path) -> None:
    """A grey ramp in PQ and BT.2020, 10-bit; the figures are those of FFmpeg's own conversion (swscale 9.5)."""
    light = np.array([0.0, 1, 10, 50, 100])
    luma = np.round(64 + 876 * pq(light)).astype("<u2").repeat(16)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx265", rate=5, options={"x265-params": "log-level=none:qp=4"})
        stream.width, stream.height, stream.pix_fmt = 80, 24, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = 16, 9, 9
        frame = av.VideoFrame(80, 24, "yuv420p10le")
        row = np.zeros(frame.planes[0].line_size // 2, "<u2")
        row[:80] = luma
        frame.planes[0].update(np.tile(row, 24).tobytes())
        for plane in frame.planes[1:]:
            plane.update(np.full(plane.buffer_size // 2, 512, "<u2").tobytes())
        frame.pts, frame.time_base = 0, Fraction(1, 5)
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    image = images(tmp_path / "a.mkv", 1.0, 24, crop=False)[0]
    np.testing.assert_allclose(image[8, 8::16, 1], [0, 28, 73, 142, 189], atol=3)


def test_white_paper_is_near_white_in_both_kinds_of_hdr() -> None:
    """203 cd/m2 is 58 % of PQ and 75 % of HLG (ITU-R BT.2408); highlights keep their order."""
    for code, hlg in ((0.5807, False), (0.75, True)):
        white, bright, peak = (
            tone_map(np.full((1, 1, 3), round(code * 65_535), np.uint16), hlg)[0, 0, 0],
            *(
                tone_map(np.full((1, 1, 3), round(value * 65_535), np.uint16), hlg)[0, 0, 0]
                for value in (code + 0.04, 1.0)
            ),
        )
        assert 235 < white < bright <= peak <= 255


def test_wide_gamut_red_is_redder_than_sdr_can_show() -> None:
    red = np.zeros((1, 1, 3), np.uint16)
    red[..., 0] = round(0.5 * 65_535)
    assert tone_map(red, hlg=False)[0, 0].tolist()[1:] == [0, 0]
    assert tone_map(red, hlg=False)[0, 0, 0] > tone_map(red, hlg=False, wide_gamut=False)[0, 0, 0]
