"""Triton's `onnxruntime` backend in Python, for servers without the one in C++, such as that of nvidia-pytriton.

It runs a model repository written for NVIDIA's image unchanged, on the CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils
from eao_rows import Rows
from onnxruntime.capi import onnxruntime_pybind11_state as state

_CALLERS_FAULT = (state.InvalidArgument, state.RuntimeException, state.Fail)
"""What shapes that do not fit raise, at the graph's inputs or at a node."""


class TritonPythonModel:
    """See the interface of Triton's Python backend."""

    def initialize(self, args: dict[str, Any]) -> None:
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"]
        path /= config.get("default_model_filename") or "model.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that wait busily would take processor time from the models beside this one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without it int8 sums overflow on processors without VNNI.
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for kind, found in (("input", session.get_inputs()), ("output", session.get_outputs())):
            names, wanted = sorted(x.name for x in found), sorted(x["name"] for x in config[kind])
            if names != wanted:
                raise pb_utils.TritonModelException(f"{path} has the {kind}s {names}, not {wanted}")
        outputs = [x["name"] for x in config["output"]]
        axes = {x.name: len(x.shape) for x in session.get_inputs()}
        self._rows = Rows(axes, outputs, lambda feeds: session.run(outputs, feeds), _CALLERS_FAULT)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self._rows.answer(requests)
