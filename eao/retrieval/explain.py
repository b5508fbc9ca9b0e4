"""Telling by what a clip was found: what is seen, what is heard, or both together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eao.retrieval.clips import ClipStore, Floats, cosines
from eao.retrieval.search import Explanation, Hit, Match

# E embedding, K clips

SAMPLE = 400
"""Clips that stand for all of them: the standard error of their standard deviation is then 4 %."""


def explain_hits(store: ClipStore, query: Floats, hits: Sequence[Hit], seed: int = 0) -> list[Hit]:
    """Hits with an explanation each.

    Cosines of different encoders cannot be compared as they are: those with sound alone may all lie near 0.1, those
    with video near 0.4. So each is set against what the same query gets from clips chosen at random.

    Args:
        store: the clips.
        query: (E,) unit norm.
        hits: found by it.
        seed: of the choice.
    """
    vectors = store.vectors([hit.id for hit in hits])
    # (mean, standard deviation) of the cosines at random.
    usual = {encoder: _statistics(store.sample(encoder, SAMPLE, seed), query) for encoder in store.encoders}
    explained = []
    for hit in hits:
        matches = {}
        for encoder, vector in vectors.get(hit.id, {}).items():
            cosine = float(cosines(vector[None], query)[0])
            mean, deviation = usual[encoder]
            matches[encoder] = Match(cosine, (cosine - mean) / deviation if deviation > 0 else 0.0)
        if not matches:  # removed by another process since it was found
            explained.append(hit)
            continue
        strongest = max(matches, key=lambda encoder: matches[encoder].standard_score)
        explained.append(replace(hit, explanation=Explanation(strongest, matches)))
    return explained


def _statistics(sample: Floats, query: Floats) -> tuple[float, float]:
    if not len(sample):
        return 0.0, 0.0
    scores = cosines(sample, query)
    return float(scores.mean()), float(scores.std())
