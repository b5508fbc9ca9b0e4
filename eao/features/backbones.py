"""Named video backbones: how frames become rows of features.

All of them read the same forward pass of one image network, so that a second stream at the same rate costs nothing.

`efficientnet-lite0` (1280): the mean over positions of the network's last feature map; one row a frame.

`activation-motion` (98): *where* the network responds, and how that moves. It is a light stand-in for the 3-D network
that the paper uses for its second stream: it needs no weights and no training of its own, tells apart motions that
change the layout of the picture, and knows nothing of actions. A row is the 7 x 7 map of L2 norms of the last feature
map, scaled to unit length (49), and the difference from it to the map of the next row times `MOTION_SCALE` (49). The
last row repeats the difference of the row before it; a single row has zeros there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eao.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from eao.features.efficientnet import EfficientNetLite0

FRAME_SIZE = 224
"""Side of the square frames in pixels: short side scaled to it, central square cropped."""

MOTION_SCALE = 4.0
"""Brings the length of the difference (0.28 in the median of the demo clips at 2 rows/s) near that of the map, 1."""


@dataclass(frozen=True)
class FrameOutputs:
    """What the network says about frames.

    Attributes:
        pooled: (n, 1280) float32, the mean of the last feature map.
        maps: (n, 49) float32, the unit-length map of channel norms, row by row.
    """

    pooled: NDArray[np.float32]
    maps: NDArray[np.float32]

    def select(self, indices: NDArray[np.int64]) -> FrameOutputs:
        """The outputs of some frames."""
        return FrameOutputs(self.pooled[indices], self.maps[indices])

    @staticmethod
    def concatenate(parts: list[FrameOutputs]) -> FrameOutputs:
        """The outputs of consecutive batches as one."""
        return FrameOutputs(np.concatenate([p.pooled for p in parts]), np.concatenate([p.maps for p in parts]))


@dataclass(frozen=True)
class Backbone:
    """A named way from network outputs to rows.

    Attributes:
        name: as in `features.video_2d.backbone`.
        dim: width of a row.
        rows: makes rows (n, dim) float32 of the outputs for n consecutive samples at the stream's rate.
    """

    name: str
    dim: int
    rows: Callable[[FrameOutputs], NDArray[np.float32]]


class FrameNetwork:
    """EfficientNet-Lite0 on a device, from uint8 frames to numpy outputs.

    Raises:
        MissingDependencyError: if the weights are not installed.
    """

    def __init__(self, device: str = "cpu") -> None:
        import torch

        from eao.features.efficientnet import load_efficientnet_lite0

        self.device: torch.device = torch.device(device)
        self.network: EfficientNetLite0 = load_efficientnet_lite0(device=self.device)

    def __call__(self, frames: NDArray[np.uint8]) -> FrameOutputs:
        """Run frames (n, 224, 224, 3) uint8 RGB through the network in one batch."""
        import torch

        from eao.features.efficientnet import normalise

        with torch.inference_mode():
            pooled, norms = self.network(normalise(torch.from_numpy(frames).to(self.device)))
            maps = torch.nn.functional.normalize(norms.flatten(1), dim=1)  # (n, 49)
        return FrameOutputs(pooled.float().cpu().numpy(), maps.float().cpu().numpy())


def motion_rows(outputs: FrameOutputs) -> NDArray[np.float32]:
    """The rows of `activation-motion`: (n, 98) float32."""
    maps = outputs.maps
    change = np.zeros_like(maps)
    if len(maps) > 1:
        change[:-1] = MOTION_SCALE * np.diff(maps, axis=0)
        change[-1] = change[-2]
    return np.concatenate([maps, change], axis=1)


def get_backbone(name: str) -> Backbone:
    """The backbone of a name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in BACKBONES:
        raise ConfigError(f"there is no video backbone {name!r}", f"known: {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]


BACKBONES = {
    "efficientnet-lite0": Backbone("efficientnet-lite0", 1280, lambda outputs: outputs.pooled),
    "activation-motion": Backbone("activation-motion", 98, motion_rows),
}
