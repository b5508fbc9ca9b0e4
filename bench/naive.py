"""The model as plainly as its equations: one full pass over padded tensors for each combination, nothing saved.

The oracle that the packed and the dense implementation are tested against, and the rival they are measured beside: the
published model runs its fusion transformer so, once for each of six combinations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eao.model import Batch, EverythingAtOnce, encoder_modalities
from eao.model.fusion import Attention, Block, FusionTransformer

# B batch, N tokens, D width, H heads, E embedding


def naive_forward(model: EverythingAtOnce, batch: Batch, encoders: Sequence[str]) -> dict[str, Tensor]:
    """Embeddings by encoder, each (B, E), with the weights of `model`; see `EverythingAtOnce.forward`."""
    modalities = {m for encoder in encoders for m in encoder_modalities(encoder)}
    tokens = {m: naive_tokens(model, batch, m) for m in sorted(modalities)}
    return {encoder: _embed(model, encoder, tokens) for encoder in encoders}


def naive_tokens(model: EverythingAtOnce, batch: Batch, modality: str) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, D) and their mask (B, N), padding included."""
    x, mask = getattr(batch, modality), getattr(batch, f"{modality}_mask")
    if modality == "audio":
        x, mask = model.audio_features(x, mask, batch.audio_frames)
    x = model.get_submodule(f"{modality}_norm_layer")(model.get_submodule(f"{modality}_token_proj")(x))
    empty = ~mask.any(1)
    x, mask = x.clone(), mask.clone()
    x[empty, 0] = model.fusion.masking_token.to(x.dtype)
    mask[empty, 0] = True
    if model.config.use_positional_emb and model.config.architecture != "per-modality":
        x = x + model.get_parameter(f"{modality}_pos_embed")
    return x, mask


def _embed(model: EverythingAtOnce, encoder: str, tokens: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    modalities = encoder_modalities(encoder)
    if "+" in encoder:
        return _mean_of_units([_embed(model, m, tokens) for m in modalities])
    per_modality = model.config.architecture == "per-modality"
    fusion = model.get_submodule(f"fusion_{encoder}") if per_modality else model.fusion
    assert isinstance(fusion, FusionTransformer)
    x = torch.cat([tokens[m][0] for m in modalities], 1)
    mask = torch.cat([tokens[m][1] for m in modalities], 1)
    if fusion.cls_token is not None:
        x = torch.cat([fusion.cls_token.expand(len(x), -1, -1), x], 1)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
    for block in fusion.blocks:
        assert isinstance(block, Block)
        x = x + _attention(block.attn, block.norm1(x), mask)
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    if fusion.cls_token is not None:
        return _head(model, modalities[0])(x[:, 0])
    outputs = []
    for m, part in zip(modalities, x.split([tokens[m][0].shape[1] for m in modalities], 1), strict=True):
        real = tokens[m][1][..., None]
        outputs.append(_head(model, m)((part * real).sum(1) / real.sum(1)))
    return outputs[0] if len(outputs) == 1 else _mean_of_units(outputs)


def _attention(layer: Attention, x: Tensor, mask: Tensor) -> Tensor:
    heads = layer.num_heads
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))  # (B, H, N, D/H)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
    return layer.proj((weights @ v).transpose(1, 2).flatten(2))


def _head(model: EverythingAtOnce, modality: str) -> nn.Module:
    return model.get_submodule("proj" if hasattr(model, "proj") else f"{modality}_proj")


def _mean_of_units(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([x / x.norm(dim=1, keepdim=True).clamp_min(1e-8) for x in parts]).mean(0)
