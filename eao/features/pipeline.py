"""Extracting several clips side by side.

Each worker thread takes a clip through decoding and network alone: PyAV and torch release Python's lock, so while one
decodes another computes. On a CPU every worker computes with its share of torch's threads: several small matrix
products at once keep the cores busier than one that is split, above all when something else runs on them.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from eao.errors import MediaError

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures, FeatureExtractor

_POLL = 0.2  # seconds after which a waiting thread looks whether it should stop
_GPU_WORKERS = 4  # decoders that keep one GPU busy

Result = tuple[str, "ClipFeatures | MediaError"]


class StoppedError(Exception):
    """Raised inside a worker that is to stop in the middle of a clip."""


@contextlib.contextmanager
def extract_side_by_side(
    clips: Mapping[str, Path], extractor: FeatureExtractor, workers: int | None = None
) -> Iterator[Iterator[Result]]:
    """Extract clips in threads; gives an iterator over (id, features or why the file could not be read), in any order.

    Leaving the block, also through an exception or Ctrl-C, stops the threads.

    Args:
        clips: {id: path}.
        extractor: shared by all threads.
        workers: how many; by default as many as torch has threads, or four before a GPU.
    """
    import torch

    threads = torch.get_num_threads()
    if workers is None:
        workers = threads if extractor.device == "cpu" else _GPU_WORKERS
    workers = max(1, min(workers, len(clips)))
    waiting: queue.SimpleQueue[tuple[str, Path]] = queue.SimpleQueue()
    for item in clips.items():
        waiting.put(item)
    # Bounded, so that workers wait for the disk rather than fill the memory.
    ready: queue.Queue[Result | BaseException | None] = queue.Queue(2 * workers)
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise StoppedError

    def put(item: Result | BaseException | None) -> None:
        while True:
            check()
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=_POLL)
                return

    def work() -> None:
        torch.set_num_threads(max(1, threads // workers))  # of this thread
        try:
            while True:
                try:
                    clip_id, path = waiting.get_nowait()
                except queue.Empty:
                    break
                try:
                    put((clip_id, extractor.extract(path, check)))
                except MediaError as error:
                    put((clip_id, error))
            put(None)
        except StoppedError:
            return
        except BaseException as error:
            with contextlib.suppress(StoppedError):
                put(error)  # raised by the thread that waits

    def results() -> Iterator[Result]:
        running = workers
        while running:
            item = ready.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item

    pool = [threading.Thread(target=work, name=f"extractor-{i}", daemon=True) for i in range(workers)]
    for worker in pool:
        worker.start()
    try:
        yield results()
    finally:
        stop.set()
        for worker in pool:
            worker.join(timeout=10.0)  # each looks up after at most a batch; only the main thread writes
        torch.set_num_threads(threads)  # the workers also changed what later threads start with
