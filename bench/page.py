"""A report of engines as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from eao.bench.plots import encoder_plot
from eao.bench.report import TORCH, BenchReport
from eao.export.encoders import BATCH
from eao.export.page import Table, html_details, html_list, html_page, html_table


def render_page(report: BenchReport) -> str:
    """The page: what is recommended, warnings, plots by encoder, and all tables.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    return html_page(f"Engines of {report.bundle}", _body(report))


def recommendations(report: BenchReport) -> Table:
    """The fastest engine of each encoder and size that beats PyTorch by more than the noise."""
    rows = []
    for entry in report.entries:
        way = entry.recommended
        gain = entry.describe_speedup(way) if way is not None else ""
        if way is None:
            way = "none is faster than PyTorch" if entry.reliable else "the machine was busy: measure again"
        rows.append((entry.encoder, str(entry.sizes[BATCH]), entry.describe_sizes(), way, gain))
    return Table(("encoder", "batch", "sizes", "recommended", "speed-up"), rows)


def _body(report: BenchReport) -> Iterator[str]:
    yield f"<h1>Engines of {escape(report.bundle)}</h1>"
    yield f"<p>{escape(report.measured_on())}</p>"
    yield html_list(report.notes())
    if any(TORCH in entry.results for entry in report.entries):
        yield "<h2>Recommended</h2>"
        yield "<p>The fastest engine that beats PyTorch by more than the noise of the measurement.</p>"
        yield html_table(recommendations(report))
    yield "<h2>Encoders</h2>"
    for encoder in dict.fromkeys(entry.encoder for entry in report.entries):
        yield f"<h3>{escape(encoder)}</h3>"
        yield encoder_plot(report, encoder)
    yield "<h2>Latencies</h2>"
    yield f"<p>{escape(report.introduction())}</p>"
    yield html_details("all latencies", html_table(report.latency_table()))
    for heading, table in report.further_tables():
        yield f"<p>{escape(heading)}</p>"
        yield html_table(table)
