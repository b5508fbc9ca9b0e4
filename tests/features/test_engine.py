from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eao.errors import CheckpointError
from eao.features.engine import open_engine, openvino_core

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SHAPE = (None, None, 3)


def write_mean(path: Path, name: str = "frames", kind: int = onnx.TensorProto.UINT8) -> Path:
    """A graph that gives the mean colour of each picture."""
    helper = onnx.helper
    nodes = [
        helper.make_node("Cast", [name], ["float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["output"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info(name, kind, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(np.array([1, 2], np.int64), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def write_openvino(path: Path) -> Path:
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino_core("tests").read_model(str(write_mean(path.with_suffix(".onnx")))), str(path))
    return path


@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_rows_of_any_batch_and_size(tmp_path: Path, name: str) -> None:
    path = (write_openvino if name == "x.xml" else write_mean)(tmp_path / name)
    run = open_engine(path, SHAPE, 3)
    for shape in ((1, 8, 8, 3), (3, 5, 9, 3)):
        frames = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        np.testing.assert_allclose(run(frames), frames.mean((1, 2)), rtol=1e-5)


def write_quantized(path: Path) -> Path:
    """A graph that multiplies 64 numbers by int8 weights, all 127, and keeps the sums in 8 bits."""
    helper, kinds = onnx.helper, onnx.TensorProto
    constants = {
        "one": np.float32(1),
        "step": np.float32(64 * 127),
        "unsigned": np.uint8(0),
        "signed": np.int8(0),
        "weights": np.full((64, 3), 127, np.int8),
    }
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=kinds.FLOAT),
        helper.make_node("QuantizeLinear", ["float", "one", "unsigned"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "unsigned"], ["left"]),
        helper.make_node("DequantizeLinear", ["weights", "one", "signed"], ["right"]),
        helper.make_node("MatMul", ["left", "right"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "step", "unsigned"], ["kept"]),
        helper.make_node("DequantizeLinear", ["kept", "step", "unsigned"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("frames", kinds.UINT8, ["batch", 64])],
        [helper.make_tensor_value_info("output", kinds.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_sums_of_int8_are_exact_on_every_cpu(tmp_path: Path) -> None:
    """Two products of the greatest numbers exceed 16 bits, in which CPUs without VNNI would add them up."""
    run = open_engine(write_quantized(tmp_path / "x.onnx"), (64,), 3)
    np.testing.assert_array_equal(run(np.full((4, 64), 255, np.uint8)), np.float32(64 * 255 * 127))


@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_threads_share_an_engine(tmp_path: Path, name: str) -> None:
    path = (write_openvino if name == "x.xml" else write_mean)(tmp_path / name)
    run = open_engine(path, SHAPE, 3)
    frames = [np.full((2, 16, 16, 3), value, np.uint8) for value in range(64)]
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(run, frames))
    np.testing.assert_array_equal(np.stack(rows), np.arange(64)[:, None, None] * np.ones((1, 2, 3)))


@pytest.mark.parametrize(("shape", "width"), [(SHAPE, 4), ((None, None, 4), 3), ((16, None, None, 3), 3)])
def test_an_engine_of_another_network_is_refused(tmp_path: Path, shape: tuple[int | None, ...], width: int) -> None:
    path = write_mean(tmp_path / "x.onnx")
    with pytest.raises(CheckpointError, match=r"x\.onnx is an engine of another network"):
        open_engine(path, shape, width)


@pytest.mark.parametrize("change", [{"name": "text"}, {"kind": onnx.TensorProto.FLOAT}])
def test_a_graph_that_takes_no_frames_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="does not take frames"):
        open_engine(write_mean(tmp_path / "x.onnx", **change), SHAPE, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    if name == "x.xml":
        pytest.importorskip("openvino")
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=f"cannot load .*{name}"):
        open_engine(tmp_path / name, SHAPE, 3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.onnx does not exist"):
        open_engine(tmp_path / "x.onnx", SHAPE, 3)
