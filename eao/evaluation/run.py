"""Evaluation as a command: a model or a bundle of engines on a data set of its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from eao.config import Config, DatasetConfig, EvaluationConfig
from eao.data.folder import FolderDataset, FolderLoader, make_loader
from eao.embedder import Backend, Embedder
from eao.errors import ConfigError
from eao.evaluation.embed import embed_dataset
from eao.evaluation.metrics import Metrics, average_by_id, evaluate, task_encoders
from eao.model.batch import SUMS, Batch, encoder_modalities


def evaluate_backend(
    backend: Backend, batches: Iterable[Batch], config: EvaluationConfig
) -> tuple[dict[str, Metrics], int]:
    """Retrieval metrics by task, for the tasks whose embeddings the backend offers, and the number of items.

    Clips that share an id are averaged before they are ranked, as in the authors' protocol.
    """
    tasks = possible_tasks(config.tasks, backend.encoders)
    embeddings, ids = embed_dataset(backend, batches, task_encoders(tasks))
    embeddings, ids = average_by_id(embeddings, ids)
    return evaluate(embeddings, tasks, config.complete_dataset_size), len(ids)


def evaluate_model(embedder: Embedder, split: str = "test") -> dict[str, Any]:
    """Evaluate on `data.<split>` of the model's configuration.

    Returns:
        `model`, `split`, `captions` and `features` paths, `items`, and `metrics` by task.
    """
    loader = dataset_loader(embedder, split)
    metrics, items = evaluate_backend(embedder.backend, loader, embedder.config.evaluation)
    source = loader.dataset.config
    return {
        "model": embedder.source,
        "split": split,
        "captions": source.captions,
        "features": source.features,
        "items": items,
        "metrics": metrics,
    }


def dataset_loader(embedder: Embedder, split: str) -> FolderLoader:
    """The batches of `data.<split>`, in order, with the text encoder the embedder already holds.

    Raises:
        ConfigError: if the configuration has no such data set.
    """
    config = embedder.config
    dataset = dataset_config(config, split)
    return make_loader(FolderDataset(dataset, config.data), embedder.text_encoder, config.evaluation.batch_size)


def dataset_config(config: Config, split: str) -> DatasetConfig:
    """The configured data set of a split."""
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"unknown split {split!r}", "train, validation or test")
    dataset: DatasetConfig | None = getattr(config.data, split)
    if dataset is None:
        raise ConfigError(
            f"the configuration names no data.{split}",
            f"add data.{split}.features=FOLDER data.{split}.captions=FILE",
        )
    return dataset


def possible_tasks(tasks: Sequence[str], encoders: Sequence[str]) -> tuple[str, ...]:
    """Those of the tasks whose embeddings a model offers; late fusion needs only the single embeddings."""

    def offered(encoder: str) -> bool:
        parts = encoder_modalities(encoder) if encoder in SUMS else (encoder,)
        return all(part in encoders for part in parts)

    return tuple(task for task in tasks if all(map(offered, task_encoders([task]))))
