"""Training as a command: progress on the terminal, and what a run folder holds when it is done."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from eao.config import Config
from eao.console import err
from eao.files import write_json
from eao.training.curves import plot_curves
from eao.training.trainer import EpochRecord, Progress, Trainer


def run_training(
    config: Config, out: Path, resume: bool = False, device: str | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Train into `out`, then write `metrics.json` (the best epoch) and `curves.png` there.

    Returns:
        the same as `metrics.json`: the run folder, the epochs done and the best epoch's record.
    """
    trainer = Trainer(config, out, resume=resume, device=device)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    if not quiet:
        err.print(
            f"{config.name}: {len(trainer.train_data)} clips, {trainer.steps_per_epoch} steps an epoch, "
            f"{parameters / 1e6:.1f} M parameters, {trainer.device} {trainer.precision}",
            highlight=False,
        )
    with Live(console=err, refresh_per_second=4, transient=True) if not quiet else _Silent() as live:
        shown = len(trainer.records)

        def report(step: Progress) -> None:
            nonlocal shown
            for record in trainer.records[shown:]:
                if not quiet and (record.validation or err.is_terminal):
                    err.print(epoch_line(record, config.trainer.epochs), highlight=False)
            shown = len(trainer.records)
            live.update(Text(step_line(step)))

        records = trainer.run(report)
    if not quiet:
        for record in records[shown:]:
            err.print(epoch_line(record, config.trainer.epochs), highlight=False)
    plot_curves(records, out / "curves.png")
    result = {"run": str(out), "epochs": len(records), "best": asdict(best_record(records, config.trainer.monitor))}
    write_json(out / "metrics.json", result)
    return result


def describe_run(config: Config, out: Path) -> dict[str, Any]:
    """What a run would do, with its data read and its model built but nothing written."""
    trainer = Trainer(config, out)
    return {
        "name": config.name,
        "run folder": str(out),
        "training items": len(trainer.train_data),
        "validation items": sum(len(loader.dataset) for loader in trainer.validation.values()),
        "epochs": config.trainer.epochs,
        "steps per epoch": trainer.steps_per_epoch,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "device": str(trainer.device),
        "precision": trainer.precision,
    }


def best_record(records: list[EpochRecord], monitor: str | None) -> EpochRecord:
    """The last epoch among those with the highest monitored metric; the last epoch if nothing is monitored."""
    if monitor is None:
        return records[-1]
    task, _, name = monitor.removeprefix("validation/").rpartition("/")
    scored = [r for r in records if name in r.validation.get(task, {})]
    return max(reversed(scored), key=lambda r: r.validation[task][name]) if scored else records[-1]


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """One line about an epoch: loss, throughput and text-to-video recall."""
    recalls = [
        f"{task} R@1 {metrics['R1']:.1f} R@10 {metrics['R10']:.1f}"
        for task, metrics in record.validation.items()
        if task.rpartition("/")[2] in ("t2v", "t2va")
    ]
    line = f"epoch {record.epoch}/{epochs}  loss {record.loss:.3f}  {record.clips_per_second:.0f} clips/s"
    return "  ".join([line, *recalls])


def step_line(step: Progress) -> str:
    """One line about a step in progress."""
    return (
        f"epoch {step.epoch}/{step.epochs}  step {step.step}/{step.steps_per_epoch}  "
        f"loss {step.loss:.3f}  {step.clips_per_second:.0f} clips/s"
    )


class _Silent:
    """Stands in for the live display when nothing is to be shown."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, _: Text) -> None:
        return None
