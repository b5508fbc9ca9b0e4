"""Ragged batches: the real tokens of every clip, and every combination of modalities over them, without padding.

The tokens of each modality stand once, clip after clip. A combination of modalities is a set of sequences, one a clip,
that name the rows of those tokens; so what acts on each token alone is computed once, whatever it takes part in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eao.kernels.convolution import ranges

# B clips, P packed positions, S sequences, G segments (the tokens of one modality in one sequence), D width


class PackedTokens(NamedTuple):
    """One modality, ready for fusion.

    Attributes:
        x: (R, D), the real tokens clip after clip; a clip without any has the masking token.
        lengths: (B,) int64, tokens of each clip, at least 1.
    """

    x: Tensor
    lengths: Tensor


class Layout(NamedTuple):
    """Which token stands where in a ragged batch of sequences, and what is read from it.

    Attributes:
        rows: (P,) int64, the token at each position.
        cu_seqlens: (S + 1,) int32, where each sequence begins and the last one ends.
        longest: positions of the longest sequence.
        sequence: (P,) int64, the sequence of each position.
        readout: (Q,) int64, the positions that are read; None = all.
        segment: (Q,) int64, the segment of each position that is read.
        segment_lengths: (G,) int64.
        segment_sequence: (G,) int64, the sequence of each segment.
    """

    rows: Tensor
    cu_seqlens: Tensor
    longest: int
    sequence: Tensor
    readout: Tensor | None
    segment: Tensor
    segment_lengths: Tensor
    segment_sequence: Tensor

    def mean(self, x: Tensor) -> Tensor:
        """The mean of each segment: (Q, D) -> (G, D)."""
        total = x.new_zeros(len(self.segment_lengths), x.shape[1]).index_add(0, self.segment, x)
        return total / self.segment_lengths[:, None]


def pack_rows(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The real tokens of a padded batch, or the first one of a clip that has none.

    Args:
        mask: (B, N) bool.

    Returns:
        (R,) int64, their places in the flattened (B * N) tokens; (R,) bool, True where a clip has none; (B,) lengths.
    """
    empty = ~mask.any(1)
    filled = torch.cat([mask[:, :1] | empty[:, None], mask[:, 1:]], 1)
    rows = filled.flatten().nonzero()[:, 0]
    return rows, empty[rows // mask.shape[1]], filled.sum(1)


def build_layout(lengths: Sequence[Tensor], combinations: Sequence[Sequence[int]], cls_token: bool = False) -> Layout:
    """The layout of every combination over the tokens of some modalities, which stand one modality after the other.

    Sequences are ordered by combination, then clip; segments by combination, then modality, then clip, so that
    `layout.mean(x).unflatten(0, (-1, B))` has one (B, D) block for each modality of each combination.

    Args:
        lengths: (B,) int64 tokens of each clip, for each modality.
        combinations: which modalities each combination takes, by their place in `lengths`.
        cls_token: put the row after all tokens in front of every sequence, and read that position alone; then a
            segment is a sequence.
    """
    device, clips = lengths[0].device, len(lengths[0])
    sizes = torch.stack(list(lengths))  # (M, B)
    starts = (sizes.flatten().cumsum(0) - sizes.flatten()).view_as(sizes)  # first row of each clip's tokens
    modalities = torch.tensor([m for c in combinations for m in c], device=device)
    segment_lengths = sizes[modalities].flatten()  # (G,), by combination, modality, clip
    # The order in which segments stand in the batch: those of one sequence follow each other.
    numbers = torch.arange(len(segment_lengths), device=device)
    order = torch.cat(
        [part.view(-1, clips).T.flatten() for part in numbers.split([len(c) * clips for c in combinations])]
    )
    sequences = torch.cat(
        [(i * clips + torch.arange(clips, device=device)).repeat(len(c)) for i, c in enumerate(combinations)]
    )  # (G,)
    rows = ranges(starts[modalities].flatten()[order], segment_lengths[order])
    segment = order.repeat_interleave(segment_lengths[order])
    sequence = sequences[segment]
    per_sequence = sequence.bincount(minlength=len(combinations) * clips)
    if not cls_token:
        bounds = _bounds(per_sequence)
        return Layout(rows, bounds, int(per_sequence.max()), sequence, None, segment, segment_lengths, sequences)
    per_sequence = per_sequence + 1
    bounds = _bounds(per_sequence)
    readout = bounds[:-1].long()
    own = torch.arange(len(per_sequence), device=device)
    with_cls = torch.full((len(rows) + len(per_sequence),), int(sizes.sum()), device=device)
    with_cls[torch.arange(len(rows), device=device) + sequence + 1] = rows
    sequence = own.repeat_interleave(per_sequence)
    return Layout(with_cls, bounds, int(per_sequence.max()), sequence, readout, own, torch.ones_like(per_sequence), own)


def _bounds(lengths: Tensor) -> Tensor:
    """Where each sequence begins and the last one ends: (S,) -> (S + 1,) int32."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
