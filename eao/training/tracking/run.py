"""What every tracker is told about a run, and what it must be able to do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from eao.config import TrackingConfig
from eao.files import write_text

Status = Literal["finished", "failed", "interrupted"]

ID_FILE = "tracking_id"


class Tracker(Protocol):
    """Records one run. Its constructor starts, or continues, the run in its `TrackedRun`."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values after `step` optimizer steps, under names such as `train/loss` or `validation/t2va/R1`."""

    def close(self, status: Status) -> None:
        """Write what is still held back and mark the run as ended."""


@dataclass(frozen=True)
class TrackedRun:
    """One training run as its trackers see it.

    Args:
        tracking: where to track.
        name: the experiment's name.
        config: the resolved configuration, in types that JSON has.
        folder: the run folder; what trackers write goes there.
        resume_step: the optimizer step that a resumed run goes on from; None for a new run.
    """

    tracking: TrackingConfig
    name: str
    config: Mapping[str, Any]
    folder: Path
    resume_step: int | None = None

    @property
    def online(self) -> bool:
        """Whether trackers may use the network."""
        return self.tracking.mode == "online"

    @cached_property
    def id(self) -> str:
        """What the run is found by again when it is resumed: 16 hexadecimal digits, kept in the run folder."""
        path = self.folder / ID_FILE
        if self.resume_step is not None and path.is_file():
            return path.read_text(encoding="utf-8").strip()
        # Not from `random`: the training's own random state must not depend on where it is tracked.
        new = uuid.uuid4().hex[:16]
        write_text(path, new + "\n")
        return new

    def parameters(self) -> dict[str, str]:
        """The configuration as one flat mapping, `model.fusion.depth` to `"1"`."""
        return dict(_flatten(self.config))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)
