"""Graphs as Triton wants them: the output called `embedding`, and words' states cut to text tokens."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eao.errors import ServingError, missing_dependency
from eao.export.text_files import link_or_copy

if TYPE_CHECKING:
    import onnx

# B sentences, L token ids, N text tokens, D width

EMBEDDING = "embedding"
_RENAMED = f"{EMBEDDING}.inner"
"""What a value inside a graph is called that had the output's name."""


def write_onnx(source: Path, target: Path) -> None:
    """Copy a graph with its output renamed to `embedding`; its weights, where they are apart, are put beside it.

    Raises:
        ServingError: the graph is damaged.
        MissingDependencyError: onnx is not installed.
    """
    model = _load(source)
    rename_values(model.graph, {EMBEDDING: _RENAMED, model.graph.output[0].name: EMBEDDING})
    _save(model, source, target)


def write_words(source: Path, target: Path, ids: int, rows: int) -> None:
    """Copy the network of words with its states made text tokens: those of words, and zeros after them.

    Args:
        source: from `input_ids` and `attention_mask`, (B, L) int64, to states (B, L, D) float32.
        target: the same with another input, `text_mask` (B, N) bool, to `text` (B, N, D).
        ids: L, of what it will be given.
        rows: N.
    """
    model = _load(source)
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph, states = model.graph, model.graph.output[0]
    rename_values(graph, {"text": "text.inner", "text_mask": "text_mask.inner"})
    width = states.type.tensor_type.shape.dim[2].dim_value
    kept = min(rows, ids - 1)  # after the token that begins a sentence
    constants = {
        "eao.starts": np.array([1]),
        "eao.ends": np.array([1 + kept]),
        "eao.axes": np.array([1]),
        "eao.pads": np.array([0, 0, 0, 0, rows - kept, 0]),
        "eao.last": np.array([2]),
        "eao.zero": np.array(0, np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Slice", [states.name, "eao.starts", "eao.ends", "eao.axes"], ["eao.words"]),
            helper.make_node("Pad", ["eao.words", "eao.pads"], ["eao.padded"]),
            helper.make_node("Unsqueeze", ["text_mask", "eao.last"], ["eao.is_word"]),
            helper.make_node("Where", ["eao.is_word", "eao.padded", "eao.zero"], ["text"]),
        ]
    )
    graph.input.append(helper.make_tensor_value_info("text_mask", TensorProto.BOOL, ["batch", rows]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("text", TensorProto.FLOAT, ["batch", rows, width]))
    _save(model, source, target)


def write_openvino(source: Path, target: Path) -> None:
    """Copy OpenVINO's .xml, its output renamed to `embedding`, and the .bin with its weights."""
    tree = ElementTree.parse(source)
    results = {layer.get("id"): layer for layer in tree.iter("layer") if layer.get("type") == "Result"}
    edges = [edge for edge in tree.iter("edge") if edge.get("to-layer") in results]
    if len(edges) != 1:
        raise ServingError(f"{source} has {len(edges)} outputs, not one", "export the bundle again")
    for port in tree.iter("port"):
        if port.get("names") == EMBEDDING:
            port.set("names", _RENAMED)
    layer = next(layer for layer in tree.iter("layer") if layer.get("id") == edges[0].get("from-layer"))
    port = next(port for port in layer.iter("port") if port.get("id") == edges[0].get("from-port"))
    port.set("names", EMBEDDING)
    results[edges[0].get("to-layer")].set("output_names", EMBEDDING)
    tree.write(target, encoding="utf-8", xml_declaration=True)
    link_or_copy(source.with_suffix(".bin"), target.with_suffix(".bin"))


def rename_values(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename values of a graph and of the graphs in it."""
    for inner in _graphs(graph):
        for node in inner.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for value in (*inner.input, *inner.output, *inner.value_info, *inner.initializer):
            value.name = names.get(value.name, value.name)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _load(source: Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise missing_dependency("onnx", "cpu", "a model repository for Triton") from None
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(source), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ServingError(f"cannot read {source}: {error}", "export the bundle again") from None


def _save(model: Any, source: Path, target: Path) -> None:
    import onnx

    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for name in {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}:
        # Not linked: onnx takes a file with several names for an attempt to read others' files.
        shutil.copyfile(source.parent / name, target.parent / name)
    target.write_bytes(model.SerializeToString())
    try:
        onnx.checker.check_model(str(target))
    except onnx.checker.ValidationError as error:
        raise ServingError(f"{source} cannot be served: {error}", "export the bundle again") from None
