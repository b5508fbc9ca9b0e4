"""Decoding video and audio files with PyAV (FFmpeg) in one pass.

Frames are chosen by timestamp, not by counting: row k at rate r is the frame a player shows at time k/r. Every rule of
time:

- Time 0 is the first video frame, or the start of the sound where that is earlier by more than a tenth of a second.
- A clip of d seconds has the rows with k/r < d, at least one; d is the end of the last video frame.
- Sound that starts late is preceded by zeros, so that spectrogram frames and video rows share one clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eao.errors import MediaError
from eao.features.container import (
    Clock,
    audio_stream,
    decode_streams,
    open_media,
    picture_size,
    stated_duration,
    video_stream,
)
from eao.features.frames import SampledFrame, Sampler, View
from eao.features.limits import Budget, Limits
from eao.features.pictures import Deinterlacer
from eao.features.sound import SAMPLE_RATE, Sound

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

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


def probe(path: str | Path, limits: Limits | None = None) -> MediaInfo:
    """Read the header of a media file, without decoding.

    Raises:
        MediaError: if the file is missing, empty, larger than the limit, or no known media format.

    Example:
        >>> probe("clip.mp4")  # doctest: +SKIP
        MediaInfo(duration=4.0, width=192, height=192, fps=25.0, has_video=True, has_audio=True)
    """
    with open_media(Path(path), limits or Limits()) as container:
        video, audio = video_stream(container), audio_stream(container)
        width, height = picture_size(Path(path), video) if video is not None else (0, 0)
        return MediaInfo(
            duration=stated_duration(container),
            width=width,
            height=height,
            fps=float(video.average_rate or 0) if video is not None else 0.0,
            has_video=video is not None,
            has_audio=audio is not None,
        )


class ClipReader:
    """Decodes one file in a single pass: iterate over its frames, then read `audio` and `duration`.

    Memory does not grow with the length of the file: frames are resized as they are decoded, and sound of more than ten
    minutes goes to a temporary file (64 kB a second, in `$TMPDIR`), of which `audio` is a map. Each frame is rotated
    upright, scaled and cropped as its view says.

    Args:
        path: a video file.
        views: the frames that are wanted, those of all views come in order of time; none for the sound alone, which
            needs no video.
        want_audio: whether to decode the sound too.
        threads: of the video decoder; 1 is best when several clips are decoded side by side.
        limits: what the file may demand.
        progress: called for each packet.

    Raises:
        MediaError: while iterating, if the file is missing, unreadable, damaged, truncated, over a limit, or holds no
            video. A file that fails at its end has given its frames by then: the caller drops them.
    """

    def __init__(
        self,
        path: str | Path,
        views: Sequence[View],
        want_audio: bool = True,
        threads: int = 1,
        limits: Limits | None = None,
        progress: Callable[[], None] | None = None,
    ) -> None:
        if any(view.rate <= 0 or view.side <= 0 for view in views):
            raise ValueError(f"views must be of positive rate and size, not {list(views)}")
        self.path = Path(path)
        self.views = tuple(views)
        self.want_audio = want_audio
        self.threads = threads
        self.limits = limits or Limits()
        self.progress = progress
        self.audio: NDArray[np.float32] | None = None
        self.audio_file: IO[bytes] | None = None
        self.duration = 0.0

    def __iter__(self) -> Iterator[SampledFrame]:
        from av.error import FFmpegError

        with open_media(self.path, self.limits) as container:
            budget = Budget(self.path, self.limits, self.progress)
            budget.duration(stated_duration(container) or 0.0)
            audio = audio_stream(container) if self.want_audio else None
            clock = Clock(container, None, audio, budget)
            try:
                if self.views:
                    clock.video = self._prepare_video(container, budget)
                yield from self._decode(clock)
            except (FFmpegError, MemoryError) as error:
                raise clock.failure("it cannot be converted", error) from None

    def _decode(self, clock: Clock) -> Iterator[SampledFrame]:
        sampler = Sampler(self.views, clock) if clock.video is not None else None
        deinterlacer = Deinterlacer()
        sound = Sound(clock.budget)
        for stream, frame in decode_streams(clock):
            if stream is clock.audio:
                sound.add(frame)
            elif sampler is not None:
                for whole, time in deinterlacer.add(frame, clock.frame_time(frame)):
                    yield from sampler.add(whole, time)
        clock.check_end()
        if sampler is not None:
            for whole, time in deinterlacer.flush():
                yield from sampler.add(whole, time)
            yield from sampler.finish()
        sound.finish(clock.origin)
        self.audio, self.audio_file = sound.samples, sound.file
        if sampler is not None:
            self.duration = sampler.end
        elif self.audio is not None:
            self.duration = self.audio.size / SAMPLE_RATE

    def _prepare_video(self, container: InputContainer, budget: Budget) -> VideoStream:
        video = video_stream(container)
        if video is None:
            raise MediaError(f"{self.path} has no video stream", "for sound alone, give it as audio", "no-video-stream")
        if video.codec_context is None:
            raise MediaError(
                f"{self.path}: there is no decoder for its video",
                "encode it again, for example as H.264",
                "unsupported-codec",
            )
        budget.dimensions(*picture_size(self.path, video))
        video.codec_context.thread_count = self.threads
        video.codec_context.options = {"max_pixels": str(self.limits.max_pixels)}  # it may change on the way
        return video


def read_audio(path: str | Path, limits: Limits | None = None) -> NDArray[np.float32] | None:
    """The sound of an audio or video file: (samples,) float32, mono at 16 kHz; None without an audio stream.

    The 4 dB by which AVLnet's recipe attenuates the sound is left out: it keeps 16-bit samples from clipping, and
    cancels in a spectrogram that is relative to its own maximum.

    Raises:
        MediaError: if the file is missing, unreadable, damaged, truncated or over a limit.
    """
    reader = ClipReader(path, (), limits=limits)
    for _ in reader:
        pass
    return reader.audio
