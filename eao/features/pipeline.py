"""Decoding clips in threads ahead of the network, through a bounded queue."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eao.errors import MediaError
from eao.features.backbones import FRAME_SIZE
from eao.features.media import ClipReader, SampledFrame
from eao.features.spectrogram import log_mel

if TYPE_CHECKING:
    from eao.features.extract import FeatureExtractor

_AHEAD = 16  # pieces of at most one network batch: about 20 MB at 8 frames of 224 x 224
_POLL = 0.2  # seconds after which a waiting thread looks whether it should stop


@dataclass(frozen=True)
class Decoded:
    """A piece of a decoded clip: frames for the network, or, as the last piece, what remains.

    Attributes:
        clip_id: which clip.
        images: (n, 224, 224, 3) uint8, at most one batch; None in the last piece.
        rows: for each frame, which streams sample it.
        is_last: whether the clip ends here.
        spectrogram: (40, T) in the last piece of a clip with sound.
        duration: seconds, in the last piece.
        error: in the last piece, why the clip could not be decoded.
    """

    clip_id: str
    images: NDArray[np.uint8] | None = None
    rows: tuple[tuple[bool, ...], ...] = ()
    is_last: bool = False
    spectrogram: NDArray[np.float32] | None = None
    duration: float = 0.0
    error: MediaError | None = None


@contextlib.contextmanager
def decode_ahead(
    clips: Mapping[str, Path], extractor: FeatureExtractor, threads: int = 1
) -> Iterator[Iterator[Decoded]]:
    """Decode clips in threads; gives an iterator over the pieces, those of one clip in order.

    Leaving the block, also through an exception or Ctrl-C, stops the threads.
    """
    waiting: queue.SimpleQueue[tuple[str, Path]] = queue.SimpleQueue()
    for item in clips.items():
        waiting.put(item)
    ready: queue.Queue[Decoded | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: Decoded | BaseException | None) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=_POLL)
                return True
        return False

    def work() -> None:
        try:
            while not stop.is_set():
                try:
                    clip_id, path = waiting.get_nowait()
                except queue.Empty:
                    break
                for piece in _decode_clip(clip_id, path, extractor):
                    if not put(piece):
                        return
            put(None)
        except BaseException as error:
            put(error)

    workers = [threading.Thread(target=work, name=f"decoder-{i}", daemon=True) for i in range(max(1, threads))]

    def pieces() -> Iterator[Decoded]:
        running = len(workers)
        while running:
            item = ready.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item

    for worker in workers:
        worker.start()
    try:
        yield pieces()
    finally:
        stop.set()
        for worker in workers:
            worker.join(timeout=5.0)  # a thread inside FFmpeg cannot be interrupted; it writes nothing and ends with us


def _decode_clip(clip_id: str, path: Path, extractor: FeatureExtractor) -> Iterator[Decoded]:
    """The pieces of one clip. A file that cannot be decoded ends in a piece with the error."""
    try:
        if not extractor.streams:
            spectrogram, duration = extractor.decode_sound(path)
            yield Decoded(clip_id, is_last=True, spectrogram=spectrogram, duration=duration)
            return
        reader = ClipReader(path, extractor.rates, FRAME_SIZE)
        batch: list[SampledFrame] = []
        for frame in reader:
            batch.append(frame)
            if len(batch) == extractor.batch_size:
                yield _piece(clip_id, batch)
                batch = []
        if batch:
            yield _piece(clip_id, batch)
        sound = log_mel(reader.audio) if reader.audio is not None else None
        yield Decoded(clip_id, is_last=True, spectrogram=sound, duration=reader.duration)
    except MediaError as error:
        yield Decoded(clip_id, is_last=True, error=error)


def _piece(clip_id: str, batch: list[SampledFrame]) -> Decoded:
    return Decoded(clip_id, np.stack([frame.image for frame in batch]), tuple(frame.rows for frame in batch))
