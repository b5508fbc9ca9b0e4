"""The training loop: it learns, resumes exactly, and never leaves half a run."""

import json

import pytest
import torch

from eao.checkpoint import load_checkpoint
from eao.errors import CheckpointError, ConfigError, EaoError
from eao.training.run import run_training
from eao.training.trainer import Trainer


def weights(folder) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0].state_dict()


def test_training_lowers_the_loss_and_fills_the_run_folder(experiment, tmp_path):
    config = experiment(trainer={"epochs": 12, "noise": 0.0, "token_dropout": 0.0})
    result = run_training(config, tmp_path / "run", quiet=True)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert len(log) == 12 and log[-1]["step"] == 24
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    assert set(log[0]["terms"]) == {"text_video", "text_audio", "text_videoaudio"}
    assert {"R1", "MedR"} <= set(log[0]["validation"]["t2va"])
    for name in ("config.yaml", "metrics.json", "latest/training.pt", "best/model.safetensors"):
        assert (tmp_path / "run" / name).is_file(), name
    best = max(r["validation"]["t2va"]["R1"] for r in log)
    assert result["best"]["validation"]["t2va"]["R1"] == best


def test_an_interrupted_run_resumes_to_the_same_weights(experiment, tmp_path):
    run_training(experiment(), tmp_path / "whole", quiet=True)

    class Interrupted(Exception):
        pass

    def interrupt(progress):
        if progress.epoch == 3 and progress.step == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        Trainer(experiment(), tmp_path / "broken").run(interrupt)
    run_training(experiment(), tmp_path / "broken", resume=True, quiet=True)
    whole, resumed = weights(tmp_path / "whole/latest"), weights(tmp_path / "broken/latest")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("whole", "broken")]
    assert [json.loads(a)["loss"] for a in logs[0]] == [json.loads(b)["loss"] for b in logs[1]]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(experiment, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_training(experiment(seed=seed, trainer={"epochs": 1}), tmp_path / name, quiet=True)
    a, b, c = (weights(tmp_path / name / "latest")["text_proj.fc.weight"] for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_folder_that_holds_a_run_is_not_overwritten(experiment, tmp_path):
    run_training(experiment(trainer={"epochs": 1}), tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="--resume"):
        Trainer(experiment(), tmp_path / "run")
    with pytest.raises(CheckpointError, match="no run to resume"):
        Trainer(experiment(), tmp_path / "elsewhere", resume=True)


def test_early_stop_ends_a_run_that_no_longer_improves(experiment, tmp_path):
    trainer = Trainer(experiment(trainer={"epochs": 9, "early_stop": 2}), tmp_path / "run")
    trainer.monitor.best = 1e9
    assert len(trainer.run()) == 3
    # Nothing was ever best, yet a finished run has a `best`.
    assert (tmp_path / "run/best/model.safetensors").is_file()
    assert not (tmp_path / "run/best/training.pt").exists()
    assert len(Trainer(experiment(trainer={"epochs": 9, "early_stop": 2}), tmp_path / "run", resume=True).run()) == 3


def test_a_monitor_that_validation_does_not_give_is_an_error(experiment, tmp_path):
    config = experiment(trainer={"monitor": "validation/t2v/nonsense"})
    with pytest.raises(ConfigError, match="for example validation/"):
        Trainer(config, tmp_path / "run").run()


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(experiment, tmp_path):
    trainer = Trainer(experiment(), tmp_path / "run")
    with torch.no_grad():
        trainer.model.text_proj.fc.weight[0, 0] = float("nan")
    with pytest.raises(EaoError, match="batch is saved"):
        trainer.run()
    saved = torch.load(tmp_path / "run/bad_batch.pt", weights_only=True)
    assert len(saved["ids"]) == 8 and saved["video"].shape == (8, 4, 9)
    assert not (tmp_path / "run/latest").exists()


def test_features_of_another_width_are_an_error_that_names_the_key(experiment, tmp_path):
    with pytest.raises(ConfigError, match="model.video_dim=9"):
        Trainer(experiment(model={"video_dim": 11}), tmp_path / "run")


def test_eval_mode_training_leaves_the_batchnorm_statistics_alone(experiment, tmp_path):
    trainer = Trainer(experiment(trainer={"eval_mode": True, "epochs": 1}), tmp_path / "run")
    before = trainer.model.davenet.bn1.running_mean.clone()
    weight = trainer.model.davenet.bn1.weight.detach().clone()
    trainer.run()
    assert torch.equal(trainer.model.davenet.bn1.running_mean, before)
    assert not torch.equal(trainer.model.davenet.bn1.weight, weight)


def test_initial_weights_are_loaded(experiment, tmp_path):
    run_training(experiment(trainer={"epochs": 1}), tmp_path / "first", quiet=True)
    source = str(tmp_path / "first/best")
    trainer = Trainer(experiment(trainer={"initial_weights": source}), tmp_path / "second")
    assert torch.equal(trainer.model.text_proj.fc.weight, weights(source)["text_proj.fc.weight"])


def test_a_batch_larger_than_the_data_is_an_error(experiment, tmp_path):
    with pytest.raises(ConfigError, match="data.batch_size=16"):
        Trainer(experiment(data={"batch_size": 99}), tmp_path / "run")
