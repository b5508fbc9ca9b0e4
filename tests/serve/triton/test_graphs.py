from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from eao.errors import ServingError
from eao.serve.triton.graphs import write_onnx, write_openvino


def graph_with(inner: str, output: str, path: Path, external: bool = False) -> Path:
    """x -> 2 x -> 2 x + 1, the value between called `inner`."""
    weights = [numpy_helper.from_array(np.full(512, 2, np.float32), "two")]
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], [inner]),
            helper.make_node("Add", [inner, "one"], [output]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 512])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 512])],
        [*weights, numpy_helper.from_array(np.ones(512, np.float32), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path), save_as_external_data=external, location="weights.data", size_threshold=0)
    return path


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("inner", ["between", "embedding"])
def test_the_output_is_called_embedding(tmp_path: Path, inner: str, external: bool) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = graph_with(inner, "output", tmp_path / "in" / "text.onnx", external)
    write_onnx(source, tmp_path / "out" / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert [x.name for x in session.get_outputs()] == ["embedding"]
    np.testing.assert_array_equal(session.run(None, {"x": np.ones((3, 512), np.float32)})[0], 3)


def test_a_damaged_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"no graph")
    with pytest.raises(ServingError, match=r"cannot read .*text\.onnx"):
        write_onnx(tmp_path / "text.onnx", tmp_path / "model.onnx")


def test_openvino_finds_its_output_by_the_new_name(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    model = core.read_model(str(graph_with("between", "output", tmp_path / "text.onnx")))
    openvino.save_model(model, str(tmp_path / "text.xml"))
    (tmp_path / "out").mkdir()
    write_openvino(tmp_path / "text.xml", tmp_path / "out" / "model.xml")
    compiled = core.compile_model(str(tmp_path / "out" / "model.xml"), "CPU")
    found = compiled({"x": np.ones((3, 512), np.float32)})[compiled.output("embedding")]
    np.testing.assert_array_equal(found, 3)
