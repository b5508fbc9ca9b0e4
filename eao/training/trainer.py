"""The training loop: epochs of steps, validation, checkpoints, resume."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from eao.checkpoint import load_weights, save_native
from eao.config import Config
from eao.data.datasets import training_loader
from eao.data.item import ClipDataset
from eao.data.loader import BatchLoader, Loader
from eao.data.text import TextEncoder, build_text_encoder
from eao.errors import ConfigError, EaoError
from eao.evaluation.run import evaluation_loader
from eao.files import atomic_path, write_text
from eao.model import Batch, build_model
from eao.training.batchnorm import synchronize_batchnorm
from eao.training.distributed import ALONE, Processes, choose_device
from eao.training.loss import CombinatorialLoss
from eao.training.optimizer import build_optimizer, load_optimizer_state, set_learning_rate
from eao.training.records import EpochRecord, EpochSums, Monitor, Progress, train_metrics
from eao.training.schedule import Schedule
from eao.training.state import (
    BEST,
    LATEST,
    LOG_FILE,
    STATE_FILE,
    begin_run,
    check_unchanged,
    load_records,
    load_state,
)
from eao.training.step import OptimizerStep, StepValues, seed_torch
from eao.training.tracking import Trackers, build_trackers
from eao.training.validation import validate

logger = logging.getLogger(__name__)


class Trainer:
    """Trains one experiment into a run folder.

    The folder holds `config.yaml`, `log.jsonl` (one line an epoch), `latest/` and `best/` (native checkpoints; `latest`
    with the state of the run in `training.pt`), and `epoch-N/` if `trainer.save_every` asks for them.

    Args:
        config: the experiment; `data.train` must be set.
        out: the run folder. One that already holds a run is refused unless `resume`.
        resume: continue from `out/latest`, with the same results as an uninterrupted run.
        device: "cpu", "cuda", ...; default: CUDA if there is one.
        processes: those that train together, from `eao.training.distributed.connect`. Each makes a trainer of its own;
            all of them read the run folder, the first alone writes to it.
    """

    def __init__(
        self,
        config: Config,
        out: str | Path,
        resume: bool = False,
        device: str | torch.device | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.config = config
        self.out = Path(out)
        self.processes = processes
        self.device = device if isinstance(device, torch.device) else choose_device(device)
        self.precision = choose_precision(config.trainer.precision, self.device)
        self.loss = CombinatorialLoss(config.loss)
        self.monitor = Monitor(config.trainer.monitor)
        if config.data.train is None:
            raise ConfigError(
                "data.train is not set", "name a features folder and a caption file: data.train.features=..."
            )
        # The others wait for what the first one may have to put right in the folder.
        going_on = processes.share_json(begin_run(self.out, resume) if processes.is_first else None)
        if going_on:
            check_unchanged(config, self.out)
        self.text_encoder = build_text_encoder(config.data.text)
        self.loader = training_loader(config.data.train, config.data, self.text_encoder, config.seed, processes.share)
        self.validation = validation_loaders(config, self.text_encoder) if processes.is_first else {}
        check_dimensions(config, self.loader.dataset.video_dim, self.text_encoder.dim)
        seed_torch(config.seed)
        self.model = build_model(config.model)
        if going_on:
            load_weights(self.model, self.out / LATEST)
        elif config.trainer.initial_weights is not None:
            load_weights(self.model, config.trainer.initial_weights)
        if self.device.type == "cuda" and self.precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # on by default, unlike that of matrix products
        self.model.to(self.device)
        if config.trainer.sync_batchnorm and processes.world > 1:
            synchronize_batchnorm(self.model, self.device)
        self.average: AveragedModel | None = None
        if config.trainer.ema_decay is not None and processes.is_first:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.trainer.ema_decay))
        self.optimizer = build_optimizer(config.optimizer, [p for p in self.model.parameters() if p.requires_grad])
        self.train_step = OptimizerStep(self.model, self.loss, self.optimizer, config, self.precision, processes)
        self.schedule = Schedule(
            config.schedule,
            config.optimizer.lr,
            self.steps_per_epoch,
            config.trainer.epochs,
            highest=self.monitor.highest and self.monitor.key is not None,
        )
        self.epoch = 0
        self.step = 0
        self.sums = EpochSums()
        self.records: list[EpochRecord] = []
        self.trackers = Trackers({})
        self._clock = time.perf_counter()
        if going_on:
            self._load()
        self._resume_step = self.step if resume else None

    @property
    def train_data(self) -> ClipDataset:
        """The data set that is trained on."""
        return self.loader.dataset

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; see `count_steps`."""
        return count_steps(self.config, self.loader)

    def run(self, report: Callable[[Progress], None] = lambda _: None) -> list[EpochRecord]:
        """Train to the last epoch and return the log. Safe to interrupt: `latest` is always whole."""
        trainer = self.config.trainer
        if self.processes.is_first:
            self.config.save(self.out / "config.yaml")
            self.trackers = build_trackers(self.config.tracking, self.config, self.out, resume_step=self._resume_step)
        with self.trackers:
            if trainer.initial_validation and not self.records and self.step == 0:
                rate = self.schedule.rate(0)
                self._finish_record(EpochRecord(0, 0, None, {}, rate, clips_per_second=0.0, seconds=0.0), True)
            while self.epoch < trainer.epochs and not self.has_stalled:
                self._run_epoch(report)
        if self.has_stalled:
            logger.info("stopped early: no improvement for %d epochs", self.monitor.epochs_without_improvement)
        if self.processes.is_first and not (self.out / BEST).exists():
            save_native(self.out / BEST, self.weights, self.config)
        return self.records

    @property
    def weights(self) -> torch.nn.Module:
        """The model that is validated and kept: the moving average if there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def has_stalled(self) -> bool:
        """Whether the monitored metric has not improved for too long."""
        patience = self.config.trainer.early_stop
        return patience is not None and self.monitor.epochs_without_improvement > patience

    def _run_epoch(self, report: Callable[[Progress], None]) -> None:
        trainer = self.config.trainer
        self._train_epoch(report)
        self.epoch += 1
        due = self.epoch % trainer.validate_every == 0 or self.epoch == trainer.epochs
        record = self.sums.record(self.epoch, self.step, self.optimizer.param_groups[0]["lr"])
        self._finish_record(record, due)
        value = self.monitor.value(record)
        self.schedule.end_epoch(record.loss if self.monitor.key is None else value)
        improved = self.monitor.update(value)
        self.sums = EpochSums()
        if not self.processes.is_first:
            return
        if improved:
            save_native(self.out / BEST, self.weights, self.config)
        if trainer.save_every and self.epoch % trainer.save_every == 0:
            save_native(self.out / f"epoch-{self.epoch}", self.weights, self.config)
        self._save()

    def _train_epoch(self, report: Callable[[Progress], None]) -> None:
        """The steps of the present epoch that are still to be done."""
        trainer = self.config.trainer
        self.model.train(not trainer.eval_mode)
        self._clock = time.perf_counter()
        # The loss of a step on a GPU is looked at when the next step has been queued, so that the GPU never waits.
        behind = 1 if self.device.type == "cuda" else 0
        pending: deque[tuple[Batch, StepValues, int]] = deque()
        for batch in self._batches():
            set_learning_rate(self.optimizer, self.schedule.rate(self.step))
            values = self.train_step(batch, self.step)
            if self.average is not None:
                self.average.update_parameters(self.model)
            self.step += 1
            pending.append((batch, values, self.step))
            save = trainer.checkpoint_steps and self.step % trainer.checkpoint_steps == 0
            while len(pending) > (0 if save else behind):
                self._count(*pending.popleft(), report)
            if save and self.sums.steps < self.steps_per_epoch and self.processes.is_first:
                self._save()
                self._clock = time.perf_counter()
        while pending:
            self._count(*pending.popleft(), report)

    def _batches(self) -> Iterator[Batch]:
        """What is left of the present epoch's batches."""
        assert self.config.data.train is not None
        repeat = self.config.data.train.repeat
        done = self.sums.steps
        first, skip = divmod(done, len(self.loader))
        for turn in range(first, repeat):
            self.loader.set_epoch(self.epoch * repeat + turn, skip)
            for batch in islice(self.loader, self.steps_per_epoch - done):
                done += 1
                yield batch
            skip = 0

    def _count(self, batch: Batch, values: StepValues, step: int, report: Callable[[Progress], None]) -> None:
        """Take a step's loss into the log, and stop if it is not finite."""
        loss, terms = values.read()
        if not np.isfinite(loss):
            self._stop_on_bad_loss(batch, loss, step)
        now = time.perf_counter()
        self.sums.seconds += now - self._clock
        self._clock = now
        self.sums.add(loss, terms, values.clips)
        every, rate = self.config.trainer.log_steps, self.sums.clips_per_second
        # The last step of an epoch is logged with the means of the epoch.
        if every and step % every == 0 and self.sums.steps < self.steps_per_epoch:
            epoch = self.epoch + self.sums.steps / self.steps_per_epoch
            self.trackers.log(train_metrics(epoch, loss, terms, self.schedule.rate(step - 1), rate), step)
        epochs = self.config.trainer.epochs
        report(Progress(self.epoch + 1, epochs, self.sums.steps, self.steps_per_epoch, loss, rate))

    def _finish_record(self, record: EpochRecord, validated: bool) -> None:
        """Add validation to a record, and write it down. All processes learn of it; the first one measures."""
        if validated:
            measured = None
            if self.processes.is_first:
                measured = validate(self.weights, self.config, self.loss, self.validation, self.device)
            record.validation, record.validation_loss = self.processes.share_json(measured)
        self.records.append(record)
        self.trackers.log(record.metrics(), record.step)
        if self.processes.is_first:
            # Lines of an epoch whose checkpoint was never written are dropped on resume, so the log goes first.
            write_text(self.out / LOG_FILE, "".join(json.dumps(asdict(r)) + "\n" for r in self.records))

    def _stop_on_bad_loss(self, batch: Batch, value: float, step: int) -> None:
        """Save each process's part of the batch, and end all of them."""
        alone = self.processes.world == 1
        path = self.out / ("bad_batch.pt" if alone else f"bad_batch-{self.processes.rank}.pt")
        tensors = {name: x for name, x in vars(batch).items() if isinstance(x, Tensor)}
        with atomic_path(path) as temporary:
            torch.save({**tensors, "ids": list(batch.ids)}, temporary)
        # The first process to end takes the others with it.
        self.processes.share_json(None)
        raise EaoError(
            f"the loss became {value} at step {step}; the batch is saved in "
            + (str(path) if alone else f"{self.out / 'bad_batch-*.pt'}, a file a process"),
            "lower optimizer.lr, set trainer.clip_grad_norm, or check those features for NaN",
        )

    def _save(self) -> None:
        """Write `latest`."""
        state = {
            "position": [self.epoch, self.step],
            "sums": self.sums.state_dict(),
            "monitor": self.monitor.state_dict(),
            "schedule": self.schedule.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.train_step.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        save_native(
            self.out / LATEST, self.model, self.config, extra={STATE_FILE: lambda path: torch.save(state, path)}
        )

    def _load(self) -> None:
        """Continue from `latest`, whose weights the model already has."""
        state = load_state(self.out)
        self.epoch, self.step = state["position"]
        self.sums = EpochSums(**state["sums"])
        self.monitor.load_state_dict(state["monitor"])
        self.schedule.load_state_dict(state["schedule"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.train_step.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.records = load_records(self.out, self.epoch)


def choose_precision(wanted: str, device: torch.device) -> str:
    """The training precision: what is asked for, or for "auto" the best the device has (bf16 on CUDA, fp32 on CPU)."""
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def count_steps(config: Config, loader: BatchLoader) -> int:
    """Optimizer steps of one epoch; `data.train.repeat` passes over the data make one epoch.

    Raises:
        ConfigError: there is not one full batch.
    """
    assert config.data.train is not None
    items, size = len(loader.dataset), config.data.train.batch_size or config.data.batch_size
    if len(loader) == 0:
        raise ConfigError(
            f"{items} training items are fewer than one batch of {size}", f"set data.batch_size={max(1, items)} or less"
        )
    steps, limit = len(loader) * config.data.train.repeat, config.trainer.max_items_per_epoch
    if limit is None:
        return steps
    if limit < size:
        raise ConfigError(
            f"trainer.max_items_per_epoch is {limit}, less than one batch of {size}", f"set it to {size} or more"
        )
    return min(steps, limit // size)


def validation_loaders(config: Config, text_encoder: TextEncoder) -> dict[str, Loader]:
    """The batches of each data set under `data.validation`, by name."""
    return {name: evaluation_loader(d, config, text_encoder) for name, d in config.data.named("validation").items()}


def check_dimensions(config: Config, video_dim: int, text_dim: int) -> None:
    """Raise a ConfigError if the model does not fit the features it is to be trained on."""
    for key, given, expected in (
        ("video_dim", video_dim, config.model.video_dim),
        ("text_dim", text_dim, config.model.text_dim),
    ):
        if given != expected:
            raise ConfigError(
                f"model.{key} is {expected}, but the features are {given} wide",
                f"set model.{key}={given}, or use the features the model was made for",
            )
