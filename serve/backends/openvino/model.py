"""Triton's `openvino` backend in Python, for servers without the one in C++, such as that of nvidia-pytriton.

It runs a model repository written for NVIDIA's image unchanged. Requests that Triton batched become one run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import triton_python_backend_utils as pb_utils

# B rows of all requests together


class TritonPythonModel:
    """See the interface of Triton's Python backend."""

    def initialize(self, args: dict[str, Any]) -> None:
        config = json.loads(args["model_config"])
        name = config.get("default_model_filename") or "model.xml"
        properties: dict[str, Any] = {
            # On processors with narrower units it would round to bfloat16 on its own.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        path = Path(args["model_repository"]) / args["model_version"] / name
        self._compiled = openvino.Core().compile_model(str(path), "CPU", properties)
        self._request = self._compiled.create_infer_request()
        self._outputs = [given["name"] for given in config["output"]]
        # Triton shows an input of no axis but the batch as (B, 1).
        self._axes = {
            given["name"]: len(self._compiled.input(given["name"]).partial_shape) for given in config["input"]
        }

    def execute(self, requests: list[Any]) -> list[Any]:
        feeds = [self._feeds(request) for request in requests]
        try:
            return self._split(self._run(feeds), feeds)
        except RuntimeError as error:  # shapes that do not fit
            if len(requests) == 1:
                return [_fault(error)]
        # One request that does not fit must not take those that came with it.
        return [self._alone(feed) for feed in feeds]

    def _feeds(self, request: Any) -> dict[str, np.ndarray]:
        arrays = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._axes}
        return {name: x.reshape(x.shape[: self._axes[name]]) for name, x in arrays.items()}

    def _run(self, feeds: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
        together = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._axes}
        results = self._request.infer(together, share_inputs=True, share_outputs=False)
        return [results[self._compiled.output(name)] for name in self._outputs]

    def _alone(self, feed: dict[str, np.ndarray]) -> Any:
        try:
            return self._split(self._run([feed]), [feed])[0]
        except RuntimeError as error:
            return _fault(error)

    def _split(self, outputs: list[np.ndarray], feeds: list[dict[str, np.ndarray]]) -> list[Any]:
        sizes = [len(next(iter(feed.values()))) for feed in feeds]
        parts = [np.split(x, np.cumsum(sizes)[:-1]) for x in outputs]
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor(name, x) for name, x in zip(self._outputs, row, strict=True)]
            )
            for row in zip(*parts, strict=True)
        ]


def _fault(error: Exception) -> Any:
    message = " ".join(str(error).split())[:300]
    return pb_utils.InferenceResponse(
        output_tensors=[], error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
    )
