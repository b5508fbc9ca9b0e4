"""A dry run says what a run would do and need, checks what is there, and touches nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eao import cli
from eao.config import Config, load_config
from eao.configs import find_config
from eao.errors import CheckpointError, ConfigError
from eao.model import build_model
from eao.training.describe import describe_run, description_lines, training_memory
from eao.training.run import run_training
from eao.training.trainer import Trainer

Experiment = Callable[..., Config]


@pytest.fixture
def bare_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without any data."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def state_bytes(trainer: Trainer) -> int:
    return sum(
        x.numel() * x.element_size()
        for state in trainer.optimizer.state.values()
        for x in state.values()
        if isinstance(x, torch.Tensor)
    )


class TestWithItsData:
    def test_says_the_same_as_the_trainer(self, experiment: Experiment, tmp_path: Path) -> None:
        config = experiment(data={"train": {"repeat": 3}}, trainer={"max_items_per_epoch": 40})
        found = describe_run(config, tmp_path / "run")
        trainer = Trainer(config, tmp_path / "run")
        assert (found["training items"], found["validation items"]) == (16, 8)
        assert found["steps per epoch"] == trainer.steps_per_epoch == 5
        assert found["parameters"] == sum(p.numel() for p in trainer.model.parameters())
        assert (found["device"], found["precision"]) == (str(trainer.device), trainer.precision)

    def test_is_ready_and_writes_nothing(self, experiment: Experiment, tmp_path: Path) -> None:
        found = describe_run(experiment(), tmp_path / "run")
        assert found["ready"] is True
        assert found["holds a run"] is False
        assert all(file["exists"] for file in found["files"])
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("optimizer", "ema"),
        [
            ({"name": "Adam"}, None),
            ({"name": "Adam", "args": {"amsgrad": True}}, 0.9),
            ({"name": "SGD", "args": {"momentum": 0.9}}, None),
            ({"name": "SGD"}, None),
        ],
    )
    def test_memory_is_that_of_a_real_step(
        self, experiment: Experiment, tmp_path: Path, optimizer: dict[str, Any], ema: float | None
    ) -> None:
        # Every term, so that all three modalities get gradients.
        config = experiment(optimizer=optimizer, trainer={"epochs": 1, "ema_decay": ema})
        found = describe_run(config, tmp_path / "run")["memory"]
        trainer = Trainer(config, tmp_path / "run")
        trainer.run()
        weights = sum(x.numel() * x.element_size() for x in (*trainer.model.parameters(), *trainer.model.buffers()))
        unused = 2 * sum(p.numel() * 4 for p in trainer.model.parameters() if p.grad is None)
        gradients = sum(p.numel() * 4 for p in trainer.model.parameters())
        assert (found["weights"], found["gradients"]) == (weights, gradients)
        assert ("moving average" in found) is (ema is not None)
        # The few parameters that never get a gradient (the unapplied norms) have no optimizer state either.
        assert 0 <= found["optimizer"] - state_bytes(trainer) <= 2 * unused + 100

    def test_features_of_another_width_are_an_error(self, experiment: Experiment, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="model.video_dim=9"):
            describe_run(experiment(model={"video_dim": 11}), tmp_path / "run")

    @pytest.mark.parametrize(
        ("changes", "hint"),
        [({"data": {"batch_size": 99}}, "data.batch_size=16"), ({"trainer": {"max_items_per_epoch": 7}}, "8 or more")],
    )
    def test_less_than_a_batch_is_an_error(
        self, experiment: Experiment, tmp_path: Path, changes: dict[str, Any], hint: str
    ) -> None:
        with pytest.raises(ConfigError) as raised:
            describe_run(experiment(**changes), tmp_path / "run")
        assert hint in raised.value.hint

    def test_weights_to_start_from_must_fit(self, experiment: Experiment, tmp_path: Path) -> None:
        run_training(experiment(trainer={"epochs": 1}), tmp_path / "first", quiet=True)
        start = {"initial_weights": str(tmp_path / "first")}
        assert describe_run(experiment(trainer=start), tmp_path / "run")["ready"] is True
        with pytest.raises(CheckpointError, match="is .* in the checkpoint but"):
            describe_run(experiment(trainer=start, model={"embedding_dim": 12}), tmp_path / "run")

    def test_a_folder_that_holds_a_run_is_to_be_resumed(self, experiment: Experiment, tmp_path: Path) -> None:
        run = tmp_path / "run"
        run_training(experiment(trainer={"epochs": 1}), run, quiet=True)
        found = describe_run(experiment(), run)
        assert (found["holds a run"], found["ready"]) == (True, False)
        assert "--resume" in list(description_lines(found))[-1]
        assert describe_run(experiment(), run, resume=True)["ready"] is True
        with pytest.raises(CheckpointError, match="optimizer.lr"):
            describe_run(experiment(optimizer={"lr": 1}), run, resume=True)

    def test_there_may_be_nothing_to_resume(self, experiment: Experiment, tmp_path: Path) -> None:
        found = describe_run(experiment(), tmp_path / "run", resume=True)
        assert found["ready"] is False
        assert "no run to resume" in list(description_lines(found))[-1]


class TestWithoutData:
    def test_names_every_file_and_what_to_do(self, bare_checkout: Path) -> None:
        config = load_config(find_config("finetuning/msrvtt"))
        found = describe_run(config, Path("runs/msrvtt"))
        assert found["ready"] is False
        assert {file["setting"]: file["path"] for file in found["files"]} == {
            "data.text.path": "data/GoogleNews-vectors-negative300.bin",
            "trainer.initial_weights": "checkpoints/everything_at_once_tva",
            "data.train.path": "data/msrvtt/resnet/msrvtt_train.pkl",
            "data.validation.msrvtt.path": "data/msrvtt/resnet/msrvtt_jsfusion_test.pkl",
        }
        assert all(not file["exists"] and file["hint"] for file in found["files"])
        assert (found["training items"], found["steps per epoch"], found["validation items"]) == (None, None, None)
        assert not list(bare_checkout.iterdir())

    def test_only_what_needs_a_missing_file_is_unknown(self, experiment: Experiment, tmp_path: Path) -> None:
        found = describe_run(experiment(data={"validation": {"features": str(tmp_path / "gone")}}), tmp_path / "run")
        assert (found["training items"], found["steps per epoch"], found["validation items"]) == (16, 2, None)
        assert [file["setting"] for file in found["files"] if not file["exists"]] == ["data.validation.features"]

    def test_hints_follow_the_kind_of_data_set(self, experiment: Experiment, tmp_path: Path) -> None:
        shards = {"type": "shards", "url": str(tmp_path / "gone")}
        config = experiment(data={"train": shards, "validation": {"captions": "gone.jsonl"}})
        hints = {f["setting"]: f["hint"] for f in describe_run(config, tmp_path / "run")["files"] if not f["exists"]}
        assert "eao pack" in hints["data.train.url"]
        assert "eao extract" in hints["data.validation.captions"]

    def test_object_storage_is_not_asked(self, experiment: Experiment, tmp_path: Path) -> None:
        config = experiment(data={"validation": {"features": "s3://bucket/features", "captions": "gone"}})
        files = {file["setting"]: file["exists"] for file in describe_run(config, tmp_path / "run")["files"]}
        assert files["data.validation.features"] is True

    def test_nothing_to_train_on_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"data\.train is not set"):
            describe_run(Config(), tmp_path / "run")

    def test_memory_of_the_published_model(self) -> None:
        # Weights are 2.76 GB, and with Adam's two moments 8.27 GB, as large as the published files.
        with torch.device("meta"):
            model = build_model(Config().model)
        memory = training_memory(model, Config())
        assert memory["weights"] / 1e9 == pytest.approx(2.76, abs=0.005)
        assert (memory["weights"] + memory["optimizer"]) / 1e9 == pytest.approx(8.27, abs=0.005)


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["eao", "train", "--dry-run", *arguments])
        monkeypatch.setenv("COLUMNS", "40")
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    def test_missing_files_are_listed_and_no_failure(
        self, bare_checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(monkeypatch, "--config", "configs/finetuning/msrvtt.yaml") == 0
        lines = capfd.readouterr().out.splitlines()
        assert "✗ data.train.path: data/msrvtt/resnet/msrvtt_train.pkl" in lines
        assert "model:            689,371,138 parameters" in lines
        assert "training items:   unknown, since files are missing" in lines
        assert lines[-1] == "not ready: 4 of 4 files and folders are missing"
        assert not list(bare_checkout.iterdir())

    def test_json(
        self,
        experiment: Experiment,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        experiment().save(tmp_path / "small.yaml")
        assert self.run(monkeypatch, "-c", str(tmp_path / "small.yaml"), "-o", str(tmp_path / "run"), "--json") == 0
        found = json.loads(capfd.readouterr().out)
        assert (found["ready"], found["training items"]) == (True, 16)

    def test_override_points_to_a_file_elsewhere(
        self, bare_checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (bare_checkout / "vectors.bin").touch()
        self.run(monkeypatch, "-c", "finetuning/msrvtt", "data.text.path=vectors.bin")
        assert "✓ data.text.path: vectors.bin" in capfd.readouterr().out
