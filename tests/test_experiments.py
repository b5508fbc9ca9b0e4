"""Experiments by name or file, in this package's schema or the authors'."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from eao.api import load_for_evaluation
from eao.authors import read_authors_config
from eao.config import Config, load_config
from eao.configs import find_config
from eao.errors import CheckpointError, ConfigError
from eao.experiments import load_evaluation, load_experiment

GOLDEN = Path(__file__).parent / "golden"


def shipped(name: str) -> Config:
    return load_config(find_config(name))


class TestTraining:
    def test_shipped_by_name_or_path(self) -> None:
        by_name = load_experiment("youcook_at_once")
        assert by_name == load_experiment("configs/evaluation/youcook_at_once.yaml")
        assert load_experiment("finetuning/clip/msrvtt").name == "clip_msrvtt"

    def test_own_file_needs_no_notice(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "mine.yaml").write_text("seed: 3\n")
        found = load_experiment(tmp_path / "mine.yaml", ["optimizer.lr=1e-3"])
        assert (found.seed, found.optimizer.lr, found.name) == (3, 1e-3, "mine")
        assert not caplog.records

    def test_theirs_is_read_with_a_notice(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            found = load_experiment(GOLDEN / "cfg/pre_tva.yaml", ["trainer.epochs=7"])
        assert (found.name, found.trainer.epochs, found.model.video_dim) == ("pre_tva", 7, 96)
        assert len(caplog.records) == 1
        notice = caplog.records[0].message
        assert "pre_tva.yaml is a configuration of the authors' code" in notice
        assert "arch as model" in notice and "val_data_loaders as data.validation" in notice

    def test_what_is_not_translated_is_in_the_notice(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        text = (GOLDEN / "cfg/pre_tva.yaml").read_text(encoding="utf-8")
        (tmp_path / "theirs.yaml").write_text(f"{text}\ncolour: red\n", encoding="utf-8")
        load_experiment(tmp_path / "theirs.yaml")
        assert "colour: not translated (was 'red')" in caplog.text

    def test_theirs_as_json(self, tmp_path: Path) -> None:
        file = GOLDEN / "cfg/pre_tva.yaml"
        (tmp_path / "pre_tva.json").write_text(json.dumps(read_authors_config(file)))
        assert load_experiment(tmp_path / "pre_tva.json") == load_experiment(file)

    def test_finetuning_takes_the_model_from_the_checkpoint(self) -> None:
        weights = GOLDEN / "checkpoints/pre_tva_dataparallel"
        found = load_experiment(GOLDEN / "cfg/ft_msrvtt.yaml", [f"trainer.initial_weights={weights}"])
        assert found.model.audio.channels  # narrower than published, which only the weights say
        assert (found.data.train.type, len(found.evaluation.tasks)) == ("msrvtt", 18)  # type: ignore[union-attr]

    def test_finetuning_without_a_checkpoint_says_what_to_give(self) -> None:
        with pytest.raises(ConfigError, match="names no architecture") as raised:
            load_experiment(GOLDEN / "cfg/ft_msrvtt.yaml")
        assert "trainer.initial_weights=" in raised.value.hint

    @pytest.mark.parametrize(
        ("name", "text", "says"),
        [
            ("a.yaml", "a: [1", "not valid YAML"),
            ("b.yaml", "modle: {}", "unknown key modle"),
            ("c.yaml", "arch: {type: BertModel}", "unknown architecture 'BertModel'"),
            ("d.json", "[1]", "must be a mapping"),
        ],
    )
    def test_malformed(self, tmp_path: Path, name: str, text: str, says: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises((ConfigError, CheckpointError), match=says):
            load_experiment(tmp_path / name)

    def test_neither_file_nor_shipped(self) -> None:
        with pytest.raises(ConfigError, match="neither a file nor a shipped experiment") as raised:
            load_experiment("msrvtt_at_onse")
        assert raised.value.hint == "did you mean msrvtt_at_once?"

    def test_one_name_for_several_asks_which(self) -> None:
        with pytest.raises(ConfigError) as raised:
            load_experiment("msrvtt")
        assert "finetuning/clip/msrvtt, finetuning/msrvtt" in raised.value.hint


class TestEvaluation:
    def test_shipped_is_laid_over_the_checkpoint(self) -> None:
        trained = shipped("finetuning/youcook")
        found = load_evaluation("youcook_max", trained)
        assert (found.name, found.model.audio_pooling) == ("youcook", "max_pool")
        assert found.data.named("test")[""].sampling == "max_pool"
        assert (found.loss, found.data.train) == (trained.loss, trained.data.train)

    def test_a_test_set_replaces_that_of_the_checkpoint(self) -> None:
        trained = load_evaluation("msrvtt_clips", shipped("pretraining/everything_at_once_tva"))
        assert load_evaluation("youcook_at_once", trained).data.named("test")[""].video_tokens == 72

    def test_theirs_on_a_checkpoint_of_theirs(self, caplog: pytest.LogCaptureFixture) -> None:
        folder = GOLDEN / "checkpoints/pre_tva_dataparallel"
        model = load_for_evaluation(folder, GOLDEN / "cfg/ev_msrvtt_max_pool.yaml", device="cpu")
        assert (model.config.model.audio_pooling, model.config.model.audio_max_frames) == ("max_pool", 256)
        assert "data_loader as data.test" in caplog.text

    def test_another_architecture_than_that_of_the_weights_is_refused(self, tmp_path: Path) -> None:
        text = (GOLDEN / "cfg/ev_msrvtt_nearest.yaml").read_text(encoding="utf-8")
        file = tmp_path / "deeper.yaml"
        file.write_text(text.replace("depth: 1", "depth: 2"), encoding="utf-8")
        with pytest.raises(ConfigError, match="model.fusion.depth is 1 there, not 2"):
            load_for_evaluation(GOLDEN / "checkpoints/pre_tva_dataparallel", file, device="cpu")
