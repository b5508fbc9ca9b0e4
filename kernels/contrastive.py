"""The symmetric contrastive loss between two sets of embeddings, row i of one matching row i of the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# N pairs, E embedding

MMS_MARGIN = 0.001
"""The margin that the authors' MMS loss subtracts from the positives; fixed in their code."""


def normalize(x: Tensor) -> Tensor:
    """Rows of `x` (..., E) scaled to unit length; a zero row stays zero (the norm is bounded below by 1e-8)."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-8)


def contrastive_loss(a: Tensor, b: Tensor, kind: str = "norm-softmax", temperature: float = 0.05) -> Tensor:
    """Cross-entropy of the cosine similarities in both directions, added up.

    "norm-softmax": the similarities divided by `temperature` (Eq. 4 of arXiv 2112.04446). "mms": the margin of 0.001 is
    taken off the positives and there is no temperature (masked margin softmax as the authors implemented it).

    Args:
        a, b: (N, E) float; positives are equal rows. They need not be normalised.

    Returns:
        a scalar float32; NaN when N is 0 (with zero gradient), as the mean over nothing.
    """
    similarity = normalize(a.float()) @ normalize(b.float()).T  # (N, N)
    if kind == "norm-softmax":
        logits = similarity / temperature
    elif kind == "mms":
        logits = similarity - MMS_MARGIN * torch.eye(len(similarity), device=similarity.device)
    else:
        raise ValueError(f"unknown contrastive loss {kind!r}: norm-softmax or mms")
    target = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
