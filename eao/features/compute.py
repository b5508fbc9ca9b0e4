"""Where the batches of many clips are computed.

On a CPU every batch is computed by one thread of torch, as many at a time as there are cores: several small matrix
products at once keep the cores busier than one that is split. Which frames share a batch is decided by their clip
alone, and so is the number of threads: so a clip has the same bits whatever runs beside it, and however often the job
was broken off. On other devices batches of several clips are joined, since a GPU wants far more frames than a short
clip has; there the last bit of a row may depend on its neighbours.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from eao.features.backbones import Forward, Outputs
    from eao.features.extractor import Compute

POLL = 0.2
"""Seconds after which a waiting thread looks whether it should stop."""


class StoppedError(Exception):
    """Raised inside a thread that is to stop in the middle of a clip."""


@dataclass
class _Request:
    forward: Forward
    images: NDArray[np.uint8]
    size: int
    future: Future[Outputs] = field(default_factory=Future)


@contextlib.contextmanager
def compute_apart(threads: int, stop: threading.Event) -> Iterator[Compute]:
    """Batches as they are, each on one core, `threads` at a time. Who asks waits while twice as many are queued."""
    import torch

    before = torch.get_num_threads()
    room = threading.Semaphore(2 * threads)

    def compute(forward: Forward, images: NDArray[np.uint8], size: int) -> Callable[[], Outputs]:
        while not room.acquire(timeout=POLL):
            check_stop(stop)
        check_stop(stop)
        future = pool.submit(forward, images)
        future.add_done_callback(lambda _: room.release())
        return future.result

    pool = ThreadPoolExecutor(threads, "network", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield compute
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # the threads also changed what later ones start with


@contextlib.contextmanager
def compute_joined(stop: threading.Event) -> Iterator[Compute]:
    """Batches of all clips that wait, joined up to the network's batch size where their frames are of one shape."""
    waiting: queue.Queue[_Request | None] = queue.Queue(64)

    def compute(forward: Forward, images: NDArray[np.uint8], size: int) -> Callable[[], Outputs]:
        request = _Request(forward, images, size)
        while True:
            check_stop(stop)
            with contextlib.suppress(queue.Full):
                waiting.put(request, timeout=POLL)
                return request.future.result

    def work() -> None:
        request = waiting.get()
        while request is not None:
            batch = [request]
            is_empty = False
            try:
                # What waits already is taken along; the device is never left idle for what may come.
                while (request := waiting.get_nowait()) is not None and _fits(batch, request):
                    batch.append(request)
            except queue.Empty:
                is_empty = True
            _run(batch)
            if is_empty:
                request = waiting.get()

    thread = threading.Thread(target=work, name="network", daemon=True)
    thread.start()
    try:
        yield compute
    finally:
        waiting.put(None)
        thread.join()


def check_stop(stop: threading.Event) -> None:
    """Raise StoppedError if the job is to stop."""
    if stop.is_set():
        raise StoppedError


def _fits(batch: list[_Request], request: _Request) -> bool:
    first = batch[0]
    rows = sum(len(each.images) for each in batch) + len(request.images)
    same = request.forward is first.forward and request.images.shape[1:] == first.images.shape[1:]
    return same and rows <= first.size


def _run(batch: list[_Request]) -> None:
    images = batch[0].images if len(batch) == 1 else np.concatenate([request.images for request in batch])
    try:
        outputs = batch[0].forward(images)
    except BaseException as error:
        for request in batch:
            request.future.set_exception(error)
        return
    begin = 0
    for request in batch:
        request.future.set_result(outputs[begin : begin + len(request.images)])
        begin += len(request.images)
