from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.errors import MediaError
from eao.features.frames import View
from eao.features.media import ClipReader, probe, read_audio

ClipWriter = Callable[..., Path]


class Clip(NamedTuple):
    """What a reader gave: frames of all views in order, the time and view of each, and what comes after them."""

    times: list[float]
    frames: np.ndarray
    views: list[int]
    audio: np.ndarray | None
    duration: float


def read_clip(path: Path, rates: list[float], size: int = 16) -> Clip:
    reader = ClipReader(path, [View(rate, size) for rate in rates])
    sampled = list(reader)
    images = np.stack([frame.image for frame in sampled])
    return Clip([f.time for f in sampled], images, [f.view for f in sampled], reader.audio, reader.duration)


def frame_numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `write_clip` these are, by their grey value 10 + 2i."""
    return [round((float(frame.mean()) - 10) / 2) for frame in frames]


def test_probe_reads_the_header(tmp_path: Path, write_clip: ClipWriter) -> None:
    info = probe(write_clip(tmp_path / "a.mp4", seconds=2.0, fps=20, size=(64, 48)))
    assert (info.width, info.height, info.fps, info.has_video, info.has_audio) == (64, 48, 20.0, True, True)
    assert info.duration == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_are_those_shown_at_the_exact_times(tmp_path: Path, write_clip: ClipWriter, suffix: str) -> None:
    clip = read_clip(write_clip(tmp_path / f"a{suffix}", seconds=2.0, fps=20), [2.0, 3.0], size=32)
    np.testing.assert_allclose(clip.times, [0, 0, 1 / 3, 0.5, 2 / 3, 1, 1, 4 / 3, 1.5, 5 / 3])
    # At 1/3 s the frame of 0.30 s is shown, at 2/3 s that of 0.65 s.
    assert frame_numbers(clip.frames) == [0, 0, 6, 10, 13, 20, 20, 26, 30, 33]
    assert clip.views == [0, 1, 1, 0, 1, 0, 1, 1, 0, 1]
    assert clip.duration == pytest.approx(2.0, abs=0.002)


def test_a_rate_above_that_of_the_video_repeats_frames(tmp_path: Path, write_clip: ClipWriter) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=0.5, fps=4, tone=None)
    clip = read_clip(path, [8.0])
    assert clip.times == [0, 0.125, 0.25, 0.375]
    assert frame_numbers(clip.frames) == [0, 0, 1, 1]


def test_variable_frame_rate(tmp_path: Path, write_clip: ClipWriter) -> None:
    path = write_clip(tmp_path / "a.mp4", times=[0, 0.1, 0.9, 1.0, 1.7], tone=None)
    clip = read_clip(path, [4.0], size=32)
    np.testing.assert_allclose(clip.times, np.arange(7) / 4)
    assert frame_numbers(clip.frames) == [0, 1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize(("seconds", "rate", "rows"), [(0.05, 2.0, 1), (0.5, 2.0, 1), (0.55, 2.0, 2), (1.5, 1.0, 2)])
def test_a_clip_of_d_seconds_has_the_rows_before_d(
    tmp_path: Path, write_clip: ClipWriter, seconds: float, rate: float, rows: int
) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=seconds, fps=20, tone=None)
    assert len(read_clip(path, [rate], size=16).frames) == rows


@pytest.mark.parametrize("size", [(64, 48), (65, 47), (17, 33), (400, 16)])
def test_any_picture_becomes_a_square(tmp_path: Path, write_clip: ClipWriter, size: tuple[int, int]) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=0.2, size=size, tone=None, colour=(200, 40, 40))
    frames = read_clip(path, [1.0], size=64).frames
    assert frames.shape == (1, 64, 64, 3)
    # One colour stays one colour; coding and the change to RGB move it by a few values.
    np.testing.assert_allclose(frames.reshape(-1, 3), np.broadcast_to([200, 40, 40], (64 * 64, 3)), atol=12)


@pytest.mark.parametrize(("rotation", "bright"), [(90, np.s_[24:, :]), (180, np.s_[:, 24:]), (-90, np.s_[:8, :])])
def test_frames_are_turned_upright(
    tmp_path: Path, write_clip: ClipWriter, rotation: int, bright: tuple[slice, slice]
) -> None:
    """The left half is bright as stored; the file says by how much a player turns it counter-clockwise."""
    frame = read_clip(write_clip(tmp_path / "a.mp4", seconds=0.1, rotation=rotation, tone=None), [1.0], size=32).frames[
        0
    ]
    assert frame[bright].mean() > 200
    assert frame.mean() < 180


def test_time_begins_at_the_first_frame(tmp_path: Path, write_clip: ClipWriter) -> None:
    clip = read_clip(write_clip(tmp_path / "a.mkv", seconds=1.0, start=5.0), [2.0], size=16)
    assert frame_numbers(clip.frames) == [0, 10]
    assert clip.duration == pytest.approx(1.0, abs=0.01)
    assert clip.audio is not None
    assert len(clip.audio) == pytest.approx(16_000, abs=1100)


def test_an_edit_list_leaves_out_the_beginning(tmp_path: Path, write_clip: ClipWriter) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=2.0, tone=None)
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # duration in ms, start in the stream's own time
    data[entry : entry + 8] = struct.pack(">Ii", 1500, 6400)
    path.write_bytes(data)
    clip = read_clip(path, [2.0])
    assert frame_numbers(clip.frames) == [10, 20, 30]
    assert clip.duration == pytest.approx(1.5, abs=0.01)


def test_recordings_that_were_joined(tmp_path: Path, write_clip: ClipWriter) -> None:
    """Time goes on where the timestamps start anew."""
    part = write_clip(tmp_path / "part.ts", seconds=1.0, fps=20).read_bytes()
    (tmp_path / "a.ts").write_bytes(part * 3)
    clip = read_clip(tmp_path / "a.ts", [2.0])
    assert len(clip.frames) == 6
    assert clip.duration == pytest.approx(3.0, abs=0.2)
    assert clip.audio is not None
    assert len(clip.audio) == pytest.approx(48_000, abs=3 * 2048)


def test_audio_is_mono_16_khz(tmp_path: Path, write_clip: ClipWriter) -> None:
    audio = read_clip(write_clip(tmp_path / "a.mp4", seconds=2.0, tone=1000.0), [1.0], size=16).audio
    assert audio is not None
    assert audio.dtype == np.float32
    assert len(audio) == pytest.approx(32_000, abs=1100)  # AAC codes blocks of 1024 samples
    spectrum = np.abs(np.fft.rfft(audio[:16_000]))
    assert int(spectrum.argmax()) == pytest.approx(1000, abs=1)
    # The encoder makes two channels of the tone, 3 dB lower each; their mean has their level.
    assert np.abs(audio[2000:14_000]).max() == pytest.approx(0.5 / 2**0.5, abs=0.04)


def test_sound_that_starts_late_follows_silence(tmp_path: Path, write_clip: ClipWriter) -> None:
    audio = read_clip(write_clip(tmp_path / "a.mp4", seconds=2.0, audio_delay=0.5), [1.0], size=16).audio
    assert audio is not None
    assert np.abs(audio[:7_500]).max() < 0.01
    assert np.abs(audio[8_500:12_000]).max() > 0.3


def test_a_video_without_sound_has_none(tmp_path: Path, write_clip: ClipWriter) -> None:
    path = write_clip(tmp_path / "a.mp4", seconds=0.3, tone=None)
    assert read_clip(path, [1.0], size=16).audio is None
    assert read_audio(path) is None


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.wav", "pcm_s16le"), ("a.flac", "flac")])
def test_sound_files(tmp_path: Path, write_sound: Callable[..., Path], name: str, codec: str) -> None:
    path = write_sound(tmp_path / name, seconds=1.0, codec=codec)
    audio = read_audio(path)
    assert audio is not None
    assert len(audio) == pytest.approx(16_000, abs=1100)
    with pytest.raises(MediaError, match="no video stream"):
        read_clip(path, [1.0])


def test_a_cover_picture_is_no_video(tmp_path: Path, write_sound: Callable[..., Path]) -> None:
    path = write_sound(tmp_path / "a.mp4", cover=True)
    assert not probe(path).has_video
    with pytest.raises(MediaError, match="no video stream"):
        read_clip(path, [1.0])


def test_a_long_video_is_streamed(tmp_path: Path, write_clip: ClipWriter) -> None:
    reader = ClipReader(write_clip(tmp_path / "a.mp4", seconds=2.0, tone=None), [View(20.0, 16)])
    frames = iter(reader)
    assert next(frames).time == 0
    frames.close()  # type: ignore[attr-defined]  # leaving early closes the file
    assert len(list(reader)) == 40


def test_truncated_files_are_errors(tmp_path: Path, write_clip: ClipWriter) -> None:
    layouts = {"front.mp4": {"movflags": "faststart"}, "back.mp4": {}, "a.mkv": {}}
    for name, options in layouts.items():
        for tone in (440.0, None):
            path = write_clip(tmp_path / name, seconds=3.0, tone=tone, options=options)
            data = path.read_bytes()
            path.write_bytes(data[: len(data) * 6 // 10])
            with pytest.raises(MediaError, match=r"truncated|cannot read"):
                read_clip(path, [2.0], size=16)


def _text(path: Path) -> Path:
    path.write_text("this is no video\n" * 500)
    return path


def _playlist(path: Path) -> Path:
    (path.parent / "secret.wav").write_bytes(b"RIFF")
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nsecret.wav\n#EXT-X-ENDLIST\n")
    return path


def _concat(path: Path) -> Path:
    path.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    return path


def _empty(path: Path) -> Path:
    path.touch()
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_text, "cannot read"),
        (_playlist, "cannot read"),
        (_concat, "cannot read"),
        (_empty, "is empty"),
        (_folder, "is a folder"),
        (lambda path: path, "No such file"),
    ],
)
def test_what_is_no_video_is_a_clear_error(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path / "a.mp4")
    for function in (probe, read_audio, lambda path: read_clip(path, [1.0])):
        with pytest.raises(MediaError, match=message) as caught:
            function(path)
        assert "a.mp4" in caught.value.message
        assert caught.value.hint


def test_a_name_that_looks_like_a_protocol_is_a_file(
    tmp_path: Path, write_clip: ClipWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "b.mp4", seconds=0.1, tone=None).rename(tmp_path / "concat:b.mp4")
    assert probe("concat:b.mp4").has_video


@pytest.fixture(scope="module")
def sound_and_vision(tmp_path_factory: pytest.TempPathFactory, write_clip: ClipWriter) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    return write_clip(folder / "a.mp4", seconds=0.5, size=(32, 32), options={"movflags": "faststart"})


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_file_gives_frames_or_a_media_error(sound_and_vision: Path, data: st.DataObject) -> None:
    content = bytearray(sound_and_vision.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=64))
        content[begin : begin + len(patch)] = patch
    path = sound_and_vision.with_name("damaged.mp4")
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        # A damaged clock may show one frame for long: at most the stated time and a minute more.
        frames = sum(1 for _, _ in zip(ClipReader(path, [View(2.0, 16)]), range(500), strict=False))
    except MediaError:
        return
    assert frames >= 1


@pytest.mark.parametrize("view", [View(0.0, 16), View(1.0, 0)])
def test_views_must_be_positive(view: View) -> None:
    with pytest.raises(ValueError, match="positive"):
        ClipReader("a.mp4", [view])
