"""The runtimes engines are compiled for: which precisions each offers, whether it runs here, how it is opened."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from eao import probes
from eao.errors import ExportError
from eao.export.encoders import InputSpec
from eao.export.manifest import EngineEntry, EngineName, Precision

# B batch, E embedding

ENGINES: tuple[str, ...] = get_args(EngineName)
PRECISIONS: tuple[str, ...] = get_args(Precision)
ALIASES = {"onnx": "onnxruntime", "trt": "tensorrt", "trt-rtx": "tensorrt-rtx"}

OFFERED: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("fp32", "fp16", "bf16", "int8"),
    # Not bf16: of graphs with bfloat16 convolutions OpenVINO (2026.4) computes wrong numbers on a CPU, cosine 0.85.
    "openvino": ("fp32", "fp16", "int8", "int8-weights", "int8-nncf"),
    "tensorrt": ("fp32", "fp16", "bf16", "int8", "fp8"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16", "int8", "fp8"),
}
"""What each runtime can be given. Whether it pays on a machine, `eao bench` says."""
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
"""Engine -> the module of its runtime."""


class Session(Protocol):
    """An engine that is ready to run."""

    def run(self, feeds: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """Embeddings (B, E), unit norm, for arrays by the names of the inputs. Safe to call from several threads."""


class OnnxSession:
    """An ONNX graph in onnxruntime; see `open_session`."""

    def __init__(self, path: str | Path, threads: int | None = None, device: str = "cpu") -> None:
        from eao.export.session import open_session

        self.session = open_session(path, threads, device)
        self.output = self.session.get_outputs()[0].name

    def run(self, feeds: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """Embeddings (B, E) float32, for arrays by the names of the inputs."""
        return self.session.run([self.output], dict(feeds))[0]


def engine_name(name: str) -> str:
    """The full name of an engine, from that or its short form.

    Raises:
        ExportError: there is no such engine.
    """
    full = ALIASES.get(name, name)
    if full not in ENGINES:
        short = {long: alias for alias, long in ALIASES.items()}
        raise ExportError(
            f"there is no engine {name!r}", f"choose from {', '.join(short.get(engine, engine) for engine in ENGINES)}"
        )
    return full


def unusable(engine: str, device: str = "cpu", precision: str = "fp32") -> str | None:
    """Why a runtime cannot run on this machine, or None.

    Args:
        engine: full name.
        device: "cpu" or "cuda".
        precision: of the engine.
    """
    if importlib.util.find_spec(PACKAGES[engine]) is None:
        return f"the package {PACKAGES[engine]} is not installed"
    # The runner needs no torch, so that it does not matter whether this one was built for CUDA.
    if engine.startswith("tensorrt") and not probes.has_nvidia_device():
        return "it needs an NVIDIA GPU"
    if engine == "onnxruntime" and precision == "bf16" and device == "cpu":
        return "onnxruntime has no bfloat16 products on the CPU"
    if engine == "openvino" and device != "cpu":
        return "it is used on the CPU only"
    return None


def unproven(entry: EngineEntry) -> str | None:
    """Why the parity of an engine, as it was measured, says nothing about this machine, or None."""
    if entry.engine != "openvino" or entry.precision not in ("int8", "int8-nncf"):
        return None
    if entry.parity is None or not entry.parity.exact_int8 or probes.has_exact_int8():
        return None
    return "its parity was measured on a CPU with VNNI, and on this one, without, int8 sums overflow: export it here"


def open_engine(
    folder: Path, entry: EngineEntry, specs: Sequence[InputSpec], threads: int | None = None, device: str = "cpu"
) -> Session:
    """Open an engine of a bundle.

    Args:
        folder: of the bundle.
        entry: the engine's, whose files were checked.
        specs: the inputs of its encoder.
        threads: of one run; by default as many as the machine has cores.
        device: "cpu" or "cuda", for onnxruntime.

    Raises:
        ExportError: the runtime is missing, or refuses the engine.
        MissingDependencyError: the runtime is not installed.
    """
    path = folder / entry.files[0].file
    if entry.engine == "onnxruntime":
        return OnnxSession(path, threads, device)
    if entry.engine == "openvino":
        from eao.export.openvino import OpenVINOSession

        return OpenVINOSession(path, threads)
    from eao.export.tensorrt.cache import engine_cache
    from eao.export.tensorrt.deferred import build_deferred
    from eao.export.tensorrt.runner import TensorRTSession

    number = int(device.partition(":")[2] or 0)
    if entry.deferred:
        path = build_deferred(path, number).path
    # TensorRT-RTX finishes compiling on the GPU; what comes of it is kept for the next process.
    kernels = engine_cache() / f"{entry.files[0].sha256[:32]}.kernels" if entry.engine == "tensorrt-rtx" else None
    return TensorRTSession(
        path, specs, entry.engine, number, runtime_cache=kernels, version_compatible=entry.version_compatible
    )
