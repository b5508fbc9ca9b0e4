"""What an engine costs before it answers: time to load, first run and memory, measured in a process of its own."""

from __future__ import annotations

import importlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import pydantic
import torch

from eao.bench.feeds import random_feeds
from eao.bench.latency import peak_memory
from eao.bench.roofline import weight_bytes
from eao.errors import ExportError
from eao.export.engines import PACKAGES, open_engine
from eao.export.manifest import EngineEntry, load_manifest

T = TypeVar("T")


class Cost(pydantic.BaseModel):
    """One engine.

    Attributes:
        key: of the engine in the bundle.
        file_mb: what it reads of the bundle's files, in 1e6 bytes.
        load_seconds: from the file to a session that is ready.
        first_run_ms: of the first call after that.
        memory_mb: by how much resident memory rose at its peak, from before the engine was opened until it had run at
            every size, in 1e6 bytes.
        device_mb: by how much the used memory of the GPU rose until then, if there is one. Unverified on GPU.
    """

    key: str
    file_mb: float
    load_seconds: float
    first_run_ms: float
    memory_mb: float
    device_mb: float | None = None


def measure_cost(
    folder: Path, entry: EngineEntry, plan: Sequence[dict[str, int]], threads: int | None = None, device: str = "cpu"
) -> Cost:
    """Open an engine in a new process, where no other engine has left memory or libraries behind, and run it.

    Args:
        folder: of the bundle.
        entry: the engine's.
        plan: sizes by axis, one for each run.
        threads, device: as for `open_engine`.

    Raises:
        ExportError: the process ended without an answer, for want of memory or in a crash.
    """
    return run_apart(entry.key, _measure, folder, entry, list(plan), threads, device)


def run_apart(what: str, function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a new process and give what it returns or raises.

    Args:
        what: is measured, for the error.
        function: of a module.
        arguments: that can be pickled, as can the result.

    Raises:
        ExportError: the process ended without an answer.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # each process begins with PyTorch imported
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise ExportError(
                f"the process that opened {what} ended without an answer",
                "it crashed or was out of memory: measure at a smaller batch",
            ) from None


def _measure(
    folder: Path, entry: EngineEntry, plan: Sequence[dict[str, int]], threads: int | None, device: str
) -> Cost:
    specs = load_manifest(folder).specs(entry.encoder)
    feeds = [random_feeds(specs, sizes) for sizes in plan]
    importlib.import_module(PACKAGES[entry.engine])  # the libraries that come with it are no engine's memory
    before = _device_bytes()
    with peak_memory() as memory:
        start = time.perf_counter()
        session = open_engine(folder, entry, specs, threads, device)
        loaded = time.perf_counter()
        session.run(feeds[0])
        first = time.perf_counter()
        for later in feeds[1:]:
            session.run(later)
    after = _device_bytes()
    return Cost(
        key=entry.key,
        file_mb=weight_bytes(folder, entry) / 1e6,
        load_seconds=loaded - start,
        first_run_ms=1e3 * (first - loaded),
        memory_mb=memory.growth / 1e6,
        device_mb=None if before is None or after is None else (after - before) / 1e6,
    )


def _device_bytes() -> int | None:
    """Memory of the GPU that is in use, by this process or another."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free
