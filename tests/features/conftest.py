"""Real little videos, encoded with PyAV."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

ClipWriter = Callable[..., Path]


@pytest.fixture(scope="session")
def golden_networks() -> ModuleType:
    """The module tests/golden/networks.py."""
    path = Path(__file__).parents[1] / "golden" / "networks.py"
    spec = importlib.util.spec_from_file_location("golden_networks", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write_clip(
    path: Path,
    *,
    seconds: float = 2.0,
    fps: int = 20,
    size: tuple[int, int] = (64, 48),
    tone: float | None = 440.0,
    audio_rate: int = 44_100,
    audio_delay: float = 0.0,
    times: list[float] | None = None,
    rotation: int = 0,
    colour: tuple[int, int, int] | None = None,
    options: dict[str, str] | None = None,
    start: float = 0.0,
) -> Path:
    """Encode H.264 + AAC. Frame i is grey of value 10 + 2i (whole numbers survive coding to +-3), or of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = times if times is not None else [i / fps for i in range(round(seconds * fps))]
    width, height = size
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "8", "preset": "ultrafast"})
        # H.264 with 4:4:4 sampling, so that odd widths and heights can be coded too.
        video.width, video.height, video.pix_fmt = width, height, "yuv444p"
        video.time_base = video.codec_context.time_base = Fraction(1, 12_800)
        if rotation:
            video.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=audio_rate) if tone else None
        for index, time in enumerate(times):
            value = np.array(colour if colour else [10 + 2 * index] * 3, np.uint8)
            image = np.broadcast_to(value, (height, width, 3)).copy()
            if rotation:
                image[:, : width // 2] = 250  # the left half is bright as stored
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = round((start + time) * 12_800), Fraction(1, 12_800)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            total = round(seconds * audio_rate)
            wave = 0.5 * np.sin(2 * np.pi * tone * np.arange(total) / audio_rate).astype(np.float32)
            for begin in range(0, total, 1024):
                samples = av.AudioFrame.from_ndarray(wave[None, begin : begin + 1024], "fltp", "mono")
                samples.rate, samples.time_base = audio_rate, Fraction(1, audio_rate)
                samples.pts = begin + round((start + audio_delay) * audio_rate)
                container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
    return path


@pytest.fixture(scope="session")
def write_clip() -> ClipWriter:
    """`write_clip(path, seconds=..., fps=..., tone=None for silence, times=[...] for a variable rate ...) -> path`."""
    return _write_clip


@pytest.fixture(scope="session")
def write_sound() -> Callable[..., Path]:
    """`write_sound(path, seconds=1.0, codec="aac", cover=False) -> path`: a file with a 440 Hz tone at half scale."""

    def write(path: Path, seconds: float = 1.0, codec: str = "aac", rate: int = 16_000, cover: bool = False) -> Path:
        wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
        planar = codec == "aac"
        with av.open(str(path), "w") as container:
            sound = container.add_stream(codec, rate=rate, layout="mono")
            picture = container.add_stream("mjpeg", rate=1) if cover else None
            if picture is not None:
                picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
                picture.disposition = av.stream.Disposition.attached_pic
                still = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
                container.mux(picture.encode(still))
                container.mux(picture.encode(None))
            data = wave.astype(np.float32) if planar else (wave * 32767).astype(np.int16)
            for begin in range(0, len(data), 1024):
                part = data[None, begin : begin + 1024]
                frame = av.AudioFrame.from_ndarray(part, "fltp" if planar else "s16", "mono")
                frame.rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        return path

    return write
