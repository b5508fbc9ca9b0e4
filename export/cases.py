"""Made-up batches that exercise an encoder: batch sizes, lengths, masks, modalities missing for some clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eao.export.encoders import (
    BATCH,
    SPECTROGRAM_FRAMES,
    TEXT_TOKENS,
    VIDEO_TOKENS,
    Model,
    axes,
    example_inputs,
    to_batch,
)
from eao.model import Batch, encoder_modalities

# B batch, N tokens, T spectrogram frames

BATCH_SIZES = (1, 3, 8)
LENGTHS = {
    "short": {TEXT_TOKENS: 1, VIDEO_TOKENS: 1, SPECTROGRAM_FRAMES: 1},
    "middle": {TEXT_TOKENS: 9, VIDEO_TOKENS: 12, SPECTROGRAM_FRAMES: 7},
    "long": {TEXT_TOKENS: 30, VIDEO_TOKENS: 48, SPECTROGRAM_FRAMES: 16},
}
"""In tokens, and in steps of the audio network's stride."""


@dataclass(frozen=True)
class Case:
    """A batch with a name. `alone`: also run each clip by itself."""

    name: str
    batch: Batch
    alone: bool


def parity_cases(model: Model, encoder: str, seed: int = 0) -> Iterator[Case]:
    """Every kind of mask at every length in batches of 3, and by turns at one length each in batches of 1 and 8.

    Kinds: "full" (every token real), "partial" (real tokens first, as data sets pad), "holes" (any tokens), and for
    each modality "no <modality>" (missing for the first clip and every second one after it).
    """
    dynamic = axes(model, encoder)
    kinds = ["full", "partial", "holes", *(f"no {m}" for m in encoder_modalities(encoder))]
    lengths = tuple(LENGTHS) if len(dynamic) > 1 else ("fixed",)
    for size in BATCH_SIZES:
        for i, kind in enumerate(kinds):
            chosen = lengths if size == 3 else (lengths[(i + size) % len(lengths)],)
            for length in chosen:
                units = {**LENGTHS.get(length, {}), BATCH: size}
                sizes = {name: axis.size(units[name]) for name, axis in dynamic.items()}
                audio = dynamic.get(SPECTROGRAM_FRAMES)
                if audio is not None and audio.minimum > audio.multiple and length != "short":
                    # More frames than the model keeps tokens for, so that they are squeezed.
                    sizes[audio.name] = max(sizes[audio.name], audio.minimum * (2 if length == "middle" else 3))
                generator = torch.Generator().manual_seed(seed + 100 * size + i)
                batch = to_batch(model, encoder, example_inputs(model, encoder, sizes, seed=seed + 100 * size + i))
                masked = apply_masks(batch, kind, generator)
                yield Case(f"batch {size}, {length}, {kind}", masked, alone=size == 8 and kind in ("full", "partial"))


def apply_masks(batch: Batch, kind: str, generator: torch.Generator) -> Batch:
    """A copy of a batch whose tokens are all real, with masks of a kind of `parity_cases`."""
    changed = {}
    for modality in batch.modalities:
        values = getattr(batch, modality)
        length = values.shape[2] if modality == "audio" else values.shape[1]
        mask = token_mask(len(batch), length, kind, modality, generator)
        if kind != "holes":  # padding is zero, as in data sets; in holes it stays, and must not matter
            values = values * (mask[:, None] if modality == "audio" else mask[..., None])
        changed[modality] = values
        if getattr(batch, f"{modality}_mask") is not None:
            changed[f"{modality}_mask"] = mask
        if modality == "audio" and batch.audio_frames is not None:
            changed["audio_frames"] = mask.sum(1)
    return Batch(**changed)


def token_mask(clips: int, length: int, kind: str, modality: str, generator: torch.Generator) -> Tensor:
    """(clips, length) bool; see `parity_cases`."""
    position = torch.arange(length)
    if kind == "holes":
        return torch.rand(clips, length, generator=generator) < 0.5
    if kind == f"no {modality}":
        return (torch.arange(clips) % 2 == 1)[:, None] & (position >= 0)
    if kind == "partial":
        real = torch.randint(1, length + 1, (clips, 1), generator=generator)
        return position < real
    return torch.ones(clips, length, dtype=torch.bool)
