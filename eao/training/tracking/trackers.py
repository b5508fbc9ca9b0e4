"""All trackers of a run as one, so that training neither knows their number nor dies with one of them."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from eao.config import Config, TrackingConfig
from eao.errors import ConfigError, EaoError, missing_dependency
from eao.training.tracking.csv import CsvTracker
from eao.training.tracking.mlflow import MlflowTracker
from eao.training.tracking.neptune import NeptuneTracker
from eao.training.tracking.run import Status, TrackedRun, Tracker
from eao.training.tracking.sacred import SacredTracker
from eao.training.tracking.tensorboard import TensorBoardTracker
from eao.training.tracking.wandb import WandbTracker

logger = logging.getLogger(__name__)

BACKENDS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "csv": CsvTracker,
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
    "sacred": SacredTracker,
    "neptune": NeptuneTracker,
}


class Trackers:
    """Hands everything on to each tracker. A context manager that closes them with the status the block ended in.

    A tracker that fails while training (its disk is full, its server is gone) is warned about once and given no more
    values, only the end of the run: it is no reason to lose a training run.

    Args:
        trackers: the started trackers by name.
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)
        self._failed: set[str] = set()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values after `step` optimizer steps."""
        values = {name: float(value) for name, value in metrics.items()}
        for name in self._trackers:
            if name not in self._failed:
                self._try(name, lambda tracker: tracker.log(values, step))

    def close(self, status: Status) -> None:
        """End the run in every tracker, once."""
        for name in self._trackers:
            self._try(name, lambda tracker: tracker.close(status))
        self._trackers.clear()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("finished")
        else:
            # Ctrl-C and a request to exit are no exceptions in Python's sense of an error.
            self.close("failed" if issubclass(kind, Exception) else "interrupted")

    def _try(self, name: str, call: Callable[[Tracker], None]) -> None:
        try:
            with _unchanged_random_state():
                call(self._trackers[name])
        except Exception as error:
            if name not in self._failed:
                logger.warning("tracking with %s stopped, training goes on: %s: %s", name, type(error).__name__, error)
            self._failed.add(name)


def build_trackers(
    tracking: TrackingConfig, experiment: Config, folder: str | Path, *, resume_step: int | None = None
) -> Trackers:
    """Start the trackers named in `tracking.backends`, or continue the run they recorded before.

    With several processes only that of rank 0 tracks.

    Args:
        tracking: where to track.
        experiment: what is recorded as the run's configuration.
        folder: the run folder.
        resume_step: the optimizer step a resumed run goes on from; None for a new run. What the CSV table, TensorBoard
            and Sacred hold of later steps is dropped; MLflow, W&B and Neptune do not delete what they were given.

    Raises:
        MissingDependencyError: a tracker's package is not installed.
        ConfigError: a tracker cannot be started as it is configured.
    """
    run = TrackedRun(tracking, experiment.name, experiment.model_dump(mode="json"), Path(folder), resume_step)
    run.folder.mkdir(parents=True, exist_ok=True)
    started: dict[str, Tracker] = {}
    for name in dict.fromkeys(tracking.backends):
        try:
            with _unchanged_random_state():
                started[name] = BACKENDS[name](run)
        except Exception as error:
            Trackers(started).close("failed")
            raise _start_error(name, error) from error
    return Trackers(started)


def _start_error(name: str, error: Exception) -> EaoError:
    if isinstance(error, EaoError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return missing_dependency(error.name or name, name, f"tracking with {name}")
    # Some explain themselves over a whole coloured page, the cause first.
    cause = textwrap.shorten(re.sub(r"\x1b\[\d*m|-{4,}", " ", str(error)), width=300, placeholder=" ...")
    return ConfigError(f"cannot start tracking with {name}: {cause}", "or leave it out of tracking.backends")


@contextlib.contextmanager
def _unchanged_random_state() -> Iterator[None]:
    """Neptune draws file names from Python's generator, which must not change what a seed gives."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
