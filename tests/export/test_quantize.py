from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from eao.errors import ExportError
from eao.export.calibration import Range, collect
from eao.export.cases import parity_cases
from eao.export.encoders import Model, input_specs
from eao.export.openvino import openvino_core
from eao.export.parity import compare, encoder_parity
from eao.export.precision import simulate, to_half
from eao.export.quantize import calibrated_tensors, quantizable_nodes, to_fp8, to_int8
from eao.export.reference import Reference
from eao.export.runtime import batch_feeds
from eao.export.session import open_session
from eao.model import Batch
from eao.probes import has_exact_int8

MakeModel = Callable[[str], Model]
MakeGraph = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def calibrated(make_model: MakeModel, make_graph: MakeGraph) -> Callable[[str, str], dict[str, Range]]:
    """(variant, encoder) -> ranges on random clips of other seeds than those of parity."""

    def ranges(variant: str, encoder: str) -> dict[str, Range]:
        model, path = make_model(variant), make_graph(variant, encoder)
        specs = input_specs(model, encoder)
        feeds = (batch_feeds(case.batch, specs, encoder) for case in parity_cases(model, encoder, seed=5000))
        return collect(path, feeds, calibrated_tensors(onnx.load(path)), threads=1)

    return ranges


def encode_with(graph: onnx.ModelProto, model: Model, encoder: str, folder: Path) -> Callable:
    onnx.save(graph, folder / "graph.onnx")
    session, specs = open_session(folder / "graph.onnx", threads=1), input_specs(model, encoder)

    def encode(batch: Batch, name: str) -> NDArray[np.float32]:
        return session.run(None, batch_feeds(batch, specs, name))[0]

    return encode


def test_int8_keeps_parity_at_every_size_and_mask_and_alone_as_in_a_batch(
    make_model: MakeModel, make_graph: MakeGraph, calibrated: Callable, tmp_path: Path, case: tuple[str, str]
) -> None:
    graph = to_int8(onnx.load(make_graph(*case)), calibrated(*case))
    onnx.checker.check_model(graph, full_check=True)
    model = make_model(case[0])
    found = encoder_parity(Reference(model), encode_with(graph, model, case[1], tmp_path), case[1])
    assert found.batch_invariance >= 0.9999
    # Rounding errors average out over channels, of which the small variants have four in a layer.
    assert found.figures.cosine_mean >= 0.98, found.figures
    if case[0] == "wide":  # not the least: for one made-up clip video and sound point apart, and their mean is short
        assert found.figures.cosine_p1 >= 0.99, found.figures


def test_fp8_keeps_parity_within_its_three_bits(
    make_model: MakeModel, make_graph: MakeGraph, calibrated: Callable, tmp_path: Path, case: tuple[str, str]
) -> None:
    graph = to_fp8(onnx.load(make_graph(*case)), calibrated(*case))
    onnx.checker.check_model(graph, full_check=True)
    model = make_model(case[0])
    encode = encode_with(simulate(graph), model, case[1], tmp_path)
    found = encoder_parity(Reference(model), encode, case[1]).figures
    assert found.cosine_mean >= 0.98, found
    if case[0] == "wide":
        assert found.cosine_mean >= 0.995, found


@pytest.mark.parametrize("case", [("wide", "video-audio"), ("avlnet", "text"), ("avlnet", "audio")], ids="-".join)
def test_openvino_gives_what_onnxruntime_gives(
    make_model: MakeModel, make_graph: MakeGraph, calibrated: Callable, tmp_path: Path, case: tuple[str, str]
) -> None:
    pytest.importorskip("openvino")
    model = make_model(case[0])
    graph = to_int8(onnx.load(make_graph(*case)), calibrated(*case), reduce_range=not has_exact_int8())
    encode = encode_with(graph, model, case[1], tmp_path)
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = openvino_core("tests").compile_model(str(tmp_path / "graph.onnx"), "CPU", config)
    for example in parity_cases(model, case[1], seed=1):
        feeds = batch_feeds(example.batch, input_specs(model, case[1]), case[1])
        # Now and then a number lies between two levels, and the runtimes round it apart, which shows in few channels.
        assert compare(encode(example.batch, case[1]), compiled(feeds)[0]).cosine_mean >= 0.99, example.name


def test_int8_sums_are_exact_on_every_processor(
    make_model: MakeModel, make_graph: MakeGraph, calibrated: Callable, tmp_path: Path, case: tuple[str, str]
) -> None:
    """Without VNNI they would overflow; with float32 products between the pairs they cannot."""
    graph, model = to_int8(onnx.load(make_graph(*case)), calibrated(*case)), make_model(case[0])
    encode = encode_with(graph, model, case[1], tmp_path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    exact = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"), options)
    for example in parity_cases(model, case[1], seed=1):
        feeds = batch_feeds(example.batch, input_specs(model, case[1]), case[1])
        # Now and then a number lies between two levels and is rounded apart, which shows in few channels.
        assert compare(encode(example.batch, case[1]), exact.run(None, feeds)[0]).cosine_mean >= 0.99, example.name


def test_no_two_products_of_reduced_weights_overflow_16_bits(make_graph: MakeGraph, calibrated: Callable) -> None:
    case = "wide", "video-audio"
    source = onnx.load(make_graph(*case))
    graph = to_int8(source, calibrated(*case), reduce_range=True)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    exact = {t.name: onnx.numpy_helper.to_array(t) for t in source.graph.initializer}
    weights = [n.input for n in graph.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    assert len(weights) == len(quantizable_nodes(source))
    largest = {int(np.abs(stored[numbers].astype(int)).max()) for numbers, *_ in weights}
    assert largest == {64} and 2 * max(largest) * 255 < 2**15
    name = next(n.input[1] for n in source.graph.node if n.op_type == "Conv" and n.name in quantizable_nodes(source))
    scale = stored[f"{name}.int8.scale"].reshape(-1, 1, 1, 1)
    assert (np.abs(stored[f"{name}.int8"] * scale - exact[name]) <= scale * 0.5001).all()


@pytest.mark.parametrize("quantize", [to_int8, to_fp8])
def test_what_is_not_quantised_may_be_narrow(
    make_model: MakeModel, make_graph: MakeGraph, calibrated: Callable, tmp_path: Path, quantize: Callable
) -> None:
    case = "wide", "video-audio"
    graph = quantize(onnx.load(make_graph(*case)), calibrated(*case))
    half = to_half(graph, "fp16")
    onnx.checker.check_model(half, full_check=True)
    model = make_model(case[0])
    encode, encode_half = (encode_with(simulate(g), model, case[1], tmp_path) for g in (graph, half))
    for example in parity_cases(model, case[1], seed=1):
        found = compare(encode(example.batch, case[1]), encode_half(example.batch, case[1]))
        assert found.cosine_mean >= 0.998, example.name  # numbers between two levels are rounded apart now and then


@pytest.mark.parametrize("case", [("wide", "video-audio"), ("avlnet", "text")], ids="-".join)
@pytest.mark.parametrize("others", ["fp32", "fp16"])
@pytest.mark.parametrize(("quantize", "capability"), [(to_int8, "SM86"), (to_fp8, "SM89")])
def test_tensorrt_rtx_builds_it(
    make_model: MakeModel,
    make_graph: MakeGraph,
    calibrated: Callable,
    build_with_rtx: Callable[..., int],
    tmp_path: Path,
    case: tuple[str, str],
    quantize: Callable,
    capability: str,
    others: str,
) -> None:
    graph = quantize(onnx.load(make_graph(*case)), calibrated(*case))
    onnx.save(graph if others == "fp32" else to_half(graph, others), tmp_path / "graph.onnx")
    assert build_with_rtx(tmp_path / "graph.onnx", make_model(case[0]), case[1], capability) > 10_000


def test_onnxruntime_fuses_every_product_and_convolution_into_an_int8_kernel(
    make_graph: MakeGraph, calibrated: Callable, tmp_path: Path, case: tuple[str, str]
) -> None:
    source = onnx.load(make_graph(*case))
    graph = to_int8(source, calibrated(*case))
    kernels = optimized_kernels(graph, tmp_path / "optimized.onnx")
    chosen = Counter(n.op_type for n in source.graph.node if n.name in quantizable_nodes(source))
    assert kernels["MatMulIntegerToFloat"] == chosen["MatMul"] + chosen["Gemm"]
    assert kernels["QLinearConv"] == chosen["Conv"]
    assert kernels["Conv"] == ("audio" in case[1])  # the first, on decibels
    assert kernels["Gemm"] == kernels["FusedGemm"] == 0


def optimized_kernels(graph: onnx.ModelProto, path: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_scales_are_symmetric_and_weights_have_one_a_channel(make_graph: MakeGraph, calibrated: Callable) -> None:
    source = onnx.load(make_graph("davenet-v2", "audio"))
    graph = to_int8(source, calibrated("davenet-v2", "audio"))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    pairs = [n for n in graph.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert not any(stored[n.input[2]].any() for n in pairs)
    weights = [n for n in pairs if n.input[0] in stored]
    assert len(weights) == len(quantizable_nodes(source))
    for node in weights:
        values, scale = stored[node.input[0]], stored[node.input[1]]
        axis = node.attribute[0].i
        assert values.dtype == np.int8 and scale.shape == (values.shape[axis],)
        others = tuple(i for i in range(values.ndim) if i != axis)
        assert (np.abs(values.astype(np.int16)).max(others) == 127).all()  # -128 would have no counterpart


def test_weights_return_within_half_a_step(make_graph: MakeGraph, calibrated: Callable) -> None:
    source = onnx.load(make_graph("deep", "text"))
    graph = to_int8(source, calibrated("deep", "text"))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    exact = {t.name: onnx.numpy_helper.to_array(t) for t in source.graph.initializer}
    product = next(n for n in source.graph.node if n.op_type == "MatMul" and n.name in quantizable_nodes(source))
    name = product.input[1]
    found = stored[f"{name}.int8"] * stored[f"{name}.int8.scale"]
    assert (np.abs(found - exact[name]) <= stored[f"{name}.int8.scale"] * 0.5001).all()


def test_nodes_that_are_kept_stay_as_they_were(make_graph: MakeGraph, calibrated: Callable, tmp_path: Path) -> None:
    source = onnx.load(make_graph("davenet-v2", "audio"))
    names = quantizable_nodes(source)
    ranges = calibrated("davenet-v2", "audio")
    assert [n.op_type for n in to_int8(source, ranges, names).graph.node] == [n.op_type for n in source.graph.node]
    convolutions = [n.name for n in source.graph.node if n.op_type == "Conv" and n.name in names]
    kernels = optimized_kernels(to_int8(source, ranges, convolutions[3:5]), tmp_path / "optimized.onnx")
    assert kernels["QLinearConv"] == len(convolutions) - 2


def test_attention_scores_and_normalisations_are_left_alone(make_graph: MakeGraph) -> None:
    source = onnx.load(make_graph("wide", "video-audio"))
    kinds = Counter(n.op_type for n in source.graph.node if n.name in quantizable_nodes(source))
    assert kinds == {"MatMul": 7, "Gemm": 6, "Conv": 5}  # of 9 products two are of computed values


def test_a_weight_that_several_nodes_read_is_stored_once(make_graph: MakeGraph, calibrated: Callable) -> None:
    graph = to_int8(onnx.load(make_graph("wide", "video-audio")), calibrated("wide", "video-audio"))
    name = "model.fusion.blocks.0.mlp.fc2.weight.int8.transposed"  # of all three modalities
    assert sum(name in node.input for node in graph.graph.node) == 1


def test_a_missing_range_is_an_error(make_graph: MakeGraph) -> None:
    with pytest.raises(ExportError, match="no range for text"):
        to_int8(onnx.load(make_graph("avlnet", "text")), {})
