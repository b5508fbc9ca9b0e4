"""Triton's `openvino` backend in Python, for servers without the one in C++, such as that of nvidia-pytriton.

It runs a model repository written for NVIDIA's image unchanged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openvino
from eao_rows import Arrays, Rows


class TritonPythonModel:
    """See the interface of Triton's Python backend."""

    def initialize(self, args: dict[str, Any]) -> None:
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"]
        path /= config.get("default_model_filename") or "model.xml"
        # On processors with narrower units it would round to bfloat16 on its own.
        properties = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self._compiled = openvino.Core().compile_model(str(path), "CPU", properties)
        self._request = self._compiled.create_infer_request()
        self._outputs = [x["name"] for x in config["output"]]
        axes = {x["name"]: len(self._compiled.input(x["name"]).partial_shape) for x in config["input"]}
        # Of shapes that do not fit it says no more than RuntimeError.
        self._rows = Rows(axes, self._outputs, self._run, (RuntimeError,))

    def execute(self, requests: list[Any]) -> list[Any]:
        return self._rows.answer(requests)

    def _run(self, feeds: Arrays) -> list[Any]:
        results = self._request.infer(feeds, share_inputs=True, share_outputs=False)
        return [results[self._compiled.output(name)] for name in self._outputs]
