"""Small layers shared by all models: projections and weight initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# D_in input width, D output width


class ContextGating(nn.Module):
    """x * sigmoid(W x + b), channel by channel (Miech et al., arXiv 1706.06905)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x))


class GatedEmbeddingUnit(nn.Module):
    """A linear layer followed by context gating: (..., D_in) -> (..., D)."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(input_dim, output_dim)
        self.cg = ContextGating(output_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.cg(self.fc(x))


def build_projection(kind: str, input_dim: int, output_dim: int) -> nn.Module:
    """A projection by its configured name: "gated", "minimal" (one linear layer) or "none" (identity)."""
    if kind == "gated":
        return GatedEmbeddingUnit(input_dim, output_dim)
    if kind == "minimal":
        return nn.Linear(input_dim, output_dim)
    return nn.Identity()


def init_transformer_(module: nn.Module) -> None:
    """Truncated normal (std 0.02) linear weights, zero biases, identity LayerNorms, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
