"""Retrieval metrics, with the numbers and the tie rule of the authors' evaluation.

A task is named by what queries and what is found: `t2v` ranks videos for each sentence, `va2t` sentences for each video
with its sound, `t2v+a` videos by the mean of the separate video and audio embeddings.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from eao.errors import ConfigError, DataError

if TYPE_CHECKING:
    from eao.evaluation.published import Published

# Q queries, G gallery items, E embedding

log = logging.getLogger(__name__)

Metrics = dict[str, float]

SHORT_NAMES = {
    "t": "text",
    "v": "video",
    "a": "audio",
    "tv": "text-video",
    "ta": "text-audio",
    "va": "video-audio",
    "t+v": "text+video",
    "t+a": "text+audio",
    "v+a": "video+audio",
}
"""The short names in task names, and the encoders they stand for."""

# The nine similarities the authors compute. The reverse tasks read their transposes.
_PAIRS = ("t2v", "t2a", "t2va", "t2v+a", "v2a", "v2ta", "v2t+a", "a2tv", "a2t+v")
# Accepted in the authors' configurations, but their results are always empty.
_NEVER_COMPUTED = ("t2v_va", "t2a_va", "v2t_ta", "v2a_ta", "a2t_tv", "a2v_tv")


def _reverse(task: str) -> str:
    query, _, gallery = task.partition("2")
    return f"{gallery}2{query}"


TASKS = tuple(name for task in _PAIRS for name in (task, _reverse(task)))
"""Every task that can be evaluated."""
_ACCEPTED = (*TASKS, *_NEVER_COMPUTED, *map(_reverse, _NEVER_COMPUTED))

_COLUMNS = ("R1", "R5", "R10", "R50", "MedR", "MeanR")
_BLOCK = 1 << 24  # compared at once in `ranks`, bounds the temporary memory to some 32 MB

TieRule = Literal["averaging", "optimistically"]


def unit_norm(x: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows divided by their length, or by 1e-8 where that is smaller: (n, E) -> (n, E) float32."""
    x = np.asarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-8))


def similarity(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float32]:
    """Cosine similarity of every row of `a` with every row of `b`: (Q, E), (G, E) -> (Q, G) float32."""
    return unit_norm(a) @ unit_norm(b).T


def ranks(
    similarities: NDArray[np.number],
    positives: NDArray[np.integer] | None = None,
    break_ties: TieRule = "averaging",
) -> NDArray[np.float64]:
    """The rank of each query's right answer, 0 = first.

    A right answer that shares its similarity (by floating-point equality) with others gets the mean of their places,
    which may be a fraction, so that an embedding that collapsed to one point does not score. Queries whose right answer
    has a similarity of NaN or infinity have no rank and are left out, with a warning.

    Args:
        similarities: (Q, G).
        positives: (Q,) the column of each query's right answer; by default row i belongs to column i.
        break_ties: "optimistically" gives the best of the shared places instead of their mean.

    Returns:
        (Q',) float64, Q' <= Q, in the order of the queries.

    Raises:
        DataError: for a wrong shape, or more queries than items without `positives`.
    """
    similarities = np.asarray(similarities)
    if similarities.ndim != 2:
        raise DataError(f"similarities must be a (queries, gallery) matrix, not of shape {similarities.shape}")
    queries, gallery = similarities.shape
    columns = np.arange(queries) if positives is None else np.asarray(positives)
    if positives is None and queries > gallery:
        raise DataError(
            f"{queries} queries for {gallery} items: some have no right answer",
            "give `positives`, the column of each query's right answer",
        )
    if columns.shape != (queries,) or (queries and not 0 <= columns.min() <= columns.max() < gallery):
        raise DataError(f"positives must be {queries} columns between 0 and {gallery - 1}")
    result = np.empty(queries)
    rows = max(1, _BLOCK // max(gallery, 1))
    for start in range(0, queries, rows):
        block = similarities[start : start + rows]
        right = np.take_along_axis(block, columns[start : start + rows, None], axis=1)
        better = np.count_nonzero(block > right, axis=1)
        shared = np.count_nonzero(block == right, axis=1)
        result[start : start + rows] = better + ((shared - 1) / 2 if break_ties == "averaging" else 0)
        result[start : start + rows][~np.isfinite(right[:, 0])] = np.nan
    found = np.isfinite(result)
    if not found.all():
        log.warning("%d of %d queries have no rank: their similarity is NaN or infinite", (~found).sum(), queries)
    return result[found]


def retrieval_metrics(
    similarities: NDArray[np.number],
    complete_dataset_size: int | None = None,
    positives: NDArray[np.integer] | None = None,
    break_ties: TieRule = "averaging",
) -> Metrics:
    """Recall at 1, 5, 10 and 50 in percent, median and mean rank (1 = first).

    Args:
        similarities: (Q, G).
        complete_dataset_size: number of queries of the full data set where some are missing here: the missing
            ones count as errors in the recalls, not in the ranks.
        positives: see `ranks`.
        break_ties: see `ranks`.

    Returns:
        `R1 R5 R10 R50 MedR MeanR geometric_mean_R1-R5-R10`; the ranks are NaN if no query has one.

    Example:
        >>> retrieval_metrics(np.eye(4))["R1"]
        100.0
    """
    rank = ranks(similarities, positives, break_ties)
    return metrics_from_ranks(rank, count_queries(len(similarities), complete_dataset_size))


def count_queries(queries: int, complete_dataset_size: int | None = None) -> int:
    """The number of queries that recalls are divided by: those of the full data set where it is larger.

    Raises:
        DataError: there are no queries.
        ConfigError: the full data set is smaller than what is here.
    """
    total = queries if complete_dataset_size is None else complete_dataset_size
    if queries == 0:
        raise DataError("there is nothing to evaluate: no queries", "check the split and the captions file")
    if total < queries:
        raise ConfigError(
            f"evaluation.complete_dataset_size is {total}, but there are {queries} queries",
            "it counts the items of the full data set, of which some may be missing here",
        )
    return total


def metrics_from_ranks(rank: NDArray[np.floating], total: int) -> Metrics:
    """The metrics of `retrieval_metrics` from the ranks of `ranks`.

    Args:
        rank: (Q',) the ranks, 0 = first, of the queries that have one.
        total: number of queries, of which those without a rank are errors.
    """
    values, counts = np.unique(rank, return_counts=True)
    return {name: float(column[0]) for name, column in metrics_from_counts(values, counts[None], total).items()}


def metrics_from_counts(
    values: NDArray[np.floating], counts: NDArray[np.integer], total: int
) -> dict[str, NDArray[np.float64]]:
    """The metrics of S sets of ranks at once, each set told by how often each rank occurs in it.

    Args:
        values: (V,) the ranks that occur, 0 = first, ascending and each once.
        counts: (S, V) how often each occurs in each set.
        total: number of queries of every set, of which those without a rank are errors.

    Returns:
        metric -> (S,); the median and mean rank are NaN for a set without any rank.
    """
    cumulative = np.cumsum(counts, axis=1)
    ranked = cumulative[:, -1] if len(values) else np.zeros(len(counts), dtype=np.int64)
    found = {"R1": values == 0} | {f"R{k}": values < k for k in (5, 10, 50)}
    metrics = {name: 100.0 * (counts @ is_found.astype(np.int64)) / total for name, is_found in found.items()}
    metrics["MedR"], metrics["MeanR"] = np.full((2, len(counts)), np.nan)
    some = ranked > 0
    if some.any():
        # The two middle ranks, which are one and the same for an odd number.
        middle = [_rank_at(values, cumulative[some], (ranked[some] - 1 + upper) // 2) for upper in (0, 1)]
        metrics["MedR"][some] = (middle[0] + middle[1]) / 2 + 1
        metrics["MeanR"][some] = counts[some] @ values / ranked[some] + 1
    metrics["geometric_mean_R1-R5-R10"] = (metrics["R1"] * metrics["R5"] * metrics["R10"]) ** (1 / 3)
    return metrics


def _rank_at(
    values: NDArray[np.floating], cumulative: NDArray[np.integer], place: NDArray[np.integer]
) -> NDArray[np.floating]:
    """The rank at a place, 0 = lowest, of every set: values (V,), cumulative counts (S, V), places (S,) -> (S,)."""
    return values[np.count_nonzero(cumulative <= place[:, None], axis=1)]


def check_task(task: str) -> str:
    """The task's name without the suffix `_metrics` that the authors' configurations carry.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    name = task.removesuffix("_metrics")
    if name not in _ACCEPTED:
        near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown retrieval task {task!r}", f"{hint}known: {' '.join(TASKS)}")
    return name


def task_encoders(tasks: Iterable[str]) -> tuple[str, ...]:
    """The encoders that some tasks need, in the order of `SHORT_NAMES`.

    Example:
        >>> task_encoders(["t2va", "t2v+a"])
        ('text', 'video-audio', 'video+audio')
    """
    needed: set[str] = set()
    for task in map(check_task, tasks):
        if task in TASKS:
            needed.update(SHORT_NAMES[side] for side in task.split("2"))
    return tuple(encoder for encoder in SHORT_NAMES.values() if encoder in needed)


def task_ranks(embeddings: Mapping[str, NDArray[np.floating]], tasks: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """The ranks of each task's right answers, see `ranks`.

    Args:
        embeddings: encoder name -> (n, E); row i of every encoder is the same clip.
        tasks: names such as "t2v" or "t2v_metrics".

    Returns:
        Task -> (n',) ranks, n' <= n, in the order asked for; without the tasks whose embeddings are not there.
    """
    names = [check_task(task) for task in tasks]
    found: dict[str, NDArray[np.float64]] = {}
    for pair in _PAIRS:
        encoders = [SHORT_NAMES[side] for side in pair.split("2")]
        wanted = [name for name in (pair, _reverse(pair)) if name in names]
        if not wanted or not all(encoder in embeddings for encoder in encoders):
            continue
        # One product serves both directions, as in the original: rounding, and with it ties, are the same.
        matrix = similarity(embeddings[encoders[0]], embeddings[encoders[1]])
        found |= {name: ranks(matrix if name == pair else matrix.T) for name in wanted}
    return {name: found[name] for name in names if name in found}


def evaluate(
    embeddings: Mapping[str, NDArray[np.floating]],
    tasks: Sequence[str],
    complete_dataset_size: int | None = None,
) -> dict[str, Metrics]:
    """The metrics of each task, in the order asked for.

    Args:
        embeddings: encoder name -> (n, E); row i of every encoder is the same clip.
        tasks: names such as "t2v" or "t2v_metrics".
        complete_dataset_size: see `retrieval_metrics`; holds for every task, in both directions.

    Returns:
        Task -> metrics; empty for a task whose embeddings are not there (a model without audio has no `t2va`).
    """
    results: dict[str, Metrics] = {check_task(task): {} for task in tasks}
    found = task_ranks(embeddings, tasks)
    if found:
        total = count_queries(len(next(iter(embeddings.values()))), complete_dataset_size)
        results |= {task: metrics_from_ranks(rank, total) for task, rank in found.items()}
    return results


def average_by_id(
    embeddings: Mapping[str, NDArray[np.floating]], ids: Sequence[str]
) -> tuple[dict[str, NDArray[np.floating]], list[str]]:
    """One row per id: the mean of the rows of the pieces a clip was cut into.

    If every id is unique, nothing changes. Otherwise the rows follow the sorted ids (by code point: "video10" before
    "video2"), and the id "-1", which marks pieces to discard, is left out.

    Args:
        embeddings: encoder name -> (n, E), raw outputs: the length of a vector is its weight in the mean.
        ids: the n ids.

    Returns:
        The averaged embeddings and their ids.
    """
    ids = [str(i) for i in ids]
    for encoder, rows in embeddings.items():
        if len(rows) != len(ids):
            raise DataError(f"{len(ids)} ids for {len(rows)} {encoder} embeddings")
    unique = sorted(set(ids))
    if len(unique) == len(ids):
        return dict(embeddings), ids
    place = {name: index for index, name in enumerate(unique)}
    group = np.array([place[i] for i in ids])
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    kept = [index for index, name in enumerate(unique) if name != "-1"]
    averaged = {}
    for encoder, rows in embeddings.items():
        # Summed in double precision, since the order of summation then leaves no trace.
        sums = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
        averaged[encoder] = (sums / counts[:, None]).astype(rows.dtype)[kept]
    return averaged, [unique[index] for index in kept]


def metrics_table(
    results: Mapping[str, Metrics],
    title: str = "",
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    published: Sequence[Published] = (),
) -> Table:
    """A table for the terminal, one row a task; tasks without a result are left out.

    Args:
        results: task -> metrics, as from `evaluate`.
        title: above the table.
        intervals: task -> metric -> bounds, shown below each figure.
        published: figures from the literature, in rows of their own below the task's, with their sources below the
            table. What they do not give stays empty.
    """
    table = Table(title=title or None)
    table.add_column("task")
    for column in ("R@1", "R@5", "R@10", "R@50", "MedR", "MeanR"):
        table.add_column(column, justify="right")
    sources = []
    for task, metrics in results.items():
        if not metrics:
            continue
        bounds = (intervals or {}).get(task, {})
        table.add_row(task, *(_cell(key, metrics[key], bounds.get(key)) for key in _COLUMNS))
        for entry in published:
            if entry.task == task:
                sources.append(f"{task}: " + "; ".join(map(str, entry.sources)) + (entry.note and f" ({entry.note})"))
                name = f"  published [{len(sources)}]" + (f" {entry.backbone}" if entry.backbone else "")
                cells = (_cell(key, entry.metrics[key]) if key in entry.metrics else "" for key in _COLUMNS)
                table.add_row(Text(name), *cells)
    if sources:
        table.caption = Text("\n".join(f"[{i}] {source}" for i, source in enumerate(sources, 1)))
        table.caption_justify = "left"
    return table


def _cell(metric: str, value: float, bounds: tuple[float, float] | None = None) -> str:
    """A figure, and below it the interval it lies in."""

    def show(x: float) -> str:
        return f"{round(x, 1):g}" if metric == "MedR" else f"{x:.1f}"

    return show(value) if bounds is None else f"{show(value)}\n{show(bounds[0])}–{show(bounds[1])}"


def metrics_lines(
    results: Mapping[str, Metrics], split: str = "test", dataset: str = "", epoch: int = 0, name: str = ""
) -> list[str]:
    """The lines the authors' evaluation prints, for comparing logs character by character.

    Args:
        results: task -> metrics, as from `evaluate`.
        split: the word in brackets of the short lines.
        dataset: the data set's name in the short lines.
        epoch: the checkpoint's epoch.
        name: the data set's name in the long lines; the authors leave it empty when testing.
    """
    lines = []
    for task in ("t2v", "t2v+a", "t2va"):
        if m := results.get(task):
            short = f"{m['R1']:.1f} {m['R5']:.1f} {m['R10']:.1f} {m['MedR']:g}"
            rest = f"{m['R50']:.1f} {m['MedR']:g} {m['MeanR']:.1f}"
            lines.append(f"[{split}]{dataset} epoch {epoch}{' ' * 9}{short}{' ' * 11}{rest}")
    for task, m in results.items():
        if m:
            recalls = f"R@1: {m['R1']:.1f}, R@5: {m['R5']:.1f}, R@10 {m['R10']:.1f}, R@50 {m['R50']:.1f}"
            lines.append(f"[{task}_metrics]{name} epoch {epoch}, {recalls}MedR: {m['MedR']:g}, MeanR: {m['MeanR']:.1f}")
    return lines
