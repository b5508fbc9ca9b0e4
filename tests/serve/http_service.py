"""The real `eao serve` as a process on loopback, over a small real index."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from eao.retrieval.index import Index

PATIENCE = 180.0


class Library(NamedTuple):
    """An index of clips, and the bundle that made it."""

    index: Path
    bundle: Path
    clips: Path


class Site:
    """A running service.

    Attributes:
        url: its address.
        process: of it.
        client: of HTTP, that keeps connections.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, headers: dict[str, str]) -> None:
        self.process = process
        self.log = log
        self.url = self._wait_until_ready()
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, headers=headers)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.client.post(path, **options)

    def lines(self, **fields: object) -> list[dict[str, Any]]:
        """What it logged, or the lines of it with such fields. A line that is being written is none yet."""
        text = self.log.read_text()
        try:
            found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        except ValueError:
            raise AssertionError(f"the service logs what is no JSON:\n{text}") from None
        return [line for line in found if line.items() >= fields.items()]

    def wait_for_lines(self, count: int, **fields: object) -> list[dict[str, Any]]:
        """The first lines of its log with such fields, once there are so many: a request's comes after its answer."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            if len(found := self.lines(**fields)) >= count:
                return found
            if ended:
                break
            time.sleep(0.05)
        raise AssertionError(f"not {count} lines of {fields} in the log of the service:\n{self.log.read_text()}")

    def wait_for(self, event: str) -> dict[str, Any]:
        """The first line of its log with an event."""
        return self.wait_for_lines(1, event=event)[0]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; `name` may choose some of them by `name{label="value"`."""
        found = _values(name, self.get("/metrics").text)
        assert found, f"no metric {name}"
        return sum(found)

    def wait_for_metric(self, name: str, value: float) -> None:
        """Return when a metric, see `metric`, has a value; an answer that comes too late for the service is no harm."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            answer = self.get("/metrics")
            if answer.status_code == 200 and sum(_values(name, answer.text)) == value:
                return
            time.sleep(0.02)
        raise AssertionError(f"{name} does not become {value:g}")

    def _wait_until_ready(self) -> str:
        return str(self.wait_for("ready")["url"])


def _values(name: str, text: str) -> list[float]:
    return [float(value) for value in re.findall(rf"^{re.escape(name)}\S* (\S+)$", text, re.MULTILINE)]


@contextlib.contextmanager
def serving(
    library: Library, log: Path, *options: object, encoder: str = "", key: str = "", **environment: str
) -> Iterator[Site]:
    """A service during the block, of a bundle or with a server as its encoder; by default it is given much time."""
    model = ["--encoder", encoder] if encoder else ["--model", str(library.bundle)]
    command = ["-m", "eao", "serve", str(library.index), *model, "--port", "0", "--log-format", "json"]
    command += ["--timeout", f"{PATIENCE:g}s"]  # of an option that is given twice the last one holds
    with running([*command, *map(str, options)], log, key, **environment) as site:
        yield site


@contextlib.contextmanager
def running(arguments: Sequence[str], log: Path, key: str = "", **environment: str) -> Iterator[Site]:
    """A service that Python runs during the block; it is stopped by its process id at the end."""
    command = [sys.executable, *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment
        )
        try:
            site = Site(process, log, {"Authorization": f"Bearer {key}"} if key else {})
            with site.client:
                yield site
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, bundle: Path, clips: Path) -> Library:
    """Three clips, one in a subfolder without sound, and a file that no browser plays."""
    folder = tmp_path_factory.mktemp("library")
    shutil.copytree(clips, folder / "clips")
    shutil.copy(clips / "red.mp4", folder / "clips" / "it's <odd>.mkv")
    Index(folder / "index", bundle).add(folder / "clips")
    return Library(folder / "index", bundle, folder / "clips")


@pytest.fixture(scope="session")
def site(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service for all tests that leave it as it is."""
    with serving(library, tmp_path_factory.mktemp("site") / "log.jsonl", "--max-upload", "3MB") as site:
        yield site


@pytest.fixture
def start(library: Library, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """`start("--queue", 1)`: a service of the test's own."""
    with contextlib.ExitStack() as stack:

        def begin(*options: object, of: Library = library, **others: str) -> Site:
            log = tmp_path / f"log-{uuid.uuid4().hex}.jsonl"
            return stack.enter_context(serving(of, log, *options, **others))

        yield begin


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tone of a second."""
    path = tmp_path_factory.mktemp("sound") / "tone.wav"
    samples = (0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return path
