"""What a run needs beside its weights to go on exactly, and which settings may change when it does."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from eao.checkpoint import CONFIG_FILE
from eao.config import Config, load_config
from eao.errors import CheckpointError
from eao.files import recover
from eao.training.records import EpochRecord

LATEST, BEST = "latest", "best"
STATE_FILE = "training.pt"
LOG_FILE = "log.jsonl"

_FREE = (
    "data.test",
    "data.validation",
    "data.workers",
    "evaluation",
    "features",
    "name",
    "tracking",
    "trainer.checkpoint_steps",
    "trainer.early_stop",
    "trainer.epochs",
    "trainer.initial_validation",
    "trainer.initial_weights",
    "trainer.log_steps",
    "trainer.save_every",
    "trainer.validate_every",
)
"""Settings that may differ when a run goes on: the steps it has made would have been the same."""


def begin_run(folder: Path, resume: bool) -> bool:
    """Whether a run folder holds a checkpoint to go on from. What a killed process left half done is put right.

    A run that was killed before its first checkpoint is resumed from its beginning.

    Raises:
        CheckpointError: a new run in the folder of another one, or nothing to resume.
    """
    latest = folder / LATEST
    if resume:
        periodic = {path.name.split(".")[1] for path in folder.glob(".epoch-*")}
        for name in (LATEST, BEST, LOG_FILE, *periodic):
            recover(folder / name)
        if not latest.exists() and not (folder / CONFIG_FILE).exists():
            raise CheckpointError(f"{folder} holds no run to resume", "start one without --resume")
    elif latest.exists():
        raise CheckpointError(f"{folder} already holds a run", "continue it with --resume, or choose another --out")
    return latest.exists()


def check_unchanged(config: Config, folder: Path) -> None:
    """Refuse to continue a run with settings that would have made it another one.

    A file may lie elsewhere now, if it still has its name.

    Raises:
        CheckpointError: naming the settings.
    """
    before = dict(_flatten(load_config(folder / LATEST / CONFIG_FILE).model_dump(mode="json")))
    now = dict(_flatten(config.model_dump(mode="json")))
    changed = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        moved = isinstance(old, str) and isinstance(new, str) and Path(old).name == Path(new).name
        if old == new or moved or any(key == free or key.startswith(free + ".") for free in _FREE):
            continue
        changed.append(f"{key} {json.dumps(old)} -> {json.dumps(new)}")
    if changed:
        raise CheckpointError(
            f"{folder} was begun with other settings: {', '.join(changed)}",
            f"change them back, or start a new run from its weights: trainer.initial_weights={folder / LATEST}",
        )


def load_state(folder: Path) -> dict[str, Any]:
    """The training state in `latest`, on the CPU.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / LATEST / STATE_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"cannot read the training state {path}: {error}",
            f"start a new run from its weights with trainer.initial_weights={folder / LATEST}",
        ) from None
    if "position" not in state:
        raise CheckpointError(
            f"{path} was written by another version of this program",
            f"start a new run from its weights with trainer.initial_weights={folder / LATEST}",
        )
    return state


def load_records(folder: Path, epochs: int) -> list[EpochRecord]:
    """The log up to an epoch; lines of later ones, whose checkpoint was never written, are left out."""
    path = folder / LOG_FILE
    if not path.exists():
        return []
    records = [EpochRecord(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if record.epoch <= epochs]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
