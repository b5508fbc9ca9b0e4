"""Ranking clips: cosine similarity by full vectors, the clips of each file together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eao.errors import ConfigError
from eao.retrieval.clips import ClipStore, Condition, Floats, Neighbour, cosines

_CANDIDATES = 256  # of each kind of vector, at least, where an approximate index chooses: what is good by two kinds
# together may be far down by each of them
_VECTORS_READ = 256  # clips whose vectors are in memory at once; 24 KB each at the published width


@dataclass(frozen=True)
class FoundClip:
    """A clip of a found file.

    Attributes:
        start: seconds.
        end: seconds.
        score: cosine similarity, or the weighted mean of several.
        id: the clip's name in the index.
    """

    start: float
    end: float
    score: float
    id: str


@dataclass(frozen=True)
class Match:
    """How well one kind of vector of a clip fits the query.

    Attributes:
        cosine: the similarity.
        standard_score: by how many standard deviations it lies above what a clip chosen at random gets.
    """

    cosine: float
    standard_score: float


@dataclass(frozen=True)
class Explanation:
    """What a hit was found by.

    Attributes:
        strongest: the encoder whose similarity stands out most.
        matches: encoder -> how well it fits.
    """

    strongest: str
    matches: dict[str, Match]


@dataclass(frozen=True)
class Hit:
    """A found file.

    Attributes:
        rank: 1 = best.
        score: of its best clip: cosine similarity, or the weighted mean of several.
        id: the best clip's name in the index.
        file: path.
        start: seconds, of the best clip.
        end: seconds.
        clips: the best clip and the others that fit no worse than the last file of the list, best first.
        explanation: of the best clip, if it was asked for.
    """

    rank: int
    score: float
    id: str
    file: str
    start: float
    end: float
    clips: tuple[FoundClip, ...] = ()
    explanation: Explanation | None = None


def search_store(
    store: ClipStore,
    vector: Floats,
    weights: Mapping[str, float],
    k: int,
    where: Sequence[Condition] = (),
    exact: bool = False,
) -> list[Hit]:
    """The best `k` files by their best clip.

    Args:
        store: the clips.
        vector: (E,) the query.
        weights: encoder -> weight. With several, a clip's score is the weighted mean of its cosine similarities; one
            that lacks a vector (a clip without sound has no "audio") is scored by the others.
        k: how many files; fewer are given if there are fewer.
        where: what a clip must fulfil.
        exact: compare every clip, also where an approximate index could choose candidates.
    """
    if len(weights) > 1 and (exact or store.layout.exact):
        return merge_clips(_combined(store, vector, weights, where), k)
    limit = 4 * k if len(weights) == 1 else max(4 * k, _CANDIDATES)
    while True:
        lists = [store.nearest(vector, encoder, limit, where, exact) for encoder in weights]
        found = {clip.id: clip for clips in lists for clip in clips}
        # Many clips of one file may fill a list: then look further.
        if all(len(clips) < limit for clips in lists) or len({clip.file for clip in found.values()}) >= k:
            break
        limit *= 4
    return merge_clips(found.values() if len(weights) == 1 else _weighed(store, vector, weights, found), k)


def merge_clips(clips: Iterable[Neighbour], k: int) -> list[Hit]:
    """The best `k` files, each with those of its clips that on their own would be in the list.

    Args:
        clips: among them every clip that is no worse than the best one of the k-th file.
        k: how many files.
    """
    by_file: dict[str, list[Neighbour]] = {}
    # The order of equal scores must not depend on the order of the rows on disk.
    for clip in sorted(clips, key=lambda c: (-c.score, c.file, c.start, c.id)):
        by_file.setdefault(clip.file, []).append(clip)
    chosen = list(by_file.values())[:k]
    worst = chosen[-1][0].score if chosen else 0.0
    hits = []
    for rank, (best, *others) in enumerate(chosen, 1):
        listed = [best, *(clip for clip in others if clip.score >= worst)]
        found = tuple(FoundClip(c.start, c.end, c.score, c.id) for c in listed)
        hits.append(Hit(rank, best.score, best.id, best.file, best.start, best.end, found))
    return hits


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


def _weighed(
    store: ClipStore, vector: Floats, weights: Mapping[str, float], found: Mapping[str, Neighbour]
) -> Iterator[Neighbour]:
    """Clips by id, with the score that all their vectors give together."""
    names = list(found)
    for start in range(0, len(names), _VECTORS_READ):
        for name, vectors in store.vectors(names[start : start + _VECTORS_READ]).items():
            own = {encoder: weight for encoder, weight in weights.items() if encoder in vectors}
            if own:  # the clip may have been changed since it was found
                scores = cosines(np.stack([vectors[encoder] for encoder in own]), vector)
                yield found[name]._replace(score=float(np.average(scores, weights=list(own.values()))))


def _combined(
    store: ClipStore, vector: Floats, weights: Mapping[str, float], where: Sequence[Condition]
) -> list[Neighbour]:
    """All clips, with the scores that all their vectors give together."""
    clips: dict[str, Neighbour] = {}
    sums: dict[str, float] = {}
    totals: dict[str, float] = {}
    for encoder, weight in weights.items():
        for clip in store.nearest(vector, encoder, max(len(store), 1), where, exact=True):
            clips[clip.id] = clip
            sums[clip.id] = sums.get(clip.id, 0.0) + weight * clip.score
            totals[clip.id] = totals.get(clip.id, 0.0) + weight
    return [clip._replace(score=sums[name] / totals[name]) for name, clip in clips.items()]
