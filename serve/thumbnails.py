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
from dataclasses import dataclass

from eao.features.decoder import DecoderPool
from eao.serve.catalog import File
from eao.serve.metrics import Metrics
from eao.serve.problems import Overloaded
from eao.serve.videos import open_file

WIDTHS = (160, 320, 480, 640)
"""Pixels; a width in between is rounded up, so that few sizes of a picture are made."""
_STEP = 0.1  # seconds between pictures
_QUALITY = 80
_CACHE = 64 * 10**6  # bytes


@dataclass(frozen=True)
class Still:
    """A picture that somebody wants.

    Attributes:
        path: of the file.
        modified: when it was last changed, nanoseconds since 1970.
        size: of the file, bytes.
        at: seconds.
        width: pixels.
    """

    path: str
    modified: int
    size: int
    at: float
    width: int

    @property
    def etag(self) -> str:
        """The entity tag of the picture."""
        return f'"{hashlib.sha256(repr(self).encode()).hexdigest()[:24]}"'


@dataclass
class _Work:
    picture: asyncio.Future[bytes]
    waiting: int = 0


class Thumbnails:
    """Pictures as JPEG.

    Two requests for one picture that is not there yet decode it once. One that nobody waits for any more before its
    turn came is not made.

    Args:
        pool: the decoders.
        threads: pictures that are made at once; the pool has a process for each.
        capacity: pictures that are made or wait for it; more are refused.
        metrics: where hits and misses are counted.
    """

    def __init__(self, pool: DecoderPool, threads: int, capacity: int, metrics: Metrics) -> None:
        self.pool = pool
        self.capacity = capacity
        self.metrics = metrics
        self.threads = ThreadPoolExecutor(threads, "thumbnail")
        self.kept = Kept(_CACHE)
        self._work: dict[Still, _Work] = {}

    async def find(self, file: File, at: float, width: int) -> Still:
        """Which picture that is.

        Args:
            file: of which.
            at: seconds; beyond the end, the last picture.
            width: pixels; see `WIDTHS`.

        Raises:
            Problem: the file is gone.
        """
        status = await asyncio.to_thread(_status, file)
        at = round(round(min(at, file.duration) / _STEP) * _STEP, 1)
        width = next((size for size in WIDTHS if size >= width), WIDTHS[-1])
        return Still(file.path, status.st_mtime_ns, status.st_size, at, width)

    async def get(self, wanted: Still) -> bytes:
        """A picture.

        Raises:
            Overloaded: too many are to be made.
            MediaError: the file has none.
        """
        picture = self.kept.get(wanted)
        self.metrics.thumbnails.labels("memory" if picture is not None else "decoder").inc()
        if picture is not None:
            return picture
        work = self._work.get(wanted) or self._begin(wanted)
        work.waiting += 1
        try:
            return await asyncio.shield(work.picture)
        finally:
            work.waiting -= 1
            if not work.waiting:
                del self._work[wanted]
                work.picture.cancel()  # if it is being made in this moment, it is kept all the same

    def close(self) -> None:
        """Give up the threads; those that decode end with the pool."""
        self.threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, wanted: Still) -> _Work:
        if len(self._work) >= self.capacity:
            raise Overloaded(f"{len(self._work)} pictures are being made already")
        made = asyncio.get_running_loop().run_in_executor(self.threads, self._make, wanted)
        self._work[wanted] = work = _Work(made)
        return work

    def _make(self, wanted: Still) -> bytes:
        picture = self.kept.get(wanted)  # which those who asked first did not wait for
        if picture is None:
            picture = self._draw(wanted.path, wanted.at, wanted.width)
            self.kept.put(wanted, picture)
        return picture

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
