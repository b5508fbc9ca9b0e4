from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from eao.errors import ExportError
from eao.export.bisect import first_divergence, relative_error, tolerance_of
from eao.export.bundle import WrittenBundle

Feeds = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def graph(written: WrittenBundle) -> Path:
    return written.path / "video-audio.fp32.onnx"


@pytest.fixture(scope="module")
def feeds() -> Feeds:
    """Two clips, one of which lacks its sound."""
    rng = np.random.default_rng(0)
    return {
        "video": rng.standard_normal((2, 7, 10), dtype=np.float32),
        "video_mask": np.arange(7) < np.array([[7], [4]]),
        "audio": rng.uniform(-80, 0, (2, 40, 16)).astype(np.float32),
        "audio_mask": np.arange(16) < np.array([[10], [0]]),
    }


def test_a_graph_does_not_differ_from_itself(graph: Path, feeds: Feeds) -> None:
    found = first_divergence(graph, onnx.load(graph), feeds, 1e-6, threads=1)
    assert found.first is None
    assert all(layer.error == 0 for layer in found.layers)
    assert "no layer leaves the tolerance" in found.describe()
    names = {layer.tensor for layer in found.layers}
    assert "output" in names and "video_mask" not in names
    softmax = [node.output[0] for node in onnx.load(graph).graph.node if node.op_type == "Softmax"]
    assert set(softmax) <= names


@pytest.mark.parametrize(
    ("op", "module"),
    [
        ("Conv", "davenet.layer1.0.conv2"),
        ("MatMul", "video_token_proj.fc"),
        ("LayerNormalization", "audio_norm_layer"),
        ("MatMul", "fusion.blocks.0.attn.proj"),
        ("MatMul", "fusion.blocks.0.mlp.fc1"),
        ("Gemm", "audio_proj.fc"),
    ],
)
def test_a_damaged_weight_is_traced_to_its_node(graph: Path, feeds: Feeds, op: str, module: str) -> None:
    whole = first_divergence(graph, graph, feeds, 1e-6, threads=1)
    layer = next(x for x in whole.layers if (x.op, x.module) == (op, module))
    damaged = onnx.load(graph)
    weights = {w.name: w for w in damaged.graph.initializer}
    node = next(n for n in damaged.graph.node if n.name == layer.node)
    weight = next(weights[name] for name in node.input if name in weights)
    values = numpy_helper.to_array(weight).copy()
    values.reshape(-1)[:4] += 1.0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    first = first_divergence(graph, damaged, feeds, tolerance_of(0.99999), threads=1).first
    assert first is not None
    assert (first.node, first.op, first.module) == (layer.node, op, module)
    assert f"{layer.node} ({op}, {module})" in str(first)


def test_nodes_of_half_precision_with_casts_between_are_matched_by_name(graph: Path, feeds: Feeds) -> None:
    halved = halve_products(onnx.load(graph))
    onnx.checker.check_model(halved)
    products = [n.name for n in halved.graph.node if n.op_type == "MatMul"]
    found = first_divergence(graph, halved, feeds, 1e-6, threads=1)
    assert found.first is not None and found.first.node == products[0]
    assert {layer.node for layer in found.layers} >= set(products)
    # fp16 has 11 bits: single products are off by under 2^-11, and few layers add up to under the gate of fp16.
    assert first_divergence(graph, halved, feeds, tolerance_of(0.9995), threads=1).first is None


def test_the_graph_of_the_quantizer_is_matched_by_name(graph: Path, feeds: Feeds, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    quantize_static(
        graph,
        path,
        OneBatch(feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    found = first_divergence(graph, path, feeds, 1e-4, threads=1)
    assert found.first is not None and found.first.op == "MatMul"
    # Every tensor before the first quantised product is the same.
    place = found.layers.index(found.first)
    assert all(layer.error < 1e-6 for layer in found.layers[:place])
    assert {"output", "layer_norm", "sigmoid"} <= {layer.tensor for layer in found.layers}


def test_external_weights_are_found_beside_the_graph(graph: Path, feeds: Feeds, tmp_path: Path) -> None:
    split = tmp_path / "split.onnx"
    onnx.save(onnx.load(graph), split, save_as_external_data=True, location="weights.bin", size_threshold=256)
    assert first_divergence(graph, split, feeds, 1e-6, threads=1).first is None


def test_graphs_without_a_common_layer_are_refused(graph: Path, feeds: Feeds) -> None:
    x = helper.make_tensor_value_info("video", TensorProto.FLOAT, ["b", "n", 10])
    y = helper.make_tensor_value_info("relu", TensorProto.FLOAT, None)
    other = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["video"], ["other"], name="r")], "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    with pytest.raises(ExportError, match="no layer in common"):
        first_divergence(graph, other, feeds, 0.1)


def test_a_file_that_is_no_graph_is_named(graph: Path, feeds: Feeds, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\xff\xff not a graph")
    with pytest.raises(ExportError, match=r"bad\.onnx"):
        first_divergence(graph, bad, feeds, 0.1)


def test_a_nan_is_out_of_any_tolerance(graph: Path, feeds: Feeds) -> None:
    damaged = onnx.load(graph)
    bias = next(w for w in damaged.graph.initializer if w.name.endswith("video_norm_layer.bias"))
    bias.CopyFrom(numpy_helper.from_array(np.full(16, np.nan, np.float32), bias.name))
    first = first_divergence(graph, damaged, feeds, 1e9, threads=1).first
    assert first is not None and first.module == "video_norm_layer" and math.isinf(first.error)


def test_values_that_fp16_cannot_tell_apart_are_alike() -> None:
    scores = np.array([1.0, -np.inf, np.nan, 2.0])
    error, max_abs = relative_error(scores, np.array([1.0, -65504.0, np.nan, 2.5]))
    assert max_abs == 0.5
    assert error == pytest.approx(math.sqrt(0.125) / math.sqrt(2.5))
    assert relative_error(scores, np.array([1.0, np.inf, np.nan, 2.0]))[1] > 1e5
    assert relative_error(np.array([-np.inf]), np.array([-65504.0])) == (0, 0)
    assert relative_error(np.zeros(3), np.zeros(2)) == (math.inf, math.inf)
    assert relative_error(np.zeros(3), np.full(3, 1e-9))[0] < 0.01  # rounding of a zero


class OneBatch(CalibrationDataReader):
    """Calibration on one batch."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds: Iterator[Feeds] = iter([feeds])

    def get_next(self) -> Feeds | None:  # type: ignore[override]
        return next(self.feeds, None)


def halve_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every MatMul in fp16, whose output keeps its name, with Casts on both sides."""
    nodes = list(model.graph.node)
    renamed: dict[str, str] = {}
    result = []
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type != "MatMul":
            result.append(node)
            continue
        for i, name in enumerate(node.input):
            result.append(cast(name, f"{node.name}_in{i}", TensorProto.FLOAT16))
            node.input[i] = f"{node.name}_in{i}"
        result += [node, cast(node.output[0], f"{node.output[0]}_wide", TensorProto.FLOAT)]
        renamed[node.output[0]] = f"{node.output[0]}_wide"
    del model.graph.node[:]
    model.graph.node.extend(result)
    kept = [info for info in model.graph.value_info if info.name not in renamed]  # their types have changed
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return model


def cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)
