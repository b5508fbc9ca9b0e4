"""One picture of a video, by seeking."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from eao.errors import MediaError
from eao.features.decoder import DecoderPool
from eao.features.limits import Limits
from eao.features.still import read_still


def write_steps(path: Path, seconds: int, key_every: int = 250, size: tuple[int, int] = (96, 64)) -> Path:
    """A video that is brighter each second: the grey of second n is 20 n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "g": str(key_every)})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for frame in range(10 * seconds):
            image = np.full((size[1], size[0], 3), 20 * (frame // 10), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("key_every", [1, 7, 250])
@pytest.mark.parametrize("time", [0.0, 0.95, 1.0, 4.55, 9.5])
def test_the_picture_is_the_one_shown_then(tmp_path: Path, key_every: int, time: float) -> None:
    image = read_still(write_steps(tmp_path / "steps.mp4", 10, key_every), time, 32)
    assert image.shape == (32, 48, 3) and image.dtype == np.uint8
    assert abs(float(image.mean()) - 20 * int(time)) < 4  # H.264 rounds


def test_beyond_the_end_it_is_the_last_one(tmp_path: Path) -> None:
    assert abs(float(read_still(write_steps(tmp_path / "steps.mkv", 5), 1e6, 16).mean()) - 80) < 4


def test_another_process_gives_the_same(tmp_path: Path) -> None:
    path = write_steps(tmp_path / "steps.mp4", 3)
    with DecoderPool(1) as pool:
        np.testing.assert_array_equal(pool.still(path, 1.5, 40), read_still(path, 1.5, 40))


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(b"nothing to see")
    with DecoderPool(1) as pool:
        with pytest.raises(MediaError, match="noise.mp4"):
            pool.still(tmp_path / "noise.mp4", 0, 16)
        with pytest.raises(MediaError, match="missing.mp4"):
            pool.still(tmp_path / "missing.mp4", 0, 16)


def test_limits_hold(tmp_path: Path) -> None:
    path = write_steps(tmp_path / "steps.mp4", 1)
    with pytest.raises(MediaError, match="pixels"):
        read_still(path, 0, 16, Limits(max_pixels=1000))


def test_a_cut_file_still_has_its_beginning(tmp_path: Path) -> None:
    whole = write_steps(tmp_path / "steps.mkv", 8).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: 2 * len(whole) // 3])
    assert read_still(tmp_path / "cut.mkv", 0.0, 16).shape == (16, 24, 3)
