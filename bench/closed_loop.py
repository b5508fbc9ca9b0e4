"""A closed loop of clients: each asks again when it was answered."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np
import pydantic

from eao.errors import EaoError

Ask = Callable[[], None]
"""Sends one request and reads the answer; raises `EaoError` if it is not the right one."""
Opener = Callable[[], AbstractContextManager[Ask]]
"""Opens a client, for one thread."""

_PAUSE = 0.1
"""Seconds that a client waits after an error, so that a refused one does not do nothing but ask."""


class Traffic(pydantic.BaseModel):
    """What clients met.

    Attributes:
        requests: that were answered.
        seconds: from the first request to the last answer.
        p50_ms, p99_ms, max_ms: of answered requests; 0 if there were none.
        errors: what went wrong -> how often.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: dict[str, int] = {}

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds

    @property
    def failed(self) -> int:
        """How many requests were not answered."""
        return sum(self.errors.values())


def ask_in_loops(open_client: Opener, clients: int, seconds: float) -> Traffic:
    """Let clients ask for a while, each in a thread of its own.

    Args:
        open_client: opens one of them.
        clients: how many.
        seconds: after which no further request is sent.
    """
    begin = 0.0

    def start() -> None:
        nonlocal begin
        begin = time.perf_counter()

    barrier = threading.Barrier(clients, action=start)

    def loop() -> tuple[list[float], Counter[str], float]:
        times: list[float] = []
        errors: Counter[str] = Counter()
        with open_client() as ask:
            barrier.wait()
            now = begin
            while now < begin + seconds:
                try:
                    ask()
                except EaoError as error:
                    errors[error.message] += 1
                    time.sleep(_PAUSE)
                    now = time.perf_counter()
                    continue
                before, now = now, time.perf_counter()
                times.append(now - before)
        return times, errors, now

    with ThreadPoolExecutor(clients) as pool:
        ended = list(pool.map(lambda _: loop(), range(clients)))
    ms = 1e3 * np.array([t for times, _, _ in ended for t in times] or [0.0])
    p50, p99 = (float(p) for p in np.percentile(ms, [50, 99]))
    return Traffic(
        requests=sum(len(times) for times, _, _ in ended),
        seconds=max(now for _, _, now in ended) - begin,
        p50_ms=p50,
        p99_ms=p99,
        max_ms=float(ms.max()),
        errors=dict(sum((errors for _, errors, _ in ended), Counter())),
    )


@contextlib.contextmanager
def watch_memory(read: Callable[[], int], every: float = 1.0) -> Iterator[list[int]]:
    """Note a number of bytes again and again while a block runs; the list has one of the start at least.

    Args:
        read: gives it.
        every: seconds from one to the next.
    """
    noted = [read()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every):
            noted.append(read())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield noted
    finally:
        done.set()
        thread.join()
