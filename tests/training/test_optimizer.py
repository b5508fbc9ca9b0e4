"""Optimizers by name."""

import pytest
import torch
from torch import nn

from eao.config import OptimizerConfig
from eao.errors import ConfigError
from eao.training.optimizer import build_optimizer, load_optimizer_state, set_learning_rate


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


@pytest.mark.parametrize(
    ("name", "args", "device", "fused"),
    [
        ("Adam", {}, "cpu", True),
        ("Adam", {"fused": False}, "cpu", False),
        ("Adam", {"foreach": True}, "cpu", None),
        ("Adam", {}, "meta", None),
        ("SGD", {"momentum": 0.9}, "cpu", True),
        ("Adagrad", {}, "cpu", True),
    ],
)
def test_the_fused_form_is_taken_where_there_is_one(name, args, device, fused):
    parameter = nn.Parameter(torch.ones(2, device=device))
    optimizer = build_optimizer(OptimizerConfig(name=name, args=args), [parameter])
    assert optimizer.param_groups[0]["fused"] is fused


def test_optimizers_without_a_fused_form_are_built_too():
    assert isinstance(
        build_optimizer(OptimizerConfig(name="RMSprop"), [nn.Parameter(torch.ones(1))]), torch.optim.RMSprop
    )


@pytest.mark.parametrize("saved_fused", [False, True])
def test_a_state_of_another_form_and_layout_continues_as_if_it_were_its_own(saved_fused):
    weights = torch.randn(4, 3, 1, 9)
    gradients = [torch.randn_like(weights) for _ in range(2)]

    def steps(optimizer, parameter, chosen):
        for gradient in chosen:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizer.step()

    def adam(parameter, fused):
        return build_optimizer(OptimizerConfig(name="Adam", lr=0.1, args={"fused": fused}), [parameter])

    whole = nn.Parameter(weights.clone())
    steps(adam(whole, False), whole, gradients)
    first = nn.Parameter(weights.clone())
    saved = adam(first, saved_fused)
    steps(saved, first, gradients[:1])
    second = nn.Parameter(first.detach().contiguous(memory_format=torch.channels_last))
    resumed = adam(second, True)
    load_optimizer_state(resumed, saved.state_dict())
    assert resumed.param_groups[0]["fused"] is True
    steps(resumed, second, gradients[1:])
    torch.testing.assert_close(second, whole, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_is_that_of_every_group():
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 2.0)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
