"""Opening and demuxing media files with PyAV (FFmpeg): formats, damage, and the time axis.

Files are not trusted: only known formats are opened, and none that can make FFmpeg read another file or an address.
"""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from eao.errors import MediaError, MediaKind
from eao.features.limits import Budget, Limits

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

LATE_AUDIO = 0.1
"""Seconds by which sound and picture may start apart without meaning it: codecs need that much to get going."""

_Stream = TypeVar("_Stream", bound="av.stream.Stream")
_DISPLAY_SLACK = 60.0  # seconds by which timestamps may run beyond the stated duration
_JUMP = 0.5  # seconds by which timestamps go back only where recordings were joined
_BAD_PACKETS, _BAD_SHARE = 2, 0.01  # that may fail to decode: players pass over them too
_TAIL = 4096  # bytes before the end of a file in which broken data mean that it was cut off

# FFmpeg demuxers that may open a file. Playlists (hls, dash, concat) are left out: they make FFmpeg open other files.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,h264,hevc,m4v,asf,flv,ogg,gif,wav,w64,mp3,flac,"
    "aac,aiff,amr,ac3,eac3,caf,ivf,mxf,nut"
)
# Formats that state the duration which the writer gave: a file that ends before it is truncated. In others the duration
# is guessed from the bit rate or from the first and last packet.
_STATED_DURATION = frozenset({"mov", "mp4", "matroska", "webm", "avi", "wav", "asf", "flv", "flac", "ogg"})


@dataclass
class Clock:
    """The time axis of a file: where it starts, how far its packets reach, and how much of it was read."""

    container: InputContainer
    video: VideoStream | None
    audio: AudioStream | None
    budget: Budget
    origin: float | None = None
    packets_end: float = field(default=-math.inf)
    position: int = 0
    is_cut: bool = False
    _shift: float = 0.0
    _last: float = 0.0

    def see(self, packet: Packet[Any]) -> None:
        """Note how far a packet reaches."""
        if packet.pts is not None and packet.time_base:
            self.packets_end = max(self.packets_end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.pos is not None:
            self.position = max(self.position, packet.pos + packet.size)
        if packet.size and self.video is not None and packet.stream_index == self.video.index:
            self.is_cut = packet.is_corrupt  # of the last one: its end was not there to be read

    def frame_time(self, frame: VideoFrame) -> float | None:
        """Seconds of a video frame from the start of the clip; the first one decides where that is.

        Where recordings were joined without new timestamps, time goes on after the jump.
        """
        if frame.pts is None or frame.time_base is None:
            return None
        time = float(frame.pts * frame.time_base)
        if self.origin is None:
            start = _start(self.audio)
            self.origin = start if start is not None and time - start > LATE_AUDIO else time
        time += self._shift - self.origin
        if time < self._last - _JUMP:
            resumed = self._last + float((frame.duration or 0) * frame.time_base)
            self._shift += resumed - time
            time = resumed
        self._last = time
        self.check_time(time)
        return time

    def check_time(self, time: float) -> None:
        """Raise MediaError if a frame is shown at a time that the file cannot mean, or that is over the limit."""
        path, stated = self.budget.path, stated_duration(self.container)
        if stated is not None and time > stated + _DISPLAY_SLACK:
            raise MediaError(
                f"{path}: a frame is dated {time:.0f} s in a file of {stated:.0f} s",
                "its timestamps are damaged: encode it again",
            )
        self.budget.duration(time)

    @property
    def reached(self) -> float:
        """Seconds of the clip up to which packets were read."""
        # Matroska counts the time before the first frame, MP4 does not: the doubt is the file's benefit.
        return max(self.packets_end - min((self.container.start_time or 0) / 1_000_000, 0.0), 0.0)

    def check_end(self) -> None:
        """Raise MediaError if the file ends clearly before the duration its header states."""
        stated = stated_duration(self.container)
        if stated is None or not _STATED_DURATION & set(self.container.format.name.split(",")):
            return
        if self.is_cut:
            raise self._truncated(f" after {self.reached:.1f} s, in the middle of a packet")
        if self.reached < stated - max(0.3, 0.02 * stated):
            raise self._truncated(f": it states a duration of {stated:.1f} s, its data end at {self.reached:.1f} s")

    def failure(self, what: str, error: BaseException) -> MediaError:
        """The error for data that cannot be read: at the end of the file they were cut off, elsewhere damaged."""
        if isinstance(error, MemoryError):
            return MediaError(
                f"{self.budget.path}: decoding it takes more memory than is allowed", "encode it again", "too-large"
            )
        if self.position >= self.budget.size - _TAIL:
            return self._truncated(f" after {self.reached:.1f} s: {what} ({_reason(error)})")
        return MediaError(
            f"{self.budget.path} is damaged after {self.reached:.1f} s: {what} ({_reason(error)})",
            "copy or download it again",
            at=self.reached,
        )

    def _truncated(self, detail: str) -> MediaError:
        return MediaError(
            f"{self.budget.path} is truncated{detail}", "copy or download it again", "truncated", self.reached
        )


def decode_streams(clock: Clock) -> Iterator[tuple[VideoStream | AudioStream, Any]]:
    """Demux once and decode the wanted streams, each in order of display."""
    from av.error import EOFError as EndOfFile
    from av.error import FFmpegError

    budget = clock.budget
    wanted = {stream.index: stream for stream in (clock.video, clock.audio) if stream is not None}
    begun: set[int] = set()
    read: Counter[int] = Counter()
    failed: Counter[int] = Counter()
    packets = clock.container.demux()
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError as error:
            raise clock.failure("its packets cannot be read", error) from None
        if packet is None:
            return
        clock.see(packet)
        stream = wanted.get(packet.stream.index)
        if stream is None:
            continue
        budget.packet()
        read[stream.index] += 1
        try:
            frames: list[Any] = list(packet.decode())
        except EndOfFile:
            continue
        except MemoryError as error:
            raise clock.failure(f"its {stream.type} cannot be decoded", error) from None
        except FFmpegError as error:
            # Those before the first frame do not count: a recording that was cut out of a broadcast starts in the
            # middle of a group of pictures.
            failed[stream.index] += stream.index in begun
            if failed[stream.index] > _BAD_PACKETS + _BAD_SHARE * read[stream.index]:
                raise clock.failure(f"its {stream.type} cannot be decoded", error) from None
            continue
        for frame in frames:
            begun.add(stream.index)
            if stream is clock.video:
                budget.picture(frame.width, frame.height)
            else:
                budget.sound()
            yield stream, frame


def open_media(path: Path, limits: Limits) -> InputContainer:
    """Open a media file for reading, with the safeguards of the module's docstring.

    Raises:
        MediaError: if it is missing, no plain file (also behind links), may not be read, is too large, or is no media.
    """
    from av.error import FFmpegError

    _check_file(path, limits)
    try:
        # The limit holds for frames that are decoded to find out about the file.
        return _open(path, {"max_pixels": str(limits.max_pixels)})
    except (FFmpegError, ValueError) as error:
        if _lacks_index(path):
            raise MediaError(
                f"{path} is truncated: its index, which is written last, is missing",
                "copy or download it again; of a recording that was broken off, tools like untrunc save what is there",
                "truncated",
            ) from None
        hint = "check that it is a complete video or audio file (mp4, mkv, webm, avi, mov, wav, m4a ...)"
        raise MediaError(f"cannot read {path} as video or sound: {_reason(error)}", hint, "not-media") from None


def picture_size(path: Path, video: VideoStream) -> tuple[int, int]:
    """Width and height in pixels as stored."""
    if video.width and video.height:
        return video.width, video.height
    # FFmpeg forgets the size that a file declares when its decoder refuses it: without decoders it is remembered.
    with _open(path, {"codec_whitelist": "none"}) as container:
        sizes = {stream.index: (stream.width, stream.height) for stream in container.streams.video}
        return sizes.get(video.index, (0, 0))


def _open(path: Path, options: dict[str, str]) -> InputContainer:
    import av

    options |= {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    # An absolute path cannot be taken for a protocol, as `concat:x.mp4` would be.
    return av.open(str(path.absolute()), options=options, metadata_errors="replace")


def _check_file(path: Path, limits: Limits) -> None:
    # Opening a pipe waits for a writer, and a device such as /dev/zero has no end.
    try:
        status = path.stat()
        readable = os.access(path, os.R_OK)
    except (OSError, ValueError) as error:
        kind: MediaKind = "missing" if isinstance(error, FileNotFoundError | NotADirectoryError) else "unreadable"
        raise MediaError(f"cannot read {path}: {_reason(error)}", "check the path", kind) from None
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(
            f"{path} is a folder, not a media file", "give one file, or extract the whole folder", "unreadable"
        )
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path} is a device, pipe or socket, not a file", "give a file", "unreadable")
    if not readable:
        raise MediaError(f"cannot read {path}: Permission denied", "check its permissions", "unreadable")
    if status.st_size == 0:
        raise MediaError(f"{path} is empty", "copy or download it again", "not-media")
    if status.st_size > limits.max_bytes:
        raise MediaError(
            f"{path} is a file of {status.st_size:,} bytes, the limit is {limits.max_bytes:,}",
            "cut it into parts, or raise max_bytes",
            "too-large",
        )


def _lacks_index(path: Path) -> bool:
    """Whether this is the start of an MP4 file whose `moov` box is missing or cut off."""
    size = path.stat().st_size
    position, first = 0, True
    with path.open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            header = file.read(16).ljust(16, b"\0")
            length, name = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1:
                length = int.from_bytes(header[8:], "big")
            if first and name != b"ftyp":
                return False
            if name == b"moov" and position + length <= size:
                return False
            if length < 8:  # 0: up to the end of the file
                return length == 0
            position, first = position + length, False
    return not first


def video_stream(container: InputContainer) -> VideoStream | None:
    """The video stream that a player shows: no cover picture, and the default one if several can be decoded."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return _preferred([stream for stream in container.streams.video if not stream.disposition & pictures])


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The audio stream that a player plays: of a known codec, and the default one if there are several."""
    stream = _preferred(list(container.streams.audio))
    return stream if stream is not None and stream.codec_context is not None else None


def _preferred(streams: list[_Stream]) -> _Stream | None:
    from av.stream import Disposition

    def rank(stream: _Stream) -> tuple[bool, bool]:
        return stream.codec_context is None, not stream.disposition & Disposition.default

    return min(streams, key=rank, default=None)


def stated_duration(container: InputContainer) -> float | None:
    return container.duration / 1_000_000 if container.duration is not None and container.duration > 0 else None


def _start(stream: av.stream.Stream | None) -> float | None:
    if stream is None or stream.start_time is None or stream.time_base is None:
        return None
    return float(stream.start_time * stream.time_base)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
