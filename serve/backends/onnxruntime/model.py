"""Triton's `onnxruntime` backend in Python, for servers without the one in C++, such as that of nvidia-pytriton.

It runs a model repository written for NVIDIA's image unchanged. Requests that Triton batched become one run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from onnxruntime.capi import onnxruntime_pybind11_state as state

# B rows of all requests together

_CALLERS_FAULT = (state.InvalidArgument, state.RuntimeException, state.Fail)
"""What shapes that do not fit raise, at the graph's inputs or at a node."""


class TritonPythonModel:
    """See the interface of Triton's Python backend."""

    def initialize(self, args: dict[str, Any]) -> None:
        config = json.loads(args["model_config"])
        name = config.get("default_model_filename") or "model.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(_parameter(config, "intra_op_thread_count", "0"))
        # Threads that wait busily would take processor time from the models beside this one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / name
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        wanted = {given["name"] for given in config["input"]}
        if {x.name for x in inputs} != wanted:
            raise pb_utils.TritonModelException(f"{path} takes {[x.name for x in inputs]}, not {sorted(wanted)}")
        self._outputs = [given["name"] for given in config["output"]]
        missing = set(self._outputs) - {x.name for x in outputs}
        if missing:
            raise pb_utils.TritonModelException(f"{path} has no output {missing.pop()!r}")
        # Triton shows an input of no axis but the batch as (B, 1).
        self._axes = {x.name: len(x.shape) for x in inputs}

    def execute(self, requests: list[Any]) -> list[Any]:
        feeds = [self._feeds(request) for request in requests]
        try:
            return self._split(self._run(feeds), feeds)
        except _CALLERS_FAULT as error:
            if len(requests) == 1:
                return [_fault(error)]
        # One request that does not fit must not take those that came with it.
        return [self._alone(feed) for feed in feeds]

    def _feeds(self, request: Any) -> dict[str, np.ndarray]:
        arrays = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._axes}
        return {name: x.reshape(x.shape[: self._axes[name]]) for name, x in arrays.items()}

    def _run(self, feeds: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
        together = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._axes}
        return self._session.run(self._outputs, together)

    def _alone(self, feed: dict[str, np.ndarray]) -> Any:
        try:
            return self._split(self._run([feed]), [feed])[0]
        except _CALLERS_FAULT as error:
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


def _parameter(config: dict[str, Any], name: str, default: str) -> str:
    return config.get("parameters", {}).get(name, {}).get("string_value", default)


def _fault(error: Exception) -> Any:
    message = " ".join(str(error).split())[:300]
    return pb_utils.InferenceResponse(
        output_tensors=[], error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
    )
