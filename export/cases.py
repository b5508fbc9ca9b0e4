"""Batches that exercise an encoder: batch sizes, lengths, masks, modalities missing for some clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eao.export.encoders import (
    BATCH,
    SPECTROGRAM_FRAMES,
    TEXT_TOKENS,
    VIDEO_TOKENS,
    Axis,
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
Limits = Mapping[str, tuple[int, int]]
"""The least and the greatest size that an engine takes, by name of the axis."""
_POOL = {"text": 4096, "video": 4096, "audio": 16384}
"""Real tokens (spectrogram frames for audio) that cases are drawn from."""


@dataclass(frozen=True)
class Case:
    """A batch with a name. `alone`: also run each clip by itself."""

    name: str
    batch: Batch
    alone: bool


def parity_cases(
    model: Model, encoder: str, seed: int = 0, clips: Sequence[Batch] = (), limits: Limits | None = None
) -> Iterator[Case]:
    """Every kind of mask at every length in batches of 3, and by turns at one length each in batches of 1 and 8.

    Kinds: "full" (every token real), "partial" (real tokens first, as data sets pad), "holes" (any tokens), and for
    each modality "no <modality>" (missing for the first clip and every second one after it).

    Args:
        model, encoder: whose inputs.
        seed: of what is random.
        clips: real data, whose tokens fill the cases: ranges of an int8 engine hold for such tokens alone. Modalities
            that it lacks are made up, as all of them are without it.
        limits: of an engine; sizes outside are moved inside.
    """
    dynamic = axes(model, encoder)
    pools = {m: pool for m in encoder_modalities(encoder) if (pool := token_pool(clips, m)) is not None}
    kinds = ["full", "partial", "holes", *(f"no {m}" for m in encoder_modalities(encoder))]
    lengths = tuple(LENGTHS) if len(dynamic) > 1 else ("fixed",)
    least, most = (limits or {}).get(BATCH, (1, max(BATCH_SIZES)))
    batches = tuple(dict.fromkeys(min(max(size, least), most) for size in BATCH_SIZES))
    for size in batches:
        for i, kind in enumerate(kinds):
            chosen = lengths if size == 3 else (lengths[(i + size) % len(lengths)],)
            for length in chosen:
                sizes = _sizes(dynamic, length, size, limits or {})
                generator = torch.Generator().manual_seed(seed + 100 * size + i)
                batch = to_batch(model, encoder, example_inputs(model, encoder, sizes, seed=seed + 100 * size + i))
                masked = apply_masks(fill_tokens(batch, pools, generator), kind, generator)
                alone = least == 1 and size == batches[-1] and kind in ("full", "partial")
                yield Case(f"batch {size}, {length}, {kind}", masked, alone)


def _sizes(dynamic: Mapping[str, Axis], length: str, batch: int, limits: Limits) -> dict[str, int]:
    units = {**LENGTHS.get(length, {}), BATCH: batch}
    sizes = {name: axis.size(units[name]) for name, axis in dynamic.items()}
    audio = dynamic.get(SPECTROGRAM_FRAMES)
    if audio is not None and audio.minimum > audio.multiple and length != "short":
        # More frames than the model keeps tokens for, so that they are squeezed.
        sizes[audio.name] = max(sizes[audio.name], audio.minimum * (2 if length == "middle" else 3))
    for name in sizes.keys() & limits.keys():
        least, most = limits[name]
        sizes[name] = min(max(sizes[name], least), most)
    return sizes


def token_pool(clips: Sequence[Batch], modality: str) -> Tensor | None:
    """Real tokens of a modality, one after the other: (P, D), or (P, 40) for audio; None if no clip has any."""
    found: list[Tensor] = []
    for batch in clips:
        values: Tensor | None = getattr(batch, modality)
        if values is None or sum(map(len, found)) >= _POOL[modality]:
            continue
        tokens = values.transpose(1, 2) if modality == "audio" else values.reshape(len(values), -1, values.shape[-1])
        mask: Tensor | None = getattr(batch, f"{modality}_mask")
        found.append(tokens[mask] if mask is not None else tokens.flatten(0, 1))
    pool = torch.cat(found)[: _POOL[modality]] if found else torch.empty(0)
    return pool if len(pool) else None


def fill_tokens(batch: Batch, pools: Mapping[str, Tensor], generator: torch.Generator) -> Batch:
    """A batch of the same shapes whose tokens are those of `token_pool`, in runs that start anywhere."""
    filled = {}
    for modality, pool in pools.items():
        values = getattr(batch, modality)
        length = values.shape[2] if modality == "audio" else values.shape[1]
        start = torch.randint(len(pool), (len(batch), 1), generator=generator)
        tokens = pool[(start + torch.arange(length)) % len(pool)].to(values.dtype)  # (B, N, D)
        filled[modality] = tokens.transpose(1, 2).contiguous() if modality == "audio" else tokens
    return Batch(**{**vars(batch), **filled})


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
