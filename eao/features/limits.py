"""How much a media file may demand: what is more is taken for an attack or an accident, and refused.

A file of a few kilobytes can declare pictures of gigabytes, or decode to days of them. Every limit is checked before
the memory or time is spent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from eao.errors import MediaError


@dataclass(frozen=True)
class Limits:
    """What a file may demand of its decoder.

    The defaults admit a day's recording in 8K and refuse what no camera or editor writes.

    Attributes:
        max_bytes: of the file; 200 GB.
        max_duration: seconds, as stated by the file and as decoded; 24 hours.
        max_pixels: width x height of a frame; 8192 x 4352, the largest picture of HEVC and AV1 (level 6.2).
        max_frames: decoded video frames; ten million, 24 hours at 115 frames per second.
        max_expansion: decoded pixels per byte of the file, after `free_pixels`; 250,000, three times what 60 frames per
            second of a motionless 4K screen come to.
        free_pixels: decoded pixels that no size of file needs to justify; 10^10, twenty minutes of 640 x 480.
        max_idle_packets: packets in a row of which the decoder makes nothing; 20,000.
        stall_seconds: after which a decoding process that reports no progress is ended; 60.
        worker_bytes: address space of a decoding process; 8 GB.
    """

    max_bytes: int = 200 * 10**9
    max_duration: float = 24 * 3600.0
    max_pixels: int = 8192 * 4352
    max_frames: int = 10**7
    max_expansion: float = 250_000.0
    free_pixels: int = 10**10
    max_idle_packets: int = 20_000
    stall_seconds: float = 60.0
    worker_bytes: int = 8 * 10**9

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise ValueError(f"{each.name} must be positive, not {getattr(self, each.name)}")


class Budget:
    """What the decoding of one file has used up.

    Args:
        path: the file, for messages.
        limits: what it may use.
        progress: called for each packet, to show that the decoder is alive.
    """

    def __init__(self, path: Path, limits: Limits, progress: Callable[[], None] | None = None) -> None:
        self.path = path
        self.limits = limits
        self.progress = progress
        self.size = path.stat().st_size
        self.idle_packets = 0
        self.frames = 0
        self.pixels = 0

    def packet(self) -> None:
        """A packet of a wanted stream was read.

        Raises:
            MediaError: if there were too many without a frame.
        """
        if self.progress is not None:
            self.progress()
        self.idle_packets += 1
        if self.idle_packets > self.limits.max_idle_packets:
            raise MediaError(
                f"{self.path}: nothing can be decoded from {self.limits.max_idle_packets:,} packets in a row",
                "encode it again",
            )

    def sound(self) -> None:
        """A frame of sound was decoded."""
        self.idle_packets = 0

    def picture(self, width: int, height: int) -> None:
        """A picture was decoded.

        Raises:
            MediaError: if it is too large, or there were too many, for a file of this size.
        """
        self.idle_packets = 0
        self.frames += 1
        self.pixels += width * height
        self.dimensions(width, height)
        if self.frames > self.limits.max_frames:
            raise MediaError(
                f"{self.path} holds more than {self.limits.max_frames:,} frames", "raise max_frames", "too-long"
            )
        if self.pixels > self.limits.free_pixels + self.limits.max_expansion * self.size:
            raise MediaError(
                f"{self.path}: {self.size:,} bytes decode to more than {self.pixels:.2g} pixels: a decompression bomb",
                "raise max_expansion if the file is to be trusted",
                "too-large",
            )

    def dimensions(self, width: int, height: int) -> None:
        """Raise MediaError if a picture of this size is more than is allowed."""
        if width * height > self.limits.max_pixels:
            raise MediaError(
                f"{self.path}: its pictures are of {width} x {height} pixels, the limit is {self.limits.max_pixels:,}",
                "scale the video down, or raise max_pixels",
                "too-large",
            )

    def duration(self, seconds: float) -> None:
        """Raise MediaError if the file lasts longer than is allowed."""
        if seconds > self.limits.max_duration:
            raise MediaError(
                f"{self.path} lasts {seconds:.0f} s or more, the limit is {self.limits.max_duration:.0f} s",
                "cut it into parts, or raise max_duration",
                "too-long",
            )
