"""What a training run would do and need, said without starting it: `eao train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eao.checkpoint import read_weights
from eao.config import ClipData, Config, FolderData, OptimizerConfig, ShardData
from eao.data.datasets import open_dataset, training_loader
from eao.errors import ConfigError
from eao.model import build_model
from eao.training.distributed import choose_device
from eao.training.optimizer import build_optimizer
from eao.training.state import LATEST, check_unchanged
from eao.training.trainer import check_dimensions, choose_precision, count_steps

PATHS = (
    *("path", "path_2d", "path_3d", "url", "csv", "captions"),
    *("features", "features_2d", "features_3d", "audio", "steps", "annotations"),
)
"""Settings of a data set that name a file or a folder."""

GUIDE = "see docs/reproduce.md"
TEXT = {
    "word2vec": f"the .bin file of word vectors; {GUIDE}",
    "minilm": "the folder of a sentence model for transformers",
    "clip": f"the folder of a CLIP model for transformers; {GUIDE}",
}


def describe_run(config: Config, out: Path, device: str | None = None, resume: bool = False) -> dict[str, Any]:
    """What a run would do. Nothing is written, and the model is never held in memory.

    What is there is checked: data sets are opened, and the weights to start from must fit. The text encoder is not
    loaded, since word vectors alone take a minute and gigabytes.

    Args:
        config: the experiment.
        out: the run folder.
        device: as in training.
        resume: as in training.

    Returns:
        `name`, `run folder`, `holds a run` (whether that folder does), `parameters`, `device`, `precision`, `epochs`;
        `training items`, `steps per epoch`, `validation items`: None where files are missing; `memory`: bytes of
        weights, gradients, optimizer state and moving average, without activations; `files`: a list of `setting`,
        `path`, `exists` and, where it does not, `hint`; `ready`: whether nothing that was found is in the way.

    Raises:
        ConfigError: there is nothing to train on, or features and model do not fit.
        CheckpointError: the weights to start from do not fit, or the run to resume has other settings.
        DataError: a file that is there is damaged.
    """
    if config.data.train is None:
        raise ConfigError("data.train is not set", "name a data set, such as data.train.features=... for a folder")
    chosen = choose_device(device)
    with torch.device("meta"):
        model = build_model(config.model)
    files = [_file(*each) for each in _paths(config, resume)]
    missing = {file["setting"].rpartition(".")[0] for file in files if not file["exists"]}
    holds_run = (out / LATEST).exists()
    if resume and holds_run:
        check_unchanged(config, out)
    elif config.trainer.initial_weights is not None and not resume and "trainer" not in missing:
        read_weights(model, config.trainer.initial_weights)
    items = steps = validation = None
    if "data.train" not in missing:
        loader = training_loader(config.data.train, config.data, None)
        check_dimensions(config, loader.dataset.video_dim, config.model.text_dim)
        items, steps = len(loader.dataset), count_steps(config, loader)
    if not any(section.startswith("data.validation") for section in missing):
        datasets = config.data.named("validation").values()
        validation = sum(len(open_dataset(dataset, config.data)) for dataset in datasets)
    return {
        "name": config.name,
        "ready": not missing and holds_run == resume,
        "run folder": str(out),
        "holds a run": holds_run,
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(chosen),
        "precision": choose_precision(config.trainer.precision, chosen),
        "epochs": config.trainer.epochs,
        "training items": items,
        "steps per epoch": steps,
        "validation items": validation,
        "memory": training_memory(model, config),
        "files": files,
    }


def training_memory(model: nn.Module, config: Config) -> dict[str, int]:
    """Bytes that a model takes while it is trained, without activations; `model` may be on the meta device."""
    weights = _bytes([*model.parameters(), *model.buffers()])
    trained = [p for p in model.parameters() if p.requires_grad]
    memory = {
        "weights": weights,
        "gradients": _bytes(trained),
        "optimizer": _optimizer_bytes(config.optimizer, trained),
    }
    return memory | ({"moving average": weights} if config.trainer.ema_decay is not None else {})


def description_lines(description: dict[str, Any]) -> Iterator[str]:
    """The description as lines for people."""
    memory, files = description["memory"], description["files"]
    missing = [file for file in files if not file["exists"]]
    parts = " + ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items())
    shown = {
        "experiment": description["name"],
        "run folder": description["run folder"] + (", which holds a run" if description["holds a run"] else ""),
        "model": f"{description['parameters']:,} parameters",
        "memory": f"{sum(memory.values()) / 1e9:.2f} GB = {parts}; activations come on top",
        "device": f"{description['device']}, {description['precision']}",
    }
    shown |= {key: description[key] for key in ("epochs", "training items", "steps per epoch", "validation items")}
    for key, value in shown.items():
        yield f"{key + ':':18}{'unknown, since files are missing' if value is None else value}"
    for file in files:
        yield f"{'✓' if file['exists'] else '✗'} {file['setting']}: {file['path']}"
        if not file["exists"]:
            yield f"     {file['hint']}"
    if missing:
        yield f"not ready: {len(missing)} of {len(files)} files and folders are missing"
    elif not description["ready"]:
        held = description["holds a run"]
        yield f"not ready: {'continue the run with --resume, or choose another --out' if held else 'no run to resume'}"
    else:
        yield "ready"


def _paths(config: Config, resume: bool) -> Iterator[tuple[str, str, str]]:
    """Every file and folder that a run reads: its setting, its path, and what to do if it is missing."""
    if config.data.text.path is not None:
        yield "data.text.path", config.data.text.path, TEXT[config.data.text.encoder]
    if config.trainer.initial_weights is not None and not resume:
        hint = f"a run, or a checkpoint of the authors written by eao convert; {GUIDE}"
        yield "trainer.initial_weights", config.trainer.initial_weights, hint
    for split in ("train", "validation"):
        for name, dataset in config.data.named(split).items():
            for setting in PATHS:
                path = getattr(dataset, setting, None)
                if path is not None:
                    section = f"data.{split}.{name}" if name else f"data.{split}"
                    yield f"{section}.{setting}", path, _hint(dataset)


def _hint(dataset: ClipData) -> str:
    if isinstance(dataset, FolderData):
        return "features are written by eao extract; see docs/guide.md"
    if isinstance(dataset, ShardData):
        return "shards are written by eao pack"
    return f"the authors' file, or one like it; {GUIDE}"


def _file(setting: str, path: str, hint: str) -> dict[str, Any]:
    # What lies on object storage is not asked for: that could take long, and cost.
    exists = "://" in path or Path(path).exists()
    return {"setting": setting, "path": path, "exists": exists} | ({} if exists else {"hint": hint})


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _optimizer_bytes(config: OptimizerConfig, parameters: list[nn.Parameter]) -> int:
    """The state that an optimizer keeps, found by a step on tensors without memory."""
    stand_ins = [nn.Parameter(torch.empty_like(p, device="meta")) for p in parameters]
    optimizer = build_optimizer(config, stand_ins)
    for parameter in stand_ins:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    return _bytes([x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)])
