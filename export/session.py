"""Opening onnxruntime sessions on the device that was asked for, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eao.errors import ExportError, missing_dependency

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(
    path: str | Path, threads: int | None = None, device: str = "cpu", spinning: bool = False
) -> onnxruntime.InferenceSession:
    """An onnxruntime session for a graph.

    Args:
        path: the .onnx file.
        threads: that one run uses; by default as many as the machine has cores.
        device: "cpu" or "cuda". onnxruntime falls back to the CPU silently; here that is an error.
        spinning: let threads of onnxruntime wait busily for the next piece of work. With two threads on an idle machine
            runs took 6 to 19 % less time (most at batch 1); it costs processor time that others could use.

    Raises:
        ExportError: the file is missing or damaged, or the device cannot be used.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing_dependency("onnxruntime", "cpu", "running a bundle") from None
    if device not in PROVIDERS:
        raise ExportError(f"onnxruntime cannot run on device {device!r}", f"choose one of {', '.join(PROVIDERS)}")
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise ExportError(
            f"this onnxruntime has no {provider}", "pip uninstall onnxruntime; pip install 'eao[gpu]' on a GPU machine"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    # Otherwise onnxruntime turns int8 activations into uint8 first, and where two nodes read one, convolutions stay in
    # float32 for it.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    if not Path(path).is_file():
        raise ExportError(f"{path} does not exist", "export the bundle again")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's exception classes are not public
        raise ExportError(
            f"onnxruntime cannot load {path}: {' '.join(str(error).split())[:300]}", "export the bundle again"
        ) from None
    if session.get_providers()[0] != provider:
        raise ExportError(
            f"onnxruntime fell back to {session.get_providers()[0]} for {path}",
            "check the CUDA and cuDNN libraries with `eao doctor`",
        )
    return session
