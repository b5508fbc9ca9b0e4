"""Opening and demuxing media files with PyAV (FFmpeg): formats, damage, and the time axis.

Files are not trusted: only known formats are opened, and none that can make FFmpeg read another file or an address.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eao.errors import MediaError

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

LATE_AUDIO = 0.1
"""Seconds by which sound and picture may start apart without meaning it: codecs need that much to get going."""

_DISPLAY_SLACK = 60.0  # seconds by which timestamps may run beyond the stated duration

# FFmpeg demuxers that may open a file. Playlists (hls, dash, concat) are left out: they make FFmpeg open other files.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,h264,hevc,m4v,asf,flv,ogg,gif,wav,w64,mp3,flac,"
    "aac,aiff,amr,ac3,eac3,caf,ivf,mxf,nut"
)
# Formats whose header states the duration that the writer gave: a file that ends before it is truncated. In others the
# duration is guessed from the bit rate or read from the last packet.
_STATED_DURATION = frozenset({"mov", "mp4", "matroska", "webm", "avi", "wav", "asf", "flv"})


@dataclass
class Clock:
    """The time axis of a file: where it starts, and how far its packets reach."""

    container: InputContainer
    video: VideoStream | None
    audio: AudioStream | None
    origin: float | None = None
    packets_end: float = field(default=-math.inf)

    def see(self, packet: Packet[Any]) -> None:
        """Note how far a packet reaches."""
        if packet.pts is not None and packet.time_base:
            self.packets_end = max(self.packets_end, float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def frame_time(self, path: Path, frame: VideoFrame) -> float | None:
        """Seconds of a video frame from the start of the clip; the first one decides where that is."""
        if frame.pts is None or frame.time_base is None:
            return None
        time = float(frame.pts * frame.time_base)
        if self.origin is None:
            start = _start(self.audio)
            self.origin = start if start is not None and time - start > LATE_AUDIO else time
        time -= self.origin
        stated = stated_duration(self.container)
        if stated is not None and time > stated + _DISPLAY_SLACK:
            raise MediaError(
                f"{path}: a frame is dated {time:.0f} s in a file of {stated:.0f} s",
                "its timestamps are damaged: encode it again",
            )
        return time

    def check_end(self, path: Path, container: InputContainer) -> None:
        """Raise MediaError if the file ends clearly before the duration its header states."""
        stated = stated_duration(container)
        if stated is None or not _STATED_DURATION & set(container.format.name.split(",")):
            return
        # Matroska counts the time before the first frame, MP4 does not: the doubt is the file's benefit.
        reached = self.packets_end - min((container.start_time or 0) / 1_000_000, 0.0)
        if reached < stated - max(0.3, 0.02 * stated):
            raise MediaError(
                f"{path} is truncated: its header states {stated:.1f} s, its data end at {max(reached, 0):.1f} s",
                "copy or download it again",
            )


def decode_streams(
    path: Path, container: InputContainer, video: VideoStream | None, audio: AudioStream | None, clock: Clock
) -> Iterator[tuple[VideoStream | AudioStream, Any]]:
    """Demux once and decode the wanted streams, each in order of display."""
    from av.error import EOFError as EndOfFile
    from av.error import FFmpegError

    wanted = [stream for stream in (video, audio) if stream is not None]
    begun: set[int] = set()
    packets = container.demux()
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError as error:
            raise MediaError(f"{path} is damaged or truncated: {_reason(error)}", "copy or download it again") from None
        if packet is None:
            return
        clock.see(packet)
        stream = next((stream for stream in wanted if stream.index == packet.stream.index), None)
        if stream is None:
            continue
        try:
            frames: list[Any] = list(packet.decode())
        except EndOfFile:
            continue
        except FFmpegError as error:
            # A recording that was cut out of a broadcast starts in the middle of a group of pictures.
            if stream.index not in begun and packet.pts is not None:
                continue
            raise MediaError(
                f"{path} is damaged or truncated: its {stream.type} cannot be decoded ({_reason(error)})",
                "copy or download it again",
            ) from None
        for frame in frames:
            begun.add(stream.index)
            yield stream, frame


def open_media(path: Path) -> InputContainer:
    """Open a media file for reading, with the safeguards of the module's docstring."""
    import av
    from av.error import FFmpegError

    if path.is_dir():
        raise MediaError(f"{path} is a folder, not a media file", "give one file, or extract the whole folder")
    try:
        if path.stat().st_size == 0:
            raise MediaError(f"{path} is empty", "copy or download it again")
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror}", "check the path") from None
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        # An absolute path cannot be taken for a protocol, as `concat:x.mp4` would be.
        return av.open(str(path.absolute()), options=options, metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        hint = "check that it is a complete video or audio file (mp4, mkv, webm, avi, mov, wav, m4a ...)"
        raise MediaError(f"cannot read {path} as video or sound: {_reason(error)}", hint) from None


def video_stream(container: InputContainer) -> VideoStream | None:
    """The first video stream that is no cover picture."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return next((stream for stream in container.streams.video if not stream.disposition & pictures), None)


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The first audio stream of a known codec."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def stated_duration(container: InputContainer) -> float | None:
    return container.duration / 1_000_000 if container.duration is not None and container.duration > 0 else None


def _start(stream: av.stream.Stream | None) -> float | None:
    if stream is None or stream.start_time is None or stream.time_base is None:
        return None
    return float(stream.start_time * stream.time_base)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
