"""Opening onnxruntime sessions on the device that was asked for, or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eao.errors import ExportError, install_extra, missing_dependency

if TYPE_CHECKING:
    import onnxruntime

    from eao.export.encoders import InputSpec
    from eao.export.tensorrt.profiles import Profile

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS = {"cpu": (CPU,), "cuda": (CUDA, CPU), "tensorrt": (TENSORRT, CUDA, CPU)}
"""Device -> execution providers, most wanted first. Nodes that one cannot run go to the next; sizes and shapes always
go to the CPU."""


def open_session(
    path: str | Path,
    threads: int | None = None,
    device: str = "cpu",
    spinning: bool = False,
    profile: Profile | None = None,
    specs: Sequence[InputSpec] = (),
    engine_cache: str | Path | None = None,
) -> onnxruntime.InferenceSession:
    """An onnxruntime session for a graph.

    Devices other than the CPU are unverified on GPU.

    Args:
        path: the .onnx file.
        threads: that one run uses; by default as many as the machine has cores.
        device: "cpu", "cuda" or "tensorrt", the last two with the number of a device, as "cuda:1". onnxruntime falls
            back to the CPU silently; here that is an error.
        spinning: let threads of onnxruntime wait busily for the next piece of work. With two threads on an idle machine
            runs took 6 to 19 % less time (most at batch 1); it costs processor time that others could use.
        profile: "tensorrt" only: the sizes its engine is built for. Without it, it is built anew whenever a size grows.
        specs: with `profile`, the inputs of the graph.
        engine_cache: "tensorrt" only: the folder that keeps engines from process to process; by default that of
            engines built on first use.

    Raises:
        ExportError: the file is missing or damaged, or the device cannot be used.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing_dependency("onnxruntime", "cpu", "running a bundle") from None
    kind, number = _parse_device(device)
    wanted = PROVIDERS[kind]
    if wanted[0] not in onnxruntime.get_available_providers():
        raise ExportError(
            f"this onnxruntime has no {wanted[0]}",
            f"pip uninstall onnxruntime; {install_extra('gpu')}, on a GPU machine",
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    # Processors without VNNI add int8 products in 16 bits, where they overflow. This makes onnxruntime store weights
    # without a sign there, for which it has exact sums; elsewhere it changes nothing.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not Path(path).is_file():
        raise ExportError(f"{path} does not exist", "export the bundle again")
    settings: dict[str, dict[str, Any]] = {CUDA: {"device_id": number}}
    if kind == "tensorrt":
        settings[TENSORRT] = {"device_id": number, **tensorrt_options(profile, specs, engine_cache)}
        # onnxruntime makes the last folder of a path only.
        Path(settings[TENSORRT]["trt_engine_cache_path"]).mkdir(parents=True, exist_ok=True)
    providers = [(name, settings.get(name, {})) for name in wanted]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's exception classes are not public
        raise ExportError(
            f"onnxruntime cannot load {path}: {' '.join(str(error).split())[:300]}", "export the bundle again"
        ) from None
    _assert_provider(session, wanted[0], path)
    return session


def tensorrt_options(
    profile: Profile | None, specs: Sequence[InputSpec] = (), engine_cache: str | Path | None = None
) -> dict[str, Any]:
    """The settings of onnxruntime's TensorRT provider: engines and kernel times are kept, and sizes are given up front.

    Example:
        >>> from eao.export.encoders import Axis, InputSpec
        >>> from eao.export.tensorrt.profiles import AxisRange
        >>> text = InputSpec("text", "float32", (Axis("batch"), 300))
        >>> tensorrt_options({"batch": AxisRange(1, 8, 64)}, [text], "cache")["trt_profile_opt_shapes"]
        'text:8x300'
    """
    from eao.export.tensorrt.cache import engine_cache as default_cache
    from eao.export.tensorrt.profiles import input_shape

    folder = Path(engine_cache) if engine_cache is not None else default_cache() / "onnxruntime"
    settings: dict[str, Any] = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }
    if profile is not None:
        for bound in ("min", "opt", "max"):
            sizes: Mapping[str, int] = {name: getattr(axis, bound) for name, axis in profile.items()}
            shapes = (f"{spec.name}:{'x'.join(map(str, input_shape(spec, sizes)))}" for spec in specs)
            settings[f"trt_profile_{bound}_shapes"] = ",".join(shapes)
    return settings


def _parse_device(device: str) -> tuple[str, int]:
    match = re.fullmatch(r"(cpu|cuda|tensorrt)(?::(\d+))?", device)
    if match is None or (match[1] == "cpu" and match[2]):
        raise ExportError(f"onnxruntime cannot run on device {device!r}", f"choose one of {', '.join(PROVIDERS)}")
    return match[1], int(match[2] or 0)


def _assert_provider(session: onnxruntime.InferenceSession, provider: str, path: str | Path) -> None:
    """Refuse a session that runs elsewhere, and keep it from moving to the CPU later.

    Raises:
        ExportError: onnxruntime could not start the provider and took another one.
    """
    if session.get_providers()[0] != provider:
        raise ExportError(
            f"onnxruntime fell back to {session.get_providers()[0]} for {path}",
            "check the CUDA, cuDNN and TensorRT libraries with `eao doctor`",
        )
    session.disable_fallback()
