"""Computing for many requests at once: what arrives within a moment goes through the model as one batch."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from eao.serve.problems import Overloaded

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Job(Generic[T, R]):
    items: Sequence[T]
    done: asyncio.Future[list[R]]


class Batcher(Generic[T, R]):
    """Gathers the items of concurrent requests and computes them together, one batch at a time in a thread.

    While a batch is computed the next one gathers, so batches grow with the load by themselves.

    Args:
        compute: from up to `size` items to as many results. A result that is an exception is raised by the request
            that gave the item, and no other.
        size: items of a batch.
        delay: seconds that the first item of a batch waits for others, unless they are there already.
        capacity: requests that wait; more are refused.

    Example:
        async with Batcher(embed, size=16, delay=0.002, capacity=64) as batcher:
            rows = await batcher.submit(["a dog barks"])
    """

    def __init__(
        self, compute: Callable[[list[T]], Sequence[R | Exception]], size: int, delay: float, capacity: int
    ) -> None:
        self.compute = compute
        self.size = size
        self.delay = delay
        self.capacity = capacity
        self._jobs: deque[_Job[T, R]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "batch")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet and nobody gave up."""
        return sum(not job.done.done() for job in tuple(self._jobs))

    async def __aenter__(self) -> Batcher[T, R]:
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def submit(self, items: Sequence[T]) -> list[R]:
        """The results of a request's items. One that is cancelled before its batch begins costs nothing and
        leaves its place.

        Raises:
            Overloaded: too many requests wait already.
        """
        job: _Job[T, R] = _Job(items, asyncio.get_running_loop().create_future())
        if len(self._jobs) >= self.capacity:
            self._jobs = deque(waiting for waiting in self._jobs if not waiting.done.done())
        if len(self._jobs) >= self.capacity:
            raise Overloaded(f"{self.waiting} requests wait to be embedded")
        self._jobs.append(job)
        self._arrived.set()
        return await job.done

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            jobs = await self._gather()
            if not jobs:  # all were given up meanwhile
                continue
            items = [item for job in jobs for item in job.items]
            try:
                results = await loop.run_in_executor(self._thread, self._compute_all, items)
            except Exception as error:  # whatever it is, those who wait have to hear of it
                for job in jobs:
                    _fail(job.done, error)
                continue
            for job in jobs:
                _finish(job.done, results[: len(job.items)])
                results = results[len(job.items) :]

    async def _gather(self) -> list[_Job[T, R]]:
        while not self.waiting:
            self._arrived.clear()
            await self._arrived.wait()
        if self.waiting < self.size:
            await asyncio.sleep(self.delay)
        jobs: list[_Job[T, R]] = []
        while _count(jobs) < self.size and self._jobs:
            job = self._jobs.popleft()
            if not job.done.done():
                jobs.append(job)
        return jobs

    def _compute_all(self, items: list[T]) -> list[R | Exception]:
        results: list[R | Exception] = []
        for start in range(0, len(items), self.size):
            results += self.compute(items[start : start + self.size])
        return results


def _count(jobs: Sequence[_Job[T, R]]) -> int:
    return sum(len(job.items) for job in jobs)


def _finish(done: asyncio.Future[list[R]], results: list[R | Exception]) -> None:
    failed = next((result for result in results if isinstance(result, Exception)), None)
    if failed is not None:
        _fail(done, failed)
    elif not done.done():
        done.set_result([result for result in results if not isinstance(result, Exception)])


def _fail(done: asyncio.Future[list[R]], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
