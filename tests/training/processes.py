"""Real processes for the tests: several that train together, as `torchrun` would start them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

TIMEOUT = 120


def environment(**variables: str) -> dict[str, str]:
    """That of a process that uses one thread, and is told nothing of a job this test may run in."""
    job = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in job}
    return kept | {"OMP_NUM_THREADS": "1"} | variables


def run_together(arguments: Sequence[str], world: int = 2) -> list[tuple[int, str, str]]:
    """Run `python ARGUMENTS` in several processes under the environment of `torchrun`, which meet on the loopback.

    Returns:
        exit code, standard output and standard error of each.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(**job, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        ended = [process.communicate(timeout=TIMEOUT) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(started, ended, strict=True)]
