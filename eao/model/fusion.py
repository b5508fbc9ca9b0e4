"""The fusion transformer: pre-norm blocks over the concatenated tokens of any modalities.

Two implementations of the same mathematics share the weights. The packed one takes all combinations of modalities in
one ragged batch (training, evaluation); the dense one takes one combination as padded tensors, a static graph (export).
Neither computes what nobody reads: after the last block only the mean of each modality's tokens is used (or the cls
token), and `fc2` is linear, so the mean comes first. Packed, padding is never computed, and the first block's `norm1`
and `qkv`, which act on each token alone, run once a token instead of once a combination.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eao.config import FusionConfig
from eao.kernels import attention, packed_attention
from eao.model.layers import init_transformer_
from eao.model.packed import Layout

# B batch, N tokens, D width, H heads, M modalities; R packed tokens, P packed positions, G segments

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
        x = attention(q, k, v, mask, self._dropout)
        return self.project(x.transpose(1, 2).flatten(2))

    def packed(self, x: Tensor, layout: Layout, rows: Tensor | None) -> Tensor:
        """Every position's attended values, before `project`: (R, D) -> (P, D).

        Args:
            x: the tokens.
            layout: which of them stand where.
            rows: the token at each position; None where every position has a token of its own.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (R, 3, H, D/H)
        places = None if rows is None else rows.int()
        return packed_attention(qkv, layout.cu_seqlens, layout.longest, places, self._dropout).flatten(1)

    def project(self, x: Tensor) -> Tensor:
        """The output projection of attended values."""
        return F.dropout(self.proj(x), self.drop_rate, self.training)

    @property
    def _dropout(self) -> float:
        return self.attn_drop_rate if self.training else 0.0


class MLP(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, config.embed_dim)
        self.drop_rate = config.drop_rate

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc2(self.hidden(x)), self.drop_rate, self.training)

    def hidden(self, x: Tensor) -> Tensor:
        """What `fc2` is applied to."""
        return F.dropout(F.gelu(self.fc1(x)), self.drop_rate, self.training)

    @property
    def ends_linearly(self) -> bool:
        """Whether a mean over tokens may be taken before `fc2` rather than after it: dropout would come in between."""
        return not (self.training and self.drop_rate)


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
        """Dense: (B, N, D) tokens with their (B, N) mask -> (B, N, D)."""
        x = x + self._skip(self.attn(self.norm1(x), mask))
        return x + self._skip(self.mlp(self.norm2(x)))

    def pooled(self, x: Tensor, mask: Tensor, parts: Sequence[tuple[slice, Tensor]]) -> list[Tensor]:
        """As `forward`, but only the masked mean of each part of the tokens: (B, D) each.

        Args:
            x, mask: see `forward`.
            parts: a slice of the tokens, and the (B, n) mask of those.
        """
        x = x + self._skip(self.attn(self.norm1(x), mask))
        if not self.mlp.ends_linearly:
            x = x + self._skip(self.mlp(self.norm2(x)))
            return [masked_mean(x[:, part], real) for part, real in parts]
        hidden = self.mlp.hidden(self.norm2(x))
        means = [(masked_mean(x[:, part], real), masked_mean(hidden[:, part], real)) for part, real in parts]
        return [residual + self._skip(self.mlp.fc2(mean)) for residual, mean in means]

    def packed(self, x: Tensor, layout: Layout, *, first: bool, last: bool) -> Tensor:
        """Packed: (R, D) tokens, or (P, D) after the first block -> (P, D), or (G, D) means after the last."""
        rows = layout.rows if first else None
        attended = self.attn.packed(self.norm1(x), layout, rows)
        sequence = layout.sequence
        if rows is not None:
            x = x[rows]
        if last and layout.readout is not None:
            x, attended, sequence = x[layout.readout], attended[layout.readout], sequence[layout.readout]
        skip = self._skipped_sequences(x, layout)
        x = x + self._scaled(self.attn.project(attended), skip, sequence)
        skip = self._skipped_sequences(x, layout)
        if last and self.mlp.ends_linearly:
            hidden = layout.mean(self.mlp.hidden(self.norm2(x)))
            return layout.mean(x) + self._scaled(self.mlp.fc2(hidden), skip, layout.segment_sequence)
        x = x + self._scaled(self.mlp(self.norm2(x)), skip, sequence)
        return layout.mean(x) if last else x

    def _skip(self, branch: Tensor) -> Tensor:
        """A residual branch of the dense form; the first axis is the batch."""
        if not self.training or self.drop_path == 0:
            return branch
        return branch * self._keep(len(branch), branch).view(-1, *[1] * (branch.ndim - 1))

    def _skipped_sequences(self, x: Tensor, layout: Layout) -> Tensor | None:
        if not self.training or self.drop_path == 0:
            return None
        return self._keep(len(layout.cu_seqlens) - 1, x)

    def _scaled(self, branch: Tensor, skip: Tensor | None, sequence: Tensor) -> Tensor:
        """A residual branch of the packed form; all positions of a sequence are kept or skipped together."""
        return branch if skip is None else branch * skip[sequence, None]

    def _keep(self, count: int, like: Tensor) -> Tensor:
        keep = 1 - self.drop_path
        return torch.empty(count, device=like.device).bernoulli_(keep).div_(keep)


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

    def forward(self, x: Tensor, mask: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Dense: what the output heads read from one combination of modalities.

        Args:
            x: (B, N, D) tokens, modality after modality.
            mask: (B, N) bool.
            sizes: tokens of each modality, N in sum.

        Returns:
            (B, D) for each modality, the mean of its real tokens; with a cls token that token alone.
        """
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
            mask = torch.cat([mask.new_ones(mask.shape[0], 1), mask], 1)
            sizes = [1]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        parts = [(part, mask[:, part]) for part in slices]
        for block in self.blocks[:-1]:
            x = block(x, mask)
        if not self.blocks:
            return [masked_mean(x[:, part], real) for part, real in parts]
        last: Block = self.blocks[-1]  # type: ignore[assignment]
        return last.pooled(x, mask, parts)

    def packed(self, x: Tensor, layout: Layout) -> Tensor:
        """Packed: what the output heads read from every combination in `layout`.

        Args:
            x: (R, D) tokens, modality after modality, clip after clip.
            layout: made by `build_layout`, with `cls_token` if this transformer has one.

        Returns:
            (G, D), the mean of each segment.
        """
        if self.cls_token is not None:
            x = torch.cat([x, self.cls_token[0].to(x.dtype)])
        if not self.blocks:
            return layout.mean(x[layout.rows if layout.readout is None else layout.rows[layout.readout]])
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block.packed(x, layout, first=i == 0, last=i == last)  # type: ignore[operator]
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
