"""Residual DAVEnet and the audio tokens made of its output."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eao.config import AudioConfig
from eao.errors import DataError

# B batch, T spectrogram frames (10 ms), N audio tokens, M most tokens allowed, C channels

MEL_BANDS = 40
PUBLISHED = {
    "v1": ((128, 128, 256, 512, 1024), (2, 2, 2, 2)),
    "v2": ((128, 128, 256, 512, 1024, 2048, 4096), (2, 2, 1, 1, 1, 1)),
}
"""Per version: channels after the first convolution and after each stage; residual blocks of each stage."""


class ResidualBlock(nn.Module):
    """Two 1x9 convolutions along time with a shortcut; stride 2 halves the length."""

    def __init__(self, input_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, channels, (1, 9), stride=stride, padding=(0, 4), bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, (1, 9), padding=(0, 4), bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1:
            shortcut = nn.Conv2d(input_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


class DAVEnet(nn.Module):
    """Log-mel spectrogram (B, 40, T) -> features (B, C, ceil(T / stride)), stride 64 for v2 and 16 for v1.

    The network sees raw decibels: `batchnorm1` is part of every published checkpoint but was never applied, and
    applying it would change every number.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        channels, blocks = stages(config)
        self.stage_names = [f"layer{i}" for i in range(1, len(blocks) + 1)]
        self.batchnorm1 = nn.BatchNorm2d(1)
        self.conv1 = nn.Conv2d(1, channels[0], (MEL_BANDS, 1), bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        for name, count, before, after in zip(self.stage_names, blocks, channels, channels[1:], strict=False):
            first = ResidualBlock(before, after, stride=2)
            self.add_module(name, nn.Sequential(first, *(ResidualBlock(after, after, 1) for _ in range(count - 1))))
        self.output_dim = channels[-1]
        self.stride = 2 ** len(blocks)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
                nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(spectrogram.unsqueeze(1))))  # (B, C, 1, T)
        for name in self.stage_names:
            x = getattr(self, name)(x)
        return x.squeeze(2)


def stages(config: AudioConfig) -> tuple[Sequence[int], Sequence[int]]:
    """The channels and residual blocks of a configured DAVEnet."""
    channels, blocks = PUBLISHED[config.version]
    return config.channels or channels, config.blocks or blocks


def frames_per_token(frames: int, tokens: int) -> int:
    """How many spectrogram frames one token stands for.

    Raises:
        DataError: if the mask cannot be pooled to as many tokens as the network gives, which the original code answered
            with a shape error deep inside the model.
    """
    ratio = -(-frames // tokens)
    if frames // ratio != tokens:
        raise DataError(
            f"a spectrogram of {frames} frames gives {tokens} tokens but a mask of {frames // ratio}",
            "pad the spectrogram to a multiple of 64 frames (16 for DAVEnet v1)",
        )
    return ratio


def pool_mask(mask: Tensor, ratio: int) -> Tensor:
    """(B, T) bool -> (B, T // ratio) bool: a token is real if any of its frames is."""
    tokens = mask.shape[1] // ratio
    return mask[:, : tokens * ratio].unflatten(1, (tokens, ratio)).any(-1)


def limit_tokens(x: Tensor, mask: Tensor, lengths: Tensor, limit: int, strategy: str) -> tuple[Tensor, Tensor]:
    """At most `limit` (M) audio tokens a clip, by the strategies of the positional models.

    "clip" cuts. "nearest", "max_pool" and "avg_pool" squeeze the first `lengths` tokens of a clip into M where there
    are more than M, and cut otherwise. The mask is cut in every case.

    Args:
        x: (B, N, C). mask: (B, N) bool. lengths: (B,) int, whole real tokens of each clip.
    """
    mask = mask[:, :limit]
    if strategy == "clip":
        return x[:, :limit], mask
    position = torch.arange(limit, device=x.device)
    lengths = lengths.clamp(min=limit)[:, None]  # (B, 1); at exactly M tokens all three strategies are the identity
    if strategy == "nearest":
        # Single precision scale and product, as torch's interpolate computes them.
        scale = lengths.float() / torch.tensor(float(limit), device=x.device)
        index = (position.float() * scale).floor().long().minimum(lengths - 1)
        return _take(x, index), mask
    start = position * lengths // limit  # (B, M)
    end = -((position + 1) * lengths // -limit)
    width = x.shape[1] // limit + 2
    offsets = torch.arange(width, device=x.device)
    index = start[..., None] + offsets  # (B, M, width)
    inside = (index < end[..., None])[..., None]
    window = _take(x, index.clamp(max=x.shape[1] - 1).flatten(1)).unflatten(1, (limit, width))
    if strategy == "max_pool":
        return window.masked_fill(~inside, -torch.inf).amax(2), mask
    return (window * inside).sum(2) / inside.sum(2), mask


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, i]] for (B, N, C) and (B, I)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
