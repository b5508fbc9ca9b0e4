"""The training loop: epochs of steps, validation, checkpoints, resume."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eao.checkpoint import load_weights, save_native
from eao.config import Config, load_config
from eao.data.datasets import open_dataset
from eao.data.loader import Loader
from eao.data.text import TextEncoder, build_text_encoder
from eao.embedder import TorchBackend
from eao.errors import CheckpointError, ConfigError, EaoError
from eao.evaluation.metrics import Metrics
from eao.evaluation.run import evaluate_backend, evaluation_loader
from eao.files import atomic_path, write_text
from eao.model import build_model
from eao.training.augment import augment
from eao.training.loss import CombinatorialLoss
from eao.training.optimizer import build_optimizer, learning_rate_factor, set_learning_rate

logger = logging.getLogger(__name__)

STATE_FILE = "training.pt"


@dataclass
class EpochRecord:
    """One line of `log.jsonl`."""

    epoch: int
    step: int
    loss: float
    terms: dict[str, float]
    learning_rate: float
    clips_per_second: float
    seconds: float
    validation: dict[str, Metrics] = field(default_factory=dict)


@dataclass
class Progress:
    """What a running job reports after each step."""

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    loss: float
    clips_per_second: float


class Trainer:
    """Trains one experiment into a run folder.

    The folder holds `config.yaml`, `log.jsonl` (one line an epoch), `latest/` and `best/` (native checkpoints; `latest`
    with optimizer and random state in `training.pt`), and `epoch-N/` if `trainer.save_every` asks for them.

    Args:
        config: the experiment; `data.train` must be set.
        out: the run folder. One that already holds a run is refused unless `resume`.
        resume: continue from `out/latest`, with the same results as an uninterrupted run.
        device: "cpu", "cuda", ...; default: CUDA if there is one.
    """

    def __init__(self, config: Config, out: str | Path, resume: bool = False, device: str | None = None) -> None:
        self.config = config
        self.out = Path(out)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = choose_precision(config.trainer.precision, self.device)
        self.loss = CombinatorialLoss(config.loss)
        if config.data.train is None:
            raise ConfigError(
                "data.train is not set", "name a features folder and a caption file: data.train.features=..."
            )
        if not resume and (self.out / "latest").exists():
            raise CheckpointError(
                f"{self.out} already holds a run", "continue it with --resume, or choose another --out"
            )
        if resume and not (self.out / "latest").exists():
            raise CheckpointError(f"{self.out} holds no run to resume", "start one without --resume")
        seed_everything(config.seed)
        self.text_encoder = build_text_encoder(config.data.text)
        self.train_data = open_dataset(config.data.train, config.data)
        self.loader = Loader(
            self.train_data,
            self.text_encoder,
            config.data.batch_size,
            shuffle=True,
            seed=config.seed,
            drop_last=True,
            workers=config.data.workers,
        )
        self.validation = validation_loaders(config, self.text_encoder)
        check_dimensions(config, self.train_data.video_dim, self.text_encoder.dim)
        self.model = build_model(config.model)
        if config.trainer.initial_weights is not None and not resume:
            load_weights(self.model, config.trainer.initial_weights)
        self.model.to(self.device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config.optimizer, trained)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.epoch = 0
        self.step = 0
        self.best = -float("inf")
        self.epochs_without_improvement = 0
        self.records: list[EpochRecord] = []
        if resume:
            self._load_state()
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"{len(self.train_data)} training items are fewer than one batch of {config.data.batch_size}",
                f"set data.batch_size={max(1, len(self.train_data))} or less",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; `data.train.repeat` passes over the data make one epoch."""
        assert self.config.data.train is not None
        return len(self.loader) * self.config.data.train.repeat

    def run(self, report: Callable[[Progress], None] = lambda _: None) -> list[EpochRecord]:
        """Train to the last epoch and return the log. Safe to interrupt: `latest` is always a whole epoch."""
        self.config.save(self.out / "config.yaml")
        while self.epoch < self.config.trainer.epochs and not self._has_stalled():
            record = self._run_epoch(report)
            self.records.append(record)
            improved = self._improved(record)
            # Lines of an epoch whose checkpoint was never written are dropped on resume, so the log goes first.
            write_text(self.out / "log.jsonl", "".join(json.dumps(asdict(r)) + "\n" for r in self.records))
            if improved:
                save_native(self.out / "best", self.model, self.config)
            every = self.config.trainer.save_every
            if every and self.epoch % every == 0:
                save_native(self.out / f"epoch-{self.epoch}", self.model, self.config)
            save_native(self.out / "latest", self.model, self.config, extra={STATE_FILE: self._save_state})
        if self._has_stalled():
            logger.info("stopped early: no improvement for %d epochs", self.epochs_without_improvement)
        if not (self.out / "best").exists():
            save_native(self.out / "best", self.model, self.config)
        return self.records

    def _run_epoch(self, report: Callable[[Progress], None]) -> EpochRecord:
        self.model.train(not self.config.trainer.eval_mode)
        total = 0.0
        terms: dict[str, list[float]] = {}
        clips = 0
        started = time.perf_counter()
        assert self.config.data.train is not None
        repeat = self.config.data.train.repeat
        for turn in range(repeat):
            self.loader.set_epoch(self.epoch * repeat + turn)
            for batch in self.loader:
                value, values = self._train_step(batch)
                total += value
                clips += len(batch)
                for term, term_value in values.items():
                    terms.setdefault(term, []).append(float(term_value))
                rate = clips / (time.perf_counter() - started)
                done = self.step % self.steps_per_epoch or self.steps_per_epoch
                epochs = self.config.trainer.epochs
                report(Progress(self.epoch + 1, epochs, done, self.steps_per_epoch, value, rate))
        seconds = time.perf_counter() - started
        self.epoch += 1
        due = self.epoch % self.config.trainer.validate_every == 0 or self.epoch == self.config.trainer.epochs
        return EpochRecord(
            epoch=self.epoch,
            step=self.step,
            loss=total / self.steps_per_epoch,
            terms={term: float(np.mean(v)) for term, v in terms.items()},
            learning_rate=self.optimizer.param_groups[0]["lr"],
            clips_per_second=clips / seconds,
            seconds=seconds,
            validation=self.validate() if due else {},
        )

    def _train_step(self, batch: Any) -> tuple[float, Mapping[str, Tensor]]:
        trainer = self.config.trainer
        factor = learning_rate_factor(self.config.schedule, self.step, self.steps_per_epoch, trainer.epochs)
        set_learning_rate(self.optimizer, self.config.optimizer.lr * factor)
        batch = augment(batch.to(self.device), trainer.noise, trainer.token_dropout)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        with torch.autocast(self.device.type, dtype) if dtype else nullcontext():
            encoders = [e for e in self.loss.encoders if e in self.model.encoders]
            embeddings = self.model(batch, encoders)
        loss, values = self.loss({e: x.float() for e, x in embeddings.items()}, self.model.nonempty(batch))
        value = float(loss.detach())
        if not np.isfinite(value):
            self._stop_on_bad_loss(batch, value)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if trainer.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), trainer.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return value, values

    def validate(self) -> dict[str, Metrics]:
        """Retrieval metrics by task on the validation sets: "t2v", or "msrvtt/t2v" where they have names."""
        backend = TorchBackend(self.model, self.config, self.device)
        results: dict[str, Metrics] = {}
        for name, loader in self.validation.items():
            metrics, _ = evaluate_backend(backend, loader, self.config.evaluation)
            results |= {f"{name}/{task}" if name else task: m for task, m in metrics.items()}
        return results

    def _has_stalled(self) -> bool:
        patience = self.config.trainer.early_stop
        return patience is not None and self.epochs_without_improvement > patience

    def _improved(self, record: EpochRecord) -> bool:
        monitor = self.config.trainer.monitor
        if monitor is None or not record.validation:
            return False
        task, _, name = monitor.removeprefix("validation/").rpartition("/")
        if task not in record.validation or name not in record.validation[task]:
            raise ConfigError(
                f"trainer.monitor is {monitor!r}, which validation does not give",
                f"for example validation/{next(iter(record.validation))}/R1, or trainer.monitor=null",
            )
        value = record.validation[task][name]
        better = value >= self.best  # ties count as improvement, as in the original
        self.epochs_without_improvement = 0 if better else self.epochs_without_improvement + 1
        self.best = max(value, self.best)
        return better

    def _stop_on_bad_loss(self, batch: Any, value: float) -> None:
        path = self.out / "bad_batch.pt"
        tensors = {name: x for name, x in vars(batch).items() if isinstance(x, Tensor)}
        with atomic_path(path) as temporary:
            torch.save({**tensors, "ids": list(batch.ids)}, temporary)
        raise EaoError(
            f"the loss became {value} at step {self.step}; the batch is saved in {path}",
            "lower optimizer.lr, set trainer.clip_grad_norm, or check those features for NaN",
        )

    def _save_state(self, path: Path) -> None:
        numpy_state: Any = np.random.get_state(legacy=True)
        python_state = random.getstate()
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "epochs_without_improvement": self.epochs_without_improvement,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                # Plain lists, so that the file loads without unpickling code.
                "numpy": [str(numpy_state[0]), numpy_state[1].tolist(), *map(float, numpy_state[2:])],
                "python": [python_state[0], list(python_state[1]), python_state[2]],
            },
        }
        torch.save(state, path)

    def _load_state(self) -> None:
        latest = self.out / "latest"
        load_weights(self.model, latest)
        try:
            state = torch.load(latest / STATE_FILE, map_location=self.device, weights_only=True)
        except (OSError, RuntimeError, EOFError) as error:
            raise CheckpointError(
                f"cannot read the training state {latest / STATE_FILE}: {error}",
                f"start a new run from its weights with trainer.initial_weights={latest}",
            ) from None
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.epochs_without_improvement = state["epochs_without_improvement"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        saved = state["random"]
        torch.set_rng_state(saved["torch"].cpu())
        if torch.cuda.is_available() and saved["cuda"]:
            torch.cuda.set_rng_state_all([s.cpu() for s in saved["cuda"]])
        name, keys, position, has_gauss, gauss = saved["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), int(position), int(has_gauss), gauss))
        version, internal, gauss_next = saved["python"]
        random.setstate((version, tuple(internal), gauss_next))
        lines = (self.out / "log.jsonl").read_text(encoding="utf-8").splitlines()
        self.records = [EpochRecord(**json.loads(line)) for line in lines[: self.epoch]]


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def choose_precision(wanted: str, device: torch.device) -> str:
    """The training precision: what is asked for, or for "auto" the best the device has (bf16 on CUDA, fp32 on CPU)."""
    if wanted != "auto":
        if device.type == "cpu" and wanted == "fp16":
            raise ConfigError("trainer.precision=fp16 needs a GPU", "use fp32 or auto on this machine")
        return wanted
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


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


def resume_config(out: str | Path) -> Config:
    """The configuration a run was started with."""
    return load_config(Path(out) / "config.yaml")
