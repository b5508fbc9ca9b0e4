from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import pytest
import torch

from eao.features.compute import StoppedError, compute_apart, compute_joined


def mean(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).mean(axis=1, keepdims=True).astype(np.float32)


def batches(count: int, rows: int = 3, side: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (rows, side, side, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("way", [partial(compute_apart, 2), compute_joined])
def test_each_batch_gets_its_own_outputs(way: Callable[..., AbstractContextManager]) -> None:
    given = [*batches(9), *batches(4, rows=1, side=6)]
    with way(threading.Event()) as compute:
        waiting = [compute(mean, images, 8) for images in given]
        for images, wait in zip(given, waiting, strict=True):
            np.testing.assert_array_equal(wait(), mean(images))


@pytest.mark.parametrize("way", [partial(compute_apart, 2), compute_joined])
def test_an_error_reaches_all_who_wait_and_the_next_batch_works(way: Callable[..., AbstractContextManager]) -> None:
    def fail(images: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    with way(threading.Event()) as compute:
        waiting = [compute(fail, images, 8) for images in batches(3)]
        for wait in waiting:
            with pytest.raises(ZeroDivisionError):
                wait()
        assert compute(mean, batches(1)[0], 8)().shape == (3, 1)


@pytest.mark.parametrize("way", [partial(compute_apart, 1), compute_joined])
def test_who_asks_when_the_job_stops_is_told(way: Callable[..., AbstractContextManager]) -> None:
    stop = threading.Event()
    with way(stop) as compute:
        stop.set()
        with pytest.raises(StoppedError):
            compute(mean, batches(1)[0], 8)


def test_on_a_cpu_each_batch_has_one_thread_of_torch_and_others_keep_theirs() -> None:
    before = torch.get_num_threads()
    seen = []

    def look(images: np.ndarray) -> np.ndarray:
        seen.append(torch.get_num_threads())
        return mean(images)

    with compute_apart(3, threading.Event()) as compute:
        for wait in [compute(look, images, 8) for images in batches(6)]:
            wait()
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_who_asks_waits_while_enough_is_queued() -> None:
    gate, started = threading.Event(), threading.Semaphore(0)
    done: list[int] = []

    def wait_at_gate(images: np.ndarray) -> np.ndarray:
        gate.wait(20)
        return mean(images)

    def ask(compute: Callable[..., Callable[[], np.ndarray]]) -> None:
        for index, images in enumerate(batches(10)):
            compute(wait_at_gate, images, 8)
            done.append(index)
            started.release()

    with compute_apart(2, threading.Event()) as compute:
        thread = threading.Thread(target=ask, args=(compute,))
        thread.start()
        for _ in range(4):
            assert started.acquire(timeout=20)
        assert not started.acquire(timeout=0.3)
        gate.set()
        thread.join(20)
    assert done == list(range(10))


def test_batches_that_wait_are_joined_up_to_the_size_and_only_with_their_like() -> None:
    gate, sizes = threading.Event(), []

    def record(images: np.ndarray) -> np.ndarray:
        gate.wait(20)
        sizes.append(images.shape[:2])
        return mean(images)

    first, *rest = batches(6)
    other = batches(1, rows=2, side=6)[0]
    with compute_joined(threading.Event()) as compute:
        waiting = [compute(record, images, 8) for images in (first, *rest[:3], other, *rest[3:])]
        gate.set()
        for wait in waiting:
            wait()
    # The first may run alone, before the others arrive.
    assert sum(rows for rows, _ in sizes) == 6 * 3 + 2
    assert max(rows for rows, _ in sizes) == 6
    assert (2, 6) in sizes
