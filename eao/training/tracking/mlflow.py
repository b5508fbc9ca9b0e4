"""MLflow: an experiment for `tracking.project`, in the run folder or at `tracking.url`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from urllib.parse import urlparse

from eao.errors import ConfigError
from eao.training.tracking.run import Status, TrackedRun

FILE_NAME = "mlflow.db"
ID_TAG = "eao.run_id"
STATUSES: dict[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
LOCAL_SCHEMES = ("", "file", "sqlite")


class MlflowTracker:
    """Records parameters and metrics through MLflow's client.

    Without `tracking.url` they go to an SQLite store, MLflow's own default, which `mlflow ui --backend-store-uri
    sqlite:///RUN_FOLDER/mlflow.db` shows. Parameters cannot be changed in MLflow: those a run was started with stay.

    Args:
        run: the run to record.

    Raises:
        ConfigError: the URL leads to a server, but `tracking.mode` is offline.
    """

    def __init__(self, run: TrackedRun) -> None:
        local = f"sqlite:///{(run.folder / FILE_NAME).absolute()}"
        url = run.tracking.url or local
        if not run.online:
            if urlparse(url).scheme not in LOCAL_SCHEMES:
                raise ConfigError(f"tracking.url={url} leads to a server", "allow that with tracking.mode=online")
            # MLflow sends usage data from the moment it is imported.
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        # The making of the tables is told in several lines.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._metric = Metric
        self._client = MlflowClient(tracking_uri=url)
        experiment = self._client.get_experiment_by_name(run.tracking.project)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            artifacts = (run.folder / "mlflow-artifacts").absolute().as_uri() if url == local else None
            experiment_id = self._client.create_experiment(run.tracking.project, artifact_location=artifacts)
        earlier = self._client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{run.id}'", max_results=1)
        if earlier:
            self._run_id = earlier[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._client.create_run(experiment_id, run_name=run.name, tags={ID_TAG: run.id}).info.run_id
            parameters = [Param(name, value) for name, value in run.parameters().items()]
            for first in range(0, len(parameters), 100):  # as many as one request may hold
                self._client.log_batch(self._run_id, params=parameters[first : first + 100])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics in one transaction."""
        now = time.time_ns() // 1_000_000
        # MLflow allows no `+` in names.
        values = [self._metric(name.replace("+", "_"), value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=values)

    def close(self, status: Status) -> None:
        """Set the run's status and end time."""
        self._client.set_terminated(self._run_id, status=STATUSES[status])
