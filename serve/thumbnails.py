"""Small pictures of indexed files, decoded in processes of their own and kept in memory."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor

from eao.features.decoder import DecoderPool
from eao.serve.catalog import File
from eao.serve.metrics import Metrics
from eao.serve.videos import open_file

WIDTHS = (160, 320, 480, 640)
"""Pixels; a width in between is rounded up, so that few sizes of a picture are made."""
_STEP = 0.1  # seconds between pictures
_QUALITY = 80
_CACHE = 64 * 10**6  # bytes


class Thumbnails:
    """Pictures as JPEG.

    Two requests for one picture that is not there yet decode it once.

    Args:
        pool: the decoders.
        threads: pictures that are made at once; the pool has a process for each.
        metrics: where hits and misses are counted.
    """

    def __init__(self, pool: DecoderPool, threads: int, metrics: Metrics) -> None:
        self.pool = pool
        self.metrics = metrics
        self.threads = ThreadPoolExecutor(threads, "thumbnail")
        self.kept = Kept(_CACHE)
        self._making: dict[Hashable, asyncio.Task[bytes]] = {}

    async def get(self, file: File, at: float, width: int) -> tuple[bytes, str]:
        """A picture and its entity tag.

        Args:
            file: of which.
            at: seconds; beyond the end, the last picture.
            width: pixels; see `WIDTHS`.

        Raises:
            Problem: the file is gone.
            MediaError: it has no picture.
        """
        status = await asyncio.to_thread(_status, file)
        at = round(min(at, file.duration) / _STEP) * _STEP
        width = next((size for size in WIDTHS if size >= width), WIDTHS[-1])
        key = (file.path, status.st_mtime_ns, status.st_size, round(at, 1), width)
        picture = self.kept.get(key)
        self.metrics.thumbnails.labels("memory" if picture is not None else "decoder").inc()
        if picture is None:
            if key not in self._making:
                task = asyncio.create_task(self._make(key, file.path, at, width))
                task.add_done_callback(lambda task: task.cancelled() or task.exception())  # also if nobody waits
                self._making[key] = task
            # Whoever stops waiting leaves the work to the others, and to the next one who asks.
            picture = await asyncio.shield(self._making[key])
        return picture, f'"{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}"'

    def close(self) -> None:
        """Give up the threads; those that decode end with the pool."""
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def _make(self, key: Hashable, path: str, at: float, width: int) -> bytes:
        try:
            loop = asyncio.get_running_loop()
            picture = await loop.run_in_executor(self.threads, self._draw, path, at, width)
            self.kept.put(key, picture)
            return picture
        finally:
            del self._making[key]

    def _draw(self, path: str, at: float, width: int) -> bytes:
        from PIL import Image

        image = Image.fromarray(self.pool.still(path, at, width))
        image.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY)
        return buffer.getvalue()


def _status(file: File) -> os.stat_result:
    handle, status = open_file(file)
    handle.close()
    return status


class Kept:
    """Bytes by key, the latest used ones up to a size in all. Threads may share it.

    Args:
        capacity: bytes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._values: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> bytes | None:
        """What was put there, if it is still there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: bytes) -> None:
        """Keep something, and let go of what was not used for longest."""
        with self._lock:
            self.size += len(value) - len(self._values.pop(key, b""))
            self._values[key] = value
            while self.size > self.capacity:
                self.size -= len(self._values.popitem(last=False)[1])


def processors() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
