"""The search index at the size of a collection: disk, time to build, time to search, memory, and what is missed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydantic
from numpy.typing import NDArray

from eao.bench.clustered import Clusters
from eao.bench.docs import measured_on
from eao.bench.hardware import Hardware, describe_hardware
from eao.bench.latency import foreign_load
from eao.retrieval.clips import Compression, FileState, Row
from eao.retrieval.optimize import TOP, exact_nearest
from eao.retrieval.search import search_store
from eao.retrieval.table import ClipTable

# Q queries, E width

ENCODER = "video-audio"
RECALL = 0.95
"""What the recommended layout reaches at least."""


class Setting(NamedTuple):
    """A layout to be measured. Arguments as for `ClipStore.optimize`."""

    precision: str
    compression: Compression
    reduce: int


class LayoutRow(pydantic.BaseModel):
    """One layout.

    Attributes:
        layout: how vectors are kept and searched.
        megabytes: on the disk.
        build_seconds: to write the clips, or to get from there to this layout.
        p50_ms: of a search for 10 files, the embedding of the query not included.
        p95_ms: likewise.
        recall10: share of the 10 nearest clips that are found.
        memory_mb: that a process which searches takes beyond what it took before it opened the index.
    """

    layout: str
    megabytes: float
    build_seconds: float
    p50_ms: float
    p95_ms: float
    recall10: float
    memory_mb: float


class IndexReport(pydantic.BaseModel):
    """The measurement and its conditions."""

    hardware: Hardware
    versions: dict[str, str]
    threads: int
    vectors: int
    dim: int
    clusters: int
    spread: float
    queries: int
    foreign_cores: float | None
    rows: list[LayoutRow]

    @property
    def recommended(self) -> LayoutRow | None:
        """The fastest layout whose recall is high enough."""
        return min((row for row in self.rows if row.recall10 >= RECALL), key=lambda row: row.p50_ms, default=None)

    def to_markdown(self) -> str:
        """The table, with the machine it was measured on."""
        lines = [
            f"{self.vectors:,} unit vectors of {self.dim} numbers around {self.clusters:,} centres (spread "
            f"{self.spread:g} of theirs; variance falling as one over the rank; rotated at random), one clip a file. "
            f"{self.queries} queries: members, moved by half their length. A search gives 10 files; candidates that an "
            "approximate or reduced layout chooses are ranked by the full vectors.",
            "",
            "| vectors | MB on disk | build s | p50 ms | p95 ms | recall@10 | memory MB |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {r.layout} | {r.megabytes:,.0f} | {r.build_seconds:.0f} | {r.p50_ms:.1f} | {r.p95_ms:.1f} "
            f"| {r.recall10:.3f} | {r.memory_mb:,.0f} |"
            for r in self.rows
        ]
        best = self.recommended
        if best is not None:
            lines += ["", f"The fastest at a recall of at least {RECALL}: {best.layout}."]
        if self.foreign_cores is not None:
            lines += ["", f"Other processes kept {self.foreign_cores:.2f} cores busy meanwhile."]
        return "\n".join([*lines, "", measured_on(self.hardware, self.versions, self.threads)])


def run(
    vectors: int = 100_000,
    dim: int = 6144,
    clusters: int = 2000,
    spread: float = 0.8,
    queries: int = 100,
    reduce: Sequence[int] = (512,),
    folder: str | Path | None = None,
) -> IndexReport:
    """Measure each layout of one index.

    Args:
        vectors: how many clips.
        dim: E.
        clusters: centres that they lie around.
        spread: of the clips of a cluster, that of the centres being 1.
        queries: Q.
        reduce: widths to reduce to.
        folder: where the index is built; by default a temporary folder. It takes up to three times the vectors' size.
    """
    hardware = describe_hardware()
    source = Clusters(dim, clusters, spread)
    asked = source.queries(queries, vectors)
    rows = []
    with tempfile.TemporaryDirectory(prefix="eao-bench-", dir=folder) as place, foreign_load() as others:
        store = ClipTable(place, [ENCODER], dim)
        seconds = _fill(store, source, vectors)
        nearest = exact_nearest(store, ENCODER, asked, TOP)
        truth = [{clip.partition("#")[0] for clip in clips} for clips in nearest]
        rows.append(_measure(store, asked, truth, seconds))
        for setting in _settings(reduce):
            begin = time.perf_counter()
            store.optimize(*setting)
            seconds = time.perf_counter() - begin
            store.compact()
            rows.append(_measure(store, asked, truth, seconds))
    return IndexReport(
        hardware=hardware,
        versions={name: version(name) for name in ("lancedb", "pyarrow", "numpy")},
        threads=hardware.cores,
        vectors=vectors,
        dim=dim,
        clusters=clusters,
        spread=spread,
        queries=queries,
        foreign_cores=others.cores,
        rows=rows,
    )


def _settings(reduce: Sequence[int]) -> list[Setting]:
    compressions: tuple[Compression, ...] = ("none", "int8", "pq")
    reduced = [Setting("float32", compression, width) for width in reduce for compression in compressions]
    # Last, since what half precision loses does not come back.
    half = [Setting("float16", "none", 0), *(Setting("float16", "int8", width) for width in reduce)]
    return [*reduced, Setting("float32", "int8", 0), Setting("float32", "pq", 0), *half]


def _fill(store: ClipTable, source: Clusters, count: int) -> float:
    """Writes the clips. Gives the seconds that this took."""
    seconds, number = 0.0, 0
    for chunk in source.chunks(count):
        begin = time.perf_counter()
        files = [f"/videos/{number + i:09}.mp4" for i in range(len(chunk))]
        clips = [
            Row(f"{file}#t=0", file, 0.0, 10.0, 10.0, FileState(1, number + i), {ENCODER: x})
            for i, (file, x) in enumerate(zip(files, chunk, strict=True))
        ]
        store.replace(files, clips)
        seconds += time.perf_counter() - begin
        number += len(chunk)
    begin = time.perf_counter()
    store.compact()
    return seconds + time.perf_counter() - begin


def _measure(store: ClipTable, queries: NDArray[np.float32], truth: list[set[str]], build_seconds: float) -> LayoutRow:
    # In a process of its own, whose memory nothing else has grown; forked from one that has not opened an index.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(1) as pool:
        times, found, memory = pool.apply(_search, (store.location, queries, store.dim))
    shares = [len(files & right) / len(right) for files, right in zip(found, truth, strict=True)]
    return LayoutRow(
        layout=str(store.layout),
        megabytes=(store.size() or 0) / 1e6,
        build_seconds=build_seconds,
        p50_ms=1e3 * float(np.median(times)),
        p95_ms=1e3 * float(np.percentile(times, 95)),
        recall10=float(np.mean(shares)),
        memory_mb=memory / 1e6,
    )


def _search(location: str, queries: NDArray[np.float32], dim: int) -> tuple[list[float], list[set[str]], int]:
    gc.collect()
    before = _resident_bytes()
    store = ClipTable(location, [ENCODER], dim)
    times: list[float] = []
    found: list[set[str]] = []
    for query in (queries[0], *queries):  # the first one reads the approximate index
        begin = time.perf_counter()
        hits = search_store(store, query, {ENCODER: 1.0}, TOP)
        times.append(time.perf_counter() - begin)
        found.append({hit.file for hit in hits})
    return times[1:], found[1:], _resident_bytes() - before


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
