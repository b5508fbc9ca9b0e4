from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from eao import probes
from eao.errors import ExportError
from eao.export.tensorrt import deferred
from eao.export.tensorrt.api import TensorRT
from eao.export.tensorrt.cache import engine_cache
from eao.export.tensorrt.cuda import Gpu
from eao.export.tensorrt.deferred import build_deferred, defer_build, engine_key, read_deferred
from eao.export.tensorrt.profiles import AxisRange
from eao.export.tensorrt.request import BuildFacts, BuildRequest, BuiltEngine
from eao.files import sha256

REQUEST = BuildRequest(flavour="tensorrt", profiles=({"batch": AxisRange(1, 8, 64)},), hardware_compatible=True)


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    graph, weights = tmp_path / "bundle" / "text.onnx", tmp_path / "bundle" / "text.onnx.data"
    graph.write_bytes(b"a graph")
    weights.write_bytes(b"weights")
    return defer_build(graph, REQUEST, [weights])


class Target:
    """A machine with a GPU: counts what it builds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu_name, self.version = "NVIDIA L4", "10.13.0.35"
        self.built: list[tuple[Path, Path | None]] = []
        monkeypatch.setattr(probes, "has_nvidia_device", lambda: True)
        monkeypatch.setattr(deferred, "open_cuda", lambda device: self)
        monkeypatch.setattr(deferred, "load_tensorrt", lambda flavour: TensorRT(flavour, None, self.version))
        monkeypatch.setattr(deferred, "build", self.build)

    def active(self) -> threading.Lock:
        return threading.Lock()

    def gpu(self) -> Gpu:
        return Gpu(self.gpu_name, "8.9")

    def build(self, graph: Path, out: Path, request: BuildRequest, timing_cache: Path | None) -> BuiltEngine:
        self.built.append((graph, timing_cache))
        out.write_bytes(f"engine {len(self.built)}".encode())
        facts = BuildFacts(
            version=self.version, inputs=(), outputs=(), layers=1, seconds=1, peak_memory=1, timing_cache="new"
        )
        return BuiltEngine(path=out, size=out.stat().st_size, sha256=sha256(out), request=request, facts=facts)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    return Target(monkeypatch)


def test_a_request_lies_beside_its_graph_and_names_its_files(request_file: Path) -> None:
    assert request_file.name == "text.tensorrt.build.json"
    waiting = read_deferred(request_file)
    assert waiting.request == REQUEST
    assert [file.file for file in waiting.files] == ["text.onnx", "text.onnx.data"]
    assert str(request_file.parent) not in request_file.read_text()  # it may be moved


def test_a_request_that_the_flavour_cannot_do_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"")
    with pytest.raises(ExportError, match="not for 8.6"):
        defer_build(tmp_path / "g.onnx", BuildRequest(flavour="tensorrt", targets=("8.6",)))
    assert [file.name for file in tmp_path.iterdir()] == ["g.onnx"]


def test_the_first_use_builds_and_later_ones_read(request_file: Path, target: Target, tmp_path: Path) -> None:
    first = build_deferred(request_file, cache=tmp_path / "cache")
    again = build_deferred(request_file, cache=tmp_path / "cache")
    assert first == again and first.path.read_bytes() == b"engine 1"
    assert len(target.built) == 1
    graph, timing = target.built[0]
    assert graph == request_file.parent / "text.onnx" and timing is not None and timing.parent == tmp_path / "cache"


def test_an_engine_of_several_targets_is_built_for_the_gpu_at_hand_alone(target: Target, tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"graph")
    everywhere = defer_build(tmp_path / "g.onnx", BuildRequest(flavour="tensorrt-rtx"))
    assert build_deferred(everywhere, cache=tmp_path / "cache").request.targets == ("8.9",)
    elsewhere = defer_build(tmp_path / "g.onnx", BuildRequest(flavour="tensorrt-rtx", targets=("12.0",)))
    with pytest.raises(ExportError, match=r"compute capabilities 12\.0, and .* has 8\.9\n.*--target 8\.9"):
        build_deferred(elsewhere, cache=tmp_path / "cache")


def test_a_moved_bundle_and_a_moved_cache_are_found_again(request_file: Path, target: Target, tmp_path: Path) -> None:
    build_deferred(request_file, cache=tmp_path / "cache")
    bundle = Path(shutil.move(request_file.parent, tmp_path / "elsewhere"))
    cache = Path(shutil.move(tmp_path / "cache", tmp_path / "other"))
    found = build_deferred(bundle / request_file.name, cache=cache)
    assert len(target.built) == 1 and found.path.is_file()


@pytest.mark.parametrize("change", ["gpu_name", "version"])
def test_another_gpu_or_version_has_its_own_engine(
    change: str, request_file: Path, target: Target, tmp_path: Path
) -> None:
    first = build_deferred(request_file, cache=tmp_path)
    setattr(target, change, "11.4")
    assert build_deferred(request_file, cache=tmp_path).path != first.path
    assert len(target.built) == 2


def test_the_key_depends_on_graph_request_and_machine(request_file: Path) -> None:
    waiting, gpu = read_deferred(request_file), Gpu("NVIDIA L4", "8.9")
    wider = REQUEST.model_copy(update={"workspace": 1})
    graph = waiting.files[0].model_copy(update={"sha256": "0" * 64})
    keys = {
        engine_key(waiting, "10.13", gpu),
        engine_key(waiting.model_copy(update={"request": wider}), "10.13", gpu),
        engine_key(waiting.model_copy(update={"files": (graph, waiting.files[1])}), "10.13", gpu),
        engine_key(waiting, "11.4", gpu),
        engine_key(waiting, "10.13", Gpu("NVIDIA L4", "9.0")),
    }
    assert len(keys) == 5
    assert engine_key(waiting, "10.13", gpu) in keys


@pytest.mark.parametrize("damage", [b"engine x", b""])
def test_an_engine_that_was_changed_is_built_again(
    damage: bytes, request_file: Path, target: Target, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_deferred(request_file, cache=tmp_path).path.write_bytes(damage)
    assert build_deferred(request_file, cache=tmp_path).path.read_bytes() == b"engine 2"
    assert "built again" in caplog.text


def test_a_damaged_record_of_the_cache_is_no_engine(request_file: Path, target: Target, tmp_path: Path) -> None:
    build_deferred(request_file, cache=tmp_path).path.with_suffix(".json").write_text("{")
    build_deferred(request_file, cache=tmp_path)
    assert len(target.built) == 2


def test_a_graph_that_was_changed_is_not_built(request_file: Path, target: Target, tmp_path: Path) -> None:
    (request_file.parent / "text.onnx.data").write_bytes(b"weightz")
    with pytest.raises(ExportError, match=r"text\.onnx\.data was changed since the export"):
        build_deferred(request_file, cache=tmp_path)
    assert target.built == []


def test_processes_and_threads_that_want_the_same_engine_wait_for_one_build(
    request_file: Path, target: Target, tmp_path: Path
) -> None:
    threads = [threading.Thread(target=build_deferred, args=(request_file, 0, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(target.built) == 1


def test_without_a_gpu_nothing_is_built(request_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probes, "has_nvidia_device", lambda: False)
    with pytest.raises(ExportError, match="only on a machine with an NVIDIA GPU"):
        build_deferred(request_file, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format=2), "format"),
        (lambda v: v["files"][0].update(file="../../etc/passwd"), "no plain file name"),
        (lambda v: v.update(files=[]), "files"),
        (lambda v: v["request"].update(flavour="other"), r"request\.flavour"),
    ],
)
def test_a_damaged_request_is_named(change: Callable[[dict], None], message: str, request_file: Path) -> None:
    values = json.loads(request_file.read_text())
    change(values)
    request_file.write_text(json.dumps(values))
    with pytest.raises(ExportError, match=rf"text\.tensorrt\.build\.json is damaged: .*{message}"):
        read_deferred(request_file)


def test_a_missing_request_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"x\.build\.json cannot be read: No such file"):
        read_deferred(tmp_path / "x.build.json")


def test_the_cache_follows_the_users_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_cache() == tmp_path / "eao" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert engine_cache() == Path("/home/somebody/.cache/eao/engines")
