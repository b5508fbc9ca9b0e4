from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from eao.bench.matrix import Options, _copies, bench_bundle, choose_engines
from eao.bench.report import TORCH, BenchReport
from eao.errors import ConfigError, ExportError
from eao.export.manifest import MANIFEST_FILE
from eao.export.runtime import Bundle


@pytest.fixture(scope="module")
def report(small) -> BenchReport:
    options = Options(batches=(1, 3), lengths=(0.5, 1), seconds=0.05, rate=100, deadline_ms=50, threads=1)
    return bench_bundle(small.model, small.path, options=options, text_tokens=6, video_tokens=4)


def test_every_engine_is_measured_beside_the_model_at_every_size(small, report: BenchReport) -> None:
    sizes = {"text": ("text_tokens", 6, 3), "video": ("video_tokens", 4, 2)}
    assert [(e.encoder, e.length, e.sizes) for e in report.entries] == [
        (encoder, length, {"batch": batch, axis: tokens})
        for encoder, (axis, longest, half) in sizes.items()
        for length, tokens in ((1, longest), (0.5, half))
        for batch in (1, 3)
    ]
    for entry in report.entries:
        assert tuple(entry.results) == (TORCH, *small.ways)
        assert entry.gflop > 0
        assert all(r.latency.runs >= 4 and r.speedup > 0 and r.traffic > 0 for r in entry.results.values())


def test_every_engine_has_its_cost_and_parity(small, report: BenchReport) -> None:
    assert [(f.encoder, f.way) for f in report.engines] == [(e, w) for e in ("text", "video") for w in small.ways]
    assert all(f.cost.memory_mb > 0 and f.parity is not None and f.parity.passed for f in report.engines)


def test_random_arrivals_are_measured_for_every_way(report: BenchReport) -> None:
    found = [r.arrivals for e in report.entries for r in e.results.values()]
    assert all(a is not None and a.rate == 100 and a.missed is not None for a in found)
    assert len({a.requests for a in found if a is not None}) == 1


def test_the_report_holds_machine_versions_and_ceiling(report: BenchReport) -> None:
    assert "onnxruntime" in report.versions
    assert report.ceiling.gflops > 0
    assert report.threads == 1 and report.model_mb is not None
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def test_engines_are_measured_without_a_model_and_by_choice(small) -> None:
    found = bench_bundle(
        None, small.path, ["text"], ["onnx"], ["fp32", "fp16"], Options(batches=(1,), seconds=0.02, threads=1)
    )
    assert [tuple(e.results) for e in found.entries] == [("onnxruntime fp32", "onnxruntime fp16")]
    assert found.model_mb is None and found.entries[0].recommended is None


def test_a_bundle_that_was_loaded_for_one_precision_is_measured_at_that(small) -> None:
    found, _ = choose_engines(Bundle(small.path, precision="fp16"), ["text"])
    assert [entry.key for entry in found] == ["text.onnxruntime.fp16"]


def test_an_engine_that_cannot_run_here_is_named_with_the_reason(small, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(small.path, folder)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    del manifest["sha256"]
    entry = {**manifest["engines"]["text.onnxruntime.fp32"], "precision": "bf16"}
    manifest["engines"]["text.onnxruntime.bf16"] = entry
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    found, skipped = choose_engines(Bundle(folder), ["text"])
    assert len(found) == len(small.ways)
    assert skipped == {"onnxruntime bf16": "onnxruntime has no bfloat16 products on the CPU"}
    with pytest.raises(ExportError, match="asked for runs here") as error:
        choose_engines(Bundle(folder), ["text"], precisions=["bf16"])
    assert "bfloat16" in error.value.hint


def test_a_file_changed_since_the_export_is_not_measured(small, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(small.path, folder)
    graph = folder / "text.fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(bytes(data))
    with pytest.raises(ExportError, match="changed since the export"):
        bench_bundle(None, folder, ["text"], options=Options(batches=(1,), seconds=0.02, threads=1))


@pytest.mark.parametrize(
    "options",
    [
        Options(batches=(0,)),
        Options(batches=()),
        Options(lengths=(1.5,)),
        Options(lengths=(0,)),
        Options(seconds=0),
        Options(max_runs=0),
        Options(rate=0),
        Options(deadline_ms=20),
    ],
)
def test_options_that_measure_nothing_are_refused(small, options: Options) -> None:
    with pytest.raises(ConfigError):
        bench_bundle(None, small.path, options=options)


@pytest.mark.parametrize(
    "request_", [{"encoders": "smell"}, {"video_tokens": 0}, {"precisions": ["int4"]}, {"engines": ["tvm"]}]
)
def test_what_a_bundle_does_not_have_is_refused(small, request_: dict) -> None:
    with pytest.raises((ConfigError, ExportError), match="smell|at least 1|int4|tvm"):
        bench_bundle(None, small.path, **request_)


class TimedSession:
    """A session on a device that says what its copies take."""

    def run(self, feeds: dict) -> np.ndarray:
        time.sleep(0.001)
        return np.ones((1, 4), np.float32)

    def time(self, feeds: dict) -> tuple[float, float, float]:
        return 0.1, 1.0, 0.2


def test_copies_are_told_apart_where_the_session_does() -> None:
    copies = _copies(TimedSession(), {})
    assert copies is not None
    assert (copies.upload_ms, copies.compute_ms, copies.download_ms) == (0.1, 1.0, 0.2)


def test_a_runtime_on_the_cpu_has_no_copies(report: BenchReport) -> None:
    assert all(r.copies is None for e in report.entries for r in e.results.values())
