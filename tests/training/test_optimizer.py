"""Optimizers and schedules by name."""

import pytest
import torch
from torch import nn

from eao.config import OptimizerConfig, ScheduleConfig
from eao.errors import ConfigError
from eao.model import Batch
from eao.training.augment import augment
from eao.training.optimizer import build_optimizer


def test_an_optimizer_is_found_by_its_name_in_torch():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(OptimizerConfig(name="AdamW", lr=0.1, args={"weight_decay": 0.3}), [parameter])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_a_misspelt_optimizer_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean AdamW"):
        build_optimizer(OptimizerConfig(name="AdamWW"), [nn.Parameter(torch.ones(1))])


def test_an_argument_the_optimizer_does_not_take_is_an_error():
    with pytest.raises(ConfigError, match="momentum"):
        build_optimizer(OptimizerConfig(name="Adam", args={"momentum": 0.9}), [nn.Parameter(torch.ones(1))])


def test_the_exponential_schedule_decays_once_an_epoch_like_torchs():
    config = ScheduleConfig(name="exponential", gamma=0.5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for step in range(9):
        assert learning_rate_factor(config, step, 3, 3) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        if step % 3 == 2:
            scheduler.step()


def test_the_cosine_schedule_falls_from_one_to_nearly_nothing():
    config = ScheduleConfig(name="cosine")
    factors = [learning_rate_factor(config, step, 10, 4) for step in range(40)]
    assert factors[0] == 1 and factors[20] == pytest.approx(0.5) and factors[-1] < 0.01
    assert factors == sorted(factors, reverse=True)


def test_warmup_rises_linearly():
    config = ScheduleConfig(name="constant", warmup_steps=4)
    assert [learning_rate_factor(config, step, 10, 1) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_augmentation_changes_a_copy_and_never_empties_a_modality():
    torch.manual_seed(0)
    mask = torch.ones(50, 3, dtype=torch.bool)
    mask[:, 2] = False
    mask[7] = False
    batch = Batch(video=torch.ones(50, 3, 4), video_mask=mask, ids=list(range(50)))
    changed = augment(batch, noise=0.1, token_dropout=0.9)
    assert (batch.video == 1).all() and mask.sum() == 98
    assert (changed.video_mask.any(1) == mask.any(1)).all()
    assert (changed.video_mask <= mask).all() and changed.video_mask.sum() < 98
    assert 0.05 < (changed.video - 1).std() < 0.15
