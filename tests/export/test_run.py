"""Export and benchmark as commands use them: a trained run in, a proven bundle and its figures out."""

import json

import pytest

from eao.api import load
from eao.bench.matrix import Options
from eao.bench.run import run_benchmark
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
        load(bundle),
        load(run),
        ["text"],
        options=Options(batches=(1,), seconds=0.05),
        output=tmp_path / "bench.json",
        docs=docs,
        quiet=True,
    )
    assert [row["engine"] for row in measured["rows"]] == ["torch", "onnxruntime fp32"]
    assert json.loads((tmp_path / "bench.json").read_text())["hardware"]
    assert "| text | 1 |" in (docs / "performance.md").read_text()
    assert (bundle / "parity.md").read_text().partition("\n")[2].strip() in (docs / "parity.md").read_text()
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
