"""An engine file as it is read on the target: loaded, compared with its encoder, its profiles read back.

Unverified on GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eao.errors import ExportError
from eao.export.tensorrt.api import TensorRT
from eao.export.tensorrt.compile import make_logger
from eao.export.tensorrt.profiles import AxisRange, Profile
from eao.files import atomic_path

if TYPE_CHECKING:
    import tensorrt

    from eao.export.encoders import InputSpec

log = logging.getLogger(__name__)

_DTYPES = {"float32": "FLOAT", "bool": "BOOL", "int64": "INT64"}


def load_engine(api: TensorRT, path: Path, version_compatible: bool, errors: list[str]) -> tuple[Any, Any]:
    """The runtime, which must outlive the engine, and the engine. What TensorRT complains of goes to `errors`.

    Raises:
        ExportError: the file is missing, or the engine is of another GPU or version.
    """
    trt = api.module
    if not path.is_file():
        raise ExportError(f"{path} does not exist", "build the engine again")
    logger: tensorrt.ILogger = make_logger(api, errors, log.debug)
    runtime: tensorrt.Runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = version_compatible
    engine: tensorrt.ICudaEngine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        reason = " ".join(errors[-1].split())[:300] if errors else "it gives no reason"
        raise ExportError(
            f"{api.flavour} {api.version} cannot load {path}: {reason}",
            "it was built for another GPU or version: build it again on this machine, with --engine trt",
        )
    return runtime, engine


def check_tensors(api: TensorRT, engine: tensorrt.ICudaEngine, path: Path, specs: Sequence[InputSpec]) -> str:
    """Compare the tensors of an engine with the inputs of its encoder.

    Returns:
        The name of the output.

    Raises:
        ExportError: the engine is of another encoder, or of another version of this package.
    """
    trt = api.module
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
    inputs = sorted(set(names) - set(outputs))
    if inputs != sorted(spec.name for spec in specs) or len(outputs) != 1:
        raise ExportError(f"{path} is no engine of this encoder: its tensors are {', '.join(names)}", "build it again")
    for name, dtype in [*((spec.name, spec.dtype) for spec in specs), (outputs[0], "float32")]:
        found: tensorrt.DataType = engine.get_tensor_dtype(name)
        if found != getattr(trt.DataType, _DTYPES[dtype]):
            raise ExportError(
                f"{path} has {name} as {found.name}, not {dtype}", "build it from a graph of this version"
            )
    return outputs[0]


def read_profiles(engine: tensorrt.ICudaEngine, specs: Sequence[InputSpec]) -> tuple[Profile, ...]:
    """The sizes that an engine was built for, by profile and axis."""
    profiles = []
    for index in range(engine.num_optimization_profiles):
        profile: Profile = {}
        for spec in specs:
            bounds = [tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, index)]
            for axis, *sizes in zip(spec.shape, *bounds, strict=True):
                if not isinstance(axis, int):
                    profile[axis.name] = AxisRange(*sizes)
        profiles.append(profile)
    return tuple(profiles)


class RuntimeCache:
    """How contexts of TensorRT-RTX run, and the kernels it compiled for this GPU; nothing for TensorRT."""

    def __init__(self, api: TensorRT, engine: tensorrt.ICudaEngine, graphs: bool, path: str | Path | None) -> None:
        self.config: Any = None
        self._cache: Any = None
        self._path = Path(path) if path is not None else None
        trt = api.module
        if api.is_rtx:
            config: tensorrt.IRuntimeConfig = engine.create_runtime_config()
            if graphs:
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if self._path is not None:
                cache: tensorrt.IRuntimeCache = config.create_runtime_cache()
                if self._path.is_file() and not cache.deserialize(self._path.read_bytes()):
                    log.warning("%s is of another GPU, driver or version: kernels are compiled anew", self._path)
                config.set_runtime_cache(cache)
                self._cache = cache
            self.config = config

    def save(self) -> None:
        """Write what has been compiled so far."""
        if self._cache is not None and self._path is not None:
            with atomic_path(self._path) as temporary:
                temporary.write_bytes(self._cache.serialize())
