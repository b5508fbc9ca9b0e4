"""Running a feature network as an engine: an exported graph under onnxruntime or OpenVINO instead of PyTorch.

`eao export-backbone` writes such graphs. They take frames as uint8 and hold everything from there to the features.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eao.errors import CheckpointError, missing_dependency

if TYPE_CHECKING:
    import openvino

FRAMES = "frames"
"""Name of the graph's input."""
ENGINES = {".onnx": "onnxruntime", ".xml": "openvino"}
"""Suffix of the file -> what runs it."""

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def open_engine(path: str | Path, frame_shape: Sequence[int | None], width: int, device: str = "cpu") -> Run:
    """A function from frames to rows that an exported network computes.

    Threads may share it. On a CPU each call is computed on one core, so that calls from several threads do not get in
    each other's way, and rows do not depend on the number of cores.

    Args:
        path: .onnx, run by onnxruntime on `device`, or .xml with its .bin, run by OpenVINO on the CPU.
        frame_shape: what the frames of one row are; None for a size that may vary.
        width: of a row.
        device: "cpu" or "cuda", with a number or without. CUDA is unverified on GPU.

    Raises:
        CheckpointError: the file is missing or damaged, or is an engine of another network.
        MissingDependencyError: the runtime is not installed, or not for that device.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", "write it with eao export-backbone")
    run, given = _open_openvino(path) if path.suffix == ".xml" else _open_onnx(path, device)
    fits = len(given) == len(frame_shape) and all(
        wanted is None or wanted == size for wanted, size in zip(frame_shape, given, strict=True)
    )
    sizes = [1, *(32 if size is None else size for size in frame_shape)]
    if not fits or run(np.zeros(sizes, np.uint8)).shape != (1, width):
        shown = " x ".join("?" if size is None else str(size) for size in frame_shape)
        raise CheckpointError(
            f"{path} is an engine of another network: it does not make {width} numbers of {shown}",
            "give the one that was exported for this backbone",
        )
    return run


def _open_onnx(path: Path, device: str) -> tuple[Run, list[Any]]:
    """What runs the graph, and the sizes of a row's frames: numbers, or names of those that vary."""
    try:
        import onnxruntime
    except ImportError:
        raise missing_dependency("onnxruntime", "cpu", f"running {path}") from None
    kind, _, number = device.partition(":")
    provider = "CUDAExecutionProvider" if kind == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise missing_dependency("onnxruntime-gpu", "gpu", f"running {path} on {device}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Without it int8 sums overflow on CPUs without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    providers = [(provider, {"device_id": int(number or 0)} if kind == "cuda" else {}), ("CPUExecutionProvider", {})]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers[: 1 + (kind == "cuda")])
    except Exception as error:  # onnxruntime's exception classes are not public
        raise _damaged(path, "onnxruntime", error) from None
    if session.get_providers()[0] != provider:
        raise missing_dependency("onnxruntime-gpu", "gpu", f"running {path} on {device}")
    given = session.get_inputs()
    if [value.name for value in given] != [FRAMES] or given[0].type != "tensor(uint8)":
        raise CheckpointError(f"{path} does not take frames", "write it with eao export-backbone")

    def run(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(session.run(None, {FRAMES: frames})[0], dtype=np.float32)

    return run, given[0].shape[1:]


def _open_openvino(path: Path) -> tuple[Run, list[Any]]:
    """As `_open_onnx`."""
    cores = os.cpu_count() or 1
    properties = {
        # On processors with narrower units it would round to bfloat16 on its own.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": cores,
        "NUM_STREAMS": cores,
    }
    core = openvino_core(f"running {path}")
    try:
        compiled = core.compile_model(str(path), "CPU", properties)
        (frames_input,) = compiled.inputs
    except Exception as error:  # RuntimeError and others, by version
        raise _damaged(path, "OpenVINO", error) from None
    if frames_input.get_any_name() != FRAMES or frames_input.element_type.get_type_name() != "u8":
        raise CheckpointError(f"{path} does not take frames", "write it with eao export-backbone")
    requests = threading.local()

    def run(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        results = requests.own.infer({FRAMES: frames}, share_inputs=True, share_outputs=False)
        return np.asarray(results[compiled.output(0)], dtype=np.float32)

    shape = [size.get_length() if size.is_static else str(size) for size in frames_input.partial_shape]
    return run, shape[1:]


def openvino_core(purpose: str) -> openvino.Core:
    """OpenVINO's runtime, one for the process and never given up.

    Its CPU plugin gives the calling thread another stack for signal handlers, and unmaps that when the last runtime
    goes: the next signal that Python handles would end the process (2026.4).

    Args:
        purpose: what for, in the message where it is not installed.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    try:
        import openvino  # noqa: F401
    except ImportError:
        raise missing_dependency("openvino", "openvino", purpose) from None
    return _core()


@functools.cache
def _core() -> openvino.Core:
    import openvino

    return openvino.Core()


def _damaged(path: Path, runtime: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{runtime} cannot load {path}: {' '.join(str(error).split())[:300]}", "write it again with eao export-backbone"
    )
