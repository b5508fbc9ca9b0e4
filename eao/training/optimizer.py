"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import torch
from torch import nn

from eao.config import OptimizerConfig, ScheduleConfig
from eao.errors import ConfigError


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer of `torch.optim`, named as there.

    Raises:
        ConfigError: for an unknown name (with the nearest known one) or an argument it does not take.
    """
    known = [n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type) and n != "Optimizer"]
    if config.name not in known:
        near = difflib.get_close_matches(config.name, known, n=1)
        raise ConfigError(
            f"unknown optimizer {config.name!r}", f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        )
    try:
        return getattr(torch.optim, config.name)(parameters, lr=config.lr, **config.args)
    except TypeError as error:
        raise ConfigError(f"optimizer.args do not fit torch.optim.{config.name}: {error}") from None


def learning_rate_factor(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What the base learning rate is multiplied by at a 0-based step.

    "exponential" is gamma to the power of finished epochs, as the authors train. "cosine" falls to zero over the whole
    run, step by step. A linear warm-up over `warmup_steps` multiplies either.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.name == "exponential":
        return warmup * config.gamma ** (step // steps_per_epoch)
    if config.name == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * step / (steps_per_epoch * epochs)))
    return warmup


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value
