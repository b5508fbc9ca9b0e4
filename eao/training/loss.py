"""The combinatorial contrastive loss (Eq. 5 of arXiv 2112.04446)."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor

from eao.config import LossConfig
from eao.errors import ConfigError
from eao.kernels import contrastive_loss
from eao.model import encoder_modalities

# B batch, E embedding

TERMS: dict[str, tuple[str, str]] = {
    "text_video": ("text", "video"),
    "text_audio": ("text", "audio"),
    "video_audio": ("video", "audio"),
    "text_videoaudio": ("text", "video-audio"),
    "video_textaudio": ("video", "text-audio"),
    "audio_textvideo": ("audio", "text-video"),
}
"""The two embeddings that each term pulls together, in the order of the authors' log."""


class CombinatorialLoss:
    """Weighted mean of contrastive losses between every pair of embeddings that has a weight.

    A clip that lacks a modality is left out of the terms that need it, as a positive and as a negative. A term with no
    complete clip in the batch adds nothing but keeps its share of the total weight, as in the original, where it gave
    no gradient (and NaN as its value).

    Example:
        >>> loss = CombinatorialLoss(LossConfig(weights={"text_video": 1}))
        >>> present = {"text": torch.tensor([True]), "video": torch.tensor([True])}
        >>> loss({"text": torch.ones(1, 2), "video": torch.ones(1, 2)}, present)[0].item()
        0.0
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self.weights = {term: weight for term in TERMS if (weight := getattr(config.weights, term))}
        if not self.weights:
            raise ConfigError("every weight of the loss is 0", f"set one of {', '.join(TERMS)} under loss.weights")

    @property
    def encoders(self) -> tuple[str, ...]:
        """The embeddings the loss needs."""
        return tuple(dict.fromkeys(encoder for term in self.weights for encoder in TERMS[term]))

    def active_terms(self, encoders: Container[str]) -> list[str]:
        """The weighted terms of which both embeddings are among `encoders`."""
        return [term for term in self.weights if all(encoder in encoders for encoder in TERMS[term])]

    def __call__(
        self, embeddings: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms.

        Args:
            embeddings: encoder -> (B, E). Without both embeddings a term is inactive and its weight not counted.
            present: modality -> (B,) bool, from `model.nonempty`; best on the CPU, where asking them makes no GPU wait.

        Returns:
            a scalar, and the detached value of each term that had at least one complete clip.

        Raises:
            ConfigError: if the model gives the embeddings of no weighted term.
        """
        active = self.active_terms(embeddings)
        if not active:
            raise ConfigError(
                f"the model gives {', '.join(embeddings)}, and no weighted term of the loss compares two of these",
                "set loss.weights for embeddings this architecture has",
            )
        total = torch.zeros((), device=next(iter(embeddings.values())).device)
        values: dict[str, Tensor] = {}
        for term in active:
            a, b = (embeddings[encoder] for encoder in TERMS[term])
            modalities = {m for encoder in TERMS[term] for m in encoder_modalities(encoder)}
            complete = torch.stack([present[m] for m in modalities]).all(0)
            if not complete.any():
                continue
            if not complete.all():
                rows = complete.nonzero().squeeze(1).to(a.device, non_blocking=True)
                a, b = a[rows], b[rows]
            value = contrastive_loss(a, b, self.config.kind, self.config.temperature)
            total = total + self.weights[term] * value
            values[term] = value.detach()
        return total / sum(self.weights[term] for term in active), values
