"""Real processes for the tests, forked from one that holds the imports already: torch alone takes seconds to import."""

import functools
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from eao.ports import free_ports

PATIENCE = 120
"""Seconds that a process may take on a busy machine."""

# What a test's module defines cannot be imported there, so a process is given source text.
RUN = """
import os, runpy, sys

os.environ.update({variables})
for number, name in ((1, {out!r}), (2, {err!r})):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
kind, *rest = {arguments}
if kind == "-c":
    exec(rest[0], {{"__name__": "__main__"}})
elif kind == "-m":
    sys.argv = rest
    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = [kind, *rest]
    runpy.run_path(kind, run_name="__main__")
"""


@functools.cache
def context() -> ForkServerContext:
    """Starts processes of one thread that have imported what training imports, at once or when it gets there."""
    forks = multiprocessing.get_context("forkserver")
    lazy = ["gensim.models", "matplotlib.figure", "torch._dynamo"]
    forks.set_forkserver_preload(["eao.cli", "eao.training.run", *lazy])
    # One that other tests have started holds other imports, and a process has only one.
    forkserver._forkserver._stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return forks


def run_together(arguments: Sequence[str], world: int = 2) -> list[tuple[int, str, str]]:
    """Run `python ARGUMENTS` in several processes under the environment of `torchrun`, which meet on the loopback.

    Returns:
        exit code, standard output and standard error of each.
    """
    (port,) = free_ports(1)
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    with tempfile.TemporaryDirectory() as folder:
        started = [
            _start(arguments, {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}, Path(folder) / str(rank))
            for rank in range(world)
        ]
        try:
            for process in started:
                process.join(PATIENCE)
        finally:
            for process in started:
                process.kill()
        texts = [[(Path(folder) / f"{rank}.{stream}").read_text() for stream in (1, 2)] for rank in range(world)]
    return [(process.exitcode, *text) for process, text in zip(started, texts, strict=True)]


def _start(arguments: Sequence[str], variables: Mapping[str, str], streams: Path) -> ForkServerProcess:
    source = RUN.format(variables=variables, arguments=list(arguments), out=f"{streams}.1", err=f"{streams}.2")
    process = context().Process(target=exec, args=(source, {}))
    process.start()
    return process
