from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eao.features.layers import Pointwise, SpaceConv, TimeConv, max_pool

# Another order of summation over at most 63 products of size 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return max_pool(x, (3, 3, 3), (2, 2, 2))


def plain_pointwise(layer: Pointwise, x: Tensor) -> Tensor:
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    return convolve(x, layer.weight.view(*layer.weight.shape, *[1] * (x.ndim - 2)), layer.bias)


def plain_space(layer: SpaceConv, x: Tensor) -> Tensor:
    return F.conv3d(x, layer.weight[:, :, None], layer.bias, padding=(0, 1, 1))


def plain_time(layer: TimeConv, x: Tensor) -> Tensor:
    return F.conv3d(x, layer.weight[..., None], layer.bias, padding=(1, 0, 0))


def plain_pool(layer: Pool, x: Tensor) -> Tensor:
    return F.max_pool3d(F.pad(x, (0, 1) * 3), 3, 2, ceil_mode=True)


CASES: list[tuple[Callable[[], nn.Module], Callable[..., Tensor], tuple[int, ...]]] = [
    (lambda: Pointwise(7, 5), plain_pointwise, (2, 7, 4, 3)),
    (lambda: Pointwise(7, 5), plain_pointwise, (2, 7, 3, 4, 5)),
    (lambda: SpaceConv(7, 5), plain_space, (2, 7, 3, 4, 5)),
    (lambda: TimeConv(7, 5), plain_time, (2, 7, 3, 4, 5)),
    (Pool, plain_pool, (2, 7, 4, 5, 6)),
]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("make", "plain", "shape"), CASES)
def test_equals_the_layer_it_stands_for(
    make: Callable[[], nn.Module], plain: Callable[..., Tensor], shape: tuple[int, ...], memory: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    if x.ndim == 5:
        x = x.contiguous(memory_format=memory)
    torch.testing.assert_close(layer(x), plain(layer, x), **CLOSE)


@pytest.mark.parametrize(("make", "plain", "shape"), CASES)
def test_is_exported_as_the_layer_it_stands_for(
    make: Callable[[], nn.Module], plain: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    program = torch.export.export(layer, (x,))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    heavy = [name for name in names if "conv" in name or "max_pool" in name or "linear" in name]
    assert heavy == [f"aten.{'max_pool3d' if make is Pool else f'conv{x.ndim - 2}d'}.default"]
    torch.testing.assert_close(program.module()(x), plain(layer, x), **CLOSE)
