"""Triton model: a waveform or its log-mel spectrogram to the audio that the encoders take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from eao_answers import Arrays, answer
from eao_spectrogram import create_audio, log_mel


class TritonPythonModel:
    """See the interface of Triton's Python backend."""

    def initialize(self, args: dict[str, Any]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        self._facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        with np.load(folder / "mel.npz", allow_pickle=False) as stored:
            self._window, self._basis = stored["window"], stored["basis"]

    def execute(self, requests: list[Any]) -> list[Any]:
        return answer(requests, ["waveform", "log_mel"], self._facts["outputs"], self._compute)

    def _compute(self, inputs: Arrays) -> dict[str, np.ndarray]:
        if len(inputs) != 1:
            raise ValueError("give either waveform or log_mel; a clip without sound has a log_mel of no frames")
        name, given = next(iter(inputs.items()))
        if not np.isfinite(given).all():
            raise ValueError(f"{name} has values that are not finite")
        spectrograms = [log_mel(x, self._window, self._basis) if name == "waveform" else x for x in given]
        clips = [create_audio(x, self._facts["frames"]) for x in spectrograms]
        return {
            "audio": np.stack([audio for audio, _, _ in clips]),
            "audio_mask": np.stack([mask for _, mask, _ in clips]),
            "audio_frames": np.array([[frames] for _, _, frames in clips], dtype=np.int64),
        }
