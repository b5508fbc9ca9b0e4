"""TensorRT-RTX really builds here, on the CPU, from the graphs of real encoders."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eao import configs, probes
from eao.config import load_config
from eao.errors import ExportError, MissingDependencyError
from eao.export.bundle import WrittenBundle
from eao.export.encoders import Model, concrete_shape, input_specs
from eao.export.onnx import export_onnx
from eao.export.tensorrt import builder
from eao.export.tensorrt.api import targets_for
from eao.export.tensorrt.builder import build
from eao.export.tensorrt.profiles import AxisRange, Profile, make_profiles
from eao.export.tensorrt.request import BuildRequest, BuiltEngine
from eao.files import sha256
from eao.model import build_model

SIZES = {"batch": 3, "text_tokens": 5, "video_tokens": 7, "spectrogram_frames": 128}
ONE_AXIS: Profile = {"batch": AxisRange(1, 8, 64)}
rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


def to_half(source: Path, target: Path) -> Path:
    """A graph that computes in float16 throughout, with float32 inputs and outputs."""
    model = onnx.load(source)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(_half(tensor))
    floats = sorted(v.name for v in graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_half(attribute.t))
        node.input[:] = [f"{name}_half" if name in floats else name for name in node.input]
        node.output[:] = ["output_half" if name == "output" else name for name in node.output]
    casts = [helper.make_node("Cast", [name], [f"{name}_half"], to=TensorProto.FLOAT16) for name in floats]
    nodes = [*casts, *graph.node, helper.make_node("Cast", ["output_half"], ["output"], to=TensorProto.FLOAT)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.save(model, target)
    return target


def _half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).clip(-65504, 65504)
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)


def random_feeds(model: Model, encoder: str, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {spec: concrete_shape(spec, SIZES) for spec in input_specs(model, encoder)}
    return {
        spec.name: np.ones(shape, bool) if spec.dtype == "bool" else rng.random(shape, np.float32)
        for spec, shape in shapes.items()
    }


def to_int8(source: Path, target: Path, model: Model, encoder: str) -> Path:
    """A static QDQ graph: symmetric int8, weights per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([random_feeds(model, encoder, seed) for seed in (0, 1)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QInt8,
        # TensorRT takes no int32 into DequantizeLinear, as which biases would be stored.
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return target


@pytest.fixture(scope="module")
def graph(written: WrittenBundle) -> Path:
    return written.path / "text.fp32.onnx"


@pytest.fixture(scope="module")
def profiles(written: WrittenBundle) -> tuple[Profile, ...]:
    return make_profiles(written.manifest.specs("text"), load_config(written.path / written.manifest.config.file))


def request_for(profiles: tuple[Profile, ...], **settings: Any) -> BuildRequest:
    return BuildRequest(flavour="tensorrt-rtx", profiles=profiles, **settings)


def convert(precision: str, source: Path, folder: Path, model: Model, encoder: str) -> Path:
    target = folder / f"{encoder}.{precision}.onnx"
    if precision == "int8":
        return to_int8(source, target, model, encoder)
    return to_half(source, target) if precision == "fp16" else source


def check_engine(built: BuiltEngine, encoder: str, model: Model) -> None:
    assert built.path.stat().st_size == built.size > 100_000
    assert built.request.targets == ("8.0", "8.6", "8.9", "12.0")
    inputs = {tensor.name: tensor.dtype for tensor in built.facts.inputs}
    assert inputs == {s.name: {"float32": "float"}.get(s.dtype, s.dtype) for s in input_specs(model, encoder)}
    (output,) = built.facts.outputs
    assert (output.name, output.dtype, output.shape[-1]) == ("output", "float", model.config.embedding_dim)


@rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("encoder", ["text", "video-audio"])
def test_engines_of_small_encoders_build_for_all_targets(
    encoder: str, precision: str, written: WrittenBundle, make_model: Callable[[str], Model], tmp_path: Path
) -> None:
    model = make_model("plain")
    source = convert(precision, written.path / f"{encoder}.fp32.onnx", tmp_path, model, encoder)
    config = load_config(written.path / written.manifest.config.file)
    chosen = make_profiles(written.manifest.specs(encoder), config)
    check_engine(build(source, tmp_path / "e.engine", request_for(chosen)), encoder, model)


@rtx
@pytest.mark.slow
def test_engines_of_the_demos_largest_encoder_build_at_every_precision(tmp_path: Path) -> None:
    config = load_config(Path(configs.__file__).parent / "demo" / "demo.yaml")
    model = build_model(config.model).eval()
    encoder = "text-video-audio"
    source = export_onnx(model, encoder, tmp_path / f"{encoder}.onnx", threads=2).path
    chosen = make_profiles(input_specs(model, encoder), config)
    sizes = {}
    for precision in ("fp32", "fp16", "int8"):
        graph = convert(precision, source, tmp_path, model, encoder)
        built = build(graph, tmp_path / f"{precision}.engine", request_for(chosen))
        check_engine(built, encoder, model)
        sizes[precision] = built.size
    assert sizes["fp16"] < sizes["fp32"] and sizes["int8"] < sizes["fp32"]


def fp8_graph(path: Path) -> Path:
    """x (batch, 16) times a weight, both through float8 and back."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((16, 16)).astype(np.float32), "w")
    scale = numpy_helper.from_array(np.float32(0.01), "scale")
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    nodes = [
        helper.make_node(op, [source, "scale", "zero"], [target], name=target)
        for name in ("x", "w")
        for op, source, target in (
            ("QuantizeLinear", name, f"{name}_q"),
            ("DequantizeLinear", f"{name}_q", f"{name}_dq"),
        )
    ]
    nodes.append(helper.make_node("MatMul", ["x_dq", "w_dq"], ["output"], name="product"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])
    y = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 16])
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, scale, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


@rtx
def test_float8_builds_for_the_targets_that_have_it_and_others_are_named(tmp_path: Path) -> None:
    graph = fp8_graph(tmp_path / "g.onnx")
    assert build(graph, tmp_path / "e.engine", request_for((ONE_AXIS,), targets=targets_for("fp8"))).size > 1000
    with pytest.raises(ExportError, match="sm80, sm86.*fp8"):
        build(graph, tmp_path / "e.engine", request_for((ONE_AXIS,)))


@rtx
def test_a_build_leaves_the_engine_and_nothing_else(graph: Path, profiles: tuple[Profile, ...], tmp_path: Path) -> None:
    built = build(graph, tmp_path / "new" / "e.engine", request_for(profiles, targets=("8.9",)))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["e.engine"]
    assert built.sha256 == sha256(built.path)
    assert 0 < built.facts.seconds < 600 and built.facts.peak_memory > 50e6 and built.facts.layers > 50


@rtx
def test_the_log_is_kept_where_it_is_wanted(graph: Path, profiles: tuple[Profile, ...], tmp_path: Path) -> None:
    build(graph, tmp_path / "e.engine", request_for(profiles, targets=("8.9",)), log=tmp_path / "logs" / "e.log")
    assert "[tensorrt-rtx]" in (tmp_path / "logs" / "e.log").read_text()


@rtx
def test_weights_beside_the_graph_are_found(graph: Path, profiles: tuple[Profile, ...], tmp_path: Path) -> None:
    outside = tmp_path / "text.onnx"
    onnx.save(onnx.load(graph), outside, save_as_external_data=True, location="text.onnx.data", size_threshold=0)
    assert build(outside, tmp_path / "e.engine", request_for(profiles, targets=("8.9",))).size > 100_000
    (tmp_path / "text.onnx.data").unlink()
    with pytest.raises(ExportError, match=r"text\.onnx: .*model\..*\n.*export the encoder again"):
        build(outside, tmp_path / "e.engine", request_for(profiles))


@rtx
def test_a_timing_cache_is_not_made_where_nothing_is_timed(
    graph: Path, profiles: tuple[Profile, ...], tmp_path: Path
) -> None:
    built = build(graph, tmp_path / "e.engine", request_for(profiles, targets=("8.9",)), tmp_path / "t.cache")
    assert built.facts.timing_cache == "none" and not (tmp_path / "t.cache").exists()


def save_graph(path: Path, *nodes: onnx.NodeProto) -> Path:
    """A graph from `x` (batch, 4) to `output`, with a (5, 5) weight `w`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    w = numpy_helper.from_array(np.ones((5, 5), np.float32), "w")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    graph = helper.make_graph(list(nodes), "g", [x], [y], [w])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@rtx
@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Unique", ["x"], ["output"], name="odd"), r"node 'odd' \(Unique\): unsupported_node"),
        (helper.make_node("Fused", ["x"], ["output"], name="odd", domain="com.example"), r"node 'odd' \(Fused\)"),
        (helper.make_node("MatMul", ["x", "w"], ["output"], name="odd"), r"node 'odd' \(MatMul\): .*4 .*5 "),
    ],
)
def test_a_node_that_tensorrt_cannot_take_is_named(node: onnx.NodeProto, message: str, tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "g.onnx", node)
    with pytest.raises(ExportError, match=rf"g\.onnx: {message}") as error:
        build(graph, tmp_path / "e.engine", request_for((ONE_AXIS,)))
    assert "another engine" in error.value.hint
    assert not (tmp_path / "e.engine").exists()


@rtx
def test_a_file_that_is_no_graph_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"cannot parse .*g\.onnx: .*Failed to parse"):
        build(tmp_path / "g.onnx", tmp_path / "e.engine", request_for((ONE_AXIS,)))


@rtx
@pytest.mark.parametrize(
    ("profile", "settings", "message"),
    [
        (ONE_AXIS, {}, r"no sizes for the axis 'text_tokens' of text in .*text\.fp32\.onnx\n.*it has batch"),
        ({"batch": AxisRange(9, 8, 1), "text_tokens": AxisRange(1, 2, 3)}, {}, "refuses the profile batch 9:8:1"),
        ({"batch": AxisRange(1, 1, 1), "text_tokens": AxisRange(1, 2, 3)}, {"workspace": 1024}, "workspace"),
    ],
)
def test_what_tensorrt_refuses_is_an_error_with_its_reason(
    profile: Profile, settings: dict[str, Any], message: str, graph: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        build(graph, tmp_path / "e.engine", request_for((profile,), **settings))
    assert "Traceback" in (tmp_path / "e.engine.log").read_text()


@pytest.fixture
def broken_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A package in place of TensorRT-RTX, for the worker alone, that does something as it is imported."""

    def write(code: str) -> None:
        folder = tmp_path / "fake"
        (folder / "tensorrt_rtx").mkdir(parents=True)
        (folder / "tensorrt_rtx" / "__init__.py").write_text(f"import os, signal, subprocess, sys, time\n{code}\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        monkeypatch.setattr(builder, "require_package", lambda flavour: None)

    return write


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('allocating'); os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(signal SIGSEGV\).*words: allocating"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed, most likely because memory ran out"),
        ("os._exit(3)", r"crashed \(exit code 3\)"),
        ("os._exit(0)", r"crashed \(exit code 0\)"),
        ("raise ValueError('a bug')", r"crashed \(exit code 1\).*ValueError: a bug"),
        ("raise ImportError('libnvinfer.so: no such file')", r"tensorrt_rtx cannot be imported: libnvinfer\.so"),
    ],
)
def test_a_worker_that_dies_is_an_error(
    code: str, message: str, broken_package: Callable[[str], None], tmp_path: Path
) -> None:
    broken_package(code)
    graph, out = save_graph(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["output"])), tmp_path / "e.engine"
    out.write_bytes(b"an older engine")
    with pytest.raises(ExportError, match=message) as error:
        build(graph, out, request_for((ONE_AXIS,)))
    assert error.value.hint
    assert out.read_bytes() == b"an older engine"
    assert (tmp_path / "e.engine.log").is_file()


def is_running(pid: str) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_build_that_takes_too_long_is_stopped_with_everything_it_started(
    broken_package: Callable[[str], None], tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    broken_package(f"open({str(pid_file)!r}, 'w').write(str({child}.pid)); time.sleep(600)")
    graph = save_graph(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["output"]))
    with pytest.raises(ExportError, match="took longer than 30 s and was stopped"):
        build(graph, tmp_path / "e.engine", request_for((ONE_AXIS,)), timeout=30)
    deadline = time.monotonic() + 60
    while is_running(pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)  # killed, perhaps not reaped yet
    assert not is_running(pid_file.read_text())


def test_a_folder_of_that_name_is_not_taken_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_package: Callable[[str], None]
) -> None:
    broken_package("os._exit(7)")
    (tmp_path / "tensorrt_rtx").mkdir()
    (tmp_path / "tensorrt_rtx" / "__init__.py").write_text("import os; os._exit(8)")
    graph = save_graph(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["output"]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="exit code 7"):
        build(graph, tmp_path / "e.engine", request_for((ONE_AXIS,)))


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.onnx does not exist"):
        build(tmp_path / "none.onnx", tmp_path / "e.engine", request_for((ONE_AXIS,)))


def test_a_missing_package_is_named_without_starting_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(flavour: str) -> None:
        raise MissingDependencyError(f"{flavour} is missing")

    monkeypatch.setattr(builder, "require_package", missing)
    graph = save_graph(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["output"]))
    with pytest.raises(MissingDependencyError):
        build(graph, tmp_path / "new" / "e.engine", request_for((ONE_AXIS,)))
    assert not (tmp_path / "new").exists()


def test_without_a_gpu_tensorrt_offers_rtx_and_a_later_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "require_package", lambda flavour: None)
    monkeypatch.setattr(probes, "has_nvidia_device", lambda: False)
    graph = save_graph(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["output"]))
    with pytest.raises(ExportError, match=r"only on a machine with an NVIDIA GPU.*\n.*trt-rtx.*--defer"):
        build(graph, tmp_path / "e.engine", BuildRequest(flavour="tensorrt", profiles=(ONE_AXIS,)))
