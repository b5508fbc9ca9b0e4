"""S3D-G (Xie et al., 2018) as trained on HowTo100M with MIL-NCE (Miech et al., 2020), for inference.

The features are those called `mixed_5c`: the mean over positions of the last feature map. Every BatchNorm is folded
into the convolution before it; the text tower and the layer into the joint space are left out.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eao.features.layers import Pointwise, SpaceConv, TimeConv, max_pool
from eao.features.weights import Weights

# B clips, D channels, T H W their positions

OUTPUT_DIM = 1024
CHUNK = 16
"""Frames of a row. It was trained with 32; its authors say that 16 work too, at half the work."""
SIDE = 224

# Output channels of the four branches; branches 1 and 2 reduce first.
_MIXED: dict[str, tuple[int, tuple[int, int], tuple[int, int], int]] = {
    "mixed_3b": (64, (96, 128), (16, 32), 32),
    "mixed_3c": (128, (128, 192), (32, 96), 64),
    "mixed_4b": (192, (96, 208), (16, 48), 64),
    "mixed_4c": (160, (112, 224), (24, 64), 64),
    "mixed_4d": (128, (128, 256), (24, 64), 64),
    "mixed_4e": (112, (144, 288), (32, 64), 64),
    "mixed_4f": (256, (160, 320), (32, 128), 128),
    "mixed_5b": (256, (160, 320), (32, 128), 128),
    "mixed_5c": (384, (192, 384), (48, 128), 128),
}


class Separable(nn.Module):
    """A convolution over H and W, then one over T, each followed by ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.space = SpaceConv(inputs, outputs)
        self.time = TimeConv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, T, H, W) to (B, D', T, H, W)."""
        return F.relu(self.time(F.relu(self.space(x), inplace=True)), inplace=True)

    def take(self, weights: Weights, name: str) -> None:
        """Load it under its original names."""
        weights.fold(self.space, f"{name}.conv1", f"{name}.bn1", kernel=(1, 3, 3))
        weights.fold(self.time, f"{name}.conv2", f"{name}.bn2", kernel=(3, 1, 1))


class Reduce(nn.Module):
    """A convolution of kernel 1, and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Pointwise(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, T, H, W) to (B, D', T, H, W)."""
        return F.relu(self.conv(x), inplace=True)

    def take(self, weights: Weights, name: str) -> None:
        """Load it under its original names."""
        weights.fold(self.conv, f"{name}.conv1", f"{name}.bn1", kernel=(1, 1, 1))


class Gate(nn.Module):
    """Weighs channels by what they hold in the mean over the clip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, T, H, W) to the same shape."""
        weight = torch.sigmoid(self.fc(x.mean((2, 3, 4))))
        return x * weight[:, :, None, None, None]


class Mixed(nn.Module):
    """Four gated branches side by side: two of them see their surroundings, one the greatest values there."""

    def __init__(self, inputs: int, b0: int, b1: tuple[int, int], b2: tuple[int, int], b3: int) -> None:
        super().__init__()
        self.b0 = Reduce(inputs, b0)
        self.b1_a, self.b1_b = Reduce(inputs, b1[0]), Separable(*b1)
        self.b2_a, self.b2_b = Reduce(inputs, b2[0]), Separable(*b2)
        self.b3_b = Reduce(inputs, b3)
        self.widths = (b0, b1[1], b2[1], b3)
        self.gates = nn.ModuleList(map(Gate, self.widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, T, H, W) to (B, D', T, H, W)."""
        around = max_pool(x, (3, 3, 3), (1, 1, 1))  # of values from ReLU, so that zeros around them do not count
        branches = (self.b0(x), self.b1_b(self.b1_a(x)), self.b2_b(self.b2_a(x)), self.b3_b(around))
        return torch.cat([gate(branch) for gate, branch in zip(self.gates, branches, strict=True)], dim=1)

    def take(self, weights: Weights, name: str) -> None:
        """Load it under its original names."""
        for branch in ("b0", "b1_a", "b1_b", "b2_a", "b2_b", "b3_b"):
            getattr(self, branch).take(weights, f"{name}.conv_{branch}")
        for index, gate in enumerate(self.gates):
            assert isinstance(gate, Gate)
            weights.linear(gate.fc, f"{name}.gating_b{index}.fc")


class S3DG(nn.Module):
    """S3D-G from chunks of frames to features.

    Example:
        network = S3DG.load("s3d_howto100m.pth")
        rows = network(torch.zeros(1, 16, 224, 224, 3, dtype=torch.uint8))  # (1, 1024)
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(24, 64, (2, 4, 4), padding=(1, 2, 2))
        self.conv_2b = Reduce(64, 64)
        self.conv_2c = Separable(64, 192)
        self.gating = Gate(192)
        self.mixed = nn.ModuleDict()
        channels = 192
        for name, widths in _MIXED.items():
            block = Mixed(channels, *widths)
            self.mixed[name] = block
            channels = sum(block.widths)

    @classmethod
    def load(cls, path: str | Path) -> S3DG:
        """The network with the weights of a file.

        Raises:
            CheckpointError: the file cannot be read, or a tensor is missing, left over or of another shape. Those of
                the text tower and of the joint space may be there or not.
        """
        network, weights = cls(), Weights.read(path, "S3D-G (HowTo100M)")
        weights.fold(network.conv1, "conv1.conv1", "conv1.bn1")
        network.conv_2b.take(weights, "conv_2b")
        network.conv_2c.take(weights, "conv_2c")
        weights.linear(network.gating.fc, "gating.fc")
        for name, block in network.mixed.items():
            assert isinstance(block, Mixed)
            block.take(weights, name)
        weights.finish(unused=["fc.", "text_module."])
        return network.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        """Chunks (B, T, H, W, 3) uint8 RGB, T, H and W even, to (B, 1024)."""
        return self.pool((frames.float() / 255).permute(0, 4, 1, 2, 3))

    def pool(self, x: Tensor) -> Tensor:
        """Frames in [0, 1], (B, 3, T, H, W), to (B, 1024)."""
        x = F.relu(self.conv1(space_to_depth(x)), inplace=True)[:, :, 1:, 1:, 1:]
        x = self.conv_2c(self.conv_2b(max_pool(x, (1, 3, 3), (1, 2, 2))))
        x = max_pool(self.gating(x), (1, 3, 3), (1, 2, 2))
        for name, block in self.mixed.items():
            if name == "mixed_4b":
                x = max_pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "mixed_5b":
                x = max_pool(x, (2, 2, 2), (2, 2, 2))
            x = block(x)
        return x.mean((2, 3, 4))


def space_to_depth(x: Tensor) -> Tensor:
    """Blocks of 2 x 2 x 2 positions as channels: (B, D, T, H, W) to (B, 8 D, T/2, H/2, W/2), colour fastest."""
    blocks = x.movedim(1, -1).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    # (B, T/2, 2, H/2, 2, W/2, 2, D), laid out for channels-last memory.
    return blocks.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).movedim(-1, 1)
