"""The learning rate over time, by name."""

from __future__ import annotations

import math
from typing import Any

import torch

from eao.config import ScheduleConfig
from eao.errors import ConfigError
from eao.training.optimizer import unknown_name

OWN = ("constant", "exponential", "cosine")
_NEED_CODE = {"LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
"""Schedulers that are made of functions or of other schedulers, which a YAML file cannot say."""


class Schedule:
    """The learning rate of each step.

    "exponential" is `gamma` to the power of finished epochs, as the authors train. "cosine" falls to zero over the
    whole run, step by step. Any other name is a scheduler of `torch.optim.lr_scheduler`, stepped after each epoch. A
    linear warm-up over `warmup_steps` multiplies each of them.

    Args:
        config: the section of the experiment.
        learning_rate: what the schedule starts from.
        steps_per_epoch, epochs: the length of the run, for "cosine".
        highest: whether the metric that ReduceLROnPlateau is given is better when it is higher.

    Raises:
        ConfigError: for an unknown name (with the nearest known one) or an argument the scheduler does not take.
    """

    def __init__(
        self, config: ScheduleConfig, learning_rate: float, steps_per_epoch: int, epochs: int, highest: bool = True
    ) -> None:
        self.config = config
        self.learning_rate = learning_rate
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self._torch = None if config.name in OWN else _TorchScheduler(config, learning_rate, highest)

    def rate(self, step: int) -> float:
        """The learning rate of a 0-based step."""
        warmup = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        if self._torch is not None:
            return warmup * self._torch.rate
        return self.learning_rate * warmup * self._factor(step)

    def end_epoch(self, metric: float | None) -> None:
        """Note that an epoch is over; `metric` is what ReduceLROnPlateau watches, None = not measured this time."""
        if self._torch is not None:
            self._torch.step(metric)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {} if self._torch is None else self._torch.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same schedule."""
        if self._torch is not None:
            self._torch.load_state_dict(state)

    def _factor(self, step: int) -> float:
        if self.config.name == "exponential":
            return self.config.gamma ** (step // self.steps_per_epoch)
        if self.config.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / (self.steps_per_epoch * self.epochs)))
        return 1.0


class _TorchScheduler:
    """A scheduler of torch's on an optimizer of its own, so that a warm-up can multiply the rate it asks for."""

    def __init__(self, config: ScheduleConfig, learning_rate: float, highest: bool) -> None:
        module = torch.optim.lr_scheduler
        found = {name: getattr(module, name) for name in dir(module)}
        base = module.LRScheduler
        known = [n for n, x in found.items() if isinstance(x, type) and issubclass(x, base) and n not in _NEED_CODE]
        if config.name not in known:
            raise unknown_name("schedule", config.name, [*OWN, *(name for name in known if not name.startswith("_"))])
        self.watches = config.name == "ReduceLROnPlateau"
        args = {"mode": "max" if highest else "min", **config.args} if self.watches else config.args
        self._optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
        try:
            self._scheduler = found[config.name](self._optimizer, **args)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"schedule.args do not fit torch's {config.name}: {error}") from None

    @property
    def rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, metric: float | None) -> None:
        # torch warns of a scheduler that runs ahead of its optimizer; this one has no gradients.
        self._optimizer.step()
        try:
            if not self.watches:
                self._scheduler.step()
            elif metric is not None:
                self._scheduler.step(metric)
        except ValueError as error:
            raise ConfigError(f"the schedule cannot go on: {error}", "make schedule.args fit trainer.epochs") from None

    def state_dict(self) -> dict[str, Any]:
        return {"scheduler": self._scheduler.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
