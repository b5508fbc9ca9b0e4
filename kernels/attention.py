"""Multi-head attention over padded tokens with a key mask."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

# B batch, H heads, N tokens, C channels of a head


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax(q k^T / sqrt(C)) v over the keys that `mask` allows.

    Args:
        q, k, v: (B, H, N, C), any floating dtype.
        mask: (B, N) bool, True = real key; every row must hold at least one True, otherwise that row is undefined
            (runtimes disagree on it), which the model guarantees through its masking token.
        dropout: probability with which attention weights are dropped; 0 outside training.

    Returns:
        (B, H, N, C) in the dtype of `v`. Queries at padded positions are computed like any other.
    """
    key_mask = mask[:, None, None, :] if mask is not None else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, dropout_p=dropout)
