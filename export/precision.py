"""Graphs that compute in 16 bits where it is safe: the types stand in the graph itself, as TensorRT needs them.

Convolutions and matrix products compute in the narrow type, with their weights stored in it, and so does what lies
between them element by element. Normalisations, softmax, sums and means stay in float32, and with them everything
that reads a float32 value, and the convolution that reads decibels. Inputs and output are float32 at every precision,
so that engines are called alike.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from eao.errors import ExportError
from eao.export.graph import MOVES, Rewrite, element_types, initializers, producers, reads_input, to_array

FLOAT, FLOAT8 = TensorProto.FLOAT, TensorProto.FLOAT8E4M3FN
HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY = {TensorProto.FLOAT16: np.dtype(np.float16), TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
_OPSETS = {"fp16": 19, "bf16": 22}
"""Scales may be narrow from opset 19 on, and Conv takes bfloat16 from 22 on; of what the encoders use, nothing else
changed between 18 and 22."""

COMPUTE = frozenset(("Conv", "DequantizeLinear", "Gemm", "MatMul"))
"""Narrow, but for the first convolution."""
_SELECTS = MOVES | {"Max", "ReduceMax", "Relu", "Where"}
"""Give values they were given, so that they round nothing."""
FOLLOWS = _SELECTS | {"Add", "Div", "Erf", "LeakyRelu", "Mul", "Neg", "Sigmoid", "Sub"}
"""Narrow if all the values they read are."""


def to_half(model: onnx.ModelProto, dtype: str) -> onnx.ModelProto:
    """A graph with its heavy operators in a 16-bit type.

    Args:
        model: a float32 graph, or one of `eao.export.quantize`, whose other operators become narrow; not changed.
        dtype: "fp16" or "bf16".

    Returns:
        a graph with the same inputs and output, of opset 19 (fp16) or 22 (bf16), or later.

    Raises:
        ExportError: a weight lies beyond the range of float16.

    Example:
        half = to_half(onnx.load("text.onnx"), "fp16")
    """
    return _Narrowing(model, dtype).run()


class _Narrowing:
    """The rewriting of one graph. Each float tensor is narrow, wide, or neutral: made of masks and constants alone, in
    float32, but no reason for its readers to be."""

    def __init__(self, model: onnx.ModelProto, dtype: str) -> None:
        self.model = model
        self.dtype = dtype
        self.narrow_type = HALF_TYPES[dtype]
        self.types = element_types(model)
        self.stored = initializers(model)
        self.makers = producers(model)
        self.rewrite = Rewrite(model)
        self.narrow: set[str] = set()
        self.wide = {value.name for value in model.graph.input if self._is_float(value.name)}
        self.outputs = {value.name for value in model.graph.output}
        self.casts: dict[tuple[str, bool], str] = {}

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            is_narrow = self._is_narrow(node)
            self.rewrite.copy(node, [self._read(name, is_narrow) if name else "" for name in node.input])
            made = {name for name in node.output if self._is_float(name)}
            if is_narrow:
                self.narrow |= made
            elif any(name in self.narrow or name in self.wide for name in node.input):
                self.wide |= made
        return self.rewrite.finish(_OPSETS[self.dtype])

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) == FLOAT

    def _is_narrow(self, node: NodeProto) -> bool:
        if node.op_type == "QuantizeLinear":
            return node.input[0] in self.narrow
        if not any(self._is_float(name) for name in node.output) or not self.outputs.isdisjoint(node.output):
            return False
        if node.op_type in COMPUTE:
            return node.op_type != "Conv" or not reads_input(node, self.model, self.makers)
        reads_narrow = any(name in self.narrow for name in node.input)
        return node.op_type in FOLLOWS and reads_narrow and not any(name in self.wide for name in node.input)

    def _read(self, name: str, as_narrow: bool) -> str:
        """The name under which a node finds a tensor in the type it computes in."""
        if not self._is_float(name) or as_narrow == (name in self.narrow):
            return name
        if name in self.stored:
            narrowed = f"{name}.{self.dtype}"
            if narrowed not in self.rewrite.stored:
                self.rewrite.store(narrowed, self._narrowed(name))
            return narrowed
        key = (name, as_narrow)
        if key not in self.casts:
            kind = self.narrow_type if as_narrow else FLOAT
            suffix = self.dtype if as_narrow else "fp32"
            self.casts[key] = self.rewrite.add("Cast", [name], f"{name}.{suffix}", to=kind)
        return self.casts[key]

    def _narrowed(self, name: str) -> NDArray:
        values = to_array(self.stored[name])
        with np.errstate(over="ignore"):
            narrowed = values.astype(_NUMPY[self.narrow_type])
        if np.isinf(narrowed.astype(np.float32)).sum() != np.isinf(values).sum():
            raise ExportError(
                f"{name} holds {np.abs(values[np.isfinite(values)]).max():.3g}, beyond the range of {self.dtype}",
                "export with precision bf16, which has the range of float32" if self.dtype == "fp16" else "",
            )
        return narrowed


def simulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that rounds where a graph of `to_half` or `eao.export.quantize.to_fp8` does.

    Runtimes without the kernels can run it: onnxruntime's CPU provider, for example, has no bfloat16 MatMul, and takes
    the ReLU before a float8 number for needless. Every node computes in float32 and its result is rounded, as tensor
    cores do, which multiply narrow numbers and add in float32.

    Example:
        rounded = simulate(to_half(onnx.load("text.onnx"), "bf16"))
    """
    types, stored = element_types(model), initializers(model)
    rewrite = Rewrite(model)
    for name, tensor in stored.items():
        if tensor.data_type in _NUMPY:
            del rewrite.stored[name]
            rewrite.store(name, to_array(tensor).astype(np.float32))
    for node in model.graph.node:
        name = node.output[0]
        if types.get(name) == FLOAT8 and node.op_type == "QuantizeLinear":
            scaled = rewrite.add("Div", node.input[:2], f"{name}.scaled")
            _round(rewrite, scaled, name, FLOAT8)
        elif node.op_type == "DequantizeLinear" and types.get(node.input[0]) == FLOAT8:
            if node.input[0] in stored:
                values = to_array(stored[node.input[0]]).astype(np.float32) * to_array(stored[node.input[1]])
                rewrite.store(name, values)
            else:
                rewrite.add("Mul", node.input[:2], name)
        elif types.get(name) not in _NUMPY or node.op_type in _SELECTS:
            rewrite.copy(node)
        elif node.op_type == "Cast":
            _round(rewrite, node.input[0], name, types[name])
        else:
            rewrite.copy(node, outputs=[f"{name}.unrounded"])
            _round(rewrite, f"{name}.unrounded", name, types[name])
    return rewrite.finish()


def _round(rewrite: Rewrite, exact: str, name: str, kind: int) -> None:
    rewrite.add("Cast", [rewrite.add("Cast", [exact], f"{name}.rounded", to=kind)], name, to=FLOAT)
