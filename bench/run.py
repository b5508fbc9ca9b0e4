"""Benchmarks as a command."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.markdown import Markdown

from eao.backend import TorchBackend
from eao.bench.changes import compare_reports
from eao.bench.docs import update_section
from eao.bench.matrix import Options, Remote, bench_bundle, bundle_encoders, choose_engines
from eao.bench.recommend import Limits, describe, recommend_engines
from eao.bench.report import BenchReport
from eao.console import err, out, print_table
from eao.embedder import Embedder
from eao.errors import ConfigError
from eao.export.drawing import require_matplotlib
from eao.export.encoders import BATCH, Model
from eao.export.parity_report import PARITY_MARKDOWN, BundleParity
from eao.export.runtime import Bundle
from eao.files import write_json

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
    "engines": Suite("published", "Engines at the published size"),
    "attention": Suite("attention", "Attention without padding"),
    "extract": Suite("extract", "Extracting features"),
    "forward": Suite("forward", "The packed model"),
    "gradcache": Suite("gradcache", "Batches beyond memory"),
    "index": Suite("index", "The search index"),
    "load": Suite("load", "Serving under load"),
    "loader": Suite("loader", "Reading training data"),
    "loss": Suite("loss", "The loss and retrieval without the matrix of similarities"),
}


def run_suite(
    name: str, output: str | Path | None = None, docs: str | Path | None = None, quiet: bool = False, **choices: Any
) -> dict[str, Any]:
    """Run one of `SUITES`.

    Args:
        name: of the suite.
        output: JSON file for the report.
        docs: folder whose `performance.md` gets the tables.
        quiet: print nothing.
        choices: what the suite's `run()` takes; its own by default.

    Returns:
        the report as JSON values.
    """
    suite = SUITES[name]
    with err.status(f"measuring {name}") if not quiet else nullcontext():
        report: Report = importlib.import_module(f"eao.bench.{suite.module}").run(**choices)
    values = report.model_dump(mode="json")
    if output is not None:
        write_json(output, values)
    if docs is not None:
        update_section(Path(docs) / PERFORMANCE, name, suite.heading, report.to_markdown())
        if isinstance(parity := getattr(report, "parity", None), BundleParity):
            update_parity(docs, name, suite.heading, parity)
    if not quiet:
        out.print(Markdown(report.to_markdown()))
    return values


def update_parity(docs: str | Path, name: str, heading: str, parity: BundleParity) -> None:
    """Put the figures of a bundle into `parity.md` of the folder `docs`."""
    _, _, tables = parity.to_markdown().partition("\n")
    update_section(Path(docs) / PARITY_MARKDOWN, name, heading, tables.strip(), title="Parity of engines with PyTorch")


def run_benchmark(
    engines: Embedder,
    model: Embedder | None = None,
    encoders: Sequence[str] | None = None,
    runtimes: Sequence[str] = (),
    precisions: Sequence[str] = (),
    options: Options | None = None,
    output: str | Path | None = None,
    html: str | Path | None = None,
    docs: str | Path | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    server: Embedder | None = None,
) -> dict[str, Any]:
    """Measure a bundle at the sizes its model was trained on.

    Args:
        engines: a loaded bundle; its `data.video_tokens`, `data.audio_frames` and `data.text.max_words` are the sizes.
        model: the checkpoint it was made from, to measure PyTorch in turns with the engines.
        encoders: names; all by default.
        runtimes: such as "openvino"; all of the bundle by default.
        precisions: such as "int8"; all of the bundle by default.
        options: batches, lengths, time, and whether requests come at random.
        output: JSON file for the full report.
        html: file for one page with plots.
        docs: folder whose `performance.md` gets these latency tables, and `parity.md` the parity report of the bundle.
        server: `eao.serve.client.connect(...)`, to be measured beside the engines.

    Returns:
        the report as JSON values, with `rows` for a short table.

    Raises:
        ConfigError: not a bundle, not its model, or sizes that are none.
        ExportError: no engine that was asked for runs here.
        MissingDependencyError: a page was asked for, and matplotlib is not installed.
    """
    options = options or Options()
    options.check()
    bundle = engines.backend
    if not isinstance(bundle, Bundle):
        raise ConfigError(f"{engines.source} is not a bundle of engines", "make one with eao export")
    if html is not None:
        require_matplotlib()
    torch_model = _its_model(engines, model)
    servers = _its_server(engines, server)
    chosen = bundle_encoders(bundle, None, encoders or "all")
    if dry_run:
        return _describe(bundle, engines.source, chosen, runtimes, precisions, options, quiet)
    data = engines.config.data
    status = err.status("measuring") if not quiet else nullcontext()
    with status as shown:
        report = bench_bundle(
            torch_model,
            bundle,
            chosen,
            runtimes,
            precisions,
            options,
            text_tokens=data.text.max_words,
            video_tokens=data.video_tokens,
            audio_frames=data.audio_frames,
            progress=shown.update if shown is not None else None,
            servers=servers,
        )
    if output is not None:
        report.save(output)
    if html is not None:
        report.save_html(html)
    if docs is not None:
        update_section(Path(docs) / PERFORMANCE, "bundle", "Engines of a bundle", report.to_markdown())
        update_parity(docs, "bundle", "Engines of a bundle", BundleParity.load(engines.source))
    if not quiet:
        print_table(f"latency, {report.threads} threads, {report.hardware.cpu}", short_rows(report))
        for note in report.notes():
            err.print(note, markup=False, soft_wrap=True)
    return {**report.model_dump(mode="json"), "rows": short_rows(report)}


def run_recommendation(
    model: Embedder, bundle: str | Path, latency_ms: float | None, recall_drop: float | None, quiet: bool = False
) -> dict[str, Any]:
    """Choose among the engines of a bundle, and tell why.

    Args:
        model: the checkpoint it was made from.
        bundle: its folder.
        latency_ms, recall_drop: see `eao.bench.recommend.Limits`.
        quiet: print nothing.

    Returns:
        the recommendation as JSON values, with `chosen` by encoder, and the encoders that are `unmet`.

    Raises:
        ExportError: no engine runs here, or there is no recall to compare.
    """
    limits = Limits(latency_ms=latency_ms, recall_drop=recall_drop)
    assert isinstance(model.backend, TorchBackend)
    with err.status("choosing") if not quiet else nullcontext() as shown:
        found = recommend_engines(
            bundle,
            model.backend.model,  # type: ignore[arg-type]
            model.config,
            limits,
            progress=shown.update if shown is not None else None,
        )
    if not quiet:
        table = found.table()
        print_table("one clip at a time", [dict(zip(table.header, row, strict=True)) for row in table.rows])
        for line in describe(found):
            err.print(line, markup=False, soft_wrap=True)
    return {**found.model_dump(mode="json"), "chosen": found.chosen, "unmet": found.unmet}


def run_comparison(before: str | Path, after: str | Path, quiet: bool = False) -> dict[str, Any]:
    """Compare two reports that `run_benchmark` wrote.

    Args:
        before, after: JSON files.
        quiet: print nothing.

    Returns:
        the comparison as JSON values, each change with its verdict.
    """
    found = compare_reports(BenchReport.load(before), BenchReport.load(after))
    if not quiet:
        out.print(Markdown(found.to_markdown()))
    values = found.model_dump(mode="json")
    verdicts = [change.verdict for change in found.changes]
    return {**values, "changes": [{**c, "verdict": v} for c, v in zip(values["changes"], verdicts, strict=True)]}


def short_rows(report: BenchReport) -> list[dict[str, Any]]:
    """Median milliseconds a call, one row for each encoder, size and way."""
    lengths = {entry.length for entry in report.entries}
    rows = []
    for entry in report.entries:
        for way, result in entry.results.items():
            row: dict[str, Any] = {"encoder": entry.encoder, "batch": entry.sizes[BATCH]}
            if len(lengths) > 1:
                row["length"] = f"{100 * entry.length:.0f} %"
            row |= {
                "engine": way,
                "median ms": f"{result.latency.median_ms:.2f}",
                "p99 ms": f"{result.latency.p99_ms:.2f}",
                # Torch's threads suffer most from other processes: a ratio taken beside them flatters the engine.
                "speed-up": entry.describe_speedup(way),
            }
            if result.arrivals is not None:
                row["p99 ms at random"] = f"{result.arrivals.latency.p99_ms:.2f}"
            rows.append({**row, "": entry.verdict(way)})
    return rows


def _its_model(engines: Embedder, model: Embedder | None) -> Model | None:
    """The PyTorch model, after a check that the engines were made from it."""
    if model is None:
        return None
    if not isinstance(model.backend, TorchBackend):
        raise ConfigError(f"{model.source} is no checkpoint", "give the one the bundle was made from")
    if model.model_hash != engines.model_hash:
        raise ConfigError(
            f"{engines.source} was made from other weights than {model.source}", "compare an engine with its own model"
        )
    return model.backend.model  # type: ignore[return-value]


def _its_server(engines: Embedder, server: Embedder | None) -> dict[str, Remote]:
    """The server by its address, after a check that it serves the same weights."""
    if server is None:
        return {}
    if server.model_hash != engines.model_hash:
        raise ConfigError(
            f"{server.source} serves other weights than {engines.source}", "write its repository from this bundle"
        )
    return {server.source: server.backend}  # type: ignore[dict-item]


def _describe(
    bundle: Bundle,
    source: str | Path,
    encoders: Sequence[str],
    runtimes: Sequence[str],
    precisions: Sequence[str],
    options: Options,
    quiet: bool,
) -> dict[str, Any]:
    found, skipped = choose_engines(bundle, encoders, runtimes, precisions)
    keys = [entry.key for entry in found]
    if not quiet:
        out.print(
            f"would measure {', '.join(keys)} at batches {list(options.batches)} and lengths {list(options.lengths)}, "
            f"{options.seconds} s each",
            soft_wrap=True,
        )
        for engine, reason in skipped.items():
            err.print(f"not {engine}: {reason}", markup=False, soft_wrap=True)
    return {
        "bundle": str(source),
        "encoders": list(encoders),
        "engines": keys,
        "skipped": skipped,
        "batches": list(options.batches),
        "lengths": list(options.lengths),
        "seconds": options.seconds,
    }
