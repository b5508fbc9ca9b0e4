"""Vectors as embeddings of many clips lie: in clusters, with a spectrum that falls as one over the rank."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

# V vectors, E width, C clusters

CHUNK = 4096


class Clusters:
    """A source of unit vectors around random centres.

    The variance of the i-th direction is proportional to 1 / i, as measured of learned embeddings again and again; a
    random rotation (signs, cosine transform, signs) hides the directions from the axes, which product quantization
    would otherwise profit from.

    Args:
        dim: E.
        clusters: C, all equally likely.
        spread: standard deviation within a cluster, that of the centres being 1.
        seed: of everything.
    """

    def __init__(self, dim: int, clusters: int = 2000, spread: float = 0.8, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.dim = dim
        self.seed = seed
        self.spread = spread
        self._scale = (1 / np.sqrt(np.arange(1, dim + 1))).astype(np.float32)
        self._signs = rng.choice(np.array([-1, 1], np.float32), size=(2, dim))
        self._centres = rng.standard_normal((clusters, dim), dtype=np.float32)

    def chunks(self, count: int) -> Iterator[NDArray[np.float32]]:
        """`count` vectors, (up to 4096, E) float32 at a time, the same at every call."""
        for number, start in enumerate(range(0, count, CHUNK)):
            rng = np.random.default_rng((self.seed, number))
            rows = min(CHUNK, count - start)
            noise = rng.standard_normal((rows, self.dim), dtype=np.float32)
            chosen = self._centres[rng.integers(len(self._centres), size=rows)]
            yield self._shape(chosen + self.spread * noise)

    def queries(self, count: int, of: int, perturbation: float = 0.5) -> NDArray[np.float32]:
        """(count, E) float32: members of the first chunk of `of` vectors, each moved.

        Args:
            count: how many.
            of: how many vectors there are.
            perturbation: length of what is added to a unit vector, shaped by the same spectrum.
        """
        members = next(self.chunks(of))
        rng = np.random.default_rng((self.seed, 2**31))
        picked = members[rng.choice(len(members), size=count, replace=count > len(members))]
        moved = self._shape(rng.standard_normal((count, self.dim), dtype=np.float32))
        return _unit(picked + perturbation * moved)

    def _shape(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = dct(x * self._scale * self._signs[0], axis=1, norm="ortho", overwrite_x=True) * self._signs[1]
        return _unit(x.astype(np.float32, copy=False))


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
