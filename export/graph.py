"""ONNX graphs as passes rewrite them: who makes a tensor and who reads it, element types, and a graph built anew.

A model with its weights may exceed the 2 GB that protobuf can serialise, so nothing here copies or serialises it whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

MOVES = frozenset(
    "Concat Expand Flatten Gather GatherElements Identity Reshape Slice Split Squeeze Transpose Unsqueeze".split()  # noqa: SIM905
)
"""Operators that hand values on as they are."""


def producers(model: onnx.ModelProto) -> dict[str, NodeProto]:
    """The node that makes each tensor."""
    return {name: node for node in model.graph.node for name in node.output if name}


def consumers(model: onnx.ModelProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each tensor, each once."""
    found: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            if name:
                found.setdefault(name, []).append(node)
    return found


def initializers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """The stored tensors by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model that lacks the stored tensors, whatever their size."""
    light = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    light.opset_import.extend(model.opset_import)
    light.metadata_props.extend(model.metadata_props)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    return light


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type (`TensorProto.FLOAT` ...) of every tensor.

    They are inferred with weights declared as inputs, since inference serialises what it is given.
    """
    light = without_weights(model)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(value)
        else:
            light.graph.initializer.append(tensor)
    graph = onnx.shape_inference.infer_shapes(light).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def root(name: str, makers: Mapping[str, NodeProto], through: Iterable[str] = MOVES) -> str:
    """The tensor whose values `name` holds, moved about by operators of one input (or with constants beside it)."""
    while (node := makers.get(name)) is not None and node.op_type in through and node.op_type != "Concat":
        name = node.input[0]
    return name


def reads_input(node: NodeProto, model: onnx.ModelProto, makers: Mapping[str, NodeProto]) -> bool:
    """Whether a node's first operand is an input of the graph, merely reshaped.

    Of convolutions that is the first one of the audio network. It reads decibels from -80 to 0, whose differences few
    bits hold badly, and takes next to no time: it stays in float32 at every precision.
    """
    return root(node.input[0], makers) in {value.name for value in model.graph.input}


class Rewrite:
    """A model under construction, with the inputs and outputs of another.

    Example:
        rewrite = Rewrite(model)
        for node in model.graph.node:
            rewrite.copy(node)
        same = rewrite.finish()
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.source = model
        self.nodes: list[NodeProto] = []
        self.stored = initializers(model)

    def copy(self, node: NodeProto, inputs: Iterable[str] | None = None, outputs: Iterable[str] | None = None) -> None:
        """Add a node as it was, reading and making other tensors where they are given."""
        new = NodeProto()
        new.CopyFrom(node)
        if inputs is not None:
            new.input[:] = list(inputs)
        if outputs is not None:
            new.output[:] = list(outputs)
        self.nodes.append(new)

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Add a node with one output, and return that."""
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [output], name=f"{output}/{op}", **attributes))
        return output

    def store(self, name: str, values: NDArray) -> str:
        """Store a tensor under a name; one that is there already stays."""
        if name not in self.stored:
            self.stored[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def finish(self, opset: int = 0) -> onnx.ModelProto:
        """The new model: stored tensors that nothing reads are left out.

        Args:
            opset: the least version of the standard operators.
        """
        model = without_weights(self.source)
        del model.graph.node[:], model.graph.value_info[:]
        for entry in model.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = max(entry.version, opset)
        model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(model.opset_import))
        model.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        model.graph.initializer.extend(tensor for name, tensor in self.stored.items() if name in used)
        return model


def to_array(tensor: TensorProto) -> NDArray:
    """The values of a stored tensor, whose data must be in memory."""
    return numpy_helper.to_array(tensor)
