"""Checkpoints of the authors' code, evaluated as `eao eval` does, against what their own evaluation printed."""

import json
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import eao.cli
from eao.api import load_for_evaluation
from eao.evaluation.embed import embed_dataset
from eao.evaluation.metrics import average_by_id
from eao.evaluation.run import dataset_loader, evaluate_model

GOLDEN = Path(__file__).parents[1] / "golden"
EVALUATIONS = json.loads((GOLDEN / "checkpoints/evaluations.json").read_text())
# The weights of `pre_tva` are stored once, in the container that torch wrote before version 1.6.
FOLDERS = {"pre_tva": "pre_tva_dataparallel"}
SHORT_NAMES = {
    "text": "text",
    "video": "video",
    "audio": "audio",
    "tv": "text-video",
    "ta": "text-audio",
    "va": "video-audio",
    "t+v": "text+video",
    "t+a": "text+audio",
    "v+a": "video+audio",
}


def evaluations(dataset):
    """Those on one data set, all of whose clips are stored for YouCook2 and twelve for MSR-VTT."""
    return [
        pytest.param(case, id=f"{case['checkpoint']}-{case['config']}")
        for case in EVALUATIONS
        if dataset in case["config"]
    ]


def checkpoint(case):
    return f"checkpoints/{FOLDERS.get(case['checkpoint'], case['checkpoint'])}/latest_model.pth"


def as_printed(metrics):
    """The digits that the authors' evaluation prints."""
    recalls = {key: f"{value:.1f}" for key, value in metrics.items() if key.startswith("R")}
    return recalls | {"MedR": f"{metrics['MedR']:g}", "MeanR": f"{metrics['MeanR']:.1f}"}


@pytest.fixture(autouse=True)
def _in_the_folder(monkeypatch):
    """The paths in their files are relative."""
    monkeypatch.chdir(GOLDEN)


@pytest.mark.parametrize("case", evaluations("youcook"))
def test_metrics_equal_to_the_last_printed_digit(case):
    result = evaluate_model(load_for_evaluation(checkpoint(case), f"cfg/{case['config']}.yaml", "cpu"))
    expected = {task.removesuffix("_metrics"): values for task, values in case["metrics"].items() if values}
    assert result.items == case["items"] == 57
    assert set(result.metrics) == set(expected) and len(expected) in (12, 18)
    assert {t: as_printed(m) for t, m in result.metrics.items()} == {t: as_printed(m) for t, m in expected.items()}
    # The printed digits of recalls are few, being of 3,350 items. Unprinted ones may differ by one place of one item:
    # the closest similarities are 6e-7 apart, near the noise of single precision.
    for task, metrics in result.metrics.items():
        for key in ("R1", "R5", "R10", "R50"):
            assert metrics[key] == pytest.approx(expected[task][key], abs=100.1 / 3350), (task, key)
        assert metrics["MeanR"] == pytest.approx(expected[task]["MeanR"], abs=1.1 / 57), task


@pytest.mark.parametrize("case", evaluations("msrvtt"))
def test_embeddings_equal(case):
    """At once, and cut into pieces of which those that are nearly silent are left out and the others averaged."""
    embedder = load_for_evaluation(
        checkpoint(case), f"cfg/{case['config']}.yaml", "cpu", ["data.test.expected_items=null"]
    )
    prefix = f"{case['checkpoint']}.{case['config']}."
    rows = load_file("checkpoints/msrvtt_rows.safetensors")
    expected = {
        SHORT_NAMES[key.removeprefix(prefix).removesuffix("_embed")]: value
        for key, value in rows.items()
        if key.startswith(prefix)
    }
    embeddings, ids = average_by_id(*embed_dataset(embedder.backend, dataset_loader(embedder, "test"), list(expected)))
    assert len(expected) in (6, 9)
    assert sorted(ids) == sorted(case["ids"])
    order = [ids.index(clip) for clip in case["ids"]]
    for encoder, value in expected.items():
        # The tolerance of the golden data: 20 times the noise of single precision in the reference itself.
        assert embeddings[encoder][order] == pytest.approx(value, rel=1e-4, abs=1e-5), encoder


def test_the_command_prints_their_figures(monkeypatch, capfd):
    case = next(c for c in EVALUATIONS if (c["checkpoint"], c["config"]) == ("ft_msrvtt", "ev_youcook_at_once"))
    monkeypatch.setattr(sys, "argv", ["eao", "eval", checkpoint(case), "-c", f"cfg/{case['config']}.yaml", "--json"])
    with pytest.raises(SystemExit) as stop:
        eao.cli.main()
    assert stop.value.code == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["items"] == 57
    for task, expected in case["metrics"].items():
        assert as_printed(printed["metrics"][task.removesuffix("_metrics")]) == as_printed(expected), task
