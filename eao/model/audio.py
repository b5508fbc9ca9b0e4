"""Residual DAVEnet and the audio tokens made of its output."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eao.config import AudioConfig
from eao.errors import DataError
from eao.kernels.convolution import ragged_conv1d, ranges

# B batch, T spectrogram frames (10 ms), N audio tokens, M most tokens allowed, C channels, R rows of a ragged batch

MEL_BANDS = 40
WIDE = 1024
"""Channels of the last stage from which on a network is trained over rows on a CPU; below, gathering costs more."""
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
        self.downsample: nn.Sequential | None = None
        if stride != 1:
            shortcut = nn.Conv2d(input_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)

    def lengths_before(self, wanted: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
        """How much of its clips the block needs for its first `wanted` outputs, (B,) each: its input, and in between.

        Args:
            wanted: (B,) outputs.
            available: (B,) the whole input.
        """
        between = _reach(wanted, 1, -(-available // self.conv1.stride[0]))
        return _reach(between, self.conv1.stride[0], available), between

    def ragged(self, x: Tensor, lengths: Tensor, between: Tensor, wanted: Tensor) -> Tensor:
        """The first `wanted` outputs of each clip: (R, C) rows of all clips -> (sum of `wanted`, C)."""
        stride = self.conv1.stride[0]
        used = ranges(lengths.cumsum(0) - lengths, wanted, stride)
        shortcut = x[used]
        if self.downsample is not None:
            conv, norm = self.downsample[0], self.downsample[1]
            assert isinstance(conv, nn.Conv2d)
            shortcut = _norm(norm, F.linear(shortcut, conv.weight.flatten(1)))
        x = torch.relu(_norm(self.bn1, ragged_conv1d(x, self.conv1.weight, lengths, between, stride)))
        return torch.relu(_norm(self.bn2, ragged_conv1d(x, self.conv2.weight, between, wanted)) + shortcut)


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
        # The same in every mode: an optimizer's state lies in memory as the filters did when it was made. Narrow
        # networks are trained by torch's convolutions, whose BatchNorm is less exact with channels side by side.
        if self.output_dim >= WIDE:
            set_memory_format(self, torch.channels_last)

    def forward(self, spectrogram: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Features of every token, or in eval mode of the first ones alone.

        Args:
            spectrogram: (B, 40, T).
            wanted: (B,) int64, how many tokens of each clip are read; the others become zero. What a token does not
                hear is not computed for it. In training all are computed: BatchNorm's statistics are of whole
                spectrograms.
        """
        by_convolutions = spectrogram.is_cuda or self.output_dim < WIDE
        if wanted is None or (self.training and by_convolutions):
            x = torch.relu(self.bn1(self.conv1(spectrogram.unsqueeze(1))))  # (B, C, 1, T)
            for name in self.stage_names:
                x = getattr(self, name)(x)
            return x.squeeze(2)
        if spectrogram.is_cuda:
            heard = self._lengths(wanted.amax()[None], spectrogram.shape[2])[0][0]
            x = self(spectrogram[..., : int(heard)])
            x = F.pad(x, (0, -(-spectrogram.shape[2] // self.stride) - x.shape[2]))
            return x * (torch.arange(x.shape[2], device=x.device) < wanted[:, None])[:, None]
        # Wide layers' windows, gathered and multiplied, take half the time of torch's convolutions with gradients.
        every = torch.full_like(wanted, -(-spectrogram.shape[2] // self.stride))
        return self._ragged(spectrogram, every if self.training else wanted)

    def _ragged(self, spectrogram: Tensor, wanted: Tensor) -> Tensor:
        clips, _, frames = spectrogram.shape
        plan = self._lengths(wanted, frames)
        heard = plan[0]
        x = spectrogram.transpose(1, 2).flatten(0, 1)[ranges(torch.arange(clips) * frames, heard)]  # (R, 40)
        x = torch.relu(_norm(self.bn1, F.linear(x, self.conv1.weight.flatten(1))))
        for block, lengths, between, after in zip(self._blocks(), plan[::2], plan[1::2], plan[2::2], strict=False):
            x = block.ragged(x, lengths, between, after)
        tokens = -(-frames // self.stride)
        out = x.new_zeros(clips * tokens, x.shape[1]).index_copy(0, ranges(torch.arange(clips) * tokens, wanted), x)
        return out.unflatten(0, (clips, tokens)).transpose(1, 2)

    def _lengths(self, wanted: Tensor, frames: int) -> list[Tensor]:
        """How much of every clip is needed before, within and after each block, the first to the last: (B,) each."""
        blocks = self._blocks()
        available = [torch.full_like(wanted, frames)]
        for block in blocks:
            available.append(-(-available[-1] // block.conv1.stride[0]))
        plan = [wanted]
        for block, before in zip(reversed(blocks), reversed(available[:-1]), strict=True):
            plan = [*block.lengths_before(plan[0], before), *plan]
        return plan

    def _blocks(self) -> list[ResidualBlock]:
        return [block for name in self.stage_names for block in getattr(self, name)]


def _reach(wanted: Tensor, stride: int, available: Tensor) -> Tensor:
    """The inputs, at most `available`, that a convolution of 9 taps needs for its first `wanted` outputs."""
    return torch.where(wanted > 0, stride * (wanted - 1) + 5, 0).minimum(available)


def set_memory_format(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out the filters of a module that have several taps, in place: the parameters stay the same objects.

    With channels_last the channels of a tap stand side by side, as `ragged_conv1d` and the fastest convolutions read
    them. Filters of one tap lie in memory alike in both formats.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size[1] > 1:
            layer.weight.data = layer.weight.data.contiguous(memory_format=memory_format)


def _norm(layer: nn.Module, x: Tensor) -> Tensor:
    """BatchNorm on rows (R, C)."""
    assert isinstance(layer, nn.BatchNorm2d)
    if layer.training:
        # Along time, since torch's sums are less exact over channels that lie side by side.
        return layer(x.T.contiguous()[None, :, None])[0, :, 0].T
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)


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
