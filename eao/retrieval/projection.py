"""Shorter vectors by a projection that is learned from the index itself."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eao.data.storage import Storage
from eao.errors import ConfigError, RetrievalError
from eao.retrieval.clips import Floats

# K vectors, E width, R reduced width

SAMPLE = 8192
"""Vectors that a projection is fitted to at most."""


def fit_projection(sample: Floats, width: int, seed: int = 0) -> Floats:
    """(E, R): the principal directions of a sample of unit vectors, by randomized subspace iteration.

    They are not centred: what is to be kept is the inner product with a query, not the distance from the mean, and a
    query in words lies elsewhere than the clips.

    Args:
        sample: (K, E).
        width: R.
        seed: of the random start.

    Raises:
        ConfigError: `width` is not below both K and E.
    """
    rows, dim = sample.shape
    if not 0 < width < dim:
        raise ConfigError(f"vectors of {dim} numbers cannot be reduced to {width}", f"choose 1 to {dim - 1}")
    if width >= rows:
        raise ConfigError(f"{rows} vectors are too few to learn {width} directions", f"reduce to under {rows}")
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((dim, min(width + 16, rows, dim)), dtype=np.float32)
    for _ in range(3):
        basis, _ = np.linalg.qr(sample.T @ (sample @ basis))
    _, _, directions = np.linalg.svd(sample @ basis, full_matrices=False)
    return np.ascontiguousarray((basis @ directions.T)[:, :width], dtype=np.float32)


def save_projections(storage: Storage, projections: Mapping[str, NDArray[np.float32]]) -> str:
    """Write the matrix of each encoder beside the index; the file is named for what it holds."""
    buffer = io.BytesIO()
    np.savez(buffer, **projections)  # type: ignore[arg-type]
    digest = hashlib.sha256(b"".join(name.encode() + projections[name].tobytes() for name in sorted(projections)))
    name = f"projection-{digest.hexdigest()[:12]}.npz"
    with storage.writing(name) as path:
        path.write_bytes(buffer.getvalue())
    return name


def load_projections(storage: Storage, name: str) -> dict[str, NDArray[np.float32]]:
    """What `save_projections` wrote.

    Raises:
        RetrievalError: it is missing or damaged.
    """
    try:
        with np.load(io.BytesIO(storage.read(name)), allow_pickle=False) as file:
            return {encoder: file[encoder] for encoder in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise RetrievalError(
            f"{storage.name(name)}, by which the index is searched, is missing or damaged: {error}",
            "make it again: eao index --optimize none, then as before",
        ) from None
