"""Where a graph leaves its fp32 original: both run layer by layer, and the first layer out of tolerance is named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pydantic
from numpy.typing import NDArray

from eao.errors import ExportError, missing_dependency

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_TOGETHER = 32
"""Tensors fetched by one run: all at once, activations of a large model may not fit in memory."""
_SATURATED = 65504.0
"""Values beyond fp16's range are alike: a mask may be -inf in one graph and the least fp16 value in another."""
_FLOOR = 1e-6
"""Tensors smaller than this (root mean square) are measured against it: rounding of zeros is no error."""
_CAST = ":float32"
_FLOATING = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)")


class LayerError(pydantic.BaseModel):
    """One layer (node) of the fp32 graph, and how far its output lies from it in the other graph.

    Attributes:
        node, op: name and operator of the node.
        module: the PyTorch module it was traced from, as far as the names of its weights tell.
        tensor: the output.
        error: root mean square of the difference over that of the fp32 output.
        max_abs: the largest difference.
    """

    model_config = pydantic.ConfigDict(ser_json_inf_nan="strings")

    node: str
    op: str
    module: str
    tensor: str
    error: float
    max_abs: float

    def __str__(self) -> str:
        return f"{self.node} ({', '.join(filter(None, (self.op, self.module)))})"


class Divergence(pydantic.BaseModel):
    """The errors of all layers that both graphs have, in the order of computation."""

    tolerance: float
    layers: list[LayerError]

    @property
    def first(self) -> LayerError | None:
        """The first layer out of tolerance (NaN is)."""
        return next((layer for layer in self.layers if not layer.error <= self.tolerance), None)

    def describe(self) -> str:
        """One line that names the first layer out of tolerance."""
        if self.first is not None:
            return (
                f"the first layer out of tolerance is {self.first}: error {self.first.error:.2g} > {self.tolerance:.2g}"
            )
        worst = max(self.layers, key=lambda layer: layer.error)
        return (
            f"no layer leaves the tolerance {self.tolerance:.2g} when onnxruntime runs the graph without optimisation, "
            f"so that a fault lies in the engine, not the graph; the largest error is {worst.error:.2g} at {worst}"
        )


def tolerance_of(cosine: float) -> float:
    """The relative error at which two vectors of equal length have this cosine: sqrt(2 - 2 cosine).

    Example:
        >>> round(tolerance_of(0.995), 6)
        0.1
    """
    return math.sqrt(2 - 2 * cosine)


def first_divergence(
    reference: str | Path | onnx.ModelProto,
    other: str | Path | onnx.ModelProto,
    feeds: Mapping[str, NDArray],
    tolerance: float,
    threads: int | None = None,
) -> Divergence:
    """Run two graphs on the same inputs and compare the outputs of all layers.

    The other graph may hold more nodes (Cast, QuantizeLinear ...) and other types, as long as the outputs of layers
    keep their names. Only tensors of floating point are compared; onnxruntime runs both without optimisation.

    Args:
        reference: the fp32 graph: the path of its file, or the graph itself with its weights.
        other: the graph that is at fault.
        feeds: inputs of both, by name. Few clips are enough, and faster.
        tolerance: of a layer's relative error; see `tolerance_of`.
        threads: of the runs; by default all cores.

    Raises:
        ExportError: onnxruntime cannot run one of them, or they have no layer in common.
    """
    ours, theirs = _load(reference), _load(other)
    modules = _modules(ours.proto.graph)
    produced = {name for node in theirs.proto.graph.node for name in node.output}
    common = {name: node for node in ours.proto.graph.node for name in node.output if name and name in produced}
    expected = _Probe(ours, tuple(common), threads)
    names = expected.floating
    if not names:
        raise ExportError("the graphs have no layer in common", "compare a graph with the fp32 graph it was made from")
    found = _Probe(theirs, names, threads)
    layers = []
    for start in range(0, len(names), _TOGETHER):
        chunk = names[start : start + _TOGETHER]
        for name, a, b in zip(chunk, expected.run(chunk, feeds), found.run(chunk, feeds), strict=True):
            error, max_abs = relative_error(a, b)
            node = common[name]
            layers.append(
                LayerError(
                    node=node.name or name,
                    op=node.op_type,
                    module=modules.get(name, ""),
                    tensor=name,
                    error=error,
                    max_abs=max_abs,
                )
            )
    return Divergence(tolerance=tolerance, layers=layers)


def relative_error(expected: NDArray[np.floating], found: NDArray[np.floating]) -> tuple[float, float]:
    """Root mean square of the difference over that of `expected`, and the largest difference.

    Values that are NaN in both arrays count as equal, and so do values beyond fp16's range with the same sign. Arrays
    of two shapes differ infinitely, and so does a NaN in one of them.
    """
    if expected.shape != found.shape:
        return math.inf, math.inf
    a, b = (np.clip(x.astype(np.float64), -_SATURATED, _SATURATED) for x in (expected, found))
    alike = (np.isnan(a) & np.isnan(b)) | ((a == b) & (np.abs(a) == _SATURATED))
    a, b = a[~alike], b[~alike]
    if not a.size:
        return 0.0, 0.0
    if not (np.isfinite(a) & np.isfinite(b)).all():
        return math.inf, math.inf
    difference = np.abs(a - b)
    scale = max(float(np.sqrt(np.mean(a**2))), _FLOOR)
    return float(np.sqrt(np.mean(difference**2))) / scale, float(difference.max())


class _Graph(NamedTuple):
    """A graph, and the folder of its external data where it has any."""

    proto: onnx.ModelProto
    folder: Path | None
    name: str


class _Probe:
    """A session that gives inner tensors of a graph."""

    def __init__(self, graph: _Graph, names: Sequence[str], threads: int | None) -> None:
        import onnx

        outputs = graph.proto.graph.output
        del outputs[:]
        for name in names:
            # numpy has no bfloat16, so that all is cast to float32; the type before is what `floating` reads.
            cast = graph.proto.graph.node.add(op_type="Cast", input=[name], output=[f"{name}{_CAST}"])
            cast.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT))
            outputs.add(name=name)  # without a type: onnxruntime infers it
            outputs.add(name=f"{name}{_CAST}")
        self.name = graph.name
        self.session = _open(graph, threads)

    @property
    def floating(self) -> tuple[str, ...]:
        """The probed tensors of a floating type."""
        return tuple(
            output.name
            for output in self.session.get_outputs()
            if output.type in _FLOATING and not output.name.endswith(_CAST)
        )

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray]) -> list[NDArray[np.float32]]:
        try:
            return self.session.run([f"{name}{_CAST}" for name in names], dict(feeds))
        except Exception as error:  # onnxruntime's exception classes are not public
            raise ExportError(f"onnxruntime cannot run {self.name}: {_line(error)}") from None


def _load(source: str | Path | onnx.ModelProto) -> _Graph:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise missing_dependency("onnx", "cpu", "comparing graphs layer by layer") from None
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return _Graph(copy, None, "the graph")
    path = Path(source)
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path} cannot be read as ONNX: {_line(error)}", "export it again") from None
    return _Graph(proto, path.parent, str(path))


def _open(graph: _Graph, threads: int | None) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError:
        raise missing_dependency("onnxruntime", "cpu", "comparing graphs layer by layer") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns of every tensor that is cast and not used
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # layers stay what they are
    if threads is not None:
        options.intra_op_num_threads = threads
    if graph.folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.folder))
    try:
        return onnxruntime.InferenceSession(
            graph.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exception classes are not public
        raise ExportError(
            f"onnxruntime cannot run {graph.name} layer by layer: {_line(error)}",
            "it has no bfloat16 or float8 kernels on a CPU: compare a graph that rounds by Cast pairs instead",
        ) from None


def _modules(graph: onnx.GraphProto) -> dict[str, str]:
    """The PyTorch module of each tensor, told by the names of the parameters that made it.

    The transposed weight of a linear layer lost its name; the bias that is added to its product kept it.
    """
    parameters = {i.name for i in graph.initializer if "." in i.name}
    added = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    modules = {}
    for node in graph.node:
        for reader in (node, *(added[name] for name in node.output if name in added)):
            named = [name for name in reader.input if name in parameters]
            if named:
                module = named[0].removeprefix("model.").rpartition(".")[0]
                modules.update(dict.fromkeys(node.output, module))
                break
    return modules


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
