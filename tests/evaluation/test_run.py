"""Evaluation as the command runs it: what it ranks, the intervals, and which published figures may stand beside it."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from eao.backend import TorchBackend
from eao.config import Config, parse_config
from eao.embedder import Embedder
from eao.errors import ConfigError
from eao.evaluation.run import evaluate_model, published_beside
from eao.model import build_model


def embedder_of(config):
    return Embedder(TorchBackend(build_model(config.model), config), "the model", config, "cpu")


def printed(table):
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


@pytest.fixture
def step_data(tmp_path):
    """Two videos of ten seconds and two steps."""
    tmp_path = tmp_path / "steps"
    rng = np.random.default_rng(0)
    for folder in ("features", "audio", "labels"):
        (tmp_path / folder).mkdir(parents=True)
    for video in ("a", "b"):
        np.save(tmp_path / f"features/{video}_2d.npy", rng.standard_normal((10, 5)).astype(np.float32))
        np.save(tmp_path / f"features/{video}_3d.npy", rng.standard_normal((15, 4)).astype(np.float32))
        np.savez(tmp_path / f"audio/{video}.npz", rng.uniform(-80, 0, (40, 1000)).astype(np.float32))
        labels = np.zeros((10, 2))
        labels[2, 0] = labels[7, 1] = 1
        for name in (f"7_{video}.npy", f"{video}.npy"):
            np.save(tmp_path / "labels" / name, labels)
    (tmp_path / "videos.csv").write_text("video_id,task\na,7\nb,7\n")
    steps = ["red dog", "blue cat"]
    (tmp_path / "steps.json").write_text(json.dumps({"7": steps, "a": steps, "b": steps}))
    paths = {"csv": "videos.csv", "features": "features", "audio": "audio", "steps": "steps.json"}
    return {key: str(tmp_path / path) for key, path in paths.items()} | {"annotations": str(tmp_path / "labels")}


def test_every_retrieval_metric_has_an_interval_that_holds_it(experiment):
    result = evaluate_model(embedder_of(experiment()), "validation")
    assert (result.model, result.split, result.items) == ("the model", "validation", 8)
    assert set(result.metrics) == set(result.intervals) and "t2va" in result.metrics
    for task, metrics in result.metrics.items():
        for name, (low, high) in result.intervals[task].items():
            assert low <= metrics[name] <= high, (task, name)


def test_the_result_is_plain_json_and_a_table(experiment):
    result = evaluate_model(embedder_of(experiment()), "validation")
    assert json.loads(json.dumps(result.as_dict()))["metrics"]["t2v"] == result.metrics["t2v"]
    low, high = result.intervals["t2v"]["R1"]
    assert f"{low:.1f}–{high:.1f}" in printed(result.table())


def test_missing_items_count_as_errors_in_metrics_and_intervals(experiment):
    changed = experiment(evaluation={"complete_dataset_size": 16})
    result = evaluate_model(embedder_of(changed), "validation")
    assert result.metrics["t2v"]["R50"] == 50 and result.intervals["t2v"]["R50"][1] < 100


def test_a_model_that_offers_no_task_says_so(experiment):
    config = experiment(evaluation={"tasks": ["t2v_va"]})
    with pytest.raises(ConfigError, match="none of the tasks t2v_va"):
        evaluate_model(embedder_of(config), "validation")


def test_steps_are_localised_on_crosstask(experiment, step_data):
    config = experiment(data={"test": {"type": "crosstask", **step_data}})
    result = evaluate_model(embedder_of(config))
    assert result.items == 2 and result.published == () and result.intervals == {}
    assert result.metrics["steps"]["recall"] in (0, 25, 50, 75, 100)
    assert result.metrics["steps/7"] == result.metrics["steps"]
    assert "recall" in printed(result.table())


def test_actions_are_segmented_on_mining_youtube(experiment, step_data):
    config = experiment(data={"test": {"type": "mining-youtube", **step_data}})
    result = evaluate_model(embedder_of(config))
    assert 0 < result.metrics["segmentation"]["iou"] <= result.metrics["segmentation"]["iod"] <= 100
    assert "iod" in printed(result.table())


def configured(train, test, **changes):
    sets = {name: d for name, d in (("train", train), ("test", test)) if d is not None}
    return parse_config({"data": sets, **changes}, "the test")


MSRVTT = {"type": "msrvtt", "path": "test.pkl"}
HOWTO = {"type": "howto100m", "csv": "a", "captions": "b", "features_2d": "c", "features_3d": "d", "audio": "e"}
RESNET = {
    "features": {
        "video_2d": {"backbone": "resnet152", "rate": 1},
        "video_3d": {"backbone": "resnext101-3d", "rate": 1.5},
    }
}


def figures(config: Config, items=968):
    return [(p.setting, p.metrics["R1"]) for p in published_beside(config, config.data.test, items, ["t2va"])]


def test_the_setting_of_published_figures_follows_what_the_model_was_trained_on():
    assert figures(configured(HOWTO, MSRVTT, **RESNET)) == [("zero-shot", 9.9)]
    training = {"type": "msrvtt", "path": "train.pkl", "training": True}
    assert figures(configured(training, MSRVTT, **RESNET)) == [("fine-tuned", 23.7)]
    assert figures(configured(None, MSRVTT, **RESNET)) == []
    assert figures(configured({"type": "shards", "url": "unknown"}, MSRVTT, **RESNET)) == []


def test_no_published_figures_beside_other_clips_than_theirs():
    config = configured(HOWTO, MSRVTT, **RESNET)
    assert figures(config, items=967) == []
    assert figures(configured(HOWTO, {**MSRVTT, "training": True}, **RESNET)) == []
    assert figures(configured(MSRVTT, MSRVTT, **RESNET)) == []


def test_published_figures_of_another_backbone_are_left_out():
    youcook = {"type": "youcook2", "path": "validation.pkl"}
    s3d = {"features": {"video_2d": None, "video_3d": {"backbone": "s3d", "rate": 1}}}
    assert figures(configured(HOWTO, youcook, **s3d), items=3339) == [("zero-shot", 19.8)]
    assert figures(configured(HOWTO, youcook, **RESNET), items=3339) == []
