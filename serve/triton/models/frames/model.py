"""Triton model: rows of frame features to video tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from eao_answers import Arrays, answer
from eao_sampling import create_video


class TritonPythonModel:
    """See the interface of Triton's Python backend."""

    def initialize(self, args: dict[str, Any]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        self._facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))

    def execute(self, requests: list[Any]) -> list[Any]:
        return answer(requests, self._facts["streams"], self._facts["outputs"], self._compute)

    def _compute(self, inputs: Arrays) -> dict[str, np.ndarray]:
        streams = [inputs[name] for name in self._facts["streams"]]
        width = sum(x.shape[2] for x in streams)
        if width != self._facts["width"]:
            raise ValueError(f"the frame features are {width} wide, but the model takes {self._facts['width']}")
        for name, x in zip(self._facts["streams"], streams, strict=True):
            if not np.isfinite(x).all():
                raise ValueError(f"{name} has values that are not finite")
        clips = [
            create_video(rows, self._facts["tokens"], self._facts["sampling"]) for rows in zip(*streams, strict=True)
        ]
        return {"video": np.stack([x for x, _ in clips]), "video_mask": np.stack([mask for _, mask in clips])}
