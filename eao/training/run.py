"""Training as a command: progress on the terminal, and what a run folder holds when it is done."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from eao.config import Config
from eao.console import err
from eao.files import write_json
from eao.training.curves import plot_curves
from eao.training.distributed import connect
from eao.training.records import EpochRecord, Progress
from eao.training.trainer import Trainer


def run_training(
    config: Config, out: Path, resume: bool = False, device: str | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Train into `out`, then write `metrics.json` (the best epoch) and `curves.png` there.

    Under `torchrun` this is one of several processes, which train together; only the first prints and writes.

    Returns:
        the same as `metrics.json`: the run folder, the epochs done and the best epoch's record; empty in any process
        but the first.
    """
    with connect(device) as (processes, chosen):
        if not processes.is_first:
            logging.getLogger("eao").setLevel(logging.ERROR)
        trainer = Trainer(config, out, resume=resume, device=chosen, processes=processes)
        records = _train(trainer, quiet or not processes.is_first)
        if not processes.is_first:
            return {}
        plot_curves(records, out / "curves.png")
        best = trainer.monitor.best_record(records)
        result = {"run": str(out), "epochs": trainer.epoch, "best": asdict(best)}
        write_json(out / "metrics.json", result)
        return result


def _train(trainer: Trainer, quiet: bool) -> list[EpochRecord]:
    """Train, with a line for each epoch and one that moves with the steps."""
    if quiet:
        return trainer.run()
    config = trainer.config
    parameters = sum(p.numel() for p in trainer.model.parameters())
    world = trainer.processes.world
    err.print(
        f"{config.name}: {len(trainer.train_data)} clips, {trainer.steps_per_epoch} steps an epoch, "
        f"{parameters / 1e6:.1f} M parameters, {f'{world} x ' if world > 1 else ''}{trainer.device.type} "
        f"{trainer.precision}",
        highlight=False,
    )
    shown = len(trainer.records)

    def print_epochs(always: bool) -> None:
        nonlocal shown
        for record in trainer.records[shown:]:
            if always or record.validation or err.is_terminal:
                err.print(epoch_line(record, config.trainer.epochs), highlight=False)
        shown = len(trainer.records)

    with Live(console=err, refresh_per_second=4, transient=True) as live:

        def report(step: Progress) -> None:
            print_epochs(always=False)
            live.update(Text(step_line(step)))

        records = trainer.run(report)
    print_epochs(always=True)
    return records


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """One line about an epoch: loss, throughput and text-to-video recall."""
    recalls = [
        f"{task} R@1 {metrics['R1']:.1f} R@10 {metrics['R10']:.1f}"
        for task, metrics in record.validation.items()
        if task.rpartition("/")[2] in ("t2v", "t2va")
    ]
    trained = [] if record.loss is None else [f"loss {record.loss:.3f}  {record.clips_per_second:.0f} clips/s"]
    return "  ".join([f"epoch {record.epoch}/{epochs}", *trained, *recalls])


def step_line(step: Progress) -> str:
    """One line about a step in progress."""
    return (
        f"epoch {step.epoch}/{step.epochs}  step {step.step}/{step.steps_per_epoch}  "
        f"loss {step.loss:.3f}  {step.clips_per_second:.0f} clips/s"
    )
