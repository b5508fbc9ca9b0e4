"""Triton model: a sentence to the token ids that the network of words takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from eao_answers import Arrays, answer, decode
from eao_tokens import TokenIds


class TritonPythonModel:
    """See the interface of Triton's Python backend."""

    def initialize(self, args: dict[str, Any]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        self._tokens = TokenIds(folder / "tokenizer.json", facts)

    def execute(self, requests: list[Any]) -> list[Any]:
        return answer(requests, ["sentence"], ["input_ids", "attention_mask", "text_mask"], self._compute)

    def _compute(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return self._tokens(decode(inputs["sentence"]))
