from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eao.errors import ExportError
from eao.export.tensorrt import worker
from eao.export.tensorrt.profiles import AxisRange
from eao.export.tensorrt.request import BuildFacts, BuildRequest, Failure, Job

FACTS = BuildFacts(version="1", inputs=(), outputs=(), layers=1, seconds=1, peak_memory=1, timing_cache="none")


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    request = BuildRequest(flavour="tensorrt-rtx", profiles=({"batch": AxisRange(1, 8, 64)},))
    job = Job(request=request, graph=tmp_path / "g.onnx", out=tmp_path / "e.engine")
    (tmp_path / "job.json").write_text(job.model_dump_json())
    return tmp_path / "job.json"


def test_the_worker_loads_neither_torch_nor_onnx() -> None:
    """They would cost each build seconds, and hundreds of megabytes of the memory that it needs."""
    code = f"import sys, {worker.__name__}; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-P", "-c", code], text=True).strip() == "[]"


def test_facts_are_left_behind(job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "load_tensorrt", lambda flavour: flavour)
    monkeypatch.setattr(worker, "compile_engine", lambda api, job: FACTS)
    assert worker.main(str(job_file), str(tmp_path / "result.json")) == 0
    assert BuildFacts.model_validate_json((tmp_path / "result.json").read_text()) == FACTS


def test_an_error_is_left_behind_with_its_hint(job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flavour: str) -> None:
        raise ExportError("it is too old", "update it")

    monkeypatch.setattr(worker, "load_tensorrt", refuse)
    assert worker.main(str(job_file), str(tmp_path / "result.json")) == 2
    failure = Failure.model_validate_json((tmp_path / "result.json").read_text())
    assert (failure.message, failure.hint) == ("it is too old", "update it")


def test_a_bug_leaves_nothing_and_keeps_its_traceback(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "load_tensorrt", lambda flavour: flavour)
    monkeypatch.setattr(worker, "compile_engine", lambda api, job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.main(str(job_file), str(tmp_path / "result.json"))
    assert not (tmp_path / "result.json").exists()
