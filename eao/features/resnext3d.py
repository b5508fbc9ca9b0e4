"""ResNeXt-101 over 16 frames (Hara et al., 2018; Kinetics) for inference: the 3-D network of the paper's second stream.

Its parts are those of `eao.features.resnet`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eao.features.resnet import ResidualTrunk, Shape
from eao.features.weights import Weights

# B clips, T frames, D channels

OUTPUT_DIM = 2048
CHUNK = 16
SIDE = 112
PIXEL_MEAN = (110.6, 103.2, 96.3)
"""Of R, G, B in 0..255. What is filled up with black frames is black before it is subtracted."""
RESNEXT_101_3D = Shape(3, (3, 4, 23, 3), 128, 2, 32, (1, 2, 2))


class ResNeXt101Video(nn.Module):
    """3-D ResNeXt-101 from chunks of frames to features.

    Example:
        network = ResNeXt101Video.load("resnext101.pth")
        rows = network(torch.zeros(1, 16, 112, 112, 3, dtype=torch.uint8))  # (1, 2048), unit length
    """

    mean: Tensor

    def __init__(self, trunk: ResidualTrunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN), persistent=False)

    @classmethod
    def load(cls, path: str | Path) -> ResNeXt101Video:
        """The network with the weights of a file. Errors: as `Weights.read` and `ResidualTrunk.from_weights`."""
        return cls(ResidualTrunk.from_weights(RESNEXT_101_3D, Weights.read(path, "3-D ResNeXt-101"))).eval()

    def forward(self, frames: Tensor) -> Tensor:
        """Chunks (B, 16, 112, 112, 3) uint8 RGB to (B, 2048): the mean over positions, at unit length."""
        x = (frames.float() - self.mean).permute(0, 4, 1, 2, 3)
        return F.normalize(self.pool(x), dim=1)

    def pool(self, x: Tensor) -> Tensor:
        """Frames less their mean, (B, 3, 16, 112, 112), to features of any length, (B, 2048)."""
        # With these sizes the original's average over 1 x 4 x 4 positions is that over all.
        return self.trunk(x).mean((2, 3, 4))
