"""What a run writes down: the log line of an epoch, the sums it is made of, the metric that says what is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from eao.errors import ConfigError
from eao.evaluation.metrics import Metrics


@dataclass
class EpochRecord:
    """One line of `log.jsonl`. Epoch 0 is the validation before training, which has no loss.

    Attributes:
        validation: metrics by task, "t2v" or "msrvtt/t2v" where the validation sets have names.
        validation_loss: "loss" or "msrvtt/loss" -> mean over batches of the batch's loss. It depends on the size of the
            batches, since the other clips of a batch are the negatives: compare it only within one setting.
    """

    epoch: int
    step: int
    loss: float | None
    terms: dict[str, float]
    learning_rate: float
    clips_per_second: float
    seconds: float
    validation: dict[str, Metrics] = field(default_factory=dict)
    validation_loss: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Everything that was measured as one flat mapping: "train/loss", "validation/t2va/R1", ..."""
        flat: dict[str, float] = {}
        if self.loss is not None:
            flat = train_metrics(self.epoch, self.loss, self.terms, self.learning_rate, self.clips_per_second)
        flat |= {f"validation/{name}": value for name, value in self.validation_loss.items()}
        for task, metrics in self.validation.items():
            flat |= {f"validation/{task}/{name}": value for name, value in metrics.items()}
        return flat


def train_metrics(
    epoch: float, loss: float, terms: Mapping[str, float], learning_rate: float, clips_per_second: float
) -> dict[str, float]:
    """What is measured while training, by the names that trackers are given; `epoch` counts what is done, in parts."""
    named = {f"train/terms/{term}": value for term, value in terms.items()}
    rates = {"train/learning_rate": learning_rate, "train/clips_per_second": clips_per_second}
    return {"train/epoch": epoch, "train/loss": loss, **named, **rates}


@dataclass
class Progress:
    """What a running job reports after each step."""

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    loss: float
    clips_per_second: float


@dataclass
class EpochSums:
    """The sums from which an epoch's log line is made; saved with a checkpoint within an epoch.

    Attributes:
        steps: how many steps were added.
        loss: sum of their losses.
        terms: term -> [sum of its values, steps in which it had one].
        clips: over all processes.
        seconds: spent training, before a resumed run as well.
    """

    steps: int = 0
    loss: float = 0.0
    terms: dict[str, list[float]] = field(default_factory=dict)
    clips: int = 0
    seconds: float = 0.0

    def add(self, loss: float, terms: Mapping[str, float], clips: int) -> None:
        """Add one step."""
        self.steps += 1
        self.loss += loss
        self.clips += clips
        for term, value in terms.items():
            total = self.terms.setdefault(term, [0.0, 0])
            total[0] += value
            total[1] += 1

    @property
    def clips_per_second(self) -> float:
        return self.clips / self.seconds if self.seconds else 0.0

    def record(self, epoch: int, step: int, learning_rate: float) -> EpochRecord:
        """The log line, without validation."""
        return EpochRecord(
            epoch=epoch,
            step=step,
            loss=self.loss / self.steps,
            terms={term: total / count for term, (total, count) in self.terms.items()},
            learning_rate=learning_rate,
            clips_per_second=self.clips_per_second,
            seconds=self.seconds,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return asdict(self)


class Monitor:
    """The metric by which the best checkpoint is kept, and how long it has not improved.

    Args:
        text: "max validation/t2va/R1", "min validation/loss", a metric alone (higher is better), or None for none.

    Raises:
        ConfigError: the text is of another form.
    """

    def __init__(self, text: str | None) -> None:
        words = (text or "").split()
        if text is not None and (len(words) not in (1, 2) or (len(words) == 2 and words[0] not in ("min", "max"))):
            raise ConfigError(f"trainer.monitor is {text!r}", 'for example "max validation/t2va/R1", or null')
        self.key = words[-1] if words else None
        self.highest = len(words) < 2 or words[0] == "max"
        self.best: float | None = None
        self.epochs_without_improvement = 0

    def value(self, record: EpochRecord) -> float | None:
        """The metric in a record; None if nothing is monitored, or not in this epoch.

        Raises:
            ConfigError: validation does not give this metric.
        """
        if self.key is None or (self.key.startswith("validation/") and not record.validation):
            return None
        metrics = record.metrics()
        if self.key not in metrics:
            near = next((name for name in metrics if name.endswith("/R1")), "train/loss")
            raise ConfigError(
                f"trainer.monitor is {self.key!r}, which this run does not measure",
                f"for example {near}, or trainer.monitor=null",
            )
        return metrics[self.key]

    def update(self, value: float | None) -> bool:
        """Note an epoch's value; whether it is the best so far. A tie counts as better, as in the original."""
        if value is None:
            return False
        better = not math.isnan(value) and (self.best is None or self._at_least(value, self.best))
        self.epochs_without_improvement = 0 if better else self.epochs_without_improvement + 1
        if better:
            self.best = value
        return better

    def best_record(self, records: Iterable[EpochRecord]) -> EpochRecord:
        """The record of the best checkpoint: the last one if nothing was monitored, or was never measured."""
        trained = [record for record in records if record.epoch > 0]
        chosen = trained[-1]
        monitor = Monitor(None)
        monitor.highest = self.highest
        for record in trained:
            if monitor.update(self.value(record)):
                chosen = record
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"best": self.best, "epochs_without_improvement": self.epochs_without_improvement}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        self.best = state["best"]
        self.epochs_without_improvement = state["epochs_without_improvement"]

    def _at_least(self, a: float, b: float) -> bool:
        return a >= b if self.highest else a <= b
