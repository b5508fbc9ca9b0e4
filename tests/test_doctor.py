"""The doctor tries things for real, survives broken packages, and says what to do about each."""

from __future__ import annotations

import importlib.metadata
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from eao import doctor, probes
from eao.doctor import Check, diagnose, render, to_json


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return diagnose()


def find(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def shown(checks: list[Check], width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(render(checks))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["Python", "torch", "CPU", "PyAV", "H.264 encoder", "H.264 decoder", "AAC encoder", "librosa"]
)
def test_core_is_usable(checks: list[Check], name: str) -> None:
    assert find(checks, name).usable


def test_names_are_unique_and_groups_hold_together(checks: list[Check]) -> None:
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    groups = [check.group for check in checks]
    assert [g for i, g in enumerate(groups) if i == 0 or groups[i - 1] != g] == list(dict.fromkeys(groups))


@pytest.mark.parametrize(
    "name",
    [
        "openvino",
        "tensorrt",
        "tensorrt-rtx",
        "cuda-python",
        "pycuda",
        "triton",
        "lancedb",
        "tritonclient",
        "tritonserver",
        "ray",
    ],
)
def test_optional_part_is_usable_or_says_why_not_and_what_to_do(checks: list[Check], name: str) -> None:
    check = find(checks, name)
    assert check.detail
    assert check.usable or check.remedy or "CUDA device" in check.detail


def test_what_is_usable_needs_no_remedy(checks: list[Check]) -> None:
    assert [check.name for check in checks if check.usable and check.remedy] == []


def test_remedies_name_extras_that_exist(checks: list[Check]) -> None:
    extras = set(importlib.metadata.metadata("eao").get_all("Provides-Extra") or [])
    text = Path(doctor.__file__).read_text(encoding="utf-8")
    named = {part.partition('"')[0] for part in text.split('install_extra("')[1:]}
    assert named
    assert named <= extras


def test_cpu_provider_really_runs() -> None:
    pytest.importorskip("onnxruntime")
    assert probes.start_onnxruntime("CPUExecutionProvider") == "CPUExecutionProvider"


def test_provider_that_falls_back_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "start_onnxruntime", lambda provider: "CPUExecutionProvider")
    check = doctor._provider("CUDAExecutionProvider", "engines", "onnxruntime-gpu 1.0")
    assert not check.usable
    assert "a session starts on CPUExecutionProvider" in check.detail
    assert "cuDNN" in check.remedy


def test_both_flavours_of_onnxruntime_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    versions = {"onnxruntime": "1.2", "onnxruntime-gpu": "1.1"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    check = find(list(doctor._onnxruntime("engines")), "onnxruntime conflict")
    assert not check.usable
    assert check.detail.startswith("onnxruntime 1.2, onnxruntime-gpu 1.1")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in check.remedy


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libcuda.so.1: cannot open shared object file')", "ImportError: libcuda.so.1: cannot open"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two"),
        ("1 / 0", "ZeroDivisionError"),
        ("this is no python", "SyntaxError"),
    ],
)
def test_broken_package_shows_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    (tmp_path / "broken_engine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    check = doctor._package("broken-engine", "engines", "broken_engine", "pip install '.[x]'")
    sys.modules.pop("broken_engine", None)
    assert not check.usable
    assert reason in check.detail
    assert check.remedy == "pip install '.[x]'"


def test_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "an_engine").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._package("an-engine", "engines", "an_engine", "").detail == "not installed"


def test_section_that_fails_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: object) -> None:
        raise PermissionError("no access")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    checks = diagnose()
    assert find(checks, "system").detail == "PermissionError: no access"
    assert find(checks, "Python").usable


def test_small_disk_says_how_much_to_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2e9))
    check = find(list(doctor._system()), "disk")
    assert not check.usable
    assert check.remedy.startswith("free 3.0 GB")


def test_without_apt_the_demo_wants_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/usr/share/tuxpaint/stamps").is_dir():
        pytest.skip("the stamps are installed")
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert "--stamps DIR" in find(list(doctor._demo()), "apt").remedy


def test_weights_package_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    check = doctor._weights("some-weights", "text tokens", "demo", "model/*.safetensors")
    assert not check.usable
    assert "without its weights" in check.detail


@pytest.mark.parametrize("codec", ["libx264", "aac"])
def test_encoded_clip_has_frames(codec: str) -> None:
    assert probes.count_frames(probes.encode_clip(codec)) >= 1


def test_codec_that_is_missing_shows_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = probes.encode_clip

    def without_h264(codec: str) -> object:
        if codec == "libx264":
            raise ValueError("no codec libx264")
        return encode(codec)

    monkeypatch.setattr(probes, "encode_clip", without_h264)
    checks = list(doctor._codecs("media"))
    assert not find(checks, "H.264 encoder").usable
    assert "no codec libx264" in find(checks, "H.264 encoder").detail
    assert find(checks, "AAC encoder").usable


def test_json_is_complete(checks: list[Check]) -> None:
    value = json.loads(json.dumps(to_json(checks)))
    assert [Check(**check) for check in value["checks"]] == checks
    assert set(value["usable"]) == {check.name for check in checks if check.usable}


def test_table_shows_every_check_and_escapes_markup() -> None:
    text = shown([Check("a", "g", True, "fine"), Check("b", "g", False, "[red]broken", "pip install '.[cpu]'")])
    assert "[red]broken" in text
    assert "pip install '.[cpu]'" in text
    assert text.count("g\n") <= 1


def test_whole_table_fits_a_narrow_terminal(checks: list[Check]) -> None:
    assert max(len(line) for line in shown(checks, width=80).splitlines()) <= 80


@pytest.mark.parametrize(
    ("flags", "exact"),
    [
        ("sse2 sse4_1", False),
        ("sse2 avx2 avx512f", False),
        ("sse2 avx2 avx_vnni", True),
        ("sse2 avx2 avx512f avx512_vnni", True),
        ("fp asimd", True),
        ("", True),
    ],
)
def test_int8_sums_are_known_by_the_instructions_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, flags: str, exact: bool
) -> None:
    monkeypatch.setattr(probes, "cpu_flags", lambda: set(flags.split()))
    assert probes.has_exact_int8() == exact
    assert find(list(doctor._devices()), "int8 on the CPU").usable == exact
