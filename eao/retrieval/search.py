"""Ranking clips: exact cosine similarity, the best clip of each file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eao.errors import ConfigError
from eao.retrieval.table import ClipTable, Neighbour


@dataclass(frozen=True)
class Hit:
    """A found clip.

    Attributes:
        rank: 1 = best.
        score: cosine similarity, or the weighted mean of several.
        id: the clip's name in the index.
        file: path of its file.
        start: seconds.
        end: seconds.
    """

    rank: int
    score: float
    id: str
    file: str
    start: float
    end: float


def search_table(table: ClipTable, vector: NDArray[np.float32], weights: Mapping[str, float], k: int) -> list[Hit]:
    """The best `k` files by their best clip.

    Args:
        table: the clips.
        vector: (E,) the query.
        weights: encoder -> weight. With several, a clip's score is the weighted mean of its cosine similarities;
            one that lacks a vector (a clip without sound has no "audio") is scored by those it has.
        k: how many files; fewer are given if there are fewer.
    """
    if len(weights) > 1:
        return _best_of_files(_combined(table, vector, weights), k)
    encoder = next(iter(weights))
    limit = 4 * k
    while True:
        found = table.nearest(vector, encoder, limit)
        # Many clips of one file may fill the list: then look further.
        if len(found) < limit or len({clip.file for clip in found}) >= k:
            return _best_of_files(found, k)
        limit *= 4


def check_weights(weights: Mapping[str, float], known: tuple[str, ...]) -> dict[str, float]:
    """Weights that add up to 1.

    Raises:
        ConfigError: an encoder the index has no vectors of, or a weight that is not positive.
    """
    for encoder, weight in weights.items():
        if encoder not in known:
            raise ConfigError(f"the index has no vectors of {encoder!r}", f"it has {', '.join(known)}")
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"the weight of {encoder} is {weight}", "give weights above 0, or leave the encoder out")
    if not weights:
        raise ConfigError("no encoder to compare with", f"the index has {', '.join(known)}")
    total = sum(weights.values())
    return {encoder: weight / total for encoder, weight in weights.items()}


def _combined(table: ClipTable, vector: NDArray[np.float32], weights: Mapping[str, float]) -> list[Neighbour]:
    clips: dict[str, Neighbour] = {}
    sums: dict[str, float] = {}
    totals: dict[str, float] = {}
    for encoder, weight in weights.items():
        for clip in table.nearest(vector, encoder, max(len(table), 1)):
            clips[clip.id] = clip
            sums[clip.id] = sums.get(clip.id, 0.0) + weight * clip.score
            totals[clip.id] = totals.get(clip.id, 0.0) + weight
    return [clip._replace(score=sums[name] / totals[name]) for name, clip in clips.items()]


def _best_of_files(clips: Iterable[Neighbour], k: int) -> list[Hit]:
    best: dict[str, Neighbour] = {}
    # The order of equal scores must not depend on the order of the rows on disk.
    for clip in sorted(clips, key=lambda c: (-c.score, c.file, c.start)):
        best.setdefault(clip.file, clip)
    chosen = list(best.values())[:k]
    return [Hit(i, c.score, c.id, c.file, c.start, c.end) for i, c in enumerate(chosen, 1)]
