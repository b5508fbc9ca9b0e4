"""Experiments to run: shipped ones by name, files in this package's schema, and files of the authors' code."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eao.authors import KNOWN, is_authors, read_authors_config, translate_evaluation, translate_training
from eao.checkpoint import checkpoint_config
from eao.config import Config, apply_overrides, lay_over, load_config, merge, parse_config, read_yaml
from eao.configs import find_config
from eao.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)


def load_experiment(name: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The experiment that a file describes.

    Args:
        name: a YAML or JSON file in either schema, or the name of a shipped experiment.
        overrides: settings to change, as key=value.

    Raises:
        ConfigError: there is no such file, or it is malformed; a file of the authors for fine-tuning without
            `trainer.initial_weights`, since such a file takes the model from the checkpoint.
        CheckpointError: a file of the authors that cannot be translated.
    """
    path = find_config(name)
    authors = _read_authors(path)
    if authors is None:
        return load_config(path, overrides)
    values, notices = translate_training(authors)
    _announce(path, authors, KNOWN, notices)
    values = apply_overrides({"name": path.stem} | values, overrides)
    if "arch" not in authors:
        values = merge(_of_checkpoint(values, path), values)
    return parse_config(values, str(path))


def load_evaluation(name: str | Path, trained: Config) -> Config:
    """The settings of a checkpoint with those of an evaluation laid over them.

    Args:
        name: a YAML or JSON file in either schema, or the name of a shipped experiment.
        trained: the configuration of the checkpoint.

    Raises:
        ConfigError: there is no such file, or it is malformed.
        CheckpointError: a file of the authors that cannot be translated.
    """
    path = find_config(name)
    authors = _read_authors(path)
    if authors is None:
        return lay_over(trained, read_yaml(path), str(path))
    changes, notices = translate_evaluation(authors, trained)
    becomes = {"arch": "model", "data_loader": "data.test", "metrics": "evaluation.tasks"}
    _announce(path, authors, becomes, notices)
    return lay_over(trained, changes, str(path))


def _read_authors(path: Path) -> dict[str, Any] | None:
    """The content of a file in the authors' schema; None for any other."""
    try:
        values = read_authors_config(path)
    except CheckpointError:
        return None  # reading it as an experiment says what is wrong with it
    return values if is_authors(values) else None


def _of_checkpoint(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a fine-tuning file of the authors takes from the checkpoint it starts from."""
    weights = values["trainer"].get("initial_weights")
    if weights is None:
        raise ConfigError(
            f"{path} names no architecture (`arch`): the model is that of the checkpoint to start from",
            "name the checkpoint: trainer.initial_weights=PATH",
        )
    trained = checkpoint_config(weights)
    return {"model": trained.model.model_dump(), "evaluation": {"tasks": trained.evaluation.tasks}}


def _announce(path: Path, authors: Mapping[str, Any], becomes: Mapping[str, str], notices: list[str]) -> None:
    read = ", ".join(f"{theirs} as {ours}" for theirs, ours in becomes.items() if theirs in authors)
    lines = [f"{path} is a configuration of the authors' code; read: {read}", *notices]
    logger.warning("\n  ".join(lines))
