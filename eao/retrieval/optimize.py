"""Making an index smaller and quicker, and measuring what that costs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from eao.data.text_rows import csv_rows
from eao.errors import ConfigError, DataError
from eao.retrieval.clips import ClipStore, Floats
from eao.retrieval.search import search_store

# E embedding, K clips, Q queries

Choice: TypeAlias = Literal["none", "fp16", "int8", "pq"]
TOP = 10
QUERIES = 100
_SECONDS = 10.0  # of timing for each state of the index


@dataclass(frozen=True)
class State:
    """An index before or after a change.

    Attributes:
        layout: how vectors are kept and searched.
        megabytes: on the disk, None if the store does not tell.
        p50_ms: median time of a search for 10 files, without the time to embed the query.
        p95_ms: 95 % of searches take at most this.
        recall10: share of the 10 nearest clips by full float32 vectors that a search finds.
        R10: percentage of captions whose file is among the first 10; None without captions.
    """

    layout: str
    megabytes: float | None
    p50_ms: float
    p95_ms: float
    recall10: float
    R10: float | None = None


@dataclass(frozen=True)
class OptimizeReport:
    """What `optimize_store` did.

    Attributes:
        before: the index as it was.
        after: as it is now.
        build_seconds: time of the change.
        clips: in the index.
        queries: what the searches were for.
    """

    before: State
    after: State
    build_seconds: float
    clips: int
    queries: str

    def rows(self) -> list[dict[str, Any]]:
        """A row for each state, to be printed."""
        rows = []
        for name, state in (("before", self.before), ("after", self.after)):
            values = asdict(state)
            row: dict[str, Any] = {"": name, "vectors": values["layout"]}
            row["MB"] = "" if state.megabytes is None else f"{state.megabytes:.1f}"
            row |= {"p50 ms": f"{state.p50_ms:.1f}", "p95 ms": f"{state.p95_ms:.1f}"}
            row["recall@10"] = f"{state.recall10:.3f}"
            if state.R10 is not None:
                row["R@10 of captions"] = f"{state.R10:.1f}"
            rows.append({**row, "build s": "" if name == "before" else f"{self.build_seconds:.1f}"})
        return rows


@dataclass(frozen=True)
class Captions:
    """Sentences about indexed files.

    Attributes:
        texts: Q sentences.
        files: absolute path of the file each is about.
    """

    texts: list[str]
    files: list[str]


def read_captions(path: str | Path) -> Captions:
    """Captions from a CSV file with the columns `file` (absolute, or beside the CSV) and `caption`.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    path = Path(path)
    try:
        rows = [row for _, row in csv_rows(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the captions {path}: {error}", "give a CSV file in UTF-8") from None
    if not rows or not {"file", "caption"} <= rows[0].keys():
        raise DataError(f"{path} has no columns `file` and `caption`", "name them in its first line")
    named = [(row["caption"], row["file"]) for row in rows]
    return Captions([text for text, _ in named], [os.path.abspath(path.parent / file) for _, file in named])


def optimize_store(
    store: ClipStore,
    choice: Choice,
    reduce: int = 0,
    captions: Captions | None = None,
    embed: Callable[[list[str]], Floats] | None = None,
) -> OptimizeReport:
    """Change how an index keeps and searches its vectors, and measure it before and after.

    Args:
        store: the clips.
        choice: "fp16" keeps full vectors in half precision; "int8" and "pq" add an approximate index that chooses
            candidates, which are ranked by the full vectors; "none" takes that index away.
        reduce: choose candidates by vectors of this width, by a learned projection; 0: by full ones.
        captions: to measure R@10 with.
        embed: (Q, E) embeddings of sentences; needed for captions.

    Raises:
        ConfigError: an unknown choice.
        RetrievalError: too few clips to learn from, or something that this store cannot do.
    """
    if choice not in get_args(Choice):
        raise ConfigError(f"vectors cannot be kept as {choice!r}", f"choose of {', '.join(get_args(Choice))}")
    encoder = store.encoders[0]
    files = None
    if captions is not None and embed is not None:
        queries, shown, files = embed(captions.texts), f"{len(captions.texts)} captions", captions.files
    else:
        # Vectors that are in the index, but not among those they are compared with: as near as a query in words is not.
        source = next((e for e in store.encoders[1:] if e != "audio"), encoder)
        queries = store.sample(source, QUERIES, seed=1)
        shown = f"{len(queries)} {source} vectors of the index"
    truth = exact_nearest(store, encoder, queries, TOP)
    layout = store.layout
    before = measure_store(store, encoder, queries, truth, files)
    begin = time.perf_counter()
    precision = "float16" if choice == "fp16" else layout.precision
    store.optimize(precision, "none" if choice == "fp16" else choice, reduce)
    seconds = time.perf_counter() - begin
    store.compact()
    after = measure_store(store, encoder, queries, truth, files)
    return OptimizeReport(before, after, seconds, len(store), shown)


def exact_nearest(store: ClipStore, encoder: str, queries: Floats, k: int) -> list[list[str]]:
    """The ids of the `k` nearest clips of each query, best first, in one pass over all vectors.

    Args:
        store: the clips.
        encoder: which vectors.
        queries: (Q, E) unit norm.
        k: how many.
    """
    scores = np.full((len(queries), 0), 0, np.float32)
    names = np.empty((len(queries), 0), object)
    for ids, vectors in store.scan(encoder):
        found = queries @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
        scores = np.concatenate([scores, found], axis=1)
        names = np.concatenate([names, np.broadcast_to(np.array(ids, object), found.shape)], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, names = np.take_along_axis(scores, best, 1), np.take_along_axis(names, best, 1)
    return [list(row) for row in names]


def measure_store(
    store: ClipStore, encoder: str, queries: Floats, truth: Sequence[Sequence[str]], files: Sequence[str] | None = None
) -> State:
    """Time of a search and what it finds.

    Args:
        store: the clips.
        encoder: which vectors are compared.
        queries: (Q, E).
        truth: for each query, the ids of its nearest clips.
        files: for each query, the file that it is about.
    """
    times: list[float] = []
    search_store(store, queries[0], {encoder: 1.0}, TOP)  # the first one reads the approximate index
    for query in queries:
        begin = time.perf_counter()
        search_store(store, query, {encoder: 1.0}, TOP)
        times.append(time.perf_counter() - begin)
        if sum(times) > _SECONDS:
            break
    if store.layout.exact:  # of half precision, that is not the truth
        found = exact_nearest(store, encoder, queries, TOP)
    else:
        found = [[clip.id for clip in store.nearest(query, encoder, TOP)] for query in queries]
    shares = [len(set(ids) & set(right)) / max(len(right), 1) for ids, right in zip(found, truth, strict=True)]
    ranked = None
    if files is not None:
        lists = [search_store(store, query, {encoder: 1.0}, TOP) for query in queries]
        ranked = 100 * float(np.mean([f in {h.file for h in hits} for f, hits in zip(files, lists, strict=True)]))
    size = store.size()
    return State(
        layout=str(store.layout),
        megabytes=None if size is None else size / 1e6,
        p50_ms=1e3 * float(np.median(times)),
        p95_ms=1e3 * float(np.percentile(times, 95)),
        recall10=float(np.mean(shares)),
        R10=ranked,
    )
