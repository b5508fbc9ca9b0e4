"""One picture of a video, by seeking: what is shown for a file without decoding all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eao.errors import MediaError
from eao.features.container import open_media, picture_size, stated_duration, video_stream
from eao.features.limits import Budget, Limits
from eao.features.pictures import Converter

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_END = 0.2  # seconds before the stated end, where a last frame is sure to lie
_FAR = 900  # frames decoded from a key frame on, before the last one is taken for what was asked for


def read_still(path: Path, time: float, side: int, limits: Limits | None = None) -> NDArray[np.uint8]:
    """The picture that is shown at a time; the nearest one that can be decoded, where there is none.

    Args:
        path: a video file.
        time: seconds from its start.
        side: pixels of the short side.
        limits: what the file may demand.

    Returns:
        (height, width, 3) uint8 RGB, upright.

    Raises:
        MediaError: it cannot be read, or holds no picture.
    """
    from av.error import FFmpegError

    limits = limits or Limits()
    with open_media(path, limits) as container:
        video = video_stream(container)
        if video is None or video.codec_context is None:
            raise MediaError(f"{path} has no video that can be decoded", "only its sound is there", "no-video-stream")
        budget = Budget(path, limits)
        budget.dimensions(*picture_size(path, video))
        video.codec_context.thread_count = 1
        video.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        try:
            frame = _frame_at(container, video, time, budget)
            if frame is None and time > 0:  # seeking fails in some damaged files: they still have a beginning
                frame = _frame_at(container, video, 0.0, budget)
            if frame is None:
                raise MediaError(f"{path}: no picture of it can be decoded", "encode it again", "no-frames")
            return Converter(video.sample_aspect_ratio)(frame, side, crop=False)
        except (FFmpegError, MemoryError) as error:
            raise MediaError(f"{path}: no picture of it can be decoded ({error})", "encode it again") from None


def _frame_at(container: InputContainer, video: VideoStream, time: float, budget: Budget) -> VideoFrame | None:
    """The last frame that begins by then, of those from the key frame before it on."""
    from av.error import FFmpegError

    duration = stated_duration(container)
    if duration is not None:
        time = min(time, max(duration - _END, 0.0))
    base = float(video.time_base or 0) or 1e-3
    target = time + (video.start_time or 0) * base
    container.seek(int(target / base), stream=video)
    found, seen = None, 0
    for packet in container.demux(video):
        budget.packet()
        try:
            frames = packet.decode()
        except FFmpegError:
            continue  # a seek may land between pictures that need each other
        for frame in frames:
            seen += 1
            budget.picture(frame.width, frame.height)
            if found is not None and frame.pts is not None and frame.pts * base > target + 1e-3:
                return found
            found = frame
        if seen >= _FAR:
            return found
    return found
