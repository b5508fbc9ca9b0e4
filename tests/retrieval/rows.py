"""Rows of an index, made up."""

from __future__ import annotations

import numpy as np

from eao.retrieval.clips import FileState, Row

DIM = 16  # LanceDB treats lists of at least ten numbers as vectors, with checks of their own
ENCODERS = ("video-audio", "audio")
HOSTILE = [
    "/it's; DROP TABLE clips --.mp4",
    '/"ünï"/%_.mp4',
    "/a' OR '1'='1",
    '/b" or id != "',
    "/back\\slash\\",
    "/new\nline\ttab",
    "/日本 😀 e\u0301",
    "/%",
    "/_",
    "/{x} $1 :y ?",
    "/'",
    '/"',
    "/`file`",
]
"""Names of files that would break out of a filter that pastes them."""


def make_rows(
    file: str,
    starts: range,
    seed: int = 0,
    silent: bool = False,
    duration: float = 9.5,
    modified: int = 8,
    vector: np.ndarray | None = None,
) -> list[Row]:
    """Clips of one second; with `vector` instead of random ones."""
    random = np.random.default_rng(seed)
    rows = []
    for start in starts:
        # Most of what tells them apart lies in a few directions, as in embeddings.
        drawn = {e: (random.normal(size=DIM) * 0.7 ** np.arange(DIM)).astype(np.float32) for e in ENCODERS}
        vectors = {e: x for e, x in drawn.items() if not (silent and e == "audio")}
        if vector is not None:
            vectors = dict.fromkeys(vectors, vector)
        state = FileState(7, modified, 3)
        rows.append(Row(f"{file}#t={start}", file, start, start + 1, duration, state, vectors))
    return rows
