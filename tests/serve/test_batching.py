"""Items of many requests computed together."""

from __future__ import annotations

import asyncio
import threading

import pytest

from eao.serve.batching import Batcher
from eao.serve.problems import Overloaded


class Doubling:
    """Doubles numbers, and remembers the batches; -1 has no double, -2 breaks everything."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.begun = threading.Event()

    def __call__(self, numbers: list[int]) -> list[int | Exception]:
        self.begun.set()
        assert self.go_on.wait(10)
        self.batches.append(numbers)
        if -2 in numbers:
            raise RuntimeError("broken")
        return [ValueError("negative") if x == -1 else 2 * x for x in numbers]


def batcher(compute: Doubling, size: int = 4, delay: float = 0.02, capacity: int = 100) -> Batcher[int, int]:
    return Batcher(compute, size, delay, capacity)


async def busy(batches: Batcher[int, int], compute: Doubling) -> asyncio.Task[list[int]]:
    """A request of 0 that is being computed."""
    first = asyncio.create_task(batches.submit([0]))
    while not compute.begun.is_set():
        await asyncio.sleep(0.001)
    return first


def test_requests_at_one_moment_share_batches_and_get_their_own_results() -> None:
    compute = Doubling()

    async def run() -> list[list[int]]:
        async with batcher(compute) as batches:
            return await asyncio.gather(*(batches.submit([i]) for i in range(10)))

    assert asyncio.run(run()) == [[2 * i] for i in range(10)]
    assert max(map(len, compute.batches)) == 4 and len(compute.batches) < 10


def test_a_request_of_more_than_a_batch_is_split() -> None:
    compute = Doubling()

    async def run() -> list[int]:
        async with batcher(compute) as batches:
            return await batches.submit(range(11))

    assert asyncio.run(run()) == [2 * i for i in range(11)]
    assert [len(batch) for batch in compute.batches] == [4, 4, 3]


def test_an_item_that_fails_fails_its_own_request_only() -> None:
    async def run() -> list[object]:
        async with batcher(Doubling()) as batches:
            return await asyncio.gather(batches.submit([1]), batches.submit([-1]), return_exceptions=True)

    good, bad = asyncio.run(run())
    assert good == [2] and isinstance(bad, ValueError)


def test_a_batch_that_breaks_is_told_to_all_and_the_next_one_works() -> None:
    async def run() -> tuple[list[object], list[int]]:
        async with batcher(Doubling()) as batches:
            broken = await asyncio.gather(batches.submit([1]), batches.submit([-2]), return_exceptions=True)
            return broken, await batches.submit([3])

    broken, after = asyncio.run(run())
    assert all(isinstance(error, RuntimeError) for error in broken) and after == [6]


def test_beyond_its_capacity_requests_are_refused_at_once() -> None:
    compute = Doubling()
    compute.go_on.clear()

    async def run() -> list[object]:
        async with batcher(compute, size=1, delay=0, capacity=2) as batches:
            first = await busy(batches, compute)
            waiting = [asyncio.create_task(batches.submit([i])) for i in (1, 2)]
            await asyncio.sleep(0.01)
            with pytest.raises(Overloaded, match="2 requests wait") as refused:
                await batches.submit([3])
            assert refused.value.headers == {"Retry-After": "1"}
            compute.go_on.set()
            return await asyncio.gather(first, *waiting)

    assert asyncio.run(run()) == [[0], [2], [4]]


def test_requests_that_are_given_up_leave_their_places_to_others() -> None:
    compute = Doubling()
    compute.go_on.clear()

    async def run() -> list[int]:
        async with batcher(compute, size=1, delay=0, capacity=2) as batches:
            first = await busy(batches, compute)
            given_up = [asyncio.create_task(batches.submit([number])) for number in (1, 2)]
            while batches.waiting < 2:
                await asyncio.sleep(0.001)
            for task in given_up:
                task.cancel()
            await asyncio.wait(given_up)
            assert batches.waiting == 0
            third = asyncio.create_task(batches.submit([3]))
            while batches.waiting < 1:
                await asyncio.sleep(0.001)
            compute.go_on.set()
            await first
            return await third

    assert asyncio.run(run()) == [6]


def test_a_request_that_is_given_up_is_not_computed() -> None:
    compute = Doubling()
    compute.go_on.clear()

    async def run() -> None:
        async with batcher(compute, size=1, delay=0) as batches:
            first = await busy(batches, compute)
            given_up = asyncio.create_task(batches.submit([1]))
            await asyncio.sleep(0.01)
            given_up.cancel()
            compute.go_on.set()
            await first
            await batches.submit([2])

    asyncio.run(run())
    assert [1] not in compute.batches and [2] in compute.batches


def test_requests_that_are_given_up_take_no_room_in_a_batch() -> None:
    compute = Doubling()
    compute.go_on.clear()

    async def run() -> None:
        async with batcher(compute, size=2, delay=0) as batches:
            first = await busy(batches, compute)
            given_up = [asyncio.create_task(batches.submit([number])) for number in (1, 2, 3)]
            kept = [asyncio.create_task(batches.submit([number])) for number in (4, 5)]
            while batches.waiting < 5:
                await asyncio.sleep(0.001)
            for task in given_up:
                task.cancel()
            await asyncio.wait(given_up)
            compute.go_on.set()
            await asyncio.gather(first, *kept)

    asyncio.run(run())
    assert compute.batches == [[0], [4, 5]]
