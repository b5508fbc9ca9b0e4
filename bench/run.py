"""Benchmarks as a command."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.markdown import Markdown

from eao.bench.docs import update_section
from eao.bench.report import ENGINE, TORCH, BenchReport, bench_bundle
from eao.console import err, out, print_table
from eao.embedder import Embedder, TorchBackend
from eao.errors import ConfigError
from eao.export.encoders import BATCH
from eao.export.parity_report import PARITY_MARKDOWN
from eao.export.runtime import Bundle
from eao.files import write_json, write_text

PERFORMANCE = "performance.md"


class Report(Protocol):
    """What a benchmark gives: JSON values and a table."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The report as JSON values."""

    def to_markdown(self) -> str:
        """The tables, with the machine they were measured on."""


class Suite(NamedTuple):
    """A benchmark that needs no bundle: the module under `eao.bench` whose `run()` measures, and its heading."""

    module: str
    heading: str


SUITES: dict[str, Suite] = {
    "attention": Suite("attention", "Attention without padding"),
    "forward": Suite("forward", "The packed model"),
    "gradcache": Suite("gradcache", "Batches beyond memory"),
    "loader": Suite("loader", "Reading training data"),
    "loss": Suite("loss", "The loss and retrieval without the matrix of similarities"),
}


def run_suite(
    name: str, output: str | Path | None = None, docs: str | Path | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Run one of `SUITES`.

    Args:
        name: of the suite.
        output: JSON file for the report.
        docs: folder whose `performance.md` gets the tables.
        quiet: print nothing.

    Returns:
        the report as JSON values.
    """
    suite = SUITES[name]
    with err.status(f"measuring {name}") if not quiet else nullcontext():
        report: Report = importlib.import_module(f"eao.bench.{suite.module}").run()
    values = report.model_dump(mode="json")
    if output is not None:
        write_json(output, values)
    if docs is not None:
        update_section(Path(docs) / PERFORMANCE, name, suite.heading, report.to_markdown())
    if not quiet:
        out.print(Markdown(report.to_markdown()))
    return values


def run_benchmark(
    engines: Embedder,
    model: Embedder | None = None,
    encoders: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 8),
    seconds: float = 2.0,
    output: str | Path | None = None,
    docs: str | Path | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a bundle at the sizes its model was trained on.

    Args:
        engines: a loaded bundle; its `data.video_tokens`, `data.audio_frames` and `data.text.max_words` are the sizes.
        model: the checkpoint it was made from, to measure PyTorch in turns with the engines.
        encoders: names; all by default.
        batches: clips a call.
        seconds: of each measurement.
        output: JSON file for the full report.
        docs: folder whose `performance.md` gets these latency tables, and `parity.md` the parity report of the bundle.

    Returns:
        the report as JSON values, with `rows` for a short table.
    """
    if not isinstance(engines.backend, Bundle):
        raise ConfigError(f"{engines.source} is not a bundle of engines", "make one with eao export")
    torch_model = None
    if model is not None:
        if not isinstance(model.backend, TorchBackend):
            raise ConfigError(f"{model.source} is no checkpoint", "give the one the bundle was made from")
        if model.model_hash != engines.model_hash:
            raise ConfigError(
                f"{engines.source} was made from other weights than {model.source}",
                "compare an engine with its own model",
            )
        torch_model = model.backend.model
    data = engines.config.data
    if dry_run:
        chosen = list(encoders or engines.encoders)
        if not quiet:
            out.print(f"would measure {', '.join(chosen)} at batches {list(batches)}, {seconds} s each")
        return {"bundle": engines.source, "encoders": chosen, "batches": list(batches), "seconds": seconds}
    status = err.status("measuring") if not quiet else nullcontext()
    with status as shown:
        report = bench_bundle(
            torch_model,  # type: ignore[arg-type]
            engines.backend,
            list(encoders) if encoders else "all",
            batches,
            text_tokens=data.text.max_words,
            video_tokens=data.video_tokens,
            audio_frames=data.audio_frames,
            seconds=seconds,
            progress=shown.update if shown is not None else None,
        )
    if output is not None:
        report.save(output)
    if docs is not None:
        update_section(Path(docs) / PERFORMANCE, "engines", "Engines", report.to_markdown())
        write_text(Path(docs) / PARITY_MARKDOWN, (Path(engines.source) / PARITY_MARKDOWN).read_text(encoding="utf-8"))
    if not quiet:
        print_table(f"latency, {report.threads} threads, {report.hardware.cpu}", short_rows(report))
    return {**report.model_dump(mode="json"), "rows": short_rows(report)}


def short_rows(report: BenchReport) -> list[dict[str, Any]]:
    """Median milliseconds a call, one row for each encoder and batch size."""
    rows = []
    for entry in report.entries:
        torch, engine = entry.latencies.get(TORCH), entry.latencies[ENGINE]
        speedup = f"{entry.speedup:.2f}x" if entry.speedup is not None else ""
        rows.append(
            {
                "encoder": entry.encoder,
                "batch": entry.sizes[BATCH],
                "torch ms": f"{torch.median_ms:.2f}" if torch is not None else "",
                "onnxruntime ms": f"{engine.median_ms:.2f}",
                "p99 ms": f"{engine.p99_ms:.2f}",
                # Torch's threads suffer most from other processes: a ratio taken beside them flatters the engine.
                "speed-up": speedup if entry.reliable else "busy machine",
            }
        )
    return rows
