"""The authors' loss, optimizer, schedule and trainer."""

from __future__ import annotations

from typing import Any

import pytest

from eao.authors.training import translate_loss, translate_optimizer, translate_trainer
from eao.errors import CheckpointError


def trainer(**values: Any) -> tuple[dict[str, Any], list[str]]:
    notices: list[str] = []
    return translate_trainer({"trainer": values}, ["msrvtt", "youcook2"], notices), notices


def test_loss() -> None:
    assert translate_loss({}, []) == {}
    args = {"tv_weight": 1, "a_tv_weight": 0.1, "contrastive_loss": "MMS", "temperature": 0.1}
    assert translate_loss({"loss": {"args": args}}, []) == {
        "loss": {"kind": "mms", "weights": {"text_video": 1, "audio_textvideo": 0.1}, "temperature": 0.1}
    }
    with pytest.raises(CheckpointError, match="unknown loss 'Triplet'"):
        translate_loss({"loss": {"args": {"contrastive_loss": "Triplet"}}}, [])


def test_optimizer_keeps_its_arguments() -> None:
    values = translate_optimizer({"optimizer": {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}}})
    assert values["optimizer"] == {"name": "SGD", "lr": 0.1, "args": {"momentum": 0.9}}
    assert values["schedule"] == {"name": "constant"}


def test_any_scheduler_by_name() -> None:
    def schedule(kind: str, **args: Any) -> dict[str, Any]:
        return translate_optimizer({"lr_scheduler": {"type": kind, "args": args}})["schedule"]

    assert schedule("ExponentialLR", gamma=0.9) == {"name": "exponential", "gamma": 0.9}
    assert schedule("StepLR", step_size=3) == {"name": "StepLR", "args": {"step_size": 3}}


def test_trainer() -> None:
    values, notices = trainer(
        epochs=3,
        max_samples_per_epoch=100,
        save_period=7,
        use_eval_mode_always=True,
        mixed_precision=True,
        early_stop=4,
        init_val=False,
    )
    assert values == {
        "trainer": {
            "epochs": 3,
            "max_items_per_epoch": 100,
            "save_every": 7,
            "eval_mode": True,
            "precision": "auto",
            "early_stop": 4,
            "monitor": None,
            "initial_validation": False,
        }
    }
    assert notices == []


def test_trainer_defaults_of_the_authors() -> None:
    values, _ = trainer(epochs=1)
    assert (values["trainer"]["precision"], values["trainer"]["initial_validation"]) == ("fp32", True)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("off", None),
        ("max val_0_t2v_metrics_R1", "max validation/msrvtt/t2v/R1"),
        ("max val_1_t2v+a_metrics_geometric_mean_R1-R5-R10", "max validation/youcook2/t2v+a/geometric_mean_R1-R5-R10"),
        ("min val_0_t2va_metrics_MedR", "min validation/msrvtt/t2va/MedR"),
        ("min val_loss_1", "min validation/youcook2/loss"),
    ],
)
def test_monitor(theirs: str, ours: str | None) -> None:
    values, notices = trainer(monitor=theirs)
    assert values["trainer"]["monitor"] == ours
    assert notices == []


@pytest.mark.parametrize("theirs", ["min loss", "max val_2_t2v_metrics_R1", "best val_0_t2v_metrics_R1", "max val_x"])
def test_monitor_that_is_not_there_is_off_with_a_notice(theirs: str) -> None:
    values, notices = trainer(monitor=theirs)
    assert values["trainer"]["monitor"] is None
    assert theirs in notices[0]


def test_neptune_is_a_backend() -> None:
    assert trainer(neptune=True)[0]["tracking"] == {"backends": ["csv", "neptune"]}
    assert "tracking" not in trainer(neptune=False)[0]
