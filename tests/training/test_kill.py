"""A run killed at any moment goes on to the weights of one that was not: real processes, killed by the system."""

import csv
import shutil
import signal
import time

import pytest

from eao.training.run import run_training

from .processes import PATIENCE, context

STEPS = 32
KILLED_AT = (1, 6, 9, 16, 21)
"""Steps at which a run is killed or soon after: before the first checkpoint, within epochs, and at their ends."""


@pytest.fixture
def config(experiment):
    return experiment(
        data={"batch_size": 4},
        model={"fusion": {"drop_rate": 0.1}},
        optimizer={"name": "AdamW"},
        schedule={"name": "cosine", "warmup_steps": 3},
        trainer={"epochs": 8, "checkpoint_steps": 2, "log_steps": 1, "ema_decay": 0.9},
    )


def start(config, out, resume=False):
    options = {"resume": resume, "quiet": True}
    process = context().Process(target=run_training, args=(config, out), kwargs=options)
    process.start()
    return process


def finish(*arguments):
    process = start(*arguments)
    process.join(PATIENCE)
    assert process.exitcode == 0


def steps_logged(out):
    table = out / "metrics.csv"
    if not table.exists():
        return 0
    with table.open() as file:
        return max((int(row[0]) for row in list(csv.reader(file))[1:] if len(row) == 3), default=0)


def weights(out):
    return {name: (out / name / "model.safetensors").read_bytes() for name in ("latest", "best")}


def tracked(out):
    """Every value in the table but the speed."""
    with (out / "metrics.csv").open() as file:
        return [row for row in csv.reader(file) if row[1] != "train/clips_per_second"]


def kill_at(step, config, out):
    """Start a run and kill it at a step, or soon after; one that has ended before that is started again."""
    end = time.monotonic() + PATIENCE
    while True:
        process = start(config, out)
        while steps_logged(out) < step and time.monotonic() < end:
            time.sleep(0.002)
        process.kill()
        process.join()
        if steps_logged(out) < STEPS or time.monotonic() > end:
            break
        shutil.rmtree(out)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(config, tmp_path):
    finish(config, tmp_path / "whole")
    assert steps_logged(tmp_path / "whole") == STEPS
    expected = weights(tmp_path / "whole")
    reached = []
    for step in KILLED_AT:
        out = tmp_path / f"killed{step}"
        kill_at(step, config, out)
        reached.append(steps_logged(out))
        # Before the first checkpoint there is nothing to go on from: the run is begun again.
        finish(config, out, True)
        assert weights(out) == expected, f"killed after step {reached[-1]}"
        assert tracked(out) == tracked(tmp_path / "whole")
    assert all(step < STEPS for step in reached), "every run was killed before its end"
