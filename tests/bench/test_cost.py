from __future__ import annotations

import os
from pathlib import Path

import pytest

from eao.bench.cost import measure_cost, run_apart
from eao.errors import ExportError
from eao.export.manifest import load_manifest


def test_an_engine_is_opened_and_run_in_a_process_of_its_own(small) -> None:
    entry = load_manifest(small.path).engines["text.onnxruntime.fp32"]
    cost = measure_cost(small.path, entry, [{"batch": 2, "text_tokens": 3}], threads=1)
    assert cost.key == "text.onnxruntime.fp32"
    assert cost.file_mb == entry.files[0].size / 1e6
    assert cost.load_seconds > 0 and cost.first_run_ms > 0
    assert 0 < cost.memory_mb < 200  # the engine of a few kilobytes with its session, not PyTorch and its libraries


def test_what_goes_wrong_there_is_raised_here(small) -> None:
    entry = load_manifest(small.path).engines["text.onnxruntime.fp32"]
    gone = entry.model_copy(update={"files": (entry.files[0].model_copy(update={"file": "gone.onnx"}),)})
    with pytest.raises(ExportError, match=r"gone\.onnx does not exist"):
        measure_cost(small.path, gone, [{"batch": 1, "text_tokens": 3}], threads=1)


def test_a_crash_is_an_error_that_names_the_engine() -> None:
    with pytest.raises(ExportError, match="text.tensorrt.fp16 ended without an answer"):
        run_apart("text.tensorrt.fp16", os._exit, 3)


def test_it_is_another_process() -> None:
    assert run_apart("this", os.getpid) != os.getpid()
    assert run_apart("this", Path.cwd) == Path.cwd()
