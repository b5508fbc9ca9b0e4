"""What computes embeddings of batches: the PyTorch model here, a bundle of engines in `eao.export.runtime`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eao.config import Config, TextConfig
from eao.data.text import TextEncoder, build_text_encoder
from eao.evaluation.metrics import unit_norm
from eao.model.batch import Batch
from eao.model.weights import hash_weights

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures

# B rows, E embedding

Floats = NDArray[np.float32]


class Backend(Protocol):
    """What computes embeddings. `TorchBackend` and `eao.export.runtime.Bundle` are backends."""

    @property
    def config(self) -> Config:
        """The experiment the model comes from."""

    @property
    def encoders(self) -> tuple[str, ...]:
        """The encoders it offers."""

    def encode(self, batch: Batch, encoder: str) -> Floats:
        """(B, E) float32, unit norm."""

    def text_encoder(self, config: TextConfig) -> TextEncoder:
        """The encoder of words that a configuration names. Files that came with the model and were changed since are
        refused."""


@runtime_checkable
class SentenceBackend(Protocol):
    """A backend that takes sentences as they are, such as a server that holds the text encoder."""

    def encode_sentences(
        self, sentences: Sequence[str], clips: Sequence[ClipFeatures] | None, encoder: str
    ) -> Floats | None:
        """(B, E) float32, unit norm, of sentences alone or each with a clip; None if it wants tensors after all."""


class TorchBackend:
    """The PyTorch model as a backend.

    Args:
        model: from `eao.model.build_model`; it is moved to `device`, and put into eval mode by every call.
        config: the experiment.
        device: where it runs.
    """

    def __init__(self, model: nn.Module, config: Config, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.config = config

    @property
    def encoders(self) -> tuple[str, ...]:
        return tuple(self.model.encoders)  # type: ignore[arg-type]

    def encode(self, batch: Batch, encoder: str) -> Floats:
        """(B, E) float32, unit norm."""
        return unit_norm(self.encode_raw(batch, [encoder])[encoder])

    def text_encoder(self, config: TextConfig) -> TextEncoder:
        """As `eao.data.text.build_text_encoder`: a checkpoint brings none of its own."""
        return build_text_encoder(config)

    def encode_raw(self, batch: Batch, encoders: Sequence[str]) -> dict[str, Floats]:
        """The model's own outputs, not normalised: encoder -> (B, E) float32. All are computed in one pass."""
        self.model.eval()
        with torch.no_grad():
            outputs = self.model(batch.to(self.device), encoders)
        return {encoder: x.float().cpu().numpy() for encoder, x in outputs.items()}

    @functools.cached_property
    def model_hash(self) -> str:
        """SHA-256 of the weights, whatever file they came from."""
        return hash_weights(self.model)
