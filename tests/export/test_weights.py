from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from eao.errors import ExportError
from eao.export.encoders import Model
from eao.export.openvino import openvino_core
from eao.export.session import open_session
from eao.export.weights import PAGE, WeightFile, external_files, share

# Wide enough that matrices do not count as small.
SIZE = 40


def product(*weights: np.ndarray) -> onnx.ModelProto:
    """x -> x W1 W2 ..., (rows, SIZE)."""
    names = [f"w{i}" for i in range(len(weights))]
    values = ["x", *(f"h{i}" for i in range(len(weights) - 1)), "output"]
    nodes = [
        onnx.helper.make_node("MatMul", [x, w], [y]) for x, w, y in zip(values, names, values[1:], strict=False)
    ]  # fmt: skip
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["rows", SIZE]) for n in ("x", "output")]
    stored = [onnx.numpy_helper.from_array(w, name) for w, name in zip(weights, names, strict=True)]
    graph = onnx.helper.make_graph(nodes, "product", ends[:1], ends[1:], stored)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def matrices() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal((SIZE, SIZE), np.float32) for _ in range(3)]


def run(path: Path) -> np.ndarray:
    return open_session(path, threads=1).run(None, {"x": np.eye(SIZE, dtype=np.float32)})[0]


def test_equal_weights_of_several_graphs_are_stored_once(tmp_path: Path, matrices: list[np.ndarray]) -> None:
    a, b, c = matrices
    onnx.save(product(a, b), tmp_path / "ab.onnx")
    onnx.save(product(c, a), tmp_path / "ca.onnx")  # under another name there
    path = share(tmp_path, ["ab.onnx", "ca.onnx"])
    assert path.stat().st_size == 2 * (-(-a.nbytes // PAGE) * PAGE) + a.nbytes  # three, not four
    np.testing.assert_allclose(run(tmp_path / "ab.onnx"), a @ b, atol=1e-4)
    np.testing.assert_allclose(run(tmp_path / "ca.onnx"), c @ a, atol=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ab.onnx", "ca.onnx", "weights.bin"]


def test_graphs_work_after_their_folder_was_moved(tmp_path: Path, matrices: list[np.ndarray]) -> None:
    (tmp_path / "old").mkdir()
    onnx.save(product(*matrices), tmp_path / "old" / "g.onnx")
    share(tmp_path / "old", ["g.onnx"], "weights.fp32.bin")
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert external_files(tmp_path / "new" / "g.onnx") == ("weights.fp32.bin",)
    assert run(tmp_path / "new" / "g.onnx").shape == (SIZE, SIZE)


def test_weights_that_lay_in_a_file_of_their_own_move_too(tmp_path: Path, matrices: list[np.ndarray]) -> None:
    onnx.save(product(*matrices), tmp_path / "g.onnx", save_as_external_data=True, location="g.onnx.data")
    share(tmp_path, ["g.onnx"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.onnx", "weights.bin"]
    assert run(tmp_path / "g.onnx").shape == (SIZE, SIZE)


def test_sharing_again_into_the_same_file_changes_nothing(tmp_path: Path, matrices: list[np.ndarray]) -> None:
    onnx.save(product(*matrices), tmp_path / "g.onnx")
    first = share(tmp_path, ["g.onnx"]).read_bytes()
    assert share(tmp_path, ["g.onnx"]).read_bytes() == first


def test_an_error_leaves_the_folder_as_it_was(tmp_path: Path, matrices: list[np.ndarray]) -> None:
    onnx.save(product(*matrices), tmp_path / "g.onnx")
    before = (tmp_path / "g.onnx").read_bytes()
    with pytest.raises(ExportError, match=r"missing\.onnx does not exist"):
        share(tmp_path, ["g.onnx", "missing.onnx"])
    assert [p.name for p in tmp_path.iterdir()] == ["g.onnx"]
    assert (tmp_path / "g.onnx").read_bytes() == before


def test_small_tensors_stay_in_the_graph(tmp_path: Path, make_graph: Callable[[str, str], Path]) -> None:
    with WeightFile(tmp_path / "weights.bin") as weights:
        path = weights.save(onnx.load(make_graph("wide", "video-audio")), "g.onnx")
    model = onnx.load(path, load_external_data=False)
    kinds = {t.data_type for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert kinds == {onnx.TensorProto.FLOAT}  # no shapes
    onnx.checker.check_model(str(path), full_check=True)


def test_openvino_reads_shared_weights(tmp_path: Path, matrices: list[np.ndarray]) -> None:
    pytest.importorskip("openvino")
    a, b, _ = matrices
    onnx.save(product(a, b), tmp_path / "g.onnx")
    share(tmp_path, ["g.onnx"])
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = openvino_core("tests").compile_model(str(tmp_path / "g.onnx"), "CPU", config)
    np.testing.assert_allclose(compiled({"x": np.eye(SIZE, dtype=np.float32)})[0], a @ b, atol=1e-4)


def test_tensorrt_rtx_reads_shared_weights(
    tmp_path: Path,
    make_model: Callable[[str], Model],
    make_graph: Callable[[str, str], Path],
    build_with_rtx: Callable[..., int],
) -> None:
    with WeightFile(tmp_path / "weights.bin") as weights:
        path = weights.save(onnx.load(make_graph("wide", "video-audio")), "g.onnx")
    assert build_with_rtx(path, make_model("wide"), "video-audio") > 10_000
