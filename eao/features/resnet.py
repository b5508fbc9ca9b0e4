"""Residual networks of bottleneck blocks (He et al., 2016; Hara et al., 2018) for inference, over pictures or clips.

`ResNet152` is the 2-D network of the paper's first stream, with torchvision's original ImageNet weights. Every
BatchNorm is folded into the convolution before it. `eao.features.resnext3d` builds the 3-D network of the same parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eao.features.weights import Weights

# B pictures or clips, S their positions (H W, or T H W), D channels

OUTPUT_DIM = 2048
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
_STD_EPS = 1e-8
"""Added to the deviation by the feature extractor of the paper."""

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Shape:
    """What sets residual networks apart.

    Attributes:
        dims: 2 for pictures, 3 for clips.
        depths: blocks of each layer.
        middle: channels inside the blocks of the first layer; they double from layer to layer.
        expansion: output channels of a block over those inside.
        groups: of the convolution in the middle of a block.
        stem_stride: of the first convolution.
    """

    dims: int
    depths: tuple[int, ...]
    middle: int
    expansion: int
    groups: int
    stem_stride: tuple[int, ...]


RESNET_152 = Shape(2, (3, 8, 36, 3), 64, 4, 1, (2, 2))


class Bottleneck(nn.Module):
    """1 x 1 convolution, one of width 3 with the stride, 1 x 1 convolution, and a shortcut around them."""

    def __init__(self, shape: Shape, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        conv = _CONVOLUTIONS[shape.dims]
        outputs = middle * shape.expansion
        self.reduce = conv(inputs, middle, 1)
        self.mix = conv(middle, middle, 3, stride, padding=1, groups=shape.groups)
        self.expand = conv(middle, outputs, 1)
        self.shortcut = conv(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, *S) to (B, D', *S')."""
        y = F.relu(self.mix(F.relu(self.reduce(x), inplace=True)), inplace=True)
        y = self.expand(y).add_(x if self.shortcut is None else self.shortcut(x))
        return F.relu(y, inplace=True)

    def take(self, weights: Weights, name: str) -> None:
        """Load the block under its original names."""
        for index, layer in enumerate((self.reduce, self.mix, self.expand), 1):
            weights.fold(layer, f"{name}.conv{index}", f"{name}.bn{index}")
        if self.shortcut is not None:
            weights.fold(self.shortcut, f"{name}.downsample.0", f"{name}.downsample.1")


class ResidualTrunk(nn.Module):
    """A residual network up to its last feature map, with BatchNorm folded away."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dims = shape.dims
        conv = _CONVOLUTIONS[shape.dims]
        self.stem = conv(3, 64, 7, shape.stem_stride, padding=3)  # type: ignore[arg-type]
        inputs, layers = 64, []
        for level, depth in enumerate(shape.depths):
            middle, blocks = shape.middle << level, []
            for index in range(depth):
                blocks.append(Bottleneck(shape, inputs, middle, 2 if level and not index else 1))
                inputs = middle * shape.expansion
            layers.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised pictures (B, 3, *S) to the last feature map (B, D, *S / 32)."""
        x = F.relu(self.stem(x), inplace=True)
        pool = F.max_pool2d if self.dims == 2 else F.max_pool3d
        out: Tensor = self.layers(pool(x, 3, 2, 1))
        return out

    @classmethod
    def from_weights(cls, shape: Shape, weights: Weights) -> ResidualTrunk:
        """The network for inference, from an original state dict (`conv1.weight`, `layer1.0.conv1.weight`, ...).

        The classifier `fc` is not part of it.

        Raises:
            CheckpointError: a tensor is missing, left over, not finite, or of another shape.
        """
        trunk = cls(shape)
        weights.fold(trunk.stem, "conv1", "bn1")
        for level, layer in enumerate(trunk.layers, 1):
            assert isinstance(layer, nn.Sequential)
            for index, block in enumerate(layer):
                assert isinstance(block, Bottleneck)
                block.take(weights, f"layer{level}.{index}")
        weights.finish(unused=["fc."])
        return trunk.eval().requires_grad_(False).to(memory_format=_CHANNELS_LAST[shape.dims])  # type: ignore[call-overload,no-any-return]


class ResNet152(nn.Module):
    """ResNet-152 from frames to features.

    Example:
        network = ResNet152.load("resnet152-394f9c45.pth")
        rows = network(torch.zeros(1, 224, 398, 3, dtype=torch.uint8))  # (1, 2048), unit length
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: ResidualTrunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD) + _STD_EPS, persistent=False)

    @classmethod
    def load(cls, path: str | Path) -> ResNet152:
        """The network with the weights of a file. Errors: as `Weights.read` and `ResidualTrunk.from_weights`."""
        return cls(ResidualTrunk.from_weights(RESNET_152, Weights.read(path, "ResNet-152"))).eval()

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, H, W, 3) uint8 RGB to (B, 2048): the mean over positions, at unit length."""
        return F.normalize(self.trunk(self.normalise(frames)).mean((2, 3)), dim=1)

    def normalise(self, frames: Tensor) -> Tensor:
        """Frames (B, H, W, 3) uint8 RGB as the network was trained on them, (B, 3, H, W)."""
        return ((frames.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
