"""Frame features of any length as a fixed number of video tokens, with the rules of `eao.data.sampling`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# n rows of a feature stream, D its width, N tokens


def nearest_indices(n_in: int, n_out: int) -> np.ndarray:
    """Indices (n_out,) that resample rows by nearest neighbour, in single precision as torch's `interpolate`."""
    scale = np.float32(n_in) / np.float32(max(n_out, 1))
    positions = np.floor(np.arange(n_out, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(positions, n_in - 1)


def create_video(streams: Sequence[np.ndarray], n_tokens: int, strategy: str) -> tuple[np.ndarray, np.ndarray]:
    """Video tokens from feature streams.

    Args:
        streams: one or two, each (n, D) float32; the last decides the length, the first is resampled to it.
        n_tokens: N; 0 = one max-pooled token.
        strategy: what is done with more rows than tokens: `clip`, `nearest` or `max_pool`.

    Returns:
        video (N, D) float32, the streams' rows of unit length side by side, zero padded, and its mask (N,) bool.
    """
    if n_tokens == 0:
        pooled = [x.max(axis=0, keepdims=True) if len(x) else np.zeros((1, x.shape[1]), np.float32) for x in streams]
        return np.concatenate([_normalise(x) for x in pooled], axis=1), np.ones(1, dtype=bool)
    rows = list(streams)
    if strategy == "max_pool":
        rows = _max_pool(rows, n_tokens)
    if strategy != "clip" and _exceeds(rows, n_tokens):
        rows = [x[nearest_indices(len(x), n_tokens)] for x in rows]
    return _clip(rows, n_tokens)


def _exceeds(streams: list[np.ndarray], n_tokens: int) -> bool:
    return len(streams[-1]) > n_tokens and all(len(x) for x in streams)


def _max_pool(streams: list[np.ndarray], n_tokens: int) -> list[np.ndarray]:
    factors = [len(x) // n_tokens for x in streams]
    if not _exceeds(streams, n_tokens) or min(factors) <= 1:
        return streams
    return [x[: len(x) // k * k].reshape(-1, k, x.shape[1]).max(axis=1) for x, k in zip(streams, factors, strict=True)]


def _clip(streams: list[np.ndarray], n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    video = np.zeros((n_tokens, sum(x.shape[1] for x in streams)), dtype=np.float32)
    rows = len(streams[-1]) if all(len(x) for x in streams) else 0
    kept = min(rows, n_tokens)
    if kept:
        # All rows are resampled before the cut, so that the streams stay aligned in time.
        video[:kept] = np.concatenate([_normalise(x[nearest_indices(len(x), rows)[:kept]]) for x in streams], axis=1)
    return video, np.arange(n_tokens) < kept


def _normalise(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norms, np.float32(1e-12))
