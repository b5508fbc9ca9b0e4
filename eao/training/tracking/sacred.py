"""Sacred's files: `run.json`, `config.json` and `metrics.json`, which Omniboard and other viewers read."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eao.errors import ConfigError
from eao.files import write_json
from eao.training.tracking.run import Status, TrackedRun

FOLDER = "sacred"
BEAT = 10.0
"""Seconds between two writings of the files, as in a run that Sacred itself starts: `metrics.json` is written whole."""


class SacredTracker:
    """Drives Sacred's file observer with the events that its `Experiment` would send.

    Args:
        run: the run to record.

    Raises:
        ConfigError: the files of a resumed run cannot be read.
    """

    def __init__(self, run: TrackedRun) -> None:
        with warnings.catch_warnings():
            # Its imports warn of pkg_resources, which the extra pins.
            warnings.simplefilter("ignore")
            from sacred.host_info import get_host_info
            from sacred.metrics_logger import MetricsLogger
            from sacred.observers import FileStorageObserver

        self._metrics = MetricsLogger()
        self._observer = FileStorageObserver(run.folder / FOLDER)
        folder = run.folder / FOLDER / run.id
        if run.resume_step is not None and folder.is_dir():
            _continue(self._observer, folder, run.resume_step)
        else:
            self._observer.started_event(
                ex_info={"name": run.name, "base_dir": str(run.folder), "sources": [], "dependencies": []},
                command="train",
                host_info=get_host_info(),
                start_time=_now(),
                config=dict(run.config),
                meta_info={},
                _id=run.id,
            )
        self._written = time.monotonic()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hold values back until the next beat."""
        for name, value in metrics.items():
            self._metrics.log_scalar_metric(name, value, step)
        if time.monotonic() - self._written >= BEAT:
            self._beat()

    def close(self, status: Status) -> None:
        """Write what is held back and the status."""
        self._beat()
        if status == "finished":
            self._observer.completed_event(_now(), None)
        elif status == "failed":
            self._observer.failed_event(_now(), [])
        else:
            self._observer.interrupted_event(_now(), "INTERRUPTED")

    def _beat(self) -> None:
        from sacred.metrics_logger import linearize_metrics

        self._observer.log_metrics(linearize_metrics(self._metrics.get_last_metrics()), {})
        self._observer.heartbeat_event({}, "", _now(), None)
        self._written = time.monotonic()


def _continue(observer: Any, folder: Path, step: int) -> None:
    """Point `observer` at the folder of an earlier run, with what that recorded after `step` removed."""
    try:
        entry = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        metrics_file = folder / "metrics.json"
        metrics = json.loads(metrics_file.read_text(encoding="utf-8")) if metrics_file.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot continue the Sacred run in {folder}: {error}", "remove the folder: a new one is begun"
        ) from None
    for series in metrics.values():
        kept = [i for i, s in enumerate(series["steps"]) if s <= step]
        series.update({key: [series[key][i] for i in kept] for key in ("steps", "values", "timestamps")})
    write_json(metrics_file, {name: series for name, series in metrics.items() if series["steps"]})
    observer.dir, observer.config, observer.info = str(folder), config, {}
    observer.run_entry = {key: value for key, value in entry.items() if key not in ("stop_time", "fail_trace")}
    observer.run_entry["status"] = "RUNNING"
    observer.save_json(observer.run_entry, "run.json")


def _now() -> datetime:
    # Sacred's times are in UTC and do not say so.
    return datetime.now(UTC).replace(tzinfo=None)
