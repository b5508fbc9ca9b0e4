from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from eao.errors import ExportError
from eao.export.encoders import Model, input_specs
from eao.export.graph import element_types, initializers, producers, root
from eao.export.parity import EncoderParity, encoder_parity
from eao.export.precision import COMPUTE, HALF_TYPES, simulate, to_half
from eao.export.reference import Reference
from eao.export.runtime import batch_feeds
from eao.export.session import open_session

MakeModel = Callable[[str], Model]
MakeGraph = Callable[[str, str], Path]


def parity(model: Model, encoder: str, graph: onnx.ModelProto, folder: Path) -> EncoderParity:
    onnx.save(graph, folder / "graph.onnx")
    session, specs = open_session(folder / "graph.onnx", threads=1), input_specs(model, encoder)

    def encode(batch, name: str) -> NDArray[np.float32]:  # type: ignore[no-untyped-def]
        return session.run(None, batch_feeds(batch, specs, name))[0]

    return encoder_parity(Reference(model), encode, encoder)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_rounding_keeps_parity_at_every_size_and_mask(
    make_model: MakeModel, make_graph: MakeGraph, tmp_path: Path, case: tuple[str, str], dtype: str
) -> None:
    half = to_half(onnx.load(make_graph(*case)), dtype)
    onnx.checker.check_model(half, full_check=True)
    found = parity(make_model(case[0]), case[1], simulate(half), tmp_path)
    # Rounding errors average out over channels, of which the small variants have four in a layer.
    assert (found.figures.cosine_min if case[0] == "wide" else found.figures.cosine_mean) >= 0.9995, found.figures
    assert found.batch_invariance >= 0.9999


def test_onnxruntime_runs_the_fp16_graph_itself(make_model: MakeModel, make_graph: MakeGraph, tmp_path: Path) -> None:
    half = to_half(onnx.load(make_graph("wide", "video-audio")), "fp16")
    assert parity(make_model("wide"), "video-audio", half, tmp_path).figures.cosine_min >= 0.9995


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_tensorrt_rtx_builds_it(
    make_model: MakeModel, make_graph: MakeGraph, build_with_rtx: Callable[..., int], tmp_path: Path, dtype: str
) -> None:
    onnx.save(to_half(onnx.load(make_graph("wide", "video-audio")), dtype), tmp_path / "half.onnx")
    assert build_with_rtx(tmp_path / "half.onnx", make_model("wide"), "video-audio") > 10_000


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_heavy_operators_are_narrow_and_delicate_ones_are_not(
    make_graph: MakeGraph, case: tuple[str, str], dtype: str
) -> None:
    source = onnx.load(make_graph(*case))
    half = to_half(source, dtype)
    types, narrow = element_types(half), HALF_TYPES[dtype]
    delicate = {"LayerNormalization", "Softmax", "ReduceSum", "ReduceL2", "ReduceMean", "Exp", "Pow", "Sqrt"}
    wide = []
    for node in half.graph.node:
        if node.op_type in COMPUTE:
            kinds = {types[name] for name in node.input}
            wide += [node] if kinds == {TensorProto.FLOAT} else []
            assert len(kinds) == 1, node.name
        if node.op_type in delicate:
            assert narrow not in {types[name] for name in node.input}, node.name
    # The convolution over decibels, and nothing else.
    assert [source_of(n, half) for n in wide] == (["audio"] if "audio" in case[1] else [])
    assert list(half.graph.input) == list(source.graph.input)
    assert list(half.graph.output) == list(source.graph.output)


def source_of(node: onnx.NodeProto, model: onnx.ModelProto) -> str:
    return root(node.input[0], producers(model))


def test_no_cast_undoes_another_and_none_repeats_one(make_graph: MakeGraph, case: tuple[str, str]) -> None:
    half = to_half(onnx.load(make_graph(*case)), "bf16")
    makers = producers(half)
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    floats = [c for c in casts if element_types(half)[c.input[0]] in (TensorProto.FLOAT, TensorProto.BFLOAT16)]
    assert not [c.name for c in floats if c.input[0] in initializers(half)]  # stored in the right type at once
    for cast in floats:
        before = makers.get(cast.input[0])
        assert before is None or before.op_type != "Cast" or before not in floats, cast.name
    seen = [(c.input[0], c.attribute[0].i) for c in floats]
    assert len(set(seen)) == len(seen)


def test_weights_take_half_the_bytes(make_graph: MakeGraph) -> None:
    source = onnx.load(make_graph("deep", "text"))
    half = to_half(source, "fp16")
    matrices = [sum(len(t.raw_data) for t in g.graph.initializer if len(t.dims) == 2) for g in (source, half)]
    assert 2 * matrices[1] == matrices[0] > 0


def test_the_source_is_left_as_it_was(make_graph: MakeGraph) -> None:
    source = onnx.load(make_graph("wide", "video-audio"))
    before = source.SerializeToString(deterministic=True)
    simulate(to_half(source, "bf16"))
    assert source.SerializeToString(deterministic=True) == before


def linear(weight: NDArray[np.float32]) -> onnx.ModelProto:
    """x (rows, I) -> relu(x W), then the sum over its columns."""
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["product"], name="first"),
        onnx.helper.make_node("Relu", ["product"], ["positive"], name="second"),
        onnx.helper.make_node("ReduceSum", ["positive", "last"], ["output"], name="third", keepdims=0),
    ]
    x = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", weight.shape[0]])
    output = onnx.helper.make_tensor_value_info("output", TensorProto.FLOAT, ["rows"])
    stored = [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(np.int64([1]), "last")]
    graph = onnx.helper.make_graph(nodes, "linear", [x], [output], stored)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_simulation_rounds_inputs_weights_and_results_as_torch_does(
    tmp_path: Path, dtype: str, kind: torch.dtype
) -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((5, 64), np.float32), random.standard_normal((64, 3), np.float32)
    onnx.save(simulate(to_half(linear(weight), dtype)), tmp_path / "g.onnx")
    found = open_session(tmp_path / "g.onnx", threads=1).run(None, {"x": x})[0]
    product = torch.from_numpy(x).to(kind).float() @ torch.from_numpy(weight).to(kind).float()
    expected = product.to(kind).float().relu().sum(1).numpy()
    # A sum in another order may round once more to the neighbouring number: three columns, each of a few units.
    assert np.abs(found - expected).max() <= 3 * 2 * torch.finfo(kind).eps * np.abs(expected).max()
    unrounded = np.maximum(x @ weight, 0).sum(1)
    assert np.abs(found - expected).mean() < np.abs(found - unrounded).mean() / 10


def test_a_weight_beyond_float16_names_itself_and_bf16_takes_it() -> None:
    model = linear(np.full((4, 2), 7e4, np.float32))
    with pytest.raises(ExportError, match=r"w holds 7e\+04, beyond the range of fp16\n.*bf16"):
        to_half(model, "fp16")
    assert to_half(model, "bf16").opset_import[0].version == 22  # the first in which Conv takes bfloat16
