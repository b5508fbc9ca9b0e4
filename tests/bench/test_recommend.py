from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from eao.bench.recommend import CHOSEN, Limits, Recommendation, describe, prefer, recommend, runnable_engines
from eao.bench.report import BenchReport
from eao.cli import app
from eao.export.manifest import load_manifest
from eao.export.parity import EncoderParity, ParityReport, compare
from eao.export.parity_report import BundleParity
from eao.export.ranking import RankingParity
from eao.export.thresholds import THRESHOLDS

from .reports import make_entry, make_report

FP32, INT8, RTX = "onnxruntime fp32", "onnxruntime int8", "tensorrt-rtx fp16"


def parity(name: str, cosine: float = 1.0, lost: float = 0.0) -> ParityReport:
    engine, precision = name.split()
    figures = compare(np.eye(2), np.eye(2)).model_copy(update={"cosine_min": cosine})
    recalls = {"R1": 10.0, "R5": 20.0, "R10": 30.0, "MedR": 5.0}
    ranking = RankingParity(
        task="text -> video",
        queries=9,
        gallery=9,
        torch=recalls,
        engine=recalls,
        top10_identical=1,
        top10_same_order=1,
        top10_overlap=1,
        kendall_tau=1,
        recall_moved=lost,
        recall_change={"R1": 0, "R5": 0, "R10": -lost},
    )
    return ParityReport(
        engine=engine,
        precision=precision,
        thresholds=THRESHOLDS[precision].limits(),
        encoders={"text": EncoderParity(encoder="text", figures=figures, batch_invariance=1, cases={})},
        rankings=[ranking],
    )


def measured(**latencies: float) -> BenchReport:
    """torch takes 4 ms; the others so much less."""
    report = make_report(make_entry({name.replace("_", " "): speed for name, speed in latencies.items()}))
    return report.model_copy(update={"skipped": {RTX: "it needs an NVIDIA GPU"}})


def verdicts(found: Recommendation) -> dict[str, str]:
    return {f"{c.engine} {c.precision}": c.verdict for c in found.candidates}


BOTH = {"onnxruntime_fp32": 2.0, "onnxruntime_int8": 4.0}


def test_the_fastest_that_passes_is_chosen_and_the_others_get_a_reason() -> None:
    every = BundleParity(reports=[parity(FP32), parity(INT8), parity(RTX)])
    found = recommend(measured(**BOTH), every, Limits(latency_ms=3, recall_drop=0.5))
    assert verdicts(found) == {INT8: CHOSEN, FP32: "slower", RTX: "does not run here: it needs an NVIDIA GPU"}
    assert found.chosen == {"text": "text.onnxruntime.int8"} and not found.unmet and not describe(found)


@pytest.mark.parametrize(
    ("int8", "limits", "reason"),
    [
        (parity(INT8, cosine=0.9), Limits(latency_ms=3), "fails parity: text: cosine min 0.9 < 0.99"),
        (parity(INT8, lost=0.8), Limits(recall_drop=0.5), "loses 0.80 points of R@10"),
    ],
)
def test_speed_does_not_buy_accuracy(int8: ParityReport, limits: Limits, reason: str) -> None:
    found = recommend(measured(**BOTH), BundleParity(reports=[parity(FP32), int8]), limits)
    assert verdicts(found) == {INT8: reason, FP32: CHOSEN}


def test_a_budget_that_none_holds_leaves_the_encoder_unmet() -> None:
    found = recommend(measured(**BOTH), BundleParity(reports=[parity(FP32), parity(INT8)]), Limits(latency_ms=0.5))
    assert verdicts(found) == {INT8: "above 0.5 ms", FP32: "above 0.5 ms"}
    assert found.unmet == ("text",)
    assert describe(found) == ["[x] no engine of text will do; the fastest takes 1.00 ms"]


def test_what_is_slower_than_pytorch_is_never_chosen() -> None:
    found = recommend(measured(onnxruntime_fp32=0.5), BundleParity(reports=[parity(FP32)]), Limits(latency_ms=100))
    assert verdicts(found) == {FP32: "slower than PyTorch"}


def test_an_int8_engine_that_stayed_in_float32_is_never_chosen() -> None:
    report = measured(**BOTH)
    (entry,) = report.entries
    report = report.model_copy(update={"entries": [entry.model_copy(update={"hollow": (INT8,)})]})
    found = recommend(report, BundleParity(reports=[parity(FP32), parity(INT8)]), Limits(latency_ms=100))
    assert verdicts(found) == {INT8: "all its layers stayed in float32", FP32: CHOSEN}


def test_the_chosen_engine_is_the_one_that_a_bundle_uses(small, tmp_path: Path) -> None:
    before = load_manifest(small.path)
    last = list(before.of_encoder("text"))[-1]
    for entry in before.files():
        (tmp_path / entry.file).write_bytes((small.path / entry.file).read_bytes())
    before.save(tmp_path)
    one = parity(f"{last.engine} {last.precision}")
    report = make_report(make_entry({one.name: 3.0}))
    prefer(tmp_path, recommend(report, BundleParity(reports=[one]), Limits()))
    after = load_manifest(tmp_path)
    assert after.of_encoder("text")[0].key == last.key and after.of_encoder("text")[0].speedup == 3
    assert set(after.engines) == set(before.engines)


def test_what_runs_here_is_offered() -> None:
    engines, precisions = runnable_engines()
    assert "onnxruntime" in engines and {"fp32", "int8"} <= set(precisions) and "fp8" not in precisions


def test_the_command_tries_engines_and_says_why(experiment, tmp_path: Path) -> None:
    from eao.training.run import run_training

    validation = experiment().data.validation.model_dump()
    run_training(experiment(trainer={"epochs": 1}, data={"test": validation}), tmp_path / "run", quiet=True)
    arguments = ["export", tmp_path / "run", "--out", tmp_path / "bundle", "--encoder", "text,video", "--json"]
    choice = ["--engine", "onnx", "--precision", "fp32,fp16", "--target-latency", "10s", "--max-recall-drop", "0.5"]
    done = CliRunner().invoke(app, list(map(str, arguments + choice)))
    found = json.loads(done.stdout)["recommendation"]
    assert {c["precision"] for c in found["candidates"]} == {"fp32", "fp16"}
    assert all(c["latency_ms"] > 0 and c["recall_drop"] is not None for c in found["candidates"])
    assert done.exit_code == (1 if found["unmet"] else 0)
