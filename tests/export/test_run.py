"""Export and benchmark as commands use them: a trained run in, a proven bundle and its figures out."""

import json

import pytest

from eao.api import load
from eao.bench.report import bench_bundle
from eao.bench.run import run_benchmark, short_rows
from eao.errors import ConfigError, ExportError
from eao.export.run import export_bundle
from eao.training.run import run_training


@pytest.fixture
def run(experiment, tmp_path):
    validation = experiment().data.validation.model_dump()
    run_training(experiment(trainer={"epochs": 1}, data={"test": validation}), tmp_path / "run", quiet=True)
    return tmp_path / "run"


def test_a_run_becomes_a_proven_bundle_that_is_used_again_and_measured(run, tmp_path):
    bundle = tmp_path / "bundle"
    report = export_bundle(load(run), bundle, encoders=["text", "video"], quiet=True)
    assert set(report["parity"]) == {"text.onnxruntime.fp32", "video.onnxruntime.fp32"} and report["failed"] is None
    assert all(p["passed"] and p["cosine_min"] >= 0.99999 for p in report["parity"].values())
    # The rankings of data.test were compared.
    assert report["parity"]["text.onnxruntime.fp32"]["top10_overlap"] == 1.0
    written = (bundle / "manifest.json").stat().st_mtime_ns
    assert export_bundle(load(run), bundle, encoders=["text"], quiet=True, reuse=True) == report
    assert (bundle / "manifest.json").stat().st_mtime_ns == written

    docs = tmp_path / "docs"
    measured = run_benchmark(
        load(bundle), load(run), ["text"], [1], 0.05, output=tmp_path / "bench.json", docs=docs, quiet=True
    )
    assert [row["encoder"] for row in measured["rows"]] == ["text"]
    assert json.loads((tmp_path / "bench.json").read_text())["hardware"]
    assert "| text | 1 |" in (docs / "performance.md").read_text()
    assert (docs / "parity.md").read_text() == (bundle / "parity.md").read_text()
    with pytest.raises(ConfigError, match="not a bundle"):
        run_benchmark(load(run))
    with pytest.raises(ExportError, match="bundle of engines already"):
        export_bundle(load(bundle), tmp_path / "other")


def test_a_dry_run_names_the_encoders_and_writes_nothing(run, tmp_path):
    report = export_bundle(load(run), tmp_path / "bundle", dry_run=True, quiet=True)
    assert len(report["encoders"]) == 7 and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "choice",
    [
        {"engines": ["gpu"]},
        {"precisions": ["int4"]},
        {"engines": ["trt"], "precisions": ["int8-weights"]},
        {"encoders": ["smell"]},
        {"thresholds": ["int8.cosine=2"]},
    ],
)
def test_what_cannot_be_exported_is_said_at_once(run, tmp_path, choice):
    with pytest.raises(ExportError, match="gpu|int4|tensorrt cannot|smell|cosine=2"):
        export_bundle(load(run), tmp_path / "bundle", **choice)


def test_a_ratio_measured_beside_other_work_is_not_shown(run, tmp_path):
    bundle = tmp_path / "bundle"
    export_bundle(load(run), bundle, encoders=["text"], quiet=True)
    report = bench_bundle(load(run).backend.model, bundle, ["text"], [1], seconds=0.05)
    busy = report.entries[0].model_copy(update={"foreign_cores": 1.5})
    idle = report.entries[0].model_copy(update={"foreign_cores": 0.0})
    rows = short_rows(report.model_copy(update={"entries": [busy, idle]}))
    assert rows[0]["speed-up"] == "busy machine"
    assert rows[1]["speed-up"] == f"{report.entries[0].speedup:.2f}x"
