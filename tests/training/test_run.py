"""Training as a command: what it prints and leaves, alone and in several processes."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from eao.checkpoint import load_checkpoint
from eao.training.records import EpochRecord, Progress
from eao.training.run import epoch_line, run_training, step_line

from .processes import run_together


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def command(config, folder, *options: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    config.save(folder / "experiment.yaml")
    return ["-m", "eao", "train", "-c", str(folder / "experiment.yaml"), "--out", str(folder / "run"), *options]


@pytest.fixture
def whole_batches(experiment):
    """An experiment whose steps are the same whatever the number of processes."""

    def build(**trainer):
        settings = {"epochs": 2, "noise": 0, "token_dropout": 0, "sync_batchnorm": True, "ema_decay": 0.9, **trainer}
        return experiment(trainer=settings)

    return build


def test_two_processes_train_as_one_and_the_first_alone_speaks_and_writes(whole_batches, tmp_path):
    (code, out, told), *others = run_together(command(whole_batches(), tmp_path / "two"))
    assert (code, out, others) == (0, "", [(0, "", "")]), told
    assert "2 x cpu fp32" in told and told.count("epoch 1/2") == told.count("epoch 2/2") == 1
    run_training(whole_batches(), tmp_path / "one", quiet=True)
    # Steps of Adam in float32 make more of the last digits than the requirement on one step's loss leaves.
    assert losses(tmp_path / "two/run") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (load_checkpoint(tmp_path / run / "latest")[0].state_dict() for run in ("one", "two/run"))
    for key, x in one.items():
        torch.testing.assert_close(two[key], x, rtol=1e-2, atol=1e-3, msg=key)


def test_two_processes_resume_to_the_weights_of_an_uninterrupted_pair(whole_batches, tmp_path):
    for name, epochs in (("whole", 3), ("broken", 1)):
        run_together(command(whole_batches(epochs=epochs), tmp_path / name))
    ended = run_together(command(whole_batches(epochs=3), tmp_path / "broken", "--resume"))
    assert [code for code, _, _ in ended] == [0, 0], ended[0][2]
    for name in ("latest", "best"):
        files = [(tmp_path / run / "run" / name / "model.safetensors").read_bytes() for run in ("whole", "broken")]
        assert files[0] == files[1]
    assert losses(tmp_path / "whole/run") == losses(tmp_path / "broken/run")


def test_a_loss_that_is_not_finite_in_two_processes_is_told_once_with_the_batch_of_each(whole_batches, tmp_path):
    config = whole_batches()
    config.optimizer = config.optimizer.model_copy(update={"name": "SGD", "lr": 1e30})
    ended = run_together(command(config, tmp_path / "two"))
    assert [code for code, _, _ in ended] == [2, 2]
    assert "".join(told for _, _, told in ended).count("the batch is saved") == 1
    batches = [torch.load(tmp_path / f"two/run/bad_batch-{rank}.pt", weights_only=True) for rank in range(2)]
    assert [len(batch["ids"]) for batch in batches] == [4, 4]
    assert not set(batches[0]["ids"]) & set(batches[1]["ids"])


def test_a_batch_that_does_not_divide_among_the_processes_is_an_error_told_once(whole_batches, tmp_path):
    config = whole_batches()
    config.data.batch_size = 7
    ended = run_together(command(config, tmp_path / "two"))
    assert [code for code, _, _ in ended] == [2, 2]
    assert "".join(told for _, _, told in ended).count("does not divide among 2 processes") == 1


@pytest.mark.slow
def test_torchrun_starts_processes_that_train_together(whole_batches, tmp_path):
    arguments = command(whole_batches(epochs=1), tmp_path / "two")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *torchrun, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 1/1") == 1 and "2 x cpu" in done.stderr
    assert len(losses(tmp_path / "two/run")) == 1


def test_ctrl_c_ends_a_run_with_code_2_and_leaves_its_checkpoint(experiment, tmp_path):
    # The signal is sent by the process itself, in its second epoch.
    source = f"""
import os, signal, sys
from pathlib import Path
from eao.training.step import OptimizerStep
call = OptimizerStep.__call__
def interrupted(self, batch, step):
    if step == 3:
        os.kill(os.getpid(), {signal.SIGINT.value})
    return call(self, batch, step)
OptimizerStep.__call__ = interrupted
sys.argv = {command(experiment(trainer={"epochs": 5}), tmp_path / "one")[1:]}
import runpy
runpy.run_module("eao", run_name="__main__", alter_sys=True)
"""
    ((code, _, told),) = run_together(["-c", source], world=1)
    assert code == 2, told
    assert "Traceback" not in told
    assert len(losses(tmp_path / "one/run")) == 1
    result = run_training(experiment(trainer={"epochs": 5}), tmp_path / "one/run", resume=True, quiet=True)
    assert result["epochs"] == 5


def test_a_run_folder_tells_its_best_epoch_and_has_its_curves(experiment, tmp_path):
    result = run_training(experiment(trainer={"epochs": 2}), tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == result
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")


def test_lines_for_people():
    record = EpochRecord(2, 8, 1.25, {}, 0.1, 63.7, 2.0, validation={"x/t2v": {"R1": 12.34, "R10": 56.0}})
    assert epoch_line(record, 9) == "epoch 2/9  loss 1.250  64 clips/s  x/t2v R@1 12.3 R@10 56.0"
    assert epoch_line(EpochRecord(0, 0, None, {}, 0.1, 0.0, 0.0), 9) == "epoch 0/9"
    assert step_line(Progress(1, 9, 3, 4, 0.5, 10.0)) == "epoch 1/9  step 3/4  loss 0.500  10 clips/s"
