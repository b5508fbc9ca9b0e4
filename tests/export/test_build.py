"""Several engines and precisions of one model in one bundle: which are made, proven, kept and used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from eao.api import load
from eao.config import Config
from eao.errors import ConfigError, ExportError, ParityError
from eao.export.build import Options, Request, choose_requests, needs_reduced_range
from eao.export.bundle import WrittenBundle, write_bundle
from eao.export.encoders import Model
from eao.export.engines import unproven
from eao.export.parity_report import BundleParity
from eao.export.runtime import Bundle
from eao.export.thresholds import parse_thresholds
from eao.model import Batch

MakeModel, MakeConfig = Callable[[str], Model], Callable[[str], Config]


def test_every_engine_gets_the_precisions_that_it_offers() -> None:
    chosen = choose_requests(["onnx", "trt-rtx", "onnxruntime"], ["fp16", "fp8"])
    assert chosen == (
        Request("onnxruntime", "fp16"),
        Request("tensorrt-rtx", "fp16"),
        Request("tensorrt-rtx", "fp8"),
    )


@pytest.mark.parametrize(
    ("engines", "precisions", "says"),
    [
        (["tpu"], ["fp32"], "no engine 'tpu'\n     choose from onnx, openvino, trt, trt-rtx"),
        (["onnx"], ["int4"], "no precision 'int4'"),
        (["onnx", "openvino"], ["fp32", "fp8"], "onnxruntime and openvino cannot be made at fp8"),
        ([], ["fp32"], "no engine was named"),
        (["onnx"], [], "no precision was named"),
    ],
)
def test_requests_that_cannot_be_met(engines: list[str], precisions: list[str], says: str) -> None:
    with pytest.raises(ExportError) as caught:
        choose_requests(engines, precisions)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("engines", "precision", "exact", "reduced"),
    [
        (["onnx", "openvino"], "int8", False, True),
        (["onnx", "openvino"], "int8", True, False),
        (["onnx", "trt-rtx"], "int8", False, False),
        (["openvino"], "int8-nncf", False, False),  # NNCF does it itself
    ],
)
def test_int8_weights_keep_to_half_of_their_range_where_openvino_would_overflow(
    monkeypatch: pytest.MonkeyPatch, engines: list[str], precision: str, exact: bool, reduced: bool
) -> None:
    monkeypatch.setattr("eao.probes.has_exact_int8", lambda: exact)
    assert needs_reduced_range(choose_requests(engines, [precision])) == reduced


def test_the_weights_of_such_a_bundle_are_so(
    make_model: MakeModel,
    make_config: MakeConfig,
    wide_clips: list[Batch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("eao.probes.has_exact_int8", lambda: False)
    written = write_bundle(
        make_model("wide"),
        tmp_path / "b",
        make_config("wide"),
        ["text"],
        choose_requests(["openvino"], ["int8"]),
        Options(threads=1),
        calibration=wide_clips,
    )
    graph = onnx.load(written.path / "text.int8.onnx")
    weights = [onnx.numpy_helper.to_array(t) for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(values.astype(int)).max() for values in weights) == 64


@pytest.fixture(scope="module")
def matrix(
    make_model: MakeModel, make_config: MakeConfig, wide_clips: list[Batch], tmp_path_factory: pytest.TempPathFactory
) -> WrittenBundle:
    """Text and video by onnxruntime at four precisions, with shared weights."""
    return write_bundle(
        make_model("wide"),
        tmp_path_factory.mktemp("matrix") / "bundle",
        make_config("wide"),
        ["text", "video"],
        choose_requests(["onnx"], ["fp32", "fp16", "bf16", "int8"]),
        Options(threads=1, share_weights=True),
        batches=wide_clips,
        calibration=wide_clips,
        # Twelve random clips: neighbours change places at the slightest touch.
        thresholds=parse_thresholds(["int8.top10_overlap=0.5", "int8.recall10=100"]),
    )


def test_all_precisions_are_in_one_bundle(matrix: WrittenBundle) -> None:
    assert matrix.failed is None
    assert [engine.precision for engine in matrix.manifest.of_encoder("text")] == ["fp32", "fp16", "bf16", "int8"]
    assert {file.file for file in matrix.manifest.files()} >= {"weights.fp32.bin", "weights.int8.bin", "text.int8.onnx"}
    cosines = {e.precision: e.parity.cosine_min for e in matrix.manifest.of_encoder("video") if e.parity}
    assert cosines["fp32"] > cosines["fp16"] > cosines["int8"] and cosines["fp16"] > cosines["bf16"]
    simulated = {e.precision: e.parity.simulated for e in matrix.manifest.of_encoder("video") if e.parity}
    assert simulated == {"fp32": False, "fp16": False, "bf16": True, "int8": False}
    assert len(BundleParity.load(matrix.path).reports) == 4


def test_weights_that_encoders_share_are_stored_once(matrix: WrittenBundle) -> None:
    graphs = [onnx.load(matrix.path / f"{name}.fp32.onnx") for name in ("text", "video")]
    stored = sum(len(tensor.raw_data) for graph in graphs for tensor in graph.graph.initializer)
    assert (matrix.path / "weights.fp32.bin").stat().st_size < stored


def test_the_engine_that_is_asked_for_is_used(matrix: WrittenBundle, wide_clips: list[Batch], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(matrix.path, tmp_path / "moved"))
    rows = {p: Bundle(moved, threads=1, precision=p).encode(wide_clips[0], "text") for p in ("fp32", "fp16", "int8")}
    np.testing.assert_array_equal(Bundle(moved, threads=1).encode(wide_clips[0], "text"), rows["fp32"])  # the first one
    for precision in ("fp16", "int8"):
        cosine = (rows[precision] * rows["fp32"]).sum(1)
        assert 0.97 < cosine.min() < 1 and not np.array_equal(rows[precision], rows["fp32"])
    assert load(moved, engine="onnx", precision="fp16").backend.entry("text").key == "text.onnxruntime.fp16"


def test_an_engine_that_is_not_there_or_cannot_run(matrix: WrittenBundle, wide_clips: list[Batch]) -> None:
    with pytest.raises(ExportError, match=r"has no openvino int8 engine"):
        Bundle(matrix.path, engine="openvino", precision="int8")
    with pytest.raises(ExportError, match=r"no engine of encoder text .*\n.*no bfloat16 products"):
        Bundle(matrix.path, precision="bf16").encode(wide_clips[0], "text")


def test_one_changed_byte_of_shared_weights_is_refused(
    matrix: WrittenBundle, wide_clips: list[Batch], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(matrix.path, tmp_path / "moved"))
    path = moved / "weights.int8.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ExportError, match=r"weights\.int8\.bin was changed"):
        Bundle(moved, precision="int8").encode(wide_clips[0], "text")
    assert Bundle(moved, precision="fp32").encode(wide_clips[0], "text").shape == (5, 64)


def test_what_fails_is_kept_apart_with_the_layer_where_it_fails(
    make_model: MakeModel, make_config: MakeConfig, clips: list[Batch], tmp_path: Path
) -> None:
    written = write_bundle(
        make_model("plain"),
        tmp_path / "b",
        make_config("plain"),
        "text",
        choose_requests(["onnx"], ["fp32", "fp16"]),
        Options(threads=1),
        thresholds=parse_thresholds(["fp16.cosine=1"]),
        bisect=True,
    )
    assert list(written.manifest.engines) == ["text.onnxruntime.fp32"]
    assert not (written.path / "text.fp16.onnx").exists()
    assert written.failed == tmp_path / "b.failed"
    assert {file.name for file in written.failed.iterdir()} >= {"text.fp16.onnx", "parity.json", "parity.md"}
    assert "onnxruntime fp16 text: cosine min" in written.parity.failures()[0]
    ((report, encoder, divergence),) = written.parity.divergences()
    assert (report.precision, encoder) == ("fp16", "text") and divergence.describe()
    again = write_bundle(make_model("plain"), tmp_path / "b", make_config("plain"), "text", options=Options(threads=1))
    assert again.failed is None and not (tmp_path / "b.failed").exists()
    with pytest.raises(ParityError, match="nothing else was written"):
        write_bundle(
            make_model("plain"),
            tmp_path / "other",
            make_config("plain"),
            "text",
            choose_requests(["onnx"], ["fp16"]),
            Options(threads=1),
            thresholds=parse_thresholds(["fp16.cosine=1"]),
        )
    assert not (tmp_path / "other").exists()


def test_int8_that_fails_keeps_more_layers_in_float32_until_it_holds(
    make_model: MakeModel, make_config: MakeConfig, clips: list[Batch], tmp_path: Path
) -> None:
    requests = choose_requests(["onnx"], ["int8"])
    arguments = (make_model("plain"), tmp_path / "b", make_config("plain"), "text", requests, Options(threads=1))
    usual = write_bundle(*arguments, calibration=clips).manifest.engines["text.onnxruntime.int8"]
    strict = parse_thresholds(["int8.cosine=0.9996"])
    tightened = write_bundle(*arguments, calibration=clips, thresholds=strict).manifest.engines[usual.key]
    assert usual.parity is not None and usual.parity.cosine_min < 0.9996 and not usual.left
    assert tightened.parity is not None and tightened.parity.cosine_min >= 0.9996 and tightened.left
    assert len(tightened.left) < tightened.layers == usual.layers
    # Not all of it: that would be no int8 engine.
    graph = onnx.load(tmp_path / "b" / "text.int8.onnx")
    assert any(tensor.data_type == onnx.TensorProto.INT8 and tensor.dims for tensor in graph.graph.initializer)


def test_int8_needs_clips(make_model: MakeModel, make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="need clips to choose their ranges from"):
        write_bundle(
            make_model("plain"), tmp_path / "b", make_config("plain"), "text", choose_requests(["onnx"], ["int8"])
        )
    assert not (tmp_path / "b").exists()


def test_tensorrt_without_a_gpu_says_at_once_what_works_instead(
    make_model: MakeModel, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eao.probes.has_nvidia_device", lambda: False)
    said: list[str] = []
    with pytest.raises(ExportError, match=r"and this one has none\n.*trt-rtx builds here.*--defer"):
        write_bundle(
            make_model("plain"),
            tmp_path / "b",
            make_config("plain"),
            requests=choose_requests(["onnx", "trt"], ["fp32"]),
            progress=said.append,
        )
    assert not said


def test_a_deferred_engine_waits_for_its_gpu_beside_one_that_runs_here(
    make_model: MakeModel, make_config: MakeConfig, clips: list[Batch], tmp_path: Path
) -> None:
    requests = choose_requests(["trt", "onnx"], ["fp16"])
    options = Options(threads=1, defer=True)
    bundle = write_bundle(make_model("plain"), tmp_path / "b", make_config("plain"), "text", requests, options)
    deferred, here = bundle.manifest.of_encoder("text")
    assert deferred.deferred and deferred.files[0].file.endswith(".build.json")
    assert deferred.files[1:] == here.files  # one graph serves both
    used = Bundle(bundle.path, threads=1)
    if used.entry("text").engine == "onnxruntime":
        assert used.encode(clips[0], "text").shape == (5, 8)


def test_a_checkpoint_has_no_engines(experiment: Callable[..., Config], tmp_path: Path) -> None:
    from eao.training.run import run_training

    run_training(experiment(trainer={"epochs": 1}), tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="is a checkpoint, which PyTorch runs"):
        load(tmp_path / "run", engine="onnx")


@pytest.mark.slow
def test_openvino_and_tensorrt_rtx(
    make_model: MakeModel, make_config: MakeConfig, clips: list[Batch], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("tensorrt_rtx")
    written = write_bundle(
        make_model("plain"),
        tmp_path / "b",
        make_config("plain"),
        ["text"],
        choose_requests(["openvino", "trt-rtx"], ["fp32", "fp16"]),
        Options(threads=1, targets=("8.6",), profiles={"batch": "1:4:8", "text_tokens": "1:5:30"}),
        batches=clips,
    )
    assert list(written.manifest.engines) == [
        f"text.{engine}.{precision}" for engine in ("openvino", "tensorrt-rtx") for precision in ("fp32", "fp16")
    ]
    rtx = written.manifest.engines["text.tensorrt-rtx.fp16"]
    assert rtx.targets == ("8.6",) and rtx.profiles[0]["batch"].maximum == 8
    assert rtx.parity is not None and rtx.parity.simulated
    assert rtx.files[0].file == "text.tensorrt-rtx.fp16.engine" and rtx.files[0].size > 1000
    # Where TensorRT cannot run, OpenVINO is what the bundle runs.
    assert Bundle(written.path, threads=1).entry("text").engine == "openvino"
    assert Bundle(written.path, threads=1).encode(clips[0], "text").shape == (5, 8)


@pytest.mark.slow
def test_the_whole_matrix_holds_its_thresholds(
    make_model: MakeModel, make_config: MakeConfig, wide_clips: list[Batch], tmp_path: Path
) -> None:
    """Seven encoders, every engine that builds here, every precision but NNCF's and fp8, tested elsewhere."""
    pytest.importorskip("openvino")
    pytest.importorskip("tensorrt_rtx")
    requests = choose_requests(["onnx", "openvino", "trt-rtx"], ["fp32", "fp16", "bf16", "int8"])
    written = write_bundle(
        make_model("wide"),
        tmp_path / "b",
        make_config("wide"),
        "all",
        requests,
        Options(threads=2, targets=("8.6",)),
        calibration=wide_clips,
    )
    assert written.failed is None, written.parity.failures()
    assert len(requests) == 11 and len(written.manifest.engines) == 7 * 11
    fp32 = {
        e.encoder: e.parity.cosine_min for e in written.manifest.engines.values() if e.precision == "fp32" and e.parity
    }
    assert len(fp32) == 7 and min(fp32.values()) >= 0.99999


@pytest.mark.slow
def test_openvino_makes_int8_of_its_own(
    make_model: MakeModel, make_config: MakeConfig, wide_clips: list[Batch], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    written = write_bundle(
        make_model("wide"),
        tmp_path / "b",
        make_config("wide"),
        ["text"],
        choose_requests(["openvino"], ["int8-weights", "int8-nncf"]),
        Options(threads=1),
        calibration=wide_clips,
        thresholds=parse_thresholds(["int8-nncf.cosine=0.9"]),  # it has one scale for all channels of an activation
    )
    assert [e.precision for e in written.manifest.of_encoder("text")] == ["int8-weights", "int8-nncf"]
    assert {file.file for file in written.manifest.files()} >= {"text.int8-weights.xml", "text.int8-nncf.bin"}


@pytest.mark.parametrize(
    ("engine", "precision", "there", "here", "runs"),
    [
        ("openvino", "int8", True, False, False),
        ("openvino", "int8-nncf", True, False, False),
        ("openvino", "int8", False, False, True),
        ("openvino", "int8", None, False, True),
        ("openvino", "int8", True, True, True),
        ("openvino", "int8-weights", True, False, True),
        ("onnxruntime", "int8", True, False, True),
    ],
)
def test_int8_of_openvino_is_not_run_where_its_sums_overflow_unless_it_was_proven_so(
    matrix: WrittenBundle,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    precision: str,
    there: bool | None,
    here: bool,
    runs: bool,
) -> None:
    monkeypatch.setattr("eao.probes.has_exact_int8", lambda: here)
    entry = matrix.manifest.engines["text.onnxruntime.int8"]
    assert entry.parity is not None and entry.parity.exact_int8 is not None
    parity = entry.parity.model_copy(update={"exact_int8": there})
    moved = entry.model_copy(update={"engine": engine, "precision": precision, "parity": parity})
    assert (unproven(moved) is None) == runs
