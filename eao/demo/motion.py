"""Whether a model tells motions apart: two clips of one object, one sentence, which clip?"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from eao.config import FolderData
from eao.data.folder import FolderDataset
from eao.data.loader import Loader
from eao.embedder import Embedder
from eao.evaluation.embed import embed_dataset
from eao.evaluation.metrics import unit_norm


def motion_accuracy(embedder: Embedder, features: Path, captions: Path, split: str = "test") -> dict[str, Any]:
    """How often the caption of a clip is nearer to it than to the other clip of the same object.

    Both clips show the same picture; only the motion, and the words for it, differ.

    Returns:
        `accuracy` in percent by the embedding the clips are compared with, and the number of `choices`.
    """
    config = embedder.config
    dataset = FolderDataset(FolderData(features=str(features), captions=str(captions), split=split), config.data)
    loader = Loader(dataset, embedder.text_encoder, config.evaluation.batch_size)
    shown = [e for e in ("video", "video-audio") if e in embedder.encoders]
    embeddings, _ = embed_dataset(embedder.backend, loader, ["text", *shown])
    text = unit_norm(embeddings["text"])
    clips: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(dataset.records):
        clips[record["object"]].append(row)
    choices = [(rows[i], rows[1 - i]) for rows in clips.values() if len(rows) == 2 for i in (0, 1)]
    accuracy = {}
    for encoder in shown:
        clip = unit_norm(embeddings[encoder])
        right = [float(text[row] @ clip[row]) > float(text[row] @ clip[other]) for row, other in choices]
        accuracy[encoder] = 100 * sum(right) / max(1, len(right))
    return {"accuracy": accuracy, "choices": len(choices)}
