"""Neptune: files for `neptune sync` in the run folder, or online as the run goes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from eao.training.tracking.run import Status, TrackedRun

FOLDER = "neptune"


class NeptuneTracker:
    """Records series and configuration through the `neptune` package (version 1 of the client).

    An offline run writes `neptune/offline/run__*` in the run folder, for `neptune sync --path RUN_FOLDER/neptune`. Each
    resumption adds such a folder, and Neptune makes a run of each; their field `run_id` is the same. Online, a
    resumption continues the run. Values that are no finite numbers are left out by Neptune.

    Args:
        run: the run to record.
    """

    def __init__(self, run: TrackedRun) -> None:
        import neptune
        from neptune.utils import stringify_unsupported

        # It reports its progress on standard output, which is for results.
        for name in ("neptune", "neptune_no_prefix"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # The only way to tell it where to write.
        os.environ["NEPTUNE_DATA_DIRECTORY"] = str((run.folder / FOLDER).absolute())
        self._run = neptune.init_run(
            project=run.tracking.project if run.online else None,
            custom_run_id=run.id,
            name=run.name,
            mode="async" if run.online else "offline",
            source_files=[],
            git_ref=False,
            capture_stdout=False,
            capture_stderr=False,
            capture_hardware_metrics=False,
            capture_traceback=False,
            fail_on_exception=False,
        )
        self._run["config"] = stringify_unsupported(run.config)
        self._run["run_id"] = run.id
        self._run["status"] = "running"

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append to the series of each metric."""
        for name, value in metrics.items():
            self._run[name].append(value, step=step)

    def close(self, status: Status) -> None:
        """Record the status, then write, or send, what is held back."""
        self._run["status"] = status
        self._run["sys/failed"] = status == "failed"
        self._run.stop()
