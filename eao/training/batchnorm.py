"""BatchNorm over the batch of all processes, and BatchNorm that leaves its running statistics alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# B batch, C channels


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics in training are those of all processes' batches, on any device and backend.

    torch's own exists on CUDA alone. State-dict keys are those of `nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        if not self.training:
            return super().forward(x)
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))  # under autocast, sums of half precision would be poor
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = _SumOverProcesses.apply(x.new_full((1,), x.numel() / x.shape[1]))
        mean = _SumOverProcesses.apply(x.sum(axes)) / count
        centred = x - mean.view(shape)
        # In two passes: a mean of squares less a squared mean cancels.
        variance = _SumOverProcesses.apply(centred.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            return (centred * (scale * self.weight).view(shape) + self.bias.view(shape)).to(dtype)
        return (centred * scale.view(shape)).to(dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over processes. What every process makes of it flows back to each of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_reduce(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _all_reduce(gradients[0])


def _all_reduce(x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with every BatchNorm layer exchanged for a synchronised one of the same parameters and buffers.

    On CUDA that is torch's, which sums in one NCCL call.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, child in model.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            synchronize_batchnorm(child, device)
            continue
        layer = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
        layer.train(child.training)
        layer.weight, layer.bias = child.weight, child.bias
        layer.running_mean, layer.running_var = child.running_mean, child.running_var
        layer.num_batches_tracked = child.num_batches_tracked
        setattr(model, name, layer)
    return model


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise with a batch's own statistics as in training, but leave the running ones as they are."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
