"""Named video backbones: how frames become rows of features.

A backbone makes rows of what a network gives for frames. Backbones of one network at one rate share its forward pass.

| name | width | frames of a row | of |
|---|---|---|---|
| `resnet152` | 2048 | one, short side 224, the whole picture | the paper's first stream, at 1 row/s |
| `resnext101-3d` | 2048 | 16 in a row, 112 x 112 | the paper's second stream, at 1.5 rows/s (24 frames/s) |
| `s3d` | 1024 | 16 in a row, 224 x 224 | the paper's S3D variants, at 1 row/s (16 frames/s) |
| `clip-vit-b32` | 512 | one, 224 x 224 | the paper's CLIP variants, at 1 row/s |
| `efficientnet-lite0` | 1280 | one, 224 x 224 | the demo |
| `activation-motion` | 98 | one, 224 x 224 | the demo |

How the authors cut frames for S3D is not published; here a row sees its own second. The last row of a clip may lack
frames, which are black then.

`efficientnet-lite0` is the mean over positions of the network's last feature map.

`activation-motion` is *where* that network responds, and how that moves: a light stand-in for the 3-D network of the
paper. It needs no weights and no training of its own, tells apart motions that change the layout of the picture, and
knows nothing of actions. A row is the 7 x 7 map of L2 norms of the last feature map, scaled to unit length (49), and
the difference from it to the map of the next row times `MOTION_SCALE` (49). The last row repeats the difference of the
row before it; a single row has zeros there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eao.errors import CheckpointError, ConfigError, install_extra
from eao.features.engine import ENGINES, open_engine

if TYPE_CHECKING:
    from torch import nn

MOTION_SCALE = 4.0
"""Brings the length of the difference (0.28 in the median of the demo clips at 2 rows/s) near that of the map, 1."""

Outputs: TypeAlias = NDArray[np.float32]
"""What a network gives for a batch: (n, width), a line for a frame or a chunk of frames."""
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
        width: numbers that it gives for a row.
        batch_size: rows at a time on a CPU.
        gpu_batch_size: elsewhere.
        build: a module from frames, as `Forward`, to outputs, with the weights of a file or folder.
        published: where the weights are published.
        packaged: finds the weights if a package ships them.
    """

    name: str
    side: int
    crop: bool
    chunk: int
    width: int
    batch_size: int
    gpu_batch_size: int
    build: Callable[[Path], nn.Module]
    published: str
    packaged: Callable[[], Path] | None = None

    @property
    def frame_shape(self) -> tuple[int | None, ...]:
        """Sizes of the frames of one row; None where the picture decides."""
        size = self.side if self.crop else None
        return (*([self.chunk] if self.chunk > 1 else []), size, size, 3)

    def size_on(self, device: str) -> int:
        """Rows of a batch on a torch device."""
        return self.batch_size if device == "cpu" else self.gpu_batch_size

    def find_weights(self, given: str | Path | None, key: str = "weights") -> Path:
        """The file or folder of the weights.

        Args:
            given: by the configuration.
            key: of the configuration, for the message.

        Raises:
            ConfigError: none are given, and no package ships them; or they do not exist.
            MissingDependencyError: that package is not installed.
        """
        if given is None:
            if self.packaged is not None:
                return self.packaged()
            raise ConfigError(
                f"the network {self.name} needs its weights: {self.published}",
                f"fetch them and set {key}=PATH",
            )
        if not Path(given).exists():
            raise ConfigError(f"{key}: there is no {given}", f"the weights of {self.name}: {self.published}")
        return Path(given)

    def load(self, weights: Path, device: str = "cpu") -> Forward:
        """Put it on a torch device.

        Args:
            weights: of `find_weights`; a file ending in .onnx or .xml is an engine, which takes the network's place.
            device: a torch device.

        Raises:
            CheckpointError: the file cannot be read or is of another network.
            MissingDependencyError: what runs it is not installed.
        """
        if weights.suffix in ENGINES:
            return open_engine(weights, self.frame_shape, self.width, device)
        import torch

        module = self.build(weights).to(device)

        def forward(frames: NDArray[np.uint8]) -> Outputs:
            with torch.inference_mode():
                return module(torch.from_numpy(frames).to(device)).float().cpu().numpy()

        return forward


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


def all_outputs(outputs: Outputs) -> NDArray[np.float32]:
    """The outputs as they are."""
    return outputs


def pooled_rows(outputs: Outputs) -> NDArray[np.float32]:
    """The rows of `efficientnet-lite0`: (n, 1280) float32."""
    return outputs[:, :_POOLED]


def motion_rows(outputs: Outputs) -> NDArray[np.float32]:
    """The rows of `activation-motion`: (n, 98) float32."""
    maps = outputs[:, _POOLED:]
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


def _build_efficientnet(path: Path) -> nn.Module:
    from eao.features.efficientnet import FrameFeatures, load_efficientnet_lite0

    return FrameFeatures(load_efficientnet_lite0(path))


def _packaged_efficientnet() -> Path:
    from eao.features.efficientnet import weights_path

    return weights_path()


def _build_resnet152(path: Path) -> nn.Module:
    from eao.features.resnet import ResNet152

    return ResNet152.load(path)


def _build_resnext(path: Path) -> nn.Module:
    from eao.features.resnext3d import ResNeXt101Video

    return ResNeXt101Video.load(path)


def _build_s3d(path: Path) -> nn.Module:
    from eao.features.s3d import S3DG

    return S3DG.load(path)


def _build_clip(path: Path) -> nn.Module:
    from eao.features.clip import ClipImage

    network = ClipImage.load(path)
    if (network.dim, network.side) != (CLIP.width, CLIP.side):
        raise CheckpointError(
            f"{path} holds a CLIP model of {network.dim} numbers for {network.side} x {network.side} pixels",
            f"clip-vit-b32 is the one of {CLIP.width} for {CLIP.side} x {CLIP.side}: openai/clip-vit-base-patch32",
        )
    return network


_POOLED = 1280
# A CPU does 41 frames/s a core at 4 frames a batch, 34 at 8 and 30 at 32: larger batches outgrow its caches.
EFFICIENTNET = Network(
    "efficientnet-lite0",
    side=224,
    crop=True,
    chunk=1,
    width=_POOLED + 49,
    batch_size=4,
    gpu_batch_size=64,
    build=_build_efficientnet,
    published=install_extra("demo"),
    packaged=_packaged_efficientnet,
)
RESNET = Network(
    "resnet152",
    side=224,
    crop=False,
    chunk=1,
    width=2048,
    batch_size=2,
    gpu_batch_size=64,
    build=_build_resnet152,
    published="https://download.pytorch.org/models/resnet152-394f9c45.pth",
)
RESNEXT = Network(
    "resnext101-3d",
    side=112,
    crop=True,
    chunk=16,
    width=2048,
    batch_size=1,
    gpu_batch_size=32,
    build=_build_resnext,
    published="resnext101.pth of https://github.com/antoine77340/video_feature_extractor",
)
S3D = Network(
    "s3d",
    side=224,
    crop=True,
    chunk=16,
    width=1024,
    batch_size=1,
    gpu_batch_size=16,
    build=_build_s3d,
    published="https://www.rocq.inria.fr/cluster-willow/amiech/howto100m/s3d_howto100m.pth",
)
CLIP = Network(
    "clip-vit-b32",
    side=224,
    crop=True,
    chunk=1,
    width=512,
    batch_size=8,
    gpu_batch_size=128,
    build=_build_clip,
    published="the folder https://huggingface.co/openai/clip-vit-base-patch32",
)

BACKBONES = {
    "resnet152": Backbone("resnet152", RESNET, 2048, all_outputs),
    "resnext101-3d": Backbone("resnext101-3d", RESNEXT, 2048, all_outputs),
    "s3d": Backbone("s3d", S3D, 1024, all_outputs),
    "clip-vit-b32": Backbone("clip-vit-b32", CLIP, 512, all_outputs),
    "efficientnet-lite0": Backbone("efficientnet-lite0", EFFICIENTNET, 1280, pooled_rows),
    "activation-motion": Backbone("activation-motion", EFFICIENTNET, 98, motion_rows),
}
