"""Servers as processes: ready, measured, and gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eao.bench.processes import descendants, fetch, fetch_json, memory_bytes, running
from eao.errors import ServingError
from eao.ports import free_ports

SERVE = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]


def test_a_server_runs_until_the_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state.json").write_text('{"clips": 3}')
    (port,) = free_ports(1)
    with running([*SERVE, str(port)], port, "/state.json") as pid:
        assert fetch_json(port, "/state.json") == {"clips": 3}
        assert pid in descendants(os.getpid())
        with pytest.raises(ServingError, match="answers 404 to /other"):
            fetch(port, "/other")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ServingError, match="no answer"):
        fetch(port, "/state.json")


def test_a_server_that_ends_says_why() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the disk is full')"]
    with pytest.raises(ServingError, match="ended with 1") as caught, running(command, 1, "/"):
        raise AssertionError("it never ran")
    assert "the disk is full" in caught.value.hint


def test_a_server_that_is_not_ready_in_time_is_ended() -> None:
    command = ["sh", "-c", "echo loading; exec sleep 600"]
    begin = time.monotonic()
    with pytest.raises(ServingError, match="not ready") as caught, running(command, 1, "/", seconds=5):
        raise AssertionError("it was never ready")
    assert "loading" in caught.value.hint and time.monotonic() - begin < 300


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_memory_counts_what_a_process_started() -> None:
    inner = "import time; block = bytearray(60_000_000); print('ready', flush=True); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert len(descendants(process.pid)) == 1
        assert 60e6 < memory_bytes(process.pid) < 160e6
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    assert memory_bytes(process.pid) == 0
