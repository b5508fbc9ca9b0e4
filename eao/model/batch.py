"""The tensors a model sees, and the names of modalities and encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# B batch, N tokens, D width of a modality's raw tokens, T spectrogram frames (10 ms each)

MODALITIES = ("text", "video", "audio")
PAIRS = ("text-video", "text-audio", "video-audio")
ENCODERS = (*MODALITIES, *PAIRS, "text-video-audio")
SUMS = ("text+video", "text+audio", "video+audio")
"""Late fusion: the mean of two normalised single-modality embeddings, which the authors evaluate as `t+v`."""


def encoder_modalities(encoder: str) -> tuple[str, ...]:
    """The modalities an encoder reads, in the order text, video, audio.

    Example:
        >>> encoder_modalities("video-audio"), encoder_modalities("text+video")
        (('video', 'audio'), ('text', 'video'))
    """
    return tuple(encoder.replace("+", "-").split("-"))


@dataclass
class Batch:
    """A batch of clips. Any modality may be None; where some clips lack one, their mask is all False.

    Attributes:
        text: (B, N, D) float, word or token vectors, zero padded.
        text_mask: (B, N) bool, True = real token.
        video: (B, N, D) float, frame features, each part L2-normalised; (B, D) for the AVLnet baseline.
        video_mask: (B, N) bool.
        audio: (B, 40, T) float, log-mel spectrogram in dB, zero padded on the right.
        audio_mask: (B, T) bool, at spectrogram-frame resolution.
        audio_frames: (B,) int, number of real frames; -1 = unknown.
        ids: the clips' names, for averaging by id and for reports.
    """

    text: Tensor | None = None
    text_mask: Tensor | None = None
    video: Tensor | None = None
    video_mask: Tensor | None = None
    audio: Tensor | None = None
    audio_mask: Tensor | None = None
    audio_frames: Tensor | None = None
    ids: Sequence[str] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that are given, in the order text, video, audio."""
        return tuple(m for m in MODALITIES if getattr(self, m) is not None)

    @property
    def device(self) -> torch.device:
        return getattr(self, self.modalities[0]).device

    def __len__(self) -> int:
        return len(getattr(self, self.modalities[0])) if self.modalities else 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy with every tensor on `device`."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def __getitem__(self, rows: slice) -> Batch:
        """The clips of `rows` (a slice), as views of the same tensors."""
        return replace(self._map(lambda x: x[rows]), ids=self.ids[rows])

    def only(self, modalities: Sequence[str]) -> Batch:
        """The same clips with every other modality set to None."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name.split("_")[0] in (*modalities, "ids")}
        return Batch(**kept)

    def _map(self, function) -> Batch:  # type: ignore[no-untyped-def]
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ids"}
        mapped = {name: function(x) if x is not None else None for name, x in tensors.items()}
        return Batch(**mapped, ids=self.ids)
