"""Event files for TensorBoard: `tensorboard --logdir RUN_FOLDER`."""

from __future__ import annotations

from collections.abc import Mapping

from eao.training.tracking.run import Status, TrackedRun
from eao.yaml_text import dump_yaml

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes scalars, and the configuration as a text.

    A resumed run's events tell TensorBoard to leave out those it had recorded after the step it goes on from.

    Args:
        run: the run to record.
    """

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if run.resume_step is None else run.resume_step + 1
        self._writer = SummaryWriter(str(run.folder / FOLDER), purge_step=purge_step, flush_secs=10)
        if run.resume_step is None:
            # Markdown shows what is indented as it is.
            text = "".join(f"    {line}\n" for line in dump_yaml(dict(run.config)).splitlines())
            self._writer.add_text("config", text, global_step=0)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record scalars. They reach the file within ten seconds, or when the run ends."""
        for name, value in metrics.items():
            # TensorBoard allows no other characters, and would say so at every value.
            self._writer.add_scalar(name.replace("+", "_"), value, global_step=step)

    def close(self, status: Status) -> None:
        """Write what is held back. Event files have no place for a status."""
        self._writer.close()
