"""Named video backbones: how frames become rows of features.

A backbone makes rows of what a network gives for frames. Backbones of one network at one rate share its forward pass.

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
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from eao.errors import ConfigError

MOTION_SCALE = 4.0
"""Brings the length of the difference (0.28 in the median of the demo clips at 2 rows/s) near that of the map, 1."""

Outputs: TypeAlias = dict[str, NDArray[np.float32]]
"""What a network gives for a batch, by name: each (n, ...), a row for a frame or a chunk of frames."""
Forward: TypeAlias = Callable[[NDArray[np.uint8]], Outputs]
"""A loaded network: (n, height, width, 3) uint8 RGB, or (n, chunk, height, width, 3), to its outputs."""


@dataclass(frozen=True)
class Network:
    """A network that looks at frames, before it is loaded.

    Attributes:
        name: its name.
        side: pixels of the short side of the frames it is shown.
        crop: whether it is shown the central square, or the whole picture.
        chunk: consecutive frames that make one row; the stream's rate times this is the rate of its frames.
        batch_size: rows at a time on a CPU.
        gpu_batch_size: elsewhere.
        load: puts it on a torch device. Raises MissingDependencyError without its weights.
    """

    name: str
    side: int
    crop: bool
    chunk: int
    batch_size: int
    gpu_batch_size: int
    load: Callable[[str], Forward]


@dataclass(frozen=True)
class Backbone:
    """A named way from frames to rows.

    Attributes:
        name: as in `features.video_2d.backbone`.
        network: what looks at the frames.
        dim: width of a row.
        rows: makes rows (n, dim) float32 of the outputs for n consecutive samples at the stream's rate.
    """

    name: str
    network: Network
    dim: int
    rows: Callable[[Outputs], NDArray[np.float32]]


def motion_rows(outputs: Outputs) -> NDArray[np.float32]:
    """The rows of `activation-motion`: (n, 98) float32."""
    maps = outputs["maps"]
    change = np.zeros_like(maps)
    if len(maps) > 1:
        change[:-1] = MOTION_SCALE * np.diff(maps, axis=0)
        change[-1] = change[-2]
    return np.concatenate([maps, change], axis=1)


def pooled_rows(outputs: Outputs) -> NDArray[np.float32]:
    """The network's pooled output as it is."""
    return outputs["pooled"]


def get_backbone(name: str) -> Backbone:
    """The backbone of a name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in BACKBONES:
        raise ConfigError(f"there is no video backbone {name!r}", f"known: {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]


def _load_efficientnet(device: str) -> Forward:
    """EfficientNet-Lite0: `pooled` (n, 1280), `maps` (n, 49), the unit-length map of channel norms, row by row."""
    import torch

    from eao.features.efficientnet import load_efficientnet_lite0, normalise

    network = load_efficientnet_lite0(device=device)

    def forward(frames: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            pooled, norms = network(normalise(torch.from_numpy(frames).to(device)))
            maps = torch.nn.functional.normalize(norms.flatten(1), dim=1)  # (n, 49)
        return {"pooled": pooled.float().cpu().numpy(), "maps": maps.float().cpu().numpy()}

    return forward


# A CPU does 41 frames/s a core at 4 frames a batch, 34 at 8 and 30 at 32: larger batches outgrow its caches.
EFFICIENTNET = Network("efficientnet-lite0", 224, True, 1, 4, 64, _load_efficientnet)

BACKBONES = {
    "efficientnet-lite0": Backbone("efficientnet-lite0", EFFICIENTNET, 1280, pooled_rows),
    "activation-motion": Backbone("activation-motion", EFFICIENTNET, 98, motion_rows),
}
