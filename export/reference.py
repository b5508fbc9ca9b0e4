"""What the PyTorch model gives: computed once, and compared with every engine and precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from eao.export.cases import Case, Limits, parity_cases
from eao.export.encoders import Model, evaluating, exportable_encoders, input_names
from eao.model import Batch, encoder_modalities

# B batch, E embedding, Q clips of a data set

CLIPS = "clips"
"""The name of the case that holds the clips of the data set as they are."""


@dataclass(frozen=True)
class Expected:
    """A case, and its embeddings by the model: (B, E) float32, unit norm."""

    case: Case
    embeddings: NDArray[np.float32]


class Reference:
    """The model's embeddings of all cases and of the real clips, each computed when first asked for and then kept.

    Args:
        model: computes in eval mode and is left as it was.
        batches: real clips, in batches: each caption with its clip. Their tokens fill the cases, and rankings are
            compared on them.
        limits: sizes that the engines take, by name of the axis; see `parity_cases`.
        encoders: those that the clips are embedded with, all at once since they share most of the work; by default
            all.
        progress: called with a line before long work.

    Example:
        reference = Reference(model, batches)
        for engine, precision, bundle in ...:
            report = measure_parity(reference, bundle.encode, encoders, precision, engine)
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch] = (),
        limits: Limits | None = None,
        encoders: Sequence[str] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.model = model
        self.batches = tuple(batches)
        self.limits = limits
        self.encoders = tuple(encoders if encoders is not None else exportable_encoders(model))
        self.progress = progress
        self._cases: dict[str, tuple[Expected, ...]] = {}
        self._clips: dict[str, NDArray[np.float32]] | None = None

    def cases(self, encoder: str) -> tuple[Expected, ...]:
        """The cases of an encoder with the model's embeddings."""
        if encoder not in self._cases:
            self._say(f"PyTorch's {encoder} embeddings")
            self._cases[encoder] = tuple(
                Expected(case, embed(self.model, case.batch, [encoder])[encoder])
                for case in parity_cases(self.model, encoder, clips=self.batches, limits=self.limits)
            )
        return self._cases[encoder]

    def clips(self, encoder: str) -> NDArray[np.float32] | None:
        """The model's embeddings of the real clips, (Q, E); None if there are none with all that the encoder reads."""
        if self._clips is None:
            usable = [encoder for encoder in self.encoders if self._has_inputs(encoder)]
            if usable:
                self._say("PyTorch's embeddings of the data set")
            parts = [embed(self.model, batch, usable) for batch in self.batches] if usable else []
            self._clips = {name: np.concatenate([part[name] for part in parts]) for name in usable}
        return self._clips.get(encoder)

    def one_clip(self, encoder: str, case: str, row: int) -> Batch:
        """Row `row` of a case, as a batch of one with only what the encoder reads."""
        batches = self.batches if case == CLIPS else [e.case.batch for e in self.cases(encoder) if e.case.name == case]
        for batch in batches:
            if row < len(batch):
                return batch[row : row + 1].only(encoder_modalities(encoder))
            row -= len(batch)
        raise KeyError(f"case {case!r} of {encoder} has no such row")

    def _has_inputs(self, encoder: str) -> bool:
        needed = [name for name in input_names(self.model, encoder) if name != "audio_frames"]
        return bool(self.batches) and all(getattr(b, name) is not None for b in self.batches for name in needed)

    def _say(self, line: str) -> None:
        if self.progress:
            self.progress(line)


def embed(model: Model, batch: Batch, encoders: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """What the model gives for a batch, by its own forward: encoder -> (B, E) float32, unit norm."""
    needed = {modality for encoder in encoders for modality in encoder_modalities(encoder)}
    with torch.inference_mode(), evaluating(model):
        outputs = model(batch.only(tuple(needed)), list(encoders))
        return {name: F.normalize(outputs[name].float(), dim=-1, eps=1e-8).numpy() for name in encoders}
