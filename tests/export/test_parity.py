from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import eao.export.build as build_module
from eao.config import Config
from eao.errors import ExportError, ParityError
from eao.export.bisect import tolerance_of
from eao.export.build import Options
from eao.export.bundle import WrittenBundle, write_bundle
from eao.export.encoders import Model, input_specs
from eao.export.onnx import ExportedGraph, export_onnx
from eao.export.parity import Encode, ParityReport, bisect_encoder, compare, encoder_parity, measure_parity
from eao.export.parity_report import PARITY_FILES, BundleParity
from eao.export.reference import CLIPS, Reference, embed
from eao.export.runtime import Bundle, batch_feeds
from eao.export.session import open_session
from eao.export.thresholds import parse_thresholds
from eao.model import Batch

MakeModel = Callable[[str], Model]
MakeConfig = Callable[[str], Config]


def test_figures_of_a_known_difference() -> None:
    a = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    b = np.array([[1.0, 0.0], [0.6, 0.8]], dtype=np.float32)
    figures = compare(a, b)
    assert figures.max_abs == pytest.approx(0.6)
    assert figures.mean_abs == pytest.approx(0.2)
    assert figures.cosine_min == pytest.approx(0.8)
    assert figures.cosine_mean == pytest.approx(0.9)
    assert figures.worst_row == 1 and figures.cosines == pytest.approx([0.8, 1.0])


def test_the_first_percentile_and_the_spread_of_many_cosines() -> None:
    angle = np.linspace(0, 1, 201)
    found = np.stack([np.cos(angle), np.sin(angle)], 1)
    figures = compare(np.array([[1.0, 0.0]]).repeat(201, 0), found)
    assert figures.cosine_p1 == pytest.approx(np.cos(0.99), abs=1e-6)
    assert len(figures.cosines) == 33
    assert figures.cosines[0] == figures.cosine_min and figures.cosines[-1] == pytest.approx(1)


def test_two_zero_rows_agree_and_one_zero_row_does_not() -> None:
    zero, unit = np.zeros((1, 2), np.float32), np.array([[1.0, 0.0]], np.float32)
    assert compare(zero, zero).cosine_min == 1
    assert compare(unit, zero).cosine_min == 0


def test_a_bundle_passes_on_made_up_batches_and_on_clips(written: WrittenBundle) -> None:
    (report,) = written.parity.reports
    assert report.passed
    assert set(report.encoders) == {"text", "video", "video-audio"}
    tasks = {r.task for r in report.rankings}
    assert tasks == {"text -> video", "video -> text", "text -> video-audio", "video-audio -> text"}
    assert all(r.gallery == 12 and r.torch == r.engine for r in report.rankings)
    assert BundleParity.load(written.path).reports == [report]
    assert "| onnxruntime | fp32 | video-audio | " in (written.path / "parity.md").read_text()


@pytest.fixture
def model(make_model: MakeModel) -> Model:
    return make_model("plain")


@pytest.fixture
def reference(model: Model, clips: list[Batch]) -> Reference:
    return Reference(model, clips)


def engine_of(model: Model) -> Encode:
    return lambda batch, encoder: embed(model, batch, [encoder])[encoder]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_weights_rounded_to_bf16_fail_fp32_and_hold_bf16(make_model: MakeModel, reference: Reference) -> None:
    rounded = make_model("plain")
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.copy_(weight.bfloat16().float())
    encoders = ["text", "video", "video-audio"]
    as_fp32 = measure_parity(reference, engine_of(rounded), encoders, "fp32")
    assert not as_fp32.passed
    assert as_fp32.failures("video")[0].startswith("video: cosine min 0.99")
    as_bf16 = measure_parity(reference, engine_of(rounded), encoders, "bf16")
    assert as_bf16.passed, as_bf16.failures()
    assert as_bf16.encoders == as_fp32.encoders


def test_noise_fails_int8_by_its_cosine_until_the_threshold_is_lowered(model: Model, reference: Reference) -> None:
    rng = np.random.default_rng(0)

    def noisy(batch: Batch, encoder: str) -> np.ndarray:
        rows = embed(model, batch, [encoder])[encoder]
        noise = rng.standard_normal(rows.shape)
        noise -= (noise * rows).sum(1, keepdims=True) * rows  # at right angles, so that every cosine is 0.985
        return unit(0.985 * rows + np.sqrt(1 - 0.985**2) * unit(noise))

    report = measure_parity(reference, noisy, ["text"], "int8")
    assert report.encoders["text"].figures.cosine_min == pytest.approx(0.985, abs=1e-4)
    assert report.failures()[0].startswith("text: cosine min 0.985")
    free = ["int8.cosine=0.98", "int8.batch_invariance=0.9"]
    assert measure_parity(reference, noisy, ["text"], "int8", thresholds=parse_thresholds(free)).passed


def test_embeddings_of_the_right_shape_but_the_wrong_clips_fail_the_rankings(
    model: Model, reference: Reference
) -> None:
    def turned(batch: Batch, encoder: str) -> np.ndarray:
        rows = embed(model, batch, [encoder])[encoder]
        return np.roll(rows, 1, axis=0) if encoder == "video" else rows

    report = measure_parity(reference, turned, ["text", "video"], "int8")
    failed = [line for line in report.failures("text") if line.startswith("text -> video")]
    assert any("top-10 overlap" in line and "< 0.95" in line for line in failed)
    assert report.failures("text") == [line for line in report.failures() if "->" in line]
    assert report.rankings[0].kendall_tau is not None and report.rankings[0].kendall_tau < 0.9


@pytest.mark.parametrize("value", [np.nan, 2.0])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_engine_that_differs_or_gives_nan_fails(
    model: Model, reference: Reference, value: float, precision: str
) -> None:
    def spoiled(batch: Batch, encoder: str) -> np.ndarray:
        rows = embed(model, batch, [encoder])[encoder].copy()
        rows[0, 0] = value
        return rows

    report = measure_parity(reference, spoiled, ["text", "video"], precision)
    assert report.failures()[0].startswith("text: cosine min")
    if np.isnan(value):
        assert any(line.startswith("text -> video: R@10 moved by nan") for line in report.failures()) == (
            precision == "int8"
        )
        assert report.encoders["text"].figures.worst_row == 0
    assert ParityReport.model_validate_json(report.model_dump_json()).failures()  # NaN survives JSON


def test_an_engine_that_depends_on_the_batch_fails_invariance(model: Model, reference: Reference) -> None:
    def entangled(batch: Batch, encoder: str) -> np.ndarray:
        rows = embed(model, batch, [encoder])[encoder]
        return unit(rows + 0.03 * rows.mean(0) * (len(rows) > 1))

    report = measure_parity(reference, entangled, ["text"], "int8")
    assert [line for line in report.failures() if "->" not in line] == [
        f"text: batch invariance {report.encoders['text'].batch_invariance:.7g} < 0.9999"
    ]


def test_real_clips_are_a_case_of_their_own(model: Model, reference: Reference) -> None:
    def wrong_for_one(batch: Batch, encoder: str) -> np.ndarray:
        rows = embed(model, batch, [encoder])[encoder].copy()
        if len(batch) == 7:  # the second batch of real clips; no case has its size
            rows[3] = -rows[3]
        return rows

    report = measure_parity(reference, wrong_for_one, ["video"])
    figures = report.encoders["video"].figures
    assert (figures.worst_case, figures.worst_row) == (CLIPS, 5 + 3)
    assert report.encoders["video"].cases[CLIPS].cosines[0] == pytest.approx(-1)


def test_figures_of_an_encoder_are_over_all_rows_of_its_cases(model: Model, reference: Reference) -> None:
    parity = encoder_parity(reference, engine_of(model), "text")
    assert len(parity.cases) == 20 and parity.batch_invariance == pytest.approx(1, abs=1e-6)
    assert parity.figures.max_abs == max(f.max_abs for f in parity.cases.values())
    assert parity.figures.cosine_min == min(f.cosine_min for f in parity.cases.values())
    assert parity.figures.cosine_min <= parity.figures.cosine_p1 <= parity.figures.cosine_mean


def test_a_precision_without_thresholds_is_refused(model: Model, reference: Reference) -> None:
    with pytest.raises(ExportError, match="int3"):
        measure_parity(reference, engine_of(model), ["text"], "int3")


def test_a_failed_engine_is_bisected_on_the_clip_it_embeds_worst(
    written: WrittenBundle, reference: Reference, tmp_path: Path
) -> None:
    proto = onnx.load(written.path / "video.fp32.onnx")
    weight = next(w for w in proto.graph.initializer if w.name == "model.fusion.blocks.0.mlp.fc2.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0] += 1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    damaged = tmp_path / "video.onnx"
    onnx.save(proto, damaged)
    session = open_session(damaged, threads=1)

    def encode(batch: Batch, encoder: str) -> np.ndarray:
        feeds = batch_feeds(batch, input_specs(reference.model, encoder), encoder)
        return np.asarray(session.run(None, feeds)[0])

    report = measure_parity(reference, encode, ["video"], "int8")
    assert not report.passed
    found = bisect_encoder(reference, report, "video", written.path / "video.fp32.onnx", damaged, threads=1)
    assert found.first is not None and found.first.module == "fusion.blocks.0.mlp.fc2"
    assert report.divergences == {"video": found}
    assert found.tolerance == pytest.approx(tolerance_of(0.99))


def test_a_corrupted_weight_fails_and_leaves_the_old_bundle_and_the_evidence(
    make_model: MakeModel, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    model, config = make_model("depth0-minimal"), make_config("depth0-minimal")
    write_bundle(model, out, config, "text", options=Options(threads=1))
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def corrupting(model: Model, encoder: str, path: Path, opset: int, threads: int | None) -> ExportedGraph:
        graph = export_onnx(model, encoder, path, opset, threads=threads)
        proto = onnx.load(path)
        # A tenth more on one row of the largest matrix: too little for the coarse check of the exporter.
        weight = max((w for w in proto.graph.initializer if len(w.dims) == 2), key=lambda w: np.prod(w.dims))
        values = numpy_helper.to_array(weight).copy()
        values[0] *= 1.1
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(proto, path)
        return graph

    monkeypatch.setattr(build_module, "export_onnx", corrupting)
    with pytest.raises(
        ParityError, match=r"no engine of text holds parity:\n.*text: cosine min 0\.\d+ < 0\.99"
    ) as caught:
        write_bundle(model, out, config, "text", options=Options(threads=1))
    assert "bundle.failed" in caught.value.hint
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    failed = tmp_path / "bundle.failed"
    assert sorted(p.name for p in failed.iterdir()) == sorted(("text.fp32.onnx", *PARITY_FILES))
    with pytest.raises(ExportError, match="evidence of a failed export"):
        Bundle(failed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "bundle.failed"]


def test_a_folder_that_is_no_bundle_is_never_replaced(
    make_model: MakeModel, make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(ExportError, match="is no bundle"):
        write_bundle(make_model("plain"), tmp_path, make_config("plain"), "text")
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_an_unknown_encoder_is_refused_before_any_work(
    make_model: MakeModel, make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="smell"):
        write_bundle(make_model("plain"), tmp_path / "b", make_config("plain"), "text,smell")
    assert list(tmp_path.iterdir()) == []
