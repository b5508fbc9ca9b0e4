"""Processes that train together: which device each has, and how all of them end when one fails."""

import pytest
import torch

from eao.errors import ConfigError
from eao.training.distributed import ALONE, choose_device, connect

from .processes import run_together

PRELUDE = """
import os, signal, sys, torch
from eao.errors import EaoError
from eao.training.distributed import connect

rank = int(os.environ["RANK"])
def run(job):
    try:
        with connect("cpu") as (processes, device):
            job(processes)
    except EaoError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2)
"""


def together(job: str, world: int = 2) -> list[tuple[int, str, str]]:
    return run_together(["-c", f"{PRELUDE}\n{job}\nrun(job)"], world)


def test_one_process_is_alone_and_gathers_what_it_has(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    x = torch.ones(2, 3)
    with connect("cpu") as (processes, device):
        assert processes is ALONE and device.type == "cpu"
        assert processes.gather(x) is x and processes.share_json({"a": [1.5]}) == {"a": [1.5]}


def test_half_an_environment_is_an_error_that_names_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=r"RANK is not set(.|\n)*torchrun"), connect("cpu"):
        pass


def test_several_processes_have_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(None, 1, 2) == torch.device("cuda", 1)
    assert choose_device("cpu", 1, 2) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"no GPU: there are 2(.|\n)*--nproc-per-node 2"):
        choose_device(None, 2, 3)
    with pytest.raises(ConfigError, match="names one GPU for 2 processes"):
        choose_device("cuda:0", 0, 2)


def test_processes_gather_rows_and_share_numbers_to_the_last_bit():
    job = """
def job(processes):
    rows = processes.gather(torch.full((2, 1), float(rank)))
    flags = processes.gather_flags({"text": torch.tensor([True, rank == 0]), "audio": torch.tensor([False, True])})
    shared = processes.share_json({"x": 0.1 + 0.2, "é": [None]} if rank == 0 else None)
    print(rows.flatten().tolist(), {name: x.tolist() for name, x in flags.items()}, shared)
"""
    expected = "[0.0, 0.0, 1.0, 1.0] {'text': [True, True, True, False], 'audio': [False, True, False, True]} "
    expected += "{'x': 0.30000000000000004, 'é': [None]}\n"
    assert together(job) == [(0, expected, "")] * 2


def test_processes_out_of_step_end_with_one_message():
    job = """
def job(processes):
    processes.gather_flags({"text": torch.ones(2 + rank, dtype=torch.bool)})
"""
    (a, _, first), (b, _, second) = together(job)
    assert (a, b) == (2, 2)
    assert (first + second).count("different numbers of clips: 2 of 1 modalities, 3 of 1 modalities") == 1


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_in_one_process_is_told_once_and_ends_all(failing):
    job = f"""
def job(processes):
    if rank == {failing}:
        raise EaoError("no such file", "look again")
    processes.gather(torch.ones(1))
"""
    ended = together(job)
    assert [code for code, _, _ in ended] == [2, 2]
    assert "no such file" in ended[failing][2]
    # The other may have a warning of torch's that the connection was closed.
    assert "no such file" not in ended[1 - failing][2] and "Traceback" not in ended[1 - failing][2]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_a_message(killed):
    job = f"""
def job(processes):
    processes.gather(torch.ones(1))
    if rank == {killed}:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.gather(torch.ones(1))
"""
    ended = together(job)
    assert ended[killed][0] == -9
    assert ended[1 - killed][0] == 2, ended
    if killed == 1:
        assert "lost the connection to another one" in ended[0][2]
