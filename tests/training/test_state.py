"""What a run may be continued with, and what a killed process left behind."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch

from eao.checkpoint import save_native
from eao.config import Config
from eao.errors import CheckpointError
from eao.model import build_model
from eao.training.records import EpochRecord
from eao.training.state import begin_run, check_unchanged, load_records, load_state

from .steps import make_config


@pytest.fixture
def run(tmp_path):
    config = make_config()
    save_native(tmp_path / "latest", build_model(config.model), config)
    torch.save({"position": [1, 2]}, tmp_path / "latest/training.pt")
    config.save(tmp_path / "config.yaml")
    return tmp_path


def changed(**sections) -> Config:
    config = make_config()
    for section, values in sections.items():
        for name, value in values.items():
            setattr(getattr(config, section), name, value)
    return config


def test_the_same_settings_may_go_on(run):
    check_unchanged(make_config(), run)


@pytest.mark.parametrize(
    "sections",
    [
        {"trainer": {"epochs": 99, "early_stop": 3, "log_steps": 5, "save_every": 1, "checkpoint_steps": 7}},
        {"evaluation": {"batch_size": 1}},
        {"tracking": {"project": "other"}},
        {"data": {"workers": 8}},
    ],
)
def test_settings_that_change_no_step_may_change(run, sections):
    check_unchanged(changed(**sections), run)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"optimizer": {"lr": 0.5}}, r"optimizer\.lr 5e-05 -> 0\.5"),
        ({"trainer": {"accumulate": 2}}, r"trainer\.accumulate 1 -> 2"),
        ({"data": {"batch_size": 7}}, r"data\.batch_size"),
        ({"model": {"embedding_dim": 32}}, r"model\.embedding_dim 16 -> 32"),
    ],
)
def test_settings_that_would_have_made_other_steps_are_named(run, sections, named):
    with pytest.raises(CheckpointError, match=named):
        check_unchanged(changed(**sections), run)


def test_files_may_lie_elsewhere_under_their_name(run):
    config = make_config()
    config.data.text.path = "/here/words.bin"
    save_native(run / "latest", build_model(config.model), config)
    config.data.text.path = "/there/words.bin"
    check_unchanged(config, run)
    config.data.text.path = "/there/others.bin"
    with pytest.raises(CheckpointError, match=r"data\.text\.path"):
        check_unchanged(config, run)


def test_a_run_killed_between_taking_a_checkpoint_away_and_putting_the_next_has_it_back(run):
    (run / "latest").rename(run / ".latest.0a0a0a0a.old")
    shutil.copytree(run / ".latest.0a0a0a0a.old", run / ".latest.0b0b0b0b.tmp")
    (run / ".epoch-2.0c0c0c0c.tmp").mkdir()
    assert begin_run(run, resume=True)
    assert load_state(run)["position"] == [1, 2]
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_a_run_killed_before_its_first_checkpoint_is_begun_again(run):
    shutil.rmtree(run / "latest")
    assert not begin_run(run, resume=True)


def test_a_folder_without_a_run_is_not_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="no run to resume"):
        begin_run(tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_state_is_an_error_that_says_what_can_be_saved(run, content):
    path = run / "latest/training.pt"
    path.write_bytes(content if content is not None else path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"training\.pt(.|\n)*initial_weights"):
        load_state(run)


def test_a_state_that_holds_code_is_refused(run):
    class Code:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"position": Code()}, run / "latest/training.pt")
    with pytest.raises(CheckpointError, match="cannot read the training state"):
        load_state(run)


def test_lines_of_epochs_whose_checkpoint_was_never_written_are_left_out(tmp_path):
    records = [EpochRecord(epoch, epoch, 1.0, {}, 0.1, 1.0, 1.0) for epoch in (0, 1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(asdict(r)) + "\n" for r in records))
    assert load_records(tmp_path, 2) == records[:3]
    assert load_records(tmp_path / "elsewhere", 2) == []
