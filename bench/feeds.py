"""Inputs of engines at chosen sizes: batches and lengths of which every combination is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eao.export.encoders import BATCH, Axis, InputSpec, concrete_shape


class Point(NamedTuple):
    """Sizes at which an encoder is measured.

    Attributes:
        length: of every modality, as a share of the longest clip.
        sizes: by axis name.
    """

    length: float
    sizes: dict[str, int]


def plan_points(
    specs: Sequence[InputSpec], longest: Mapping[str, int], batches: Sequence[int], lengths: Sequence[float]
) -> list[Point]:
    """Every batch at every length, each set of sizes once, rounded up to what an engine takes.

    Args:
        specs: inputs of the encoder. Sizes that a model fixes stay as they are.
        longest: by axis, the sizes of the longest clip.
        batches: clips a call.
        lengths: shares of the longest clip.
    """
    axes = {a.name: a for spec in specs for a in spec.shape if isinstance(a, Axis)}
    points: dict[tuple[int, ...], Point] = {}
    for length in sorted(lengths, reverse=True):
        for batch in batches:
            wanted = {name: batch if name == BATCH else max(round(longest[name] * length), 1) for name in axes}
            sizes = {name: axis.size(-(-wanted[name] // axis.multiple)) for name, axis in axes.items()}
            points.setdefault(tuple(sizes.values()), Point(length, sizes))
    return list(points.values())


def random_feeds(specs: Sequence[InputSpec], sizes: Mapping[str, int], seed: int = 0) -> dict[str, NDArray]:
    """Random inputs of an engine, every token real; `sizes` by axis name."""
    generator = np.random.default_rng(seed)
    feeds: dict[str, NDArray] = {}
    for spec in specs:
        shape = concrete_shape(spec, sizes)
        if spec.dtype == "bool":
            feeds[spec.name] = np.ones(shape, dtype=np.bool_)
        elif spec.dtype == "int64":
            feeds[spec.name] = np.full(shape, feeds["audio"].shape[2], dtype=np.int64)
        elif spec.name == "audio":
            feeds[spec.name] = generator.uniform(-80, 0, shape).astype(np.float32)
        else:
            feeds[spec.name] = generator.standard_normal(shape, dtype=np.float32)
    return feeds
