"""Decoding video and audio files with PyAV (FFmpeg) in one pass.

Frames are chosen by timestamp, not by counting: row k at rate r is the frame a player shows at time k/r. Every rule of
time:

- Time 0 is the first video frame, or the start of the sound where that is earlier by more than a tenth of a second.
- A clip of d seconds has the rows with k/r < d, at least one; d is the end of the last video frame.
- Sound that starts late is preceded by zeros, so that spectrogram frames and video rows share one clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eao.errors import MediaError
from eao.features.container import (
    LATE_AUDIO,
    Clock,
    audio_stream,
    decode_streams,
    open_media,
    stated_duration,
    video_stream,
)

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SAMPLE_RATE = 16_000
"""Hz, of all sound after decoding."""

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".mts",
        ".m2ts",
        ".wmv",
        ".flv",
        ".ogv",
        ".3gp",
        ".gif",
    ]
)
AUDIO_SUFFIXES = frozenset([".wav", ".m4a", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".aac", ".wma", ".aiff", ".aif"])

_TICK = 1e-3  # Matroska rounds timestamps to milliseconds
_MAX_ASPECT = 4  # of a resized frame before the crop, against absurdly elongated pictures


@dataclass(frozen=True)
class MediaInfo:
    """What a file says about itself.

    Attributes:
        duration: seconds, None if the file does not say.
        width: pixels as stored, before rotation and pixel aspect; 0 without video.
        height: see `width`.
        fps: average frames per second, 0 without video or if unknown.
        has_video: whether there is a video stream; cover pictures of sound files do not count.
        has_audio: whether there is an audio stream.
    """

    duration: float | None
    width: int
    height: int
    fps: float
    has_video: bool
    has_audio: bool


@dataclass(frozen=True)
class SampledFrame:
    """One frame of a clip.

    Attributes:
        time: seconds from the start of the clip.
        image: (size, size, 3) uint8 RGB.
        rows: for each rate, whether this frame is a row at that rate.
    """

    time: float
    image: NDArray[np.uint8]
    rows: tuple[bool, ...]


@dataclass(frozen=True)
class Clip:
    """A whole decoded clip.

    Attributes:
        frames: (n, size, size, 3) uint8 RGB at `times`.
        times: (n,) float64 seconds, ascending: the union over all rates.
        rows: for each rate, the indices into `frames` that are its rows.
        audio: (samples,) float32, mono at 16 kHz; None without sound.
        duration: seconds of video.
    """

    frames: NDArray[np.uint8]
    times: NDArray[np.float64]
    rows: tuple[NDArray[np.int64], ...]
    audio: NDArray[np.float32] | None
    duration: float


def probe(path: str | Path) -> MediaInfo:
    """Read the header of a media file, without decoding.

    Raises:
        MediaError: if the file is missing, empty or no known media format.

    Example:
        >>> probe("clip.mp4")  # doctest: +SKIP
        MediaInfo(duration=4.0, width=192, height=192, fps=25.0, has_video=True, has_audio=True)
    """
    with open_media(Path(path)) as container:
        video, audio = video_stream(container), audio_stream(container)
        return MediaInfo(
            duration=stated_duration(container),
            width=video.width if video is not None else 0,
            height=video.height if video is not None else 0,
            fps=float(video.average_rate or 0) if video is not None else 0.0,
            has_video=video is not None,
            has_audio=audio is not None,
        )


class ClipReader:
    """Decodes one file in a single pass: iterate over its frames, then read `audio` and `duration`.

    Frames are resized as they are decoded, so that memory does not grow with the length of the video (the sound does:
    64 kB a second). Each frame is rotated upright, scaled so that its short side is `size`, and cropped to the central
    square.

    Args:
        path: a video file.
        rates: rows per second, one for each stream of features; frames are given at the union of their times.
        size: side of the square frames in pixels.
        want_audio: whether to decode the sound too.
        threads: of the video decoder; 1 is best when several clips are decoded side by side.

    Raises:
        MediaError: while iterating, if the file is missing, unreadable, damaged, truncated, or holds no video.
    """

    def __init__(
        self, path: str | Path, rates: Sequence[float], size: int = 224, want_audio: bool = True, threads: int = 1
    ) -> None:
        if not rates or min(rates) <= 0:
            raise ValueError(f"rates must be one or more positive numbers, not {list(rates)}")
        self.path = Path(path)
        self.rates = tuple(float(rate) for rate in rates)
        self.size = size
        self.want_audio = want_audio
        self.threads = threads
        self.audio: NDArray[np.float32] | None = None
        self.duration = 0.0

    def __iter__(self) -> Iterator[SampledFrame]:
        with open_media(self.path) as container:
            video = video_stream(container)
            if video is None:
                raise MediaError(f"{self.path} has no video stream", "for sound alone, give it as audio")
            if video.codec_context is None:
                raise MediaError(
                    f"{self.path}: there is no decoder for its video", "encode it again, for example as H.264"
                )
            video.codec_context.thread_count = self.threads
            audio = audio_stream(container) if self.want_audio else None
            sampler = _Sampler(self.rates, self.size, video)
            sound = _Sound(self.path)
            clock = Clock(container, video, audio)
            for stream, frame in decode_streams(self.path, container, video, audio, clock):
                if stream is audio:
                    sound.add(frame)
                else:
                    yield from sampler.add(frame, clock.frame_time(self.path, frame))
            if sampler.count == 0:
                raise MediaError(f"{self.path}: its video stream holds no frame that can be decoded", "encode it again")
            yield from sampler.finish()
            clock.check_end(self.path, container)
            self.duration = sampler.end
            self.audio = sound.finish(clock.origin)


def read_clip(
    path: str | Path, rates: Sequence[float], size: int = 224, want_audio: bool = True, threads: int = 1
) -> Clip:
    """Decode a whole clip into memory (150 kB a frame at size 224); `ClipReader` streams a long one.

    Args and errors: as for `ClipReader`.
    """
    reader = ClipReader(path, rates, size, want_audio, threads)
    frames = list(reader)
    rows = np.array([frame.rows for frame in frames])  # (frames, rates)
    return Clip(
        frames=np.stack([frame.image for frame in frames]),
        times=np.array([frame.time for frame in frames]),
        rows=tuple(np.flatnonzero(column) for column in rows.T),
        audio=reader.audio,
        duration=reader.duration,
    )


def read_frames(path: str | Path, rate: float, size: int = 224) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """The frames of a video at `rate` a second as (seconds, (size, size, 3) uint8 RGB). Errors: as for `ClipReader`."""
    for frame in ClipReader(path, [rate], size, want_audio=False):
        yield frame.time, frame.image


def read_audio(path: str | Path) -> NDArray[np.float32] | None:
    """The sound of an audio or video file: (samples,) float32, mono at 16 kHz; None without an audio stream.

    The 4 dB by which AVLnet's recipe attenuates the sound is left out: it keeps 16-bit samples from clipping, and
    cancels in a spectrogram that is relative to its own maximum.

    Raises:
        MediaError: if the file is missing, unreadable, damaged or truncated.
    """
    path = Path(path)
    with open_media(path) as container:
        audio = audio_stream(container)
        if audio is None:
            return None
        sound = _Sound(path)
        clock = Clock(container, None, audio)
        for _, frame in decode_streams(path, container, None, audio, clock):
            sound.add(frame)
        clock.check_end(path, container)
        return sound.finish(clock.origin)


class _Sampler:
    """Picks the frames that are shown at k/rate. Holds one frame at a time."""

    def __init__(self, rates: tuple[float, ...], size: int, stream: VideoStream) -> None:
        self.rates = rates
        self.next_rows = [0] * len(rates)
        self.convert = _Converter(size, stream.sample_aspect_ratio)
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
        """The rows of the last frame."""
        yield from self._emit_before(self.end)
        if not any(self.next_rows):  # a clip shorter than a tick still has its first frame
            yield from self._emit_before(2 * _TICK)

    def _emit_before(self, time: float) -> Iterator[SampledFrame]:
        image: NDArray[np.uint8] | None = None
        while True:
            row_times = [row / rate for row, rate in zip(self.next_rows, self.rates, strict=True)]
            target = min(row_times)
            if target >= time - _TICK:
                return
            if image is None:
                assert self.held is not None
                image = self.convert(self.held)
            rows = tuple(row_time == target for row_time in row_times)
            self.next_rows = [row + due for row, due in zip(self.next_rows, rows, strict=True)]
            yield SampledFrame(target, image, rows)


class _Converter:
    """Turns a decoded frame into an upright square RGB array."""

    def __init__(self, size: int, pixel_aspect: Fraction | None) -> None:
        from av.video.reformatter import VideoReformatter

        self.size = size
        aspect = float(pixel_aspect or 1)
        self.pixel_aspect = aspect if 0.1 < aspect < 10 else 1.0
        # One for the whole clip, since building its tables costs more than scaling one frame.
        self.reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        width, height = frame.width * self.pixel_aspect, float(frame.height)
        scale = self.size / min(width, height)
        # Even the crop of an absurdly elongated picture must not need gigabytes.
        width, height = (max(self.size, min(round(side * scale), _MAX_ASPECT * self.size)) for side in (width, height))
        scaled = self.reformatter.reformat(frame, width, height, "rgb24", interpolation="BICUBIC")
        array = np.asarray(scaled.to_ndarray(), dtype=np.uint8)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        square = array[top : top + self.size, left : left + self.size]
        turns = round(frame.rotation / 90) % 4  # the picture is to be turned counter-clockwise by this
        return np.ascontiguousarray(np.rot90(square, turns))


class _Sound:
    """Gathers decoded sound as mono 16 kHz float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[NDArray[np.float32]] = []
        self.resampler: Any = None
        self.start: float | None = None

    def add(self, frame: AudioFrame) -> None:
        """Take the next frame."""
        if self.start is None:
            self.start = frame.time if frame.time is not None else 0.0
        frame.pts = None  # the resampler counts samples itself
        if self.resampler is None:
            self.resampler = self._new_resampler()
        try:
            resampled = self.resampler.resample(frame)
        except ValueError:  # the stream changed its rate or layout
            self._flush()
            self.resampler = self._new_resampler()
            resampled = self.resampler.resample(frame)
        self._append(resampled)

    def finish(self, origin: float | None) -> NDArray[np.float32] | None:
        """All samples, after silence if the sound starts later than `origin` seconds; None if there are none."""
        if self.resampler is None:
            return None
        self._flush()
        samples = np.concatenate(self.parts) if self.parts else np.zeros(0, np.float32)
        late = (self.start or 0.0) - origin if origin is not None else 0.0
        if late > LATE_AUDIO:
            samples = np.concatenate([np.zeros(round(late * SAMPLE_RATE), np.float32), samples])
        # A damaged stream may decode to infinities, which would spoil the whole spectrogram.
        if not np.isfinite(samples).all():
            raise MediaError(f"{self.path}: its sound decodes to values that are no numbers", "encode it again")
        return samples if samples.size else None

    def _new_resampler(self) -> Any:
        from av.audio.resampler import AudioResampler

        return AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)

    def _flush(self) -> None:
        self._append(self.resampler.resample(None))

    def _append(self, frames: list[AudioFrame]) -> None:
        self.parts.extend(frame.to_ndarray().reshape(-1).astype(np.float32, copy=False) for frame in frames)
