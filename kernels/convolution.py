"""Convolution along time over clips of different lengths that stand one after the other, without padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# R rows (time steps of all clips), C channels in, K taps (odd), F filters

_BLOCK = 1 << 23  # numbers gathered at once, 32 MB in float32: large enough for BLAS to run at full speed


def ragged_conv1d(x: Tensor, weight: Tensor, lengths: Tensor, wanted: Tensor, stride: int = 1) -> Tensor:
    """The first `wanted` outputs of a convolution of each clip, with K // 2 zeros before and after it.

    Windows of the input are gathered and multiplied, a block at a time; so nothing is computed for padding or for
    outputs that nobody wants. That beats a padded convolution on a CPU, where gathering is cheap beside multiplying.
    There is no second derivative.

    Args:
        x: (R, C) rows of all clips, clip after clip.
        weight: (F, C, 1, K) as of `torch.nn.Conv2d`. Without a copy in the memory format channels_last.
        lengths: (B,) int64 rows of each clip, R in sum.
        wanted: (B,) int64, at most ceil(lengths / stride).
        stride: of the windows.

    Returns:
        (sum of `wanted`, F).

    Example:
        >>> x, ones = torch.arange(5.0)[:, None], torch.ones(1, 1, 1, 3)
        >>> ragged_conv1d(x, ones, torch.tensor([3, 2]), torch.tensor([2, 2]))[:, 0].tolist()
        [1.0, 3.0, 7.0, 7.0]
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x, weight = (t.to(torch.get_autocast_dtype(device)) for t in (x, weight))
    taps = weight.shape[-1]
    gap = taps // 2
    # In a buffer with `gap` zero rows before, between and after the clips, a window is one run of memory.
    before = lengths.cumsum(0) - lengths + gap * torch.arange(1, len(lengths) + 1)
    place = ranges(before, lengths)
    start = ranges(before - gap, wanted, stride)
    filters = weight.permute(0, 2, 3, 1).flatten(1)  # (F, K * C)
    clips = _Clips((before - gap).tolist(), wanted.tolist(), stride)
    return _Convolution.apply(x, filters, place, start, len(x) + gap * (len(lengths) + 1), clips)


def ranges(start: Tensor, length: Tensor, step: int = 1) -> Tensor:
    """start[0], start[0] + step, ... for length[0] values, then those of start[1], and so on; int64."""
    offset = start - step * (length.cumsum(0) - length)
    return offset.repeat_interleave(length) + step * torch.arange(int(length.sum()), device=start.device)


class _Clips(NamedTuple):
    """Where the windows of each clip lie: row of the buffer where the first begins, how many there are, their step."""

    firsts: list[int]
    counts: list[int]
    stride: int

    def within(self, rows: slice) -> Iterator[tuple[slice, int]]:
        """The clips that have windows among `rows`: which of the rows, and where the first of these begins."""
        end = 0
        for first, count in zip(self.firsts, self.counts, strict=True):
            start, end = end, end + count
            low, high = max(start, rows.start), min(end, rows.stop)
            if low < high:
                yield slice(low - rows.start, high - rows.start), first + self.stride * (low - start)


class _Convolution(torch.autograd.Function):
    """Windows are gathered once more for the gradient: kept, they would take K times the memory of the activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, place: Tensor, start: Tensor, size: int, clips: _Clips) -> Tensor:
        ctx.save_for_backward(x, filters, place, start)
        ctx.size, ctx.clips = size, clips
        out = x.new_empty(len(start), len(filters))
        for rows, windows in _windows(x, filters, place, start, size):
            torch.mm(windows, filters.T, out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, filters, place, start = ctx.saved_tensors
        width = x.shape[1]
        # In half precision too, sums over blocks and taps are float32.
        wide = torch.promote_types(x.dtype, torch.float32)
        d_filters = torch.zeros_like(filters, dtype=wide) if ctx.needs_input_grad[1] else None
        d_buffer = x.new_zeros(ctx.size, width, dtype=wide) if ctx.needs_input_grad[0] else None
        for rows, windows in _windows(x, filters, place, start, ctx.size):
            if d_filters is not None:
                if wide == x.dtype:
                    d_filters.addmm_(grad[rows].T, windows)
                else:
                    d_filters += grad[rows].T @ windows
            if d_buffer is not None:
                d_windows = torch.mm(grad[rows], filters, out=windows)
                # Of one clip and tap, windows are evenly spaced: slices, many times faster than an indexed sum.
                for some, begin in ctx.clips.within(rows):
                    stop = begin + ctx.clips.stride * (some.stop - some.start)
                    for tap, part in enumerate(d_windows[some].split(width, 1)):
                        d_buffer[begin + tap : stop + tap : ctx.clips.stride] += part
        d_x = None if d_buffer is None else d_buffer[place].to(x.dtype)
        return d_x, None if d_filters is None else d_filters.to(filters.dtype), None, None, None, None


def _windows(x: Tensor, filters: Tensor, place: Tensor, start: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of outputs, and what each of them is computed from: (n, K * C)."""
    if not len(start):
        return
    taken = filters.shape[1]
    buffer = x.new_zeros(size, x.shape[1]).index_copy_(0, place, x)
    every = buffer.as_strided((size - taken // x.shape[1] + 1, taken), (x.shape[1], 1))
    step = max(256, _BLOCK // taken)
    for first in range(0, len(start), step):
        rows = slice(first, min(first + step, len(start)))
        yield rows, every.index_select(0, start[rows])
