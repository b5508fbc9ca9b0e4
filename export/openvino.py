"""OpenVINO on the CPU: running graphs, and its own two ways to int8."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eao.errors import ExportError, missing_dependency
from eao.features.engine import openvino_core
from eao.probes import has_exact_int8

if TYPE_CHECKING:
    import openvino

# B batch, E embedding

CALIBRATION_SAMPLES = 300
"""Clips that post-training quantisation looks at, at most."""


class OpenVINOSession:
    """A graph compiled for the CPU, with sums and products in float32 whatever type the weights are stored in.

    Safe to call from several threads: each has a request of its own.

    Args:
        path: an .onnx graph, or OpenVINO's .xml with its .bin beside it.
        threads: of one run; by default as many as the machine has cores.

    Raises:
        ExportError: the file is missing, or OpenVINO refuses it.
        MissingDependencyError: OpenVINO is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        core = openvino_core("running an OpenVINO engine")
        if not Path(path).is_file():
            raise ExportError(f"{path} does not exist", "export the bundle again")
        properties: dict[str, Any] = {
            # On processors with narrower units it would round to bfloat16 on its own.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or os.cpu_count() or 1,
        }
        try:
            self._compiled = core.compile_model(str(path), "CPU", properties)
        except Exception as error:  # RuntimeError and others, by version
            raise ExportError(
                f"OpenVINO cannot load {path}: {' '.join(str(error).split())[:300]}", "export the bundle again"
            ) from None
        self._local = threading.local()

    def run(self, feeds: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """Embeddings (B, E) float32, for arrays by the names of the inputs."""
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        results = request.infer(dict(feeds), share_inputs=True, share_outputs=False)
        return np.asarray(results[self._compiled.output(0)], dtype=np.float32)


def quantize_weights(graph: str | Path, out: Path) -> tuple[Path, ...]:
    """Store the weights of a graph's products as int8, with a scale for each row; activations are rounded as they come.

    Args:
        graph: the fp32 .onnx.
        out: the .xml; a .bin appears beside it.

    Returns:
        the files.

    Raises:
        MissingDependencyError: OpenVINO or NNCF is not installed.
    """
    core, nncf = openvino_core("int8 weights"), _import_nncf("int8 weights")
    model = core.read_model(str(graph))
    with _quiet():
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    return _save(model, out)


def quantize_post_training(graph: str | Path, out: Path, samples: Iterable[Mapping[str, NDArray]]) -> tuple[Path, ...]:
    """Round weights and activations to int8 by NNCF's post-training quantisation.

    Args:
        graph: the fp32 .onnx.
        out: the .xml; a .bin appears beside it.
        samples: inputs of the graph, from real clips.

    Returns:
        the files.

    Raises:
        ExportError: no samples.
        MissingDependencyError: OpenVINO or NNCF is not installed.
    """
    core, nncf = openvino_core("int8-nncf"), _import_nncf("int8-nncf")
    found = [dict(sample) for sample in samples][:CALIBRATION_SAMPLES]
    if not found:
        raise ExportError("int8-nncf needs clips to calibrate with", "give data.test.features and data.test.captions")
    model = core.read_model(str(graph))
    # Without VNNI sums overflow unless all weights keep to half of their range; with it that would only cost accuracy.
    halve = nncf.OverflowFix.FIRST_LAYER if has_exact_int8() else nncf.OverflowFix.ENABLE
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=halve)
    with _quiet():
        model = nncf.quantize(
            model,
            nncf.Dataset(found),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(found),
            advanced_parameters=advanced,
        )
    return _save(model, out)


def _save(model: openvino.Model, out: Path) -> tuple[Path, ...]:
    _import_openvino("saving").save_model(model, str(out), compress_to_fp16=False)
    return out, out.with_suffix(".bin")


def _import_openvino(purpose: str) -> Any:
    try:
        import openvino
    except ImportError:
        raise missing_dependency("openvino", "openvino", purpose) from None
    return openvino


def _import_nncf(purpose: str) -> Any:
    try:
        with _quiet():
            import nncf
    except ImportError:
        raise missing_dependency("nncf", "openvino", purpose) from None
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF prints tables of what it does, and logs at level INFO."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
