"""The fusion transformer: pre-norm blocks over the concatenated tokens of any modalities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eao.config import FusionConfig
from eao.kernels import attention
from eao.model.layers import init_transformer_

# B batch, N tokens, D width, H heads

EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention; padded keys are excluded by the mask."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.attn_drop_rate = config.attn_drop_rate
        self.drop_rate = config.drop_rate

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D/H)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, D/H)
        x = attention(q, k, v, mask, self.attn_drop_rate if self.training else 0.0)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return F.dropout(x, self.drop_rate, self.training)


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, config.embed_dim)
        self.drop_rate = config.drop_rate

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.gelu(self.fc1(x)), self.drop_rate, self.training)
        return F.dropout(self.fc2(x), self.drop_rate, self.training)


class Block(nn.Module):
    """x + Attn(LN(x)), then x + MLP(LN(x)); each residual branch is skipped at rate `drop_path` in training."""

    def __init__(self, config: FusionConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=EPS)
        self.mlp = MLP(config)
        self.drop_path = drop_path

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self._skip(self.attn(self.norm1(x), mask))
        return x + self._skip(self.mlp(self.norm2(x)))

    def _skip(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        return branch * torch.empty(len(branch), 1, 1, device=branch.device).bernoulli_(keep).div_(keep)


class FusionTransformer(nn.Module):
    """`depth` blocks; depth 0 passes tokens through.

    `norm` is part of every published checkpoint but was never applied to anything; it is kept so that keys match.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.masking_token = nn.Parameter(torch.empty(width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if config.use_cls_token else None
        # On the CPU even while the model is built on the meta device, which holds no numbers.
        rates = torch.linspace(0, config.drop_path_rate, max(config.depth, 1), device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, rates[i]) for i in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        init_transformer_(self)
        nn.init.trunc_normal_(self.masking_token, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D) tokens with their (B, N) mask -> (B, N, D); with a cls token (B, N + 1, D), the cls token first."""
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
            mask = torch.cat([mask.new_ones(mask.shape[0], 1), mask], 1)
        for block in self.blocks:
            x = block(x, mask)
        return x

    def fill_empty(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give clips that lack a modality one masking token in its place.

        Args:
            x: (B, N, D) tokens. mask: (B, N) bool. Neither is changed.

        Returns:
            the tokens, the mask, and (B,) bool: which clips did have the modality.
        """
        present = mask.any(1)
        first = torch.where(present[:, None], x[:, 0], self.masking_token.to(x.dtype))
        x = torch.cat([first[:, None], x[:, 1:]], 1)
        mask = torch.cat([mask[:, :1] | ~present[:, None], mask[:, 1:]], 1)
        return x, mask, present


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: (B, N, D), (B, N) bool -> (B, D)."""
    weight = mask.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1)
