"""Evaluation as a command: a model or a bundle of engines on a data set of its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from eao.backend import Backend
from eao.config import (
    ClipData,
    Config,
    CrossTaskData,
    EvaluationConfig,
    FeaturesConfig,
    MSRVTTData,
    ShardData,
    StepData,
)
from eao.data.datasets import open_dataset
from eao.data.loader import Loader
from eao.data.text import TextEncoder
from eao.embedder import Embedder
from eao.errors import ConfigError
from eao.evaluation.confidence import Intervals, bootstrap
from eao.evaluation.embed import embed_dataset
from eao.evaluation.localization import evaluate_segmentation, evaluate_steps
from eao.evaluation.metrics import (
    Metrics,
    average_by_id,
    count_queries,
    metrics_from_ranks,
    metrics_table,
    task_encoders,
    task_ranks,
)
from eao.evaluation.published import Published, find_published
from eao.model.batch import SUMS, encoder_modalities


class Ranking(NamedTuple):
    """Where the right answers of a data set stand.

    Attributes:
        ranks: task -> (n',) 0 = first, for the tasks whose embeddings the backend offers.
        items: n, the number of clips that were ranked.
        total: number of queries that recalls are divided by, more than n where the full data set is larger.
    """

    ranks: dict[str, NDArray[np.float64]]
    items: int
    total: int

    def metrics(self) -> dict[str, Metrics]:
        """The metrics of each task."""
        return {task: metrics_from_ranks(rank, self.total) for task, rank in self.ranks.items()}


def rank_backend(backend: Backend, loader: Loader, config: EvaluationConfig) -> Ranking:
    """Rank the clips of a data set for each task.

    Clips that share an id are averaged before they are ranked, as in the authors' protocol.
    """
    tasks = possible_tasks(config.tasks, backend.encoders)
    embeddings, ids = embed_dataset(backend, loader, task_encoders(tasks))
    embeddings, ids = average_by_id(embeddings, ids)
    size = config.complete_dataset_size or loader.dataset.complete_dataset_size
    return Ranking(task_ranks(embeddings, tasks), len(ids), count_queries(len(ids), size))


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        model: where the model was loaded from.
        split: such as "test".
        dataset: the section that describes the data set.
        items: number of ranked clips; of a data set of steps, number of videos.
        metrics: retrieval task -> metrics; "steps" and "steps/TASK" -> recall; or "segmentation" -> iou and iod. All
            but ranks in percent.
        intervals: task -> metric -> 95 % bootstrap interval of the retrieval metrics.
        published: figures of the same evaluation in the literature.
    """

    model: str
    split: str
    dataset: dict[str, Any]
    items: int
    metrics: dict[str, Metrics]
    intervals: dict[str, Intervals] = field(default_factory=dict)
    published: Sequence[Published] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def table(self, title: str = "") -> Table:
        """A table for the terminal."""
        if self.dataset.get("type") not in ("crosstask", "mining-youtube"):
            return metrics_table(self.metrics, title, self.intervals, self.published)
        table = Table("task", title=title or None)
        for column in next(iter(self.metrics.values())):
            table.add_column(column, justify="right")
        for task, values in self.metrics.items():
            table.add_row(task, *(f"{value:.1f}" for value in values.values()))
        return table


def evaluate_model(embedder: Embedder, split: str = "test") -> Evaluation:
    """Evaluate on `data.<split>` of the model's configuration.

    Retrieval on clips; on CrossTask step localisation and on Mining YouTube segmentation, see
    `eao.evaluation.localization`, of segments as they are seen and, if the model has audio, heard.

    Raises:
        ConfigError: there is no such data set, or the model offers none of the tasks.
        DataError: a file is missing or damaged.
    """
    dataset = dataset_config(embedder.config, split)
    described = (str(embedder.source), split, dataset.model_dump(mode="json", exclude_none=True))
    if isinstance(dataset, StepData):
        return Evaluation(*described, *_localize(embedder, dataset))
    loader = evaluation_loader(dataset, embedder.config, embedder.text_encoder)
    ranking = rank_backend(embedder.backend, loader, embedder.config.evaluation)
    if not ranking.ranks:
        raise ConfigError(
            f"the model offers none of the tasks {' '.join(embedder.config.evaluation.tasks)}",
            f"it has the encoders {', '.join(embedder.backend.encoders)}: set evaluation.tasks",
        )
    intervals = {task: bootstrap(rank, ranking.total) for task, rank in ranking.ranks.items()}
    published = published_beside(embedder.config, dataset, ranking.items, list(ranking.ranks))
    return Evaluation(*described, ranking.items, ranking.metrics(), intervals, published)


def _localize(embedder: Embedder, dataset: StepData) -> tuple[int, dict[str, Metrics]]:
    """The number of videos, and the metrics."""
    from eao.data.crosstask import StepDataset

    config = embedder.config
    encoder = "video-audio" if "video-audio" in embedder.backend.encoders else "video"
    size = dataset.batch_size or config.evaluation.batch_size
    arguments = (embedder.backend, embedder.text_encoder, StepDataset(dataset, config.data), encoder)
    if not isinstance(dataset, CrossTaskData):
        found = evaluate_segmentation(*arguments, batch_size=size)
        return found.videos, {"segmentation": {"iou": found.iou, "iod": found.iod}}
    steps = evaluate_steps(*arguments, batch_size=size)
    total = {"steps": {"recall": steps.recall}, "steps (mean over videos)": {"recall": steps.recall_by_video}}
    return steps.videos, total | {f"steps/{task}": {"recall": recall} for task, recall in steps.by_task.items()}


def published_beside(config: Config, dataset: ClipData, items: int, tasks: Sequence[str]) -> Sequence[Published]:
    """The published figures that answer the same question as an evaluation.

    None if the data set is no published one, is its training part, or has other clips than the published evaluation
    had; and none for a model whose configuration does not say what it was trained on, as shards do not.
    """
    trained = config.data.train
    name = str(getattr(dataset, "type", None))
    if (
        trained is None
        or isinstance(trained, ShardData)
        or dataset == trained
        or (isinstance(dataset, MSRVTTData) and dataset.training)
    ):
        return ()
    setting = "fine-tuned" if getattr(trained, "type", None) == name else "zero-shot"
    return find_published(name, tasks, setting, _backbone(config.features), items)


def _backbone(features: FeaturesConfig) -> str | None:
    """The family of a model's video features, in the words of `eao.evaluation.published`."""
    families = {"resnet152": "resnet", "resnext101-3d": "resnet", "s3d": "s3d", "clip-vit-b32": "clip"}
    streams = [stream.backbone for stream in (features.video_2d, features.video_3d) if stream is not None]
    found = {families.get(backbone, backbone) for backbone in streams}
    return found.pop() if len(found) == 1 else "+".join(sorted(found)) or None


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
