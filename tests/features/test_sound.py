from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from eao.errors import MediaError
from eao.features import sound as sound_module
from eao.features.frames import View
from eao.features.limits import Limits
from eao.features.media import ClipReader, read_audio

ClipWriter = Callable[..., Path]

DEFAULT = av.stream.Disposition.default


def tone(frequency: float, seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return wave.astype(np.float32).repeat(channels)[None]


def write_pieces(
    path: Path, pieces: list[tuple[float, float]], rate: int = 16_000, codec: str = "pcm_f32le", video: bool = False
) -> Path:
    """A tone of 440 Hz in pieces of (start, seconds); black pictures for a second if `video`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        picture = container.add_stream("mpeg4", rate=20) if video else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
            for index in range(20):
                image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
                image.pts, image.time_base = index, Fraction(1, 20)
                container.mux(picture.encode(image))
            container.mux(picture.encode(None))
        for start, seconds in pieces:
            frame = av.AudioFrame.from_ndarray(tone(440, seconds, rate), "flt", "mono")
            frame.rate, frame.pts, frame.time_base = rate, round(start * rate), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def pitch(samples: np.ndarray) -> float:
    """The strongest frequency in hertz."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("layout", ["mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1", "hexadecagonal"])
def test_any_rate_and_layout(tmp_path: Path, rate: int, layout: str) -> None:
    """The same tone in all channels stays that tone at its level."""
    channels = av.AudioLayout(layout).nb_channels
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(tone(1000, 0.3, rate, channels), "flt", layout)
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux((*stream.encode(frame), *stream.encode(None)))
    samples = read_audio(path)
    assert samples is not None
    assert len(samples) == pytest.approx(4800, abs=16)
    assert pitch(samples[400:4400]) == 1000
    assert np.abs(samples[400:4400]).max() == pytest.approx(0.5, abs=0.03)


def test_a_gap_is_silence(tmp_path: Path) -> None:
    samples = read_audio(write_pieces(tmp_path / "a.mkv", [(0.0, 0.5), (1.0, 0.5)]))
    assert samples is not None
    assert len(samples) == 24_000
    assert not samples[8_100:15_900].any()
    assert np.abs(samples[16_100:]).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("pieces", "length"), [(9, 14_400), (15, 24_000 + 1728)])
def test_timestamps_that_run_ahead(tmp_path: Path, pieces: int, length: int) -> None:
    """By 12 ms every 0.1 s: once that is more than a tenth of a second, silence brings sound and time together."""
    samples = read_audio(write_pieces(tmp_path / "a.mkv", [(index * 0.112, 0.1) for index in range(pieces)]))
    assert samples is not None
    assert len(samples) == pytest.approx(length, abs=2)


@pytest.mark.parametrize(("start", "length"), [(0.3, 12_800), (0.05, 8_000), (-0.3, 8_000)])
def test_sound_and_picture_share_one_clock(tmp_path: Path, start: float, length: int) -> None:
    """Sound that begins later follows silence; where it begins earlier, the clip begins with it."""
    reader = ClipReader(write_pieces(tmp_path / "a.nut", [(start, 0.5)], video=True), [View(10.0, 16)])
    times = [frame.time for frame in reader]
    assert reader.audio is not None
    assert len(reader.audio) == pytest.approx(length, abs=16)
    assert len(times) == (13 if start < 0 else 10)
    assert reader.duration == pytest.approx(1.3 if start < 0 else 1.0, abs=0.01)


def test_a_stream_that_changes_its_rate_and_layout(tmp_path: Path) -> None:
    data = b""
    for index, (rate, layout) in enumerate([(44_100, "stereo"), (22_050, "mono")]):
        part = tmp_path / f"{index}.aac"
        with av.open(str(part), "w", format="adts") as container:
            stream = container.add_stream("aac", rate=rate, layout=layout)
            resampler = av.AudioResampler("fltp", layout, rate, 1024)
            frame = av.AudioFrame.from_ndarray(tone(500 * (index + 1), 1.0, rate), "flt", "mono")
            frame.rate = rate
            for piece in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
        data += part.read_bytes()
    (tmp_path / "a.aac").write_bytes(data)
    samples = read_audio(tmp_path / "a.aac")
    assert samples is not None
    assert len(samples) == pytest.approx(32_000, abs=2500)
    assert pitch(samples[4_000:12_000]) == 500
    assert pitch(samples[20_000:28_000]) == 1000


def test_the_default_track_is_heard_and_seen(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        for index in range(2):
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            audio = container.add_stream("pcm_f32le", rate=16_000, layout="mono")
            for stream in (video, audio):
                stream.disposition = DEFAULT if index == 1 else 0
        for index, (video, audio) in enumerate(zip(container.streams.video, container.streams.audio, strict=True)):
            image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 + 160 * index, np.uint8), "rgb24")
            container.mux((*video.encode(image), *video.encode(None)))
            frame = av.AudioFrame.from_ndarray(tone(500 * (index + 1), 0.5, 16_000), "flt", "mono")
            frame.rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            container.mux((*audio.encode(frame), *audio.encode(None)))
    reader = ClipReader(tmp_path / "a.mkv", [View(1.0, 16)])
    (picture,) = list(reader)
    assert picture.image.mean() == pytest.approx(200, abs=4)
    assert reader.audio is not None
    assert pitch(reader.audio) == 1000


@pytest.mark.parametrize("pieces", [[(0.0, 2.0)], [(0.7, 1.0)], [(0.0, 0.2), (1.5, 0.5)], [(0.0, 1.2), (1.5, 0.0)]])
def test_long_sound_in_a_file_equals_sound_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, float]]
) -> None:
    path = write_pieces(tmp_path / "a.mkv", [piece for piece in pieces if piece[1]], video=True)
    sounds = []
    for limit in (10**9, 10_000):
        monkeypatch.setattr(sound_module, "_SAMPLES_IN_MEMORY", limit)
        sounds.append(read_clip_audio(path))
    assert not isinstance(sounds[0], np.memmap)
    assert isinstance(sounds[1], np.memmap)
    np.testing.assert_array_equal(*sounds)


def read_clip_audio(path: Path) -> np.ndarray | None:
    reader = ClipReader(path, [View(1.0, 16)])
    list(reader)
    return reader.audio


def test_a_gap_beyond_the_limit_costs_nothing(tmp_path: Path) -> None:
    path = write_pieces(tmp_path / "a.nut", [(0.0, 0.1), (10**6, 0.1)])
    with pytest.raises(MediaError) as caught:
        read_audio(path, Limits(max_duration=1000.0))
    assert caught.value.kind == "too-long"
