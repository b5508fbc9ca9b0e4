"""The command, and the commands of docs/triton.md, run as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eao.ports import free_ports
from eao.serve.triton.environment import Environment

from .conftest import PATIENCE

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "triton.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
EAO = [sys.executable, "-m", "eao"]


def eao(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EAO, "serve", "triton", *arguments], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_a_repository_is_written_and_described(bundle: Path, tmp_path: Path) -> None:
    chosen = ("--encoder", "text,video", "--instances", "2")
    done = eao("--bundle", str(bundle), "--out", "triton", *chosen, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert written["engines"] == {"text": "onnxruntime fp32", "video": "onnxruntime fp32"}
    assert (tmp_path / "triton" / "embed-text" / "config.pbtxt").is_file()
    assert "count: 2" in (tmp_path / "triton" / "video" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --bundle"),
        (["--bundle", "nowhere"], "nowhere is no bundle"),
        (["--up", "--instances", "2"], "give --bundle too"),
        (["--up", "--engine", "onnxruntime"], "give --bundle too"),
        (["--up", "--precision", "fp32"], "give --bundle too"),
        (["--up", "--encoder", "text"], "give --bundle too"),
        (["--out", "nowhere", "--up"], "nowhere is no model repository"),
    ],
)
def test_what_is_missing_is_said_in_a_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = eao(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


class Up:
    """`eao serve triton --up` in a process of its own."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        self.process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = ""
        assert self.process.stdout is not None
        while "is ready" not in self.said:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            self.said += line
        self.server = int(re.findall(r"process (\d+)", self.said)[0])

    def port(self, name: str) -> int:
        return int(re.findall(rf"{name} .*:(\d+)", self.said)[0])

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        rest, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, rest + errors


@pytest.fixture
def up(written: Path, environment: Environment, tmp_path: Path) -> Iterator[Up]:
    free = [option for name in ("http", "grpc", "metrics") for option in (f"--{name}-port", "0")]
    started = Up([*EAO, "serve", "triton", "--out", str(written), "--up", *free], tmp_path)
    yield started
    if started.process.poll() is None:
        started.process.terminate()
        started.process.communicate(timeout=PATIENCE)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server(up: Up, number: signal.Signals) -> None:
    code, rest = up.stop(number)
    assert (code, rest.strip()) == (0, "stopped")
    with pytest.raises(ProcessLookupError):
        os.kill(up.server, 0)


@pytest.mark.slow
def test_a_server_that_dies_is_reported(up: Up) -> None:
    os.kill(up.server, signal.SIGKILL)
    _, errors = up.process.communicate(timeout=PATIENCE)
    assert up.process.returncode == 2
    assert "ended with code -9" in errors


@pytest.mark.slow
def test_the_commands_of_the_page(bundle: Path, environment: Environment, tmp_path: Path) -> None:
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "bundle").symlink_to(bundle)
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    servers: list[Up] = []
    ran = 0
    try:
        for language, code in BLOCKS:
            for name, default in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
                code = code.replace(f"localhost:{default}", f"localhost:{ports[name]}")
            code = re.sub(r"^pip install .*\n", "", code, flags=re.MULTILINE)  # it is installed, from the checkout
            if code.rstrip().endswith("--up"):
                options = [option for name, port in ports.items() for option in (f"--{name}-port", str(port))]
                servers.append(Up([*EAO, *code.split()[1:], *options], tmp_path))
                continue
            command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
            done = subprocess.run(
                command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
            ran += 1
    finally:
        stopped = [server.stop(signal.SIGINT)[0] for server in servers]
    assert (ran, stopped) == (7, [0])


def test_the_page_names_every_model_that_is_written(written: Path) -> None:
    for name in ("prepare-text", "prepare-video", "prepare-audio", "embed-text"):
        assert name in PAGE and (written / name).is_dir()


def test_the_page_states_the_limits_that_are_set() -> None:
    from eao.serve.triton import schema

    shown = re.sub(r"\s+", " ", PAGE)
    assert f"a request waits {schema.QUEUE_DELAY_US // 1000} ms" in shown
    assert f"{schema.QUEUE_SIZE} requests wait at most, for {schema.QUEUE_TIMEOUT_US // 1_000_000} s" in shown
