"""Evaluation as a command: a model or a bundle of engines on a data set of its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eao.config import ClipData, Config, EvaluationConfig
from eao.data.datasets import open_dataset
from eao.data.loader import Loader
from eao.data.text import TextEncoder
from eao.embedder import Backend, Embedder
from eao.errors import ConfigError
from eao.evaluation.embed import embed_dataset
from eao.evaluation.metrics import Metrics, average_by_id, evaluate, task_encoders
from eao.model.batch import SUMS, encoder_modalities


def evaluate_backend(backend: Backend, loader: Loader, config: EvaluationConfig) -> tuple[dict[str, Metrics], int]:
    """Retrieval metrics by task, for the tasks whose embeddings the backend offers, and the number of items.

    Clips that share an id are averaged before they are ranked, as in the authors' protocol.
    """
    tasks = possible_tasks(config.tasks, backend.encoders)
    embeddings, ids = embed_dataset(backend, loader, task_encoders(tasks))
    embeddings, ids = average_by_id(embeddings, ids)
    size = config.complete_dataset_size or loader.dataset.complete_dataset_size
    return evaluate(embeddings, tasks, size), len(ids)


def evaluate_model(embedder: Embedder, split: str = "test") -> dict[str, Any]:
    """Evaluate on `data.<split>` of the model's configuration.

    Returns:
        `model`, `split`, `dataset` (the section it is described by), `items`, and `metrics` by task.
    """
    loader = dataset_loader(embedder, split)
    metrics, items = evaluate_backend(embedder.backend, loader, embedder.config.evaluation)
    return {
        "model": embedder.source,
        "split": split,
        "dataset": loader.dataset.config.model_dump(mode="json", exclude_none=True),
        "items": items,
        "metrics": metrics,
    }


def dataset_loader(embedder: Embedder, split: str) -> Loader:
    """The batches of `data.<split>`, in order, with the text encoder the embedder already holds.

    Raises:
        ConfigError: if the configuration has no such data set, or several.
    """
    config = embedder.config
    return evaluation_loader(dataset_config(config, split), config, embedder.text_encoder)


def evaluation_loader(dataset: ClipData, config: Config, text_encoder: TextEncoder) -> Loader:
    """The batches of a data set in its own order."""
    size = dataset.batch_size or config.evaluation.batch_size
    return Loader(open_dataset(dataset, config.data), text_encoder, size, workers=config.data.workers)


def dataset_config(config: Config, split: str) -> ClipData:
    """The configured data set of a split, such as "test", or "validation/msrvtt" where a split holds several."""
    split, _, name = split.partition("/")
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"unknown split {split!r}", "train, validation or test")
    datasets = config.data.named(split)
    if name in datasets:
        return datasets[name]
    if datasets:
        raise ConfigError(
            f"data.{split} holds several data sets", f"say which: {', '.join(f'{split}/{n}' for n in datasets)}"
        )
    raise ConfigError(
        f"the configuration names no data.{split}",
        f"add data.{split}.features=FOLDER data.{split}.captions=FILE",
    )


def possible_tasks(tasks: Sequence[str], encoders: Sequence[str]) -> tuple[str, ...]:
    """Those of the tasks whose embeddings a model offers; late fusion needs only the single embeddings."""

    def offered(encoder: str) -> bool:
        parts = encoder_modalities(encoder) if encoder in SUMS else (encoder,)
        return all(part in encoders for part in parts)

    return tuple(task for task in tasks if all(map(offered, task_encoders([task]))))
