from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import eao.export.bundle as bundle_module
from eao.config import Config
from eao.errors import ExportError, ParityError
from eao.export.bundle import WrittenBundle, write_bundle
from eao.export.cases import parity_cases
from eao.export.encoders import Model
from eao.export.onnx import ExportedGraph, export_onnx
from eao.export.parity import ParityReport, compare, measure_parity, recall_moved, reference, top_overlap
from eao.export.runtime import Bundle
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


def test_two_zero_rows_agree_and_one_zero_row_does_not() -> None:
    zero, unit = np.zeros((1, 2), np.float32), np.array([[1.0, 0.0]], np.float32)
    assert compare(zero, zero).cosine_min == 1
    assert compare(unit, zero).cosine_min == 0


def test_cases_cover_batches_lengths_and_missing_modalities(make_model: MakeModel) -> None:
    cases = list(parity_cases(make_model("plain"), "video-audio"))
    assert {len(case.batch) for case in cases} == {1, 3, 8}
    assert len({case.batch.video.shape[1] for case in cases if case.batch.video is not None}) == 3
    for modality in ("video", "audio"):
        empty = [c.batch for c in cases if c.name.endswith(f"no {modality}")]
        assert {len(batch) for batch in empty} == {1, 3, 8}
        assert all(not getattr(batch, f"{modality}_mask")[0].any() for batch in empty)
    holes = [c.batch.video_mask for c in cases if c.name.startswith("batch 8") and c.name.endswith("holes")]
    steps = [mask.int().diff(dim=1) for mask in holes if mask is not None]
    assert any((step > 0).any() for step in steps)  # a real token after padding


def test_ties_within_rounding_are_no_difference_and_real_swaps_are() -> None:
    expected = np.linspace(1, 0, 20, dtype=np.float64)[None].repeat(2, 0)
    expected[:, 10] = expected[:, 9] - 1e-7  # the tenth and eleventh best
    swapped = expected.copy()
    swapped[0, [9, 10]] = swapped[0, [10, 9]]
    assert top_overlap(expected, swapped) == (1.0, 0.5)
    swapped[1, [0, 15]] = swapped[1, [15, 0]]
    assert top_overlap(expected, swapped) == (0.5, 0.0)


def test_nan_never_counts_as_the_same_ranking() -> None:
    expected = np.eye(12)
    assert top_overlap(expected, np.full((12, 12), np.nan))[0] == 0
    assert recall_moved(expected, np.full((12, 12), np.nan)) == 100


def test_a_bundle_passes_on_made_up_batches_and_on_clips(written: WrittenBundle) -> None:
    assert written.parity.passed
    assert set(written.parity.encoders) == {"text", "video", "video-audio"}
    tasks = {r.task for r in written.parity.rankings}
    assert tasks == {"text -> video", "video -> text", "text -> video-audio", "video-audio -> text"}
    assert all(r.gallery == 12 and r.torch == r.engine for r in written.parity.rankings)
    saved = json.loads((written.path / "parity.json").read_text())
    assert ParityReport.model_validate(saved).passed
    assert "| video-audio | " in (written.path / "parity.md").read_text()


@pytest.mark.parametrize("value", [np.nan, 2.0])
def test_an_engine_that_differs_or_gives_nan_fails(make_model: MakeModel, clips: list[Batch], value: float) -> None:
    model = make_model("plain")

    def spoiled(batch: Batch, encoder: str) -> np.ndarray:
        rows = reference(model, batch, encoder).copy()
        rows[0, 0] = value
        return rows

    report = measure_parity(model, spoiled, ["text"], batches=clips)
    assert not report.passed
    assert report.failures()[0].startswith("text: cosine min")
    assert ParityReport.model_validate_json(report.model_dump_json()).failures()  # NaN survives JSON


def test_an_engine_that_depends_on_the_batch_fails_invariance(make_model: MakeModel) -> None:
    model = make_model("plain")

    def entangled(batch: Batch, encoder: str) -> np.ndarray:
        rows = reference(model, batch, encoder)
        mixed = rows + 0.3 * rows.mean(0) * (len(rows) > 1)
        return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)

    assert any("batch invariance" in line for line in measure_parity(model, entangled, ["text"]).failures())


def test_a_corrupted_weight_fails_and_leaves_the_old_bundle_and_the_evidence(
    make_model: MakeModel, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    model, config = make_model("depth0-minimal"), make_config("depth0-minimal")
    write_bundle(model, out, config, "text", threads=1)
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

    monkeypatch.setattr(bundle_module, "export_onnx", corrupting)
    with pytest.raises(ParityError, match=r"text: cosine min 0\.\d+ < 0\.99999") as caught:
        write_bundle(model, out, config, "text", threads=1)
    assert "bundle.failed" in caught.value.hint
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    failed = tmp_path / "bundle.failed"
    assert sorted(p.name for p in failed.iterdir()) == ["config.yaml", "parity.json", "parity.md", "text.onnx"]
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


def test_the_reference_is_the_model_itself(make_model: MakeModel, clips: list[Batch]) -> None:
    model = make_model("plain")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(clips[0], ["video"])["video"])
    np.testing.assert_allclose(reference(model, clips[0], "video"), expected.numpy(), atol=1e-6)
