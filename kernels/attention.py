"""Multi-head attention over padded tokens with a key mask, and over packed sequences of any length.

Both are custom operators with a forward and a backward kernel: Triton on a GPU (`attention_triton.py`), plain PyTorch
elsewhere (`attention_torch.py`). They train, run under `torch.compile`, and give the same bits in every run on one
machine, but for plain PyTorch on a GPU, which adds in any order. Second derivatives are not defined.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eao.kernels import attention_torch
from eao.kernels.backend import use_triton

# B batch, H heads, N tokens, C channels of a head
# P positions (the tokens of all sequences), T rows of qkv, S sequences

MAX_CHANNELS = 128
"""Heads wider than this are left to PyTorch."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax(q k^T / sqrt(C)) v over the keys that `mask` allows.

    The Triton kernel is used on a GPU without dropout; everything else, and every exported graph, takes
    `scaled_dot_product_attention`.

    Args:
        q, k, v: (B, H, N, C), any floating dtype.
        mask: (B, N) bool, True = real key. A row without any gives zeros here, but runtimes of exported graphs disagree
            on it: the model's masking token keeps it from occurring.
        dropout: probability with which attention weights are dropped; 0 outside training.

    Returns:
        (B, H, N, C) in the dtype of `v`. Queries at padded positions are computed like any other.
    """
    if dropout == 0 and q.shape == k.shape and _on_gpu_kernels(q):
        return masked_attention(q, k, v, mask)
    key_mask = mask[:, None, None, :] if mask is not None else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, dropout_p=dropout)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The operator behind `attention`, on any device."""
    return torch.ops.eao.masked_attention(q, k, v, mask)[0]


def packed_attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, rows: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention within each of several sequences that stand one after the other, without padding.

    Args:
        qkv: (T, 3, H, C), as a linear layer gives queries, keys and values of tokens; any strides.
        cu_seqlens: (S + 1,) int32: sequence s holds the positions cu_seqlens[s] to cu_seqlens[s + 1] - 1. It begins
            with 0 and ends with P; equal neighbours are an empty sequence.
        max_seqlen: length of the longest sequence, or more.
        rows: (P,) int32: which row of `qkv` stands at each position, so that several sequences share tokens without a
            copy. None: row p at position p, and P = T. The gradient of a row is the sum over its positions.
        dropout: as in `attention`; above 0, the plain path is taken on every device.

    Returns:
        (P, H, C) in the dtype of `qkv`.

    Raises:
        ValueError: shapes do not fit, or, where it costs no wait for a GPU, `cu_seqlens` does not describe P positions.

    Example:
        >>> qkv = torch.randn(5, 3, 2, 4)
        >>> starts = torch.tensor([0, 3, 8], dtype=torch.int32)
        >>> rows = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4], dtype=torch.int32)  # the first three tokens are in both
        >>> packed_attention(qkv, starts, 5, rows).shape
        torch.Size([8, 2, 4])
    """
    if qkv.ndim != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv has the shape {tuple(qkv.shape)}, not (tokens, 3, heads, channels)")
    if dropout > 0:
        q, k, v = qkv.unbind(1)
        return attention_torch.attend(q, k, v, cu_seqlens, rows, None, dropout)
    return torch.ops.eao.packed_attention(qkv, cu_seqlens, max_seqlen, rows)[0]


# The operators also give the log of each softmax's sum, (H, P) float32, which the backward kernels need. The plain path
# computes the weights anew and leaves it empty, (H, 0).


def _on_gpu_kernels(x: Tensor) -> bool:
    return x.shape[-1] <= MAX_CHANNELS and use_triton(x)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, rows: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    if _on_gpu_kernels(q):
        from eao.kernels import attention_triton

        return attention_triton.forward(q, k, v, starts, longest, rows, mask)
    return attention_torch.attend(q, k, v, starts, rows, mask), q.new_empty(q.shape[1], 0, dtype=torch.float32)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor,
    starts: Tensor, longest: int, rows: Tensor | None, mask: Tensor | None,
) -> Tensor:  # fmt: skip
    if _on_gpu_kernels(q):
        from eao.kernels import attention_triton

        return attention_triton.backward(grad, q, k, v, out, log_sums, starts, longest, rows, mask)
    return attention_torch.differentiate(grad, q, k, v, starts, rows, mask)


def _empty_log_sums(x: Tensor, heads: int, positions: int) -> Tensor:
    """What `_forward` gives beside the output, in shape and type."""
    return x.new_empty(heads, positions if _on_gpu_kernels(x) else 0, dtype=torch.float32)


@torch.library.custom_op("eao::packed_attention", mutates_args=())
def _packed(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    if not qkv.is_cuda:
        _check_lengths(cu_seqlens, max_seqlen, len(qkv) if rows is None else len(rows))
    q, k, v = qkv.unbind(1)
    return _forward(q, k, v, cu_seqlens, max_seqlen, rows, None)


@torch.library.custom_op("eao::packed_attention_backward", mutates_args=())
def _packed_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, log_sums: Tensor, cu_seqlens: Tensor, max_seqlen: int, rows: Tensor | None
) -> Tensor:
    q, k, v = qkv.unbind(1)
    return _backward(grad, q, k, v, out, log_sums, cu_seqlens, max_seqlen, rows, None)


@_packed.register_fake
def _(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    count = (qkv if rows is None else rows).shape[0]
    _, _, heads, channels = qkv.shape
    return qkv.new_empty(count, heads, channels), _empty_log_sums(qkv, heads, count)


@_packed_backward.register_fake
def _(
    grad: Tensor, qkv: Tensor, out: Tensor, log_sums: Tensor, cu_seqlens: Tensor, max_seqlen: int, rows: Tensor | None
) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, cu_seqlens, ctx.max_seqlen, rows = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens, rows)
    ctx.set_materialize_grads(False)


def _differentiate_packed(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None, None, None]:
    if grad is None:
        return None, None, None, None
    qkv, out, log_sums, cu_seqlens, rows = ctx.saved_tensors
    d_qkv = torch.ops.eao.packed_attention_backward(grad, qkv, out, log_sums, cu_seqlens, ctx.max_seqlen, rows)
    return d_qkv, None, None, None


_packed.register_autograd(_differentiate_packed, setup_context=_save_packed)


@torch.library.custom_op("eao::masked_attention", mutates_args=())
def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    clips, _, tokens, _ = q.shape
    starts = _equal_lengths(clips, tokens, q.device)
    flat_mask = mask.flatten() if mask is not None else None
    out, log_sums = _forward(_token_major(q), _token_major(k), _token_major(v), starts, tokens, None, flat_mask)
    return out.unflatten(0, (clips, tokens)).transpose(1, 2), log_sums


@torch.library.custom_op("eao::masked_attention_backward", mutates_args=())
def _masked_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, log_sums: Tensor
) -> Tensor:
    """(B * N, 3, H, C): one tensor, since an operator's results must not share memory."""
    clips, _, tokens, _ = q.shape
    starts = _equal_lengths(clips, tokens, q.device)
    grad, q, k, v, out = map(_token_major, (grad, q, k, v, out))
    flat_mask = mask.flatten() if mask is not None else None
    return _backward(grad, q, k, v, out, log_sums, starts, tokens, None, flat_mask)


@_masked.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    clips, heads, tokens, channels = q.shape
    out = q.new_empty(clips, tokens, heads, channels).transpose(1, 2)
    return out, _empty_log_sums(q, heads, clips * tokens)


@_masked_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, log_sums: Tensor) -> Tensor:
    clips, heads, tokens, channels = q.shape
    return q.new_empty(clips * tokens, 3, heads, channels)


def _save_masked(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _differentiate_masked(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    q = ctx.saved_tensors[0]
    d_qkv = torch.ops.eao.masked_attention_backward(grad, *ctx.saved_tensors)
    dq, dk, dv = d_qkv.unflatten(0, (q.shape[0], q.shape[2])).permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, C)
    return dq, dk, dv, None


_masked.register_autograd(_differentiate_masked, setup_context=_save_masked)


def _equal_lengths(clips: int, tokens: int, device: torch.device) -> Tensor:
    return torch.arange(clips + 1, dtype=torch.int32, device=device) * tokens


def _token_major(x: Tensor) -> Tensor:
    """(B, H, N, C) -> (B * N, H, C), without a copy where the tokens of clips follow each other in memory."""
    return x.transpose(1, 2).flatten(0, 1)


def _check_lengths(cu_seqlens: Tensor, max_seqlen: int, count: int) -> None:
    lengths = cu_seqlens.diff()
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != count or (lengths < 0).any() or (lengths > max_seqlen).any():
        raise ValueError(
            f"cu_seqlens must rise from 0 to the {count} positions in steps of at most max_seqlen = {max_seqlen}, "
            f"not {cu_seqlens.tolist()}"
        )
