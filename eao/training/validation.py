"""Validation while training: retrieval metrics, and the loss of each batch from the same embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eao.backend import TorchBackend
from eao.config import Config
from eao.data.loader import Loader
from eao.evaluation.metrics import Metrics
from eao.evaluation.run import rank_backend
from eao.model import Batch
from eao.training.loss import CombinatorialLoss


def validate(
    model: nn.Module, config: Config, loss: CombinatorialLoss, loaders: Mapping[str, Loader], device: torch.device
) -> tuple[dict[str, Metrics], dict[str, float]]:
    """Retrieval metrics and the loss on the validation sets. The model is left in eval mode.

    Returns:
        metrics by task, "t2v", or "msrvtt/t2v" where the sets have names; and the mean of the batches' losses as "loss"
        or "msrvtt/loss", without the sets of which no clip is complete.
    """
    results: dict[str, Metrics] = {}
    losses: dict[str, float] = {}
    for name, loader in loaders.items():
        backend = _LossBackend(model, config, loss, device)
        metrics = rank_backend(backend, loader, config.evaluation).metrics()
        results |= {f"{name}/{task}" if name else task: m for task, m in metrics.items()}
        if backend.losses:
            losses[f"{name}/loss" if name else "loss"] = float(np.mean(backend.losses))
    return results, losses


class _LossBackend(TorchBackend):
    """Computes the loss of every batch that it embeds, with fused pairs whether the model trains them or not."""

    def __init__(self, model: nn.Module, config: Config, loss: CombinatorialLoss, device: torch.device) -> None:
        super().__init__(model, config, device)
        self._loss = loss
        self.losses: list[float] = []

    def encode_raw(self, batch: Batch, encoders: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        needed = [e for e in self._loss.encoders if e in self.encoders]
        outputs: dict[str, Any] = super().encode_raw(batch, tuple(dict.fromkeys((*encoders, *needed))))
        present = self.model.nonempty(batch)  # type: ignore[operator]
        value, terms = self._loss({e: torch.from_numpy(outputs[e]) for e in needed}, present)
        if terms:
            self.losses.append(float(value))
        return {encoder: outputs[encoder] for encoder in encoders}
