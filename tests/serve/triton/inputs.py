"""Inputs for whatever a bundle holds: names, widths, lengths and encoders are read off it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from eao.embedder import Embedder
from eao.export.encoders import Axis, InputSpec
from eao.export.manifest import load_manifest
from eao.features.extractor import ClipFeatures
from eao.features.spectrogram import log_mel
from eao.serve.triton.schema import read_config

SAMPLES_PER_FRAME = 160
SENTENCES = ["red dog runs", "blue", "it's a cat that sleeps left of the right dog", "dog unknown cat", "right"]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class ServedBundle:
    """A bundle beside the server of its repository.

    Attributes:
        bundle: its folder.
        repository: written from it.
        local: its engines in this process.
    """

    bundle: Path
    repository: Path
    local: Embedder

    def require(self, *encoders: str) -> None:
        """Skip the test if the bundle lacks one."""
        for encoder in encoders:
            if encoder not in self.local.encoders:
                pytest.skip(f"the bundle has no encoder {encoder}")

    def specs(self, encoder: str) -> tuple[InputSpec, ...]:
        """The inputs of an encoder."""
        return load_manifest(self.bundle).specs(encoder)

    def max_rows(self, encoder: str) -> int:
        """The rows of a request, at most."""
        return int(read_config(self.repository / encoder).max_batch_size)

    def feeds(self, encoder: str, rows: int = 1, tokens: int = 4, frames: int = 64) -> Arrays:
        """Random inputs of an encoder's model: of these lengths, or the nearest ones that it takes."""
        rng = np.random.default_rng(rows * 1000 + tokens)
        made = {}
        for spec in self.specs(encoder):
            wanted = frames if spec.name.startswith("audio") else tokens
            shape = (rows, *(_size(axis, wanted) for axis in spec.shape[1:]))
            if spec.name == "audio_mask":
                made[spec.name] = np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (rows, 1))
            elif spec.dtype == "bool":
                made[spec.name] = rng.random(shape) < 0.7
                made[spec.name][:, 0] = True
            elif spec.dtype == "int64":  # how many frames of the spectrogram are real
                made[spec.name] = made["audio_mask"].sum(1)
            elif spec.name == "audio":
                made[spec.name] = rng.uniform(-80, 0, shape).astype(np.float32)
            else:
                made[spec.name] = rng.standard_normal(shape, dtype=np.float32)
        return made

    def changed(self, encoder: str, **changes: Callable[[np.ndarray], np.ndarray]) -> Arrays:
        """A row of random inputs, some of them changed."""
        given = self.feeds(encoder)
        return {**given, **{name: change(given[name]) for name, change in changes.items()}}

    def run(self, encoder: str, given: Arrays) -> np.ndarray:
        """What the engine gives in this process."""
        return self.local.backend.run(encoder, given)  # type: ignore[attr-defined]

    def raw(self, encoder: str, rows: int, windows: float, sound: str = "waveform") -> Arrays:
        """Sentences, and random features and noise, for an encoder's ensemble.

        Args:
            encoder: its name.
            rows: of the request.
            windows: how long clips are, in windows of the model.
            sound: "waveform" or "log_mel".
        """
        rng = np.random.default_rng(rows)
        data, modalities, given = self.local.config.data, encoder.split("-"), {}
        if "text" in modalities:
            given["sentence"] = sentences_of(*(SENTENCES[i % len(SENTENCES)] for i in range(rows)))
        if "video" in modalities:
            shape = (rows, max(1, round(windows * data.video_tokens)))
            for name, width in self._stream_widths().items():
                given[name] = rng.standard_normal((*shape, width), dtype=np.float32)
        if "audio" in modalities:
            samples = round(windows * data.audio_frames * SAMPLES_PER_FRAME)
            waves = (rng.standard_normal((rows, samples)) * 0.1).astype(np.float32)
            given[sound] = waves if sound == "waveform" else np.stack([log_mel(wave) for wave in waves])
        return given

    def expected(self, encoder: str, given: Arrays) -> np.ndarray:
        """Embeddings by the engines in this process, of what an ensemble is given."""
        rows = len(next(iter(given.values())))
        text = [sentence.decode() for sentence in given["sentence"][:, 0]] if "sentence" in given else None
        waves = given.get("waveform")
        spectrograms = given.get("log_mel") if waves is None else [log_mel(wave) for wave in waves]
        streams = [given.get(name) for name in ("video_2d", "video_3d")]
        clips = []
        for i in range(rows):
            video_2d, video_3d = (None if stream is None else stream[i] for stream in streams)
            has_sound = spectrograms is not None and spectrograms[i].shape[-1] > 0
            clips.append(ClipFeatures(video_2d, video_3d, spectrograms[i] if has_sound else None, 1.0))
        batch = self.local.batch(text, None if encoder == "text" else clips, encoder)
        return self.local.backend.encode(batch, encoder)

    def _stream_widths(self) -> dict[str, int]:
        """Each stream of video features and its width."""
        inputs = read_config(self.repository / "prepare-video").input
        widths = {spec.name: int(spec.dims[-1]) for spec in inputs if spec.name.startswith("video_")}
        if -1 in widths.values():  # any that have the right sum
            *others, last = widths
            widths = {**dict.fromkeys(others, 1), last: self.local.config.model.video_dim - len(others)}
        return widths


def sentences_of(*sentences: str) -> np.ndarray:
    """Sentences as a request has them."""
    return np.array([[sentence.encode()] for sentence in sentences], dtype=object)


def _size(axis: int | Axis, wanted: int) -> int:
    if isinstance(axis, int):
        return axis
    size = max(-(-wanted // axis.multiple) * axis.multiple, axis.minimum)
    return size if axis.maximum is None else min(size, axis.maximum)
