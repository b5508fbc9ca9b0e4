"""Compiling a graph with TensorRT, in this process: the part that may take the process down with it.

Networks are strongly typed: a graph computes in the types it is written in, and no builder flag changes them (TensorRT
11 has no such flags any more). TF32 is switched off, since it would make an fp32 graph compute with 10 bits.

With TensorRT this is unverified on GPU; TensorRT-RTX builds without one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eao.errors import ExportError
from eao.export.tensorrt.api import COMPUTE_CAPABILITIES, TensorRT
from eao.export.tensorrt.profiles import Profile
from eao.export.tensorrt.request import BuildFacts, BuildRequest, Job, TensorFacts
from eao.files import atomic_path

if TYPE_CHECKING:
    import tensorrt

_SHOWN_ERRORS = 3


def compile_engine(api: TensorRT, job: Job) -> BuildFacts:
    """Compile a graph and write the engine to `job.out`.

    Raises:
        ExportError: the graph does not parse, a profile does not fit it, or TensorRT cannot build it.
    """
    start = time.perf_counter()
    trt = api.module
    errors: list[str] = []
    logger: tensorrt.ILogger = make_logger(api, errors)
    try:
        builder: tensorrt.Builder = trt.Builder(logger)
    except Exception as error:  # the binding raises TypeError when the library returns nothing
        raise ExportError(f"{api.flavour} {api.version} cannot start: {_last(errors, str(error))}") from None
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # since TensorRT 11 always on, and ignored
    network: tensorrt.INetworkDefinition = builder.create_network(flags)
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)
    parse_graph(parser, job.graph, errors)  # the parser owns the weights and must outlive the build
    config: tensorrt.IBuilderConfig = builder.create_builder_config()
    configure(api, config, job.request)
    add_profiles(builder, network, config, job)
    cached = attach_timing_cache(api, config, job.timing_cache)
    plan: tensorrt.IHostMemory = builder.build_serialized_network(network, config)
    if plan is None:
        reason = _last(errors, "it gave no reason")
        raise ExportError(f"{api.flavour} {api.version} cannot build {job.graph}: {reason}")
    with atomic_path(job.out) as temporary:
        temporary.write_bytes(plan)
    if job.timing_cache is not None and cached != "none":
        save_timing_cache(config, job.timing_cache)
    return BuildFacts(
        version=api.version,
        inputs=tuple(_describe(network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_describe(network.get_output(i)) for i in range(network.num_outputs)),
        layers=network.num_layers,
        seconds=round(time.perf_counter() - start, 3),
        peak_memory=_peak_memory(),
        timing_cache=cached,
    )


def make_logger(api: TensorRT, errors: list[str], say: Callable[[str], None] = print) -> Any:
    """A logger that passes on what TensorRT says (the worker prints: its output is the log) and keeps the errors."""
    trt = api.module
    failures = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class Messages(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.VERBOSE:
                return
            say(f"[{api.flavour}] {message}")
            if severity in failures:
                errors.append(message)

    return Messages()


def parse_graph(parser: tensorrt.OnnxParser, graph: Path, errors: list[str]) -> None:
    """Read a graph into the parser's network, from its path: only so are weights found that lie beside it.

    Raises:
        ExportError: naming the nodes that TensorRT cannot take, and why.
    """
    if parser.parse_from_file(str(graph)):
        return
    reasons, nodes = [], 0
    for i in range(parser.num_errors):
        error: tensorrt.ParserError = parser.get_error(i)
        code: tensorrt.ErrorCode = error.code()
        name, operator = error.node_name(), error.node_operator()
        nodes += bool(operator)
        where = f"node {name!r} ({operator}): " if operator else ""
        reasons.append(f"{where}{code.name.lower()}: {' '.join(error.desc().split())[:300]}")
    more = f" (and {len(reasons) - _SHOWN_ERRORS} more)" if len(reasons) > _SHOWN_ERRORS else ""
    found = "; ".join(reasons[:_SHOWN_ERRORS]) or _last(errors, "it gave no reason")
    hint = "export this encoder for another engine, or at opset 18" if nodes else "export the encoder again"
    raise ExportError(f"TensorRT cannot parse {graph}: {found}{more}", hint)


def configure(api: TensorRT, config: tensorrt.IBuilderConfig, request: BuildRequest) -> None:
    """Set everything but profiles and timing cache."""
    trt = api.module
    config.clear_flag(trt.BuilderFlag.TF32)
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
    if api.is_rtx:
        config.num_compute_capabilities = len(request.targets)
        for i, target in enumerate(request.targets):
            capability: tensorrt.ComputeCapability = getattr(trt.ComputeCapability, COMPUTE_CAPABILITIES[target])
            if not config.set_compute_capability(capability, i):
                raise ExportError(f"{api.flavour} {api.version} refuses compute capability {target}")
    elif request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def add_profiles(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    job: Job,
) -> None:
    """Give each profile's sizes to the inputs, by the names that the graph gives their axes.

    Raises:
        ExportError: an axis of the graph without sizes, or a profile that TensorRT refuses.
    """
    for sizes in job.request.profiles:
        profile: tensorrt.IOptimizationProfile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor: tensorrt.ITensor = network.get_input(i)
            if all(size >= 0 for size in tensor.shape):
                continue
            ranges = [_sizes(tensor, axis, sizes, job.graph) for axis in range(len(tensor.shape))]
            shapes = [tuple(each[bound] for each in ranges) for bound in range(3)]
            profile.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            text = ", ".join(f"{name} {each}" for name, each in sizes.items())
            raise ExportError(f"TensorRT refuses the profile {text} for {job.graph}")


def _sizes(tensor: tensorrt.ITensor, axis: int, profile: Profile, graph: Path) -> tuple[int, int, int]:
    size = tensor.shape[axis]
    if size >= 0:
        return size, size, size
    name = tensor.get_dimension_name(axis)
    if name not in profile:
        raise ExportError(
            f"the profile has no sizes for the axis {name!r} of {tensor.name} in {graph}",
            f"it has {', '.join(profile)}; make it with the inputs of this encoder",
        )
    return profile[name]


def attach_timing_cache(api: TensorRT, config: tensorrt.IBuilderConfig, path: Path | None) -> str:
    """Reuse measured kernel times. A file of another GPU or version is left aside. Gives the state for `BuildFacts`."""
    if path is None or api.is_rtx:  # TensorRT-RTX has the calls, but measures nothing while it builds
        return "none"
    content = path.read_bytes() if path.is_file() else b""
    cache: tensorrt.ITimingCache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, False):
        return "used" if content else "new"
    cache = config.create_timing_cache(b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise ExportError("TensorRT cannot make a timing cache", "build without one")
    return "renewed"


def save_timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> None:
    """Write the kernel times of this and earlier builds."""
    cache: tensorrt.ITimingCache = config.get_timing_cache()
    content: tensorrt.IHostMemory = cache.serialize()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _describe(tensor: tensorrt.ITensor) -> TensorFacts:
    dtype: tensorrt.DataType = tensor.dtype
    return TensorFacts(name=tensor.name, dtype=dtype.name.lower(), shape=tuple(tensor.shape))


def _peak_memory() -> int:
    """Of this process in bytes. The system's resource usage would count that of the process that started it too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


def _last(errors: list[str], otherwise: str) -> str:
    return " ".join((errors[-1] if errors else otherwise).split())[:500]
