"""Weights & Biases: files for `wandb sync` in the run folder, or online as the run goes."""

from __future__ import annotations

import os
from collections.abc import Mapping

from eao.training.tracking.run import Status, TrackedRun

EXIT_CODES: dict[Status, int] = {"finished": 0, "failed": 1, "interrupted": 255}


class WandbTracker:
    """Records history and configuration through the `wandb` package.

    An offline run writes `wandb/offline-run-*` in the run folder; each resumption adds such a folder with the same id,
    which `wandb sync` joins to one run.

    Args:
        run: the run to record.
    """

    def __init__(self, run: TrackedRun) -> None:
        if not run.online:
            # Its background process sends telemetry in the offline mode too.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=run.tracking.project,
            name=run.name,
            id=run.id,
            dir=str(run.folder),
            config=dict(run.config),
            mode=run.tracking.mode,
            resume="allow" if run.online else None,
            settings=wandb.Settings(console="off", silent=not run.online),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values; those of one step become one row, and a step before the last one is ignored with a warning."""
        self._run.log(dict(metrics), step=step)

    def close(self, status: Status) -> None:
        """Write, or send, what is held back."""
        self._run.finish(exit_code=EXIT_CODES[status])
