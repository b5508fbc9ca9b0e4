"""The learning rate over time: own schedules, those of torch, warm-up, going on from a saved state."""

import pytest
import torch
from torch import nn

from eao.config import ScheduleConfig
from eao.errors import ConfigError
from eao.training.schedule import Schedule


def rates(config: ScheduleConfig, steps_per_epoch: int, epochs: int, metrics: dict[int, float] | None = None) -> list:
    """Of every step; `metrics` are what is measured after an epoch."""
    schedule = Schedule(config, 1.0, steps_per_epoch, epochs)
    found = []
    for epoch in range(epochs):
        found += [schedule.rate(epoch * steps_per_epoch + i) for i in range(steps_per_epoch)]
        schedule.end_epoch((metrics or {}).get(epoch))
    return found


def rates_of_torch(name: str, args: dict, steps_per_epoch: int, epochs: int) -> list:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **args)
    found = []
    for _ in range(epochs):
        found += [optimizer.param_groups[0]["lr"]] * steps_per_epoch
        optimizer.step()
        scheduler.step()
    return found


def test_the_exponential_schedule_decays_once_an_epoch_like_torchs():
    ours = rates(ScheduleConfig(name="exponential", gamma=0.9), 3, 4)
    # torch multiplies once an epoch what is a power here.
    assert ours == pytest.approx(rates_of_torch("ExponentialLR", {"gamma": 0.9}, 3, 4), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("StepLR", {"step_size": 2, "gamma": 0.1}),
        ("MultiStepLR", {"milestones": [1, 3]}),
        ("CosineAnnealingLR", {"T_max": 5}),
        ("OneCycleLR", {"max_lr": 2.0, "total_steps": 6}),
    ],
)
def test_a_schedule_of_torchs_is_found_by_its_name(name, args):
    assert rates(ScheduleConfig(name=name, args=args), 3, 5) == rates_of_torch(name, args, 3, 5)


def test_the_cosine_schedule_falls_from_one_to_nearly_nothing():
    found = rates(ScheduleConfig(name="cosine"), 10, 4)
    assert found[0] == 1 and found[20] == pytest.approx(0.5) and found[-1] < 0.01
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("name", ["constant", "ConstantLR"])
def test_warmup_rises_linearly_over_any_schedule(name):
    args = {"factor": 1.0} if name == "ConstantLR" else {}
    config = ScheduleConfig(name=name, args=args, warmup_steps=4)
    assert rates(config, 6, 1) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_reduce_on_plateau_waits_for_measured_epochs():
    config = ScheduleConfig(name="ReduceLROnPlateau", args={"factor": 0.5, "patience": 0})
    assert rates(config, 1, 5, {0: 10.0, 2: 9.0, 3: 11.0}) == [1, 1, 1, 0.5, 0.5]


def test_reduce_on_plateau_can_watch_a_metric_that_falls():
    config = ScheduleConfig(name="ReduceLROnPlateau", args={"factor": 0.5, "patience": 0})
    schedule = Schedule(config, 1.0, 1, 3, highest=False)
    for loss in (3.0, 2.0):
        schedule.end_epoch(loss)
    assert schedule.rate(2) == 1
    schedule.end_epoch(2.5)
    assert schedule.rate(3) == 0.5


@pytest.mark.parametrize("config", [{"name": "StepLR", "args": {"step_size": 2}}, {"name": "ReduceLROnPlateau"}])
def test_a_saved_schedule_goes_on_as_it_would_have(config):
    config = ScheduleConfig.model_validate(config)
    whole, broken = (Schedule(config, 1.0, 1, 40) for _ in range(2))
    for epoch in range(40):
        if epoch == 7:
            state = broken.state_dict()
            broken = Schedule(config, 1.0, 1, 40)
            broken.load_state_dict(state)
        for schedule in (whole, broken):
            schedule.end_epoch(1.0)
        assert broken.rate(epoch) == whole.rate(epoch)
    assert whole.rate(40) < 0.1


def test_a_misspelt_schedule_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean StepLR"):
        Schedule(ScheduleConfig(name="StepLr"), 1.0, 1, 1)


@pytest.mark.parametrize("name", ["LambdaLR", "SequentialLR"])
def test_a_schedule_made_of_code_cannot_be_named(name):
    with pytest.raises(ConfigError, match="unknown schedule"):
        Schedule(ScheduleConfig(name=name), 1.0, 1, 1)


def test_an_argument_the_scheduler_does_not_take_is_an_error():
    with pytest.raises(ConfigError, match="do not fit torch's StepLR"):
        Schedule(ScheduleConfig(name="StepLR"), 1.0, 1, 1)


def test_a_scheduler_that_ends_before_the_run_is_an_error_with_the_next_step():
    schedule = Schedule(ScheduleConfig(name="OneCycleLR", args={"max_lr": 1.0, "total_steps": 2}), 1.0, 1, 5)
    with pytest.raises(ConfigError, match="trainer.epochs"):
        for _ in range(4):
            schedule.end_epoch(None)
