"""Embeddings of a whole data set, in the order of the loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eao.errors import ConfigError, DataError
from eao.evaluation.metrics import unit_norm
from eao.model.batch import Batch, encoder_modalities

if TYPE_CHECKING:
    from eao.backend import Backend

# n clips, E embedding


def embed_dataset(
    backend: Backend, batches: Iterable[Batch], encoders: Sequence[str]
) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """Embed every clip of a data set with several encoders.

    The PyTorch model (a backend with `encode_raw`) gives raw outputs, as the authors evaluate them; engines give unit
    vectors. For ranking that is the same, since similarities are cosines. It differs only where `average_by_id` then
    averages the pieces of a cut clip: raw vectors count by their length, unit vectors equally. So compare an engine
    with its model on clips that are not cut.

    The sums `text+video`, `text+audio` and `video+audio` are computed here, as the mean of the two unit vectors,
    whether the backend offers them or not.

    Args:
        backend: what encodes.
        batches: a loader; a batch without ids gets running numbers.
        encoders: names such as "text", "video-audio" or "video+audio".

    Returns:
        Encoder -> (n, E) float32, and the n ids.

    Raises:
        ConfigError: the backend has no such encoder.
        DataError: there are no batches.
    """
    sums = {e: encoder_modalities(e) for e in encoders if "+" in e}
    # dict.fromkeys: each encoder once, in a fixed order.
    computed = tuple(
        dict.fromkeys([e for e in encoders if e not in sums] + [m for pair in sums.values() for m in pair])
    )
    for encoder in computed:
        if encoder not in backend.encoders:
            raise ConfigError(f"this model has no encoder {encoder!r}", f"it offers {', '.join(backend.encoders)}")
    parts: dict[str, list[NDArray[np.float32]]] = {encoder: [] for encoder in computed}
    ids: list[str] = []
    for batch in batches:
        for encoder, rows in _encode(backend, batch, computed).items():
            parts[encoder].append(rows)
        ids += [str(i) for i in batch.ids] if len(batch.ids) else [str(len(ids) + i) for i in range(len(batch))]
    if not ids:
        raise DataError("there is nothing to embed: the data set is empty", "check the split and the captions file")
    embeddings = {encoder: np.concatenate(rows) for encoder, rows in parts.items()}
    for encoder, (a, b) in sums.items():
        embeddings[encoder] = (unit_norm(embeddings[a]) + unit_norm(embeddings[b])) / np.float32(2)
    return {encoder: embeddings[encoder] for encoder in encoders}, ids


def _encode(backend: Backend, batch: Batch, encoders: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    raw = getattr(backend, "encode_raw", None)
    if raw is not None:
        return raw(batch, encoders)
    return {encoder: backend.encode(batch.only(encoder_modalities(encoder)), encoder) for encoder in encoders}
