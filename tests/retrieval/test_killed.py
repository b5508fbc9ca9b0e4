"""An index that is killed while it is built, or while files are removed, at any moment: the same command repairs it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from eao.checkpoint import save_native
from eao.data.folder import KEYS, SUFFIXES
from eao.embedder import Embedder
from eao.retrieval.index import Index

FILES = 40
MOMENTS = 10


class Job(NamedTuple):
    """The process that is given tasks, and what it works with."""

    process: subprocess.Popen[str]
    features: Path
    embedder: Embedder

    def run(self, task: str, index: str, kill_after: float | None = None) -> int:
        """The exit status of a task; negative: the signal that ended it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{task} {index}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        self.process.stdin.write("wait\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, make_embedder: Callable[[int], Embedder]) -> Iterator[Job]:
    embedder = make_embedder(0)
    folder = tmp_path_factory.mktemp("killed")
    save_native(folder / "model", embedder.backend.model, embedder.config)  # type: ignore[attr-defined]
    features = write_features(folder / "features", embedder)
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder / "model"), str(features)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield Job(process, features, embedder)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


def write_features(folder: Path, embedder: Embedder, files: int = FILES) -> Path:
    """Features of files that are gone: of one to three windows, every fifth without sound."""
    folder.mkdir()
    config = embedder.config.features
    (folder / "features.yaml").write_text(yaml.safe_dump(config.identity()))
    rng = np.random.default_rng(0)
    lines, names = [], []
    for i in range(files):
        seconds = float(rng.uniform(0.5, 5))
        arrays = {"video_3d": rng.standard_normal((max(1, round(2 * seconds)), 98))}
        if i % 5:
            arrays["audio"] = 10 * rng.standard_normal((40, round(100 * seconds))) - 40
        names.append(f"/gone/clip {i:03}'s %.mp4")
        record = {"id": f"clip{i:02}", "file": names[-1], "start": 0.0, "end": seconds, "duration": seconds}
        for kind, suffix in SUFFIXES.items():
            record[kind] = len(arrays[kind]) if kind in arrays else None
            if kind in arrays:
                np.savez(folder / f"clip{i:02}{suffix}", **{KEYS[kind]: arrays[kind].astype(np.float16)})
        lines.append(json.dumps(record))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "remove.json").write_text(json.dumps(names[::2]))
    return folder


def contents(address: str, embedder: Embedder) -> str:
    """A checksum over every stored bit and over the answers to searches."""
    index = Index(address, embedder)
    store, digest = index._store, hashlib.sha256()
    digest.update(json.dumps(sorted((name, state) for name, state in store.files().items())).encode())
    for encoder in store.encoders:
        rows = {name: x for names, vectors in store.scan(encoder) for name, x in zip(names, vectors, strict=True)}
        for name in sorted(rows):
            digest.update(name.encode() + rows[name].tobytes())
        for query in ("red square", "green tone"):
            digest.update(
                json.dumps([(h.file, h.start, h.score) for h in index.search(query, encoder=encoder)]).encode()
            )
    return digest.hexdigest()


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_bytes(job: Job, tmp_path: Path) -> None:
    assert job.run("add", str(tmp_path / "warm")) == 0  # libraries are read from the disk
    begin = time.monotonic()
    assert job.run("add", str(tmp_path / "whole")) == 0
    seconds = time.monotonic() - begin
    expected = contents(str(tmp_path / "whole"), job.embedder)
    moments = random.Random(0)
    killed = 0
    for number in range(MOMENTS):
        index = str(tmp_path / f"killed{number}")
        killed += job.run("add", index, kill_after=moments.uniform(0, seconds)) == -signal.SIGKILL
        assert job.run("add", index) == 0
        assert contents(index, job.embedder) == expected
    assert killed > MOMENTS / 2  # the moments lie within the work


@pytest.mark.slow
def test_a_killed_removal_goes_on_to_the_same_bytes(job: Job, tmp_path: Path) -> None:
    assert job.run("add", str(tmp_path / "whole")) == 0
    before = contents(str(tmp_path / "whole"), job.embedder)
    begin = time.monotonic()
    assert job.run("remove", str(tmp_path / "whole")) == 0
    seconds = time.monotonic() - begin
    expected = contents(str(tmp_path / "whole"), job.embedder)
    assert expected != before
    moments = random.Random(1)
    killed = 0
    for number in range(MOMENTS):
        index = str(tmp_path / f"killed{number}")
        assert job.run("add", index) == 0
        killed += job.run("remove", index, kill_after=moments.uniform(0, seconds)) == -signal.SIGKILL
        assert contents(index, job.embedder) in (before, expected)  # all or nothing
        job.run("remove", index)  # an error where nothing is left to remove
        assert contents(index, job.embedder) == expected
    assert killed > MOMENTS / 2


@pytest.mark.slow
def test_a_killed_build_in_milvus_is_repaired(job: Job, tmp_path: Path) -> None:
    begin = time.monotonic()
    assert job.run("add", str(tmp_path / "whole.db")) == 0
    seconds = time.monotonic() - begin
    expected = contents(str(tmp_path / "whole.db"), job.embedder)
    moments = random.Random(2)
    for number in range(3):
        index = str(tmp_path / f"killed{number}.db")
        job.run("add", index, kill_after=moments.uniform(0.3, 1) * seconds)
        assert job.run("add", index) == 0
        assert contents(index, job.embedder) == expected
