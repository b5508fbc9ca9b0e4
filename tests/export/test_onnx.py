from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from eao.errors import ExportError
from eao.export.encoders import EncoderModule, Model, example_inputs, input_names, input_specs
from eao.export.onnx import OUTPUT, encoder_subject, export_onnx, verify_sizes
from eao.export.parity import encoder_parity
from eao.export.reference import Reference
from eao.export.runtime import batch_feeds
from eao.export.session import open_session
from eao.export.thresholds import THRESHOLDS

MakeModel = Callable[[str], Model]


@pytest.mark.parametrize(
    ("variant", "encoder"),
    [
        ("cls", "text-video"),
        ("nearest", "text-audio"),
        ("max_pool", "audio"),
        ("per-modality", "video"),
        ("text-video", "video"),
        ("depth0-minimal", "text"),
        ("davenet-v2", "audio"),
        ("avlnet", "text"),
        ("avlnet", "audio"),
    ],
)
def test_every_variant_agrees_with_torch_at_every_size_and_mask(
    make_model: MakeModel, make_graph: Callable[[str, str], Path], variant: str, encoder: str
) -> None:
    model, path = make_model(variant), make_graph(variant, encoder)
    session = open_session(path, threads=1)
    specs = input_specs(model, encoder)
    parity = encoder_parity(
        Reference(model), lambda batch, name: session.run([OUTPUT], batch_feeds(batch, specs, name))[0], encoder
    )
    assert parity.figures.cosine_min >= THRESHOLDS["fp32"].cosine, parity.figures
    assert parity.batch_invariance >= THRESHOLDS["fp32"].batch_invariance
    assert [p.name for p in path.parent.glob(f"*{path.stem}*")] == [path.name]
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}  # folded


def test_export_is_quiet_names_its_axes_and_leaves_the_model_in_its_mode(
    make_model: MakeModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model("depth0-minimal").train()
    export_onnx(model, "video", tmp_path / "v.onnx", threads=1)
    assert model.training
    assert capfd.readouterr() == ("", "")
    session = open_session(tmp_path / "v.onnx")
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("video", ["batch", "video_tokens", 10]),
        ("video_mask", ["batch", "video_tokens"]),
    ]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("output", ["batch", 8])]
    assert str(Path.cwd()).encode() not in (tmp_path / "v.onnx").read_bytes()  # no stack traces of this machine


def test_nothing_stands_between_softmax_and_the_product_with_the_values(
    make_graph: Callable[[str, str], Path],
) -> None:
    nodes = onnx.load(make_graph("deep", "text")).graph.node
    softmax = {node.output[0] for node in nodes if node.op_type == "Softmax"}
    assert len(softmax) == 2
    assert [node.op_type for node in nodes if softmax & set(node.input)] == ["MatMul", "MatMul"]


def test_weights_can_stand_beside_the_graph(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("depth0-minimal")
    graph = export_onnx(model, "video", tmp_path / "v.onnx", external_data=True, threads=1)
    assert graph.external == tmp_path / "v.onnx.data"
    verify_sizes(encoder_subject(model, "video"), graph.path, threads=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.onnx", "v.onnx.data"]


@pytest.fixture(scope="module")
def frozen(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph traced without dynamic axes."""
    model = make_model("plain")
    path: Path = tmp_path_factory.mktemp("frozen") / "text.onnx"
    program = torch.onnx.export(
        EncoderModule(model, "text").eval(),
        example_inputs(model, "text"),
        dynamo=True,
        opset_version=18,
        input_names=list(input_names(model, "text")),
        output_names=[OUTPUT],
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    return path


def test_a_fixed_axis_is_detected(make_model: MakeModel, frozen: Path) -> None:
    with pytest.raises(ExportError, match=r"\(batch\).*fixed size 2"):
        verify_sizes(encoder_subject(make_model("plain"), "text"), frozen, threads=1)


def test_a_dimension_frozen_inside_is_detected_though_the_inputs_claim_to_vary(
    make_model: MakeModel, frozen: Path, tmp_path: Path
) -> None:
    graph = onnx.load(frozen)
    for value in (*graph.graph.input, *graph.graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, ("batch", "text_tokens"), strict=False):
            if dim.dim_value in (2, 5):  # the traced sizes
                dim.dim_param = name
    del graph.graph.value_info[:]
    onnx.save(graph, tmp_path / "text.onnx")
    with pytest.raises(ExportError, match="does not work at other sizes"):
        verify_sizes(encoder_subject(make_model("plain"), "text"), tmp_path / "text.onnx", threads=1)


def test_a_failed_trace_is_one_error_and_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("plain")
    model.text_proj.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ExportError, match="cannot be traced"):
        export_onnx(model, "text", tmp_path / "t.onnx")
    assert list(tmp_path.iterdir()) == []
