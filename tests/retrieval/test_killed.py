"""An index that is killed at random moments while it is built or files are removed: the same command repairs it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
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
MOMENTS = {"folder": 10, "milvus": 4}


class Job(NamedTuple):
    """The process that is given tasks, and what it works with."""

    process: subprocess.Popen[str]
    features: Path
    embedder: Embedder

    def run(self, task: str, index: Path, kill_after: float | None = None) -> tuple[int, float | None]:
        """The exit status of a task (negative: the signal that ended it); the seconds that it worked, if to its end."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([task, str(index), kill_after]) + "\n")
        self.process.stdin.flush()
        status, seconds = json.loads(self.process.stdout.readline())
        return status, seconds

    def kill(self, task: str, prepare: Callable[[int], Path], seconds: float, times: int) -> Iterator[Path]:
        """Indexes in which a task was killed at a random moment; where it had ended before, it is begun anew."""
        moments = random.Random(0)
        for number in range(10 * times):
            index = prepare(number)
            status, took = self.run(task, index, moments.uniform(0, seconds))
            if took is None:
                assert status == -signal.SIGKILL
                yield index
                times -= 1
            else:
                seconds = min(seconds, took)  # the machine is less busy now
            if not times:
                return
        raise AssertionError("the task always ends before it is killed")


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


class Built(NamedTuple):
    """An index, and what it holds."""

    path: Path
    suffix: str
    moments: int
    seconds: float
    contents: str


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


def contents(path: Path, embedder: Embedder) -> str:
    """A checksum over every stored bit and over the answers to searches."""
    index = Index(path, embedder)
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


@pytest.fixture(scope="module", params=["folder", "milvus"])
def built(request: pytest.FixtureRequest, job: Job, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An undisturbed index of either kind, and how long it took."""
    suffix = {"folder": "", "milvus": ".db"}[request.param]
    path = tmp_path_factory.mktemp("undisturbed") / f"index{suffix}"
    status, seconds = job.run("add", path)
    assert status == 0 and seconds is not None
    return Built(path, suffix, MOMENTS[request.param], seconds, contents(path, job.embedder))


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_bytes(job: Job, built: Built, tmp_path: Path) -> None:
    for index in job.kill("add", lambda number: tmp_path / f"{number}{built.suffix}", built.seconds, built.moments):
        assert job.run("add", index)[0] == 0
        assert contents(index, job.embedder) == built.contents


@pytest.mark.slow
def test_a_killed_removal_goes_on_to_the_same_bytes(job: Job, built: Built, tmp_path: Path) -> None:
    def copy(number: int) -> Path:
        return Path(shutil.copytree(built.path, tmp_path / f"{number}{built.suffix}"))

    whole = copy(-1)
    status, seconds = job.run("remove", whole)
    assert status == 0 and seconds is not None
    expected = contents(whole, job.embedder)
    assert expected != built.contents
    for index in job.kill("remove", copy, seconds, built.moments):
        if not built.suffix:  # LanceDB: all or nothing
            assert contents(index, job.embedder) in (built.contents, expected)
        job.run("remove", index)  # an error where nothing is left to remove
        assert contents(index, job.embedder) == expected
