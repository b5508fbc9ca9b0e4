"""Attention over ragged sequences in plain PyTorch: what runs on a CPU, and the reference of the Triton kernels.

Sequences of one length that stand side by side go through `scaled_dot_product_attention` as a batch, others one by one:
nothing is padded. The gradient is taken for a few dozen positions at a time, with no more than their (H, N, N) held.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

# P positions (the tokens of all sequences), T rows of the input, S sequences, H heads, C channels of a head
# G sequences of one length N that stand side by side


PART = 64
"""Positions whose gradient is computed at once."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, rows: Tensor | None, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Softmax(q k^T / sqrt(C)) v within each sequence.

    Args:
        q, k, v: (T, H, C).
        starts: (S + 1,) int32: sequence s holds the positions starts[s] to starts[s + 1] - 1.
        rows: (P,) int32: which row of q, k and v stands at a position; None: row p at position p, and P = T.
        mask: (P,) bool, True = the position may be attended to; None: all may. A query without any key gives zeros.
        dropout: probability with which attention weights are dropped.

    Returns:
        (P, H, C) in the type of `q`.
    """
    parts = [q.new_empty(0, *q.shape[1:])]
    for span, tokens in _runs(starts):
        index = span if rows is None else rows[span]
        q_s, k_s, v_s = (x[index].unflatten(0, (-1, tokens)).transpose(1, 2) for x in (q, k, v))  # each (G, H, N, C)
        key_mask = None if mask is None else mask[span].view(-1, 1, 1, tokens)
        out = F.scaled_dot_product_attention(q_s, k_s, v_s, attn_mask=key_mask, dropout_p=dropout)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def differentiate(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, rows: Tensor | None, mask: Tensor | None
) -> Tensor:
    """The gradients of q, k and v as one tensor (T, 3, H, C); rows that stand at several positions get their sum.

    Args:
        grad: (P, H, C), the gradient of what `attend` gives for the other arguments without dropout.
    """
    by_position = q.new_empty(len(grad), 3, *q.shape[1:])
    for span, tokens in _parts(starts):
        index = span if rows is None else rows[span]
        q_s, k_s, v_s, grad_s = (_heads_first(x, tokens) for x in (q[index], k[index], v[index], grad[span]))
        scale = q.shape[-1] ** -0.5
        weights = _scaled_bmm(q_s, k_s.transpose(1, 2), scale)  # (G * H, N, N)
        if mask is None:
            weights = weights.softmax(-1)
        else:
            hidden = ~mask[span].view(-1, 1, tokens).repeat_interleave(q.shape[1], 0)
            # Filled again, since the softmax of a row without any key is not a number.
            weights = weights.masked_fill_(hidden, -torch.inf).softmax(-1).masked_fill_(hidden, 0.0)
        d_weights = grad_s.bmm(v_s.transpose(1, 2))
        d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_s = by_position[span].view(-1, tokens, 3, *q.shape[1:]).permute(2, 0, 3, 1, 4)  # (3, G, H, N, C)
        d_s[0] = _scaled_bmm(d_scores, k_s, scale).view_as(d_s[0])
        d_s[1] = _scaled_bmm(d_scores.transpose(1, 2), q_s, scale).view_as(d_s[1])
        d_s[2] = weights.transpose(1, 2).bmm(grad_s).view_as(d_s[2])
    if rows is None:
        return by_position
    # On a CPU the positions are added in their order, so that the sum is the same in every run.
    return q.new_zeros(len(q), 3, *q.shape[1:]).index_add_(0, rows, by_position)


def _runs(starts: Tensor) -> Iterator[tuple[slice, int]]:
    """The positions of each run of sequences that are equally long, and their length; empty sequences left out."""
    first = 0
    for tokens, sequences in groupby(starts.diff().tolist()):
        end = first + tokens * len(list(sequences))
        if tokens:
            yield slice(first, end), tokens
        first = end


def _parts(starts: Tensor) -> Iterator[tuple[slice, int]]:
    """Runs cut into parts of at most PART positions, or of one sequence."""
    for run, tokens in _runs(starts):
        step = max(PART // tokens, 1) * tokens
        for first in range(run.start, run.stop, step):
            yield slice(first, min(first + step, run.stop)), tokens


def _heads_first(x: Tensor, tokens: int) -> Tensor:
    """(G * N, H, C) -> (G * H, N, C), in float32 if narrower; without a copy for a single sequence."""
    return x.unflatten(0, (-1, tokens)).transpose(1, 2).flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)
