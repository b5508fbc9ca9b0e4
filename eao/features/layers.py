"""Layers that several feature networks share, each computed in the way that is fast on a CPU in PyTorch.

On channels-last memory a 1 x 1 convolution is a matrix product, and a convolution or a maximum over space or time alone
of a clip is one over pictures: PyTorch has fast kernels for these, and slow ones for what they are instead of. In
exported graphs every layer is the single convolution or maximum that it stands for, which is what engines look for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting

# B pictures or clips, D channels, S their positions (H W, or T H W)

_CONVOLVE = {4: F.conv2d, 5: F.conv3d}


class Pointwise(nn.Linear):
    """A convolution of kernel 1 with bias, over pictures or clips."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, *S) to (B, D', *S)."""
        if is_exporting():
            weight = self.weight.view(*self.weight.shape, *[1] * (x.ndim - 2))
            return _CONVOLVE[x.ndim](x, weight, self.bias)
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SpaceConv(nn.Conv2d):
    """A convolution of clips over H and W: kernel 3, padded."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, T, H, W) to (B, D', T, H, W)."""
        if is_exporting():
            return F.conv3d(x, self.weight[:, :, None], self.bias, padding=(0, 1, 1))
        return _over_pictures(x, super().forward)


class TimeConv(nn.Conv2d):
    """A convolution of clips over T: kernel 3, padded."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, T, H, W) to (B, D', T, H, W)."""
        if is_exporting():
            return F.conv3d(x, self.weight[..., None], self.bias, padding=(1, 0, 0))
        return super().forward(x.flatten(3)).unflatten(3, x.shape[3:])


def max_pool(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Max pooling of clips that pads with zeros as TensorFlow's SAME does where sizes are even: the smaller half first.

    Args:
        x: (B, D, T, H, W).
        kernel, stride: over T, H, W.
    """
    padding: list[int] = []
    for size, step in zip(reversed(kernel), reversed(stride), strict=True):
        total = max(size - step, 0)
        padding += [total // 2, total - total // 2]
    x = F.pad(x, padding)
    if is_exporting():
        return F.max_pool3d(x, tuple(kernel), tuple(stride), ceil_mode=True)
    x = _over_pictures(x, lambda y: F.max_pool2d(y, tuple(kernel[1:]), tuple(stride[1:]), ceil_mode=True))
    if kernel[0] == 1:
        return x
    return F.max_pool2d(x.flatten(3), (kernel[0], 1), (stride[0], 1), ceil_mode=True).unflatten(3, x.shape[3:])


def _over_pictures(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    pictures = layer(x.transpose(1, 2).flatten(0, 1))
    return pictures.unflatten(0, (-1, x.shape[2])).transpose(1, 2)
