"""Everything at once for a while: no error, and memory that does not grow.

A few seconds in the suite; longer, with more clients, or over another index:

    EAO_SOAK_SECONDS=60 EAO_SOAK_CLIENTS=32 EAO_SOAK_INDEX=runs/demo/index EAO_SOAK_MODEL=runs/demo/bundle \\
        python -m pytest -s tests/serve/test_soak.py
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np

from eao.bench.closed_loop import Ask, ask_in_loops, watch_memory
from eao.bench.load import Soak
from eao.bench.processes import memory_bytes
from eao.errors import ServingError

from .http_service import PATIENCE, Library, Site

SECONDS = float(os.environ.get("EAO_SOAK_SECONDS", "6"))
CLIENTS = int(os.environ.get("EAO_SOAK_CLIENTS", "8"))
INDEX = os.environ.get("EAO_SOAK_INDEX")
MODEL = os.environ.get("EAO_SOAK_MODEL", INDEX)
RATE = 1.0
"""MB a second that memory may grow by in every part of the time. A decoder that is started, or a cache that fills, is a
step in one of them, while a leak goes on; a tenth of this was measured without one."""
_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""What is freed goes back to the system, so that memory shows what is held, not what the allocator keeps for later."""
_PARTS = 4
_WORDS = ("red", "blue", "dog", "cat", "left", "right", "runs", "sleeps")


def test_all_kinds_of_requests_for_a_while(start: Callable[..., Site], library: Library) -> None:
    if INDEX is not None:
        library = Library(Path(INDEX), Path(MODEL or INDEX), library.clips)
    # Each may be sending a file at one moment.
    own = start("--uploads", CLIENTS, of=library, **_MALLOC)
    seeds = itertools.count()

    @contextlib.contextmanager
    def visit() -> Iterator[Visitor]:
        with httpx.Client(base_url=own.url, timeout=PATIENCE) as connection:
            yield Visitor(connection, random.Random(next(seeds)), (library.clips / "red.mp4").read_bytes())

    @contextlib.contextmanager
    def client() -> Iterator[Ask]:
        with visit() as visitor:
            yield visitor.ask

    with visit() as first:  # what is loaded at first use is no growth
        for kind in first.kinds:
            kind()
    ask_in_loops(client, CLIENTS, SECONDS / 2)
    with watch_memory(lambda: memory_bytes(own.process.pid), every=SECONDS / 40) as memory:
        traffic = ask_in_loops(client, CLIENTS, SECONDS)
    soak = Soak(clients=CLIENTS, traffic=traffic, memory_mb=[each / 1e6 for each in memory])
    print(
        f"\n{traffic.seconds:.0f} s, {CLIENTS} clients: {traffic.requests} requests, {traffic.throughput:.0f}/s, "
        f"p50 {traffic.p50_ms:.0f} ms, p99 {traffic.p99_ms:.0f} ms, {traffic.failed} errors; memory "
        f"{soak.memory_mb[0]:.0f} to {soak.memory_mb[-1]:.0f} MB, {soak.growth_mb:+.1f} MB after warming up"
    )
    assert traffic.errors == {} and traffic.requests > CLIENTS
    assert steady_growth(soak.memory_mb) < RATE * traffic.seconds / _PARTS


def test_a_leak_is_growth_in_every_part() -> None:
    leak = [700 + 1.1 * second for second in range(40)]
    steps = [700.0] * 15 + [730.0] * 5 + [750.0] * 20
    assert steady_growth(leak) > 1.0 * 40 / _PARTS > steady_growth(steps) == 0


def steady_growth(memory_mb: list[float]) -> float:
    """MB by which memory grew at least from one part of the time to the next, in the mean."""
    means = [float(part.mean()) for part in np.array_split(np.array(memory_mb), _PARTS)]
    return min(later - earlier for earlier, later in itertools.pairwise(means))


class Visitor:
    """Does what the page does, and now and then something wrong."""

    def __init__(self, client: httpx.Client, chance: random.Random, upload: bytes) -> None:
        self.client = client
        self.chance = chance
        self.upload = upload
        self.kinds = (self.search, self.embed, self.watch, self.send, self.err)

    def ask(self) -> None:
        """Some request, whose answer is checked."""
        self.chance.choices(self.kinds, (60, 10, 15, 1, 5))[0]()

    def search(self) -> None:
        hits = self.get("/search", 200, q=self.words(), k=10)["hits"]
        hit = self.chance.choice(hits)
        self.get(hit["thumbnail"], 200)
        if self.chance.random() < 0.2:
            self.get("/search", 200, like=hit["clip"], seen=round(self.chance.random(), 2))

    def embed(self) -> None:
        self.check(self.client.post("/embed", json={"text": [self.words() for _ in range(4)]}), 200)

    def watch(self) -> None:
        hit = self.get("/search", 200, q=self.words(), k=3)["hits"][0]
        begin = self.chance.randrange(1000)
        self.check(self.client.get(hit["url"], headers={"Range": f"bytes={begin}-{begin + 50_000}"}), 206)

    def send(self) -> None:
        self.check(self.client.post("/search", files={"file": ("x.mp4", self.upload)}, data={"k": "3"}), 200)

    def err(self) -> None:
        self.get("/search", 400)
        self.get("/videos/../../etc/passwd", 404)
        self.get("/search", 422, q="red", k=0)
        self.check(self.client.post("/search", files={"file": ("x.mp4", b"nothing")}), 400)

    def words(self) -> str:
        return " ".join(self.chance.choices(_WORDS, k=3))

    def get(self, path: str, status: int, **parameters: object) -> dict:
        answer = self.client.get(path, params=parameters or None)  # type: ignore[arg-type]
        self.check(answer, status)
        return answer.json() if answer.headers["content-type"] == "application/json" else {}

    @staticmethod
    def check(answer: httpx.Response, status: int) -> None:
        if answer.status_code != status:
            request = answer.request
            raise ServingError(f"{request.method} {request.url.path}: {answer.status_code} {answer.text[:100]}")
