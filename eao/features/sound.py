"""Gathering the decoded sound of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eao.errors import MediaError
from eao.features.container import LATE_AUDIO

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

SAMPLE_RATE = 16_000
"""Hz, of all sound after decoding."""


class Sound:
    """Gathers decoded sound as mono 16 kHz float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[NDArray[np.float32]] = []
        self.resampler: Any = None
        self.start: float | None = None

    def add(self, frame: AudioFrame) -> None:
        """Take the next frame."""
        if self.start is None:
            self.start = frame.time if frame.time is not None else 0.0
        frame.pts = None  # the resampler counts samples itself
        if self.resampler is None:
            self.resampler = self._new_resampler()
        try:
            resampled = self.resampler.resample(frame)
        except ValueError:  # the stream changed its rate or layout
            self._flush()
            self.resampler = self._new_resampler()
            resampled = self.resampler.resample(frame)
        self._append(resampled)

    def finish(self, origin: float | None) -> NDArray[np.float32] | None:
        """All samples, after silence if the sound starts later than `origin` seconds; None if there are none."""
        if self.resampler is None:
            return None
        self._flush()
        samples = np.concatenate(self.parts) if self.parts else np.zeros(0, np.float32)
        late = (self.start or 0.0) - origin if origin is not None else 0.0
        if late > LATE_AUDIO:
            samples = np.concatenate([np.zeros(round(late * SAMPLE_RATE), np.float32), samples])
        # A damaged stream may decode to infinities, which would spoil the whole spectrogram.
        if not np.isfinite(samples).all():
            raise MediaError(f"{self.path}: its sound decodes to values that are no numbers", "encode it again")
        return samples if samples.size else None

    def _new_resampler(self) -> Any:
        from av.audio.resampler import AudioResampler

        return AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)

    def _flush(self) -> None:
        self._append(self.resampler.resample(None))

    def _append(self, frames: list[AudioFrame]) -> None:
        self.parts.extend(frame.to_ndarray().reshape(-1).astype(np.float32, copy=False) for frame in frames)
