"""The training loop: it learns, resumes exactly, and never leaves half a run."""

import json

import pytest
import torch

from eao.checkpoint import load_checkpoint
from eao.config import merge
from eao.errors import CheckpointError, ConfigError, EaoError
from eao.training.run import run_training
from eao.training.trainer import Trainer

DROPOUT = {"fusion": {"drop_rate": 0.1}}


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


class Interrupted(Exception):
    pass


def interrupt_at(epoch: int, step: int):
    """A report that ends the run after a step."""

    def report(progress):
        if (progress.epoch, progress.step) == (epoch, step):
            raise Interrupted

    return report


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"trainer": {"checkpoint_steps": 1, "ema_decay": 0.8}, "schedule": {"name": "cosine", "warmup_steps": 3}},
        # The scale starts at 65536, comes down in the first steps, and is part of what is resumed.
        {"trainer": {"checkpoint_steps": 2, "precision": "fp16"}, "schedule": {"name": "ReduceLROnPlateau"}},
        {"trainer": {"checkpoint_steps": 1, "precision": "bf16", "accumulate": 2, "clip_grad_norm": 0.1}},
        {"trainer": {"checkpoint_steps": 2, "gradcache_chunk": 3}, "data": {"train": {"repeat": 2}}},
        {"optimizer": {"name": "SGD", "args": {"momentum": 0.9}}, "loss": {"kind": "mms"}},
    ],
    ids=["plain", "average", "fp16", "bf16", "gradcache", "mms"],
)
def test_an_interrupted_run_resumes_to_the_same_weights(experiment, tmp_path, settings):
    settings = merge({"trainer": {"epochs": 3}, "data": {"batch_size": 4}, "model": DROPOUT}, settings)
    run_training(experiment(**settings), tmp_path / "whole", quiet=True)
    with pytest.raises(Interrupted):
        Trainer(experiment(**settings), tmp_path / "broken").run(interrupt_at(2, 3))
    run_training(experiment(**settings), tmp_path / "broken", resume=True, quiet=True)
    for name in ("latest", "best"):
        whole, resumed = (weights(tmp_path / run / name) for run in ("whole", "broken"))
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


def test_the_kept_weights_are_the_moving_average(experiment, tmp_path):
    trainer = Trainer(experiment(trainer={"epochs": 2, "ema_decay": 0.7, "save_every": 2}), tmp_path / "run")
    steps = []

    def note(progress):
        steps.append({key: x.clone() for key, x in trainer.model.state_dict().items()})

    trainer.run(note)
    kept, latest = weights(tmp_path / "run/epoch-2"), weights(tmp_path / "run/latest")
    for key, last in steps[-1].items():
        assert torch.equal(latest[key], last)
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            average = steps[0][key]
            for step in steps[1:]:
                average = 0.7 * average + 0.3 * step[key]
            torch.testing.assert_close(kept[key], average, rtol=1e-5, atol=1e-7)


def test_checkpoints_by_epoch_are_kept_beside_the_best_and_the_latest(experiment, tmp_path):
    run_training(experiment(trainer={"epochs": 4, "save_every": 2}), tmp_path / "run", quiet=True)
    folders = {path.name for path in (tmp_path / "run").iterdir() if (path / "model.safetensors").is_file()}
    assert folders == {"epoch-2", "epoch-4", "best", "latest"}


def test_a_checkpoint_within_an_epoch_says_where_it_is(experiment, tmp_path):
    config = experiment(trainer={"checkpoint_steps": 3}, data={"batch_size": 4})
    with pytest.raises(Interrupted):
        Trainer(config, tmp_path / "run").run(interrupt_at(2, 4))
    trainer = Trainer(config, tmp_path / "run", resume=True)
    # Step 8 ends an epoch, whose own checkpoint was not reached; 6 is the last multiple of 3.
    assert (trainer.epoch, trainer.step, trainer.sums.steps) == (1, 6, 2)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_it_whole(experiment, tmp_path, monkeypatch):
    config = experiment(trainer={"epochs": 3})
    save, calls = torch.save, []

    def full_disk(state, path):
        calls.append(path)
        save(state, path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        Trainer(config, tmp_path / "run").run()
    assert Trainer(config, tmp_path / "run", resume=True).epoch == 1
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(experiment, tmp_path):
    config = experiment(optimizer={"name": "SGD", "lr": 1e30}, trainer={"checkpoint_steps": 1})
    with pytest.raises(EaoError, match=r"the loss became (nan|inf) at step \d; the batch is saved"):
        Trainer(config, tmp_path / "run").run()
    bad = torch.load(tmp_path / "run/bad_batch.pt", weights_only=True)
    assert {"text", "video", "audio", "ids"} <= bad.keys()
    assert (tmp_path / "run/latest/training.pt").is_file()
    rows = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()[1:]]
    assert all(float(value) == float(value) for _, _, value in rows)


def test_the_monitor_may_ask_for_the_lowest(experiment, tmp_path):
    config = experiment(trainer={"monitor": "min validation/loss", "epochs": 4})
    result = run_training(config, tmp_path / "run", quiet=True)
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    lowest = min(records, key=lambda record: record["validation_loss"]["loss"])
    assert result["best"]["epoch"] == lowest["epoch"]


def test_validation_runs_when_it_is_due_and_before_training_if_asked(experiment, tmp_path):
    trainer = {"epochs": 5, "validate_every": 2, "initial_validation": True}
    records = Trainer(experiment(trainer=trainer), tmp_path / "run").run()
    assert [r.epoch for r in records if r.validation] == [0, 2, 4, 5]
    assert records[0].loss is None and records[0].validation_loss["loss"] > 0


def test_validation_sets_are_told_apart_by_name(experiment, tmp_path):
    config = experiment(trainer={"epochs": 1, "monitor": "validation/second/t2v/R5"})
    one = config.data.validation
    config.data.validation = {"first": one, "second": one.model_copy(update={"split": "train"})}
    (record,) = Trainer(config, tmp_path / "run").run()
    assert {"first/t2va", "second/t2va"} <= record.validation.keys()
    assert record.validation_loss.keys() == {"first/loss", "second/loss"}


def test_trackers_are_given_every_step_asked_for_and_every_epoch(experiment, tmp_path):
    config = experiment(data={"batch_size": 4}, trainer={"epochs": 2, "log_steps": 2})
    Trainer(config, tmp_path / "run").run()
    rows = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()[1:]]
    series = {name: [(int(s), float(v)) for s, n, v in rows if n == name] for _, name, _ in rows}
    assert series["train/epoch"] == [(2, 0.5), (4, 1.0), (6, 1.5), (8, 2.0)]
    assert [step for step, _ in series["train/loss"]] == [2, 4, 6, 8]
    assert [step for step, _ in series["validation/t2va/R1"]] == [4, 8]
    assert all(rate == pytest.approx(1e-2 * 0.9 ** (step > 4)) for step, rate in series["train/learning_rate"])
    assert all(speed > 0 for _, speed in series["train/clips_per_second"])


def test_fine_tuning_in_eval_mode_trains_batchnorm_s_weights_and_draws_no_dropout(experiment, tmp_path):
    model = {"fusion": {"drop_rate": 0.5}}
    losses = []
    for drop in (model, {}):
        config = experiment(model=drop, trainer={"eval_mode": True, "epochs": 1, "noise": 0, "token_dropout": 0})
        losses.append(Trainer(config, tmp_path / f"run{len(losses)}").run()[0].loss)
    assert losses[0] == losses[1]
