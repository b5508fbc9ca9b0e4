"""8-bit graphs: quantise and dequantise (Q/DQ) pairs, which onnxruntime, OpenVINO and TensorRT fuse into 8-bit kernels.

Scales are static and symmetric with zero points of zero, the only kind that TensorRT takes: one of each activation,
found by calibration, and one of each output channel of a weight. Since no scale depends on the batch, neither does
an embedding. Quantised are the matrix products and convolutions with stored weights; normalisations, attention scores,
softmax, pooling and the final unit norm stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from eao.errors import ExportError
from eao.export.calibration import Range
from eao.export.graph import Rewrite, attribute, consumers, initializers, producers, reads_input, root, to_array


@dataclass(frozen=True)
class _Format:
    """An 8-bit number format: the largest number of activations, that of weights, the operators that engines run in it,
    and the opset it needs."""

    name: str
    largest: float
    largest_weight: float
    dtype: np.dtype
    operators: frozenset[str]
    opset: int
    per_channel: bool


_AXES = (1, 0, -1, -2)
_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceSum")
_INT8 = _Format("int8", 127, 127, np.dtype(np.int8), frozenset(("Conv", "Gemm", "MatMul")), 13, True)
_FP8 = _Format("fp8", 448, 448, np.dtype(ml_dtypes.float8_e4m3fn), frozenset(("Gemm", "MatMul")), 19, False)
_FORMATS = {"int8": _INT8, "fp8": _FP8}


def to_int8(
    model: onnx.ModelProto, ranges: Mapping[str, Range], keep: Collection[str] = (), reduce_range: bool = False
) -> onnx.ModelProto:
    """A float32 graph with its weights, and what they are multiplied with, in int8.

    Args:
        model: with float32 weights in memory; not changed.
        ranges: of `calibrated_tensors(model)`.
        keep: names of nodes that stay in float32.
        reduce_range: see `Quantizer`.

    Raises:
        ExportError: a range is missing.
    """
    return Quantizer(model, ranges, "int8", reduce_range)(keep)


def to_fp8(model: onnx.ModelProto, ranges: Mapping[str, Range], keep: Collection[str] = ()) -> onnx.ModelProto:
    """As `to_int8`, in float8 (e4m3fn) and of matrix products alone: for TensorRT on GPUs of compute capability 8.9 and
    later. Weights have one scale each: a floating format needs none by channel."""
    return Quantizer(model, ranges, "fp8")(keep)


class Quantizer:
    """Quantised graphs of one model that differ in the nodes they keep; each weight is rounded once.

    Args:
        model, ranges: see `to_int8`.
        kind: "int8" or "fp8".
        reduce_range: int8 weights keep to -64 ... 64, so that two products fit 16 bits, in which CPUs without VNNI add
            them.

    Example:
        quantizer = Quantizer(model, ranges, "int8")
        whole, without_first = quantizer(), quantizer(keep=["node_MatMul_16"])
    """

    def __init__(
        self, model: onnx.ModelProto, ranges: Mapping[str, Range], kind: str, reduce_range: bool = False
    ) -> None:
        self.model = model
        self.ranges = ranges
        self.kind = _FORMATS[kind]
        if reduce_range and kind == "int8":
            self.kind = replace(self.kind, largest_weight=64)
        self._weights: dict[str, tuple[NDArray, NDArray[np.float32]]] = {}

    def __call__(self, keep: Collection[str] = ()) -> onnx.ModelProto:
        """The graph in which the named nodes stay in float32."""
        return _Quantizing(self.model, self.ranges, keep, self.kind, self._weights).run()


def quantizable_nodes(model: onnx.ModelProto, kind: str = "int8") -> tuple[str, ...]:
    """The names of the nodes that are quantised in "int8" or "fp8", in the order of the graph."""
    stored, makers = initializers(model), producers(model)
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in _FORMATS[kind].operators
        and _is_quantizable(node, stored)
        and not (node.op_type == "Conv" and reads_input(node, model, makers))
    )


def calibrated_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """The tensors whose ranges quantisation needs, each once."""
    nodes = {node.name: node for node in model.graph.node}
    makers, readers = producers(model), consumers(model)
    found: list[str] = []
    for name in quantizable_nodes(model):
        node = nodes[name]
        found.append(root(node.input[0], makers))
        if node.op_type == "Conv":
            found += [_settled(node.output[0], readers), *_sums(node.output[0], readers)]
    return tuple(dict.fromkeys(found))


class _Quantizing:
    """The rewriting of one graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        ranges: Mapping[str, Range],
        keep: Collection[str],
        kind: _Format,
        weights: dict[str, tuple[NDArray, NDArray[np.float32]]],
    ) -> None:
        self.model = model
        self.ranges = ranges
        self.kind = kind
        self.weights = weights
        self.rewrite = Rewrite(model)
        self.stored = initializers(model)
        self.makers, self.readers = producers(model), consumers(model)
        nodes = {node.name: node for node in model.graph.node}
        self.chosen = {n for n in quantizable_nodes(model) if n not in keep and nodes[n].op_type in kind.operators}
        self.pairs: dict[str, int] = {}
        self.weight_readers: dict[str, int] = {}
        self.rounded: set[str] = set()

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            if node.name in self.chosen:
                self._convolution(node) if node.op_type == "Conv" else self._product(node)
            elif node.op_type == "Relu" and node.input[0] in self.rounded:
                self.rewrite.copy(node)
                self.rounded.add(node.output[0])
            elif node.op_type in _REDUCTIONS and self.chosen and not attribute(node, "keepdims", 1):
                self._reduction(node)
            elif node.op_type == "Add" and self.rounded.issuperset(node.input):
                self._settle(node, [self._operand(name) for name in node.input])
            else:
                self.rewrite.copy(node)
        return self.rewrite.finish(self.kind.opset)

    def _product(self, node: NodeProto) -> None:
        """x W, or x W + b as two nodes, for in a Gemm the bias would have to be an integer too.

        The bias is subtracted with its sign turned, since onnxruntime would put a product and a sum back into a Gemm,
        which it then runs in float32.
        """
        transposed = bool(attribute(node, "transB", 0))
        weight = self._weight(node.input[1], channel_axis=1, transposed=transposed)
        biased = len(node.input) > 2
        product = f"{node.output[0]}.product" if biased else node.output[0]
        matmul = onnx.helper.make_node("MatMul", [self._pair(node.input[0]), weight], [product], name=node.name)
        self.rewrite.nodes.append(matmul)
        if biased:
            bias = self.rewrite.store(f"{node.input[2]}.negative", -to_array(self.stored[node.input[2]]))
            self.rewrite.add("Sub", [product, bias], node.output[0])

    def _convolution(self, node: NodeProto) -> None:
        weight = self._weight(node.input[1], channel_axis=0)
        self._settle(node, [self._pair(node.input[0]), weight, *node.input[2:]])

    def _reduction(self, node: NodeProto) -> None:
        """A reduction that keeps its axis, which is taken away after it: OpenVINO (2026.4) computes wrong numbers where
        it quantises the result of one that drops it."""
        kept = f"{node.output[0]}.kept"
        self.rewrite.nodes.append(onnx.helper.make_node(node.op_type, node.input, [kept], name=node.name, keepdims=1))
        self.rewrite.add("Squeeze", [kept, node.input[1]], node.output[0])

    def _settle(self, node: NodeProto, inputs: list[str]) -> None:
        """Add a node whose result is rounded at once, which onnxruntime needs to run it in int8, on the scale of the
        ReLU behind it if there is one: what ReLU takes away need not fit."""
        (name,) = node.output
        self.rewrite.copy(node, inputs, [f"{name}.exact"])
        self._quantize(f"{name}.exact", _settled(name, self.readers), name)
        self.rounded.add(name)

    def _operand(self, name: str) -> str:
        """A rounded tensor, read from a pair: one made by ReLU has none of its own yet."""
        return self._pair(name) if self.makers[name].op_type == "Relu" else name

    def _pair(self, name: str) -> str:
        """The name of a tensor after quantising and dequantising it, by a pair for this reader alone.

        onnxruntime's fast kernels take uint8 activations, into which it turns int8 ones only where a pair has one
        reader; otherwise convolutions stay in float32. It would merge equal pairs again, so they differ in an attribute
        that means nothing to a single scale.
        """
        index = self.pairs.get(name, 0)
        self.pairs[name] = index + 1
        suffix = f".{index}" if index else ""
        axis = _AXES[min(index, len(_AXES) - 1)]
        return self._quantize(name, root(name, self.makers), f"{name}.dequantized{suffix}", suffix, axis)

    def _quantize(self, name: str, ranged: str, dequantized: str, suffix: str = "", axis: int = 1) -> str:
        if ranged not in self.ranges:
            raise ExportError(f"there is no range for {ranged}", "calibrate all of calibrated_tensors(graph)")
        # What was zero throughout calibration, like the output of a dead ReLU, may span one.
        scale = np.asarray((self.ranges[ranged].bound or 1.0) / self.kind.largest, np.float32)
        parameters = [
            self.rewrite.store(f"{ranged}.scale", scale),
            self.rewrite.store(f"{self.kind.name}.zero", np.zeros((), self.kind.dtype)),
        ]
        integers = f"{name}.{self.kind.name}{suffix}"
        quantized = self.rewrite.add("QuantizeLinear", [name, *parameters], integers, axis=axis)
        return self.rewrite.add("DequantizeLinear", [quantized, *parameters], dequantized, axis=axis)

    def _weight(self, name: str, channel_axis: int, transposed: bool = False) -> str:
        """A stored weight in 8 bits and the pair's second half, for one reader alone: on processors without VNNI
        onnxruntime rewrites the numbers of each, and would rewrite shared ones twice. In a file of shared weights equal
        ones take their room once."""
        rounded = f"{name}.{self.kind.name}{'.transposed' if transposed else ''}"
        if rounded not in self.weights:
            values = to_array(self.stored[name])
            self.weights[rounded] = _quantize_weight(values.T if transposed else values, self.kind, channel_axis)
        numbers, scale = self.weights[rounded]
        index = self.weight_readers.get(rounded, 0)
        self.weight_readers[rounded] = index + 1
        own = f"{rounded}.{index}" if index else rounded
        parameters = [
            self.rewrite.store(own, numbers),
            self.rewrite.store(f"{own}.scale", scale),
            self.rewrite.store(f"{own}.zero", np.zeros(scale.shape, self.kind.dtype)),
        ]
        axis = {"axis": channel_axis} if self.kind.per_channel else {}
        return self.rewrite.add("DequantizeLinear", parameters, f"{own}.dequantized", **axis)


def _quantize_weight(values: NDArray, kind: _Format, channel_axis: int) -> tuple[NDArray, NDArray[np.float32]]:
    """8-bit numbers and their scales: by channel, or one."""
    others = tuple(i for i in range(values.ndim) if i != channel_axis) if kind.per_channel else None
    bound = np.abs(values).max(others)
    scale = np.asarray(np.where(bound > 0, bound, 1) / kind.largest_weight, np.float32)
    shape = [-1 if i == channel_axis else 1 for i in range(values.ndim)]
    scaled = values / (scale.reshape(shape) if kind.per_channel else scale)
    if kind.dtype == np.int8:
        scaled = np.rint(scaled)
    return scaled.clip(-kind.largest_weight, kind.largest_weight).astype(kind.dtype), scale


def _is_quantizable(node: NodeProto, stored: Mapping[str, TensorProto]) -> bool:
    if node.op_type not in _INT8.operators or node.input[1] not in stored or node.input[0] in stored:
        return False
    if node.op_type == "Conv":
        return True
    plain = [attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0), attribute(node, "transA", 0)] == [1, 1, 0]
    return len(stored[node.input[1]].dims) == 2 and plain and all(name in stored for name in node.input[2:])


def _settled(name: str, readers: Mapping[str, list[NodeProto]]) -> str:
    """The tensor on whose scale a rounded result lies: that of the ReLU that alone reads it, or its own."""
    reading = readers.get(name, [])
    return reading[0].output[0] if len(reading) == 1 and reading[0].op_type == "Relu" else name


def _sums(name: str, readers: Mapping[str, list[NodeProto]]) -> list[str]:
    """The settled tensors of the residual sums that read a convolution's result."""
    return [_settled(node.output[0], readers) for node in readers.get(name, []) if node.op_type == "Add"]
