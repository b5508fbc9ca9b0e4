"""The authors' configuration files in this package's schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from eao.authors.data import SIZES, dataset_type, translate_dataset, translate_features, translate_text
from eao.authors.model import translate_model
from eao.authors.schema import leftover, renamed, section
from eao.authors.training import translate_loss, translate_optimizer, translate_trainer
from eao.config import Config, ModelConfig, parse_config
from eao.errors import CheckpointError, ConfigError
from eao.yaml_text import parse_yaml

KNOWN = {
    "arch": "model",
    "data_loader": "data.train",
    "val_data_loaders": "data.validation",
    "loss": "loss",
    "optimizer": "optimizer",
    "lr_scheduler": "schedule",
    "trainer": "trainer",
    "metrics": "evaluation.tasks",
}
"""Their sections, and what each becomes."""


@dataclass
class Translation:
    """The authors' configuration in this package's schema, and what could not be carried over."""

    config: Config
    notices: list[str] = field(default_factory=list)


def read_authors_config(path: str | Path) -> dict[str, Any]:
    """A YAML or JSON file as a mapping. Raises a CheckpointError if it is missing or malformed."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"cannot read {path}: {' '.join(str(error).split())}", "check the path") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a configuration: the top level must be a mapping")
    return values


def translate_config(authors: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> Translation:
    """A whole configuration of theirs, such as that of a checkpoint.

    Args:
        authors: their YAML: `arch`, `loss`, `optimizer`, `lr_scheduler`, `trainer`, `data_loader`, ...
        weights: the state dict it belongs to. Widths of the audio network, which the authors' schema cannot say, and
            feature widths that the file leaves out are taken from it.

    Raises:
        CheckpointError: without `arch`, for an unknown architecture, or for values this model cannot have.
    """
    values, notices = translate_training({"arch": {}} | dict(authors), weights)
    try:
        return Translation(parse_config(values, "the authors' configuration"), notices)
    except ConfigError as error:
        raise CheckpointError(error.message, error.hint) from None


def translate_training(
    authors: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What a training file of theirs says, in our schema, and what could not be translated.

    A file for fine-tuning has no `arch` and `metrics`: they come with the checkpoint. Then there is no model section.
    """
    notices: list[str] = []
    values: dict[str, Any] = {}
    if "arch" in authors:
        values["model"] = translate_model(section(authors, "arch"), weights or {}, notices)
    values |= translate_loss(authors, notices) | translate_optimizer(authors)
    values["data"] = _data(authors, notices)
    validation = _validation(authors, notices)
    if there := {name: dataset for name, dataset in validation.items() if dataset is not None}:
        values["data"]["validation"] = there
    values |= translate_trainer(authors, list(validation), notices)
    if loader := section(authors, "data_loader"):
        values["features"] = translate_features(loader)
    sizes = [dataset["batch_size"] for dataset in there.values() if "batch_size" in dataset]
    if evaluation := ({"batch_size": sizes[0]} if sizes else {}) | _tasks(authors):
        values["evaluation"] = evaluation
    if isinstance(authors.get("name"), str):
        values["name"] = authors["name"]
    gpus = authors.get("n_gpu")
    if isinstance(gpus, int) and gpus > 1:
        notices.append(f"n_gpu: start {gpus} processes with torchrun --nproc-per-node {gpus} -m eao train ...")
    leftover(authors, "", {*KNOWN, "name", "n_gpu"}, notices)
    return values, notices


def translate_evaluation(authors: Mapping[str, Any], trained: Config) -> tuple[dict[str, Any], list[str]]:
    """What an evaluation file of theirs says, to be laid over the settings of a checkpoint.

    Their test evaluates `data_loader`. Its sections replace those of the checkpoint whole.

    Args:
        authors: their YAML: `data_loader`, and `arch` and `metrics` where they differ from the training.
        trained: the configuration of the checkpoint.
    """
    notices: list[str] = []
    values: dict[str, Any] = {}
    if arch := section(authors, "arch"):
        stated = translate_model(arch, {}, notices)
        whole = ModelConfig.model_validate(stated).model_dump()
        # Widths that their schema leaves to the features or cannot say are those of the checkpoint.
        unsaid = {"text_dim", "video_dim"} - stated.keys()
        values["model"] = {key: value for key, value in whole.items() if key not in unsaid} | {"audio": stated["audio"]}
    if loader := section(authors, "data_loader"):
        test = translate_dataset(loader, "data_loader", notices)
        args = section(loader, "args")
        data = renamed(args, {"num_workers": "workers"})
        if test is not None:
            data["test"] = test | renamed(args, {"batch_size": "batch_size"})
        values["data"] = data | {"text": translate_text(loader, trained.data.text.encoder == "clip")}
    values |= {"evaluation": tasks} if (tasks := _tasks(authors)) else {}
    leftover(authors, "", {*KNOWN, "name", "n_gpu"}, notices)
    return values, notices


def _data(authors: Mapping[str, Any], notices: list[str]) -> dict[str, Any]:
    loader = section(authors, "data_loader")
    args = section(loader, "args")
    data = renamed(args, {"batch_size": "batch_size", "num_workers": "workers"})
    train = translate_dataset(loader, "data_loader", notices)
    sizes = renamed(section(args, "dataset_kwargs"), SIZES) if train is None else {k: train[k] for k in SIZES.values()}
    # 0 video tokens mean one pooled vector, which only a data set for AVLnet has.
    data |= {key: size for key, size in sizes.items() if size}
    if train is not None:
        data["train"] = {key: value for key, value in train.items() if key not in sizes or not value}
        if args.get("shuffle", True) is False or not args.get("drop_last", False):
            notices.append("data_loader: training data are shuffled, and a last batch that is not full is left out")
    if text := translate_text(loader, bool(section(authors, "trainer").get("use_clip_text_model"))):
        data["text"] = text
    return data


def _validation(authors: Mapping[str, Any], notices: list[str]) -> dict[str, dict[str, Any] | None]:
    """The validation sets by name, in their order; None = left out."""
    loaders = authors.get("val_data_loaders")
    loaders = [loaders] if isinstance(loaders, Mapping) else loaders if isinstance(loaders, list) else []
    datasets: dict[str, dict[str, Any] | None] = {}
    for position, loader in enumerate(loaders):
        where = f"val_data_loaders[{position}]"
        loader = loader if isinstance(loader, Mapping) else {}
        dataset = translate_dataset(loader, where, notices)
        if dataset is not None:
            dataset |= renamed(section(loader, "args"), {"batch_size": "batch_size"})
        name = dataset_type(loader) or where
        datasets[name if name not in datasets else f"{name}-{position}"] = dataset
    return datasets


def _tasks(authors: Mapping[str, Any]) -> dict[str, Any]:
    metrics = authors.get("metrics")
    tasks = [str(name).removesuffix("_metrics") for name in metrics] if isinstance(metrics, list) else []
    # "t2v_va" and the like are accepted by their code and never computed.
    tasks = [task for task in tasks if "_" not in task]
    return {"tasks": tasks} if tasks else {}
