"""Augmentation of features: for data sets so small that a model would learn their items by heart."""

from __future__ import annotations

from dataclasses import replace

import torch

from eao.model import Batch


def augment(batch: Batch, noise: float, token_dropout: float) -> Batch:
    """The batch with noise on its text and video features and with some tokens left out.

    Args:
        batch: left unchanged.
        noise: standard deviation of the noise as a share of the row's own root mean square.
        token_dropout: probability of masking a real token of text, video (each token) or audio. One real token of a
            modality that has any is always kept.
    """
    batch = replace(batch)
    if noise:
        for modality in ("text", "video"):
            x = getattr(batch, modality)
            if x is not None:
                scale = x.square().mean(-1, keepdim=True).sqrt() * noise
                setattr(batch, modality, x + scale * torch.randn_like(x))
    if token_dropout:
        for modality in ("text", "video"):
            mask = getattr(batch, f"{modality}_mask")
            if mask is not None:
                score = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1.0)
                best = score == score.amax(1, keepdim=True)
                setattr(batch, f"{modality}_mask", mask & ((score >= token_dropout) | best))
    return batch
